"""Seeded nonsense on every path: the listener answers others, says nothing of a bug, and lets nothing pile up."""

import json
import random
from collections.abc import Callable

import pytest

from tests.fronts.rig import flag, switch
from tests.http.rig import BULK, Rig, head, read_reply, runner

RULE = {"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "on", {"<": [{"var": "age"}, 18]}, "off"]}
SPLIT = {"fractional": [{"cat": [{"var": "targetingKey"}, {"var": "deep.er"}]}, ["on", 50], ["off", 50]]}
run = runner(
    {
        "static": switch("on"),
        "ruled": switch("off", targeting=RULE),
        "split": switch("off", targeting=SPLIT),
        "any": switch("off", targeting={"if": [{"some": [{"var": "list"}, {"==": [{"var": ""}, 1]}]}, "on"]}),
        "object": flag({"o": {"a": 1}}, "o"),
    }
)

PATHS = [
    BULK,
    f"{BULK}/static",
    f"{BULK}/ruled",
    f"{BULK}/split",
    f"{BULK}/any",
    "/flagd.evaluation.v1.Service/ResolveAll",
]
STATUSES = {200, 204, 304, 400, 404, 405, 413, 414, 415, 429, 431, 500, 501}


def noise(draw: random.Random, size: int) -> bytes:
    return draw.randbytes(draw.randrange(size))


def value(draw: random.Random, depth: int = 0) -> object:
    """Return a JSON value, odd more often than not."""
    leaves: list[Callable[[], object]] = [
        lambda: draw.choice([None, True, False, 0, -0.0, 1, 2**53, 2**63, -(2**70), 1e308, 5e-324, "", "a", "é\u0000"]),
        lambda: noise(draw, 40).decode("latin-1"),
        lambda: "1" * draw.randrange(600),
    ]
    if depth > 6 or draw.random() < 0.4:
        return draw.choice(leaves)()
    if draw.random() < 0.5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(6))]
    keys = ["email", "age", "targetingKey", "deep", "er", "list", "$flagd", "", "a.b", "é"]
    return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(6))}


def body(draw: random.Random) -> bytes:
    """Return a body: noise, JSON, or JSON with bytes of it changed."""
    if draw.random() < 0.2:
        return noise(draw, 300)
    written = bytearray(json.dumps({"context": value(draw), "flagKey": draw.choice(["static", "ruled", 1])}).encode())
    if draw.random() < 0.4:
        for _ in range(draw.randrange(1, 4)):
            written[draw.randrange(len(written))] = draw.randrange(256)
    return bytes(written)


@pytest.mark.parametrize("seed", range(25))
def test_any_body_is_answered_in_step_and_never_by_a_bug(seed: int) -> None:
    draw = random.Random(seed)

    async def scenario(it: Rig) -> None:
        reader, writer = await it.connect()
        for _ in range(60):
            sent = body(draw)
            writer.write(head(draw.choice(PATHS), length=len(sent), more="Content-Type: application/json\r\n") + sent)
            status, answer = await read_reply(reader)
            assert status in (200, 400, 404)
            json.loads(answer)
        writer.close()
        assert it.front.app.tally[500] == 0

    run(scenario)


@pytest.mark.parametrize("seed", range(25))
def test_any_path_and_header_is_answered_or_refused(seed: int) -> None:
    draw = random.Random(seed)
    names = ["If-None-Match", "Origin", "Content-Type", "Connection", "Upgrade", "Expect", "Flagd-Selector", "baggage"]
    texts = ["*", '"', 'W/"a", ', "close", "upgrade, keep-alive", "100-continue", "h2c", "a=b", "%", "é", "\t", ""]

    async def scenario(it: Rig) -> None:
        for _ in range(40):
            path = draw.choice([*PATHS, "/", "//", "/healthz"]) + draw.choice(
                ["", "/", "%", "%2e%2e", "?a", "#b", "/%00"]
            )
            fields = "".join(f"{draw.choice(names)}: {draw.choice(texts)}\r\n" for _ in range(draw.randrange(6)))
            method = draw.choice(["POST", "POST", "GET", "OPTIONS", "HEAD", "DELETE", "CONNECT", "TRACE"])
            reader, writer = await it.connect()
            writer.write(head(path, more=fields + "Connection: close\r\n", method=method))
            status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
            assert status in {*STATUSES, 100}
            writer.close()
        assert it.front.app.tally[500] == 0
        assert (await it.flag("static")).status == 200

    run(scenario, cors=["https://shop.example.org"])


@pytest.mark.parametrize("seed", range(25))
def test_any_bytes_end_their_own_connection_at_most(seed: int) -> None:
    draw = random.Random(seed)

    async def scenario(it: Rig) -> None:
        steady_reader, steady = await it.connect()
        half_open = []
        for _ in range(30):
            _, writer = await it.connect()
            kind = draw.randrange(4)
            if kind == 0:
                writer.write(noise(draw, 2000))
            elif kind == 1:
                written = bytearray(head(draw.choice(PATHS), length=draw.randrange(50)) * draw.randrange(1, 20))
                for _ in range(draw.randrange(5)):
                    written[draw.randrange(len(written))] = draw.randrange(256)
                writer.write(bytes(written))
            elif kind == 2:
                writer.write(head(draw.choice(PATHS), length=1000)[: draw.randrange(1, 80)])
            else:
                writer.write(head(draw.choice(PATHS)) * draw.randrange(100))
            ending = draw.randrange(4)
            if ending == 0:
                writer.transport.abort()
            elif ending == 1:
                writer.close()
            elif ending == 2 and writer.can_write_eof():
                writer.write_eof()
                half_open.append(writer)
            else:
                half_open.append(writer)
            steady.write(head(f"{BULK}/static"))
            assert (await read_reply(steady_reader))[0] == 200
        assert it.front.app.tally[500] == 0
        for writer in half_open:
            writer.transport.abort()
        steady.close()

    run(scenario)
