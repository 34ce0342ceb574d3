"""What a flag or evaluator definition says: parsed once from its signed bytes, never looked at as raw JSON again.

Source: flagd's flag definition schema (https://flagd.dev/schema/v0/flags.json); docs/evaluation.md names what differs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final, Literal

from flaghoist.document import (
    NAME_CHARS_MAX,
    JsonValue,
    Scalar,
    date_in,
    listed,
    object_in,
    optional_name,
    person_in,
    plain,
    read_document,
    refuse,
    shown,
    text_in,
    write_document,
)
from flaghoist.values import Person

DESCRIPTION_CHARS_MAX: Final = 4096
STALE_S_MAX: Final = 10 * 366 * 86_400  # ten years: more is a slip of the unit
SAFE_INT_MAX: Final = 2**53 - 1  # flagd's schema: larger ones are not exact in its clients, which read doubles


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
    top = read_document(document, where, ("flag", "governance"))
    raw = top.get("flag")
    if type(raw) is not dict:
        refuse(where, f'want an object with a flag definition under "flag", got {shown(raw)}')
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
    return _flag(object_in(plain(raw, where), where), where, governance)


def governance_from(raw: Mapping[str, object], where: str = "governance") -> Governance:
    """Return the governance that an object (parsed JSON or YAML) describes.

    Raises:
        BadDefinition: an unknown key, or a value that cannot be; `where` is the path of the field.
    """
    return _governance(plain(raw, where), where)


def encode_flag(raw_flag: Mapping[str, object], governance: Mapping[str, object] | None = None) -> bytes:
    """Return the compact JSON that is signed and that parse_flag reads: a round trip is part of encoding.

    Raises:
        BadDefinition: parse_flag would refuse the result.
    """
    top: dict[str, object] = {"flag": plain(raw_flag, "flag")}
    if governance:
        top["governance"] = plain(governance, "governance")
    document = write_document(top, "flag")
    parse_flag(document)
    return document


def killed(flag: FlagDefinition, *, where: str = "flag") -> FlagDefinition:
    """Return what an emergency makes of a flag: everybody gets its safe variant, whatever its rule or state said.

    Raises:
        BadDefinition: it declares no safe variant.
    """
    safe = flag.governance.safe_variant
    if safe is None:
        refuse(where, "want a flag that declares a safe_variant, this one has none", "propose the change instead")
    return replace(flag, state=FlagState.ENABLED, default_variant=safe, targeting=None)


def killed_document(document: bytes) -> bytes:
    """Return the document that says what `killed` makes of the flag in this one, which parse_flag has read."""
    top = json.loads(document)
    flag = {name: value for name, value in top["flag"].items() if name != "targeting"}
    flag |= {"state": FlagState.ENABLED.value, "defaultVariant": top["governance"]["safe_variant"]}
    return write_document({**top, "flag": flag}, "flag")


def parse_evaluator(document: bytes, *, where: str = "evaluator") -> JsonValue:
    """Return the rule in `{"evaluator": rule}` (UTF-8 JSON, at most DEFINITION_BYTES_MAX bytes).

    Raises:
        BadDefinition: not such a document. The rule itself is checked when it is compiled.
    """
    top = read_document(document, where, ("evaluator",))
    rule = top.get("evaluator")
    if type(rule) is not dict or not rule:
        refuse(where, f'want an object with one operator under "evaluator", got {shown(rule)}')
    return rule


def encode_evaluator(rule: JsonValue) -> bytes:
    """Return the compact JSON that is signed and that parse_evaluator reads.

    Raises:
        BadDefinition: parse_evaluator would refuse the result.
    """
    document = write_document({"evaluator": plain(rule, "evaluator")}, "evaluator")
    parse_evaluator(document)
    return document


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
        refuse(f"{where}.targeting", f"want an object with one operator, got {shown(targeting)}")
    description = raw.get("description")
    if description is not None:
        text_in(description, f"{where}.description", DESCRIPTION_CHARS_MAX)
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
    if state is None:
        refuse(f"{where}.state", "want ENABLED or DISABLED, got nothing", 'add "state": "ENABLED"')
    if state not in ("ENABLED", "DISABLED"):
        upper = isinstance(state, str) and state.upper() in ("ENABLED", "DISABLED")
        hint = "write it in capital letters" if upper else None
        refuse(f"{where}.state", f"want ENABLED or DISABLED, got {shown(state)}", hint)
    return FlagState(state)


_KINDS: Final = {bool: "bool", int: "number", float: "number", str: "string", dict: "object"}


def _variants(raw: object, where: str) -> dict[str, JsonValue]:
    if type(raw) is not dict or not raw:
        refuse(where, f"want an object with at least one variant, got {'{}' if raw == {} else shown(raw)}")
    first: tuple[str, str] | None = None
    for name, value in raw.items():
        kind = _KINDS.get(type(value))
        if kind is None:
            refuse(f"{where}.{name}", f"want a bool, number, string or object, got {shown(value)}")
        if not 0 < len(name) <= NAME_CHARS_MAX:
            refuse(where, f"want variant names of 1 to {NAME_CHARS_MAX} characters, got {shown(name)}")
        if type(value) is int and abs(value) > SAFE_INT_MAX:
            refuse(
                f"{where}.{name}",
                f"want a whole number within ±{SAFE_INT_MAX}, got {shown(value)}",
                "clients read numbers as doubles, which would change it; write it as a string",
            )
        if first is None:
            first = name, kind
        elif kind != first[1]:
            refuse(
                f"{where}.{name}",
                f"want all variants of one type: {first[0]!r} is a {first[1]}, got {shown(value)} ({kind})",
            )
    return raw


def _one_of(name: object, variants: Mapping[str, JsonValue], where: str) -> None:
    if type(name) is not str or name not in variants:
        known = ", ".join(list(variants)[:8]) + (", …" if len(variants) > 8 else "")
        refuse(where, f"want one of the variants ({known}), got {shown(name)}")


def _metadata(raw: object, where: str) -> dict[str, Scalar]:
    if raw is None:
        return {}
    for key, value in object_in(raw, where).items():
        if not key:
            refuse(where, "want names, got an empty one")
        if type(value) not in (str, int, float, bool):
            refuse(f"{where}.{key}", f"want a string, number or bool, got {shown(value)}")
        if type(value) is int and abs(value) > SAFE_INT_MAX:
            refuse(f"{where}.{key}", f"want a whole number within ±{SAFE_INT_MAX}, got {shown(value)}")
    return raw  # type: ignore[return-value]


# --- governance ---

_GOVERNANCE_KEYS: Final = tuple(field.name for field in fields(Governance))


def _governance(value: object, where: str) -> Governance:
    raw = object_in(value, where)
    for key in raw:
        if key not in _GOVERNANCE_KEYS:
            refuse(where, f"want only {listed(_GOVERNANCE_KEYS)}, got {key!r}")
    safe_variant = optional_name(raw, "safe_variant", where)
    on_stale = raw.get("on_stale")
    if on_stale not in (None, "safe_variant"):
        refuse(f"{where}.on_stale", f'want "safe_variant", got {shown(on_stale)}')
    if on_stale is not None and safe_variant is None:
        refuse(f"{where}.on_stale", "want a safe_variant beside it, got none", 'add "safe_variant": "NAME"')
    services = raw.get("services")
    if services is not None and type(services) is not list:
        refuse(f"{where}.services", f"want a list of names, got {shown(services)}")
    return Governance(
        owner=person_in(raw.get("owner"), f"{where}.owner"),
        team=optional_name(raw, "team", where),
        category=_category(raw.get("category"), f"{where}.category"),
        expires_at=date_in(raw.get("expires_at"), f"{where}.expires_at"),
        ticket=optional_name(raw, "ticket", where),
        safe_variant=safe_variant,
        on_stale=on_stale,
        max_stale_s=_stale_s(raw.get("max_stale_s"), f"{where}.max_stale_s"),
        services=tuple(
            [text_in(name, f"{where}.services[{i}]", NAME_CHARS_MAX, least=1) for i, name in enumerate(services or ())]
        ),
    )


def _category(value: object, where: str) -> Category | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in list(Category):
        refuse(where, f"want one of {', '.join(Category)}, got {shown(value)}")
    return Category(value)


def _stale_s(value: object, where: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= STALE_S_MAX:
        refuse(where, f"want whole seconds, 1 .. {STALE_S_MAX}, got {shown(value)}")
    return value
