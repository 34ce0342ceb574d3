"""Many sync streams: `python -m tests.bench.sync_reader ADDRESS STREAMS`.

A line of JSON each time that every stream has a set more: first_ns and last_ns of the system's monotonic clock, and the
bytes of a message. Messages are not parsed: what a provider does with them is its own.
"""

import asyncio
import json
import sys
import time

import grpc
import uvloop
from flagd.sync.v1 import sync_pb2

SYNC_FLAGS = "/flagd.sync.v1.FlagSyncService/SyncFlags"
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


async def main(address: str, count: int) -> None:
    """Tell of every round of sets until the server ends."""
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.use_local_subchannel_pool", 1)]
    # A connection each, as separate services have.
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
    began_ns = time.monotonic_ns()
    streams = [
        channel.unary_stream(SYNC_FLAGS)(sync_pb2.SyncFlagsRequest().SerializeToString(), wait_for_ready=True)
        for channel in channels
    ]

    async def arrival(stream: "grpc.aio.UnaryStreamCall[bytes, bytes]") -> tuple[int, int]:
        message = await stream.read()
        return time.monotonic_ns(), len(message)

    while True:
        arrivals = await asyncio.gather(*(arrival(stream) for stream in streams))
        times = [at for at, _ in arrivals]
        told = {"began_ns": began_ns, "first_ns": min(times), "last_ns": max(times), "bytes": arrivals[0][1]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
