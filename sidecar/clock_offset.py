"""How far the publisher's clock and this pod's are apart, as far as the times on records tell. Pure."""

from collections import deque
from typing import Final

# What an idle log takes to deliver a record is some milliseconds, and clocks under NTP are as close in one data center:
# beyond this one of the two is wrong, and a moment that was set would be seen to come at two times.
SKEW_MS: Final = 250
# A record that was held up makes our clock look ahead. Three heartbeats in a row are not.
_BEST_OF: Final = 3


class ClockOffset:
    """The publisher's clock less this one's, by the best of the last few records.

    Delivery only ever makes the difference look smaller than it is, so the largest one is the best.
    """

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=_BEST_OF)

    @property
    def ms(self) -> int | None:
        """The difference in milliseconds; None before the first record that tells something."""
        return max(self._last, default=None)

    @property
    def skewed(self) -> bool:
        """Whether it is more than delivery and well-kept clocks explain."""
        return self.ms is not None and abs(self.ms) > SKEW_MS

    def note(self, sent_ms: int, *, now_ms: int, live: bool) -> None:
        """Take note of a record's time (Unix ms).

        Args:
            sent_ms: when it was made, by the publisher's clock.
            now_ms: this pod's clock.
            live: it came as it was written. One that was read later tells nothing, but by a time that is still to come.
        """
        if live or sent_ms > now_ms:
            self._last.append(sent_ms - now_ms)
