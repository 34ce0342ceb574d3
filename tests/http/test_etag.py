"""The bulk answer's ETag: equal tags mean equal bodies, and whoever has the body gets 304."""

import json
import random

import pytest

from flaghoist.values import Seq
from tests.fronts.rig import flag, put, snapshot_of, switch
from tests.http.rig import BULK, Rig, runner

RULE = {"if": [{"==": [{"var": "plan"}, "pro"]}, "on", "off"]}
FLAGS = {
    "static": switch("on"),
    "ruled": switch("off", targeting=RULE),
    "failing": flag({"a": "x"}, "a", targeting={"if": [{"var": "odd"}, "nowhere", "a"]}),
}
run = runner(FLAGS)


async def tag_of(it: Rig, context: object = None) -> str:
    reply = await it.flags(context)
    assert reply.status == 200
    return reply.headers["etag"]


def test_tag_is_strong_and_the_same_for_the_same_question() -> None:
    async def scenario(it: Rig) -> None:
        tag = await tag_of(it, {"plan": "pro", "age": 5})
        assert tag.startswith('"')
        assert tag == await tag_of(it, {"plan": "pro", "age": 5})

    run(scenario)


def test_tag_changes_with_the_context_and_not_with_the_order_of_its_keys() -> None:
    async def scenario(it: Rig) -> None:
        free, pro = await tag_of(it, {"plan": "free", "age": 5}), await tag_of(it, {"plan": "pro", "age": 5})
        assert free != pro
        assert pro == await tag_of(it, {"age": 5, "plan": "pro"})
        assert await tag_of(it, {"plan": "pro", "odd": True}) != pro  # a flag that fails now

    run(scenario)


def test_context_that_no_answer_depends_on_keeps_the_tag() -> None:
    async def scenario(it: Rig) -> None:
        assert await tag_of(it, {"plan": "pro", "request": 1}) == await tag_of(it, {"plan": "pro", "request": 2})

    run(scenario)


@pytest.mark.parametrize("flags", [FLAGS, {"static": switch()}], ids=["ruled", "static only"])
def test_tag_changes_with_the_seq_and_with_staleness(flags: dict[str, dict[str, object]]) -> None:
    async def scenario(it: Rig) -> None:
        snapshot = snapshot_of(flags)
        it.board.put(snapshot.view)
        it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + 30)
        tags = [await tag_of(it)]
        it.board.put(snapshot.at_seq(Seq(2)).view)  # nothing but the seq
        tags.append(await tag_of(it))
        it.board.put(snapshot.fold(Seq(3), [put("static", switch("off"), version=1)]).view)
        tags.append(await tag_of(it))
        it.clock.now_s += 40
        tags.append(await tag_of(it))
        it.clock.now_s += 1
        tags.append(await tag_of(it))
        assert len(set(tags)) == len(tags)
        it.board.mark_fresh(it.clock.now_s)
        assert await tag_of(it) == tags[2]

    run(scenario, flags)


def test_tag_changes_with_time_where_a_rule_reads_it() -> None:
    rule = {"if": [{"<": [{"var": "$flagd.timestamp"}, 1_800_000_010]}, "on", "off"]}

    async def scenario(it: Rig) -> None:
        before = await tag_of(it)
        it.clock.now_s += 5
        assert (await it.flags(headers={"If-None-Match": before})).status == 304
        it.clock.now_s += 5
        reply = await it.flags(headers={"If-None-Match": before})
        assert (reply.status, reply.json["flags"][0]["variant"]) == (200, "off")

    run(scenario, {"timed": switch("on", targeting=rule)})


@pytest.mark.parametrize("seed", range(20))
def test_equal_tags_mean_equal_bodies(seed: int) -> None:
    draw = random.Random(seed)

    async def scenario(it: Rig) -> None:
        bodies: dict[str, bytes] = {}
        for number in range(20):
            context = {"plan": draw.choice(["pro", "free"]), "odd": draw.random() < 0.3, "n": number}
            if draw.random() < 0.3:
                it.clock.now_s += draw.randrange(3)
            if draw.random() < 0.3:
                it.board.mark_fresh(it.clock.now_s, until_s=it.clock.now_s + draw.randrange(3))
            reply = await it.flags(context)
            assert bodies.setdefault(reply.headers["etag"], reply.body) == reply.body
        assert len(set(bodies.values())) == len(bodies)

    run(scenario)


@pytest.mark.parametrize(
    ("shape", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"other", {tag}', 304),
        ('W/"other" ,\t{tag} , "third"', 304),
        ("*", 304),
        ('"other"', 200),
        ('"half,{bare}"', 200),
        ("{bare}", 200),
        ("", 200),
        ('"', 200),
    ],
)
def test_if_none_match_is_compared_weakly(shape: str, status: int) -> None:
    async def scenario(it: Rig) -> None:
        tag = await tag_of(it)
        reply = await it.flags(headers={"If-None-Match": shape.format(tag=tag, bare=tag.strip('"'))})
        assert reply.status == status
        assert (reply.headers["etag"], reply.headers["flaghoist-seq"]) == (tag, "1")
        assert bool(reply.body) is (status == 200)
        if status == 304:
            assert "content-length" not in reply.headers
            assert "transfer-encoding" not in reply.headers

    run(scenario)


def test_tag_may_stand_in_any_of_several_headers_and_the_connection_stays_in_step() -> None:
    async def scenario(it: Rig) -> None:
        tag = await tag_of(it)
        reader, writer = await it.connect()
        fields = f'If-None-Match: "a"\r\nIf-None-Match: {tag}\r\nIf-None-Match: "b"\r\n'
        question = f"POST {BULK} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n".encode()
        writer.write(question + fields.encode() + b"\r\n" + question + b"\r\n")
        first = (await reader.readuntil(b"\r\n\r\n")).decode()
        second = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert (first.split()[1], second.split()[1]) == ("304", "200")
        writer.close()

    run(scenario)


def test_single_answers_and_errors_have_no_tag() -> None:
    async def scenario(it: Rig) -> None:
        assert "etag" not in (await it.flag("static")).headers
        reply = await it.call(BULK, b"{", headers={"If-None-Match": "*"})
        assert reply.status == 400
        assert "etag" not in reply.headers
        assert json.loads(reply.body)["errorCode"] == "INVALID_CONTEXT"

    run(scenario)
