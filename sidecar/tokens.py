"""Bearer tokens: who may ask, when the address alone does not say it (RFC 6750)."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured
from sidecar.renewal import Fingerprint, fingerprint
from sidecar.secret_file import read_secret

OPTION: Final = "--token-file"
TOKEN_CHARS_MIN: Final = 16  # of base64 these are 96 bits: nobody guesses them over a network
TOKEN_CHARS_MAX: Final = 4096  # half of what HTTP servers commonly take as one header
TOKENS_MAX: Final = 64  # each is compared at each call: 0.05 µs

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")  # RFC 6750, section 2.1: b64token
_SCHEME: Final = "bearer "


class Tokens:
    """The tokens of one file, which may be exchanged while calls are answered. Only their digests are kept.

    Raises:
        Misconfigured: the file cannot be used.
    """

    name = "tokens"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: tuple[bytes, ...] = ()
        self.loaded: Fingerprint = ()
        self.load()

    @property
    def paths(self) -> Sequence[Path]:
        """The file it is made from."""
        return [self._path]

    def load(self) -> None:
        """Read the file again.

        Raises:
            Misconfigured: it cannot be used; the tokens from before stay.
        """
        found = fingerprint(self.paths)
        self._digests = parse(read_secret(self._path, OPTION), self._path)
        self.loaded = found

    async def use(self) -> None:
        """Do nothing: the next call is compared with what was loaded."""

    def allow(self, fields: Iterable[str | bytes]) -> bool:
        """Return whether a call with these `authorization` fields has a token of ours: one field, one token.

        It takes as long for any token of the same length: each one is hashed, and compared with all.
        """
        values = list(fields)
        if len(values) != 1:
            return False
        value = values[0]
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if text[: len(_SCHEME)].lower() != _SCHEME or len(text) > len(_SCHEME) + TOKEN_CHARS_MAX:
            return False
        digest = _digest(text[len(_SCHEME) :].strip(" "))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def parse(data: bytes, path: Path) -> tuple[bytes, ...]:
    """Return the digests of the tokens in a file: one a line; empty lines and those that begin with # are none.

    Raises:
        Misconfigured: a line is no token, or there is none at all, or too many. It never quotes one.
    """
    digests = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not TOKEN_CHARS_MIN <= len(token) <= TOKEN_CHARS_MAX:
            raise _bad(path, f"line {number}: want {TOKEN_CHARS_MIN} .. {TOKEN_CHARS_MAX} characters, got {len(token)}")
        if _TOKEN.match(token) is None:
            raise _bad(path, f"line {number}: want letters, digits and . _ ~ + / - only, and = at the end")
        digests.append(_digest(token))
    if not 1 <= len(digests) <= TOKENS_MAX:
        raise _bad(path, f"want 1 .. {TOKENS_MAX} tokens, got {len(digests)}")
    return tuple(digests)


def _bad(path: Path, text: str) -> Misconfigured:
    return Misconfigured(f"{OPTION} {path}: {text}", hint="one token a line; this makes one: openssl rand -hex 32")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
