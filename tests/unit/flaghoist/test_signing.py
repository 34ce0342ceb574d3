"""What a signature covers, and which keys may make one."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flaghoist import sshsig
from flaghoist.codec import PROPOSAL
from flaghoist.errors import Malformed, SignatureRefused
from flaghoist.signing import check_public, countersign, digest, key_id, pae, seal, verified_keys, verifies
from flaghoist.values import Algorithm
from tests.forge import ADA, GRACE, Forge, Key, boolean_flag

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/signing.json").read_text())


@pytest.fixture
def proposal():
    forge = Forge()
    return forge.proposal(forge.op("new-checkout", boolean_flag()))


def test_pae_is_as_the_dsse_specification_shows_it():
    # protocol.md of DSSE v1.0, "Signature Definition", its own example.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_pae_counts_bytes_not_characters():
    assert pae("é", b"\xc3\xa9") == b"DSSEv1 2 \xc3\xa9 2 \xc3\xa9"


@pytest.mark.parametrize("vector", VECTORS["ed25519"], ids=lambda vector: vector["name"])
def test_ed25519_agrees_with_rfc_8032(vector):
    public, message, signature = (bytes.fromhex(vector[name]) for name in ("public", "message", "signature"))
    check_public(Algorithm.ED25519, public)
    assert verifies(Algorithm.ED25519, public, signature, message)
    assert not verifies(Algorithm.ED25519, public, signature, message + b"\0")
    assert not verifies(Algorithm.ED25519, public, signature[:-1] + bytes([signature[-1] ^ 1]), message)


@pytest.mark.parametrize("vector", VECTORS["sshsig"], ids=lambda vector: vector["name"])
def test_ssh_signatures_agree_with_openssh(vector):
    public, message, signature = (bytes.fromhex(vector[name]) for name in ("public", "message", "signature"))
    check_public(Algorithm.SSHSIG_ED25519, public)
    assert verifies(Algorithm.SSHSIG_ED25519, public, signature, message)
    assert not verifies(Algorithm.SSHSIG_ED25519, public, signature, message + b"\0")
    assert not verifies(Algorithm.ED25519, public, signature, message)
    assert sshsig.armoured(public, signature) == vector["armour"]


@pytest.mark.parametrize("vector", VECTORS["small_order"], ids=lambda vector: vector["public"][:16])
def test_small_order_public_key_is_refused(vector):
    with pytest.raises(Malformed, match="prime-order"):
        check_public(Algorithm.ED25519, bytes.fromhex(vector["public"]))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_ed25519_key_of_a_wrong_length_is_refused(length):
    with pytest.raises(Malformed, match=f"want 32 bytes, got {length}"):
        check_public(Algorithm.ED25519, bytes(length))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64], ids=len)
def test_any_bytes_may_be_given_as_a_signature(signature):
    assert not verifies(Algorithm.ED25519, Key(ADA).public, signature, b"message")


def test_p256_signature_verifies_and_its_key_must_be_on_the_curve():
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    signature = private.sign(b"message", ec.ECDSA(hashes.SHA256()))
    check_public(Algorithm.ECDSA_P256, public)
    assert verifies(Algorithm.ECDSA_P256, public, signature, b"message")
    assert not verifies(Algorithm.ECDSA_P256, public, signature, b"another")
    assert not verifies(Algorithm.ECDSA_P256, public, b"not DER", b"message")
    with pytest.raises(Malformed, match="curve"):
        check_public(Algorithm.ECDSA_P256, public[:-1] + bytes([public[-1] ^ 1]))


def test_sealing_signs_exactly_the_encoded_bytes(proposal):
    assert proposal.payload_type == "application/vnd.flaghoist.proposal.v1+avro"
    assert verified_keys(proposal, [Key(ADA).listed, Key(GRACE).listed]) == [Key(ADA).listed]
    assert PROPOSAL.encode(PROPOSAL.decode(proposal.payload)) == proposal.payload


def test_digest_depends_on_the_type_as_well_as_on_the_bytes(proposal):
    disguised = type(proposal)("text/plain", proposal.schema_sha256, proposal.payload, proposal.signatures)
    assert digest(disguised) != digest(proposal)
    assert not verified_keys(disguised, [Key(ADA).listed])


def test_countersigning_keeps_the_bytes_and_adds_a_key(proposal):
    both = countersign(proposal, [Key(GRACE)])
    assert both.payload == proposal.payload
    assert digest(both) == digest(proposal)
    assert verified_keys(both, [Key(ADA).listed, Key(GRACE).listed]) == [Key(ADA).listed, Key(GRACE).listed]


def test_signer_that_returns_a_wrong_signature_is_noticed_before_anything_is_sent():
    class Faulty(Key):
        def sign(self, message: bytes) -> bytes:
            return super().sign(message + b"\0")

    forge = Forge()
    record = PROPOSAL.decode(forge.proposal(forge.op("new-checkout", boolean_flag())).payload)
    with pytest.raises(SignatureRefused, match=key_id(Algorithm.ED25519, Key(ADA).public)):
        seal(PROPOSAL, record, [Faulty(ADA)])


def test_key_id_names_the_algorithm_and_the_key():
    public = Key(ADA).public
    assert key_id(Algorithm.ED25519, public) != key_id(Algorithm.ECDSA_P256, public)
    assert len(key_id(Algorithm.ED25519, public)) == 32
