"""A real publisher's heartbeats, and what a real sidecar makes of their coming, ending and coming again."""

import time
from pathlib import Path

from flaghoist.freshness import BEAT_INTERVAL_MS, BEAT_LIFE_MS
from tests.e2e.world import readiness, until_readiness
from tests.publisher_process import running_publisher
from tests.scenarios.trio import Trio
from tests.sidecar_process import running_sidecar


def test_publisher_that_is_killed_is_noticed_within_the_life_of_a_heartbeat(tmp_path: Path) -> None:
    trio = Trio.begun(tmp_path)
    with running_sidecar(trio.ledger, trio.root_file, tmp_path / "state") as sidecar:
        until_readiness(sidecar, state="STALE", stale_reason="no heartbeat yet")
        with running_publisher(trio.ada) as publisher:
            until_readiness(sidecar, state="FRESH", fresh=True, status=200)
            publisher.kill()
        killed_s = time.monotonic()
        sidecar_was_fresh_s = 0.0
        while (said := readiness(sidecar))["fresh"]:
            sidecar_was_fresh_s = time.monotonic() - killed_s
            assert sidecar_was_fresh_s < BEAT_LIFE_MS / 1000 + 2, said
            time.sleep(0.1)
        assert sidecar_was_fresh_s > (BEAT_LIFE_MS - BEAT_INTERVAL_MS) / 1000 - 2, "it believes a heartbeat to its end"
        assert said["status"] == 200
        assert said["stale_reason"].startswith("no heartbeat since")
        with running_publisher(trio.ada):
            until_readiness(sidecar, state="FRESH", fresh=True)
