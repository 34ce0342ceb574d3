"""EventStream on both fronts: what caching clients hear, in which order, and what slow ones cost."""

import asyncio
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2
from flagd.evaluation.v2 import evaluation_pb2_grpc as v2_grpc
from google.protobuf.json_format import MessageToDict

from flaghoist.snapshot import View
from flaghoist.values import Seq
from sidecar.board import NO_MIN_PIN, Board, Changes
from sidecar.front import FrontKind
from tests.fronts.rig import (
    DEADLINE_S,
    KINDS,
    Clock,
    Rig,
    came_true,
    delete,
    eventually,
    long_since,
    put,
    rig,
    snapshot_of,
    switch,
    view_of,
)

pytestmark = pytest.mark.parametrize("kind", KINDS)

FLAGS = {"one": switch(), "two": switch()}


def open_stream(it: Rig, version: int) -> Any:
    return it.v1.EventStream(v1.EventStreamRequest()) if version == 1 else it.v2.EventStream(v2.EventStreamRequest())


async def read(stream: Any) -> Any:
    """Return the next event, or grpc.aio.EOF."""
    async with asyncio.timeout(DEADLINE_S):
        return await stream.read()


@pytest.mark.parametrize("version", [1, 2])
def test_stream_says_ready_then_each_change_then_shutdown(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        snapshot = snapshot_of(FLAGS)
        async with rig(kind) as it:
            it.board.put(snapshot.view)
            long_since(it.board)
            stream = open_stream(it, version)
            assert (await read(stream)).type == "provider_ready"

            snapshot = snapshot.fold(Seq(2), [put("one", switch("off"), version=1), put("three", switch())])
            it.board.put(snapshot.view)
            event = await read(stream)
            assert event.type == "configuration_change"
            assert MessageToDict(event.data) == {"flags": {"one": {"type": "update"}, "three": {"type": "write"}}}

            it.board.put(snapshot.at_seq(Seq(3)).view)  # nothing changed: nothing is said
            snapshot = snapshot.fold(Seq(4), [delete("two", version=1)])
            it.board.put(snapshot.view)
            assert MessageToDict((await read(stream)).data) == {"flags": {"two": {"type": "delete"}}}

            it.board.close()
            assert (await read(stream)).type == "provider_shutdown"
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read(stream)
            # Node's provider comes back after an error only.
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_leaving_the_front_tells_open_streams_provider_shutdown(kind: FrontKind) -> None:
    async def scenario() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def listen(it: Rig) -> None:
            with suppress(grpc.aio.AioRpcError):
                async for event in open_stream(it, 2):
                    await heard.put(event.type)

        async with rig(kind, FLAGS) as it, asyncio.TaskGroup() as tasks:
            long_since(it.board)
            tasks.create_task(listen(it))
            assert await heard.get() == "provider_ready"
            it.board.close()
        assert await heard.get() == "provider_shutdown"

    asyncio.run(scenario())


def test_new_stream_names_what_its_client_may_have_missed(kind: FrontKind) -> None:
    """Providers keep cached answers through a short loss of the stream, and drop the keys that they hear of."""

    async def scenario() -> None:
        rule = {"if": [{"var": "x"}, "on", "off"]}
        snapshot = snapshot_of({**FLAGS, "ruled": switch(targeting=rule)})
        async with rig(kind) as it:
            it.board.put(snapshot.view)
            stream = open_stream(it, 2)
            assert (await read(stream)).type == "provider_ready"
            # This sidecar has just begun: it cannot know, so it names all that may be cached, flags with a rule never.
            event = await read(stream)
            assert event.type == "configuration_change"
            assert MessageToDict(event.data)["flags"] == {key: {"type": "update"} for key in FLAGS}
            stream.cancel()

            long_since(it.board)
            snapshot = snapshot.fold(Seq(2), [put("one", switch("off"), version=1)])
            it.board.put(snapshot.view)
            stream = open_stream(it, 2)
            assert (await read(stream)).type == "provider_ready"
            assert MessageToDict((await read(stream)).data) == {"flags": {"one": {"type": "update"}}}

    asyncio.run(scenario())


def test_ready_waits_for_the_first_view(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, keep_alive_s=0.05) as it:
            stream = open_stream(it, 2)
            assert (await read(stream)).type == "keep_alive"
            it.board.put(view_of(FLAGS))
            while (event := await read(stream)).type == "keep_alive":
                pass
            assert event.type == "provider_ready"

    asyncio.run(scenario())


def test_silence_is_broken_by_keep_alive_again_and_again(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, keep_alive_s=0.05) as it:
            long_since(it.board)
            stream = open_stream(it, 1)
            assert [(await read(stream)).type for _ in range(4)] == ["provider_ready"] + ["keep_alive"] * 3

    asyncio.run(scenario())


def test_client_that_leaves_is_forgotten(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            streams = [open_stream(it, 1), open_stream(it, 2)]
            for stream in streams:
                await read(stream)
            assert it.events.open == 2
            for stream in streams:
                stream.cancel()
            await eventually(lambda: it.events.open == 0)

    asyncio.run(scenario())


def test_streams_over_the_cap_are_refused(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, streams_max=1) as it:
            await read(open_stream(it, 1))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await read(open_stream(it, 2))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert it.events.open == 1

    asyncio.run(scenario())


def test_hundred_streams_share_one_comparison_of_two_views(kind: FrontKind) -> None:
    async def scenario() -> None:
        board = Board(Clock())
        snapshot = snapshot_of(FLAGS)
        board.put(snapshot.view)
        async with rig(kind, board=board) as it:
            long_since(board)
            streams = [open_stream(it, 2) for _ in range(100)]
            for stream in streams:
                assert (await read(stream)).type == "provider_ready"
            old = board.view
            board.put(snapshot.fold(Seq(2), [put("one", switch("off"), version=1)]).view)
            for stream in streams:
                assert MessageToDict((await read(stream)).data) == {"flags": {"one": {"type": "update"}}}
            assert board.view is not None
            assert board.changes(old, board.view) is board.changes(old, board.view)
            for stream in streams:
                stream.cancel()

    asyncio.run(scenario())


class CountingBoard(Board):
    """Counts how often streams have taken a new view."""

    taken = 0

    def put(self, view: View, *, min_pin: Seq = NO_MIN_PIN) -> None:
        taken = self.taken
        super().put(view, min_pin=min_pin)
        self.taken = taken  # a board compares views for itself too

    def changes(self, old: View | None, new: View) -> Changes:
        self.taken += 1
        return super().changes(old, new)

    def has_taken_more_than(self, count: int) -> bool:
        return self.taken > count


# Else a client's core takes more and more for an application that reads nothing.
FIXED_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]


def test_client_that_does_not_read_holds_neither_views_nor_threads_nor_the_drain(kind: FrontKind) -> None:
    keys = [f"flag-{number:04d}-{'x' * 230}" for number in range(2000)]  # one event is about half a megabyte
    views = [view_of({key: switch(default) for key in keys}) for default in ("on", "off")]
    drain_s = 0.5

    async def scenario() -> float:
        board = CountingBoard(Clock())
        board.put(views[0])
        async with rig(kind, board=board, drain_s=drain_s) as it:
            # These clients outlive the front: the drain meets them as they are.
            channel = grpc.aio.insecure_channel(it.front.addresses[0], options=FIXED_WINDOW)
            stub = v2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
            streams = [stub.EventStream(v2.EventStreamRequest()) for _ in range(12)]
            for stream in streams:
                await read(stream)
            for number in range(100):
                board.put(views[(number + 1) % 2])
                before = board.taken
                if not await came_true(partial(board.has_taken_more_than, before), within_s=0.5):
                    break  # nobody takes a view any more: all wait for their clients
            else:
                pytest.fail("100 events went to clients that read none")
            stalled = board.taken
            for number in range(100):
                board.put(views[number % 2])
            assert (await it.resolve(2, "Boolean", keys[0])).variant in ("on", "off")
            assert board.taken <= stalled + len(streams)
            assert it.events.open == len(streams)
            waiting = [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
            assert not waiting
            began = time.monotonic()
        drained_s = time.monotonic() - began
        await channel.close()
        return drained_s

    assert drain_s <= asyncio.run(scenario()) < drain_s + 3.0
