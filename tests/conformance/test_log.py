"""What every log does (flaghoist.log.base), held against each implementation, and against the fake in memory_log.py."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from flaghoist.errors import LogConflict, LogMissing, LogTruncated, Malformed, TooLarge, Unavailable
from flaghoist.log.base import KEY_BYTES_MAX, RECORD_BYTES_MAX, Batch, Log, LogRecord, OpenLog, Stream, read_to_end
from flaghoist.log.location import create_log, inspect_log, open_log
from flaghoist.log.reconnect import follow_reliably
from tests.conformance.memory_log import MemoryLogs
from tests.conformance.processes import appender

DEADLINE_S = 30.0
Result = TypeVar("Result")


@dataclass
class Place:
    """A fresh, empty log. `url` is None for the fake, which no other process can see."""

    url: str | None
    opener: Callable[[float], OpenLog]

    def open_log(self, *, probe_s: float = 5.0) -> OpenLog:
        return self.opener(probe_s)


KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)
with_conditional_append = pytest.mark.parametrize("place", ["memory", "sqlite"], indirect=True)
outside_this_process = pytest.mark.parametrize("place", ["sqlite", KAFKA], indirect=True)
on_keyed_streams = pytest.mark.parametrize("stream", [Stream.META, Stream.ACKS])


@pytest.fixture(params=["memory", "sqlite", KAFKA])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        stores: dict[float, MemoryLogs] = {}
        return Place(None, lambda probe_s: stores.setdefault(probe_s, MemoryLogs(probe_s=probe_s)))
    url = f"sqlite:///{tmp_path}/ledger.db" if request.param == "sqlite" else request.getfixturevalue("kafka_url")()
    run(create_log(url))
    return Place(url, lambda probe_s: open_log(url, probe_s=probe_s))


def run(scenario: Coroutine[None, None, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(scenario, DEADLINE_S))


def with_log(
    place: Place,
    scenario: Callable[[Log], Coroutine[None, None, Result]],
    *,
    probe_s: float = 5.0,
    stream: Stream = Stream.LEDGER,
) -> Result:
    async def opened() -> Result:
        async with place.open_log(probe_s=probe_s)(stream) as log:
            return await scenario(log)

    return run(opened())


async def take(batches: AsyncIterator[Batch], count: int) -> list[LogRecord]:
    """Return records until there are `count` of them."""
    records: list[LogRecord] = []
    while len(records) < count:
        records += (await anext(batches)).records
    return records


async def values(log: Log, start: int = 0) -> list[bytes]:
    return [record.value async for record in read_to_end(log, start)]


def test_log_returns_records_in_append_order(place):
    async def scenario(log: Log):
        for number in range(120):
            await log.append(b"%d" % number)
        assert await values(log) == [b"%d" % number for number in range(120)]

    with_log(place, scenario)


def test_positions_grow_and_are_those_that_append_returned(place):
    async def scenario(log: Log):
        given = [await log.append(b"x") for _ in range(20)]
        found = [record.position async for record in read_to_end(log)]
        assert given == found == sorted(set(found))

    with_log(place, scenario)


def test_follow_starts_at_any_position(place):
    async def scenario(log: Log):
        positions = [await log.append(b"%d" % number) for number in range(7)]
        for index, position in enumerate(positions):
            assert await values(log, position) == [b"%d" % number for number in range(index, 7)]
        assert await values(log, await log.end()) == []

    with_log(place, scenario)


def test_first_batch_of_an_empty_log_comes_at_once(place):
    async def scenario(log: Log):
        async with asyncio.timeout(2), aclosing(log.follow(0)) as batches:
            batch = await anext(batches)
            assert (list(batch.records), batch.next_position, batch.at_end) == ([], 0, True)

    with_log(place, scenario, probe_s=DEADLINE_S)


def test_first_batch_at_the_end_of_a_log_comes_at_once(place):
    async def scenario(log: Log):
        end = await log.append(b"x") + 1
        async with asyncio.timeout(2), aclosing(log.follow(end)) as batches:
            batch = await anext(batches)
            assert (list(batch.records), batch.next_position, batch.at_end) == ([], end, True)

    with_log(place, scenario, probe_s=DEADLINE_S)


def test_follower_wakes_when_another_handle_appends(place):
    async def scenario():
        opener = place.open_log(probe_s=DEADLINE_S)
        async with (
            opener(Stream.LEDGER) as reading,
            opener(Stream.LEDGER) as writing,
            aclosing(reading.follow(0)) as batches,
        ):
            assert (await anext(batches)).at_end
            for number in range(5):
                await writing.append(b"%d" % number)
                async with asyncio.timeout(2):
                    assert [record.value for record in await take(batches, 1)] == [b"%d" % number]

    run(scenario())


@outside_this_process
def test_follower_wakes_when_another_process_appends(place):
    async def scenario(log: Log):
        with appender(place.url) as append:
            async with aclosing(log.follow(0)) as batches:
                assert (await anext(batches)).at_end
                for number in range(5):
                    position = await asyncio.to_thread(append, f"{number}")
                    async with asyncio.timeout(2):
                        assert await take(batches, 1) == [LogRecord(position, b"%d" % number)]

    with_log(place, scenario, probe_s=DEADLINE_S)


def test_idle_log_gives_signs_of_life(place):
    async def scenario(log: Log):
        end = await log.append(b"x") + 1
        async with asyncio.timeout(5), aclosing(log.follow(end)) as batches:
            for _ in range(4):
                batch = await anext(batches)
                assert (list(batch.records), batch.next_position, batch.at_end) == ([], end, True)

    with_log(place, scenario, probe_s=0.2)


def test_only_the_batch_that_reaches_the_end_says_so(place):
    async def scenario(log: Log):
        for _ in range(30):
            await log.append(b"x" * 300_000)  # 9 MB: more than any one batch
        end, seen = await log.end(), []
        async with aclosing(log.follow(0)) as batches:
            async for batch in batches:
                seen.append(batch)
                if batch.at_end:
                    break
        assert sum(len(batch.records) for batch in seen) == 30
        assert [batch.at_end for batch in seen] == [False] * (len(seen) - 1) + [True]
        assert seen[-1].next_position == end

    with_log(place, scenario)


@with_conditional_append
def test_conditional_append_is_refused_after_another_record(place):
    async def scenario(log: Log):
        assert log.conditional
        assert await log.append(b"a", expected_end=0) == 0
        end = await log.end()
        await log.append(b"b", expected_end=end)
        with pytest.raises(LogConflict) as conflict:
            await log.append(b"c", expected_end=end)
        assert (conflict.value.expected_end, conflict.value.end) == (end, end + 1)
        assert await values(log) == [b"a", b"b"]
        await log.append(b"c", expected_end=await log.end())

    with_log(place, scenario)


def test_record_of_the_greatest_size_is_stored_and_a_larger_one_refused(place):
    async def scenario(log: Log):
        largest = bytes(range(256)) * (RECORD_BYTES_MAX // 256)
        await log.append(largest)
        end = await log.end()
        with pytest.raises(TooLarge):
            await log.append(b"x" * (RECORD_BYTES_MAX + 1))
        with pytest.raises(Malformed):
            await log.append(b"")
        assert await log.end() == end
        await log.append(largest)
        assert await values(log) == [largest, largest]

    with_log(place, scenario)


@pytest.mark.parametrize(
    "value",
    [b"\0", b"\0" * 1000, "größer 🚩 שלום".encode(), b"\xff\xfe\x80", b"'; DROP TABLE ledger_record; --", b"\n\r\t "],
    ids=["zero", "zeros", "unicode", "not-utf8", "quotes", "blanks"],
)
def test_values_come_back_byte_for_byte(place, value):
    async def scenario(log: Log):
        await log.append(value)
        assert await values(log) == [value]

    with_log(place, scenario)


def test_end_is_the_position_of_the_next_record(place):
    async def scenario(log: Log):
        assert await log.end() == 0
        for _ in range(3):
            end = await log.end()
            assert await log.append(b"x") == end
        assert await log.end() == end + 1

    with_log(place, scenario)


def test_start_beyond_the_end_is_truncation(place):
    async def scenario(log: Log):
        await log.append(b"x")
        async with aclosing(log.follow(await log.end() + 1)) as batches:
            with pytest.raises(LogTruncated):
                await anext(batches)

    with_log(place, scenario)


def test_two_followers_each_get_everything(place):
    async def scenario(log: Log):
        async with aclosing(log.follow(0)) as one, aclosing(log.follow(0)) as other:
            readers = [asyncio.create_task(take(batches, 50)) for batches in (one, other)]
            for number in range(50):
                await log.append(b"%d" % number)
            for records in await asyncio.gather(*readers):
                assert [record.value for record in records] == [b"%d" % number for number in range(50)]

    with_log(place, scenario)


def test_cancelled_follower_leaves_log_other_followers_and_no_task_behind(place):
    async def scenario(log: Log):
        start = await log.append(b"before") + 1
        tasks = asyncio.all_tasks()
        async with aclosing(log.follow(start)) as kept, aclosing(log.follow(start)) as cancelled:
            await anext(kept)
            await anext(cancelled)
            waiting = asyncio.create_task(take(cancelled, 1))
            keeping = asyncio.create_task(take(kept, 1))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await log.append(b"after")
            assert [record.value for record in await keeping] == [b"after"]
        assert asyncio.all_tasks() == tasks

    with_log(place, scenario)


def test_cancelled_append_leaves_the_log_usable(place):
    async def scenario(log: Log):
        await log.append(b"before")
        writing = asyncio.create_task(log.append(b"maybe"))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await log.append(b"after")
        found = await values(log)
        assert [found[0], found[-1]] == [b"before", b"after"]
        assert found[1:-1] in ([], [b"maybe"])

    with_log(place, scenario)


def test_concurrent_appenders_lose_and_double_nothing(place):
    async def scenario(log: Log):
        async def write(writer: int) -> list[int]:
            return [await log.append(b"%d/%d" % (writer, number)) for number in range(50)]

        positions = await asyncio.gather(*(write(writer) for writer in range(8)))
        assert all(own == sorted(own) for own in positions)
        found = await values(log)
        assert sorted(found) == sorted(b"%d/%d" % (writer, number) for writer in range(8) for number in range(50))
        for writer in range(8):
            mine = [value for value in found if value.startswith(b"%d/" % writer)]
            assert mine == [b"%d/%d" % (writer, number) for number in range(50)]

    with_log(place, scenario)


def test_streams_of_one_place_are_apart(place):
    async def scenario():
        opener = place.open_log()
        for stream in Stream:
            async with opener(stream) as log:
                await log.append(stream.value.encode(), key=b"key" if stream.keyed else None)
        for stream in Stream:
            async with opener(stream) as log:
                assert await values(log) == [stream.value.encode()]

    run(scenario())


def test_closing_a_log_ends_its_followers(place):
    async def scenario():
        async with place.open_log(probe_s=DEADLINE_S)(Stream.LEDGER) as log:
            batches = log.follow(0)
            await anext(batches)
            waiting = asyncio.create_task(take(batches, 1))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="closed"):
                await waiting
        with pytest.raises(Unavailable):
            await log.end()

    run(scenario())


def test_records_outlive_the_log_that_wrote_them(place):
    with_log(place, lambda log: log.append(b"kept"))
    with_log(place, lambda log: _expect(log, [b"kept"]))


async def _expect(log: Log, expected: list[bytes]) -> None:
    assert await values(log) == expected


@outside_this_process
def test_creating_twice_changes_nothing(place):
    with_log(place, lambda log: log.append(b"kept"))
    run(create_log(place.url))
    with_log(place, lambda log: _expect(log, [b"kept"]))


@outside_this_process
def test_created_log_has_nothing_to_complain_about(place):
    assert run(inspect_log(place.url)) == []


@pytest.mark.parametrize("kind", ["sqlite", KAFKA])
def test_missing_log_is_told_and_not_created(kind, tmp_path, request):
    url = f"sqlite:///{tmp_path}/no.db" if kind == "sqlite" else request.getfixturevalue("kafka_url")()

    async def scenario():
        async with open_log(url)(Stream.LEDGER):
            pass

    for _ in range(2):
        with pytest.raises(LogMissing):
            run(scenario())
        with pytest.raises(LogMissing):
            run(inspect_log(url))


# --- streams that keep the newest record of each key ---


def newest(found: list[bytes]) -> dict[bytes, bytes]:
    """Return for each key its newest record, of values written as `key/number`."""
    return {value.partition(b"/")[0]: value for value in found}


@on_keyed_streams
def test_newest_record_of_each_key_is_kept_in_append_order(place, stream):
    async def scenario(log: Log):
        rng, written = random.Random(1), []
        for number in range(60):
            key = b"%d" % rng.randrange(7)
            written.append(b"%s/%d" % (key, number))
            await log.append(written[-1], key=key)
        found = await values(log)
        assert newest(found) == newest(written)
        assert found == [value for value in written if value in set(found)]

    with_log(place, scenario, stream=stream)


@on_keyed_streams
def test_positions_of_a_keyed_stream_grow_and_are_never_given_twice(place, stream):
    async def scenario(log: Log):
        assert await log.end() == 0
        given = []
        for _ in range(10):
            end = await log.end()
            given.append(await log.append(b"x", key=b"the one"))
            assert given[-1] == end
        assert given == sorted(set(given))
        found = [record.position async for record in read_to_end(log)]
        assert found == given[-len(found) :]
        assert await log.end() == given[-1] + 1

    with_log(place, scenario, stream=stream)


@on_keyed_streams
@pytest.mark.parametrize("key", [None, b"", b"k" * (KEY_BYTES_MAX + 1)], ids=["none", "empty", "too-long"])
def test_record_of_a_keyed_stream_without_a_usable_key_is_refused(place, stream, key):
    async def scenario(log: Log):
        with pytest.raises(Malformed, match=rf"1 to {KEY_BYTES_MAX} bytes in the stream {stream.value}"):
            await log.append(b"x", key=key)
        assert await log.end() == 0

    with_log(place, scenario, stream=stream)


@pytest.mark.parametrize("stream", [Stream.LEDGER, Stream.INBOX])
def test_key_is_refused_where_every_record_is_kept(place, stream):
    async def scenario(log: Log):
        with pytest.raises(Malformed, match=f"no key in the stream {stream.value}"):
            await log.append(b"x", key=b"key")
        assert await log.end() == 0

    with_log(place, scenario, stream=stream)


def test_keys_are_bytes_and_only_equal_ones_replace_each_other(place):
    keys = [b"\0", b"\0\0", b"key", b"KEY", b"key ", b"\xff\xfe", "größer".encode(), b"k" * KEY_BYTES_MAX]

    async def scenario(log: Log):
        for number in range(2):
            for index, key in enumerate(keys):
                await log.append(b"%d/%d" % (index, number), key=key)
        found = await values(log)
        assert newest(found) == {b"%d" % index: b"%d/1" % index for index in range(len(keys))}
        assert found[-len(keys) :] == [b"%d/1" % index for index in range(len(keys))]

    with_log(place, scenario, stream=Stream.META)


def test_largest_record_has_room_for_the_longest_key(place):
    async def scenario(log: Log):
        largest = bytes(range(256)) * (RECORD_BYTES_MAX // 256)
        await log.append(largest, key=b"k" * KEY_BYTES_MAX)
        assert await values(log) == [largest]

    with_log(place, scenario, stream=Stream.META)


@on_keyed_streams
def test_follower_of_a_keyed_stream_gets_what_is_kept_and_then_each_new_record_at_once(place, stream):
    async def scenario():
        opener = place.open_log(probe_s=DEADLINE_S)
        async with opener(stream) as reading, opener(stream) as writing:
            await writing.append(b"heartbeat/0", key=b"heartbeat")
            await writing.append(b"pointer/0", key=b"pointer")
            async with aclosing(reading.follow(0)) as batches:
                assert newest([record.value for record in await take(batches, 2)]) == {
                    b"heartbeat": b"heartbeat/0",
                    b"pointer": b"pointer/0",
                }
                for number in range(1, 6):
                    position = await writing.append(b"heartbeat/%d" % number, key=b"heartbeat")
                    async with asyncio.timeout(2):
                        assert await take(batches, 1) == [LogRecord(position, b"heartbeat/%d" % number)]

    run(scenario())


@outside_this_process
def test_follower_of_a_keyed_stream_wakes_when_another_process_appends(place):
    async def scenario(log: Log):
        with appender(place.url, Stream.META, "heartbeat") as append:
            async with aclosing(log.follow(0)) as batches:
                assert (await anext(batches)).at_end
                for number in range(5):
                    position = await asyncio.to_thread(append, f"{number}")
                    async with asyncio.timeout(2):
                        assert await take(batches, 1) == [LogRecord(position, b"%d" % number)]

    with_log(place, scenario, probe_s=DEADLINE_S, stream=Stream.META)


@on_keyed_streams
def test_follower_that_was_away_reads_on_although_records_before_were_dropped(place, stream):
    async def scenario(log: Log):
        for number in range(20):
            await log.append(b"a/%d" % number, key=b"a")
        away = await log.end()
        for number in range(20, 40):
            await log.append(b"a/%d" % number, key=b"a")
        for start in (1, away - 1, away, await log.end() - 1):
            assert newest(await values(log, start)) == {b"a": b"a/39"}
        assert await values(log, await log.end()) == []

    with_log(place, scenario, stream=stream)


@on_keyed_streams
def test_start_beyond_the_end_of_a_keyed_stream_is_truncation(place, stream):
    async def scenario(log: Log):
        for _ in range(3):
            await log.append(b"x", key=b"a")
        async with aclosing(log.follow(await log.end() + 1)) as batches:
            with pytest.raises(LogTruncated):
                await anext(batches)

    with_log(place, scenario, stream=stream)


def test_idle_keyed_stream_gives_signs_of_life(place):
    async def scenario(log: Log):
        for _ in range(3):
            end = await log.append(b"x", key=b"a") + 1
        async with asyncio.timeout(5), aclosing(log.follow(end)) as batches:
            for _ in range(4):
                batch = await anext(batches)
                assert (list(batch.records), batch.next_position, batch.at_end) == ([], end, True)

    with_log(place, scenario, probe_s=0.2, stream=Stream.META)


@on_keyed_streams
def test_concurrent_appenders_to_a_keyed_stream_leave_the_last_word_of_each(place, stream):
    async def scenario(log: Log):
        async def write(writer: int) -> list[int]:
            return [await log.append(b"%d/%d" % (writer, number), key=b"%d" % writer) for number in range(25)]

        positions = await asyncio.gather(*(write(writer) for writer in range(8)))
        assert len({position for own in positions for position in own}) == 200
        assert newest(await values(log)) == {b"%d" % writer: b"%d/24" % writer for writer in range(8)}

    with_log(place, scenario, stream=stream)


@on_keyed_streams
def test_keyed_records_outlive_the_log_that_wrote_them(place, stream):
    with_log(place, lambda log: log.append(b"a/0", key=b"a"), stream=stream)
    with_log(place, lambda log: log.append(b"a/1", key=b"a"), stream=stream)

    async def last(log: Log) -> bytes:
        return (await values(log))[-1]

    assert with_log(place, last, stream=stream) == b"a/1"


@on_keyed_streams
def test_keyed_stream_is_followed_reliably_from_the_position_it_stopped_at(place, stream):
    async def scenario():
        opener, lost = place.open_log(probe_s=0.2), []

        @asynccontextmanager
        async def flaky(name: Stream) -> AsyncIterator[Log]:
            """Open the log, and close it again under its reader after a second batch."""
            async with opener(name) as log:
                yield Flaky(log)

        async with opener(stream) as writing:
            follow = follow_reliably(flaky, stream, 0, on_lost=lost.append, rng=random.Random(1))
            async with aclosing(follow) as batches:
                positions: list[int] = []
                for number in range(12):
                    await writing.append(b"a/%d" % number, key=b"a")
                    await writing.append(b"b/%d" % number, key=b"b")
                    found: list[LogRecord] = []
                    while not found or found[-1].value != b"b/%d" % number:
                        found += (await anext(batches)).records
                    positions += [record.position for record in found]
                    assert newest([record.value for record in found]) == {
                        b"a": b"a/%d" % number,
                        b"b": b"b/%d" % number,
                    }
                assert positions == sorted(set(positions))
        assert len(lost) >= 4

    run(scenario())


class Flaky:
    """A log whose followers lose it after two batches."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def follow(self, start: int) -> AsyncIterator[Batch]:
        async with aclosing(self._log.follow(start)) as batches:
            for _ in range(2):
                yield await anext(batches)
        raise Unavailable("away")
