"""`flaghoist release drill`: rehearse a revert on a shadow gate, measure how soon the fleet has it, and record that."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

import click

from flaghoist.codec import PROPOSAL, encode_envelope
from flaghoist.errors import Misconfigured, NotYet, OutcomeUnknown, Unavailable, WrongRole
from flaghoist.log.base import Stream
from flaghoist.log.reconnect import follow_reliably
from flaghoist.outcomes import Applied, Stepped
from flaghoist.records import Op, Proposal
from flaghoist.release_plan import encode_drill
from flaghoist.release_state import ReleaseState
from flaghoist.signing import digest, seal
from flaghoist.snapshot import SHARED
from flaghoist.values import Action, Person, ProposalKind, Role, Seq, Target
from publisher.cli import appending
from publisher.cli.converging import TIMEOUT, shown_names
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.reading import Reading, read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.fleet import Fleet, NotReached
from publisher.inbox import Case, new_proposal_id
from publisher.releases import hoist
from publisher.releases.rehearsal import Arrivals, Measured, measured
from publisher.releases.wiring import find_release
from publisher.signers.keyring import KeyAtHand, UnlockedKey

# A proposal of a drill that nobody has published by then comes too late to measure anything.
LIFE_MS: Final = 10 * 60_000
# The stream of acknowledgements is read to its end before anything is asked.
_FIRST_READ_S: Final = 30.0


@click.command()
@click.argument("name", metavar="ID")
@TIMEOUT
@operation(ledger=True, key=True, change=True)
def drill(work: Workspace, name: str, timeout_s: int) -> Exit:
    """Rehearse the revert of the release ID: nobody's answers change, and nobody need approve it.

    Checks whether a revert would be taken now; raises a shadow gate that no flag refers to; lowers it when you press
    Enter, and measures from there until each live sidecar says that it answers from that entry. The result goes into
    the ledger. Exits with 14 when not all of them did in time.

    \b
    Examples:
      flaghoist release drill checkout-v2
      flaghoist release drill checkout-v2 --yes --json --timeout 30
    """
    reading = read(work)
    state = find_release(reading.snapshot.releases, name)
    refusal = _revert_now(work, reading, state)
    _check_no_moment(work, reading)
    leftover = (drilled := reading.snapshot.drills.get(state.key)) is not None and drilled.hoisted
    holder = appending.service_at_work(work, reading)
    if work.dry_run:
        return _tell_plan(work, reading, state, refusal, leftover=leftover)
    requester = work.choose(Role.REQUESTER)
    publisher = None if holder else _publisher(work, reading)
    _say_revert(work, state, refusal)
    if leftover:
        work.desk.say("an earlier drill was interrupted: its shadow gate is lowered first")
    if not work.desk.confirm(f"Drill the revert of release {state.key} in {reading.root.log_id}?"):
        return Exit.USAGE
    signer, person = work.unlock(requester, Role.REQUESTER)
    appender = None
    if publisher is not None:
        same = publisher.name == requester.name
        appender = signer if same else work.unlock(publisher, Role.PUBLISHER)[0]
    rehearsal = _Rehearsal(work, reading, state, signer, person, appender, timeout_s)
    try:
        found = asyncio.run(rehearsal.run(refusal, leftover=leftover))
    except KeyboardInterrupt as stop:
        left = "the next drill lowers its shadow gate first" if rehearsal.hoisted else "nothing is left to undo"
        raise Interrupted(f"interrupted; no result was recorded; {left}") from stop
    except (Unavailable, OutcomeUnknown):
        if rehearsal.hoisted:
            work.desk.warn("the drill's shadow gate stays up: it changes no answer, and the next drill lowers it first")
        raise
    return _tell(work, state, found, rehearsal)


def _publisher(work: Workspace, reading: Reading) -> KeyAtHand:
    try:
        return replace(work, key_option=None).choose(Role.PUBLISHER, reading.root)
    except (Misconfigured, WrongRole) as error:
        raise Misconfigured(
            f"no publisher is at work, and its key is not here: {error}",
            hint="drill where `flaghoist publisher` runs, or start it",
        ) from error


# --- what is said ---


def _revert_now(work: Workspace, reading: Reading, state: ReleaseState) -> str | None:
    if state.plan.gate.closed:
        return f"release {state.key} is closed: there is nothing to revert"
    return hoist.revert_refusal(reading.snapshot, state, at_ms=work.now_ms())


def _say_revert(work: Workspace, state: ReleaseState, refusal: str | None) -> None:
    if refusal is None:
        work.desk.say(f"a revert of release {state.key} would be taken now")
    elif state.plan.gate.closed:
        work.desk.say(f"{refusal}; what is measured is how soon the fleet would have it")
    else:
        work.desk.warn(f"a revert would be refused now: {refusal}")


def _check_no_moment(work: Workspace, reading: Reading) -> None:
    """Refuse to measure behind an entry that waits: all that come after it wait as long.

    Raises:
        NotYet: there is one.
    """
    links = (link for link in reading.reader.links if isinstance(link, Applied | Stepped))
    latest = max((link.in_force_at_ms for link in links), default=0)
    if latest > work.now_ms():
        raise NotYet(
            f"an entry takes effect at {moment(latest)}, and all that come after it wait as long: a drill would "
            "measure that",
            hint="drill again when it is over",
        )


def _tell_plan(work: Workspace, reading: Reading, state: ReleaseState, refusal: str | None, *, leftover: bool) -> Exit:
    live = asyncio.run(_live(work, reading))
    _say_revert(work, state, refusal)
    document = {
        "dry_run": True,
        "release": state.key,
        "revert": "allowed" if refusal is None else refusal,
        "lowers_first": leftover,
        "live": sorted(live),
    }
    work.desk.result(document, f"would drill the revert of {state.key} with {len(live)} live sidecars, by 3 entries")
    return Exit.OK


async def _live(work: Workspace, reading: Reading) -> frozenset[str]:
    async with _listening(work, reading) as ears:
        return ears.fleet.live(work.now_ms())


def _tell(work: Workspace, state: ReleaseState, found: Measured, rehearsal: "_Rehearsal") -> Exit:
    result = found.result()
    document = {
        "release": state.key,
        **result,
        "missing": list(found.missing),
        "took_ms": dict(found.took_ms),
        "clock_offsets_ms": dict(found.offsets_ms),
        "seqs": [seq.number for seq in rehearsal.seqs],
    }
    lines = [
        f"{found.reached} of {found.instances} live sidecars answered from the lowered gate",
        f"to the ledger  {found.to_entry_ms} ms",
    ]
    if found.reached:
        lines.append(
            f"to a sidecar   p50 {result['p50_ms']} ms, p95 {result['p95_ms']} ms, last {result['last_ms']} ms"
        )
    if (span := found.offset_span_ms) is not None:
        lines.append(f"clocks         the publisher's is {span[0]} .. {span[1]} ms ahead of theirs")
    text = "\n".join(lines)
    if found.complete:
        work.desk.result(document, text)
        work.desk.say(f"recorded as seq {rehearsal.seqs[-1]}")
        work.desk.next_step(f"see it with `flaghoist release show {state.key}`")
        return Exit.OK
    failure = NotReached(
        f"drill of release {state.key}: {found.reached} of {found.instances} live sidecars answered in time; missing: "
        f"{shown_names(found.missing) or 'all'}"
    )
    work.desk.result_with(failure, document, text)
    return Exit.NOT_REACHED


# --- the acknowledgements ---


@dataclass
class _Ears:
    """What the fleet says, as it is heard."""

    work: Workspace
    fleet: Fleet
    arrivals: Arrivals = field(default_factory=Arrivals)
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str = ""

    async def listen(self) -> None:
        """Follow the stream until cancelled; what it cannot read it says in `trouble`."""
        clock_s = asyncio.get_running_loop().time
        try:
            async with aclosing(follow_reliably(self.work.open_log, Stream.ACKS, 0, on_lost=self._lost)) as batches:
                async for batch in batches:
                    for record in batch.records:
                        now_s = clock_s()
                        member = self.fleet.take(
                            record.value, now_ms=self.work.now_ms(), kept=not self.caught_up.is_set()
                        )
                        if member is not None:
                            self.arrivals.note(member.name, member.ack.in_force, now_s)
                    if batch.at_end:
                        self.caught_up.set()
                    self.trouble = ""
                    self.news.set()
        except (Unavailable, Misconfigured) as error:
            self.trouble = str(error)
            self.caught_up.set()
            self.news.set()

    def _lost(self, lost: Unavailable) -> None:
        self.trouble = str(lost)

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds of what was heard; say whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            return holds()
        return True


@asynccontextmanager
async def _listening(work: Workspace, reading: Reading) -> AsyncIterator[_Ears]:
    """Follow the acknowledgements while the block runs; they were read to their end when it begins.

    Raises:
        Unavailable, Misconfigured: they cannot be read.
    """
    ears = _Ears(work, Fleet(reading.root.log_id, reading.reader.ledger))
    task = asyncio.create_task(ears.listen(), name="acknowledgements")
    try:
        try:
            async with asyncio.timeout(_FIRST_READ_S):
                await ears.caught_up.wait()
        except TimeoutError:
            raise Unavailable(f"acknowledgements cannot be read: {ears.trouble or 'the log did not answer'}") from None
        if task.done():
            raise Unavailable(f"acknowledgements cannot be read: {ears.trouble}", hint="run `flaghoist doctor`")
        yield ears
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# --- the rehearsal ---


@dataclass
class _Rehearsal:
    """One drill: the shadow gate goes up, comes down, and what was measured is recorded."""

    work: Workspace
    reading: Reading
    state: ReleaseState
    signer: UnlockedKey
    person: Person
    appender: UnlockedKey | None
    timeout_s: int
    hoisted: bool = False
    seqs: list[Seq] = field(default_factory=list)
    _entered_s: float = 0.0

    async def run(self, refusal: str | None, *, leftover: bool) -> Measured:
        """Do all of it, and return what was measured; raises as `_publish`, and NotReached when nobody is there."""
        clock_s = asyncio.get_running_loop().time
        self.hoisted = leftover
        async with _listening(self.work, self.reading) as ears:
            if leftover:
                await self._publish("lower what an earlier drill left", hoisted=False)
            if not ears.fleet.live(self.work.now_ms()):
                raise NotReached(
                    f"drill of release {self.state.key}: want sidecars that acknowledge what they serve, none is live",
                    hint="see `flaghoist fleet`; sidecars acknowledge unless they run with --acks off",
                )
            raised = await self._publish("raise the shadow gate", hoisted=True)
            await self._await(ears, raised.entry.seq, ears.fleet.live(self.work.now_ms()), "raised")
            await self._enter()
            among = ears.fleet.live(self.work.now_ms())
            began_s, started_at = clock_s(), self.work.now_ms()
            lowered = await self._publish("lower the shadow gate", hoisted=False)
            seq, entered_s = lowered.entry.seq, self._entered_s
            await self._await(ears, seq, among, "lowered")
            counted = ears.fleet.in_force(seq, now_ms=self.work.now_ms(), among=among)
            # Who has ended in order meanwhile is neither counted nor missed.
            there = {n for n in among if n in counted.waiting_for or ears.arrivals.first(n, seq) is not None}
            offsets = {name: m.ack.clock_offset_ms for name in among if (m := ears.fleet.member(name)) is not None}
            found = measured(
                ears.arrivals, seq, there, began_s=began_s, entered_s=entered_s, started_at=started_at,
                offsets_ms={name: ms for name, ms in offsets.items() if ms is not None}, revert=refusal,
            )  # fmt: skip
        await self._publish("record what was measured", hoisted=False, result=found.result())
        return found

    async def _await(self, ears: _Ears, seq: Seq, among: frozenset[str], what: str) -> None:
        """Wait until the fleet answers from an entry, or the time is over, and say how far it came."""

        def all_there() -> bool:
            return not ears.fleet.in_force(seq, now_ms=self.work.now_ms(), among=among).waiting_for

        await ears.until(all_there, self.timeout_s)
        reached = ears.fleet.in_force(seq, now_ms=self.work.now_ms(), among=among)
        self.work.desk.say(f"{what} (seq {seq}): {reached.done} of {reached.live} live sidecars answer from it")

    async def _enter(self) -> None:
        """Let the operator begin, as with a revert; nobody is asked with --yes, or without a terminal."""
        if self.work.desk.assume_yes or not sys.stdin.isatty():
            return
        self.work.desk.say("press Enter to lower it: the time runs from there")
        loop, pressed = asyncio.get_running_loop(), asyncio.Event()
        descriptor = sys.stdin.fileno()
        loop.add_reader(descriptor, pressed.set)
        try:
            await pressed.wait()
            os.read(descriptor, 4096)  # the line: it must not answer a later question
        finally:
            loop.remove_reader(descriptor)

    async def _publish(self, what: str, *, hoisted: bool, result: dict[str, object] | None = None) -> Applied:
        """Sign one op of the drill and see it into the ledger, by the way that a revert goes: through the inbox, and
        the publisher at work or this machine's key; nothing but the unlocked keys is kept open for it.

        Raises:
            Refused, Unavailable: nothing was sent.
            OutcomeUnknown: it was sent, and is not in the ledger.
        """
        case = self._signed(what, hoisted=hoisted, result=result)
        async with self.work.open_log(Stream.INBOX) as inbox:
            await inbox.append(encode_envelope(case.envelope))
        self.hoisted = self.hoisted or hoisted
        if self.appender is not None:
            async with appending.sequencer_here(self.work, self.reading, self.appender) as sequencer:
                link = (await sequencer.publish(case)).link
                self._entered_s = asyncio.get_running_loop().time()
        else:
            link = await self._taken(case)
            self._entered_s = asyncio.get_running_loop().time()
        self.hoisted = hoisted
        self.seqs.append(link.entry.seq)
        return link

    def _signed(self, what: str, *, hoisted: bool, result: dict[str, object] | None) -> Case:
        # The ledger's time may be ahead of the clock, by what a publisher has dated an approved change.
        now_ms = max(self.work.now_ms(), self.reading.reader.ledger.head.published_at)
        op = Op(Target.DRILL, SHARED, self.state.key, Seq(0), Action.PUT, encode_drill(hoisted=hoisted, result=result))
        op = replace(op, expected_version=self.reading.snapshot.version_of(op.state_id))
        proposal = Proposal(
            log_id=self.reading.root.log_id,
            proposal_id=new_proposal_id(now_ms, os.urandom(10)),
            requester=self.person,
            created_at=now_ms,
            expires_at=now_ms + LIFE_MS,
            kind=ProposalKind.DRILL,
            title=f"drill of release {self.state.key}: {what}",
            reason="",
            ticket=None,
            ops=(op,),
            activate_at=None,
            min_pin=Seq(0),
        )
        envelope = seal(PROPOSAL, proposal, [self.signer])
        return Case(proposal, envelope, digest(envelope), ())

    async def _taken(self, case: Case) -> Applied:
        """Return the entry that the service makes of a proposal in the inbox."""
        reader = self.reading.reader
        async with self.work.open_log(Stream.LEDGER) as log:
            reader.log = log
            try:
                async with asyncio.timeout(self.timeout_s), aclosing(log.follow(reader.position)) as batches:
                    async for _ in batches:
                        await reader.catch_up()
                        if (link := reader.published.get(case.sha256)) is not None:
                            return link
            except TimeoutError:
                pass
        raise OutcomeUnknown(
            f"{case.proposal.title}: sent, and not in the ledger after {self.timeout_s} s",
            hint="is the publisher well? Look with `flaghoist pending` and `flaghoist doctor`, then drill again",
        )
