"""CBOR in its core deterministic encoding (RFC 8949, 4.2.1), of JSON values: what fractional v3 hashes.

Whole doubles in the range of CBOR's integers are encoded as integers, so that 1 and 1.0 fall into one bucket.
"""

import struct
from typing import Any, Final

from flaghoist.targeting.limits import CONTEXT_DEPTH_MAX, RuleFailed

_UNSIGNED, _NEGATIVE, _TEXT, _ARRAY, _MAP = 0x00, 0x20, 0x60, 0x80, 0xA0
_INTEGER_MIN: Final = -(2**63)
_INTEGER_END: Final = 2**64  # doubles up to here are integers on the wire; this one no longer fits


def utf8(written: str) -> bytes:
    """Return UTF-8; half a surrogate pair becomes U+FFFD, as in Go's and protobuf's JSON decoders."""
    try:
        return written.encode()
    except UnicodeEncodeError:
        return written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def head(major: int, argument: int) -> bytes:
    """Return an item's first bytes: its major type, and a length or number below 2^64 in the fewest bytes."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 0x100:
        return bytes((major | 24, argument))
    if argument < 0x10000:
        return struct.pack(">BH", major | 25, argument)
    if argument < 0x100000000:
        return struct.pack(">BI", major | 26, argument)
    return struct.pack(">BQ", major | 27, argument)


def encode_text(written: str) -> bytes:
    data = utf8(written)
    size = len(data)
    return bytes((_TEXT | size,)) + data if size < 24 else head(_TEXT, size) + data


def pair_prefix(first: str) -> bytes:
    """Return the bytes of [first, second] up to where encode_text(second) follows."""
    return head(_ARRAY, 2) + encode_text(first)


def encode(value: Any, depth: int = 0) -> bytes:
    """Return the one deterministic encoding of a JSON value.

    Raises:
        RuleFailed: nested deeper than CONTEXT_DEPTH_MAX.
    """
    kind = type(value)
    if kind is str:
        return encode_text(value)
    if kind is bool:
        return b"\xf5" if value else b"\xf4"
    if kind is int or kind is float:
        return _encode_number(value)
    if value is None:
        return b"\xf6"
    if depth >= CONTEXT_DEPTH_MAX:
        raise RuleFailed(f"the context nests deeper than {CONTEXT_DEPTH_MAX} levels")
    if kind is list:
        return head(_ARRAY, len(value)) + b"".join([encode(item, depth + 1) for item in value])
    items = sorted((encode_text(key), encode(item, depth + 1)) for key, item in value.items())
    return head(_MAP, len(items)) + b"".join([key + item for key, item in items])


def _encode_number(value: float) -> bytes:
    if _INTEGER_MIN <= value < _INTEGER_END and value == int(value):
        whole = int(value)
        return head(_UNSIGNED, whole) if whole >= 0 else head(_NEGATIVE, -1 - whole)
    try:
        double = float(value)
    except OverflowError:
        raise RuleFailed("the context has a number that does not fit a double") from None
    for form in (">Be", ">Bf"):
        try:
            packed = struct.pack(form, 0xF9 if form == ">Be" else 0xFA, double)
        except OverflowError:
            continue
        if struct.unpack(form, packed)[1] == double:
            return packed
    return struct.pack(">Bd", 0xFB, double)
