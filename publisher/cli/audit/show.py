"""`flaghoist audit show`: everything of one entry."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from flaghoist.errors import Misconfigured
from flaghoist.records import EpochClaim
from flaghoist.root import Root
from flaghoist.values import Seq
from publisher.audit.account import Account, EntryKind, OpChange
from publisher.audit.signatures import CheckedSignature, evidence, signatures
from publisher.audit.wording import change_words, diff, headline
from publisher.cli.audit.examined import Examined, UnknownEntry, conclude, examine
from publisher.cli.audit.fields import change_fields, entry_fields, key_told, line
from publisher.cli.audit.instant import exactly, told
from publisher.cli.desk import Exit, inline
from publisher.cli.workspace import Workspace, operation
from publisher.files import replace_file

_SEQ = re.compile(r"[0-9]{1,18}\Z")


@click.command("show")
@click.argument("entry", metavar="SEQ|PROPOSAL")
@click.option("--evidence", "directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write what ssh-keygen or openssl needs to check each signature into DIR.")  # fmt: skip
@operation(ledger=True)
def show_entry(work: Workspace, entry: str, directory: Path | None) -> Exit:
    """Show one entry: who asked and approved with which keys, what changed, every signature and hash.

    PROPOSAL is a proposal's id, or its beginning: the entry that published it, or else the one that prepared it.

    \b
    Examples:
      flaghoist audit show 12
      flaghoist audit show 01K8Y3 --json
      flaghoist audit show 12 --evidence proof/
    """
    examined = examine(work)
    account = _found(examined, entry)
    checked = list(signatures(account))
    commands = _write_evidence(directory, checked) if directory is not None else []
    published = _publishing(examined, account)
    document = _fields(account, checked) | {"published_by": published.seq.number if published is not None else None}
    work.desk.result(document | {"evidence": commands}, "\n".join(_lines(account, checked, published)))
    if directory is not None and not work.desk.as_json:
        work.desk.say(f"in {directory}, each of these checks one signature without Flaghoist:")
        for command in commands:
            work.desk.say(f"  {command}")
    elif any(one.key is not None and one.key.algorithm == "SSHSIG_ED25519" for one in checked):
        work.desk.next_step(f"check the SSH signatures with ssh-keygen: `flaghoist audit show {entry} --evidence DIR`")
    return conclude(work, examined.examination)


def _found(examined: Examined, text: str) -> Account:
    if _SEQ.match(text):
        return examined.account_at(Seq(int(text)))
    wanted = text.upper()
    fitting = [a for a in examined.accounts if a.proposal is not None and a.proposal.proposal_id.startswith(wanted)]
    # Somebody may have tried a proposal again: what was applied is what is meant.
    fitting = [account for account in fitting if account.refusal is None] or fitting
    fitting = [account for account in fitting if account.kind is not EntryKind.PREPARATION] or fitting[-1:]
    if len(fitting) != 1:
        named = ", ".join(f"seq {account.seq}" for account in fitting[:5])
        raise UnknownEntry(f"{text!r}: want a seq, or the beginning of one proposal's id, got {len(fitting)} {named}")
    return fitting[0]


def _publishing(examined: Examined, account: Account) -> Account | None:
    """Return the entry that published what this one prepared; None when none has, or this one prepared nothing."""
    if account.kind is not EntryKind.PREPARATION:
        return None
    return next((each for each in examined.accounts if each.prepared_by is account), None)


def _write_evidence(directory: Path, checked: list[CheckedSignature]) -> list[str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"--evidence {directory}: cannot be made: {error.strerror}") from error
    commands = []
    for one in checked:
        proof = evidence(one)
        if proof is not None:
            for name, data in proof.files.items():
                replace_file(directory / name, data, mode=0o644)
            commands.append(proof.command)
    return commands


# --- for machines ---


def _fields(account: Account, checked: list[CheckedSignature]) -> dict[str, object]:
    proposal, entry = account.proposal, account.entry
    return entry_fields(account) | {
        "log_id": entry.log_id,
        "position": account.position,
        "prev_hash": entry.prev_hash.hex(),
        "quarantined": account.quarantined,
        "created_at": proposal.created_at if proposal is not None else None,
        "expires_at": proposal.expires_at if proposal is not None else None,
        "min_pin": proposal.min_pin.number if proposal is not None else None,
        "activate_at": proposal.activate_at if proposal is not None else None,
        "lead_ms": proposal.lead_ms if proposal is not None else None,
        "acked_percent": proposal.acked_percent if proposal is not None else None,
        "moment": account.moment_ms,
        "step": _step_fields(account) if account.step is not None else None,
        "requester_key": account.requester_key.key_id if account.requester_key is not None else None,
        "approvals": [
            {
                "approver": statement.approval.approver,
                "decision": statement.approval.decision,
                "approved_at": statement.approval.approved_at,
                "expires_at": statement.approval.expires_at,
                "comment": statement.approval.comment,
                "key_id": statement.key.key_id,
                "algorithm": statement.key.algorithm,
            }
            for statement in account.approvals
        ],
        "changes": [change_fields(change, step=account.step is not None) for change in account.changes],
        "root": _root_fields(account.new_root) if account.new_root is not None else None,
        "holder": entry.body.holder if isinstance(entry.body, EpochClaim) else None,
        "signatures": [
            {
                "record": one.record,
                "key_id": one.key_id,
                "person": one.key.person if one.key is not None else None,
                "algorithm": one.key.algorithm if one.key is not None else None,
                "valid": one.valid,
            }
            for one in checked
        ],
    }


def _step_fields(account: Account) -> dict[str, object]:
    step, plan = account.step, account.allowed_by
    assert step is not None  # noqa: S101 — asked only of steps
    return {
        "release": step.release,
        "stage": step.stage,
        "expected_version": step.expected_version.number,
        "allowed_by": entry_fields(plan) if plan is not None else None,
    }


def _root_fields(root: Root) -> dict[str, object]:
    return {
        "version": root.version,
        "sha256": root.sha256.hex(),
        "expires_at": root.record.expires_at,
        "revoked": [
            {
                "key_id": revoked.key_id,
                "distrust_from_seq": revoked.distrust_from_seq.number if revoked.distrust_from_seq else None,
                "reason": revoked.reason,
            }
            for revoked in root.record.revoked
        ],
    }


# --- for people ---


def _lines(account: Account, checked: list[CheckedSignature], published: Account | None) -> Iterator[str]:
    entry = account.entry
    when = told(entry.published_at)
    under = f"in epoch {entry.epoch}, root version {entry.root_version}"
    yield f"seq {entry.seq}: {account.kind}, published {when} {under}"
    if account.refusal is not None:
        yield f"rejected    {account.refusal.code}: {inline(str(account.refusal))}"
        yield "            It changed nothing. Only what its own signatures prove is told as fact."
    if account.quarantined:
        yield "quarantine  another history was known before this entry: sidecars served it after the cure only"
    yield from _proposal_lines(account)
    for statement in account.approvals:
        approval = statement.approval
        comment = f": {inline(approval.comment)}" if approval.comment else ""
        word = "approved  " if approval.decision == "APPROVE" else "rejected  "
        yield f"{word}  {approval.approver}, {told(approval.approved_at)} ({key_told(statement.key)}){comment}"
    yield from _moment_lines(account)
    yield from _body_lines(account)
    if account.kind is EntryKind.PREPARATION:
        yield f"published   {line(published) if published is not None else 'not yet: it changed nothing so far'}"
    yield f"entry       {account.entry_hash.hex()}"
    yield f"follows     {entry.prev_hash.hex()}"
    yield "signatures"
    for one in checked:
        who = f"{one.key.person} ({key_told(one.key)})" if one.key is not None else f"key {one.key_id}, of nobody"
        yield f"    {one.record}: {who}: {'valid' if one.valid else 'NOT VALID'}"
    if not account.changes and account.ops:
        yield "asked for, and not done" if account.refusal is not None else "prepares"
        yield from (f"    {op.action.lower()} {op.state_id}" for op in account.ops)
    if account.changes:
        yield "plan"
        for change in account.changes:
            yield from _change_lines(account, change)


def _change_lines(account: Account, change: OpChange) -> Iterator[str]:
    yield f"    {headline(change)} (was seq {change.op.expected_version})"
    said = change_words(change.op.target, change.before, change.after, step=account.step is not None)
    yield from (f"        {inline(word)}" for word in said)
    name = str(change.op.state_id)
    shown = diff(change.before, change.after, old=f"{name} (before)", new=f"{name} (seq {account.seq})")
    yield from (f"        {text}" for text in shown.split("\n"))


def _proposal_lines(account: Account) -> Iterator[str]:
    proposal = account.proposal
    if proposal is not None and account.requester_key is not None:
        yield f"title       {inline(proposal.title)}"
        created = told(proposal.created_at)
        yield f"requested   {proposal.requester}, {created} ({key_told(account.requester_key)})"
        if proposal.reason:
            yield f"reason      {inline(proposal.reason)}"
        if proposal.ticket:
            yield f"ticket      {inline(proposal.ticket)}"
        yield f"proposal    {inline(proposal.proposal_id)}, expires {told(proposal.expires_at)}"
    elif (claim := account.claim()) is not None and account.kind is EntryKind.REJECTED:
        yield f"claims      (signed by nobody who may ask) {inline(claim.title)}, requested by {claim.requester}"
    if account.proposal_sha256 is not None:
        yield f"digest      {account.proposal_sha256.hex()}"
    if account.policy is not None:
        yield f"rule        {inline(account.policy)}"


def _moment_lines(account: Account) -> Iterator[str]:
    proposal = account.proposal
    asked = []
    if proposal is not None and proposal.activate_at is not None:
        asked.append(f"at {exactly(proposal.activate_at)}")
    if proposal is not None and proposal.lead_ms is not None:
        asked.append(f"{proposal.lead_ms} ms after its entry")
    if proposal is not None and proposal.acked_percent is not None:
        asked.append(f"once {proposal.acked_percent} % of the fleet has acknowledged its preparation")
    if asked:
        yield f"moment      asked for {', '.join(asked)}"
    if account.prepared_by is not None:
        yield f"prepared    {line(account.prepared_by)}"
    if account.in_force_at_ms is not None:
        at_once = account.in_force_at_ms == account.entry.published_at
        yield f"in force    {'at once' if at_once else f'from {exactly(account.in_force_at_ms)} on'}"


def _body_lines(account: Account) -> Iterator[str]:
    if account.releases:
        moves = f": {inline('; '.join(account.moves))}" if account.moves else ""
        yield f"release     {', '.join(account.releases)}{moves}"
    if account.allowed_by is not None:
        yield f"allowed by  {line(account.allowed_by)}"
    if account.ratified is not None:
        yield f"ratifies    seq {account.ratified.seq}: {inline(account.ratified.title)}"
    if isinstance(account.entry.body, EpochClaim):
        yield f"holder      {inline(account.entry.body.holder)}"
    if account.new_root is not None:
        root = account.new_root
        yield f"root        version {root.version}, {root.sha256.hex()}, expires {told(root.record.expires_at)}"
        for revoked in root.record.revoked:
            from_seq = f", distrusted from seq {revoked.distrust_from_seq} on" if revoked.distrust_from_seq else ""
            yield f"revoked     key {revoked.key_id}{from_seq}: {inline(revoked.reason)}"
