"""Points of time and of a ledger as auditors write them."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

import click

from flaghoist.values import Seq
from publisher.cli.times import days_ms

_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])\Z")
_AGO_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_SEQ_DIGITS_MAX: Final = 18
FORMS: Final = (
    "a date (2026-11-22), a time (2026-11-22T17:40Z; UTC unless it says otherwise) or a span back from now (7d)"
)


@dataclass(frozen=True, slots=True)
class Instant:
    """A time as it was written: absolute in Unix ms, or milliseconds before now; a whole day has both of its ends."""

    first_ms: int
    last_ms: int
    ago: bool = False

    def starts_ms(self, now_ms: int) -> int:
        """Return its beginning, Unix ms."""
        return now_ms - self.first_ms if self.ago else self.first_ms

    def ends_ms(self, now_ms: int) -> int:
        """Return its end, Unix ms: of a day, its last millisecond."""
        return now_ms - self.last_ms if self.ago else self.last_ms


def instant(text: str) -> Instant | None:
    """Return the time that a text names; None when it names none."""
    if match := _AGO.match(text):
        span = int(match[1]) * _AGO_MS[match[2]]
        return Instant(span, span, ago=True)
    try:
        if len(text) == len("2026-11-22"):
            day = date.fromisoformat(text)
            start = _ms(datetime(day.year, day.month, day.day, tzinfo=UTC))
            return Instant(start, start + days_ms(1) - 1)
        moment = datetime.fromisoformat(text)
        at_ms = _ms(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None
    return Instant(at_ms, at_ms)


class InstantType(click.ParamType[Instant]):
    """An option's value that is a time."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Instant:
        """Return the time."""
        if isinstance(value, Instant):
            return value
        found = instant(str(value).strip())
        if found is None:
            self.fail(f"want {FORMS}; got {value!r}", param, ctx)
        return found


class PlaceType(click.ParamType["Seq | Instant"]):
    """An option's value that is a seq or a time."""

    name = "seq or time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> "Seq | Instant":
        """Return the seq, or the time."""
        if isinstance(value, Seq | Instant):
            return value
        text = str(value).strip()
        if text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX:
            return Seq(int(text))
        found = instant(text)
        if found is None:
            self.fail(f"want a seq, {FORMS}; got {value!r}", param, ctx)
        return found


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def exactly(at_ms: int) -> str:
    """Return Unix milliseconds as people read them, to the millisecond: of moments a second says too little."""
    second = told(at_ms)
    return f"{second.removesuffix('Z')}.{at_ms % 1000:03d}Z" if second.endswith("Z") else second


def told(at_ms: int) -> str:
    """Return Unix milliseconds as people read them, UTC; a time past the year 9999 as a number."""
    try:
        return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
