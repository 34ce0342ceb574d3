"""`flaghoist kill`: flags to their safe variants, releases closed, at once, by one person with an emergency key."""

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Final

import click

from flaghoist.authorization import EMERGENCY_LIFE_MS_MAX, Authorized
from flaghoist.codec import PROPOSAL, REASON_CHARS_MAX, TITLE_CHARS_MAX, encode_envelope
from flaghoist.errors import LogConflict, Misconfigured, NotApproved, Refused, StaleBase, WrongRole
from flaghoist.outcomes import Applied
from flaghoist.records import Proposal
from flaghoist.signing import digest, seal
from flaghoist.values import Person, ProposalKind, Role, Seq, StateId, Target
from publisher import emergency
from publisher.cli import appending, converging
from publisher.cli.converging import Converged
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.reading import Reading, read, send
from publisher.cli.times import age, moment
from publisher.cli.workspace import Workspace, operation
from publisher.documents import Documents
from publisher.emergency import AnyKill, GateKill
from publisher.inbox import Case, new_proposal_id
from publisher.signers.keyring import KeyAtHand, UnlockedKey

# A flag that changes faster than this is being fought over; more signatures would not help.
ATTEMPTS_MAX: Final = 5
_UNSIGNED: Final = bytes(32)


class BaseMoved(StaleBase):
    """Somebody changed the flag between its reading and the kill, again and again."""

    hint = "run the same command again"


@click.command()
@click.argument("flags", nargs=-1, metavar="FLAG...")
@click.option("--release", metavar="ID", help="Also a release: its gate closes, for all of its flags. Where there is "
              "only a shared rule release.ID: every flag that refers to it.")  # fmt: skip
@click.option("--reason", required=True, metavar="TEXT", help="Why; everybody can read it in the ledger.")
@click.option("--incident", metavar="ID", help="The incident that this belongs to.")
@converging.WAIT
@click.option("--timeout", "wait_s", type=click.IntRange(1, 600), default=appending.WAIT_S_DEFAULT, show_default=True,
              metavar="SECONDS", help="How long to wait for the publisher's service, and for the fleet.")  # fmt: skip
@operation(ledger=True, key=True, change=True)
def kill(
    work: Workspace,
    flags: tuple[str, ...],
    release: str | None,
    reason: str,
    incident: str | None,
    wait_percent: int | None,
    wait_s: int,
) -> Exit:
    """Turn flags to their safe variants for everybody, at once: no approval, one emergency key.

    Only what a flag declares as safe_variant can so be served. A release is closed: its flags answer as before it
    opened. Others must ratify it within a time that the policy sets (24 h), else it is an alarm; it is never undone by
    itself.

    \b
    Examples:
      flaghoist kill newCheckout --reason "orders fail since 10:02" --incident INC-42
      flaghoist kill newCheckout newPayments --reason "double charges" --yes
      flaghoist kill --release checkout-2027 --reason "error rate" --dry-run
    """
    if not flags and release is None:
        raise click.UsageError("want FLAG, once or more often, or --release ID")
    check_words(reason, incident)
    reading = read(work)
    wanted = [reading.find_flag(flag) for flag in flags]
    if release is not None:
        wanted += emergency.of_release(reading.snapshot, release)
    return kill_now(work, reading, wanted, reason, incident, wait_s, wait_percent)


def check_words(reason: str, incident: str | None) -> None:
    """Refuse an emergency that does not say why.

    Raises:
        click.UsageError: so it is; or it says too much.
    """
    if not reason.strip() or len(reason) > REASON_CHARS_MAX:
        raise click.UsageError(f"--reason: want 1 .. {REASON_CHARS_MAX} characters")
    if incident is not None and not 0 < len(incident) <= TITLE_CHARS_MAX:
        raise click.UsageError(f"--incident: want 1 .. {TITLE_CHARS_MAX} characters")


def kill_now(
    work: Workspace,
    reading: Reading,
    wanted: Sequence[StateId],
    reason: str,
    incident: str | None,
    wait_s: int,
    wait_percent: int | None,
) -> Exit:
    """Show what a kill does, sign it with an emergency key, and see it into the ledger.

    Args:
        wanted: flags and releases.
        wait_s: how long to wait for the publisher's service, and for the fleet.
        wait_percent: the share of the fleet to wait for; None: none.

    Raises:
        WrongRole, Misconfigured: no emergency key is here.
        Refused, Unavailable, OutcomeUnknown, Interrupted: every reader would reject it; or it could not be sent.
    """
    kills = emergency.kills_of(reading.documents, reading.snapshot, wanted)
    groups = emergency.batches(kills)
    chosen = _emergency_key(work, reading)
    requester = _person_of(reading, chosen)
    drafts = [_proposal(work, reading, group, requester, reason, incident) for group in groups]
    for draft in drafts:
        _check_allowed(work, reading, draft)
    _show(work, reading, kills)
    if work.dry_run:
        work.desk.result({"dry_run": True, "kills": _fields(kills)}, f"would kill {_counted(kills)}")
        return Exit.OK
    holder = appending.service_at_work(work, reading)
    publisher = None if holder else _publisher_key(work, reading)
    if not work.desk.confirm(f"Kill {', '.join(str(kill.state_id) for kill in kills)} in {reading.root.log_id} now?"):
        return Exit.USAGE
    began = time.monotonic()
    signer, person = work.unlock(chosen, Role.EMERGENCY)
    appender = None if publisher is None else work.unlock(publisher, Role.PUBLISHER)[0]
    if holder is None and appender is None:
        work.desk.warn(
            f"no publisher is at work, and its key is not here: the kill counts once one appends it, within "
            f"{EMERGENCY_LIFE_MS_MAX // 60_000} min; start `flaghoist publisher` where its key is"
        )
    links = [
        _kill(work, reading, [kill.state_id for kill in group], person, reason, incident, signer, appender, wait_s)
        for group in groups
    ]
    took_s = time.monotonic() - began
    converged = None
    if wait_percent is not None:
        work.desk.say(f"seq {links[-1].entry.seq} is in the ledger; waiting for {wait_percent} % of the fleet")
        converged = converging.wait_for(work, reading, links[-1], percent=wait_percent, timeout_s=wait_s)
    return _tell(work, reading, kills, links, converged, took_s=took_s)


def _emergency_key(work: Workspace, reading: Reading) -> KeyAtHand:
    if not reading.root.grant(Role.EMERGENCY).key_ids:
        raise WrongRole(
            f"root version {reading.root.version} of {reading.root.log_id} lists no emergency key",
            hint="make one with `flaghoist key new NAME-emergency`, and let `flaghoist root propose --grant "
            "EMERGENCY=FILE.pub` list it; until then `flaghoist propose set FLAG …` and approvals",
        )
    try:
        return work.choose(Role.EMERGENCY)
    except Misconfigured as error:
        raise Misconfigured(
            str(error),
            hint=f"{_others(reading, None)} can kill it; or name your emergency key: --key NAME|FILE|ssh:COMMENT|hsm:…",
        ) from error


def _person_of(reading: Reading, chosen: KeyAtHand) -> Person | None:
    key = None if chosen.key_id is None else reading.root.key(chosen.key_id)
    return None if key is None else key.person


def _others(reading: Reading, person: Person | None) -> str:
    people = sorted(reading.root.people_of(Role.EMERGENCY) - {person})
    return ", ".join(people) or "nobody else"


def _publisher_key(work: Workspace, reading: Reading) -> KeyAtHand | None:
    """Return the publisher's key, if it is here; --key named the emergency key."""
    try:
        return dataclasses.replace(work, key_option=None).choose(Role.PUBLISHER, reading.root)
    except (Misconfigured, WrongRole):
        return None


def _proposal(
    work: Workspace,
    reading: Reading,
    kills: Sequence[AnyKill],
    requester: Person | None,
    reason: str,
    incident: str | None,
) -> Proposal:
    # The ledger's time may be ahead of the clock, by what a publisher has dated an approved change.
    now_ms = max(work.now_ms(), reading.reader.ledger.head.published_at)
    named = ", ".join(str(kill.state_id) for kill in kills)
    title = f"kill {named}"
    if len(title) > TITLE_CHARS_MAX:
        title = f"kill {_counted(kills)}"
    return Proposal(
        log_id=reading.root.log_id,
        proposal_id=new_proposal_id(now_ms, os.urandom(10)),
        # A key whose card is not here says whose it is once it is opened.
        requester=requester or min(reading.root.people_of(Role.EMERGENCY)),
        created_at=now_ms,
        expires_at=now_ms + EMERGENCY_LIFE_MS_MAX,
        kind=ProposalKind.EMERGENCY,
        title=title,
        reason=reason,
        ticket=incident,
        ops=tuple(kill.op for kill in kills),
        activate_at=None,
        min_pin=Seq(0),
    )


def _check_allowed(work: Workspace, reading: Reading, proposal: Proposal) -> None:
    """Refuse what every reader would reject, before anything is asked or signed.

    Raises:
        NotApproved: this person has made too many; the text says who else can.
        StaleBase, BadDefinition, Expired: a reader would reject it.
    """
    ledger = reading.reader.ledger
    ledger.root.check_unexpired(work.now_ms())
    after = ledger.snapshot.fold(ledger.snapshot.seq.next(), proposal.ops)
    try:
        ledger.rule_allowing(Authorized(proposal, _UNSIGNED, ()), ledger.snapshot, after, at_ms=work.now_ms())
    except NotApproved as refusal:
        raise NotApproved(
            str(refusal),
            hint=f"{_others(reading, proposal.requester)} can kill it now; or propose the change and have it approved",
        ) from refusal


def _show(work: Workspace, reading: Reading, kills: Sequence[AnyKill]) -> None:
    if work.desk.as_json:
        return
    for kill in kills:
        for line in kill.in_words():
            work.desk.say(line)
    work.desk.say("requests that are pinned to an older state get the newest one instead")
    shadowed = [kill for kill in kills if not _served(reading, kill)]
    for kill in shadowed:
        work.desk.warn(f"{kill.state_id} is not the flag that is served under {kill.state_id.key}: another source's is")


def _served(reading: Reading, kill: AnyKill) -> bool:
    if isinstance(kill, GateKill):
        return True
    served = reading.snapshot.view.flags.get(str(kill.state_id.key))
    return served is not None and served.source == kill.state_id.source


def _kill(
    work: Workspace,
    reading: Reading,
    wanted: Sequence[StateId],
    person: Person,
    reason: str,
    incident: str | None,
    signer: UnlockedKey,
    appender: UnlockedKey | None,
    wait_s: int,
) -> Applied:
    """Sign an emergency on the flags as they are, and see it into the ledger; sign again when they have changed.

    Raises:
        BaseMoved: they kept changing.
        Refused, Unavailable, OutcomeUnknown: as the sequencer, and appending.wait_for.
    """
    for _ in range(ATTEMPTS_MAX):
        kills = emergency.kills_of(Documents.of(reading.reader.links), reading.snapshot, wanted)
        envelope = seal(PROPOSAL, _proposal(work, reading, kills, person, reason, incident), [signer])
        case = Case(PROPOSAL.decode(envelope.payload), envelope, digest(envelope), ())
        # In the inbox also when it is appended here: there others find it to ratify it.
        send(work, [encode_envelope(envelope)])
        try:
            return _appended(work, reading, case, appender) if appender else _awaited(work, reading, case, wait_s)
        except (StaleBase, LogConflict):
            work.desk.say("the flags have changed meanwhile: signing again")
    raise BaseMoved(
        f"{', '.join(map(str, wanted))}: changed {ATTEMPTS_MAX} times between reading and killing; nothing was killed"
    )


def _appended(work: Workspace, reading: Reading, case: Case, appender: UnlockedKey) -> Applied:
    async def publish() -> Applied:
        async with appending.sequencer_here(work, reading, appender) as sequencer:
            return (await sequencer.publish(case)).link

    try:
        return asyncio.run(publish())
    except KeyboardInterrupt as stop:
        raise Interrupted(f"interrupted; {case.id} may be in the ledger: look with `flaghoist audit log`") from stop


def _awaited(work: Workspace, reading: Reading, case: Case, wait_s: int) -> Applied:
    """Wait for the service; a change that came first makes the base stale, and is an error at once."""

    def found() -> Applied | Refused | None:
        if link := reading.reader.published.get(case.sha256):
            return link
        snapshot = reading.reader.ledger.snapshot
        try:
            snapshot.fold(snapshot.seq.next(), case.proposal.ops)
        except Refused as refusal:
            return refusal
        return None

    came = appending.wait_for(
        work, reading, found, wait_s=wait_s, what=f"emergency {case.id}", look="flaghoist audit log"
    )
    if isinstance(came, Refused):
        raise came
    assert isinstance(came, Applied)  # noqa: S101 — the type checker makes one type of two
    return came


def _tell(
    work: Workspace,
    reading: Reading,
    kills: Sequence[AnyKill],
    links: Sequence[Applied],
    converged: Converged | None,
    *,
    took_s: float,
) -> Exit:
    ledger = reading.reader.ledger
    waiting = [ledger.unratified.get(link.authorized.sha256) for link in links]
    document: dict[str, object] = {
        "kills": _fields(kills),
        "took_s": round(took_s, 3),
        "emergencies": [
            {
                "id": link.authorized.proposal.proposal_id,
                "seq": link.entry.seq.number,
                "entry_hash": link.entry_hash.hex(),
                "published_at": link.entry.published_at,
                "ratify_by": None if wait is None else wait.ratify_by_ms,
            }
            for link, wait in zip(links, waiting, strict=True)
        ],
        **({} if converged is None else {"fleet": converged.fields}),
    }
    text = "\n".join(f"seq {link.entry.seq}  {link.authorized.proposal.proposal_id}" for link in links)
    if converged is not None and not converged.enough:
        hint = "it stays in force; see who is missing with `flaghoist fleet`"
        work.desk.result_with(converged.refusal(f"seq {links[-1].entry.seq} is published", hint), document, text)
    else:
        work.desk.result(document, text)
    work.desk.say(f"killed {_counted(kills)}; in the ledger after {took_s:.1f} s")
    if converged is not None and converged.enough:
        work.desk.say(converged.words)
    for link, wait in zip(links, waiting, strict=True):
        if wait is None:
            continue
        proposal = link.authorized.proposal
        threshold = reading.root.grant(Role.APPROVER).threshold
        people = ", ".join(sorted(reading.root.people_of(Role.APPROVER) - {proposal.requester})) or "nobody"
        left = age(wait.ratify_by_ms - work.now_ms())
        work.desk.say(
            f"to be ratified by {threshold} of {people} until {moment(wait.ratify_by_ms)} ({left}), else it "
            "is an alarm; it stays in force either way"
        )
        work.desk.next_step(f"they run `flaghoist approve {proposal.proposal_id}`")
    first = kills[0].state_id
    if first.target is Target.RELEASE:
        again = f"`flaghoist release ramp {first.key} …`"
    else:
        again = f"`flaghoist propose set {first} …`"
    work.desk.next_step(f"once it is mended: {again}, approved as any change")
    return Exit.OK if converged is None else converged.exit


def _counted(kills: Sequence[AnyKill]) -> str:
    releases = sum(isinstance(kill, GateKill) for kill in kills)
    flags = len(kills) - releases
    told = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((flags, "flag"), (releases, "release")) if n]
    return " and ".join(told)


def _fields(kills: Sequence[AnyKill]) -> list[dict[str, object]]:
    return [kill.fields() for kill in kills]
