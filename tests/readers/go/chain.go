package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	firstEpoch         = 1
	emergencyLifeMsMax = 10 * 60_000
	emergencyFlagsMax  = 50
	leadMsMax          = 5 * 60_000
)

// errNotUnderstood: a record that only a newer release can judge. It must not be skipped, so reading ends there.
type errNotUnderstood struct{ what string }

func (e *errNotUnderstood) Error() string { return "written by a newer release: " + e.what }

// Tally counts records by what became of them. What nobody signed is counted and not kept.
type Tally struct{ Records, Entries, Dropped, Repeated, Void, Gap, Forked int }

type emergency struct {
	seq      int64
	proposal *Proposal
}

// Chain follows one ledger from its first entry on: bytes go in, an account of each entry comes out.
//
// Its state is the chain's and the root's: definitions are not folded and policies not evaluated.
type Chain struct {
	Tally
	Head     int64
	HeadHash [32]byte
	Root     *Root

	codec       *Codec
	beginning   Beginning
	epoch       int64
	publishedAt int64
	hashes      [][32]byte
	epochStarts []epochStart
	unratified  map[[32]byte]emergency
	prepared    map[[32]byte]int64 // a proposal that was prepared: when it expires
	forgers     map[string]bool
	quarantined bool
	furthestGap int64
	gapAfter    int64
	gapFrom     string
	fork        string
}

type epochStart struct{ seq, epoch int64 }

// NewChain starts before the first entry of the ledger whose first root has been found.
func NewChain(codec *Codec, beginning Beginning) *Chain {
	return &Chain{
		codec: codec, beginning: beginning, epoch: firstEpoch,
		unratified: map[[32]byte]emergency{}, prepared: map[[32]byte]int64{}, forgers: map[string]bool{},
	}
}

// Take judges the next record of the topic. It returns the account of the entry that it adds to the chain, or nil.
//
// The order of checks is docs/protocol.md's: nothing that nobody signed leads further than to the count of such.
func (c *Chain) Take(position int64, data []byte) (*Account, error) {
	c.Records++
	envelope, err := c.codec.Envelope(data)
	if err != nil {
		c.Dropped++
		return nil, nil
	}
	if c.Root == nil {
		return c.takeGenesis(envelope), nil
	}
	publishers := verifiedKeys(envelope, c.Root.keysOf(rolePublisher))
	var entry *Entry
	if len(publishers) > 0 {
		entry, err = c.publisherEntry(envelope)
	} else {
		entry, err = c.unlistedEntry(envelope)
	}
	if newer := (*errNotUnderstood)(nil); errors.As(err, &newer) {
		return nil, err
	} else if err != nil {
		c.Dropped++
		return nil, nil
	}
	hash := digest(envelope)
	switch {
	case entry.Seq <= c.Head:
		c.judgePast(position, entry, hash, publishers)
		return nil, nil
	case entry.Seq != c.Head+1:
		c.gap(position, entry.Seq)
		return nil, nil
	case !bytes.Equal(entry.PrevHash, c.HeadHash[:]):
		c.forked(position, publishers, fmt.Sprintf("seq %d follows %x, want %x", entry.Seq, entry.PrevHash, c.HeadHash))
		return nil, nil
	case entry.Epoch != c.epoch+opensEpoch(entry.Body):
		c.Void++
		return nil, nil
	}
	account, err := c.judge(entry, hash)
	if err != nil {
		return nil, err
	}
	if account.Refused != nil && len(publishers) == 0 {
		c.Dropped++ // a publisher to be extends the chain by the root that makes it one, only
		return nil, nil
	}
	c.advance(entry, hash, account)
	return account, nil
}

// Broken says why what was read is not a whole chain up to its head; "" when it is.
func (c *Chain) Broken() string {
	var found []string
	if c.furthestGap > c.Head {
		found = append(found, c.gapFrom)
	}
	if c.quarantined {
		found = append(found, c.fork)
	}
	if c.Root == nil {
		return "no entry states the root that is trusted: another ledger, or none"
	}
	if c.Root.Version < c.beginning.Version {
		found = append(found, fmt.Sprintf("root version %d is trusted, version %d is in force at the end: "+
			"entries are withheld, or the topic was cut", c.beginning.Version, c.Root.Version))
	}
	return strings.Join(found, "; ")
}

// takeGenesis takes the entry that states the first root: the one that is trusted, or that the trusted one leads to.
func (c *Chain) takeGenesis(envelope *Envelope) *Account {
	account, err := c.genesis(envelope)
	if err != nil {
		c.Dropped++
		return nil
	}
	return account
}

func (c *Chain) genesis(envelope *Envelope) (*Account, error) {
	if envelope.PayloadType != payloadType("entry") {
		return nil, malformed("want an entry, got %.100q", envelope.PayloadType)
	}
	entry, err := c.codec.Entry(envelope.Payload)
	if err != nil {
		return nil, err
	}
	update, states := entry.Body.(*RootUpdate)
	if !states || digest(&update.Root) != c.beginning.First {
		return nil, refuse("wrong_root", "entry %d does not state root %x", entry.Seq, c.beginning.First)
	}
	root, err := verifiedRoot(c.codec, &update.Root)
	if err != nil {
		return nil, err
	}
	if len(verifiedKeys(envelope, root.keysOf(rolePublisher))) == 0 {
		return nil, refuse("bad_signature", "entry 1 is not signed by a publisher")
	}
	c.Root = root
	if _, err := c.publisherEntry(envelope); err != nil || entry.Seq != 1 || entry.Epoch != firstEpoch ||
		!allZero(entry.PrevHash) {
		c.Root = nil
		return nil, malformed("want entry 1 of epoch %d", firstEpoch)
	}
	hash := digest(envelope)
	account := newAccount(entry, hash)
	account.stateRoot(root, people(verifiedKeys(root.Envelope, root.keysOf(roleRoot))))
	c.advance(entry, hash, account)
	return account, nil
}

// publisherEntry returns the entry in an envelope that a publisher of the root in force has signed.
func (c *Chain) publisherEntry(envelope *Envelope) (*Entry, error) {
	if !strings.HasPrefix(envelope.PayloadType, typePrefix) {
		return nil, malformed("want an entry, got %.100q", envelope.PayloadType)
	}
	if envelope.PayloadType != payloadType("entry") {
		return nil, &errNotUnderstood{fmt.Sprintf("payload type %.100q", envelope.PayloadType)}
	}
	if wanted := c.codec.fingerprint("entry"); !bytes.Equal(envelope.SchemaSHA256, wanted[:]) {
		return nil, malformed("schema: want %x, got %x", wanted, envelope.SchemaSHA256)
	}
	entry, err := c.codec.Entry(envelope.Payload)
	if err != nil {
		return nil, err
	}
	if entry.LogID != c.Root.LogID {
		return nil, refuse("wrong_log", "expected %q, got %q", c.Root.LogID, entry.LogID)
	}
	if entry.Seq < 1 {
		return nil, malformed("entry: want a seq of at least 1, got %d", entry.Seq)
	}
	return entry, nil
}

// unlistedEntry returns an entry that no publisher of the root in force has signed, if it counts all the same: it is a
// copy of one in the chain, or it states the next root, and a publisher of that root has signed it. Such an entry may
// also be the proof that this reader follows the wrong history.
func (c *Chain) unlistedEntry(envelope *Envelope) (*Entry, error) {
	unsigned := refuse("bad_signature", "no publisher has signed it")
	if envelope.PayloadType != payloadType("entry") {
		return nil, unsigned
	}
	entry, err := c.publisherEntry(envelope)
	if err != nil {
		return nil, unsigned
	}
	if entry.Seq <= c.Head && digest(envelope) == c.hashes[entry.Seq-1] {
		return entry, nil
	}
	update, states := entry.Body.(*RootUpdate)
	if !states {
		return nil, unsigned
	}
	// First, since it is cheap: whoever writes to the topic could else have every reader check a thousand keys.
	if len(c.Root.peopleSigning(roleRoot, &update.Root)) < c.Root.grant(roleRoot).Threshold {
		return nil, unsigned
	}
	next, err := c.Root.successor(c.codec, &update.Root)
	if err != nil || len(verifiedKeys(envelope, next.keysOf(rolePublisher))) == 0 {
		return nil, unsigned
	}
	return entry, nil
}

// judgePast: an entry at a place that is filled is a copy, the late word of a publisher that lost it, or a fork.
func (c *Chain) judgePast(position int64, entry *Entry, hash [32]byte, signers []*RootKey) {
	before := [32]byte{}
	if entry.Seq > 1 {
		before = c.hashes[entry.Seq-2]
	}
	switch {
	case hash == c.hashes[entry.Seq-1]:
		c.Repeated++
	case !bytes.Equal(entry.PrevHash, before[:]):
		c.forked(position, signers, fmt.Sprintf("seq %d follows %x, want %x", entry.Seq, entry.PrevHash, before))
	case entry.Epoch < c.epochAt(entry.Seq) || opensEpoch(entry.Body) == 1:
		c.Void++
	default:
		c.forked(position, signers, fmt.Sprintf("seq %d is %x, want %x", entry.Seq, hash, c.hashes[entry.Seq-1]))
	}
}

func (c *Chain) gap(position, seq int64) {
	c.Gap++
	if c.furthestGap <= c.Head || c.gapAfter != c.Head {
		c.gapAfter = c.Head
		c.gapFrom = fmt.Sprintf("record at position %d: expected seq %d, got %d: entries are missing",
			position, c.Head+1, seq)
	}
	c.furthestGap = max(c.furthestGap, seq)
}

func (c *Chain) forked(position int64, signers []*RootKey, what string) {
	c.Forked++
	if !c.quarantined {
		c.quarantined = true
		c.fork = fmt.Sprintf("record at position %d: another history, signed by a publisher's key: %s", position, what)
	}
	for _, key := range signers {
		c.forgers[key.KeyID] = true
	}
}

// judge says what the entry after the head does. A Refusal makes it a rejected one, which is a link all the same.
func (c *Chain) judge(entry *Entry, hash [32]byte) (*Account, error) {
	account := newAccount(entry, hash)
	err := c.checkFrame(entry)
	if err == nil {
		switch body := entry.Body.(type) {
		case *EpochClaim:
			account.Kind, account.Holder = "epoch", &body.Holder
		case *RootUpdate:
			err = c.judgeRoot(entry, body, account)
		case *Release:
			err = c.judgeRelease(entry, body, account)
		case *Preparation:
			err = c.judgePreparation(entry, body, account)
		case *Step:
			// What it does, the plan in force says; who holds no plans can only say that the publisher took it.
			account.Kind = "step"
		case *Ratification:
			err = c.judgeRatification(entry, body, account)
		}
	}
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		rejected := newAccount(entry, hash)
		c.reject(entry, refusal, rejected)
		return rejected, nil
	}
	return account, err
}

func (c *Chain) checkFrame(entry *Entry) error {
	if entry.RootVersion != c.Root.Version {
		return refuse("wrong_root", "expected version %d, got version %d", c.Root.Version, entry.RootVersion)
	}
	// An expired root allows nothing but its successor, which the same people sign.
	if _, states := entry.Body.(*RootUpdate); !states && entry.PublishedAt > c.Root.ExpiresAt {
		return refuse("expired", "root version %d expired at %d", c.Root.Version, c.Root.ExpiresAt)
	}
	if entry.PublishedAt < c.publishedAt {
		return refuse("expired", "published at %d, predecessor at %d", entry.PublishedAt, c.publishedAt)
	}
	return nil
}

func (c *Chain) judgeRoot(entry *Entry, update *RootUpdate, account *Account) error {
	next, err := c.successor(&update.Root)
	if err != nil {
		return err
	}
	if entry.PublishedAt > next.ExpiresAt {
		return refuse("expired", "root version %d expired at %d", next.Version, next.ExpiresAt)
	}
	keys := append(c.Root.keysOf(roleRoot), next.keysOf(roleRoot)...)
	account.stateRoot(next, people(verifiedKeys(next.Envelope, keys)))
	return nil
}

// successor returns the next root: the trusted one of its version, if there is one, whose signers saw this very history.
func (c *Chain) successor(envelope *Envelope) (*Root, error) {
	next, err := c.Root.successor(c.codec, envelope)
	if err != nil {
		return nil, err
	}
	if wanted, pinned := c.beginning.Pinned[next.Version]; pinned && wanted != next.SHA256 {
		return nil, refuse("wrong_root", "expected %x, got %x", wanted, next.SHA256)
	}
	if next.AnchorSeq > c.Head || !bytes.Equal(next.AnchorHash, c.hashes[next.AnchorSeq-1][:]) {
		return nil, refuse("wrong_root", "its signers saw entry %x at seq %d", next.AnchorHash, next.AnchorSeq)
	}
	return next, nil
}

func (c *Chain) judgeRelease(entry *Entry, release *Release, account *Account) error {
	if err := c.judgeProposed(entry, release, account); err != nil {
		return err
	}
	account.Kind = kinds[account.proposal.Kind]
	if _, prepared := c.prepared[*account.proposalSHA256]; account.proposal.AckedPercent != nil && !prepared {
		return refuse("not_approved", "it asks for acknowledgements, and no entry has prepared it")
	}
	return nil
}

// The kind of an entry that publishes a proposal, by that one's.
var kinds = map[string]string{"CHANGE": "change", "ROLLBACK": "rollback", "DRILL": "drill", "EMERGENCY": "emergency"}

func (c *Chain) judgePreparation(entry *Entry, body *Preparation, account *Account) error {
	if err := c.judgeProposed(entry, &body.Release, account); err != nil {
		return err
	}
	account.Kind, account.Moment = "preparation", nil
	if account.proposal.AckedPercent == nil {
		return refuse("bad_definition", "want a proposal prepared that asks for acknowledgements, this one does not")
	}
	return nil
}

// judgeProposed says whether a proposal may be published now, or prepared to be.
func (c *Chain) judgeProposed(entry *Entry, release *Release, account *Account) error {
	proposal, err := c.verifiedProposal(&release.Proposal)
	if err != nil {
		return err
	}
	if err := checkKind(proposal); err != nil {
		return err
	}
	if entry.PublishedAt > proposal.ExpiresAt {
		return refuse("expired", "proposal %s expired at %d", proposal.ProposalID, proposal.ExpiresAt)
	}
	account.propose(proposal, digest(&release.Proposal))
	account.Policy = &release.Policy
	if err := c.checkPeople(entry, release, account); err != nil {
		return err
	}
	if proposal.MinPin > entry.Seq {
		return refuse("bad_definition", "min_pin: want at most %d, got %d", entry.Seq, proposal.MinPin)
	}
	if account.Moment, err = momentOf(proposal, entry.PublishedAt); err != nil {
		return err
	}
	if err := checkRollback(proposal); err != nil {
		return err
	}
	return c.checkRule(release, account)
}

// checkPeople refuses what too few people stand behind. A kill and a rehearsal wait for nobody.
func (c *Chain) checkPeople(entry *Entry, release *Release, account *Account) error {
	switch proposal := account.proposal; proposal.Kind {
	case "EMERGENCY", "DRILL":
		if proposal.Kind == "EMERGENCY" && proposal.CreatedAt > entry.PublishedAt+emergencyLifeMsMax {
			return refuse("bad_definition", "an emergency dated ahead, at %d", proposal.CreatedAt)
		}
		if len(release.Approvals) > 0 {
			return refuse("not_approved", "want %s without approvals, got %d", proposal.Kind, len(release.Approvals))
		}
	default:
		approvers, err := c.countedApprovers(proposal, *account.proposalSHA256, release.Approvals, entry.PublishedAt)
		if err != nil {
			return err
		}
		account.Approvers = approvers
		account.Checked = append(account.Checked, "approvers")
	}
	return nil
}

// checkRule refuses an entry that names another rule than the one that allowed it, as far as that needs no policy.
func (c *Chain) checkRule(release *Release, account *Account) error {
	var wanted string
	switch account.proposal.Kind {
	case "EMERGENCY":
		wanted = "emergency"
	case "DRILL":
		wanted = "drill"
	default:
		if c.Root.Policy != "" {
			return nil // which rule of a policy allows a change is the verifier's to say: the name is the publisher's claim
		}
		wanted = fmt.Sprintf("approvals>=%d", c.Root.grant(roleApprover).Threshold)
	}
	if release.Policy != wanted {
		return refuse("not_approved", "policy: want %q, got %q", wanted, release.Policy)
	}
	account.Checked = append(account.Checked, "policy")
	return nil
}

func (c *Chain) judgeRatification(entry *Entry, body *Ratification, account *Account) error {
	account.Kind = "ratification"
	sha256 := [32]byte(body.ProposalSHA256)
	ratified, waiting := c.unratified[sha256]
	if !waiting {
		return refuse("not_approved", "no emergency with digest %x waits to be ratified", sha256)
	}
	approvers, err := c.countedApprovers(ratified.proposal, sha256, body.Approvals, entry.PublishedAt)
	if err != nil {
		return err
	}
	account.proposalSHA256, account.Approvers, account.Ratifies = &sha256, approvers, &ratified.seq
	account.Checked = append(account.Checked, "approvers")
	return nil
}

// verifiedProposal returns a proposal that the person who it says asks has signed, in the role that this takes.
func (c *Chain) verifiedProposal(envelope *Envelope) (*Proposal, error) {
	if envelope.PayloadType != payloadType("proposal") {
		return nil, malformed("want a proposal, got %.100q", envelope.PayloadType)
	}
	keys := verifiedKeys(envelope, c.Root.keysOf(roleRequester, roleEmergency))
	if len(keys) == 0 {
		return nil, refuse("bad_signature", "nobody who may propose has signed the proposal")
	}
	proposal, err := c.codec.Proposal(envelope.Payload)
	if err != nil {
		return nil, err
	}
	if proposal.LogID != c.Root.LogID {
		return nil, refuse("wrong_log", "expected %q, got %q", c.Root.LogID, proposal.LogID)
	}
	role := roleRequester
	if proposal.Kind == "EMERGENCY" {
		role = roleEmergency
	}
	for _, key := range verifiedKeys(envelope, c.Root.keysOf(role)) {
		if key.Person == proposal.Requester {
			return proposal, nil
		}
	}
	return nil, refuse("wrong_role", "%s by %s, signed by %v", proposal.Kind, proposal.Requester, people(keys))
}

// verifiedApproval returns an approval, or rejection, that the person whom it names has signed.
func (c *Chain) verifiedApproval(envelope *Envelope) (*Approval, error) {
	if envelope.PayloadType != payloadType("approval") {
		return nil, malformed("want an approval, got %.100q", envelope.PayloadType)
	}
	keys := verifiedKeys(envelope, c.Root.keysOf(roleApprover))
	if len(keys) == 0 {
		return nil, refuse("bad_signature", "nobody who may approve has signed the approval")
	}
	approval, err := c.codec.Approval(envelope.Payload)
	if err != nil {
		return nil, err
	}
	if approval.LogID != c.Root.LogID {
		return nil, refuse("wrong_log", "expected %q, got %q", c.Root.LogID, approval.LogID)
	}
	for _, key := range keys {
		if key.Person == approval.Approver {
			return approval, nil
		}
	}
	return nil, refuse("wrong_role", "approval by %s, signed by %v", approval.Approver, people(keys))
}

// countedApprovers returns who approved exactly this proposal: all of these count, and they are as many people as the
// root asks for.
func (c *Chain) countedApprovers(proposal *Proposal, sha256 [32]byte, envelopes []Envelope, at int64) ([]string, error) {
	var approvals []*Approval
	for i := range envelopes {
		approval, err := c.verifiedApproval(&envelopes[i])
		if err != nil {
			return nil, err
		}
		approvals = append(approvals, approval)
	}
	approvers, distinct := []string{}, map[string]bool{}
	for _, approval := range approvals {
		switch {
		case !bytes.Equal(approval.ProposalSHA256, sha256[:]):
			return nil, refuse("bad_signature", "%s approved %x, this is %x", approval.Approver, approval.ProposalSHA256, sha256)
		case approval.Decision != "APPROVE":
			return nil, refuse("not_approved", "%s rejected it", approval.Approver)
		case approval.Approver == proposal.Requester:
			return nil, refuse("same_person", "%s both requested and approved it", approval.Approver)
		case at > approval.ExpiresAt:
			return nil, refuse("expired", "the approval by %s expired at %d", approval.Approver, approval.ExpiresAt)
		}
		approvers, distinct[approval.Approver] = append(approvers, approval.Approver), true
	}
	if threshold := c.Root.grant(roleApprover).Threshold; len(distinct) != len(approvers) || len(distinct) < threshold {
		return nil, refuse("not_approved", "want approvals of %d people, each once, got %v", threshold, approvers)
	}
	return approvers, nil
}

// checkKind refuses a kill outside of an emergency, an emergency that is anything but a kill, a drill that is anything
// but a rehearsal, and a moment that cannot be.
func checkKind(p *Proposal) error {
	kills, drills := 0, 0
	for _, op := range p.Ops {
		if op.Target == "POLICY" {
			return &errNotUnderstood{fmt.Sprintf("proposal %s: op %s of %s", p.ProposalID, op.Action, op.Target)}
		}
		if op.Action == "KILL" {
			kills++
		}
		if op.Target == "DRILL" {
			drills++
		}
	}
	if err := checkMoment(p); err != nil {
		return err
	}
	emergency := p.Kind == "EMERGENCY"
	switch {
	case p.Kind == "DRILL" && drills != len(p.Ops), p.Kind != "DRILL" && drills > 0:
		return refuse("bad_definition", "proposal %s: %d of %d ops on DRILL in a %s", p.ProposalID, drills, len(p.Ops), p.Kind)
	case p.Kind == "DRILL" && p.MinPin > 0:
		return refuse("bad_definition", "proposal %s: min_pin %d in a drill", p.ProposalID, p.MinPin)
	case !emergency && kills > 0:
		return refuse("bad_definition", "proposal %s: KILL in a %s", p.ProposalID, p.Kind)
	case emergency && kills < len(p.Ops):
		return refuse("bad_definition", "proposal %s: %d of %d ops kill in an emergency", p.ProposalID, kills, len(p.Ops))
	case kills > emergencyFlagsMax:
		return refuse("bad_definition", "proposal %s: %d kills in one emergency", p.ProposalID, kills)
	case emergency && p.ExpiresAt-p.CreatedAt > emergencyLifeMsMax:
		return refuse("bad_definition", "proposal %s: lives %d ms", p.ProposalID, p.ExpiresAt-p.CreatedAt)
	}
	for _, op := range p.Ops {
		if op.Action == "KILL" && op.Target != "FLAG" && op.Target != "RELEASE" {
			return refuse("bad_definition", "proposal %s: op KILL of %s", p.ProposalID, op.Target)
		}
	}
	return nil
}

func checkMoment(p *Proposal) error {
	switch {
	case p.ActivateAt == nil && p.LeadMs == nil && p.AckedPercent == nil:
		return nil
	case p.Kind == "EMERGENCY" || p.Kind == "DRILL":
		return refuse("bad_definition", "proposal %s: want a %s without a moment", p.ProposalID, p.Kind)
	case p.ActivateAt != nil && p.LeadMs != nil:
		return refuse("bad_definition", "proposal %s: want activate_at or lead_ms, got both", p.ProposalID)
	case p.LeadMs != nil && (*p.LeadMs < 1 || *p.LeadMs > leadMsMax):
		return refuse("bad_definition", "proposal %s: want a lead_ms of 1 .. %d, got %d", p.ProposalID, leadMsMax, *p.LeadMs)
	case p.AckedPercent != nil && (*p.AckedPercent < 1 || *p.AckedPercent > 100):
		return refuse("bad_definition", "proposal %s: want an acked_percent of 1 .. 100, got %d", p.ProposalID, *p.AckedPercent)
	}
	return nil
}

// momentOf returns when a proposal takes effect that is published at a time; nil: at once.
func momentOf(p *Proposal, at int64) (*int64, error) {
	switch {
	case p.LeadMs != nil:
		moment := at + *p.LeadMs
		return &moment, nil
	case p.ActivateAt == nil:
		return nil, nil
	case at > *p.ActivateAt:
		return nil, refuse("expired", "proposal %s takes effect at %d, published at %d", p.ProposalID, *p.ActivateAt, at)
	case at < *p.ActivateAt-leadMsMax:
		return nil, refuse("not_yet", "proposal %s takes effect at %d, published at %d", p.ProposalID, *p.ActivateAt, at)
	}
	return p.ActivateAt, nil
}

// checkRollback refuses a rollback that does anything but set releases; whether it closes their gates, and restores what
// was before, the definitions say.
func checkRollback(p *Proposal) error {
	for _, op := range p.Ops {
		if p.Kind == "ROLLBACK" && (op.Target != "RELEASE" || op.Action != "PUT" || op.Source != "") {
			return refuse("bad_definition", "proposal %s: op %s of %s in a ROLLBACK", p.ProposalID, op.Action, op.Target)
		}
	}
	return nil
}

// reject keeps of an entry that changed nothing only what its own signatures prove.
func (c *Chain) reject(entry *Entry, refusal *Refusal, account *Account) {
	account.Kind, account.Refused = "rejected", &refusal.Code
	var approvals []Envelope
	var of [32]byte
	release, _ := entry.Body.(*Release)
	if preparation, is := entry.Body.(*Preparation); is {
		release = &preparation.Release
	}
	switch body := entry.Body.(type) {
	case *Release, *Preparation:
		approvals = release.Approvals
		of = digest(&release.Proposal)
		if proposal, err := c.verifiedProposal(&release.Proposal); err == nil {
			account.propose(proposal, of)
		}
	case *Ratification:
		approvals = body.Approvals
		of = [32]byte(body.ProposalSHA256)
	default:
		return
	}
	account.proposalSHA256 = &of
	for i := range approvals {
		approval, err := c.verifiedApproval(&approvals[i])
		if err == nil && bytes.Equal(approval.ProposalSHA256, of[:]) {
			account.Approvers = append(account.Approvers, approval.Approver)
		}
	}
}

func (c *Chain) advance(entry *Entry, hash [32]byte, account *Account) {
	switch account.Kind {
	case "change", "rollback", "emergency", "ratification":
		// Only a time that several people's expiries bound counts: a publisher alone could date a claim, or a step, years
		// ahead, and with one requester a drill.
		c.publishedAt = entry.PublishedAt
	}
	switch account.Kind {
	case "change", "rollback":
		delete(c.prepared, *account.proposalSHA256)
	case "preparation":
		c.prepare(entry, account)
	case "emergency":
		if c.Root.grant(roleApprover).Threshold > 0 {
			c.unratified[*account.proposalSHA256] = emergency{entry.Seq, account.proposal}
		}
	case "ratification":
		delete(c.unratified, *account.proposalSHA256)
	case "root":
		c.takeRoot(account.root)
	}
	c.Entries++
	c.Head, c.HeadHash, c.epoch = entry.Seq, hash, entry.Epoch
	c.hashes = append(c.hashes, hash)
	if n := len(c.epochStarts); n == 0 || c.epochStarts[n-1].epoch != entry.Epoch {
		c.epochStarts = append(c.epochStarts, epochStart{entry.Seq, entry.Epoch})
	}
}

// prepare keeps a proposal that was prepared, and forgets those that can be published no more.
func (c *Chain) prepare(entry *Entry, account *Account) {
	for sha256, expiresAt := range c.prepared {
		if expiresAt < entry.PublishedAt {
			delete(c.prepared, sha256)
		}
	}
	c.prepared[*account.proposalSHA256] = account.proposal.ExpiresAt
}

// takeRoot puts a root into force. Once no key that signed two histories can sign any more, a fork is over.
func (c *Chain) takeRoot(root *Root) {
	c.Root = root
	for id := range c.forgers {
		trusted := false
		for _, key := range root.keysOf(rolePublisher, roleHeartbeat) {
			trusted = trusted || key.KeyID == id
		}
		if !trusted {
			delete(c.forgers, id)
		}
	}
	c.quarantined = c.quarantined && len(c.forgers) > 0
}

func (c *Chain) epochAt(seq int64) int64 {
	for i := len(c.epochStarts) - 1; i >= 0; i-- {
		if c.epochStarts[i].seq <= seq {
			return c.epochStarts[i].epoch
		}
	}
	return 0
}

// opensEpoch returns 1 for an entry that opens the next epoch: whoever takes over, and a root, end what others were about.
func opensEpoch(body any) int64 {
	switch body.(type) {
	case *RootUpdate, *EpochClaim:
		return 1
	default:
		return 0
	}
}

// Beginning is where a ledger must start, and which later roots it must reach.
type Beginning struct {
	First   [32]byte
	Version int // of the trusted root
	Pinned  map[int][32]byte
}

// Origins follows the chain of roots back from the trusted one to the first, through what a topic states. Each names
// its predecessor by digest, so that trust in one is trust in all before it, whoever wrote them down.
type Origins struct {
	codec  *Codec
	wanted [32]byte
	links  map[[32]byte]link
	chain  Beginning
}

type link struct {
	version int
	before  [32]byte
}

func NewOrigins(codec *Codec, trusted [32]byte) *Origins {
	return &Origins{codec, trusted, map[[32]byte]link{}, Beginning{Pinned: map[int][32]byte{}}}
}

// Take looks at one record; it returns where to begin once that is known.
func (o *Origins) Take(data []byte) *Beginning {
	envelope, err := o.codec.Envelope(data)
	if err != nil || envelope.PayloadType != payloadType("entry") {
		return nil
	}
	entry, err := o.codec.Entry(envelope.Payload)
	if err != nil {
		return nil
	}
	update, states := entry.Body.(*RootUpdate)
	if !states || update.Root.PayloadType != payloadType("root") {
		return nil
	}
	record, err := o.codec.Root(update.Root.Payload)
	if err != nil {
		return nil
	}
	o.links[digest(&update.Root)] = link{record.Version, [32]byte(record.PrevRootSHA256)}
	for {
		found, known := o.links[o.wanted]
		if !known {
			return nil
		}
		o.chain.Version = max(o.chain.Version, found.version)
		if found.version == 1 {
			o.chain.First = o.wanted
			return &o.chain
		}
		o.chain.Pinned[found.version] = o.wanted
		o.wanted = found.before
	}
}

func hexOf(data [32]byte) string { return hex.EncodeToString(data[:]) }
