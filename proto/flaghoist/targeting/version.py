"""sem_ver: semantic versions, compared as semver.org says."""

import operator
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from flaghoist.targeting.coercion import scalar_text
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.eager import eager
from flaghoist.targeting.limits import VERSION_CHARS_MAX, Call
from flaghoist.targeting.node import Node

# A number as (digits, text): orders like the number, at any length, without making one. A prerelease's identifiers
# are (0, number) or (1, text); a version without a prerelease comes after all with one.
_Number: TypeAlias = tuple[int, str]
Version: TypeAlias = tuple[_Number, _Number, _Number, bool, tuple[tuple[int, _Number | str], ...]]

_WHOLE: Final = r"(0|[1-9][0-9]*)"
_IDENTIFIERS: Final = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
# "1" and "1.2" are padded, and then take no prerelease and no build metadata (as in Go's x/mod/semver).
_VERSION: Final = re.compile(
    rf"[vV]?{_WHOLE}(?:\.{_WHOLE}(?:\.{_WHOLE}(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?)?)?\Z"
)
_ZERO: Final[_Number] = (1, "0")


def parse_version(value: Any) -> Version | None:
    """Return a version that orders, None for what is no version. Numbers count as their text: 1.2 is "1.2"."""
    if type(value) in (bool, dict, list) or value is None:
        return None
    written = scalar_text(value)
    if len(written) > VERSION_CHARS_MAX:
        return None
    found = _VERSION.match(written)
    if found is None:
        return None
    major, minor, patch, prerelease = found.groups()
    identifiers: list[tuple[int, _Number | str]] = []
    for part in prerelease.split(".") if prerelease else ():
        if not part.isdigit():
            identifiers.append((1, part))
        elif part[0] == "0" and len(part) > 1:
            return None
        else:
            identifiers.append((0, (len(part), part)))
    return (
        (len(major), major),
        (len(minor), minor) if minor else _ZERO,
        (len(patch), patch) if patch else _ZERO,
        not prerelease,
        tuple(identifiers),
    )


_HOLDS: Final[dict[str, Callable[[Version, Version], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "^": lambda left, right: left[0] == right[0],
    "~": lambda left, right: left[:2] == right[:2],
}


def _apply(values: list[Any], call: Call) -> bool | None:
    if len(values) != 3 or type(values[1]) is not str:
        return None
    holds = _HOLDS.get(values[1])
    left, right = parse_version(values[0]), parse_version(values[2])
    if holds is None or left is None or right is None:
        return None
    return holds(left, right)


def _specialise(operands: Operands, nodes: list[Node]) -> Node | None:
    subject, relation, bound = nodes
    if relation.constant and (type(relation.value) is not str or relation.value not in _HOLDS):
        operands.refuse(f"want one of {' '.join(_HOLDS)}, got {relation.value!r}", 1)
    for index, node in ((0, subject), (2, bound)):
        if node.constant and parse_version(node.value) is None:
            operands.refuse(f"want a version such as 1.2.3, got {node.value!r}", index)
    wanted = parse_version(bound.value) if bound.constant else None
    if wanted is None or not relation.constant:
        return None
    operand, holds = subject.step, _HOLDS[relation.value]

    def step(data: Any, call: Call) -> bool | None:
        version = parse_version(operand(data, call))
        return None if version is None else holds(version, wanted)

    return Node(step)


_listed: Final = eager(_apply, least=3, specialise=_specialise)


def _sem_ver(operands: Operands) -> Node:
    if type(operands.raw) is list and len(operands.raw) != 3:
        operands.refuse(f"want exactly 3 operands (version, relation, version), got {len(operands.raw)}")
    return _listed(operands)


OPERATORS: Final[dict[str, Build]] = {"sem_ver": _sem_ver}
