"""/healthz, /readyz and /metrics."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flaghoist import __version__
from flaghoist.values import Seq
from sidecar.board import VerifierState
from tests.fronts.rig import put, snapshot_of, switch
from tests.http.rig import Rig, runner

FLAGS = {"a": switch("on"), "b": switch("off")}
run = runner(FLAGS)


async def metrics(it: Rig) -> dict[str, Any]:
    """Return samples: name, or (name, label values), to value."""
    reply = await it.ask("/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        assert family.documentation
        for sample in family.samples:
            found[(sample.name, *sample.labels.values()) if sample.labels else sample.name] = sample.value
    return found


def test_alive_is_200_whatever_is_loaded() -> None:
    async def scenario(it: Rig) -> None:
        for _ in range(2):
            reply = await it.ask("/healthz")
            assert (reply.status, reply.json) == (200, {"status": "alive"})
            it.board.close()

    run(scenario, None)


def test_readiness_follows_the_snapshot_and_never_staleness() -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.ask("/readyz")
        reason = "no verified snapshot is loaded yet"
        assert (reply.status, reply.json) == (503, {"ready": False, "state": "LOADING", "reason": reason})
        snapshot = snapshot_of(FLAGS)
        it.board.put(snapshot.view)
        it.board.state = VerifierState.FRESH
        it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + 30)
        live = {"ready": True, "state": "FRESH", "from": "live", "seq": 1, "flags": 2, "fresh": True}
        reply = await it.ask("/readyz")
        assert (reply.status, reply.json) == (200, live)
        it.clock.now_s += 31
        it.board.state = VerifierState.STALE
        reply = await it.ask("/readyz")
        assert (reply.status, reply.json) == (200, {**live, "state": "STALE", "fresh": False, "stale_s": 31})
        it.board.close()
        reply = await it.ask("/readyz")
        assert reply.status == 503
        assert "draining" in reply.json["reason"]

    run(scenario, None)


def test_snapshot_from_disk_is_told_from_one_that_the_ledger_confirmed() -> None:
    async def scenario(it: Rig) -> None:
        assert (await it.ask("/readyz")).json["from"] == "disk"
        it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + 30)
        assert (await it.ask("/readyz")).json["from"] == "live"
        it.board.mark_stale()
        assert (await it.ask("/readyz")).json["from"] == "live"

    run(scenario, kept=True)


def test_snapshot_that_changed_since_the_disk_is_live() -> None:
    async def scenario(it: Rig) -> None:
        it.board.put(snapshot_of(FLAGS).fold(Seq(2), [put("c", switch())]).view)
        assert (await it.ask("/readyz")).json["from"] == "live"

    run(scenario, kept=True)


def test_metrics_tell_seq_state_age_records_flags_and_process() -> None:
    async def scenario(it: Rig) -> None:
        it.tally["applied"] = 3
        it.tally["dropped"] = 2
        it.board.state = VerifierState.STALE
        it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + 30)
        it.clock.now_s += 40
        await it.flag("a")
        await it.flag("nobody")
        found = await metrics(it)
        assert found["flaghoist_seq"] == 1
        assert found["flaghoist_flags"] == 2
        assert (found["flaghoist_ready"], found["flaghoist_fresh"], found["flaghoist_stale_seconds"]) == (1, 0, 40)
        states = {key[1]: value for key, value in found.items() if key[0] == "flaghoist_state"}
        assert set(states) == set(VerifierState)
        assert {state for state, value in states.items() if value} == {"STALE"}
        assert found["flaghoist_records_total", "applied"] == 3
        assert found["flaghoist_records_total", "dropped"] == 2
        assert found["flaghoist_event_streams"] == 0
        assert found["flaghoist_uptime_seconds"] == 40
        assert found["flaghoist_build_info", __version__] == 1
        assert found["flaghoist_http_answers_total", "ofrep", "200"] == 1
        assert found["flaghoist_http_answers_total", "ofrep", "404"] == 1
        assert found["flaghoist_http_connections", "management"] >= 1
        assert found["process_resident_memory_bytes"] > 1e6
        assert found["process_cpu_seconds_total"] > 0

    run(scenario)


def test_metrics_before_the_first_snapshot_parse_too() -> None:
    async def scenario(it: Rig) -> None:
        found = await metrics(it)
        assert (found["flaghoist_ready"], found["flaghoist_seq"], found["flaghoist_fresh"]) == (0, 0, 0)

    run(scenario, None)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_methods_and_paths(path: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.ask(path, method="HEAD")
        assert (reply.status, reply.body) == (200, b"")
        assert (await it.ask(path + "?verbose=1")).status == 200
        reply = await it.ask(path, method="POST")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        assert (await it.ask(path + "/more")).status == 404
        assert (await it.ask("/")).status == 404

    run(scenario)


def test_scrapes_and_calls_at_once_are_all_answered() -> None:
    async def scenario(it: Rig) -> None:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(it.ask("/metrics")) for _ in range(5)]
            asked += [tasks.create_task(it.flag("a")) for _ in range(20)]
        assert {task.result().status for task in asked} == {200}

    run(scenario)
