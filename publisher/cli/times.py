"""Times as operators write and read them."""

import re
from datetime import UTC, datetime
from typing import Final

import click

_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])\Z")
# A proposal that waits longer has lost its context; the clock of an approver should not decide years ahead.
SPAN_DAYS_MAX: Final = 90


def days_ms(days: int) -> int:
    """Return days in milliseconds."""
    return days * _UNITS_MS["d"]


class Span(click.ParamType[int]):
    """An option's value such as 30m, 12h, 7d or 2w, at most SPAN_DAYS_MAX days; in milliseconds."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the milliseconds."""
        if isinstance(value, int):
            return value
        match = _SPAN.match(str(value))
        span_ms = int(match[1]) * _UNITS_MS[match[2]] if match else 0
        if not 0 < span_ms <= days_ms(SPAN_DAYS_MAX):
            self.fail(f"want a span such as 30m, 12h, 7d or 2w, at most {SPAN_DAYS_MAX}d; got {value!r}", param, ctx)
        return span_ms


def moment(at_ms: int) -> str:
    """Return Unix milliseconds as people read them, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def age(ms: int) -> str:
    """Return a span as people read it: its largest unit."""
    for unit in ("d", "h", "m"):
        if ms >= _UNITS_MS[unit]:
            return f"{ms // _UNITS_MS[unit]}{unit}"
    return f"{max(ms, 0) // 1000}s"
