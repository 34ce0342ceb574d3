"""Sync of a large set to many in-process providers: time and memory, at first and after a change of one flag."""

import os
import signal
from collections.abc import Callable
from statistics import median
from typing import Final

from sidecar.front import FrontKind
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table
from tests.bench.processes import module
from tests.bench.scale import Scale

STREAMS: Final = (1, 10, 100)
CHANGES: Final = 10
MS: Final = 1e6


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return the time until the first and the last stream have a set, CPU and memory, on both fronts."""
    rows: list[tuple[Cell, ...]] = []
    for front in (FrontKind.NATIVE, FrontKind.GRPCIO):
        for streams in STREAMS:
            say(f"{front} front, {streams} streams")
            rows.append((front.value, streams, *_fan_out(front, scale.flags, streams, min(CHANGES, scale.changes))))
    columns = (
        *("front", "streams", "MiB a set", "first sets, ms", "change: first stream, ms", "last stream, ms"),
        *("CPU ms a change", "RSS before, MiB", "RSS after, MiB", "peak MiB"),
    )
    note = (
        "All streams share one encoding of a set. What a front has taken from it and not yet sent is a copy a stream: "
        "the peak is with all clients reading at once, on connections of their own."
    )
    return Result((), (Table(f"Sync of {scale.flags:,} flags", columns, tuple(rows)),), (note,))


def _fan_out(front: FrontKind, flags: int, streams: int, changes: int) -> tuple[float, ...]:
    with module("sync_server", front.value, str(flags)) as server:
        address = server.heard()["address"]
        before_mib = server.rss_mib()
        with module("sync_reader", address, str(streams)) as reader:
            first = reader.heard()
            first_ms = (first["last_ns"] - first["began_ns"]) / MS
            cpu_s = server.cpu_s
            to_first, to_last = [], []
            for _ in range(changes):
                os.kill(server.pid, signal.SIGUSR1)
                changed_ns = server.heard()["changed_ns"]
                arrived = reader.heard()
                to_first.append((arrived["first_ns"] - changed_ns) / MS)
                to_last.append((arrived["last_ns"] - changed_ns) / MS)
            cpu_ms = (server.cpu_s - cpu_s) * 1000 / changes
            set_mib = first["bytes"] / 2**20
            memory = (before_mib, server.rss_mib(), server.rss_mib(peak=True))
            return set_mib, first_ms, median(to_first), median(to_last), cpu_ms, *memory
