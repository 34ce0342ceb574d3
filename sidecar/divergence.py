"""Does this pod have the state that the publisher has? A heartbeat says the digest of the state at its seq.

The same entries make the same state, so a difference is a bug or memory that lost a bit. It is an alarm for people, and
never changes what is served: nobody here knows which of the two is right.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from flaghoist.records import Heartbeat
from flaghoist.values import Seq
from sidecar.progress import Progress
from sidecar.state_digest import StateDigests

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Diverged:
    """Two digests of the state at one seq."""

    seq: Seq
    ours: bytes
    theirs: bytes


class Divergence:
    """Compares whenever the newest heartbeat is of the entry that was verified last.

    Args:
        newest: the newest heartbeat that counts.

    Attributes:
        now: what differed at the newest comparison; None when nothing did.
        count: how many states were found to differ.
    """

    def __init__(self, newest: Callable[[], Heartbeat | None], progress: Progress, digests: StateDigests) -> None:
        self.now: Diverged | None = None
        self.count = 0
        self._newest = newest
        self._progress = progress
        self._digests = digests
        self._changed = asyncio.Event()
        self._compared: tuple[Seq, bytes] | None = None

    def note(self) -> None:
        """A heartbeat may have come, or an entry: there may be two digests to compare."""
        self._changed.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._compare()

    async def _compare(self) -> None:
        beat, verified = self._newest(), self._progress.verified
        if beat is None or beat.state_root is None or verified is None or beat.seq != verified.seq:
            return  # one of the two is ahead: the other follows, or the next heartbeat does
        if self._compared == (beat.seq, beat.state_root):
            return
        self._compared = (beat.seq, beat.state_root)
        ours = await self._digests.of(verified)
        if ours == beat.state_root:
            if self.now is not None:
                logger.warning("state.agrees", seq=beat.seq.number, since_seq=self.now.seq.number)
            self.now = None
            return
        said = self.now is not None and self.now.seq == beat.seq
        self.now = Diverged(beat.seq, ours, beat.state_root)
        self.count += 1
        if not said:
            logger.error(
                "state.diverged",
                seq=beat.seq.number,
                ours=ours.hex(),
                theirs=beat.state_root.hex(),
                publisher=beat.holder,
                hint="same entries, another state: compare `flaghoist-sidecar --version` with the publisher's;"
                " where they are the same, start this sidecar anew, and if it says so again report it",
            )
