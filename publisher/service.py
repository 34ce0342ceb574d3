"""The publisher's service: takes what people sign, appends what the policy allows, and says that it lives.

One task reads and writes the ledger, in rounds; others follow the inbox, the heartbeats of others and, while a proposal
waits for them, the acknowledgements of sidecars, and wake it. What it decides is decided in docket.py, standing.py,
walk.py and duty.py; how it appends, in sequencer.py.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Final

import structlog

from flaghoist.errors import LogMissing, LogTruncated, Misconfigured, Refused, StaleBase, Unavailable, WrongRole
from flaghoist.freshness import BEAT_INTERVAL_MS, CLOCK_TOLERANCE_MS, Heartbeats
from flaghoist.log.base import Batch, Log, OpenLog, Stream
from flaghoist.log.reconnect import BACKOFF_BASE_S, BACKOFF_CAP_S, follow_reliably, full_jitter
from flaghoist.outcomes import Forked, Link, RootChanged
from flaghoist.records import EpochClaim
from flaghoist.root import Root
from flaghoist.values import FIRST_EPOCH, KeyId, Role, Seq
from publisher.bulletin import Bulletin
from publisher.docket import Docket, Motion, MotionKind
from publisher.duty import TAKE_OVER_S, Duty, Turn
from publisher.fleet import Fleet
from publisher.heart import BEAT_KEY, Heart, heard, is_farewell, is_of_a_service
from publisher.inbox import Case, Inbox, RootCase
from publisher.journal import Journal
from publisher.reader import BrokenChain, LedgerReader
from publisher.sequencer import Fenced, LostRace, Sequencer
from publisher.standing import approvals_lack

# How often a standby looks at the ledger, and how exact its take-over is.
STANDBY_ROUND_S: Final = 1.0
# Verifying a record takes a third of a millisecond; a heartbeat must not wait for a flood of them.
SLICE_S: Final = 0.01
# How often the inbox forgets what has expired.
PRUNE_EVERY_S: Final = 60.0

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks that a publisher reads."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    steady_s: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen, in seconds; tests hurry."""

    beat_s: float = BEAT_INTERVAL_MS / 1000
    standby_s: float = STANDBY_ROUND_S
    take_over_s: float = TAKE_OVER_S
    # Well below what a silence takes: after an outage whoever is at work must be back before others take its place.
    retry_max_s: float = BACKOFF_CAP_S


class LedgerCut(Misconfigured):
    """The ledger ends before what this machine has published, or is another one."""

    code = "ledger_cut"
    hint = (
        "compare the ledger with a sidecar's head before anything is published: every reader that saw more would take "
        "what comes now for a second history; `flaghoist restore` puts back what sidecars have kept"
    )


def check_journal(journal: Journal, reader: LedgerReader) -> None:
    """Refuse a ledger that lacks what this machine's journal knows to be in it.

    Raises:
        LedgerCut: so it is.
    """
    claim, head = journal.claim, reader.ledger.head
    if claim is None:
        return
    if claim.seq > head.seq.number:
        raise LedgerCut(f"this machine published seq {claim.seq}, and the ledger ends at {head.seq}")
    found = reader.ledger.hash_at(Seq(claim.seq))
    if found != claim.entry_hash:
        raise LedgerCut(
            f"seq {claim.seq}: this machine published {claim.entry_hash.hex()}, the ledger has {found.hex()}",
            hint=f"{LedgerCut.hint}; if this ledger was made anew on purpose, move its journal away",
        )


@dataclass
class Service:
    """One publisher at work, or standing by.

    Args:
        reader: the ledger, begun; it must read through a quarantine, which only a root can end.
        publisher_key: the key that its sequencer signs with.
        heart: None where there are no heartbeats.
        take_over: at once, whoever is at work.
        exit_when_fenced: end instead of standing by, when another publisher takes the epoch.
    """

    open_log: OpenLog
    reader: LedgerReader
    sequencer: Sequencer
    publisher_key: KeyId
    heart: Heart | None
    holder: str
    take_over: bool = False
    exit_when_fenced: bool = False
    clock: Clock = field(default_factory=Clock)
    pace: Pace = field(default_factory=Pace)
    inbox: Inbox = field(init=False)
    docket: Docket = field(init=False)
    duty: Duty = field(init=False)
    _beats: Heartbeats = field(init=False)

    def __post_init__(self) -> None:
        self._beats = Heartbeats(self.reader.ledger)
        sees_life = self._beats.expected
        self.duty = Duty(sees_life=sees_life, told=self.take_over, take_over_s=self.pace.take_over_s)
        self.docket = Docket(self.reader)
        self.inbox = self._empty_inbox()
        self._bulletin = Bulletin(logger, self.clock.steady_s, links_told=len(self.reader.links))
        self._report = self._bulletin.report
        self._rng = random.Random()  # noqa: S311 — spreads load; no secret
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._root: Root = self.reader.ledger.root
        self._inbox_complete = False
        self._refold = asyncio.Event()
        self._awaits_fleet = asyncio.Event()
        self._meta: Log | None = None
        self._meta_position = 0
        self._newest_of_others: tuple[int, int, int] | None = None
        self._beat_at_s: float | None = None
        self._standing_by_told = False
        self._epoch_seen: int | None = None

    def stop(self) -> None:
        """Finish what is being appended, and end. May be called from a signal handler of the event loop."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            Fenced: another publisher took over, and this one was told to end then.
            WrongRole: the root in force does not list its key as a publisher's any more.
            BrokenChain, NotUnderstood, LogTruncated: the ledger cannot be followed; a person must look.
            Misconfigured: the log, or the policy's time zones.
        """
        head = self.reader.ledger.head
        logger.info(
            "publisher.started",
            log_id=self._root.log_id,
            holder=self.holder,
            key=self.publisher_key,
            heartbeats=self.heart is not None,
            seq=head.seq.number,
            epoch=head.epoch,
            root_version=self._root.version,
        )
        if self.heart is None:
            logger.warning(
                "heartbeats.none",
                reason="the root lists no heartbeat key: sidecars take the log's word for what is newest, "
                "and a standby cannot see whether this publisher lives",
            )
        async with asyncio.TaskGroup() as tasks:
            followers = [tasks.create_task(self._follow_inbox(), name="inbox")]
            followers.append(tasks.create_task(self._follow_meta(), name="meta"))
            followers.append(tasks.create_task(self._follow_acks(), name="acks"))
            await self._work()
            for task in followers:
                task.cancel()
        logger.info("publisher.stopped", seq=self.reader.ledger.head.seq.number)

    # --- the ledger: one task, in rounds ---

    async def _work(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                async with AsyncExitStack() as stack:
                    self.reader.log = await stack.enter_async_context(self.open_log(Stream.LEDGER))
                    self._meta = await self._open_meta(stack)
                    while not self._stopping.is_set():
                        await self._round()
                        attempt = 0
                        await self._pause()
                    await self._leave()
                return
            except LogTruncated:
                raise
            except Unavailable as lost:
                self._report.warning("ledger.lost", code=lost.code, reason=str(lost))
            finally:
                self._meta = None
            await self._sleep(full_jitter(attempt, BACKOFF_BASE_S, self.pace.retry_max_s, self._rng))
            attempt += 1

    async def _open_meta(self, stack: AsyncExitStack) -> Log | None:
        """Open the stream of heartbeats, where there are any."""
        if self.heart is None and not self.duty.sees_life:
            return None
        return await stack.enter_async_context(self.open_log(Stream.META))

    async def _round(self) -> None:
        """Read the ledger to its end, and do what it is the turn for."""
        read_from_ms = self.clock.now_ms()
        await self._catch_up()
        match self.duty.look(holds_epoch=self.sequencer.holds_epoch, now_s=self.clock.steady_s()):
            case Turn.STAND_BY:
                self._awaits_fleet.clear()
                self._tell_standing_by()
                return
            case Turn.FENCED:
                self._tell_fenced()
                return
            case Turn.TAKE_OVER:
                if not await self._claim():
                    return
                read_from_ms = self.clock.now_ms()
                await self._catch_up()
                if self.duty.look(holds_epoch=self.sequencer.holds_epoch, now_s=self.clock.steady_s()) is not Turn.WORK:
                    return
            case Turn.WORK:
                pass
        self._standing_by_told = False
        # Late or not yet once: readers wait for it, and an append may take its time.
        await self._beat(read_from_ms, only_if_due=True)
        await self._publish()
        if self.docket.awaits_fleet(self.inbox, now_ms=self.clock.now_ms()):
            self._awaits_fleet.set()
        else:
            self._awaits_fleet.clear()
        await self._beat(read_from_ms, only_if_due=True)
        self._bulletin.alarms(self.reader.ledger, now_ms=self.clock.now_ms())
        self._bulletin.counts(self.inbox, self.reader.tally)

    async def _catch_up(self) -> None:
        await self.sequencer.catch_up()
        root = self.reader.ledger.root
        if root is not self._root:
            self._take_root(root)
        if proof := self._beats.note_progress(now_ms=self.clock.now_ms()):
            self._quarantine(proof)
        self._note_epoch()
        self._bulletin.links(self.reader.links)

    def _note_epoch(self) -> None:
        """Take another's claim for a sign of life: its first heartbeat may be a moment behind it."""
        head, seen = self.reader.ledger.head, self._epoch_seen
        if head.epoch == seen:
            return
        self._epoch_seen = head.epoch
        if self.duty.working or not self.duty.sees_life or self.sequencer.holds_epoch:
            return
        opened_ms = 0
        for link in reversed(self.reader.links):
            if link.entry.epoch != head.epoch:
                break
            opened_ms = link.entry.published_at
        age_ms = self.clock.now_ms() - opened_ms
        # At its start it finds claims of long ago; later ones are new to it, whatever the clocks say.
        if seen is not None or (head.epoch > FIRST_EPOCH and age_ms < self.pace.take_over_s * 1000):
            self.duty.hear(self.clock.steady_s())

    async def _claim(self) -> bool:
        """Take the epoch; False when somebody is at work after all."""
        if self._meta is not None and self.duty.sees_life and await self._end_of_meta() != self._meta_position:
            return False  # heartbeats that this process has not heard yet, after it was stopped or slow, say
        before = self.reader.ledger.head.epoch
        if not await self.sequencer.claim(over_epoch=before):
            self.duty.lose_race(self.clock.steady_s())
            return False
        logger.warning(
            "epoch.claimed",
            holder=self.holder,
            epoch=self.reader.ledger.head.epoch,
            before=before,
            reason="nobody at work was heard" if self.duty.sees_life else "started, where nobody can be heard",
        )
        return True

    async def _end_of_meta(self) -> int:
        assert self._meta is not None  # noqa: S101 — the caller looked
        try:
            return await self._meta.end()
        except LogTruncated as gone:
            raise Unavailable(str(gone)) from gone  # the stream of heartbeats was made anew: no loss

    async def _publish(self) -> None:
        """Append whatever is allowed now, one after another."""
        while not self._stopping.is_set():
            now_ms = self.clock.now_ms()
            motion = self.docket.next(self.inbox, now_ms=now_ms, complete=self._inbox_complete)
            self._bulletin.refusals(self.docket.take_news())
            if motion is None:
                return
            if not await self._append(motion, now_ms):
                return
            # After the append, so that the head which it states was read after this moment.
            read_from_ms = self.clock.now_ms()
            await self._catch_up()
            await self._beat(read_from_ms)

    async def _append(self, motion: Motion, now_ms: int) -> bool:
        """Append one motion; False when the round must begin anew."""
        try:
            link = await self.sequencer.append(motion.body, may_claim=False)
        except (Fenced, LostRace) as refusal:
            logger.info("append.yielded", kind=motion.kind, name=motion.name, reason=str(refusal))
            return False
        except WrongRole:
            raise  # the key: a person must act
        except BrokenChain as refusal:
            logger.error("append.refused", kind=motion.kind, name=motion.name, reason=str(refusal), hint=refusal.hint)
            return False
        except Refused as refusal:
            if motion.kind is MotionKind.STEP and isinstance(refusal, StaleBase):
                # Somebody has paused, reverted or moved the release meanwhile, which is nothing to warn of.
                logger.info("append.yielded", kind=motion.kind, name=motion.name, reason=str(refusal))
                return True
            self.docket.refuse(motion, refusal, now_ms=now_ms)
            self._bulletin.refusals(self.docket.take_news())
            return True
        self._bulletin.appended(motion, link)
        return True

    async def _beat(self, read_from_ms: int, *, only_if_due: bool = False) -> None:
        """Say what the head was at `read_from_ms`, after which the ledger was read to its end."""
        if self.heart is None or self._meta is None:
            return
        now_s = self.clock.steady_s()
        if only_if_due and self._beat_at_s is not None and now_s - self._beat_at_s < self.pace.beat_s:
            return
        if not self.sequencer.holds_epoch or not self.heart.may_beat(self.reader.ledger, now_ms=self.clock.now_ms()):
            return
        record = self.heart.beat(self.reader.ledger, issued_at=read_from_ms)
        await self._meta.append(record, key=BEAT_KEY)
        self._beat_at_s = now_s

    async def _leave(self) -> None:
        """Say that no more heartbeats will come, so that another publisher need not wait for a silence."""
        read_from_ms = self.clock.now_ms()
        if self.heart is None or self._meta is None or not self.duty.working:
            return
        await self._catch_up()
        if self.sequencer.holds_epoch and self.heart.may_beat(self.reader.ledger, now_ms=self.clock.now_ms()):
            record = self.heart.beat(self.reader.ledger, issued_at=read_from_ms, last=True)
            await self._meta.append(record, key=BEAT_KEY)

    async def _pause(self) -> None:
        """Wait for the next round: until something is to be appended or due, or a silence has lasted."""
        now_s = self.clock.steady_s()
        if not self.duty.working:
            left_s = self.duty.takes_over_in_s(now_s)
            # What comes meanwhile is for whoever is at work.
            await self._sleep(self.pace.standby_s if not left_s else min(self.pace.standby_s, left_s))
            return
        due_s = self.pace.beat_s if self._beat_at_s is None else self._beat_at_s + self.pace.beat_s - now_s
        now_ms = self.clock.now_ms()
        if (wakes_at_ms := self.docket.wakes_at_ms(now_ms=now_ms)) is not None:
            due_s = min(due_s, (wakes_at_ms - now_ms) / 1000)
        try:
            async with asyncio.timeout(max(0.0, min(due_s, self.pace.beat_s))):
                await self._wake.wait()
        except TimeoutError:
            pass
        if not self._stopping.is_set():
            self._wake.clear()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    # --- the inbox ---

    def _empty_inbox(self) -> Inbox:
        ledger = self.reader.ledger
        return Inbox(ledger.root, self._is_settled, lambda sha256: sha256 in ledger.unratified)

    def _is_settled(self, sha256: bytes) -> bool:
        return sha256 in self.reader.published and sha256 not in self.reader.ledger.unratified

    async def _follow_inbox(self) -> None:
        while True:
            self._refold.clear()
            self.inbox, self._inbox_complete = self._empty_inbox(), False
            folding = asyncio.create_task(self._fold_inbox(), name="fold")
            anew = asyncio.create_task(self._refold.wait(), name="refold")
            try:
                await asyncio.wait({folding, anew}, return_when=asyncio.FIRST_COMPLETED)
                if folding.done():
                    folding.result()
            except LogTruncated as cut:
                # Proposals may be lost; what is in the ledger is not. Whoever misses one proposes it again.
                self._report.warning("inbox.cut", code=cut.code, reason=str(cut))
                await asyncio.sleep(self.pace.retry_max_s)
            finally:
                for task in (folding, anew):
                    task.cancel()
                await asyncio.gather(folding, anew, return_exceptions=True)

    async def _fold_inbox(self) -> None:
        """Follow the inbox from its start under the root that is in force now."""
        pruned_at_s = self.clock.steady_s()
        async with aclosing(self._followed(Stream.INBOX, lambda: None)) as batches:
            async for batch in batches:
                slice_ends_s = time.monotonic() + SLICE_S
                for record in batch.records:
                    changed = self.inbox.receive(record.value, now_ms=self.clock.now_ms())
                    if changed is not None and self._may_be_ready(changed):
                        self._wake.set()
                    if time.monotonic() >= slice_ends_s:
                        await asyncio.sleep(0)
                        slice_ends_s = time.monotonic() + SLICE_S
                if batch.at_end and not self._inbox_complete:
                    self._inbox_complete = True
                    logger.info("inbox.reached", waiting=len(self.inbox), dropped=self.inbox.dropped)
                    self._wake.set()
                if self.clock.steady_s() - pruned_at_s >= PRUNE_EVERY_S:
                    pruned_at_s = self.clock.steady_s()
                    self.inbox.prune(now_ms=self.clock.now_ms())
                    self.docket.prune(self.inbox)

    def _may_be_ready(self, changed: Case | RootCase | bytes) -> bool:
        """Whether it is worth a look; a proposal that nobody has approved is not, however many of them come."""
        if isinstance(changed, bytes):
            return changed in self.reader.ledger.unratified
        if isinstance(changed, RootCase) or changed.sha256 in self.reader.ledger.unratified:
            return True
        return not approvals_lack(changed, self.reader.ledger.root, self.clock.now_ms())

    def _followed(self, stream: Stream, on_lost: Callable[[], None]) -> AsyncGenerator[Batch, None]:
        def lost(error: Unavailable) -> None:
            on_lost()
            self._report.warning(f"{stream.value}.lost", code=error.code, reason=str(error))

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(min(seconds, self.pace.retry_max_s))

        return follow_reliably(self.open_log, stream, 0, on_lost=lost, sleep=sleep, rng=self._rng)

    # --- acknowledgements ---

    async def _follow_acks(self) -> None:
        """Follow what sidecars acknowledge, while a proposal waits for that."""
        while True:
            await self._awaits_fleet.wait()
            try:
                await self._fold_acks(Fleet(self._root.log_id, self.reader.ledger))
            except LogTruncated:
                pass  # made anew: it is read from its start again
            except LogMissing as missing:
                self._report.warning("acks.missing", code=missing.code, reason=str(missing), hint=missing.hint)
                await asyncio.sleep(self.pace.retry_max_s)
            finally:
                self.docket.fleet = None

    async def _fold_acks(self, fleet: Fleet) -> None:
        """Keep what is known of the fleet for the docket, until nothing waits for it any more."""
        enough = frozenset[bytes]()
        async with aclosing(self._followed(Stream.ACKS, lambda: None)) as batches:
            async for batch in batches:
                if not self._awaits_fleet.is_set():
                    return
                slice_ends_s = time.monotonic() + SLICE_S
                for record in batch.records:
                    fleet.take(record.value, now_ms=self.clock.now_ms(), kept=self.docket.fleet is None)
                    if time.monotonic() >= slice_ends_s:
                        await asyncio.sleep(0)
                        slice_ends_s = time.monotonic() + SLICE_S
                if batch.at_end:
                    self.docket.fleet = fleet
                acknowledged = self.docket.acknowledged(self.inbox, now_ms=self.clock.now_ms())
                if acknowledged != enough:
                    enough = acknowledged
                    self._wake.set()

    # --- heartbeats of others ---

    async def _follow_meta(self) -> None:
        while True:
            try:
                async with aclosing(self._followed(Stream.META, self.duty.lose_hearing)) as batches:
                    async for batch in batches:
                        for record in batch.records:
                            self._hear(record.value)
                        self._meta_position = batch.next_position
                        if batch.at_end:
                            self.duty.hear_all(self.clock.steady_s())
            except LogTruncated:
                self.duty.lose_hearing()  # made anew: it is read from its start again
            except LogMissing:
                if self._beats.expected:
                    raise
                return  # a ledger that was made before there were heartbeats, under a root without any

    def _hear(self, data: bytes) -> None:
        outcome = self._beats.receive(data, now_ms=self.clock.now_ms())
        if isinstance(outcome, Forked):
            self._quarantine(outcome)
            return
        beat = heard(outcome, data)
        if beat is None or (self.heart is not None and self.heart.made(beat)):
            return
        if self.heart is not None:
            self.heart.continue_from(beat)
        rank = (beat.epoch, beat.issued_at, beat.beat_no)
        if self._newest_of_others is not None and rank <= self._newest_of_others:
            return  # heard before: an old record proves no life
        self._newest_of_others = rank
        ledger = self.reader.ledger
        if beat.epoch < ledger.head.epoch:
            return  # of a publisher that was replaced
        early_ms = beat.issued_at - self.clock.now_ms()
        if early_ms > CLOCK_TOLERANCE_MS:
            self._report.warning("clock.behind", code="clock", by_ms=early_ms, of=beat.holder)
        if is_farewell(beat) and not self.duty.working:
            self.duty.hear_farewell(self.clock.steady_s())
            return
        if not is_of_a_service(beat):
            return
        if self.duty.working and beat.epoch == ledger.head.epoch:
            self._report.warning(
                "heartbeat.strange",
                code="heartbeat",
                holder=beat.holder,
                reason="somebody else beats in this publisher's epoch: an earlier run of it, or a stolen key",
            )
            return
        self.duty.hear(self.clock.steady_s())

    def _quarantine(self, proof: Forked) -> None:
        first = self.reader.ledger.quarantined_by is None
        self.reader.ledger.quarantine(proof)
        if first:
            self._bulletin.quarantined(proof)

    # --- roots ---

    def _take_root(self, root: Root) -> None:
        """The root in force is another one: who counts may have changed, so the inbox is read anew."""
        self._root = root
        logger.info("root.changed", version=root.version, sha256=root.sha256.hex())
        self._refold.set()
        self.duty.notice_life(self._beats.expected)
        if self.publisher_key not in root.grant(Role.PUBLISHER).key_ids:
            people = ", ".join(sorted(root.people_of(Role.PUBLISHER)))
            raise WrongRole(
                f"key {self.publisher_key} has no role {Role.PUBLISHER} in root version {root.version}; {people} has",
                hint="start the publisher with the new key",
            )
        if self._beats.expected and (self.heart is None or self.heart.key_id not in root.grant(Role.HEARTBEAT).key_ids):
            logger.error(
                "heartbeats.stopped",
                root_version=root.version,
                reason="the root in force lists other heartbeat keys than the one here",
                hint="start the publisher with --heartbeat-key",
            )

    # --- what people are told ---

    def _tell_standing_by(self) -> None:
        if self._standing_by_told:
            return
        self._standing_by_told = True
        beat = self._beats.newest
        logger.info(
            "publisher.standing_by",
            at_work=None if beat is None else beat.holder,
            takes_over_after_s=self.pace.take_over_s if self.duty.sees_life else None,
            reason=None if self.duty.sees_life else "fenced, and without heartbeats nobody's end can be seen",
            hint=None if self.duty.sees_life else "restart it, or run it with --take-over, to take over",
        )

    def _tell_fenced(self) -> None:
        head = self.reader.ledger.head
        by = ""
        for link in reversed(self.reader.links):
            if link.entry.epoch != head.epoch:
                break
            by = _opener(link) or by
        refusal = Fenced(f"epoch {head.epoch} was taken by {by or 'another publisher'}")
        logger.error("publisher.fenced", by=by or None, epoch=head.epoch, seq=head.seq.number, hint=refusal.hint)
        self._standing_by_told = False
        self._beat_at_s = None
        if self.exit_when_fenced:
            raise refusal


def _opener(link: Link) -> str:
    """Return who opened an epoch by this entry, or "" when it opened none."""
    if isinstance(link.entry.body, EpochClaim):
        return link.entry.body.holder
    return "the publisher of another root" if isinstance(link, RootChanged) else ""
