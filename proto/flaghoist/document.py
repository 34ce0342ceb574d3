"""JSON documents as they are signed: read from untrusted bytes, checked field by field, written compactly.

Errors name the path of the field, what was expected and what came.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final, Never, TypeAlias

from flaghoist.errors import BadDefinition, Malformed
from flaghoist.values import Person

Scalar: TypeAlias = str | int | float | bool
# At run time an array is a list and an object is a dict; the wide types let callers pass what they have.
JsonValue: TypeAlias = bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None

DEFINITION_BYTES_MAX: Final = 256 * 1024  # half of the largest envelope: a proposal also carries its other fields
DOCUMENT_DEPTH_MAX: Final = 200  # a chain of 99 `if`s in flagd's three-operand form; json.loads stops before 1000
DOCUMENT_VALUES_MAX: Final = 131_072  # more do not fit into DEFINITION_BYTES_MAX; bounds what YAML aliases expand to
NAME_CHARS_MAX: Final = 255  # of a team, ticket, service or variant: they become labels, columns and file names

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")


def refuse(where: str, message: str, hint: str | None = None) -> Never:
    """Raise BadDefinition."""
    raise BadDefinition(where, message, hint=hint)


def shown(value: object) -> str:
    """A value for an error: its type, and itself when it is short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


class _BadJson(ValueError):
    """What json's hooks found; json.loads passes it through."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadJson(f"the key {twice!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _BadJson(f"the number {text[:40]} does not fit a double")
    return number


def _not_json(text: str) -> Never:
    raise _BadJson(f"{text} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_not_json)


def read_document(document: bytes, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return the object in untrusted bytes: UTF-8 JSON of at most DEFINITION_BYTES_MAX, with no other fields.

    Raises:
        BadDefinition: no such object; a key that stands twice; nested too deep, or numbers that fit no double.
    """
    if len(document) > DEFINITION_BYTES_MAX:
        refuse(where, f"want at most {DEFINITION_BYTES_MAX} bytes, got {len(document)}")
    try:
        top = _DECODER.decode(document.decode())
        if b"\\u" in document:
            json.dumps(top, ensure_ascii=False).encode()  # finds halves of surrogate pairs, which no UTF-8 can hold
    except UnicodeDecodeError as error:
        refuse(where, f"want UTF-8, got byte 0x{document[error.start]:02x} at {error.start}")
    except UnicodeEncodeError:
        refuse(where, "want Unicode text, got half of a surrogate pair")
    except _BadJson as error:
        refuse(where, str(error))
    except json.JSONDecodeError as error:
        refuse(where, f"want JSON, got at line {error.lineno} column {error.colno}: {error.msg}")
    except (RecursionError, ValueError):  # only what is over the limits: nested too deeply, or endless digits
        refuse(where, f"want at most {DOCUMENT_DEPTH_MAX} levels, and numbers that fit a double")
    if document.count(b"{") + document.count(b"[") > DOCUMENT_DEPTH_MAX:
        plain(top, where)
    top = object_in(top, where)
    for key in top:
        if key not in allowed:
            refuse(where, f"want only {listed(allowed)}, got {key!r}")
    return top


def write_document(top: object, where: str) -> bytes:
    """Return compact JSON.

    Raises:
        BadDefinition: half of a surrogate pair in it.
    """
    try:
        return json.dumps(top, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        refuse(where, "want Unicode text, got half of a surrogate pair")


def plain(value: object, where: str) -> Any:
    """Return JSON values as plain str, int, float, bool, None, list and dict, whatever library read them.

    Raises:
        BadDefinition: something that JSON does not have, or more than the limits on depth and size allow.
    """
    left = [DOCUMENT_VALUES_MAX]

    def copied(value: object, where: str, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > DOCUMENT_DEPTH_MAX:
            refuse(where, f"want at most {DOCUMENT_DEPTH_MAX} levels and {DOCUMENT_VALUES_MAX} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                refuse(where, f"want a finite number, got {value!r}")
            return float(value)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    refuse(where, f"want text as a key, got {shown(key)}", "put it in quotes")
            copy: dict[str, Any] = {}
            for key, item in value.items():  # no comprehension: each level would take two frames
                copy[str(key)] = copied(item, f"{where}.{key}", depth + 1)
            return copy
        if isinstance(value, (list, tuple)):
            items: list[Any] = []
            for index, item in enumerate(value):
                items.append(copied(item, f"{where}[{index}]", depth + 1))
            return items
        refuse(where, f"want JSON, got {shown(value)} ({type(value).__name__})", "put it in quotes to make it text")

    return copied(value, where, 0)


def object_in(value: object, where: str) -> dict[str, Any]:
    """Return a value that is an object."""
    if type(value) is not dict:
        refuse(where, f"want an object, got {shown(value)}")
    return value


def listed(names: Sequence[str]) -> str:
    """Return names for an error, each in quotes."""
    return ", ".join(f'"{name}"' for name in names)


def person_in(value: object, where: str) -> Person | None:
    """Return a person, or None for null."""
    if value is None:
        return None
    try:
        return Person(value)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error


def date_in(value: object, where: str) -> str | None:
    """Return an ISO date (YYYY-MM-DD), or None for null."""
    if value is None:
        return None
    if isinstance(value, str) and _DATE.match(value):
        try:
            date.fromisoformat(value)
        except ValueError:
            pass
        else:
            return value
    refuse(where, f"want a date as YYYY-MM-DD, got {shown(value)}")


def optional_name(raw: dict[str, Any], key: str, where: str) -> str | None:
    """Return a name of 1 to NAME_CHARS_MAX characters under a key, or None for null."""
    value = raw.get(key)
    return None if value is None else text_in(value, f"{where}.{key}", NAME_CHARS_MAX, least=1)


def text_in(value: object, where: str, longest: int, *, least: int = 0) -> str:
    """Return a text of `least` to `longest` characters."""
    if type(value) is not str or not least <= len(value) <= longest:
        size = f"{least} to {longest}" if least else f"at most {longest}"
        refuse(where, f"want text of {size} characters, got {shown(value)}")
    return value
