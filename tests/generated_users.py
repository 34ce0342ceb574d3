"""Users for tests of shares: many, and of the sorts of identifier that services have; the same ones for a seed."""

import random
from collections.abc import Iterator
from typing import Final

# What people forget: text that looks like something else, white space, punctuation, and more than counts of a key.
ODD_ASCII: Final = (
    *("0", "00", "1", "1.0", "-0", "1e3", "true", "false", "null", "NaN", "[]", "{}", ".", "..", "user-1.", ".user-1"),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        " user-1",
        "user-1 ",
        "user 1",
        '"quoted"',
        "back\\slash",
        "a/b#c?d=e&f",
        "x~",
        "$ref",
        "%",
    ),
    *("a" * 107, "a" * 108, "a" * 109, "a" * 500, "b" * 300 + "/1", "b" * 300 + "/2", "\x7f", "\x01"),
)
ODD_OTHERS: Final = ("é", "Ωmega", "日本", "🙂", "ß" * 200, "zoë@example.org", "e\u0301", "\u00a0user", "user\u2028")


def generated_users(count: int, *, seed: int) -> Iterator[str]:
    """Yield identifiers, no two of them equal: numbered, numbers, addresses, random hex, and paths of up to 220."""
    chance = random.Random(seed)
    first = chance.randrange(10**6)
    for number in range(first, first + count):
        match number % 8:
            case 4:
                yield str(number)
            case 5:
                yield f"user{number}@example.org"
            case 6:
                yield f"{chance.getrandbits(96):024x}{number:08x}"
            case 7:
                yield f"tenant/{'x' * chance.randrange(200)}/{number}"
            case _:
                yield f"user-{number}"
