"""The single sequencer: appends entries so that a crash at any step loses and doubles nothing (docs/protocol.md).

1. hold the lease (journal.py) and the epoch; 2. read the ledger to its end; 3. build the entry after the head;
4. write it to the journal, then sign it; 5. append; 6. read back until it is in the chain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeGuard

from flaghoist.authorization import authorize
from flaghoist.codec import ENTRY, ENVELOPE_BYTES_MAX, encode_envelope
from flaghoist.errors import LogConflict, OutcomeUnknown, Refused, TooLarge, Unavailable, WrongRole
from flaghoist.ledger import next_entry
from flaghoist.outcomes import (
    Advanced,
    Applied,
    Dropped,
    Held,
    Link,
    Prepared,
    Ratified,
    Rejected,
    RootChanged,
    Stepped,
    Void,
)
from flaghoist.records import Body, Entry, Envelope, EpochClaim, Preparation, Ratification, Release, RootUpdate, Step
from flaghoist.root import Root
from flaghoist.signing import Signer, countersign, digest, key_id
from flaghoist.values import Role, Seq, Target
from publisher.inbox import Case
from publisher.journal import Claim, Journal, Mark
from publisher.reader import BrokenChain, LedgerReader
from publisher.release import preparation_of, release_of

# Each lost race means that somebody else published meanwhile; more in a row than this is a fight, not bad luck.
ATTEMPTS_MAX: Final = 8
# The publisher's signature and its framing around the payload (Ed25519 64, ECDSA P-256 up to 72 bytes in DER).
_ENVELOPE_OVERHEAD_BYTES: Final = 256


class Fenced(Refused):
    """Another publisher has taken the epoch: this one must not append any more."""

    code = "fenced"
    hint = "one publisher works at a time: find out who took over, and stop the one that is not wanted"


class LostRace(Refused):
    """Other publishers kept coming first; nothing of this was published."""

    code = "lost_race"
    hint = "find out who else publishes to this ledger, then run the same command again"


# What becomes of an entry that a sequencer appends.
Taken: TypeAlias = Applied | Advanced | RootChanged | Ratified | Prepared | Stepped


@dataclass(frozen=True, slots=True)
class Published:
    """Where a proposal stands in the ledger; `already` when it stood there before this call."""

    link: Applied
    already: bool


class Sequencer:
    """Appends to one ledger with one publisher key. Not safe for use by two tasks at once: the journal is one lease."""

    def __init__(
        self, reader: LedgerReader, journal: Journal, signer: Signer, *, holder: str, clock_ms: Callable[[], int]
    ) -> None:
        self.reader = reader
        self._ledger = reader.ledger
        self._journal = journal
        self._signer = signer
        self._holder = holder
        self._clock_ms = clock_ms

    async def publish(self, case: Case) -> Published:
        """Publish an approved proposal, once: a rerun finds what an earlier run has sent.

        Raises:
            Refused: the verifier would not take it, for the reason it names; nothing was sent.
            Unavailable: nothing was sent.
            OutcomeUnknown: it was sent and not confirmed.
        """
        await self.catch_up()
        if done := self.reader.published.get(case.sha256):
            return Published(done, already=True)
        release = release_of(self._ledger, case, self.reader.links, now_ms=self._clock_ms())
        link = await self.append(release)
        assert isinstance(link, Applied)  # noqa: S101 — append returns what the body makes
        return Published(link, already=False)

    async def prepare(self, case: Case) -> Prepared:
        """Show every reader an approved proposal that asks for acknowledgements, once; `publish` may follow.

        Raises:
            Refused, Unavailable, OutcomeUnknown: as `publish`.
        """
        await self.catch_up()
        body = preparation_of(self._ledger, case, self.reader.links, now_ms=self._clock_ms())
        link = await self.append(body)
        assert isinstance(link, Prepared)  # noqa: S101 — append returns what the body makes
        return link

    async def take_over(self) -> None:
        """Make sure that this machine holds the current epoch, so that it may append at once, and others may not.

        Raises:
            LostRace, Unavailable, OutcomeUnknown, BrokenChain: as `append`.
        """
        for _ in range(ATTEMPTS_MAX):
            if await self.claim():
                return
        raise LostRace(f"lost {ATTEMPTS_MAX} races for the epoch after seq {self._ledger.head.seq}")

    async def claim(self, *, over_epoch: int | None = None) -> bool:
        """Try once to take the epoch; False when somebody else has appended meanwhile, and so is at work.

        Args:
            over_epoch: the epoch that was found without a living holder; a later one has one.

        Raises:
            Unavailable, OutcomeUnknown, BrokenChain: as `append`.
        """
        await self.catch_up()
        if over_epoch is not None and self._ledger.head.epoch != over_epoch:
            return self.holds_epoch
        return self._ledger.head.seq == Seq(0) or await self._hold_epoch()

    @property
    def holds_epoch(self) -> bool:
        """Whether the current epoch, as read so far, is this machine's own."""
        claim, head = self._journal.claim, self._ledger.head
        return (
            claim is not None
            and claim.epoch == head.epoch
            and claim.seq <= head.seq.number
            and self._ledger.hash_at(Seq(claim.seq)) == claim.entry_hash
        )

    async def append(self, body: Body, *, may_claim: bool = True) -> Taken:
        """Append one entry with this body after the ledger's head, and return it as read back.

        Args:
            may_claim: take the epoch first, if another publisher holds it. A service must not: two would take it from
                each other for ever.

        Raises:
            Fenced: another publisher holds the epoch, and it may not be claimed.
            Refused: the verifier would not take it, for the reason it names; nothing was sent.
            LostRace: others came first, again and again.
            Unavailable: nothing was sent.
            OutcomeUnknown: it was sent and not confirmed; the next call finishes it.
        """
        for _ in range(ATTEMPTS_MAX):
            await self.catch_up()
            if done := self._find(body):
                return done
            if not may_claim and not self.holds_epoch:
                raise Fenced(f"epoch {self._ledger.head.epoch} is another publisher's")
            if not isinstance(body, EpochClaim | RootUpdate) and not await self._hold_epoch():
                continue
            if unsent := self._unsent_opening(body):
                # Only these very bytes may be signed for that place; they may be just what is asked for.
                await self._send(unsent)
                continue
            if link := await self._commit(next_entry(self._ledger, body, now_ms=self._clock_ms())):
                return link
        raise LostRace(f"lost {ATTEMPTS_MAX} races for the place after seq {self._ledger.head.seq}")

    async def catch_up(self) -> None:
        """Read the ledger to its end, and finish what an earlier run left between signing and reading back."""
        await self.reader.catch_up()
        mark = self._journal.last
        if mark is None or mark.settled:
            return
        if self._ledger.head.seq.number < mark.seq:
            await self._finish(mark)
        if self._ledger.head.seq.number >= mark.seq:
            self._note_claim(mark.epoch, Seq(mark.seq), mark.entry_hash)
            self._journal.settle()

    async def _finish(self, mark: Mark) -> None:
        """Send again exactly what may have been sent, if it is still allowed today; else give up its epoch."""
        entry, head = ENTRY.decode(mark.payload), self._ledger.head
        follows = entry.seq == head.seq.next() and entry.prev_hash == head.entry_hash
        if follows and self._allowed_today(entry, mark.entry_hash):
            await self._send(mark)
        else:
            # Another entry may not be signed in its place within this epoch; _hold_epoch claims the next one.
            self._journal.settle()

    def _allowed_today(self, entry: Entry, entry_hash: bytes) -> bool:
        """Whether every reader would take this entry, and its approvals have not expired since it was dated.

        A soak and a moment are counted from the date of an entry. One that nobody has seen since then would shorten the
        soak, or have its moment behind it: it is made anew, with today's date.
        """
        now_ms = self._clock_ms()
        try:
            self._check_publisher(entry)
            match entry.body:
                case Step():
                    return False
                case Release() as release:
                    proposal = authorize(self._ledger.root, release, at_ms=now_ms).proposal
                    if proposal.lead_ms is not None or any(op.target is Target.RELEASE for op in proposal.ops):
                        return False
                case Preparation(release=release):
                    authorize(self._ledger.root, release, at_ms=now_ms)
                case Ratification(proposal_sha256=sha256, approvals=approvals):
                    emergency = self._ledger.unratified.get(sha256)
                    if emergency is None:
                        return False
                    self._ledger.ratified(emergency, approvals, at_ms=now_ms)
                case _:
                    pass
        except Refused:
            return False
        return isinstance(self._ledger.judge_next(entry, entry_hash), Taken)

    def _check_publisher(self, entry: Entry) -> None:
        """Refuse to sign what no reader would look at, because the key is not a publisher's, or not any more."""
        own = key_id(self._signer.algorithm, self._signer.public)
        roots = [self._ledger.root]
        if isinstance(entry.body, RootUpdate):
            roots.append(Root.unsigned(entry.body.root))
        if not any(own in root.grant(Role.PUBLISHER).key_ids for root in roots):
            people = ", ".join(sorted(self._ledger.root.people_of(Role.PUBLISHER)))
            raise WrongRole(
                f"key {own} has no role {Role.PUBLISHER} in root version {self._ledger.root.version}; {people} has",
                hint="publish with the publisher's present key",
            )

    def _unsent_opening(self, body: Body) -> Mark | None:
        """Return the entry that was journaled for the next place and opens an epoch there, if it was never sent.

        The very first entry opens one too; it is returned if it says the same as `body`.
        """
        head, last = self._ledger.head, self._journal.last
        if last is None or head.seq > Seq(0):
            return self._unsent_claim()
        first = (last.epoch, last.seq) == (head.epoch, 1) and ENTRY.decode(last.payload).body == body
        return last if first else None

    def _unsent_claim(self) -> Mark | None:
        """Return what was journaled for the next place and opens the next epoch, if its fate is not the chain's."""
        head, last = self._ledger.head, self._journal.last
        if last is None or (last.epoch, last.seq) != (head.epoch + 1, head.seq.number + 1):
            return None
        return last

    async def _hold_epoch(self) -> bool:
        """Make sure that this machine may sign the next place; False when the ledger moved and must be read again."""
        head, last = self._ledger.head, self._journal.last
        if head.seq == Seq(0):
            return True
        spent = last is not None and (last.epoch, last.seq) >= (head.epoch, head.seq.number + 1)
        if self.holds_epoch and not spent:
            return True
        if unsent := self._unsent_claim():
            # A claim of ours that was not sent: only these very bytes may be signed for this epoch and seq.
            return await self._send(unsent) is not None
        entry = next_entry(self._ledger, EpochClaim(self._holder), now_ms=self._clock_ms())
        return await self._commit(entry) is not None

    async def _commit(self, entry: Entry) -> Taken | None:
        """Journal, sign, append and read back one entry; None when another took its place."""
        self._check_publisher(entry)
        payload = ENTRY.encode(entry)
        if len(payload) + _ENVELOPE_OVERHEAD_BYTES > ENVELOPE_BYTES_MAX:
            raise TooLarge("entry", limit=ENVELOPE_BYTES_MAX - _ENVELOPE_OVERHEAD_BYTES, got=len(payload))
        entry_hash = digest(_unsigned(payload))
        match self._ledger.judge_next(entry, entry_hash):
            case Rejected(refusal=refusal) | Held(refusal=refusal) | Dropped(refusal=refusal):
                raise refusal
            case Void():
                return None
            case RootChanged(root=root) if self._ledger.quarantined_by is not None:
                self._check_cures(root)
            case _ if self._ledger.quarantined_by is not None:
                raise BrokenChain(
                    f"the ledger is in quarantine: {self._ledger.quarantined_by.what} "
                    f"at seq {self._ledger.quarantined_by.seq}"
                )
            case _:
                pass
        mark = Mark(entry.epoch, entry.seq.number, entry_hash, payload)
        self._journal.record(mark)
        return await self._send(mark)

    def _check_cures(self, root: Root) -> None:
        """Refuse a root that would leave the ledger in quarantine: first the forging keys must lose their roles."""
        proof = self._ledger.quarantined_by
        assert proof is not None  # noqa: S101 — the caller looked
        trusted = root.grant(Role.PUBLISHER).key_ids | root.grant(Role.HEARTBEAT).key_ids
        if still := proof.signers & trusted:
            raise Refused(
                f"root version {root.version}: want one without the keys that signed another history, "
                f"got {', '.join(sorted(still))} as publisher or heartbeat",
                hint="make new keys for these roles: `flaghoist root propose --replace-key`",
            )

    async def _send(self, mark: Mark) -> Taken | None:
        """Sign and append a journaled entry and read back; None when another took its place."""
        data, log = encode_envelope(countersign(_unsigned(mark.payload), [self._signer])), self.reader.log
        try:
            await log.append(data, expected_end=self.reader.position if log.conditional else None)
        except LogConflict:
            await self.reader.catch_up()
            return self._read_back(mark)
        except OutcomeUnknown:
            raise
        except Unavailable:
            # Certainly not sent, so it must not turn up later on its own; its place is spent all the same.
            self._journal.settle()
            raise
        await self.reader.catch_up()
        link = self._read_back(mark)
        if link is None and self._ledger.head.seq.number < mark.seq:
            raise OutcomeUnknown(f"seq {mark.seq}: the log confirmed it and does not return it")
        return link

    def _read_back(self, mark: Mark) -> Taken | None:
        """Return the journaled entry if it has its place in the chain."""
        if self._ledger.head.seq.number < mark.seq:
            return None
        self._note_claim(mark.epoch, Seq(mark.seq), mark.entry_hash)
        self._journal.settle()
        if self._ledger.hash_at(Seq(mark.seq)) != mark.entry_hash:
            return None
        link = self.reader.links[mark.seq - 1]
        return None if isinstance(link, Rejected) else link

    def _note_claim(self, epoch: int, seq: Seq, entry_hash: bytes) -> None:
        """Note the epoch as held if this entry, now in the chain, is what opened it."""
        if self._ledger.hash_at(seq) != entry_hash:
            return
        opens = isinstance(self.reader.links[seq.number - 1].entry.body, EpochClaim | RootUpdate)
        if opens and (self._journal.claim is None or self._journal.claim.seq != seq.number):
            self._journal.take_epoch(Claim(epoch, seq.number, entry_hash))

    def _find(self, body: Body) -> Taken | None:
        """Return the link that already says this, if an earlier run or a finished one has sent it."""
        match body:
            case Release():
                return self.reader.published.get(digest(body.proposal))
            case Ratification():
                return self.reader.ratified.get(body.proposal_sha256)
            case RootUpdate():
                return next((link for link in self.reader.links if _states(link, body)), None)
            case Preparation(release=release):
                return self._prepared(digest(release.proposal))
            case EpochClaim() | Step():
                return None  # of a step, its expected version sees to it that it is taken once

    def _prepared(self, sha256: bytes) -> Taken | None:
        """Return the entry that has prepared a proposal, while it still counts."""
        return self.reader.prepared.get(sha256) if self._ledger.is_prepared(sha256) else None


def _states(link: Link, update: RootUpdate) -> TypeGuard[Advanced | RootChanged]:
    return (
        isinstance(link, Advanced | RootChanged)
        and isinstance(link.entry.body, RootUpdate)
        and (digest(link.entry.body.root) == digest(update.root))
    )


def _unsigned(payload: bytes) -> Envelope:
    """Return an entry's envelope before it is signed; its digest is the entry's hash already."""
    return Envelope(ENTRY.payload_type, ENTRY.schema_sha256, payload, ())
