"""The flags that are measured, and whole signed ledgers of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from flaghoist.codec import encode_envelope
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from tests.forge import Forge, boolean_flag

Flag = Mapping[str, object]
T = TypeVar("T")

# An entry may have 500 ops; 250 of the larger definitions stay well below an envelope's 512 KiB.
OPS_AN_ENTRY: Final = 250

# What a web shop would send with a call: the size of a usual context.
CONTEXT: Final[Mapping[str, Any]] = {
    "targetingKey": "user-4711",
    "country": "SE",
    "plan": "pro",
    "email": "ada@example.org",
    "age": 36,
    "version": "2.4.1",
}

TEN_CONDITIONS: Final[tuple[Any, ...]] = (
    {"==": [{"var": "country"}, "NL"]},
    {"in": [{"var": "plan"}, ["gold", "platinum"]]},
    {"ends_with": [{"var": "email"}, "@staff.example.org"]},
    {"starts_with": [{"var": "email"}, "test-"]},
    {">=": [{"var": "age"}, 90]},
    {"sem_ver": [{"var": "version"}, ">=", "9.0.0"]},
    {"and": [{"==": [{"var": "country"}, "CH"]}, {"==": [{"var": "plan"}, "free"]}]},
    {"in": ["beta", {"var": "groups"}]},
    {"<": [{"var": "age"}, 18]},
    {"==": [{"var": "plan"}, "pro"]},
)


def rules(conditions: Iterable[Any]) -> Any:
    """Return a chain of rules whose last condition decides for "on", and all others for "off"."""
    branches: list[Any] = []
    for condition in conditions:
        branches += [condition, "off"]
    return {"if": [*branches[:-1], "on", "off"]}


# Each call passes nine rules that do not match before the tenth does.
TEN_RULES: Final = boolean_flag(targeting=rules(TEN_CONDITIONS))
TEN_EQUALS: Final = boolean_flag(
    targeting=rules([{"==": [{"var": "plan"}, name]} for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "pro")])
)
STATIC: Final = boolean_flag()
FRACTIONAL: Final = boolean_flag(targeting={"fractional": [["on", 25], ["off", 75]]})
STARTS_WITH: Final = boolean_flag(targeting={"if": [{"starts_with": [{"var": "email"}, "ada@"]}, "on", "off"]})
ENDS_WITH: Final = boolean_flag(targeting={"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "on", "off"]})
EQUALS: Final = boolean_flag(targeting={"if": [{"==": [{"var": "country"}, "SE"]}, "on", "off"]})

# One in three flags has a rule, in turn one of these: releases are few, settings are many.
_RULED: Final = (EQUALS, FRACTIONAL, ENDS_WITH, TEN_RULES)


def mixed(count: int) -> dict[str, Flag]:
    """Return flags of which one in three has a rule."""
    return {f"shop-flag-{n:05}": _RULED[n // 3 % len(_RULED)] if n % 3 == 0 else STATIC for n in range(count)}


def all_static(count: int) -> dict[str, Flag]:
    """Return flags without a rule."""
    return {f"shop-flag-{n:05}": STATIC for n in range(count)}


def all_ruled(count: int) -> dict[str, Flag]:
    """Return flags that all have one rule: equality, a fraction or a suffix, in turn."""
    return {f"shop-flag-{n:05}": (EQUALS, FRACTIONAL, ENDS_WITH)[n % 3] for n in range(count)}


def forged(flags: Mapping[str, Flag]) -> Forge:
    """Return a ledger that holds these flags, signed and approved as in life, a few hundred an entry."""
    forge = Forge()
    forge.genesis()
    for part in _parts(flags.items(), OPS_AN_ENTRY):
        forge.append(forge.release(*(forge.op(key, flag) for key, flag in part)))
    return forge


def root_bytes(forge: Forge) -> bytes:
    """Return the file with which a sidecar pins this ledger's root."""
    return encode_envelope(forge.root.envelope)


async def store(url: str, records: Sequence[bytes]) -> None:
    """Make a ledger at `url` and append these records."""
    await create_log(url)
    async with open_log(url)(Stream.LEDGER) as log:
        for record in records:
            await log.append(record)


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
