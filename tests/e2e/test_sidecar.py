"""The sidecar as a process: what it does when the ledger, the disk or the operator does what they do on bad days."""

import http.client
import json
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2
from grpc_health.v1 import health_pb2

from flaghoist.codec import encode_envelope
from flaghoist.root import Root
from sidecar.keep import kept_in
from tests.e2e.world import ANSWERS_WITHIN_S, World, client
from tests.forge import ADA, Key, boolean_flag, root_record, sealed_root
from tests.sidecar_process import running_sidecar


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("server", ["native", "grpcio"])
def test_change_reaches_a_client_on_either_front(world, server):
    with world.sidecar("--server", server) as sidecar, client(sidecar) as asking:
        assert asking.ask().value is False
        assert asking.health() == health_pb2.HealthCheckResponse.SERVING
        world.flip("on")
        answer = asking.until(lambda answer: answer.value)
        assert answer.metadata["flaghoist.seq"] == 3
        assert sidecar.stop() == 0


def test_sidecar_that_lost_its_ledger_starts_from_its_disk_and_says_how_old_it_is(world):
    with world.sidecar() as sidecar, client(sidecar) as asking:
        asking.ask()
        sidecar.until("ledger.reached", seq=2)
        assert sidecar.stop() == 0
    Path(world.url.removeprefix("sqlite:///")).rename(world.directory / "away.db")
    with world.sidecar() as sidecar, client(sidecar) as asking:
        assert sidecar.until("snapshot.loaded", origin="disk")["seq"] == 2
        answer = asking.ask()
        assert (answer.value, answer.reason) == (False, "STALE")
        assert answer.metadata["flaghoist.stale_s"] >= 0
        assert asking.health() == health_pb2.HealthCheckResponse.SERVING
        (world.directory / "away.db").rename(world.url.removeprefix("sqlite:///"))
        world.flip("on")
        assert asking.until(lambda answer: answer.value).reason == "STATIC"


def test_sidecar_that_was_killed_starts_from_what_it_had_kept(world):
    with world.sidecar() as sidecar, client(sidecar) as asking:
        world.flip("on")
        asking.until(lambda answer: answer.value)
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while [len(list(records)) for records in kept_in(world.directory / "state")] != [3]:  # served first, then kept
            assert time.monotonic() < deadline
            time.sleep(0.02)
        sidecar.kill()
    with world.sidecar() as sidecar, client(sidecar) as asking:
        assert asking.ask().value is True


def test_first_signal_drains_and_health_says_so_first(world):
    with world.sidecar() as sidecar, client(sidecar) as asking:
        events = asking.stub.EventStream(evaluation_pb2.EventStreamRequest(), timeout=ANSWERS_WITHIN_S)
        assert next(events).type == "provider_ready"
        sidecar.process.send_signal(signal.SIGINT)
        heard = []
        with suppress(grpc.RpcError):
            for event in events:
                heard.append(event.type)  # noqa: PERF401 — what was heard before the stream's end counts
        assert heard[-1] == "provider_shutdown"
        assert events.code() is grpc.StatusCode.UNAVAILABLE
        assert sidecar.ended() == 0
        assert sidecar.until("sidecar.draining")


def test_wrong_root_is_a_clear_error_and_an_exit_code(world, tmp_path):
    stranger = Root.verified(sealed_root(root_record("production"), Key(ADA)))
    (tmp_path / "other.root").write_bytes(encode_envelope(stranger.envelope))
    (tmp_path / "junk.root").write_bytes(b"junk")
    for root, said in (("junk.root", "root"), ("missing.root", "cannot be read")):
        with running_sidecar(world.url, tmp_path / root, tmp_path / "s") as sidecar:
            assert sidecar.ended() == 2
            assert said in sidecar.text
    with running_sidecar(world.url, tmp_path / "other.root", tmp_path / "s2") as sidecar:
        # The publisher is the same here, so the first entry's signature holds: it states another root.
        assert sidecar.until("record.dropped")["code"] in ("wrong_root", "wrong_log")


def test_missing_ledger_is_a_clear_error_and_an_exit_code(world, tmp_path):
    with running_sidecar(f"sqlite:///{tmp_path}/nothing.db", world.root, tmp_path / "s") as sidecar:
        assert sidecar.ended() == 2
        assert "error[log_missing]" in " ".join(e["text"] for e in sidecar.events if e["event"] == "text")


def test_state_directory_that_cannot_be_written_is_said_and_borne(world, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        running_sidecar(world.url, world.root, tmp_path / "file" / "state") as sidecar,
        client(sidecar) as asking,
    ):
        assert asking.ask().value is False
        assert sidecar.until("kept_state.unavailable")


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_forged_records_change_no_answer_and_fill_no_log(world, seed):
    """As somebody would who can write and has no key: junk, damaged copies, replays, strangers' entries."""
    rng = random.Random(seed)
    honest = list(world.forge.records)
    release = world.forge.release(world.forge.op("new-checkout", boolean_flag("on")))
    forged = world.forge.signed(world.forge.entry(release), by=Key(ADA))

    def attack() -> bytes:
        record = bytearray(rng.choice((*honest, forged)))
        match rng.randrange(4):
            case 0:
                return rng.randbytes(rng.randint(1, 2000))
            case 1:
                record[rng.randrange(len(record))] ^= 1 << rng.randrange(8)
            case 2:
                del record[rng.randrange(1, len(record)) :]
            case _:
                pass
        return bytes(record)

    with world.sidecar() as sidecar, client(sidecar) as asking:
        before = asking.ask()
        resident_before = resident_kib(sidecar)
        world.append(*(attack() for _ in range(10_000 if seed == 0 else 1_000)))
        world.flip("on")
        answer = asking.until(lambda answer: answer.value)
        assert before.value is False
        assert answer.metadata["flaghoist.seq"] == 3
        assert resident_kib(sidecar) - resident_before < 20_000
        assert sidecar.stop() == 0
        assert len(sidecar.events) < 100


def resident_kib(sidecar) -> int:
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.kafka
def test_sidecar_rides_out_a_restart_of_the_broker(tmp_path, kafka_broker, kafka_url):
    world = World(tmp_path, kafka_url())
    with world.sidecar("--fresh-for-s", "1") as sidecar, client(sidecar) as asking:
        asking.ask()
        sidecar.until("ledger.reached", seq=2)
        kafka_broker.kill()
        sidecar.until("ledger.lost")
        assert asking.ask().reason == "STALE"
        assert asking.health() == health_pb2.HealthCheckResponse.SERVING
        kafka_broker.restart()
        world.flip("on")
        assert asking.until(lambda answer: answer.value).reason == "STATIC"


def test_context_of_the_options_reaches_every_face(world):
    rule = {"if": [{"and": [{"==": [{"var": "region"}, "eu"]}, {"==": [{"var": "tenant"}, "shop"]}]}, "on", "off"]}
    world.append(world.forge.put("ruled", boolean_flag("off", targeting=rule)))
    options = ("--context-value", "region=eu", "--context-from-header", "x-tenant=tenant")
    with world.sidecar(*options) as sidecar, client(sidecar) as asking:
        request = evaluation_pb2.ResolveBooleanRequest(flag_key="ruled")
        told = [("x-tenant", "shop")]
        assert asking.stub.ResolveBoolean(request, metadata=told, timeout=ANSWERS_WITHIN_S).value is True
        assert asking.stub.ResolveBoolean(request, timeout=ANSWERS_WITHIN_S).value is False
        for path, answer in (
            ("/ofrep/v1/evaluate/flags/ruled", lambda body: body["value"]),
            ("/flagd.evaluation.v1.Service/ResolveBoolean", lambda body: body.get("value", False)),
        ):
            for headers, value in (({"x-tenant": "shop"}, True), ({}, False)):
                connection = http.client.HTTPConnection(sidecar.address_of("ofrep"), timeout=ANSWERS_WITHIN_S)
                content = json.dumps({"flagKey": "ruled", "context": {"region": "us"}})
                connection.request("POST", path, content, {"content-type": "application/json", **headers})
                assert answer(json.loads(connection.getresponse().read())) is value, (path, headers)
                connection.close()
