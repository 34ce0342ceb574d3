"""Start of a sidecar with many flags: from the process's start to health SERVING, and the memory it then takes."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Promise, Result, Table, at_most, not_measured
from tests.bench.ledgers import forged, mixed, root_bytes, store
from tests.bench.scale import Scale
from tests.bench.servers import sidecar, wait_until_fresh, wait_until_serving

LIMIT_S: Final = 2.5
FLAGD_S: Final = 2.9
FLAGD_MIB: Final = 139.0


def measure(scale: Scale, brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return seconds to SERVING and to fresh, and memory, cold from each ledger and from kept state."""
    forge = forged(mixed(scale.flags))
    rows: list[tuple[Cell, ...]] = []
    promises: list[Promise] = []
    for ledger in ("SQLite", "Kafka"):
        if ledger == "Kafka" and (reason := brokers.missing):
            promises.append(not_measured(f"start with {scale.flags:,} flags, Kafka", f"≤ {LIMIT_S:g} s", reason))
            continue
        with ExitStack() as stack:
            place = Path(stack.enter_context(TemporaryDirectory()))
            url = brokers.url() if ledger == "Kafka" else f"sqlite:///{place / 'ledger.db'}"
            uvloop.run(store(url, forge.records))
            root = root_bytes(forge)
            _start(url, root, place / "warm-up")  # compiles byte code, fills the page cache
            cold, kept = [], []
            for number in range(scale.starts):
                say(f"{ledger}: start {number + 1}, cold and from kept state")
                cold.append(_start(url, root, place / f"state-{number}"))
                kept.append(_start(url, root, place / f"state-{number}"))
        for origin, starts in ((f"cold, from {ledger}", cold), (f"kept state, then {ledger}", kept)):
            serving, fresh, resident, peak = (median(column) for column in zip(*starts, strict=True))
            rows.append((origin, serving, fresh, resident, peak, len(starts)))
            what = f"start with {scale.flags:,} flags, {origin}: to SERVING (RSS {resident:.0f} MiB)"
            promises.append(at_most(what, serving, LIMIT_S, "s"))
    rows.append(("flagd, stated", FLAGD_S, None, FLAGD_MIB, None, None))
    columns = ("start", "to SERVING, s", "to a fresh answer, s", "RSS MiB", "peak MiB", "starts")
    return Result(tuple(promises), (Table(f"Start with {scale.flags:,} flags", columns, tuple(rows)),))


def _start(url: str, root: bytes, state_dir: Path) -> tuple[float, float, float, float]:
    begun = time.monotonic()
    with sidecar(url, root, state_dir=state_dir) as server:
        wait_until_serving(server)
        serving_s = time.monotonic() - begun
        wait_until_fresh(server, "shop-flag-00001")
        fresh_s = time.monotonic() - begun
        return serving_s, fresh_s, server.child.rss_mib(), server.child.rss_mib(peak=True)
