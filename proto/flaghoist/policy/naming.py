"""Regular expressions for flag names, matched in linear time.

A policy's author writes them and every proposer's names run through them, so no expression may take long on any name.
Python's `re` goes back and tries again, which some expressions turn into years; here the states of an automaton are
walked side by side (Thompson's construction): at most STATES_MAX steps a character.

The whole name must match. Understood: literals, `.`, classes `[a-z0-9_]` and `[^...]`, `\\d`, `\\w`, an escaped sign,
`( )`, `|`, `*`, `+`, `?`, `{n}`, `{n,}` and `{n,m}`. Letters are ASCII, as flag keys are.
"""

import string
from dataclasses import dataclass, field
from typing import Final, Never

from flaghoist.errors import Malformed

EXPRESSION_CHARS_MAX: Final = 200
STATES_MAX: Final = 2000  # `[a-z]{1,255}` takes 510
REPEAT_MAX: Final = 255  # no name is longer
DEPTH_MAX: Final = 20

_ALPHABET: Final = frozenset(map(chr, range(32, 127)))
_DIGITS: Final = frozenset(string.digits)
_WORD: Final = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES: Final = {"d": _DIGITS, "w": _WORD}
_SPECIAL: Final = frozenset("\\^$.|?*+()[]{}")

# A part of the expression: ("chars", set), ("then", parts), ("or", parts), ("repeat", part, least, most or None).
_Part = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class NamePattern:
    """One expression, compiled once."""

    expression: str
    _chars: tuple[frozenset[str] | None, ...] = field(init=False, repr=False, compare=False)
    _next: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises Malformed: too long, too large, or not understood; the text says where."""
        if not 0 < len(self.expression) <= EXPRESSION_CHARS_MAX:
            raise Malformed(f"want an expression of 1 to {EXPRESSION_CHARS_MAX} characters, got {len(self.expression)}")
        automaton = _Automaton()
        start = automaton.built(_Parser(self.expression).whole(), automaton.accepting)
        object.__setattr__(self, "_chars", tuple(automaton.chars))
        # The first state only leads on, so that a walk starts there.
        object.__setattr__(self, "_next", (*map(tuple, automaton.next), (start,)))

    def matches(self, name: str) -> bool:
        """Say whether the whole name is one that the expression describes."""
        states = self._reached([len(self._next) - 1])
        for sign in name:
            reading = [state for state in states if (chars := self._chars[state]) and sign in chars]
            states = self._reached([following for state in reading for following in self._next[state]])
            if not states:
                return False
        return 0 in states

    def _reached(self, states: list[int]) -> set[int]:
        """The states that wait for a character, or accept, on the way from these."""
        found: set[int] = set()
        seen: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            if state == 0 or (state < len(self._chars) and self._chars[state] is not None):
                found.add(state)
            else:
                waiting.extend(self._next[state])
        return found


class _Automaton:
    """States by number: `chars` of one that reads a character, None for one that leads on; 0 accepts."""

    accepting: Final = 0

    def __init__(self) -> None:
        self.chars: list[frozenset[str] | None] = [None]
        self.next: list[list[int]] = [[]]
        self._built = 0

    def built(self, part: _Part, then: int) -> int:
        """Return the state from which `part` leads to `then`."""
        self._built += 1
        if self._built > STATES_MAX:  # parts that make no state, as an empty group, repeat too
            _too_large()
        match part:
            case ("chars", frozenset() as chars):
                return self._state(chars, [then])
            case ("then", list() as parts):
                for inner in reversed(parts):
                    then = self.built(inner, then)
                return then
            case ("or", list() as parts):
                return self._state(None, [self.built(inner, then) for inner in parts])
            case ("repeat", tuple() as inner, int() as least, most):
                return self._repeated(inner, least, most if isinstance(most, int) else None, then)
            case _:
                raise AssertionError(part)

    def _repeated(self, inner: _Part, least: int, most: int | None, then: int) -> int:
        if most is None:
            loop = self._state(None, [then])
            self.next[loop].append(self.built(inner, loop))
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._state(None, [self.built(inner, then), end])
        for _ in range(least):
            then = self.built(inner, then)
        return then

    def _state(self, chars: frozenset[str] | None, then: list[int]) -> int:
        if len(self.chars) >= STATES_MAX:
            _too_large()
        self.chars.append(chars)
        self.next.append(then)
        return len(self.chars) - 1


def _too_large() -> Never:
    raise Malformed(f"want an expression of at most {STATES_MAX} states, its repetitions make more")


class _Parser:
    """Reads an expression from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> _Part:
        part = self._either(0)
        if self._at < len(self._text):
            self._refuse("want ( before this )")
        return part

    def _refuse(self, message: str) -> Never:
        raise Malformed(f"expression {self._text!r}: at character {self._at + 1}: {message}")

    @property
    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        sign = self._here
        if not sign:
            self._refuse("want more, the expression ends here")
        self._at += 1
        return sign

    def _either(self, depth: int) -> _Part:
        if depth > DEPTH_MAX:
            self._refuse(f"want at most {DEPTH_MAX} groups in one another")
        parts = [self._sequence(depth)]
        while self._here == "|":
            self._at += 1
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else ("or", parts)

    def _sequence(self, depth: int) -> _Part:
        parts: list[_Part] = []
        while self._here not in ("", "|", ")"):
            parts.append(self._repeat(self._atom(depth)))
        return ("then", parts)

    def _repeat(self, atom: _Part) -> _Part:
        least, most = 1, 1
        match self._here:
            case "*":
                least, endless = 0, True
            case "+":
                least, endless = 1, True
            case "?":
                least, endless = 0, False
            case "{":
                return self._no_second(("repeat", atom, *self._counts()))
            case _:
                return atom
        self._at += 1
        return self._no_second(("repeat", atom, least, None if endless else most))

    def _no_second(self, part: _Part) -> _Part:
        if self._here and self._here in "*+?{":
            self._refuse("want one repetition of a part, got another (lazy and possessive ones mean nothing here)")
        return part

    def _counts(self) -> tuple[int, int | None]:
        end = self._text.find("}", self._at)
        inside = self._text[self._at + 1 : end] if end > 0 else ""
        low, comma, high = inside.partition(",")
        if not (low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))):
            self._refuse("want {n}, {n,} or {n,m}")
        least = int(low)
        most = least if not comma else int(high) if high else None
        if least > REPEAT_MAX or (most is not None and not least <= most <= REPEAT_MAX):
            self._refuse(f"want counts in order, of at most {REPEAT_MAX}")
        self._at = end + 1
        return least, most

    def _atom(self, depth: int) -> _Part:
        sign = self._take()
        match sign:
            case "(":
                if self._here == "?":
                    self._refuse("want a plain group; (?...) is not understood")
                part = self._either(depth + 1)
                if self._here != ")":
                    self._refuse("want ) here")
                self._at += 1
                return part
            case "[":
                return ("chars", self._class())
            case ".":
                return ("chars", _ALPHABET)
            case "\\":
                return ("chars", self._escaped())
            case "^" | "$":
                self._at -= 1
                self._refuse(f"want no {sign}: the whole name must match anyway")
            case "*" | "+" | "?" | "{" | "}" | "]":
                self._at -= 1
                self._refuse(f"want something before {sign}, or \\{sign}")
            case _ if sign not in _ALPHABET:
                self._at -= 1
                self._refuse(f"want printable ASCII, got {sign!r}")
        return ("chars", frozenset(sign))

    def _escaped(self) -> frozenset[str]:
        sign = self._take()
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign.isalnum() or sign not in _ALPHABET:
            self._at -= 1
            self._refuse(f"\\{sign} is not understood; want \\d, \\w, or an escaped sign")
        return frozenset(sign)

    def _class(self) -> frozenset[str]:
        negated = self._here == "^"
        self._at += negated
        found: set[str] = set()
        while (sign := self._take()) != "]":
            low = self._escaped() if sign == "\\" else frozenset(sign)
            if self._here == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._escaped() if (end := self._take()) == "\\" else frozenset(end)
                if len(low) != 1 or len(high) != 1 or min(low) > min(high):
                    self._refuse("want a range from a smaller to a larger character")
                found |= {chr(code) for code in range(ord(min(low)), ord(min(high)) + 1)}
            else:
                found |= low
        if not found:
            self._refuse("want at least one character in [ ]")
        if not found <= _ALPHABET:
            self._refuse("want printable ASCII in [ ]")
        return _ALPHABET - found if negated else frozenset(found)
