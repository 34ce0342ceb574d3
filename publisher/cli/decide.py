"""`flaghoist pending` and `flaghoist approve`: what waits, and what people say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from flaghoist.authorization import check_understood, verified_approval, verified_proposal
from flaghoist.codec import APPROVAL, ENVELOPE_BYTES_MAX, REASON_CHARS_MAX, decode_envelope, encode_envelope
from flaghoist.errors import Expired, Misconfigured, Refused, SamePerson
from flaghoist.records import Approval
from flaghoist.root import Root
from flaghoist.signing import digest, seal
from flaghoist.values import Decision, Person, Role
from publisher.cli.desk import Desk, Exit, inline, json_value
from publisher.cli.reading import Reading, read, send
from publisher.cli.times import Span, age, moment
from publisher.cli.workspace import Workspace, operation
from publisher.files import read_limited, replace_file
from publisher.inbox import Case, Inbox
from publisher.plan import Step


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a proposal stands: `status` is one of ready, waiting, rejected, stale, expired, published."""

    case: Case
    status: str
    approvers: tuple[Person, ...]
    rejecters: tuple[Person, ...]
    needed: int
    why: str = ""


def standing_of(case: Case, reading: Reading, now_ms: int) -> Standing:
    """Return where a proposal stands; only people whose statements would count are counted."""
    counting = [a for a, _ in case.approvals if a.expires_at >= now_ms and a.approver != case.proposal.requester]
    approvers = tuple(a.approver for a in counting if a.decision is Decision.APPROVE)
    rejecters = tuple(a.approver for a in counting if a.decision is Decision.REJECT)
    needed = reading.root.grant(Role.APPROVER).threshold

    def standing(status: str, why: str = "") -> Standing:
        return Standing(case, status, approvers, rejecters, needed, why)

    if case.sha256 in reading.reader.published:
        return standing("published", f"seq {reading.reader.published[case.sha256].entry.seq}")
    if now_ms > case.proposal.expires_at:
        return standing("expired", f"since {moment(case.proposal.expires_at)}")
    if rejecters:
        return standing("rejected", f"by {', '.join(rejecters)}")
    try:
        check_understood(case.proposal)
        reading.snapshot.fold(reading.snapshot.seq.next(), case.proposal.ops)
    except Refused as refusal:
        return standing("stale", str(refusal))
    return standing("ready" if len(approvers) >= needed else "waiting")


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also the expired and the published ones.")
@operation(ledger=True)
def pending(work: Workspace, everything: bool) -> Exit:
    """List the proposals that wait for approval or publication, oldest first."""
    reading = read(work, inbox=True)
    now_ms = work.now_ms()
    standings = [standing_of(case, reading, now_ms) for case in reading.inbox.cases.values()]
    shown = [s for s in standings if everything or s.status not in ("published", "expired")]
    work.desk.result([_standing_fields(s) for s in shown])
    rows = [
        (
            s.case.id,
            age(now_ms - s.case.proposal.created_at),
            s.case.proposal.requester,
            s.case.proposal.title,
            f"{len(s.approvers)}/{s.needed}",
            s.status + (f": {s.why}" if s.why else ""),
        )
        for s in shown
    ]
    if rows:
        work.desk.table(("id", "age", "requester", "title", "approvals", "status"), rows)
    else:
        work.desk.say("no proposal waits")
    if reading.inbox.dropped:
        work.desk.say(
            f"{reading.inbox.dropped} records of the inbox count for nothing (nobody in the root signed them)"
        )
    if ready := next((s for s in shown if s.status == "ready"), None):
        work.desk.next_step(f"`flaghoist publish {ready.case.id}`")
    elif waiting := next((s for s in shown if s.status == "waiting"), None):
        work.desk.next_step(
            f"somebody other than {waiting.case.proposal.requester}: `flaghoist approve {waiting.case.id}`"
        )
    return Exit.OK


@click.command()
@click.argument("proposal", metavar="ID|FILE")
@click.option("--comment", metavar="TEXT", help="What you have to say; everybody can read it in the ledger.")
@click.option("--reject", is_flag=True, help="Say no.")
@click.option("--expires-in", type=Span(), metavar="SPAN", help="How long it holds; default: as long as the proposal.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it here, not into the inbox.")
@operation(ledger=True, key=True, change=True)
def approve(
    work: Workspace, proposal: str, comment: str | None, reject: bool, expires_in: int | None, out: Path | None
) -> Exit:
    """Approve somebody else's proposal, after showing all of it.

    What is signed is the digest of exactly the bytes that the requester signed.

    \b
    Examples:
      flaghoist approve 01J9Z3 --comment "looks right"
      flaghoist approve 01J9Z3 --reject --comment "wait for SHOP-7"
      flaghoist approve change.proposal --out change.approval
    """
    if comment is not None and len(comment) > REASON_CHARS_MAX:
        raise click.UsageError(f"--comment: want at most {REASON_CHARS_MAX} characters, got {len(comment)}")
    if out is not None and out.exists():
        raise Misconfigured(f"--out {out}: is there already", hint="name a new file")
    decision = Decision.REJECT if reject else Decision.APPROVE
    reading = read(work, inbox=True)
    case, from_file = find_case(proposal, reading)
    now_ms = work.now_ms()
    chosen = work.choose(Role.APPROVER)
    asked = case.proposal
    if now_ms > asked.expires_at:
        raise Expired(
            f"proposal {case.id} expired at {moment(asked.expires_at)}", hint="ask for it to be proposed again"
        )
    if chosen.key_id is not None:
        _check_other(case, reading.root, chosen.key_id)
    standing = standing_of(case, reading, now_ms)
    if standing.status == "published":
        raise Refused(f"proposal {case.id} is published already: {standing.why}", hint="see `flaghoist audit log`")
    show_case(work.desk, case, reading)
    if standing.status == "stale":
        work.desk.warn(f"it cannot be published as it is: {standing.why}")
    fields = {"id": case.id, "sha256": case.sha256.hex(), "decision": decision}
    if work.dry_run:
        work.desk.result({"dry_run": True, **fields}, f"would {decision.lower()} {case.id}")
        return Exit.OK
    if not work.desk.confirm(f"{decision.capitalize()} exactly this?"):
        return Exit.USAGE
    held, approver = work.unlock(chosen, Role.APPROVER)
    _check_other(case, reading.root, held.key_id)
    expires_at = asked.expires_at if expires_in is None else min(asked.expires_at, now_ms + expires_in)
    statement = Approval(work.root.log_id, case.sha256, approver, decision, work.now_ms(), expires_at, comment)
    record = encode_envelope(seal(APPROVAL, statement, [held]))
    if out is not None:
        replace_file(out, record, mode=0o644)
    else:
        # A proposal that came as a file goes along, so that the inbox holds what was approved.
        send(work, [*([encode_envelope(case.envelope)] if from_file else []), record])
    given = {*standing.approvers, *(() if reject else (approver,))}
    missing = max(0, standing.needed - len(given))
    work.desk.result({**fields, "approver": approver, "approvals": len(given), "needed": standing.needed}, None)
    work.desk.say(
        f"{'rejected' if reject else 'approved'} {case.id} as {approver}: {len(given)} of {standing.needed} approvals"
    )
    if not reject:
        said = f" --approval {out}" if out is not None else ""
        work.desk.next_step(
            f"ask {missing} more to run `flaghoist approve {proposal}`"
            if missing
            else f"`flaghoist publish {proposal}{said}`"
        )
    return Exit.OK


def find_case(name: str, reading: Reading, approval_files: Sequence[Path] = ()) -> tuple[Case, bool]:
    """Return the proposal of that id (or its unique start), or in that file; and whether it came from a file.

    Args:
        approval_files: statements that are not in the inbox.

    Raises:
        UnknownProposal: none, or several.
        Misconfigured: a file cannot be read.
        Refused: a file holds no record that counts in this environment.
    """
    extra = []
    for path in approval_files:
        data = read_limited(path, limit_bytes=ENVELOPE_BYTES_MAX, what="approval")
        verified_approval(reading.root, decode_envelope(data))
        extra.append(data)
    file = Path(name)
    if not file.is_file():
        inbox = Inbox.gathered(reading.root, [*reading.inbox_records, *extra]) if extra else reading.inbox
        return inbox.find(name), False
    data = read_limited(file, limit_bytes=ENVELOPE_BYTES_MAX, what="proposal")
    envelope = decode_envelope(data)
    proposal = verified_proposal(reading.root, envelope)
    # First, so that a proposal of the inbox under the same id cannot take its place.
    case = Inbox.gathered(reading.root, [data, *reading.inbox_records, *extra]).find(proposal.proposal_id)
    in_inbox = reading.inbox.cases.get(case.id)
    return case, in_inbox is None or in_inbox.sha256 != digest(envelope)


def show_case(desk: Desk, case: Case, reading: Reading) -> None:
    """Show the whole proposal on stderr: who, what, why, the diff, the digest that gets signed."""
    if desk.as_json:
        return
    proposal = case.proposal
    desk.say(f"proposal {case.id}: {inline(proposal.title)}")
    desk.say(
        f"  requester {proposal.requester}, {moment(proposal.created_at)}, may wait until {moment(proposal.expires_at)}"
    )
    if proposal.reason:
        desk.say(f"  reason    {inline(proposal.reason)}")
    if proposal.ticket:
        desk.say(f"  ticket    {inline(proposal.ticket)}")
    for statement, _ in case.approvals:
        comment = f": {inline(statement.comment)}" if statement.comment else ""
        verb = "approved" if statement.decision is Decision.APPROVE else "rejected"
        desk.say(f"  {verb}  by {statement.approver}, {moment(statement.approved_at)}{comment}")
    desk.say(f"  digest    {case.sha256.hex()}")
    for op in proposal.ops:
        desk.show_diff(Step(op, reading.documents.current(op.state_id)).diff())


def _check_other(case: Case, root: Root, key_id: str) -> None:
    key = next((key for key in root.record.keys if key.key_id == key_id), None)
    if key is not None and key.person == case.proposal.requester:
        raise SamePerson(
            f"proposal {case.id} is {key.person}'s own; somebody else must decide",
            hint="ask another person to run `flaghoist approve`, or name your own key with --key",
        )


def _standing_fields(standing: Standing) -> dict[str, object]:
    proposal = standing.case.proposal
    return {
        "id": standing.case.id,
        "sha256": standing.case.sha256.hex(),
        "requester": proposal.requester,
        "title": proposal.title,
        "reason": proposal.reason,
        "ticket": proposal.ticket,
        "created_at": proposal.created_at,
        "expires_at": proposal.expires_at,
        "status": standing.status,
        "why": standing.why or None,
        "approvers": list(standing.approvers),
        "rejecters": list(standing.rejecters),
        "needed": standing.needed,
        "ops": [
            {"action": op.action, "target": op.target, "source": op.source, "key": op.key,
             "definition": json_value(op.definition)}
            for op in proposal.ops
        ],
    }  # fmt: skip
