"""How much a benchmark does: enough for a figure, or just enough to see that it still works."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    """How often and how long to measure.

    Attributes:
        rounds: how often each compared thing is measured, in turns.
        load_s: seconds of load a round.
        loop_s: seconds of an in-process loop a round.
        changes: changes that are followed from the publisher to a client.
        flags: flags of a large ledger.
        entries: entries of the ledger that is replayed.
        starts: starts of a sidecar of each kind.
        idle_s: seconds for which an idle sidecar is watched.
        sidecars: sidecars of a fleet.
        switches: switches of a release over the fleet, of each kind.
    """

    rounds: int
    load_s: float
    loop_s: float
    changes: int
    flags: int
    entries: int
    starts: int
    idle_s: float
    sidecars: int
    switches: int


FULL: Final = Scale(
    rounds=5,
    load_s=1.2,
    loop_s=0.1,
    changes=200,
    flags=10_000,
    entries=2_000,
    starts=4,
    idle_s=20.0,
    sidecars=50,
    switches=10,
)
QUICK: Final = Scale(
    rounds=1, load_s=0.2, loop_s=0.01, changes=3, flags=300, entries=60, starts=1, idle_s=1.0, sidecars=3, switches=1
)
