"""What sidecars say of themselves: written and read. Nobody signs it and nothing trusts it; it informs people."""

from typing import Final

from flaghoist.codec import ACKNOWLEDGEMENT, decode_envelope, encode_envelope
from flaghoist.errors import Malformed, WrongLog
from flaghoist.records import Acknowledgement, Envelope
from flaghoist.values import LogId

# A sidecar acknowledges at least this often, whatever happens or does not (design §8).
ACK_INTERVAL_S: Final = 30.0
# The state in the last acknowledgement of a sidecar that ends in order: it is not to be waited for.
LEFT: Final = "LEFT"


def encode_acknowledgement(ack: Acknowledgement) -> bytes:
    """Return the record for the stream of acknowledgements; its key is the instance's name in UTF-8."""
    payload = ACKNOWLEDGEMENT.encode(ack)
    return encode_envelope(Envelope(ACKNOWLEDGEMENT.payload_type, ACKNOWLEDGEMENT.schema_sha256, payload, ()))


def read_acknowledgement(data: bytes, log_id: LogId) -> Acknowledgement:
    """Return the acknowledgement in a record.

    Args:
        data: untrusted, and whatever it says stays untrusted.
        log_id: the environment it must be of.

    Raises:
        Malformed, TooLarge: no such record.
        WrongLog: of another environment.
    """
    envelope = decode_envelope(data)
    if envelope.payload_type != ACKNOWLEDGEMENT.payload_type:
        raise Malformed(f"want {ACKNOWLEDGEMENT.payload_type}, got {envelope.payload_type[:100]!r}")
    ack = ACKNOWLEDGEMENT.decode(envelope.payload)
    if ack.log_id != log_id:
        raise WrongLog(expected=log_id, got=ack.log_id)
    return ack
