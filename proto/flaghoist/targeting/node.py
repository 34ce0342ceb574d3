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

    __slots__ = ("_step", "boolean", "constant", "key", "value")

    def __init__(self, step: Step, *, key: str | None = None, boolean: bool = False) -> None:
        self._step: Step | None = step
        self.constant = False
        self.value: Any = None
        self.key = key
        self.boolean = boolean

    @property
    def step(self) -> Step:
        """The closure; a constant's is made when it is asked for, as most operators want the value alone."""
        if self._step is None:
            value = self.value
            self._step = lambda data, call: value
        return self._step


def constant(value: Any) -> Node:
    node = Node.__new__(Node)
    node._step = None
    node.constant = True
    node.value = value
    node.key = None
    node.boolean = type(value) is bool
    return node


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
