"""What those who run a sidecar may ask of its verifier: written by the followers, read at each scrape."""

from collections import Counter
from dataclasses import dataclass, field

from flaghoist.ledger import Ledger
from sidecar.clock_offset import ClockOffset
from sidecar.divergence import Divergence
from sidecar.progress import Progress


@dataclass
class Status:
    """Counts since the start, and the newest of what can only be seen while it happens.

    Attributes:
        tally: records of the ledger, by what the verifier made of them.
        beats: records of the heartbeats' stream, by what was made of them.
        ledger: the verifier; None until it is known where the ledger begins.
        refused_by_floor: the ledger holds another entry than the configuration names.
        lag_entries: entries that the newest heartbeat tells of and that are not here.
        clock_offset: how far this pod's clock and the publisher's are apart.
        clock_behind_s: how far this pod's clock is behind that heartbeat; 0 while within the tolerance.
        clock_set_back_s: how far this pod's clock was set back since the start, at the newest look.
        clients_renewed: how often all clients were made anew since heartbeats had stopped.
        progress: how far this pod has come; None as long as `ledger` is.
        divergence: whether its state is the publisher's; None as long as `ledger` is.
        acks_written: acknowledgements that the ledger's log has taken.
        acks_failed: times that it has not.
        acked_at_s: when it last took one (Unix seconds); None before the first.
    """

    tally: Counter[str] = field(default_factory=Counter)
    beats: Counter[str] = field(default_factory=Counter)
    ledger: Ledger | None = None
    refused_by_floor: bool = False
    lag_entries: int = 0
    clock_offset: ClockOffset = field(default_factory=ClockOffset)
    clock_behind_s: float = 0.0
    clock_set_back_s: float = 0.0
    clients_renewed: int = 0
    progress: Progress | None = None
    divergence: Divergence | None = None
    acks_written: int = 0
    acks_failed: int = 0
    acked_at_s: float | None = None

    @property
    def clock_offset_s(self) -> float | None:
        """The publisher's clock less this pod's, in seconds; None before the first record that tells something."""
        offset_ms = self.clock_offset.ms
        return None if offset_ms is None else offset_ms / 1000
