"""The document in openfeature-flagd-core, with which the Python provider parses and evaluates in process."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError, ParseError

from flaghoist.evaluation import evaluate, normalised
from flaghoist.flagd_document import UNSENDABLE_OPERATOR, document, export_document
from flaghoist.snapshot import CompiledFlag, View
from flaghoist.targeting import Fractional
from tests.sync.sets import SetMaker, snapshot_of

SEEDS = 40
CONTEXTS_A_SET = 25
UNSET = object()  # the caller's own default


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("openfeature.contrib"), "disabled", True)
    return


def core_with(payload: bytes) -> FlagdCore:
    core = FlagdCore()
    core.set_flags(payload.decode())
    return core


def their_answer(core: FlagdCore, flag: CompiledFlag, context: dict[str, Any]) -> tuple[Any, ...]:
    attributes = {name: value for name, value in context.items() if name != "targetingKey"}
    details = core._resolve(str(flag.key), UNSET, EvaluationContext(context.get("targetingKey"), attributes))
    metadata = {name: value for name, value in details.flag_metadata.items() if name != "flaghoist.seq"}
    value = None if details.value is UNSET else details.value
    return value, details.variant, str(details.reason), metadata


def our_answer(view: View, flag: CompiledFlag, context: dict[str, Any]) -> tuple[Any, ...]:
    answer = evaluate(view, str(flag.key), normalised(context), now_s=0)
    return answer.value, answer.variant, answer.reason.value, dict(answer.metadata)


# flagd-core buckets as v3. Of a ledger that buckets as v2, rules without `fractional` must agree all the same.
@pytest.mark.parametrize("encode", [document, export_document], ids=["sync", "export"])
@pytest.mark.parametrize("generation", list(Fractional), ids=lambda generation: generation.value)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_flagd_core_answers_from_the_document_as_we_do(seed: int, generation: Fractional, encode: Any) -> None:
    maker = SetMaker(seed, fractional=generation is Fractional.V3)
    view = maker.snapshot(generation).view
    core = core_with(encode(view))
    for _ in range(CONTEXTS_A_SET):
        context = maker.context()
        for flag in view.flags.values():
            theirs, ours = their_answer(core, flag, context), our_answer(view, flag, context)
            assert theirs[1:] == ours[1:], (flag.definition.targeting, context)
            assert json.dumps(theirs[0]) == json.dumps(ours[0])


SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
DEEP: dict[str, Any] = {"==": [1, 1]}
for _ in range(61):
    DEEP = {"and": [DEEP]}

# What a ledger can hold that would make some provider refuse the whole set if it were sent as it is.
ODD = {
    "a description": SWITCH | {"description": "Python's provider refuses unknown fields"},
    "unknown fields": SWITCH | {"owner": "ada@example.org", "tags": ["x"]},
    "no default variant": {"state": "ENABLED", "variants": {"on": True}},
    "a null default variant": SWITCH | {"defaultVariant": None},
    "an empty rule": SWITCH | {"targeting": {}},
    "empty metadata": SWITCH | {"metadata": {}},
    "a rule of 126 levels": SWITCH | {"targeting": {"if": [{"or": [DEEP]}, "on"]}},
}


@pytest.mark.parametrize("odd", list(ODD))
def test_an_odd_flag_leaves_the_others_of_the_set_alone(odd: str) -> None:
    view = snapshot_of({"odd": ODD[odd], "other": SWITCH}).view
    for encode in (document, export_document):
        core = core_with(encode(view))
        assert core.resolve_boolean_value("other", True).value is False
        try:
            answer = core.resolve_boolean_value("odd", True)
        except OpenFeatureError:
            assert odd == "a rule of 126 levels"
        else:
            assert answer.value is (odd in ("no default variant", "a null default variant"))


def test_the_operator_in_place_of_a_rule_is_a_parse_error_of_that_flag() -> None:
    core = core_with(document(snapshot_of({"odd": ODD["a rule of 126 levels"]}).view))
    assert core._flag_store.get_flag("odd").targeting == {UNSENDABLE_OPERATOR: []}  # type: ignore[union-attr]
    with pytest.raises(ParseError):
        core.resolve_boolean_value("odd", True)


# Each of these makes openfeature-flagd-core refuse a set of which nothing else is wrong: why they are never sent.
@pytest.mark.parametrize(
    "fault",
    [
        {"description": "x"},
        {"state": "enabled"},
        {"state": None},
        {"variants": {}},
        {"metadata": {"x": None}},
        {"metadata": {"x": {}}},
        {"metadata": {"": 1}},
    ],
    ids=str,
)
def test_flagd_core_refuses_a_whole_set_for_one_such_flag(fault: dict[str, Any]) -> None:
    with pytest.raises(ParseError):
        core_with(json.dumps({"flags": {"odd": SWITCH | fault, "other": SWITCH}}).encode())
