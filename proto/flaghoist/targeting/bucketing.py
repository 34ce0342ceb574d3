"""fractional: a share of all users, the same share in every process.

The key's 32-bit murmur3 hash (seed 0) is scaled to the sum of the weights: `hash * sum >> 32`. V2 hashes the key's
UTF-8 as flagd 0.16.1 does; V3 its deterministic CBOR.
"""

from bisect import bisect_right
from collections.abc import Callable
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import mmh3

from flaghoist.targeting.cbor import encode, encode_text, pair_prefix, utf8
from flaghoist.targeting.limits import CHARS_PER_UNIT, FREE_CHARS, Call, RuleFailed
from flaghoist.targeting.node import Node, Step, constant

if TYPE_CHECKING:
    from flaghoist.targeting.compiler import Operands


class Fractional(StrEnum):
    """Generation of the `fractional` operator; a setting of the ledger, so that every pod buckets alike.

    V2: flagd 0.16 (murmur3 over the key's UTF-8). V3: murmur3 over the key's deterministic CBOR.
    """

    V2 = "v2"
    V3 = "v3"


WEIGHT_MAX: Final = 2**31 - 1  # each weight and their sum: an int32 in flagd

# The hash of the key in some data, None when there is no key.
Hash: TypeAlias = Callable[[Any, Call], int | None]
# The variant of a hash.
Pick: TypeAlias = Callable[[Any, Call, int], Any]

_hash_bytes = mmh3.mmh3_32_uintdigest


def bucket(hashed: int, total: int) -> int:
    """Return the place of a 32-bit hash in 0 .. total - 1."""
    return hashed * total >> 32


def weight_of(value: Any) -> int | None:
    """Return an entry's weight: null is 1, negative is 0 (as rollout arithmetic may give); None if it cannot be one."""
    if value is None:
        return 1
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or value > WEIGHT_MAX:
        return None
    return max(value, 0)


def build_fractional(operands: "Operands") -> Node:
    """Build the operator; see docs/evaluation.md for what makes its result null."""
    raw = operands.raw
    if type(raw) is not list or not raw:
        operands.refuse("want a list of [variant, weight] entries, after a key if there is one")
    first = 0 if type(raw[0]) is list else 1
    if len(raw) == first:
        operands.refuse("want at least one [variant, weight] entry")
    entries = [_entry(operands, index) for index in range(first, len(raw))]
    pick = _pick(operands, entries)
    default = _default_key(operands)
    if first == 0:
        return _bucketed(default, pick)
    key = operands.compile(0)
    v3 = operands.fractional is Fractional.V3
    if key.constant and key.value is None:
        return constant(None) if v3 else _bucketed(default, pick)
    if key.constant and not v3 and type(key.value) is not str:
        operands.refuse("want a key that is text (fractional v2), or [variant, weight]; this never has a result", 0)
    explicit = _hash_value if v3 else _hash_text
    if key.constant and type(key.value) is str and all(v.constant and w.constant for v, w in entries):
        hashed = explicit(key.value, Call(0))
        return constant(None if hashed is None else pick({}, Call(0), hashed))
    return _keyed(key.step, explicit, default, entries, pick, v3)


def _entry(operands: "Operands", index: int) -> tuple[Node, Node]:
    """One entry's variant and weight."""
    raw = operands.raw[index]
    longest = 2 if operands.fractional is Fractional.V3 else 3  # flagd ignores a third element, v3 refuses it
    if type(raw) is not list or not 1 <= len(raw) <= longest:
        operands.refuse("want [variant] or [variant, weight]", index)
    variant = operands.compile_inner(raw[0], index, 0)
    if variant.constant and type(variant.value) in (list, dict):
        operands.refuse("want a variant: text, bool, number, null or a rule", index, 0)
    weight = operands.compile_inner(raw[1], index, 1) if len(raw) > 1 else constant(None)
    if weight.constant and weight_of(weight.value) is None:
        operands.refuse(f"want a whole number 0 .. {WEIGHT_MAX}, got {weight.value!r}", index, 1)
    return variant, weight


def _pick(operands: "Operands", entries: list[tuple[Node, Node]]) -> Pick:
    """Return how a hash finds its variant: by a table when all is known, else anew in each call."""
    if not all(weight.constant for _, weight in entries):
        return _pick_computed(entries)
    sums = list(accumulate(weight_of(weight.value) or 0 for _, weight in entries))
    total = sums[-1]
    if not 0 < total <= WEIGHT_MAX:
        operands.refuse(f"want weights with a sum of 1 .. {WEIGHT_MAX}, got {total}")
    if not all(variant.constant for variant, _ in entries):
        return _pick_computed(entries)
    variants = [variant.value for variant, _ in entries]
    return lambda data, call, hashed: variants[bisect_right(sums, hashed * total >> 32)]


def _pick_computed(entries: list[tuple[Node, Node]]) -> Pick:
    steps = [(variant.step, weight.step) for variant, weight in entries]

    def pick(data: Any, call: Call, hashed: int) -> Any:
        return distribute([[variant(data, call), weight(data, call)] for variant, weight in steps], hashed)

    return pick


def distribute(entries: list[Any], hashed: int) -> Any:
    """Return the variant of a hash among computed [variant, weight?] entries; None when one of them is wrong."""
    sums: list[int] = []
    total = 0
    for entry in entries:
        if type(entry) is not list or not entry or type(entry[0]) in (list, dict):
            return None
        weight = weight_of(entry[1]) if len(entry) > 1 else 1
        if weight is None:
            return None
        total += weight
        sums.append(total)
    if not 0 < total <= WEIGHT_MAX:
        return None
    return entries[bisect_right(sums, bucket(hashed, total))][0]


def _default_key(operands: "Operands") -> Hash:
    """The flag's key and the targetingKey together, so that one user falls differently for each flag."""
    root = operands.scope.root
    flag_key = operands.flag_key if root else ""  # an element of a list knows no flag, as in flagd
    v3 = operands.fractional is Fractional.V3
    prefix = pair_prefix(flag_key) if v3 else utf8(flag_key)
    encoded = encode_text if v3 else utf8

    def hashed(data: Any, call: Call) -> int | None:
        key = data.get("targetingKey") if root or type(data) is dict else None
        if type(key) is not str or not key:
            return None
        if len(key) > FREE_CHARS:
            call.spend(len(key) // CHARS_PER_UNIT)
        return _hash_bytes(prefix + encoded(key))

    return hashed


def _hash_text(key: Any, call: Call) -> int | None:
    if type(key) is not str:
        return None
    if len(key) > FREE_CHARS:
        call.spend(len(key) // CHARS_PER_UNIT)
    return _hash_bytes(utf8(key))


def _hash_value(key: Any, call: Call) -> int | None:
    if key is None:
        return None
    try:
        data = encode(key)
    except RuleFailed:
        return None  # as the specification says: a key that cannot be encoded is no key
    if len(data) > FREE_CHARS:
        call.spend(len(data) // CHARS_PER_UNIT)
    return _hash_bytes(data)


def _bucketed(key: Hash, pick: Pick) -> Node:
    def step(data: Any, call: Call) -> Any:
        hashed = key(data, call)
        return None if hashed is None else pick(data, call, hashed)

    return Node(step)


def _keyed(
    operand: Step,
    explicit: Callable[[Any, Call], int | None],
    default: Hash,
    entries: list[tuple[Node, Node]],
    pick: Pick,
    v3: bool,
) -> Node:
    steps = [(variant.step, weight.step) for variant, weight in entries]

    def step(data: Any, call: Call) -> Any:
        key = operand(data, call)
        if type(key) is list:
            # flagd cannot tell a computed list from an entry: it is the first one.
            hashed = default(data, call)
            rest = [[variant(data, call), weight(data, call)] for variant, weight in steps]
            return None if hashed is None else distribute([key, *rest], hashed)
        hashed = default(data, call) if key is None and not v3 else explicit(key, call)
        return None if hashed is None else pick(data, call, hashed)

    return Node(step)
