"""flagd.sync.v1 over real sockets, on both fronts: what in-process providers get, and what slow ones cost."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from flagd.sync.v1 import sync_pb2, sync_pb2_grpc
from google.protobuf.json_format import MessageToDict
from structlog.testing import capture_logs

from flaghoist import flagd_document
from flaghoist.definition import encode_flag
from flaghoist.flagd_document import document, member
from flaghoist.records import Op
from flaghoist.snapshot import CompiledFlag, Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.board import Board
from sidecar.faces import sync
from sidecar.faces.sync import Sync
from sidecar.front import FrontKind
from tests.fronts.rig import DEADLINE_S, KINDS, Clock, Rig, delete, eventually, put, refusal, rig, snapshot_of, switch

pytestmark = pytest.mark.parametrize("kind", KINDS)

FLAGS = {"one": switch(), "two": switch("off")}
Request = sync_pb2.SyncFlagsRequest


@dataclass
class SyncRig:
    """A sync face before a real client."""

    rig: Rig
    face: Sync
    stub: Any

    @property
    def board(self) -> Board:
        return self.rig.board


@asynccontextmanager
async def sync_rig(
    kind: FrontKind, snapshot: Snapshot | None = None, *, drain_s: float = 2.0, **options: Any
) -> AsyncIterator[SyncRig]:
    board = Board(Clock())
    if snapshot is not None:
        board.put(snapshot.view)
    face = Sync(board, **options)
    async with rig(kind, board=board, more_services=[face], drain_s=drain_s) as it:
        yield SyncRig(it, face, sync_pb2_grpc.FlagSyncServiceStub(it.channel))  # type: ignore[no-untyped-call]


async def read(stream: Any) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await stream.read()


async def read_flags(stream: Any) -> dict[str, Any]:
    return dict(json.loads((await read(stream)).flag_configuration)["flags"])


async def ended(stream: Any) -> tuple[grpc.StatusCode, str]:
    """Return how a stream ends, whatever comes before."""
    try:
        while await read(stream) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    async with asyncio.timeout(DEADLINE_S):
        return await stream.code(), await stream.details()


def test_first_message_is_the_whole_set(kind: FrontKind) -> None:
    async def scenario() -> None:
        snapshot = snapshot_of(FLAGS)
        async with sync_rig(kind, snapshot) as it:
            first = await read(it.stub.SyncFlags(Request()))
            assert first.flag_configuration.encode() == document(snapshot.view)
            assert list(json.loads(first.flag_configuration)["flags"]) == ["one", "two"]

    asyncio.run(scenario())


def test_each_change_is_pushed_as_a_whole_set(kind: FrontKind) -> None:
    async def scenario() -> None:
        snapshot = snapshot_of(FLAGS)
        async with sync_rig(kind, snapshot) as it:
            stream = it.stub.SyncFlags(Request())
            assert (await read_flags(stream))["one"]["defaultVariant"] == "on"

            snapshot = snapshot.fold(Seq(2), [put("one", switch("off"), version=1), put("three", switch())])
            it.board.put(snapshot.view)
            flags = await read_flags(stream)
            assert list(flags) == ["one", "three", "two"]
            assert flags["one"]["defaultVariant"] == "off"

            it.board.put(snapshot.at_seq(Seq(3)).view)  # nothing changed: nothing is pushed
            snapshot = snapshot.fold(Seq(4), [delete("two", version=1)])
            it.board.put(snapshot.view)
            assert list(await read_flags(stream)) == ["one", "three"]

    asyncio.run(scenario())


def test_a_change_that_clients_are_not_told_of_is_not_pushed(kind: FrontKind) -> None:
    async def scenario() -> None:
        snapshot = snapshot_of(FLAGS)
        async with sync_rig(kind, snapshot) as it:
            stream = it.stub.SyncFlags(Request())
            await read(stream)
            governed = encode_flag(switch() | {"description": "new"}, {"owner": "ada@example.org"})
            snapshot = snapshot.fold(
                Seq(2), [Op(Target.FLAG, Source(""), FlagKey("one"), Seq(1), Action.PUT, governed)]
            )
            it.board.put(snapshot.view)
            snapshot = snapshot.fold(Seq(3), [put("two", switch("on"), version=1)])
            # Only once the stream has looked at the first of the two may the second come: else it skips the first.
            request = sync_pb2.FetchAllFlagsRequest()
            assert (await it.stub.FetchAllFlags(request, timeout=DEADLINE_S)).flag_configuration
            it.board.put(snapshot.view)
            assert (await read_flags(stream))["two"]["defaultVariant"] == "on"

    asyncio.run(scenario())


def test_stream_waits_for_the_first_view_and_fetch_says_unavailable(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind) as it:
            stream = it.stub.SyncFlags(Request())
            code, text = await refusal(it.stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest(), timeout=DEADLINE_S))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "LOADING" in text
            it.board.put(snapshot_of(FLAGS).view)
            assert list(await read_flags(stream)) == ["one", "two"]

    asyncio.run(scenario())


def test_fetch_gives_the_streams_set_and_the_seq(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of(FLAGS)) as it:
            call = it.stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest(provider_id="p"), timeout=DEADLINE_S)
            fetched = await call
            pushed = await read(it.stub.SyncFlags(Request()))
            assert fetched.flag_configuration == pushed.flag_configuration
            assert ("flaghoist-seq", "1") in [tuple(pair) for pair in await call.trailing_metadata()]
            alone = sync_pb2.FetchAllFlagsResponse(flag_configuration=fetched.flag_configuration)
            assert fetched.SerializeToString() == alone.SerializeToString()  # and no field that it does not know

    asyncio.run(scenario())


@pytest.mark.parametrize("context", [{}, {"region": "eu", "n": 1, "deep": {"x": [True, None]}}], ids=["empty", "some"])
def test_sync_context_is_always_there(kind: FrontKind, context: Mapping[str, Any]) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of(FLAGS), static_context=context) as it:
            stream = it.stub.SyncFlags(Request())
            for seq in (2, 3):
                message = await read(stream)
                assert message.HasField("sync_context")
                assert MessageToDict(message.sync_context) == context
                it.board.put(snapshot_of({**FLAGS, f"at-{seq}": switch()}).view)
            metadata = await it.stub.GetMetadata(sync_pb2.GetMetadataRequest(), timeout=DEADLINE_S)
            assert metadata.HasField("metadata")
            assert MessageToDict(metadata.metadata) == context

    asyncio.run(scenario())


def test_metadata_is_told_before_there_is_a_view(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind) as it:
            assert (await it.stub.GetMetadata(sync_pb2.GetMetadataRequest(), timeout=DEADLINE_S)).HasField("metadata")

    asyncio.run(scenario())


def sources() -> Snapshot:
    """A flag of each of two sources and of the shared one; `both` is in two; one flag set."""
    ops = [
        Op(
            Target.FLAG,
            Source(source),
            FlagKey(key),
            Seq(0),
            Action.PUT,
            encode_flag(switch(default, metadata=metadata)),
        )
        for source, key, default, metadata in (
            ("", "shared", "on", {}),
            ("shop", "cart", "on", {"flagSetId": "web"}),
            ("shop", "both", "on", {}),
            ("blog", "post", "on", {"flagSetId": "web"}),
            ("blog", "both", "off", {}),
        )
    ]
    return Snapshot.empty(Fractional.V2).fold(Seq(1), ops)


SELECTED = {
    "": ["both", "cart", "post", "shared"],
    "shop": ["both", "cart"],
    "source=shop": ["both", "cart"],
    "source=blog": ["both", "post"],
    "source=": ["shared"],
    "flagSetId=web": ["cart", "post"],
    "flagSetId=": ["both", "shared"],
    "source=nope": [],
    "flagSetId=nope": [],
}


@pytest.mark.parametrize("where", ["header", "body", "header before body"])
@pytest.mark.parametrize("selector", list(SELECTED))
def test_selector_chooses_the_flags(kind: FrontKind, selector: str, where: str) -> None:
    header = (("flagd-selector", selector),) if where != "body" else ()
    body = {"body": selector, "header": "", "header before body": "source=blog" if selector else ""}[where]

    async def scenario() -> None:
        async with sync_rig(kind, sources()) as it:
            flags = await read_flags(it.stub.SyncFlags(Request(selector=body), metadata=header))
            assert list(flags) == SELECTED[selector]
            request = sync_pb2.FetchAllFlagsRequest(selector=body)
            fetched = await it.stub.FetchAllFlags(request, metadata=header, timeout=DEADLINE_S)
            assert json.loads(fetched.flag_configuration)["flags"] == flags
            if "both" in flags:
                wins = "on" if selector in ("shop", "source=shop") else "off"
                assert flags["both"]["defaultVariant"] == wins

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["SyncFlags", "FetchAllFlags"])
def test_unknown_selector_is_an_invalid_argument(kind: FrontKind, method: str) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, sources()) as it:
            if method == "SyncFlags":
                code, text = await ended(it.stub.SyncFlags(Request(selector="colour=red")))
            else:
                code, text = await refusal(it.stub.FetchAllFlags(Request(selector="colour=red"), timeout=DEADLINE_S))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "source=NAME or flagSetId=ID" in text

    asyncio.run(scenario())


def test_bytes_that_are_no_request_are_an_invalid_argument(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, sources()) as it:
            path = "/flagd.sync.v1.FlagSyncService/"
            code, _ = await refusal(it.rig.channel.unary_unary(f"{path}FetchAllFlags")(b"\xff\xff", timeout=DEADLINE_S))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            code, _ = await ended(it.rig.channel.unary_stream(f"{path}SyncFlags")(b"\xff\xff"))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert it.face.open == 0

    asyncio.run(scenario())


def test_stream_is_told_only_of_what_it_selected(kind: FrontKind) -> None:
    async def scenario() -> None:
        snapshot = sources()
        async with sync_rig(kind, snapshot) as it:
            stream = it.stub.SyncFlags(Request(selector="source=shop"))
            everything = it.stub.SyncFlags(Request())
            await read(stream)
            await read(everything)
            blog = Op(Target.FLAG, Source("blog"), FlagKey("post"), Seq(1), Action.PUT, encode_flag(switch("off")))
            snapshot = snapshot.fold(Seq(2), [blog])
            it.board.put(snapshot.view)
            assert (await read_flags(everything))["post"]["defaultVariant"] == "off"
            shop = Op(Target.FLAG, Source("shop"), FlagKey("new"), Seq(0), Action.PUT, encode_flag(switch()))
            it.board.put(snapshot.fold(Seq(3), [shop]).view)
            assert list(await read_flags(stream)) == ["both", "cart", "new"]

    asyncio.run(scenario())


def test_streams_of_one_selector_share_one_encoding(kind: FrontKind, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(sync, "document", lambda view: made.append(view) or document(view))

    async def scenario() -> None:
        # More than are encoded in one turn: the streams meet while the first of them encodes.
        snapshot = snapshot_of(FLAGS | {f"f{n}": switch() for n in range(3 * sync.FLAGS_A_TURN)})
        async with sync_rig(kind, snapshot) as it:
            streams = [it.stub.SyncFlags(Request()) for _ in range(20)]
            for stream in streams:
                await read(stream)
            assert len(made) == 1
            it.board.put(snapshot.fold(Seq(2), [put("one", switch("off"), version=1)]).view)
            for stream in streams:
                assert (await read_flags(stream))["one"]["defaultVariant"] == "off"
            assert len(made) == 2

    asyncio.run(scenario())


def test_client_that_leaves_is_forgotten(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of(FLAGS)) as it:
            before = it.board.watchers
            streams = [it.stub.SyncFlags(Request()) for _ in range(3)]
            for stream in streams:
                await read(stream)
            assert (it.face.open, it.board.watchers) == (3, before + 3)
            for stream in streams:
                stream.cancel()
            await eventually(lambda: it.face.open == 0 and it.board.watchers == before)

    asyncio.run(scenario())


def test_streams_are_capped_and_a_place_comes_free(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of(FLAGS), streams_max=2) as it:
            streams = [it.stub.SyncFlags(Request()) for _ in range(2)]
            for stream in streams:
                await read(stream)
            code, text = await ended(it.stub.SyncFlags(Request()))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "at most 2" in text
            streams[0].cancel()
            await eventually(lambda: it.face.open == 1)
            assert await read_flags(it.stub.SyncFlags(Request()))

    asyncio.run(scenario())


def test_drain_ends_streams_at_once_with_unavailable(kind: FrontKind) -> None:
    async def scenario() -> None:
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def listen(stream: Any) -> None:
            await read(stream)
            await heard.put("ready")
            await heard.put(await ended(stream))

        async with sync_rig(kind, snapshot_of(FLAGS), drain_s=DEADLINE_S) as it, asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(listen(it.stub.SyncFlags(Request())))
            assert [await heard.get(), await heard.get()] == ["ready", "ready"]
            began = time.monotonic()
            it.board.close()
        assert time.monotonic() - began < DEADLINE_S / 2
        assert [await heard.get(), await heard.get()] == [(grpc.StatusCode.UNAVAILABLE, "the sidecar stops")] * 2

    asyncio.run(scenario())


def test_stream_that_waits_for_a_view_ends_with_the_drain(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with sync_rig(kind) as it:
            stream = it.stub.SyncFlags(Request())
            await eventually(lambda: it.face.open == 1)
            it.board.close()
            assert (await ended(stream))[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


# Else a client's core takes more and more for an application that reads nothing.
FIXED_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]


def large(filling: str) -> Snapshot:
    """A set of about a megabyte."""
    return snapshot_of({f"flag-{n:03d}": switch(metadata={"filling": filling * 10_000}) for n in range(100)})


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_client_that_does_not_read_is_cut_off_and_holds_no_more_than_a_few_sets(kind: FrontKind) -> None:
    snapshots = [large("x"), large("y")]
    streams_count = 10

    async def scenario() -> None:
        async with sync_rig(kind, snapshots[0], slow_s=2.0, streams_max=streams_count + 1, drain_s=0.5) as it:
            channel = grpc.aio.insecure_channel(it.rig.front.addresses[0], options=FIXED_WINDOW)
            stub = sync_pb2_grpc.FlagSyncServiceStub(channel)  # type: ignore[no-untyped-call]
            streams = [stub.SyncFlags(Request()) for _ in range(streams_count)]
            for stream in streams:
                await read(stream)
            reader = it.stub.SyncFlags(Request())
            await read(reader)
            before = resident_mib()
            for number in range(60):
                it.board.put(snapshots[(number + 1) % 2].view)
                await read(reader)  # the others' silence is not its own
            await eventually(lambda: it.face.cut_off == streams_count)
            # Unbounded, these would be 600 MiB.
            assert resident_mib() - before < 80 + 5 * streams_count
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
            # They still count: what they were sent is in memory until they read it or leave.
            assert it.face.open == streams_count + 1
            assert (await ended(it.stub.SyncFlags(Request())))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

            code, text = await ended(streams[0])  # one that reads on after all is told
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "cut off" in text
            await eventually(lambda: it.face.open == streams_count)
            assert list(await read_flags(stub.SyncFlags(Request())))  # and may come again
            for stream in streams[1:]:
                stream.cancel()
            await eventually(lambda: it.face.open <= 2)
            await channel.close()

    asyncio.run(scenario())


def test_slow_client_skips_sets_and_ends_with_the_newest(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with (
            sync_rig(kind, large("0"), slow_s=DEADLINE_S) as it,
            grpc.aio.insecure_channel(it.rig.front.addresses[0], options=FIXED_WINDOW) as channel,
        ):
            stub = sync_pb2_grpc.FlagSyncServiceStub(channel)  # type: ignore[no-untyped-call]
            slow, quick = stub.SyncFlags(Request()), it.stub.SyncFlags(Request())
            await read(slow)
            await read(quick)
            for filling in "123456789":
                it.board.put(large(filling).view)
                await read(quick)
            seen = []
            while not seen or seen[-1] != "9":
                flags = await read_flags(slow)
                seen.append(flags["flag-000"]["metadata"]["filling"][0])
            assert len(seen) < 9
            assert seen == sorted(seen)

    asyncio.run(scenario())


def test_set_over_what_clients_accept_is_sent_and_said_loudly_once(kind: FrontKind) -> None:
    async def scenario() -> None:
        huge = snapshot_of({f"f{n}": switch(metadata={"filling": "x" * 100_000}) for n in range(45)})
        async with sync_rig(kind, huge) as it:
            streams = [it.stub.SyncFlags(Request()) for _ in range(2)]
            codes = [await ended(stream) for stream in streams]
            assert {code for code, _ in codes} == {grpc.StatusCode.RESOURCE_EXHAUSTED}  # the client's own refusal
            options = [("grpc.max_receive_message_length", 8 * 2**20)]
            async with grpc.aio.insecure_channel(it.rig.front.addresses[0], options=options) as channel:
                stub = sync_pb2_grpc.FlagSyncServiceStub(channel)  # type: ignore[no-untyped-call]
                assert len(await read_flags(stub.SyncFlags(Request()))) == 45

    with capture_logs() as logs:
        asyncio.run(scenario())
    said = [log for log in logs if log["event"] == "sync.set_too_large"]
    assert len(said) == 1
    assert said[0]["log_level"] == "error"
    assert said[0]["bytes"] > 4 * 2**20


def test_set_over_every_limit_is_refused_and_a_part_of_it_is_not(
    kind: FrontKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flagd_document, "DOCUMENT_BYTES_MAX", 400)

    async def scenario() -> None:
        async with sync_rig(kind, sources()) as it:
            code, text = await ended(it.stub.SyncFlags(Request()))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "selector" in text
            assert list(await read_flags(it.stub.SyncFlags(Request(selector="source=shop")))) == ["both", "cart"]

    asyncio.run(scenario())


def test_bug_tells_callers_nothing(kind: FrontKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(view: object) -> bytes:
        raise KeyError("ada@example.org")

    monkeypatch.setattr(sync, "document", broken)

    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of(FLAGS)) as it:
            for code, text in (
                await ended(it.stub.SyncFlags(Request())),
                await refusal(it.stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest(), timeout=DEADLINE_S)),
            ):
                assert code is grpc.StatusCode.INTERNAL
                assert "ada" not in text

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [log["at"] for log in logs if log["event"] == "call.failed"]
    assert "ada" not in str(logs)


def test_other_calls_are_answered_while_a_large_set_is_encoded(
    kind: FrontKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    at_turn: list[int] = []

    def noting(flag: CompiledFlag) -> bytes:
        at_turn.append(turns)
        return member(flag)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(sync, "member", noting)

    async def scenario() -> None:
        async with sync_rig(kind, snapshot_of({f"f{n}": switch() for n in range(5000)})) as it:
            counting = asyncio.create_task(count_turns())
            await read(it.stub.SyncFlags(Request()))
            counting.cancel()
        longest = max(at_turn.count(turn) for turn in set(at_turn))
        assert (len(at_turn), longest) == (5000, sync.FLAGS_A_TURN)

    asyncio.run(scenario())
