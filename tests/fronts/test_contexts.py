"""Static context and mapped headers on both fronts: whose word counts when several speak of one thing."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1
from flagd.evaluation.v2 import evaluation_pb2 as v2

from sidecar.front import FrontKind
from sidecar.request import RequestReader, header_context_from, static_context_from
from tests.fronts.rig import DEADLINE_S, KINDS, Rig, flag, rig

pytestmark = pytest.mark.parametrize("kind", KINDS)

TIERS = {"gold": "g", "silver": "s", "bronze": "b", "none": "n"}
FLAGS = {
    "tier": flag(TIERS, "none", targeting={"var": "tier"}),
    "region": flag({"eu": "eu", "us": "us", "none": "n"}, "none", targeting={"var": "region"}),
    "ours": flag(
        {"ours": 1, "theirs": 2}, "theirs", targeting={"if": [{"==": [{"var": "$flagd.flagKey"}, "ours"]}, "ours"]}
    ),
    "keyed": flag({"yes": "y", "no": "n"}, "no", targeting={"if": [{"==": [{"var": "targetingKey"}, "ada"]}, "yes"]}),
}
REQUESTS = RequestReader(
    static_context=static_context_from("region=eu,tier=bronze"),
    header_context=header_context_from("X-Tier=tier,X-User=targetingKey"),
)


async def resolve(it: Rig, version: int, kind: str, key: str, metadata: Sequence[tuple[str, str]], given: Any) -> Any:
    messages, stub = (v1, it.v1) if version == 1 else (v2, it.v2)
    request = getattr(messages, f"Resolve{kind}Request")(flag_key=key)
    request.context.update(given)
    return (await getattr(stub, f"Resolve{kind}")(request, timeout=DEADLINE_S, metadata=metadata)).variant


@pytest.mark.parametrize("version", [1, 2])
def test_header_wins_over_static_context_and_that_over_the_request(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, requests=REQUESTS) as it:
            given = {"tier": "silver", "region": "us"}
            assert await resolve(it, version, "String", "tier", (("x-tier", "gold"),), given) == "gold"
            assert await resolve(it, version, "String", "tier", (("x-tier", ""),), given) == "bronze"
            assert await resolve(it, version, "String", "tier", (), given) == "bronze"
            assert await resolve(it, version, "String", "region", (("x-tier", "gold"),), given) == "eu"
            assert await resolve(it, version, "String", "keyed", (("x-user", "ada"),), {"targetingKey": None}) == "yes"
            assert await resolve(it, version, "String", "keyed", (), {"targetingKey": "ada"}) == "yes"
            assert await resolve(it, version, "Int", "ours", (), {"$flagd": {"flagKey": "theirs"}}) == "ours"

    asyncio.run(scenario())


def test_resolve_all_sees_them_too(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, requests=REQUESTS) as it:
            for metadata, tier in (
                ((("x-tier", "gold"),), "gold"),
                ((), "bronze"),
                ((("x-tier", "silver"),), "silver"),
            ):
                answer = await it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S, metadata=metadata)
                assert (answer.flags["tier"].variant, answer.flags["region"].variant) == (tier, "eu")

    asyncio.run(scenario())


def test_selector_pin_and_header_work_together(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, requests=REQUESTS) as it:
            metadata = (("x-tier", "gold"), ("flaghoist-seq", "1"), ("flagd-selector", "source="))
            assert await resolve(it, 2, "String", "tier", metadata, {}) == "gold"

    asyncio.run(scenario())


def test_without_settings_headers_add_nothing(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            assert await resolve(it, 2, "String", "tier", (("x-tier", "gold"),), {"tier": "silver"}) == "silver"

    asyncio.run(scenario())
