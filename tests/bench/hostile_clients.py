"""Clients that no sidecar wishes for: `python -m tests.bench.hostile_clients KIND COUNT SEED ADDRESS…`.

A line of JSON says what they have done once they are at work, another one at the end; they stop at SIGTERM. They speak
to sockets directly where a library would be polite on their behalf. Kinds:

streams: COUNT event streams, over as few connections as the server's bound per connection allows.
idle_streams: the same, of which nothing is read but the first message.
unread_events, unread_sets: COUNT streams whose HTTP/2 windows are wide open and whose sockets nobody reads.
unread_bulk: COUNT connections that ask for a bulk evaluation of everything, twice, and never read.
noise: COUNT connections at a time that send random bytes, half of them after a valid HTTP/2 preface, to every address.
contexts: COUNT callers that send the largest and deepest contexts they can, to gRPC and OFREP in turn.
"""

import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import uvloop
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.struct_pb2 import Struct

from sidecar.front import REQUEST_BYTES_MAX, STREAMS_PER_CONNECTION_MAX
from tests.bench.idle_clients import EVENT_STREAM
from tests.bench.ofrep_calls import BULK
from tests.bench.sync_reader import SYNC_FLAGS
from tests.bench.unary_calls import VERSIONS

Say = Callable[[dict[str, Any]], None]

RESOLVE: Final = f"/{VERSIONS[-1]}.Service/ResolveBoolean"
RULED: Final = "shop-flag-00000"
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
WINDOW_MAX: Final = 2**31 - 1
RECEIVE_BYTES: Final = 4096  # the kernel's buffer of a client that does not read
NOISE_BYTES: Final = 64 * 1024
ANSWER_S: Final = 10.0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame: RFC 9113, section 4.1."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def greedy_call(address: str, path: str) -> bytes:
    """Return what asks for a stream and lets the server send 2 GiB: settings, window, headers and an empty message."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    # RFC 7541: 0x83 :method POST, 0x86 :scheme http, and literals that are not indexed.
    fields = b"\x83\x86\x04" + text(path) + b"\x01" + text(address)
    fields += b"\x0f\x10" + text("application/grpc") + b"\x00" + text("te") + text("trailers")
    settings = (4).to_bytes(2) + WINDOW_MAX.to_bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE
    return (
        PREFACE
        + frame(4, 0, 0, settings)
        + frame(8, 0, 0, (WINDOW_MAX - 65_535).to_bytes(4))
        + frame(1, 4, 1, fields)
        + frame(0, 1, 1, bytes(5))
    )


def bulk_call(address: str) -> bytes:
    """Return two bulk requests, one after the other."""
    return f"POST {BULK} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 2\r\n\r\n{{}}".encode() * 2


def event_streams(*, read_on: bool) -> Callable[..., Awaitable[None]]:
    """Return clients that open event streams and tell how many were served, and what the others were told."""

    async def clients(addresses: Sequence[str], count: int, _seed: int, say: Say, stop: asyncio.Event) -> None:
        began = time.monotonic()
        answers: Counter[str] = Counter()
        calls: list[Any] = []
        for number in range(count):
            if number % STREAMS_PER_CONNECTION_MAX == 0:
                channel = grpc.aio.insecure_channel(addresses[0], options=[("grpc.use_local_subchannel_pool", 1)])
            calls.append(channel.unary_stream(EVENT_STREAM)(b"", wait_for_ready=True))

        async def first(call: Any) -> None:
            try:
                answer = await call.read()
                answers["OK" if answer is not grpc.aio.EOF else "ended"] += 1
            except grpc.aio.AioRpcError as error:
                answers[error.code().name] += 1

        await asyncio.gather(*map(first, calls))
        say({"answers": answers, "seconds": time.monotonic() - began})
        readers = [asyncio.create_task(rest(call)) for call in calls if read_on and not call.done()]
        await stop.wait()
        for reader in readers:
            reader.cancel()

    async def rest(call: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass

    return clients


def unread(request: Callable[[str], bytes]) -> Callable[..., Awaitable[None]]:
    """Return clients that send this request and never read."""

    async def clients(addresses: Sequence[str], count: int, _seed: int, say: Say, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        kept = []
        for _ in range(count):
            caller = socket.socket()
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            caller.setblocking(False)
            host, _, port = addresses[0].rpartition(":")
            await loop.sock_connect(caller, (host, int(port)))
            await loop.sock_sendall(caller, request(addresses[0]))
            kept.append(caller)
        say({"connections": len(kept)})
        await stop.wait()
        for caller in kept:
            caller.close()

    return clients


async def noise(addresses: Sequence[str], count: int, seed: int, say: Say, stop: asyncio.Event) -> None:
    """Send random bytes until told to stop; tell how many connections and bytes the servers took."""
    sent: Counter[str] = Counter()

    async def flood(number: int) -> None:
        draw = random.Random(seed + number)
        while not stop.is_set():
            address = addresses[draw.randrange(len(addresses))]
            host, _, port = address.rpartition(":")
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    try:
                        sent["connections"] += 1
                        writer.write(draw.choice([b"", PREFACE + frame(4, 0, 0, b"")]))
                        content = draw.randbytes(draw.randrange(1, NOISE_BYTES))
                        writer.write(content)
                        await writer.drain()
                        sent["bytes"] += len(content)
                        if draw.random() < 0.5:
                            await reader.read()
                    finally:
                        writer.transport.abort()

    say({})
    await asyncio.gather(*map(flood, range(count)))
    say(dict(sent))


def contexts() -> dict[str, tuple[bytes, bytes]]:
    """Return the worst contexts as (gRPC request, OFREP body), each within the limit of a request."""

    def wide(count: int, text: str) -> tuple[bytes, bytes]:
        plain = {f"k{number}": text for number in range(count)}
        struct = Struct()
        for key, value in plain.items():
            struct.fields[key].string_value = value
        request = v2.ResolveBooleanRequest(flag_key=RULED, context=struct).SerializeToString()
        return request, json.dumps({"context": plain}).encode()

    def deep(levels: int) -> tuple[bytes, bytes]:
        # A Value's list_value in a list_value …; lengths grow inwards to outwards.
        value = b"\x1a\x02in"
        for _ in range(levels):
            value = b"\x32" + _length(inner := b"\x0a" + _length(value) + value) + inner
        entry = b"\x0a\x01x\x12" + _length(value) + value
        struct = b"\x0a" + _length(entry) + entry
        request = b"\x0a" + bytes([len(RULED)]) + RULED.encode() + b"\x12" + _length(struct) + struct
        return request, b'{"context":{"x":' + b"[" * levels + b"]" * levels + b"}}"

    room = REQUEST_BYTES_MAX - 1024
    return {
        "many short fields": wide(room // 22, "v"),
        "one long text": wide(1, "v" * (room - 100)),
        "deep": deep(10_000),
    }


def _length(content: bytes) -> bytes:
    length, size = len(content), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*size, length])


async def send_contexts(addresses: Sequence[str], count: int, _seed: int, say: Say, stop: asyncio.Event) -> None:
    """Send hostile contexts as fast as they are answered; tell the answers by their code."""
    answers: Counter[str] = Counter()
    worst = list(contexts().values())

    async def call(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(addresses[0], options=options) as channel:
            resolve = channel.unary_unary(RESOLVE)
            while not stop.is_set():
                request, body = worst[number % len(worst)]
                number += 1
                try:
                    await resolve(request, timeout=ANSWER_S)
                    answers["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    answers[error.code().name] += 1
                answers[await _posted(addresses[1], body)] += 1

    say({})
    await asyncio.gather(*map(call, range(count)))
    say(dict(answers))


async def _posted(address: str, body: bytes) -> str:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                head = f"POST {BULK}/{RULED} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                return (await reader.readline()).split(b" ")[1].decode()
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, IndexError) as error:
        return type(error).__name__


KINDS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "streams": event_streams(read_on=True),
    "idle_streams": event_streams(read_on=False),
    "unread_events": unread(lambda address: greedy_call(address, EVENT_STREAM)),
    "unread_sets": unread(lambda address: greedy_call(address, SYNC_FLAGS)),
    "unread_bulk": unread(bulk_call),
    "noise": noise,
    "contexts": send_contexts,
}


async def main(kind: str, count: int, seed: int, addresses: Sequence[str]) -> None:
    """Be at it until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await KINDS[kind](addresses, count, seed, lambda told: print(json.dumps(told), flush=True), stop)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
