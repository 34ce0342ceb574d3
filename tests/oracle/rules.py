"""Random rules and contexts, the same for the same seed.

Rules are what people write, and what they write by mistake: operands of the right types most of the time, of any type
some of the time. They always compile: what the compiler refuses is tested by hand.
"""

import random
from typing import Any

TEXTS = [
    "",
    "a",
    "on",
    "off",
    "ada@example.org",
    "grace@example.org",
    "@example.org",
    "CH",
    "pro",
    "1",
    "1.0",
    "05",
    "x y",
]
VERSIONS = [
    "1.2.3",
    "v1.2.3",
    "V2",
    "1.2",
    "1.2.3-rc.1",
    "1.2.3-rc.2",
    "1.2.3-alpha",
    "1.2.3+build",
    "10.0.0",
    "1",
    "nope",
]
NUMBERS = [0, 1, -1, 2, 5, 18, 42, 0.5, -2.5, 1e6, 100]
KEYS = ["email", "plan", "country", "age", "score", "beta", "version", "tags", "scores", "users", "address", "nothing"]
PATHS = [
    *KEYS,
    "targetingKey",
    "$flagd.flagKey",
    "address.city",
    "address.zip",
    "users.0.name",
    "tags.1",
    "tags.9",
    "a.b",
]
VARIANTS = ["on", "off", "a", "b"]


class RuleMaker:
    """Rules of one seed. `depth` bounds how deeply operators nest."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def context(self) -> dict[str, Any]:
        pick = self.random.choice
        full = {
            "targetingKey": pick(["user-1", "user-2", "user-3", "ü-4"]),
            "email": pick(TEXTS),
            "plan": pick(["pro", "free", "", None]),
            "country": pick(["CH", "AT", "DE"]),
            "age": pick([*NUMBERS, "18", "x", None]),
            "score": pick(NUMBERS),
            "beta": pick([True, False, None, "true"]),
            "version": pick([*VERSIONS, 1, 1.5, None]),
            "tags": self.random.sample(["a", "b", "on", "x", "pro"], self.random.randrange(4)),
            "scores": [pick(NUMBERS) for _ in range(self.random.randrange(4))],
            "users": [{"name": pick(["ada", "grace"]), "age": pick(NUMBERS)} for _ in range(self.random.randrange(3))],
            "address": pick([{"city": "Bern", "zip": pick([3000, "3000"])}, {}, None]),
        }
        return {key: value for key, value in full.items() if self.random.random() < 0.85}

    def rule(self) -> dict[str, Any]:
        """A whole rule: mostly `if` with variants in its branches."""
        if self.random.random() < 0.6:
            return self._if(4)
        rule: dict[str, Any] = self._operator(4)
        return rule

    def _if(self, depth: int) -> dict[str, Any]:
        branches: list[Any] = []
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            branches += [self.condition(depth - 1), self._outcome(depth - 1)]
        if self.random.random() < 0.9:
            branches.append(self._outcome(depth - 1))
        return {"if": branches}

    def _outcome(self, depth: int) -> Any:
        roll = self.random.random()
        if depth > 0 and roll < 0.15:
            return self._if(depth)
        if depth > 0 and roll < 0.3:
            return self._fractional(depth)
        return self.random.choice([*VARIANTS, None, True, False])

    def condition(self, depth: int, scope: str = "root") -> Any:
        """Something whose truth matters."""
        if depth <= 0:
            return self.value(0, scope)
        roll = self.random.random()
        if roll < 0.15:
            return {self.random.choice(["and", "or"]): [self.condition(depth - 1, scope) for _ in range(self._count())]}
        if roll < 0.22:
            return {self.random.choice(["!", "!!"]): [self.condition(depth - 1, scope)]}
        if roll < 0.45:
            operator = self.random.choice(["==", "==", "!=", "===", "!=="])
            return {operator: self._pair(depth - 1, scope)}
        if roll < 0.6:
            operator = self.random.choice(["<", "<=", ">", ">="])
            operands = self._pair(depth - 1, scope, numbers=True)
            if self.random.random() < 0.2:
                operands.append(self.number(depth - 1, scope))
            return {operator: operands}
        if roll < 0.72:
            return {
                self.random.choice(["starts_with", "ends_with"]): [self.text(depth - 1, scope), self._literal(TEXTS)]
            }
        if roll < 0.84:
            return {"in": [self.value(depth - 1, scope), self._haystack(depth - 1, scope)]}
        if roll < 0.9:
            relation = self.random.choice(["=", "!=", "<", "<=", ">", ">=", "^", "~"])
            return {"sem_ver": [{"var": "version"}, relation, self._literal(VERSIONS[:-1])]}
        if scope == "root" and roll < 0.97:
            return self._quantifier(depth)
        return self.value(depth - 1, scope)

    def value(self, depth: int, scope: str = "root") -> Any:
        roll = self.random.random()
        if roll < 0.45:
            return self.variable(scope)
        if roll < 0.6:
            return self.number(depth, scope)
        if roll < 0.8:
            return self.text(depth, scope)
        return self.random.choice([None, True, False, [], [1, "a"], *NUMBERS, *TEXTS])

    def number(self, depth: int, scope: str = "root") -> Any:
        roll = self.random.random()
        if depth <= 0 or roll < 0.5:
            return self.random.choice(NUMBERS)
        if roll < 0.65:
            return self.variable(scope, ["age", "score", "scores.0", "users.0.age"])
        if roll < 0.7:
            return self.variable(scope)
        if roll < 0.72 and scope == "root":
            return {self.random.choice(["min", "max"]): [{"var": "beta"}, self.random.choice([0, 1])]}
        if roll < 0.75 and scope == "root":
            return {"reduce": [{"var": "scores"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}
        operator = self.random.choice(["+", "-", "*", "/", "%", "min", "max"])
        count = 2 if operator in ("-", "/", "%") else self._count()
        return {operator: [self.number(depth - 1, scope) for _ in range(count)]}

    def text(self, depth: int, scope: str = "root") -> Any:
        roll = self.random.random()
        if depth <= 0 or roll < 0.3:
            return self.random.choice(TEXTS)
        if roll < 0.6:
            return self.variable(scope, ["email", "plan", "country", "targetingKey", "users.0.name", "address.city"])
        if roll < 0.7:
            return self.variable(scope)
        if roll < 0.85:
            return {"cat": [self.value(depth - 1, scope) for _ in range(self._count())]}
        rest = [self.random.choice([0, 1, 2, -1, -3])] if self.random.random() < 0.5 else []
        return {"substr": [self.text(depth - 1, scope), self.random.choice([0, 1, 2, -1, -2, -3]), *rest]}

    def variable(self, scope: str = "root", paths: list[str] = PATHS) -> Any:
        if scope == "element":
            return {"var": self.random.choice(["", "name", "age"])}
        path = self.random.choice(paths)
        form = self.random.random()
        if form < 0.75:
            return {"var": path}
        return {"var": [path]} if form < 0.85 else {"var": [path, self.random.choice([None, 0, "a", 5])]}

    def _pair(self, depth: int, scope: str, *, numbers: bool = False) -> list[Any]:
        one = self.number if numbers and self.random.random() < 0.8 else self.value
        pair = [self.variable(scope), one(depth, scope)]
        self.random.shuffle(pair)
        return pair

    def _haystack(self, depth: int, scope: str) -> Any:
        roll = self.random.random()
        if roll < 0.4:
            return [self.random.choice([*TEXTS, *NUMBERS]) for _ in range(self._count())]
        if roll < 0.6 and scope == "root":
            return {"var": self.random.choice(["tags", "scores"])}
        return self.text(depth, scope)

    def _quantifier(self, depth: int) -> Any:
        subject = {"var": self.random.choice(["tags", "scores", "users", "nothing"])}
        body = self.condition(min(depth - 1, 2), "element")
        roll = self.random.random()
        if roll < 0.7:
            return {self.random.choice(["all", "some", "none"]): [subject, body]}
        if roll < 0.8:
            return {self.random.choice(["filter", "map"]): [subject, body]}
        if roll < 0.9:
            return {"missing": self.random.sample(PATHS, 2)}
        return {"missing_some": [self.random.choice([1, 2]), self.random.sample(PATHS, 3)]}

    def _fractional(self, depth: int) -> Any:
        entries: list[Any] = [
            [v, self.random.choice([1, 10, 25, 50])] for v in VARIANTS[: self.random.choice([1, 2, 3, 4])]
        ]
        if self.random.random() < 0.2:
            entries[0] = [entries[0][0]]
        roll = self.random.random()
        if roll < 0.4:
            return {"fractional": entries}
        key = {"var": self.random.choice(["email", "country", "targetingKey"])}
        return {"fractional": [key if roll < 0.7 else {"cat": [{"var": "$flagd.flagKey"}, key]}, *entries]}

    def _operator(self, depth: int) -> Any:
        roll = self.random.random()
        if roll < 0.5:
            found = self.condition(depth)
            return found if isinstance(found, dict) else {"!!": [found]}
        if roll < 0.7:
            return self._fractional(depth)
        return {"cat": [self.value(depth - 1) if roll < 0.8 else self.number(2), ""]}

    def _literal(self, choices: list[Any]) -> Any:
        return self.random.choice(choices)

    def _count(self) -> int:
        return self.random.choice([1, 2, 2, 2, 3])
