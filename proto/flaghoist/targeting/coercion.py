"""How values turn into truth, numbers and text.

As in jsonlogic 3.9.1 for Go, which flagd 0.16.1 uses; where that fails on an operand's type, as on jsonlogic.com. A
number is an int or a float and never a bool; whole floats below 2^53 are ints before they come here (normal).
"""

import math
import re
from decimal import Decimal
from typing import Any, Final

from flaghoist.targeting.limits import CONTEXT_DEPTH_MAX, NUMBER_CHARS_MAX, Call, RuleFailed

EXACT_INT_MAX: Final = 2**53  # JSON numbers are doubles: beyond this, whole numbers are not exact

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
# Go's unicode.IsSpace; str.strip() would also take the separators U+001C to U+001F.
_SPACE: Final = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def normal(number: float) -> float:
    """Return a finite number in its one form: an int when whole and below 2^53, else a float; -0.0 is 0.

    Raises:
        OverflowError: an int too large for a double.
    """
    if -EXACT_INT_MAX < number < EXACT_INT_MAX:
        return int(number) if number == int(number) else number
    return float(number)


# flagd's truth is Python's: null, false, 0, "", [] and {} are false, NaN is true. (JSONLogic's own library has {} true
# and NaN false.)
truthy: Final = bool


def number(value: Any) -> float:
    """Return a value as comparisons see it: NaN for lists, objects and text that is no number; 0 for null and ""."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is str:
        if not value or value.isspace():
            return 0
        parsed = _parsed(value)
        return parsed if math.isfinite(parsed) else math.nan
    if value is None:
        return 0
    if kind is bool:
        return int(value)
    return math.nan


def addend(value: Any) -> float:
    """Return a value as arithmetic sees it, always a float: as number(), except that text that is no number is 0."""
    kind = type(value)
    if kind is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is str:
        parsed = _parsed(value)
        return 0.0 if parsed != parsed else parsed
    if value is None:
        return 0.0
    if kind is bool:
        return float(value)
    return math.nan


def _parsed(text: str) -> float:
    if len(text) > NUMBER_CHARS_MAX or _NUMBER.match(text) is None:
        return math.nan
    return float(text)


def whole(value: float, otherwise: int) -> int:
    """Return a number cut to an int, as an index or a length; `otherwise` when it is not finite."""
    return int(value) if math.isfinite(value) else otherwise


def trimmed(text: str) -> str:
    return text.strip(_SPACE)


def text(value: Any, call: Call, depth: int = 0) -> str:
    """Return a value as `cat` writes it: null is "", a number has no exponent, a list is joined by commas.

    Raises:
        RuleFailed: lists nested deeper than CONTEXT_DEPTH_MAX, or with more elements than the call can pay for.
    """
    if type(value) is not list:
        return scalar_text(value)
    if depth >= CONTEXT_DEPTH_MAX:
        raise RuleFailed(f"the context nests deeper than {CONTEXT_DEPTH_MAX} levels")
    call.spend(len(value))
    return ",".join([text(item, call, depth + 1) for item in value])


def scalar_text(value: Any) -> str:
    """Return the text of anything but a list; an object's is JSONLogic's."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if value is None:
        return ""
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return _digits(value)
    if kind is not float:
        return "[object Object]"
    if not math.isfinite(value):
        return "NaN" if value != value else ("+Inf" if value > 0 else "-Inf")  # as Go writes them
    plain = repr(value)
    return format(Decimal(plain), "f") if "e" in plain else plain.removesuffix(".0")


def _digits(value: int) -> str:
    if -EXACT_INT_MAX <= value <= EXACT_INT_MAX:
        return str(value)
    return scalar_text(addend(value))  # never str(): its time grows with the square of the digits, and it has a limit


def variant_name(result: Any) -> str | None:
    """Return the variant that a rule's result names; None for lists, objects and numbers that are not finite.

    Numbers are named as JSON writes them (Go's encoding/json): 1.0 is "1", 1e21 is "1e+21".
    """
    kind = type(result)
    if kind is str:
        return result  # type: ignore[no-any-return]
    if kind is bool:
        return "true" if result else "false"
    if kind is int:
        return _digits(result) if abs(result) < 10**21 else variant_name(addend(result))
    if kind is not float or not math.isfinite(result):
        return None
    plain = repr(result)
    if "e" not in plain or 1e-6 <= abs(result) < 1e21:
        return scalar_text(result)
    mantissa, _, exponent = plain.partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"
