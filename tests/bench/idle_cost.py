"""What a sidecar costs while nobody asks and nobody publishes: CPU, wake-ups, and requests to the brokers."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from flaghoist.log.location import KafkaLocation, parse
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table
from tests.bench.ledgers import all_static, forged, root_bytes, store
from tests.bench.scale import Scale
from tests.bench.servers import Server, sidecar, wait_until_fresh

FLAGS: Final = 100
# After the start a sidecar settles: it writes kept state, and its reader takes up its rhythm.
SETTLE_S: Final = 1.0


def measure(scale: Scale, brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return percent of a core, wake-ups a second and requests a minute, of sidecars that idle side by side."""
    notes = []
    forge = forged(all_static(FLAGS))
    root = root_bytes(forge)
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory()))
        urls = {"SQLite": f"sqlite:///{place / 'ledger.db'}"}
        if reason := brokers.missing:
            notes.append(f"Kafka was not measured: {reason}.")
        else:
            urls["Kafka"] = brokers.url()
        servers = {}
        for name, url in urls.items():
            uvloop.run(store(url, forge.records))
            servers[name] = stack.enter_context(sidecar(url, root))
            wait_until_fresh(servers[name], "shop-flag-00001")
        say(f"watching idle sidecars for {scale.idle_s:g} s")
        time.sleep(min(SETTLE_S, scale.idle_s))
        before = {name: _look(server, urls[name]) for name, server in servers.items()}
        time.sleep(scale.idle_s)
        after = {name: _look(server, urls[name]) for name, server in servers.items()}
    rows: list[tuple[Cell, ...]] = []
    for name in servers:
        at_s, cpu_s, wakeups, requests = (b - a for a, b in zip(before[name], after[name], strict=True))
        asked = requests / at_s * 60 if name == "Kafka" and shutil.which("ss") else None
        rows.append((name, cpu_s / at_s * 100, wakeups / at_s, asked, at_s))
    if "Kafka" in servers and shutil.which("ss") is None:
        notes.append("Requests were not counted: ss not found.")
    columns = ("ledger", "CPU, % of a core", "wake-ups a second", "requests to brokers a minute", "watched, s")
    return Result((), (Table("An idle sidecar", columns, tuple(rows)),), tuple(notes))


def _look(server: Server, url: str) -> tuple[float, float, int, int]:
    """Return (monotonic s, CPU s, wake-ups, requests) so far."""
    location = parse(url)
    requests = _requests(server.child.pid, location) if isinstance(location, KafkaLocation) else 0
    return time.monotonic(), server.child.cpu_s, server.child.wakeups, requests


def _requests(pid: int, location: KafkaLocation) -> int:
    """Return how many segments with data a process has sent to the brokers: an idle reader's requests are one each."""
    ss = shutil.which("ss")
    if ss is None:
        return 0
    ports = " or ".join(f"dport = :{port}" for _, port in location.brokers)
    listed = subprocess.run([ss, "-tinpHO", f"( {ports} )"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listed.splitlines() if f"pid={pid}," in line]
    return sum(int(found[1]) for line in ours if (found := re.search(r"data_segs_out:(\d+)", line)))
