"""The people of one ledger, and its clock: the same in every process, made from the ledger's name."""

import time
from dataclasses import dataclass
from functools import cache

from tests.forge import BEAT_LABEL, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key

PUBLISHER_KEY = Key(PUBLISHER)
BEAT_KEY = Key(PUBLISHER, BEAT_LABEL)
EMERGENCY_PEOPLE = (GRACE, LINUS)


@cache
def forge_of(log_id: str) -> Forge:
    """Return the people with their first root; heartbeats and emergencies are allowed."""
    return Forge(log_id, root_options={"emergency": EMERGENCY_PEOPLE, "beats": True, "root_threshold": 2})


@dataclass(frozen=True)
class SharedClock:
    """Wall clock of every process of one ledger: goes on from a fixed day, so that no calendar ends the test."""

    zero_ns: int

    def now_ms(self) -> int:
        return NOW_MS + (time.monotonic_ns() - self.zero_ns) // 1_000_000
