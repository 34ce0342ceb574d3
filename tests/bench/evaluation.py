"""Evaluation in process: what one call of `evaluate` costs, beside openfeature-flagd-core in the same run."""

import timeit
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final

from openfeature.contrib.tools.flagd.core.flagd_core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from flaghoist.definition import encode_flag
from flaghoist.evaluation import evaluate, normalised
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, at_most, paired_ratio
from tests.bench.ledgers import CONTEXT, ENDS_WITH, FRACTIONAL, STARTS_WITH, STATIC, TEN_EQUALS, TEN_RULES, Flag
from tests.bench.scale import Scale

CASES: Final[Mapping[str, Flag]] = {
    "static": STATIC,
    "starts_with": STARTS_WITH,
    "ends_with": ENDS_WITH,
    "fractional": FRACTIONAL,
    "ten-rules": TEN_RULES,
    "ten-equals": TEN_EQUALS,
}
LIMITS_US: Final = {"static": 1.0, "fractional": 4.0, "ten-rules": 10.0}
ROUNDS_A_SCALE_ROUND: Final = 3
NOW_S: Final = 1_800_000_000


# Each way of asking, as a statement that timeit runs: what it needs is in `_names`.
WAYS: Final = {
    "ours": "evaluate(v2, key, context, now_s=now_s)",
    "ours, v3": "evaluate(v3, key, context, now_s=now_s)",
    "from caller": "evaluate(v2, key, normalised(caller_context), now_s=now_s)",
    "flagd-core": "resolve(key, False, evaluation_context)",
}


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return microseconds an evaluation."""
    names = _names()
    for key in CASES:
        _check_alike(names | {"key": key})
    times_us: dict[tuple[str, str], list[float]] = {(key, way): [] for key in CASES for way in WAYS}
    for number in range(scale.rounds * ROUNDS_A_SCALE_ROUND):
        say(f"round {number + 1}")
        for (key, way), times in times_us.items():
            times.append(_time_us(WAYS[way], names | {"key": key}, scale.loop_s))
    rows: list[tuple[Cell, ...]] = []
    for key in CASES:
        ratio = paired_ratio(times_us[key, "flagd-core"], times_us[key, "ours, v3"])
        rows.append((key, *(median(times_us[key, way]) for way in WAYS), ratio))
    columns = ("flag", "µs", "µs, fractional v3", "µs with normalised()", "flagd-core µs", "flagd-core / ours (v3)")
    promises = [
        at_most(f"evaluation in process, {key}", median(times_us[key, "ours"]), limit, "µs")
        for key, limit in LIMITS_US.items()
    ]
    return Result(tuple(promises), (Table("One evaluation in process", columns, tuple(rows)),))


def _names() -> dict[str, Any]:
    core = FlagdCore()
    core.set_flags({"flags": {key: dict(flag) for key, flag in CASES.items()}})
    attributes = {key: value for key, value in CONTEXT.items() if key != "targetingKey"}
    return {
        "evaluate": evaluate,
        "normalised": normalised,
        "resolve": core.resolve_boolean_value,
        "v2": _view(Fractional.V2),
        "v3": _view(Fractional.V3),
        "context": normalised(CONTEXT),
        "caller_context": dict(CONTEXT),
        "evaluation_context": EvaluationContext(CONTEXT["targetingKey"], attributes),
        "now_s": NOW_S,
    }


def _check_alike(names: dict[str, Any]) -> None:
    ours, theirs = eval(WAYS["ours, v3"], names), eval(WAYS["flagd-core"], names)
    if (ours.value, ours.reason) != (theirs.value, theirs.reason):
        raise AssertionError(f"{names['key']}: two answers cannot be compared: {ours}, {theirs}")


def _view(fractional: Fractional) -> View:
    ops = [
        Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, encode_flag(flag, {}))
        for key, flag in CASES.items()
    ]
    return Snapshot.empty(fractional).fold(Seq(1), ops).view


def _time_us(statement: str, names: dict[str, Any], loop_s: float) -> float:
    # With the garbage collector on, as in a service; timeit turns it off unless told.
    timer = timeit.Timer(statement, setup="import gc; gc.enable()", globals=names)
    once_s = timer.timeit(100) / 100
    number = max(100, round(loop_s / once_s))
    return timer.timeit(number) / number * 1e6
