"""`flaghoist pending` and `flaghoist approve`: what waits, and what people say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from flaghoist.authorization import verified_approval, verified_proposal
from flaghoist.codec import APPROVAL, ENVELOPE_BYTES_MAX, REASON_CHARS_MAX, decode_envelope, encode_envelope
from flaghoist.errors import Expired, Misconfigured, Refused, SamePerson
from flaghoist.outcomes import Unratified
from flaghoist.records import Approval, Op
from flaghoist.root import Root
from flaghoist.signing import digest, seal
from flaghoist.values import Action, Decision, ProposalKind, Role
from publisher.cli.appending import service_at_work
from publisher.cli.desk import Desk, Exit, inline, json_value
from publisher.cli.proposing import AT_ONCE, Timing, timing_words
from publisher.cli.reading import Reading, read, send
from publisher.cli.times import Span, age, days_ms, moment
from publisher.cli.workspace import Workspace, operation
from publisher.documents import killed_by
from publisher.files import read_limited, replace_file
from publisher.inbox import Case, Inbox, RootCase, find
from publisher.plan import Step
from publisher.releases.outlook import step_words
from publisher.releases.wiring import cautions
from publisher.standing import Standing, Status, emergency_case, ratification_standing, root_standing, standing_of

# How long an approval of an emergency in force holds: longer than the policy's window, which alarms and does not end.
RATIFICATION_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Waiting:
    """A proposal, or an emergency in force that waits to be ratified, and where it stands."""

    case: Case
    standing: Standing
    emergency: Unratified | None = None


def waiting_in(reading: Reading, now_ms: int) -> list[Waiting]:
    """Return every proposal of the inbox and every emergency to ratify, those in force first."""
    ledger = reading.reader.ledger
    found = []
    for emergency in ledger.unratified.values():
        case = emergency_case(emergency, reading.reader, reading.inbox)
        found.append(Waiting(case, ratification_standing(case, emergency, ledger, now_ms=now_ms), emergency))
    others = (case for case in reading.inbox if case.sha256 not in ledger.unratified)
    found.extend(Waiting(case, standing_of(case, reading.reader, now_ms=now_ms)) for case in others)
    return found


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also the expired and the published ones.")
@operation(ledger=True)
def pending(work: Workspace, everything: bool) -> Exit:
    """List what waits: emergencies to ratify, proposals, roots to sign; and what each of them still takes."""
    reading = read(work, inbox=True, through_quarantine=True)
    now_ms = work.now_ms()
    over = (Status.PUBLISHED, Status.EXPIRED)
    shown = [w for w in waiting_in(reading, now_ms) if everything or w.standing.status not in over]
    roots = [(root, root_standing(root, reading.reader.ledger, now_ms=now_ms)) for root in reading.inbox.roots]
    fields = [_waiting_fields(waiting) for waiting in shown]
    fields += [_root_fields(root, standing) for root, standing in roots]
    work.desk.result(fields)
    rows = [_row(waiting, now_ms) for waiting in shown]
    rows += [
        (root.sha256.hex()[:16], "", "", f"root version {root.root.version}", _counted(standing), standing.status)
        for root, standing in roots
    ]
    if rows:
        work.desk.table(("id", "age", "requester", "title", "approvals", "status"), rows)
    else:
        work.desk.say("no proposal waits")
    for name, standing in (
        *((waiting.case.id, waiting.standing) for waiting in shown),
        *((root.sha256.hex()[:16], standing) for root, standing in roots),
    ):
        for missing in standing.missing:
            work.desk.say(f"{name}: {missing}")
    if reading.inbox.dropped:
        work.desk.say(
            f"{reading.inbox.dropped} records of the inbox count for nothing (nobody in the root signed them)"
        )
    if (proof := reading.reader.ledger.quarantined_by) is not None:
        work.desk.warn(
            f"the ledger is in quarantine ({proof.what} at seq {proof.seq}): only a root that takes the forging keys' "
            "roles away can be published"
        )
    _next_of(work, reading, shown, roots)
    return Exit.OK


def _next_of(
    work: Workspace, reading: Reading, shown: Sequence[Waiting], roots: Sequence[tuple[RootCase, Standing]]
) -> None:
    """Say the one most urgent thing to do."""
    ready = [w.case.id for w in shown if w.standing.status is Status.READY]
    ready_roots = [r for r, standing in roots if standing.status is Status.READY]
    if ready or ready_roots:
        holder = service_at_work(work, reading)
        if holder is not None:
            work.desk.next_step(f"nothing: the publisher at work ({holder}) appends what is ready")
        elif ready:
            work.desk.next_step(f"`flaghoist publish {ready[0]}`")
        else:
            work.desk.next_step(f"`flaghoist root publish {ready_roots[0].sha256.hex()[:16]}`")
        return
    lacking = (w for w in shown if w.standing.status in (Status.WAITING, Status.OVERDUE) and not w.standing.rejecters)
    if waiting := next(lacking, None):
        work.desk.next_step(
            f"somebody other than {waiting.case.proposal.requester}: `flaghoist approve {waiting.case.id}`"
        )
    elif roots:
        work.desk.next_step(f"whoever is named: `flaghoist root sign {roots[0][0].sha256.hex()[:16]}`")


def _row(waiting: Waiting, now_ms: int) -> tuple[str, str, str, str, str, str]:
    proposal, standing = waiting.case.proposal, waiting.standing
    status, why = str(standing.status), standing.why
    if standing.status is Status.EXPIRED and not why:
        why = f"since {moment(proposal.expires_at)}"
    if waiting.emergency is not None:
        left_ms = waiting.emergency.ratify_by_ms - now_ms
        when = f"ratify within {age(left_ms)}" if left_ms >= 0 else f"overdue since {age(-left_ms)}"
        status = f"in force, {when}" + (", ready" if standing.status is Status.READY else "")
    return (
        waiting.case.id,
        age(now_ms - proposal.created_at),
        proposal.requester,
        proposal.title,
        _counted(standing),
        status + (f": {why}" if why else ""),
    )


def _counted(standing: Standing) -> str:
    return f"{len(standing.approvers)}/{standing.needed}"


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
    emergency = reading.reader.ledger.unratified.get(case.sha256)
    if now_ms > asked.expires_at and emergency is None:
        raise Expired(
            f"proposal {case.id} expired at {moment(asked.expires_at)}", hint="ask for it to be proposed again"
        )
    if chosen.key_id is not None:
        _check_other(case, reading.root, chosen.key_id)
    standing = standing_now(case, reading, now_ms)
    if standing.status is Status.PUBLISHED:
        raise Refused(f"proposal {case.id} is published already: {standing.why}", hint="see `flaghoist audit log`")
    show_case(work.desk, case, reading)
    if emergency is not None:
        work.desk.say(f"  in force since seq {emergency.seq}; to be ratified by {moment(emergency.ratify_by_ms)}")
    if standing.status in (Status.STALE, Status.REFUSED):
        work.desk.warn(f"it cannot be published as it is: {standing.why}")
    fields = {"id": case.id, "sha256": case.sha256.hex(), "decision": decision}
    if work.dry_run:
        work.desk.result({"dry_run": True, **fields}, f"would {decision.lower()} {case.id}")
        return Exit.OK
    if not work.desk.confirm(f"{decision.capitalize()} exactly this?"):
        return Exit.USAGE
    held, approver = work.unlock(chosen, Role.APPROVER)
    _check_other(case, reading.root, held.key_id)
    ratifies = asked.kind is ProposalKind.EMERGENCY
    longest_ms = now_ms + days_ms(RATIFICATION_DAYS) if ratifies else asked.expires_at
    expires_at = longest_ms if expires_in is None else min(longest_ms, now_ms + expires_in)
    statement = Approval(work.root.log_id, case.sha256, approver, decision, work.now_ms(), expires_at, comment)
    record = encode_envelope(seal(APPROVAL, statement, [held]))
    if out is not None:
        replace_file(out, record, mode=0o644)
    else:
        # A proposal that came as a file goes along, so that the inbox holds what was approved.
        send(work, [*([encode_envelope(case.envelope)] if from_file else []), record])
    said = (*(s for s in case.approvals if s[0].approver != approver), (statement, decode_envelope(record)))
    after = standing_now(replace(case, approvals=said), reading, work.now_ms())
    given, needed = len(after.approvers), after.needed
    work.desk.result({**fields, "approver": approver, "approvals": given, "needed": needed}, None)
    work.desk.say(f"{'rejected' if reject else 'approved'} {case.id} as {approver}: {given} of {needed} approvals")
    if not reject:
        _tell_next(work, reading, after, proposal, out)
    return Exit.OK


def standing_now(case: Case, reading: Reading, now_ms: int) -> Standing:
    """Return where a proposal stands, or the ratification of one that is an emergency in force."""
    emergency = reading.reader.ledger.unratified.get(case.sha256)
    if emergency is not None:
        return ratification_standing(case, emergency, reading.reader.ledger, now_ms=now_ms)
    return standing_of(case, reading.reader, now_ms=now_ms)


def _tell_next(work: Workspace, reading: Reading, standing: Standing, proposal: str, out: Path | None) -> None:
    """Say what happens next, after an approval."""
    for missing in standing.missing:
        work.desk.say(f"  {missing}")
    if standing.missing:
        work.desk.next_step(f"ask them to run `flaghoist approve {proposal}`")
    elif standing.status is Status.REFUSED:
        work.desk.next_step(f"enough people stand behind it; not yet published because {standing.why}")
    elif standing.status is Status.SCHEDULED:
        holder = service_at_work(work, reading)
        then = "`flaghoist publish`" if holder is None else f"nothing: the publisher at work ({holder}) waits for it"
        work.desk.next_step(f"{then}; {standing.why}")
    elif standing.status is not Status.READY:
        return
    elif out is not None:
        work.desk.next_step(f"`flaghoist publish {proposal} --approval {out}`")
    elif holder := service_at_work(work, reading):
        work.desk.next_step(f"nothing: the publisher at work ({holder}) appends it")
    else:
        work.desk.next_step(f"`flaghoist publish {proposal}`")


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
        # One that was killed without the inbox is known from the ledger only.
        waiting = reading.reader.ledger.unratified.values()
        emergencies = {e.authorized.sha256: emergency_case(e, reading.reader, inbox) for e in waiting}
        return find({**{case.sha256: case for case in inbox}, **emergencies}.values(), name), False
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
    steps = [_step(case, op, reading) for op in proposal.ops]
    for line in (line for step in steps for line in step_words(step)):
        desk.say(line)
    timing = Timing(proposal.activate_at, proposal.lead_ms, proposal.acked_percent)
    for line in timing_words(timing) if timing != AT_ONCE else ():
        desk.say(line)
    for step in steps:
        desk.show_diff(step.diff())
    if case.sha256 not in reading.reader.published:
        for caution in cautions(reading.snapshot, proposal.ops):
            desk.warn(caution)


def _step(case: Case, op: Op, reading: Reading) -> Step:
    """Return what an op does, or did: an emergency may be in force when people look at it."""
    done = reading.documents.changes.get(op.state_id, ())
    for change in done:
        if change.authorized is not None and change.authorized.sha256 == case.sha256:
            return Step(replace(op, definition=change.after), change.before)
    before = reading.documents.current(op.state_id)
    if op.action is Action.KILL and before is not None:
        return Step(replace(op, definition=killed_by(op, before)), before)
    return Step(op, before)


def _check_other(case: Case, root: Root, key_id: str) -> None:
    key = next((key for key in root.record.keys if key.key_id == key_id), None)
    if key is not None and key.person == case.proposal.requester:
        raise SamePerson(
            f"proposal {case.id} is {key.person}'s own; somebody else must decide",
            hint="ask another person to run `flaghoist approve`, or name your own key with --key",
        )


def _waiting_fields(waiting: Waiting) -> dict[str, object]:
    case, standing, emergency = waiting.case, waiting.standing, waiting.emergency
    proposal = case.proposal
    return {
        "id": case.id,
        "kind": proposal.kind,
        "sha256": case.sha256.hex(),
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
        "missing": list(standing.missing),
        "rules": list(standing.rules),
        "activate_at": proposal.activate_at,
        "lead_ms": proposal.lead_ms,
        "acked_percent": proposal.acked_percent,
        "in_force_since_seq": None if emergency is None else emergency.seq.number,
        "ratify_by": None if emergency is None else emergency.ratify_by_ms,
        "ops": [
            {"action": op.action, "target": op.target, "source": op.source, "key": op.key,
             "definition": json_value(op.definition)}
            for op in proposal.ops
        ],
    }  # fmt: skip


def _root_fields(root: RootCase, standing: Standing) -> dict[str, object]:
    return {
        "id": root.sha256.hex()[:16],
        "kind": "ROOT",
        "sha256": root.sha256.hex(),
        "version": root.root.version,
        "status": standing.status,
        "why": standing.why or None,
        "signed_by": list(standing.approvers),
        "needed": standing.needed,
        "missing": list(standing.missing),
    }
