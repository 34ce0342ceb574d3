"""Evaluation of flags: a view, a key and a context in; an answer out.

Order of steps as in flagd's evaluateVariant: unknown flag, DISABLED, no rule (STATIC), the rule's result, the default.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from flaghoist.answer import Answer as Answer
from flaghoist.answer import ErrorCode as ErrorCode
from flaghoist.answer import EvaluationFailed as EvaluationFailed
from flaghoist.answer import Reason as Reason
from flaghoist.document import JsonValue
from flaghoist.errors import Malformed
from flaghoist.snapshot import CompiledFlag, View
from flaghoist.targeting.coercion import normal, variant_name
from flaghoist.targeting.limits import CONTEXT_DEPTH_MAX, Call, RuleFailed


def evaluate(view: View, key: str, context: Mapping[str, JsonValue], *, now_s: int) -> Answer:
    """Return the answer of one flag. Type checks are the caller's: an answer has its variant's own type.

    Args:
        context: the merged context, as normalised() returns it; `$flagd` in it is ours and never read.
        now_s: Unix seconds, what `$flagd.timestamp` says.

    Raises:
        EvaluationFailed: FLAG_NOT_FOUND: no such flag. GENERAL: the rule names no variant, or needs more work than a
            call may do. PARSE_ERROR: the rule's result is no JSON, such as the quotient of a division by zero.
    """
    flag = view.flags.get(key)
    if flag is None:
        raise EvaluationFailed(key, ErrorCode.FLAG_NOT_FOUND, f"flag {_short(key)} not found")
    if flag.fixed is not None:
        return flag.fixed
    return _matched(flag, context, now_s)


def evaluate_all(view: View, context: Mapping[str, JsonValue], *, now_s: int) -> Iterator[Answer | EvaluationFailed]:
    """Yield the answer, or the failure, of every flag in the view, in its order. Arguments as in evaluate()."""
    for flag in view.flags.values():
        if flag.fixed is not None:
            yield flag.fixed
            continue
        try:
            answer: Answer | EvaluationFailed = _matched(flag, context, now_s)
        except EvaluationFailed as failure:
            answer = failure
        yield answer


def _matched(flag: CompiledFlag, context: Mapping[str, JsonValue], now_s: int) -> Answer:
    rule = flag.rule
    assert rule is not None  # noqa: S101 (a flag without a rule has a fixed answer)
    try:
        result: Any = rule.step(context if type(context) is dict else dict(context), Call(now_s))
    except RuleFailed as failure:
        raise EvaluationFailed(
            flag.key, ErrorCode.GENERAL, str(failure), metadata=flag.definition.metadata
        ) from failure
    if result is None:
        return flag.default
    answer = flag.matches.get(result) if type(result) is str else _by_name(flag, result)
    if answer is None:
        raise _no_variant(flag, result)
    return answer


def _by_name(flag: CompiledFlag, result: Any) -> Answer | None:
    name = variant_name(result)
    return None if name is None else flag.matches.get(name)


def _no_variant(flag: CompiledFlag, result: Any) -> EvaluationFailed:
    metadata = flag.definition.metadata
    if type(result) is float and not math.isfinite(result):
        message = f"the rule of flag {_short(flag.key)} gives a number that is not finite"
        return EvaluationFailed(flag.key, ErrorCode.PARSE_ERROR, message, metadata=metadata)
    name = variant_name(result)
    # The name may hold what a caller sent: it is the flag's own text only by luck, so none of it is repeated.
    shown = "a list or an object" if name is None else f"{type(result).__name__} of {len(name)} characters"
    message = f"the rule of flag {_short(flag.key)} gives {shown}, which names none of its variants"
    return EvaluationFailed(flag.key, ErrorCode.GENERAL, message, metadata=metadata)


def _short(key: str) -> str:
    return repr(str(key)) if len(key) <= 255 else f"{key[:252]!r}..."


def normalised(context: Mapping[str, object]) -> dict[str, JsonValue]:
    """Return a context as rules expect it, whichever protocol brought it.

    Whole doubles below 2^53 become ints (and -0.0 becomes 0), so that `cat`, `sem_ver` and hashing do not differ by
    protocol; larger ints become doubles, as JSON numbers are.

    Raises:
        Malformed: not JSON values, a number that is not finite, or nested deeper than CONTEXT_DEPTH_MAX.
    """
    return {key: value if type(value) is str else _normalised(value, 1) for key, value in context.items()}


def _normalised(value: object, depth: int) -> JsonValue:
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value  # type: ignore[return-value]
    if isinstance(value, (int, float)):
        return _normalised_number(value)
    if depth >= CONTEXT_DEPTH_MAX:
        raise Malformed(f"context: want at most {CONTEXT_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        return {key: _normalised(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normalised(item, depth + 1) for item in value]
    raise Malformed(f"context: want JSON values, got {kind.__name__}")


def _normalised_number(value: float) -> float:
    try:
        if math.isfinite(value):
            return normal(value)
    except OverflowError:
        pass
    raise Malformed("context: want finite numbers, got one that does not fit a double")
