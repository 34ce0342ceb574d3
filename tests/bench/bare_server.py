"""A server that knows one answer: `python -m tests.bench.bare_server FRONT HEX`. What our front costs by itself.

It is a program of its own, so that it has an interpreter and an event loop for itself, as a sidecar has.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import grpc
import uvloop
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2

from flaghoist.snapshot import View
from flaghoist.values import Seq
from sidecar.board import Board
from sidecar.front import FrontKind, serve
from sidecar.listeners import TcpListener


class OneAnswer:
    """A service whose every method returns the same bytes, and looks at nothing."""

    def __init__(self, descriptor: Any, answer: bytes) -> None:
        self.name: str = descriptor.full_name
        self._methods = [method.name for method in descriptor.methods if not method.server_streaming]
        self._answer = answer

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        answer = self._answer

        async def call(_request: bytes, _context: Any) -> bytes:
            return answer

        return {name: grpc.unary_unary_rpc_method_handler(call) for name in self._methods}


async def main(front: FrontKind, answer: bytes) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    board = Board(time.time)
    board.put(View(Seq(1), {}))
    services = [OneAnswer(messages.DESCRIPTOR.services_by_name["Service"], answer) for messages in (v1, v2)]
    async with serve(services, [TcpListener("127.0.0.1", 0)], board=board, kind=front, drain_s=1.0) as opened:
        gc.collect()
        gc.freeze()  # as the sidecar does once it serves
        print(json.dumps({"address": opened.addresses[0]}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(main(FrontKind(sys.argv[1]), bytes.fromhex(sys.argv[2])))
