"""`flaghoist audit verify`: the proof that a ledger is whole, and all that an auditor must look at."""

from collections.abc import Mapping

import click

from flaghoist.errors import Refused
from flaghoist.outcomes import Unratified
from flaghoist.taint import Taint, tainted
from publisher.audit.account import EntryKind
from publisher.audit.examination import Break
from publisher.cli.audit.examined import Examined, broken_chain, examine
from publisher.cli.audit.fields import entry_fields
from publisher.cli.audit.instant import told
from publisher.cli.desk import Exit, inline
from publisher.cli.times import age
from publisher.cli.workspace import Workspace, operation
from publisher.root_plan import EXPIRES_SOON_MS


class NoCheckpoints(Refused):
    """A verification that begins at a checkpoint was asked for, and this release publishes none."""

    code = "no_checkpoints"
    hint = "run `flaghoist audit verify` without it: it verifies from the first entry"


@click.command("verify")
@click.option("--from-checkpoint", is_flag=True, help="Begin at the newest checkpoint; none are published yet.")
@operation(ledger=True)
def verify_ledger(work: Workspace, from_checkpoint: bool) -> Exit:
    """Verify every record from the first on, under the pinned root.

    Ends with 10 where the chain breaks, and says at which position of the log, after which seq, what was expected and
    what came. Rejected entries, tainted flags and emergencies that wait to be ratified are listed, and are no break.
    """
    if from_checkpoint:
        raise NoCheckpoints("--from-checkpoint: no checkpoints are published yet; they come with a later release")
    examined = examine(work)
    examination = examined.examination
    taints = tainted(account.link for account in examined.accounts)
    found = examination.broken
    _report(work, examined, taints, found)
    if found is None:
        return Exit.OK
    if work.desk.as_json:
        return Exit.REFUSED  # the document says it
    raise broken_chain(examination, found)


def _report(work: Workspace, examined: Examined, taints: tuple[Taint, ...], found: Break | None) -> None:
    examination, now_ms = examined.examination, work.now_ms()
    ledger, head = examination.ledger, examination.ledger.head
    counts = {name: examination.tally[name] for name in sorted(examination.tally)}
    waiting = sorted(ledger.unratified.values(), key=lambda one: one.seq)
    rejected = [account for account in examined.accounts if account.kind is EntryKind.REJECTED]
    left_ms = ledger.root.record.expires_at - now_ms
    document: dict[str, object] = {
        "log_id": ledger.root.log_id,
        "whole": found is None,
        "root_sha256": work.root.sha256.hex(),
        "root_version": ledger.root.version,
        "root_expires_at": ledger.root.record.expires_at,
        "seq": head.seq.number,
        "entry_hash": head.entry_hash.hex(),
        "epoch": head.epoch,
        "records": counts,
        "break": _break_fields(found) if found is not None else None,
        "forks": [_break_fields(fork) for fork in examination.forks],
        "rejected": [entry_fields(account) for account in rejected],
        "unratified": [_waiting_fields(one, now_ms) for one in waiting],
        "tainted": [_taint_fields(taint) for taint in taints],
        "error": None,
    }
    if found is not None:
        error = broken_chain(examination, found)
        document["error"] = {"code": error.code, "message": str(error), "hint": error.hint}
    said = f"{ledger.root.log_id}: verified {head.seq} entries, head {head.entry_hash.hex()}, epoch {head.epoch}"
    work.desk.result(document, f"{said}\n{_counted(counts)}")
    for account in rejected:
        work.desk.warn(f"seq {account.seq} changed nothing: {inline(account.title)}")
    for fork in examination.forks:
        cured = "" if ledger.quarantined_by is not None else " (cured: a later root took the keys' roles away)"
        work.desk.warn(f"{inline(str(fork))}{cured}")
    for one in waiting:
        work.desk.warn(_waiting_told(one, now_ms))
    for taint in taints:
        work.desk.warn(_taint_told(taint))
    if left_ms < EXPIRES_SOON_MS:
        when = f"expires in {age(left_ms)}" if left_ms >= 0 else f"expired {told(ledger.root.record.expires_at)}"
        work.desk.warn(f"root version {ledger.root.version} {when}: publish a new one")
    for position, dropped in examination.dropped.items():
        why = f"{dropped.refusal.code}: {inline(str(dropped.refusal))}"
        work.desk.say(f"record at position {position} counts for nothing: {why}")
    for position, void in examination.void.items():
        work.desk.say(f"record at position {position}, seq {void.seq}, is void: {void.why}")
    for name, shown in (("dropped", examination.dropped), ("void", examination.void)):
        if (more := examination.tally[name] - len(shown)) > 0:
            work.desk.say(f"and {more} more {name}")


def _counted(counts: Mapping[str, int]) -> str:
    return "records: " + ", ".join(f"{count} {name}" for name, count in counts.items())


def _break_fields(found: Break) -> dict[str, object]:
    return {
        "position": found.position,
        "seq": found.seq.number,
        "what": found.what,
        "expected": found.expected,
        "got": found.got,
    }


def _waiting_fields(one: Unratified, now_ms: int) -> dict[str, object]:
    proposal = one.authorized.proposal
    return {
        "seq": one.seq.number,
        "proposal": proposal.proposal_id,
        "proposal_sha256": one.authorized.sha256.hex(),
        "requester": proposal.requester,
        "title": proposal.title,
        "flags": [str(op.state_id) for op in proposal.ops],
        "published_at": one.published_at,
        "ratify_by": one.ratify_by_ms,
        "overdue": now_ms > one.ratify_by_ms,
    }


def _waiting_told(one: Unratified, now_ms: int) -> str:
    proposal = one.authorized.proposal
    left_ms = one.ratify_by_ms - now_ms
    when = f"OVERDUE for {age(-left_ms)}" if left_ms < 0 else f"{age(left_ms)} left"
    flags = ", ".join(str(op.state_id) for op in proposal.ops)
    who = f"by {proposal.requester}, {flags}"
    return f"seq {one.seq}: emergency {who} waits to be ratified, {when}: {inline(proposal.title)}"


def _taint_fields(taint: Taint) -> dict[str, object]:
    return {
        "seq": taint.seq.number,
        "key_id": taint.key_id,
        "reason": taint.reason,
        "in_force": [str(state_id) for state_id in taint.in_force],
    }


def _taint_told(taint: Taint) -> str:
    left = ", ".join(str(state_id) for state_id in taint.in_force)
    rest = f"still in force: {left}: look at them again" if left else "nothing of it is in force"
    return f"seq {taint.seq}: distrusted key {taint.key_id} took part ({inline(taint.reason)}); {rest}"
