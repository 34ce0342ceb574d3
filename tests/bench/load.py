"""Load on a gRPC server by ghz, a program in Go: the caller's cost must not be Python's."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.bench.go_programs import installed
from tests.bench.servers import Server

GHZ: Final = "github.com/bojand/ghz/cmd/ghz@v0.93.0"


@dataclass(frozen=True, slots=True)
class Callers:
    """Who calls: so many at once, over so many connections."""

    count: int
    connections: int

    def __str__(self) -> str:
        return f"{self.count} over {self.connections}"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of load showed. CPU is the server's, user and system, a call."""

    calls_a_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def ghz() -> Path:
    """Return the program; raises NoProgram where it cannot be had."""
    return installed("ghz", GHZ)


def drive(server: Server, call: str, request: bytes, callers: Callers, seconds: float) -> Load:
    """Call `call` (package.Service.Method) with this request as fast as the callers can, for so long.

    Raises:
        RuntimeError: any call failed: figures of errors are no figures.
    """
    with TemporaryDirectory() as place:
        protoset, data = Path(place) / "protoset", Path(place) / "request"
        protoset.write_bytes(_protoset())
        data.write_bytes(request)
        command = [str(ghz()), "--insecure", "--protoset", str(protoset), "--call", call, "--binary-file", str(data)]
        command += ["--concurrency", str(callers.count), "--connections", str(callers.connections), "--format", "json"]
        command += ["--duration", f"{round(seconds * 1000)}ms", "--duration-stop", "wait", server.address]
        return _run(command, server)


def _protoset() -> bytes:
    # ghz reads .proto files too, but its parser is older than `optional` in proto3.
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for other in file.dependencies:
            add(other)
        files.setdefault(file.name, file)

    for messages in (v1, v2):
        add(messages.DESCRIPTOR)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString()


def _run(command: list[str], server: Server) -> Load:
    before_s = server.child.cpu_s
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    cpu_s = server.child.cpu_s - before_s
    if done.returncode:
        raise RuntimeError(f"ghz ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
    report = json.loads(done.stdout)
    if set(report["statusCodeDistribution"]) != {"OK"}:
        raise RuntimeError(f"not every call was answered: {report['statusCodeDistribution']}")
    latency_ms = {part["percentage"]: part["latency"] / 1e6 for part in report["latencyDistribution"]}
    return Load(report["rps"], latency_ms[50], latency_ms[99], cpu_s / report["count"] * 1e6)
