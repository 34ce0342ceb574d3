"""The servers under load: a real sidecar, and a bare server on the same front that knows one answer."""

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v1 import evaluation_pb2_grpc as v1_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.front import FrontKind
from tests.bench.processes import READY_S, Child, module, running
from tests.kafka.broker import free_ports

# Open, as they are in a pod, on any free port: sidecars that are compared run side by side.
_OTHER_FACES = {f"FLAGHOIST_{face}_LISTEN": "127.0.0.1:0" for face in ("MANAGEMENT", "SYNC", "OFREP")}


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers at `address` (host:port)."""

    child: Child
    address: str


@contextmanager
def sidecar(
    url: str, root: bytes, *, front: FrontKind = FrontKind.NATIVE, state_dir: Path | None = None
) -> Iterator[Server]:
    """Run a sidecar on a ledger; it may not serve yet, see `wait_until_serving`."""
    with tempfile.TemporaryDirectory(prefix="flaghoist-bench-") as place:
        root_file = Path(place) / "root"
        root_file.write_bytes(root)
        (port,) = free_ports(1)
        address = f"127.0.0.1:{port}"
        command = [str(Path(sys.executable).with_name("flaghoist-sidecar")), "--ledger", url, "--root", str(root_file)]
        command += [
            "--listen",
            address,
            "--server",
            front.value,
            "--state-dir",
            str(state_dir or Path(place) / "state"),
        ]
        with running(command, variables=_OTHER_FACES) as child:
            yield Server(child, address)


@contextmanager
def bare(front: FrontKind, answer: bytes) -> Iterator[Server]:
    """Run a server that answers every call with these bytes, on the front that a sidecar would use."""
    with module("bare_server", front.value, answer.hex()) as child:
        yield Server(child, child.heard()["address"])


def wait_until_serving(server: Server) -> None:
    """Return as soon as the server's health says SERVING."""

    def accepts() -> bool | None:
        host, _, port = server.address.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return None
        return True

    server.child.wait_for(accepts, "listening")
    with channel(server) as opened:
        watch = health_pb2_grpc.HealthStub(opened).Watch(
            health_pb2.HealthCheckRequest(), timeout=READY_S, wait_for_ready=True
        )
        for status in watch:
            if status.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return


def wait_until_fresh(server: Server, key: str) -> None:
    """Return as soon as the server answers for this flag and knows that it has the ledger's newest state."""
    wait_until_serving(server)
    with channel(server) as opened:
        resolve = v1_grpc.ServiceStub(opened).ResolveBoolean  # type: ignore[no-untyped-call]
        request = v1.ResolveBooleanRequest(flag_key=key)

        def fresh() -> bool | None:
            return True if resolve(request, timeout=READY_S).reason != "STALE" else None

        server.child.wait_for(fresh, "a fresh answer")


def channel(server: Server) -> grpc.Channel:
    """Return a plaintext channel to the server."""
    return grpc.insecure_channel(server.address)


def answer_of(server: Server, path: str, request: bytes) -> bytes:
    """Return the bytes with which the server answers one call."""
    with channel(server) as opened:
        return bytes(opened.unary_unary(path)(request, timeout=READY_S))
