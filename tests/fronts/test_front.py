"""The seam itself: which server carries what, health, reflection, addresses and the drain."""

import asyncio
import importlib.util
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from flaghoist.errors import Misconfigured
from sidecar.board import Board
from sidecar.front import FrontKind, kind_of, serve
from sidecar.listeners import Listener, TcpListener, UnixListener
from tests.fronts.rig import DEADLINE_S, KINDS, LOOPBACK, Clock, eventually, refusal, rig, switch, view_of

FLAGS = {"switch": switch()}
NAMES = ["", "flagd.evaluation.v1.Service", "flagd.evaluation.v2.Service"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, name: str) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_S)).status


@pytest.mark.parametrize(
    ("listener", "wanted", "carrier"),
    [
        (TcpListener("127.0.0.1", 8013), FrontKind.AUTO, FrontKind.NATIVE),
        (TcpListener("::1", 8013), FrontKind.AUTO, FrontKind.NATIVE),
        (TcpListener("localhost", 8013), FrontKind.AUTO, FrontKind.NATIVE),
        (TcpListener("0.0.0.0", 8013), FrontKind.AUTO, FrontKind.GRPCIO),
        (TcpListener("0.0.0.0", 8013), FrontKind.NATIVE, FrontKind.NATIVE),
        (TcpListener("127.0.0.1", 8013), FrontKind.GRPCIO, FrontKind.GRPCIO),
        (UnixListener(Path("/tmp/s")), FrontKind.AUTO, FrontKind.GRPCIO),
        (UnixListener(Path("/tmp/s")), FrontKind.NATIVE, FrontKind.GRPCIO),
    ],
)
def test_carrier_follows_from_listener_and_wish(listener: Listener, wanted: FrontKind, carrier: FrontKind) -> None:
    assert kind_of(listener, wanted) is carrier


def test_without_the_wheel_auto_is_grpcio_and_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kind_of(LOOPBACK, FrontKind.AUTO) is FrontKind.GRPCIO
    with pytest.raises(Misconfigured, match="pygrpc-native is not installed"):
        kind_of(LOOPBACK, FrontKind.NATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_health_is_not_serving_until_a_view_is_there(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            for name in NAMES:
                assert await health_of(it.channel, name) == NOT_SERVING
            code, _ = await refusal(health_of(it.channel, "nobody"))
            assert code is grpc.StatusCode.NOT_FOUND
            stub = health_pb2_grpc.HealthStub(it.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAMES[1]))
            async with asyncio.timeout(DEADLINE_S):
                assert (await watch.read()).status == NOT_SERVING
                it.board.put(view_of(FLAGS))
                assert (await watch.read()).status == SERVING
            for name in NAMES:
                assert await health_of(it.channel, name) == SERVING

    asyncio.run(scenario())


class Slow:
    """A service whose one call ends when it is told to."""

    name = "tests.Slow"

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    def handlers(self) -> Mapping[str, Any]:
        return {"Call": grpc.unary_unary_rpc_method_handler(self._call)}

    async def _call(self, request: bytes, context: object) -> bytes:
        self.begun.set()
        await self.may_end.wait()
        return b"done"


@pytest.mark.parametrize("kind", KINDS)
def test_drain_says_not_serving_then_shutdown_and_lets_the_open_call_finish(kind: FrontKind) -> None:
    async def scenario() -> None:
        slow = Slow()
        board = Board(Clock())
        board.put(view_of(FLAGS))
        leave = asyncio.Event()

        async def run(addresses: "asyncio.Future[str]") -> None:
            async with serve([slow], [LOOPBACK], board=board, kind=kind, drain_s=DEADLINE_S) as front:
                addresses.set_result(front.addresses[0])
                await leave.wait()

        async with asyncio.timeout(2 * DEADLINE_S), asyncio.TaskGroup() as tasks:
            address = asyncio.get_running_loop().create_future()
            serving = tasks.create_task(run(address))
            async with grpc.aio.insecure_channel(await address) as channel:
                call = channel.unary_unary("/tests.Slow/Call")(b"")
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                statuses = [(await watch.read()).status]
                await slow.begun.wait()
                leave.set()
                while (heard := await watch.read()) is not grpc.aio.EOF:
                    statuses.append(heard.status)
                assert statuses[-1] == NOT_SERVING
                assert board.closed
                assert not serving.done()
                slow.may_end.set()
                assert await call == b"done"
                await serving

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_drain_ends_a_call_that_outlasts_it(kind: FrontKind) -> None:
    async def scenario() -> None:
        slow = Slow()
        board = Board(Clock())
        began = time.monotonic()
        async with serve([slow], [LOOPBACK], board=board, kind=kind, drain_s=0.2) as front:
            channel = grpc.aio.insecure_channel(front.addresses[0])
            call = channel.unary_unary("/tests.Slow/Call")(b"")
            await slow.begun.wait()
        assert 0.2 <= time.monotonic() - began < DEADLINE_S
        code, _ = await refusal(call)
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await channel.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_drain_that_is_cancelled_ends_at_once(kind: FrontKind) -> None:
    async def scenario() -> None:
        slow = Slow()
        board = Board(Clock())
        opened = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with serve([slow], [LOOPBACK], board=board, kind=kind, drain_s=10 * DEADLINE_S) as front:
                opened.set_result(front.addresses[0])
                await slow.begun.wait()

        serving = asyncio.create_task(run())
        async with grpc.aio.insecure_channel(await opened) as channel:
            call = channel.unary_unary("/tests.Slow/Call")(b"")
            await eventually(lambda: board.closed)
            serving.cancel()
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(serving, return_exceptions=True)
            code, _ = await refusal(call)
            assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_reflection_lists_the_services_and_finds_services_and_methods(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            stub = reflection_pb2_grpc.ServerReflectionStub(it.channel)
            symbols = ["flagd.evaluation.v2.Service", "flagd.evaluation.v2.Service.ResolveBoolean"]
            requests = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="flagd.evaluation.v2.Service.Nothing"),
            ]
            call = stub.ServerReflectionInfo(iter(requests), timeout=DEADLINE_S)
            listed, service, method, nothing = [answer async for answer in call]
            assert {each.name for each in listed.list_services_response.service} >= {
                *NAMES[1:],
                "grpc.health.v1.Health",
            }
            assert service.HasField("file_descriptor_response")
            assert method.HasField("file_descriptor_response")
            assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]

    asyncio.run(scenario())


def test_read_only_file_system_costs_the_native_front_its_reflection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    async def scenario() -> None:
        monkeypatch.setattr(tempfile, "gettempdir", no_folder)
        with capture_logs() as logs:
            async with rig(FrontKind.NATIVE, FLAGS) as it:
                assert (await it.resolve(2, "Boolean", "switch")).value is True
        assert "reflection.left_out" in [line["event"] for line in logs]

    asyncio.run(scenario())


def frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """Return an HTTP/2 frame on stream 0 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + payload


SETTINGS, PING, GOAWAY, ACK = 0x4, 0x6, 0x7, 0x1


@pytest.mark.parametrize("kind", KINDS)
def test_client_that_pings_all_the_time_is_not_cut_off(kind: FrontKind) -> None:
    pings = 50  # grpcio's defaults end the connection at the third

    async def scenario() -> None:
        async with rig(kind, FLAGS) as it, asyncio.timeout(DEADLINE_S):
            host, _, port = it.front.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, b""))
            answered = 0
            while answered < pings:
                writer.write(frame(PING, answered.to_bytes(8, "big")))
                acknowledged = False
                while not acknowledged:
                    header = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                    assert header[3] != GOAWAY, payload
                    acknowledged = header[3] == PING and bool(header[4] & ACK)
                answered += 1
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_port_in_use_names_the_address_and_what_to_do(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            port = int(it.front.addresses[0].rpartition(":")[2])
            with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}: another process") as refused:
                async with rig(kind, FLAGS, listener=TcpListener("127.0.0.1", port)):
                    pass
            assert "--listen" in refused.value.hint

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_address_of_another_machine_is_refused_with_the_systems_reason(kind: FrontKind) -> None:
    async def scenario() -> None:
        with pytest.raises(Misconfigured, match=r"cannot listen on 192\.0\.2\.1:0: .+"):
            async with rig(kind, FLAGS, listener=TcpListener("192.0.2.1", 0)):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_port_is_free_again_after_the_front(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            await it.resolve(1, "Boolean", "switch")
            port = int(it.front.addresses[0].rpartition(":")[2])
        async with rig(kind, FLAGS, listener=TcpListener("127.0.0.1", port)) as it:
            assert (await it.resolve(1, "Boolean", "switch")).value is True

    asyncio.run(scenario())


def test_two_listeners_serve_one_board_and_a_refused_one_frees_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        board = Board(Clock())
        unix = UnixListener(tmp_path / "s.sock")
        async with serve([], [LOOPBACK, unix], board=board) as front:
            assert [bound.kind for bound in front.bound] == [FrontKind.NATIVE, FrontKind.GRPCIO]
            port = int(front.addresses[0].rpartition(":")[2])
            for address in front.addresses:
                async with grpc.aio.insecure_channel(address) as channel:
                    assert await health_of(channel, "") == NOT_SERVING
        occupied = tmp_path / "file"
        occupied.write_text("not a socket")
        listener = TcpListener("127.0.0.1", port)
        with pytest.raises(Misconfigured, match="not a socket"):
            async with serve([], [listener, UnixListener(occupied)], board=Board(Clock())):
                pass
        assert occupied.read_text() == "not a socket"
        async with serve([], [listener], board=Board(Clock())):
            pass

    asyncio.run(scenario())


def test_unix_socket_serves_and_is_the_groups(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s.sock"
        async with rig(FrontKind.AUTO, FLAGS, listener=UnixListener(path)) as it:
            assert (await it.resolve(2, "Boolean", "switch")).value is True
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert not path.exists()

    asyncio.run(scenario())


def test_socket_of_a_killed_sidecar_is_replaced_and_of_a_live_one_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with rig(FrontKind.AUTO, FLAGS, listener=UnixListener(path)) as it:
            with pytest.raises(Misconfigured, match=r"s\.sock: another process"):
                async with rig(FrontKind.AUTO, FLAGS, listener=UnixListener(path)):
                    pass
            assert (await it.resolve(2, "Boolean", "switch")).value is True

    asyncio.run(scenario())
