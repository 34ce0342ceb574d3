"""Metrics, read from the sidecar's own objects when they are scraped: answering a call touches no metric."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from flaghoist import __version__
from sidecar.alarms import overdue
from sidecar.board import Board, VerifierState
from sidecar.faces.events import EventStreams
from sidecar.faces.sync import Sync
from sidecar.http_front import HttpFront
from sidecar.status import Status

# The text format that every scraper reads; what it asks for in Accept is at most a preference.
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class SidecarMetrics(Collector):
    """What one sidecar can be measured by.

    Args:
        tally: records of the ledger so far, by outcome (Follower.tally).
        fronts: the HTTP listeners; asked for at each scrape, since those open after this is made.
        status: what the followers have seen besides.
        sync: flagd's sync service, for what it had to cut off.
    """

    def __init__(
        self,
        board: Board,
        tally: Mapping[str, int],
        events: EventStreams,
        fronts: Callable[[], Sequence[HttpFront]] = tuple,
        *,
        status: Status | None = None,
        sync: Sync | None = None,
    ) -> None:
        self._board = board
        self._tally = tally
        self._events = events
        self._fronts = fronts
        self._status = status or Status()
        self._sync = sync
        self._started_s = board.clock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics, with the process's own, as CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the sidecar's own metrics as they are now."""
        yield InfoMetricFamily("flaghoist_build", "What runs here.", {"version": __version__})
        yield _gauge("uptime_seconds", "Seconds since this sidecar was made.", self._board.clock() - self._started_s)
        yield from self._state()
        yield _counter(
            "records", "Records read from the ledger, by what the verifier made of them.", "outcome", self._tally
        )
        yield _counter(
            "heartbeats",
            "Records read from the heartbeats' stream, by what was made of them.",
            "outcome",
            self._status.beats,
        )
        yield from self._trust()
        yield from self._fleet()
        yield from self._clock()
        if self._sync is not None:
            yield _gauge("sync_streams", "Streams of flagd's sync service that are open.", self._sync.open)
            yield CounterMetricFamily(
                "flaghoist_sync_cut_off", "Sync streams cut off since their client did not read.", self._sync.cut_off
            )
        yield _gauge("event_streams", "Event streams that are open.", self._events.open)
        yield from self._http()

    def _state(self) -> Iterator[Metric]:
        board = self._board
        view = board.view
        stale_s = board.stale_s(board.clock())
        yield _gauge("ready", "1 when a verified snapshot is served.", view is not None and not board.closed)
        yield _gauge("seq", "Seq that is served; 0 before the first.", 0 if view is None else view.seq.number)
        yield _gauge("flags", "Flags that are served.", 0 if view is None else len(view.flags))
        yield _gauge("fresh", "1 while what is served is known to be the ledger's newest state.", stale_s is None)
        yield _gauge("stale_seconds", "Seconds since that was last known; 0 while fresh.", stale_s or 0.0)
        states = GaugeMetricFamily("flaghoist_state", "1 for the verifier's state, 0 for all others.", labels=["state"])
        for state in VerifierState:
            states.add_metric([state.value], float(state is board.state))
        yield states

    def _trust(self) -> Iterator[Metric]:
        status, now_s = self._status, self._board.clock()
        ledger = status.ledger
        quarantined = status.refused_by_floor or (ledger is not None and ledger.quarantined_by is not None)
        yield _gauge("quarantined", "1 while a second history is known to have been signed.", quarantined)
        yield _gauge("lag_entries", "Entries that the newest heartbeat tells of, not here yet.", status.lag_entries)
        yield CounterMetricFamily(
            "flaghoist_log_clients_renewed",
            "Times that all clients of the log were made anew since heartbeats had stopped.",
            status.clients_renewed,
        )
        if ledger is None:
            return
        root = ledger.root
        yield _gauge("root_version", "Version of the root in force.", root.version)
        yield _gauge(
            "root_expires_seconds", "Seconds until it expires; negative since.", root.record.expires_at / 1000 - now_s
        )
        late = overdue(ledger.unratified, int(now_s * 1000))
        yield _gauge("emergencies_unratified", "Emergencies that nobody has ratified yet.", len(ledger.unratified))
        yield _gauge("emergencies_overdue", "Those of them whose time to be ratified is over.", len(late))

    def _fleet(self) -> Iterator[Metric]:
        """What acknowledgements tell of this sidecar, and what became of them."""
        status = self._status
        yield CounterMetricFamily(
            "flaghoist_acks_written", "Acknowledgements that the ledger's log has taken.", status.acks_written
        )
        yield CounterMetricFamily("flaghoist_acks_failed", "Times that it did not take one.", status.acks_failed)
        if status.acked_at_s is not None:
            age_s = max(0.0, self._board.clock() - status.acked_at_s)
            yield _gauge("ack_age_seconds", "Seconds since the last acknowledgement that it took.", age_s)
        progress, divergence = status.progress, status.divergence
        if progress is not None:
            verified = 0 if progress.verified is None else progress.verified.seq.number
            yield _gauge("verified_seq", "Seq that is verified, in force or waiting for its moment.", verified)
            yield _gauge(
                "moment_in_seconds",
                "Seconds until the next state takes effect; 0 when none waits for its moment.",
                progress.moment_in_s(),
            )
            if progress.late_ms is not None:
                yield _gauge(
                    "moment_late_seconds",
                    "How long after the moment that was set for it the newest state was first served.",
                    progress.late_ms / 1000,
                )
        if divergence is not None:
            yield _gauge(
                "state_diverged", "1 while the publisher has another state at the same seq.", divergence.now is not None
            )
            yield CounterMetricFamily(
                "flaghoist_state_divergence", "States of this sidecar that were not the publisher's.", divergence.count
            )

    def _clock(self) -> Iterator[Metric]:
        status = self._status
        if status.clock_offset_s is not None:
            yield _gauge(
                "clock_offset_seconds",
                "The publisher's clock less this one, by the best of the last heartbeats.",
                status.clock_offset_s,
            )
        yield _gauge("clock_skewed", "1 while the two clocks are further apart than that.", status.clock_offset.skewed)
        yield _gauge(
            "clock_behind_seconds",
            "Seconds that this clock is behind heartbeats.",
            status.clock_behind_s,
        )
        yield _gauge(
            "clock_set_back_seconds", "Seconds that this clock was set back since the start.", status.clock_set_back_s
        )

    def _http(self) -> Iterator[Metric]:
        open_now = GaugeMetricFamily("flaghoist_http_connections", "Open HTTP connections.", labels=["listener"])
        answers = CounterMetricFamily(
            "flaghoist_http_answers", "HTTP answers so far, by status.", labels=["listener", "status"]
        )
        for front in self._fronts():
            open_now.add_metric([front.app.name], front.connections)
            for status, count in sorted(front.app.tally.items()):
                answers.add_metric([front.app.name, str(status)], count)
        yield open_now
        yield answers


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"flaghoist_{name}", about, float(value))


def _counter(name: str, about: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"flaghoist_{name}", about, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
