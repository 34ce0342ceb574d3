"""Requests that no provider sends: each gets a status, and nothing of them reaches a log."""

import asyncio
import logging
from types import SimpleNamespace

import grpc
import pytest
from structlog.testing import capture_logs

from flaghoist.values import Seq
from sidecar.front import REQUEST_BYTES_MAX, FrontKind
from tests.fronts.rig import KINDS, refusal, rig, switch

pytestmark = pytest.mark.parametrize("kind", KINDS)

PATHS = ["/flagd.evaluation.v1.Service/ResolveBoolean", "/flagd.evaluation.v2.Service/ResolveBoolean"]
RULED = {"ruled": switch("off", targeting={"if": [{"var": "x"}, "on", "off"]})}


def message(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    length, size = len(content), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + content


def request(value: bytes) -> bytes:
    """Return a request for `ruled` whose context has one field, x, with this encoded Value."""
    return message(1, b"ruled") + message(2, message(1, message(1, b"x") + message(2, value)))


def nested_objects(levels: int) -> bytes:
    value = message(3, b"in")
    for _ in range(levels):
        value = message(5, message(1, message(1, b"k") + message(2, value)))
    return value


def nested_lists(levels: int) -> bytes:
    value = message(3, b"in")
    for _ in range(levels):
        value = message(6, message(1, value))
    return value


BAD = {
    "bytes of no message": b"\xff\xff\xff\xff",
    "cut off": request(message(3, b"text"))[:-2],
    "text that is not UTF-8": request(message(3, b"\xff\xfe")),
    "not a number": request(b"\x11\x00\x00\x00\x00\x00\x00\xf8\x7f"),
    "infinity": request(b"\x11\x00\x00\x00\x00\x00\x00\xf0\x7f"),
    "40 objects deep": request(nested_objects(40)),
    "10,000 objects deep": request(nested_objects(10_000)),
    "35 lists deep": request(nested_lists(35)),
    "10,000 lists deep": request(nested_lists(10_000)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("what", BAD)
def test_unreadable_request_is_an_invalid_argument(kind: FrontKind, path: str, what: str) -> None:
    async def scenario() -> None:
        async with rig(kind, RULED) as it:
            code, text = await refusal(it.raw(path, BAD[what]))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert text.startswith("Invalid context: ")
            assert (await it.resolve(1, "Boolean", "ruled", {"x": 1})).value is True

    asyncio.run(scenario())


@pytest.mark.parametrize("path", PATHS)
def test_value_without_a_kind_is_null_and_twenty_levels_are_read(kind: FrontKind, path: str) -> None:
    async def scenario() -> None:
        async with rig(kind, RULED) as it:
            assert await it.raw(path, request(b""))
            assert await it.raw(path, request(nested_objects(20)))
            assert await it.raw(path, request(nested_lists(20)))

    asyncio.run(scenario())


def test_request_over_the_limit_is_refused_and_one_below_it_is_not(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, RULED) as it:
            code, _ = await it.refusal(2, "Boolean", "ruled", {"x": "a" * REQUEST_BYTES_MAX})
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await it.resolve(2, "Boolean", "ruled", {"x": "a" * (REQUEST_BYTES_MAX - 100)})).value is True

    asyncio.run(scenario())


def test_unknown_method_is_unimplemented(kind: FrontKind) -> None:
    async def scenario() -> None:
        async with rig(kind, RULED) as it:
            for path in ("/flagd.evaluation.v2.Service/ResolveAll", "/nobody.Service/Call"):
                code, _ = await refusal(it.raw(path, b""))
                assert code is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


def test_bug_tells_the_caller_nothing_and_the_log_only_its_place(
    kind: FrontKind, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:
            raise RuntimeError("ada@example.org")

    async def scenario() -> None:
        async with rig(kind, RULED) as it:
            it.board.put(SimpleNamespace(seq=Seq(2), flags=Broken()))  # type: ignore[arg-type]
            with capture_logs() as logs:
                for _ in range(5):
                    code, text = await it.refusal(2, "Boolean", "ruled", {"x": "grace@example.org"})
                    assert code is grpc.StatusCode.INTERNAL
                    assert "example.org" not in text
                    assert "RuntimeError" not in text
            assert [line["count"] for line in logs] == [1, 2, 4]
            assert logs[0]["event"] == "call.failed"
            assert "test_hostile_requests.py:" in logs[0]["at"]
            assert "example.org" not in str(logs)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert "example.org" not in caplog.text
