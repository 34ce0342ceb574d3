"""Whether a reader's state is the ledger's newest: what signed heartbeats prove, and how long each proof counts.

Pure: bytes and the time go in, an outcome or a standing comes out. Design: docs/protocol.md, "Freshness".
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from flaghoist.codec import HEARTBEAT, decode_envelope
from flaghoist.errors import Expired, Malformed, Refused, WrongLog
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Forked
from flaghoist.records import Heartbeat
from flaghoist.values import KeyId, Role

# How often a publisher beats, and how long a beat counts: six may be lost (design §6).
BEAT_INTERVAL_MS: Final = 5_000
BEAT_LIFE_MS: Final = 30_000
# What a reader accepts at most: a longer life would let a stolen key claim freshness for days after its revocation.
BEAT_LIFE_MS_MAX: Final = 60_000
# How far a reader's clock may be behind the publisher's: by as much a withheld entry may be noticed later.
CLOCK_TOLERANCE_MS: Final = 5_000


class Proof(StrEnum):
    """What the newest heartbeat says of a reader's state."""

    FRESH = "FRESH"  # it was the ledger's newest, and the heartbeat has not expired
    LAGGING = "LAGGING"  # the ledger has entries that this reader has not
    STALE = "STALE"  # no heartbeat that counts
    ROOT_EXPIRED = "ROOT_EXPIRED"  # nobody may say anything any more, until a new root is published


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a reader stands at one moment.

    Attributes:
        fresh_until_ms: until when the last proof counts (Unix ms); in the past while there is none.
        behind: entries that are known to be missing; 0 unless LAGGING.
        clock_behind_ms: how far this reader's clock is behind the publisher's; 0 while within the tolerance.
    """

    proof: Proof
    fresh_until_ms: int
    behind: int = 0
    clock_behind_ms: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """A heartbeat that is newer than those before it, and still counts."""

    beat: Heartbeat


@dataclass(frozen=True, slots=True)
class Superseded:
    """A heartbeat that is not newer than one that was heard before; ignored."""

    beat: Heartbeat


@dataclass(frozen=True, slots=True)
class Refuted:
    """Bytes that are no heartbeat of this ledger, or one that came too late to prove anything; ignored."""

    refusal: Refused


BeatOutcome: TypeAlias = Counted | Superseded | Refuted | Forked


class Heartbeats:
    """What one reader makes of the heartbeats of one ledger.

    Attributes:
        newest: of the heartbeats that counted when they came, the one of the latest epoch that was issued last.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.newest: Heartbeat | None = None
        self._signers: frozenset[KeyId] = frozenset()
        self._fresh_until_ms = 0
        # The record of a heartbeat that is ahead of this reader: its proof that there is another history, if there is.
        self._ahead: tuple[Heartbeat, bytes, frozenset[KeyId]] | None = None

    @property
    def expected(self) -> bool:
        """Whether this environment has heartbeats at all: its root lists keys for them."""
        return bool(self._ledger.root.grant(Role.HEARTBEAT).key_ids)

    def receive(self, data: bytes, *, now_ms: int) -> BeatOutcome:
        """Verify one record and take what it says.

        Args:
            data: a record's value, untrusted.
            now_ms: wall clock, Unix milliseconds.
        """
        try:
            beat, signers = self._verified(data)
            if now_ms > beat.expires_at:
                raise Expired(f"heartbeat {beat.beat_no} expired at {beat.expires_at}, now {now_ms} (Unix ms)")
        except Refused as refusal:
            return Refuted(refusal)
        if proof := self._another_history(beat, data, signers):
            return proof
        epoch = self._ledger.head.epoch
        if beat.epoch < epoch:
            # Whoever beats in it knows nothing of what was appended since: a publisher that others have replaced.
            return Refuted(
                Expired(f"heartbeat {beat.beat_no}: of epoch {beat.epoch}, which ended: {epoch} is in force")
            )
        if self._newest_outranks(beat, now_ms=now_ms):
            return Superseded(beat)
        self.newest, self._signers = beat, signers
        self._ahead = (beat, data, signers) if beat.seq > self._ledger.head.seq else None
        if self._ahead is None and beat.issued_at <= now_ms + CLOCK_TOLERANCE_MS:
            self._fresh_until_ms = max(self._fresh_until_ms, beat.expires_at)
        return Counted(beat)

    def note_progress(self, *, now_ms: int) -> Forked | None:
        """Look again at a heartbeat that was ahead, after entries were taken.

        Returns:
            The proof of another history, when the ledger does not lead to what the heartbeat had seen.
        """
        if self._ahead is None or self._ahead[0].seq > self._ledger.head.seq:
            return None
        beat, data, signers = self._ahead
        self._ahead = None
        if proof := self._another_history(beat, data, signers):
            self.newest = None
            return proof
        if beat.issued_at <= now_ms + CLOCK_TOLERANCE_MS:
            self._fresh_until_ms = max(self._fresh_until_ms, beat.expires_at)
        return None

    def standing(self, *, now_ms: int) -> Standing:
        """Return what counts at this moment."""
        root, newest = self._ledger.root, self.newest
        if now_ms > root.record.expires_at:
            return Standing(Proof.ROOT_EXPIRED, 0)
        if newest is None or not self._still_trusted():
            return Standing(Proof.STALE, 0)
        early_ms = newest.issued_at - now_ms
        if early_ms > CLOCK_TOLERANCE_MS:
            return Standing(Proof.STALE, 0, clock_behind_ms=early_ms)
        if now_ms > newest.expires_at:
            return Standing(Proof.STALE, self._fresh_until_ms)
        if newest.seq > self._ledger.head.seq:
            behind = newest.seq.number - self._ledger.head.seq.number
            return Standing(Proof.LAGGING, self._fresh_until_ms, behind=behind)
        return Standing(Proof.FRESH, max(self._fresh_until_ms, newest.expires_at))

    def _newest_outranks(self, beat: Heartbeat, *, now_ms: int) -> bool:
        newest = self.newest
        if newest is None or not self._still_trusted():
            return False
        if newest.issued_at > now_ms + CLOCK_TOLERANCE_MS:
            return False  # it proves nothing yet: a clock that ran ahead once must not silence what comes after it
        return (beat.epoch, beat.issued_at, beat.beat_no) <= (newest.epoch, newest.issued_at, newest.beat_no)

    def _still_trusted(self) -> bool:
        return not self._signers.isdisjoint(self._ledger.root.grant(Role.HEARTBEAT).key_ids)

    def _verified(self, data: bytes) -> tuple[Heartbeat, frozenset[KeyId]]:
        envelope = decode_envelope(data)
        if envelope.payload_type != HEARTBEAT.payload_type:
            raise Malformed(f"want {HEARTBEAT.payload_type}, got {envelope.payload_type[:100]!r}")
        root = self._ledger.root
        signers = frozenset(key.key_id for key in root.signers_in((Role.HEARTBEAT,), envelope))
        beat = HEARTBEAT.decode(envelope.payload)
        if beat.log_id != root.log_id:
            raise WrongLog(expected=root.log_id, got=beat.log_id)
        if not 0 < beat.expires_at - beat.issued_at <= BEAT_LIFE_MS_MAX:
            raise Malformed(
                f"heartbeat {beat.beat_no}: want a life of 1 .. {BEAT_LIFE_MS_MAX} ms, "
                f"got {beat.expires_at - beat.issued_at}"
            )
        return beat, signers

    def _another_history(self, beat: Heartbeat, data: bytes, signers: frozenset[KeyId]) -> Forked | None:
        ledger = self._ledger
        if beat.seq > ledger.head.seq or ledger.hash_at(beat.seq) == beat.head_hash:
            return None
        return Forked(beat.seq, "heartbeat", ledger.hash_at(beat.seq), data, signers)
