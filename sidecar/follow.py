"""Record in, verified, folded, on the board: the one writer of what the sidecar serves."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from flaghoist.errors import LogTruncated, Misconfigured, Unavailable
from flaghoist.ledger import Advanced, Applied, Dropped, Forked, Gap, Held, Ledger, Outcome, Rejected, Repeated, Void
from flaghoist.log.base import Batch, LogRecord
from flaghoist.log.reconnect import BACKOFF_CAP_S
from flaghoist.snapshot import paused_collector
from flaghoist.values import Seq
from sidecar.board import Board, VerifierState
from sidecar.keep import Kept
from sidecar.report import BoundedReport

# How long to wait before the whole ledger is read again when entries stay missing.
RESYNC_S: Final = 30.0
# A batch of a catch-up: what it makes lives on, so the collector would only look at it again and again.
MANY_RECORDS: Final = 32
# Verifying a record takes about 0.3 ms; a call should not wait for more than a few of them.
SLICE_S: Final = 0.003
# Entries that may wait for the disk; at 1 KiB each, little memory, and more than a catch-up verifies in one second.
UNKEPT_MAX: Final = 5000

Follow = Callable[[int, Callable[[Unavailable], None]], AsyncGenerator[Batch, None]]

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _EntriesMissingError(Exception):
    """The log went on after a gap: it must be read again from its start."""


class Follower:
    """Follows one ledger and keeps the board, and the disk, at its newest verified state.

    Args:
        ledger: the verifier, before its first record.
        kept: where verified entries are kept; None when there is no writable place.
        clock: Unix seconds, the board's clock.
        fresh_for_s: how long the log's last sign of life counts.
    """

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        kept: Kept | None,
        *,
        report: BoundedReport,
        clock: Callable[[], float],
        fresh_for_s: float,
    ) -> None:
        self.tally: Counter[str] = Counter()
        self._ledger = ledger
        self._board = board
        self._kept = kept
        self._report = report
        self._clock = clock
        self._fresh_for_s = fresh_for_s
        self._position = 0
        self._caught_up = False
        # The log was seen to hold the head, since reading began; without that its silence proves nothing.
        self._head_seen = False
        self._gap: Gap | None = None
        self._resyncing = False
        # Verified, and not on the disk yet: one task writes them, in order.
        self._unkept: list[LogRecord] = []
        self._unkept_fresh = False
        self._keeping: asyncio.Task[None] | None = None

    def load_kept(self) -> None:
        """Serve what this pod kept, verified anew; called once, before `run`."""
        if self._kept is None:
            return
        known_fresh_at_s = self._kept.known_fresh_at_s
        with paused_collector():
            self._take_kept(self._kept)
        self._kept.forget_from_here()
        if self._ledger.head.seq > Seq(0):
            self._board.mark_stale(since_s=known_fresh_at_s)
            self._board.state = VerifierState.CATCHING_UP
            self._put()
            _settle_memory()
            logger.info("snapshot.loaded", origin="disk", seq=self._ledger.head.seq.number)

    def _take_kept(self, kept: Kept) -> None:
        for record in kept.entries():
            # Judged first: what somebody wrote to this disk must not stop a verifier that the ledger would not.
            link = self._ledger.judge(record.value)
            if not isinstance(link, Applied | Advanced | Rejected):
                logger.warning("kept_state.refused", path=str(kept.path), after_seq=self._ledger.head.seq.number)
                break
            self._ledger.take(link)
            self._position = record.position  # to be read again: the log must still hold the head

    async def run(self, follow: Follow) -> None:
        """Follow until cancelled; while a log is away, or was cut, the last good state is served."""
        try:
            await self._follow_on(follow)
        finally:
            if self._keeping is not None:
                await self._keeping

    async def _follow_on(self, follow: Follow) -> None:
        self._head_seen = self._ledger.head.seq == Seq(0)
        while True:
            try:
                async with aclosing(follow(self._position, self._lost)) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        if self._ledger.stopped_by is not None:
                            break
            except Misconfigured as error:
                # With nothing to serve the operator must act now; else answers matter more than a wrong setting.
                if self._board.view is None:
                    raise
                self._lost(error)
                await asyncio.sleep(BACKOFF_CAP_S)
            except (LogTruncated, _EntriesMissingError) as error:
                logger.error("ledger.entries_missed", after_seq=self._ledger.head.seq.number, reason=str(error))
                self._board.state = VerifierState.RESYNC
                self._board.mark_stale()
                again_s = RESYNC_S if self._resyncing else 0.0
                self._resyncing = True
                self._position, self._head_seen, self._gap = 0, self._ledger.head.seq == Seq(0), None
                await asyncio.sleep(again_s)
            if self._ledger.stopped_by is not None:
                await asyncio.Event().wait()  # nothing more is taken; the last good state is served until a restart

    def _lost(self, error: Unavailable | Misconfigured) -> None:
        self._caught_up = False
        if self._board.state is VerifierState.FRESH:
            self._board.state = VerifierState.STALE
        self._report.warning("ledger.lost", code=error.code, reason=str(error))

    async def _take(self, batch: Batch) -> None:
        with paused_collector(len(batch.records) >= MANY_RECORDS):
            links = await self._receive_all(batch.records)
        missing = self._gap is not None and self._gap.got > self._ledger.head.seq
        reached_end = batch.at_end and not missing and self._head_seen and self._ledger.stopped_by is None
        self._position = batch.next_position
        if reached_end:
            self._reach_end()
        await self._keep(links, reached_end)
        if batch.at_end and self._ledger.stopped_by is None and not reached_end:
            raise _EntriesMissingError(self._what_is_missing())

    def _what_is_missing(self) -> str:
        if self._gap is not None:
            return f"expected seq {self._ledger.head.seq.next()}, got {self._gap.got}"
        return f"expected the log to hold entry {self._ledger.head.seq}, it ends without it"

    async def _receive_all(self, records: Sequence[LogRecord]) -> list[LogRecord]:
        """Verify records in order and return the new links; stops at a fork, or at what it does not understand."""
        links: list[LogRecord] = []
        pause_at_s = time.monotonic() + SLICE_S
        for record in records:
            outcome = self._ledger.receive(record.value)
            self.tally[type(outcome).__name__.lower()] += 1
            # Until the end is reached once, the state from before is served rather than a replay of history. From then
            # on each entry's state, also between others: calls are pinned to all of them.
            if self._caught_up and isinstance(outcome, Applied | Advanced | Rejected):
                self._put()
                await asyncio.sleep(0)  # those who wait for it hear of it before the log and the disk do
            self._tell(record, outcome)
            match outcome:
                case Applied() | Advanced() | Rejected():
                    links.append(record)
                    self._head_seen = True
                case Repeated(seq=seq):
                    self._head_seen = self._head_seen or seq == self._ledger.head.seq
                case Gap():
                    # Read on: what is missing may stand further back in the log.
                    self._gap = outcome
                case Forked() | Held():
                    break
                case Void() | Dropped():
                    pass
            if time.monotonic() >= pause_at_s:
                await asyncio.sleep(0)  # let calls be answered during a long catch-up
                pause_at_s = time.monotonic() + SLICE_S
        return links

    def _reach_end(self) -> None:
        """All that the log holds is verified. This is proof of freshness as far as the log can be believed."""
        now_s = self._clock()
        self._resyncing = False
        if not self._caught_up:
            self._caught_up = True
            if self._ledger.head.seq > Seq(0):
                self._put()
                _settle_memory()
            logger.info("ledger.reached", seq=self._ledger.head.seq.number, tally=dict(self.tally))
        if self._ledger.head.seq > Seq(0):
            self._board.state = VerifierState.FRESH
            self._board.mark_fresh(now_s, until_s=now_s + self._fresh_for_s)

    def _put(self) -> None:
        self._board.put(self._ledger.snapshot.view, min_pin=self._ledger.min_pin)

    def _tell(self, record: LogRecord, outcome: Outcome) -> None:
        match outcome:
            case Applied(entry=entry, authorized=authorized):
                if self._caught_up:
                    proposal = authorized.proposal
                    logger.info(
                        "entry.applied",
                        seq=entry.seq.number,
                        proposal=proposal.proposal_id,
                        requester=proposal.requester,
                        approvers=authorized.approvers,
                        ops=len(proposal.ops),
                    )
            case Rejected(entry=entry, refusal=refusal):
                self._report.warning("entry.rejected", code=refusal.code, seq=entry.seq.number, reason=str(refusal))
            case Dropped(refusal=refusal):
                self._report.warning(
                    "record.dropped", code=refusal.code, position=record.position, reason=str(refusal)[:500]
                )
            case Void(seq=seq, why=why):
                self._report.warning("entry.voided", code="void", seq=seq.number, reason=why)
            case Forked(seq=seq, what=what, ours=ours):
                self._board.state = VerifierState.QUARANTINED
                self._board.mark_stale()
                evidence = self._save_evidence(record)
                logger.error("ledger.forked", what=what, seq=seq.number, ours=ours.hex(), evidence=evidence)
            case Held(refusal=refusal):
                self._board.state = VerifierState.UNSUPPORTED
                self._board.mark_stale()
                logger.error("record.not_understood", position=record.position, reason=str(refusal), hint=refusal.hint)
            case Repeated() | Advanced() | Gap():
                pass

    async def _keep(self, links: Sequence[LogRecord], reached_end: bool) -> None:
        """Have entries kept, without waiting for the disk: the next entry must not be later for it."""
        if self._kept is None:
            return
        self._unkept += links
        self._unkept_fresh = self._unkept_fresh or reached_end
        if self._keeping is None or self._keeping.done():
            if self._keeping is not None:
                self._keeping.result()  # a bug there ends the process, as any other
            self._keeping = asyncio.create_task(self._keep_all(self._kept), name="keep")
        if len(self._unkept) > UNKEPT_MAX:
            await self._keeping

    async def _keep_all(self, kept: Kept) -> None:
        while self._kept is not None and (self._unkept or self._unkept_fresh):
            links, self._unkept = self._unkept, []
            reached_end, self._unkept_fresh = self._unkept_fresh, False
            try:
                await asyncio.to_thread(_write, kept, links, self._clock() if reached_end else None)
            except OSError as error:
                self._kept = None  # keep answering; the next start needs the ledger, or what was kept until now
                logger.error("kept_state.lost", path=str(kept.path), reason=error.strerror)

    def _save_evidence(self, record: LogRecord) -> str | None:
        """Write the other history's record beside the kept state; one file, since the first proof is enough."""
        if self._kept is None:
            return None
        path = self._kept.path.with_suffix(".fork-evidence")
        try:
            path.write_bytes(record.value)
        except OSError:
            return None
        return str(path)


def _write(kept: Kept, links: Sequence[LogRecord], fresh_at_s: float | None) -> None:
    if links:
        kept.append(links)
    if fresh_at_s is not None:
        kept.note_fresh(fresh_at_s)


def _settle_memory() -> None:
    """Take what lives until the end out of the garbage collector's sight: collections then cost the calls nothing."""
    gc.collect()
    gc.freeze()
