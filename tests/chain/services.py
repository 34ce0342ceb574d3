"""The chain: three services in three languages, each with a sidecar of its own, all of one ledger."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from tests.clients.build import EVALUATION, PROTO, Language, Run
from tests.clients.environment import Environment
from tests.forge import boolean_flag
from tests.sidecar_process import SidecarProcess, running_sidecar

HERE: Final = Path(__file__).resolve().parent

# For failures only: a request through the chain takes some 10 ms on an idle machine.
STARTS_WITHIN_S: Final = 30.0
ANSWERS_WITHIN_S: Final = 30.0
ENDS_WITHIN_S: Final = 10.0


@dataclass(frozen=True)
class Service(Language):
    """How one service of the chain is built and run.

    Attributes:
        face: of its sidecar; what it asks.
    """

    face: str

    @property
    def source(self) -> Path:
        return HERE / self.name.removeprefix("chain-")


def _build_nothing(home: Path, run: Run) -> None:
    """The interpreter runs the source, which needs no package that is not here."""


def _build_go(home: Path, run: Run) -> None:
    source = home / "src"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE / "go", source)
    (source / "gen").mkdir()
    plugins = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")
    run("go", "build", "-buildvcs=false", "-o", f"{home}/", *plugins, cwd=source)
    package = f"M{EVALUATION}=flaghoist-chain/gen/{Path(EVALUATION).parent}"
    run(
        *(sys.executable, "-m", "grpc_tools.protoc", "-I", PROTO),
        *(f"--plugin={tool}={home / tool}" for tool in ("protoc-gen-go", "protoc-gen-go-grpc")),
        *("--go_out=gen", f"--go_opt=paths=source_relative,{package}"),
        *("--go-grpc_out=gen", f"--go-grpc_opt=paths=source_relative,{package}"),
        EVALUATION,
        cwd=source,
    )
    run("go", "build", "-buildvcs=false", "-o", home / "service", ".", cwd=source)


_SERVICES = (
    Service("chain-go", ("go",), (PROTO / EVALUATION,), _build_go, lambda home: (str(home / "service"),), "rpc"),
    Service("chain-node", ("node",), (), _build_nothing, lambda _: ("node", str(HERE / "node/service.mjs")), "ofrep"),
    Service("chain-python", (), (), _build_nothing, lambda _: (sys.executable, str(HERE / "python/service.py")), "rpc"),
)
SERVICES: Final[Mapping[str, Service]] = {service.source.name: service for service in _SERVICES}


@dataclass(frozen=True)
class Answer:
    """One flag as one service saw it.

    Attributes:
        seq: of the version that it was answered from.
        pin_miss: why the call's pin was not honoured; None when it was, or the call had none.
    """

    value: bool
    seq: int
    pin_miss: str | None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Answer":
        """Return what a service told; the answer's headers and the flag's metadata say the same."""
        headers, metadata = told["headers"], told["metadata"]
        seq, pin_miss = int(headers["flaghoist-seq"]), headers.get("flaghoist-pin-miss")
        assert (metadata["flaghoist.seq"], "flaghoist.pin_miss" in metadata) == (seq, pin_miss is not None), told
        return cls(told["value"], seq, pin_miss)


@dataclass(frozen=True)
class Sight:
    """What one service saw of one request: the flags, in the order in which it asked, and the baggage that came in."""

    service: str
    baggage: str
    a: Answer
    b: Answer


class Chain:
    """The running services, their sidecars by language, and the ledger that they follow.

    Flags `a` and `b` have always flipped together, in one entry.

    Attributes:
        versions: the value of both flags in each version of the ledger that has them; noted before it can be seen.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.sidecars: dict[str, SidecarProcess] = {}
        self.ports: dict[str, int] = {}
        self.versions: dict[int, bool] = {1: False}  # entry 1 is the root; there are no flags yet
        self.flip()

    @property
    def newest(self) -> int:
        """The newest version's seq."""
        return max(self.versions)

    def flip(self) -> None:
        """Append one entry that flips both flags. From one thread at a time."""
        value = not self.versions[self.newest]
        self.versions[self.newest + 1] = value
        flag = boolean_flag("on" if value else "off")
        self._environment.put({"a": flag, "b": flag})

    def ask(self, order: Sequence[str], *, pins: bool, baggage: str = "") -> list[Sight]:
        """Send one request through the services in this order; returns what each saw, in this order."""
        sights = ask([self.ports[language] for language in order], pins=pins, baggage=baggage)
        assert [sight.service for sight in sights] == list(order)
        return sights


class RequestFailed(Exception):
    """A service answered that it could not, since it or one after it has lost its sidecar; the text is its own."""


def ask(ports: Sequence[int], *, pins: bool, user: str = "", baggage: str = "") -> list[Sight]:
    """Send one request through the services at these ports; returns what each saw, in this order.

    Raises:
        RequestFailed: one of them failed.
    """
    edge, *others = ports
    query = urlencode({"path": ",".join(map(str, others)), "pins": "on" if pins else "off", "user": user})
    connection = HTTPConnection("127.0.0.1", edge, timeout=ANSWERS_WITHIN_S)
    try:
        connection.request("GET", f"/ask?{query}", headers={"baggage": baggage} if baggage else {})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RequestFailed(body.decode(errors="replace"))
    return [
        Sight(told["service"], told["baggage"], Answer.read(told["a"]), Answer.read(told["b"]))
        for told in json.loads(body)
    ]


@contextmanager
def running_chain(directory: Path, commands: Mapping[str, Sequence[str]]) -> Iterator[Chain]:
    """Run a sidecar and a service of each language while the block runs.

    Args:
        directory: of the ledger, of what the sidecars keep, and of what the services write to stderr.
        commands: what runs the service of each language.
    """
    environment = Environment(directory / "ledger")
    chain = Chain(environment)
    with ExitStack() as stack:
        for language in commands:
            sidecar = running_sidecar(environment.url, environment.root, directory / f"{language}-state")
            chain.sidecars[language] = stack.enter_context(sidecar)
        for language, command in commands.items():
            sidecar_process = chain.sidecars[language]
            sidecar_process.until("ledger.reached")
            address = sidecar_process.address_of(SERVICES[language].face)
            stderr = directory / f"{language}.stderr"
            chain.ports[language] = stack.enter_context(running_service([*command, "--sidecar", address], stderr))
        yield chain


@contextmanager
def running_service(command: Sequence[str], stderr: Path) -> Iterator[int]:
    """Run one service while the block runs; gives the port that it listens on."""
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environ, text=True
        )
    first: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                first.put(line)
        first.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        line = first.get(timeout=STARTS_WITHIN_S)
        assert line.strip().isdecimal(), f"no port from {command}: {line!r}; stderr: {stderr.read_text()[-3000:]}"
        yield int(line)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(ENDS_WITHIN_S)
