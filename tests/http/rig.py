"""Real HTTP listeners over a board, and real sockets before them."""

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from sidecar.board import Board
from sidecar.faces.connect import Connect
from sidecar.faces.evaluation_v1 import EvaluationV1
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.faces.management import Management
from sidecar.faces.ofrep import Ofrep
from sidecar.http_app import Cors, HttpApp, HttpFace
from sidecar.http_connection import HttpLimits
from sidecar.http_front import LIMITS, HttpFront, serve_http
from sidecar.listeners import Face, Listener
from sidecar.metrics import SidecarMetrics
from tests.fronts.rig import DEADLINE_S, LOOPBACK, Clock, Definitions, view_of

SCENARIO_S = 60.0  # for failures only

BULK = "/ofrep/v1/evaluate/flags"


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Rig:
    """What a test talks to."""

    board: Board
    clock: Clock
    front: HttpFront
    management: HttpFront
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def port(self) -> int:
        return int(self.front.addresses[0].rpartition(":")[2])

    async def call(
        self,
        path: str,
        body: bytes | str | Mapping[str, Any] | None = None,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        front: HttpFront | None = None,
    ) -> Reply:
        """Send one request on a connection of its own, by Python's own client."""
        address = (front or self.front).addresses[0]
        if isinstance(body, Mapping):
            body = json.dumps(body)
        return await asyncio.to_thread(_call, address, method, path, body, dict(headers or {}))

    async def flag(self, key: str, context: object = None, **more: Any) -> Reply:
        """Ask OFREP for one flag."""
        return await self.call(f"{BULK}/{key}", json.dumps({"context": context}), **more)

    async def flags(self, context: object = None, **more: Any) -> Reply:
        """Ask OFREP for every flag."""
        return await self.call(BULK, json.dumps({"context": context}), **more)

    async def ask(self, path: str, **more: Any) -> Reply:
        """Ask the management listener."""
        return await self.call(path, method=more.pop("method", "GET"), front=self.management, **more)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


def _call(address: str, method: str, path: str, body: bytes | str | None, headers: dict[str, str]) -> Reply:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, named, response.read())
    finally:
        connection.close()


def head(path: str = BULK, *, length: int | None = 0, more: str = "", method: str = "POST") -> bytes:
    """Return a request's head as bytes."""
    fields = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}{more}\r\n".encode()


@asynccontextmanager
async def rig(
    flags: Definitions | None = None,
    *,
    cors: Sequence[str] | None = None,
    limits: HttpLimits = LIMITS,
    drain_s: float = 2.0,
    kept: bool = False,
    listener: Listener = LOOPBACK,
    more_faces: Mapping[bytes, HttpFace] | None = None,
) -> AsyncIterator[Rig]:
    """Serve `flags` over HTTP, fresh; None leaves the board empty. `kept`: they came from the disk and are stale."""
    clock = Clock()
    board = Board(clock)
    if flags is not None:
        board.put(view_of(flags))
        if not kept:
            board.mark_fresh(clock())
    events = EventStreams(board)
    tally: Counter[str] = Counter()
    fronts: list[HttpFront] = []
    faces: dict[bytes, HttpFace] = {b"ofrep": Ofrep(board), **(more_faces or {})}
    for service in (EvaluationV1(board, events), EvaluationV2(board, events)):
        faces[service.name.encode()] = Connect(service)
    management = Management(board, SidecarMetrics(board, tally, events, lambda: fronts))
    app = HttpApp("ofrep", faces, cors=None if cors is None else Cors(cors))
    async with (
        serve_http(HttpApp("management", management.faces), [LOOPBACK], face=Face.MANAGEMENT) as second,
        serve_http(app, [listener], face=Face.OFREP, drain_s=drain_s, limits=limits) as first,
    ):
        fronts += [first, second]
        yield Rig(board, clock, first, second, tally)


def runner(flags: Definitions | None) -> Callable[..., None]:
    """Return what runs a scenario against a rig with these flags, or with those given as the second argument."""

    def run(scenario: Callable[[Rig], Awaitable[None]], *other: Definitions | None, **options: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(SCENARIO_S), rig(other[0] if other else flags, **options) as it:
                await scenario(it)

        uvloop.run(main())  # as the sidecar does

    return run


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one response that has a length, or no body."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), await reader.readexactly(int(fields.get("content-length", 0)))
