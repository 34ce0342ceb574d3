"""The test broker itself: it must never outlive the tests that started it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not runs(pid)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_broker_ends_with_the_process_that_started_it(kafka_broker, ending):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/kafka/broker.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    home = None
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("kafka://127.0.0.1:")
        said = [process.stderr.readline() for _ in range(2)]
        pid = int(said[1].split()[1].rstrip(","))
        home = Path(said[1].split()[3].rstrip(";")).parent
        assert runs(pid)
        process.send_signal(ending)
        assert gone_within(pid, 20), f"pid {pid} outlives it"
        assert process.wait(20) == (0 if ending is signal.SIGINT else -signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)  # which a killed process left
