"""`flaghoist publish`: put what enough people have signed into the ledger, once; by a service at work, or from here."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import click

from flaghoist.codec import encode_envelope
from flaghoist.errors import NotYet, OutcomeUnknown
from flaghoist.log.base import Batch, Log, Stream
from flaghoist.outcomes import Applied, Prepared, Ratified
from flaghoist.records import Ratification, Release
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.signing import Signer
from flaghoist.values import Decision, Role, Target
from publisher.cli import appending, converging
from publisher.cli.converging import Awaited, Converged
from publisher.cli.decide import find_case, show_case, standing_now
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.reading import Reading, read, send
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.heart import Heart
from publisher.inbox import Case
from publisher.journal import Journal
from publisher.release import release_of, to_prepare
from publisher.sequencer import Sequencer
from publisher.standing import Status

T = TypeVar("T")


class Outgoing:
    """A log that knows whether anything may have left this process: what to tell somebody who pressed Ctrl-C."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.may_have_sent = False

    @property
    def conditional(self) -> bool:
        return self._log.conditional

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        """Append, and remember that it was tried."""
        self.may_have_sent = True
        return await self._log.append(value, expected_end=expected_end, key=key)

    async def end(self) -> int:
        return await self._log.end()

    def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        return self._log.follow(start)


@click.command()
@click.argument("proposal", metavar="ID|FILE")
@click.option("--approval", "approvals", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="An approval that came as a file; once for each.")  # fmt: skip
@converging.WAIT
@converging.TIMEOUT
@operation(ledger=True, key=True, change=True)
def publish(
    work: Workspace, proposal: str, approvals: tuple[Path, ...], wait_percent: int | None, timeout_s: int
) -> Exit:
    """Append an approved proposal to the ledger, or the ratification of an emergency; sidecars then verify it.

    Where a publisher's service is at work it does that by itself: this hands over what the inbox lacks, and waits. Else
    the publisher's key of this machine signs. Safe to run again after a crash, an interrupt or exit code 13: it
    finishes what was sent, and never doubles it.

    \b
    Examples:
      flaghoist publish 01J9Z3
      flaghoist publish change.proposal --approval grace.approval
      flaghoist publish 01J9Z3 --wait 95%
    """
    reading = read(work, inbox=True)
    case, _ = find_case(proposal, reading, approvals)
    if done := _in_ledger(reading, case):
        return _ended(work, reading, case, done, wait_percent, timeout_s, already=True)
    try:
        body = _body(reading, case, work.now_ms())
    except NotYet as early:
        raise _not_yet(work, reading, case) from early
    rule = body.policy if isinstance(body, Release) else "ratification"
    reading.root.check_unexpired(work.now_ms())  # before a key is asked for: nobody's would do
    holder = appending.service_at_work(work, reading)
    chosen = None if holder else work.choose(Role.PUBLISHER)
    show_case(work.desk, case, reading)
    fields = {"id": case.id, "sha256": case.sha256.hex(), "policy": rule, "publisher": holder}
    if work.dry_run:
        work.desk.result({"dry_run": True, **fields}, _would(reading, case))
        return Exit.OK
    by = f", by {holder}" if holder else ""
    if not work.desk.confirm(f"Publish {case.id} to {work.root.log_id} (allowed by {rule}){by}?"):
        return Exit.USAGE
    if chosen is None:
        assert holder is not None  # noqa: S101 — one of the two
        link, already = _handed_over(work, reading, case, holder, timeout_s), False
    else:
        held, _ = work.unlock(chosen, Role.PUBLISHER)
        link, already = _published(work, reading, case, held, timeout_s)
    return _ended(work, reading, case, link, wait_percent, timeout_s, already=already)


def publish_case(
    work: Workspace, reading: Reading, case: Case, *, holder: str | None, wait_s: int
) -> tuple[Applied | Ratified, bool]:
    """Publish what enough people have signed, by the service at work or by this machine's key, and ask nothing more.

    Args:
        reading: with the inbox as it is now.
        holder: the service at work (appending.service_at_work), if one is.
        wait_s: how long to wait for it, and for the fleet where the proposal asks for acknowledgements.

    Returns:
        The entry, and whether it was there already.

    Raises:
        Refused, Unavailable, OutcomeUnknown, Interrupted: as the command `publish`.
        NotYet: its moment is too far ahead; the service at work, if there is one, has it and waits.
        NotReached: it asks for acknowledgements, and too few came; nothing has changed.
    """
    if holder is not None:
        return _handed_over(work, reading, case, holder, wait_s), False
    # --key names the key that has signed the proposal.
    publisher = dataclasses.replace(work, key_option=None)
    held, _ = publisher.unlock(publisher.choose(Role.PUBLISHER), Role.PUBLISHER)
    return _published(work, reading, case, held, wait_s)


def _would(reading: Reading, case: Case) -> str:
    seq = reading.reader.ledger.head.seq.next()
    if to_prepare(reading.reader.ledger, case):
        percent = case.proposal.acked_percent
        return f"would prepare {case.id} as seq {seq}, and publish it once {percent} % of the fleet have it"
    return f"would publish {case.id} as seq {seq}"


def _in_ledger(reading: Reading, case: Case) -> Applied | Ratified | None:
    """Return the entry after which nothing of this case is left to do."""
    if case.sha256 in reading.reader.ledger.unratified:
        return None
    return reading.reader.ratified.get(case.sha256) or reading.reader.published.get(case.sha256)


def _body(reading: Reading, case: Case, now_ms: int) -> Release | Ratification:
    """Return what to append.

    Raises:
        Refused: what every reader would say, or the policy.
    """
    standing = standing_now(case, reading, now_ms)
    if standing.status is Status.READY:
        assert isinstance(standing.body, Release | Ratification)  # noqa: S101 — what these cases are published by
        return standing.body
    if standing.refusal is not None:
        raise standing.refusal
    # The publisher's own words: it names who rejected it, and when it expired.
    return release_of(reading.reader.ledger, case, reading.reader.links, now_ms=now_ms)


# --- by the service ---


def _handed_over(work: Workspace, reading: Reading, case: Case, holder: str, wait_s: int) -> Applied | Ratified:
    """Put into the inbox what it lacks, and wait until the service has appended it.

    Raises:
        Refused: the service will not, as things are now.
        OutcomeUnknown: it has not, and nothing here says why.
    """
    _hand_over(work, reading, case, holder)
    if _opens_ms(case) > work.now_ms() + wait_s * 1000:
        raise _not_yet_of(case, f"nothing is left to do: the publisher at work, {holder}, has it and publishes it then")
    work.desk.say(f"waiting up to {wait_s} s for the publisher at work: {holder}")

    def found() -> Applied | Ratified | None:
        return _in_ledger(reading, case)

    def prepared() -> Applied | Ratified | Prepared | None:
        return found() or (reading.reader.prepared.get(case.sha256) if case.proposal.acked_percent else None)

    link = _awaited(work, reading, case, prepared, wait_s)
    if isinstance(link, Prepared):
        work.desk.say(f"{case.id} is prepared as seq {link.entry.seq}, by {holder}")
        _acknowledged(
            converging.wait_for(work, reading, link, percent=case.proposal.acked_percent or 0, timeout_s=wait_s), case,
            hint="see who is missing with `flaghoist fleet`; the publisher at work tries again by itself",
        )  # fmt: skip
        link = _awaited(work, reading, case, found, wait_s)
    assert isinstance(link, Applied | Ratified)  # noqa: S101 — what `found` finds
    return link


def _hand_over(work: Workspace, reading: Reading, case: Case, holder: str) -> None:
    """Put into the inbox what it lacks of a case."""
    inbox = reading.inbox
    records = [] if inbox.case(case.sha256) or case.sha256 in reading.reader.published else [case.envelope]
    there = {envelope.payload for _, envelope in inbox.statements_on(case.sha256)}
    records += [envelope for _, envelope in case.approvals if envelope.payload not in there]
    if records:
        send(work, [encode_envelope(envelope) for envelope in records])
        work.desk.say(f"handed over {len(records)} records to the publisher at work: {holder}")


def _awaited(work: Workspace, reading: Reading, case: Case, find: Callable[[], T | None], wait_s: int) -> T:
    """Return what the service appends; raises as `_handed_over`."""
    try:
        return appending.wait_for(work, reading, find, wait_s=wait_s, what=case.id, look="flaghoist pending")
    except OutcomeUnknown as silent:
        standing = standing_now(case, reading, work.now_ms())
        if standing.refusal is not None:
            raise standing.refusal from silent
        raise


def _acknowledged(converged: Converged, case: Case, *, hint: str) -> None:
    """Refuse to go on with a case of which too few sidecars have acknowledged the preparation.

    Raises:
        NotReached: so it is.
    """
    if not converged.enough:
        seq = converged.awaited.seq
        raise converged.refusal(f"{case.id} was prepared (seq {seq}) and is not published: no answer has changed", hint)


# --- moments ---


def _opens_ms(case: Case) -> int:
    """Return from when on it may be published (Unix ms); 0: from now."""
    activate_at = case.proposal.activate_at
    return 0 if activate_at is None else activate_at - LEAD_MS_MAX


def _not_yet(work: Workspace, reading: Reading, case: Case) -> NotYet:
    """Hand a case whose moment is far ahead to the service at work, and return what to tell: nobody waits here."""
    holder = appending.service_at_work(work, reading)
    if holder is None:
        return _not_yet_of(
            case, "run this command again then; a publisher's service (`flaghoist publisher`) would wait for it"
        )
    if work.dry_run:
        return _not_yet_of(case, f"the publisher at work, {holder}, would be given it, and publish it then")
    _hand_over(work, reading, case, holder)
    return _not_yet_of(case, f"nothing is left to do: the publisher at work, {holder}, has it and publishes it then")


def _not_yet_of(case: Case, hint: str) -> NotYet:
    activate_at = case.proposal.activate_at or 0
    return NotYet(
        f"{case.id} takes effect at {moment(activate_at)}: it can be published from {moment(_opens_ms(case))} on",
        hint=hint,
    )


# --- from here ---


def _published(
    work: Workspace, reading: Reading, case: Case, held: Signer, wait_s: int
) -> tuple[Applied | Ratified, bool]:
    sent: list[Outgoing] = []
    heart = appending.heart_here(work, reading.root)
    try:
        return asyncio.run(_publish(work, reading, case, held, heart, sent, wait_s))
    except KeyboardInterrupt as stop:
        if sent and sent[0].may_have_sent:
            raise Interrupted(
                f"interrupted; {case.id} may be in the ledger: run the same command again, it finishes or says so"
            ) from stop
        raise Interrupted("interrupted; nothing was sent: run the same command again") from stop


async def _publish(
    work: Workspace,
    reading: Reading,
    case: Case,
    held: Signer,
    heart: Heart | None,
    sent: list[Outgoing],
    wait_s: int,
) -> tuple[Applied | Ratified, bool]:
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal.open(work.home.journals, work.root.log_id))
        log = Outgoing(await stack.enter_async_context(work.open_log(Stream.LEDGER)))
        sent.append(log)
        # What was verified a moment ago need not be verified again: the reader goes on where it stopped.
        reading.reader.log = log
        sequencer = Sequencer(reading.reader, journal, held, holder=work.holder(), clock_ms=work.now_ms)
        await sequencer.catch_up()
        if done := _in_ledger(reading, case):
            return done, True
        link: Applied | Ratified
        if case.sha256 in reading.reader.ledger.unratified:
            appended = await sequencer.append(_body(reading, case, work.now_ms()))
            assert isinstance(appended, Ratified)  # noqa: S101 — append returns what the body makes
            link, already = appended, False
        else:
            if case.proposal.acked_percent is not None:
                await _prepare(work, reading, case, sequencer, wait_s)
            published = await sequencer.publish(case)
            link, already = published.link, published.already
        if heart is not None:
            await appending.beat_once(work, reading, sequencer, heart)
        return link, already


async def _prepare(work: Workspace, reading: Reading, case: Case, sequencer: Sequencer, wait_s: int) -> None:
    """Show a case to the fleet, unless that was done before, and wait until enough of it has acknowledged that.

    Raises:
        NotReached: too few did in time.
        Refused, Unavailable, OutcomeUnknown: as Sequencer.prepare.
    """
    link = await sequencer.prepare(case)
    percent = case.proposal.acked_percent or 0
    work.desk.say(f"prepared {case.id} as seq {link.entry.seq}; waiting for {percent} % of the fleet")
    awaited = Awaited.of(link, reading.reader.links)
    _acknowledged(
        await converging.converge(work, reading, awaited, percent=percent, timeout_s=wait_s), case,
        hint="see who is missing with `flaghoist fleet`, then run the same command again: it goes on from there",
    )  # fmt: skip


# --- the end ---


def _ended(
    work: Workspace,
    reading: Reading,
    case: Case,
    link: Applied | Ratified,
    wait_percent: int | None,
    timeout_s: int,
    *,
    already: bool,
) -> Exit:
    """Wait for the fleet, if that was asked for, and tell."""
    converged = None
    if wait_percent is not None and isinstance(link, Ratified):
        work.desk.say("a ratification changes no answer: there is nothing to wait for")
    elif wait_percent is not None and isinstance(link, Applied):
        work.desk.say(f"{case.id} is seq {link.entry.seq}; waiting for {wait_percent} % of the fleet")
        converged = converging.wait_for(work, reading, link, percent=wait_percent, timeout_s=timeout_s)
    _tell(work, case, link, already, converged)
    return Exit.OK if converged is None else converged.exit


def _tell(work: Workspace, case: Case, link: Applied | Ratified, already: bool, converged: Converged | None) -> None:
    entry = link.entry
    document = {
        "id": case.id,
        "seq": entry.seq.number,
        "entry_hash": link.entry_hash.hex(),
        "published_at": entry.published_at,
        "already": already,
        "approvers": list(link.authorized.approvers),
        **({} if converged is None else {"fleet": converged.fields}),
    }
    text = f"seq {entry.seq}  {link.entry_hash.hex()}"
    if converged is not None and not converged.enough:
        failure = converged.refusal(
            f"{case.id} is published", "it stays; see who is missing with `flaghoist fleet`, or wait longer: --timeout"
        )
        work.desk.result_with(failure, document, text)
        return
    work.desk.result(document, text)
    what = "ratified" if isinstance(link, Ratified) else "published"
    if already:
        work.desk.say(f"{case.id} was {what} already, {moment(entry.published_at)}; nothing was sent")
    else:
        approvers = [a.approver for a, _ in case.approvals if a.decision is Decision.APPROVE]
        by = f", approved by {', '.join(approvers)}" if approvers else ""
        work.desk.say(f"{what} {case.id}: requested by {case.proposal.requester}{by}")
    if converged is not None:
        work.desk.say(converged.words)
        if converged.differing:
            names = converging.shown_names(converged.differing)
            work.desk.warn(f"these do not have the same state as this machine: {names}; see `flaghoist fleet`")
    put = next((op for op in case.proposal.ops if op.target is Target.FLAG and op.definition is not None), None)
    shown = f"`flaghoist flag show {put.key}` and " if put else ""
    work.desk.next_step(f"see it with {shown}`flaghoist audit log`")
