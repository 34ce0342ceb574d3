"""A board behind a real front, and real gRPC clients before it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v1 import evaluation_pb2_grpc as v1_grpc
from flagd.evaluation.v2 import evaluation_pb2 as v2
from flagd.evaluation.v2 import evaluation_pb2_grpc as v2_grpc
from google.protobuf.struct_pb2 import Struct

from flaghoist.definition import encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.board import PAST_S, Board
from sidecar.faces.evaluation_v1 import DisabledOnV1, EvaluationV1
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.front import OPTIONS, Front, FrontKind, Service, serve
from sidecar.listeners import Listener, TcpListener
from sidecar.request import RequestReader

KINDS = [FrontKind.NATIVE, FrontKind.GRPCIO]
DEADLINE_S = 10.0
LOOPBACK = TcpListener("127.0.0.1", 0)

Definitions = Mapping[str, Mapping[str, object]]


def flag(variants: Mapping[str, object], default: str | None, **more: object) -> dict[str, object]:
    """Return an enabled flagd flag."""
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, **more}


def switch(default: str | None = "on", **more: object) -> dict[str, object]:
    """Return a boolean flag."""
    return flag({"on": True, "off": False}, default, **more)


def put(key: str, definition: Mapping[str, object], *, version: int = 0) -> Op:
    """Return the op that sets a flag whose last change was at `version`."""
    return Op(Target.FLAG, Source(""), FlagKey(key), Seq(version), Action.PUT, encode_flag(definition, {}))


def delete(key: str, *, version: int) -> Op:
    """Return the op that deletes a flag whose last change was at `version`."""
    return Op(Target.FLAG, Source(""), FlagKey(key), Seq(version), Action.DELETE, None)


def snapshot_of(flags: Definitions) -> Snapshot:
    """Return the snapshot at seq 1 that holds these flags."""
    return Snapshot.empty(Fractional.V2).fold(Seq(1), [put(key, definition) for key, definition in flags.items()])


def view_of(flags: Definitions) -> View:
    """Return the view at seq 1 that holds these flags."""
    return snapshot_of(flags).view


def context_struct(context: Mapping[str, Any] | None) -> Struct | None:
    """Return a context as a client sends it."""
    if context is None:
        return None
    struct = Struct()
    struct.update(context)
    return struct


class Clock:
    """A wall clock that stands until it is moved."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def long_since(board: Board) -> None:
    """Let so much time go by that nobody can have missed what changed before: new streams then hear only of the new."""
    clock = board.clock
    assert isinstance(clock, Clock)
    clock.now_s += PAST_S


@dataclass
class Rig:
    """What a test talks to."""

    board: Board
    events: EventStreams
    front: Front
    channel: grpc.aio.Channel
    v1: v1_grpc.ServiceStub = field(init=False)
    v2: v2_grpc.ServiceStub = field(init=False)

    def __post_init__(self) -> None:
        self.v1 = v1_grpc.ServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.v2 = v2_grpc.ServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def resolve(self, version: int, kind: str, key: str, context: Mapping[str, Any] | None = None) -> Any:
        """Call Resolve{kind} of v1 or v2."""
        messages, stub = (v1, self.v1) if version == 1 else (v2, self.v2)
        request = getattr(messages, f"Resolve{kind}Request")(flag_key=key, context=context_struct(context))
        return await getattr(stub, f"Resolve{kind}")(request, timeout=DEADLINE_S)

    async def refusal(self, version: int, kind: str, key: str, context: Mapping[str, Any] | None = None) -> Any:
        """Return (status code, text) of a call that must fail."""
        return await refusal(self.resolve(version, kind, key, context))

    async def raw(self, path: str, request: bytes) -> Any:
        """Send bytes that no generated class would make."""
        return await self.channel.unary_unary(path)(request, timeout=DEADLINE_S)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Return (status code, text) of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"expected an error, got {answer!r}")


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for a condition; the deadline is for failures only."""
    assert await came_true(holds, within_s=DEADLINE_S), "the condition did not come true"


async def came_true(holds: Callable[[], bool], *, within_s: float) -> bool:
    """Return whether a condition comes true in time."""
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(0.005)
    return True


@asynccontextmanager
async def rig(
    kind: FrontKind,
    flags: Definitions | None = None,
    *,
    board: Board | None = None,
    disabled: DisabledOnV1 = DisabledOnV1.NOT_FOUND,
    requests: RequestReader | None = None,
    keep_alive_s: float = 20.0,
    streams_max: int = 4096,
    drain_s: float = 2.0,
    listener: Listener = LOOPBACK,
    more_services: Sequence[Service] = (),
    server_options: Sequence[tuple[str, int]] = OPTIONS,
) -> AsyncIterator[Rig]:
    """Serve `flags`, fresh, on a front of `kind`; None leaves the board empty."""
    if board is None:
        board = Board(Clock())
    if flags is not None:
        board.put(view_of(flags))
        board.mark_fresh(board.clock())
    events = EventStreams(board, keep_alive_s=keep_alive_s, streams_max=streams_max)
    services = [
        EvaluationV1(board, events, requests=requests, disabled=disabled),
        EvaluationV2(board, events, requests=requests),
        *more_services,
    ]
    async with (
        serve(services, [listener], board=board, kind=kind, drain_s=drain_s, options=server_options) as front,
        grpc.aio.insecure_channel(front.addresses[0]) as channel,
    ):
        yield Rig(board, events, front, channel)
