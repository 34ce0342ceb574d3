"""`flaghoist audit show`: everything of one entry."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from flaghoist.errors import Misconfigured
from flaghoist.records import EpochClaim
from flaghoist.root import Root
from flaghoist.values import Seq
from publisher.audit.account import Account, EntryKind
from publisher.audit.signatures import CheckedSignature, evidence, signatures
from publisher.audit.wording import diff, headline, words
from publisher.cli.audit.examined import Examined, UnknownEntry, conclude, examine
from publisher.cli.audit.fields import change_fields, entry_fields, key_told
from publisher.cli.audit.instant import told
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

    PROPOSAL is a proposal's id, or its beginning.

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
    work.desk.result(_fields(account, checked) | {"evidence": commands}, "\n".join(_lines(account, checked)))
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
    if len(fitting) != 1:
        named = ", ".join(f"seq {account.seq}" for account in fitting[:5])
        raise UnknownEntry(f"{text!r}: want a seq, or the beginning of one proposal's id, got {len(fitting)} {named}")
    return fitting[0]


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
        "changes": [change_fields(change) for change in account.changes],
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


def _lines(account: Account, checked: list[CheckedSignature]) -> Iterator[str]:
    entry = account.entry
    published = told(entry.published_at)
    under = f"in epoch {entry.epoch}, root version {entry.root_version}"
    yield f"seq {entry.seq}: {account.kind}, published {published} {under}"
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
    yield from _body_lines(account)
    yield f"entry       {account.entry_hash.hex()}"
    yield f"follows     {entry.prev_hash.hex()}"
    yield "signatures"
    for one in checked:
        who = f"{one.key.person} ({key_told(one.key)})" if one.key is not None else f"key {one.key_id}, of nobody"
        yield f"    {one.record}: {who}: {'valid' if one.valid else 'NOT VALID'}"
    if account.refusal is not None and account.ops:
        yield "asked for, and not done"
        yield from (f"    {op.action.lower()} {op.state_id}" for op in account.ops)
    if account.changes:
        yield "plan"
        for change in account.changes:
            yield f"    {headline(change)} (was seq {change.op.expected_version})"
            yield from (f"        {word}" for word in words(change.before, change.after))
            name = str(change.op.state_id)
            shown = diff(change.before, change.after, old=f"{name} (before)", new=f"{name} (seq {entry.seq})")
            yield from (f"        {line}" for line in shown.split("\n"))


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


def _body_lines(account: Account) -> Iterator[str]:
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
