"""in, merge, and the operators that iterate: map, filter, reduce, all, some, none.

Inside an iteration `var` sees the element alone (as JSONLogic and flagd's schema say; flagd itself lets variables of
the context shadow the element's in some of these). Every element is paid for before it is visited.
"""

import math
from collections.abc import Callable
from typing import Any, Final

from flaghoist.targeting.coercion import addend, number, scalar_text
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.eager import eager
from flaghoist.targeting.limits import CHARS_PER_UNIT, ELEMENTS_PER_NODE, FREE_CHARS, Call
from flaghoist.targeting.node import Node, Step, boolean, constant, test


def contains(haystack: Any, needle: Any, call: Call) -> bool:
    """Say whether text has a part, or a list a member.

    A number also equals text that is that number, and lies in a list [low, high] among the members (as in flagd).
    """
    kind = type(needle)
    if type(haystack) is str:
        if needle is None or kind is list or kind is dict:
            return False
        if len(haystack) > FREE_CHARS:
            call.spend(len(haystack) // CHARS_PER_UNIT)
        return scalar_text(needle) in haystack
    if type(haystack) is not list:
        return False
    if len(haystack) > ELEMENTS_PER_NODE:
        call.spend(len(haystack) // 2)
    return any(_is_member(element, needle, kind) for element in haystack)


def _is_member(element: Any, needle: Any, kind: type) -> bool:
    of = type(element)
    if of is list:
        return _in_range(element, needle, kind)
    if kind is int or kind is float:
        if of is str:
            return bool(element) and number(element) == needle
        return (of is int or of is float) and bool(element == needle)
    return of is kind and kind is not dict and bool(element == needle)


def _in_range(element: list[Any], needle: Any, kind: type) -> bool:
    if len(element) < 2 or kind not in (int, float, str):
        return False
    return addend(element[0]) <= addend(needle) <= addend(element[1])


def _in(values: list[Any], call: Call) -> bool:
    return len(values) > 1 and contains(values[1], values[0], call)


def _in_shapes(operands: Operands, nodes: list[Node]) -> Node | None:
    if len(nodes) < 2:
        return constant(False)
    needle, haystack = nodes[:2]
    if haystack.constant and type(haystack.value) is list:
        return boolean(_in_constant(needle, haystack.value))
    if needle.constant and type(needle.value) is str:
        part, whole, key = needle.value, haystack.step, haystack.key

        def part_of(data: Any, call: Call) -> bool:
            subject = data.get(key) if key is not None else whole(data, call)
            if type(subject) is str and len(subject) <= FREE_CHARS:
                return part in subject
            return contains(subject, part, call)

        return boolean(part_of)
    return None


def _in_constant(needle: Node, members: list[Any]) -> Callable[[Any, Call], bool]:
    """One look into a set, whatever the length of the list."""
    if any(type(member) is list for member in members):
        # Ranges are few and rare: the general way, over a list that the definition's size bounds.
        operand = needle.step
        return lambda data, call: contains(members, operand(data, call), call)
    texts = frozenset(member for member in members if type(member) is str)
    numbers = frozenset(
        number(member)
        for member in members
        if type(member) in (int, float) or (type(member) is str and member and math.isfinite(number(member)))
    )
    others = [member for member in members if member is None or type(member) is bool]
    key, operand = needle.key, needle.step

    def look(data: Any, call: Call) -> bool:
        value = data.get(key) if key is not None else operand(data, call)
        kind = type(value)
        if kind is str:
            return value in texts
        if kind is int or kind is float:
            return value in numbers
        return any(value is other for other in others)

    return look


def _merge(values: list[Any], call: Call) -> list[Any]:
    merged: list[Any] = []
    for value in values:
        if type(value) is list:
            call.spend(len(value))
            merged += value
        else:
            merged.append(value)
    return merged


class _Iteration:
    """The list and the body of one iteration, compiled; `items` pays for all of its elements at once."""

    __slots__ = ("body", "body_nodes", "subject")

    def __init__(self, operands: Operands) -> None:
        scope = operands.element_scope()
        self.subject: Step = operands.compile(0).step
        before = operands.count()
        self.body: Node = operands.compile(1, scope) if len(operands.listed) > 1 else constant(None)
        self.body_nodes = 1 + operands.count() - before

    def items(self, data: Any, call: Call) -> list[Any]:
        subject = self.subject(data, call)
        if type(subject) is not list:
            return []
        call.spend(len(subject) * self.body_nodes)
        return subject


def _map(operands: Operands) -> Node:
    if not operands.listed:
        return constant([])
    iteration = _Iteration(operands)
    items, body = iteration.items, iteration.body.step
    return Node(lambda data, call: [body(item, call) for item in items(data, call)])


def _filter(operands: Operands) -> Node:
    if len(operands.listed) < 2:
        return constant([])
    iteration = _Iteration(operands)
    items, keep = iteration.items, test(iteration.body)
    return Node(lambda data, call: [item for item in items(data, call) if keep(item, call)])


def _all(operands: Operands) -> Node:
    if len(operands.listed) < 2:
        return constant(False)
    iteration = _Iteration(operands)
    items, holds = iteration.items, test(iteration.body)

    def step(data: Any, call: Call) -> bool:
        elements = items(data, call)
        return bool(elements) and all(holds(element, call) for element in elements)  # JSONLogic: false of nothing

    return boolean(step)


def _some(operands: Operands) -> Node:
    return _any(operands, outcome=True)


def _none(operands: Operands) -> Node:
    return _any(operands, outcome=False)


def _any(operands: Operands, *, outcome: bool) -> Node:
    if len(operands.listed) < 2:
        return constant(not outcome)
    iteration = _Iteration(operands)
    items, holds = iteration.items, test(iteration.body)
    return boolean(lambda data, call: any(holds(item, call) for item in items(data, call)) is outcome)


def _reduce(operands: Operands) -> Node:
    count = len(operands.listed)
    if not count:
        return constant(None)
    iteration = _Iteration(operands)
    first = operands.compile(2).step if count > 2 else constant(None).step
    items, body = iteration.items, iteration.body.step

    def step(data: Any, call: Call) -> Any:
        accumulator = first(data, call)
        for item in items(data, call):
            accumulator = body({"current": item, "accumulator": accumulator}, call)
        return accumulator

    return Node(step)


OPERATORS: Final[dict[str, Build]] = {
    "in": eager(_in, boolean=True, specialise=_in_shapes),
    "merge": eager(_merge),
    "map": _map,
    "filter": _filter,
    "reduce": _reduce,
    "all": _all,
    "some": _some,
    "none": _none,
}
