"""The verifier: one state machine for sidecar, publisher and audit. Bytes go in, an outcome comes out.

It never awaits, logs, or reads a clock, and a refused input changes nothing. Design: docs/protocol.md, which has the
table of outcomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from flaghoist.authorization import Authorized, NotUnderstood, authorize
from flaghoist.codec import ENTRY, HASH_BYTES, decode_envelope
from flaghoist.errors import BadDefinition, Expired, Malformed, Refused, SignatureRefused, WrongLog, WrongRoot
from flaghoist.records import Entry, Envelope, EpochClaim, Proposal, Release, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import digest, verified_keys
from flaghoist.snapshot import Snapshot, paused_collector
from flaghoist.values import FIRST_EPOCH, Role, Seq

GENESIS_PREV_HASH: Final = bytes(HASH_BYTES)
# Every signed record type of ours starts so; what carries a valid publisher signature under this prefix and is not
# known here was written by a newer release, and must not be skipped.
_OUR_TYPES: Final = "application/vnd.flaghoist."


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry that this reader has verified."""

    seq: Seq
    entry_hash: bytes
    epoch: int
    published_at: int


BEFORE_GENESIS: Final = Head(Seq(0), GENESIS_PREV_HASH, FIRST_EPOCH, 0)


@dataclass(frozen=True, slots=True)
class Applied:
    """A release: the chain and the state advanced."""

    entry: Entry
    entry_hash: bytes
    authorized: Authorized
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Advanced:
    """The ledger's first entry, or a claim of the next epoch: the chain advanced, the flags did not."""

    entry: Entry
    entry_hash: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """A link of the chain whose content is not allowed: the chain advanced, the state did not. An alarm."""

    entry: Entry
    entry_hash: bytes
    refusal: Refused


@dataclass(frozen=True, slots=True)
class Repeated:
    """An entry that was verified before; ignored."""

    seq: Seq


@dataclass(frozen=True, slots=True)
class Void:
    """An entry by a publisher that had lost the race, or its epoch; ignored."""

    seq: Seq
    why: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes that no publisher of this ledger signed, or that are no entry: anyone can write such. Ignored."""

    refusal: Refused


@dataclass(frozen=True, slots=True)
class Gap:
    """An entry arrived before the one it follows: read the ledger again, or elsewhere."""

    expected: Seq
    got: Seq


@dataclass(frozen=True, slots=True)
class Forked:
    """Proof that the publisher's key has signed two histories; the reader keeps its state and takes no more entries.

    Attributes:
        seq: where they part.
        ours: entry hash that this reader has there (of seq - 1, when `what` is "fork").
        theirs: the other record, as evidence.
    """

    seq: Seq
    what: str
    ours: bytes
    theirs: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A valid record that needs a newer release; the reader keeps its state and takes no more entries."""

    refusal: NotUnderstood


Link: TypeAlias = Applied | Advanced | Rejected
Outcome: TypeAlias = Link | Repeated | Void | Dropped | Gap | Forked | Held


@dataclass
class Ledger:
    """What one reader knows of one ledger: folded from verified entries in seq order, under one pinned root.

    `min_pin` is the largest that an applied proposal has asked for: no state before it may be served again, whoever
    is pinned to it.
    """

    root: Root
    snapshot: Snapshot = field(init=False)
    head: Head = field(default=BEFORE_GENESIS, init=False)
    min_pin: Seq = field(default=BEFORE_GENESIS.seq, init=False)
    # Set once, by the record that ended reading: a Forked or a Held.
    stopped_by: Forked | Held | None = field(default=None, init=False)
    _hashes: list[bytes] = field(default_factory=list, init=False, repr=False)
    _epoch_starts: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.snapshot = Snapshot.empty(self.root.fractional)

    def receive(self, data: bytes) -> Outcome:
        """Verify one record of the log and take what it says.

        Args:
            data: a record's value, untrusted.
        """
        outcome = self.judge(data)
        match outcome:
            case Applied() | Advanced() | Rejected():
                self.take(outcome)
            case Forked() | Held():
                self.stopped_by = outcome
            case _:
                pass
        return outcome

    def judge(self, data: bytes) -> Outcome:
        """Say what `receive` would return, and change nothing. This is the dry run."""
        if self.stopped_by is not None:
            return self.stopped_by
        try:
            envelope = decode_envelope(data)
            entry = self._publisher_entry(envelope)
        except NotUnderstood as refusal:
            return Held(refusal)
        except Refused as refusal:
            return Dropped(refusal)
        entry_hash = digest(envelope)
        if entry.seq <= self.head.seq:
            return self._judge_past(entry, entry_hash, data)
        if entry.seq != self.head.seq.next():
            return Gap(expected=self.head.seq.next(), got=entry.seq)
        if entry.prev_hash != self.head.entry_hash:
            return Forked(entry.seq, "fork", self.head.entry_hash, data)
        return self.judge_next(entry, entry_hash)

    def hash_at(self, seq: Seq) -> bytes:
        """Return the entry hash of a verified entry; of seq 0, the 32 zero bytes before the first."""
        return self._hashes[seq.number - 1] if seq.number else GENESIS_PREV_HASH

    def _publisher_entry(self, envelope: Envelope) -> Entry:
        """Return the entry in an envelope that a publisher of this ledger signed; nothing else is ever decoded."""
        if not envelope.payload_type.startswith(_OUR_TYPES):
            raise Malformed(f"want {ENTRY.payload_type}, got {envelope.payload_type[:100]!r}")
        if not verified_keys(envelope, self.root.keys_of(Role.PUBLISHER)):
            named = ", ".join(s.key_id for s in envelope.signatures) or "nobody"
            raise SignatureRefused(f"want a valid signature by a key with role {Role.PUBLISHER}; signed by {named}")
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

    def _judge_past(self, entry: Entry, entry_hash: bytes, data: bytes) -> Repeated | Void | Forked:
        """An entry at a seq that is filled: a copy, the late word of a publisher that lost it, or a second history."""
        ours = self.hash_at(entry.seq)
        if entry_hash == ours:
            return Repeated(entry.seq)
        if entry.prev_hash != self.hash_at(Seq(entry.seq.number - 1)):
            return Forked(entry.seq, "fork", self.hash_at(Seq(entry.seq.number - 1)), data)
        epoch = self._epoch_at(entry.seq)
        if entry.epoch < epoch:
            return Void(entry.seq, f"its epoch {entry.epoch} had ended, {epoch} was in force")
        if isinstance(entry.body, EpochClaim):
            return Void(entry.seq, f"another publisher claimed epoch {epoch} first")
        return Forked(entry.seq, "equivocation", ours, data)

    def judge_next(self, entry: Entry, entry_hash: bytes) -> Link | Void | Dropped | Held:
        """Say what becomes of an entry that follows the head, apart from its signature, and change nothing.

        A publisher asks this before it signs; `judge` asks it for what was signed.
        """
        if entry.seq == Seq(1):
            return self._judge_genesis(entry, entry_hash)
        claims = isinstance(entry.body, EpochClaim)
        if entry.epoch != self.head.epoch + claims:
            return Void(entry.seq, f"its epoch is {entry.epoch}, want {self.head.epoch + claims}")
        try:
            self._check_frame(entry)
            match entry.body:
                case EpochClaim():
                    return Advanced(entry, entry_hash)
                case RootUpdate():
                    raise NotUnderstood(f"entry {entry.seq}: an update of the root")
                case Release():
                    authorized = authorize(self.root, entry.body, at_ms=entry.published_at)
                    _check_min_pin(authorized.proposal, entry.seq)
                    snapshot = self.snapshot.fold(entry.seq, authorized.proposal.ops)
                    return Applied(entry, entry_hash, authorized, snapshot)
        except NotUnderstood as refusal:
            return Held(refusal)
        except Refused as refusal:
            return Rejected(entry, entry_hash, refusal)

    def _judge_genesis(self, entry: Entry, entry_hash: bytes) -> Advanced | Dropped:
        """The first entry must state the root that this reader has pinned: else this is another ledger."""
        if not isinstance(entry.body, RootUpdate) or entry.epoch != FIRST_EPOCH:
            return Dropped(Malformed(f"entry 1: want the root in epoch {FIRST_EPOCH}, got {type(entry.body).__name__}"))
        stated = digest(entry.body.root)
        if stated != self.root.sha256:
            return Dropped(WrongRoot(expected=self.root.sha256.hex(), got=stated.hex()))
        return Advanced(entry, entry_hash)

    def _check_frame(self, entry: Entry) -> None:
        if entry.root_version != self.root.version:
            raise WrongRoot(expected=f"version {self.root.version}", got=f"version {entry.root_version}")
        self.root.check_unexpired(entry.published_at)
        if entry.published_at < self.head.published_at:
            # Else a stolen publisher key could back-date an entry to before an approval's expiry.
            raise Expired(
                f"entry {entry.seq}: published at {entry.published_at}, predecessor at {self.head.published_at} (ms)",
                hint="set the publisher's clock",
            )

    def take(self, link: Link) -> None:
        """Take a link that `judge` has just returned for the entry after the head."""
        entry = link.entry
        # A rejected entry's time does not count: it could lie far ahead and so lock out every later entry.
        published_at = self.head.published_at if isinstance(link, Rejected) else entry.published_at
        self.head = Head(entry.seq, link.entry_hash, entry.epoch, published_at)
        self._hashes.append(link.entry_hash)
        if not self._epoch_starts or self._epoch_starts[-1][1] != entry.epoch:
            self._epoch_starts.append((entry.seq.number, entry.epoch))
        if isinstance(link, Applied):
            self.snapshot = link.snapshot
            self.min_pin = max(self.min_pin, link.authorized.proposal.min_pin)
        else:
            self.snapshot = self.snapshot.at_seq(entry.seq)

    def _epoch_at(self, seq: Seq) -> int:
        return next(epoch for start, epoch in reversed(self._epoch_starts) if start <= seq.number)


def _check_min_pin(proposal: Proposal, seq: Seq) -> None:
    """Refuse to forbid what is not there yet: every pin would be, and the newest state itself."""
    if proposal.min_pin > seq:
        raise BadDefinition(
            f"proposal {proposal.proposal_id}.min_pin",
            f"want at most its entry's seq {seq}, got {proposal.min_pin}",
            hint="propose it again with a min_pin that the ledger has reached",
        )


def next_entry(ledger: Ledger, body: Release | RootUpdate | EpochClaim, *, now_ms: int) -> Entry:
    """Return the entry that a publisher would append after the ledger's head.

    Args:
        now_ms: wall clock; an entry is never dated before its predecessor, whatever the clock says.
    """
    head = ledger.head
    return Entry(
        log_id=ledger.root.log_id,
        seq=head.seq.next(),
        prev_hash=head.entry_hash,
        epoch=head.epoch + isinstance(body, EpochClaim),
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
