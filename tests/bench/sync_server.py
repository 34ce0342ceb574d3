"""A sync service alone: `python -m tests.bench.sync_server FRONT FLAGS`. What in-process providers cost the sidecar.

It is a program of its own, so that memory and CPU are the service's. Each SIGUSR1 changes one flag; the answer is a
line of JSON: changed_ns of the system's monotonic clock, and the seq.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from typing import Any

import uvloop

from flaghoist.definition import encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.board import Board
from sidecar.faces.sync import Sync
from sidecar.front import FrontKind, serve
from sidecar.listeners import TcpListener
from tests.bench.ledgers import STATIC, mixed

CHANGING = "shop-flag-00001"


def put(key: str, flag: Any, version: int) -> Op:
    """Return the op that sets a flag."""
    return Op(Target.FLAG, Source(""), FlagKey(key), Seq(version), Action.PUT, encode_flag(flag))


async def main(front: FrontKind, count: int) -> None:
    """Serve until SIGTERM."""
    snapshot = Snapshot.empty(Fractional.V2).fold(Seq(1), [put(key, flag, 0) for key, flag in mixed(count).items()])
    board = Board(time.time)
    board.put(snapshot.view)
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    async with serve([Sync(board)], [TcpListener("127.0.0.1", 0)], board=board, kind=front, drain_s=1.0) as opened:
        gc.collect()
        gc.freeze()  # as the sidecar does once it serves
        print(json.dumps({"address": opened.addresses[0]}), flush=True)
        while await signals.get() == signal.SIGUSR1:
            seq = snapshot.seq.number
            flag = {**STATIC, "metadata": {"change": seq}}
            version = snapshot.view.flags[CHANGING].version.number
            snapshot = snapshot.fold(Seq(seq + 1), [put(CHANGING, flag, version)])
            changed_ns = time.monotonic_ns()
            board.put(snapshot.view)
            print(json.dumps({"changed_ns": changed_ns, "seq": seq + 1}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(FrontKind(sys.argv[1]), int(sys.argv[2])))
