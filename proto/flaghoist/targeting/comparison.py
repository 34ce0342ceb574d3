"""Equality and order.

Two strings compare as strings (by code point); otherwise both sides become numbers, and NaN equals and orders nothing.
null equals only null, also in <= and >=: null <= 0 is false although null counts as 0 in < (as in flagd).
"""

import operator
from collections.abc import Callable
from typing import Any, Final

from flaghoist.targeting.coercion import number
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.eager import Specialise, eager
from flaghoist.targeting.limits import Call
from flaghoist.targeting.node import Node, Step, boolean


def equals(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    if type(left) is str and type(right) is str:
        return left == right
    return number(left) == number(right)


def same(left: Any, right: Any) -> bool:
    """Return strict equality: of one type and equal; lists and objects are never the same."""
    if left is None or right is None:
        return left is right
    kind = type(left)
    if kind is str or kind is bool:
        return kind is type(right) and bool(left == right)
    if kind is int or kind is float:
        return type(right) in (int, float) and bool(left == right)
    return False


def less(left: Any, right: Any) -> bool:
    if type(left) is str and type(right) is str:
        return left < right
    return number(left) < number(right)


def less_or_equal(left: Any, right: Any) -> bool:
    return less(left, right) or equals(left, right)


def _ordered(holds: Callable[[Any, Any], bool], *, swapped: bool) -> Callable[[list[Any], Call], bool]:
    """Two operands, or three: the middle one lies between the others."""

    def apply(values: list[Any], call: Call) -> bool:
        if swapped:
            values = values[::-1] if len(values) == 3 else [values[1], values[0]]
        if len(values) == 3:
            return holds(values[0], values[1]) and holds(values[1], values[2])
        return holds(values[0], values[1])

    return apply


def _equality(holds: Callable[[Any, Any], bool], outcome: bool) -> Specialise:
    def specialise(operands: Operands, nodes: list[Node]) -> Node | None:
        left, right = nodes[:2]
        if left.constant:
            left, right = right, left
        if right.constant and not left.constant:
            return boolean(_equal_to(left, right.value, holds, outcome))
        first, second = left.step, right.step
        return boolean(lambda data, call: holds(first(data, call), second(data, call)) is outcome)

    return specialise


def _equal_to(node: Node, wanted: Any, holds: Callable[[Any, Any], bool], outcome: bool) -> Step:
    key, operand = node.key, node.step
    if key is not None and type(wanted) is str and number(wanted) != number(wanted):
        # Text that is no number equals nothing but itself, so no coercion is left to do.
        if outcome:
            return lambda data, call: data.get(key) == wanted
        return lambda data, call: data.get(key) != wanted
    if key is not None:
        return lambda data, call: holds(data.get(key), wanted) is outcome
    return lambda data, call: holds(operand(data, call), wanted) is outcome


def _order(holds: Callable[[Any, Any], bool], compare: Callable[[Any, Any], bool], *, swapped: bool) -> Specialise:
    def specialise(operands: Operands, nodes: list[Node]) -> Node | None:
        if len(nodes) == 3:
            return None
        left, right = nodes[:2]
        first, second = left.step, right.step
        if right.constant and type(right.value) in (int, float):
            bound = right.value

            # Numbers are what such a rule is for: they compare without a further call.
            def step(data: Any, call: Call) -> bool:
                value = first(data, call)
                kind = type(value)
                if kind is int or kind is float:
                    return compare(value, bound)
                return holds(bound, value) if swapped else holds(value, bound)

            return boolean(step)
        if swapped:
            return boolean(lambda data, call: holds(second(data, call), first(data, call)))
        return boolean(lambda data, call: holds(first(data, call), second(data, call)))

    return specialise


def _ordering(holds: Callable[[Any, Any], bool], compare: Callable[[Any, Any], bool], *, swapped: bool) -> Build:
    return eager(
        _ordered(holds, swapped=swapped),
        least=2,
        too_few=False,
        boolean=True,
        specialise=_order(holds, compare, swapped=swapped),
    )


def _equal(holds: Callable[[Any, Any], bool], outcome: bool) -> Build:
    return eager(
        lambda values, call: holds(values[0], values[1]) is outcome,
        least=2,
        too_few=not outcome,
        boolean=True,
        specialise=_equality(holds, outcome),
    )


OPERATORS: Final[dict[str, Build]] = {
    "==": _equal(equals, True),
    "!=": _equal(equals, False),
    "===": _equal(same, True),
    "!==": _equal(same, False),
    "<": _ordering(less, operator.lt, swapped=False),
    "<=": _ordering(less_or_equal, operator.le, swapped=False),
    ">": _ordering(less, operator.gt, swapped=True),
    ">=": _ordering(less_or_equal, operator.ge, swapped=True),
}
