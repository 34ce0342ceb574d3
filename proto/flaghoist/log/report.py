"""What a long-running process tells people: JSON lines on stderr, and never a line a record without a bound."""

import logging
import sys
from collections.abc import Callable
from typing import Final

import structlog

# A flood of junk must not fill the disk: of each kind so many lines a window, then one line that counts the rest.
LINES_A_WINDOW: Final = 5
WINDOW_S: Final = 60.0


def configure(level: str) -> None:
    """Write events of at least this level to stderr, one JSON object a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


class BoundedReport:
    """Writes events of a kind that others can cause at will, so many a window; the rest is counted.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, logger: structlog.typing.FilteringBoundLogger, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def warning(self, event: str, *, code: str, **facts: object) -> None:
        """Write one event, or count it. `code` comes from a closed set (errors.py), never from the input."""
        kind = f"{event}/{code}"
        started_s, count = self._windows.get(kind, (self._clock(), 0))
        if self._clock() - started_s >= WINDOW_S:
            if count > LINES_A_WINDOW:
                more = count - LINES_A_WINDOW
                self._logger.warning("events.suppressed", of=event, code=code, count=more, window_s=WINDOW_S)
            started_s, count = self._clock(), 0
        self._windows[kind] = (started_s, count + 1)
        if count < LINES_A_WINDOW:
            self._logger.warning(event, code=code, **facts)
