"""Looks at running programs from outside: what their metrics say, and how large they are."""

import re
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path

from tests.sidecar_process import SidecarProcess


def metrics(sidecar: SidecarProcess) -> dict[str, float]:
    """Scrape a sidecar."""
    host, _, port = sidecar.address_of("management").rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return {name: float(value) for name, value in re.findall(r"^(flaghoist_\S+) (\S+)$", text, re.MULTILINE)}


def outcomes(scraped: Mapping[str, float], family: str) -> dict[str, int]:
    """Return the counts of a family that counts by outcome."""
    named = re.compile(rf'flaghoist_{family}_total{{outcome="(\w+)"}}')
    return {m[1]: int(count) for name, count in scraped.items() if (m := named.fullmatch(name))}


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) * 1024


def until(holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Wait for a condition; the deadline is for failures only."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)  # between two looks
