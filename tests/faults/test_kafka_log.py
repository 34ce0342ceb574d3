"""What the Kafka log does when brokers go away, and when others write what they should not."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import aclosing, asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from flaghoist.errors import LogMissing, LogTruncated, Misconfigured, OutcomeUnknown, Unavailable
from flaghoist.log.base import RECORD_BYTES_MAX, LogRecord, Severity, Stream, read_to_end
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


# --- streams that keep the newest record of each key ---


def keyed_topics(url: str) -> tuple[str, str]:
    return f"{topic_of(url)}.meta", f"{topic_of(url)}.acks"


async def drop_before(broker: Broker, topic: str, position: int) -> None:
    """Delete the topic's records before `position`, as retention does."""
    async with administrator(broker) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(position)})


def test_holes_that_compaction_leaves_are_no_loss():
    written = 60

    async def scenario(broker: Broker, url: str):
        await create_log(url)
        async with administrator(broker) as admin:  # the settings of `create`, in fractions of a second
            quick = {"cleanup.policy": "compact", "segment.ms": "50", "max.compaction.lag.ms": "50"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{topic_of(url)}.meta", quick)])
        async with open_log(url, probe_s=0.5)(Stream.META) as log, aclosing(log.follow(0)) as batches:
            assert (await anext(batches)).at_end
            await log.append(b"pointer", key=b"pointer")
            live: list[bytes] = []
            for number in range(written):
                await log.append(b"beat/%d" % number, key=b"heartbeat")
                while not live or live[-1] != b"beat/%d" % number:
                    live += [record.value for record in (await anext(batches)).records]
            assert live == [b"pointer", *(b"beat/%d" % number for number in range(written))]
            # Only a write closes the segment before it; the cleaner comes by ten times a second.
            kept: list[LogRecord] = []
            async with asyncio.timeout(60):
                while not 0 < len(kept) < written // 3:
                    await log.append(b"beat/last", key=b"heartbeat")
                    kept = [record async for record in read_to_end(log)]
            assert kept[0] == LogRecord(0, b"pointer")
            assert kept[1].position > 1, "there is a hole"
            assert kept[-1].value == b"beat/last"
            end = await log.end()
            for start in range(end + 1):  # in a hole, at its edges, and at the end
                found = [record async for record in read_to_end(log, start)]
                assert [record.position for record in found] == sorted({record.position for record in found})
                assert (found[-1].value == b"beat/last") if start < end else (found == [])
            with pytest.raises(LogTruncated):
                await anext(log.follow(end + 1))
            while (await anext(batches)).next_position < end:  # the follower of the beginning is still there
                pass
            return len(kept), end

    with Broker(log_cleaner_backoff_ms="100") as broker:
        kept, end = run(scenario(broker, broker.url("flags")))
    print(f"{kept} records are kept of {end}")


def test_reader_of_a_keyed_stream_passes_over_what_retention_dropped(url, broker):
    _, acks = keyed_topics(url)

    async def scenario():
        async with open_log(url)(Stream.ACKS) as log:
            for number in range(6):
                await log.append(b"%d" % number, key=b"%d" % number)
            await drop_before(broker, acks, 4)
            for start, found in ((0, [b"4", b"5"]), (2, [b"4", b"5"]), (5, [b"5"]), (6, [])):
                assert [record.value async for record in read_to_end(log, start)] == found
            await drop_before(broker, acks, 6)
            assert [record.value async for record in read_to_end(log, 2)] == []
            await log.append(b"6", key=b"6")
            assert [record.value async for record in read_to_end(log, 2)] == [b"6"]

    run(scenario())


def test_reader_of_the_ledger_takes_what_retention_dropped_for_a_loss(url, broker):
    async def scenario():
        async with open_log(url)(Stream.LEDGER) as log:
            for number in range(6):
                await log.append(b"%d" % number)
            await drop_before(broker, topic_of(url), 4)
            with pytest.raises(LogTruncated, match="starts at 4"):
                await anext(log.follow(2))

    run(scenario())


@pytest.mark.parametrize("stream", [Stream.ACKS, Stream.INBOX])
def test_reader_that_retention_overtakes_goes_on_where_the_keyed_stream_starts_now(url, broker, stream):
    topic, count = f"{topic_of(url)}.{stream.value}", 12

    async def scenario():
        async with open_log(url, probe_s=0.5)(stream) as log, aclosing(log.follow(0)) as batches:
            assert (await anext(batches)).at_end
            # Each fetch has room for two of these, and no more than two fetches are ahead of who reads.
            for number in range(count):
                await log.append(b"%d/" % number + b"x" * 900_000, key=b"%d" % number if stream.keyed else None)
            await drop_before(broker, topic, count - 1)
            found: list[bytes] = []
            async with asyncio.timeout(20):
                while b"%d" % (count - 1) not in found:
                    found += [record.value.partition(b"/")[0] for record in (await anext(batches)).records]
            assert len(found) < count, "nothing was dropped before it was read"
            assert found == sorted(found, key=int)
            await log.append(b"after", key=b"after")
            while not (records := (await anext(batches)).records):
                pass
            assert [record.value for record in records] == [b"after"]

    if stream.keyed:
        run(scenario())
    else:
        with pytest.raises(LogTruncated, match="holds nothing at position"):
            run(scenario())


def test_records_of_others_under_our_key_hide_ours_until_the_next(url, broker):
    meta, _ = keyed_topics(url)

    async def scenario():
        async with open_log(url)(Stream.META) as log:
            await log.append(b"beat 1", key=b"heartbeat")
            async with producer(broker) as intruder:
                await intruder.send_and_wait(meta, None, key=b"heartbeat", partition=0)
                await intruder.send_and_wait(meta, b"junk", key=b"heartbeat", partition=0)
                with pytest.raises(KafkaError):
                    await intruder.send_and_wait(meta, b"junk", partition=0)  # without a key nothing is compacted
            await log.append(b"beat 2", key=b"heartbeat")
            assert [record.value async for record in read_to_end(log)] == [b"beat 1", b"", b"junk", b"beat 2"]

    run(scenario())


def test_made_anew_keyed_topic_is_not_taken_for_the_old_one(url, broker):
    meta, _ = keyed_topics(url)

    async def scenario():
        async with open_log(url, probe_s=0.3, answer_s=5.0)(Stream.META) as log, aclosing(log.follow(0)) as batches:
            for _ in range(3):
                await log.append(b"old", key=b"heartbeat")
            while (await anext(batches)).next_position < 3:
                pass
            async with administrator(broker) as admin:
                await admin.delete_topics([meta])
                while meta in await admin.list_topics():
                    await asyncio.sleep(0.05)
            await create_log(url)
            with pytest.raises(LogTruncated):
                async for _ in batches:
                    pass

    run(scenario())


def test_ledger_made_before_there_were_keyed_streams_gets_them_by_creating_it_again(url, broker):
    async def scenario():
        async with open_log(url)(Stream.LEDGER) as log:
            await log.append(b"kept")
        async with administrator(broker) as admin:
            await admin.delete_topics(list(keyed_topics(url)))
            while set(keyed_topics(url)) & set(await admin.list_topics()):
                await asyncio.sleep(0.05)
        for stream in (Stream.META, Stream.ACKS):
            with pytest.raises(LogMissing, match=f"no topic .*{stream.value}") as missing:
                async with open_log(url)(stream):
                    pass
            assert "`flaghoist init` again" in missing.value.hint
        found = {finding.where: finding for finding in await inspect_log(url)}
        assert set(found) == set(keyed_topics(url))
        for finding in found.values():
            assert (finding.setting, finding.got, finding.severity) == ("topic", "missing", Severity.ERROR)
            assert "`flaghoist init` again" in finding.hint
        await create_log(url)
        assert await inspect_log(url) == []
        async with open_log(url)(Stream.LEDGER) as log:
            assert [record.value async for record in read_to_end(log)] == [b"kept"]

    run(scenario())


def test_keyed_topic_that_deletes_by_age_is_refused_and_slow_compaction_is_a_warning(kafka_url, broker):
    url = kafka_url()
    meta, acks = keyed_topics(url)
    a_day = str(24 * 3600 * 1000)

    async def scenario():
        async with administrator(broker) as admin:
            await admin.create_topics(
                [
                    NewTopic(meta, 1, 1, topic_configs={"cleanup.policy": "delete", "segment.ms": "1000"}),
                    NewTopic(acks, 1, 1, topic_configs={"cleanup.policy": "delete,compact", "retention.ms": a_day}),
                ]
            )
        with pytest.raises(Misconfigured, match=r"cleanup\.policy: expected compact, got delete"):
            await create_log(url)
        async with administrator(broker) as admin:
            settings = {"cleanup.policy": "compact", "segment.ms": "1000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, meta, settings)])
        await create_log(url)
        return await inspect_log(url)

    found = {(finding.where, finding.setting): finding for finding in run(scenario())}
    assert {where for where, _ in found} == {meta, acks}
    assert {finding.severity for finding in found.values()} == {Severity.WARNING}
    assert found[acks, "segment.ms"].got == "604800000"
    assert found[meta, "min.cleanable.dirty.ratio"].got == "0.5"
    assert (meta, "segment.ms") not in found, "shorter than asked for does as well"
    assert (acks, "cleanup.policy") not in found, "the order of the two says nothing"
    assert (acks, "retention.ms") not in found
