"""What clients can make a listener hold, and for how long; and that other clients are answered meanwhile."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from flaghoist.errors import Misconfigured
from sidecar.http_connection import DISCARD_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, PIPELINE_MAX, HttpLimits
from sidecar.listeners import TcpListener
from tests.fronts.rig import flag, switch
from tests.http.rig import BULK, DEADLINE_S, Rig, head, read_reply, rig, runner

# One bulk answer is 10 MB: of a smaller one the kernel takes all, which is then out of our hands.
LARGE = {f"flag-{number}": flag({"a": "x" * 200_000}, "a") for number in range(50)}
run = runner({"f": switch("on")})
QUICK = HttpLimits(request_s=0.2, idle_s=0.2, unread_s=0.3, look_s=0.02)


async def status_then_end(reader: asyncio.StreamReader) -> int:
    """Return the status of a refusal after which the connection is closed."""
    status, _ = await read_reply(reader)
    assert await reader.read() == b""
    return status


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head("/" + "a" * 20_000), 414),
        (b"POST /" + b"a" * 20_000, 414),
        (head(more="".join(f"x{number}: y\r\n" for number in range(FIELDS_MAX + 1))), 431),
        (head()[:-2] + b"x: " + b"y" * (HEAD_BYTES_MAX + 1), 431),
        (head()[:-2] + b"x: y\r\n" * 300, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS client
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),  # an HTTP/2 client
        (b"GET\r\n\r\n", 400),
        (b"POST http://[/ HTTP/1.1\r\n\r\n", 400),
        (head(more="Content-Length: 5\r\n"), 400),
        (head(more="Transfer-Encoding: chunked\r\n"), 400),  # beside a length: request smuggling
        (head(length=None, more="Content-Length: -1\r\n"), 400),
        (head(length=None, more="Content-Length: 99999999999999999999999\r\n"), 400),
        (head(length=None, more="Transfer-Encoding: chunked\r\n") + b"zz\r\n", 400),
        (head(method="BREW"), 400),
    ],
    ids=lambda value: f"{value[:30]!r}-{len(value)}" if isinstance(value, bytes) else None,
)
def test_head_that_is_no_request_or_too_large_is_refused_and_the_connection_closed(
    request_head: bytes, status: int
) -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(request_head)
        got = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        assert int(got) == status
        assert (await it.flag("f")).status == 200
        writer.close()

    run(scenario)


def test_header_of_almost_the_limit_is_read() -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(head(f"{BULK}/f", more=f"x: {'y' * (HEAD_BYTES_MAX - 1000)}\r\n"))
        assert (await read_reply(reader))[0] == 200
        writer.close()

    run(scenario)


def test_endless_body_is_refused_once_and_then_cut_off() -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(head(length=10**12))
        assert (await read_reply(reader))[0] == 413
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 20 * DISCARD_BYTES_MAX:
                writer.write(b" " * 65536)
                await writer.drain()
                sent += 65536
        assert sent < 10 * DISCARD_BYTES_MAX
        writer.close()
        assert (await it.flag("f")).status == 200

    run(scenario)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"\r\n\r\n",
        head()[:-3],
        head(length=5),
        head(length=5) + b"ab",
        head(length=None, more="Transfer-Encoding: chunked\r\n"),
    ],
    ids=["nothing", "empty lines", "half a head", "no body", "half a body", "no chunk"],
)
def test_client_that_does_not_go_on_is_cut_off(begun: bytes) -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(begun)
        await until(lambda: it.front.connections > 0)
        assert await reader.read() == b""
        assert it.front.connections == 0
        writer.close()

    run(scenario, limits=QUICK)


def test_client_that_sends_a_byte_at_a_time_is_cut_off_all_the_same() -> None:
    async def scenario(it: Rig) -> None:
        began_s = time.monotonic()
        reader, writer = await it.connect()
        writer.write(head()[:-2] + b"x: ")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began_s < DEADLINE_S:
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.01)
        assert time.monotonic() - began_s < DEADLINE_S
        assert reader.at_eof() or reader.exception() is not None

    run(scenario, limits=QUICK)


def test_idle_connection_is_closed_and_one_in_use_is_kept() -> None:
    async def scenario(it: Rig) -> None:
        idle_reader, idle = await it.connect()
        idle.write(head(f"{BULK}/f"))
        assert (await read_reply(idle_reader))[0] == 200
        reader, writer = await it.connect()
        ended = asyncio.ensure_future(idle_reader.read())
        while not ended.done():
            writer.write(head(f"{BULK}/f"))
            assert (await read_reply(reader))[0] == 200
            await asyncio.sleep(0.02)
        assert ended.result() == b""
        assert it.front.connections == 1
        writer.close()

    run(scenario, limits=QUICK)


def slow_reader(port: int) -> socket.socket:
    """Return a connected socket whose kernel takes little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


def test_client_that_does_not_read_is_cut_off_in_time() -> None:
    async def scenario(it: Rig) -> None:
        with slow_reader(it.port) as client:
            client.send(head() * 4)
            await until(lambda: it.front.connections == 1)
            assert (await it.flag("flag-1")).status == 200
            await until(lambda: it.front.connections == 0)

    run(scenario, LARGE, limits=QUICK)


def test_clients_that_do_not_read_hold_no_more_than_the_limit_together() -> None:
    limits = HttpLimits(unread_bytes_max=40_000_000, unread_s=3600)

    async def scenario(it: Rig) -> None:
        clients = [slow_reader(it.port) for _ in range(20)]
        for client in clients:
            client.send(head())
            await asyncio.sleep(0)
        # Each waits with 10 MB, less what the kernel took: a few may stay, the oldest had to go.
        await until(lambda: it.front.app.tally[200] >= 20 and it.front.connections <= 8)
        assert it.front.connections >= 1
        assert (await it.flags()).status == 200
        for client in clients:
            client.close()

    run(scenario, LARGE, limits=limits)


def test_unfinished_bodies_hold_no_more_than_the_limit_together() -> None:
    limits = HttpLimits(held_bytes_max=3_000_000, request_s=3600)

    async def scenario(it: Rig) -> None:
        writers = []
        for _ in range(10):
            _, writer = await it.connect()
            writer.write(head(length=1_000_000) + b" " * 900_000)
            await writer.drain()
            writers.append(writer)
        await until(lambda: 0 < it.front.connections <= 3)
        assert (await it.flag("f")).status == 200
        for writer in writers:
            writer.transport.abort()
        await until(lambda: it.front.connections == 0)
        # Nothing of them still counts: as many may come again.
        reader, writer = await it.connect()
        writer.write(head(f"{BULK}/f", length=1_000_000) + b" " * 1_000_000)
        assert (await read_reply(reader))[0] == 200
        writer.close()

    run(scenario, limits=limits)


def test_one_connection_more_than_may_be_takes_the_place_of_the_longest_unused() -> None:
    async def scenario(it: Rig) -> None:
        opened = [await it.connect() for _ in range(3)]
        await until(lambda: it.front.connections == 3)
        for reader, writer in (opened[1], opened[0], opened[2]):
            writer.write(head(f"{BULK}/f"))
            assert (await read_reply(reader))[0] == 200
        reader, writer = await it.connect()
        writer.write(head(f"{BULK}/f"))
        assert (await read_reply(reader))[0] == 200
        assert await opened[1][0].read() == b""
        assert it.front.connections == 3
        for reader, writer in (opened[0], opened[2]):
            writer.write(head(f"{BULK}/f"))
            assert (await read_reply(reader))[0] == 200
            writer.close()

    run(scenario, limits=HttpLimits(connections_max=3))


def test_pipeline_that_is_too_deep_ends_the_connection() -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(head(f"{BULK}/f") * (PIPELINE_MAX // 2))
        for _ in range(PIPELINE_MAX // 2):
            assert (await read_reply(reader))[0] == 200
        writer.write(head(f"{BULK}/f") * 1000)
        answers = b""
        with contextlib.suppress(ConnectionError):  # a reset: the rest was not read
            while part := await reader.read(65536):
                answers += part
        assert answers.count(b"HTTP/1.1 ") <= PIPELINE_MAX + 1
        assert (await it.flag("f")).status == 200

    run(scenario)


def test_drain_closes_idle_connections_finishes_open_requests_and_takes_no_new_ones() -> None:
    async def scenario() -> None:
        leaving = asyncio.Event()
        opened: asyncio.Future[Rig] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with rig({"f": switch("on")}, drain_s=DEADLINE_S) as it:
                opened.set_result(it)
                await leaving.wait()

        serving = asyncio.ensure_future(serve())
        it = await opened
        idle_reader, idle = await it.connect()
        idle.write(head(f"{BULK}/f"))
        await read_reply(idle_reader)
        reader, writer = await it.connect()
        writer.write(head(f"{BULK}/f", length=2) + b"{")
        await until(lambda: it.front.connections == 2)
        await asyncio.sleep(0)
        leaving.set()
        assert await idle_reader.read() == b""
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await it.connect()
        assert not serving.done()
        writer.write(b"}")
        assert await status_then_end(reader) == 200
        async with asyncio.timeout(DEADLINE_S):
            await serving
        idle.close()
        writer.close()

    uvloop.run(scenario())


def test_drain_ends_what_outlasts_it() -> None:
    async def scenario() -> None:
        async with rig({"f": switch("on")}, drain_s=0.1) as it:
            reader, writer = await it.connect()
            writer.write(head(length=5))
            await until(lambda: it.front.connections == 1)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < DEADLINE_S
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    uvloop.run(scenario())


def test_port_in_use_names_the_address_and_what_to_do_and_is_free_again_afterwards() -> None:
    async def scenario() -> None:
        async with rig({"f": switch("on")}) as it:
            address = f"127.0.0.1:{it.port}"
            with pytest.raises(Misconfigured, match=f"cannot listen on {address}: another process") as refused:
                async with rig(listener=TcpListener("127.0.0.1", it.port)):
                    pass
            assert "--ofrep-listen" in refused.value.hint
            assert (await it.flag("f")).status == 200
        async with rig({"f": switch("on")}, listener=TcpListener("127.0.0.1", it.port)) as again:
            assert (await again.flag("f")).status == 200
        with pytest.raises(Misconfigured, match=r"cannot listen on 192\.0\.2\.1:0: .+"):
            async with rig(listener=TcpListener("192.0.2.1", 0)):
                pass

    uvloop.run(scenario())
