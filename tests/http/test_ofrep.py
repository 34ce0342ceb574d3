"""OFREP: each row of docs/ofrep.md."""

import asyncio
import json
from typing import Any

import pytest

from flaghoist.snapshot import CompiledFlag, View
from flaghoist.values import Seq
from sidecar.board import VerifierState
from sidecar.http_app import BODY_BYTES_MAX
from tests.fronts.rig import delete, flag, put, snapshot_of, switch
from tests.http.rig import BULK, Rig, head, read_reply, runner

RULE = {"if": [{"==": [{"var": "plan"}, "pro"]}, "on", "off"]}
FLAGS = {
    "static": switch("on", metadata={"team": "shop", "rank": 3}),
    "ruled": switch("off", targeting=RULE),
    "text": flag({"a": 'é"\\\n', "b": "x"}, "a"),
    "whole": flag({"ten": 10, "big": 2**53 - 1}, "ten"),
    "wholes": flag({"big": 2**53 - 1, "ten": 10}, "big"),
    "half": flag({"half": 0.5, "one": 1.0}, "half"),
    "object": flag({"o": {"a": [1, 2.5, None, True, {"b": "c"}]}}, "o"),
    "undecided": switch(None),
    "undecided.ruled": switch(None, targeting={"if": [{"==": [{"var": "plan"}, "pro"]}, "on"]}),
    "disabled": {**switch("on"), "state": "DISABLED"},
    "lost": switch("on", targeting={"if": [True, "nowhere", "on"]}, metadata={"team": "shop"}),
    "divided": switch("on", targeting={"/": [1, {"var": "zero"}]}),
}
run = runner(FLAGS)


@pytest.mark.parametrize(
    ("key", "context", "expected"),
    [
        ("static", None, {"value": True, "variant": "on", "reason": "STATIC"}),
        ("ruled", {"plan": "pro"}, {"value": True, "variant": "on", "reason": "TARGETING_MATCH"}),
        ("ruled", {"plan": "free"}, {"value": False, "variant": "off", "reason": "TARGETING_MATCH"}),
        ("text", None, {"value": 'é"\\\n', "variant": "a", "reason": "STATIC"}),
        ("object", None, {"value": {"a": [1, 2.5, None, True, {"b": "c"}]}, "variant": "o", "reason": "STATIC"}),
        ("half", None, {"value": 0.5, "variant": "half", "reason": "STATIC"}),
        ("undecided", None, {"reason": "DEFAULT"}),
        ("undecided.ruled", {}, {"reason": "DEFAULT"}),
        ("disabled", None, {"reason": "DISABLED"}),
    ],
)
def test_flag_is_answered_with_200(key: str, context: object, expected: dict[str, object]) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.flag(key, context)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["flaghoist-seq"] == "1"
        metadata = {"team": "shop", "rank": 3} if key == "static" else {}
        assert reply.json == {"key": key, **expected, "metadata": {**metadata, "flaghoist.seq": 1}}

    run(scenario)


@pytest.mark.parametrize(("key", "text"), [("whole", '"value":10,'), ("wholes", '"value":9007199254740991,')])
def test_int_stays_an_int(key: str, text: str) -> None:
    async def scenario(it: Rig) -> None:
        assert text in (await it.flag(key)).body.decode()

    run(scenario)


@pytest.mark.parametrize(
    ("key", "status", "code", "metadata"),
    [
        ("nobody", 404, "FLAG_NOT_FOUND", {}),
        ("na%C3%AFve", 404, "FLAG_NOT_FOUND", {}),
        ("%FF%FE", 404, "FLAG_NOT_FOUND", {}),
        ("lost", 400, "GENERAL", {"team": "shop"}),
        ("divided", 400, "PARSE_ERROR", {}),
    ],
)
def test_flag_that_cannot_be_answered_has_its_code(
    key: str, status: int, code: str, metadata: dict[str, object]
) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.flag(key, {"zero": 0})
        assert (reply.status, reply.json["errorCode"]) == (status, code)
        assert reply.json["errorDetails"]
        assert reply.json["metadata"] == {**metadata, "flaghoist.seq": 1}
        assert reply.headers["flaghoist-seq"] == "1"

    run(scenario)


def test_percent_encoded_key_is_the_key_and_the_error_names_it_decoded() -> None:
    async def scenario(it: Rig) -> None:
        assert (await it.flag("%73tatic?x=1")).json["value"] is True
        assert (await it.flag("na%C3%AFve")).json["key"] == "naïve"

    run(scenario)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "line 1 column 2"),
        (b"nonsense", "line 1 column 1"),
        (b"{} {}", "line 1 column 4"),
        (b"[]", "want a JSON object"),
        (b"3", "want a JSON object"),
        (b'"text"', "want a JSON object"),
        (b'{"context":{"a":NaN}}', "NaN"),
        (b'{"context":{"a":-Infinity}}', "-Infinity"),
        (b'{"elsewhere":Infinity}', "Infinity"),
        (b'{"context":{"a":1e999}}', "does not fit a double"),
        (b'{"context":{"a":' + b"9" * 400 + b"}}", "does not fit a double"),
        (b'{"context":{"a":' + b"9" * 5000 + b"}}", "too many digits"),
        (b'{"context":{"a":1,"a":2}}', "twice"),
        (b'{"context":{},"context":{}}', "twice"),
        (b'{"context":{"a":"\xff"}}', "UTF-8"),
        (b'{"context":{"a":"\\ud800"}}', "surrogate"),
        (b'{"context":{"\\uDC00":1}}', "surrogate"),
        (b'{"context":{"a":"\x01"}}', "line 1 column"),
        (b'{"context":{"a":' + b"[" * 100 + b"]" * 100 + b"}}", "at most 64 levels"),
        (b'{"context":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b"\x1f\x8b\x08\x00", "UTF-8"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("path", [BULK, f"{BULK}/static"])
def test_body_that_cannot_be_read_is_an_invalid_context_that_says_where(path: str, body: bytes, says: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.call(path, body)
        assert (reply.status, reply.json["errorCode"]) == (400, "INVALID_CONTEXT")
        assert says in reply.json["errorDetails"]
        assert len(reply.json["errorDetails"]) < 200
        assert reply.json.get("key") == ("static" if path != BULK else None)

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [b"", b" \r\n\t", b"null", b"{}", b'{"context":null}', b'{"context":[1]}', b'{"context":"x"}', b'{"other":1}'],
)
def test_missing_context_or_one_that_is_no_object_counts_as_empty(body: bytes) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.call(f"{BULK}/ruled", body)
        assert (reply.status, reply.json["variant"]) == (200, "off")
        assert (await it.call(BULK, body)).status == 200

    run(scenario)


def test_null_targeting_key_counts_as_missing() -> None:
    rule = {"if": [{"missing": ["targetingKey"]}, "on", "off"]}

    async def scenario(it: Rig) -> None:
        assert (await it.flag("f", {"targetingKey": None})).json["variant"] == "on"
        assert (await it.flag("f", {"targetingKey": "ada@example.org"})).json["variant"] == "off"

    run(scenario, {"f": switch("off", targeting=rule)})


@pytest.mark.parametrize(("number", "variant"), [("1", "i"), ("1.0", "i"), ("-0.0", "zero"), ("1.5", "other")])
def test_whole_number_is_an_int_however_it_is_written(number: str, variant: str) -> None:
    rule = {"if": [{"===": [{"cat": [{"var": "n"}]}, "1"]}, "i", {"===": [{"cat": [{"var": "n"}]}, "0"]}, "zero"]}
    flags = {"f": flag({"i": "i", "zero": "z", "other": "o"}, "other", targeting=rule)}

    async def scenario(it: Rig) -> None:
        assert (await it.call(f"{BULK}/f", f'{{"context":{{"n":{number}}}}}')).json["variant"] == variant

    run(scenario, flags)


@pytest.mark.parametrize("path", [BULK, f"{BULK}/", f"{BULK}/static"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_method_other_than_post_is_405(path: str, method: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.call(path, method=method)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")

    run(scenario)


@pytest.mark.parametrize(
    "path",
    [
        f"{BULK}/a/b",
        f"{BULK}/a%2Fb",
        f"{BULK}/static/",
        f"{BULK}//",
        f"{BULK}x",
        "/ofrep/v1/evaluate",
        "/ofrep/v2/evaluate/flags",
        "/ofrep",
        "/",
        "//",
        "/metrics",
        "/OFREP/v1/evaluate/flags",
    ],
)
def test_other_paths_are_404(path: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.call(path, "{}")
        assert (reply.status, reply.body) == (404, b"404 page not found\n")

    run(scenario)


def test_bulk_has_every_flag_in_order_failures_too_and_top_level_metadata() -> None:
    async def scenario(it: Rig) -> None:
        for path in (BULK, f"{BULK}/"):
            reply = await it.call(path, {"context": {"plan": "pro", "zero": 0}})
            assert (reply.status, reply.headers["flaghoist-seq"]) == (200, "1")
            assert set(reply.json) == {"flags", "metadata"}
            assert reply.json["metadata"] == {"flaghoist.seq": 1}
            assert [each["key"] for each in reply.json["flags"]] == list(FLAGS)
            for each in reply.json["flags"]:
                single = await it.flag(each["key"], {"plan": "pro", "zero": 0})
                assert each == single.json

    run(scenario)


def test_bulk_without_flags_is_an_empty_list() -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.flags()
        assert (reply.status, reply.json) == (200, {"flags": [], "metadata": {"flaghoist.seq": 1}})

    run(scenario, {})


def test_nothing_loaded_is_503_with_the_state() -> None:
    async def scenario(it: Rig) -> None:
        it.board.state = VerifierState.CATCHING_UP
        for reply in (await it.flag("static"), await it.flags()):
            assert reply.status == 503
            assert set(reply.json) == {"errorDetails"}
            assert "CATCHING_UP" in reply.json["errorDetails"]

    run(scenario, None)


def test_stale_answer_says_stale_and_its_age_and_one_without_a_value_keeps_its_reason() -> None:
    async def scenario(it: Rig) -> None:
        it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + 30)
        assert (await it.flag("static")).json["reason"] == "STATIC"
        it.clock.now_s += 42.9
        reply = await it.flag("static")
        assert reply.json["reason"] == "STALE"
        ours = {"flaghoist.seq": 1, "flaghoist.stale_s": 42}
        assert reply.json["metadata"] == {"team": "shop", "rank": 3, **ours}
        assert (await it.flag("disabled")).json == {"key": "disabled", "reason": "DISABLED", "metadata": ours}
        assert (await it.flag("nobody")).json["metadata"] == ours
        it.clock.now_s += 1
        bulk = (await it.flags()).json
        assert bulk["metadata"] == {"flaghoist.seq": 1, "flaghoist.stale_s": 43}
        reasons = {each["key"]: each.get("reason") for each in bulk["flags"]}
        assert (reasons["static"], reasons["disabled"], reasons["undecided"]) == ("STALE", "DISABLED", "DEFAULT")
        it.board.mark_fresh(it.clock.now_s)
        assert (await it.flag("static")).json["reason"] == "STATIC"
        assert (await it.flag("static")).json["metadata"]["flaghoist.seq"] == 1

    run(scenario)


def test_flags_own_metadata_never_passes_for_ours() -> None:
    flags = {"f": switch("on", metadata={"flaghoist.seq": 99, "flaghoist.stale_s": 7, "team": "shop"})}

    async def scenario(it: Rig) -> None:
        assert (await it.flag("f")).json["metadata"] == {"team": "shop", "flaghoist.seq": 1}

    run(scenario, flags)


def test_change_shows_at_the_next_request_and_other_flags_move_to_the_new_seq() -> None:
    async def scenario(it: Rig) -> None:
        before = snapshot_of(FLAGS)
        it.board.put(before.view)
        await it.flags()
        after = before.fold(
            Seq(2), [put("static", switch("off"), version=1), delete("text", version=1), put("new", switch())]
        )
        it.board.put(after.view)
        found = {each["key"]: each for each in (await it.flags()).json["flags"]}
        assert found["static"]["variant"] == "off"
        assert found["new"]["variant"] == "on"
        assert "text" not in found
        assert {each["metadata"]["flaghoist.seq"] for each in found.values()} == {2}
        assert (await it.flag("text")).status == 404
        reply = await it.flag("whole")
        assert (reply.headers["flaghoist-seq"], reply.json["metadata"]) == ("2", {"flaghoist.seq": 2})

    run(scenario)


@pytest.mark.parametrize("path", [BULK, f"{BULK}/static"])
def test_body_over_the_limit_is_413_and_one_at_it_is_not(path: str) -> None:
    async def scenario(it: Rig) -> None:
        def body(size: int) -> bytes:
            frame = b'{"context":{"a":"%s"}}'
            return frame % (b"x" * (size - len(frame) + 2))

        assert (await it.call(path, body(BODY_BYTES_MAX))).status == 200
        over = body(BODY_BYTES_MAX + 1)
        reader, writer = await it.connect()
        writer.write(head(path, length=len(over)) + over)  # declared
        reply = await read_reply(reader)
        assert reply[0] == 413
        assert set(json.loads(reply[1])) == {"errorDetails"}
        # The connection is still in step.
        writer.write(head(path))
        assert (await read_reply(reader))[0] == 200
        writer.write(head(path, length=None, more="Transfer-Encoding: chunked\r\n"))  # not declared
        for start in range(0, len(over), 65536):
            part = over[start : start + 65536]
            writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
        writer.write(b"0\r\n\r\n")
        assert (await read_reply(reader))[0] == 413
        writer.close()

    run(scenario)


def test_client_that_expects_100_hears_it_or_the_refusal() -> None:
    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        writer.write(head(length=2, more="Expect: 100-continue\r\n"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await read_reply(reader))[0] == 200
        writer.write(head(length=BODY_BYTES_MAX + 1, more="Expect: 100-continue\r\n"))
        assert (await read_reply(reader))[0] == 413
        writer.close()

    run(scenario)


def test_body_in_parts_and_pipelined_requests_are_answered_in_order() -> None:
    async def scenario(it: Rig) -> None:
        body = b'{"context":{"plan":"pro"}}'
        reader, writer = await it.connect()
        for part in (head(f"{BULK}/ruled", length=len(body))[:20], head(f"{BULK}/ruled", length=len(body))[20:]):
            writer.write(part)
            await writer.drain()
        writer.write(body[:5])
        await writer.drain()
        writer.write(body[5:] + head(f"{BULK}/static") + head(f"{BULK}/nobody") + head(f"{BULK}/text"))
        keys = [json.loads((await read_reply(reader))[1])["key"] for _ in range(4)]
        assert keys == ["ruled", "static", "nobody", "text"]
        writer.close()

    run(scenario)


def test_client_that_offers_h2c_is_answered_in_http_1() -> None:
    """As java.net.http does with its first request on a plaintext connection."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    body = b'{"context":{"plan":"pro"}}'
    sized = head(f"{BULK}/ruled", length=len(body), more=offer)
    chunked = head(f"{BULK}/ruled", length=None, more=offer + "Transfer-Encoding: chunked\r\n")
    plain = head(f"{BULK}/ruled", length=len(body)) + body
    one_chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        for parts in ([sized + body], [sized, body], [sized[:40], sized[40:] + body[:3], body[3:]], [plain, plain]):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
                await writer.drain()
        for parts in ([chunked + one_chunk + plain], [sized + body + sized + body]):
            writer.writelines(parts)
        for _ in range(9):
            status, answer = await read_reply(reader)
            assert (status, json.loads(answer)["variant"]) == (200, "on")
        writer.write(head(f"{BULK}/ruled", length=len(body), more=offer.replace("Upgrade,", "close, Upgrade,")) + body)
        assert (await read_reply(reader))[0] == 200
        assert await reader.read() == b""
        reader, writer = await it.connect()
        writer.write(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert (await read_reply(reader))[0] == 400
        assert await reader.read() == b""

    run(scenario)


def test_bug_tells_the_caller_nothing_and_the_log_only_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(dict[str, CompiledFlag]):
        def get(self, key: str, default: object = None) -> Any:
            raise RuntimeError("ada@example.org")

    async def scenario(it: Rig) -> None:
        it.board.put(View(Seq(2), Broken()))
        for _ in range(5):
            reply = await it.flag("static", {"email": "grace@example.org"})
            assert reply.status == 500
            assert "example.org" not in reply.body.decode()
            assert "RuntimeError" not in reply.body.decode()

    run(scenario)
    out, err = capfd.readouterr()
    assert "example.org" not in out + err
    assert (out + err).count("request.failed") == 3  # the 1st, 2nd and 4th
    assert "test_ofrep.py:" in out + err
