"""What the sidecar tells people; the part that the publisher's service shares is flaghoist.log.report."""

import traceback
from collections import Counter

import structlog

from flaghoist.log.report import LINES_A_WINDOW, BoundedReport, configure

__all__ = ["LINES_A_WINDOW", "BoundedReport", "BugReport", "configure"]


class BugReport:
    """Writes bugs that calls run into: type and place, never the text, which may quote a caller's context.

    Of each bug the 1st, 2nd, 4th, 8th … time is written: a hot one must not fill the disk.
    """

    def __init__(self, logger: structlog.typing.FilteringBoundLogger, event: str, **facts: object) -> None:
        self._logger = logger
        self._event = event
        self._facts = facts
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, error: BaseException, **facts: object) -> None:
        """Count one bug, and write it when its count is a power of two."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        bug = (type(error).__name__, f"{last.filename}:{last.lineno}")
        self._counts[bug] += 1
        count = self._counts[bug]
        if count & (count - 1) == 0:
            self._logger.error(self._event, **self._facts, **facts, error=bug[0], at=bug[1], count=count)
