"""A wall clock that never runs backwards while this process lives: what freshness is measured by.

Whoever sets a pod's clock back must not make an old proof count for longer. Forward steps are followed: they can only
make a proof run out sooner.
"""

import time
from collections.abc import Callable


class SteadyClock:
    """Unix seconds, by the wall clock where that moves ahead, and by the monotonic one where it does not.

    Args:
        wall: Unix seconds; may be set at any time, by anybody who may set clocks.
        monotonic: seconds from anywhere, never less than before.
    """

    __slots__ = ("_ahead_s", "_monotonic", "_wall")

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead_s = wall() - monotonic()

    def __call__(self) -> float:
        """Return Unix seconds, never less than what was returned before."""
        ahead_s = self._wall() - self._monotonic()
        if ahead_s > self._ahead_s:
            self._ahead_s = ahead_s
        return self._monotonic() + self._ahead_s

    @property
    def now_ms(self) -> int:
        """Unix milliseconds, never less than what was returned before."""
        return int(self() * 1000)

    @property
    def set_back_s(self) -> float:
        """How far the wall clock is behind this one: by how much it was set back since it was furthest ahead."""
        return max(0.0, self() - self._wall())
