"""cat, substr, starts_with, ends_with."""

from typing import Any, Final

from flaghoist.targeting.coercion import addend, text, trimmed, whole
from flaghoist.targeting.compiler import Build, Operands
from flaghoist.targeting.eager import eager
from flaghoist.targeting.limits import CHARS_PER_UNIT, FREE_CHARS, Call
from flaghoist.targeting.node import Node


def _cat(values: list[Any], call: Call) -> str:
    """Joined text; of two operands and more, flagd takes away the white space at both ends."""
    if len(values) == 1:
        return _paid(text(values[0], call), call)
    return trimmed(_paid("".join([_paid(text(value, call), call) for value in values]), call))


def _paid(built: str, call: Call) -> str:
    if len(built) > FREE_CHARS:
        call.spend(len(built) // CHARS_PER_UNIT)
    return built


def _substr(values: list[Any], call: Call) -> str:
    """flagd's: a start beyond either end gives the whole text; a negative length counts from the end."""
    whole_text = _paid(text(values[0], call), call)
    size = len(whole_text)
    start = whole(addend(values[1]), 0)
    if start < 0:
        start += size
    if not 0 <= start <= size:
        return whole_text
    if len(values) != 3 or values[2] is None:
        return whole_text[start:]
    length = whole(addend(values[2]), 0)
    return whole_text[start : max(size + length, 0)] if length < 0 else whole_text[start : start + length]


def _affix(*, ends: bool) -> Build:
    method = str.endswith if ends else str.startswith

    def apply(values: list[Any], call: Call) -> bool | None:
        if len(values) != 2 or type(values[0]) is not str or type(values[1]) is not str:
            return None
        if len(values[1]) > FREE_CHARS:
            call.spend(len(values[1]) // CHARS_PER_UNIT)
        return method(values[0], values[1])

    def specialise(operands: Operands, nodes: list[Node]) -> Node | None:
        for index, node in enumerate(nodes):
            if node.constant and type(node.value) is not str:
                operands.refuse("want two strings; this never has a result", index)
        subject, affix = nodes
        if not affix.constant or len(affix.value) > FREE_CHARS:
            return None
        operand, wanted, key = subject.step, affix.value, subject.key
        if key is not None:

            def of_key(data: Any, call: Call) -> bool | None:
                value = data.get(key)
                return method(value, wanted) if type(value) is str else None

            return Node(of_key)

        def of_any(data: Any, call: Call) -> bool | None:
            value = operand(data, call)
            return method(value, wanted) if type(value) is str else None

        return Node(of_any)

    listed = eager(apply, least=2, specialise=specialise)

    def build(operands: Operands) -> Node:
        if type(operands.raw) is list and len(operands.raw) != 2:
            operands.refuse(f"want exactly 2 operands, got {len(operands.raw)}")
        return listed(operands)

    return build


OPERATORS: Final[dict[str, Build]] = {
    "cat": eager(_cat),
    "substr": eager(_substr, least=2),
    "starts_with": _affix(ends=False),
    "ends_with": _affix(ends=True),
}
