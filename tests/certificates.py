"""Certificates as a mesh's CA makes them, for tests: short-lived, on this machine, by `cryptography`."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, in PEM."""

    cert: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> "tuple[Path, Path]":
        """Write NAME.crt and NAME.key, the key for its owner only; return both paths."""
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        replace(cert, self.cert)
        replace(key, self.key)
        return cert, key


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Exchange a file as a careful operator does: whole, and with its mode from the first moment."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode)
    new.write_bytes(data)
    new.rename(path)


class Authority:
    """A CA that signs what it is asked to."""

    def __init__(self, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.cert = _pem(self._builder(self._name, self._key, ca=True, age=HOUR, lasts=24 * HOUR))

    def issue(self, name: str, *, age: datetime.timedelta = HOUR, lasts: datetime.timedelta = 24 * HOUR) -> Issued:
        """Return a certificate of 127.0.0.1, localhost and `name`, begun `age` ago, that holds for `lasts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return Issued(_pem(self._builder(subject, key, ca=False, age=age, lasts=lasts)), key_pem(key))

    def expired(self, name: str) -> Issued:
        """Return a certificate that held until an hour ago."""
        return self.issue(name, age=2 * HOUR, lasts=HOUR)

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
        age: datetime.timedelta,
        lasts: datetime.timedelta,
    ) -> x509.Certificate:
        begins = datetime.datetime.now(datetime.UTC) - age
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + lasts)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a private key in PKCS#8 PEM."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
