"""A ledger that a test writes to, a real sidecar on it, and those who ask that."""

import asyncio
import http.client
import json
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from flagd.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flaghoist.codec import encode_envelope
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from tests.forge import DAY_MS, Forge, boolean_flag
from tests.sidecar_process import running_sidecar

ANSWERS_WITHIN_S = 30.0


class World:
    """A ledger that tests append to as its honest publisher, or as anybody with write access."""

    def __init__(self, directory: Path, url: str | None = None, **root: object) -> None:
        """Make the ledger, with one flag in it; `root` says what is special about its root (forge.root_record)."""
        self.directory = directory
        self.url = url or f"sqlite:///{directory}/ledger.db"
        now_ms = int(time.time() * 1000)
        self.forge = Forge(now_ms=now_ms, root_options={"expires_at": now_ms + 365 * DAY_MS, **root})
        self.root = self.root_file("test.root")
        asyncio.run(create_log(self.url))
        self.append(self.forge.genesis(), self.forge.put("new-checkout"))

    def root_file(self, name: str) -> Path:
        """The root in force, as a file."""
        path = self.directory / name
        path.write_bytes(encode_envelope(self.forge.root.envelope))
        return path

    def append(self, *records: bytes) -> None:
        self._write(Stream.LEDGER, records, None)

    def beat(self, data: bytes | None = None, *, life_s: float = 60.0, **changes: Any) -> bytes:
        """Write a heartbeat: the one given, or the honest publisher's own at this moment."""
        now_ms = self.forge.now_ms = int(time.time() * 1000)
        data = data or self.forge.beat(**{"expires_at": now_ms + int(life_s * 1000), **changes})
        self._write(Stream.META, [data], b"heartbeat")
        return data

    def _write(self, stream: Stream, records: Sequence[bytes], key: bytes | None) -> None:
        async def write() -> None:
            async with open_log(self.url)(stream) as log:
                for record in records:
                    await log.append(record, key=key)

        asyncio.run(write())

    def flip(self, variant: str) -> None:
        self.append(self.forge.put("new-checkout", boolean_flag(variant)))

    def sidecar(self, *options: str, root: Path | str | None = None):
        return running_sidecar(self.url, root or self.root, self.directory / "state", *options)


@contextmanager
def client(sidecar):
    with grpc.insecure_channel(sidecar.address) as channel:
        asking = Client(channel)
        asking.until_ready()
        yield asking


class Client:
    def __init__(self, channel) -> None:
        self.channel = channel
        self.stub = evaluation_pb2_grpc.ServiceStub(channel)
        self.health_stub = health_pb2_grpc.HealthStub(channel)

    def until_ready(self):
        watch = self.health_stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=ANSWERS_WITHIN_S)
        assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in watch)
        watch.cancel()

    def ask(self, key="new-checkout"):
        request = evaluation_pb2.ResolveBooleanRequest(flag_key=key)
        return self.stub.ResolveBoolean(request, wait_for_ready=True, timeout=ANSWERS_WITHIN_S)

    def until(self, condition):
        """Ask again whenever the sidecar says that something changed, until an answer fits."""
        if condition(answer := self.ask()):
            return answer
        for _ in self.stub.EventStream(evaluation_pb2.EventStreamRequest(), timeout=ANSWERS_WITHIN_S):
            if condition(answer := self.ask()):
                return answer
        raise AssertionError("the stream ended")

    def health(self):
        return self.health_stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWERS_WITHIN_S).status


def asked(sidecar, path):
    """Ask the management listener; returns (status, text)."""
    connection = http.client.HTTPConnection(sidecar.address_of("management"), timeout=ANSWERS_WITHIN_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def readiness(sidecar):
    """What /readyz says, with its status as `status`."""
    status, text = asked(sidecar, "/readyz")
    return {"status": status, **json.loads(text)}


def until_readiness(sidecar, **facts):
    """Ask /readyz until it says these facts, and return what it says."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while not facts.items() <= (said := readiness(sidecar)).items():
        assert time.monotonic() < deadline, f"want {facts}, got {said}"
        time.sleep(0.02)
    return said


def metric(sidecar, name):
    """One sample of /metrics, by its name with labels."""
    _, text = asked(sidecar, "/metrics")
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")))
