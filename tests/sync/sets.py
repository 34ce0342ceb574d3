"""Random sets of flags, evaluators and contexts, the same for the same seed.

Only what flagd, its providers and we agree on: operands of the right types, and no rule that docs/evaluation.md's table
of differences names. So answers must be equal, without exception.
"""

import random
from collections.abc import Mapping
from typing import Any

from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target

SHOP = Source("shop")
SHARED = Source("")
PEOPLE = ["ada@example.org", "grace@example.org", "linus@example.com", "é@example.org", ""]
COUNTRIES = ["CH", "AT", "DE", "日本"]
VERSIONS = ["1.2.3", "v2.0.0", "1.10.0", "1.2.3-rc.1", "3.0.0"]
VARIANTS: list[dict[str, Any]] = [
    {"on": True, "off": False},
    {"on": "yes", "off": 'a "quoted" \\ line\n', "a": "é日本"},
    {"on": 1, "off": -2.5, "a": 2**53 - 1},
    {"on": {"nested": {"list": [1, None, {"deep": True}]}}, "off": {}},
]


class SetMaker:
    """Sets of one seed."""

    def __init__(self, seed: int, *, fractional: bool) -> None:
        self.random = random.Random(seed)
        self._fractional = fractional
        self._names: list[str] = []

    def snapshot(self, generation: Fractional, flags: int = 20) -> Snapshot:
        """Return a snapshot with flags of two sources, whose rules share evaluators of both."""
        ops = []
        for source, count in ((SHARED, 3), (SHOP, 2)):
            for number in range(count):
                rule = self._condition(3)  # refers to those made before it
                name = f"{source or 'shared'}-{number}"
                ops.append(Op(Target.EVALUATOR, source, FlagKey(name), Seq(0), Action.PUT, encode_evaluator(rule)))
                self._names.append(name)
        for number in range(flags):
            definition = encode_flag(self._flag(), {"owner": "ada@example.org", "team": "checkout"})
            ops.append(Op(Target.FLAG, SHOP, FlagKey(f"flag-{number}"), Seq(0), Action.PUT, definition))
        return Snapshot.empty(generation).fold(Seq(1), ops)

    def context(self) -> dict[str, Any]:
        """Return a context that has every attribute, of its own type."""
        pick = self.random.choice
        return {
            "targetingKey": f"user-{self.random.randrange(1000)}",
            "email": pick(PEOPLE),
            "country": pick(COUNTRIES),
            "age": pick([0, 17, 18, 42, 99]),
            "score": pick([0.5, -1.5, 7.25]),
            "beta": pick([True, False]),
            "version": pick(VERSIONS),
        }

    def _flag(self) -> dict[str, Any]:
        variants = self.random.choice(VARIANTS)
        made: dict[str, Any] = {
            "state": "DISABLED" if self.random.random() < 0.1 else "ENABLED",
            "variants": variants,
            "description": "never leaves",
        }
        if self.random.random() < 0.8:
            made["defaultVariant"] = self.random.choice(list(variants))
        if self.random.random() < 0.9:
            made["targeting"] = self._rule(list(variants), 3)
        if self.random.random() < 0.5:
            made["metadata"] = {"version": "7", "weight": 1.5, "hot": True, "ticket": 12}
        return made

    def _rule(self, variants: list[str], depth: int) -> dict[str, Any]:
        pick = self.random.choice
        if self._fractional and self.random.random() < 0.4:
            key: list[Any] = [{"var": "email"}] if self.random.random() < 0.3 else []
            return {"fractional": [*key, *[[name, self.random.randrange(1, 50)] for name in variants]]}
        last: Any = pick([None, pick(variants)])
        if depth and self.random.random() < 0.5:
            last = self._rule(variants, depth - 1)
        return {"if": [self._condition(2), pick(variants), last]}

    def _condition(self, depth: int) -> dict[str, Any]:
        pick = self.random.choice
        if depth and self._names and self.random.random() < 0.4:
            return {"$ref": pick(self._names)}
        if depth and self.random.random() < 0.5:
            inner = [self._condition(depth - 1) for _ in range(self.random.randrange(1, 4))]
            return pick([{"and": inner}, {"or": inner}, {"!": inner[0]}])
        return pick(
            [
                {"==": [{"var": "country"}, pick(COUNTRIES)]},
                {"!=": [{"var": "country"}, pick(COUNTRIES)]},
                {"in": [{"var": "country"}, self.random.sample(COUNTRIES, 2)]},
                {"in": ["example", {"var": "email"}]},
                {"ends_with": [{"var": "email"}, "@example.org"]},
                {"starts_with": [{"var": "email"}, "ada"]},
                {pick(["<", "<=", ">", ">="]): [{"var": "age"}, pick([17, 18, 42])]},
                {">": [{"+": [{"var": "score"}, 1]}, 2.5]},
                {"sem_ver": [{"var": "version"}, pick(["=", "<", ">=", "^", "~"]), "1.2.3"]},
                {"==": [{"var": "beta"}, True]},
                {"==": [{"var": "$flagd.flagKey"}, "flag-1"]},
            ]
        )


def snapshot_of(
    flags: Mapping[str, Mapping[str, object]],
    evaluators: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    generation: Fractional = Fractional.V2,
) -> Snapshot:
    """Return the snapshot at seq 1 with these flags and evaluators, all of the shared source."""
    ops = [
        Op(Target.EVALUATOR, SHARED, FlagKey(key), Seq(0), Action.PUT, encode_evaluator(rule))
        for key, rule in (evaluators or {}).items()
    ]
    ops += [
        Op(Target.FLAG, SHARED, FlagKey(key), Seq(0), Action.PUT, encode_flag(definition))
        for key, definition in flags.items()
    ]
    return Snapshot.empty(generation).fold(Seq(1), ops)
