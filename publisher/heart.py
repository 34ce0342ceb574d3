"""Makes a publisher's heartbeats: signed statements of what was the ledger's newest entry, and when."""

from collections import deque
from typing import Final

from flaghoist.codec import HEARTBEAT, decode_envelope, encode_envelope
from flaghoist.errors import Expired
from flaghoist.freshness import BEAT_LIFE_MS, BeatOutcome, Counted, Refuted, Superseded
from flaghoist.ledger import Ledger
from flaghoist.records import Heartbeat
from flaghoist.signing import Signer, key_id, seal
from flaghoist.state_root import state_root
from flaghoist.values import KeyId, Role, Seq

# The key under which the stream keeps the newest one.
BEAT_KEY: Final = b"heartbeat"
# Ours come back from the log within seconds; a reader that was away for minutes reads only the newest.
_OWN_REMEMBERED: Final = 64
# How a command names itself that publishes and beats once, and a service in its last heartbeat: nobody should wait for
# either.
_ONCE: Final = " (once)"
_LEFT: Final = " (left)"


class Heart:
    """Signs heartbeats of one publisher, and knows them again.

    Attributes:
        holder: the publisher's name in them.
    """

    def __init__(self, signer: Signer, *, holder: str) -> None:
        self.holder = holder
        self._signer = signer
        self._beat_no = 0
        self._own: deque[tuple[int, int]] = deque(maxlen=_OWN_REMEMBERED)

    @property
    def key_id(self) -> KeyId:
        return key_id(self._signer.algorithm, self._signer.public)

    def may_beat(self, ledger: Ledger, *, now_ms: int) -> bool:
        """Say whether anybody would believe a heartbeat: the key has its role, the root lives, there is one history."""
        root = ledger.root
        listed = self.key_id in root.grant(Role.HEARTBEAT).key_ids
        return listed and now_ms <= root.record.expires_at and ledger.quarantined_by is None

    def beat(self, ledger: Ledger, *, issued_at: int, last: bool = False) -> bytes:
        """Return the record that says what the ledger's head is.

        Args:
            ledger: read to its end.
            last: no more will come, so that others may take over at once.
            issued_at: Unix milliseconds *before* that reading began: whatever came later, this was the head then.

        Raises:
            Unavailable: the holder of the key does not answer.
        """
        head = ledger.head
        self._beat_no += 1
        beat = Heartbeat(
            log_id=ledger.root.log_id,
            beat_no=self._beat_no,
            issued_at=issued_at,
            expires_at=issued_at + BEAT_LIFE_MS,
            seq=head.seq,
            head_hash=head.entry_hash,
            epoch=head.epoch,
            root_version=ledger.root.version,
            holder=self.holder + _LEFT if last else self.holder,
            state_root=state_root(ledger.snapshot),  # kept in the snapshot: made once a change
            checkpoint_seq=Seq(0),
        )
        record = encode_envelope(seal(HEARTBEAT, beat, [self._signer]))
        self._own.append((beat.issued_at, beat.beat_no))
        return record

    def made(self, beat: Heartbeat) -> bool:
        """Say whether a heartbeat is one of ours, of this process."""
        return beat.holder in (self.holder, self.holder + _LEFT) and (beat.issued_at, beat.beat_no) in self._own

    def continue_from(self, beat: Heartbeat) -> None:
        """Number ours after one that was heard, so that of two in one millisecond the later one counts."""
        self._beat_no = max(self._beat_no, beat.beat_no)


def heard(outcome: BeatOutcome, data: bytes) -> Heartbeat | None:
    """Return the heartbeat in a record that a heartbeat key of the root has signed; None when none has.

    Args:
        outcome: what freshness.Heartbeats made of it. One that has expired by this machine's clock is a sign of life
            all the same, if it is a new one: the clock may be wrong, and the other publisher is not dead for that.
    """
    match outcome:
        case Counted(beat=beat) | Superseded(beat=beat):
            return beat
        case Refuted(refusal=Expired()):
            return HEARTBEAT.decode(decode_envelope(data).payload)
        case _:
            return None


def once(holder: str) -> str:
    """Return the name under which a command beats that is no service."""
    return holder + _ONCE


def is_of_a_service(beat: Heartbeat) -> bool:
    """Say whether more heartbeats are to be expected of whoever sent this one."""
    return not beat.holder.endswith((_ONCE, _LEFT))


def is_farewell(beat: Heartbeat) -> bool:
    """Say whether a service has sent its last heartbeat."""
    return beat.holder.endswith(_LEFT)
