"""Every signature that an entry carries, checked one by one; and what an auditor needs to check it with other tools."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flaghoist import sshsig
from flaghoist.records import Envelope, RootKey, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import pae, verifies
from flaghoist.values import Algorithm, KeyId
from publisher.audit.account import Account

# DER of SubjectPublicKeyInfo up to the raw key. Sources: RFC 8410, section 4 (Ed25519); RFC 5480, section 2 (P-256).
_SPKI_ED25519: Final = bytes.fromhex("302a300506032b6570032100")
_SPKI_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")


@dataclass(frozen=True, slots=True)
class CheckedSignature:
    """One signature on one record of an entry.

    Attributes:
        record: "entry", "root", "proposal", "approval-1", …
        key: the key that it names, as the root in force then (or the root that the entry states) lists it; None: no key
            of either.
        valid: it verifies under that key. Whether the key may sign this is the verifier's word, not this one's.
        message: the bytes that are signed (PAE).
    """

    record: str
    key_id: KeyId
    key: RootKey | None
    signature: bytes
    valid: bool
    message: bytes


def signatures(account: Account) -> Iterator[CheckedSignature]:
    """Yield every signature of an entry and of the records inside of it."""
    roots = [account.root] if account.new_root is None else [account.root, account.new_root]
    body = account.entry.body
    inside: list[tuple[str, Envelope]] = [("entry", account.envelope)]
    if isinstance(body, RootUpdate):
        inside.append(("root", body.root))
    if account.release is not None:
        inside.append(("proposal", account.release.proposal))
    inside += [(f"approval-{number}", envelope) for number, envelope in enumerate(account.approval_envelopes, 1)]
    for record, envelope in inside:
        message = pae(envelope.payload_type, envelope.payload)
        for one in envelope.signatures:
            key = _key(roots, one.key_id)
            valid = key is not None and verifies(key.algorithm, key.public, one.signature, message)
            yield CheckedSignature(record, one.key_id, key, one.signature, valid, message)


def _key(roots: Sequence[Root], key_id: KeyId) -> RootKey | None:
    return next((key for root in roots if (key := root.key(key_id)) is not None), None)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Files that prove one signature with a tool that is not ours, and the command that does it."""

    files: dict[str, bytes]
    command: str


def evidence(checked: CheckedSignature) -> Evidence | None:
    """Return what ssh-keygen or openssl needs to check a signature; None when its key is unknown."""
    key, record = checked.key, checked.record
    if key is None:
        return None
    message, signed = f"{record}.pae", f"{record}.{key.key_id[:8]}.sig"
    if key.algorithm is Algorithm.SSHSIG_ED25519:
        signers = f"{key.key_id[:8]}.allowed_signers"
        files = {
            message: checked.message,
            signed: sshsig.armoured(key.public, checked.signature).encode(),
            signers: f"{sshsig.allowed_signer(key.person, key.public)}\n".encode(),
        }
        command = f"ssh-keygen -Y verify -f {signers} -I {key.person} -n flaghoist -s {signed} < {message}"
        return Evidence(files, command)
    public = f"{key.key_id[:8]}.pem"
    files = {message: checked.message, signed: checked.signature, public: _pem(key)}
    if key.algorithm is Algorithm.ED25519:
        command = f"openssl pkeyutl -verify -pubin -inkey {public} -rawin -in {message} -sigfile {signed}"
    else:
        command = f"openssl dgst -sha256 -verify {public} -signature {signed} {message}"
    return Evidence(files, command)


def _pem(key: RootKey) -> bytes:
    prefix = _SPKI_ED25519 if key.algorithm is Algorithm.ED25519 else _SPKI_P256
    text = base64.b64encode(prefix + key.public).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]  # RFC 7468, section 2
    return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]).encode()
