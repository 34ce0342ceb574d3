"""A compiled part of a rule: a closure, and what is known of its result before it runs.

Closures take the data in scope (the context, or inside map, filter and the like an element) and the call. They are
typed Any: a rule is dynamically typed, and every check that an operator skips is time saved in each call.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from flaghoist.targeting.coercion import truthy
from flaghoist.targeting.limits import Call

Step: TypeAlias = Callable[[Any, Call], Any]
Test: TypeAlias = Callable[[Any, Call], bool]


class Node:
    """One operand or operator.

    `constant`: `value` is its result in every call. `key`: it is that plain key of the root context, which is always a
    dict. `boolean`: its result is always a bool.
    """

    __slots__ = ("boolean", "constant", "key", "step", "value")

    def __init__(
        self, step: Step, *, constant: bool = False, value: Any = None, key: str | None = None, boolean: bool = False
    ) -> None:
        self.step = step
        self.constant = constant
        self.value = value
        self.key = key
        self.boolean = boolean


def constant(value: Any) -> Node:
    def step(data: Any, call: Call) -> Any:
        return value

    return Node(step, constant=True, value=value, boolean=type(value) is bool)


def boolean(step: Test) -> Node:
    return Node(step, boolean=True)


def test(node: Node) -> Test:
    """Return a closure that says whether the node's result is true."""
    if node.boolean:
        return node.step
    if node.constant:
        outcome = truthy(node.value)
        return lambda data, call: outcome
    if node.key is not None:
        key = node.key
        return lambda data, call: truthy(data.get(key))
    step = node.step
    return lambda data, call: truthy(step(data, call))
