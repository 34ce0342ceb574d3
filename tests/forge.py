"""Makes real keys, roots and signed records for tests: nothing is faked but the people. Keys come from fixed seeds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nacl.signing import SigningKey

from flaghoist.authorization import allowing_rule
from flaghoist.codec import APPROVAL, ENTRY, PROPOSAL, ROOT, encode_envelope
from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.ledger import Ledger, next_entry
from flaghoist.records import (
    Approval,
    Entry,
    Envelope,
    EpochClaim,
    Op,
    Proposal,
    Release,
    RoleGrant,
    RootKey,
    RootRecord,
    RootUpdate,
)
from flaghoist.root import Root
from flaghoist.signing import digest, key_id, seal
from flaghoist.values import (
    Action,
    Algorithm,
    Decision,
    FlagKey,
    LogId,
    Person,
    ProposalKind,
    Role,
    Seq,
    Source,
    Target,
)

NOW_MS = 1_780_000_000_000
DAY_MS = 86_400_000
ADA, GRACE, LINUS = Person("ada@example.org"), Person("grace@example.org"), Person("linus@example.org")
PUBLISHER = Person("publisher@example.org")


@dataclass(frozen=True)
class Key:
    """An Ed25519 key pair made from a name, so that test ids and vectors are stable."""

    person: Person
    label: str = ""
    algorithm: Algorithm = Algorithm.ED25519

    @property
    def secret(self) -> SigningKey:
        return SigningKey(hashlib.sha256(f"flaghoist test key {self.person} {self.label}".encode()).digest())

    @property
    def public(self) -> bytes:
        return bytes(self.secret.verify_key)

    @property
    def listed(self) -> RootKey:
        return RootKey(key_id(self.algorithm, self.public), self.algorithm, self.public, self.person)

    def sign(self, message: bytes) -> bytes:
        return self.secret.sign(message).signature


def boolean_flag(default: str = "off", **more: object) -> dict[str, object]:
    return {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": default, **more}


def root_record(
    log_id: str = "test",
    *,
    approvals: int = 1,
    members: Sequence[Person] = (ADA, GRACE, LINUS),
    approvers: Sequence[Person] | None = None,
    **changes: Any,
) -> RootRecord:
    keys = [Key(person).listed for person in (*members, PUBLISHER)]
    ids = {key.person: key.key_id for key in keys}
    everybody = frozenset(ids[person] for person in members)
    record = RootRecord(
        log_id=LogId(log_id),
        version=1,
        prev_root_sha256=bytes(32),
        expires_at=NOW_MS + 365 * DAY_MS,
        keys=tuple(keys),
        roles={
            Role.ROOT: RoleGrant(frozenset({ids[members[0]]}), 1),
            Role.REQUESTER: RoleGrant(everybody, 1),
            Role.APPROVER: RoleGrant(
                everybody if approvers is None else frozenset(ids[person] for person in approvers), approvals
            ),
            Role.PUBLISHER: RoleGrant(frozenset({ids[PUBLISHER]}), 1),
        },
        fractional="v2",
        policy="",
        revoked=(),
    )
    return replace(record, **changes)


def sealed_root(record: RootRecord, *signers: Key) -> Envelope:
    return seal(ROOT, record, signers or (Key(record.keys[0].person),))


@dataclass
class Forge:
    """One environment with its people, and the ledger as its honest publisher knows it."""

    log_id: str = "test"
    approvals: int = 1
    now_ms: int = NOW_MS
    root: Root = field(init=False)
    ledger: Ledger = field(init=False)
    records: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = Root.verified(sealed_root(root_record(self.log_id, approvals=self.approvals)))
        self.ledger = Ledger(self.root)

    def op(self, key: str, flag: Mapping[str, object] | None, *, source: str = "", version: int | None = None) -> Op:
        """PUT of a flagd flag, or DELETE for None; expects the current version unless told."""
        definition = None if flag is None else encode_flag(flag, {})
        return self._op(Target.FLAG, key, definition, source, version)

    def evaluator_op(self, key: str, rule: Any, *, source: str = "", version: int | None = None) -> Op:
        return self._op(Target.EVALUATOR, key, None if rule is None else encode_evaluator(rule), source, version)

    def raw_op(self, key: str, definition: object, *, version: int | None = None) -> Op:
        """PUT of any JSON as a flag's definition, also of what encode_flag would refuse."""
        return self._op(Target.FLAG, key, json.dumps(definition).encode(), "", version)

    def _op(self, target: Target, key: str, definition: bytes | None, source: str, version: int | None) -> Op:
        action = Action.DELETE if definition is None else Action.PUT
        op = Op(target, Source(source), FlagKey(key), Seq(0), action, definition)
        return replace(
            op, expected_version=self.ledger.snapshot.version_of(op.state_id) if version is None else Seq(version)
        )

    def proposal(self, *ops: Op, by: Person = ADA, **changes: Any) -> Envelope:
        digest_of_ops = hashlib.sha256(repr(ops).encode()).hexdigest()
        proposal = Proposal(
            log_id=self.root.log_id,
            proposal_id=digest_of_ops[:26].upper(),
            requester=by,
            created_at=self.now_ms,
            expires_at=self.now_ms + 7 * DAY_MS,
            kind=ProposalKind.CHANGE,
            title="a change",
            reason="a test needs it",
            ticket=None,
            ops=ops,
            activate_at=None,
            min_pin=Seq(0),
        )
        return seal(PROPOSAL, replace(proposal, **changes), [Key(by)])

    def approval(self, proposal: Envelope, *, by: Person = GRACE, **changes: Any) -> Envelope:
        approval = Approval(
            log_id=self.root.log_id,
            proposal_sha256=digest(proposal),
            approver=by,
            decision=Decision.APPROVE,
            approved_at=self.now_ms,
            expires_at=self.now_ms + DAY_MS,
            comment=None,
        )
        return seal(APPROVAL, replace(approval, **changes), [Key(by)])

    def release(self, *ops: Op, by: Person = ADA, approved_by: Sequence[Person] = (GRACE,)) -> Release:
        proposal = self.proposal(*ops, by=by)
        approvals = tuple(self.approval(proposal, by=person) for person in approved_by)
        return Release(proposal, approvals, allowing_rule(self.root))

    def entry(self, body: Release | RootUpdate | EpochClaim, **changes: Any) -> Entry:
        """The entry that follows the ledger's head, changed as told."""
        return replace(next_entry(self.ledger, body, now_ms=self.now_ms), **changes)

    def signed(self, entry: Entry, *, by: Key | None = None) -> bytes:
        return encode_envelope(seal(ENTRY, entry, [by or Key(PUBLISHER)]))

    def append(self, body: Release | RootUpdate | EpochClaim, **changes: Any) -> bytes:
        """Sign the next entry, take it into the ledger, and return its bytes."""
        data = self.signed(self.entry(body, **changes))
        self.ledger.receive(data)
        self.records.append(data)
        return data

    def genesis(self) -> bytes:
        return self.append(RootUpdate(self.root.envelope))

    def put(self, key: str, flag: Mapping[str, object] | None = None, **more: Any) -> bytes:
        """Append an approved change of one flag."""
        return self.append(self.release(self.op(key, flag if flag is not None else boolean_flag(), **more)))
