"""What a flag or evaluator definition says: parsed once from its signed bytes, never looked at as raw JSON again.

Source: flagd's flag definition schema (https://flagd.dev/schema/v0/flags.json); docs/evaluation.md names what differs.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from enum import StrEnum
from typing import Any, Final, Literal, Never, TypeAlias

from flaghoist.errors import BadDefinition, Malformed
from flaghoist.values import Person

Scalar: TypeAlias = str | int | float | bool
# At run time an array is a list and an object is a dict; the wide types let callers pass what they have.
JsonValue: TypeAlias = bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None

DEFINITION_BYTES_MAX: Final = 256 * 1024  # half of the largest envelope: a proposal also carries its other fields
DOCUMENT_DEPTH_MAX: Final = 200  # a chain of 99 `if`s in flagd's three-operand form; json.loads stops before 1000
DOCUMENT_VALUES_MAX: Final = 131_072  # more do not fit into DEFINITION_BYTES_MAX; bounds what YAML aliases expand to
NAME_CHARS_MAX: Final = 255  # of a team, ticket, service or variant: they become labels, columns and file names
DESCRIPTION_CHARS_MAX: Final = 4096
STALE_S_MAX: Final = 10 * 366 * 86_400  # ten years: more is a slip of the unit
SAFE_INT_MAX: Final = 2**53 - 1  # flagd's schema: larger ones are not exact in its clients, which read doubles

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")


class FlagState(StrEnum):
    """Whether a flag is served; a DISABLED flag answers without a value."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"


class Category(StrEnum):
    """Why a flag exists, and so how long it should live."""

    RELEASE = "release"
    EXPERIMENT = "experiment"
    MIGRATION = "migration"
    OPERATIONAL = "operational"


@dataclass(frozen=True, slots=True)
class Governance:
    """Who answers for a flag and how it should age; it travels with the definition and never changes an answer
    except through `on_stale`.

    `expires_at` is an ISO date (YYYY-MM-DD). `safe_variant` names a variant. `max_stale_s` is in seconds.
    """

    owner: Person | None = None
    team: str | None = None
    category: Category | None = None
    expires_at: str | None = None
    ticket: str | None = None
    safe_variant: str | None = None
    on_stale: Literal["safe_variant"] | None = None
    max_stale_s: int | None = None
    services: tuple[str, ...] = ()


NO_GOVERNANCE: Final = Governance()


@dataclass(frozen=True, slots=True)
class FlagDefinition:
    """A flag as flagd defines it, checked, with its governance.

    `variants` is not empty and all its values have one type: bool, number (int and float may mix), string or object.
    `default_variant` is a variant's name, or None. `targeting` is the raw rule, None when absent or `{}`. Nothing
    inside may be changed.
    """

    state: FlagState
    variants: Mapping[str, JsonValue]
    default_variant: str | None
    targeting: JsonValue
    metadata: Mapping[str, Scalar]
    description: str | None
    governance: Governance = NO_GOVERNANCE


def parse_flag(document: bytes, *, where: str = "flag") -> FlagDefinition:
    """Return the flag in `{"flag": {flagd flag definition}, "governance": {…}?}`.

    Args:
        document: UTF-8 JSON, untrusted, at most DEFINITION_BYTES_MAX bytes.
        where: what the path in errors starts with.

    Raises:
        BadDefinition: not such a document; it names the field, what was expected and what came.
    """
    top = _document(document, where, ("flag", "governance"))
    raw = top.get("flag")
    if type(raw) is not dict:
        _refuse(where, f'want an object with a flag definition under "flag", got {_shown(raw)}')
    governance = _governance(top["governance"], f"{where}.governance") if "governance" in top else NO_GOVERNANCE
    return _flag(raw, where, governance)


def flag_from_flagd(raw: Mapping[str, object], where: str, governance: Governance = NO_GOVERNANCE) -> FlagDefinition:
    """Return the flag that a flagd flag definition (parsed JSON or YAML) describes.

    Args:
        raw: the value under `flags.KEY` of a flagd file; unknown keys are tolerated, as flagd does, and not kept.
        where: path of `raw` for errors, such as `flags.newUi`.

    Raises:
        BadDefinition: `where` is the path of the field, such as `flags.newUi.variants.on`.
    """
    return _flag(_object(_plain(raw, where), where), where, governance)


def governance_from(raw: Mapping[str, object], where: str = "governance") -> Governance:
    """Return the governance that an object (parsed JSON or YAML) describes.

    Raises:
        BadDefinition: an unknown key, or a value that cannot be; `where` is the path of the field.
    """
    return _governance(_plain(raw, where), where)


def encode_flag(raw_flag: Mapping[str, object], governance: Mapping[str, object] | None = None) -> bytes:
    """Return the compact JSON that is signed and that parse_flag reads: a round trip is part of encoding.

    Raises:
        BadDefinition: parse_flag would refuse the result.
    """
    top: dict[str, object] = {"flag": _plain(raw_flag, "flag")}
    if governance:
        top["governance"] = _plain(governance, "governance")
    document = _encoded(top, "flag")
    parse_flag(document)
    return document


def killed(flag: FlagDefinition, *, where: str = "flag") -> FlagDefinition:
    """Return what an emergency makes of a flag: everybody gets its safe variant, whatever its rule or state said.

    Raises:
        BadDefinition: it declares no safe variant.
    """
    safe = flag.governance.safe_variant
    if safe is None:
        _refuse(where, "want a flag that declares a safe_variant, this one has none", "propose the change instead")
    return replace(flag, state=FlagState.ENABLED, default_variant=safe, targeting=None)


def killed_document(document: bytes) -> bytes:
    """Return the document that says what `killed` makes of the flag in this one, which parse_flag has read."""
    top = json.loads(document)
    flag = {name: value for name, value in top["flag"].items() if name != "targeting"}
    flag |= {"state": FlagState.ENABLED.value, "defaultVariant": top["governance"]["safe_variant"]}
    return _encoded({**top, "flag": flag}, "flag")


def parse_evaluator(document: bytes, *, where: str = "evaluator") -> JsonValue:
    """Return the rule in `{"evaluator": rule}` (UTF-8 JSON, at most DEFINITION_BYTES_MAX bytes).

    Raises:
        BadDefinition: not such a document. The rule itself is checked when it is compiled.
    """
    top = _document(document, where, ("evaluator",))
    rule = top.get("evaluator")
    if type(rule) is not dict or not rule:
        _refuse(where, f'want an object with one operator under "evaluator", got {_shown(rule)}')
    return rule


def encode_evaluator(rule: JsonValue) -> bytes:
    """Return the compact JSON that is signed and that parse_evaluator reads.

    Raises:
        BadDefinition: parse_evaluator would refuse the result.
    """
    document = _encoded({"evaluator": _plain(rule, "evaluator")}, "evaluator")
    parse_evaluator(document)
    return document


def _refuse(where: str, message: str, hint: str | None = None) -> Never:
    raise BadDefinition(where, message, hint=hint)


def _shown(value: object) -> str:
    """A value for an error: its type, and itself when it is short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


# --- documents ---


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


def _document(document: bytes, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if len(document) > DEFINITION_BYTES_MAX:
        _refuse(where, f"want at most {DEFINITION_BYTES_MAX} bytes, got {len(document)}")
    try:
        top = _DECODER.decode(document.decode())
        if b"\\u" in document:
            json.dumps(top, ensure_ascii=False).encode()  # finds halves of surrogate pairs, which no UTF-8 can hold
    except UnicodeDecodeError as error:
        _refuse(where, f"want UTF-8, got byte 0x{document[error.start]:02x} at {error.start}")
    except UnicodeEncodeError:
        _refuse(where, "want Unicode text, got half of a surrogate pair")
    except _BadJson as error:
        _refuse(where, str(error))
    except json.JSONDecodeError as error:
        _refuse(where, f"want JSON, got at line {error.lineno} column {error.colno}: {error.msg}")
    except (RecursionError, ValueError):  # only what is over the limits: nested too deeply, or endless digits
        _refuse(where, f"want at most {DOCUMENT_DEPTH_MAX} levels, and numbers that fit a double")
    if document.count(b"{") + document.count(b"[") > DOCUMENT_DEPTH_MAX:
        _plain(top, where)
    top = _object(top, where)
    for key in top:
        if key not in allowed:
            _refuse(where, f"want only {_listed(allowed)}, got {key!r}")
    return top


def _encoded(top: object, where: str) -> bytes:
    try:
        return json.dumps(top, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        _refuse(where, "want Unicode text, got half of a surrogate pair")


def _plain(value: object, where: str) -> Any:
    """Return JSON values as plain str, int, float, bool, None, list and dict, whatever library read them.

    Raises:
        BadDefinition: something that JSON does not have, or more than the limits on depth and size allow.
    """
    left = [DOCUMENT_VALUES_MAX]

    def copied(value: object, where: str, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > DOCUMENT_DEPTH_MAX:
            _refuse(where, f"want at most {DOCUMENT_DEPTH_MAX} levels and {DOCUMENT_VALUES_MAX} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                _refuse(where, f"want a finite number, got {value!r}")
            return float(value)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    _refuse(where, f"want text as a key, got {_shown(key)}", "put it in quotes")
            copy: dict[str, Any] = {}
            for key, item in value.items():  # no comprehension: each level would take two frames
                copy[str(key)] = copied(item, f"{where}.{key}", depth + 1)
            return copy
        if isinstance(value, (list, tuple)):
            items: list[Any] = []
            for index, item in enumerate(value):
                items.append(copied(item, f"{where}[{index}]", depth + 1))
            return items
        _refuse(where, f"want JSON, got {_shown(value)} ({type(value).__name__})", "put it in quotes to make it text")

    return copied(value, where, 0)


def _object(value: object, where: str) -> dict[str, Any]:
    if type(value) is not dict:
        _refuse(where, f"want an object, got {_shown(value)}")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# --- flags ---


def _flag(raw: dict[str, Any], where: str, governance: Governance) -> FlagDefinition:
    variants = _variants(raw.get("variants"), f"{where}.variants")
    default = raw.get("defaultVariant")
    if default == "":
        default = None  # flagd's sync sends a missing one so
    if default is not None:
        _one_of(default, variants, f"{where}.defaultVariant")
    if governance.safe_variant is not None:
        _one_of(governance.safe_variant, variants, f"{where}.governance.safe_variant")
    targeting = raw.get("targeting")
    if targeting is not None and type(targeting) is not dict:
        _refuse(f"{where}.targeting", f"want an object with one operator, got {_shown(targeting)}")
    description = raw.get("description")
    if description is not None:
        _text(description, f"{where}.description", DESCRIPTION_CHARS_MAX)
    return FlagDefinition(
        state=_state(raw, where),
        variants=variants,
        default_variant=default,
        targeting=targeting or None,
        metadata=_metadata(raw.get("metadata"), f"{where}.metadata"),
        description=description,
        governance=governance,
    )


def _state(raw: dict[str, Any], where: str) -> FlagState:
    state = raw.get("state")
    if state == "ENABLED":
        return FlagState.ENABLED
    if state == "DISABLED":
        return FlagState.DISABLED
    if state is None:
        _refuse(f"{where}.state", "want ENABLED or DISABLED, got nothing", 'add "state": "ENABLED"')
    upper = isinstance(state, str) and state.upper() in ("ENABLED", "DISABLED")
    _refuse(
        f"{where}.state",
        f"want ENABLED or DISABLED, got {_shown(state)}",
        "write it in capital letters" if upper else None,
    )


_KINDS: Final = {bool: "bool", int: "number", float: "number", str: "string", dict: "object"}


def _variants(raw: object, where: str) -> dict[str, JsonValue]:
    if type(raw) is not dict or not raw:
        _refuse(where, f"want an object with at least one variant, got {'{}' if raw == {} else _shown(raw)}")
    first: tuple[str, str] | None = None
    for name, value in raw.items():
        kind = _KINDS.get(type(value))
        if kind is None:
            _refuse(f"{where}.{name}", f"want a bool, number, string or object, got {_shown(value)}")
        if not 0 < len(name) <= NAME_CHARS_MAX:
            _refuse(where, f"want variant names of 1 to {NAME_CHARS_MAX} characters, got {_shown(name)}")
        if type(value) is int and abs(value) > SAFE_INT_MAX:
            _refuse(
                f"{where}.{name}",
                f"want a whole number within ±{SAFE_INT_MAX}, got {_shown(value)}",
                "clients read numbers as doubles, which would change it; write it as a string",
            )
        if first is None:
            first = name, kind
        elif kind != first[1]:
            _refuse(
                f"{where}.{name}",
                f"want all variants of one type: {first[0]!r} is a {first[1]}, got {_shown(value)} ({kind})",
            )
    return raw


def _one_of(name: object, variants: Mapping[str, JsonValue], where: str) -> None:
    if type(name) is not str or name not in variants:
        shown = ", ".join(list(variants)[:8]) + (", …" if len(variants) > 8 else "")
        _refuse(where, f"want one of the variants ({shown}), got {_shown(name)}")


def _metadata(raw: object, where: str) -> dict[str, Scalar]:
    if raw is None:
        return {}
    for key, value in _object(raw, where).items():
        if not key:
            _refuse(where, "want names, got an empty one")
        if type(value) not in (str, int, float, bool):
            _refuse(f"{where}.{key}", f"want a string, number or bool, got {_shown(value)}")
        if type(value) is int and abs(value) > SAFE_INT_MAX:
            _refuse(f"{where}.{key}", f"want a whole number within ±{SAFE_INT_MAX}, got {_shown(value)}")
    return raw  # type: ignore[return-value]


# --- governance ---

_GOVERNANCE_KEYS: Final = tuple(field.name for field in fields(Governance))


def _governance(value: object, where: str) -> Governance:
    raw = _object(value, where)
    for key in raw:
        if key not in _GOVERNANCE_KEYS:
            _refuse(where, f"want only {_listed(_GOVERNANCE_KEYS)}, got {key!r}")
    safe_variant = _optional_name(raw, "safe_variant", where)
    on_stale = raw.get("on_stale")
    if on_stale not in (None, "safe_variant"):
        _refuse(f"{where}.on_stale", f'want "safe_variant", got {_shown(on_stale)}')
    if on_stale is not None and safe_variant is None:
        _refuse(f"{where}.on_stale", "want a safe_variant beside it, got none", 'add "safe_variant": "NAME"')
    services = raw.get("services")
    if services is not None and type(services) is not list:
        _refuse(f"{where}.services", f"want a list of names, got {_shown(services)}")
    return Governance(
        owner=_owner(raw.get("owner"), f"{where}.owner"),
        team=_optional_name(raw, "team", where),
        category=_category(raw.get("category"), f"{where}.category"),
        expires_at=_date(raw.get("expires_at"), f"{where}.expires_at"),
        ticket=_optional_name(raw, "ticket", where),
        safe_variant=safe_variant,
        on_stale=on_stale,
        max_stale_s=_stale_s(raw.get("max_stale_s"), f"{where}.max_stale_s"),
        services=tuple(
            [_text(name, f"{where}.services[{i}]", NAME_CHARS_MAX, least=1) for i, name in enumerate(services or ())]
        ),
    )


def _owner(value: object, where: str) -> Person | None:
    if value is None:
        return None
    try:
        return Person(value)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error


def _category(value: object, where: str) -> Category | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in list(Category):
        _refuse(where, f"want one of {', '.join(Category)}, got {_shown(value)}")
    return Category(value)


def _date(value: object, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and _DATE.match(value):
        try:
            date.fromisoformat(value)
        except ValueError:
            pass
        else:
            return value
    _refuse(where, f"want a date as YYYY-MM-DD, got {_shown(value)}")


def _stale_s(value: object, where: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= STALE_S_MAX:
        _refuse(where, f"want whole seconds, 1 .. {STALE_S_MAX}, got {_shown(value)}")
    return value


def _optional_name(raw: dict[str, Any], key: str, where: str) -> str | None:
    value = raw.get(key)
    return None if value is None else _text(value, f"{where}.{key}", NAME_CHARS_MAX, least=1)


def _text(value: object, where: str, longest: int, *, least: int = 0) -> str:
    if type(value) is not str or not least <= len(value) <= longest:
        size = f"{least} to {longest}" if least else f"at most {longest}"
        _refuse(where, f"want text of {size} characters, got {_shown(value)}")
    return value
