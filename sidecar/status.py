"""What those who run a sidecar may ask of its verifier: written by the followers, read at each scrape."""

from collections import Counter
from dataclasses import dataclass, field

from flaghoist.ledger import Ledger


@dataclass
class Status:
    """Counts since the start, and the newest of what can only be seen while it happens.

    Attributes:
        tally: records of the ledger, by what the verifier made of them.
        beats: records of the heartbeats' stream, by what was made of them.
        ledger: the verifier; None until it is known where the ledger begins.
        refused_by_floor: the ledger holds another entry than the configuration names.
        lag_entries: entries that the newest heartbeat tells of and that are not here.
        clock_offset_s: the newest heartbeat's issue less this pod's clock, when it came; beyond what delivery takes,
            one of the two clocks is wrong. None before the first.
        clock_behind_s: how far this pod's clock is behind that heartbeat; 0 while within the tolerance.
        clock_set_back_s: how far this pod's clock was set back since the start, at the newest look.
        clients_renewed: how often all clients were made anew since heartbeats had stopped.
    """

    tally: Counter[str] = field(default_factory=Counter)
    beats: Counter[str] = field(default_factory=Counter)
    ledger: Ledger | None = None
    refused_by_floor: bool = False
    lag_entries: int = 0
    clock_offset_s: float | None = None
    clock_behind_s: float = 0.0
    clock_set_back_s: float = 0.0
    clients_renewed: int = 0
