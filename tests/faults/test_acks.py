"""Acknowledgements of real sidecars, over SQLite and Kafka: killed, refused, locked out, and with wrong clocks."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flaghoist.acknowledgement import LEFT, read_acknowledgement
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.records import Release
from flaghoist.state_root import state_root
from flaghoist.values import Seq
from tests.e2e.world import ANSWERS_WITHIN_S, World, client, metric, readiness, until_readiness
from tests.forge import allowing_rule, boolean_flag
from tests.sidecar_process import OTHER_FACES, SidecarProcess

SIDECAR = Path(sys.executable).with_name("flaghoist-sidecar")


def acks(world):
    """What the ledger's log holds, by instance."""

    async def read():
        async with open_log(world.url)(Stream.ACKS) as log:
            return [record.value async for record in read_to_end(log)]

    told = [read_acknowledgement(data, world.forge.root.log_id) for data in asyncio.run(read())]
    return {ack.instance: ack for ack in told}


def until_acked(world, instance, **facts):
    """Wait until the newest acknowledgement of an instance says these facts, and return it."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        ack = acks(world).get(instance)
        if ack is not None and all(getattr(ack, name) == value for name, value in facts.items()):
            return ack
        assert time.monotonic() < deadline, f"want {facts}, got {ack}"
        time.sleep(0.02)


def head(world):
    return world.forge.ledger.head


@contextmanager
def process(world, *command, state="state"):
    """Run any command that is a sidecar in the end, with free ports on loopback."""
    state_dir = world.directory / state
    faces = [part for face in ("", *OTHER_FACES) for part in (f"--{face}-listen".replace("---", "--"), "127.0.0.1:0")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLAGHOIST_")}
    sidecar = SidecarProcess(
        subprocess.Popen(
            [*command, "--ledger", world.url, "--root", world.root, "--state-dir", state_dir, *faces],
            env={**environ, "FLAGHOIST_HOME": str(state_dir / "no-home")},
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    try:
        yield sidecar
    finally:
        sidecar.stop()


def through_a_life(world):
    """Start, change, kill -9, start again, end: what the fleet hears of one instance."""
    world.beat(state_root=state_root(world.forge.ledger.snapshot))
    with world.sidecar("--instance", "checkout-1", "--service", "checkout") as sidecar:
        until_readiness(sidecar, state="FRESH")
        first = until_acked(world, "checkout-1", in_force=Seq(2))
        world.flip("on")
        ack = until_acked(world, "checkout-1", seq=Seq(3), in_force=Seq(3))
        assert (ack.service, ack.entry_hash) == ("checkout", head(world).entry_hash)
        assert ack.state_root == state_root(world.forge.ledger.snapshot)
        assert first.started_at == ack.started_at < ack.applied_at <= ack.activated_at <= ack.written_at
        assert metric(sidecar, "flaghoist_acks_written_total") >= 2
        assert metric(sidecar, "flaghoist_verified_seq") == 3
        sidecar.kill()
    dead = acks(world)["checkout-1"]
    assert (dead.seq, dead.started_at) == (ack.seq, ack.started_at)
    assert dead.state != LEFT
    world.flip("off")
    world.beat()
    with world.sidecar("--instance", "checkout-1", "--service", "checkout") as sidecar:
        again = until_acked(world, "checkout-1", seq=Seq(4), state="FRESH")
        assert again.started_at > ack.started_at
        assert sidecar.stop() == 0
    assert until_acked(world, "checkout-1", state=LEFT).seq == Seq(4)
    assert set(acks(world)) == {"checkout-1"}


def test_instance_is_heard_of_through_kill_and_restart_over_sqlite(tmp_path):
    through_a_life(World(tmp_path, beats=True))


@pytest.mark.kafka
def test_instance_is_heard_of_through_kill_and_restart_over_kafka(tmp_path, kafka_url):
    through_a_life(World(tmp_path, kafka_url(), beats=True))


@pytest.mark.kafka
def test_acknowledgements_go_on_after_a_restart_of_the_broker(tmp_path, kafka_broker, kafka_url):
    world = World(tmp_path, kafka_url())
    with world.sidecar("--instance", "checkout-1") as sidecar, client(sidecar) as asking:
        until_acked(world, "checkout-1", in_force=Seq(2))
        kafka_broker.kill()
        sidecar.until("ledger.lost")
        assert asking.ask().value is False
        kafka_broker.restart()
        world.flip("on")
        until_acked(world, "checkout-1", in_force=Seq(3))
        assert asking.ask().value is True


def test_moment_is_acknowledged_before_it_comes_and_after_it_came(tmp_path):
    world = World(tmp_path)
    with world.sidecar("--instance", "checkout-1") as sidecar:
        until_acked(world, "checkout-1", in_force=Seq(2))
        forge = world.forge
        forge.now_ms = int(time.time() * 1000)
        proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), lead_ms=3_000)
        world.append(forge.append(Release(proposal, (forge.approval(proposal),), allowing_rule(forge.root))))
        assert until_acked(world, "checkout-1", seq=Seq(3)).in_force == Seq(2)
        assert 0 < metric(sidecar, "flaghoist_moment_in_seconds") <= 3
        ack = until_acked(world, "checkout-1", in_force=Seq(3))
        assert ack.activated_at - ack.late_ms == forge.now_ms + 3_000
        assert 0 <= ack.late_ms < 1_000
        assert metric(sidecar, "flaghoist_moment_late_seconds") == ack.late_ms / 1000
        assert metric(sidecar, "flaghoist_moment_in_seconds") == 0


def test_sidecar_that_may_not_write_the_ledgers_file_says_so_once_and_answers(tmp_path):
    world = World(tmp_path)
    file = tmp_path / "ledger.db"
    with closing(sqlite3.connect(file)) as open_meanwhile:
        open_meanwhile.execute("SELECT count(*) FROM ledger_record").fetchone()
        # What lies beside the file while it is open is needed to read it.
        for each in tmp_path.glob("ledger.db*"):
            each.chmod(0o444)
        tmp_path.chmod(0o555)
        try:
            # Root may write what nobody may, unless it is held to the permissions.
            setpriv = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
            if setpriv and shutil.which("setpriv") is None:
                pytest.skip("root cannot be held to a file's permissions without setpriv")
            with process(world, *setpriv, SIDECAR, "--instance", "checkout-1") as sidecar:
                refused = sidecar.until("acks.refused")
                assert refused["code"] == "misconfigured"
                assert "readonly" in refused["reason"]
                with client(sidecar) as asking:
                    assert asking.ask().value is False
                assert metric(sidecar, "flaghoist_acks_written_total") == 0
                assert metric(sidecar, "flaghoist_acks_failed_total") == 1
                assert readiness(sidecar)["ready"]
        finally:
            tmp_path.chmod(0o755)
            for each in tmp_path.glob("ledger.db*"):
                each.chmod(0o644)
    assert acks(world) == {}


def test_ledger_that_was_made_before_there_were_acknowledgements_is_followed_all_the_same(tmp_path):
    world = World(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("DROP TABLE acks_record")
        connection.commit()
    with world.sidecar() as sidecar, client(sidecar) as asking:
        refused = sidecar.until("acks.refused", code="log_missing")
        assert "flaghoist init" in refused["hint"]
        world.flip("on")
        assert asking.until(lambda answer: answer.value).metadata["flaghoist.seq"] == 3


def test_file_that_somebody_else_holds_locked_delays_no_answer_and_is_told_afterwards(tmp_path):
    world = World(tmp_path)
    with world.sidecar("--instance", "checkout-1") as sidecar, client(sidecar) as asking:
        until_acked(world, "checkout-1", in_force=Seq(2))
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as holder:
            world.flip("on")
            holder.execute("BEGIN IMMEDIATE")
            asking.until(lambda answer: answer.value)
            sidecar.until("acks.lost", code="unavailable")
            assert asking.ask().value is True
            holder.execute("ROLLBACK")
        until_acked(world, "checkout-1", in_force=Seq(3))


def test_sidecar_that_is_told_not_to_acknowledge_does_not(tmp_path):
    world = World(tmp_path)
    with world.sidecar("--acks", "off") as sidecar, client(sidecar) as asking:
        world.flip("on")
        asking.until(lambda answer: answer.value)
        assert metric(sidecar, "flaghoist_acks_written_total") == 0
        assert metric(sidecar, "flaghoist_verified_seq") == 3
    assert acks(world) == {}


def test_two_sidecars_of_one_machine_have_names_of_their_own_and_keep_them(tmp_path):
    world = World(tmp_path)
    names = []
    for _ in range(2):
        with process(world, SIDECAR, state="one") as one, process(world, SIDECAR, state="two") as other:
            for sidecar in (one, other):
                sidecar.until("ledger.reached")
            deadline = time.monotonic() + ANSWERS_WITHIN_S
            while len(acks(world)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        names.append(set(acks(world)))
    assert names[0] == names[1]


# A clock cannot be set for one process: this runs the product's own service with another one.
SKEWED = """
import asyncio, sys, time
from sidecar.cli import read_config
from sidecar.report import configure
from sidecar.service import run
configure("info")
asyncio.run(run(read_config(sys.argv[2:], {}), wall=lambda: time.time() + float(sys.argv[1])))
"""


@pytest.mark.parametrize("ahead_s", [-3.0, 0.0, 3.0, 100.0])
def test_process_with_a_wrong_clock_says_by_how_much(tmp_path, ahead_s):
    world = World(tmp_path, beats=True)
    with process(world, sys.executable, "-c", SKEWED, str(ahead_s), "--instance", "checkout-1") as sidecar:
        sidecar.until("ledger.reached")
        until_acked(world, "checkout-1", in_force=Seq(2))
        # A heartbeat that this busy test was slow to write tells less than the next.
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while offset_s(sidecar) != pytest.approx(-ahead_s, abs=0.249):
            assert time.monotonic() < deadline
            world.beat(life_s=30.0)
        assert metric(sidecar, "flaghoist_clock_skewed") == (ahead_s != 0)
        world.flip("on")
        ack = until_acked(world, "checkout-1", seq=Seq(3))
        assert ack.clock_offset_ms == pytest.approx(-1000 * ahead_s, abs=249)
        if ahead_s:
            sidecar.until("clock.skewed")


def offset_s(sidecar):
    """What the metric says; None while there is none."""
    try:
        return metric(sidecar, "flaghoist_clock_offset_seconds")
    except StopIteration:
        return None


def test_state_that_is_not_the_publishers_alarms_and_goes_on_answering(tmp_path):
    world = World(tmp_path, beats=True)
    with world.sidecar() as sidecar, client(sidecar) as asking:
        world.beat(state_root=state_root(world.forge.ledger.snapshot))
        until_readiness(sidecar, state="FRESH")
        assert "diverged_at_seq" not in readiness(sidecar)
        assert metric(sidecar, "flaghoist_state_diverged") == 0
        world.beat(state_root=bytes(32))
        diverged = sidecar.until("state.diverged", seq=2)
        assert diverged["ours"] == state_root(world.forge.ledger.snapshot).hex()
        until_readiness(sidecar, state="FRESH", ready=True, diverged_at_seq=2)
        assert metric(sidecar, "flaghoist_state_diverged") == 1
        assert metric(sidecar, "flaghoist_state_divergence_total") == 1
        assert asking.ask().reason == "STATIC"
    assert [json.dumps(event) for event in sidecar.events].count(json.dumps(diverged)) == 1
