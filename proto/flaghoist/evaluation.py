"""Evaluation of flags: a view, a key and a context in; an answer out.

Order of steps as in flagd's evaluateVariant: unknown flag, DISABLED, no rule (STATIC), the rule's result, the default.
"""

from collections.abc import Iterator, Mapping

from flaghoist.answer import Answer as Answer
from flaghoist.answer import ErrorCode as ErrorCode
from flaghoist.answer import EvaluationFailed as EvaluationFailed
from flaghoist.answer import Reason as Reason
from flaghoist.definition import JsonValue
from flaghoist.snapshot import View


def evaluate(view: View, key: str, context: Mapping[str, JsonValue], *, now_s: int) -> Answer:
    """Return the answer of one flag. Type checks are the caller's: an answer has its variant's own type.

    Args:
        context: the merged context, as normalised() returns it; `$flagd` in it is ours and gets overwritten.
        now_s: Unix seconds, what `$flagd.timestamp` says.

    Raises:
        EvaluationFailed: no such flag, or its rule gives no variant's name, or needs more work than a call may do.
    """
    raise NotImplementedError


def evaluate_all(view: View, context: Mapping[str, JsonValue], *, now_s: int) -> Iterator[Answer | EvaluationFailed]:
    """Yield the answer, or the failure, of every flag in the view."""
    raise NotImplementedError


def normalised(context: Mapping[str, object]) -> dict[str, JsonValue]:
    """Return a context as rules expect it, whichever protocol brought it.

    Whole doubles below 2^53 become ints (and -0.0 becomes 0), so that `cat`, `sem_ver` and hashing do not differ by
    protocol; larger ints become doubles, as JSON numbers are.

    Raises:
        Malformed: not JSON values, a number that is not finite, or nested deeper than the limit.
    """
    raise NotImplementedError
