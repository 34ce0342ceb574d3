"""`flaghoist restore`: put a lost or cut ledger back from what sidecars have kept."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from flaghoist.errors import LogMissing
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.entries_file import kept_entries
from flaghoist.log.location import create_log, open_log
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.reading import read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.journal import Journal
from publisher.restoration import Restoration, plan_restoration

_INTERRUPTED: Final = "interrupted; run the same command again: it goes on where it stopped"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@operation(ledger=True, change=True)
def restore(work: Workspace, files: tuple[Path, ...]) -> Exit:
    """Append to the ledger's log what it lacks of the entries that sidecars have kept in FILEs.

    For a log that was lost, cut, or made anew. Every entry is verified under the root that is pinned here, and written
    as it was first signed: no key is needed. Name the files of several pods; the longest history counts. Stop the
    publisher first. What waited in the inbox is not in them, and must be proposed again.

    \b
    Examples:
      flaghoist restore production.entries --dry-run
      flaghoist restore pod-*/production.entries
    """
    url = work.environment.ledger
    kept = {str(file): list(kept_entries(file)) for file in files}
    log = asyncio.run(_records(url))
    plan = plan_restoration(work.root, kept, log or ())
    head = plan.ledger.head
    work.desk.say(
        f"{work.root.log_id} at {url}: {'no log there' if log is None else f'verified up to seq {plan.log_head}'}; "
        f"kept up to seq {head.seq} ({moment(head.published_at)})"
    )
    fields = {
        "log_id": work.root.log_id,
        "ledger": url,
        "log_seq": plan.log_head.number,
        "kept_seq": head.seq.number,
        "entries": len(plan.missing),
        "head": plan.ledger.head.entry_hash.hex(),
    }
    if not plan.missing:
        work.desk.result({**fields, "dry_run": work.dry_run}, "nothing to restore: the log has it all")
        return Exit.OK
    if work.dry_run:
        work.desk.result({**fields, "dry_run": True}, f"would append {len(plan.missing)} entries")
        return Exit.OK
    if not work.desk.confirm(f"Append {len(plan.missing)} entries to {url}?"):
        return Exit.USAGE
    _append(work, url, plan)
    after = read(work, through_quarantine=True).reader.ledger.head
    work.desk.result({**fields, "dry_run": False}, f"seq {after.seq}  {after.entry_hash.hex()}")
    work.desk.next_step("start the publisher; compare this with a pod's `flaghoist_seq`: what is newer there was lost")
    return Exit.OK


async def _records(url: str) -> list[bytes] | None:
    """Return what the log holds; None when there is none."""
    try:
        async with open_log(url)(Stream.LEDGER) as log:
            return [record.value async for record in read_to_end(log)]
    except LogMissing:
        return None


def _append(work: Workspace, url: str, plan: Restoration) -> None:
    async def append(records: Sequence[bytes]) -> None:
        await create_log(url)  # what is there is left as it is
        async with open_log(url)(Stream.LEDGER) as log:
            for record in records:
                await log.append(record)

    # Held, so that no publisher of this machine appends meanwhile.
    with Journal.open(work.home.journals, work.root.log_id):
        try:
            asyncio.run(append(plan.missing))
        except KeyboardInterrupt as stop:
            raise Interrupted(_INTERRUPTED) from stop
