"""Is what is served the ledger's newest? Signed heartbeats in, and the board says so, or why not.

Where the root has no keys for heartbeats, the log's own word counts. The rules are those of
flaghoist.freshness and standing; here are the streams, the clock and the timer.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

import structlog

from flaghoist.codec import HEARTBEAT, decode_envelope
from flaghoist.errors import Expired, LogTruncated, Misconfigured, Refused, Unavailable
from flaghoist.freshness import (
    BEAT_LIFE_MS,
    CLOCK_TOLERANCE_MS,
    BeatOutcome,
    Counted,
    Heartbeats,
    Proof,
    Refuted,
    Standing,
    Superseded,
)
from flaghoist.ledger import Ledger
from flaghoist.log.base import PROBE_S, Batch
from flaghoist.log.reconnect import BACKOFF_CAP_S
from flaghoist.outcomes import Forked
from flaghoist.values import Seq
from sidecar.alarms import Alarms
from sidecar.board import Board
from sidecar.report import BoundedReport
from sidecar.standing import Facts, LogsWord, why_not_fresh
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock

# Nothing happens, and yet: a clock was set back, an emergency's time ran out. As often as an idle log is asked.
LOOK_S: Final = PROBE_S
# Heartbeats stopped, and their log says that it is well: new clients may see more, if ours hang at brokers that others
# have left. When the publisher is what stopped they will not, so the waits double.
RENEW_FIRST_S: Final = 60.0
RENEW_CAP_S: Final = 600.0
# Verifying a heartbeat takes about 0.2 ms; a call should not wait for more than a few of them.
SLICE_S: Final = 0.003

Follow = Callable[[int, Callable[[Unavailable], None]], AsyncGenerator[Batch, None]]

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class FreshnessWatch:
    """Keeps the board's state and freshness true, from what the followers note and from what runs out by itself.

    Args:
        ledger: the verifier that the follower feeds.
        clock: measures freshness; never runs backwards.
        fresh_for_s: how long the log's word counts, where there are no heartbeats.
        renew_clients: has all clients of the log made anew.

    Attributes:
        heartbeats: what the heartbeats say.
        resyncing, reached: see standing.Facts; the ledger's follower sets them, and calls look().
        keep_beat: given each heartbeat that counted, for the next start.
        on_fork: told of a heartbeat that saw another history.
        on_look: called first at every look; what was withheld from the board may now be shown.
        on_looked: called last at every look: the board says what holds now.
    """

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        *,
        clock: SteadyClock,
        fresh_for_s: float,
        status: Status,
        report: BoundedReport,
        renew_clients: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.heartbeats = Heartbeats(ledger)
        self._evidence: Heartbeats | None = None
        self.resyncing = False
        self.reached = asyncio.Event()
        self.keep_beat: Callable[[bytes], None] = lambda _: None
        self.on_fork: Callable[[Forked], None] = lambda _: None
        self.on_look: Callable[[], None] = lambda: None
        self.on_looked: Callable[[], None] = lambda: None
        self._ledger = ledger
        self._board = board
        self._clock = clock
        self._alarms = Alarms(ledger)
        self._status = status
        self._report = report
        self._renew_clients = renew_clients
        self._word = LogsWord(None, int(fresh_for_s * 1000), lost=False)
        self._refused: bytes | None = None
        # A clock that is behind what this pod kept was set back since: with it old heartbeats could be shown again.
        self._not_before_ms = 0
        self._position = 0
        self._beats_expected = asyncio.Event()
        self._look = asyncio.Event()
        self._proved_ms = int(board.clock() * 1000)
        self._was_fresh = False
        self._said_stale = False
        self._set_back_said = False
        self._skew_said = False
        # Heartbeats come as they are written, and not from what the stream has kept.
        self._live = False
        self._heard_ms = 0
        # The wait for heartbeats, on the monotonic clock: since when, and after how long new clients are made.
        self._monotonic = monotonic
        self._heard_s = monotonic()
        self._renewals = 0
        self._next_renewal_s = BEAT_LIFE_MS / 1000  # of silence
        self._rng = rng or random.Random()  # noqa: S311  (spreads load; no secret)

    # --- what the ledger's follower notes ---

    def log_spoke(self) -> None:
        """The log holds nothing after what is verified."""
        self._word = LogsWord(self._clock.now_ms, self._word.counts_ms, lost=False)
        self.resyncing = False
        self.reached.set()
        self.look()

    def log_lost(self) -> None:
        """The log is away, or lacks entries."""
        self._word = LogsWord(self._word.spoke_at_ms, self._word.counts_ms, lost=True)
        self.look()

    def note_progress(self) -> Forked | None:
        """The ledger took an entry; returns the proof of another history, if a heartbeat had seen another one there."""
        now_ms = self._clock.now_ms
        proof = self.heartbeats.note_progress(now_ms=now_ms)
        if proof is None and self._evidence is not None:
            proof = self._evidence.note_progress(now_ms=now_ms)
        return proof

    def load_evidence(self, data: bytes) -> Forked | None:
        """Look again at a heartbeat that once proved another history; returns the proof, if it still is one.

        One that saw an entry which is still to be read is kept in mind until it was.
        """
        issued_at = _issued_at(data)
        if issued_at is None:
            return None
        self._evidence = Heartbeats(self._ledger)
        outcome = self._evidence.receive(data, now_ms=issued_at)
        return outcome if isinstance(outcome, Forked) else None

    def note_entry(self, published_ms: int, *, live: bool) -> None:
        """An entry was verified that is dated so (Unix ms): none is published before its time.

        Args:
            live: it came as it was written. Heartbeats tell the clocks' difference better, where there are any.
        """
        self._status.clock_offset.note(
            published_ms, now_ms=self._clock.now_ms, live=live and not self.heartbeats.expected
        )
        self._note_skew()

    def note_root(self) -> None:
        """Another root is in force: a heartbeat that was refused before may count now."""
        refused, self._refused = self._refused, None
        if refused is not None:
            self.receive(refused)

    # --- heartbeats ---

    def load(self, data: bytes) -> None:
        """Take a heartbeat from this pod's disk, verified anew: the clock must not be behind it."""
        issued_at = _issued_at(data)
        if issued_at is None:
            return
        outcome = self.heartbeats.receive(data, now_ms=issued_at)
        if isinstance(outcome, Counted):
            self._not_before_ms = self._heard_ms = issued_at
        self._note(data, outcome)

    def receive(self, data: bytes, *, live: bool = False) -> None:
        """Take one record of the heartbeats' stream.

        Args:
            live: it came as it was written.
        """
        now_ms = self._clock.now_ms
        outcome = self.heartbeats.receive(data, now_ms=now_ms)
        self._status.beats[type(outcome).__name__.lower()] += 1
        self._compare_clocks(data, outcome, now_ms, live=live)
        if isinstance(outcome, Counted):
            self._heard_s, self._renewals, self._next_renewal_s = self._monotonic(), 0, BEAT_LIFE_MS / 1000
            if outcome.beat.issued_at <= now_ms + CLOCK_TOLERANCE_MS:
                self.keep_beat(data)
        self._note(data, outcome)
        self.look()

    def _note(self, data: bytes, outcome: BeatOutcome) -> None:
        match outcome:
            case Refuted(refusal=refusal):
                self._refused = data
                self._report.warning("heartbeat.refused", code=refusal.code, reason=str(refusal)[:500])
            case Forked():
                self.on_fork(outcome)
            case Counted() | Superseded():
                pass

    async def follow(self, follow: Follow) -> None:
        """Follow the heartbeats until cancelled. Waits for the ledger: before its end is known, they prove nothing."""
        await self.reached.wait()
        while True:
            if not self._beats_expected.is_set():
                await self._beats_expected.wait()
                self._heard_s = self._monotonic()
            self._live = False
            try:
                async with aclosing(follow(self._position, self._beats_lost)) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        if not self.heartbeats.expected:
                            break
            except LogTruncated:
                self._position = 0
            except Misconfigured as error:
                self._report.warning("heartbeats.lost", code=error.code, reason=str(error), hint=error.hint)
                await asyncio.sleep(BACKOFF_CAP_S)

    def _beats_lost(self, error: Unavailable) -> None:
        self._live = False
        self._report.warning("heartbeats.lost", code=error.code, reason=str(error))

    async def _take(self, batch: Batch) -> None:
        pause_at_s = time.monotonic() + SLICE_S
        for record in batch.records:
            self.receive(record.value, live=self._live)
            if time.monotonic() >= pause_at_s:
                await asyncio.sleep(0)
                pause_at_s = time.monotonic() + SLICE_S
        self._position = batch.next_position
        self._live = self._live or batch.at_end
        self.look()
        self._watch_the_clients()

    # --- the state, and the clock ---

    async def run(self) -> None:
        """Look whenever a proof runs out, and now and then, until cancelled."""
        while True:
            self._look.clear()
            until_ms = self._standing(self._clock.now_ms).fresh_until_ms - self._clock.now_ms
            wait_s = min(LOOK_S, until_ms / 1000 + 0.001) if until_ms >= 0 else LOOK_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._look.wait()
            except TimeoutError:
                self.look()

    def look(self) -> None:
        """Bring the board's state and freshness up to date."""
        if self.heartbeats.expected:
            self._beats_expected.set()
        else:
            self._beats_expected.clear()
        self.on_look()
        board, now_ms = self._board, self._clock.now_ms
        standing = self._standing(now_ms)
        facts = self._facts(standing)
        board.state = facts.state
        newest = self.heartbeats.newest
        heard_at_ms = self._word.spoke_at_ms
        if self.heartbeats.expected:
            heard_at_ms = None if newest is None else newest.issued_at
        board.why_stale = why_not_fresh(facts, standing, by_heartbeat=self.heartbeats.expected, heard_at_ms=heard_at_ms)
        # The board's clock is the one that calls see, and may be set back; this one is not.
        board_ahead_s = board.clock() - now_ms / 1000
        fresh = facts.may_be_fresh(standing, now_ms=now_ms)
        if fresh:
            if standing.proof is Proof.FRESH and heard_at_ms is not None:
                self._proved_ms = min(max(self._proved_ms, heard_at_ms), now_ms)
            until_s = standing.fresh_until_ms / 1000 + board_ahead_s
            board.mark_fresh(self._proved_ms / 1000 + board_ahead_s, until_s=until_s)
        else:
            board.mark_stale(since_s=self._proved_ms / 1000 + board_ahead_s)
        self._status.lag_entries = standing.behind
        self._status.clock_behind_s = standing.clock_behind_ms / 1000
        self._note_set_back()
        self._tell(fresh=fresh)
        if self.reached.is_set():  # before that, what is overdue may have been seen to in entries still to be read
            self._alarms.look(now_ms)
        self.on_looked()
        self._look.set()

    @property
    def proved_s(self) -> float:
        """When what is verified was last known to be the newest (Unix seconds)."""
        return self._proved_ms / 1000

    def proved_fresh(self) -> bool:
        """Whether what is verified is known to be the newest now, served or not."""
        standing = self._standing(self._clock.now_ms)
        ledger = self._ledger
        in_doubt = self.resyncing or ledger.stopped_by is not None or ledger.quarantined_by is not None
        return self.reached.is_set() and standing.proof is Proof.FRESH and not in_doubt

    def note_known_fresh(self, at_s: float) -> None:
        """Note when what was loaded from disk was last known to be the newest (Unix seconds)."""
        self._proved_ms = int(at_s * 1000)

    def _standing(self, now_ms: int) -> Standing:
        standing = self.heartbeats.standing(now_ms=now_ms)
        if standing.proof is Proof.ROOT_EXPIRED:
            return standing
        if self.heartbeats.expected:
            behind_ms = self._not_before_ms - now_ms
            return Standing(Proof.STALE, 0, clock_behind_ms=behind_ms) if behind_ms > CLOCK_TOLERANCE_MS else standing
        return self._word.standing(now_ms=now_ms)

    def _facts(self, standing: Standing) -> Facts:
        return Facts(
            unsupported=self._ledger.stopped_by is not None,
            quarantined=self._ledger.quarantined_by is not None or self._status.refused_by_floor,
            resyncing=self.resyncing,
            served=self._board.view is not None and self._ledger.head.seq > Seq(0),
            reached=self.reached.is_set(),
            proof=standing.proof,
        )

    def _tell(self, *, fresh: bool) -> None:
        """Say when answers become stale, and when they are fresh again; a lag of a moment makes none."""
        if self._board.view is None or not self.reached.is_set():
            return
        self._was_fresh = self._was_fresh or fresh
        if not self._was_fresh and self._monotonic() - self._heard_s < BEAT_LIFE_MS / 1000:
            return  # it has just begun: the first heartbeat comes within seconds
        if self._said_stale and fresh:
            logger.info("answers.fresh", seq=self._board.view.seq.number)
        elif not self._said_stale and not fresh:
            self._report.warning("answers.stale", code=self._board.state.value.lower(), reason=self._board.why_stale)
        self._said_stale = not fresh

    def _note_set_back(self) -> None:
        set_back_s = self._clock.set_back_s
        self._status.clock_set_back_s = set_back_s
        set_back = set_back_s * 1000 > CLOCK_TOLERANCE_MS
        if set_back and not self._set_back_said:
            logger.error(
                "clock.set_back",
                by_s=round(set_back_s, 3),
                hint="freshness goes on by the time from before; if that was wrong, start this sidecar anew",
            )
        self._set_back_said = set_back

    def _compare_clocks(self, data: bytes, outcome: BeatOutcome, now_ms: int, *, live: bool) -> None:
        """Take a heartbeat for the publisher's time; an expired one too, which may be so by this pod's clock alone."""
        match outcome:
            case Counted(beat=beat):
                issued_at = beat.issued_at
            case Refuted(refusal=Expired()):
                issued_at = _issued_at(data) or 0
            case _:
                return
        if issued_at > self._heard_ms:  # else it may be an old one that somebody shows again
            self._heard_ms = issued_at
            self._status.clock_offset.note(issued_at, now_ms=now_ms, live=live)
            self._note_skew()

    def _note_skew(self) -> None:
        """Say when this clock and the publisher's go apart, and when they agree again."""
        offset = self._status.clock_offset
        if offset.skewed and not self._skew_said:
            self._report.warning(
                "clock.skewed",
                code="skew",
                offset_ms=offset.ms,
                hint="the publisher's clock less this one's: look at the time service of both machines",
            )
        elif self._skew_said and not offset.skewed:
            logger.info("clock.agrees", offset_ms=offset.ms)
        self._skew_said = offset.skewed

    def _watch_the_clients(self) -> None:
        """Have new clients made when heartbeats stopped on a log that has just said it is well, at a bounded rate."""
        quiet_s = self._monotonic() - self._heard_s
        if quiet_s < self._next_renewal_s:
            return
        self._renewals += 1
        self._next_renewal_s = quiet_s + self._rng.uniform(0.5, 1.0) * min(
            RENEW_CAP_S, RENEW_FIRST_S * 2.0 ** min(self._renewals - 1, 8)
        )
        self._status.clients_renewed += 1
        self._report.warning("log_clients.renewed", code="no_heartbeat", quiet_s=round(quiet_s, 1))
        self._renew_clients()


def _issued_at(data: bytes) -> int | None:
    """Return when a heartbeat says that it was issued (Unix ms), nothing verified; None when it is none."""
    try:
        envelope = decode_envelope(data)
        return HEARTBEAT.decode(envelope.payload).issued_at if envelope.payload_type == HEARTBEAT.payload_type else None
    except Refused:
        return None
