"""A rule with every `$ref` written out: what travels to a reader that knows no evaluators, or resolves them by luck.

Only an object whose sole key is `$ref` is a reference, as in flagd; where it stands, the evaluator's rule stands after.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaghoist.document import JsonValue
from flaghoist.errors import Refused, TooLarge
from flaghoist.targeting.limits import REF_DEPTH_MAX


class TooDeep(Refused):
    """A rule that, written out, is nested deeper than its readers can parse."""

    code = "rule_too_deep"

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"rule, every $ref written out: want at most {limit} levels of JSON, got more")


class _Part(NamedTuple):
    value: Any
    levels: int  # of JSON objects and lists, itself included; 0: neither
    chars: int  # about as many as its JSON has


def written_out(rule: JsonValue, evaluators: Mapping[str, JsonValue], *, levels_max: int, chars_max: int) -> JsonValue:
    """Return `rule` with every `$ref` replaced. Parts are shared with the arguments: change nothing in it.

    A chain of `if`s, each in the last branch of the one before, becomes one `if` when it would nest too deep otherwise:
    equal in every evaluator, and flatter.

    Args:
        rule: a rule that compiles with these evaluators.
        evaluators: at least those that it refers to, directly or through another.
        levels_max: levels of JSON objects and lists that the result may have.
        chars_max: about how many characters its JSON may have. A short rule that refers to a large evaluator many
            times is long when written out.

    Raises:
        TooDeep: more levels.
        TooLarge: more characters.
    """
    try:
        return _Writer(evaluators, levels_max, chars_max, flat=False).part(rule, 1).value  # type: ignore[no-any-return]
    except TooDeep:
        return _Writer(evaluators, levels_max, chars_max, flat=True).part(rule, 1).value  # type: ignore[no-any-return]


class _Writer:
    def __init__(self, evaluators: Mapping[str, JsonValue], levels_max: int, chars_max: int, *, flat: bool) -> None:
        self._evaluators = evaluators
        self._levels_max = levels_max
        self._chars_max = chars_max
        self._flat = flat
        self._written: dict[str, _Part] = {}

    def part(self, value: Any, level: int) -> _Part:
        """Write out what stands at `level` of the result; the outermost is 1."""
        if type(value) is dict:
            if len(value) == 1 and type(name := value.get("$ref")) is str:
                return self._referred(name, level)
            self._check(level)
            if self._flat and type(value.get("if")) is list and len(value) == 1:
                value = {"if": self._chain(value["if"])}
            found = {key: self.part(item, level + 1) for key, item in value.items()}
            names = sum(len(key) + 4 for key in found)
            return self._made({key: part.value for key, part in found.items()}, list(found.values()), names)
        if type(value) is list:
            self._check(level)
            parts = [self.part(item, level + 1) for item in value]
            return self._made([part.value for part in parts], parts, len(parts))
        return _Part(value, 0, len(value) + 2 if type(value) is str else 6)

    def _made(self, value: Any, parts: list[_Part], more: int) -> _Part:
        chars = 2 + more + sum(part.chars for part in parts)
        if chars > self._chars_max:
            raise TooLarge("rule, every $ref written out", limit=self._chars_max, got=chars, unit="characters")
        return _Part(value, 1 + max((part.levels for part in parts), default=0), chars)

    def _check(self, level: int) -> None:
        if level > self._levels_max:
            raise TooDeep(limit=self._levels_max)

    def _referred(self, name: str, level: int) -> _Part:
        part = self._written.get(name)
        if part is None:
            # Of a rule that compiles: no evaluator refers to itself, and few are inside one another.
            part = self._written[name] = self.part(self._evaluators[name], level)
        else:
            self._check(level + part.levels - 1)
        return part

    def _chain(self, branches: list[Any]) -> list[Any]:
        """Return the operands of one `if` that decides as this one and those in its last branch do."""
        flat: list[Any] = []
        while len(branches) % 2 == 1 and len(branches) > 1:
            last: Any = branches[-1]
            for _ in range(REF_DEPTH_MAX + 1):
                if not (type(last) is dict and len(last) == 1 and type(name := last.get("$ref")) is str):
                    break
                last = self._evaluators[name]
            if not (type(last) is dict and len(last) == 1 and type(last.get("if")) is list):
                break
            flat += branches[:-1]
            branches = last["if"]
        return [*flat, *branches]
