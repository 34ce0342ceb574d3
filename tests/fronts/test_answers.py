"""What the evaluation services answer, on both fronts: each row of what flagd's clients rely on."""

import asyncio

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2 as v1

from sidecar.board import Board, VerifierState
from sidecar.faces.evaluation_v1 import DisabledOnV1
from sidecar.front import FrontKind
from tests.fronts.rig import DEADLINE_S, KINDS, Clock, context_struct, flag, refusal, rig, switch

pytestmark = pytest.mark.parametrize("kind", KINDS)

ADA = {"if": [{"==": [{"var": "email"}, "ada@example.org"]}, "on", None]}
FLAGS = {
    "switch": switch(),
    "colour": flag({"red": "#f00", "none": ""}, "red", metadata={"team": "shop", "tier": 2}),
    "ratio": flag({"half": 0.5, "whole": 10.0}, "half"),
    "count": flag({"ten": 10, "big": 2**53 - 1}, "ten"),
    "whole": flag({"ten": 10.0}, "ten"),
    "big": flag({"big": 2**53 - 1}, "big"),
    "huge": flag({"huge": 1e30}, "huge"),
    "layout": flag({"wide": {"columns": 3, "names": ["a", None], "deep": {"on": True}}}, "wide"),
    "for-ada": switch("off", targeting=ADA),
    "picks": switch("off", targeting={"var": "pick"}),
    "off": switch(state="DISABLED"),
    "bare": switch(None, targeting=ADA),
    "barest": flag({"on": True}, None),
}


@pytest.mark.parametrize("version", [1, 2])
def test_flag_without_a_rule_is_static(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for _ in range(2):  # the second answer is the one that was kept
                answer = await it.resolve(version, "Boolean", "switch", {"email": "ada@example.org"})
                assert (answer.value, answer.variant, answer.reason) == (True, "on", "STATIC")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_rule_that_picks_a_variant_is_a_targeting_match_and_null_is_the_default(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for _ in range(2):
                match = await it.resolve(version, "Boolean", "for-ada", {"email": "ada@example.org"})
                assert (match.value, match.variant, match.reason) == (True, "on", "TARGETING_MATCH")
                other = await it.resolve(version, "Boolean", "for-ada", {"email": "grace@example.org"})
                assert (other.value, other.variant, other.reason) == (False, "off", "DEFAULT")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_same_variant_by_rule_and_by_default_keeps_its_own_reason(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            picked = await it.resolve(version, "Boolean", "picks", {"pick": "off"})
            default = await it.resolve(version, "Boolean", "picks", {"pick": None})
            assert (picked.variant, picked.reason) == ("off", "TARGETING_MATCH")
            assert (default.variant, default.reason) == ("off", "DEFAULT")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_unknown_flag_is_not_found(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for key in ("nobody", "", "a/b", "ключ"):
                assert await it.refusal(version, "Boolean", key) == (grpc.StatusCode.NOT_FOUND, "Flag not found")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_rule_that_names_no_variant_is_unknown(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            code, text = await it.refusal(version, "Boolean", "picks", {"pick": "ada@example.org"})
            assert (code, text) == (grpc.StatusCode.UNKNOWN, "General error")

    asyncio.run(scenario())


WRONG_TYPES = [
    ("Boolean", "colour"), ("Boolean", "count"), ("String", "switch"), ("String", "layout"), ("Float", "switch"),
    ("Float", "colour"), ("Int", "switch"), ("Int", "ratio"), ("Object", "switch"), ("Object", "colour"),
    ("Int", "huge"),
]  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("method", "key"), WRONG_TYPES)
def test_wrong_type_is_an_invalid_argument(kind: FrontKind, version: int, method: str, key: str) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for _ in range(2):
                refused = await it.refusal(version, method, key)
                assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "Type mismatch error")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_numbers_cross_types_when_nothing_is_lost(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            assert (await it.resolve(version, "Float", "count")).value == 10.0
            assert (await it.resolve(version, "Int", "whole")).value == 10
            assert (await it.resolve(version, "Int", "big")).value == 2**53 - 1
            assert (await it.resolve(version, "Float", "ratio")).value == 0.5

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_object_keeps_its_nesting(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            value = (await it.resolve(version, "Object", "layout")).value
            assert value["columns"] == 3
            assert list(value["names"]) == ["a", None]
            assert value["deep"]["on"] is True

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_answer_carries_the_flags_metadata_and_the_seq(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for key, method in (("colour", "String"), ("for-ada", "Boolean")):
                metadata = (await it.resolve(version, method, key)).metadata
                assert metadata["flaghoist.seq"] == 1
                assert "flaghoist.stale_s" not in metadata
            metadata = (await it.resolve(version, "String", "colour")).metadata
            assert (metadata["team"], metadata["tier"]) == ("shop", 2)

    asyncio.run(scenario())


def test_every_call_names_its_seq_in_response_metadata_errors_too(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for key in ("switch", "for-ada", "nobody"):
                call = it.v1.ResolveBoolean(v1.ResolveBooleanRequest(flag_key=key), timeout=DEADLINE_S)
                assert ("flaghoist-seq", "1") in list(await call.trailing_metadata())

    asyncio.run(scenario())


def test_v2_answers_a_disabled_flag_without_value_and_variant(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for method in ("Boolean", "String", "Int", "Float", "Object"):  # a type is not checked where no value is
                answer = await it.resolve(2, method, "off")
                assert answer.reason == "DISABLED"
                assert not answer.HasField("value")
                assert not answer.HasField("variant")
                assert answer.metadata["flaghoist.seq"] == 1

    asyncio.run(scenario())


def test_v1_says_not_found_of_a_disabled_flag(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for method in ("Boolean", "String"):
                assert await it.refusal(1, method, "off") == (grpc.StatusCode.NOT_FOUND, "Flag disabled")

    asyncio.run(scenario())


def test_v1_answers_a_disabled_flag_with_a_zero_value_when_set_to_flagds_way(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS, disabled=DisabledOnV1.FLAGD) as it:
            for method, zero in (("Boolean", False), ("String", ""), ("Int", 0), ("Float", 0.0)):
                answer = await it.resolve(1, method, "off")
                assert (answer.value, answer.variant, answer.reason) == (zero, "", "DISABLED")
            assert dict((await it.resolve(1, "Object", "off")).value) == {}

    asyncio.run(scenario())


def test_v2_answers_a_flag_without_default_with_reason_default_and_no_value(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for key in ("bare", "barest"):
                answer = await it.resolve(2, "Boolean", key, {"email": "grace@example.org"})
                assert answer.reason == "DEFAULT"
                assert not answer.HasField("value")
                assert not answer.HasField("variant")
            assert (await it.resolve(2, "Boolean", "bare", {"email": "ada@example.org"})).value is True

    asyncio.run(scenario())


def test_v1_says_not_found_of_a_flag_without_default(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for key in ("bare", "barest"):
                assert await it.refusal(1, "Boolean", key) == (grpc.StatusCode.NOT_FOUND, "Flag not found")
            assert (await it.resolve(1, "Boolean", "bare", {"email": "ada@example.org"})).value is True

    asyncio.run(scenario())


def test_resolve_all_leaves_out_what_has_no_value_or_fails(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            for _ in range(2):
                request = v1.ResolveAllRequest(context=context_struct({"pick": "nope", "email": "grace@example.org"}))
                call = it.v1.ResolveAll(request, timeout=DEADLINE_S)
                answer = await call
                assert set(answer.flags) == set(FLAGS) - {"picks", "off", "bare", "barest"}
                assert answer.flags["switch"].bool_value is True
                assert answer.flags["switch"].reason == "STATIC"
                assert answer.flags["colour"].string_value == "#f00"
                assert answer.flags["colour"].metadata["team"] == "shop"
                assert answer.flags["count"].double_value == 10
                assert answer.flags["layout"].object_value["columns"] == 3
                assert answer.flags["for-ada"].variant == "off"
                assert answer.metadata["flaghoist.seq"] == 1
                assert ("flaghoist-seq", "1") in list(await call.trailing_metadata())

    asyncio.run(scenario())


def test_resolve_all_of_static_flags_follows_the_view(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, {"one": switch()}) as it:
            for _ in range(2):
                assert set((await it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S)).flags) == {"one"}
            async with rig(kind, {"one": switch(), "two": switch()}) as other:
                it.board.put(other.board.view)  # type: ignore[arg-type]
                answer = await it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S)
                assert set(answer.flags) == {"one", "two"}

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_null_targeting_key_is_none_at_all_and_whole_doubles_are_ints(kind: FrontKind, version: int) -> None:
    flags = {
        "keyed": switch("off", targeting={"if": [{"missing": ["targetingKey"]}, "on", "off"]}),
        "glued": flag({"v1": "one", "v1.5": "more", "x": ""}, "x", targeting={"cat": ["v", {"var": "n"}]}),
    }

    async def scenario() -> None:
        async with rig(kind, flags) as it:
            assert (await it.resolve(version, "Boolean", "keyed", {"targetingKey": None})).value is True
            assert (await it.resolve(version, "Boolean", "keyed", {"targetingKey": "ada"})).value is False
            assert (await it.resolve(version, "String", "glued", {"n": 1.0})).value == "one"
            assert (await it.resolve(version, "String", "glued", {"n": 1.5})).value == "more"

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_stale_answers_say_so_and_how_old_they_are(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with rig(kind, FLAGS, board=Board(clock)) as it:
            it.board.mark_fresh(clock.now_s, until_s=clock.now_s + 30)
            assert (await it.resolve(version, "Boolean", "switch")).reason == "STATIC"
            clock.now_s += 31.5
            for key in ("switch", "for-ada"):
                answer = await it.resolve(version, "Boolean", key)
                assert answer.reason == "STALE"
                assert answer.metadata["flaghoist.stale_s"] == 31
            clock.now_s += 60
            assert (await it.resolve(version, "Boolean", "switch")).metadata["flaghoist.stale_s"] == 91
            it.board.mark_fresh(clock.now_s, until_s=clock.now_s + 30)
            answer = await it.resolve(version, "Boolean", "switch")
            assert answer.reason == "STATIC"
            assert "flaghoist.stale_s" not in answer.metadata

    asyncio.run(scenario())


def test_stale_answer_without_a_value_keeps_the_reason_that_clients_read_it_by(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, FLAGS) as it:
            it.board.mark_stale()
            assert (await it.resolve(2, "Boolean", "off")).reason == "DISABLED"
            assert (await it.resolve(2, "Boolean", "barest")).reason == "DEFAULT"

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_loaded_is_unavailable_with_the_state(kind: FrontKind, version: int) -> None:
    async def scenario() -> None:
        async with rig(kind) as it:
            it.board.state = VerifierState.CATCHING_UP
            code, text = await it.refusal(version, "Boolean", "switch")
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "no verified flags" in text
            assert "CATCHING_UP" in text
            if version == 1:
                code, _ = await refusal(it.v1.ResolveAll(v1.ResolveAllRequest(), timeout=DEADLINE_S))
                assert code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())
