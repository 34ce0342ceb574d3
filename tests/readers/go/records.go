package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"unicode/utf8"

	"github.com/hamba/avro/v2"
)

// Limits of the protocol, checked before anything is believed (docs/protocol.md, "Limits").
const (
	envelopeBytesMax = 512 * 1024
	signaturesMax    = 16
	approvalsMax     = 16
	opsMax           = 500
	titleCharsMax    = 200
	reasonCharsMax   = 4000
	policyCharsMax   = 64 * 1024
	hashBytes        = 32
	// An array of more bytes is refused before it is allocated: a length in junk may claim anything. The longest honest
	// one, a root's thousand keys, takes a tenth of it.
	arrayBytesMax = 1 << 20

	typePrefix = "application/vnd.flaghoist."
)

var (
	logIDForm  = regexp.MustCompile(`\A[a-z0-9][a-z0-9._-]{2,63}\z`)
	personForm = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}\z`)
	sourceForm = regexp.MustCompile(`\A([A-Za-z0-9][A-Za-z0-9._/-]{0,127})?\z`)
	keyForm    = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._:@-]{0,254}\z`)
	keyIDForm  = regexp.MustCompile(`\A[0-9a-f]{32}\z`)
)

// Refusal says why a record does not count. Its code is the one that `flaghoist audit verify` gives.
type Refusal struct{ Code, Text string }

func (r *Refusal) Error() string { return r.Code + ": " + r.Text }

func refuse(code, format string, args ...any) error {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) error { return refuse("malformed", format, args...) }

// The records, as in the .avsc files.

type Signature struct {
	KeyID     string `avro:"key_id"`
	Signature []byte `avro:"signature"`
}

type Envelope struct {
	PayloadType  string      `avro:"payload_type"`
	SchemaSHA256 []byte      `avro:"schema_sha256"`
	Payload      []byte      `avro:"payload"`
	Signatures   []Signature `avro:"signatures"`
}

type Release struct {
	Proposal  Envelope   `avro:"proposal"`
	Approvals []Envelope `avro:"approvals"`
	Policy    string     `avro:"policy"`
}

type RootUpdate struct {
	Root Envelope `avro:"root"`
}

type EpochClaim struct {
	Holder string `avro:"holder"`
}

type Ratification struct {
	ProposalSHA256 []byte     `avro:"proposal_sha256"`
	Approvals      []Envelope `avro:"approvals"`
}

// Preparation shows a proposal before it is published, so that sidecars acknowledge it.
type Preparation struct {
	Release Release `avro:"release"`
}

// Step takes a release to its next stage. Nobody but the publisher signs it.
type Step struct {
	Release         string `avro:"release"`
	ExpectedVersion int64  `avro:"expected_version"`
	Stage           int    `avro:"stage"`
}

type Entry struct {
	LogID       string `avro:"log_id"`
	Seq         int64  `avro:"seq"`
	PrevHash    []byte `avro:"prev_hash"`
	Epoch       int64  `avro:"epoch"`
	RootVersion int    `avro:"root_version"`
	PublishedAt int64  `avro:"published_at"`
	Body        any    `avro:"body"` // *Release, *RootUpdate, *EpochClaim, *Ratification, *Preparation or *Step
}

type Op struct {
	Target          string  `avro:"target"`
	Source          string  `avro:"source"`
	Key             string  `avro:"key"`
	ExpectedVersion int64   `avro:"expected_version"`
	Action          string  `avro:"action"`
	Definition      *[]byte `avro:"definition"`
}

type Proposal struct {
	LogID      string  `avro:"log_id"`
	ProposalID string  `avro:"proposal_id"`
	Requester  string  `avro:"requester"`
	CreatedAt  int64   `avro:"created_at"`
	ExpiresAt  int64   `avro:"expires_at"`
	Kind       string  `avro:"kind"`
	Title      string  `avro:"title"`
	Reason     string  `avro:"reason"`
	Ticket     *string `avro:"ticket"`
	Ops        []Op    `avro:"ops"`
	ActivateAt *int64  `avro:"activate_at"`
	LeadMs     *int64  `avro:"lead_ms"`
	// Percent of the fleet.
	AckedPercent *int  `avro:"acked_percent"`
	MinPin       int64 `avro:"min_pin"`
}

type Approval struct {
	LogID          string  `avro:"log_id"`
	ProposalSHA256 []byte  `avro:"proposal_sha256"`
	Approver       string  `avro:"approver"`
	Decision       string  `avro:"decision"`
	ApprovedAt     int64   `avro:"approved_at"`
	ExpiresAt      int64   `avro:"expires_at"`
	Comment        *string `avro:"comment"`
}

type RootKey struct {
	KeyID     string `avro:"key_id"`
	Algorithm string `avro:"algorithm"`
	Public    []byte `avro:"public"`
	Person    string `avro:"person"`
}

type RoleGrant struct {
	Role      string   `avro:"role"`
	KeyIDs    []string `avro:"key_ids"`
	Threshold int      `avro:"threshold"`
}

type Revocation struct {
	KeyID           string `avro:"key_id"`
	DistrustFromSeq *int64 `avro:"distrust_from_seq"`
	Reason          string `avro:"reason"`
}

type RootRecord struct {
	LogID          string       `avro:"log_id"`
	Version        int          `avro:"version"`
	PrevRootSHA256 []byte       `avro:"prev_root_sha256"`
	AnchorSeq      int64        `avro:"anchor_seq"`
	AnchorHash     []byte       `avro:"anchor_hash"`
	ExpiresAt      int64        `avro:"expires_at"`
	Keys           []RootKey    `avro:"keys"`
	Roles          []RoleGrant  `avro:"roles"`
	Fractional     string       `avro:"fractional"`
	Policy         string       `avro:"policy"`
	Revoked        []Revocation `avro:"revoked"`
}

// Codec decodes records with the schemas of the .avsc files. It never encodes: what was signed is kept as it came.
type Codec struct {
	api     avro.API
	schemas map[string]avro.Schema
}

// LoadCodec reads the .avsc files of a directory.
func LoadCodec(directory string) (*Codec, error) {
	api := avro.Config{MaxByteSliceSize: envelopeBytesMax, MaxSliceAllocSize: arrayBytesMax}.Freeze()
	api.Register("flaghoist.v1.Release", &Release{})
	api.Register("flaghoist.v1.RootUpdate", &RootUpdate{})
	api.Register("flaghoist.v1.EpochClaim", &EpochClaim{})
	api.Register("flaghoist.v1.Ratification", &Ratification{})
	api.Register("flaghoist.v1.Preparation", &Preparation{})
	api.Register("flaghoist.v1.Step", &Step{})
	codec := &Codec{api, map[string]avro.Schema{}}
	for _, name := range []string{"envelope", "entry", "proposal", "approval", "root"} {
		text, err := os.ReadFile(filepath.Join(directory, name+".avsc"))
		if err != nil {
			return nil, err
		}
		// A cache of its own for each: entry.avsc has an Envelope as well.
		schema, err := avro.ParseBytesWithCache(text, "", &avro.SchemaCache{})
		if err != nil {
			return nil, fmt.Errorf("%s.avsc: %w", name, err)
		}
		codec.schemas[name] = schema
	}
	return codec, nil
}

func payloadType(name string) string { return typePrefix + name + ".v1+avro" }

// fingerprint is SHA-256 of the schema's Parsing Canonical Form, as an envelope's schema_sha256 has it.
func (c *Codec) fingerprint(name string) [32]byte { return c.schemas[name].Fingerprint() }

// decode reads exactly one record: bytes that are left over would be signed by somebody and seen by nobody.
func (c *Codec) decode(name string, data []byte, into any) error {
	reader := avro.NewReader(nil, 0, avro.WithReaderConfig(c.api)).Reset(data)
	reader.ReadVal(c.schemas[name], into)
	if reader.Error != nil {
		return malformed("%d bytes are not Avro of %s: %v", len(data), name, reader.Error)
	}
	if reader.Peek(); reader.Error == nil {
		return malformed("%s: trailing bytes", name)
	}
	return nil
}

func (c *Codec) Envelope(data []byte) (*Envelope, error) {
	if len(data) > envelopeBytesMax {
		return nil, refuse("too_large", "envelope: at most %d bytes, got %d", envelopeBytesMax, len(data))
	}
	var envelope Envelope
	if err := c.decode("envelope", data, &envelope); err != nil {
		return nil, err
	}
	return &envelope, envelope.check()
}

func (c *Codec) Entry(payload []byte) (*Entry, error) {
	var entry Entry
	if err := c.decode("entry", payload, &entry); err != nil {
		return nil, err
	}
	return &entry, first(
		form("log_id", logIDForm, entry.LogID), natural("seq", entry.Seq), hash("prev_hash", entry.PrevHash),
		moment("published_at", entry.PublishedAt), checkBody(entry.Body),
	)
}

func (c *Codec) Proposal(payload []byte) (*Proposal, error) {
	var p Proposal
	if err := c.decode("proposal", payload, &p); err != nil {
		return nil, err
	}
	if len(p.Ops) < 1 || len(p.Ops) > opsMax {
		return nil, refuse("too_large", "proposal: want 1 .. %d ops, got %d", opsMax, len(p.Ops))
	}
	if err := first(
		form("log_id", logIDForm, p.LogID), text("proposal_id", p.ProposalID, 64),
		form("requester", personForm, p.Requester), moment("created_at", p.CreatedAt),
		moment("expires_at", p.ExpiresAt), text("kind", p.Kind, titleCharsMax), text("title", p.Title, titleCharsMax),
		text("reason", p.Reason, reasonCharsMax), optionalText("ticket", p.Ticket, titleCharsMax),
	); err != nil {
		return nil, err
	}
	for _, op := range p.Ops {
		if (op.Definition == nil) == (op.Action == "PUT") {
			return nil, malformed("op %s: want a definition for PUT and none otherwise", op.Action)
		}
		if err := first(
			form("source", sourceForm, op.Source), form("flag key", keyForm, op.Key),
			natural("expected_version", op.ExpectedVersion),
		); err != nil {
			return nil, err
		}
	}
	if p.ActivateAt != nil {
		if err := moment("activate_at", *p.ActivateAt); err != nil {
			return nil, err
		}
	}
	if p.LeadMs != nil {
		if err := moment("lead_ms", *p.LeadMs); err != nil {
			return nil, err
		}
	}
	return &p, natural("min_pin", p.MinPin)
}

func (c *Codec) Approval(payload []byte) (*Approval, error) {
	var a Approval
	if err := c.decode("approval", payload, &a); err != nil {
		return nil, err
	}
	return &a, first(
		form("log_id", logIDForm, a.LogID), hash("proposal_sha256", a.ProposalSHA256),
		form("approver", personForm, a.Approver), moment("approved_at", a.ApprovedAt),
		moment("expires_at", a.ExpiresAt), optionalText("comment", a.Comment, reasonCharsMax),
	)
}

func (c *Codec) Root(payload []byte) (*RootRecord, error) {
	var r RootRecord
	if err := c.decode("root", payload, &r); err != nil {
		return nil, err
	}
	if err := first(
		form("log_id", logIDForm, r.LogID), hash("prev_root_sha256", r.PrevRootSHA256),
		natural("anchor_seq", r.AnchorSeq), hash("anchor_hash", r.AnchorHash), moment("expires_at", r.ExpiresAt),
		text("fractional", r.Fractional, titleCharsMax), text("policy", r.Policy, policyCharsMax),
	); err != nil {
		return nil, err
	}
	roles := map[string]bool{}
	for _, grant := range r.Roles {
		if roles[grant.Role] {
			return nil, malformed("root: role %s is listed twice", grant.Role)
		}
		roles[grant.Role] = true
		for _, id := range grant.KeyIDs {
			if err := form("key_id", keyIDForm, id); err != nil {
				return nil, err
			}
		}
	}
	for _, key := range r.Keys {
		if err := first(form("key_id", keyIDForm, key.KeyID), form("person", personForm, key.Person)); err != nil {
			return nil, err
		}
	}
	for _, one := range r.Revoked {
		if err := first(form("key_id", keyIDForm, one.KeyID), text("reason", one.Reason, reasonCharsMax)); err != nil {
			return nil, err
		}
		if one.DistrustFromSeq != nil && *one.DistrustFromSeq < 0 {
			return nil, malformed("root: revoked: want a seq, got %d", *one.DistrustFromSeq)
		}
	}
	return &r, nil
}

func (e *Envelope) check() error {
	if len(e.Signatures) > signaturesMax {
		return refuse("too_large", "envelope: at most %d signatures, got %d", signaturesMax, len(e.Signatures))
	}
	if !utf8.ValidString(e.PayloadType) {
		return malformed("payload_type: want UTF-8")
	}
	for _, signature := range e.Signatures {
		if err := form("key_id", keyIDForm, signature.KeyID); err != nil {
			return err
		}
	}
	return hash("schema_sha256", e.SchemaSHA256)
}

func checkBody(body any) error {
	switch b := body.(type) {
	case *Release:
		return b.check()
	case *Preparation:
		return b.Release.check()
	case *Step:
		return first(form("flag key", keyForm, b.Release), natural("expected_version", b.ExpectedVersion))
	case *RootUpdate:
		return b.Root.check()
	case *Ratification:
		return first(hash("proposal_sha256", b.ProposalSHA256), checkApprovals(b.Approvals))
	case *EpochClaim:
		return text("holder", b.Holder, titleCharsMax)
	default:
		return malformed("entry: body %T", body)
	}
}

func (r *Release) check() error {
	return first(r.Proposal.check(), checkApprovals(r.Approvals), text("policy", r.Policy, titleCharsMax))
}

func checkApprovals(envelopes []Envelope) error {
	if len(envelopes) > approvalsMax {
		return refuse("too_large", "at most %d approvals, got %d", approvalsMax, len(envelopes))
	}
	for i := range envelopes {
		if err := envelopes[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// first returns the first of these that is an error.
func first(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

func form(name string, wanted *regexp.Regexp, got string) error {
	if !wanted.MatchString(got) {
		return malformed("%s: got %.80q", name, got)
	}
	return nil
}

func hash(name string, got []byte) error {
	if len(got) != hashBytes {
		return malformed("%s: want %d bytes, got %d", name, hashBytes, len(got))
	}
	return nil
}

func moment(name string, got int64) error {
	if got < 0 || got >= 1<<53 {
		return malformed("%s: want Unix milliseconds, got %d", name, got)
	}
	return nil
}

func natural(name string, got int64) error {
	if got < 0 {
		return malformed("%s: want 0 or more, got %d", name, got)
	}
	return nil
}

func text(name, got string, charsMax int) error {
	if !utf8.ValidString(got) {
		return malformed("%s: want UTF-8", name)
	}
	if chars := utf8.RuneCountInString(got); chars > charsMax {
		return refuse("too_large", "%s: at most %d characters, got %d", name, charsMax, chars)
	}
	return nil
}

func optionalText(name string, got *string, charsMax int) error {
	if got == nil {
		return nil
	}
	return text(name, *got, charsMax)
}
