package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Brokers that say nothing for so long are taken to be away.
const silence = 30 * time.Second

// Topic is the one partition of a ledger.
type Topic struct {
	brokers []string
	name    string
}

// ask returns the offset after the newest record, and refuses a topic that cannot be a ledger.
func (t *Topic) ask(ctx context.Context) (int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(t.brokers...))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, t.name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("topic %s: %w", t.name, err)
	}
	if partitions := len(ends[t.name]); partitions != 1 {
		return 0, fmt.Errorf("topic %s: want 1 partition, as a ledger has, got %d", t.name, partitions)
	}
	end, _ := ends.Lookup(t.name, 0)
	return end.Offset, nil
}

// Read hands every record on, from the first one that is kept; `take` returns false to stop.
//
// Uncommitted records are read as well: whoever can write to the topic could else hold readers up with a transaction
// that is never ended. At the topic's end (as it was at the start) `atEnd` is called, and reading stops unless it follows.
func (t *Topic) Read(
	ctx context.Context, follow bool, take func(position int64, value []byte) (bool, error), atEnd func() error,
) error {
	end, err := t.ask(ctx)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(t.brokers...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.name: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadUncommitted()),
		kgo.KeepControlRecords(), // they take up offsets, so they count on the way to the end
	)
	if err != nil {
		return err
	}
	defer client.Close()
	next, reached := int64(0), false
	for {
		if !reached && next >= end {
			reached = true
			if err := atEnd(); err != nil || !follow {
				return err
			}
		}
		fetches, err := poll(ctx, client, reached)
		if err != nil {
			return fmt.Errorf("topic %s: %w", t.name, err)
		}
		for records := fetches.RecordIter(); !records.Done(); {
			record := records.Next()
			next = record.Offset + 1
			if record.Attrs.IsControl() {
				continue
			}
			if on, err := take(record.Offset, record.Value); err != nil || !on {
				return err
			}
		}
		if reached && fetches.NumRecords() > 0 {
			if err := atEnd(); err != nil {
				return err
			}
		}
	}
}

// poll waits for records: for ever when it may be quiet, else until the brokers have been silent for too long.
func poll(ctx context.Context, client *kgo.Client, mayBeQuiet bool) (kgo.Fetches, error) {
	if !mayBeQuiet {
		limited, cancel := context.WithTimeout(ctx, silence)
		defer cancel()
		ctx = limited
	}
	fetches := client.PollFetches(ctx)
	return fetches, fetches.Err()
}
