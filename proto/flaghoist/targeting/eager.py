"""Operators that compute all of their operands first: most of them.

A lone operand that is no literal list may turn out to be a list in a call; that list then is the operands, as in flagd
(`{"max": {"var": "scores"}}`).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from flaghoist.targeting.compiler import Build, Operands, folded
from flaghoist.targeting.limits import Call
from flaghoist.targeting.node import Node

# The operator's meaning: any number of operands of any type in, a result out.
Apply: TypeAlias = Callable[[list[Any], Call], Any]
# A faster closure for operands of some shapes; None for others.
Specialise: TypeAlias = Callable[[Operands, list[Node]], Node | None]


def eager(
    apply: Apply, *, least: int = 0, too_few: Any = None, boolean: bool = False, specialise: Specialise | None = None
) -> Build:
    """Return how to build an operator.

    Args:
        apply: gets at least `least` operands.
        least: a literal list with fewer is refused; in a call, fewer give `too_few`.
        boolean: apply returns a bool.
        specialise: called with at least `least` compiled operands, not all constant.
    """

    def build(operands: Operands) -> Node:
        nodes = operands.compile_all()
        if type(operands.raw) is not list and not nodes[0].constant:
            return _spread(nodes[0], apply, least, too_few, boolean)
        if len(nodes) < least:
            operands.refuse(f"want at least {least} operands, got {len(nodes)}")
        if all(node.constant for node in nodes):
            return folded(operands, lambda: apply([node.value for node in nodes], Call(0)))
        if specialise is not None:
            special = specialise(operands, nodes)
            if special is not None:
                return special
        return _listed(nodes, apply, boolean)

    return build


def _listed(nodes: list[Node], apply: Apply, boolean: bool) -> Node:
    steps = [node.step for node in nodes]
    if len(steps) == 2:
        left, right = steps
        return Node(lambda data, call: apply([left(data, call), right(data, call)], call), boolean=boolean)
    return Node(lambda data, call: apply([step(data, call) for step in steps], call), boolean=boolean)


def _spread(node: Node, apply: Apply, least: int, too_few: Any, boolean: bool) -> Node:
    operand = node.step

    def step(data: Any, call: Call) -> Any:
        value = operand(data, call)
        if type(value) is list:
            call.spend(len(value))
        else:
            value = [value]
        return apply(value, call) if len(value) >= least else too_few

    return Node(step, boolean=boolean)
