"""Selectors on both fronts: which flags a call and an event stream see, and what answers say of the selection."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.json_format import MessageToDict

from flaghoist.definition import encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.faces.rendering import RENDERED_FLAGS_MAX, RENDERINGS_MAX, Renderings
from sidecar.front import FrontKind
from tests.fronts.rig import DEADLINE_S, KINDS, Rig, came_true, long_since, rig, switch, view_of

pytestmark = pytest.mark.parametrize("kind", KINDS)

GOVERNANCE = {"owner": "ada@example.org", "team": "payments", "safe_variant": "off"}


def put_in(source: str, key: str, definition: Mapping[str, object], *, version: int = 0) -> Op:
    document = encode_flag(definition, GOVERNANCE)
    return Op(Target.FLAG, Source(source), FlagKey(key), Seq(version), Action.PUT, document)


def first_snapshot() -> Snapshot:
    return Snapshot.empty(Fractional.V2).fold(
        Seq(1),
        [
            put_in("", "plain", switch()),
            put_in("shop", "banner", switch("on", metadata={"flagSetId": "web", "tier": 1})),
            put_in("shop", "limit", switch("off", metadata={"source": "the flag's own"})),
            put_in("office", "banner", switch("off", metadata={"flagSetId": "office"})),
        ],
    )


def selecting(text: str) -> Sequence[tuple[str, str]]:
    return (("flagd-selector", text),)


async def resolve(it: Rig, version: int, key: str, selector: str) -> Any:
    messages, stub = (v1, it.v1) if version == 1 else (v2, it.v2)
    request = messages.ResolveBooleanRequest(flag_key=key)
    return await stub.ResolveBoolean(request, timeout=DEADLINE_S, metadata=selecting(selector))


@pytest.mark.parametrize("version", [1, 2])
def test_call_sees_the_flags_that_it_selects(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.put(first_snapshot().view)
            it.board.mark_fresh(it.board.clock())
            for _ in range(2):  # the second answer is the one that was kept
                for selector, variant in (
                    ("", "off"),
                    ("source=shop", "on"),
                    ("office", "off"),
                    ("flagSetId=web", "on"),
                ):
                    assert (await resolve(it, version, "banner", selector)).variant == variant
                for selector in ("source=", "flagSetId=", "source=nowhere", "flagSetId=x"):
                    with pytest.raises(grpc.aio.AioRpcError) as unknown:
                        await resolve(it, version, "banner", selector)
                    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_selectors_pairs_stand_below_the_flags_own_metadata_and_governance_stays_here(
    kind: FrontKind, version: int
) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.put(first_snapshot().view)
            it.board.mark_fresh(it.board.clock())
            banner = await resolve(it, version, "banner", "source=shop")
            assert dict(banner.metadata) == {"source": "shop", "flagSetId": "web", "tier": 1, "flaghoist.seq": 1}
            limit = await resolve(it, version, "limit", "source=shop")
            assert dict(limit.metadata) == {"source": "the flag's own", "flaghoist.seq": 1}
            assert dict((await resolve(it, version, "plain", "")).metadata) == {"flaghoist.seq": 1}

    asyncio.run(scenario())


def test_resolve_all_says_what_was_selected(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.put(first_snapshot().view)
            it.board.mark_fresh(it.board.clock())
            for _ in range(2):
                for selector, flags, about in (
                    ("", {"plain", "banner", "limit"}, {}),
                    ("shop", {"banner", "limit"}, {"source": "shop"}),
                    ("flagSetId=office", {"banner"}, {"flagSetId": "office"}),
                    ("flagSetId=nothing", set(), {"flagSetId": "nothing"}),
                ):
                    call = it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S, metadata=selecting(selector))
                    answer = await call
                    assert set(answer.flags) == flags
                    assert dict(answer.metadata) == {**about, "flaghoist.seq": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_bad_selector_is_an_invalid_argument(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.put(first_snapshot().view)
            stub = it.v1 if version == 1 else it.v2
            events = stub.EventStream(
                (v1 if version == 1 else v2).EventStreamRequest(), metadata=selecting("colour=red")
            )
            everything = it.v1.ResolveAll(v1.ResolveAllRequest(), metadata=selecting("colour=red"))
            for call in (resolve(it, version, "banner", "colour=red"), events.read(), everything):
                with pytest.raises(grpc.aio.AioRpcError) as bad:
                    await call
                assert bad.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "want source or flagSetId" in (bad.value.details() or "")
            assert it.events.open == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_stream_hears_of_its_selection_only(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            snapshot = first_snapshot()
            it.board.put(snapshot.view)
            long_since(it.board)
            stub, request = (it.v1, v1.EventStreamRequest()) if version == 1 else (it.v2, v2.EventStreamRequest())
            selectors = ("", "source=shop", "flagSetId=office", "flagSetId=")
            streams = {text: stub.EventStream(request, metadata=selecting(text)) for text in selectors}

            async def heard(selector: str) -> Any:
                async with asyncio.timeout(DEADLINE_S):
                    event = await streams[selector].read()
                return event.type, MessageToDict(event.data).get("flags")

            for selector in selectors:
                assert await heard(selector) == ("provider_ready", None)
            # The banner of the shop changes: hidden from the view of everything by that of the office.
            changed = switch("off", metadata={"flagSetId": "web", "tier": 1})
            snapshot = snapshot.fold(Seq(2), [put_in("shop", "banner", changed, version=1)])
            it.board.put(snapshot.view)
            assert await heard("source=shop") == ("configuration_change", {"banner": {"type": "update"}})
            # It leaves its flag set: what a selection loses is a deletion there.
            snapshot = snapshot.fold(Seq(3), [put_in("office", "banner", switch("off"), version=1)])
            it.board.put(snapshot.view)
            assert await heard("") == ("configuration_change", {"banner": {"type": "update"}})
            assert await heard("flagSetId=office") == ("configuration_change", {"banner": {"type": "delete"}})
            assert await heard("flagSetId=") == ("configuration_change", {"banner": {"type": "write"}})
            it.board.close()
            for selector in selectors:
                assert await heard(selector) == ("provider_shutdown", None)

    asyncio.run(scenario())


def test_streams_of_one_selection_share_one_encoding(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            snapshot = first_snapshot()
            it.board.put(snapshot.view)
            texts = ["source=shop", "flagSetId=web", "source=office"] * 4
            streams = [it.v2.EventStream(v2.EventStreamRequest(), metadata=selecting(text)) for text in texts]
            for stream in streams:
                assert (await stream.read()).type == "provider_ready"
            for seq in range(2, 5):
                changed = switch("on" if seq % 2 else "off", metadata={"flagSetId": "web"})
                snapshot = snapshot.fold(
                    Seq(seq), [put_in("shop", "banner", changed, version=seq - 1 if seq > 2 else 1)]
                )
                it.board.put(snapshot.view)
                for text, stream in zip(texts, streams, strict=True):
                    if text != "source=office":
                        assert (await stream.read()).type == "configuration_change"
            assert await came_true(lambda: len(it.events._encoded) == 2, within_s=DEADLINE_S)
            for stream in streams:
                stream.cancel()

    asyncio.run(scenario())


def test_what_callers_can_make_a_face_remember_is_bounded(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.put(first_snapshot().view)
            for number in range(3 * RENDERINGS_MAX):
                with pytest.raises(grpc.aio.AioRpcError):
                    await resolve(it, 2, "banner", f"flagSetId=set-{number}")
            assert (await resolve(it, 2, "banner", "source=shop")).variant == "on"

    asyncio.run(scenario())
    renderings = Renderings()
    for number in range(3 * RENDERINGS_MAX):
        view = view_of({"a": switch()})
        renderings.of(view, None)
        assert renderings.of(view, number) is renderings.of(view, number)
    assert len(renderings) == RENDERINGS_MAX
    large = dict(view_of({"a": switch()}).flags)
    large |= {f"flag-{number}": large["a"] for number in range(RENDERED_FLAGS_MAX // 4)}
    views = [type(view)(Seq(number), large) for number in range(10)]
    for view in views:
        renderings.of(view, None)
    assert len(renderings) == 3
