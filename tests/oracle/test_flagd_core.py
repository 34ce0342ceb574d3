"""Our rules against openfeature-flagd-core 2.0.0, which the Python provider evaluates with (fractional v3)."""

import logging
import math
import sys
from typing import Any

import json_logic
import pytest
from json_logic import builtins
from openfeature.contrib.tools.flagd.core.targeting.targeting import OPERATORS

from flaghoist.evaluation import normalised
from flaghoist.targeting import Fractional, compile_rule
from tests.oracle.differences import DIFFERENCES
from tests.oracle.rules import RuleMaker

SEEDS = 40
RULES_A_SEED = 250
CONTEXTS_A_RULE = 4

# A difference that applies need not show: most of the time both sides agree all the same.
UNTOUCHED_AT_LEAST = 0.4

_apply = sys.modules["json_logic.apply"]
_seen: dict[str, int] = {}


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the differences that apply to what the oracle computes. It computes as ever."""
    names: set[str] = set()

    def note(operator: str, values: list[Any]) -> None:
        for difference in DIFFERENCES:
            if operator in difference.operators and difference.applies(values):
                names.add(difference.name)

    def to_bool(value: Any = None) -> bool:
        note("truth", [value])
        return builtins.to_bool(value)

    def not_(value: Any = None) -> bool:
        note("truth", [value])
        return builtins.not_(value)

    monkeypatch.setattr(logging.getLogger("openfeature.contrib"), "disabled", True)  # it logs every odd operand
    monkeypatch.setattr(_apply, "to_bool", to_bool)
    monkeypatch.setattr(_apply, "not_", not_)

    def noting(operator: str, function: Any) -> Any:
        def run(data: Any = None, *values: Any) -> Any:
            note("truth" if operator in ("!", "!!") else operator, list(values))
            return function(data, *values)

        return run

    monkeypatch.setattr(sys.modules[__name__], "_operators", {k: noting(k, f) for k, f in OPERATORS.items()})
    return names


_operators: dict[str, Any] = dict(OPERATORS)


def oracle(rule: Any, context: dict[str, Any]) -> Any:
    data = {"targetingKey": None, **context, "$flagd": {"flagKey": "flag", "timestamp": 7}}
    try:
        return json_logic.jsonLogic(rule, data, _operators)
    except (ZeroDivisionError, OverflowError) as error:
        return type(error).__name__


def alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if type(ours) in (int, float) and type(theirs) in (int, float):
        return bool(ours == theirs) or (math.isnan(ours) and math.isnan(theirs)) or math.isclose(ours, theirs)
    return type(ours) is type(theirs) and bool(ours == theirs)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_rules_give_what_flagd_core_gives_but_for_named_differences(seed: int, touched: set[str]) -> None:
    maker = RuleMaker(seed)
    untouched = 0
    for _ in range(RULES_A_SEED):
        rule = maker.rule()
        compiled = compile_rule(rule, where="t", evaluators={}, fractional=Fractional.V3, flag_key="flag")
        for _ in range(CONTEXTS_A_RULE):
            context = maker.context()
            touched.clear()
            theirs = oracle(rule, context)
            ours = compiled(normalised(context), now_s=7)
            untouched += not touched
            if alike(ours, theirs):
                continue
            assert touched, f"{rule} of {context}: ours {ours!r}, flagd-core {theirs!r}, and no difference applies"
            if len(touched) == 1:
                _seen[next(iter(touched))] = _seen.get(next(iter(touched)), 0) + 1
    assert untouched >= UNTOUCHED_AT_LEAST * RULES_A_SEED * CONTEXTS_A_RULE


def test_every_named_difference_shows_alone_in_some_rule() -> None:
    if not _seen:
        pytest.skip("needs the random rules above, run in the same process")
    assert {difference.name for difference in DIFFERENCES} - _seen.keys() == set()
