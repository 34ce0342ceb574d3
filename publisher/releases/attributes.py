"""What a rule reads: attributes of the caller's context, and the shared rules that it refers to. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flaghoist.document import JsonValue
from flaghoist.targeting.access import OURS, split
from flaghoist.targeting.coercion import scalar_text

# How a rule that reads all of the context, or a path that is only known in a call, is told.
WHOLE_CONTEXT: Final = "*"
TARGETING_KEY: Final = "targetingKey"

# Inside the second operand of these `var` means an element of a list, and nothing of the context.
_ITERATIONS: Final = frozenset({"map", "filter", "reduce", "all", "some", "none"})


@dataclass(frozen=True, slots=True)
class Reads:
    """What a rule reads.

    Attributes:
        attributes: paths in the context, parts joined by dots; WHOLE_CONTEXT where it may be any.
        references: names that its `$ref`s say, its own alone and not those of the rules that they lead to.
    """

    attributes: frozenset[str] = frozenset()
    references: frozenset[str] = frozenset()


NOTHING: Final = Reads()


def reads_of(rule: JsonValue) -> Reads:
    """Return what a rule reads, `$ref`s not followed; of a rule that compiles."""
    attributes: set[str] = set()
    references: set[str] = set()
    left: list[Any] = [rule]
    while left:
        value = left.pop()
        if type(value) is list:
            left += value
        elif type(value) is dict and value:
            [(operator, raw)] = value.items()
            if operator == "$ref":
                references.add(raw)
                continue
            operands = raw if type(raw) is list else [raw]
            attributes.update(_named(operator, operands))
            left += [each for index, each in enumerate(operands) if index != 1 or operator not in _ITERATIONS]
    return Reads(frozenset(attributes), frozenset(references))


def _named(operator: str, operands: Sequence[Any]) -> Iterator[str]:
    """The attributes that an operator itself reads, besides what its operands do."""
    match operator:
        case "var":
            yield from _path(operands[0] if operands else "")
        case "missing":
            yield from _paths(operands)
        case "missing_some":
            yield from _paths(operands[1:])
        # Without a key of its own it buckets by the targeting key, and so it does where its key is null.
        case "fractional" if operands and (type(operands[0]) is list or operands[0] is None):
            yield TARGETING_KEY


def _paths(operands: Sequence[Any]) -> Iterator[str]:
    for operand in operands:
        yield from _paths(operand) if type(operand) is list else _path(operand)


def _path(value: Any) -> Iterator[str]:
    if value is None:
        return
    if type(value) in (dict, list):
        yield WHOLE_CONTEXT  # computed: it may be any
        return
    parts = split(scalar_text(value))
    if not parts:
        yield WHOLE_CONTEXT
    elif parts[0] != OURS:
        yield ".".join(parts)


def followed(rule: JsonValue, rule_of: Callable[[str], JsonValue], known: dict[str, Reads]) -> Reads:
    """Return what a rule reads, directly or through the rules that it refers to.

    Args:
        rule_of: the rule of a name that a `$ref` says; None where it is not to be followed.
        known: what was found of names before, for the same `rule_of`; grows.
    """
    found = reads_of(rule)
    attributes, references = set(found.attributes), set(found.references)
    for name in found.references:
        if name not in known:
            inner = rule_of(name)
            known[name] = NOTHING if inner is None else followed(inner, rule_of, known)
        attributes |= known[name].attributes
        references |= known[name].references
    return Reads(frozenset(attributes), frozenset(references))
