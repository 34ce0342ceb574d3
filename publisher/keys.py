"""Keys of people and publishers: Ed25519, kept as encrypted PKCS#8 PEM; their public halves as cards to hand around.

keys/ada.pem    mode 0600, `openssl pkey -in ada.pem` reads it
keys/ada.pub    {"person": …, "algorithm": …, "public": …, "key_id": …}, for whoever runs `flaghoist init`
"""

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flaghoist.errors import Malformed, Misconfigured, Refused
from flaghoist.signing import ED25519_PUBLIC_BYTES, check_public, key_id
from flaghoist.values import Algorithm, KeyId, Person
from publisher.files import (
    PRIVATE_DIRECTORY_MODE,
    PRIVATE_FILE_MODE,
    make_private_directory,
    read_limited,
    replace_file,
)

# Source: OWASP Password Storage Cheat Sheet, scrypt (N = 2^14, r = 8, p = 5). More memory at once than 32 MiB and
# OpenSSL's own tools refuse the file.
SCRYPT_N: Final = 2**14
SCRYPT_R: Final = 8
SCRYPT_P: Final = 5
_SCRYPT_BYTES_MAX: Final = 64 * 1024 * 1024
# Source: NIST SP 800-63B, 5.1.1.1: memorized secrets have at least 8 characters.
PASSPHRASE_CHARS_MIN: Final = 8
PASSPHRASE_BYTES_MAX: Final = 1024  # a line of a file or a terminal, not a file given by mistake
PEM_BYTES_MAX: Final = 16 * 1024  # an encrypted Ed25519 key has 300 bytes, an RSA key given by mistake 4 KiB
CARD_BYTES_MAX: Final = 16 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CARD_FIELDS: Final = {"person", "algorithm", "public", "key_id"}

Passphrase = Callable[[], bytes]


class WrongPassphrase(Refused):
    """The passphrase does not open the key."""

    code = "wrong_passphrase"
    hint = "try again, or name another key with --key"


class KeyExists(Refused):
    """A key of that name is there already; keys are never overwritten."""

    code = "key_exists"
    hint = "choose another name"


@dataclass(frozen=True, slots=True)
class Card:
    """The public half of a key and who holds it."""

    person: Person
    algorithm: Algorithm
    public: bytes

    @property
    def key_id(self) -> KeyId:
        return key_id(self.algorithm, self.public)

    def fields(self) -> dict[str, str]:
        """Return the card as it is written and shown."""
        return {
            "person": str(self.person),
            "algorithm": self.algorithm.value,
            "public": base64.b64encode(self.public).decode("ascii"),
            "key_id": str(self.key_id),
        }

    def render(self) -> bytes:
        """Return the card file's content; `parse` reads it back."""
        return (json.dumps(self.fields(), indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Card":
        """Return the card in a file's bytes, untrusted; `where` names the file in errors.

        Raises:
            Malformed: not a card, or one whose key_id is not that of its key: it was damaged or edited.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"{where}: want a key card (JSON), got {error}") from error
        if not isinstance(fields, dict) or set(fields) != _CARD_FIELDS:
            got = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise Malformed(f"{where}: want a key card with exactly {sorted(_CARD_FIELDS)}, got {got}")
        try:
            algorithm = Algorithm(fields["algorithm"])
            public = base64.b64decode(fields["public"], validate=True)
        except (ValueError, TypeError) as error:
            raise Malformed(f"{where}: {error}") from error
        check_public(algorithm, public)
        card = cls(Person(fields["person"]), algorithm, public)
        if card.key_id != fields["key_id"]:
            raise Malformed(f"{where}: key_id: want {card.key_id}, got {fields['key_id']!r}")
        return card


class HeldKey:
    """An unlocked private key: a Signer. It shows itself only by its public half."""

    __slots__ = ("_secret", "public")

    algorithm: Final = Algorithm.ED25519

    def __init__(self, seed: bytes) -> None:
        from nacl.bindings import crypto_sign_seed_keypair

        self.public, self._secret = crypto_sign_seed_keypair(seed)

    @property
    def key_id(self) -> KeyId:
        return key_id(self.algorithm, self.public)

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`."""
        from nacl.bindings import crypto_sign

        return crypto_sign(message, self._secret)[: -len(message) or None]

    def __repr__(self) -> str:
        return f"<HeldKey {self.key_id}>"


class KeyDirectory:
    """The keys of this machine's operator, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        """Return the private key's file.

        Raises:
            Misconfigured: a name that is no file name here.
        """
        if _NAME.match(name) is None:
            raise Misconfigured(
                f"key name {name!r}: want 1 to 64 of A-Z a-z 0-9 . _ - (first a letter or digit)",
                hint="a path to a key has a slash in it: ./ada.pem",
            )
        return self.directory / f"{name}.pem"

    def names(self) -> list[str]:
        """Return the names of the keys whose private half is here, sorted."""
        return sorted(path.stem for path in self.directory.glob("*.pem") if _NAME.match(path.stem))

    def find(self, name_or_path: str) -> Path:
        """Return the private key's file for a name, or for a path (which has a slash in it).

        Raises:
            Misconfigured: there is none.
        """
        path = Path(name_or_path).expanduser() if "/" in name_or_path else self.path(name_or_path)
        if not path.exists():
            known = ", ".join(self.names()) or "none"
            raise Misconfigured(
                f"key {name_or_path!r}: there is no {path}; keys here: {known}",
                hint="make one with `flaghoist key new NAME --person YOU`, or name another with --key",
            )
        if path.parent == self.directory:
            _check_private(self.directory, PRIVATE_DIRECTORY_MODE)
        return path

    def card(self, path: Path) -> Card | None:
        """Return the card beside a private key; None when there is none.

        Raises:
            Malformed: the file is no card.
        """
        card = path.with_suffix(".pub")
        return read_card(card) if card.exists() else None

    def cards(self) -> Iterable[tuple[str, Card]]:
        """Yield name and card of every key that has both halves here."""
        for name in self.names():
            if card := self.card(self.path(name)):
                yield name, card

    def create(self, name: str, person: Person, passphrase: bytes) -> Card:
        """Make a new key, write both halves, and return the public one.

        Raises:
            KeyExists: the name is taken.
            WrongPassphrase: one that protects nothing.
            Misconfigured: the directory cannot be written.
        """
        path = self.path(name)
        if path.exists():
            raise KeyExists(f"key {name!r}: {path} is there already")
        check_passphrase(passphrase)
        make_private_directory(self.directory)
        _check_private(self.directory, PRIVATE_DIRECTORY_MODE)
        pem, public = _new_pem(passphrase)
        card = Card(person, Algorithm.ED25519, public)
        # The card first: a crash in between leaves a card without a key, which `create` then overwrites.
        replace_file(path.with_suffix(".pub"), card.render(), mode=0o644)
        replace_file(path, pem)
        return card


def check_passphrase(passphrase: bytes) -> None:
    """Refuse a passphrase that protects nothing.

    Raises:
        WrongPassphrase: shorter than PASSPHRASE_CHARS_MIN.
    """
    if len(passphrase.decode("utf-8", "replace")) < PASSPHRASE_CHARS_MIN:
        raise WrongPassphrase(
            f"a new passphrase: want at least {PASSPHRASE_CHARS_MIN} characters", hint="choose a longer one"
        )


def read_card(path: Path) -> Card:
    """Return the card in a file.

    Raises:
        Misconfigured, TooLarge: it cannot be read.
        Malformed: it is no card.
    """
    return Card.parse(read_limited(path, limit_bytes=CARD_BYTES_MAX, what="key card"), where=str(path))


def unlock(path: Path, passphrase: Passphrase) -> HeldKey:
    """Return the private key in a file.

    Args:
        passphrase: asked only after the file has passed its checks.

    Raises:
        Misconfigured: it cannot be read, others can read it, or it is no encrypted Ed25519 key.
        WrongPassphrase: the passphrase does not open it.
    """
    pem = read_pem(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, passphrase())
    except ValueError:
        # The library's text for any fault; `from None`, since a secret must not get into a traceback's chain.
        raise WrongPassphrase(f"key {path}: the passphrase does not open it") from None
    except TypeError:
        raise Misconfigured(f"key {path}: want an encrypted key, got one without a passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Misconfigured(f"key {path}: want an Ed25519 key, got {type(key).__name__}")
    return HeldKey(key.private_bytes_raw())


def read_pem(path: Path) -> bytes:
    """Return the text of an encrypted private key that only its owner can read.

    Raises:
        Misconfigured: it is not that; for a loose mode the hint is the chmod to run.
    """
    _check_private(path, PRIVATE_FILE_MODE)
    pem = read_limited(path, limit_bytes=PEM_BYTES_MAX, what="key")
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" not in pem:
        raise Misconfigured(
            f"key {path}: want an encrypted PKCS#8 PEM (BEGIN ENCRYPTED PRIVATE KEY)",
            hint="encrypt it with `openssl pkcs8 -topk8 -scrypt -in OLD -out NEW`, or use `flaghoist key new`",
        )
    return pem


def _check_private(path: Path, mode: int) -> None:
    try:
        found = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise Misconfigured(f"key {path}: cannot be read: {error.strerror}") from error
    if found & 0o077:
        raise Misconfigured(
            f"{path}: others on this machine may use it: want mode {mode:04o}, got {found:04o}",
            hint=f"chmod {mode:o} {path}",
        )


def _new_pem(passphrase: bytes) -> tuple[bytes, bytes]:
    """Return a new private key as encrypted PKCS#8 PEM, and its public half."""
    from cryptography.hazmat.primitives import padding
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private = Ed25519PrivateKey.generate()
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert len(public) == ED25519_PUBLIC_BYTES  # noqa: S101 — fixed by RFC 8032
    # The library's own choice for PKCS#8 is PBKDF2 with 2,048 rounds, a thousandth of the work of this scrypt; so the
    # container (RFC 5958, RFC 8018, RFC 7914 section 7.1) is written here, and only the container.
    salt, iv = os.urandom(16), os.urandom(16)
    key = hashlib.scrypt(passphrase, salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=32, maxmem=_SCRYPT_BYTES_MAX)
    pad = padding.PKCS7(algorithms.AES.block_size).padder()
    aes = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    sealed = aes.update(pad.update(plain) + pad.finalize()) + aes.finalize()
    cost = _der(_SEQUENCE, _der(_OCTETS, salt), *map(_der_int, (SCRYPT_N, SCRYPT_R, SCRYPT_P, len(key))))
    derivation = _der(_SEQUENCE, _der(_OBJECT, _OID_SCRYPT), cost)
    encryption = _der(_SEQUENCE, _der(_OBJECT, _OID_AES_256_CBC), _der(_OCTETS, iv))
    scheme = _der(_SEQUENCE, _der(_OBJECT, _OID_PBES2), _der(_SEQUENCE, derivation, encryption))
    body = base64.b64encode(_der(_SEQUENCE, scheme, _der(_OCTETS, sealed))).decode("ascii")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    pem = "\n".join(["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""])
    return pem.encode(), public


_INTEGER, _OCTETS, _OBJECT, _SEQUENCE = 0x02, 0x04, 0x06, 0x30
_OID_PBES2: Final = bytes.fromhex("2a864886f70d01050d")  # 1.2.840.113549.1.5.13
_OID_SCRYPT: Final = bytes.fromhex("2b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_OID_AES_256_CBC: Final = bytes.fromhex("60864801650304012a")  # 2.16.840.1.101.3.4.1.42


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    assert len(content) < 0x100  # noqa: S101 — an Ed25519 key's container has 170 bytes
    length = bytes([len(content)]) if len(content) < 0x80 else bytes([0x81, len(content)])
    return bytes([tag]) + length + content


def _der_int(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))
