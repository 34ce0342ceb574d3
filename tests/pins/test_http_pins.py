"""OFREP and Connect: pins, selectors, mapped headers and safe variants over HTTP, as over gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from flaghoist.definition import encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.board import PAST_S, Board
from sidecar.faces.connect import Connect
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.faces.ofrep import RENDERINGS_MAX, Ofrep
from sidecar.http_app import HttpApp
from sidecar.http_front import serve_http
from sidecar.listeners import Face
from sidecar.request import RequestReader, header_context_from, static_context_from
from tests.fronts.rig import LOOPBACK, Clock, switch
from tests.http.rig import BULK, Reply, Rig

BEGAN_S = Clock().now_s
SAFE = {"safe_variant": "off", "on_stale": "safe_variant", "max_stale_s": 60}
PICK = {"if": [{"==": [{"var": "tier"}, "gold"]}, "on"]}
REQUESTS = RequestReader(
    static_context=static_context_from("tier=bronze"), header_context=header_context_from("X-Tier=tier")
)


def put_in(source: str, key: str, flag: Mapping[str, object], *, version: int = 0, **governance: object) -> Op:
    document = encode_flag(flag, governance)
    return Op(Target.FLAG, Source(source), FlagKey(key), Seq(version), Action.PUT, document)


def history() -> list[View]:
    snapshot = Snapshot.empty(Fractional.V2).fold(
        Seq(1),
        [
            put_in("", "switch", switch("on", metadata={"flaghoist.pin_miss": True, "team": "shop"})),
            put_in("shop", "banner", switch("on", metadata={"flagSetId": "web"}), **SAFE),
            put_in("shop", "picked", switch("off", targeting=PICK)),
        ],
    )
    views = [snapshot.view]
    for seq in (2, 3):
        default = "off" if seq == 2 else "on"
        snapshot = snapshot.fold(Seq(seq), [put_in("", "switch", switch(default), version=seq - 1)])
        views.append(snapshot.view)
    return views


@asynccontextmanager
async def served() -> AsyncIterator[Rig]:
    clock = Clock()
    board = Board(clock)
    for view in history():
        board.put(view)
    board.mark_fresh(clock.now_s, until_s=clock.now_s + 30)
    ofrep = Ofrep(board, requests=REQUESTS)
    evaluation = EvaluationV2(board, EventStreams(board), requests=REQUESTS)
    app = HttpApp("ofrep", {b"ofrep": ofrep, evaluation.name.encode(): Connect(evaluation)})
    async with serve_http(app, [LOOPBACK], face=Face.OFREP) as front:
        yield Rig(board, clock, front, front)


def run(scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), served() as it:
            await scenario(it)

    uvloop.run(main())


def pinned(seq: object) -> Mapping[str, str]:
    return {"Flaghoist-Seq": str(seq)}


async def connect(it: Rig, key: str, headers: Mapping[str, str]) -> Reply:
    body = json.dumps({"flagKey": key})
    path = "/flagd.evaluation.v2.Service/ResolveBoolean"
    return await it.call(path, body, headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("headers", [pinned, lambda seq: {"Baggage": f"a=b, flaghoist.seq = {seq} ;p"}])
def test_flag_and_bulk_are_answered_from_the_version_that_is_named(headers: Any) -> None:
    async def scenario(it: Rig) -> None:
        for _ in range(2):
            for seq, variant, reason in ((1, "on", "DEFAULT"), (2, "off", "DEFAULT"), (3, "on", "STATIC")):
                reply = await it.flag("switch", headers=headers(seq))
                assert (reply.json["variant"], reply.json["reason"]) == (variant, reason)
                assert reply.json["metadata"]["flaghoist.seq"] == seq
                assert "flaghoist.pin_miss" not in reply.json["metadata"]
                assert reply.headers["flaghoist-seq"] == str(seq)
                assert "flaghoist-pin-miss" not in reply.headers
                bulk = await it.flags(headers=headers(seq))
                flags = {each["key"]: each for each in bulk.json["flags"]}
                assert (flags["switch"]["variant"], flags["switch"]["reason"]) == (variant, reason)
                assert {each["metadata"]["flaghoist.seq"] for each in bulk.json["flags"]} == {seq}
                assert bulk.json["metadata"] == {"flaghoist.seq": seq}
                assert (await connect(it, "switch", headers(seq))).json["metadata"]["flaghoist.seq"] == seq

    run(scenario)


def test_missed_pin_is_answered_from_the_newest_and_says_why() -> None:
    async def scenario(it: Rig) -> None:
        async def why(headers: Mapping[str, str]) -> set[str]:
            replies = [
                await it.flag("switch", headers=headers),
                await it.flags(headers=headers),
                await it.flag("nobody", headers=headers),
                await it.call(BULK, "not JSON", headers=headers),
                await connect(it, "switch", headers),
            ]
            for reply in replies:
                assert reply.headers["flaghoist-seq"] == "3"
                assert reply.json["metadata"]["flaghoist.pin_miss"] is True
            return {reply.headers["flaghoist-pin-miss"] for reply in replies}

        assert await why(pinned(4)) == {"not-yet"}
        assert await why(pinned("x")) == {"malformed"}
        it.clock.now_s += PAST_S + 1
        it.board.mark_fresh(it.clock.now_s)
        assert await why(pinned(1)) == {"too-old"}
        assert it.board.view is not None
        it.board.put(it.board.view, min_pin=Seq(3))
        assert await why(pinned(2)) == {"min-pin"}
        plain = await it.flag("switch")
        assert "flaghoist-pin-miss" not in plain.headers
        assert plain.json["metadata"] == {"flaghoist.seq": 3}

    run(scenario)


def test_tag_tells_versions_selections_and_missed_pins_apart() -> None:
    async def scenario(it: Rig) -> None:
        asked = [
            {},
            pinned(1),
            pinned(2),
            pinned(9),
            {"Flagd-Selector": "source=shop"},
            {"Flagd-Selector": "flagSetId=x"},
        ]
        asked += [{"Flagd-Selector": "flagSetId=y"}, {"X-Tier": "gold"}]
        tags = [(await it.flags(headers=headers)).headers["etag"] for headers in asked]
        assert len(set(tags)) == len(tags)
        for headers, tag in zip(asked, tags, strict=True):
            again = await it.flags(headers={**headers, "If-None-Match": tag})
            assert again.status == 304
            assert again.headers.get("flaghoist-pin-miss") == ("not-yet" if headers == pinned(9) else None)

    run(scenario)


def test_selector_chooses_and_is_told_back_below_the_flags_own_metadata() -> None:
    async def scenario(it: Rig) -> None:
        for _ in range(2):
            shop = await it.flags(headers={"Flagd-Selector": "source=shop"})
            assert {each["key"] for each in shop.json["flags"]} == {"banner", "picked"}
            assert shop.json["metadata"] == {"source": "shop", "flaghoist.seq": 3}
            banner = await it.flag("banner", headers={"Flagd-Selector": "shop"})
            assert banner.json["metadata"] == {"source": "shop", "flagSetId": "web", "flaghoist.seq": 3}
            lost = await it.flag("switch", headers={"Flagd-Selector": "shop"})
            assert (lost.status, lost.json["metadata"]) == (404, {"source": "shop", "flaghoist.seq": 3})
            nothing = await it.flags(headers={"Flagd-Selector": "flagSetId=none"})
            assert nothing.json == {"flags": [], "metadata": {"flagSetId": "none", "flaghoist.seq": 3}}

    run(scenario)


def test_bad_selector_is_a_400() -> None:
    async def scenario(it: Rig) -> None:
        for key in ("", "switch"):
            path = f"{BULK}/{key}" if key else BULK
            reply = await it.call(path, "{}", headers={"Flagd-Selector": "colour=red"})
            assert (reply.status, reply.json["errorCode"]) == (400, "GENERAL")
            assert reply.json.get("key", "") == key
        assert (await connect(it, "switch", {"Flagd-Selector": "colour=red"})).json["code"] == "invalid_argument"

    run(scenario)


def test_header_wins_over_static_context_and_that_over_the_request() -> None:
    async def scenario(it: Rig) -> None:
        gold = {"X-Tier": "gold"}
        assert (await it.flag("picked", {"tier": "silver"}, headers=gold)).json["variant"] == "on"
        assert (await it.flag("picked", {"tier": "gold"})).json["variant"] == "off"
        assert (await it.flag("picked", {"tier": "gold"}, headers={"X-Tier": ""})).json["variant"] == "off"
        assert (await connect(it, "picked", gold)).json["variant"] == "on"

    run(scenario)


def test_safe_variant_is_served_once_the_age_is_reached() -> None:
    async def scenario(it: Rig) -> None:
        for age_s, variant in ((0, "on"), (59, "on"), (60, "off"), (3600, "off"), (45, "on")):
            it.clock.now_s = BEGAN_S + age_s
            for headers in ({}, {"Flagd-Selector": "source=shop"}):
                single = (await it.flag("banner", headers=headers)).json
                bulk = (await it.flags(headers=headers)).json["flags"]
                assert single in bulk
                assert single["variant"] == variant
                assert single["reason"] == ("STALE" if age_s else "STATIC")
                safe = single["metadata"].get("flaghoist.on_stale")
                assert safe == ("safe_variant" if variant == "off" else None)

    run(scenario)


def test_what_callers_can_make_the_face_remember_is_bounded() -> None:
    async def scenario(it: Rig) -> None:
        clock = Clock()
        board = Board(clock)
        for view in history():
            board.put(view)
        ofrep = Ofrep(board)
        for number in range(3 * RENDERINGS_MAX):
            asked = RequestReader().read(
                [("flagd-selector", f"flagSetId=s{number}"), ("flaghoist-seq", str(number % 5))]
            )
            ofrep._rendered(await board.served(asked))
        assert len(ofrep._renderings) <= RENDERINGS_MAX
        assert len(ofrep._heads) <= RENDERINGS_MAX

    run(scenario)
