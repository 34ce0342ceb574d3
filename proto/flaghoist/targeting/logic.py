"""if, and, or, ! and !!: only the operands that decide are computed."""

from typing import Any, Final

from flaghoist.targeting.coercion import truthy
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.limits import Call
from flaghoist.targeting.node import Node, Test, boolean, constant, test


def _if(operands: Operands) -> Node:
    nodes = operands.branches()
    if not nodes:
        return constant(None)
    otherwise = nodes.pop() if len(nodes) % 2 else constant(None)
    pairs: list[tuple[Node, Node]] = []
    for condition, then in zip(nodes[::2], nodes[1::2], strict=True):
        if condition.constant and not truthy(condition.value):
            continue
        if condition.constant:
            otherwise = then
            break
        pairs.append((condition, then))
    if not pairs:
        return otherwise
    results = [then for _, then in pairs] + [otherwise]
    node = _constants(pairs, otherwise) if all(result.constant for result in results) else _steps(pairs, otherwise)
    node.boolean = all(result.boolean for result in results)
    return node


def _constants(pairs: list[tuple[Node, Node]], otherwise: Node) -> Node:
    default = otherwise.value
    if len(pairs) == 1:
        matches, found = test(pairs[0][0]), pairs[0][1].value
        return Node(lambda data, call: found if matches(data, call) else default)
    branches = [(test(condition), then.value) for condition, then in pairs]

    def step(data: Any, call: Call) -> Any:
        for matches, value in branches:
            if matches(data, call):
                return value
        return default

    return Node(step)


def _steps(pairs: list[tuple[Node, Node]], otherwise: Node) -> Node:
    default = otherwise.step
    if len(pairs) == 1:
        matches, then = test(pairs[0][0]), pairs[0][1].step
        return Node(lambda data, call: then(data, call) if matches(data, call) else default(data, call))
    branches = [(test(condition), then.step) for condition, then in pairs]

    def step(data: Any, call: Call) -> Any:
        for matches, then in branches:
            if matches(data, call):
                return then(data, call)
        return default(data, call)

    return Node(step)


def _and(operands: Operands) -> Node:
    return _first(operands, stop_at=False)


def _or(operands: Operands) -> Node:
    return _first(operands, stop_at=True)


def _first(operands: Operands, *, stop_at: bool) -> Node:
    """Return the first operand whose truth is `stop_at`, else the last; null when there is none."""
    nodes: list[Node] = []
    for node in operands.compile_all():
        nodes.append(node)
        if node.constant and truthy(node.value) is stop_at:
            break
    while len(nodes) > 1 and nodes[0].constant and truthy(nodes[0].value) is not stop_at:
        del nodes[0]
    if not nodes:
        return constant(None)
    if len(nodes) == 1:
        return nodes[0]
    if all(node.boolean for node in nodes):
        return boolean(_all_or_any([test(node) for node in nodes], stop_at))
    steps, last = [node.step for node in nodes[:-1]], nodes[-1].step

    def step(data: Any, call: Call) -> Any:
        for operand in steps:
            value = operand(data, call)
            if truthy(value) is stop_at:
                return value
        return last(data, call)

    return Node(step)


def _all_or_any(tests: list[Test], stop_at: bool) -> Test:
    if len(tests) == 2:
        left, right = tests
        if stop_at:
            return lambda data, call: left(data, call) or right(data, call)
        return lambda data, call: left(data, call) and right(data, call)

    def step(data: Any, call: Call) -> bool:
        for matches in tests:
            if matches(data, call) is stop_at:
                return stop_at
        return not stop_at

    return step


def _not(operands: Operands) -> Node:
    return _truth(operands, negate=True)


def _not_not(operands: Operands) -> Node:
    return _truth(operands, negate=False)


def _truth(operands: Operands, *, negate: bool) -> Node:
    nodes = operands.compile_all()
    node = nodes[0] if nodes else constant(None)
    if node.constant:
        return constant(truthy(node.value) is not negate)
    matches = test(node)
    return boolean(lambda data, call: not matches(data, call)) if negate else boolean(matches)


OPERATORS: Final[dict[str, Build]] = {"if": _if, "?:": _if, "and": _and, "or": _or, "!": _not, "!!": _not_not}
