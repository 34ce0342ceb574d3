"""An entry as fields of `--json`, and the phrases that several commands share."""

from flaghoist.records import EpochClaim, RootKey
from flaghoist.values import Seq
from publisher.audit.account import Account, OpChange
from publisher.audit.wording import canonical, change_words
from publisher.cli.audit.instant import told
from publisher.cli.desk import inline


def entry_fields(account: Account) -> dict[str, object]:
    """Return one entry as `audit log --json` lists it."""
    entry, proposal = account.entry, account.proposal
    refusal = account.refusal
    return {
        "seq": entry.seq.number,
        "entry_hash": account.entry_hash.hex(),
        "epoch": entry.epoch,
        "root_version": entry.root_version,
        "published_at": entry.published_at,
        "kind": account.kind,
        "requester": account.requester,
        "approvers": account.approvers,
        "root_signers": root_signers(account),
        "policy": account.policy,
        "title": account.title if refusal is None else (proposal.title if proposal is not None else None),
        "reason": proposal.reason if proposal is not None else None,
        "ticket": proposal.ticket if proposal is not None else None,
        "proposal": proposal.proposal_id if proposal is not None else None,
        "proposal_sha256": account.proposal_sha256.hex() if account.proposal_sha256 is not None else None,
        "ratifies": account.ratified.seq.number if account.ratified is not None else None,
        "releases": account.releases,
        "gate": account.moves,
        "in_force_at": account.in_force_at_ms,
        "allowed_by": account.allowed_by.seq.number if account.allowed_by is not None else None,
        "prepared_by": account.prepared_by.seq.number if account.prepared_by is not None else None,
        "ops": [
            {"action": op.action, "target": op.target, "source": op.source, "key": op.key,
             "definition": canonical(op.definition)}
            for op in account.ops
        ],
        "refusal": None if refusal is None else f"{refusal.code}: {refusal}",
    }  # fmt: skip


def change_fields(change: OpChange, *, step: bool = False) -> dict[str, object]:
    """Return what one op did, or the step of a release."""
    op = change.op
    return {
        "action": op.action,
        "target": op.target,
        "source": op.source,
        "key": op.key,
        "expected_version": op.expected_version.number,
        "verb": change.verb,
        "words": change_words(op.target, change.before, change.after, step=step),
        "releases": change.releases,
        "before": canonical(change.before),
        "after": canonical(change.after),
    }


def root_signers(account: Account) -> list[str]:
    """Return the people who signed the root that an entry put into force, sorted."""
    return sorted({key.person for key in account.root_signers})


def people(account: Account) -> str:
    """Return who did it: `requested by ada@example.org, approved by grace@example.org`; of a step, who planned it."""
    said = []
    if account.requester is not None:
        said.append(f"requested by {account.requester}")
    if account.approvers:
        said.append(f"approved by {', '.join(account.approvers)}")
    if account.root_signers:
        said.append(f"signed by {', '.join(root_signers(account))}")
    if not said and isinstance(account.entry.body, EpochClaim):
        said.append(f"claimed by {inline(account.entry.body.holder)}")
    if account.allowed_by is not None:
        said.append(f"as seq {account.allowed_by.seq} planned, {people(account.allowed_by)}")
    return ", ".join(said)


def line(account: Account) -> str:
    """Return an entry in one line: seq, when, who, what."""
    who = people(account)
    when = told(account.entry.published_at)
    return f"seq {account.seq}, {when}{', ' if who else ''}{who}: {inline(account.title)}"


def key_told(key: RootKey) -> str:
    return f"key {key.key_id}, {key.algorithm}"


def seq_or_none(seq: Seq) -> int | None:
    """Return a seq's number; None for 0, which is none."""
    return seq.number or None
