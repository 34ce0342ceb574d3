"""Keys in an HSM, a smartcard or a cloud's KMS, by securesystemslib; each kind behind an extra of its own.

hsm:2?label=TOKEN                                               PKCS#11; the module is named by PYKCS11LIB, or by
hsm:2?label=TOKEN&module-path=/usr/lib/softhsm/libsofthsm2.so     the URI itself
awskms:alias/flaghoist
gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1
azurekms://VAULT.vault.azure.net/keys/NAME/VERSION

All of them sign with ECDSA on P-256 and SHA-256. What may use a cloud's key is said by the cloud's own settings in this
process's environment; a token asks for its PIN.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from flaghoist.errors import Malformed, Misconfigured, Refused, Unavailable
from flaghoist.signing import check_public, key_id
from flaghoist.values import Algorithm, KeyId

# scheme -> the extra that brings it
EXTRAS: Final[Mapping[str, str]] = {"hsm": "hsm", "awskms": "awskms", "gcpkms": "gcpkms", "azurekms": "azurekms"}
MODULE_VARIABLE: Final = "PYKCS11LIB"  # securesystemslib's
PIN_VARIABLE_HINT: Final = "give the PIN by --passphrase-file FILE or --passphrase-fd N, or let it be asked"
# Source: PKCS#11 v3.0, CK_TOKEN_INFO: a label has 32 bytes.
TOKEN_LABEL_CHARS_MAX: Final = 32

_HSM_FORM: Final = "hsm:ID?label=TOKEN, where ID is the key's CKA_ID as a decimal number"
_AZURE_FORM: Final = "azurekms://VAULT.vault.azure.net/keys/NAME, with or without /VERSION"
_AZURE_HOST: Final = ".vault.azure.net"
_SCHEME: Final = "ecdsa-sha2-nistp256"

# A publisher that waits longer than this for a signature has lost its lease to another one.
KMS_CONNECT_S: Final = 5.0
KMS_READ_S: Final = 5.0
KMS_TRIES: Final = 2
ERROR_CHARS_MAX: Final = 300  # of what a library says: a line, not a page of JSON

Pin = Callable[[], bytes]
T = TypeVar("T")


class WrongPin(Refused):
    """The token does not take the PIN."""

    code = "wrong_pin"
    hint = "try again, but not often: after a few wrong ones a token locks itself"


class KeyHolderUnavailable(Unavailable):
    """The HSM or KMS cannot be reached, or does not let this process use the key."""

    code = "key_holder_unavailable"
    hint = (
        "nothing was signed; check that the device or the service answers and that you may use the key, then try again"
    )


@dataclass(frozen=True, slots=True)
class KeyUri:
    """Where a key is held: a URI whose parts have been checked."""

    scheme: str
    rest: str  # as securesystemslib wants it after `scheme:`
    hsm_id: int = 0
    token: str | None = None
    module: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "KeyUri":
        """Return the URI in a text.

        Raises:
            Misconfigured: none of a known kind, or of a wrong form.
        """
        scheme, colon, rest = text.partition(":")
        if not colon or scheme not in EXTRAS:
            raise Misconfigured(f"key {scheme!r}: want one of {', '.join(f'{known}:' for known in EXTRAS)}")
        if scheme == "hsm":
            return cls._hsm(rest)
        if scheme == "azurekms":
            host, _, path = rest.removeprefix("//").partition("/")
            parts = path.split("/")
            wanted = rest.startswith("//") and host.endswith(_AZURE_HOST) and parts[0] == "keys" and all(parts)
            if not wanted or len(parts) not in (2, 3):
                raise Misconfigured(f"key {text!r}: want {_AZURE_FORM}")
        if not rest:
            raise Misconfigured(f"key {text!r}: want the key's name after {scheme}:")
        return cls(scheme, rest)

    @classmethod
    def _hsm(cls, rest: str) -> "KeyUri":
        number, _, query = rest.partition("?")
        shown = f"hsm:{number}"  # without what follows: somebody may have put a PIN there
        try:
            options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        except ValueError as error:
            raise Misconfigured(f"key {shown!r}: want {_HSM_FORM}") from error
        if strange := set(options) - {"label", "module-path"}:
            raise Misconfigured(
                f"key {shown!r}: want label and module-path after `?`, got {', '.join(sorted(strange))}",
                hint="a PIN is never part of a key's name: " + PIN_VARIABLE_HINT,
            )
        label, module = options.get("label"), options.get("module-path")
        if not (number.isascii() and number.isdecimal()) or (label is not None and not label):
            raise Misconfigured(
                f"key {shown!r}: want {_HSM_FORM}", hint="`pkcs11-tool --module M -O` shows IDs in hex: 0a is 10"
            )
        if label is not None and len(label) > TOKEN_LABEL_CHARS_MAX:
            raise Misconfigured(f"key {shown!r}: want a label of at most {TOKEN_LABEL_CHARS_MAX} characters")
        rest = number + (f"?{urlencode({'label': label})}" if label else "")
        return cls("hsm", rest, int(number), label, Path(module) if module else None)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.rest}"


def is_uri(name: str) -> bool:
    """Say whether a key's name is one of these URIs."""
    return name.partition(":")[0] in EXTRAS


class HeldElsewhere:
    """A key that a device or a service holds: a Signer. `found` makes it."""

    __slots__ = ("_key", "_pin", "_signer", "public", "uri")

    algorithm: Final = Algorithm.ECDSA_P256

    def __init__(self, uri: KeyUri, public: bytes, key: Any, pin: "_AskedOnce") -> None:
        self.uri, self.public = uri, public
        self._key, self._pin = key, pin  # securesystemslib's public key, and what it calls for a PIN
        self._signer: Any = None

    @property
    def key_id(self) -> KeyId:
        return key_id(self.algorithm, self.public)

    def sign(self, message: bytes) -> bytes:
        """Return the signature (DER) over `message`.

        Raises:
            WrongPin: the token does not take it.
            KeyHolderUnavailable: whoever holds the key does not sign.
        """

        if self._pin.refused:
            # A service that tries again and again must not make the token lock itself.
            raise WrongPin(f"key {self.uri}: the token did not take the PIN, which is not tried again")

        def signed() -> str:
            from securesystemslib.signer import Signer

            if self._signer is None:
                self._signer = Signer.from_priv_key_uri(str(self.uri), self._key, self._pin)
            text: str = self._signer.sign(message).signature
            return text

        return bytes.fromhex(_told(self.uri, self._pin, signed))

    def __repr__(self) -> str:
        return f"<HeldElsewhere {self.uri}>"


def found(name: str, pin: Pin, environ: Mapping[str, str]) -> HeldElsewhere:
    """Return the key at a URI; its public half is read from whoever holds it.

    Args:
        pin: asked when a token wants it: to sign, or to show a public key that it hides.
        environ: for PYKCS11LIB.

    Raises:
        Misconfigured: a wrong URI, a missing extra or module, no such token or key, or one that is not P-256.
        WrongPin, KeyHolderUnavailable: as `HeldElsewhere.sign`.
    """
    uri = KeyUri.parse(name)
    asked = _AskedOnce(pin)
    _prepare(uri, environ)
    key = _told(uri, asked, lambda: _imported(uri, asked))
    return HeldElsewhere(uri, _public_of(uri, key), key, asked)


class _AskedOnce:
    """A PIN, in the form in which securesystemslib asks for it: once a process, however often it signs."""

    def __init__(self, pin: Pin) -> None:
        self._ask = pin
        self._pin: str | None = None
        self.failure: Exception | None = None  # why there was no PIN: never the device's fault
        self.refused = False

    def __call__(self, _: str) -> str:
        if self._pin is None:
            try:
                self._pin = self._ask().decode("utf-8", "replace")
            except Exception as error:
                self.failure = error
                raise
        return self._pin


def _prepare(uri: KeyUri, environ: Mapping[str, str]) -> None:
    """Let securesystemslib be loaded, and find its PKCS#11 module."""
    try:
        import securesystemslib.signer  # noqa: F401
    except ImportError as error:
        raise _missing_extra(uri) from error
    # Its log lines repeat, on stderr, what its exceptions say.
    logging.getLogger("securesystemslib").setLevel(logging.CRITICAL + 1)
    if uri.scheme != "hsm":
        return
    module = str(uri.module or environ.get(MODULE_VARIABLE) or "")
    if not module:
        raise Misconfigured(
            f"key {uri}: want your device's PKCS#11 module in {MODULE_VARIABLE}, or as &module-path=FILE in the key",
            hint="YubiKey: libykcs11.so, smartcards by OpenSC: opensc-pkcs11.so, SoftHSM: libsofthsm2.so; a whole path",
        )
    if not Path(module).is_file():
        raise Misconfigured(f"PKCS#11 module {module}: there is no such file", hint="install your device's module")
    os.environ[MODULE_VARIABLE] = module


def _imported(uri: KeyUri, pin: _AskedOnce) -> Any:
    """Return securesystemslib's public key of the key at a URI, asked from whoever holds it."""
    from securesystemslib.signer import AWSSigner, AzureSigner, GCPSigner, HSMSigner

    match uri.scheme:
        case "hsm":
            _, key = HSMSigner.import_(uri.hsm_id, uri.token, pin)
        case "awskms":
            _bound_aws()
            _, key = AWSSigner.import_(uri.rest, local_scheme=_SCHEME)
        case "gcpkms":
            _, key = GCPSigner.import_(uri.rest)
        case _:
            host, *parts = uri.rest.removeprefix("//").split("/")
            newest, key = AzureSigner.import_(host.removesuffix(_AZURE_HOST), parts[1])
            if len(parts) == 3 and not newest.endswith(f"/{parts[2]}"):
                raise ValueError(f"want the key's newest version, which is {newest}")
    return key


def _bound_aws() -> None:
    """Bound the time that an AWS call takes: by default five tries of a minute each."""
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError:
        return  # securesystemslib says so
    session = botocore.session.get_session()
    session.set_default_client_config(
        Config(connect_timeout=KMS_CONNECT_S, read_timeout=KMS_READ_S, retries={"total_max_attempts": KMS_TRIES})
    )
    boto3.setup_default_session(botocore_session=session)


def _public_of(uri: KeyUri, key: Any) -> bytes:
    """Return a key as SEC1 has it, uncompressed."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    public = load_pem_public_key(key.keyval["public"].encode())
    if key.scheme != _SCHEME or not isinstance(public, EllipticCurvePublicKey) or type(public.curve) is not SECP256R1:
        raise Misconfigured(
            f"key {uri}: want ECDSA on P-256 with SHA-256, got {key.scheme}", hint="make one of that kind"
        )
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    try:
        check_public(Algorithm.ECDSA_P256, point)
    except Malformed as error:
        raise Misconfigured(f"key {uri}: {error}") from error
    return point


def _told(uri: KeyUri, pin: _AskedOnce, ask: Callable[[], T]) -> T:
    """Return what securesystemslib says; what it and the libraries below it raise becomes an error of ours."""
    from securesystemslib import exceptions

    try:
        return ask()
    except exceptions.UnsupportedLibraryError as error:
        raise _missing_extra(uri) from error
    except exceptions.UnsupportedAlgorithmError as error:
        raise Misconfigured(
            f"key {uri}: want ECDSA on P-256: {_line(error)}", hint="make a key of that kind"
        ) from error
    except ValueError as error:
        # securesystemslib's own: no such token or key, or several.
        raise Misconfigured(f"key {uri}: {_line(error)}", hint=_WHERE_TO_LOOK[uri.scheme]) from error
    except Exception as error:
        if error is pin.failure:
            raise
        kind = type(error).__name__
        if kind == "UnsupportedKeyType":  # private to securesystemslib's Azure module
            raise Misconfigured(
                f"key {uri}: want ECDSA on P-256: {_line(error)}", hint="make a key of that kind"
            ) from error
        if kind in _WRONG_PIN:
            pin.refused = True
            # `from None`: a PIN must not get into a traceback's chain.
            raise WrongPin(f"key {uri}: the token does not take the PIN ({kind})") from None
        if kind == "PinLocked":
            raise KeyHolderUnavailable(
                f"key {uri}: the token has locked itself: too many wrong PINs", hint="unlock it with its SO PIN or PUK"
            ) from None
        raise KeyHolderUnavailable(f"key {uri}: {kind}: {_line(error)}") from error


# python-pkcs11's names; it is not imported for them, since a KMS needs none of it.
_WRONG_PIN: Final = {"PinIncorrect", "PinInvalid", "PinLenRange"}
_WHERE_TO_LOOK: Final = {
    "hsm": "`pkcs11-tool --module MODULE -L` shows the tokens, and with `-O` the keys (IDs in hex)",
    "awskms": "`aws kms describe-key --key-id ID` shows it",
    "gcpkms": "`gcloud kms keys versions describe` shows it",
    "azurekms": "`az keyvault key show --id https://…` shows it",
}


def _missing_extra(uri: KeyUri) -> Misconfigured:
    extra = EXTRAS[uri.scheme]
    return Misconfigured(
        f"key {uri}: this installation has no support for {uri.scheme}: keys",
        hint=f"pip install 'flaghoist[{extra}]'",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:ERROR_CHARS_MAX] or "no more was said"
