"""What a signature covers and who may make one: DSSE's PAE, Ed25519 by libsodium, the same by an SSH agent, ECDSA P-256
for HSM and KMS.

Source: DSSE v1.0 (github.com/secure-systems-lab/dsse, protocol.md, "Signature Definition").
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

from flaghoist import sshsig
from flaghoist.codec import RecordCodec
from flaghoist.errors import Malformed, SignatureRefused
from flaghoist.records import Envelope, RootKey, Signature
from flaghoist.values import Algorithm, KeyId

ED25519_PUBLIC_BYTES: Final = 32
ED25519_SIGNATURE_BYTES: Final = 64
P256_PUBLIC_BYTES: Final = 65  # SEC1 uncompressed: 0x04, x, y

R = TypeVar("R")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding of type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def digest(envelope: Envelope) -> bytes:
    """Return SHA-256 over what is signed: an entry's hash in the chain, and how an approval names its proposal."""
    return hashlib.sha256(pae(envelope.payload_type, envelope.payload)).digest()


def key_id(algorithm: Algorithm, public: bytes) -> KeyId:
    """Return a public key's fingerprint: the first 128 bits of SHA-256 over algorithm and key, as hex."""
    return KeyId(hashlib.sha256(algorithm.encode() + b"\0" + public).hexdigest()[:32])


def check_public(algorithm: Algorithm, public: bytes) -> None:
    """Refuse a public key that nobody can hold honestly.

    Raises:
        Malformed: wrong length, not on the curve, or (Ed25519) of small order: under such a key anyone can make
            signatures that verify (Chalkias, Garillot, Nikolaenko: "Taming the many EdDSAs", 2020).
    """
    match algorithm:
        case Algorithm.ED25519 | Algorithm.SSHSIG_ED25519:
            if len(public) != ED25519_PUBLIC_BYTES:
                raise Malformed(f"Ed25519 public key: want {ED25519_PUBLIC_BYTES} bytes, got {len(public)}")
            if not crypto_core_ed25519_is_valid_point(public):
                raise Malformed(f"Ed25519 public key {public.hex()}: not a point of the prime-order group")
        case Algorithm.ECDSA_P256:
            if len(public) != P256_PUBLIC_BYTES:
                raise Malformed(f"P-256 public key: want {P256_PUBLIC_BYTES} bytes, got {len(public)}")
            from cryptography.hazmat.primitives.asymmetric import ec  # 40 ms to import; few roots have such a key

            try:
                ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
            except ValueError as error:
                raise Malformed(f"P-256 public key {public.hex()}: not a point of the curve") from error


def verifies(algorithm: Algorithm, public: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` over `message` is by the holder of `public` (checked before); any bytes may be given."""
    match algorithm:
        case Algorithm.ED25519:
            return _ed25519_verifies(public, signature, message)
        case Algorithm.SSHSIG_ED25519:
            return _ed25519_verifies(public, signature, sshsig.signed_bytes(message))
        case Algorithm.ECDSA_P256:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.asymmetric import ec

            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
            try:
                point.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                return False
            return True


def _ed25519_verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    if len(signature) != ED25519_SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True


def verified_keys(envelope: Envelope, keys: Iterable[RootKey]) -> Sequence[RootKey]:
    """Return those of `keys` whose signature on the envelope verifies; each key once, however often it signed."""
    signed: Mapping[KeyId, bytes] = {s.key_id: s.signature for s in envelope.signatures}
    message = pae(envelope.payload_type, envelope.payload)
    return [
        key for key in keys if key.key_id in signed and verifies(key.algorithm, key.public, signed[key.key_id], message)
    ]


class Signer(Protocol):
    """Holds a private key, or knows who does (an agent, an HSM, a KMS)."""

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def public(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`.

        Raises:
            Unavailable: the holder of the key does not answer.
        """
        ...


def seal(codec: RecordCodec[R], record: R, signers: Sequence[Signer]) -> Envelope:
    """Encode a record once and sign exactly these bytes.

    Raises:
        SignatureRefused: a signer returned something that its own public key does not verify.
    """
    return countersign(Envelope(codec.payload_type, codec.schema_sha256, codec.encode(record), ()), signers)


def countersign(envelope: Envelope, signers: Sequence[Signer]) -> Envelope:
    """Add signatures over the same bytes."""
    message = pae(envelope.payload_type, envelope.payload)
    signatures = list(envelope.signatures)
    for signer in signers:
        key = key_id(signer.algorithm, signer.public)
        signature = signer.sign(message)
        # A faulty agent or HSM must be noticed here, not by every reader of the ledger.
        if not verifies(signer.algorithm, signer.public, signature, message):
            raise SignatureRefused(f"the signer of key {key} returned a signature that its public key does not verify")
        signatures.append(Signature(key, signature))
    return Envelope(envelope.payload_type, envelope.schema_sha256, envelope.payload, tuple(signatures))
