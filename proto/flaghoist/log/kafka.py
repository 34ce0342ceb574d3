"""A log in a Kafka topic of one partition: every reader sees everything, one writer at a time is the caller's care."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CorruptRecordException,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    PolicyViolationError,
    ProducerClosed,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedCodecError,
)
from aiokafka.structs import RecordMetadata, TopicPartition

from flaghoist.errors import (
    LogMissing,
    LogTruncated,
    Misconfigured,
    OutcomeUnknown,
    Unavailable,
)
from flaghoist.log.base import (
    ADD_STREAMS_HINT,
    ANSWER_S,
    PROBE_S,
    Batch,
    Log,
    LogRecord,
    Stream,
    check_key,
    check_value,
)
from flaghoist.log.kafka_clients import (
    CLOSE_S,
    EARLIEST,
    LATEST,
    RETRY_S,
    UNKNOWN_TOPIC_S,
    Topic,
    client_options,
    close_quietly,
    connected,
    describe,
    offset,
    refusal,
)
from flaghoist.log.location import KafkaLocation

# How long a broker holds the request of a reader that has read everything: 25 times fewer idle requests than with the
# library's 500 ms, and the same latency, since a record ends the wait.
FETCH_WAIT_S: Final = 10.0
# Room for the largest record and the one after it. A larger record still comes, alone (KIP-74).
FETCH_BYTES: Final = 2 * 1024 * 1024
# Bounds the time that one hand-over takes on the event loop.
BATCH_RECORDS_MAX: Final = 500
# What a reader that is behind waits before it looks whether a transaction's end, which is no record, moved it on.
CATCH_UP_S: Final = 0.1

# Answers by which a broker says that it stored nothing. After any other the record may be there.
_NOT_STORED: Final = (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _State:
    """Where the topic stood when the brokers were asked: its first offset (0 if not asked for) and its next."""

    start: int
    end: int


class KafkaLog:
    """One topic. Positions are offsets: they grow, with holes; see base.Log for the rest.

    Requests that must be answered soon have a connection of their own: a broker answers those of one connection in
    order, and a reader's may be held for FETCH_WAIT_S seconds.
    """

    conditional: Final = False

    def __init__(
        self,
        client: AIOKafkaClient,
        location: KafkaLocation,
        stream: Stream,
        *,
        probe_s: float = PROBE_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._client = client
        self._location = location
        self._stream = stream
        self._topic = location.topic_of(stream)
        self._partition = TopicPartition(self._topic, 0)
        self._probe_s = probe_s
        self._answer_s = answer_s
        self._topic_id: bytes | None = None
        self._producer: AIOKafkaProducer | None = None
        self._producer_start = asyncio.Lock()
        self._unconfirmed: set[asyncio.Future[RecordMetadata]] = set()
        self._closed = asyncio.Event()

    async def open(self) -> None:
        """Check that the topic is there and fit to be a log.

        Raises:
            LogMissing: no such topic.
            Misconfigured: it has more than one partition, or may not be read.
            Unavailable: the brokers did not answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNKNOWN_TOPIC_S
        topic = await self._ask(self._describe)
        while topic is None and loop.time() < deadline:
            await asyncio.sleep(RETRY_S)
            topic = await self._ask(self._describe)
        if topic is None:
            raise LogMissing(
                f"no topic {self._topic} at {','.join(self._location.bootstrap)}",
                hint=ADD_STREAMS_HINT if self._stream.keyed else None,
            )
        if topic.partitions != 1:
            raise Misconfigured(
                f"topic {self._topic}: expected 1 partition, got {topic.partitions}: a ledger has one order",
                hint="name another topic, and create it with `flaghoist init`",
            )
        self._topic_id = topic.topic_id
        # From here on the client may refresh what it knows of the topic; before, that could have created it.
        self._client.set_topics([self._topic])

    async def close(self) -> None:
        """Close the writing client; every follower is told Unavailable, and closes its own."""
        self._closed.set()
        if self._producer is not None:
            await self._discard(self._producer)

    # --- write ---

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        check_value(value)
        check_key(self._stream, key)
        producer = await self._writing()
        # What fails up to here was never handed over; cancelling send() takes the record back.
        try:
            async with asyncio.timeout(self._answer_s):
                await self._reach_leader(producer)
                sent = await producer.send(self._topic, bytes(value), key=key, partition=0)
        except (KafkaError, OSError, TimeoutError) as error:
            await self._discard(producer)
            raise Unavailable(f"topic {self._topic}: nothing was sent: {_named(error)}") from error
        self._unconfirmed.add(sent)
        sent.add_done_callback(self._confirmed)
        await asyncio.wait({sent}, timeout=self._answer_s)
        return await self._stored(producer, sent, len(value))

    async def _stored(self, producer: AIOKafkaProducer, sent: "asyncio.Future[RecordMetadata]", size: int) -> int:
        """Return the position that the brokers gave the record, or raise what became of it."""
        if not sent.done():
            # Going on would deliver it at some later moment, after the caller was told that nobody knows.
            await self._discard(producer)
            raise OutcomeUnknown(f"topic {self._topic}: sent, and not confirmed within {self._answer_s:g} s")
        error = sent.exception()
        if error is None:
            position = int(sent.result().offset)
            if position >= 0:
                return position
            raise OutcomeUnknown(f"topic {self._topic}: stored, and the brokers no longer know at which position")
        # After a failure the producer's sequence numbers have a gap, and the brokers refuse all that follows.
        await self._discard(producer)
        if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
            raise Misconfigured(
                f"topic {self._topic}: refuses a record of {size} bytes: its max.message.bytes is too small",
                hint="`flaghoist doctor` names the wrong settings",
            ) from error
        if isinstance(error, _NOT_STORED):
            raise Misconfigured(f"topic {self._topic}: the brokers refuse to write: {_named(error)}") from error
        raise OutcomeUnknown(f"topic {self._topic}: sent, and not confirmed: {_named(error)}") from error

    def _confirmed(self, sent: "asyncio.Future[RecordMetadata]") -> None:
        self._unconfirmed.discard(sent)
        if not sent.cancelled():
            sent.exception()  # looked at, also when nobody waits for it any more

    async def _writing(self) -> AIOKafkaProducer:
        async with self._producer_start:
            if self._closed.is_set():
                raise self._was_closed()
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self._location, answer_s=self._answer_s),
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=0,
                )
                try:
                    async with asyncio.timeout(self._answer_s):
                        await producer.start()
                except BaseException as error:
                    await _abandon(producer)
                    if isinstance(error, (KafkaError, OSError, TimeoutError)):
                        raise Unavailable(f"topic {self._topic}: nothing was sent: {_named(error)}") from error
                    raise
                self._producer = producer
            return self._producer

    async def _reach_leader(self, producer: AIOKafkaProducer) -> None:
        """Return once the partition's leader is connected: what is handed over before that may lie for long."""
        while True:
            await producer.partitions_for(self._topic)
            leader = producer.client.cluster.leader_for_partition(self._partition)
            if leader is not None and leader >= 0 and await producer.client.ready(leader):
                return
            await asyncio.sleep(RETRY_S)
            await producer.client.force_metadata_update()

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        if self._producer is producer:
            self._producer = None
            for sent in list(self._unconfirmed):
                if not sent.done():
                    sent.set_exception(ProducerClosed())
        await _abandon(producer)

    # --- read ---

    async def end(self) -> int:
        return (await self._ask(self._state)).end

    async def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        state = await self._ask(self._state_from_start)
        if start > state.end:
            raise LogTruncated(
                f"topic {self._topic}: expected records from position {start} on, the log ends at {state.end}"
            )
        if 0 < start < state.start and not self._stream.keyed:
            raise LogTruncated(
                f"topic {self._topic}: expected records from position {start} on, the log starts at {state.start}"
            )
        position = max(start, state.start)
        if position >= state.end:
            # Before the consumer: a caller that only wants to know whether there is more need not wait for one.
            yield Batch((), position, at_end=True)
        consumer = AIOKafkaConsumer(**self._reading_options())
        try:
            try:
                async with asyncio.timeout(self._answer_s):
                    await consumer.start()
            except (KafkaError, OSError, TimeoutError) as error:
                raise Unavailable(f"topic {self._topic}: cannot read: {_named(error)}") from error
            consumer.assign([self._partition])
            consumer.seek(self._partition, position)
            async for batch in _Reading(self, consumer, position, state.end).batches():
                yield batch
        finally:
            await close_quietly(consumer.stop)
            # stop() gives up half-way when its fetcher raises; the connections are closed all the same.
            await close_quietly(consumer._client.close)

    def _reading_options(self) -> dict[str, Any]:
        options = client_options(self._location, answer_s=self._answer_s)
        # A request that the broker may hold for FETCH_WAIT_S is late only after that and the time for an answer.
        options["request_timeout_ms"] = round((FETCH_WAIT_S + self._answer_s) * 1000)
        return options | {
            "group_id": None,
            "enable_auto_commit": False,
            # A position that is gone is told, never replaced by another one.
            "auto_offset_reset": "none",
            # Otherwise anyone with write access could freeze every reader with a transaction left open.
            "isolation_level": "read_uncommitted",
            "fetch_max_wait_ms": round(FETCH_WAIT_S * 1000),
            "fetch_min_bytes": 1,
            "max_partition_fetch_bytes": FETCH_BYTES,
        }

    # --- ask ---

    async def _describe(self) -> Topic | None:
        return await describe(self._client, self._topic)

    async def _state(self, *, with_start: bool = False) -> _State:
        topic = await self._describe()
        if topic is None:
            raise UnknownTopicOrPartitionError(self._topic)
        if topic.topic_id != self._topic_id:
            raise LogTruncated(f"topic {self._topic}: it was deleted and made anew")
        start = await offset(self._client, self._topic, topic.leader, EARLIEST) if with_start else 0
        return _State(start, await offset(self._client, self._topic, topic.leader, LATEST))

    async def _state_from_start(self) -> _State:
        return await self._state(with_start=True)

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the brokers' answer; what may pass, as a leader that moves, is asked again for `answer_s` seconds."""
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._answer_s):
                while not self._closed.is_set():
                    try:
                        return await question()
                    except KafkaError as error:
                        last = error
                        if not error.retriable:
                            raise refusal(error, self._topic) from error
                    await asyncio.sleep(RETRY_S)
        except TimeoutError as error:
            if isinstance(last, UnknownTopicOrPartitionError):
                raise LogTruncated(f"topic {self._topic}: it is gone") from last
            because = f": {_named(last)}" if last else ""
            raise Unavailable(f"topic {self._topic}: no answer within {self._answer_s:g} s{because}") from error
        raise self._was_closed()

    def _was_closed(self) -> Unavailable:
        return Unavailable(f"topic {self._topic}: the log was closed")


class _Reading:
    """One follower: hands on what its consumer fetches, and asks the brokers beside it whether that can be all.

    The consumer never says that brokers are away, that its topic is gone, or that it makes no headway; so every
    `probe_s` seconds the topic's end is asked for on the log's own connection.
    """

    def __init__(self, log: KafkaLog, consumer: AIOKafkaConsumer, position: int, end: int) -> None:
        self._log = log
        self._consumer = consumer
        self._position = position
        self._end = end
        self._behind_since: float | None = None

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield batches until the log is closed, cut or lost."""
        log, loop = self._log, asyncio.get_running_loop()
        closed = asyncio.ensure_future(log._closed.wait())
        fetching = asyncio.ensure_future(self._fetched())
        probing: asyncio.Future[_State] | None = None
        probe_at = loop.time() + log._probe_s
        try:
            while True:
                if probing is None and loop.time() >= probe_at:
                    probing = asyncio.ensure_future(log._ask(log._state))
                waited: set[asyncio.Future[Any]] = {closed, fetching} | ({probing} if probing else set())
                timeout = None if probing else max(0.0, probe_at - loop.time())
                await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if closed.done():
                    raise log._was_closed()
                if fetching.done():
                    batch = self._advance(*fetching.result())
                    fetching = asyncio.ensure_future(self._fetched())
                    if batch is not None:
                        yield batch
                if probing is not None and probing.done():
                    yield self._judge(probing.result(), loop.time())
                    probing, probe_at = None, loop.time() + log._probe_s
        finally:
            tasks = [task for task in (closed, fetching, probing) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetched(self) -> tuple[list[LogRecord], int]:
        """Return the next records, or none after a while, and where the consumer stands after them."""
        partition, topic = self._log._partition, self._log._topic
        wait_s = CATCH_UP_S if self._position < self._end else self._log._probe_s
        try:
            found = await self._consumer.getmany(
                partition, timeout_ms=round(wait_s * 1000), max_records=BATCH_RECORDS_MAX
            )
        except OffsetOutOfRangeError as error:
            start = await self._start_after_a_drop()
            if start is None:
                raise LogTruncated(f"topic {topic}: holds nothing at position {self._position} any more") from error
            self._consumer.seek(partition, start)
            return [], start
        except (UnsupportedCodecError, CorruptRecordException):
            # Not ours: we write no compressed records. Passed over, it is one more record that nobody signed.
            self._consumer.seek(partition, self._position + 1)
            return [LogRecord(self._position, b"")], self._position + 1
        except KafkaError as error:
            raise refusal(error, topic) from error
        # A record may have no value (a "tombstone", for compaction); here that is one more that nobody signed.
        records = [LogRecord(record.offset, record.value or b"") for record in found.get(partition, ())]
        return records, int(await self._consumer.position(partition))

    async def _start_after_a_drop(self) -> int | None:
        """Return where a keyed stream starts now, if that is after our position: what was before may be dropped."""
        if not self._log._stream.keyed:
            return None
        state = await self._log._ask(self._log._state_from_start)
        return state.start if state.start > self._position else None

    def _advance(self, records: list[LogRecord], position: int) -> Batch | None:
        moved = position > self._position
        self._position = position
        # What came with the last records tells the end at that moment; a probe may know a later one.
        self._end = max(self._end, self._consumer.highwater(self._log._partition) or 0)
        if moved:
            self._behind_since = None
        at_end = position >= self._end
        return Batch(records, position, at_end) if records or (moved and at_end) else None

    def _judge(self, state: _State, now: float) -> Batch:
        """Return the sign of life that a probe gives, or raise what it says about the topic or about our reading."""
        log = self._log
        if state.end < self._position:
            raise LogTruncated(f"topic {log._topic}: read up to position {self._position}, the log ends at {state.end}")
        self._end = state.end
        if self._position == state.end:
            self._behind_since = None
            return Batch((), self._position, at_end=True)
        if self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since >= log._answer_s:
            raise Unavailable(
                f"topic {log._topic}: reading stands still at position {self._position}, the log ends at {state.end}"
            )
        return Batch((), self._position, at_end=False)


@asynccontextmanager
async def open_stream(
    location: KafkaLocation, stream: Stream, *, probe_s: float = PROBE_S, answer_s: float = ANSWER_S
) -> AsyncIterator[Log]:
    """Open the topic of one stream at `location`; see base.OpenLog and KafkaLog.open."""
    async with connected(location, answer_s=answer_s) as client:
        log = KafkaLog(client, location, stream, probe_s=probe_s, answer_s=answer_s)
        try:
            await log.open()
            yield log
        finally:
            await log.close()


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Close a producer without delivering what it still holds: its own stop() would go on trying for ever."""
    producer._closed = True
    sender = producer._sender.sender_task
    if sender is not None:
        sender.remove_done_callback(producer._sender._fail_all)  # fails itself where there is no transaction
        sender.cancel()
    await close_quietly(producer.client.close)
    if sender is not None:
        # It waits for the requests under way, which the closed connections have just ended.
        await asyncio.wait({sender}, timeout=CLOSE_S)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
