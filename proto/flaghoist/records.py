"""The signed records, parsed: what proposals, approvals, entries and roots say (design: docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flaghoist.values import (
    Action,
    Algorithm,
    Decision,
    FlagKey,
    KeyId,
    LogId,
    Person,
    ProposalKind,
    Role,
    Seq,
    Source,
    StateId,
    Target,
)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature over PAE(payload_type, payload), by the key that `key_id` names."""

    key_id: KeyId
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """Exact payload bytes and the signatures over them. Nothing in it is trusted until signing.py has verified it."""

    payload_type: str
    schema_sha256: bytes
    payload: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One change of one definition.

    `expected_version` is the seq of the entry that last changed the definition (0: never existed; a deleted one keeps
    the seq of its deletion). `definition` is UTF-8 JSON (definition.py, release_plan.py) for PUT, None otherwise.
    """

    target: Target
    source: Source
    key: FlagKey
    expected_version: Seq
    action: Action
    definition: bytes | None

    @property
    def state_id(self) -> StateId:
        return StateId(self.target, self.source, self.key)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one person asks for; all of its ops are applied, or none. Times are Unix milliseconds UTC.

    It takes effect at `activate_at`, or `lead_ms` after its entry is published, or, when both are None, at once.
    `acked_percent` (1 .. 100): it is published only after so many of the fleet have acknowledged its preparation.
    """

    log_id: LogId
    proposal_id: str
    requester: Person
    created_at: int
    expires_at: int
    kind: ProposalKind
    title: str
    reason: str
    ticket: str | None
    ops: tuple[Op, ...]
    activate_at: int | None
    min_pin: Seq
    lead_ms: int | None = None
    acked_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """What another person says of exactly one proposal, named by the digest of its signed bytes."""

    log_id: LogId
    proposal_sha256: bytes
    approver: Person
    decision: Decision
    approved_at: int
    expires_at: int
    comment: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """Body of an entry that changes state: the proposal as signed, its approvals, and the rule that allowed it."""

    proposal: Envelope
    approvals: tuple[Envelope, ...]
    policy: str


@dataclass(frozen=True, slots=True)
class RootUpdate:
    """Body of an entry that states a root; the ledger's first entry states the one that readers have pinned."""

    root: Envelope


@dataclass(frozen=True, slots=True)
class EpochClaim:
    """Body of the entry by which a publisher takes over; entries of earlier epochs that come after it are void."""

    holder: str


@dataclass(frozen=True, slots=True)
class Ratification:
    """Body of an entry by which people stand behind an emergency that an earlier entry carried."""

    proposal_sha256: bytes
    approvals: tuple[Envelope, ...]


@dataclass(frozen=True, slots=True)
class Preparation:
    """Body of an entry that shows every reader what is about to be published, so that they say when they have it."""

    release: Release


@dataclass(frozen=True, slots=True)
class Step:
    """Body of the entry by which a publisher takes a release to its next stage, as the approved plan says.

    Nobody signs it but the publisher: every reader checks that the plan in force says just that.
    """

    release: FlagKey
    expected_version: Seq
    stage: int


Body: TypeAlias = Release | RootUpdate | EpochClaim | Ratification | Preparation | Step


@dataclass(frozen=True, slots=True)
class Entry:
    """One link of the ledger. `prev_hash` is the entry hash of seq - 1 (32 zero bytes for seq 1)."""

    log_id: LogId
    seq: Seq
    prev_hash: bytes
    epoch: int
    root_version: int
    published_at: int
    body: Body


@dataclass(frozen=True, slots=True)
class RootKey:
    """A public key and the person who holds it."""

    key_id: KeyId
    algorithm: Algorithm
    public: bytes
    person: Person


@dataclass(frozen=True, slots=True)
class RoleGrant:
    """Who may act in a role, and how many *people* it takes."""

    key_ids: frozenset[KeyId]
    threshold: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """A key that lost its roles because it is no longer trusted.

    What it signed from `distrust_from_seq` on stays in force and is listed as tainted, so that people look at it again;
    None: it was only lost or retired.
    """

    key_id: KeyId
    distrust_from_seq: Seq | None
    reason: str


@dataclass(frozen=True, slots=True)
class RootRecord:
    """Who may do what, as written; root.Root is the checked form.

    `anchor_hash` is the entry hash at `anchor_seq` in the ledger that the signers saw, so that old, stolen keys cannot
    make up another history that leads to this root.
    """

    log_id: LogId
    version: int
    prev_root_sha256: bytes
    anchor_seq: Seq
    anchor_hash: bytes
    expires_at: int
    keys: tuple[RootKey, ...]
    roles: Mapping[Role, RoleGrant]
    fractional: str
    policy: str
    revoked: tuple[Revocation, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a publisher saw as the ledger's head at `issued_at`; it counts until `expires_at`. Times are Unix ms UTC.

    `holder` names the publisher at work; `state_root` and `checkpoint_seq` (0: none) let readers compare states.
    """

    log_id: LogId
    beat_no: int
    issued_at: int
    expires_at: int
    seq: Seq
    head_hash: bytes
    epoch: int
    root_version: int
    holder: str
    state_root: bytes | None
    checkpoint_seq: Seq


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What one sidecar says of itself; nobody signs it. Times are Unix milliseconds UTC by the sidecar's clock.

    Attributes:
        instance: the pod's name; the key in the stream.
        service: what the pod serves; "" when that was not told.
        version: the sidecar's release.
        state: the verifier's state.
        seq: the newest entry that it has verified, with its hash and the digest of the state there.
        in_force: what it answers from: behind `seq` while a moment is awaited, or while it must not serve more.
        late_ms: how long after its moment `in_force` was first answered from; None when no moment was set, or when it
            had passed before the sidecar began.
        clock_offset_ms: the publisher's clock less this one's, by the best of the last heartbeats; None before one.
    """

    log_id: LogId
    instance: str
    service: str
    version: str
    started_at: int
    written_at: int
    state: str
    seq: Seq
    entry_hash: bytes
    state_root: bytes
    applied_at: int
    in_force: Seq
    activated_at: int
    late_ms: int | None
    clock_offset_ms: int | None
