"""Record in, verified, folded, on the board: the one writer of what the sidecar serves."""

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import structlog

from flaghoist.authorization import Authorized
from flaghoist.barrier import InForce
from flaghoist.errors import LogTruncated, Misconfigured, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, LogRecord
from flaghoist.log.reconnect import BACKOFF_CAP_S
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
    Void,
)
from flaghoist.snapshot import paused_collector
from flaghoist.values import ProposalKind, Seq
from sidecar.board import Board
from sidecar.floors import FLOOR, Floors
from sidecar.freshness_watch import FreshnessWatch
from sidecar.keep import BEAT, EVIDENCE, Kept
from sidecar.report import BoundedReport
from sidecar.restarting import Restarting
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock

# How long to wait before the whole ledger is read again when entries stay missing.
RESYNC_S: Final = 30.0
# A batch of a catch-up: what it makes lives on, so the collector would only look at it again and again.
MANY_RECORDS: Final = 32
# Verifying a record takes about 0.3 ms; a call should not wait for more than a few of them.
SLICE_S: Final = 0.003
# Entries that may wait for the disk; at 1 KiB each, little memory, and more than a catch-up verifies in one second.
UNKEPT_MAX: Final = 5000
# The newest heartbeat is kept for the clock's sake, which a start compares with it: seconds do not matter there.
BEAT_KEPT_S: Final = 30.0
# asyncio runs a timer that is due within its clock's resolution; a moment must not be served before it has come.
TIMER_TICK_S: Final = 0.001

Follow = Callable[[int, Callable[[Unavailable], None]], AsyncGenerator[Batch, None]]

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _EntriesMissingError(Exception):
    """The log went on after a gap: it must be read again from its start."""


@dataclass(frozen=True, slots=True)
class _State:
    """What could be served: a state and those to come, and what counted when it was the newest."""

    in_force: InForce
    min_pin: Seq
    root_version: int
    at_pinned_root: bool


class Follower:
    """Follows one ledger and keeps the board, and the disk, at its newest verified state.

    While the ledger is in quarantine, or holds what only a newer release understands, nothing new is served or kept.
    Entries are verified on, without being held in memory: after a cure they are read again, for the disk.

    Args:
        ledger: the verifier, before its first record.
        kept: where verified entries are kept; None when there is no writable place.
        watch: told of what bears on freshness; it keeps the board's state.
        clock: the watch's clock.
        floors: below them nothing is served.
        require_fresh: without a kept state, nothing is served until it is known to be the newest.

    Attributes:
        on_change: told what may be served, after the board shows it, when that or what is in force may have changed.
    """

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        kept: Kept | None,
        *,
        watch: FreshnessWatch,
        status: Status,
        report: BoundedReport,
        clock: SteadyClock,
        floors: Floors = Floors(),  # noqa: B008  (frozen)
        require_fresh: bool = False,
    ) -> None:
        self.on_change: Callable[[InForce], None] = lambda _: None
        self._ledger = ledger
        self._in_force = InForce(ledger.snapshot)
        self._moment: asyncio.TimerHandle | None = None
        self._board = board
        self._kept = kept
        self._watch = watch
        self._status = status
        self._report = report
        self._clock = clock
        self._floors = floors
        self._require_fresh = require_fresh
        self._reading = Restarting()
        self._position = 0
        # Of the newest link: a log that is opened anew must still hold it.
        self._head_position = 0
        self._caught_up = False
        # The log was seen to hold the head, since reading began; without that its silence proves nothing.
        self._head_seen = False
        self._gap: Gap | None = None
        # The last state before a proof of another history; None while there is no such proof.
        self._good: _State | None = None
        self._floor_said = False
        # Where to read again for the disk, once a quarantine is over.
        self._aside_from: int | None = None
        self._read_aside = False
        # Verified, and not on the disk yet: one task writes them, in order.
        self._unkept: list[LogRecord] = []
        self._kept_seq = Seq(0)
        self._unkept_fresh = False
        self._unkept_beat: bytes | None = None
        self._beat_kept_s = -BEAT_KEPT_S
        self._keeping: asyncio.Task[None] | None = None
        status.ledger = ledger
        watch.keep_beat = self.keep_beat
        watch.on_fork = self._quarantine_by_heartbeat
        watch.on_look = self._serve_what_was_withheld

    @property
    def kept_seq(self) -> Seq:
        """Up to which entry all is on the disk, or on its way there."""
        return self._kept_seq

    # --- the disk, at the start ---

    def load_kept(self) -> None:
        """Serve what this pod kept, verified anew; called once, before `run`."""
        if self._kept is None:
            return
        known_fresh_at_s = self._kept.known_fresh_at_s  # before anything is cut off the file
        with paused_collector():
            self._take_kept(self._kept)
        self._kept.forget_from_here()
        self._kept_seq = self._ledger.head.seq
        self._position = self._head_position  # to be read again: the log must still hold the head
        self._load_evidence(self._kept)
        if beat := self._kept.read_beside(BEAT):
            self._watch.load(beat)
        if self._ledger.head.seq > Seq(0):
            self._require_fresh = False  # no cold start
            self._watch.note_known_fresh(known_fresh_at_s)
            self._put()
            _settle_memory()
            logger.info("snapshot.loaded", origin="disk", seq=self._ledger.head.seq.number)
        self._watch.look()

    def _take_kept(self, kept: Kept) -> None:
        for record in kept.entries():
            # Judged first: what somebody wrote to this disk must not stop a verifier that the ledger would not.
            link = self._ledger.judge(record.value)
            if not isinstance(link, Link) or self._floors.contradicted_by(link):
                logger.warning("kept_state.refused", path=str(kept.path), after_seq=self._ledger.head.seq.number)
                break
            self._ledger.take(link)
            self._take_in_force(link)
            self._head_position = record.position

    def _load_evidence(self, kept: Kept) -> None:
        """Be quarantined again by the proof of another history, if it still is one: a restart is no cure."""
        record = kept.read_beside(EVIDENCE)
        if record is None:
            return
        outcome = self._ledger.judge(record)
        proof = outcome if isinstance(outcome, Forked) else self._watch.load_evidence(record)
        if proof is not None:
            self._ledger.quarantine(proof)
            self._quarantine(proof, self._state(), evidence=str(kept.path.with_suffix(EVIDENCE)))

    # --- the log ---

    async def run(self, follow: Follow) -> None:
        """Follow until cancelled; while a log is away, or was cut, the last good state is served.

        Raises:
            Misconfigured: the log cannot be followed and nothing is served; or what the options ask for cannot be.
        """
        try:
            await self._reading.run(lambda: self._follow_on(follow))
        finally:
            self._await_moment(None)
            if self._keeping is not None:
                await self._keeping
            self._keep_last_beat()

    def renew_client(self) -> None:
        """Have the log opened anew; it must still hold what was verified."""
        self._position = self._head_position
        self._reading.restart()

    @property
    def _stopped(self) -> bool:
        """Whether no entry can be taken any more: one of the chain itself was not understood."""
        return self._ledger.stopped_by is not None and not self._ledger.stopped_by.signers

    async def _follow_on(self, follow: Follow) -> None:
        self._head_seen = self._ledger.head.seq == Seq(0)
        again_s = 0.0
        while True:
            if self._stopped:
                await asyncio.Event().wait()  # nothing more is taken; the last good state is served until a restart
            try:
                async with aclosing(follow(self._position, self._lost)) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        if self._watch.resyncing is False:
                            again_s = 0.0
                        if self._stopped or self._read_aside:
                            break
                if self._read_aside:
                    self._begin_aside()
            except Misconfigured as error:
                # With nothing to serve the operator must act now; else answers matter more than a wrong setting.
                if self._board.view is None:
                    raise
                self._lost(error)
                await asyncio.sleep(BACKOFF_CAP_S)
            except (LogTruncated, _EntriesMissingError) as error:
                logger.error("ledger.entries_missed", after_seq=self._ledger.head.seq.number, reason=str(error))
                self._watch.resyncing = True
                self._watch.log_lost()
                self._position, self._head_seen, self._gap = 0, self._ledger.head.seq == Seq(0), None
                await asyncio.sleep(again_s)
                again_s = RESYNC_S

    def _lost(self, error: Unavailable | Misconfigured) -> None:
        self._caught_up = False
        self._watch.log_lost()
        self._report.warning("ledger.lost", code=error.code, reason=str(error))

    async def _take(self, batch: Batch) -> None:
        with paused_collector(len(batch.records) >= MANY_RECORDS):
            await self._receive_all(batch.records)
        missing = self._gap is not None and self._gap.got > self._ledger.head.seq
        reached_end = batch.at_end and not missing and self._head_seen and not self._stopped
        self._position = batch.next_position
        if reached_end:
            self._reach_end()
        else:
            self._watch.look()
        await self._keep(reached_end=reached_end)
        if batch.at_end and not self._stopped and not reached_end:
            raise _EntriesMissingError(self._what_is_missing())

    def _what_is_missing(self) -> str:
        if self._gap is not None:
            return f"expected seq {self._ledger.head.seq.next()}, got {self._gap.got}"
        return f"expected the log to hold entry {self._ledger.head.seq}, it ends without it"

    async def _receive_all(self, records: Sequence[LogRecord]) -> None:
        """Verify records in order, and serve what follows; stops at what it does not understand."""
        pause_at_s = time.monotonic() + SLICE_S
        for record in records:
            before = self._state()
            outcome = self._receive(record.value)
            self._status.tally[type(outcome).__name__.lower()] += 1
            match outcome:
                case Applied() | Advanced() | RootChanged() | Ratified() | Prepared() | Stepped() | Rejected():
                    await self._take_link(record, outcome, before)
                case Repeated(seq=seq):
                    self._take_copy(record, seq)
                case Gap():
                    # Read on: what is missing may stand further back in the log.
                    self._gap = outcome
                case Forked():
                    self._quarantine(outcome, before)
                case Held():
                    self._hold(record, outcome, before)
                    if self._stopped:
                        return
                case Void() | Dropped():
                    pass
            self._tell(record, outcome)
            if time.monotonic() >= pause_at_s:
                await asyncio.sleep(0)  # let calls be answered during a long catch-up
                pause_at_s = time.monotonic() + SLICE_S

    def _receive(self, data: bytes) -> Outcome:
        """Have the ledger verify a record, unless it is another entry than the floor names."""
        floor = self._floors.entry
        if floor.entry_hash is not None and self._ledger.head.seq.next() == floor.seq:
            outcome = self._ledger.judge(data)
            if isinstance(outcome, Link):
                contradicted = self._floors.contradicted_by(outcome)
                self._status.refused_by_floor = contradicted
                if contradicted:
                    return Forked(floor.seq, FLOOR, floor.entry_hash, data, frozenset())
        return self._ledger.receive(data)

    async def _take_link(self, record: LogRecord, link: Link, before: _State) -> None:
        self._head_position, self._head_seen = record.position, True
        self._take_in_force(link)
        self._watch.note_entry(link.entry.published_at, live=self._caught_up)
        if proof := self._watch.note_progress():
            self._ledger.quarantine(proof)
            self._quarantine(proof, before)
        in_doubt = self._ledger.quarantined_by is not None or self._ledger.stopped_by is not None
        if self._good is not None and not in_doubt:
            self._end_quarantine(link)
        elif self._good is not None and self._aside_from is None:
            self._aside_from = record.position
        self._keep_next(record, link.entry.seq)
        if isinstance(link, RootChanged):
            self._watch.note_root()
        # Until the end is reached once, the state from before is served rather than a replay of history. From then
        # on each entry's state, also between others: calls are pinned to all of them.
        if self._caught_up:
            self._put()
            await asyncio.sleep(0)  # those who wait for it hear of it before the log and the disk do

    def _take_copy(self, record: LogRecord, seq: Seq) -> None:
        if seq == self._ledger.head.seq:
            self._head_position, self._head_seen = record.position, True
        self._keep_next(record, seq)

    def _reach_end(self) -> None:
        """All that the log holds is verified. This is proof of freshness as far as the log can be believed."""
        begun = self._ledger.head.seq > Seq(0)
        if begun and self._require_fresh and not self._watch.heartbeats.expected:
            raise Misconfigured(
                "require_fresh_on_cold_start: want a root with keys for heartbeats, "
                f"got version {self._ledger.root.version}, which has none: freshness cannot be proved",
                hint="publish a root with such a key and run `flaghoist publisher`, or do without this option",
            )
        if not self._caught_up:
            self._caught_up = True
            if begun:
                self._put()
                _settle_memory()
            logger.info("ledger.reached", seq=self._ledger.head.seq.number, tally=dict(self._status.tally))
        if begun:
            self._watch.log_spoke()

    # --- what is served ---

    def _state(self) -> _State:
        ledger = self._ledger
        return _State(self._in_force, ledger.min_pin, ledger.root.version, ledger.at_pinned_root)

    def _take_in_force(self, link: Link) -> None:
        self._in_force = self._in_force.take(link, self._ledger.snapshot, now_ms=self._clock.now_ms)

    def _put(self) -> None:
        """Serve the newest state that may be served, or say on the board why there is none."""
        state = self._reached()
        in_force, view = state.in_force, state.in_force.snapshot.view
        self._board.withheld = self._why_withheld(state)
        newer = self._board.view is None or self._board.view.seq <= view.seq
        if self._board.withheld:
            self.on_change(in_force)
            return
        if newer and view is not self._board.view:
            # What an entry that still waits forbids is not forbidden yet: the newest can always be pinned to.
            min_pin = min(in_force.pinnable_from(state.min_pin), view.seq)
            self._board.put(view, min_pin=min_pin, moment_ms=in_force.moment_ms)
        coming = (each.snapshot for each in in_force.coming)
        self._board.announce([each.view for each in coming if each.seq >= state.min_pin])
        self._await_moment(in_force.next_at_ms)
        self.on_change(in_force)

    def _reached(self) -> _State:
        """Return what may be served, with what has come into force by now. Noted: it is not worked out anew."""
        if self._good is None:
            self._in_force = self._in_force.at(self._clock.now_ms)
            return self._state()
        self._good = replace(self._good, in_force=self._good.in_force.at(self._clock.now_ms))
        return self._good

    def _await_moment(self, at_ms: int | None) -> None:
        """Look again when the next state takes effect; a clock that is set meanwhile is seen at the next look."""
        if self._moment is not None:
            self._moment.cancel()
            self._moment = None
        if at_ms is not None:
            # A little late rather than early: a timer may fire up to one tick of its clock before its time.
            delay_s = max(0.0, (at_ms - self._clock.now_ms) / 1000 + TIMER_TICK_S)
            self._moment = asyncio.get_running_loop().call_later(delay_s, self._put)

    def _why_withheld(self, state: _State) -> str:
        if self._status.refused_by_floor:
            return f"another ledger than the floor names: it holds another entry at seq {self._floors.entry.seq}"
        if not state.at_pinned_root:
            wanted = max(self._ledger.pinned, default=state.root_version)
            return f"below the pinned root: want version {wanted} at least, it is {state.root_version}"
        now_ms = self._clock.now_ms
        seq = state.in_force.snapshot.seq
        unmet = self._floors.unmet(seq=seq, root_version=state.root_version, now_ms=now_ms)
        if unmet is not None:
            return unmet
        if self._require_fresh and not self._watch.proved_fresh():
            return "cold start: not known to be the newest state yet"
        self._require_fresh = False
        return ""

    def _serve_what_was_withheld(self) -> None:
        withheld = self._caught_up and self._board.view is None and self._ledger.head.seq > Seq(0)
        next_at_ms = (self._good or self._state()).in_force.next_at_ms
        # Of a clock that was set ahead the timer knows nothing.
        due = self._moment is not None and next_at_ms is not None and next_at_ms <= self._clock.now_ms
        if withheld or due:
            self._put()

    # --- quarantine ---

    def _quarantine_by_heartbeat(self, proof: Forked) -> None:
        self._ledger.quarantine(proof)
        self._quarantine(proof, self._state())

    def _quarantine(self, proof: Forked, good: _State, *, evidence: str | None = None) -> None:
        """Take note of another history: the state from before it is the last that is served.

        Args:
            evidence: where the proof is kept already.
        """
        first = self._good is None if proof.what != FLOOR else not self._floor_said
        if proof.what == FLOOR:
            self._floor_said = True
        else:
            self._good = self._good or good
        self._watch.look()
        self.on_change((self._good or good).in_force)
        if not first:
            self._report.warning("ledger.forked_again", code=proof.what, seq=proof.seq.number)
            return
        logger.error(
            "ledger.forked",
            what=proof.what,
            seq=proof.seq.number,
            ours=proof.ours.hex(),
            signers=sorted(proof.signers),
            evidence=evidence or self._save_evidence(proof.theirs),
        )

    def _hold(self, record: LogRecord, held: Held, good: _State) -> None:
        """Take note of what only a newer release understands: the state from before it is the last that is served."""
        first = self._good is None
        self._good = self._good or good
        self._watch.look()
        self.on_change(self._good.in_force)
        reason, hint = str(held.refusal), held.refusal.hint
        if first:
            logger.error("record.not_understood", position=record.position, reason=reason, hint=hint)
        else:
            self._report.warning("record.not_understood_again", code=held.refusal.code, reason=reason)

    def _end_quarantine(self, cure: Link) -> None:
        self._good = None
        self._read_aside = self._aside_from is not None
        logger.warning("quarantine.ended", seq=cure.entry.seq.number, root_version=self._ledger.root.version)

    def _begin_aside(self) -> None:
        """Read again what was verified in quarantine, for the disk; what is served is beyond it already."""
        if self._aside_from is not None:
            self._position, self._head_seen = self._aside_from, False
        self._aside_from, self._read_aside = None, False

    # --- what is said ---

    def _tell(self, record: LogRecord, outcome: Outcome) -> None:
        match outcome:
            case Rejected(entry=entry, refusal=refusal):
                self._report.warning("entry.rejected", code=refusal.code, seq=entry.seq.number, reason=str(refusal))
            case Dropped(refusal=refusal):
                self._report.warning(
                    "record.dropped", code=refusal.code, position=record.position, reason=str(refusal)[:500]
                )
            case Void(seq=seq, why=why):
                self._report.warning("entry.voided", code="void", seq=seq.number, reason=why)
            case Repeated() | Advanced() | Gap() | Forked() | Held():
                pass
            case _:
                if self._caught_up:
                    self._tell_link(outcome)

    def _tell_link(self, link: Applied | RootChanged | Ratified | Prepared | Stepped) -> None:
        seq = link.entry.seq.number
        match link:
            case Applied(authorized=authorized, in_force_at_ms=moment_ms):
                self._tell_applied(seq, authorized, moment_ms)
            case Stepped(op=op, in_force_at_ms=moment_ms):
                logger.info("release.stepped", seq=seq, release=op.key, in_force_at_ms=moment_ms or None)
            case Prepared(authorized=authorized):
                logger.info("proposal.prepared", seq=seq, proposal=authorized.proposal.proposal_id)
            case Ratified(authorized=authorized):
                proposal = authorized.proposal.proposal_id
                logger.info("emergency.ratified", seq=seq, proposal=proposal, approvers=authorized.approvers)
            case RootChanged(root=root):
                logger.warning("root.changed", seq=seq, version=root.version, sha256=root.sha256.hex())

    def _tell_applied(self, seq: int, authorized: Authorized, moment_ms: int) -> None:
        proposal = authorized.proposal
        logger.info(
            "entry.applied",
            seq=seq,
            proposal=proposal.proposal_id,
            requester=proposal.requester,
            approvers=authorized.approvers,
            ops=len(proposal.ops),
            in_force_at_ms=moment_ms or None,
        )
        if proposal.kind is ProposalKind.EMERGENCY:
            waits = self._ledger.unratified.get(authorized.sha256)
            logger.warning(
                "emergency.applied",
                seq=seq,
                requester=proposal.requester,
                flags=[op.key for op in proposal.ops],
                ratify_by_ms=None if waits is None else waits.ratify_by_ms,
            )

    # --- the disk ---

    def keep_beat(self, data: bytes) -> None:
        """Keep the newest heartbeat for the next start, with the next write."""
        self._unkept_beat = data

    def _keep_next(self, record: LogRecord, seq: Seq) -> None:
        """Have a verified entry kept, if it is the next one there; nothing is while the ledger is in quarantine."""
        if self._kept is not None and seq == self._kept_seq.next() and self._good is None:
            self._unkept.append(record)
            self._kept_seq = seq

    async def _keep(self, *, reached_end: bool) -> None:
        """Have entries written, without waiting for the disk: the next entry must not be later for it."""
        if self._kept is None:
            return
        self._unkept_fresh = self._unkept_fresh or (reached_end and self._watch.proved_fresh())
        if self._keeping is None or self._keeping.done():
            if self._keeping is not None:
                self._keeping.result()  # a bug there ends the process, as any other
            self._keeping = asyncio.create_task(self._keep_all(self._kept), name="keep")
        if len(self._unkept) > UNKEPT_MAX:
            await asyncio.wait((self._keeping,))

    async def _keep_all(self, kept: Kept) -> None:
        while self._kept is not None and (self._unkept or self._unkept_fresh):
            links, self._unkept = self._unkept, []
            fresh_at_s = self._watch.proved_s if self._unkept_fresh else None
            self._unkept_fresh = False
            beat = None
            if time.monotonic() - self._beat_kept_s >= BEAT_KEPT_S and self._unkept_beat is not None:
                beat, self._unkept_beat, self._beat_kept_s = self._unkept_beat, None, time.monotonic()
            try:
                await asyncio.to_thread(_write, kept, links, fresh_at_s, beat)
            except OSError as error:
                self._kept = None  # keep answering; the next start needs the ledger, or what was kept until now
                logger.error("kept_state.lost", path=str(kept.path), reason=error.strerror)

    def _keep_last_beat(self) -> None:
        if self._kept is not None and self._unkept_beat is not None:
            try:
                self._kept.write_beside(BEAT, self._unkept_beat)
            except OSError as error:
                logger.error("kept_state.lost", path=str(self._kept.path), reason=error.strerror)

    def _save_evidence(self, record: bytes) -> str | None:
        """Write the other history's record beside the kept state; one file, since the first proof is enough."""
        if self._kept is None:
            return None
        try:
            return str(self._kept.write_beside(EVIDENCE, record))
        except OSError:
            return None


def _write(kept: Kept, links: Sequence[LogRecord], fresh_at_s: float | None, beat: bytes | None) -> None:
    if links:
        kept.append(links)
    if fresh_at_s is not None:
        kept.note_fresh(fresh_at_s)
    if beat is not None:
        kept.write_beside(BEAT, beat)


def _settle_memory() -> None:
    """Take what lives until the end out of the garbage collector's sight: collections then cost the calls nothing."""
    gc.collect()
    gc.freeze()
