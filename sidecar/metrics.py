"""Metrics, read from the sidecar's own objects when they are scraped: answering a call touches no metric."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from flaghoist import __version__
from sidecar.board import Board, VerifierState
from sidecar.faces.events import EventStreams
from sidecar.http_front import HttpFront

# The text format that every scraper reads; what it asks for in Accept is at most a preference.
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class SidecarMetrics(Collector):
    """What one sidecar can be measured by.

    Args:
        tally: records of the ledger so far, by outcome (Follower.tally).
        fronts: the HTTP listeners; asked for at each scrape, since those open after this is made.
    """

    def __init__(
        self,
        board: Board,
        tally: Mapping[str, int],
        events: EventStreams,
        fronts: Callable[[], Sequence[HttpFront]] = tuple,
    ) -> None:
        self._board = board
        self._tally = tally
        self._events = events
        self._fronts = fronts
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
