"""An entry as fields of `--json`, and the phrases that several commands share."""

from flaghoist.records import EpochClaim, RootKey
from flaghoist.values import Seq
from publisher.audit.account import Account, OpChange, releases_of
from publisher.audit.wording import canonical, words
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
        "ops": [
            {"action": op.action, "target": op.target, "source": op.source, "key": op.key,
             "definition": canonical(op.definition)}
            for op in account.ops
        ],
        "refusal": None if refusal is None else f"{refusal.code}: {refusal}",
    }  # fmt: skip


def change_fields(change: OpChange) -> dict[str, object]:
    """Return what one op did."""
    op = change.op
    return {
        "action": op.action,
        "target": op.target,
        "source": op.source,
        "key": op.key,
        "expected_version": op.expected_version.number,
        "verb": change.verb,
        "words": words(change.before, change.after),
        "releases": releases_of(op, change.before, change.after),
        "before": canonical(change.before),
        "after": canonical(change.after),
    }


def root_signers(account: Account) -> list[str]:
    """Return the people who signed the root that an entry put into force, sorted."""
    return sorted({key.person for key in account.root_signers})


def people(account: Account) -> str:
    """Return who did it: `requested by ada@example.org, approved by grace@example.org`."""
    said = []
    if account.requester is not None:
        said.append(f"requested by {account.requester}")
    if account.approvers:
        said.append(f"approved by {', '.join(account.approvers)}")
    if account.root_signers:
        said.append(f"signed by {', '.join(root_signers(account))}")
    if not said and isinstance(account.entry.body, EpochClaim):
        said.append(f"claimed by {inline(account.entry.body.holder)}")
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
