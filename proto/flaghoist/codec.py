"""Between bytes and records: Avro, exactly. Decoding consumes the whole buffer or refuses it; nothing is re-encoded.

The schemas are the .avsc files beside this module, for readers in any language.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final, Generic, TypeVar

import fastavro
from fastavro.schema import to_parsing_canonical_form

from flaghoist.errors import Malformed, TooLarge
from flaghoist.records import (
    Acknowledgement,
    Approval,
    Body,
    Entry,
    Envelope,
    EpochClaim,
    Heartbeat,
    Op,
    Preparation,
    Proposal,
    Ratification,
    Release,
    Revocation,
    RoleGrant,
    RootKey,
    RootRecord,
    RootUpdate,
    Signature,
    Step,
)
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
    Target,
)

# Half of what a Kafka broker accepts by default (message.max.bytes = 1 MiB), so that a batch header always fits.
ENVELOPE_BYTES_MAX: Final = 512 * 1024
# One import of a large file; with definitions of 1 KiB it just fits an envelope.
OPS_MAX: Final = 500
# More people than any policy asks for; bounds the work that one record can cause before it is refused.
SIGNATURES_MAX: Final = 16
APPROVALS_MAX: Final = 16
# A title is one line on a terminal; a reason is a paragraph or two.
TITLE_CHARS_MAX: Final = 200
REASON_CHARS_MAX: Final = 4000
# A few hundred rules; a root is read by every sidecar.
POLICY_CHARS_MAX: Final = 64 * 1024
HASH_BYTES: Final = 32

R = TypeVar("R")
Fields = Mapping[str, Any]


class _Walk:
    """Steps over Avro bytes without making anything of them, so that lists are counted before one is built.

    A signature may be two bytes long. Half a megabyte of such would keep a decoder busy for a quarter of a second, and
    anybody who can write to a topic could so stop every reader.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        """Step over a long, an int, an enum or a union's branch, and return it."""
        value = shift = 0
        while shift < 70:  # 64 bits, seven a byte
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise Malformed("a number of more than 64 bits")

    def skip(self) -> None:
        """Step over a string or bytes."""
        length = self.number()
        if length < 0:
            raise Malformed(f"a length of {length}")
        self._at += length

    def skip_optional(self) -> None:
        """Step over a union of null and a string or bytes."""
        if self.number():
            self.skip()

    def items(self, limit: int, what: str, unit: str) -> Iterator[None]:
        """Yield for each item of a list, which the caller steps over.

        Raises:
            TooLarge: it claims more than `limit`.
        """
        count = 0
        while block := self.number():
            if block < 0:  # then its size in bytes follows
                self.number()
                block = -block
            count += block
            if count > limit:
                raise TooLarge(what, limit=limit, got=count, unit=unit)
            for _ in range(block):
                yield


class RecordCodec(Generic[R]):
    """Encodes and decodes one kind of signed record.

    Args:
        count: walks over the bytes before they are decoded, and refuses lists that are too long.
    """

    def __init__(
        self,
        name: str,
        to_fields: Callable[[R], object],
        from_fields: Callable[[Fields], R],
        count: Callable[[_Walk], None] = lambda _: None,
    ) -> None:
        text = resources.files("flaghoist").joinpath("avro", f"{name}.avsc").read_text(encoding="utf-8")
        self.name = name
        self.payload_type = f"application/vnd.flaghoist.{name}.v1+avro"
        self.schema_sha256 = hashlib.sha256(to_parsing_canonical_form(json.loads(text)).encode()).digest()
        self._schema = fastavro.parse_schema(json.loads(text))
        self._to_fields = to_fields
        self._from_fields = from_fields
        self._count = count

    def encode(self, record: R) -> bytes:
        """Return the record's Avro bytes: what is signed from then on."""
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, self._schema, self._to_fields(record))
        return buffer.getvalue()

    def decode(self, payload: bytes) -> R:
        """Return the record in exactly these bytes.

        Raises:
            Malformed: not such a record, or bytes left over.
            TooLarge: a list in it has more items than it may.
        """
        try:
            self._count(_Walk(payload))
        except IndexError as error:
            raise Malformed(f"{len(payload)} bytes are not Avro of {self.payload_type}: they end too early") from error
        buffer = io.BytesIO(payload)
        try:
            fields: Any = fastavro.schemaless_reader(buffer, self._schema, None, return_record_name=True)
        except Exception as error:
            # fastavro raises whatever its input leads it to (EOF, Index, Unicode, Value…): all say "not such bytes".
            raise Malformed(f"{len(payload)} bytes are not Avro of {self.payload_type}: {error!r}") from error
        if buffer.tell() != len(payload):
            raise Malformed(f"{self.name}: expected {buffer.tell()} bytes, got {len(payload)}: trailing bytes")
        return self._from_fields(fields)


def _hash(name: str, value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise Malformed(f"{name}: want {HASH_BYTES} bytes, got {len(value)}")
    return value


def _time(name: str, value: int) -> int:
    if not 0 <= value < 2**53:  # JSON readers hold integers exactly up to 2^53
        raise Malformed(f"{name}: want Unix milliseconds, got {value}")
    return value


def _text(name: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise TooLarge(name, limit=limit, got=len(value), unit="characters")
    return value


# --- envelope ---


def _envelope_to(envelope: Envelope) -> dict[str, object]:
    return {
        "payload_type": envelope.payload_type,
        "schema_sha256": envelope.schema_sha256,
        "payload": envelope.payload,
        "signatures": [{"key_id": str(s.key_id), "signature": s.signature} for s in envelope.signatures],
    }


def _envelope_from(fields: Fields) -> Envelope:
    return Envelope(
        payload_type=fields["payload_type"],
        schema_sha256=_hash("schema_sha256", fields["schema_sha256"]),
        payload=fields["payload"],
        signatures=tuple(Signature(KeyId(s["key_id"]), s["signature"]) for s in fields["signatures"]),
    )


def _count_in_envelope(walk: _Walk) -> None:
    for _ in range(3):  # payload_type, schema_sha256, payload
        walk.skip()
    for _ in walk.items(SIGNATURES_MAX, "envelope", "signatures"):
        walk.skip()
        walk.skip()


_ENVELOPE: Final = RecordCodec("envelope", _envelope_to, _envelope_from, _count_in_envelope)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the bytes that travel.

    Raises:
        TooLarge: more than ENVELOPE_BYTES_MAX; such a record would be refused by every reader.
    """
    data = _ENVELOPE.encode(envelope)
    if len(data) > ENVELOPE_BYTES_MAX:
        raise TooLarge("envelope", limit=ENVELOPE_BYTES_MAX, got=len(data))
    return data


def decode_envelope(data: bytes) -> Envelope:
    """Return the envelope in these untrusted bytes; its signatures are not checked yet.

    Raises:
        TooLarge: over ENVELOPE_BYTES_MAX, refused before parsing, or over SIGNATURES_MAX.
        Malformed: not an envelope, or bytes left over.
    """
    if len(data) > ENVELOPE_BYTES_MAX:
        raise TooLarge("envelope", limit=ENVELOPE_BYTES_MAX, got=len(data))
    return _ENVELOPE.decode(data)


# --- proposal and approval ---


def _proposal_to(proposal: Proposal) -> dict[str, object]:
    return {
        "log_id": str(proposal.log_id),
        "proposal_id": proposal.proposal_id,
        "requester": str(proposal.requester),
        "created_at": proposal.created_at,
        "expires_at": proposal.expires_at,
        "kind": proposal.kind.value,
        "title": proposal.title,
        "reason": proposal.reason,
        "ticket": proposal.ticket,
        "ops": [
            {
                "target": op.target.value,
                "source": str(op.source),
                "key": str(op.key),
                "expected_version": op.expected_version.number,
                "action": op.action.value,
                "definition": op.definition,
            }
            for op in proposal.ops
        ],
        "activate_at": proposal.activate_at,
        "lead_ms": proposal.lead_ms,
        "acked_percent": proposal.acked_percent,
        "min_pin": proposal.min_pin.number,
    }


def _op_from(fields: Fields) -> Op:
    action = Action(fields["action"])
    definition: bytes | None = fields["definition"]
    if (definition is None) == (action is Action.PUT):
        raise Malformed(f"op {action}: want a definition for PUT and none otherwise, got {type(definition).__name__}")
    return Op(
        target=Target(fields["target"]),
        source=Source(fields["source"]),
        key=FlagKey(fields["key"]),
        expected_version=Seq(fields["expected_version"]),
        action=action,
        definition=definition,
    )


def _proposal_from(fields: Fields) -> Proposal:
    if not fields["ops"]:
        raise TooLarge("proposal", limit=OPS_MAX, got=0, unit="ops (at least 1)")
    return Proposal(
        log_id=LogId(fields["log_id"]),
        proposal_id=_text("proposal_id", fields["proposal_id"], 64),
        requester=Person(fields["requester"]),
        created_at=_time("created_at", fields["created_at"]),
        expires_at=_time("expires_at", fields["expires_at"]),
        kind=ProposalKind(fields["kind"]),
        title=_text("title", fields["title"], TITLE_CHARS_MAX),
        reason=_text("reason", fields["reason"], REASON_CHARS_MAX),
        ticket=None if fields["ticket"] is None else _text("ticket", fields["ticket"], TITLE_CHARS_MAX),
        ops=tuple(_op_from(op) for op in fields["ops"]),
        activate_at=None if fields["activate_at"] is None else _time("activate_at", fields["activate_at"]),
        min_pin=Seq(fields["min_pin"]),
        lead_ms=None if fields["lead_ms"] is None else _time("lead_ms", fields["lead_ms"]),
        acked_percent=fields["acked_percent"],
    )


def _count_in_proposal(walk: _Walk) -> None:
    for _ in range(3):  # log_id, proposal_id, requester
        walk.skip()
    for _ in range(3):  # created_at, expires_at, kind
        walk.number()
    walk.skip()  # title
    walk.skip()  # reason
    walk.skip_optional()  # ticket
    for _ in walk.items(OPS_MAX, "proposal", "ops (at least 1)"):
        walk.number()  # target
        walk.skip()  # source
        walk.skip()  # key
        walk.number()  # expected_version
        walk.number()  # action
        walk.skip_optional()  # definition


PROPOSAL: Final = RecordCodec("proposal", _proposal_to, _proposal_from, _count_in_proposal)


def _approval_to(approval: Approval) -> dict[str, object]:
    return {
        "log_id": str(approval.log_id),
        "proposal_sha256": approval.proposal_sha256,
        "approver": str(approval.approver),
        "decision": approval.decision.value,
        "approved_at": approval.approved_at,
        "expires_at": approval.expires_at,
        "comment": approval.comment,
    }


def _approval_from(fields: Fields) -> Approval:
    return Approval(
        log_id=LogId(fields["log_id"]),
        proposal_sha256=_hash("proposal_sha256", fields["proposal_sha256"]),
        approver=Person(fields["approver"]),
        decision=Decision(fields["decision"]),
        approved_at=_time("approved_at", fields["approved_at"]),
        expires_at=_time("expires_at", fields["expires_at"]),
        comment=None if fields["comment"] is None else _text("comment", fields["comment"], REASON_CHARS_MAX),
    )


APPROVAL: Final = RecordCodec("approval", _approval_to, _approval_from)


# --- root ---


def _root_to(root: RootRecord) -> dict[str, object]:
    return {
        "log_id": str(root.log_id),
        "version": root.version,
        "prev_root_sha256": root.prev_root_sha256,
        "anchor_seq": root.anchor_seq.number,
        "anchor_hash": root.anchor_hash,
        "expires_at": root.expires_at,
        "keys": [
            {"key_id": str(k.key_id), "algorithm": k.algorithm.value, "public": k.public, "person": str(k.person)}
            for k in root.keys
        ],
        "roles": [
            {"role": role.value, "key_ids": sorted(grant.key_ids), "threshold": grant.threshold}
            for role, grant in sorted(root.roles.items())
        ],
        "fractional": root.fractional,
        "policy": root.policy,
        "revoked": [
            {
                "key_id": str(r.key_id),
                "distrust_from_seq": None if r.distrust_from_seq is None else r.distrust_from_seq.number,
                "reason": r.reason,
            }
            for r in root.revoked
        ],
    }


def _root_from(fields: Fields) -> RootRecord:
    roles = {
        Role(r["role"]): RoleGrant(frozenset(KeyId(k) for k in r["key_ids"]), r["threshold"]) for r in fields["roles"]
    }
    if len(roles) != len(fields["roles"]):
        raise Malformed("root: a role is listed twice")
    return RootRecord(
        log_id=LogId(fields["log_id"]),
        version=fields["version"],
        prev_root_sha256=_hash("prev_root_sha256", fields["prev_root_sha256"]),
        anchor_seq=Seq(fields["anchor_seq"]),
        anchor_hash=_hash("anchor_hash", fields["anchor_hash"]),
        expires_at=_time("expires_at", fields["expires_at"]),
        keys=tuple(
            RootKey(KeyId(k["key_id"]), Algorithm(k["algorithm"]), k["public"], Person(k["person"]))
            for k in fields["keys"]
        ),
        roles=roles,
        fractional=fields["fractional"],
        policy=_text("policy", fields["policy"], POLICY_CHARS_MAX),
        revoked=tuple(
            Revocation(
                KeyId(r["key_id"]),
                None if r["distrust_from_seq"] is None else Seq(r["distrust_from_seq"]),
                _text("reason", r["reason"], REASON_CHARS_MAX),
            )
            for r in fields["revoked"]
        ),
    )


ROOT: Final = RecordCodec("root", _root_to, _root_from)


# --- entry ---


def _body_to(body: Body) -> tuple[str, dict[str, object]]:
    match body:
        case Release():
            return "flaghoist.v1.Release", _release_to(body)
        case RootUpdate():
            return "flaghoist.v1.RootUpdate", {"root": _envelope_to(body.root)}
        case EpochClaim():
            return "flaghoist.v1.EpochClaim", {"holder": body.holder}
        case Ratification():
            return "flaghoist.v1.Ratification", {
                "proposal_sha256": body.proposal_sha256,
                "approvals": [_envelope_to(a) for a in body.approvals],
            }
        case Preparation():
            return "flaghoist.v1.Preparation", {"release": _release_to(body.release)}
        case Step():
            return "flaghoist.v1.Step", {
                "release": str(body.release),
                "expected_version": body.expected_version.number,
                "stage": body.stage,
            }


def _release_to(release: Release) -> dict[str, object]:
    return {
        "proposal": _envelope_to(release.proposal),
        "approvals": [_envelope_to(a) for a in release.approvals],
        "policy": release.policy,
    }


def _release_from(fields: Fields) -> Release:
    return Release(
        proposal=_envelope_from(fields["proposal"]),
        approvals=_approvals("release", fields["approvals"]),
        policy=_text("policy", fields["policy"], TITLE_CHARS_MAX),
    )


def _body_from(value: Any) -> Body:
    name, fields = value
    match name:
        case "flaghoist.v1.Release":
            return _release_from(fields)
        case "flaghoist.v1.RootUpdate":
            return RootUpdate(_envelope_from(fields["root"]))
        case "flaghoist.v1.Ratification":
            return Ratification(
                _hash("proposal_sha256", fields["proposal_sha256"]), _approvals("ratification", fields["approvals"])
            )
        case "flaghoist.v1.Preparation":
            return Preparation(_release_from(fields["release"]))
        case "flaghoist.v1.Step":
            return Step(FlagKey(fields["release"]), Seq(fields["expected_version"]), fields["stage"])
        case _:
            return EpochClaim(_text("holder", fields["holder"], TITLE_CHARS_MAX))


def _approvals(what: str, envelopes: Sequence[Fields]) -> tuple[Envelope, ...]:
    return tuple(_envelope_from(envelope) for envelope in envelopes)


def _entry_to(entry: Entry) -> dict[str, object]:
    return {
        "log_id": str(entry.log_id),
        "seq": entry.seq.number,
        "prev_hash": entry.prev_hash,
        "epoch": entry.epoch,
        "root_version": entry.root_version,
        "published_at": entry.published_at,
        "body": _body_to(entry.body),
    }


def _entry_from(fields: Fields) -> Entry:
    return Entry(
        log_id=LogId(fields["log_id"]),
        seq=Seq(fields["seq"]),
        prev_hash=_hash("prev_hash", fields["prev_hash"]),
        epoch=fields["epoch"],
        root_version=fields["root_version"],
        published_at=_time("published_at", fields["published_at"]),
        body=_body_from(fields["body"]),
    )


def _count_in_entry(walk: _Walk) -> None:
    walk.skip()  # log_id
    walk.number()  # seq
    walk.skip()  # prev_hash
    for _ in range(3):  # epoch, root_version, published_at
        walk.number()
    match walk.number():  # the body's branch, in the order of entry.avsc
        case 0 | 4:  # a release; one that is prepared
            _count_in_envelope(walk)
            _count_approvals(walk, "release")
        case 1:
            _count_in_envelope(walk)
        case 3:
            walk.skip()  # proposal_sha256
            _count_approvals(walk, "ratification")
        case _:
            pass


def _count_approvals(walk: _Walk, what: str) -> None:
    for _ in walk.items(APPROVALS_MAX, what, "approvals"):
        _count_in_envelope(walk)


ENTRY: Final = RecordCodec("entry", _entry_to, _entry_from, _count_in_entry)


# --- heartbeat ---


def _heartbeat_to(beat: Heartbeat) -> dict[str, object]:
    return {
        "log_id": str(beat.log_id),
        "beat_no": beat.beat_no,
        "issued_at": beat.issued_at,
        "expires_at": beat.expires_at,
        "seq": beat.seq.number,
        "head_hash": beat.head_hash,
        "epoch": beat.epoch,
        "root_version": beat.root_version,
        "holder": beat.holder,
        "state_root": beat.state_root,
        "checkpoint_seq": beat.checkpoint_seq.number,
    }


def _heartbeat_from(fields: Fields) -> Heartbeat:
    return Heartbeat(
        log_id=LogId(fields["log_id"]),
        beat_no=_time("beat_no", fields["beat_no"]),
        issued_at=_time("issued_at", fields["issued_at"]),
        expires_at=_time("expires_at", fields["expires_at"]),
        seq=Seq(fields["seq"]),
        head_hash=_hash("head_hash", fields["head_hash"]),
        epoch=fields["epoch"],
        root_version=fields["root_version"],
        holder=_text("holder", fields["holder"], TITLE_CHARS_MAX),
        state_root=None if fields["state_root"] is None else _hash("state_root", fields["state_root"]),
        checkpoint_seq=Seq(fields["checkpoint_seq"]),
    )


HEARTBEAT: Final = RecordCodec("heartbeat", _heartbeat_to, _heartbeat_from)


# --- acknowledgement ---


def _acknowledgement_to(ack: Acknowledgement) -> dict[str, object]:
    return {
        "log_id": str(ack.log_id),
        "instance": ack.instance,
        "service": ack.service,
        "version": ack.version,
        "started_at": ack.started_at,
        "written_at": ack.written_at,
        "state": ack.state,
        "seq": ack.seq.number,
        "entry_hash": ack.entry_hash,
        "state_root": ack.state_root,
        "applied_at": ack.applied_at,
        "in_force": ack.in_force.number,
        "activated_at": ack.activated_at,
        "late_ms": ack.late_ms,
        "clock_offset_ms": ack.clock_offset_ms,
    }


def _acknowledgement_from(fields: Fields) -> Acknowledgement:
    return Acknowledgement(
        log_id=LogId(fields["log_id"]),
        instance=_text("instance", fields["instance"], TITLE_CHARS_MAX),
        service=_text("service", fields["service"], TITLE_CHARS_MAX),
        version=_text("version", fields["version"], TITLE_CHARS_MAX),
        started_at=_time("started_at", fields["started_at"]),
        written_at=_time("written_at", fields["written_at"]),
        state=_text("state", fields["state"], TITLE_CHARS_MAX),
        seq=Seq(fields["seq"]),
        entry_hash=_hash("entry_hash", fields["entry_hash"]),
        state_root=_hash("state_root", fields["state_root"]),
        applied_at=_time("applied_at", fields["applied_at"]),
        in_force=Seq(fields["in_force"]),
        activated_at=_time("activated_at", fields["activated_at"]),
        late_ms=fields["late_ms"],
        clock_offset_ms=fields["clock_offset_ms"],
    )


ACKNOWLEDGEMENT: Final = RecordCodec("acknowledgement", _acknowledgement_to, _acknowledgement_from)
