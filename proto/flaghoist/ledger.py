"""The verifier: one state machine for sidecar, publisher and audit. Bytes go in, an outcome comes out.

It never awaits, logs, or reads a clock, and a refused input changes nothing. Design: docs/protocol.md, which has the
table of outcomes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from flaghoist.authorization import (
    Authorized,
    NotUnderstood,
    authorize,
    counted_approvals,
    moment_of,
)
from flaghoist.changes import changes_between
from flaghoist.codec import ENTRY, HASH_BYTES, decode_envelope
from flaghoist.errors import (
    BadDefinition,
    Expired,
    Malformed,
    NotApproved,
    NotYet,
    Refused,
    SignatureRefused,
    StaleBase,
    WrongLog,
    WrongRoot,
)
from flaghoist.outcomes import (
    Advanced,
    Applied,
    Dropped,
    Forked,
    Gap,
    Held,
    Link,
    Outcome,
    Prepared,
    Ratified,
    Rejected,
    Repeated,
    RootChanged,
    Stepped,
    Unratified,
    Void,
)
from flaghoist.policy import DRILL_RULE, EMERGENCY_RULE, PolicyNotUnderstood
from flaghoist.records import (
    Body,
    Entry,
    Envelope,
    EpochClaim,
    Op,
    Preparation,
    Proposal,
    Ratification,
    Release,
    RootUpdate,
    Step,
)
from flaghoist.release_plan import Walk, encode_release
from flaghoist.rollback import check_rollback
from flaghoist.root import Root
from flaghoist.signing import digest, verified_keys
from flaghoist.snapshot import SHARED, Snapshot, paused_collector
from flaghoist.values import FIRST_EPOCH, Action, KeyId, Person, ProposalKind, Role, Seq, Target

GENESIS_PREV_HASH: Final = bytes(HASH_BYTES)
# Every signed record type of ours starts so; what carries a valid publisher signature under this prefix and is not
# known here was written by a newer release, and must not be skipped.
_OUR_TYPES: Final = "application/vnd.flaghoist."


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry that this reader has verified.

    `published_at` (Unix ms) is the time of the newest release (drills aside) or ratification: no later entry may be
    dated before it.
    """

    seq: Seq
    entry_hash: bytes
    epoch: int
    published_at: int


BEFORE_GENESIS: Final = Head(Seq(0), GENESIS_PREV_HASH, FIRST_EPOCH, 0)


@dataclass
class Ledger:
    """What one reader knows of one ledger: folded from verified entries in seq order, from one trusted root on.

    Attributes:
        root: the root in force; at first the one that the reader trusts, version 1.
        pinned: digests of later versions that the reader trusts as well: another root at such a version is refused.
        min_pin: no state before this seq may be served again, whoever is pinned to it.
        unratified: the emergencies that people have not stood behind yet, by digest of their proposal.
        quarantined_by: proof of another history. The chain goes on, for whoever must follow it to its cure; what is
            served must not, until a root takes the forging keys' roles away.
        stopped_by: what only a newer release understands. What is served stays. When it was a link of the chain, no
            more entries are taken; else the chain goes on as in a quarantine.
    """

    root: Root
    pinned: Mapping[int, bytes] = field(default_factory=dict)
    snapshot: Snapshot = field(init=False)
    head: Head = field(default=BEFORE_GENESIS, init=False)
    min_pin: Seq = field(default=BEFORE_GENESIS.seq, init=False)
    unratified: dict[bytes, Unratified] = field(default_factory=dict, init=False)
    quarantined_by: Forked | None = field(default=None, init=False)
    stopped_by: Held | None = field(default=None, init=False)
    # Digest of a proposal that was prepared: when it expires.
    _prepared: dict[bytes, int] = field(default_factory=dict, init=False, repr=False)
    _forgers: frozenset[KeyId] = field(default=frozenset(), init=False, repr=False)
    _kills: list[tuple[int, Person]] = field(default_factory=list, init=False, repr=False)
    _hashes: list[bytes] = field(default_factory=list, init=False, repr=False)
    _epoch_starts: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.snapshot = Snapshot.empty(self.root.fractional)

    @property
    def at_pinned_root(self) -> bool:
        """Whether the newest root that the reader trusts is in force; what is older must not be served."""
        return self.root.version >= max(self.pinned, default=self.root.version)

    def receive(self, data: bytes) -> Outcome:
        """Verify one record of the log and take what it says.

        Args:
            data: a record's value, untrusted.
        """
        outcome = self.judge(data)
        match outcome:
            case Applied() | Advanced() | RootChanged() | Ratified() | Prepared() | Stepped() | Rejected():
                self.take(outcome)
            case Forked():
                self.quarantine(outcome)
            case Held():
                self._hold(outcome)
            case _:
                pass
        return outcome

    def judge(self, data: bytes) -> Outcome:
        """Say what `receive` would return, and change nothing. This is the dry run."""
        if self.stopped_by is not None and not self.stopped_by.signers:
            return self.stopped_by
        signers = frozenset[KeyId]()
        try:
            envelope = decode_envelope(data)
            signers = frozenset(key.key_id for key in verified_keys(envelope, self.root.keys_of(Role.PUBLISHER)))
            entry = self._publisher_entry(envelope) if signers else self._unlisted_entry(envelope)
        except NotUnderstood as refusal:
            return Held(refusal, signers)
        except Refused as refusal:
            return Dropped(refusal)
        entry_hash = digest(envelope)
        if entry.seq <= self.head.seq:
            return self._judge_past(entry, entry_hash, data, signers)
        if entry.seq != self.head.seq.next():
            return Gap(expected=self.head.seq.next(), got=entry.seq)
        if entry.prev_hash != self.head.entry_hash:
            return Forked(entry.seq, "fork", self.head.entry_hash, data, signers)
        outcome = self.judge_next(entry, entry_hash)
        if isinstance(outcome, Rejected) and not signers:
            return Dropped(outcome.refusal)  # a publisher to be extends the chain by the root that makes it one, only
        return outcome

    def is_prepared(self, proposal_sha256: bytes) -> bool:
        """Say whether readers were shown a proposal that is to be published once they have acknowledged it."""
        return proposal_sha256 in self._prepared

    def hash_at(self, seq: Seq) -> bytes:
        """Return the entry hash of a verified entry; of seq 0, the 32 zero bytes before the first."""
        return self._hashes[seq.number - 1] if seq.number else GENESIS_PREV_HASH

    def _publisher_entry(self, envelope: Envelope) -> Entry:
        """Return the entry in an envelope that a publisher of the root in force has signed."""
        if not envelope.payload_type.startswith(_OUR_TYPES):
            raise Malformed(f"want {ENTRY.payload_type}, got {envelope.payload_type[:100]!r}")
        if envelope.payload_type != ENTRY.payload_type:
            raise NotUnderstood(f"want {ENTRY.payload_type}, got {envelope.payload_type[:100]!r}")
        if envelope.schema_sha256 != ENTRY.schema_sha256:
            raise Malformed(f"schema: want {ENTRY.schema_sha256.hex()}, got {envelope.schema_sha256.hex()}")
        entry = ENTRY.decode(envelope.payload)
        if entry.log_id != self.root.log_id:
            raise WrongLog(expected=self.root.log_id, got=entry.log_id)
        if entry.seq < Seq(1):
            raise Malformed("entry: want a seq of at least 1, got 0")
        return entry

    def _unlisted_entry(self, envelope: Envelope) -> Entry:
        """Return an entry that no publisher of the root in force has signed, if it counts all the same.

        It does if it is in the chain already, signed by a publisher of its time; or if it states the next root, which
        proves itself, and a publisher of that root has signed it: so a lost publisher key can be replaced, and a reader
        whose entries are others learns of it.
        """
        named = ", ".join(s.key_id for s in envelope.signatures) or "nobody"
        refusal = SignatureRefused(f"want a valid signature by a key with role {Role.PUBLISHER}; signed by {named}")
        try:
            entry = self._publisher_entry(envelope)
        except Refused as error:
            raise refusal from error  # nobody has signed it: what else is wrong with it is nobody's word
        if Seq(0) < entry.seq <= self.head.seq and digest(envelope) == self.hash_at(entry.seq):
            return entry
        if not isinstance(entry.body, RootUpdate):
            raise refusal
        # Before anything of it is read: whoever writes to the log could else have every reader check a thousand keys.
        if len(self.root.people_signing(Role.ROOT, entry.body.root)) < self.root.grant(Role.ROOT).threshold:
            raise refusal
        following = self.root.signed_successor(entry.body.root)
        if not verified_keys(envelope, following.keys_of(Role.PUBLISHER)):
            raise refusal
        return entry

    def _judge_past(
        self, entry: Entry, entry_hash: bytes, data: bytes, signers: frozenset[KeyId]
    ) -> Repeated | Void | Forked:
        """An entry at a seq that is filled: a copy, the late word of a publisher that lost it, or a second history."""
        ours = self.hash_at(entry.seq)
        if entry_hash == ours:
            return Repeated(entry.seq)
        if entry.prev_hash != self.hash_at(Seq(entry.seq.number - 1)):
            return Forked(entry.seq, "fork", self.hash_at(Seq(entry.seq.number - 1)), data, signers)
        epoch = self._epoch_at(entry.seq)
        if entry.epoch < epoch:
            return Void(entry.seq, f"its epoch {entry.epoch} had ended, {epoch} was in force")
        if isinstance(entry.body, EpochClaim | RootUpdate):
            return Void(entry.seq, f"another publisher claimed epoch {epoch} first")
        return Forked(entry.seq, "equivocation", ours, data, signers)

    def judge_next(self, entry: Entry, entry_hash: bytes) -> Link | Void | Dropped | Held:
        """Say what becomes of an entry that follows the head, apart from its signature, and change nothing.

        A publisher asks this before it signs; `judge` asks it for what was signed.
        """
        if entry.seq == Seq(1):
            return self._judge_genesis(entry, entry_hash)
        epoch = self.head.epoch + _opens_epoch(self.head, entry.body)
        if entry.epoch != epoch:
            return Void(entry.seq, f"its epoch is {entry.epoch}, want {epoch}")
        try:
            self._check_frame(entry)
            match entry.body:
                case EpochClaim():
                    return Advanced(entry, entry_hash)
                case RootUpdate():
                    return RootChanged(entry, entry_hash, self._judge_root(entry, entry.body))
                case Release():
                    return self._judge_release(entry, entry.body, entry_hash)
                case Preparation():
                    return self._judge_preparation(entry, entry.body, entry_hash)
                case Step():
                    return self._judge_step(entry, entry.body, entry_hash)
                case Ratification():
                    return Ratified(entry, entry_hash, self._judge_ratification(entry, entry.body))
        except NotUnderstood as refusal:
            return Held(refusal)
        except Refused as refusal:
            return Rejected(entry, entry_hash, refusal)

    def _judge_genesis(self, entry: Entry, entry_hash: bytes) -> Advanced | Dropped:
        """The first entry must state the root that this reader trusts: else this is another ledger."""
        if not isinstance(entry.body, RootUpdate) or entry.epoch != FIRST_EPOCH:
            return Dropped(Malformed(f"entry 1: want the root in epoch {FIRST_EPOCH}, got {type(entry.body).__name__}"))
        stated = digest(entry.body.root)
        if stated != self.root.sha256:
            return Dropped(WrongRoot(expected=self.root.sha256.hex(), got=stated.hex()))
        return Advanced(entry, entry_hash)

    def _check_frame(self, entry: Entry) -> None:
        if entry.root_version != self.root.version:
            raise WrongRoot(expected=f"version {self.root.version}", got=f"version {entry.root_version}")
        # An expired root allows nothing but its successor, which the same people sign.
        if not isinstance(entry.body, RootUpdate):
            self.root.check_unexpired(entry.published_at)
        if entry.published_at < self.head.published_at:
            # Else a stolen publisher key could back-date an entry to before an approval's expiry.
            raise Expired(
                f"entry {entry.seq}: published at {entry.published_at}, predecessor at {self.head.published_at} (ms)",
                hint="set the publisher's clock",
            )

    def _judge_release(self, entry: Entry, release: Release, entry_hash: bytes) -> Applied:
        applied = self._judged(entry, release, entry_hash)
        authorized = applied.authorized
        if authorized.proposal.acked_percent is not None and authorized.sha256 not in self._prepared:
            raise NotApproved(
                f"proposal {authorized.proposal.proposal_id}: want it prepared before it is published, since it asks "
                f"for acknowledgements of {authorized.proposal.acked_percent} %; no entry has prepared it",
                hint="`flaghoist publish` prepares it and waits; if another tool has published it, mend that tool",
            )
        return applied

    def _judge_preparation(self, entry: Entry, body: Preparation, entry_hash: bytes) -> Prepared:
        authorized = self._judged(entry, body.release, entry_hash).authorized
        if authorized.proposal.acked_percent is None:
            raise BadDefinition(
                f"proposal {authorized.proposal.proposal_id}",
                "want a proposal prepared only if it asks for acknowledgements, this one does not",
            )
        return Prepared(entry, entry_hash, authorized)

    def _judged(self, entry: Entry, release: Release, entry_hash: bytes) -> Applied:
        """Return what a release does, now or when it is published after having been prepared."""
        authorized = authorize(self.root, release, at_ms=entry.published_at)
        proposal = authorized.proposal
        _check_min_pin(proposal, entry.seq)
        moment_ms = moment_of(proposal, at_ms=entry.published_at)
        if proposal.kind is ProposalKind.ROLLBACK:
            check_rollback(self.snapshot, proposal.ops)
        snapshot = self.snapshot.fold(entry.seq, proposal.ops, at_ms=moment_ms or entry.published_at)
        rule = self.rule_allowing(authorized, self.snapshot, snapshot, at_ms=entry.published_at)
        if release.policy != rule:
            raise NotApproved(
                f"entry {entry.seq}: policy: want the rule that allowed it, {rule!r}, got {release.policy!r}",
                hint="an entry must not give another reason than the true one: look at who publishes",
            )
        return Applied(entry, entry_hash, authorized, snapshot, moment_ms)

    def _judge_step(self, entry: Entry, step: Step, entry_hash: bytes) -> Stepped:
        op, lead_ms = self.step_op(step, at_ms=entry.published_at)
        moment_ms = entry.published_at + lead_ms if lead_ms else 0
        snapshot = self.snapshot.fold(entry.seq, [op], at_ms=moment_ms or entry.published_at)
        return Stepped(entry, entry_hash, op, snapshot, moment_ms)

    def step_op(self, step: Step, *, at_ms: int) -> tuple[Op, int]:
        """Return what taking a release to its next stage does to it, and how long after its entry (ms).

        Args:
            at_ms: when it is published.

        Raises:
            BadDefinition: the approved plan does not say so: no such release, not walked, another stage.
            StaleBase: somebody has changed the release since.
            NotYet: the stage before has not lasted long enough.
        """
        where = f"step of release {step.release}"
        release = self.snapshot.releases.get(step.release)
        if release is None:
            raise BadDefinition(where, "want a release that exists, there is none of this name")
        if release.version != step.expected_version:
            raise StaleBase(f"{where}: expected version {step.expected_version}, it is at {release.version}")
        plan = release.plan
        if plan.gate.walk is not Walk.ON:
            raise BadDefinition(
                where, f"want a release that is walked through its stages, its walk is {plan.gate.walk}"
            )
        if step.stage != plan.next_stage:
            raise BadDefinition(where, f"want the next stage, {plan.next_stage}, got {step.stage}")
        if at_ms < release.soaked_at_ms:
            raise NotYet(
                f"{where}: want it published at {release.soaked_at_ms} or later, when the stage before has lasted as "
                f"long as the plan asks, got {at_ms} (Unix ms)",
                hint="look at the publisher's clock",
            )
        definition = encode_release(plan.at_stage(step.stage))
        return Op(Target.RELEASE, SHARED, step.release, release.version, Action.PUT, definition), plan.lead_ms

    def rule_allowing(self, authorized: Authorized, before: Snapshot, after: Snapshot, *, at_ms: int) -> str:
        """Return the name of the rule that allows a change, by the people that it takes.

        Raises:
            NotApproved: no rule does; the text names the one that refused it, and who could still approve.
        """
        proposal = authorized.proposal
        if proposal.kind is ProposalKind.EMERGENCY:
            self._check_rate(proposal, at_ms)
            return EMERGENCY_RULE
        if proposal.kind is ProposalKind.DRILL:
            return DRILL_RULE
        return self._rule_for(authorized, before, after)

    def _rule_for(self, authorized: Authorized, before: Snapshot, after: Snapshot) -> str:
        policy = self.root.policy
        return policy.allow_people(
            () if policy.built_in else changes_between(before, after, authorized.proposal.ops),
            log_id=self.root.log_id,
            requester=authorized.proposal.requester,
            approvers=authorized.approvers,
            root_threshold=self.root.grant(Role.APPROVER).threshold,
            # Who may ask for an emergency, its key has said.
            proposing=authorized.proposal.kind is not ProposalKind.EMERGENCY,
        )

    def _check_rate(self, proposal: Proposal, at_ms: int) -> None:
        limits = self.root.policy.emergency
        recent = sum(person == proposal.requester and at_ms - limits.per_ms < when for when, person in self._kills)
        if recent >= limits.kills:
            raise NotApproved(
                f"proposal {proposal.proposal_id}: {proposal.requester} has made {recent} emergencies in the last "
                f"{limits.per_ms // 1000} s, want at most {limits.kills}",
                hint="let another person with an emergency key do it, or propose the change and have it approved",
            )

    def _judge_ratification(self, entry: Entry, body: Ratification) -> Authorized:
        emergency = self.unratified.get(body.proposal_sha256)
        if emergency is None:
            raise NotApproved(
                f"entry {entry.seq}: no emergency with digest {body.proposal_sha256.hex()} waits to be ratified",
                hint="see which do with `flaghoist audit verify`",
            )
        return self.ratified(emergency, body.approvals, at_ms=entry.published_at)

    def ratified(self, emergency: Unratified, approvals: Sequence[Envelope], *, at_ms: int) -> Authorized:
        """Return an emergency with the people who stand behind it, if they are those whom its change asks for.

        Raises:
            Refused: they are not, as `authorization.counted_approvals` and the policy say.
        """
        proposal, sha256 = emergency.authorized.proposal, emergency.authorized.sha256
        counted = counted_approvals(self.root, proposal, sha256, approvals, at_ms=at_ms)
        authorized = Authorized(proposal, sha256, counted)
        self._rule_for(authorized, emergency.before, emergency.before.fold(emergency.seq, proposal.ops))
        return authorized

    def _judge_root(self, entry: Entry, update: RootUpdate) -> Root:
        following = self._successor(update.root)
        following.check_unexpired(entry.published_at)
        return following

    def _successor(self, envelope: Envelope) -> Root:
        following = self.root.signed_successor(envelope)
        self._check_trusted(following)
        try:
            _ = following.policy
        except PolicyNotUnderstood as refusal:
            raise NotUnderstood(f"root version {following.version}: {refusal}", hint=refusal.hint) from refusal
        return following

    def _check_trusted(self, following: Root) -> None:
        """Refuse a root other than the pinned one of its version, and one whose signers saw another history."""
        record = following.record
        wanted = self.pinned.get(following.version)
        if wanted is not None and wanted != following.sha256:
            raise WrongRoot(expected=wanted.hex(), got=following.sha256.hex())
        if record.anchor_seq > self.head.seq or self.hash_at(record.anchor_seq) != record.anchor_hash:
            raise WrongRoot(
                expected=f"a history with entry {record.anchor_hash.hex()} at seq {record.anchor_seq}",
                got=f"one that its signers did not see, at seq {self.head.seq}",
            )

    def take(self, link: Link) -> None:
        """Take a link that `judge` has just returned for the entry after the head."""
        entry = link.entry
        published_at = entry.published_at if _moves_time(link) else self.head.published_at
        self.head = Head(entry.seq, link.entry_hash, entry.epoch, published_at)
        self._hashes.append(link.entry_hash)
        if not self._epoch_starts or self._epoch_starts[-1][1] != entry.epoch:
            self._epoch_starts.append((entry.seq.number, entry.epoch))
        before = self.snapshot
        self.snapshot = link.snapshot if isinstance(link, Applied | Stepped) else before.at_seq(entry.seq)
        match link:
            case Applied():
                self._take_release(entry, link.authorized, before)
            case Ratified():
                del self.unratified[link.authorized.sha256]
            case Prepared(authorized=authorized):
                now_ms = entry.published_at
                self._prepared = {sha256: until for sha256, until in self._prepared.items() if until >= now_ms}
                self._prepared[authorized.sha256] = authorized.proposal.expires_at
            case RootChanged():
                self._take_root(link.root)
            case _:
                pass

    def _take_release(self, entry: Entry, authorized: Authorized, before: Snapshot) -> None:
        proposal = authorized.proposal
        self._prepared.pop(authorized.sha256, None)
        if proposal.kind is not ProposalKind.EMERGENCY:
            self.min_pin = max(self.min_pin, proposal.min_pin)
            return
        self.min_pin = entry.seq
        limits = self.root.policy.emergency
        self._kills = [kill for kill in self._kills if entry.published_at - limits.per_ms < kill[0]]
        self._kills.append((entry.published_at, proposal.requester))
        if self._asks_for_approvals(authorized, before):
            ratify_by_ms = entry.published_at + limits.ratify_within_ms
            self.unratified[authorized.sha256] = Unratified(
                entry.seq, entry.published_at, ratify_by_ms, authorized, before
            )

    def _asks_for_approvals(self, emergency: Authorized, before: Snapshot) -> bool:
        """Whether its change, proposed in the ordinary way, would have needed anybody's approval."""
        if self.root.grant(Role.APPROVER).threshold:
            return True
        try:
            self._rule_for(emergency, before, self.snapshot)
        except NotApproved:
            return True
        return False

    def _take_root(self, root: Root) -> None:
        self.root = root
        publishers = root.grant(Role.PUBLISHER).key_ids
        if self.stopped_by is not None and self.stopped_by.signers.isdisjoint(publishers):
            self.stopped_by = None
        self._forgers &= publishers | root.grant(Role.HEARTBEAT).key_ids
        if self.quarantined_by is not None and not self._forgers:
            self.quarantined_by = None

    def _hold(self, held: Held) -> None:
        """Stop; for good at a link of the chain, else until a root takes the roles of all who signed such away."""
        earlier = self.stopped_by
        if earlier is None or not held.signers:
            self.stopped_by = held
        else:
            self.stopped_by = replace(earlier, signers=earlier.signers | held.signers)

    def quarantine(self, proof: Forked) -> None:
        """Take note of another history; also of one that a heartbeat tells of (freshness.py)."""
        self._forgers |= proof.signers
        if self.quarantined_by is None:
            self.quarantined_by = proof

    def _epoch_at(self, seq: Seq) -> int:
        return next(epoch for start, epoch in reversed(self._epoch_starts) if start <= seq.number)


def _moves_time(link: Link) -> bool:
    """Whether no later entry may be dated before this one.

    Only a time that several people's expiries bound counts: a publisher key alone could date a claim years ahead, with
    one requester's key a drill, and no approval would outlive that time ever after.
    """
    if isinstance(link, Applied):
        return link.authorized.proposal.kind is not ProposalKind.DRILL
    return isinstance(link, Ratified)


def _opens_epoch(head: Head, body: Body) -> bool:
    """Whether an entry opens the next epoch: who takes over, and who states a root, ends all that others were about."""
    return head.seq > BEFORE_GENESIS.seq and isinstance(body, EpochClaim | RootUpdate)


def _check_min_pin(proposal: Proposal, seq: Seq) -> None:
    """Refuse to forbid what is not there yet: every pin would be, and the newest state itself."""
    if proposal.min_pin > seq:
        raise BadDefinition(
            f"proposal {proposal.proposal_id}.min_pin",
            f"want at most its entry's seq {seq}, got {proposal.min_pin}",
            hint="propose it again with a min_pin that the ledger has reached",
        )


def next_entry(ledger: Ledger, body: Body, *, now_ms: int) -> Entry:
    """Return the entry that a publisher would append after the ledger's head.

    Args:
        now_ms: wall clock; an entry is never dated before its predecessor, whatever the clock says.
    """
    head = ledger.head
    return Entry(
        log_id=ledger.root.log_id,
        seq=head.seq.next(),
        prev_hash=head.entry_hash,
        epoch=head.epoch + _opens_epoch(head, body),
        root_version=ledger.root.version,
        published_at=max(now_ms, head.published_at),
        body=body,
    )


def replay(root: Root, records: Sequence[bytes]) -> Ledger:
    """Return the ledger that these records make, in the order given."""
    ledger = Ledger(root)
    with paused_collector():
        for data in records:
            ledger.receive(data)
    return ledger
