"""Freshness, floors and quarantine in a real sidecar process, by heartbeats that a test signs, withholds and forges."""

import http.client
import json
import time

import pytest
from grpc_health.v1 import health_pb2

from flaghoist.values import Role
from sidecar.keep import kept_in
from tests.e2e.world import ANSWERS_WITHIN_S, World, client, metric, readiness, until_readiness
from tests.forge import ADA, BEAT_LABEL, GRACE, PUBLISHER, Forge, Key
from tests.unit.sidecar.pod import put_safe, with_keys

SERVING = health_pb2.HealthCheckResponse.SERVING
NEW_BEATS, NEW_PUBLISHER = Key(PUBLISHER, "second heartbeat"), Key(PUBLISHER, "second")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, beats=True, emergency=(GRACE,))


def stale_reason(answer):
    return answer.metadata["flaghoist.stale_reason"]


def ofrep(sidecar):
    """What OFREP answers for the flag."""
    connection = http.client.HTTPConnection(sidecar.address_of("ofrep"), timeout=ANSWERS_WITHIN_S)
    try:
        connection.request("POST", "/ofrep/v1/evaluate/flags/new-checkout", "{}", {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def until_kept(world, entries):
    """Wait until so many entries are on the sidecar's disk."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while (kept := [len(list(records)) for records in kept_in(world.directory / "state")]) != [entries]:
        assert time.monotonic() < deadline, kept
        time.sleep(0.02)


def test_withheld_heartbeats_are_noticed_when_the_last_one_runs_out_and_drain_no_pod(world):
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="STALE", stale_reason="no heartbeat yet")
        world.beat(life_s=2.0)
        until_readiness(sidecar, state="FRESH", fresh=True)
        answer = asking.ask()
        assert answer.reason == "STATIC"
        assert "flaghoist.stale_reason" not in answer.metadata
        said = until_readiness(sidecar, state="STALE", status=200, fresh=False)
        assert said["stale_reason"].startswith("no heartbeat since 2")
        answer = asking.ask()
        assert (answer.value, answer.reason) == (False, "STALE")
        assert stale_reason(answer) == said["stale_reason"]
        assert answer.metadata["flaghoist.stale_s"] >= 2
        assert ofrep(sidecar)["metadata"]["flaghoist.stale_reason"] == said["stale_reason"]
        assert asking.health() == SERVING
        assert sidecar.until("answers.stale", code="stale")
        world.beat()
        until_readiness(sidecar, state="FRESH")
        assert asking.ask().reason == "STATIC"
        assert metric(sidecar, 'flaghoist_heartbeats_total{outcome="counted"}') == 2
        assert -5 < metric(sidecar, "flaghoist_clock_offset_seconds") <= 0
        assert metric(sidecar, "flaghoist_root_version") == 1
        assert 364 * 86400 < metric(sidecar, "flaghoist_root_expires_seconds") <= 365 * 86400


@pytest.mark.parametrize(
    "attack", ["replayed", "forged", "signed by the publisher's own key", "of another ledger", "expired", "junk"]
)
def test_false_heartbeats_do_not_make_a_sidecar_fresh(world, attack):
    first = world.beat(life_s=2.0)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        until_readiness(sidecar, state="STALE")
        now_ms = int(time.time() * 1000)
        match attack:
            case "replayed":
                world.beat(first)
            case "forged":
                world.beat(by=Key(ADA, BEAT_LABEL))
            case "signed by the publisher's own key":
                world.beat(by=Key(PUBLISHER))
            case "of another ledger":
                world.beat(log_id="staging")
            case "expired":
                world.beat(issued_at=now_ms - 40_000, expires_at=now_ms - 10_000)
            case "junk":
                world.beat(b"junk")
        sidecar.until("heartbeat.refused")
        assert readiness(sidecar)["state"] == "STALE"
        assert asking.ask().reason == "STALE"
        assert metric(sidecar, 'flaghoist_heartbeats_total{outcome="refuted"}') >= 1


def test_heartbeat_from_the_future_says_that_a_clock_is_wrong(world):
    ahead_ms = int(time.time() * 1000) + 3600_000
    world.beat(issued_at=ahead_ms, expires_at=ahead_ms + 30_000)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        said = until_readiness(sidecar, state="STALE", status=200)
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while not said["stale_reason"].startswith("clock 3"):
            assert time.monotonic() < deadline, said
            said = readiness(sidecar)
        assert asking.ask().reason == "STALE"
        assert 3500 < metric(sidecar, "flaghoist_clock_behind_seconds") <= 3600
        assert 3500 < metric(sidecar, "flaghoist_clock_offset_seconds") <= 3600


def test_withheld_entries_are_noticed_and_counted(world):
    world.beat(life_s=3.0)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        withheld = [world.forge.put("new-checkout"), world.forge.put("second")]
        world.beat(life_s=30.0)
        until_readiness(sidecar, state="LAGGING", fresh=False, stale_reason="2 entries behind")
        assert metric(sidecar, "flaghoist_lag_entries") == 2
        assert stale_reason(asking.ask()) == "2 entries behind"
        world.append(*withheld)
        until_readiness(sidecar, state="FRESH", seq=4)
        assert metric(sidecar, "flaghoist_lag_entries") == 0


def test_flag_that_must_not_be_trusted_when_old_falls_back_when_heartbeats_are_withheld(world):
    world.append(put_safe(world.forge, "on", on_stale="safe_variant"))
    world.beat(life_s=2.0)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        assert asking.ask().value is True
        until_readiness(sidecar, state="STALE")
        answer = asking.ask()
        assert (answer.value, answer.reason) == (False, "STALE")
        assert answer.metadata["flaghoist.on_stale"] == "safe_variant"


def test_roots_and_heartbeat_keys_are_exchanged_while_a_sidecar_runs(world):
    world.beat()
    with world.sidecar() as sidecar:
        until_readiness(sidecar, state="FRESH")
        world.append(world.forge.rotate(Key(ADA), **with_keys(world.forge.root, Role.HEARTBEAT, NEW_BEATS)))
        world.beat(by=NEW_BEATS)
        changed = sidecar.until("root.changed", version=2)
        assert changed["sha256"] == world.forge.root.sha256.hex()
        until_readiness(sidecar, state="FRESH", seq=3)
        assert metric(sidecar, "flaghoist_root_version") == 2
        until_kept(world, 3)
        assert sidecar.stop() == 0
    # Started anew with the later root, by its digest: what was kept under the first one still counts.
    pin = f"sha256:{world.forge.root.sha256.hex()}"
    with world.sidecar(root=pin) as sidecar:
        assert sidecar.until("snapshot.loaded", origin="disk")["seq"] == 3
        until_readiness(sidecar, state="FRESH")


def test_expired_root_is_said_and_its_successor_mends_it(tmp_path):
    now_ms = int(time.time() * 1000)
    world = World(tmp_path, beats=True, expires_at=now_ms + 6_000)
    world.beat()
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        until_readiness(sidecar, state="ROOT_EXPIRED", status=200, stale_reason="root expired")
        assert asking.ask().reason == "STALE"
        assert metric(sidecar, "flaghoist_root_expires_seconds") < 0
        world.forge.now_ms = int(time.time() * 1000)
        world.append(world.forge.rotate(Key(ADA), expires_at=now_ms + 365 * 86_400_000))
        world.beat()
        until_readiness(sidecar, state="FRESH")


def test_quarantine_outlives_a_restart_and_ends_with_the_root_that_takes_the_forgers_role(world):
    other = Forge(now_ms=world.forge.now_ms, root_options=world.forge.root_options)
    other.genesis()
    theirs = other.put("other")
    with world.sidecar() as sidecar, client(sidecar) as asking:
        world.beat()
        until_readiness(sidecar, state="FRESH")
        world.append(theirs)
        forked = sidecar.until("ledger.forked", what="equivocation")
        assert forked["evidence"].endswith(".fork-evidence")
        world.flip("on")
        until_readiness(sidecar, state="QUARANTINED", status=200, seq=2, fresh=False)
        assert asking.ask().value is False
        assert metric(sidecar, "flaghoist_quarantined") == 1
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="QUARANTINED", status=200, seq=2)
        assert asking.ask().value is False
        keys = with_keys(world.forge.root, Role.PUBLISHER, NEW_PUBLISHER)
        world.append(world.forge.rotate(Key(ADA), signed_by=NEW_PUBLISHER, **keys))
        world.forge.publisher = NEW_PUBLISHER
        world.beat()
        until_readiness(sidecar, state="FRESH", seq=4)
        assert asking.ask().value is True
        assert sidecar.until("quarantine.ended")["root_version"] == 2
        until_kept(world, 4)  # what was passed over is read again, after it is served
        assert sidecar.stop() == 0
    with world.sidecar() as sidecar:
        assert sidecar.until("snapshot.loaded", origin="disk")["seq"] == 4


def test_cold_start_waits_for_a_proof_of_freshness_where_that_is_asked_for(world):
    option = "--require-fresh-on-cold-start"
    with world.sidecar(option) as sidecar:
        said = until_readiness(sidecar, status=503, ready=False, state="LOADING")
        assert "reason" in said
        sidecar.until("ledger.reached")
        assert "cold start" in until_readiness(sidecar, status=503)["reason"]
        world.beat()
        until_readiness(sidecar, status=200, state="FRESH")
        assert sidecar.stop() == 0
    with world.sidecar(option) as sidecar, client(sidecar) as asking:
        assert asking.ask().value is False  # what was kept is served at once, fresh or not


def test_cold_start_cannot_wait_for_what_nobody_signs(tmp_path):
    world = World(tmp_path)
    with world.sidecar("--require-fresh-on-cold-start") as sidecar:
        assert sidecar.ended() == 2
        assert "error[misconfigured]" in sidecar.text
        assert "keys for heartbeats" in sidecar.text


def test_nothing_below_a_floor_is_served_and_readiness_names_the_floor(world):
    with world.sidecar("--floor", "3") as sidecar:
        sidecar.until("ledger.reached")
        said = until_readiness(sidecar, status=503)
        assert "want the ledger at seq 3 at least, it is at 2" in said["reason"]
        world.flip("on")
        until_readiness(sidecar, status=200, seq=3)
        assert sidecar.stop() == 0
    for option, value, reason in (
        ("--floor", "4", "at seq 4 at least, it is at 3"),
        ("--floor-root-version", "2", "want a root of version 2 at least, it is 1"),
        ("--not-before", "2999-01-01T00:00:00Z", "clock: want 2999-01-01T00:00:00Z at least"),
    ):
        with world.sidecar(option, value) as sidecar:
            sidecar.until("ledger.reached")
            assert reason in until_readiness(sidecar, status=503)["reason"]


def test_kept_history_that_the_floor_contradicts_is_set_aside_and_the_ledgers_own_is_read(world):
    with world.sidecar() as sidecar:
        until_readiness(sidecar, status=200)
        sidecar.until("ledger.reached")
        assert sidecar.stop() == 0
    entry_hash = world.forge.ledger.head.entry_hash.hex()
    wrong = "ab" * 32
    with world.sidecar("--floor", f"2:{wrong}") as sidecar:
        refused = sidecar.until("kept_state.below_floor", seq=2, got=entry_hash)
        assert refused["aside"].endswith(".refused")
        sidecar.until("ledger.forked", what="floor")
        said = until_readiness(sidecar, status=503, state="QUARANTINED")
        assert "another ledger than the floor names" in said["reason"]
        assert metric(sidecar, "flaghoist_quarantined") == 1
    with world.sidecar("--floor", f"2:{entry_hash}") as sidecar:
        until_readiness(sidecar, status=200, seq=2)


@pytest.mark.parametrize("form", ["file", "digest"])
def test_cold_pod_starts_from_a_later_root_and_serves_nothing_before_it(world, form):
    world.append(world.forge.rotate(Key(ADA)))
    pin = world.root_file("second.root") if form == "file" else f"sha256:{world.forge.root.sha256.hex()}"
    world.beat()
    with world.sidecar(root=pin) as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH", seq=3)
        assert asking.ask().value is False
        assert sidecar.stop() == 0


def test_root_that_the_ledger_does_not_state_ends_the_start(world):
    with world.sidecar(root="sha256:" + "ab" * 32) as sidecar:
        assert sidecar.ended() == 2
        assert "error[root_unknown]" in sidecar.text


def test_emergencies_are_counted_until_they_are_ratified(world):
    world.append(put_safe(world.forge, "on"))
    world.beat()
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        assert asking.ask().value is True
        killed = world.forge.kill("new-checkout")
        world.append(killed)
        assert asking.until(lambda answer: not answer.value).metadata["flaghoist.seq"] == 4
        applied = sidecar.until("emergency.applied")
        assert (applied["flags"], applied["requester"]) == (["new-checkout"], GRACE)
        counts = [metric(sidecar, f"flaghoist_emergencies_{name}") for name in ("unratified", "overdue")]
        assert counts == [1, 0]
        world.append(world.forge.ratify(killed))
        sidecar.until("emergency.ratified")
        assert metric(sidecar, "flaghoist_emergencies_unratified") == 0


@pytest.mark.kafka
def test_heartbeats_over_kafka_are_followed_through_a_restart_of_the_broker(tmp_path, kafka_broker, kafka_url):
    world = World(tmp_path, kafka_url(), beats=True)
    world.beat(life_s=4.0)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        until_readiness(sidecar, state="FRESH")
        kafka_broker.kill()
        sidecar.until("heartbeats.lost")
        until_readiness(sidecar, state="STALE", status=200)
        assert stale_reason(asking.ask()).startswith("no heartbeat since")
        assert asking.health() == SERVING
        kafka_broker.restart()
        world.flip("on")
        world.beat()
        until_readiness(sidecar, state="FRESH", seq=3)
        assert asking.ask().value is True
