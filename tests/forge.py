"""Makes real keys, roots and signed records for tests: nothing is faked but the people. Keys come from fixed seeds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nacl.signing import SigningKey

from flaghoist.codec import APPROVAL, ENTRY, HEARTBEAT, PROPOSAL, ROOT, decode_envelope, encode_envelope
from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.ledger import Ledger, next_entry
from flaghoist.policy import APPROVALS_RULE, EMERGENCY_RULE
from flaghoist.records import (
    Approval,
    Body,
    Entry,
    Envelope,
    Heartbeat,
    Op,
    Proposal,
    Ratification,
    Release,
    RoleGrant,
    RootKey,
    RootRecord,
    RootUpdate,
)
from flaghoist.release_plan import CLOSED, Gate, ReleasePlan, encode_release
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
BEAT_LIFE_MS = 30_000
ADA, GRACE, LINUS = Person("ada@example.org"), Person("grace@example.org"), Person("linus@example.org")
PUBLISHER = Person("publisher@example.org")
EMERGENCY_LABEL, BEAT_LABEL = "emergency", "heartbeat"


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
    root_threshold: int = 1,
    emergency: Sequence[Person] = (),
    beats: bool = False,
    **changes: Any,
) -> RootRecord:
    """A root of version 1: everybody proposes and approves, the first `root_threshold` members sign roots.

    `emergency` people have a second key for that; with `beats` the publisher has one for heartbeats.
    """
    keys = [Key(person).listed for person in (*members, PUBLISHER)]
    ids = {key.person: key.key_id for key in keys}
    emergency_keys = [Key(person, EMERGENCY_LABEL).listed for person in emergency]
    beat_keys = [Key(PUBLISHER, BEAT_LABEL).listed] if beats else []
    keys += emergency_keys + beat_keys
    everybody = frozenset(ids[person] for person in members)
    record = RootRecord(
        log_id=LogId(log_id),
        version=1,
        prev_root_sha256=bytes(32),
        anchor_seq=Seq(0),
        anchor_hash=bytes(32),
        expires_at=NOW_MS + 365 * DAY_MS,
        keys=tuple(keys),
        roles={
            Role.ROOT: RoleGrant(
                frozenset(ids[person] for person in members[: max(3, root_threshold) if root_threshold > 1 else 1]),
                root_threshold,
            ),
            Role.REQUESTER: RoleGrant(everybody, 1),
            Role.APPROVER: RoleGrant(
                everybody if approvers is None else frozenset(ids[person] for person in approvers), approvals
            ),
            Role.PUBLISHER: RoleGrant(frozenset({ids[PUBLISHER]}), 1),
            **({Role.EMERGENCY: RoleGrant(frozenset(k.key_id for k in emergency_keys), 1)} if emergency else {}),
            **({Role.HEARTBEAT: RoleGrant(frozenset(k.key_id for k in beat_keys), 1)} if beats else {}),
        },
        fractional="v2",
        policy="",
        revoked=(),
    )
    return replace(record, **changes)


def gated_flag(release: str, **changes: Any) -> dict[str, Any]:
    """A boolean flag, off, that goes on for those whom a release's gate lets through."""
    return boolean_flag("off", targeting={"if": [{"$ref": f"release.{release}"}, "on"]}, **changes)


def release_plan(*flags: str, gate: Gate = CLOSED, **changes: Any) -> ReleasePlan:
    """The plan of a release of these flags (KEY or SOURCE#KEY), changed as told."""
    named = tuple((Source(source), FlagKey(key)) for source, _, key in (flag.rpartition("#") for flag in flags))
    plan = ReleasePlan(
        title="a release",
        owner=ADA,
        team=None,
        services=(),
        flags=named,
        bucket_by="targetingKey",
        salt="a-release",
        audience=None,
        stages=(),
        requires=(),
        lead_ms=0,
        ticket=None,
        expires_at=None,
        gate=gate,
    )
    return replace(plan, **changes)


def allowing_rule(root: Root) -> str:
    """What a release's entry names under a root without a policy."""
    return f"{APPROVALS_RULE}>={root.grant(Role.APPROVER).threshold}"


def sealed_root(record: RootRecord, *signers: Key) -> Envelope:
    return seal(ROOT, record, signers or (Key(record.keys[0].person),))


@dataclass
class Forge:
    """One environment with its people, and the ledger as its honest publisher knows it."""

    log_id: str = "test"
    approvals: int = 1
    now_ms: int = NOW_MS
    root_options: Mapping[str, Any] = field(default_factory=dict)
    first_root: Root = field(init=False)
    ledger: Ledger = field(init=False)
    records: list[bytes] = field(default_factory=list)
    publisher: Key = Key(PUBLISHER)

    def __post_init__(self) -> None:
        record = root_record(self.log_id, approvals=self.approvals, **self.root_options)
        signers = [Key(person) for person in (ADA, GRACE, LINUS)][: record.roles[Role.ROOT].threshold]
        self.first_root = Root.verified(sealed_root(record, *signers))
        self.ledger = Ledger(self.first_root)

    @property
    def root(self) -> Root:
        """The root in force; setting it begins another ledger."""
        return self.ledger.root

    @root.setter
    def root(self, first: Root) -> None:
        self.first_root = first
        self.ledger = Ledger(first)

    def op(self, key: str, flag: Mapping[str, object] | None, *, source: str = "", version: int | None = None) -> Op:
        """PUT of a flagd flag, or DELETE for None; expects the current version unless told."""
        definition = None if flag is None else encode_flag(flag, {})
        return self._op(Target.FLAG, key, definition, source, version)

    def evaluator_op(self, key: str, rule: Any, *, source: str = "", version: int | None = None) -> Op:
        return self._op(Target.EVALUATOR, key, None if rule is None else encode_evaluator(rule), source, version)

    def release_op(self, key: str, plan: ReleasePlan | None, *, version: int | None = None) -> Op:
        """PUT of a release, or DELETE for None; expects the current version unless told."""
        return self._op(Target.RELEASE, key, None if plan is None else encode_release(plan), "", version)

    def plan(self, key: str, **gate: Any) -> ReleasePlan:
        """The plan of a release as it is now, with its gate changed as told."""
        plan = self.ledger.snapshot.releases[FlagKey(key)].plan
        return replace(plan, gate=replace(plan.gate, **gate))

    def hoist(self, key: str, **gate: Any) -> Op:
        """The op that changes the gate of a release as told."""
        return self.release_op(key, self.plan(key, **gate))

    def raw_op(self, key: str, definition: object, *, version: int | None = None) -> Op:
        """PUT of any JSON as a flag's definition, also of what encode_flag would refuse."""
        return self._op(Target.FLAG, key, json.dumps(definition).encode(), "", version)

    def _op(self, target: Target, key: str, definition: bytes | None, source: str, version: int | None) -> Op:
        action = Action.DELETE if definition is None else Action.PUT
        op = Op(target, Source(source), FlagKey(key), Seq(0), action, definition)
        return replace(
            op, expected_version=self.ledger.snapshot.version_of(op.state_id) if version is None else Seq(version)
        )

    def proposal(self, *ops: Op, by: Person = ADA, signed_by: Key | None = None, **changes: Any) -> Envelope:
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
        return seal(PROPOSAL, replace(proposal, **changes), [signed_by or Key(by)])

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

    def entry(self, body: Body, **changes: Any) -> Entry:
        """The entry that follows the ledger's head, changed as told."""
        return replace(next_entry(self.ledger, body, now_ms=self.now_ms), **changes)

    def signed(self, entry: Entry, *, by: Key | None = None) -> bytes:
        return encode_envelope(seal(ENTRY, entry, [by or self.publisher]))

    def append(self, body: Body, *, signed_by: Key | None = None, **changes: Any) -> bytes:
        """Sign the next entry, take it into the ledger, and return its bytes."""
        data = self.signed(self.entry(body, **changes), by=signed_by)
        self.ledger.receive(data)
        self.records.append(data)
        return data

    def genesis(self) -> bytes:
        return self.append(RootUpdate(self.root.envelope))

    def next_root(self, *signers: Key, **changes: Any) -> Envelope:
        """The root that follows the one in force, changed as told; signed by ADA, GRACE and LINUS unless told."""
        record = replace(
            self.root.record,
            version=self.root.version + 1,
            prev_root_sha256=self.root.sha256,
            anchor_seq=self.ledger.head.seq,
            anchor_hash=self.ledger.head.entry_hash,
        )
        return sealed_root(replace(record, **changes), *(signers or (Key(ADA), Key(GRACE), Key(LINUS))))

    def rotate(self, *signers: Key, signed_by: Key | None = None, **changes: Any) -> bytes:
        """Append the root that follows."""
        return self.append(RootUpdate(self.next_root(*signers, **changes)), signed_by=signed_by)

    def kill_proposal(self, *keys: str, by: Person = GRACE, source: str = "", **changes: Any) -> Envelope:
        """An emergency proposal that kills these flags."""
        ops = [Op(Target.FLAG, Source(source), FlagKey(key), Seq(0), Action.KILL, None) for key in keys]
        ops = [replace(op, expected_version=self.ledger.snapshot.version_of(op.state_id)) for op in ops]
        told = {"kind": ProposalKind.EMERGENCY, "expires_at": self.now_ms + 10 * 60_000, **changes}
        return self.proposal(*ops, by=by, signed_by=Key(by, EMERGENCY_LABEL), **told)

    def kill(self, *keys: str, by: Person = GRACE, **changes: Any) -> bytes:
        """Append an emergency."""
        return self.append(Release(self.kill_proposal(*keys, by=by, **changes), (), EMERGENCY_RULE))

    def ratify(self, emergency: bytes, *, by: Sequence[Person] = (ADA,)) -> bytes:
        """Append the ratification of an emergency that an entry (its bytes) carried."""
        body = ENTRY.decode(decode_envelope(emergency).payload).body
        assert isinstance(body, Release)
        approvals = tuple(self.approval(body.proposal, by=person) for person in by)
        return self.append(Ratification(digest(body.proposal), approvals))

    def beat(self, *, by: Key | None = None, **changes: Any) -> bytes:
        """A signed heartbeat for the ledger's head."""
        head = self.ledger.head
        beat = Heartbeat(
            log_id=self.root.log_id,
            beat_no=self.now_ms,
            issued_at=self.now_ms,
            expires_at=self.now_ms + BEAT_LIFE_MS,
            seq=head.seq,
            head_hash=head.entry_hash,
            epoch=head.epoch,
            root_version=self.root.version,
            holder="publisher-1",
            state_root=None,
            checkpoint_seq=Seq(0),
        )
        return encode_envelope(seal(HEARTBEAT, replace(beat, **changes), [by or Key(PUBLISHER, BEAT_LABEL)]))

    def put(self, key: str, flag: Mapping[str, object] | None = None, **more: Any) -> bytes:
        """Append an approved change of one flag."""
        return self.append(self.release(self.op(key, flag if flag is not None else boolean_flag(), **more)))
