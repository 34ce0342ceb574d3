"""One flag changed among many: from the append's acknowledgement to a gRPC client that sees the new value."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Promise, Result, Table, at_most, not_measured, spread
from tests.bench.ledgers import forged, mixed, root_bytes, store
from tests.bench.processes import Child, module
from tests.bench.scale import Scale
from tests.bench.servers import sidecar, wait_until_fresh
from tests.forge import Forge, boolean_flag

LIMIT_MS: Final = 20.0
FLAGD_MS: Final = 6_000.0
KEY: Final = "shop-flag-00001"
# Between two changes; of no fixed length, so that they do not fall in step with a poll.
PAUSE_S: Final = (0.02, 0.06)
SEED: Final = 20_26


def measure(scale: Scale, brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return milliseconds from acknowledgement to event and to answer, on a SQLite and on a Kafka ledger."""
    say(f"signing {scale.flags} flags and {scale.changes} changes")
    forge = forged(mixed(scale.flags))
    base = list(forge.records)
    changes = [forge.put(KEY, boolean_flag("on" if n % 2 == 0 else "off")) for n in range(scale.changes)]
    rows: list[tuple[Cell, ...]] = []
    promises: list[Promise] = []
    notes: list[str] = []
    for ledger in ("SQLite", "Kafka"):
        what = f"one flag changed among {scale.flags:,}, {ledger}: acknowledged to answered, p50 / p99 / max"
        if ledger == "Kafka" and (reason := brokers.missing):
            promises.append(not_measured(what, f"≤ {LIMIT_MS:g} ms", reason))
            continue
        say(f"{ledger}: following {scale.changes} changes")
        with TemporaryDirectory() as place:
            url = brokers.url() if ledger == "Kafka" else f"sqlite:///{Path(place) / 'ledger.db'}"
            uvloop.run(store(url, base))
            followed = _follow(url, forge, changes)
        for name, values in followed.items():
            rows.append((ledger, name, *spread(values), len(values)))
        visible = followed["acknowledged → answered"]
        p50, p99, largest = spread(visible)
        promise = at_most(what, p99, LIMIT_MS, "ms")
        promises.append(Promise(what, promise.target, f"{p50:.1f} / {p99:.1f} / {largest:.1f} ms", promise.verdict))
        early = sum(value < 0 for value in visible)
        if early:
            notes.append(f"{ledger}: {early} of {len(visible)} changes were visible before the acknowledgement came.")
    rows.append(("flagd, stated", "file changed → seen", FLAGD_MS, None, None, None))
    columns = ("ledger", "from → to", "p50 ms", "p99 ms", "max ms", "changes")
    title = f"One flag changed among {scale.flags:,}"
    return Result(tuple(promises), (Table(title, columns, tuple(rows)),), tuple(notes))


def _follow(url: str, forge: Forge, changes: list[bytes]) -> dict[str, list[float]]:
    with ExitStack() as stack:
        server = stack.enter_context(sidecar(url, root_bytes(forge)))
        wait_until_fresh(server, KEY)
        witness = stack.enter_context(module("witness", server.address, KEY))
        assert witness.heard()["ready"]
        return uvloop.run(_append_each(url, witness, changes))


async def _append_each(url: str, witness: Child, changes: list[bytes]) -> dict[str, list[float]]:
    pace = random.Random(SEED)
    found: dict[str, list[float]] = {}
    async with open_log(url)(Stream.LEDGER) as log:
        for number, change in enumerate(changes):
            await asyncio.sleep(pace.uniform(*PAUSE_S))  # the pace of the load; nothing is waited for
            begun_ns = time.monotonic_ns()
            await log.append(change)
            acknowledged_ns = time.monotonic_ns()
            seen = await asyncio.to_thread(witness.heard)
            if seen["value"] is not (number % 2 == 0):
                raise AssertionError(f"change {number}: the client saw another value: {seen}")
            for name, from_ns, to_ns in (
                ("append called → acknowledged", begun_ns, acknowledged_ns),
                ("acknowledged → event", acknowledged_ns, seen["event_ns"]),
                ("acknowledged → answered", acknowledged_ns, seen["answer_ns"]),
                ("append called → answered", begun_ns, seen["answer_ns"]),
            ):
                found.setdefault(name, []).append((to_ns - from_ns) / 1e6)
    # The first append connects to the log; it is no change like the others.
    return {name: values[1:] for name, values in found.items()}
