"""Pins on both fronts: a call is answered from the version that it names, or told why not."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2

from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.values import Seq
from sidecar import board as board_module
from sidecar.board import PAST_S, Board
from sidecar.front import FrontKind
from tests.fronts.rig import DEADLINE_S, KINDS, Clock, Rig, delete, eventually, flag, put, refusal, rig, switch

pytestmark = pytest.mark.parametrize("kind", KINDS)

Metadata = Sequence[tuple[str, str]]
PICK = {"if": [{"==": [{"var": "email"}, "ada@example.org"]}, "on", None]}


def versions() -> list[View]:
    """Return views at seq 1 .. 3: `switch` and `picked` on, off, on; `late` from seq 2 on, `early` only at seq 1."""
    snapshot = Snapshot.empty(Fractional.V2).fold(
        Seq(1),
        [put("switch", switch("on")), put("picked", switch("off", targeting=PICK)), put("early", switch())],
    )
    views = [snapshot.view]
    snapshot = snapshot.fold(
        Seq(2),
        [
            put("switch", switch("off"), version=1),
            put("picked", switch("off"), version=1),
            put("late", flag({"text": "new"}, "text")),
            delete("early", version=1),
        ],
    )
    views.append(snapshot.view)
    views.append(snapshot.fold(Seq(3), [put("switch", switch("on"), version=2)]).view)
    return views


def board_of(views: Sequence[View]) -> tuple[Board, Clock]:
    clock = Clock()
    board = Board(clock)
    for view in views:
        board.put(view)
    board.mark_fresh(clock.now_s)
    return board, clock


def by_header(seq: int) -> Metadata:
    return (("flaghoist-seq", str(seq)),)


def by_baggage(seq: int) -> Metadata:
    return (("baggage", f"user=ada,flaghoist.seq={seq};kept"),)


async def resolve(
    it: Rig, version: int, key: str, metadata: Metadata = (), context: Mapping[str, Any] | None = None
) -> tuple[Any, Mapping[str, str]]:
    """Return the answer and the response metadata of ResolveBoolean."""
    messages, stub = (v1, it.v1) if version == 1 else (v2, it.v2)
    request = messages.ResolveBooleanRequest(flag_key=key)
    request.context.update(context or {})
    call = stub.ResolveBoolean(request, timeout=DEADLINE_S, metadata=metadata)
    return await call, dict(await call.trailing_metadata())


async def resolve_all(it: Rig, metadata: Metadata = ()) -> tuple[Any, Mapping[str, str]]:
    call = it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S, metadata=metadata)
    return await call, dict(await call.trailing_metadata())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("asking", [by_header, by_baggage])
def test_call_is_answered_from_the_version_that_it_names(kind: FrontKind, version: int, asking: Any) -> None:
    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            for _ in range(2):  # the second answer is the one that was kept
                for seq, variant in ((1, "on"), (2, "off"), (3, "on")):
                    answer, trailer = await resolve(it, version, "switch", asking(seq))
                    assert (answer.variant, answer.metadata["flaghoist.seq"]) == (variant, seq)
                    assert "flaghoist.pin_miss" not in answer.metadata
                    assert trailer["flaghoist-seq"] == str(seq)
                    assert "flaghoist-pin-miss" not in trailer
            context = {"email": "ada@example.org"}
            assert (await resolve(it, version, "picked", asking(1), context))[0].reason == "TARGETING_MATCH"
            assert (await resolve(it, version, "picked", asking(3), context))[0].reason == "STATIC"
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await resolve(it, version, "late", asking(1))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            assert dict(unknown.value.trailing_metadata())["flaghoist-seq"] == "1"

    asyncio.run(scenario())


def test_resolve_all_is_answered_from_the_version_that_it_names(kind: FrontKind) -> None:
    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            for _ in range(2):
                for seq, keys in ((1, {"switch", "picked", "early"}), (3, {"switch", "picked", "late"})):
                    answer, trailer = await resolve_all(it, by_header(seq))
                    assert set(answer.flags) == keys
                    assert dict(answer.metadata) == {"flaghoist.seq": seq}
                    assert {each.metadata["flaghoist.seq"] for each in answer.flags.values()} == {seq}
                    assert trailer["flaghoist-seq"] == str(seq)

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_answer_from_the_past_is_not_static_for_a_provider_would_keep_it(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            assert (await resolve(it, version, "switch", by_header(2)))[0].reason == "DEFAULT"
            assert (await resolve(it, version, "switch", by_header(3)))[0].reason == "STATIC"
            assert (await resolve(it, version, "switch"))[0].reason == "STATIC"

    asyncio.run(scenario())


def missed(answer: Any, trailer: Mapping[str, str]) -> tuple[object, object]:
    return answer.metadata["flaghoist.pin_miss"], trailer["flaghoist-pin-miss"]


@pytest.mark.parametrize("version", [1, 2])
def test_missed_pin_is_answered_from_the_newest_and_says_why(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        views = versions()
        board, clock = board_of(views)
        async with rig(kind, board=board) as it:

            async def why(metadata: Metadata) -> object:
                answer, trailer = await resolve(it, version, "switch", metadata)
                assert (answer.variant, answer.reason) == ("on", "STATIC")
                assert answer.metadata["flaghoist.seq"] == 3
                assert trailer["flaghoist-seq"] == "3"
                said, reason = missed(answer, trailer)
                assert said is True
                assert missed(*(await resolve_all(it, metadata))) == (True, reason)
                return reason

            assert await why(by_header(4)) == "not-yet"
            assert await why(by_baggage(2**63 - 1)) == "not-yet"
            assert await why((("flaghoist-seq", "soon"),)) == "malformed"
            assert await why((("baggage", "flaghoist.seq=1,flaghoist.seq=2"),)) == "malformed"
            clock.now_s += PAST_S + 1
            board.mark_fresh(clock.now_s)
            assert await why(by_header(1)) == "too-old"
            board.put(views[2], min_pin=Seq(3))
            assert await why(by_header(2)) == "min-pin"
            answer, trailer = await resolve(it, version, "switch")  # a call without a pin misses none
            assert "flaghoist.pin_miss" not in answer.metadata
            assert "flaghoist-pin-miss" not in trailer

    asyncio.run(scenario())


def test_refused_call_says_that_its_pin_was_missed(kind: FrontKind) -> None:
    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await resolve(it, 2, "nobody", by_header(9))
            assert dict(unknown.value.trailing_metadata())["flaghoist-pin-miss"] == "not-yet"

    asyncio.run(scenario())


def test_pin_without_any_flags_loaded_is_unavailable(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            assert (await refusal(resolve(it, 2, "switch", by_header(1))))[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_call_pinned_to_what_is_on_its_way_waits_for_it(kind: FrontKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "PIN_WAIT_S", DEADLINE_S)

    async def scenario() -> None:
        views = versions()
        board, _ = board_of(views[:1])
        async with rig(kind, board=board) as it:
            calls = [asyncio.ensure_future(resolve(it, 2, "switch", by_header(2))) for _ in range(20)]
            await eventually(lambda: board.waiting == 20)
            answer, _ = await resolve(it, 1, "switch")  # others do not wait for them
            assert answer.metadata["flaghoist.seq"] == 1
            for view in views[1:]:
                board.put(view)
            for answer, trailer in await asyncio.gather(*calls):
                assert (answer.variant, answer.metadata["flaghoist.seq"]) == ("off", 2)
                assert "flaghoist-pin-miss" not in trailer
            assert board.waiting == 0

    asyncio.run(scenario())


def test_client_that_gives_up_on_a_pin_leaves_nothing_waiting(kind: FrontKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "PIN_WAIT_S", DEADLINE_S)

    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            call = asyncio.ensure_future(resolve(it, 2, "switch", by_header(9)))
            await eventually(lambda: board.waiting == 1)
            call.cancel()
            await eventually(lambda: board.waiting == 0)

    asyncio.run(scenario())


def flips(rng: random.Random, count: int) -> list[tuple[View, dict[str, str]]]:
    """Return views at seq 1 .. count, each with what its flags say; entries flip some flags and leave others."""
    keys = [f"flag-{number}" for number in range(6)]
    snapshot = Snapshot.empty(Fractional.V2)
    version = dict.fromkeys(keys, 0)
    said: dict[str, str] = {}
    history = []
    for seq in range(1, count + 1):
        chosen = keys if seq == 1 else rng.sample(keys, rng.randint(0, 4))
        ops = []
        for key in chosen:
            said[key] = rng.choice(["on", "off"])
            more = {"targeting": {"if": [True, said[key]]}} if rng.random() < 0.4 else {}
            ops.append(put(key, switch(said[key], **more), version=version[key]))
            version[key] = seq
        snapshot = snapshot.fold(Seq(seq), ops)
        history.append((snapshot.view, dict(said)))
    return history


@pytest.mark.parametrize("seed", range(8))
def test_request_that_crosses_services_sees_one_version_under_flips(kind: FrontKind, seed: int) -> None:
    """The first hop pins the rest to what it was answered from; between all hops entries are applied."""
    rng = random.Random(seed)
    history = flips(rng, 60)

    async def scenario() -> None:
        clock = Clock()
        board = Board(clock)
        shown = 20
        for view, _ in history[:shown]:
            board.put(view)
        board.mark_fresh(clock.now_s)
        async with rig(kind, board=board) as it:
            while shown < len(history):
                pin: int | None = None
                for hop in range(rng.randint(2, 6)):
                    for _ in range(rng.randint(0, 2)):
                        if shown < len(history):
                            board.put(history[shown][0])
                            shown += 1
                    asking = () if pin is None else rng.choice([by_header, by_baggage])(pin)
                    if rng.random() < 0.3:
                        everything, trailer = await resolve_all(it, asking)
                        seen = {key: each.variant for key, each in everything.flags.items()}
                    else:
                        key = f"flag-{rng.randrange(6)}"
                        answer, trailer = await resolve(it, rng.choice([1, 2]), key, asking)
                        seen = {key: answer.variant}
                        assert answer.metadata["flaghoist.seq"] == int(trailer["flaghoist-seq"])
                    seq = int(trailer["flaghoist-seq"])
                    assert pin in (None, seq), f"hop {hop} saw {seq}, the request {pin}"
                    assert seen.items() <= history[seq - 1][1].items()
                    pin = seq

    asyncio.run(scenario())


def test_thousands_of_calls_pinned_to_the_future_are_answered_and_hold_nothing(kind: FrontKind) -> None:
    async def scenario() -> None:
        board, _ = board_of(versions())
        async with rig(kind, board=board) as it:
            at_once = asyncio.Semaphore(500)

            async def call(seq: int) -> str:
                async with at_once:
                    _, trailer = await resolve(it, 2, "switch", by_header(seq))
                    return trailer["flaghoist-pin-miss"]

            async with asyncio.timeout(60):
                assert {*await asyncio.gather(*(call(10 + n) for n in range(2_000)))} == {"not-yet"}
            assert board.waiting == 0
            assert board.past == 3

    asyncio.run(scenario())
