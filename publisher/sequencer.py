"""The single sequencer: appends entries so that a crash at any step loses and doubles nothing (docs/protocol.md).

1. hold the lease (journal.py) and the epoch; 2. read the ledger to its end; 3. build the entry after the head;
4. write it to the journal, then sign it; 5. append; 6. read back until it is in the chain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flaghoist.authorization import allowing_rule, authorize
from flaghoist.codec import ENTRY, ENVELOPE_BYTES_MAX, encode_envelope
from flaghoist.errors import LogConflict, OutcomeUnknown, Refused, TooLarge, Unavailable
from flaghoist.ledger import Advanced, Applied, Dropped, Held, Link, Rejected, Void, next_entry
from flaghoist.log.base import Log
from flaghoist.records import Entry, Envelope, EpochClaim, Release, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import Signer, countersign, digest
from flaghoist.values import Role, Seq
from publisher.inbox import Case
from publisher.journal import Claim, Journal, Mark
from publisher.reader import LedgerReader

# Each lost race means that somebody else published meanwhile; more in a row than this is a fight, not bad luck.
ATTEMPTS_MAX: Final = 8
# The publisher's signature and its framing around the payload (Ed25519 64, ECDSA P-256 up to 72 bytes in DER).
_ENVELOPE_OVERHEAD_BYTES: Final = 256


class LostRace(Refused):
    """Other publishers kept coming first; nothing of this was published."""

    code = "lost_race"
    hint = "find out who else publishes to this ledger, then run the same command again"


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
        self._log: Log = reader.log
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
        release = release_of(self._ledger.root, case, now_ms=self._clock_ms())
        link = await self.append(release)
        assert isinstance(link, Applied)  # noqa: S101 — append returns what the body makes
        return Published(link, already=False)

    async def append(self, body: Release | RootUpdate | EpochClaim) -> Applied | Advanced:
        """Append one entry with this body after the ledger's head, and return it as read back.

        Raises:
            Refused: the verifier would not take it, for the reason it names; nothing was sent.
            LostRace: others came first, again and again.
            Unavailable: nothing was sent.
            OutcomeUnknown: it was sent and not confirmed; the next call finishes it.
        """
        for _ in range(ATTEMPTS_MAX):
            await self.catch_up()
            if done := self._find(body):
                return done
            if not await self._hold_epoch(body):
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
        allowed = follows and isinstance(self._ledger.judge_next(entry, mark.entry_hash), Applied | Advanced)
        if allowed and isinstance(entry.body, Release):
            try:
                authorize(self._ledger.root, entry.body, at_ms=self._clock_ms())
            except Refused:
                allowed = False
        if allowed:
            await self._send(mark)
        else:
            # Another entry may not be signed in its place within this epoch; _hold_epoch claims the next one.
            self._journal.settle()

    async def _hold_epoch(self, body: Release | RootUpdate | EpochClaim) -> bool:
        """Make sure that this machine may sign the next place; False when the ledger moved and must be read again."""
        head = self._ledger.head
        if head.seq == Seq(0) or isinstance(body, EpochClaim):
            return True
        claim, last = self._journal.claim, self._journal.last
        held = (
            claim is not None
            and claim.epoch == head.epoch
            and claim.seq <= head.seq.number
            and self._ledger.hash_at(Seq(claim.seq)) == claim.entry_hash
        )
        spent = last is not None and (last.epoch, last.seq) >= (head.epoch, head.seq.number + 1)
        if held and not spent:
            return True
        if last is not None and (last.epoch, last.seq) == (head.epoch + 1, head.seq.number + 1):
            # A claim of ours that was not sent: only these very bytes may be signed for this epoch and seq.
            return await self._send(last) is not None
        entry = next_entry(self._ledger, EpochClaim(self._holder), now_ms=self._clock_ms())
        return await self._commit(entry) is not None

    async def _commit(self, entry: Entry) -> Applied | Advanced | None:
        """Journal, sign, append and read back one entry; None when another took its place."""
        payload = ENTRY.encode(entry)
        if len(payload) + _ENVELOPE_OVERHEAD_BYTES > ENVELOPE_BYTES_MAX:
            raise TooLarge("entry", limit=ENVELOPE_BYTES_MAX - _ENVELOPE_OVERHEAD_BYTES, got=len(payload))
        entry_hash = digest(_unsigned(payload))
        match self._ledger.judge_next(entry, entry_hash):
            case Rejected(refusal=refusal) | Held(refusal=refusal) | Dropped(refusal=refusal):
                raise refusal
            case Void():
                return None
            case _:
                pass
        mark = Mark(entry.epoch, entry.seq.number, entry_hash, payload)
        self._journal.record(mark)
        return await self._send(mark)

    async def _send(self, mark: Mark) -> Applied | Advanced | None:
        """Sign and append a journaled entry and read back; None when another took its place."""
        data = encode_envelope(countersign(_unsigned(mark.payload), [self._signer]))
        try:
            await self._log.append(data, expected_end=self.reader.position if self._log.conditional else None)
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

    def _read_back(self, mark: Mark) -> Applied | Advanced | None:
        """Return the journaled entry if it has its place in the chain."""
        if self._ledger.head.seq.number < mark.seq:
            return None
        self._note_claim(mark.epoch, Seq(mark.seq), mark.entry_hash)
        self._journal.settle()
        if self._ledger.hash_at(Seq(mark.seq)) != mark.entry_hash:
            return None
        link: Link = self.reader.links[mark.seq - 1]
        return None if isinstance(link, Rejected) else link

    def _note_claim(self, epoch: int, seq: Seq, entry_hash: bytes) -> None:
        """Note the epoch as held if this entry, now in the chain, is what opened it."""
        if self._ledger.hash_at(seq) != entry_hash:
            return
        opens = isinstance(self.reader.links[seq.number - 1].entry.body, EpochClaim | RootUpdate)
        if opens and (self._journal.claim is None or self._journal.claim.seq != seq.number):
            self._journal.take_epoch(Claim(epoch, seq.number, entry_hash))

    def _find(self, body: Release | RootUpdate | EpochClaim) -> Applied | Advanced | None:
        """Return the link that already says this, if an earlier run or a finished one has sent it."""
        if isinstance(body, Release):
            return self.reader.published.get(digest(body.proposal))
        first = next(iter(self.reader.links), None)
        return first if isinstance(first, Advanced) and first.entry.body == body else None


def _unsigned(payload: bytes) -> Envelope:
    """Return an entry's envelope before it is signed; its digest is the entry's hash already."""
    return Envelope(ENTRY.payload_type, ENTRY.schema_sha256, payload, ())


def release_of(root: Root, case: Case, *, now_ms: int) -> Release:
    """Return the body that publishes a case, with the approvals that count now.

    Raises:
        Refused: as authorization.authorize says; a standing rejection is one of the reasons.
    """
    statements = [(a, e) for a, e in case.approvals if a.approver != case.proposal.requester]
    unexpired = [(a, e) for a, e in statements if a.expires_at >= now_ms]
    enough = len(unexpired) >= root.grant(Role.APPROVER).threshold
    # When they are not enough, all are shown to authorize, so that it can say which has expired or whose is missing.
    chosen = [e for _, e in (unexpired if enough else case.approvals)]
    release = Release(case.envelope, tuple(chosen), allowing_rule(root))
    authorize(root, release, at_ms=now_ms)
    return release
