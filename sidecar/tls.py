"""The server's side of TLS: certificate, key and client CA from files, one for all faces, renewed without a restart."""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured
from sidecar.renewal import fingerprint
from sidecar.secret_file import read_public, read_secret

# Older ones have known breaks (RFC 8996); grpcio's own minimum is the same.
MINIMUM: Final = ssl.TLSVersion.TLSv1_2
READS_MAX: Final = 3  # of files that change while they are read; the next look comes a second later


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where TLS comes from: PEM files. With `client_ca` clients must show a certificate that it has signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files held: PEM bytes for grpcio, a context for HTTP. They belong together and hold now."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    not_after: datetime


class ServerTls:
    """What a listener with TLS shows its clients, and asks of them.

    Attributes:
        current: what new handshakes use. Replaced as a whole.

    Raises:
        Misconfigured: the files cannot be used.
    """

    name = "tls"

    def __init__(self, files: TlsFiles, clock: Callable[[], float]) -> None:
        self._files = files
        self._clock = clock
        self._users: list[Callable[[], Awaitable[None]]] = []
        self.loaded = fingerprint(self.paths)
        self.current = load(files, clock())

    @property
    def paths(self) -> Sequence[Path]:
        """The files it is made from."""
        files = (self._files.cert, self._files.key, self._files.client_ca)
        return [path for path in files if path is not None]

    def load(self) -> None:
        """Read the files again.

        Raises:
            Misconfigured: they cannot be used; what was loaded before stays.
        """
        found = fingerprint(self.paths)
        self.current = load(self._files, self._clock())
        self.loaded = found

    def tell(self, user: Callable[[], Awaitable[None]]) -> None:
        """Have `user` called after each renewal."""
        self._users.append(user)

    async def use(self) -> None:
        """Call all who asked to be told."""
        for user in self._users:
            await user()


def load(files: TlsFiles, now_s: float) -> TlsMaterial:
    """Read and check the files.

    Args:
        now_s: Unix seconds.

    Raises:
        Misconfigured: a file cannot be read, is no PEM of its kind, the key is encrypted or open to others or not the
            certificate's, or the certificate does not hold now.
    """
    for _ in range(READS_MAX):
        chain, key = read_public(files.cert, "--tls-cert"), read_secret(files.key, "--tls-key")
        client_ca = None if files.client_ca is None else read_public(files.client_ca, "--tls-client-ca")
        not_after = _validity(files.cert, chain, now_s)
        context = _context(files, client_ca)
        # The context was made from the paths: they must have held the same bytes all the time.
        if (chain, key) == (read_public(files.cert, "--tls-cert"), read_secret(files.key, "--tls-key")):
            return TlsMaterial(chain, key, client_ca, context, not_after)
    raise Misconfigured(
        f"--tls-cert {files.cert}, --tls-key {files.key}: they change while they are read",
        hint="write new files beside the old ones and rename them",
    )


def _validity(path: Path, chain: bytes, now_s: float) -> datetime:
    # Here: a sidecar without TLS has no use for it, and it takes 7 MB and 40 ms.
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise Misconfigured(
            f"--tls-cert {path}: want certificates in PEM, the server's first: {error}",
            hint="give the chain: the server's certificate, then the intermediate ones",
        ) from error
    now = datetime.fromtimestamp(now_s, UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Misconfigured(
            f"--tls-cert {path}: holds from {_text(certificate.not_valid_before_utc)} to"
            f" {_text(certificate.not_valid_after_utc)}, and now is {_text(now)}",
            hint="renew the certificate, or correct this machine's clock",
        )
    return certificate.not_valid_after_utc


def _context(files: TlsFiles, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, _EncryptedError) as error:
        raise Misconfigured(
            f"--tls-cert {files.cert}, --tls-key {files.key}: {_reason(error)}",
            hint="give the PEM key, unencrypted, that the certificate was made for",
        ) from error
    except OSError as error:
        raise Misconfigured(
            f"--tls-cert {files.cert}, --tls-key {files.key}: cannot be read: {error.strerror}",
            hint="check that the sidecar's user may read both",
        ) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # As grpcio does: a listed CA is trusted even if it is itself signed by another.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            # PEM may have text between its blocks, in any language.
            context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            raise Misconfigured(
                f"--tls-client-ca {files.client_ca}: want certificates in PEM: {_reason(error)}",
                hint="give the certificates of those who sign your clients' certificates",
            ) from error
    return context


class _EncryptedError(Exception):
    """The key asks for a passphrase, which nobody is there to type."""

    reason = "the key is encrypted"


def _no_password() -> str:
    raise _EncryptedError


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).lower().replace("_", " ")


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
