"""Where we differ from openfeature-flagd-core on purpose: each with the operands that it touches, and the reason.

openfeature-flagd-core computes JSONLogic with panzi-json-logic, flagd itself with jsonlogic for Go; where these two
disagree we do as flagd does. The table is checked in both directions: a result may differ only where a row applies, and
every row must show in the random rules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flaghoist.targeting.coercion import number


@dataclass(frozen=True)
class Difference:
    """`applies` gets the computed operands of one of `operators`; "truth" stands for what if, and, or, ! ask."""

    name: str
    operators: frozenset[str]
    applies: Callable[[list[Any]], bool]
    reason: str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _padded(values: list[Any], count: int) -> list[Any]:
    return [*values, *[None] * count][:count]


def _null_against_value(values: list[Any]) -> bool:
    left, right = _padded(values, 2)
    return (left is None) is not (right is None)


def _loosely_typed(values: list[Any]) -> bool:
    """Neither two of one scalar type, nor a number (or bool) against a number or against text with a number in it."""
    left, right = _padded(values, 2)
    if left is None or right is None or (type(left) is type(right) and type(left) not in (list, dict)):
        return False
    return any(type(value) in (list, dict) or value == "" for value in (left, right))


def _strict_across_types(values: list[Any]) -> bool:
    left, right = _padded(values, 2)
    return type(left) in (list, dict) or (type(left) is bool) is not (type(right) is bool)


def _order_of_mixed_types(values: list[Any]) -> bool:
    return any(_mixed(left, right) for left, right in pairwise(values)) or (len(values) == 3 and values[2] is None)


def _mixed(left: Any, right: Any) -> bool:
    if type(left) is str and type(right) is str:
        return False
    if any(type(value) in (list, dict) or value == "" for value in (left, right)):
        return True
    return any(type(value) is str for value in (left, right)) and not any(_is_number(value) for value in (left, right))


def _null_in_order(values: list[Any]) -> bool:
    return any(value is None for value in values)


def _not_numbers(values: list[Any]) -> bool:
    return any(type(value) in (list, dict) or (type(value) is str and _no_number(value)) for value in values)


def _no_number(text: str) -> bool:
    return not text.strip() or math.isnan(number(text))


def _has_bool(values: list[Any]) -> bool:
    return any(type(value) is bool for value in values)


def _minus_null(values: list[Any]) -> bool:
    return len(values) == 2 and values[1] is None


def _zero_divisor(values: list[Any]) -> bool:
    return any(not number(value) or math.isnan(number(value)) for value in values[1:])


def _negative_remainder(values: list[Any]) -> bool:
    return any(number(value) < 0 for value in values)


def _cat_null_or_bool(values: list[Any]) -> bool:
    return any(value is None or type(value) in (bool, list) for value in values)


def _cat_space_or_digits(values: list[Any]) -> bool:
    ends = [value for value in values if type(value) is str and value != value.strip()]
    return bool(ends) or any(type(value) is float and (not value or not _short_float(value)) for value in values)


def _short_float(value: float) -> bool:
    return repr(value).removesuffix(".0") == f"{value:.15g}" and "e" not in repr(value)


def _substr_edges(values: list[Any]) -> bool:
    subject, start = _padded(values, 2)
    if type(subject) is not str or not _is_number(start):
        return True
    return not -len(subject) <= start <= len(subject) or (start < 0 and -start >= len(subject))


def _needle_not_text(values: list[Any]) -> bool:
    needle, haystack = _padded(values, 2)
    return type(haystack) is str and type(needle) is not str


def _member_across_types(values: list[Any]) -> bool:
    needle, haystack = _padded(values, 2)
    if type(haystack) is not list:
        return False
    if type(needle) is bool or type(needle) in (list, dict):
        return True
    return any(type(member) in (list, bool) or (type(member) is str and _is_number(needle)) for member in haystack)


def _empty_object(values: list[Any]) -> bool:
    return values[0] == {} and type(values[0]) is dict


def _anything(values: list[Any]) -> bool:
    return True


_EQUAL = frozenset({"==", "!="})
_ORDER = frozenset({"<", "<=", ">", ">="})
_MATH = frozenset({"+", "-", "*", "/", "%", "min", "max"})

DIFFERENCES = [
    Difference(
        "null equals only null", _EQUAL, _null_against_value, "flagd; null == 0 there is false, here it was true"
    ),
    Difference("equality of mixed types", _EQUAL, _loosely_typed, 'flagd: "" counts as 0, lists and objects as NaN'),
    Difference(
        "strict equality", frozenset({"===", "!=="}), _strict_across_types, "flagd: true is not 1, no list is the same"
    ),
    Difference("order of mixed types", _ORDER, _order_of_mixed_types, 'flagd compares numbers: "" is 0, lists are NaN'),
    Difference("null in <= and >=", frozenset({"<=", ">="}), _null_in_order, "flagd: null <= 0 is false"),
    Difference("text in arithmetic", _MATH, _not_numbers, "flagd: text that is no number counts as 0"),
    Difference(
        "extremes are numbers", frozenset({"min", "max"}), _has_bool, "the largest of true and 0 is 1; here it is true"
    ),
    Difference("minus null", frozenset({"-"}), _minus_null, "flagd counts operands; here null means one operand"),
    Difference(
        "division by zero", frozenset({"/", "%"}), _zero_divisor, "flagd: IEEE 754, and NaN is true; here an exception"
    ),
    Difference("remainder of negatives", frozenset({"%"}), _negative_remainder, "flagd: the sign is the dividend's"),
    Difference(
        "cat of null and bools", frozenset({"cat"}), _cat_null_or_bool, 'flagd: null is ""; here "null", "True"'
    ),
    Difference(
        "cat trims, all digits",
        frozenset({"cat"}),
        _cat_space_or_digits,
        "flagd trims, and writes all digits, no exponent; -0.0 is 0",
    ),
    Difference("substr beyond the ends", frozenset({"substr"}), _substr_edges, "flagd gives the whole text"),
    Difference("needle that is no text", frozenset({"in"}), _needle_not_text, 'null is in no text; here as "null"'),
    Difference("members across types", frozenset({"in"}), _member_across_types, 'flagd: 5 is in ["5"]; true is not 1'),
    Difference("empty object is false", frozenset({"truth"}), _empty_object, "flagd; as in JSONLogic's table of lists"),
    Difference("empty text is there", frozenset({"missing", "missing_some"}), _anything, 'flagd: "" is not missing'),
]
