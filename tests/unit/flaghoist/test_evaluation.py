"""Evaluation: reasons, errors, the order of steps, and what a context becomes."""

import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.errors import Malformed
from flaghoist.evaluation import Answer, ErrorCode, EvaluationFailed, Reason, evaluate, evaluate_all, normalised
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.targeting.limits import CONTEXT_DEPTH_MAX
from flaghoist.values import Action, FlagKey, Seq, Source, Target

DATA = Path(__file__).parents[4] / "shared/data"
COLORS = {"red": "#f00", "blue": "#00f", "true": "#0f0", "1": "#fff", "1.5": "#eee", 'a"b': "#ddd"}


def view(flags: dict[str, Any], evaluators: dict[str, Any] | None = None) -> View:
    ops = [Op(Target.FLAG, Source(""), FlagKey(k), Seq(0), Action.PUT, encode_flag(f)) for k, f in flags.items()]
    for key, rule in (evaluators or {}).items():
        ops.append(Op(Target.EVALUATOR, Source(""), FlagKey(key), Seq(0), Action.PUT, encode_evaluator(rule)))
    return Snapshot.empty(Fractional.V2).fold(Seq(1), ops).view


def color(targeting: Any, **fields: Any) -> View:
    flag = {
        "state": "ENABLED",
        "variants": COLORS,
        "defaultVariant": "red",
        "metadata": {"v": 1},
        "targeting": targeting,
    }
    return view({"color": {**flag, **fields}})


def answer(given: View, **context: Any) -> Answer:
    return evaluate(given, "color", context, now_s=100)


def test_a_flag_without_a_rule_is_static() -> None:
    for targeting in (None, {}):
        assert answer(color(targeting)) == Answer("color", "#f00", "red", Reason.STATIC, {"v": 1})


def test_a_rule_that_names_a_variant_is_a_match_even_of_the_default() -> None:
    given = color({"if": [{"var": "x"}, "blue", "red"]})
    assert answer(given, x=1) == Answer("color", "#00f", "blue", Reason.TARGETING_MATCH, {"v": 1})
    assert answer(given, x=0) == Answer("color", "#f00", "red", Reason.TARGETING_MATCH, {"v": 1})


def test_a_rule_that_gives_null_is_the_default() -> None:
    assert answer(color({"if": [{"var": "x"}, "blue"]})) == Answer("color", "#f00", "red", Reason.DEFAULT, {"v": 1})


@pytest.mark.parametrize("targeting", [None, {"if": [False, "blue"]}])
def test_without_a_default_variant_there_is_no_value(targeting: Any) -> None:
    given = color(targeting, defaultVariant=None)
    assert answer(given) == Answer("color", None, None, Reason.DEFAULT, {"v": 1})


@pytest.mark.parametrize("targeting", [None, {"if": [True, "blue"]}, {"if": [True, "nope"]}])
def test_a_disabled_flag_has_no_value_whatever_its_rule(targeting: Any) -> None:
    given = color(targeting, state="DISABLED")
    assert answer(given) == Answer("color", None, None, Reason.DISABLED, {"v": 1})


@pytest.mark.parametrize(("result", "variant"), [(True, "true"), (1, "1"), (1.0, "1"), (1.5, "1.5"), ('a"b', 'a"b')])
def test_bools_and_numbers_name_variants_as_json_writes_them(result: Any, variant: str) -> None:
    assert answer(color({"var": "x"}), x=result).variant == variant
    assert answer(color({"if": [True, result]})).variant == variant


@pytest.mark.parametrize("result", ["nope", "", False, 2, [], ["red"], {}, {"red": 1}, "null"])
def test_a_result_that_names_no_variant_is_a_general_error(result: Any) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        answer(color({"var": "x"}), x=result)
    assert failed.value.error_code is ErrorCode.GENERAL
    assert failed.value.metadata == {"v": 1}


def test_an_error_never_repeats_what_the_caller_sent() -> None:
    with pytest.raises(EvaluationFailed) as failed:
        answer(color({"cat": [{"var": "email"}, ""]}), email="ada@example.org")
    assert "ada" not in str(failed.value)


def test_a_result_that_is_no_number_is_a_parse_error() -> None:
    for rule in ({"/": [{"var": "x"}, 0]}, {"%": [1, {"var": "nope"}]}):
        with pytest.raises(EvaluationFailed) as failed:
            answer(color(rule), x=1)
        assert failed.value.error_code is ErrorCode.PARSE_ERROR


def test_an_unknown_flag_is_not_found_and_has_no_metadata() -> None:
    with pytest.raises(EvaluationFailed) as failed:
        evaluate(color(None), "colour", {}, now_s=0)
    assert failed.value.error_code is ErrorCode.FLAG_NOT_FOUND
    assert failed.value.metadata == {}


def test_a_rule_that_works_too_much_fails_this_call_alone() -> None:
    given = color({"if": [{"some": [{"var": "x"}, {"==": [{"var": ""}, "needle"]}]}, "blue", "red"]})
    with pytest.raises(EvaluationFailed) as failed:
        answer(given, x=["hay"] * 100_000)
    assert failed.value.error_code is ErrorCode.GENERAL
    assert answer(given, x=["hay", "needle"]).variant == "blue"


def test_the_time_is_the_callers_clock() -> None:
    given = color({"if": [{">=": [{"var": "$flagd.timestamp"}, 100]}, "blue", "red"]})
    assert evaluate(given, "color", {}, now_s=99).variant == "red"
    assert evaluate(given, "color", {}, now_s=100).variant == "blue"


def test_a_context_that_is_any_mapping_will_do() -> None:
    given = color({"if": [{"==": [{"var": "a.b"}, 1]}, "blue", "red"]})
    assert evaluate(given, "color", MappingProxyType({"a": {"b": 1}}), now_s=0).variant == "blue"


def test_a_static_answer_is_made_once() -> None:
    given = color(None)
    assert answer(given) is answer(given, x=1)


def test_all_flags_are_answered_in_order_with_failures_in_their_place() -> None:
    base = {"state": "ENABLED", "variants": COLORS, "defaultVariant": "red"}
    given = view(
        {
            "static": base,
            "bad": {**base, "targeting": {"if": [True, "nope"]}, "metadata": {"m": 1}},
            "off": {**base, "state": "DISABLED"},
            "match": {**base, "targeting": {"if": [{"var": "x"}, "blue"]}},
        }
    )
    answers = list(evaluate_all(given, {"x": 1}, now_s=0))
    assert [found.key for found in answers] == ["static", "bad", "off", "match"]
    assert isinstance(answers[1], EvaluationFailed)
    assert [a.reason for a in answers if isinstance(a, Answer)] == [
        Reason.STATIC, Reason.DISABLED, Reason.TARGETING_MATCH,
    ]  # fmt: skip
    assert answers[1].metadata == {"m": 1}


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (1.0, 1),
        (-0.0, 0),
        (1.5, 1.5),
        (2.0**53, 2.0**53),
        (2**53 - 1, 2**53 - 1),
        (2**53 + 1, float(2**53)),
        (True, True),
        (None, None),
        ("1.0", "1.0"),
        ([1.0, {"a": 2.0}], [1, {"a": 2}]),
        ((1.0,), [1]),
        ({"a": {"b": [3.0]}}, {"a": {"b": [3]}}),
    ],
)
def test_numbers_of_a_context_have_one_form(value: Any, becomes: Any) -> None:
    found = normalised({"x": value})["x"]
    assert found == becomes
    assert repr(found) == repr(becomes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, b"bytes", {1, 2}, [object()]])
def test_what_is_no_json_is_no_context(value: Any) -> None:
    with pytest.raises(Malformed):
        normalised({"x": value})


def test_a_context_nests_to_the_limit_and_no_deeper() -> None:
    deep: Any = "x"
    for _ in range(CONTEXT_DEPTH_MAX - 1):
        deep = [deep]
    assert normalised({"x": deep}) == {"x": deep}
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Malformed):
        normalised({"x": deep})


def flagd_file(name: str) -> View:
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing")
        pytest.skip(f"needs {path}, which lies beside the repository")
    document = json.loads(path.read_text())
    return view(document["flags"], document.get("$evaluators"))


def test_a_microservice_shops_flags_are_served() -> None:
    shop = flagd_file("opentelemetry-demo.flagd.json")
    answers = {found.key: found for found in evaluate_all(shop, {"product_id": "OLJCESPC7Z"}, now_s=0)}
    assert len(answers) == 15
    assert all(isinstance(found, Answer) for found in answers.values())
    assert answers["productCatalogFailure"] == Answer("productCatalogFailure", False, "off", Reason.TARGETING_MATCH, {})
    assert answers["loadGeneratorTraffic"] == Answer("loadGeneratorTraffic", 1, "on", Reason.STATIC, {})


@pytest.mark.parametrize(
    ("key", "context", "variant", "reason"),
    [
        ("myBoolFlag", {}, "on", Reason.STATIC),
        ("isColorYellow", {"color": "yellow"}, "on", Reason.TARGETING_MATCH),
        ("isColorYellow", {"color": "red"}, "off", Reason.TARGETING_MATCH),
        ("fibAlgo", {"email": "ada@faas.com"}, "binet", Reason.TARGETING_MATCH),
        ("fibAlgo", {"email": "ada@example.org"}, "recursive", Reason.DEFAULT),
        ("headerColor", {}, "red", Reason.DEFAULT),
        ("headerColor", {"email": "ada@faas.com"}, "green", Reason.TARGETING_MATCH),
        ("targetedFlag", {"email": "ada@openfeature.dev"}, "second", Reason.TARGETING_MATCH),
    ],
)
def test_flagds_own_sample_is_served(key: str, context: dict[str, Any], variant: str, reason: Reason) -> None:
    found = evaluate(flagd_file("flagd-samples.flagd.json"), key, context, now_s=0)
    assert (found.variant, found.reason) == (variant, reason)
