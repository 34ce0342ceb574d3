"""Clients that wait: `python -m tests.bench.idle_clients RPC SYNC OFREP EVENT_STREAMS SYNC_STREAMS CONNECTIONS`.

A line of JSON says that all of them are served: each event stream was told provider_ready, each sync stream has a set,
each HTTP connection has had an answer. They stay until SIGTERM.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import uvloop

from tests.bench.ofrep_calls import BODY, BULK
from tests.bench.sync_reader import MESSAGE_BYTES_MAX, SYNC_FLAGS

EVENT_STREAM = "/flagd.evaluation.v2.Service/EventStream"
# A provider has a connection of its own; so few share one that none waits for another.
STREAMS_A_CONNECTION = 10


async def main(addresses: Sequence[str], counts: Sequence[int]) -> None:
    """Open everything, say so, and read on."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    rpc, sync, ofrep = addresses
    kept: list[Any] = []
    for address, method, count in ((rpc, EVENT_STREAM, counts[0]), (sync, SYNC_FLAGS, counts[1])):
        calls = _calls(address, method, count)
        await asyncio.gather(*(call.read() for call in calls))
        kept += [asyncio.create_task(_read_on(call)) for call in calls]
    head = f"POST {BULK}/static HTTP/1.1\r\nhost: {ofrep}\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
    host, _, port = ofrep.rpartition(":")
    for _ in range(counts[2]):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + BODY)
        await reader.readuntil(b"\r\n\r\n")
        kept.append((reader, writer))
    print(json.dumps({"open": len(kept)}), flush=True)
    await stop.wait()


def _calls(address: str, method: str, count: int) -> list[Any]:
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.use_local_subchannel_pool", 1)]
    calls = []
    for number in range(count):
        if number % STREAMS_A_CONNECTION == 0:
            channel = grpc.aio.insecure_channel(address, options=options)
        calls.append(channel.unary_stream(method)(b"", wait_for_ready=True))
    return calls


async def _read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:4], [int(number) for number in sys.argv[4:7]]))
