"""Deterministic CBOR: byte for byte what cbor2's canonical mode writes."""

import json
import random
from pathlib import Path
from typing import Any

import cbor2
import pytest

from flaghoist.targeting.cbor import encode, encode_text, pair_prefix
from flaghoist.targeting.limits import CONTEXT_DEPTH_MAX, RuleFailed

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/fractional/v3.json").read_text())


def value(rng: random.Random, depth: int) -> Any:
    roll = rng.randrange(9 if depth else 6)
    if roll == 0:
        return "".join(rng.choices("aZé日😀\n", k=rng.choice([0, 1, 5, 23, 24, 70, 300])))
    if roll == 1:
        return rng.choice([-1, 1]) * rng.getrandbits(rng.choice([3, 5, 8, 16, 32, 53]))
    if roll == 2:
        return rng.choice([rng.uniform(-1, 1), rng.randrange(-999, 999) / 8 + 0.0625, rng.uniform(-1e200, 1e200) + 0.5])
    if roll < 6:
        return [True, False, None][roll - 3]
    if roll < 8:
        return [value(rng, depth - 1) for _ in range(rng.choice([0, 1, 3, 30]))]
    return {value_text(rng): value(rng, depth - 1) for _ in range(rng.randrange(6))}


def value_text(rng: random.Random) -> str:
    return "".join(rng.choices("abé", k=rng.choice([0, 1, 2, 22, 24])))


def whole_as_int(item: Any) -> Any:
    if isinstance(item, float) and item.is_integer() and -(2**63) <= item < 2**64:
        return int(item)
    if isinstance(item, list):
        return [whole_as_int(inner) for inner in item]
    return {key: whole_as_int(inner) for key, inner in item.items()} if isinstance(item, dict) else item


@pytest.mark.parametrize("seed", range(60))
def test_encoding_equals_cbor2s_canonical_form(seed: int) -> None:
    item = value(random.Random(seed), 3)
    assert encode(item) == cbor2.dumps(whole_as_int(item), canonical=True)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector["key"])[:30])
def test_vectors_hold(vector: dict[str, Any]) -> None:
    assert encode(vector["key"]).hex() == vector["cbor"]


@pytest.mark.parametrize(
    ("number", "whole"), [(1.0, 1), (-0.0, 0), (-3.0, -3), (1e15, 10**15), (-(2.0**63), -(2**63)), (2.0**63, 2**63)]
)
def test_a_whole_double_is_encoded_as_the_integer(number: float, whole: int) -> None:
    assert encode(number) == cbor2.dumps(whole, canonical=True)


@pytest.mark.parametrize("number", [2.0**64, -(2.0**64), 1e300])
def test_a_double_beyond_cbors_integers_stays_a_double(number: float) -> None:
    assert encode(number) == cbor2.dumps(number, canonical=True)


@pytest.mark.parametrize(("flag", "user"), [("f", "u"), ("", "x" * 24), ("a" * 300, "é")])
def test_a_pair_is_its_prefix_and_the_second_text(flag: str, user: str) -> None:
    assert pair_prefix(flag) + encode_text(user) == cbor2.dumps([flag, user], canonical=True)


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    assert encode_text("a\ud800b") == encode_text("a\ufffdb")


def test_what_nests_too_deeply_is_refused() -> None:
    item: Any = "x"
    for _ in range(CONTEXT_DEPTH_MAX):
        item = [item]
    encode(item)
    with pytest.raises(RuleFailed):
        encode([item])
