"""Whom a gate's share chooses: as many as it says, the same in every generation of `fractional`, and more of the same
when it grows. What a gate promises is computed here once more, from the hash; tests/clients asks other languages."""

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

import mmh3
import pytest

from flaghoist.release_plan import BUCKET_KEY_CHARS, GENERATION_PROBE, SHARE_MAX, Gate, gate_rule
from flaghoist.targeting import CompiledRule, Fractional, compile_rule
from tests.generated_users import ODD_ASCII, ODD_OTHERS, generated_users

MILLION: Final = 1_000_000
SEED: Final = 1867
# 0.001 %, 1 %, 10 %, 50 %, 99.999 %; none and all of them need no bucket.
SHARES: Final = (1, 1000, 10_000, 50_000, SHARE_MAX - 1)
STAFF: Final = {"ends_with": [{"var": "email"}, "@example.org"]}

every_generation = pytest.mark.parametrize("fractional", Fractional)


def gate(
    share: int,
    *,
    fractional: Fractional = Fractional.V2,
    salt: str = "spring",
    bucket_by: str = "targetingKey",
    audience: Any = None,
    flag: str = "cart.spring",
) -> CompiledRule:
    rule = gate_rule(Gate(audience is not None, share), audience=audience, bucket_by=bucket_by, salt=salt)
    return compile_rule(rule, where="gate", evaluators={}, fractional=fractional, flag_key=flag)


def marks(rule: CompiledRule, contexts: Iterable[Mapping[str, Any]]) -> bytes:
    """One byte a context: 1 it is let through, 0 it is not."""
    return bytes(rule(context) is True for context in contexts)


def keyed(users: Iterable[str]) -> list[dict[str, Any]]:
    return [{"targetingKey": user} for user in users]


def least_share(user: str, salt: str = "spring") -> int:
    """The smallest share that a user of ASCII is in, from what docs/protocol.md says."""
    salted = f"{hashlib.sha256(salt.encode()).hexdigest()[:16]}:"
    text = salted + (108 * "." + user + ".")[-109:]
    assert len(text) == 126
    place = mmh3.hash(b"\x78\x7e" + text.encode(), signed=False) * 2 * SHARE_MAX >> 32
    return min(place + 1, 2 * SHARE_MAX - place)


def within_sampling_error(found: int, count: int, probability: float) -> bool:
    """Five standard deviations: one good seed in two million fails, and the seed is fixed."""
    return abs(found - count * probability) <= 5 * math.sqrt(count * probability * (1 - probability))


@pytest.mark.parametrize("seed", [SEED])
def test_a_million_users_are_chosen_alike_by_both_generations_and_stay_as_the_share_grows(seed: int) -> None:
    users = list(generated_users(MILLION, seed=seed))
    contexts, least = keyed(users), [least_share(user) for user in users]
    for share in SHARES:
        found = marks(gate(share), contexts)
        # By its smallest share: who is in one share is in every larger one.
        assert found == bytes(share >= smallest for smallest in least)
        assert within_sampling_error(found.count(1), MILLION, share / SHARE_MAX)
        if share == 10_000:
            assert marks(gate(share, fractional=Fractional.V3), contexts) == found


@every_generation
def test_odd_keys_have_the_bucket_that_the_protocol_says(fractional: Fractional) -> None:
    for share in SHARES:
        found = marks(gate(share, fractional=fractional), keyed(ODD_ASCII))
        assert found == bytes(share >= least_share(user) for user in ODD_ASCII)


@every_generation
def test_share_of_users_beyond_ascii_only_grows(fractional: Fractional) -> None:
    users = keyed([*ODD_OTHERS, *(f"用户-{n}" for n in range(20_000))])
    before = bytes(len(users))
    for share in (1, 1000, 10_000, 30_000, 50_000, 90_000, SHARE_MAX - 1):
        found = marks(gate(share, fractional=fractional), users)
        assert all(now >= was for was, now in zip(before, found, strict=True))
        assert within_sampling_error(found.count(1), len(users), share / SHARE_MAX)
        before = found


@every_generation
def test_share_of_nothing_is_nobody_and_of_everything_everybody(fractional: Fractional) -> None:
    contexts = [*keyed([*ODD_ASCII, *ODD_OTHERS]), {}, {"targetingKey": None}, {"targetingKey": ""}]
    assert not any(marks(gate(0, fractional=fractional), contexts))
    assert all(marks(gate(SHARE_MAX, fractional=fractional), contexts))


@every_generation
@pytest.mark.parametrize("bucket_by", ["targetingKey", "account", "account.id"])
def test_who_has_no_bucket_key_is_in_no_share_but_that_of_everybody(fractional: Fractional, bucket_by: str) -> None:
    # Someone signed in has no bucket by account without an account.
    other = {"targetingKey": "user-1"} if bucket_by != "targetingKey" else {"account": {"id": "7"}}
    missing: list[dict[str, Any]] = [{}, other]
    if "." in bucket_by:
        missing += [{**other, "account": {}}, {**other, "account": {"id": None}}, {**other, "account": {"id": ""}}]
    else:
        missing += [{**other, bucket_by: None}, {**other, bucket_by: ""}]
    for share in SHARES:
        answers = [gate(share, fractional=fractional, bucket_by=bucket_by)(context) for context in missing]
        assert answers == [False] * len(missing)
    assert all(marks(gate(SHARE_MAX, bucket_by=bucket_by), missing))


@every_generation
def test_bucket_by_another_attribute_chooses_as_by_the_targeting_key(fractional: Fractional) -> None:
    numbers = range(20_000)
    by_key = marks(gate(30_000, fractional=fractional), keyed(map(str, numbers)))
    by_path = gate(30_000, fractional=fractional, bucket_by="account.id")
    assert by_key == marks(by_path, [{"targetingKey": "same", "account": {"id": str(n)}} for n in numbers])
    # 0 is no number of anybody's, to a rule.
    assert by_key[1:] == marks(by_path, [{"account": {"id": n}} for n in numbers[1:]])
    assert by_key[1:] == marks(by_path, [{"account": {"id": float(n)}} for n in numbers[1:]])


def test_bucket_depends_on_no_flag() -> None:
    contexts = keyed(generated_users(20_000, seed=SEED))
    found = {marks(gate(10_000, flag=flag), contexts) for flag in ("cart.spring", "mail.spring", "")}
    assert len(found) == 1


@every_generation
def test_releases_of_two_salts_choose_independently_and_of_one_salt_alike(fractional: Fractional) -> None:
    contexts = keyed(generated_users(50_000, seed=SEED))
    spring = marks(gate(20_000, fractional=fractional), contexts)
    for salt in ("summer", "sprinG", "spring:", "s" * 200, "Ω"):
        other = marks(gate(30_000, fractional=fractional, salt=salt), contexts)
        both = sum(a & b for a, b in zip(spring, other, strict=True))
        assert within_sampling_error(both, len(contexts), 0.2 * 0.3), salt
    assert marks(gate(20_000, fractional=fractional, salt="spring"), contexts) == spring


@every_generation
def test_audience_is_let_through_besides_the_share(fractional: Fractional) -> None:
    users = list(generated_users(20_000, seed=SEED))
    contexts = [
        {"targetingKey": user, "email": f"u{n}@example.{'org' if n % 5 == 0 else 'com'}"}
        for n, user in enumerate(users)
    ]
    share = marks(gate(10_000, fractional=fractional), contexts)
    staff = bytes(n % 5 == 0 for n in range(len(users)))
    together = marks(gate(10_000, fractional=fractional, audience=STAFF), contexts)
    assert together == bytes(a | b for a, b in zip(share, staff, strict=True))
    assert marks(gate(0, fractional=fractional, audience=STAFF), contexts) == staff
    assert marks(gate(10_000, fractional=fractional, audience=STAFF), [{"email": "ada@example.org"}, {}]) == b"\1\0"


def test_of_a_long_key_the_end_counts() -> None:
    tail = "t" * BUCKET_KEY_CHARS
    pairs = [(f"first{n}{tail}", f"second{n}{tail}") for n in range(50)]
    assert all(least_share(a) == least_share(b) for a, b in pairs)
    for share in (10_000, 50_000):
        assert marks(gate(share), keyed(a for a, _ in pairs)) == marks(gate(share), keyed(b for _, b in pairs))
    assert len({least_share("a" * 300 + f"{n:0108}") for n in range(500)}) > 490


def test_probe_tells_the_three_generations_apart_by_the_middle_of_a_third() -> None:
    text = GENERATION_PROBE.encode()
    hashes = {"v2": mmh3.hash(text, signed=False), "v3": mmh3.hash(bytes([0x60 | len(text)]) + text, signed=False)}
    places = {name: hashed / 2**32 for name, hashed in hashes.items()}
    places["v1"] = abs(mmh3.hash(text, signed=True)) / 2**31
    for name, third in {"v2": 0, "v1": 1, "v3": 2}.items():
        assert third / 3 + 0.05 < places[name] < (third + 1) / 3 - 0.05, (name, places)


def _float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


@pytest.mark.parametrize("share", SHARES)
def test_floats_of_v1_move_fewer_than_one_user_in_a_million(share: int) -> None:
    """v1, as Java's provider has it: abs(hash) and the weights as 32-bit floats, of percent."""
    limit = _float32(share * 100 / SHARE_MAX)

    def v1(size: int) -> bool:
        return _float32(_float32(_float32(size) / 2**31) * 100) < limit

    def ours(hashed: int) -> bool:
        place = hashed * 2 * SHARE_MAX >> 32
        return place < share or place >= 2 * SHARE_MAX - share

    edge = share * 2**31 // SHARE_MAX
    near = range(edge - 3000, edge + 3000)
    moved = sum((v1(size) != ours(size)) + (v1(size) != ours(2**32 - size)) for size in near if 0 < size < 2**31)
    assert moved / 2**32 < 1e-6
    for far in (edge - 3000, edge + 3000):
        if 0 < far < 2**31:
            assert v1(far) == ours(far) == ours(2**32 - far) == (far < edge)
