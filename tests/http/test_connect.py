"""flagd's services by Connect with JSON: the same answers as by gRPC."""

import asyncio
import json
import struct
from typing import Any

import pytest
import uvloop

from flaghoist.values import Seq
from sidecar.board import VerifierState
from sidecar.faces import statuses
from sidecar.faces.connect import HTTP_STATUS, Connect
from sidecar.faces.evaluation_v1 import EvaluationV1
from sidecar.faces.events import EventStreams
from sidecar.http_app import BODY_BYTES_MAX
from tests.fronts.rig import flag, long_since, put, snapshot_of, switch
from tests.http.rig import Reply, Rig, rig, runner

RULE = {"if": [{"==": [{"var": "plan"}, "pro"]}, "on", "off"]}
FLAGS = {
    "switch": switch("off", targeting=RULE, metadata={"team": "shop"}),
    "text": flag({"a": "é"}, "a"),
    "int": flag({"ten": 10}, "ten"),
    "float": flag({"half": 0.5}, "half"),
    "object": flag({"o": {"a": [1, "b", None]}}, "o"),
    "undecided": switch(None),
    "lost": switch("on", targeting={"if": [True, "nowhere", "on"]}),
    "divided": switch("on", targeting={"/": [1, 0]}),
}
run = runner(FLAGS)
VERSIONS = [1, 2]


async def resolve(it: Rig, version: int, kind: str, body: object, **headers: str) -> Reply:
    path = f"/flagd.evaluation.v{version}.Service/Resolve{kind}"
    raw = body if isinstance(body, bytes) else json.dumps(body)
    return await it.call(path, raw, headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("Boolean", "switch", {"value": True, "variant": "on", "reason": "TARGETING_MATCH"}),
        ("String", "text", {"value": "é", "variant": "a", "reason": "STATIC"}),
        ("Int", "int", {"value": "10", "variant": "ten", "reason": "STATIC"}),  # int64 in protobuf's JSON
        ("Float", "float", {"value": 0.5, "variant": "half", "reason": "STATIC"}),
        ("Float", "int", {"value": 10.0, "variant": "ten", "reason": "STATIC"}),
        ("Object", "object", {"value": {"a": [1, "b", None]}, "variant": "o", "reason": "STATIC"}),
    ],
)
def test_each_type_is_answered(version: int, kind: str, key: str, expected: dict[str, Any]) -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, version, kind, {"flagKey": key, "context": {"plan": "pro"}})
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.headers["flaghoist-seq"] == "1"
        metadata = {"team": "shop"} if key == "switch" else {}
        assert reply.json == {**expected, "metadata": {**metadata, "flaghoist.seq": 1}}

    run(scenario)


@pytest.mark.parametrize("body", [{"flag_key": "text"}, {"flagKey": "text", "unknown": {"a": 1}}])
def test_field_names_of_both_kinds_and_unknown_ones_are_accepted(body: object) -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 1, "String", body, **{"Content-Type": "application/json; charset=utf-8"})
        assert (reply.status, reply.json["value"]) == (200, "é")

    run(scenario)


@pytest.mark.parametrize(
    ("version", "kind", "key", "status", "code", "message"),
    [
        (1, "Boolean", "nobody", 404, "not_found", "Flag not found"),
        (2, "Boolean", "nobody", 404, "not_found", "Flag not found"),
        (1, "Boolean", "undecided", 404, "not_found", "Flag not found"),
        (2, "String", "int", 400, "invalid_argument", "Type mismatch error"),
        (2, "Boolean", "lost", 500, "unknown", "General error"),
        (2, "Boolean", "divided", 500, "data_loss", "Parse error"),
    ],
)
def test_error_is_a_code_and_a_message(version: int, kind: str, key: str, status: int, code: str, message: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, version, kind, {"flagKey": key})
        assert (reply.status, reply.json) == (status, {"code": code, "message": message})
        assert reply.headers["content-type"] == "application/json"

    run(scenario)


def test_flag_without_a_value_has_none_on_v2() -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 2, "Boolean", {"flagKey": "undecided"})
        assert reply.json == {"reason": "DEFAULT", "metadata": {"flaghoist.seq": 1}}

    run(scenario)


def test_resolve_all_has_every_flag_with_a_value() -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 1, "All", {"context": {"plan": "pro"}})
        assert reply.json["flags"]["switch"]["boolValue"] is True
        assert set(reply.json["flags"]) == {"switch", "text", "int", "float", "object"}
        assert (await resolve(it, 2, "All", {})).status == 404

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"flagKey":1}',
        b'{"flagKey":"switch","context":7}',
        b'{"flagKey":"switch","context":{"a":1e999}}',
        b'{"flagKey":"\xff"}',
        b'{"flagKey":"\\ud800"}',
        b'{"flagKey":"a","flagKey":"b"}',
        b'{"context":{"a":NaN}}',
        b'{"context":' + b'{"a":' * 60 + b"1" + b"}" * 61,
        b"[" * 100_000,
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_unreadable_message_is_an_invalid_argument_that_quotes_nothing(body: bytes) -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 1, "Boolean", body)
        assert (reply.status, reply.json["code"]) == (400, "invalid_argument"), reply.body
        assert len(reply.json["message"]) < 120

    run(scenario)


def test_empty_body_is_an_empty_message() -> None:
    async def scenario(it: Rig) -> None:
        assert (await resolve(it, 1, "Boolean", b"")).json["code"] == "not_found"

    run(scenario)


def test_body_over_the_limit_is_resource_exhausted() -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 1, "Boolean", b" " * (BODY_BYTES_MAX + 1))
        assert (reply.status, reply.json["code"]) == (429, "resource_exhausted")

    run(scenario)


@pytest.mark.parametrize("content_type", ["application/proto", "text/plain", "application/connect+json", ""])
def test_other_content_type_is_415_and_says_which_is_wanted(content_type: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await resolve(it, 1, "Boolean", b"{}", **{"Content-Type": content_type})
        assert (reply.status, reply.headers["accept-post"]) == (415, "application/json")

    run(scenario)


def test_other_methods_and_paths() -> None:
    async def scenario(it: Rig) -> None:
        assert (await it.call("/flagd.evaluation.v1.Service/ResolveBoolean", method="GET")).status == 405
        for path in ("Service/Nothing", "Service/", "Service", "Service/a/ResolveBoolean", "Service/__class__"):
            assert (await it.call(f"/flagd.evaluation.v1.{path}", b"{}")).status == 404

    run(scenario)


def test_nothing_loaded_is_unavailable() -> None:
    async def scenario(it: Rig) -> None:
        it.board.state = VerifierState.CATCHING_UP
        reply = await resolve(it, 2, "Boolean", {"flagKey": "switch"})
        assert (reply.status, reply.json["code"]) == (503, "unavailable")
        assert "CATCHING_UP" in reply.json["message"]

    run(scenario, None)


def test_every_status_of_the_evaluation_services_has_an_http_status() -> None:

    for no_answer in (
        statuses.flag_not_found(),
        statuses.type_mismatch(),
        statuses.nothing_loaded("x"),
        statuses.fault(),
    ):
        assert no_answer.code in HTTP_STATUS


STREAM_HEAD = (
    b"POST /flagd.evaluation.v1.Service/EventStream HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/connect+json\r\nContent-Length: 7\r\n\r\n" + struct.pack(">BI", 0, 2) + b"{}"
)


async def next_event(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Read one enveloped message, each of which is a chunk of its own."""
    size = int(await reader.readline(), 16)
    assert size
    chunk = await reader.readexactly(size + 2)
    flags, length = struct.unpack(">BI", chunk[:5])
    assert length == size - 5
    return flags, json.loads(chunk[5:-2])


def test_event_stream_says_ready_then_changes_then_shutdown_and_ends() -> None:
    async def scenario(it: Rig) -> None:
        snapshot = snapshot_of(FLAGS)
        it.board.put(snapshot.view)
        long_since(it.board)
        reader, writer = await it.connect()
        writer.write(STREAM_HEAD)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await next_event(reader) == (0, {"type": "provider_ready"})
        it.board.put(snapshot.fold(Seq(2), [put("text", flag({"a": "x"}, "a"), version=1)]).view)
        changed = {"flags": {"text": {"type": "update"}}}
        assert await next_event(reader) == (0, {"type": "configuration_change", "data": changed})
        it.board.close()
        assert await next_event(reader) == (0, {"type": "provider_shutdown"})
        stopping = {"error": {"code": "unavailable", "message": "the sidecar is stopping"}}
        assert await next_event(reader) == (2, stopping)
        assert await reader.readline() == b"0\r\n"
        writer.close()

    run(scenario)


def test_client_that_leaves_ends_its_event_stream() -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(STREAM_HEAD)
        await reader.readuntil(b"provider_ready")
        assert it.board.watchers == 1
        writer.transport.abort()
        while it.board.watchers:
            await asyncio.sleep(0.005)

    run(scenario)


def test_event_stream_over_the_limit_ends_with_an_error() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(30), rig(FLAGS) as outer:
            service = EvaluationV1(outer.board, EventStreams(outer.board, streams_max=0))
            async with rig(FLAGS, more_faces={b"few": Connect(service)}) as it:
                reader, writer = await it.connect()
                writer.write(STREAM_HEAD.replace(b"/flagd.evaluation.v1.Service", b"/few", 1))
                await reader.readuntil(b"\r\n\r\n")
                flags, end = await next_event(reader)
                assert (flags, end["error"]["code"]) == (2, "resource_exhausted")
                writer.close()

    uvloop.run(scenario())
