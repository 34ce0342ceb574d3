"""What someone with write access to the log, and without keys, can put there; the demo shows that it is for nothing."""

from dataclasses import replace

from nacl.signing import SigningKey

from flaghoist.codec import ENTRY, decode_envelope, encode_envelope
from flaghoist.ledger import Ledger, next_entry
from flaghoist.log.base import Log
from flaghoist.records import Release
from flaghoist.signing import seal
from flaghoist.values import Algorithm
from publisher.reader import LedgerReader


class Stranger:
    """Somebody with a key that no root lists."""

    algorithm = Algorithm.ED25519

    def __init__(self) -> None:
        self._secret = SigningKey.generate()

    @property
    def public(self) -> bytes:
        return bytes(self._secret.verify_key)

    def sign(self, message: bytes) -> bytes:
        return self._secret.sign(message).signature


async def forged_entry(log: Log, ledger: Ledger, *, now_ms: int) -> bytes:
    """Return a perfect next entry that publishes an old release anew, signed by a stranger."""
    reader = LedgerReader(log, ledger)
    await reader.catch_up()
    bodies = [link.entry.body for link in reader.links if isinstance(link.entry.body, Release)]
    entry = next_entry(ledger, bodies[-1], now_ms=now_ms)
    return encode_envelope(seal(ENTRY, entry, [Stranger()]))


def edited_entry(record: bytes) -> bytes:
    """Return a copy of a signed entry in which the approved change is another one."""
    envelope = decode_envelope(record)
    edited = envelope.payload.replace(b'"share":100,', b'"share":001,')
    if edited == envelope.payload:
        raise ValueError("the entry does not hold the change to edit")
    return encode_envelope(replace(envelope, payload=edited))
