package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Account is one entry as it is printed. Of a rejected one it holds what is proven all the same.
type Account struct {
	Kind        string
	Approvers   []string
	Policy      *string
	RootSigners []string
	Ratifies    *int64
	Holder      *string
	Moment      *int64 // before which what it changed must not be served, Unix ms
	Refused     *string
	Checked     []string

	entry          *Entry
	hash           [32]byte
	proposal       *Proposal
	proposalSHA256 *[32]byte
	root           *Root
}

func newAccount(entry *Entry, hash [32]byte) *Account {
	return &Account{entry: entry, hash: hash, Checked: []string{"chain", "publisher"}}
}

func (a *Account) stateRoot(root *Root, signers []string) {
	a.Kind, a.root, a.RootSigners = "root", root, signers
	a.Checked = append(a.Checked, "root")
}

// propose takes a proposal whose requester has signed it.
func (a *Account) propose(proposal *Proposal, sha256 [32]byte) {
	a.proposal, a.proposalSHA256 = proposal, &sha256
	a.Checked = append(a.Checked, "requester")
}

// Line returns the entry as one line of JSON: ASCII, no spaces, all fields in this order.
func (a *Account) Line() string {
	o := &object{}
	o.number("seq", a.entry.Seq)
	o.text("entry_hash", hexOf(a.hash))
	o.text("prev_hash", fmt.Sprintf("%x", a.entry.PrevHash))
	o.number("epoch", a.entry.Epoch)
	o.number("root_version", int64(a.entry.RootVersion))
	o.number("published_at", a.entry.PublishedAt)
	o.text("kind", a.Kind)
	var ops []string
	if p := a.proposal; p != nil {
		o.text("proposal_id", p.ProposalID)
		o.optionalHash("proposal_sha256", a.proposalSHA256)
		o.text("requester", p.Requester)
		ops = opObjects(p.Ops)
	} else {
		o.null("proposal_id")
		o.optionalHash("proposal_sha256", a.proposalSHA256)
		o.null("requester")
	}
	o.texts("approvers", a.Approvers)
	o.optionalText("policy", a.Policy)
	if p := a.proposal; p != nil {
		o.text("title", p.Title)
		o.text("reason", p.Reason)
		o.optionalText("ticket", p.Ticket)
	} else {
		o.null("title", "reason", "ticket")
	}
	o.raw("ops", "["+strings.Join(ops, ",")+"]")
	o.optionalNumber("moment", a.Moment)
	if step, is := a.entry.Body.(*Step); is {
		o.text("release", step.Release)
		o.number("stage", int64(step.Stage))
	} else {
		o.null("release", "stage")
	}
	if a.root != nil {
		o.number("new_root_version", int64(a.root.Version))
		o.text("new_root_sha256", hexOf(a.root.SHA256))
	} else {
		o.null("new_root_version", "new_root_sha256")
	}
	o.texts("root_signers", a.RootSigners)
	o.optionalNumber("ratifies", a.Ratifies)
	o.optionalText("holder", a.Holder)
	o.optionalText("refused", a.Refused)
	o.texts("checked", a.Checked)
	return o.String()
}

func opObjects(ops []Op) []string {
	var found []string
	for _, op := range ops {
		o := &object{}
		o.text("target", op.Target)
		o.text("source", op.Source)
		o.text("key", op.Key)
		o.text("action", op.Action)
		found = append(found, o.String())
	}
	return found
}

// object builds a JSON object with its fields in the order in which they are added.
type object struct{ fields []string }

func (o *object) String() string { return "{" + strings.Join(o.fields, ",") + "}" }

func (o *object) raw(name, value string) { o.fields = append(o.fields, quoted(name)+":"+value) }

func (o *object) number(name string, value int64) { o.raw(name, strconv.FormatInt(value, 10)) }

func (o *object) optionalNumber(name string, value *int64) {
	if value == nil {
		o.null(name)
		return
	}
	o.number(name, *value)
}

func (o *object) text(name, value string) { o.raw(name, quoted(value)) }

func (o *object) null(names ...string) {
	for _, name := range names {
		o.raw(name, "null")
	}
}

func (o *object) optionalText(name string, value *string) {
	if value == nil {
		o.null(name)
		return
	}
	o.text(name, *value)
}

func (o *object) optionalHash(name string, value *[32]byte) {
	if value == nil {
		o.null(name)
		return
	}
	o.text(name, hexOf(*value))
}

func (o *object) texts(name string, values []string) {
	var found []string
	for _, value := range values {
		found = append(found, quoted(value))
	}
	o.raw(name, "["+strings.Join(found, ",")+"]")
}

// quoted returns a JSON string in ASCII: the same bytes in every language, and nothing that a terminal would obey.
func quoted(value string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range value {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
