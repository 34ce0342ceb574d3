"""Tells the fleet how far this pod is: one small record whenever that changed, and every half minute.

It informs people. Nothing waits for it, and nothing here depends on it: a stream that is missing, full or away costs a
line in the log.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from flaghoist import __version__
from flaghoist.acknowledgement import ACK_INTERVAL_S, LEFT, encode_acknowledgement
from flaghoist.errors import Misconfigured, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Log, OpenLog, Stream
from flaghoist.log.reconnect import BACKOFF_BASE_S, full_jitter
from flaghoist.records import Acknowledgement
from flaghoist.values import Seq
from sidecar.board import Board, VerifierState
from sidecar.progress import Progress
from sidecar.report import BoundedReport, BugReport
from sidecar.state_digest import StateDigests
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock

# A change that stands alone is told at once, and so are a few in a row; of a burst each sidecar tells ten states a
# second at most, so that 2,000 of them do not cost the brokers more than the burst does.
TELLS_A_S: Final = 10.0
TELLS_AT_ONCE: Final = 5.0
# The longest that a stream which is well again waits for us: a fleet returns spread over it.
BACKOFF_CAP_S: Final = 10.0
# A stream that is missing, or may not be written, stays so until somebody acts.
REFUSED_AGAIN_S: Final = 300.0
# What the last word may take: people wait for the process to end.
FAREWELL_S: Final = 1.0

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who acknowledges: the instance's name, which no other sidecar of the ledger has, and the service beside it."""

    instance: str
    service: str


def interval_s(rng: random.Random) -> float:
    """Return how long a sidecar is silent that has nothing to tell: up to a third less than the fleet counts with.

    A fleet that was started at one moment, or found its brokers again, so comes apart soon.
    """
    return rng.uniform(2 / 3, 1.0) * ACK_INTERVAL_S


class _Pace:
    """How soon the next write may be: a bucket that holds TELLS_AT_ONCE of them and gets TELLS_A_S a second."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left, self._at_s = TELLS_AT_ONCE, monotonic()

    def wait_s(self) -> float:
        """Take one out, and return the seconds until it is there."""
        now_s = self._monotonic()
        self._left = min(TELLS_AT_ONCE, self._left + (now_s - self._at_s) * TELLS_A_S) - 1
        self._at_s = now_s
        return max(0.0, -self._left / TELLS_A_S)


class Acks:
    """Writes what progress and the board say, newest first: one write at a time, and what came meanwhile with the next.

    Args:
        open_log: opens the ledger's streams.
        digests: makes the digest of what was verified.
        monotonic: seconds from anywhere, never less than before.
        sleep: waits that many seconds; an argument, as the clocks are, so that tests own time.
        rng: where the jitter comes from.
    """

    def __init__(
        self,
        open_log: OpenLog,
        ledger: Ledger,
        board: Board,
        *,
        identity: Identity,
        progress: Progress,
        digests: StateDigests,
        status: Status,
        clock: SteadyClock,
        report: BoundedReport,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._open_log = open_log
        self._ledger = ledger
        self._board = board
        self._identity = identity
        self._progress = progress
        self._digests = digests
        self._status = status
        self._clock = clock
        self._report = report
        self._bugs = BugReport(logger, "acks.failed")
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  (spreads load; no secret)
        self._pace = _Pace(monotonic)
        self._changed = asyncio.Event()
        self._told: object = None
        self._refused = ""
        self._attempt = 0

    def note(self) -> None:
        """Something may have changed: it is told soon, if it has."""
        if self._facts() != self._told:
            self._changed.set()

    async def run(self) -> None:
        """Tell until cancelled, whatever becomes of the stream."""
        while True:
            try:
                async with self._open_log(Stream.ACKS) as log:
                    await self._tell_on(log)
            except Misconfigured as error:
                self._note_refused(error)
                wait_s = self._rng.uniform(0.5, 1.0) * REFUSED_AGAIN_S
            except Unavailable as error:
                self._status.acks_failed += 1
                self._report.warning("acks.lost", code=error.code, reason=str(error))
                wait_s = full_jitter(self._attempt, BACKOFF_BASE_S, BACKOFF_CAP_S, self._rng)
                self._attempt += 1
            except Exception as bug:  # noqa: BLE001  (whatever it is, answers matter more)
                self._status.acks_failed += 1
                self._bugs.note(bug)
                wait_s = BACKOFF_CAP_S
            self._changed.set()
            await self._sleep(wait_s)

    async def _tell_on(self, log: Log) -> None:
        """Tell as long as the stream takes it; and, when this is cancelled, that nobody need wait for this pod."""
        try:
            while True:
                await self._until_due()
                if (wait_s := self._pace.wait_s()) > 0:
                    await self._sleep(wait_s)
                if self._progress.verified is not None:
                    await self._tell(log)
        except asyncio.CancelledError:
            await self._take_leave(log)
            raise

    async def _until_due(self) -> None:
        try:
            async with asyncio.timeout(interval_s(self._rng)):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _tell(self, log: Log) -> None:
        self._changed.clear()
        self._told = self._facts()
        await self._append(log, await self._acknowledgement(self._board.state.value))

    async def _append(self, log: Log, ack: Acknowledgement) -> None:
        await log.append(encode_acknowledgement(ack), key=ack.instance.encode())
        self._attempt = 0
        self._status.acks_written += 1
        self._status.acked_at_s = self._board.clock()
        if self._refused:
            self._refused = ""
            logger.info("acks.accepted", instance=ack.instance)

    async def _take_leave(self, log: Log) -> None:
        """Say that this pod ends in order, if that can be said at once."""
        if not self._status.acks_written:
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._append(log, await self._acknowledgement(LEFT))
        except (Misconfigured, Unavailable, TimeoutError) as error:
            self._report.warning("acks.lost", code="farewell", reason=str(error) or "no answer")

    def _facts(self) -> object:
        """What is worth telling at once when it changes; what goes by (age, clock) is told now and then."""
        progress, state = self._progress, self._board.state
        verified = Seq(0) if progress.verified is None else progress.verified.seq
        # A heartbeat often overtakes the entry that it tells of, by milliseconds.
        return verified, progress.in_force, VerifierState.FRESH if state is VerifierState.LAGGING else state

    async def _acknowledgement(self, state: str) -> Acknowledgement:
        progress = self._progress
        verified = progress.verified
        assert verified is not None  # noqa: S101 (whoever tells has looked)
        # Of one moment: while the digest is made, more may be verified and come into force.
        ack = Acknowledgement(
            log_id=self._ledger.root.log_id,
            instance=self._identity.instance,
            service=self._identity.service,
            version=__version__,
            started_at=progress.started_ms,
            written_at=self._clock.now_ms,
            state=state,
            seq=verified.seq,
            entry_hash=self._ledger.hash_at(verified.seq),
            state_root=b"",
            applied_at=progress.applied_ms,
            in_force=progress.in_force,
            activated_at=progress.activated_ms,
            late_ms=progress.late_ms,
            clock_offset_ms=self._status.clock_offset.ms,
        )
        return replace(ack, state_root=await self._digests.of(verified), written_at=self._clock.now_ms)

    def _note_refused(self, error: Misconfigured) -> None:
        self._status.acks_failed += 1
        if self._refused != error.code:
            self._refused = error.code
            logger.warning(
                "acks.refused",
                code=error.code,
                reason=str(error),
                hint=error.hint or "let this sidecar write the ledger's stream `acks`, or give --acks off",
            )
