"""Patterns with `*` and `?` over names: `pay.*` is every name that starts with `pay.`.

`*` is any run of characters, none too; `?` is one. Everything else stands for itself; case counts. Ours, and not the
standard library's fnmatch, because every reader must match as the first one did, for ever.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from flaghoist.errors import Malformed

GLOB_CHARS_MAX: Final = 255  # a flag key's own limit
_OTHER_DIALECTS: Final = frozenset("[]{}!\\")


@dataclass(frozen=True, slots=True)
class Glob:
    """One pattern, compiled once."""

    pattern: str
    _regex: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises Malformed: empty, too long, or signs that other dialects give a meaning."""
        if not 0 < len(self.pattern) <= GLOB_CHARS_MAX:
            raise Malformed(f"want a pattern of 1 to {GLOB_CHARS_MAX} characters, got {len(self.pattern)}")
        if strange := sorted(_OTHER_DIALECTS & set(self.pattern)):
            raise Malformed(
                f"{self.pattern!r}: want a pattern with * and ? only, got {' '.join(strange)}; list several"
            )
        plain = "*" not in self.pattern and "?" not in self.pattern
        object.__setattr__(self, "_regex", None if plain else re.compile(_translated(self.pattern), re.DOTALL))

    def matches(self, name: str) -> bool:
        if self._regex is None:
            return name == self.pattern
        return self._regex.match(name) is not None


def _translated(pattern: str) -> str:
    """Return a regular expression that never goes back over what it has passed: each part between two stars is taken
    at its first place (an atomic group), which is enough, since what follows a star may start anywhere later."""
    first, *rest = (
        "".join("." if sign == "?" else re.escape(sign) for sign in part) for part in re.split(r"\*+", pattern)
    )
    if not rest:
        return rf"{first}\Z"
    *middle, last = rest
    return first + "".join(f"(?>.*?{part})" for part in middle) + rf".*{last}\Z"
