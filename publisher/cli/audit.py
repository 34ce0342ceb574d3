"""`flaghoist audit`: the whole ledger, for people and for machines; and the proof that it is whole."""

import asyncio
from collections.abc import Mapping

import click

from flaghoist.authorization import NotUnderstood
from flaghoist.errors import Refused
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Advanced, Applied, Link, Rejected
from flaghoist.records import RootUpdate
from flaghoist.values import Seq
from publisher.cli.desk import Exit, json_value
from publisher.cli.reading import check_begun, read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.reader import BrokenChain, LedgerReader


@click.group()
def audit() -> None:
    """Show and verify the whole ledger."""


@audit.command()
@operation(ledger=True)
def log(work: Workspace) -> Exit:
    """Show every entry: who asked, who approved, which rule allowed it."""
    reading = read(work)
    if work.desk.as_json:
        work.desk.result([_fields(link) for link in reading.reader.links])
        return Exit.OK
    rows = []
    for link in reading.reader.links:
        fields = _fields(link)
        approvers = fields["approvers"]
        rows.append(
            (
                str(link.entry.seq),
                moment(link.entry.published_at),
                str(fields["what"]),
                str(fields["requester"] or ""),
                ", ".join(approvers) if isinstance(approvers, list) else "",
                str(fields["policy"] or ""),
                str(fields["title"] or fields["refusal"] or ""),
            )
        )
    work.desk.table(("seq", "published", "what", "requester", "approvers", "policy", "title"), rows)
    return Exit.OK


@audit.command()
@operation(ledger=True)
def verify(work: Workspace) -> Exit:
    """Verify every record from the first on, under the pinned root.

    Ends with 10 where the chain breaks, and says at which position of the log and after which seq.
    """
    reader, broken = asyncio.run(_verify(work))
    head = reader.ledger.head
    counts = {name: reader.tally[name] for name in sorted(reader.tally)}
    rejected = [link for link in reader.links if isinstance(link, Rejected)]
    if broken is not None:
        raise BrokenChain(f"{broken}; verified up to seq {head.seq} ({head.entry_hash.hex()})", hint=broken.hint)
    check_begun(reader, work.environment.ledger)
    work.desk.result(
        {
            "log_id": work.root.log_id,
            "root_sha256": work.root.sha256.hex(),
            "seq": head.seq.number,
            "entry_hash": head.entry_hash.hex(),
            "epoch": head.epoch,
            "records": counts,
            "rejected": [_fields(link) for link in rejected],
        },
        f"{work.root.log_id}: verified {head.seq} entries, head {head.entry_hash.hex()}, epoch {head.epoch}\n"
        + _counted(counts),
    )
    for link in rejected:
        work.desk.warn(f"seq {link.entry.seq} changed nothing: {link.refusal.code}: {link.refusal}")
    for position, dropped in reader.dropped.items():
        work.desk.say(f"record at position {position} counts for nothing: {dropped.refusal.code}: {dropped.refusal}")
    more = reader.tally["dropped"] - len(reader.dropped)
    if more > 0:
        work.desk.say(f"and {more} more")
    return Exit.OK


async def _verify(work: Workspace) -> tuple[LedgerReader, Refused | None]:
    async with work.open_log(Stream.LEDGER) as opened:
        reader = LedgerReader(opened, Ledger(work.root))
        try:
            await reader.catch_up()
        except (BrokenChain, NotUnderstood) as error:
            return reader, error
        return reader, None


def _counted(counts: Mapping[str, int]) -> str:
    return "records: " + ", ".join(f"{count} {name}" for name, count in counts.items())


def _fields(link: Link) -> dict[str, object]:
    entry = link.entry
    fields: dict[str, object] = {
        "seq": entry.seq.number,
        "entry_hash": link.entry_hash.hex(),
        "epoch": entry.epoch,
        "published_at": entry.published_at,
        "what": "release",
        "requester": None,
        "approvers": [],
        "policy": None,
        "title": None,
        "reason": None,
        "ticket": None,
        "proposal": None,
        "proposal_sha256": None,
        "ops": [],
        "refusal": None,
    }
    match link:
        case Applied(authorized=authorized):
            proposal = authorized.proposal
            ops = [
                {"action": op.action, "target": op.target, "source": op.source, "key": op.key,
                 "definition": json_value(op.definition)}
                for op in proposal.ops
            ]  # fmt: skip
            fields |= {
                "requester": proposal.requester,
                "approvers": list(authorized.approvers),
                "policy": getattr(entry.body, "policy", None),
                "title": proposal.title,
                "reason": proposal.reason,
                "ticket": proposal.ticket,
                "proposal": proposal.proposal_id,
                "proposal_sha256": authorized.sha256.hex(),
                "ops": ops,
            }
        case Advanced():
            began = entry.seq == Seq(1) or isinstance(entry.body, RootUpdate)
            fields["what"] = "root" if began else "epoch claim"
            fields["title"] = None if began else f"epoch {entry.epoch}: {getattr(entry.body, 'holder', '')}"
        case Rejected(refusal=refusal):
            fields["what"] = "rejected"
            fields["refusal"] = f"{refusal.code}: {refusal}"
    return fields
