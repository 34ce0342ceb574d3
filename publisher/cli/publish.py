"""`flaghoist publish`: put an approved proposal into the ledger, once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import click

from flaghoist.log.base import Batch, Log, Stream
from flaghoist.signing import Signer
from flaghoist.values import Decision, Role, Target
from publisher.cli.decide import find_case, show_case
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.reading import Reading, read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.inbox import Case
from publisher.journal import Journal
from publisher.release import release_of
from publisher.sequencer import Published, Sequencer


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
@operation(ledger=True, key=True, change=True)
def publish(work: Workspace, proposal: str, approvals: tuple[Path, ...]) -> Exit:
    """Append an approved proposal to the ledger; sidecars then verify and serve it.

    Safe to run again after a crash, an interrupt or exit code 13: it finishes what was sent, and never doubles it.

    \b
    Examples:
      flaghoist publish 01J9Z3
      flaghoist publish change.proposal --approval grace.approval
    """
    reading = read(work, inbox=True)
    case, _ = find_case(proposal, reading, approvals)
    if done := reading.reader.published.get(case.sha256):
        return _tell(work, case, Published(done, already=True))
    rule = _check_allowed(reading, case, work.now_ms())
    chosen = work.choose(Role.PUBLISHER)
    show_case(work.desk, case, reading)
    fields = {"id": case.id, "sha256": case.sha256.hex(), "policy": rule}
    if work.dry_run:
        work.desk.result({"dry_run": True, **fields}, f"would publish {case.id} as seq {reading.snapshot.seq.next()}")
        return Exit.OK
    if not work.desk.confirm(f"Publish {case.id} to {work.root.log_id} (allowed by {rule})?"):
        return Exit.USAGE
    held, _ = work.unlock(chosen, Role.PUBLISHER)
    return _tell(work, case, _published(work, reading, case, held))


def _check_allowed(reading: Reading, case: Case, now_ms: int) -> str:
    """Refuse what every reader would reject, before anything is asked or signed; return the rule that allows it."""
    return release_of(reading.reader.ledger, case, reading.reader.links, now_ms=now_ms).policy


def _published(work: Workspace, reading: Reading, case: Case, held: Signer) -> Published:
    sent: list[Outgoing] = []
    try:
        return asyncio.run(_publish(work, reading, case, held, sent))
    except KeyboardInterrupt as stop:
        if sent and sent[0].may_have_sent:
            raise Interrupted(
                f"interrupted; {case.id} may be in the ledger: run the same command again, it finishes or says so"
            ) from stop
        raise Interrupted("interrupted; nothing was sent: run the same command again") from stop


async def _publish(work: Workspace, reading: Reading, case: Case, held: Signer, sent: list[Outgoing]) -> Published:
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal.open(work.home.journals, work.root.log_id))
        log = Outgoing(await stack.enter_async_context(work.open_log(Stream.LEDGER)))
        sent.append(log)
        # What was verified a moment ago need not be verified again: the reader goes on where it stopped.
        reading.reader.log = log
        sequencer = Sequencer(reading.reader, journal, held, holder=work.holder(), clock_ms=work.now_ms)
        return await sequencer.publish(case)


def _tell(work: Workspace, case: Case, published: Published) -> Exit:
    link = published.link
    entry = link.entry
    work.desk.result(
        {
            "id": case.id,
            "seq": entry.seq.number,
            "entry_hash": link.entry_hash.hex(),
            "published_at": entry.published_at,
            "already": published.already,
            "approvers": list(link.authorized.approvers),
        },
        f"seq {entry.seq}  {link.entry_hash.hex()}",
    )
    if published.already:
        work.desk.say(f"{case.id} was published already, {moment(entry.published_at)}; nothing was sent")
    else:
        approvers = [a.approver for a, _ in case.approvals if a.decision is Decision.APPROVE]
        by = f", approved by {', '.join(approvers)}" if approvers else ""
        work.desk.say(f"published {case.id}: requested by {case.proposal.requester}{by}")
    put = next((op for op in case.proposal.ops if op.target is Target.FLAG and op.definition is not None), None)
    shown = f"`flaghoist flag show {put.key}` and " if put else ""
    work.desk.next_step(f"see it with {shown}`flaghoist audit log`")
    return Exit.OK
