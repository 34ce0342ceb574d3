"""`flaghoist fleet`: how far each sidecar is, which state it has, and who disagrees; once, or as it changes."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import click

from flaghoist.acknowledgement import LEFT
from flaghoist.authorization import NotUnderstood
from flaghoist.errors import FlaghoistError, LogTruncated, Unavailable
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.reconnect import BACKOFF_BASE_S, BACKOFF_CAP_S, follow_reliably, full_jitter
from flaghoist.outcomes import Link
from flaghoist.values import Seq
from publisher.cli.converging import shown_names
from publisher.cli.desk import Exit, exit_of, inline
from publisher.cli.reading import begun_ledger, check_begun, check_reached
from publisher.cli.times import age, moment
from publisher.cli.workspace import Workspace, operation
from publisher.fleet import Diverged, Divergence, Fleet, Member, NotReached, Parting, Trouble
from publisher.reader import BrokenChain, LedgerReader

COLUMNS: Final = ("instance", "service", "seq", "behind", "in force", "state", "state root", "clock", "seen", "note")
# Who was silent for longer is shown by --all: pods come and go.
SILENT_SHOWN_MS: Final = 3_600_000
# What is shown is renewed at most, and at least, so often.
_REDRAW_MIN_S: Final = 0.25
_REDRAW_MAX_S: Final = 1.0
# An acknowledgement may be read before the entry that it is about: two streams. Then it is no sign of anything.
_AHEAD_GRACE_S: Final = 5.0
_HASH_CHARS: Final = 12
# Failing because nobody is there, which is no trouble of an instance.
_NOBODY: Final = "nobody"

_WHAT: Final = {
    Parting.HISTORY: "another entry",
    Parting.STATE: "another state",
    Parting.AHEAD: "entries that this machine's ledger lacks",
}
_TODO: Final = {
    Parting.HISTORY: "they follow another history: see their /readyz and `flaghoist audit verify`; docs/recovery.md",
    Parting.STATE: "the same entries must make the same state: compare their versions (--json), keep their --state-dir "
    "as evidence, restart them with an empty one; docs/fleet.md",
    Parting.AHEAD: "entries are withheld from this machine, or the log was cut, or somebody made this up: "
    "see docs/fleet.md",
}


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Show it as it changes, until Ctrl-C.")
@click.option("--service", "services", multiple=True, metavar="NAME", help="Only instances of this service.")
@click.option("--all", "everything", is_flag=True, help="Also who has left, or was silent for more than an hour.")
@click.option("--fail-on", "fail_on", multiple=True, type=click.Choice([*(t.value for t in Trouble), _NOBODY]),
              help="End with 14 if any instance is so, or nobody is live; once for each.")  # fmt: skip
@operation(ledger=True)
def fleet(work: Workspace, watch: bool, services: tuple[str, ...], everything: bool, fail_on: tuple[str, ...]) -> Exit:
    """Show how far each sidecar is and which state it has, by what they say of themselves; no key is needed.

    Ends with 20 when live instances do not have the same state at the same seq, or not the one that this machine has
    verified. What sidecars say is not signed: it informs, and proves nothing.

    \b
    Examples:
      flaghoist fleet
      flaghoist fleet --watch --service checkout
      flaghoist fleet --fail-on behind --fail-on skewed --json
    """
    glass = _Glass(work, frozenset(services), everything, frozenset(fail_on))
    if watch:
        return _watched(glass)
    asyncio.run(glass.read())
    view = glass.view()
    failure = view.failure
    document = view.document(view.members)
    if failure is None:
        work.desk.result(document)
    elif work.desk.as_json:
        work.desk.result_with(failure, document)
    work.desk.table(COLUMNS, view.rows(view.members))
    if not work.desk.as_json:
        view.tell(work)
    return Exit.OK if failure is None else exit_of(failure)


@dataclass(frozen=True, slots=True)
class View:
    """A fleet as it is at one moment, ready to be shown.

    Attributes:
        members: who is shown.
        live: how many of all that were asked for are live.
        divergence: who disagrees.
        head: the newest entry of this machine's ledger; None when that could not be followed.
        fail_on: what the operator wants to hear of by the exit code.
    """

    log_id: str
    members: tuple[Member, ...]
    live: tuple[Member, ...]
    divergence: tuple[Divergence, ...]
    head: Seq | None
    now_ms: int
    fail_on: frozenset[str]
    dropped: int

    @property
    def differing(self) -> frozenset[str]:
        return frozenset(name for each in self.divergence for name in each.instances)

    @property
    def failure(self) -> FlaghoistError | None:
        """What is wrong enough for an exit code of its own."""
        if self.divergence:
            names = sorted(self.differing)
            return Diverged(f"{len(names)} live instances differ: {shown_names(names)}", hint=_todo(self.divergence))
        for trouble in (t for t in Trouble if t in self.fail_on):
            if names := [m.name for m in self.members if trouble in m.troubles(self.head, self.now_ms)]:
                return NotReached(f"{len(names)} of {len(self.members)} instances are {trouble}: {shown_names(names)}")
        if _NOBODY in self.fail_on and not self.live:
            return NotReached("no sidecar is live", hint="is --acks on, and may sidecars write? See docs/fleet.md")
        return None

    @property
    def summary(self) -> str:
        """One line about all."""
        silent = sum(Trouble.SILENT in m.troubles(self.head, self.now_ms) for m in self.members)
        parts = [f"{self.log_id}: {len(self.live)} live"]
        if self.head is not None:
            verified = sum(m.ack.seq >= self.head for m in self.live)
            serving = sum(m.ack.in_force >= self.head for m in self.live)
            parts = [f"{parts[0]}, {verified} have verified seq {self.head}, {serving} answer from it"]
        parts += [f"{silent} silent"] if silent else []
        parts += [f"{len(self.differing)} differ"] if self.differing else []
        parts += [f"{self.dropped} records are no acknowledgements"] if self.dropped else []
        return "; ".join(parts)

    def tell(self, work: Workspace) -> None:
        """Say what stands below the table."""
        if not self.members:
            work.desk.say("no sidecar has acknowledged anything: is --acks on, and may sidecars write? docs/fleet.md")
        work.desk.say(self.summary)
        for each in self.divergence:
            work.desk.warn(_told(each))
        if (failure := self.failure) is not None:
            work.desk.fail(failure.code, str(failure), failure.hint)

    def rows(self, members: Sequence[Member]) -> list[tuple[str, ...]]:
        return [self._row(member) for member in members]

    def _row(self, member: Member) -> tuple[str, ...]:
        ack = member.ack
        offset = "-" if ack.clock_offset_ms is None else f"{ack.clock_offset_ms:+d} ms"
        behind = "?" if self.head is None else str(member.behind(self.head))
        return (
            inline(ack.instance),
            inline(ack.service) or "-",
            str(ack.seq),
            behind,
            str(ack.in_force),
            inline(ack.state),
            ack.state_root.hex()[:_HASH_CHARS],
            offset,
            f"{age(self.now_ms - member.seen_ms)} ago",
            ", ".join(self.notes(member)),
        )

    def notes(self, member: Member) -> tuple[str, ...]:
        """Return what is worth a look about one instance, in single words."""
        # How far it is behind, and that it stands still, other columns say.
        shown = (t for t in member.troubles(self.head, self.now_ms) if t in (Trouble.SILENT, Trouble.SKEWED))
        late = (f"late {member.ack.late_ms} ms",) if member.late and member.live(self.now_ms) else ()
        return (*(("DIFFERS",) if member.name in self.differing else ()), *shown, *late)

    def document(self, members: Sequence[Member]) -> dict[str, Any]:
        """Return what --json says, with these members."""
        return {
            "log_id": self.log_id,
            "at": self.now_ms,
            "head": None if self.head is None else self.head.number,
            "live": len(self.live),
            "verified": None if self.head is None else sum(m.ack.seq >= self.head for m in self.live),
            "in_force": None if self.head is None else sum(m.ack.in_force >= self.head for m in self.live),
            "dropped": self.dropped,
            "divergence": [_divergence_fields(each) for each in self.divergence],
            "instances": [self._fields(member) for member in members],
        }

    def _fields(self, member: Member) -> dict[str, Any]:
        ack = member.ack
        return {
            "instance": ack.instance,
            "service": ack.service,
            "version": ack.version,
            "state": ack.state,
            "live": member.live(self.now_ms),
            "seq": ack.seq.number,
            "behind": None if self.head is None else member.behind(self.head),
            "in_force": ack.in_force.number,
            "entry_hash": ack.entry_hash.hex(),
            "state_root": ack.state_root.hex(),
            "differs": member.name in self.differing,
            "troubles": list(member.troubles(self.head, self.now_ms)),
            "clock_offset_ms": ack.clock_offset_ms,
            "late_ms": ack.late_ms,
            "started_at": ack.started_at,
            "applied_at": ack.applied_at,
            "activated_at": ack.activated_at,
            "written_at": ack.written_at,
            "seen_at": member.seen_ms,
        }


class _Glass:
    """Reads both streams, and says what is to be seen."""

    def __init__(self, work: Workspace, services: frozenset[str], everything: bool, fail_on: frozenset[str]) -> None:
        self.work = work
        self.fleet = Fleet(work.root.log_id)
        self.changed = asyncio.Event()
        self.last: View | None = None
        self._services = services
        self._everything = everything
        self._fail_on = fail_on
        self._reader: LedgerReader | None = None
        self._position = 0
        self._wanted: frozenset[Seq] = frozenset()
        self._ahead_since_s: dict[Seq, float] = {}

    async def read(self) -> None:
        """Read both streams to their ends: first what sidecars say, so that the ledger has all that they speak of.

        Raises:
            LogMissing: there is no such stream.
            Unavailable: the log.
        """
        async with self.work.open_log(Stream.ACKS) as log:
            now_ms = self.work.now_ms()
            async for record in read_to_end(log):
                self.fleet.take(record.value, now_ms=now_ms, kept=True)
                self._position = record.position + 1
        self._wanted = frozenset(member.ack.seq for member in self.fleet.members if member.live(now_ms))
        try:
            self._reader = await self._read_ledger()
        except (BrokenChain, NotUnderstood) as refusal:
            self.fleet.ledger = None
            self.work.desk.warn(f"{refusal}; without this machine's ledger, instances are compared with each other")

    async def _read_ledger(self) -> LedgerReader:
        async with self.work.open_log(Stream.LEDGER) as log:
            ledger = await begun_ledger(log, self.work.root)
            self.fleet.ledger = ledger
            reader = LedgerReader(log, ledger, through_quarantine=True, on_link=self._note)
            await reader.catch_up()
            check_begun(reader, self.work.environment.ledger)
            check_reached(reader, self.work.root)
        self.fleet.note_own()
        return reader

    def _note(self, link: Link) -> None:
        # While the whole ledger is read, the digest of each state would take too long; later entries are few.
        if self._reader is not None or link.entry.seq in self._wanted:
            self.fleet.note_own()

    # --- as it changes ---

    async def follow_acks(self) -> None:
        """Take what sidecars say, for ever."""
        lost = _told_once(self.work)
        while True:
            try:
                batches = follow_reliably(self.work.open_log, Stream.ACKS, self._position, on_lost=lost)
                async with aclosing(batches):
                    async for batch in batches:
                        self._position = batch.next_position
                        for record in batch.records:
                            self.fleet.take(record.value, now_ms=self.work.now_ms())
                        if batch.records:
                            self.changed.set()
            except LogTruncated:
                self._position = 0  # made anew: what it has now is all that there is

    async def follow_ledger(self) -> None:
        """Follow this machine's own ledger, for ever; at once over, when it could not be read."""
        reader, lost, attempt = self._reader, _told_once(self.work), 0
        while reader is not None:
            try:
                async with self.work.open_log(Stream.LEDGER) as log, aclosing(log.follow(reader.position)) as batches:
                    reader.log = log
                    async for _ in batches:
                        attempt = 0
                        before = reader.ledger.head.seq
                        await reader.catch_up()
                        if reader.ledger.head.seq > before:
                            self.changed.set()
            except Unavailable as error:
                lost(error)
            await asyncio.sleep(full_jitter(attempt, BACKOFF_BASE_S, BACKOFF_CAP_S, Random()))  # noqa: S311
            attempt += 1

    def view(self, *, steady_s: float | None = None) -> View:
        """Return what is to be seen now.

        Args:
            steady_s: monotonic, while both streams are followed: who is ahead may only have been heard sooner.
        """
        now_ms = self.work.now_ms()
        asked = [m for m in self.fleet.members if not self._services or m.ack.service in self._services]
        names = {m.name for m in asked}
        found = [each for each in self.fleet.divergence(now_ms) if names.intersection(each.instances)]
        if steady_s is not None:
            found = self._not_just_sooner(found, steady_s)
        head = None if self.fleet.ledger is None else self.fleet.ledger.head.seq
        shown = tuple(m for m in asked if self._everything or _worth_showing(m, now_ms))
        live = tuple(m for m in asked if m.live(now_ms))
        log_id, dropped = str(self.work.root.log_id), self.fleet.dropped
        self.last = View(log_id, shown, live, tuple(found), head, now_ms, self._fail_on, dropped)
        return self.last

    def _not_just_sooner(self, found: Sequence[Divergence], steady_s: float) -> list[Divergence]:
        ahead = [each.seq for each in found if each.what is Parting.AHEAD]
        self._ahead_since_s = {seq: self._ahead_since_s.get(seq, steady_s) for seq in ahead}
        return [
            each
            for each in found
            if each.what is not Parting.AHEAD or steady_s - self._ahead_since_s[each.seq] >= _AHEAD_GRACE_S
        ]


def _worth_showing(member: Member, now_ms: int) -> bool:
    return member.ack.state != LEFT and now_ms - member.seen_ms <= SILENT_SHOWN_MS


def _watched(glass: _Glass) -> Exit:
    with suppress(KeyboardInterrupt):  # how a watch ends
        asyncio.run(_watch(glass))
    failure = glass.last.failure if glass.last is not None else None
    if failure is None:
        return Exit.OK
    if not glass.work.desk.as_json:
        glass.work.desk.fail(failure.code, str(failure), failure.hint)
    return exit_of(failure)


async def _watch(glass: _Glass) -> None:
    await glass.read()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(glass.follow_acks(), name="acknowledgements")
            tasks.create_task(glass.follow_ledger(), name="ledger")
            tasks.create_task(_show(glass), name="show")
    except BaseExceptionGroup as several:
        # One of them has failed, and the others were cancelled for it.
        raise several.exceptions[0] from several


async def _show(glass: _Glass) -> None:
    desk, clock_s = glass.work.desk, asyncio.get_running_loop().time
    if desk.redraws:
        with desk.redrawn(COLUMNS) as redraw:
            while True:
                view = glass.view(steady_s=clock_s())
                told = [f"warning: {_told(each)}" for each in view.divergence]
                redraw("\n".join([f"{moment(view.now_ms)}  {view.summary}", *told]), view.rows(view.members))
                await _next(glass)
    lines = _Lines(glass.work)
    while True:
        lines.tell(glass.view(steady_s=clock_s()))
        await _next(glass)


async def _next(glass: _Glass) -> None:
    """Wait for something to show, or until ages have changed enough; and never show faster than can be read."""
    await asyncio.sleep(_REDRAW_MIN_S)
    try:
        async with asyncio.timeout(_REDRAW_MAX_S - _REDRAW_MIN_S):
            await glass.changed.wait()
    except TimeoutError:
        pass
    glass.changed.clear()


class _Lines:
    """Tells of changes only: an acknowledgement that says nothing new is no line."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._members: dict[str, object] = {}
        self._others: object = None

    def tell(self, view: View) -> None:
        """Print who has changed, and the whole when that has."""
        now = {member.name: _says(member, view) for member in view.members}
        changed = [member for member in view.members if self._members.get(member.name) != now[member.name]]
        others = (view.head, len(view.live), view.divergence)
        if not changed and others == self._others:
            return
        desk = self._work.desk
        if desk.as_json:
            desk.line(view.document(changed), "")
        else:
            for row in view.rows(changed):
                facts = (f"{name} {cell}" for name, cell in zip(COLUMNS[2:-2], row[2:-2], strict=True))
                desk.line(None, "  ".join((moment(view.now_ms), row[0], f"({row[1]})", *facts, row[-1])).rstrip())
            if others != self._others:
                desk.line(None, f"{moment(view.now_ms)}  {view.summary}")
            for each in view.divergence:
                desk.warn(_told(each))
        self._members, self._others = now, others


def _says(member: Member, view: View) -> object:
    """Return what of an instance is worth a line when it changes; ages and clocks change all the time."""
    ack = member.ack
    return (ack.seq, ack.in_force, ack.state, ack.state_root, ack.started_at, view.notes(member))


def _todo(divergence: Sequence[Divergence]) -> str:
    """Return what to do about the worst of it: another history comes before another state of the same one."""
    return next(_TODO[what] for what in Parting if any(each.what is what for each in divergence))


def _told_once(work: Workspace) -> Callable[[Unavailable], None]:
    told: set[str] = set()

    def lost(error: Unavailable) -> None:
        if error.code not in told:
            told.add(error.code)
            work.desk.warn(f"{error}; trying again until it is back")

    return lost


def _told(each: Divergence) -> str:
    ours = "" if each.ours is None else f" than this machine's {each.what} {each.ours.hex()[:_HASH_CHARS]}"
    said = "; ".join(
        f"{value.hex()[:_HASH_CHARS]} say {shown_names([inline(name) for name in names])}"
        for value, names in each.said
        if value != each.ours
    )
    return f"seq {each.seq}: {_WHAT[each.what]}{ours}: {said}"


def _divergence_fields(each: Divergence) -> dict[str, Any]:
    return {
        "seq": each.seq.number,
        "what": each.what,
        "ours": None if each.ours is None else each.ours.hex(),
        "said": [{"value": value.hex(), "instances": list(names)} for value, names in each.said],
        "instances": list(each.instances),
    }
