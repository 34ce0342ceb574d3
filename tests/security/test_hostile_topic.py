"""Ten thousand hostile records in the topics of a real Kafka, beside good ones: what sidecars and publisher make of it.

`-s` shows the figures; tests/security/README.md states them. The flood is
tests/security/hostile_topic.py, run as by hand.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.publisher_process import running_publisher
from tests.scenarios.operators import REPOSITORY
from tests.security.hostile_records import WRITTEN
from tests.security.looking import metrics, outcomes, resident_bytes, until
from tests.security.production import HOST_PERSON, Production
from tests.sidecar_process import SidecarProcess, running_sidecar

RECORDS = 10_000
RATE = 500.0  # a second, all topics together
SEED = 20_261_122
FLAG = "beacon"
DONE_WITHIN_S = 300.0
# What 10,000 hostile records may cost a sidecar: about five times what is measured (tests/security/README.md).
GROWTH_BYTES_MAX = 24 * 1024 * 1024
LOG_BYTES_MAX = 64 * 1024
# Callers' times on a machine that also runs the broker, the publisher and the attack.
P99_S_MAX = 0.25
SILENCE_S_MAX = 2.0
NOBODY = "kafka://127.0.0.1:1/nobody"  # a port at which no broker listens
IGNORED = ("dropped", "repeated", "void")


@dataclass(frozen=True)
class Answer:
    """One answer as its caller had it."""

    face: str
    at_s: float
    took_s: float
    seq: int
    value: int
    reason: str


class Beacon:
    """A flag that honest people set to 1, 2, 3 …; knows what it is at each seq."""

    def __init__(self, production: Production, directory: Path) -> None:
        self._production = production
        self._file = directory / "beacon.json"
        self._values: dict[int, int] = {}

    def set(self, value: int) -> None:
        """Have it proposed, approved and published."""
        definition = {"state": "ENABLED", "variants": {f"v{value}": value}, "defaultVariant": f"v{value}"}
        self._file.write_text(json.dumps(definition))
        self._values[self._production.change(FLAG, self._file)["seq"]] = value

    @property
    def newest(self) -> tuple[int, int]:
        """The seq of the last change, and the value."""
        return max(self._values.items())

    def at(self, seq: int) -> int:
        """Return the value at an entry's seq."""
        return self._values[max(s for s in self._values if s <= seq)]

    def __len__(self) -> int:
        return len(self._values)


def log_bytes(process: SidecarProcess) -> int:
    """Return how much it has written to stderr: events are read back as they were written."""
    return sum(len(json.dumps(event)) + 1 for event in process.events)


@contextmanager
def asking(sidecar: SidecarProcess, out: Path) -> Iterator[None]:
    """Ask a sidecar all the time while the block runs; the answers are in `out`."""
    command = [sys.executable, "-m", "tests.security.asker", "--rpc", sidecar.address_of("rpc")]
    command += ["--ofrep", sidecar.address_of("ofrep"), "--flag", FLAG, "--out", str(out)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=_environ(), stdin=subprocess.PIPE)
    try:
        until(lambda: out.exists() and out.stat().st_size > 0, "the first answers")
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0


def answers_in(out: Path) -> list[Answer]:
    """Return all answers; each must be one."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    failed = [line for line in lines if "error" in line]
    assert not failed, failed[:5]
    return [Answer(**line) for line in lines]


def _environ() -> dict[str, str]:
    paths = [str(REPOSITORY / "proto"), str(REPOSITORY)]
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def flood(production: Production, seed: int, stolen: Sequence[Path]) -> Iterator[subprocess.Popen[str]]:
    """Run the attack, as by hand; it has keys from desks whose passphrase it knows."""
    command = [sys.executable, "-m", "tests.security.hostile_topic", "--ledger", production.url, "--flag", FLAG]
    command += ["--records", str(RECORDS), "--seed", str(seed), "--rate", str(RATE)]
    command += ["--passphrase-file", str(production.linus.desk / "passphrase")]
    command += [word for path in stolen for word in ("--stolen", str(path))]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=_environ(), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def replaced_publisher(production: Production) -> Path:
    """Replace the publisher's key by a root update, the old one being stolen; return the stolen key's file."""
    production.host.ok("key", "new", "publisher-2", "--person", HOST_PERSON)
    old = production.key_id("host", "publisher")
    new = production.host.home / "keys" / "publisher-2.pub"
    words = ["--replace-key", old, str(new), "--revoke", old, "--reason", "stolen", "--yes"]
    production.ada.ok("root", "propose", *words)
    production.grace.ok("root", "sign", "--yes")
    production.host.ok("root", "publish", "--yes")
    return production.host.home / "keys" / "publisher.pem"


@pytest.mark.kafka
@pytest.mark.parametrize("seed", [SEED])
def test_ten_thousand_hostile_records_change_no_answer_and_fill_nothing(
    kafka_url: Callable[[], str], tmp_path: Path, seed: int
) -> None:
    production = Production.begun(tmp_path, kafka_url())
    beacon = Beacon(production, tmp_path)
    beacon.set(0)
    stolen = [replaced_publisher(production), production.linus.home / "keys" / "linus.pem"]
    beacon.set(1)
    figures: dict[str, object] = {"seed": seed}
    with (
        running_publisher(production.host, "--key", "publisher-2") as publisher,
        running_sidecar(production.url, production.root, tmp_path / "state") as sidecar,
    ):
        publisher.until("publisher.started")
        until(lambda: metrics(sidecar)["flaghoist_fresh"] == 1, "the sidecar is fresh")
        before_bytes, publisher_before_bytes = resident_bytes(sidecar.process.pid), resident_bytes(publisher.pid)
        peak_bytes, stale_seen = before_bytes, 0
        with asking(sidecar, tmp_path / "answers.jsonl"), flood(production, seed, stolen) as attack:
            began_s = time.monotonic()
            value = 1
            while attack.poll() is None:
                assert time.monotonic() - began_s < DONE_WITHIN_S, "the flood does not end"
                value += 1
                beacon.set(value)
                peak_bytes = max(peak_bytes, resident_bytes(sidecar.process.pid))
                stale_seen += metrics(sidecar)["flaghoist_fresh"] != 1
            assert attack.returncode == 0, "the attack itself failed"
            assert attack.stdout is not None
            written = json.loads(attack.stdout.read())
            beacon.set(value + 1)
            hostile = written["streams"]

            def all_read() -> bool:
                counted = outcomes(metrics(sidecar), "records")
                return sum(counted.get(name, 0) for name in IGNORED) >= int(hostile["ledger"])

            until(all_read, "the sidecar has read everything")
            until(lambda: metrics(sidecar)["flaghoist_seq"] == beacon.newest[0], "the newest state")
        assert sum(hostile.values()) == RECORDS
        assert {kind.split(":")[0] for kind in written["kinds"]} == {stream.value for stream in WRITTEN}

        # Every hostile record is counted, each as one that changes nothing; everything honest is there.
        scraped = metrics(sidecar)
        records, beats = outcomes(scraped, "records"), outcomes(scraped, "heartbeats")
        links = {name: count for name, count in records.items() if name not in IGNORED}
        assert sum(records.get(name, 0) for name in IGNORED) == hostile["ledger"], records
        assert links == {"advanced": links["advanced"], "applied": len(beacon), "rootchanged": 1}
        assert scraped["flaghoist_seq"] == sum(links.values())
        assert beats.get("forked", 0) == 0
        assert beats["refuted"] + beats["superseded"] >= hostile["meta"], beats
        assert scraped["flaghoist_quarantined"] == 0
        assert scraped['flaghoist_state{state="FRESH"}'] == 1
        assert stale_seen == 0, "heartbeats were drowned"

        given = answers_in(tmp_path / "answers.jsonl")
        figures |= judged(given, beacon)
        growth, said = peak_bytes - before_bytes, log_bytes(sidecar)
        assert growth < GROWTH_BYTES_MAX, f"{growth / 1e6:.1f} MB more"
        assert said < LOG_BYTES_MAX, f"{said} bytes of log"
        publisher_growth, publisher_said = resident_bytes(publisher.pid) - publisher_before_bytes, log_bytes(publisher)
        assert publisher_growth < GROWTH_BYTES_MAX, f"publisher: {publisher_growth / 1e6:.1f} MB more"
        assert publisher_said < LOG_BYTES_MAX, f"publisher: {publisher_said} bytes of log"
        assert publisher.process.poll() is None
        figures |= {
            "written": written["streams"], "value_mb": round(written["value_bytes"] / 1e6, 1),
            "seconds": written["seconds"], "transactions": written["transactions"], "records": records,
            "heartbeats": beats, "sidecar_mb": round(peak_bytes / 1e6, 1), "growth_mb": round(growth / 1e6, 1),
            "log_bytes": said, "publisher_growth_mb": round(publisher_growth / 1e6, 1),
            "publisher_log_bytes": publisher_said,
        }  # fmt: skip

        # Whoever verifies the topic anew says the same.
        verified = production.linus.ok("audit", "verify", "--json").document
        assert verified["whole"] is True
        assert verified["seq"] == beacon.newest[0]
        assert verified["records"] == records
        figures["cold_start_s"] = begins_anew(production, beacon, tmp_path / "cold")
    sidecar_log = [event for event in sidecar.events if event["event"] == "text"]
    assert not sidecar_log, sidecar_log[:3]
    figures["restart_s"] = begins_anew(production, beacon, tmp_path / "state", without_ledger=True)
    print(json.dumps(figures, indent=2))


def judged(given: Sequence[Answer], beacon: Beacon) -> dict[str, object]:
    """Hold every answer to the honest history; return what is to be reported of them."""
    silences = []
    for face in ("grpc", "ofrep"):
        mine = [answer for answer in given if answer.face == face]
        assert len(mine) > 500
        wrong = [answer for answer in mine if answer.value != beacon.at(answer.seq)]
        assert not wrong, wrong[:5]
        back = [later for earlier, later in pairwise(mine) if later.seq < earlier.seq]
        assert not back, back[:5]
        silence_s = max(later.at_s - earlier.at_s for earlier, later in pairwise(mine))
        silences.append(silence_s)
        assert silence_s < SILENCE_S_MAX, f"{face}: {silence_s:.2f} s without an answer"
        assert not [answer for answer in mine if answer.reason == "STALE"]
    took = sorted(answer.took_s for answer in given)
    p99_s = took[int(len(took) * 0.99)]
    assert p99_s < P99_S_MAX, f"p99 {p99_s * 1000:.0f} ms"
    return {
        "answers": len(given),
        "states_seen": len({answer.seq for answer in given}),
        "p50_ms": round(took[len(took) // 2] * 1000, 2),
        "p99_ms": round(p99_s * 1000, 2),
        "worst_ms": round(took[-1] * 1000, 1),
        "longest_silence_ms": round(max(silences) * 1000, 1),
    }


def begins_anew(production: Production, beacon: Beacon, state: Path, *, without_ledger: bool = False) -> float:
    """Start a sidecar on what its disk and the ledger hold; it must serve the newest honest state. Return in what time.

    Args:
        without_ledger: the brokers cannot be reached, so that the disk is all it has.
    """
    url = NOBODY if without_ledger else production.url
    began_s = time.monotonic()
    with running_sidecar(url, production.root, state) as sidecar:
        until(lambda: metrics(sidecar)["flaghoist_seq"] == beacon.newest[0], f"the newest state from {state.name}")
        took_s = time.monotonic() - began_s
        counted = outcomes(metrics(sidecar), "records")
        assert counted.get("rejected", 0) == counted.get("forked", 0) == 0
    return round(took_s, 2)
