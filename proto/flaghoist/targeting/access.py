"""var, missing, missing_some: what a rule reads of its context.

A path is split at dots; empty parts are skipped. A list's elements are reached by their decimal index. At the root,
`$flagd` is ours: whatever a caller sends under that name is never seen.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from flaghoist.targeting.coercion import addend, scalar_text
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.limits import CHARS_PER_UNIT, ELEMENTS_PER_NODE, Call
from flaghoist.targeting.node import Node, Step, constant

OURS: Final = "$flagd"
_INDEX_DIGITS_MAX: Final = 9  # no list in a context of 1 MiB has more elements than that

# A path's value in some data; None when there is none.
Find: TypeAlias = Callable[[Any, Call, str], Any]


def split(path: str) -> tuple[str, ...]:
    return tuple([part for part in path.split(".") if part])


def descend(data: Any, parts: tuple[str, ...]) -> Any:
    """Return what `parts` lead to, None when they lead nowhere."""
    for part in parts:
        if type(data) is dict:
            data = data.get(part)
        elif type(data) is list and len(part) <= _INDEX_DIGITS_MAX and part.isascii() and part.isdigit():
            index = int(part)
            data = data[index] if index < len(data) else None
        else:
            return None
    return data


def _finder(operands: Operands) -> Find:
    if not operands.scope.root:
        return lambda data, call, path: descend(data, split(path))
    flag_key = operands.flag_key

    def find(data: Any, call: Call, path: str) -> Any:
        parts = split(path)
        if parts and parts[0] != OURS:
            return descend(data, parts)
        ours = {"flagKey": flag_key, "timestamp": call.now_s}
        return descend(ours, parts[1:]) if parts else {**data, OURS: ours}

    return find


def _fixed(operands: Operands, path: str) -> Node:
    """A path that is known now."""
    parts = split(path)
    if operands.scope.root:
        if not parts or parts == (OURS,):
            find = _finder(operands)
            return Node(lambda data, call: find(data, call, path))
        if parts[0] == OURS:
            if parts[1:] == ("timestamp",):
                return Node(lambda data, call: call.now_s)
            return constant(operands.flag_key if parts[1:] == ("flagKey",) else None)
        if len(parts) == 1:
            key = parts[0]
            return Node(lambda data, call: data.get(key), key=key)
    if not parts:
        return Node(lambda data, call: data)
    if len(parts) == 1:
        key = parts[0]
        return Node(lambda data, call: data.get(key) if type(data) is dict else descend(data, parts))
    return Node(lambda data, call: descend(data, parts))


def _var(operands: Operands) -> Node:
    listed = operands.listed
    if not listed:
        return _fixed(operands, "")
    path = operands.compile(0)
    default = operands.compile(1) if len(listed) > 1 else constant(None)
    if path.constant:
        found = _constant_path(operands, path.value)
    else:
        find, operand = _finder(operands), path.step

        def computed(data: Any, call: Call) -> Any:
            value = operand(data, call)
            if type(value) is list:  # {"var": {"var": "pair"}}: a list is the operands
                value = value[0] if value else ""
            return find(data, call, _path(value, call))

        found = Node(computed)
    if default.constant and default.value is None:
        return found
    step, otherwise = found.step, default.step

    def with_default(data: Any, call: Call) -> Any:
        value = step(data, call)
        return otherwise(data, call) if value is None else value

    return Node(with_default)


def _constant_path(operands: Operands, path: Any) -> Node:
    if path is None:
        # As in flagd: null is the element inside an iteration over plain values, and nothing elsewhere.
        return Node(lambda data, call: None if type(data) in (dict, list) else data)
    if type(path) not in (str, int, float):
        operands.refuse(f"want a path as text or an index, got {type(path).__name__}", 0)
    return _fixed(operands, scalar_text(path))


def _path(value: Any, call: Call) -> str:
    path = scalar_text(value)
    call.spend(len(path) // CHARS_PER_UNIT)
    return path


def _missing(operands: Operands) -> Node:
    """The paths among the operands that lead to nothing or null; an empty text is there (as in flagd)."""
    return _absent(operands, operands.compile_all(), lambda keys, absent: absent)


def _missing_some(operands: Operands) -> Node:
    """All absent paths, if fewer than the wanted number are there."""
    nodes = operands.compile_all()
    if type(operands.raw) is not list or len(nodes) < 2:
        operands.refuse("want 2 operands: how many are needed, and a list of paths")
    if not (nodes[0].constant and type(nodes[0].value) in (int, float)):
        operands.refuse("want a number: how many are needed", 0)
    needed = addend(nodes[0].value)
    return _absent(operands, [nodes[1]], lambda keys, absent: absent if len(keys) - len(absent) < needed else [])


def _absent(operands: Operands, nodes: list[Node], outcome: Callable[[list[Any], list[Any]], list[Any]]) -> Node:
    find = _finder(operands)
    steps: list[Step] = [node.step for node in nodes]

    def step(data: Any, call: Call) -> list[Any]:
        keys: list[Any] = []
        for operand in steps:
            value = operand(data, call)
            keys += value if type(value) is list else [value]
        if len(keys) > ELEMENTS_PER_NODE:
            call.spend(len(keys) * 4)
        return outcome(keys, [key for key in keys if find(data, call, _path(key, call)) is None])

    return Node(step)


OPERATORS: Final[dict[str, Build]] = {"var": _var, "missing": _missing, "missing_some": _missing_some}
