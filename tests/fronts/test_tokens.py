"""Bearer tokens on every way to ask: gRPC on both servers, its reflection and streams, and HTTP."""

import asyncio
import http.client
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v1 import evaluation_pb2_grpc as v1_grpc
from flagd.sync.v1 import sync_pb2, sync_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sidecar.access import GrpcAccess, guarded
from sidecar.board import Board
from sidecar.faces.connect import Connect
from sidecar.faces.evaluation_v1 import EvaluationV1
from sidecar.faces.events import EventStreams
from sidecar.faces.management import Management
from sidecar.faces.ofrep import Ofrep
from sidecar.faces.sync import Sync
from sidecar.front import FrontKind, serve
from sidecar.http_app import Cors, HttpApp
from sidecar.http_front import serve_http
from sidecar.listeners import Face
from sidecar.metrics import SidecarMetrics
from sidecar.tokens import Tokens
from tests.certificates import replace
from tests.fronts.rig import DEADLINE_S, KINDS, LOOPBACK, Clock, switch, view_of

TOKEN = "correct-horse-battery-staple"
WRONG = "incorrect-horse-battery-staple"
GOOD = [("authorization", f"Bearer {TOKEN}")]
BAD: list[Any] = [[], [("authorization", f"Bearer {WRONG}")], [("authorization", TOKEN)], [*GOOD, *GOOD]]
ORIGIN = "https://shop.example.org"


@asynccontextmanager
async def grpc_channel(kind: FrontKind, tokens: Tokens) -> AsyncIterator[grpc.aio.Channel]:
    board = Board(Clock())
    board.put(view_of({"switch": switch()}))
    board.mark_fresh(board.clock())
    services = [EvaluationV1(board, EventStreams(board)), Sync(board)]
    async with (
        serve(services, [LOOPBACK], board=board, kind=kind, interceptors=[GrpcAccess(tokens)], drain_s=2.0) as front,
        grpc.aio.insecure_channel(front.addresses[0]) as channel,
    ):
        yield channel


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    replace(path, TOKEN.encode())
    return path


async def unary(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = v1_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
    request = v1.ResolveBooleanRequest(flag_key="switch")
    assert (await stub.ResolveBoolean(request, metadata=metadata, timeout=DEADLINE_S)).value is True


async def stream(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = v1_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
    call = stub.EventStream(v1.EventStreamRequest(), metadata=metadata, timeout=DEADLINE_S)
    assert (await anext(aiter(call))).type == "provider_ready"
    call.cancel()


async def sync(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = sync_pb2_grpc.FlagSyncServiceStub(channel)  # type: ignore[no-untyped-call]
    call = stub.SyncFlags(sync_pb2.SyncFlagsRequest(), metadata=metadata, timeout=DEADLINE_S)
    assert '"switch"' in (await anext(aiter(call))).flag_configuration
    call.cancel()


async def reflect(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    call = stub.ServerReflectionInfo(requests, metadata=metadata, timeout=DEADLINE_S)
    assert [answer async for answer in call]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ask", [unary, stream, sync, reflect])
def test_grpc_call_without_a_known_token_is_unauthenticated(kind: FrontKind, ask: Any, file: Path) -> None:
    async def scenario() -> None:
        async with grpc_channel(kind, Tokens(file)) as channel:
            await ask(channel, GOOD)
            for metadata in BAD:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ask(channel, metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "horse" not in str(refused.value.details())
            await ask(channel, GOOD)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_grpc_health_asks_for_no_token(kind: FrontKind, file: Path) -> None:
    async def scenario() -> None:
        async with grpc_channel(kind, Tokens(file)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            watch = stub.Watch(request, timeout=DEADLINE_S)
            async for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            assert (await stub.Check(request, timeout=DEADLINE_S)).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_token_counts_at_the_next_call_of_an_open_connection(kind: FrontKind, file: Path) -> None:
    async def scenario() -> None:
        tokens = Tokens(file)
        async with grpc_channel(kind, tokens) as channel:
            await unary(channel, GOOD)
            replace(file, WRONG.encode())
            tokens.load()
            await unary(channel, [("authorization", f"Bearer {WRONG}")])
            with pytest.raises(grpc.aio.AioRpcError):
                await unary(channel, GOOD)

    asyncio.run(scenario())


@asynccontextmanager
async def http_ports(tokens: Tokens) -> AsyncIterator[tuple[int, int]]:
    """Yield the ports of OFREP (and Connect), and of management."""
    board = Board(Clock())
    board.put(view_of({"switch": switch()}))
    events = EventStreams(board)
    evaluation = EvaluationV1(board, events)
    faces = {b"ofrep": Ofrep(board), evaluation.name.encode(): Connect(evaluation)}
    management = Management(board, SidecarMetrics(board, {}, events))
    apps = [
        (Face.OFREP, HttpApp("ofrep", guarded(faces, tokens), cors=Cors([ORIGIN]))),
        (Face.MANAGEMENT, HttpApp("management", guarded(management.faces, tokens))),
    ]
    async with (
        serve_http(apps[0][1], [LOOPBACK], face=apps[0][0]) as ofrep,
        serve_http(apps[1][1], [LOOPBACK], face=apps[1][0]) as second,
    ):
        yield int(ofrep.addresses[0].rpartition(":")[2]), int(second.addresses[0].rpartition(":")[2])


async def reply(
    port: int, method: str, path: str, fields: Sequence[tuple[str, str]], body: bytes | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    def ask() -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        connection.putrequest(method, path)
        for name, value in [*fields, ("Content-Type", "application/json"), ("Content-Length", str(len(body or b"")))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answered = answer.status, answer.headers, answer.read()
        connection.close()
        return answered

    return await asyncio.to_thread(ask)


CLOSED = [
    ("ofrep", "POST", "/ofrep/v1/evaluate/flags/switch", b"{}"),
    ("ofrep", "POST", "/ofrep/v1/evaluate/flags", b"{}"),
    ("ofrep", "POST", "/ofrep/v1/evaluate/flags/switch", 100_000 * b"x"),
    ("ofrep", "GET", "/ofrep/v1/evaluate/flags/switch", b""),
    ("ofrep", "POST", "/flagd.evaluation.v1.Service/ResolveBoolean", b'{"flagKey":"switch"}'),
    ("management", "GET", "/metrics", b""),
]


@pytest.mark.parametrize(("face", "method", "path", "body"), CLOSED, ids=range(len(CLOSED)))
def test_http_request_without_a_known_token_is_401_and_says_what_is_wanted(
    face: str, method: str, path: str, body: bytes, file: Path
) -> None:
    async def scenario() -> None:
        async with http_ports(Tokens(file)) as (ofrep, management):
            port = ofrep if face == "ofrep" else management
            for fields in BAD:
                status, headers, text = await reply(port, method, path, fields, body)
                assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="flaghoist"')
                assert b"horse" not in text
            status, _, _ = await reply(port, method, path, GOOD, body)
            assert status != 401

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_http_health_asks_for_no_token(path: str, file: Path) -> None:
    async def scenario() -> None:
        async with http_ports(Tokens(file)) as (_, management):
            assert (await reply(management, "GET", path, []))[0] == 200

    asyncio.run(scenario())


def test_web_page_may_ask_whether_it_may_ask_and_can_read_the_401(file: Path) -> None:
    async def scenario() -> None:
        async with http_ports(Tokens(file)) as (ofrep, _):
            path = "/ofrep/v1/evaluate/flags"
            asking = [
                ("Origin", ORIGIN),
                ("Access-Control-Request-Method", "POST"),
                ("Access-Control-Request-Headers", "authorization"),
            ]
            status, headers, _ = await reply(ofrep, "OPTIONS", path, asking)
            assert (status, headers["Access-Control-Allow-Headers"]) == (204, "authorization")
            status, headers, _ = await reply(ofrep, "POST", path, [("Origin", ORIGIN)], b"{}")
            assert (status, headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)

    asyncio.run(scenario())
