"""Entries as lines for other systems: JSON Lines and CloudEvents 1.0, byte for byte the same whoever writes them.

The fields are API: docs/audit.md tells them, docs/schema/audit-event.v1.json and audit-cloudevent.v1.json check them.
Source of the envelope: CloudEvents 1.0.2, JSON event format, structured mode.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from flaghoist.errors import Refused
from flaghoist.records import EpochClaim, Op, RootKey, Step
from flaghoist.root import Root
from flaghoist.values import Target
from publisher.audit.account import Account, EntryKind, OpChange, Statement
from publisher.audit.wording import canonical

DATA_SCHEMA: Final = "urn:flaghoist:schema:audit-event:v1"
SOURCE_PREFIX: Final = "urn:flaghoist:ledger:"

Json = dict[str, object]


class EventType(StrEnum):
    """What a line tells of; a change of meaning gets a new type with another version."""

    FLAG_CHANGED = "io.flaghoist.flag.changed.v1"
    EVALUATOR_CHANGED = "io.flaghoist.evaluator.changed.v1"
    RELEASE_CHANGED = "io.flaghoist.release.changed.v1"
    RELEASE_DRILLED = "io.flaghoist.release.drilled.v1"
    RELEASE_PREPARED = "io.flaghoist.release.prepared.v1"
    ROOT_CHANGED = "io.flaghoist.root.changed.v1"
    EMERGENCY_RATIFIED = "io.flaghoist.emergency.ratified.v1"
    ENTRY_REJECTED = "io.flaghoist.entry.rejected.v1"
    EPOCH_CLAIMED = "io.flaghoist.epoch.claimed.v1"


_CHANGES: Final = {
    Target.FLAG: EventType.FLAG_CHANGED,
    Target.EVALUATOR: EventType.EVALUATOR_CHANGED,
    Target.RELEASE: EventType.RELEASE_CHANGED,
    Target.DRILL: EventType.RELEASE_DRILLED,
}
_TYPES: Final = {
    EntryKind.PREPARATION: EventType.RELEASE_PREPARED,
    EntryKind.ROOT: EventType.ROOT_CHANGED,
    EntryKind.RATIFICATION: EventType.EMERGENCY_RATIFIED,
    EntryKind.REJECTED: EventType.ENTRY_REJECTED,
    EntryKind.EPOCH: EventType.EPOCH_CLAIMED,
}


def rfc3339(at_ms: int) -> str | None:
    """Return Unix milliseconds as RFC 3339 in UTC; None past the year 9999, which it cannot tell."""
    try:
        # Not from a float: a millisecond must not become another one.
        moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def events(account: Account) -> Iterator[Json]:
    """Yield the lines of one entry: one for each op that it applied, or one that says what else it is."""
    if account.changes:
        for number, change in enumerate(account.changes):
            yield _event(account, number, change)
    else:
        yield _event(account, 0, None)


def json_line(event: Json) -> bytes:
    """Return an event as one line of JSON Lines: ASCII, no spaces, fields in their fixed order."""
    return json.dumps(event, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def cloud_event(event: Json) -> Json:
    """Return the CloudEvent that carries an event as its data."""
    seq, number = event["seq"], event["op"]
    wrapped: Json = {
        "specversion": "1.0",
        "id": f"{event['log_id']}/{seq}/{number}",
        "source": f"{SOURCE_PREFIX}{event['log_id']}",
        "type": event["type"],
        "subject": _subject(event),
    }
    if event["time"] is not None:
        wrapped["time"] = event["time"]
    return wrapped | {
        "datacontenttype": "application/json",
        "dataschema": DATA_SCHEMA,
        # CloudEvents' Sequence extension: text that sorts as the ledger does.
        "sequence": f"{seq:019d}.{number:03d}",
        "data": event,
    }


def _subject(event: Json) -> str:
    match event["type"]:
        case EventType.FLAG_CHANGED | EventType.EVALUATOR_CHANGED:
            place = f"{event['source']}#{event['key']}" if event["source"] else str(event["key"])
            return place if event["target"] == Target.FLAG else f"evaluator {place}"
        case EventType.RELEASE_CHANGED | EventType.RELEASE_DRILLED:
            return f"release {event['key']}"
        case EventType.EMERGENCY_RATIFIED | EventType.RELEASE_PREPARED:
            return f"proposal {event['proposal_sha256']}"
        case _:
            return f"entry {event['seq']}"


def _event(account: Account, number: int, change: OpChange | None) -> Json:
    entry, proposal = account.entry, account.proposal
    op = change.op if change is not None else None
    body, step = entry.body, account.step
    return {
        "type": _type(account, op),
        "log_id": entry.log_id,
        "seq": entry.seq.number,
        "op": number,
        "time": rfc3339(entry.published_at),
        "published_at": entry.published_at,
        "entry_hash": account.entry_hash.hex(),
        "prev_hash": entry.prev_hash.hex(),
        "epoch": entry.epoch,
        "root_version": entry.root_version,
        "publishers": _signers(account.publishers),
        "kind": account.kind,
        "target": op.target if op is not None else None,
        "source": op.source if op is not None else None,
        "key": op.key if op is not None else None,
        "action": op.action if op is not None else None,
        "before": canonical(change.before) if change is not None else None,
        "after": canonical(change.after) if change is not None else None,
        "releases": change.releases if change is not None else account.releases,
        "initiator": _initiator(account),
        "approvals": [_approval(statement) for statement in account.approvals],
        "policy": account.policy,
        "title": proposal.title if proposal is not None else None,
        "reason": proposal.reason if proposal is not None else None,
        "ticket": proposal.ticket if proposal is not None else None,
        "proposal_id": proposal.proposal_id if proposal is not None else None,
        "proposal_sha256": account.proposal_sha256.hex() if account.proposal_sha256 is not None else None,
        "asked": [_asked(one) for one in account.ops] if not _done(account) else None,
        "refusal": _refusal(account.refusal) if account.refusal is not None else None,
        "root": _root(account.new_root, account) if account.new_root is not None else None,
        "ratified": _ratified(account.ratified) if account.ratified is not None else None,
        "holder": body.holder if isinstance(body, EpochClaim) and account.refusal is None else None,
        "release": _release(account, op),
        "gate": change.moved(step=step is not None) if change is not None else None,
        "step": _step(step, account) if step is not None else None,
        "moment": account.moment_ms,
        "in_force_at": account.in_force_at_ms,
        "activate_at": proposal.activate_at if proposal is not None else None,
        "lead_ms": proposal.lead_ms if proposal is not None else None,
        "acked_percent": proposal.acked_percent if proposal is not None else None,
        "prepared_by": account.prepared_by.seq.number if account.prepared_by is not None else None,
    }


def _type(account: Account, op: Op | None) -> EventType:
    return _TYPES[account.kind] if op is None else _CHANGES[op.target]


def _done(account: Account) -> bool:
    """Whether what was asked for has happened: a rejected entry changed nothing, a prepared one nothing yet."""
    return account.kind not in (EntryKind.REJECTED, EntryKind.PREPARATION)


def _release(account: Account, op: Op | None) -> str | None:
    """Return the release that a line changes or rehearses; of a rejected step, the one it was about."""
    if op is not None:
        return str(op.key) if op.target in (Target.RELEASE, Target.DRILL) else None
    return str(account.step.release) if account.step is not None else None


def _step(step: Step, account: Account) -> Json:
    allowed_by = account.allowed_by
    return {
        "stage": step.stage,
        "expected_version": step.expected_version.number,
        "allowed_by": _allowed_by(allowed_by) if allowed_by is not None else None,
    }


def _allowed_by(plan: Account) -> Json:
    return {
        "seq": plan.seq.number,
        "proposal_id": plan.proposal.proposal_id if plan.proposal is not None else None,
        "requester": plan.requester,
        "approvers": plan.approvers,
        "policy": plan.policy,
    }


def _initiator(account: Account) -> Json | None:
    if account.proposal is None or account.requester_key is None:
        return None
    key = account.requester_key
    return {
        "person": account.proposal.requester,
        "key_id": key.key_id,
        "algorithm": key.algorithm,
        "created_at": account.proposal.created_at,
    }


def _approval(statement: Statement) -> Json:
    approval, key = statement.approval, statement.key
    return {
        "person": approval.approver,
        "key_id": key.key_id,
        "algorithm": key.algorithm,
        "approved_at": approval.approved_at,
        "decision": approval.decision,
        "comment": approval.comment,
    }


def _asked(op: Op) -> Json:
    return {"target": op.target, "source": op.source, "key": op.key, "action": op.action}


def _refusal(refusal: Refused) -> Json:
    return {"code": refusal.code, "message": str(refusal)}


def _signers(keys: tuple[RootKey, ...]) -> list[Json]:
    return [{"person": key.person, "key_id": key.key_id, "algorithm": key.algorithm} for key in keys]


def _root(root: Root, account: Account) -> Json:
    record = root.record
    return {
        "version": record.version,
        "sha256": root.sha256.hex(),
        "prev_sha256": record.prev_root_sha256.hex() if any(record.prev_root_sha256) else None,
        "expires_at": record.expires_at,
        "signed_by": _signers(account.root_signers),
        "keys": [
            {"person": key.person, "key_id": key.key_id, "algorithm": key.algorithm} for key in record.keys
        ],
        "roles": [
            {"role": role, "threshold": grant.threshold, "key_ids": sorted(grant.key_ids)}
            for role, grant in sorted(record.roles.items())
        ],
        "revoked": [
            {
                "key_id": revoked.key_id,
                "distrust_from_seq": None if revoked.distrust_from_seq is None else revoked.distrust_from_seq.number,
                "reason": revoked.reason,
            }
            for revoked in record.revoked
        ],
        "policy": record.policy,
    }  # fmt: skip


def _ratified(emergency: Account) -> Json:
    assert emergency.proposal is not None  # noqa: S101 — an emergency is a proposal
    return {
        "seq": emergency.seq.number,
        "proposal_id": emergency.proposal.proposal_id,
        "title": emergency.proposal.title,
        "flags": [{"source": op.source, "key": op.key} for op in emergency.ops if op.target is Target.FLAG],
        "releases": [str(op.key) for op in emergency.ops if op.target is Target.RELEASE],
    }
