"""Which of several publishers is at work: when one stands by, takes over, or has been fenced. Pure; time is given.

The epoch in the ledger decides (docs/decisions/0001-epoch-claims-are-the-lease.md), whatever is believed here: a wrong
guess costs a change of hands, never a second history. Times are seconds of a clock that only goes forward.
"""

from enum import StrEnum
from typing import Final

# How long the publisher at work must be silent before another takes its place: three heartbeats of five seconds were
# lost, and a fourth is late. Shorter than a heartbeat counts (30 s): sidecars stay fresh through a take-over.
TAKE_OVER_S: Final = 20.0


class Turn(StrEnum):
    """What a publisher does now."""

    WORK = "work"
    STAND_BY = "stand by"
    TAKE_OVER = "take over"
    FENCED = "fenced"  # told once; from then on it stands by


class Duty:
    """What one publisher knows of who is at work.

    Attributes:
        working: whether it was its own turn when it last looked.

    Args:
        sees_life: the environment has heartbeats, so that the silence of whoever is at work can be heard.
        told: take over at once, whoever is at work.
        take_over_s: how long a silence means that nobody is.
    """

    def __init__(self, *, sees_life: bool, told: bool = False, take_over_s: float = TAKE_OVER_S) -> None:
        self.working = False
        self._sees_life = sees_life
        self._told = told
        self._take_over_s = take_over_s
        # Since when nothing was heard; None while it cannot be heard.
        self._silent_since_s: float | None = None
        self._somebody = False
        self._fenced = False

    @property
    def sees_life(self) -> bool:
        return self._sees_life

    def notice_life(self, sees_life: bool) -> None:
        """Take note of whether there are heartbeats under the root that is in force now."""
        self._sees_life = sees_life

    def hear(self, now_s: float) -> None:
        """A heartbeat of another publisher came, one that was never heard before."""
        self._somebody = True
        self._silent_since_s = now_s

    def hear_farewell(self, now_s: float) -> None:
        """Whoever was at work has said that it leaves: nothing is to be waited for."""
        self._somebody = False
        self._silent_since_s = now_s

    def lose_hearing(self) -> None:
        """The stream of heartbeats is away: whoever is at work cannot be heard either."""
        self._silent_since_s = None

    def hear_all(self, now_s: float) -> None:
        """Every heartbeat that there is has been read."""
        if self._silent_since_s is None:
            self._silent_since_s = now_s

    def lose_race(self, now_s: float) -> None:
        """Somebody else was quicker, so somebody is at work."""
        self._told = False
        self.hear(now_s)

    def takes_over_in_s(self, now_s: float) -> float | None:
        """Return how long the silence must still last; None when no silence would mean anything."""
        if self.working or not self._sees_life or self._silent_since_s is None:
            return None
        return max(0.0, self._silent_since_s + self._take_over_s - now_s)

    def look(self, *, holds_epoch: bool, now_s: float) -> Turn:
        """Return whose turn it is, after the ledger was read to its end.

        Args:
            holds_epoch: the ledger's epoch is this publisher's own.
        """
        if holds_epoch:
            self.working, self._told, self._fenced = True, False, False
            return Turn.WORK
        if self.working:
            self.working, self._fenced = False, True
            self.hear(now_s)
            return Turn.FENCED
        if self._told:
            return Turn.TAKE_OVER
        if not self._sees_life:
            # Nobody can be heard. Whoever starts believes that it was started because it is wanted; whoever was fenced
            # knows that another one is.
            return Turn.STAND_BY if self._fenced or self._somebody else Turn.TAKE_OVER
        left_s = self.takes_over_in_s(now_s)
        if left_s is None:
            return Turn.STAND_BY
        return Turn.TAKE_OVER if not self._somebody or left_s == 0 else Turn.STAND_BY
