// Reads the ledger topic of a Flaghoist environment and checks it: signatures, chain, roots, people.
//
// One line of JSON for each entry goes to stdout, one for the count of records to stderr. docs/topic.md explains both,
// and what is left to `flaghoist audit verify`.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit codes as the flaghoist command has them.
const (
	exitUsage       = 2
	exitRefused     = 10
	exitUnavailable = 12
	exitInterrupted = 130
)

// brokenChain: the topic could be read, and does not hold a whole chain from the trusted root to its end.
type brokenChain struct{ text string }

func (b *brokenChain) Error() string { return "the chain breaks: " + b.text }

// usage: the command line cannot work.
type usage struct{ text string }

func (u *usage) Error() string { return u.text }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	switch {
	case err == nil:
		return
	case errors.As(err, new(*usage)):
		fail(err, exitUsage)
	case errors.As(err, new(*brokenChain)), errors.As(err, new(*errNotUnderstood)):
		fail(err, exitRefused)
	case ctx.Err() != nil:
		os.Exit(exitInterrupted)
	default:
		fail(err, exitUnavailable)
	}
}

func fail(err error, code int) {
	fmt.Fprintln(os.Stderr, "reader:", err)
	os.Exit(code)
}

func run(ctx context.Context) error {
	brokers := flag.String("brokers", "", "`HOST:PORT` of a broker; several with commas")
	name := flag.String("topic", "", "the ledger's `TOPIC`")
	trusted := flag.String("root", "", "the root that is trusted: a `FILE`, or sha256:HEX")
	follow := flag.Bool("follow", false, "go on with new entries as they come")
	avsc := flag.String("avsc", "proto/flaghoist/avro", "`DIRECTORY` of the .avsc files")
	flag.Parse()
	if *brokers == "" || *name == "" || *trusted == "" || flag.NArg() > 0 {
		return &usage{"want --brokers, --topic and --root, and no more"}
	}
	codec, err := LoadCodec(*avsc)
	if err != nil {
		return &usage{"--avsc: " + err.Error()}
	}
	root, err := trustedRoot(codec, *trusted)
	if err != nil {
		return &usage{"--root: " + err.Error()}
	}
	topic := &Topic{strings.Split(*brokers, ","), *name}
	beginning, err := findBeginning(ctx, topic, codec, root)
	if err != nil {
		return err
	}
	return print(ctx, topic, NewChain(codec, *beginning), *follow)
}

// trustedRoot returns the digest of the root in a file, or the digest that was given.
func trustedRoot(codec *Codec, given string) ([32]byte, error) {
	if digits, is := strings.CutPrefix(given, "sha256:"); is {
		data, err := hex.DecodeString(digits)
		if err != nil || len(data) != hashBytes {
			return [32]byte{}, errors.New("want sha256: and 64 hex digits")
		}
		return [32]byte(data), nil
	}
	data, err := os.ReadFile(given)
	if err != nil {
		return [32]byte{}, err
	}
	envelope, err := codec.Envelope(data)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%s: %w", given, err)
	}
	root, err := verifiedRoot(codec, envelope)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%s: %w", given, err)
	}
	return root.SHA256, nil
}

// findBeginning reads the topic until it knows which root the ledger starts with.
func findBeginning(ctx context.Context, topic *Topic, codec *Codec, trusted [32]byte) (*Beginning, error) {
	origins := NewOrigins(codec, trusted)
	var found *Beginning
	take := func(_ int64, value []byte) (bool, error) {
		found = origins.Take(value)
		return found == nil, nil
	}
	missing := func() error {
		return &brokenChain{fmt.Sprintf("root %x: the topic does not state it", origins.wanted)}
	}
	err := topic.Read(ctx, false, take, missing)
	return found, err
}

// print writes a line for each entry, and at the end how many records there were of each kind.
func print(ctx context.Context, topic *Topic, chain *Chain, follow bool) error {
	out := bufio.NewWriter(os.Stdout)
	take := func(position int64, value []byte) (bool, error) {
		account, err := chain.Take(position, value)
		if account != nil {
			fmt.Fprintln(out, account.Line())
		}
		return true, err
	}
	atEnd := func() error {
		if err := out.Flush(); err != nil {
			return err
		}
		if broken := chain.Broken(); broken != "" {
			return &brokenChain{broken}
		}
		return nil
	}
	err := topic.Read(ctx, follow, take, atEnd)
	out.Flush()
	fmt.Fprintln(os.Stderr, summary(chain))
	return err
}

func summary(c *Chain) string {
	o := &object{}
	o.number("records", int64(c.Records))
	o.number("entries", int64(c.Entries))
	o.number("dropped", int64(c.Dropped))
	o.number("repeated", int64(c.Repeated))
	o.number("void", int64(c.Void))
	o.number("gap", int64(c.Gap))
	o.number("forked", int64(c.Forked))
	o.number("head", c.Head)
	o.text("head_hash", hexOf(c.HeadHash))
	return o.String()
}
