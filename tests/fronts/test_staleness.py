"""Flags that must not be trusted when old fall back to their safe variant, on both fronts."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1

from flaghoist.definition import encode_flag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from sidecar.board import Board
from sidecar.front import FrontKind
from sidecar.staleness import SafeAnswers
from tests.fronts.rig import DEADLINE_S, KINDS, Clock, refusal, rig, switch

pytestmark = pytest.mark.parametrize("kind", KINDS)

SAFE = {"safe_variant": "off", "on_stale": "safe_variant"}
ALWAYS = {"if": [True, "on"]}
FLAGS: Mapping[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
    "trusting": (switch(), {"safe_variant": "off"}),
    "at-once": (switch(), SAFE),
    "minute": (switch(metadata={"team": "shop"}), {**SAFE, "max_stale_s": 60}),
    "ruled": (switch(targeting=ALWAYS), {**SAFE, "max_stale_s": 60}),
    "bare": (switch(None), {**SAFE, "max_stale_s": 60}),
    "broken": (switch(targeting={"cat": ["no", "variant"]}), {**SAFE, "max_stale_s": 60}),
    "disabled": (switch(state="DISABLED"), SAFE),
    "pretending": (switch(metadata={"flaghoist.on_stale": "safe_variant", "flaghoist.pin_miss": True}), {}),
}


def board() -> tuple[Board, Clock]:
    clock = Clock()
    made = Board(clock)
    ops = [
        Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, encode_flag(definition, governance))
        for key, (definition, governance) in FLAGS.items()
    ]
    made.put(Snapshot.empty(Fractional.V2).fold(Seq(1), ops).view)
    made.mark_fresh(clock.now_s, until_s=clock.now_s + 30)
    return made, clock


def said(answer: Any) -> tuple[object, ...]:
    metadata = dict(answer.metadata)
    safe = metadata.get("flaghoist.on_stale")
    return answer.variant, answer.reason, safe


@pytest.mark.parametrize("version", [1, 2])
def test_safe_variant_is_served_once_the_age_is_reached_and_no_more_when_fresh(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        began_s = clock.now_s
        async with rig(kind, board=it_board) as it:

            async def answers() -> dict[str, tuple[object, ...]]:
                keys = ("trusting", "at-once", "minute", "ruled")
                return {key: said(await it.resolve(version, "Boolean", key)) for key in keys}

            on = ("on", "STATIC", None)
            fresh = {"trusting": on, "at-once": on, "minute": on, "ruled": ("on", "TARGETING_MATCH", None)}
            assert await answers() == fresh
            stale, safe = ("on", "STALE", None), ("off", "STALE", "safe_variant")
            for age_s, minute in ((59.9, stale), (60.0, safe), (3600.0, safe), (45.0, stale)):
                clock.now_s = began_s + age_s
                for _ in range(2):
                    assert await answers() == {"trusting": stale, "at-once": safe, "minute": minute, "ruled": minute}
            it_board.mark_fresh(clock.now_s)
            assert await answers() == fresh

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_safe_answer_keeps_the_flags_metadata_its_value_and_the_age(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        async with rig(kind, board=it_board) as it:
            clock.now_s += 61
            answer = await it.resolve(version, "Boolean", "minute")
            assert answer.value is False
            assert dict(answer.metadata) == {
                "team": "shop",
                "flaghoist.seq": 1,
                "flaghoist.stale_s": 61,
                "flaghoist.on_stale": "safe_variant",
            }

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_stale_answers_say_why_and_fresh_ones_do_not(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        it_board.why_stale = "2 entries behind"
        async with rig(kind, board=it_board) as it:

            async def why() -> object:
                return dict((await it.resolve(version, "Boolean", "trusting")).metadata).get("flaghoist.stale_reason")

            assert await why() is None
            clock.now_s += 31
            assert await why() == "2 entries behind"
            flags = (await it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S)).flags
            assert dict(flags["minute"].metadata)["flaghoist.stale_reason"] == "2 entries behind"
            clock.now_s += 1
            it_board.why_stale = "root expired"
            assert await why() == "root expired"
            it_board.mark_fresh(clock.now_s, until_s=clock.now_s + 30)
            assert await why() is None

    asyncio.run(scenario())


def test_stale_answers_to_pinned_calls_say_why_too(kind: FrontKind) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        it_board.why_stale = "root expired"
        async with rig(kind, board=it_board) as it:
            clock.now_s += 31
            request = v1.ResolveBooleanRequest(flag_key="trusting")
            pinned = await it.v1.ResolveBoolean(request, metadata=(("flaghoist-seq", "1"),), timeout=DEADLINE_S)
            assert dict(pinned.metadata)["flaghoist.stale_reason"] == "root expired"

    asyncio.run(scenario())


def test_flags_without_an_answer_get_their_safe_one_and_disabled_ones_stay_so(kind: FrontKind) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        async with rig(kind, board=it_board) as it:
            clock.now_s += 61
            for key in ("bare", "broken"):
                assert said(await it.resolve(1, "Boolean", key)) == ("off", "STALE", "safe_variant")
            assert (await it.resolve(2, "Boolean", "disabled")).reason == "DISABLED"
            assert (await refusal(it.resolve(1, "Boolean", "disabled")))[1] == "Flag disabled"

    asyncio.run(scenario())


def test_resolve_all_serves_safe_variants_too(kind: FrontKind) -> None:
    async def scenario() -> None:
        it_board, clock = board()
        began_s = clock.now_s
        async with rig(kind, board=it_board) as it:
            for age_s, minute in ((40, ("on", "STALE", None)), (61, ("off", "STALE", "safe_variant"))):
                clock.now_s = began_s + age_s
                for _ in range(2):
                    flags = (await it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S)).flags
                    assert said(flags["minute"]) == said(flags["ruled"]) == minute
                    assert said(flags["at-once"]) == ("off", "STALE", "safe_variant")
                    assert ("broken" in flags, "bare" in flags) == (age_s > 60, age_s > 60)
                    assert "disabled" not in flags

    asyncio.run(scenario())


def test_flag_cannot_say_what_only_the_sidecar_says(kind: FrontKind) -> None:
    async def scenario() -> None:
        it_board, _ = board()
        async with rig(kind, board=it_board) as it:
            assert dict((await it.resolve(2, "Boolean", "pretending")).metadata) == {"flaghoist.seq": 1}

    asyncio.run(scenario())


def test_safe_answers_are_made_once(kind: FrontKind) -> None:
    it_board, _ = board()
    assert it_board.view is not None
    safe = SafeAnswers(it_board.view)
    assert set(safe.at(0)) == {"at-once"}
    assert safe.at(60)["minute"] is safe.at(61)["minute"]
    assert safe.at(61) is safe.at(61)
