"""google.protobuf.Struct to and from plain values: how a context arrives and how objects and metadata leave."""

import math
from collections.abc import Mapping
from typing import Final

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from flaghoist.document import JsonValue
from flaghoist.errors import Malformed

# protobuf's decoder refuses more than 100 nested messages, which is 32 objects in a request; lists nest cheaper.
STRUCT_DEPTH_MAX: Final = 32

# Every whole double below this is exactly one int, and every int is exactly one double.
WHOLE_DOUBLES_BELOW: Final = 2.0**53


def context_of(struct: Struct) -> dict[str, JsonValue]:
    """Return a request's context as rules expect it, whatever number type the protocol knows.

    Whole doubles below 2^53 become ints (-0.0 becomes 0): otherwise `cat`, `sem_ver` and hashing would differ between
    protocols. A null `targetingKey` is left out: that is how some providers say that there is none.

    Raises:
        Malformed: a number that JSON does not have, or deeper than STRUCT_DEPTH_MAX. The text names no value.
    """
    context = _object(struct, STRUCT_DEPTH_MAX)
    if "targetingKey" in context and context["targetingKey"] is None:
        del context["targetingKey"]
    return context


def _object(struct: Struct, depth: int) -> dict[str, JsonValue]:
    if depth == 0:
        raise Malformed(f"context: want at most {STRUCT_DEPTH_MAX} levels, got more")
    plain: dict[str, JsonValue] = {}
    for key, value in struct.fields.items():
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            plain[key] = value.string_value
        else:
            plain[key] = _value(value, kind, depth)
    return plain


def _value(value: Value, kind: str | None, depth: int) -> JsonValue:
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if number.is_integer() and -WHOLE_DOUBLES_BELOW < number < WHOLE_DOUBLES_BELOW:
            return int(number)
        if not math.isfinite(number):
            raise Malformed(f"context: want JSON numbers, got {number}")
        return number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _object(value.struct_value, depth - 1)
    if kind == "list_value":
        if depth == 1:
            raise Malformed(f"context: want at most {STRUCT_DEPTH_MAX} levels, got more")
        return [_value(item, item.WhichOneof("kind"), depth - 1) for item in value.list_value.values]
    return None  # null_value; and no kind at all, which flagd reads as null too


def fill(struct: Struct, plain: Mapping[str, JsonValue]) -> None:
    """Add the members of `plain` to `struct`; every number becomes a double, which is all that a Struct has.

    Raises:
        OverflowError: an int that no double can come near (1e309).
    """
    for key, item in plain.items():
        _fill_value(struct.fields[key], item)


def _fill_value(value: Value, item: JsonValue) -> None:
    if item is None:
        value.null_value = NULL_VALUE
    elif isinstance(item, bool):
        value.bool_value = item
    elif isinstance(item, (int, float)):
        value.number_value = float(item)
    elif isinstance(item, str):
        value.string_value = item
    elif isinstance(item, Mapping):
        value.struct_value.SetInParent()
        fill(value.struct_value, item)
    else:
        value.list_value.SetInParent()
        for member in item:
            _fill_value(value.list_value.values.add(), member)
