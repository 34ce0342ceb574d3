"""+ - * / % min max, on doubles.

Text that is no number counts as 0, as in flagd; null is 0, true is 1, lists and objects are NaN. A division by zero is
infinite or NaN, as in IEEE 754; a rule whose result is such a number fails with PARSE_ERROR.
"""

import math
from typing import Any, Final

from flaghoist.targeting.coercion import addend, normal
from flaghoist.targeting.compiler import Build
from flaghoist.targeting.eager import eager
from flaghoist.targeting.limits import Call


def _finished(value: float) -> float:
    return normal(value) if math.isfinite(value) else value


def _sum(values: list[Any], call: Call) -> float:
    total = 0.0
    for value in values:
        total += addend(value)
    return _finished(total)


def _product(values: list[Any], call: Call) -> float:
    total = 1.0
    for value in values:
        total *= addend(value)
    return _finished(total)


def _difference(values: list[Any], call: Call) -> float:
    if len(values) == 1:
        return _finished(-addend(values[0]))
    total = addend(values[0]) if values else 0.0
    for value in values[1:]:
        total -= addend(value)
    return _finished(total)


def _quotient(values: list[Any], call: Call) -> float:
    total = addend(values[0]) if values else 0.0
    for value in values[1:]:
        total = _divided(total, addend(value))
    return _finished(total)


def _divided(left: float, right: float) -> float:
    if right:
        return left / right
    if not left or left != left:
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


def _remainder(values: list[Any], call: Call) -> float:
    """The sign is the dividend's, as in C's fmod."""
    left, right = addend(values[0]), addend(values[1])
    if not right or math.isinf(left):
        return math.nan
    return _finished(math.fmod(left, right))


def _largest(values: list[Any], call: Call) -> float | None:
    return _extreme(values, sign=1)


def _smallest(values: list[Any], call: Call) -> float | None:
    return _extreme(values, sign=-1)


def _extreme(values: list[Any], *, sign: int) -> float | None:
    if not values:
        return None
    best = addend(values[0])
    for value in values[1:]:
        candidate = addend(value)
        if candidate * sign > best * sign:
            best = candidate
    return _finished(best)


OPERATORS: Final[dict[str, Build]] = {
    "+": eager(_sum),
    "-": eager(_difference),
    "*": eager(_product),
    "/": eager(_quotient),
    "%": eager(_remainder, least=2),
    "min": eager(_smallest),
    "max": eager(_largest),
}
