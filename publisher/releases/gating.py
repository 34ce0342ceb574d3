"""How a flag goes through the gates of releases: the rule around its own, put there and taken away again. Pure.

A flag is wired by `{"if": [{"$ref": "release.ID"}, ON, OLD]}`. While the gate is closed that is OLD, so every answer
is what it was; taking the rule away again leaves OLD. Several releases may be wired around one flag.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from flaghoist.definition import FlagDefinition, encode_flag, parse_flag
from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition, Refused
from flaghoist.release_plan import GATE_PREFIX, gate_key
from flaghoist.values import FlagKey


class NotWired(Refused):
    """A flag whose rule is not the one that wiring makes, so that taking it away would be a guess."""

    code = "not_wired"


def wired_rule(release: FlagKey, on: str, targeting: JsonValue) -> JsonValue:
    """Return a flag's rule that goes through a release's gate: `on` for whom it lets through, else as before."""
    branches: list[JsonValue] = [{"$ref": gate_key(release)}, on]
    return {"if": [*branches, targeting] if targeting else branches}


def wiring_of(targeting: JsonValue, release: FlagKey) -> tuple[str, JsonValue] | None:
    """Return the variant that a rule turns on for a release, and the rule without it; None when it is not wired so.

    Other releases may be wired around it.
    """
    gate, on, rest = _branch(targeting)
    if gate is None or not isinstance(on, str):
        return None
    if gate == gate_key(release):
        return on, rest
    if (inner := wiring_of(rest, release)) is None:
        return None
    around: list[JsonValue] = [{"$ref": gate}, on]
    return inner[0], {"if": [*around, inner[1]] if inner[1] else around}


def _branch(targeting: JsonValue) -> tuple[str | None, JsonValue, JsonValue]:
    """Return gate, variant and rest of a rule that a release may have made; a gate of None when none has."""
    if not isinstance(targeting, Mapping) or list(targeting) != ["if"]:
        return None, None, None
    branches = targeting["if"]
    if not isinstance(branches, list) or len(branches) not in (2, 3):
        return None, None, None
    condition, on = branches[:2]
    if not isinstance(condition, Mapping) or list(condition) != ["$ref"] or not isinstance(condition["$ref"], str):
        return None, None, None
    return condition["$ref"], on, branches[2] if len(branches) == 3 else None


def wired(document: bytes, release: FlagKey, on: str) -> bytes:
    """Return a flag's definition with its rule led through a release's gate.

    Raises:
        BadDefinition: the result cannot be served.
    """
    return _with_targeting(document, wired_rule(release, on, parse_flag(document).targeting))


def unwired(document: bytes, release: FlagKey) -> bytes:
    """Return a flag's definition with its rule as it was before a release's gate was put around it.

    Raises:
        NotWired: its rule refers to the gate in another way.
    """
    definition = parse_flag(document)
    found = wiring_of(definition.targeting, release)
    if found is None:
        if not refers(definition, release):
            return document
        raise NotWired(
            f'its rule refers to {{"$ref": "{gate_key(release)}"}} in another way than a release wires it',
            hint="edit the flag's rule first, with `flaghoist propose edit`, so that it refers to the gate no more",
        )
    return _with_targeting(document, found[1])


def refers(definition: FlagDefinition, release: FlagKey) -> bool:
    """Say whether a flag's own rule names a release's gate anywhere."""
    gate = gate_key(release)
    left: list[Any] = [definition.targeting]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if value.get("$ref") == gate:
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def gates_of(targeting: JsonValue) -> list[tuple[FlagKey, str]]:
    """Return the releases that are wired around a flag's own rule, the outermost first, each with its variant."""
    gate, on, rest = _branch(targeting)
    if gate is None or not gate.startswith(GATE_PREFIX) or not isinstance(on, str):
        return []
    return [(FlagKey(gate.removeprefix(GATE_PREFIX)), on), *gates_of(rest)]


def rewired(document: bytes, current: bytes | None, releases: Collection[FlagKey]) -> bytes:
    """Return a new definition of a flag led through the same gates as the one in force.

    A file of flags says nothing of releases: importing it again must not take a flag out of them.

    Args:
        document: a definition that refers to none of these gates keeps its rule within them.
        current: the definition in force; None: there is none.
        releases: those that exist.

    Raises:
        BadDefinition: it lacks the variant that a release turns on.
    """
    if current is None:
        return document
    for release, on in reversed(gates_of(parse_flag(current).targeting)):
        definition = parse_flag(document)
        if release not in releases or refers(definition, release):
            continue
        if on not in definition.variants:
            raise BadDefinition(
                "variants", f"want {on!r}, which release {release} turns on, got {', '.join(definition.variants)}"
            )
        document = wired(document, release, on)
    return document


def _with_targeting(document: bytes, targeting: JsonValue) -> bytes:
    top = json.loads(document)
    if targeting:
        top["flag"]["targeting"] = targeting  # where it stood: taken back, the definition is the same to the byte
    else:
        top["flag"].pop("targeting", None)
    return encode_flag(top["flag"], top.get("governance"))
