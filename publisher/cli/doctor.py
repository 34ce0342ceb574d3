"""`flaghoist doctor`: what is right and wrong on this machine and with its ledger, each with what to do."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import click

from flaghoist.errors import FlaghoistError, Misconfigured, Unavailable
from flaghoist.log.base import Finding, Severity, Stream, read_to_end
from flaghoist.log.location import inspect_log
from flaghoist.outcomes import Rejected
from flaghoist.root import Root
from flaghoist.values import KeyId
from publisher import root_plan
from publisher.cli.converging import shown_names
from publisher.cli.desk import Exit, exit_of
from publisher.cli.reading import Reading, read
from publisher.cli.times import age, moment
from publisher.cli.workspace import Workspace, operation
from publisher.fleet import Fleet, Parting
from publisher.journal import Journal
from publisher.keys import read_pem

# Longer than any clock of a machine with NTP is off; shorter than what would hide an expired approval.
CLOCK_SKEW_MS_MAX = 2000


class Health(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `todo` says what to do, empty when nothing is."""

    name: str
    health: Health
    text: str
    todo: str = ""
    ends: Exit = Exit.OK


@click.command()
@operation(ledger=True)
def doctor(work: Workspace) -> Exit:
    """Check this machine and its ledger, and say what to do."""
    checks = list(_checks(work))
    work.desk.result([{"check": c.name, "health": c.health, "text": c.text, "todo": c.todo or None} for c in checks])
    for check in checks:
        work.desk.print(f"{check.health:5} {check.name}: {check.text}")
        if check.todo:
            work.desk.print(f"      -> {check.todo}")
    return next((check.ends for check in checks if check.health is Health.FAIL), Exit.OK)


def _checks(work: Workspace) -> Iterator[Check]:
    yield _tried("settings", lambda: _told("settings", f"{work.home.config}", work.settings))
    found = _tried("root", lambda: _pinned(work))
    yield found
    if found.health is Health.FAIL:
        yield from _keys(work)
        return
    yield from _settings_of_log(work)
    reading: list[Reading] = []

    def follow() -> Check:
        reading.append(read(work, inbox=True))
        head = reading[0].reader.ledger.head
        return Check("chain", Health.OK, f"verified up to seq {head.seq}, {moment(head.published_at)}")

    chain = _tried("chain", follow)
    yield chain
    yield from _keys(work)  # after the chain, whose root in force says what they may do
    if not reading:
        return
    yield _in_force(work, reading[0].root)
    yield from _contents(reading[0])
    yield _clock(work, reading[0])
    yield _tried("journal", lambda: _journal(work, reading[0]))
    yield _tried("fleet", lambda: _fleet(work, reading[0]))


def _tried(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except FlaghoistError as error:
        return Check(name, Health.FAIL, f"{error.code}: {error}", error.hint, exit_of(error))


def _told(name: str, text: str, _: object) -> Check:
    return Check(name, Health.OK, text)


def _keys(work: Workspace) -> Iterator[Check]:
    keys = work.home.keys
    try:
        in_agent = work.keyring.of_agent((work.in_force or work.root).record.keys)
    except FlaghoistError:
        in_agent = []  # the root's own check reports it
    if not keys.names() and not in_agent:
        yield Check("keys", Health.WARN, f"none in {keys.directory}", "`flaghoist key new NAME --person YOU`, to sign")
    for name in keys.names():
        yield _tried(f"key {name}", lambda name=name: _key(work, name))  # type: ignore[misc]
    for key in in_agent:
        listed = (work.in_force or work.root).key(key.key_id) if key.key_id is not None else None
        if listed is not None:
            text = f"{listed.person}, with the SSH agent: {_roles(work, listed.key_id)}"
            yield Check(f"key {key.name}", Health.OK, text)
    if trouble := work.keyring.agent_trouble:
        yield Check("ssh agent", Health.WARN, str(trouble), trouble.hint)


def _key(work: Workspace, name: str) -> Check:
    path = work.home.keys.find(name)
    read_pem(path)
    card = work.home.keys.card(path)
    if card is None:
        return Check(f"key {name}", Health.WARN, "its card is missing", f"put {path.with_suffix('.pub')} back")
    return Check(f"key {name}", Health.OK, f"{card.person}: {_roles(work, card.key_id)}")


def _roles(work: Workspace, key_id: KeyId) -> str:
    try:
        roles = sorted(role.lower() for role in root_plan.roles_of(work.in_force or work.root, key_id))
    except FlaghoistError:
        roles = []  # the root's own check reports it
    return ", ".join(roles) or "no role in this environment"


def _pinned(work: Workspace) -> Check:
    root, environment = work.root, work.environment
    return Check("root", Health.OK, f"{root.log_id} version {root.version} is pinned for {environment.ledger}")


def _in_force(work: Workspace, root: Root) -> Check:
    """How long the root counts that the ledger leads to; the pinned one may have expired long ago."""
    left_ms = root.record.expires_at - work.now_ms()
    renew = "renew it with `flaghoist root propose`, which others then sign"
    if left_ms < 0:
        text = f"version {root.version} expired {moment(root.record.expires_at)}"
        return Check("root in force", Health.FAIL, text, renew, Exit.REFUSED)
    text = f"version {root.version}, expires in {age(left_ms)}"
    if left_ms <= root_plan.EXPIRES_SOON_MS:
        return Check("root in force", Health.WARN, text, renew)
    return Check("root in force", Health.OK, text)


def _settings_of_log(work: Workspace) -> Iterator[Check]:
    try:
        findings = asyncio.run(inspect_log(work.environment.ledger))
    except FlaghoistError as error:
        yield Check("ledger", Health.FAIL, f"{error.code}: {error}", error.hint, exit_of(error))
        return
    if not findings:
        yield Check("ledger", Health.OK, "reachable, its settings are as they should be")
    for finding in findings:
        yield _finding(finding)


def _contents(reading: Reading) -> Iterator[Check]:
    rejected = [link for link in reading.reader.links if isinstance(link, Rejected)]
    if rejected:
        first = rejected[0]
        text = f"{len(rejected)} entries changed nothing; the first is seq {first.entry.seq}: {first.refusal}"
        yield Check("entries", Health.WARN, text, "the publisher's key signed them: find out who used it")
    else:
        yield Check("entries", Health.OK, "none rejected")
    if junk := reading.reader.tally["dropped"]:
        position, dropped = next(iter(reading.reader.dropped.items()))
        text = f"{junk} records count for nothing; the first is at position {position}: {dropped.refusal}"
        yield Check("junk", Health.WARN, text, "find out who else writes to the ledger, and take that right away")
    if void := reading.reader.tally["void"]:
        yield Check("races", Health.WARN, f"{void} entries lost a race", "let one machine at a time publish")


def _clock(work: Workspace, reading: Reading) -> Check:
    head = reading.reader.ledger.head
    ahead_ms = head.published_at - work.now_ms()
    if ahead_ms > CLOCK_SKEW_MS_MAX:
        text = f"this machine is {ahead_ms / 1000:.1f} s behind the newest entry"
        return Check("clock", Health.FAIL, text, "set the clock (NTP); expiry is judged by it", Exit.USAGE)
    return Check("clock", Health.OK, f"not behind the newest entry ({age(-ahead_ms)} old)")


def _journal(work: Workspace, reading: Reading) -> Check:
    if not (work.home.journals / f"{work.root.log_id}.lock").exists():
        return Check("journal", Health.OK, "none: this machine has not published")
    try:
        with Journal.open(work.home.journals, work.root.log_id) as journal:
            last = journal.last
    except Unavailable as error:
        return Check("journal", Health.WARN, str(error), error.hint)
    head = reading.reader.ledger.head.seq.number
    if last is None:
        return Check("journal", Health.OK, "empty")
    if not last.settled:
        return Check("journal", Health.WARN, f"seq {last.seq} may be on its way", "publish it again: that finishes it")
    if last.epoch == reading.reader.ledger.head.epoch and last.seq > head:
        raise Misconfigured(
            f"this machine published seq {last.seq}, and the ledger ends at {head}",
            hint="the ledger was cut, or is another one: compare it with a sidecar's head before you publish",
        )
    return Check("journal", Health.OK, f"settled at seq {last.seq}")


def _fleet(work: Workspace, reading: Reading) -> Check:
    """What sidecars say of themselves, as far as that can be looked at without following them."""
    fleet = Fleet(reading.root.log_id)

    async def listen() -> None:
        async with work.open_log(Stream.ACKS) as log:
            async for record in read_to_end(log):
                fleet.take(record.value, now_ms=work.now_ms(), kept=True)

    asyncio.run(listen())
    now_ms = work.now_ms()
    live = [member for member in fleet.members if member.live(now_ms)]
    # Entries that came since this machine has read its ledger are no news of the fleet.
    fleet.ledger = reading.reader.ledger
    fleet.note_own()
    parted = [found for found in fleet.divergence(now_ms) if found.what is not Parting.AHEAD]
    if parted:
        names = shown_names(sorted({name for found in parted for name in found.instances}))
        todo = "look with `flaghoist fleet`: it says what each of them has"
        return Check("fleet", Health.FAIL, f"these do not have what others have: {names}", todo, Exit.DIVERGED)
    if not live:
        return Check("fleet", Health.OK, "no sidecar is live that acknowledges")
    if skewed := [member.name for member in live if member.skewed]:
        text = f"{len(live)} live; these clocks are not the publisher's: {shown_names(skewed)}"
        return Check("fleet", Health.WARN, text, "set their clocks (NTP): a moment is as exact as they are")
    if fleet.dropped:
        text = f"{len(live)} live; {fleet.dropped} records of the stream are no acknowledgements"
        return Check("fleet", Health.WARN, text, "find out who else writes there, and take that right away")
    return Check("fleet", Health.OK, f"{len(live)} sidecars are live and agree; `flaghoist fleet` shows them")


def _finding(finding: Finding) -> Check:
    """The inspection knows which settings endanger the chain."""
    health = Health.FAIL if finding.severity is Severity.ERROR else Health.WARN
    return Check("ledger", health, str(finding), finding.hint or "correct that setting", Exit.USAGE)
