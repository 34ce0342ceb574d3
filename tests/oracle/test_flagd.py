"""Our rules (fractional v2) against flagd 0.16.1's own evaluator: flagd-0.16.1.jsonl, made by make_flagd_vectors.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flaghoist.evaluation import normalised
from flaghoist.targeting import Fractional, compile_rule

LINES = (Path(__file__).parent / "flagd-0.16.1.jsonl").read_text().splitlines()
VECTORS = [json.loads(line) for line in LINES]


def ours(vector: dict[str, Any]) -> Any:
    context = normalised(vector["context"])
    flagd = vector["context"]["$flagd"]
    rule = compile_rule(vector["rule"], where="t", evaluators={}, fractional=Fractional.V2, flag_key=flagd["flagKey"])
    return rule(context, now_s=flagd["timestamp"])


def alike(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(alike, mine, theirs))
    if type(mine) in (int, float) and type(theirs) in (int, float):
        return bool(mine == theirs)
    return type(mine) is type(theirs) and bool(mine == theirs)


@pytest.mark.parametrize(
    "number", [n for n, vector in enumerate(VECTORS) if "result" in vector and "differs" not in vector]
)
def test_a_rule_gives_what_flagd_gives(number: int) -> None:
    vector = VECTORS[number]
    assert alike(ours(vector), vector["result"]), vector


@pytest.mark.parametrize("number", [n for n, vector in enumerate(VECTORS) if "differs" in vector])
def test_a_named_difference_still_differs_from_flagd(number: int) -> None:
    vector = VECTORS[number]
    assert "result" not in vector or not alike(ours(vector), vector["result"]), vector


def test_what_fails_in_flagd_on_an_operands_type_has_a_result_here() -> None:
    failing = [vector for vector in VECTORS if "error" in vector]
    assert len(failing) > 30
    for vector in failing:
        result = ours(vector)
        assert not isinstance(result, float) or not math.isnan(result) or "unsupported value" in vector["error"], vector
