"""Bytes and records: exact, bounded, and the same for a reader in any language."""

import contextlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import fastavro
import pytest

from flaghoist.codec import (
    APPROVAL,
    ENTRY,
    ENVELOPE_BYTES_MAX,
    HEARTBEAT,
    OPS_MAX,
    PROPOSAL,
    ROOT,
    SIGNATURES_MAX,
    decode_envelope,
    encode_envelope,
)
from flaghoist.definition import encode_flag
from flaghoist.errors import Malformed, Refused, TooLarge
from flaghoist.records import EpochClaim, Revocation, RootUpdate, Signature
from flaghoist.signing import digest
from flaghoist.values import Action, KeyId, Seq
from tests.forge import GRACE, LINUS, Forge, Key, boolean_flag, root_record, sealed_root

VECTORS = Path(__file__).parents[2] / "vectors" / "records"
CODECS = {"proposal": PROPOSAL, "approval": APPROVAL, "root": ROOT, "entry": ENTRY, "heartbeat": HEARTBEAT}


def golden() -> dict[str, bytes]:
    """A ledger of three entries, its root, a proposal and an approval: the same bytes on every run."""
    forge = Forge("golden")
    genesis = forge.genesis()
    release = forge.release(
        forge.op("new-checkout", boolean_flag()), forge.evaluator_op("internal", {"var": "internal"})
    )
    return {
        "root": encode_envelope(forge.root.envelope),
        "entry-1-root": genesis,
        "proposal": encode_envelope(release.proposal),
        "approval": encode_envelope(release.approvals[0]),
        "entry-2-release": forge.append(release),
        "entry-3-epoch-claim": forge.append(EpochClaim("second-publisher")),
    }


def golden_governance() -> dict[str, bytes]:
    """Another ledger: a flag is killed, the kill ratified, the root rotated; heartbeats tell of it."""
    forge = Forge("golden", root_options={"emergency": (GRACE,), "beats": True, "root_threshold": 2})
    forge.genesis()
    put = replace(
        forge.op("checkout", boolean_flag()), definition=encode_flag(boolean_flag("on"), {"safe_variant": "off"})
    )
    forge.append(forge.release(put))
    killed = forge.kill("checkout")
    ratified = forge.ratify(killed)
    rotated = forge.rotate(
        policy="version: 1\nrules:\n  - name: any\n",
        revoked=(Revocation(Key(LINUS, "lost").listed.key_id, Seq(2), "laptop stolen"),),
    )
    forge.append(replace(forge.release(forge.op("later", boolean_flag())), policy="any"))
    assert forge.ledger.snapshot.seq == Seq(6)
    return {
        "governed-root": encode_envelope(forge.first_root.envelope),
        "governed-entry-3-emergency": killed,
        "governed-entry-4-ratification": ratified,
        "governed-root-2": encode_envelope(forge.root.envelope),
        "governed-entry-5-root-2": rotated,
        "governed-heartbeat": forge.beat(),
        "governed-heartbeat-with-state-root": forge.beat(state_root=b"\x07" * 32, checkpoint_seq=Seq(5)),
    }


GOLDEN = golden() | golden_governance()


@pytest.mark.parametrize("name", GOLDEN)
def test_record_has_its_golden_bytes(name, request):
    file = VECTORS / f"{name}.json"
    data = GOLDEN[name]
    envelope = decode_envelope(data)
    stated = {
        "origin": "tests/unit/flaghoist/test_codec.py:golden; Ed25519 keys from SHA-256 of names in tests/forge.py",
        "payload_type": envelope.payload_type,
        "digest": digest(envelope).hex(),
        "envelope": data.hex(),
    }
    if request.config.getoption("--rewrite"):
        file.write_text(json.dumps(stated, indent=2) + "\n")
    assert stated == json.loads(file.read_text())


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_schema_is_named_by_its_canonical_form(codec):
    text = (Path(__file__).parents[3] / "proto/flaghoist/avro" / f"{codec.name}.avsc").read_text()
    assert (
        fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(json.loads(text)), "SHA-256")
        == codec.schema_sha256.hex()
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_an_envelope_raises_anything_but_refused(seed):
    rng = random.Random(seed)
    for data in GOLDEN.values():
        for _ in range(40):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            cut = bytes(damaged[: rng.randint(0, len(damaged))]) if rng.random() < 0.3 else bytes(damaged)
            for decode in (decode_envelope, *(codec.decode for codec in CODECS.values())):
                with contextlib.suppress(Refused):
                    decode(cut)


def test_envelope_over_its_limit_is_neither_written_nor_read():
    envelope = replace(sealed_root(root_record()), payload=bytes(ENVELOPE_BYTES_MAX))
    with pytest.raises(TooLarge, match=str(ENVELOPE_BYTES_MAX)):
        encode_envelope(envelope)
    with pytest.raises(TooLarge, match=str(ENVELOPE_BYTES_MAX)):
        decode_envelope(bytes(ENVELOPE_BYTES_MAX + 1))


def test_more_signatures_than_allowed_are_refused():
    crowd = (Signature(KeyId("0" * 32), b"s"),) * (SIGNATURES_MAX + 1)
    with pytest.raises(TooLarge, match="16 signatures, got 17"):
        decode_envelope(encode_envelope(replace(sealed_root(root_record()), signatures=crowd)))


def test_more_ops_than_allowed_are_refused():
    forge = Forge()
    ops = [forge.op(f"flag-{n}", boolean_flag()) for n in range(OPS_MAX + 1)]
    assert len(PROPOSAL.decode(forge.proposal(*ops[:OPS_MAX]).payload).ops) == OPS_MAX
    with pytest.raises(TooLarge, match="at most 500 ops"):
        PROPOSAL.decode(forge.proposal(*ops).payload)


def test_proposal_without_ops_is_refused():
    with pytest.raises(TooLarge, match="got 0"):
        PROPOSAL.decode(Forge().proposal().payload)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_trailing_bytes_are_refused(codec):
    payloads = {decode_envelope(data).payload_type: decode_envelope(data).payload for data in GOLDEN.values()}
    payload = payloads[codec.payload_type]
    codec.decode(payload)
    with pytest.raises(Malformed, match="trailing bytes"):
        codec.decode(payload + b"\0")


@pytest.mark.parametrize("time_ms", [-1, 2**53])
def test_time_that_is_none_is_refused(time_ms):
    entry = Forge().entry(EpochClaim("somebody"), published_at=time_ms)
    with pytest.raises(Malformed, match="published_at: want Unix milliseconds"):
        ENTRY.decode(ENTRY.encode(entry))


@pytest.mark.parametrize(("action", "definition"), [(Action.PUT, None), (Action.DELETE, b"{}"), (Action.KILL, b"{}")])
def test_op_has_a_definition_if_it_puts_one(action, definition):
    forge = Forge()
    op = replace(forge.op("new-checkout", boolean_flag()), action=action, definition=definition)
    with pytest.raises(Malformed, match="want a definition for PUT and none otherwise"):
        PROPOSAL.decode(forge.proposal(op).payload)


def test_root_that_grants_a_role_twice_is_refused():
    payload = ROOT.encode(root_record())
    schema = json.loads((Path(__file__).parents[3] / "proto/flaghoist/avro/root.avsc").read_text())
    fields = fastavro.schemaless_reader(io.BytesIO(payload), schema)
    fields["roles"].append(fields["roles"][0])
    twice = io.BytesIO()
    fastavro.schemaless_writer(twice, schema, fields)
    with pytest.raises(Malformed, match="a role is listed twice"):
        ROOT.decode(twice.getvalue())


def test_hash_of_a_wrong_length_is_refused():
    forge = Forge()
    entry = forge.entry(RootUpdate(forge.root.envelope), prev_hash=b"short")
    with pytest.raises(Malformed, match="prev_hash: want 32 bytes, got 5"):
        ENTRY.decode(ENTRY.encode(entry))


def _avro_long(number: int) -> bytes:
    """Return a number as Avro writes it: zigzag, seven bits a byte."""
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 0x7F:
        out += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return out + bytes([rest])


def _avro_bytes(data: bytes) -> bytes:
    return _avro_long(len(data)) + data


_HEAD = _avro_bytes(ENTRY.payload_type.encode()) + _avro_bytes(ENTRY.schema_sha256)
_EMPTY_ENVELOPE = bytes(4)
_FRAME = _avro_bytes(b"test") + _avro_long(2) + _avro_bytes(bytes(32)) + _avro_long(1) * 2 + _avro_long(0)
_MANY = 100_000
_WORDS = b"".join(_avro_bytes(word) for word in (b"test", b"01K", b"ada@example.org"))
BOMBS = {
    "signatures": (decode_envelope, _HEAD + bytes(1) + _avro_long(_MANY) + bytes(2 * _MANY) + bytes(1)),
    "signatures in a sized block": (
        decode_envelope, _HEAD + bytes(1) + _avro_long(-_MANY) + _avro_long(2 * _MANY) + bytes(2 * _MANY) + bytes(1),
    ),
    "signatures in many blocks": (decode_envelope, _HEAD + bytes(1) + (_avro_long(1) + bytes(2)) * _MANY + bytes(1)),
    "signatures that are only claimed": (decode_envelope, _HEAD + bytes(1) + _avro_long(2**62)),
    "approvals of a release": (
        ENTRY.decode, _FRAME + _avro_long(0) + _EMPTY_ENVELOPE + _avro_long(_MANY) + _EMPTY_ENVELOPE * _MANY + bytes(2),
    ),
    "approvals of a ratification": (
        ENTRY.decode, _FRAME + _avro_long(3) + bytes(1) + _avro_long(_MANY) + _EMPTY_ENVELOPE * _MANY + bytes(1),
    ),
    "signatures of a root in an entry": (
        ENTRY.decode, _FRAME + _avro_long(1) + bytes(3) + _avro_long(_MANY) + bytes(2 * _MANY) + bytes(1),
    ),
    "ops": (PROPOSAL.decode, _WORDS + bytes(3) + bytes(3) + _avro_long(_MANY // 2) + bytes(6 * _MANY // 2) + bytes(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_list_that_is_too_long_is_refused_before_it_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, data = BOMBS[name]
    read = 0

    def counted(*args: object, **more: object) -> object:
        nonlocal read
        read += 1
        raise AssertionError("its items were read")

    monkeypatch.setattr(fastavro, "schemaless_reader", counted)
    with pytest.raises(TooLarge):
        decode(data)
    assert read == 0


@pytest.mark.parametrize("length", [-1, -(2**62), 2**62], ids=["minus one", "very negative", "beyond the end"])
def test_length_that_cannot_be_is_refused(length: int) -> None:
    with pytest.raises(Malformed):
        decode_envelope(_avro_long(length) + bytes(40))
