"""What the Kafka log does when brokers go away, and when others write what they should not."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import aclosing, asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from flaghoist.errors import LogMissing, LogTruncated, Misconfigured, OutcomeUnknown, Unavailable
from flaghoist.log.base import RECORD_BYTES_MAX, Stream, read_to_end
from flaghoist.log.location import create_log, inspect_log, open_log
from flaghoist.log.reconnect import follow_reliably
from tests.kafka.broker import Broker

pytestmark = pytest.mark.kafka


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 90))


def topic_of(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.fixture
def url(kafka_url) -> str:
    made = kafka_url()
    run(create_log(made))
    return made


@pytest.fixture(autouse=True)
def broker(kafka_broker: Broker, caplog: pytest.LogCaptureFixture) -> Iterator[Broker]:
    """The session's broker, running again after a test that took it away; no task may have died unheard meanwhile."""
    yield kafka_broker
    unheard = [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
    if kafka_broker._process.poll() is not None:
        kafka_broker.start()
    kafka_broker.resume()
    assert unheard == []


@asynccontextmanager
async def administrator(broker: Broker):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def producer(broker: Broker, **settings):
    sending = AIOKafkaProducer(bootstrap_servers=broker.address, **settings)
    await sending.start()
    try:
        yield sending
    finally:
        await sending.stop()


async def until_unavailable(batches) -> tuple[Unavailable, float]:
    """Read until the follower gives up; the error and the seconds it took."""
    start = time.monotonic()
    with pytest.raises(Unavailable) as lost:
        async for _ in batches:
            pass
    return lost.value, time.monotonic() - start


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_lost_broker_is_told_within_the_bound(url, broker, how):
    probe_s, answer_s = 0.5, 2.0

    async def scenario():
        opener = open_log(url, probe_s=probe_s, answer_s=answer_s)
        async with opener(Stream.LEDGER) as log, aclosing(log.follow(0)) as batches:
            assert (await anext(batches)).at_end
            await asyncio.to_thread(getattr(broker, how))
            return await until_unavailable(batches)

    error, took_s = run(scenario())
    print(f"{how}: told after {took_s:.2f} s: {error}")
    assert not isinstance(error, LogTruncated)
    assert took_s < probe_s + answer_s + 1.0  # and the time to close what is dead


def test_nothing_is_lost_or_doubled_over_a_killed_broker(url, broker):
    async def scenario():
        opener, lost = open_log(url, probe_s=0.5, answer_s=2.0), []
        follow = follow_reliably(opener, Stream.LEDGER, 0, on_lost=lost.append, rng=random.Random(1))
        found: list[bytes] = []

        async def read(count: int) -> None:
            while len(found) < count:
                found.extend(record.value for record in (await anext(follow)).records)

        async with aclosing(follow):
            async with opener(Stream.LEDGER) as log:
                for number in range(10):
                    await log.append(b"%d" % number)
            await read(10)
            await asyncio.to_thread(broker.kill)
            reading = asyncio.create_task(read(20))
            while not lost:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(broker.start)
            async with opener(Stream.LEDGER) as log:
                for number in range(10, 20):
                    await log.append(b"%d" % number)
            await reading
        assert found == [b"%d" % number for number in range(20)]
        return len(lost)

    print(f"losses told: {run(scenario())}")


def test_follower_outlasts_a_restart_shorter_than_its_patience(url, broker):
    async def scenario():
        opener = open_log(url, probe_s=0.5, answer_s=20.0)
        async with opener(Stream.LEDGER) as log, aclosing(log.follow(0)) as batches:
            assert (await anext(batches)).at_end
            await asyncio.to_thread(broker.restart)
            await log.append(b"after")
            while not (batch := await anext(batches)).records:
                pass
            assert [record.value for record in batch.records] == [b"after"]

    run(scenario())


def test_append_to_a_dead_broker_sends_nothing(url, broker):
    async def scenario():
        async with open_log(url, answer_s=2.0)(Stream.LEDGER) as log:
            await log.append(b"before")
            await asyncio.to_thread(broker.kill)
            start = time.monotonic()
            with pytest.raises(Unavailable, match="nothing was sent") as refused:
                await log.append(b"never")
            assert not isinstance(refused.value, OutcomeUnknown)
            assert time.monotonic() - start < 5
        await asyncio.to_thread(broker.start)
        async with open_log(url)(Stream.LEDGER) as log:
            assert [record.value async for record in read_to_end(log)] == [b"before"]

    run(scenario())


def test_append_that_nobody_confirms_has_an_unknown_outcome_and_is_not_repeated_later(url, broker):
    async def scenario():
        async with open_log(url, answer_s=2.0)(Stream.LEDGER) as log:
            await log.append(b"before")
            await asyncio.to_thread(broker.pause)
            with pytest.raises(OutcomeUnknown):
                await log.append(b"maybe")
            await asyncio.to_thread(broker.resume)
            await log.append(b"after")  # by a new producer: the log is still usable
            found = [record.value async for record in read_to_end(log)]
            assert found[0] == b"before"
            assert sorted(found[1:]) in ([b"after"], [b"after", b"maybe"])

    run(scenario())


def test_append_given_up_is_not_delivered_when_the_broker_returns(url, broker):
    async def scenario():
        async with open_log(url, answer_s=2.0)(Stream.LEDGER) as log:
            await log.append(b"before")
            await asyncio.to_thread(broker.pause)
            with pytest.raises(OutcomeUnknown):
                await log.append(b"given up")
            await asyncio.to_thread(broker.kill)  # what it had received and not read is gone
            await asyncio.to_thread(broker.start)
            await log.append(b"next")  # behind "given up", if that were still on its way
        async with open_log(url)(Stream.LEDGER) as log:
            await log.append(b"after")
            assert [record.value async for record in read_to_end(log)] == [b"before", b"next", b"after"]

    run(scenario())


def test_opening_gives_up_in_time_on_a_broker_that_does_not_answer(url, broker):
    async def scenario():
        await asyncio.to_thread(broker.pause)
        start = time.monotonic()
        with pytest.raises(Unavailable):
            async with open_log(url, answer_s=1.0)(Stream.LEDGER):
                pass
        assert time.monotonic() - start < 6

    run(scenario())


def test_open_transaction_of_another_producer_does_not_freeze_readers(url, broker):
    async def scenario():
        async with open_log(url, probe_s=0.5)(Stream.LEDGER) as log:
            async with producer(broker, transactional_id=topic_of(url)) as intruder:
                await intruder.begin_transaction()
                await intruder.send_and_wait(topic_of(url), b"uncommitted", partition=0)
                await log.append(b"entry")
                async with asyncio.timeout(5):
                    assert [record.value async for record in read_to_end(log)] == [b"uncommitted", b"entry"]
                await intruder.abort_transaction()
            # The end of the transaction takes an offset, and is no record. The brokers write it in their own time.
            async with asyncio.timeout(10):
                while (end := await log.end()) < 3:
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(5), aclosing(log.follow(end - 1)) as batches:
                batch = await anext(batches)
                assert (list(batch.records), batch.next_position, batch.at_end) == ([], end, True)
            await log.append(b"next")
            async with asyncio.timeout(5):
                assert [record.value async for record in read_to_end(log, end)] == [b"next"]

    run(scenario())


async def make_anew(broker: Broker, url: str, records: int) -> None:
    """Delete the ledger's topic, and make it again with so many records."""
    async with administrator(broker) as admin:
        await admin.delete_topics([topic_of(url)])
        while topic_of(url) in await admin.list_topics():
            await asyncio.sleep(0.05)
    await create_log(url)
    async with open_log(url)(Stream.LEDGER) as anew:
        for _ in range(records):
            await anew.append(b"new")


def test_topic_made_anew_under_a_follower_is_noticed(url, broker):
    async def scenario():
        opener = open_log(url, probe_s=0.3, answer_s=5.0)
        async with opener(Stream.LEDGER) as log, aclosing(log.follow(0)) as batches:
            for _ in range(3):
                await log.append(b"old")
            while (await anext(batches)).next_position < 3:
                pass
            await make_anew(broker, url, 0)
            with pytest.raises(LogTruncated):
                async for _ in batches:
                    pass

    run(scenario())


def test_topic_made_anew_and_grown_past_the_reader_is_not_taken_for_the_old_one(url, broker):
    async def scenario():
        async with open_log(url)(Stream.LEDGER) as log:
            for _ in range(3):
                await log.append(b"old")
            await make_anew(broker, url, 5)
            with pytest.raises(LogTruncated, match="made anew"):
                await log.end()
            async with aclosing(log.follow(3)) as batches:
                with pytest.raises(LogTruncated, match="made anew"):
                    await anext(batches)

    run(scenario())


def test_missing_topic_is_not_created_by_brokers_that_create_what_is_asked_for():
    async def scenario(broker: Broker):
        for _ in range(2):
            with pytest.raises(LogMissing):
                async with open_log(broker.url("nowhere"))(Stream.LEDGER):
                    pass
        async with administrator(broker) as admin:
            assert await admin.list_topics() == []

    with Broker(auto_create_topics_enable="true") as generous:
        run(scenario(generous))


def test_deleted_topic_is_noticed_and_not_created_again(url, broker):
    async def scenario():
        opener = open_log(url, probe_s=0.3, answer_s=2.0)
        async with opener(Stream.LEDGER) as log, aclosing(log.follow(0)) as batches:
            await anext(batches)
            async with administrator(broker) as admin:
                await admin.delete_topics([topic_of(url)])
                with pytest.raises(LogTruncated, match="gone"):
                    async for _ in batches:
                        pass
                assert topic_of(url) not in await admin.list_topics()

    run(scenario())


def test_record_over_the_limit_is_passed_on_and_stops_nobody(kafka_url, broker):
    url = kafka_url()

    async def scenario():
        async with administrator(broker) as admin:
            settings = {"max.message.bytes": str(8 * 1024 * 1024)}
            await admin.create_topics([NewTopic(topic_of(url), 1, 1, topic_configs=settings)])
        async with open_log(url)(Stream.LEDGER) as log:
            await log.append(b"before")
            async with producer(broker, max_request_size=8 * 1024 * 1024) as intruder:
                await intruder.send_and_wait(topic_of(url), b"x" * (5 * 1024 * 1024), partition=0)
            await log.append(b"after")
            found = [record.value async for record in read_to_end(log)]
        assert [len(value) for value in found] == [6, 5 * 1024 * 1024, 5]
        assert len(found[1]) > RECORD_BYTES_MAX

    run(scenario())


def test_tombstones_keys_headers_and_compression_of_others_are_only_records(url, broker):
    async def scenario():
        async with open_log(url)(Stream.LEDGER) as log:
            async with producer(broker, compression_type="gzip") as intruder:
                await intruder.send_and_wait(topic_of(url), None, key=b"key", partition=0)
                await intruder.send_and_wait(topic_of(url), b"v", key=b"k", partition=0, headers=[("h", b"x")])
            await log.append(b"after")
            assert [record.value async for record in read_to_end(log)] == [b"", b"v", b"after"]

    run(scenario())


def test_records_in_a_codec_that_cannot_be_read_stop_nobody(kafka_url, broker):
    # Brokers that are told to compress turn even our own records into such; `doctor` names the setting.
    url = kafka_url()

    async def scenario():
        async with administrator(broker) as admin:
            await admin.create_topics([NewTopic(topic_of(url), 1, 1, topic_configs={"compression.type": "lz4"})])
        async with open_log(url)(Stream.LEDGER) as log:
            for _ in range(3):
                await log.append(b"x" * 1000)
            async with asyncio.timeout(10):
                assert [record.value async for record in read_to_end(log)] == [b"", b"", b""]
        with pytest.raises(Misconfigured, match=r"compression\.type: expected uncompressed, got lz4"):
            await create_log(url)

    run(scenario())


def test_existing_topic_with_wrong_settings_is_refused_and_each_is_named(kafka_url, broker):
    url = kafka_url()

    async def scenario():
        async with administrator(broker) as admin:
            settings = {"cleanup.policy": "compact", "retention.ms": "1000", "max.message.bytes": "1000"}
            await admin.create_topics([NewTopic(topic_of(url), 3, 1, topic_configs=settings)])
        with pytest.raises(Misconfigured) as refused:
            await create_log(url)
        for text in (
            "partitions: expected 1, got 3",
            "cleanup.policy: expected delete, got compact",
            "retention.ms: expected -1, got 1000",
            "max.message.bytes: expected 1048588, got 1000",
        ):
            assert text in str(refused.value)
        async with administrator(broker) as admin:
            assert f"{topic_of(url)}.inbox" not in await admin.list_topics()  # nothing half done
        with pytest.raises(Misconfigured, match="expected 1 partition, got 3"):
            async with open_log(url)(Stream.LEDGER):
                pass

    run(scenario())


def test_inspect_names_what_is_missing_or_differs(kafka_url, broker):
    url = kafka_url()

    async def scenario():
        async with administrator(broker) as admin:
            await admin.create_topics([NewTopic(topic_of(url), 1, 1, topic_configs={"retention.ms": "-1"})])
        return await inspect_log(url)

    found = {(finding.where.removeprefix(topic_of(url)), finding.setting): finding for finding in run(scenario())}
    assert found["", "message.timestamp.type"].got == "CreateTime"
    assert found[".inbox", "topic"].got == "missing"
    assert ("", "retention.ms") not in found


def test_topic_that_refuses_large_records_is_told_as_misconfigured(kafka_url, broker):
    url = kafka_url()

    async def scenario():
        async with administrator(broker) as admin:
            await admin.create_topics([NewTopic(topic_of(url), 1, 1, topic_configs={"max.message.bytes": "1000"})])
        async with open_log(url)(Stream.LEDGER) as log:
            with pytest.raises(Misconfigured, match=r"max\.message\.bytes"):
                await log.append(b"x" * 5000)
            await log.append(b"small")
            assert [record.value async for record in read_to_end(log)] == [b"small"]

    run(scenario())
