"""OpenSSH's Ed25519 keys and signatures, as far as we use them: what is signed, and the forms that ssh-keygen reads.

Records carry the raw 64 bytes of a signature. `armoured` makes of them what `ssh-keygen -Y verify` takes, so that an
auditor can check them with a tool that is not ours. Ours is stricter in two ways: the hash is SHA-512, never another,
and a signature's second half is below the group's order (RFC 8032, 5.1.7), so that nobody can make a second signature
out of one.

Sources: OpenSSH's PROTOCOL.sshsig; RFC 4251, section 5 (string); RFC 8709, section 4 (public key) and 6 (signature).
"""

import base64
import hashlib
from typing import Final

from flaghoist.errors import Malformed

KEY_TYPE: Final = b"ssh-ed25519"
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
# Keeps signatures for us and for others (git, say) apart.
NAMESPACE: Final = b"flaghoist"

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = (1).to_bytes(4, "big")
_RESERVED: Final = b""
_HASH: Final = b"sha512"
_ARMOUR_WIDTH: Final = 70  # ssh-keygen's own
_LINE_CHARS_MAX: Final = 16 * 1024  # OpenSSH's limit of a line of authorized_keys (SSH_MAX_PUBKEY_BYTES)
_WORKS: Final = "an Ed25519 key works: `ssh-keygen -t ed25519`"


def string(data: bytes) -> bytes:
    """Return SSH's `string`: the length as uint32, then the bytes."""
    return len(data).to_bytes(4, "big") + data


def read_string(data: bytes, start: int) -> tuple[bytes, int]:
    """Return the `string` at `start`, and where the next field begins.

    Raises:
        Malformed: it runs over the end.
    """
    begin = start + 4
    end = begin + int.from_bytes(data[start:begin], "big")
    if len(data) < begin or len(data) < end:
        raise Malformed(f"SSH string at byte {start}: want {end - start} bytes, got {len(data) - start}")
    return data[begin:end], end


def signed_bytes(message: bytes) -> bytes:
    """Return what an SSH key signs for a message: what `ssh-keygen -Y sign -n flaghoist` has it sign.

    No SSH login has such bytes, so an agent that signs them gives nobody a session.

    Source: PROTOCOL.sshsig, section 3.
    """
    return _MAGIC + b"".join(map(string, (NAMESPACE, _RESERVED, _HASH, hashlib.sha512(message).digest())))


def armoured(public: bytes, signature: bytes) -> str:
    """Return a signature over PAE as the text that `ssh-keygen -Y verify -n flaghoist` reads.

    Args:
        public: the key, raw, 32 bytes.
        signature: raw, 64 bytes; whether it verifies is not looked at.

    Source: PROTOCOL.sshsig, sections 1 and 2.
    """
    inner = string(KEY_TYPE) + string(signature)
    blob = _MAGIC + _VERSION + b"".join(map(string, (public_blob(public), NAMESPACE, _RESERVED, _HASH, inner)))
    text = base64.b64encode(blob).decode("ascii")
    lines = [text[at : at + _ARMOUR_WIDTH] for at in range(0, len(text), _ARMOUR_WIDTH)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])


def public_blob(public: bytes) -> bytes:
    """Return a public key, raw, as agents name it."""
    return string(KEY_TYPE) + string(public)


def public_line(public: bytes) -> str:
    """Return a public key, raw, as it stands in a .pub file: `ssh-ed25519 AAAA…`."""
    return f"{KEY_TYPE.decode()} {base64.b64encode(public_blob(public)).decode('ascii')}"


def allowed_signer(person: str, public: bytes) -> str:
    """Return the line of an allowed_signers file by which ssh-keygen takes this key for this person's, and only for us.

    Source: ssh-keygen(1), "ALLOWED SIGNERS".
    """
    return f'{person} namespaces="{NAMESPACE.decode()}" {public_line(public)}'


def fingerprint(public: bytes) -> str:
    """Return a public key's fingerprint as `ssh-add -l` shows it: `SHA256:…`."""
    return blob_fingerprint(public_blob(public))


def blob_fingerprint(blob: bytes) -> str:
    """Return the fingerprint of a key of any type, as `ssh-add -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def blob_type(blob: bytes) -> str:
    """Return the type of a key that an agent lists: `ssh-ed25519`, say.

    Raises:
        Malformed: it names none.
    """
    kind, _ = read_string(blob, 0)
    if not (kind.isascii() and kind.decode("ascii").isprintable()):
        raise Malformed(f"SSH key: want the name of its type, got {kind[:40]!r}")
    return kind.decode("ascii")


def public_of_blob(blob: bytes) -> bytes:
    """Return the raw public key in the form that agents and .pub files use, untrusted.

    Raises:
        Malformed: another type of key, with what works; or bytes that are no key.
    """
    kind = blob_type(blob)
    if kind != KEY_TYPE.decode():
        raise Malformed(f"SSH key {blob_fingerprint(blob)}: want type ssh-ed25519, got {kind}", hint=why_not(kind))
    public, end = read_string(blob, len(string(KEY_TYPE)))
    if len(public) != PUBLIC_BYTES or end != len(blob):
        raise Malformed(f"SSH key: want {PUBLIC_BYTES} bytes of Ed25519 and no more, got {len(public)}")
    return public


def public_of_line(text: str) -> bytes:
    """Return the raw public key in a line of a .pub file, untrusted.

    Raises:
        Malformed: another type of key, or no key.
    """
    words = text[:_LINE_CHARS_MAX].split(maxsplit=2)
    if len(words) < 2:
        raise Malformed("SSH public key: want `ssh-ed25519 AAAA… comment`, as `ssh-add -L` prints it")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError as error:
        raise Malformed(f"SSH public key: want base64 after {words[0][:40]!r}: {error}") from error
    return public_of_blob(blob)


def why_not(kind: str) -> str:
    """Return why a type of SSH key cannot sign here, and what can."""
    if kind.startswith("sk-"):
        return f"a FIDO key signs a counter and flags besides, which readers of the ledger do not know; {_WORKS}"
    if "-cert-" in kind:
        return "a certificate is no key: name the key that it is for"
    if kind.startswith("ecdsa-"):
        return f"P-256 keys are for HSMs and KMSs (--key hsm:…); {_WORKS}"
    return _WORKS
