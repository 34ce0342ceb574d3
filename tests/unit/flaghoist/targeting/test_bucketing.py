"""fractional: the hash, the bucket, the keys and the weights of both generations."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition
from flaghoist.targeting import Fractional, compile_rule
from flaghoist.targeting.bucketing import WEIGHT_MAX, bucket, weight_of

VECTORS = Path(__file__).parents[3] / "vectors/fractional"
V2 = json.loads((VECTORS / "v2.json").read_text())
V3 = json.loads((VECTORS / "v3.json").read_text())
HUNDRED: list[JsonValue] = [[number, 1] for number in range(100)]


def run(operands: JsonValue, context: dict[str, Any], generation: Fractional = Fractional.V2, key: str = "flag") -> Any:
    rule = compile_rule({"fractional": operands}, where="t", evaluators={}, fractional=generation, flag_key=key)
    return rule(context)


@pytest.mark.parametrize("vector", V2, ids=lambda vector: repr(vector["key"])[:30])
def test_v2_buckets_the_keys_utf8(vector: dict[str, Any]) -> None:
    assert run([{"var": "k"}, *HUNDRED], {"k": vector["key"]}) == vector["bucket_100"]


@pytest.mark.parametrize(
    "vector",
    [vector for vector in V3 if not isinstance(vector["key"], list)],  # in the key's place a list is an entry
    ids=lambda vector: repr(vector["key"])[:30],
)
def test_v3_buckets_the_keys_cbor(vector: dict[str, Any]) -> None:
    assert run([{"var": "k"}, *HUNDRED], {"k": vector["key"]}, Fractional.V3) == vector["bucket_100"]


def test_v2_default_key_is_flag_key_and_targeting_key_without_a_separator() -> None:
    assert run(HUNDRED, {"targetingKey": "user-1"}, key="flag") == V2[6]["bucket_100"]


def test_v3_default_key_is_the_cbor_of_both() -> None:
    wanted = next(vector for vector in V3 if vector["key"] == ["flag", "user-1"])
    assert run(HUNDRED, {"targetingKey": "user-1"}, Fractional.V3) == wanted["bucket_100"]


@pytest.mark.parametrize("context", [{}, {"targetingKey": None}, {"targetingKey": ""}, {"targetingKey": 5}])
@pytest.mark.parametrize("generation", Fractional)
def test_without_a_targeting_key_there_is_no_bucket(context: dict[str, Any], generation: Fractional) -> None:
    assert run([["a", 1], ["b", 1]], context, generation) is None


def test_an_explicit_null_is_the_default_key_in_v2_and_no_key_in_v3() -> None:
    context = {"targetingKey": "user-1"}
    entries: list[JsonValue] = [["a", 1]]
    assert run([{"var": "nope"}, *entries], context) == "a"
    assert run([None, *entries], context) == "a"
    assert run([{"var": "nope"}, *entries], context, Fractional.V3) is None
    assert run([None, *entries], context, Fractional.V3) is None


def test_a_number_is_no_key_in_v2_and_a_key_in_v3() -> None:
    context = {"targetingKey": "user-1", "id": 5}
    assert run([{"var": "id"}, ["a", 1]], context) is None
    assert run([{"var": "id"}, ["a", 1]], context, Fractional.V3) == "a"


def test_one_and_one_point_zero_share_a_bucket_in_v3() -> None:
    assert run([{"var": "k"}, *HUNDRED], {"k": 1.0}, Fractional.V3) == run(
        [{"var": "k"}, *HUNDRED], {"k": 1}, Fractional.V3
    )


@pytest.mark.parametrize(
    ("value", "weight"),
    [(None, 1), (0, 0), (7, 7), (-3, 0), (5.0, 5), (WEIGHT_MAX, WEIGHT_MAX)]
    + [(value, None) for value in (0.5, "5", True, [], {}, WEIGHT_MAX + 1)],
)
def test_a_weight_is_a_whole_number_up_to_int32(value: Any, weight: int | None) -> None:
    assert weight_of(value) == weight


def test_buckets_end_at_both_ends_of_the_range() -> None:
    assert bucket(0, 100) == 0
    assert bucket(2**32 - 1, 100) == 99
    assert bucket(2**31 - 1, 2) == 0
    assert bucket(2**31, 2) == 1
    assert bucket(2**32 - 1, WEIGHT_MAX) == WEIGHT_MAX - 1


def test_an_entry_of_weight_zero_is_never_chosen() -> None:
    for n in range(200):
        assert run([["never", 0], ["a", 1], ["never", 0]], {"targetingKey": f"user-{n}"}) == "a"


def test_shares_follow_the_weights() -> None:
    rule = compile_rule(
        {"fractional": [["a", 25], ["b", 75]]}, where="t", evaluators={}, fractional=Fractional.V2, flag_key="flag"
    )
    share = Counter(str(rule({"targetingKey": f"user-{n}"})) for n in range(20_000))
    assert 0.24 < share["a"] / 20_000 < 0.26


def test_users_that_are_in_stay_in_when_a_share_grows() -> None:
    def inside(weight: int) -> set[int]:
        entries: list[JsonValue] = [["in", weight], ["out", 100 - weight]]
        return {n for n in range(2000) if run(entries, {"targetingKey": f"user-{n}"}) == "in"}

    assert inside(5) < inside(20) < inside(60)


@pytest.mark.parametrize("weight", [{"var": "w"}, {"+": [{"var": "w"}, 0]}])
@pytest.mark.parametrize(("w", "result"), [(1, "a"), (0, "b"), (0.5, None), (-5, "b"), (2**31, None)])
def test_a_computed_weight_counts_in_each_call(weight: JsonValue, w: float, result: str | None) -> None:
    assert run([["a", weight], ["b", 0 if result == "a" else 1]], {"targetingKey": "u", "w": w}) == result


def test_a_computed_variant_may_be_any_scalar_and_nothing_else() -> None:
    entries: list[JsonValue] = [[{"var": "v"}, 1]]
    for value in ("x", True, 3, None):
        assert run(entries, {"targetingKey": "u", "v": value}) == value
    assert run(entries, {"targetingKey": "u", "v": [1]}) is None


def test_half_a_surrogate_pair_buckets_as_the_replacement_character() -> None:
    for generation in Fractional:
        broken = run(HUNDRED, {"targetingKey": "a\udc00"}, generation)
        assert broken == run(HUNDRED, {"targetingKey": "a\ufffd"}, generation)


@pytest.mark.parametrize(
    ("operands", "where"),
    [
        ({"var": "x"}, "t.fractional"),
        ([], "t.fractional"),
        ([{"var": "x"}], "t.fractional"),
        ([["a", 1], "b"], "t.fractional[1]"),
        ([["a", 1], []], "t.fractional[1]"),
        ([["a", 0.5], ["b", 1]], "t.fractional[0][1]"),
        ([["a", "50"], ["b", 1]], "t.fractional[0][1]"),
        ([["a", 2**31]], "t.fractional[0][1]"),
        ([["a", 0], ["b", -1]], "t.fractional"),
        ([["a", WEIGHT_MAX], ["b", 1]], "t.fractional"),
        ([[["a"], 1]], "t.fractional[0][0]"),
        ([5, ["a", 1]], "t.fractional[0]"),
        ([["a", 1, 2, 3]], "t.fractional[0]"),
    ],
)
def test_what_could_never_have_a_bucket_is_refused(operands: JsonValue, where: str) -> None:
    with pytest.raises(BadDefinition) as refused:
        run(operands, {})
    assert refused.value.where == where


def test_a_third_element_is_ignored_in_v2_and_refused_in_v3() -> None:
    assert run([["a", 1, "x"]], {"targetingKey": "u"}) == "a"
    with pytest.raises(BadDefinition):
        run([["a", 1, "x"]], {"targetingKey": "u"}, Fractional.V3)
