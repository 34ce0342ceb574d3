"""Structs become what rules expect, whatever number type the protocol has."""

import json
import math
import random
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from flaghoist.errors import Malformed
from flaghoist.evaluation import normalised
from sidecar.faces.structs import STRUCT_DEPTH_MAX, context_of, fill


def struct(**fields: Any) -> Struct:
    made = Struct()
    made.update(fields)
    return made


@pytest.mark.parametrize(
    ("sent", "read"),
    [(1.0, 1), (-0.0, 0), (0.5, 0.5), (2.0**53 - 1, 2**53 - 1), (2.0**53, 2.0**53), (1e300, 1e300), (-7.0, -7)],
)
def test_whole_doubles_are_ints_below_2_to_the_53(sent: float, read: float) -> None:
    got: Any = context_of(struct(x=sent, deep={"list": [sent]}))
    for value in (got["x"], got["deep"]["list"][0]):
        assert (value, type(value), math.copysign(1, value)) == (read, type(read), math.copysign(1, read))


def test_null_targeting_key_is_left_out_and_other_nulls_stay() -> None:
    assert context_of(struct(targetingKey=None, plan=None)) == {"plan": None}
    assert context_of(struct(user={"targetingKey": None})) == {"user": {"targetingKey": None}}


def test_bools_strings_and_lists_keep_their_type() -> None:
    plain = {"yes": True, "no": False, "text": "é", "list": [1, "a", None, [True]], "empty": {}, "none": []}
    assert context_of(struct(**plain)) == plain


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_number_that_json_lacks_is_malformed(number: float) -> None:
    with pytest.raises(Malformed, match="JSON numbers"):
        context_of(struct(x=number))


def test_depth_has_a_limit_for_objects_and_lists() -> None:
    def nested(levels: int, *, lists: bool) -> Struct:
        value: Any = "in"
        for _ in range(levels - 1):
            value = [value] if lists else {"k": value}
        return struct(x=value)

    for lists in (True, False):
        context_of(nested(STRUCT_DEPTH_MAX, lists=lists))
        with pytest.raises(Malformed, match="levels"):
            context_of(nested(STRUCT_DEPTH_MAX + 1, lists=lists))


def random_value(rng: random.Random, depth: int) -> object:
    choices: list[object] = [
        None,
        True,
        rng.uniform(-1e6, 1e6),
        float(rng.randrange(-(2**54), 2**54)),
        rng.choice(["", "é", "x"]),
    ]
    if depth:
        choices += [
            {f"k{n}": random_value(rng, depth - 1) for n in range(rng.randrange(4))},
            [random_value(rng, depth - 1) for _ in range(rng.randrange(4))],
        ]
    return rng.choice(choices)


@pytest.mark.parametrize("seed", range(30))
def test_context_of_a_struct_equals_the_same_context_from_json(seed: int) -> None:
    rng = random.Random(seed)
    context = {f"f{n}": random_value(rng, 3) for n in range(8)}
    # As text, because 1 == 1.0 and a rule tells them apart.
    got, want = (json.dumps(each, sort_keys=True) for each in (context_of(struct(**context)), normalised(context)))
    assert got == want


def filled(plain: Any) -> Struct:
    whole = Struct()
    fill(whole, plain)
    return whole


def test_filled_struct_round_trips_what_a_variant_may_hold() -> None:
    plain: Any = {"a": 1, "b": 2.5, "c": "x", "d": True, "e": None, "f": [1, {"g": []}], "h": {}}
    assert context_of(filled(plain)) == plain


def test_int_that_no_double_can_come_near_overflows() -> None:
    with pytest.raises(OverflowError):
        filled({"a": 10**400})
