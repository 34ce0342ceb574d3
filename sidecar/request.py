"""What a request asks besides its flag and its context: a part of the flags, one version, and what its headers add.

Pure. Sources: flagd's docs, "Selectors" and "Context"; W3C Baggage, "Baggage HTTP Header Format"; docs/pins.md.
"""

import csv
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import unquote

from flaghoist.document import JsonValue
from flaghoist.selector import EVERYTHING, BadSelector, Selector
from flaghoist.values import Seq

SELECTOR_HEADER: Final = "flagd-selector"
PIN_HEADER: Final = "flaghoist-seq"  # of a request; the answer's header of this name says what was answered from
BAGGAGE_HEADER: Final = "baggage"
BAGGAGE_KEY: Final = "flaghoist.seq"

# What the specification makes every platform carry ("Limits", 8192 bytes) and its grammar allows (180 list members).
BAGGAGE_CHARS_MAX: Final = 8192
BAGGAGE_MEMBERS_MAX: Final = 180

# Names of sources and variants are shorter; each view that is kept remembers some selectors.
SELECTOR_CHARS_MAX: Final = 512
# Callers choose selectors; those of the few providers of one pod are parsed once.
SELECTORS_KEPT: Final = 64

_OWS: Final = " \t"
_SEQ: Final = re.compile(r"[1-9][0-9]{0,18}\Z")
_BAGGAGE_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*\Z")
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+\Z")  # RFC 9110 token, in lower case

_NOTHING: Final[Mapping[str, JsonValue]] = {}


# Name, in lower case as HTTP/2 and ASGI give it, and value.
Headers: TypeAlias = Sequence[tuple[str, str | bytes]] | Sequence[tuple[bytes, bytes]]


class PinMiss(StrEnum):
    """Why a pinned call was answered from the newest version instead."""

    NOT_YET = "not-yet"
    TOO_OLD = "too-old"
    MIN_PIN = "min-pin"
    MALFORMED = "malformed"


class Asked:
    """What one request asks.

    Attributes:
        selector: the part of the flags.
        pin: the version; None: the newest; a PinMiss: a pin that cannot be read.
        simple: all flags, in the newest version.
    """

    __slots__ = ("_added", "pin", "selector", "simple")

    def __init__(self, selector: Selector, pin: Seq | PinMiss | None, added: Mapping[str, JsonValue]) -> None:
        self.selector = selector
        self.pin = pin
        self.simple = pin is None and selector == EVERYTHING
        self._added = added

    def context(self, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the context in which flags are evaluated: what headers and settings add wins over what was given."""
        return {**given, **self._added} if self._added else given


class RequestReader:
    """Reads requests under one configuration; costs a look at each header's name where a request asks nothing special.

    Args:
        static_context: added to every context, over what a request gives.
        header_context: header name in lower case → context key, over both; of a header that is sent more than once
            the first value counts, and an empty one does not, as in flagd.
    """

    def __init__(
        self,
        *,
        static_context: Mapping[str, JsonValue] = _NOTHING,
        header_context: Mapping[str, str] | None = None,
    ) -> None:
        self._static = dict(static_context)
        self._keys = dict(header_context or {})
        # What a header's value must hold to count; baggage of others, which tracing puts into every call, does not.
        marks = {BAGGAGE_HEADER: BAGGAGE_KEY, SELECTOR_HEADER: "", PIN_HEADER: "", **dict.fromkeys(self._keys, "")}
        self._marks: dict[str | bytes, str | bytes] = {}
        for name, mark in marks.items():
            self._marks[name] = mark
            self._marks[name.encode()] = mark.encode()
        self._selectors: dict[str, Selector] = {}
        self._plain = Asked(EVERYTHING, None, self._static)

    def read(self, headers: Headers) -> Asked:
        """Return what a request asks.

        Args:
            headers: untrusted.

        Raises:
            BadSelector: the selector has an unknown key. A pin that cannot be read is no error: see Asked.pin.
        """
        marks = self._marks
        for name, value in headers:
            mark = marks.get(name)
            if mark is not None and mark in value:  # type: ignore[operator]  # both are str, or both bytes
                return self._asked([(_text(name), _text(value)) for name, value in headers if name in marks])
        return self._plain

    def selector(self, headers: Headers) -> Selector:
        """Return the part of the flags that a request asks for, where nothing else counts.

        Raises:
            BadSelector: it has an unknown key.
        """
        for name, value in headers:
            if name in _SELECTOR_NAMES:
                return self._parsed(_text(value))
        return EVERYTHING

    def _asked(self, found: list[tuple[str, str]]) -> Asked:
        first = dict(reversed(found))
        selector = self._parsed(first[SELECTOR_HEADER]) if SELECTOR_HEADER in first else EVERYTHING
        pins = [value for name, value in found if name == PIN_HEADER]
        # The header is written for us alone, baggage by whoever wants: so the header wins.
        pin = _pin(pins) if pins else _pin_in_baggage([value for name, value in found if name == BAGGAGE_HEADER])
        added = {key: first[name] for name, key in self._keys.items() if first.get(name)}
        if pin is None and selector == EVERYTHING and not added:
            return self._plain
        return Asked(selector, pin, {**self._static, **added})

    def _parsed(self, text: str) -> Selector:
        selector = self._selectors.get(text)
        if selector is None:
            if len(text) > SELECTOR_CHARS_MAX:
                raise BadSelector(f"selector: want at most {SELECTOR_CHARS_MAX} characters, got {len(text)}")
            selector = Selector.parse(text)
            if len(self._selectors) >= SELECTORS_KEPT:
                self._selectors.clear()
            self._selectors[text] = selector
        return selector


_SELECTOR_NAMES: Final[frozenset[str | bytes]] = frozenset((SELECTOR_HEADER, SELECTOR_HEADER.encode()))


def _text(value: str | bytes) -> str:
    # As grpcio decodes metadata: what is not UTF-8 can match nothing, and must not fail a call.
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _pin(texts: list[str]) -> Seq | PinMiss:
    """Return the one seq that these texts say, MALFORMED when they say none or several."""
    said = {text.strip(_OWS) for text in texts}
    text = said.pop()
    if said or _SEQ.match(text) is None or int(text) >= 2**63:
        return PinMiss.MALFORMED
    return Seq(int(text))


def _pin_in_baggage(values: list[str]) -> Seq | PinMiss | None:
    """Return the pin among the members of a baggage header, sent once or in parts; None when there is none.

    Only our own members are judged: what others wrote beside them is theirs.
    """
    baggage = ",".join(values)
    if BAGGAGE_KEY not in baggage:
        return None
    if len(baggage) > BAGGAGE_CHARS_MAX:
        return PinMiss.MALFORMED
    members = baggage.split(",")
    if len(members) > BAGGAGE_MEMBERS_MAX:
        return PinMiss.MALFORMED
    said = []
    for member in members:
        entry = member.partition(";")[0]  # what follows are properties, opaque
        key, separator, value = entry.partition("=")
        if key.strip(_OWS) == BAGGAGE_KEY:
            value = value.strip(_OWS)
            if not separator or _BAGGAGE_VALUE.match(value) is None:
                return PinMiss.MALFORMED
            said.append(unquote(value))
    return _pin(said) if said else None


def static_context_from(text: str) -> dict[str, JsonValue]:
    """Return the context that `key=value,…` describes, as flagd's `--context-value`: every value is text.

    Raises:
        ValueError: it cannot; the text says what was expected.
    """
    context: dict[str, JsonValue] = {}
    for key, value in _pairs(text, "KEY=VALUE"):
        _check_context_key(key, taken=context)
        context[key] = value
    return context


def header_context_from(text: str) -> dict[str, str]:
    """Return header name, in lower case, → context key, of `Header=key,…`, as flagd's `--context-from-header`.

    Raises:
        ValueError: it cannot; the text says what was expected.
    """
    keys: dict[str, str] = {}
    for header, key in _pairs(text, "HEADER=KEY"):
        name = header.lower()
        if _HEADER_NAME.match(name) is None:
            raise ValueError(f"want the name of a header, got {header!r}")
        if name.endswith("-bin"):
            raise ValueError(f"want a header of text, got {header!r}: gRPC's -bin headers are bytes")
        if name in keys:
            raise ValueError(f"want each header once, got {header!r} twice")
        _check_context_key(key, taken=keys.values())
        keys[name] = key
    return keys


def _check_context_key(key: str, *, taken: Container[str]) -> None:
    if not key:
        raise ValueError("want a context key, got nothing")
    if key == "$flagd":
        raise ValueError("want another context key than $flagd: what it holds is Flaghoist's own")
    if key in taken:
        raise ValueError(f"want each context key once, got {key!r} twice")


def _pairs(text: str, wanted: str) -> Iterator[tuple[str, str]]:
    # One line of CSV, as flagd reads it: a pair with a comma inside stands in double quotes.
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"want {wanted}, more of them after commas, on one line: {error}") from None
    for field in fields:
        left, separator, right = field.partition("=")
        if not separator:
            raise ValueError(f"want {wanted}, more of them after commas, got {field!r}")
        yield left.strip(), right
