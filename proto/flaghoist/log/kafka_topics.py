"""The topics of a ledger: made with the settings it needs, and checked against them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from flaghoist.errors import LogMissing, Misconfigured, Unavailable
from flaghoist.log.base import ACKS_RETENTION_S, ADD_STREAMS_HINT, ANSWER_S, Finding, Severity, Stream
from flaghoist.log.kafka_clients import RETRY_S, Topic, client_options, close_quietly, connected, describe, offset
from flaghoist.log.location import KafkaLocation

# Where the cluster has so many: one may fail while another is down for maintenance.
REPLICAS: Final = 3
# Kafka's own default (message.max.bytes), stated so that a smaller default of the cluster does not refuse a record of
# RECORD_BYTES_MAX with its framing.
MESSAGE_BYTES: Final = 1024 * 1024 + 12
# Longer than any proposal or approval lives.
INBOX_RETENTION_MS: Final = 30 * 24 * 3600 * 1000
# Compaction never touches the segment that is written to. Closed this often, one has 60 heartbeats of 5 s, and 20,000
# acks of 2,000 sidecars that write every 30 s: what a reader that begins at the start reads beside the newest records.
SEGMENT_MS: Final = 5 * 60 * 1000
# Room for several of the largest records, and for all that SEGMENT_MS lets through in a fleet of that size (6 MB).
SEGMENT_BYTES: Final = 16 * 1024 * 1024

# setting -> (value, severity of another value)
_Settings = Mapping[str, tuple[str, Severity]]

_ALL: Final[_Settings] = {
    "max.message.bytes": (str(MESSAGE_BYTES), Severity.ERROR),
    # An election without the newest records would take back what was acknowledged.
    "unclean.leader.election.enable": ("false", Severity.ERROR),
    # Brokers unpack what anyone else writes compressed: no reader can be made to unpack a bomb, or lacks a codec.
    "compression.type": ("uncompressed", Severity.ERROR),
    # Retention goes by the newest timestamp of a segment: by the brokers' clocks, not by what a writer claims.
    "message.timestamp.type": ("LogAppendTime", Severity.WARNING),
}
_EVERY_RECORD: Final[_Settings] = {
    **_ALL,
    # Compaction would take links out of the chain.
    "cleanup.policy": ("delete", Severity.ERROR),
    "retention.bytes": ("-1", Severity.ERROR),
}
_NEWEST_RECORDS: Final[_Settings] = {
    **_ALL,
    "segment.ms": (str(SEGMENT_MS), Severity.WARNING),
    "segment.bytes": (str(SEGMENT_BYTES), Severity.WARNING),
    # Whatever was closed is compacted at the cleaner's next round: there is little of it, so that costs little.
    "min.cleanable.dirty.ratio": ("0.01", Severity.WARNING),
    "max.compaction.lag.ms": (str(SEGMENT_MS), Severity.WARNING),
}
SETTINGS: Final[Mapping[Stream, _Settings]] = {
    Stream.LEDGER: {**_EVERY_RECORD, "retention.ms": ("-1", Severity.ERROR)},
    Stream.INBOX: {**_EVERY_RECORD, "retention.ms": (str(INBOX_RETENTION_MS), Severity.WARNING)},
    # Its keys are few and some are seldom written: deleting by age could take the newest record of one.
    Stream.META: {**_NEWEST_RECORDS, "cleanup.policy": ("compact", Severity.ERROR)},
    # Its keys are instances, without end: compaction alone would keep the last word of each that ever lived.
    Stream.ACKS: {
        **_NEWEST_RECORDS,
        "cleanup.policy": ("compact,delete", Severity.WARNING),
        "retention.ms": (str(ACKS_RETENTION_S * 1000), Severity.WARNING),
        "retention.bytes": ("-1", Severity.WARNING),
    },
}
_AT_LEAST: Final = frozenset({"max.message.bytes"})
_AT_MOST: Final = frozenset({"segment.ms", "segment.bytes", "min.cleanable.dirty.ratio", "max.compaction.lag.ms"})

_NOT_ALLOWED: Final = (ClusterAuthorizationFailedError, TopicAuthorizationFailedError)


@dataclass(frozen=True, slots=True)
class _Brokers:
    """Two clients of one place: one that only asks, and the library's for administration."""

    client: AIOKafkaClient
    admin: AIOKafkaAdminClient
    count: int


async def create(location: KafkaLocation, *, answer_s: float = ANSWER_S) -> None:
    """Make the ledger's topics. One that exists already, with the settings it needs, is left as it is.

    Raises:
        Misconfigured: a topic exists with other settings (each is named), or the brokers do not allow it.
        Unavailable: the brokers did not answer in time.
    """
    async with _administered(location, answer_s) as brokers:
        # All of them are looked at before any is made.
        missing = []
        wrong: list[Finding] = []
        for stream in Stream:
            topic = await describe(brokers.client, location.topic_of(stream))
            if topic is None:
                missing.append(stream)
            else:
                wrong += await _compare(brokers, location.topic_of(stream), stream, topic)
        if any(finding.severity is Severity.ERROR for finding in wrong):
            raise Misconfigured(
                "a topic exists with other settings than a ledger needs: " + "; ".join(map(str, wrong)),
                hint="change these settings, or name another topic",
            )
        if missing:
            await _make(brokers, {location.topic_of(stream): stream for stream in missing})


async def inspect(location: KafkaLocation, *, answer_s: float = ANSWER_S) -> list[Finding]:
    """Return how the ledger's topics differ from what `create` makes; see location.inspect_log."""
    findings = []
    async with _administered(location, answer_s) as brokers:
        for stream in Stream:
            name = location.topic_of(stream)
            topic = await describe(brokers.client, name)
            if topic is None and stream is Stream.LEDGER:
                raise LogMissing(f"no topic {name} at {','.join(location.bootstrap)}")
            if topic is None:
                findings.append(Finding(name, "topic", "present", "missing", Severity.ERROR, ADD_STREAMS_HINT))
            else:
                findings += await _compare(brokers, name, stream, topic)
    return findings


@asynccontextmanager
async def _administered(location: KafkaLocation, answer_s: float) -> AsyncIterator[_Brokers]:
    """Connect, and turn what the brokers or the clock say into errors of this product."""
    async with connected(location, answer_s=answer_s) as client:
        admin = AIOKafkaAdminClient(**client_options(location, answer_s=answer_s))
        try:
            async with asyncio.timeout(answer_s):
                await admin.start()
                count = len((await admin.describe_cluster())["brokers"])
                yield _Brokers(client, admin, count)
        except _NOT_ALLOWED as error:
            raise Misconfigured(
                f"{location}: the brokers do not allow it: {type(error).__name__}",
                hint="ask for the rights to create, describe and configure the ledger's topics (ACLs)",
            ) from error
        except (KafkaError, OSError) as error:
            raise Unavailable(f"{location}: {type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise Unavailable(f"{location}: no answer within {answer_s:g} s") from error
        finally:
            await close_quietly(admin.close)


async def _make(brokers: _Brokers, streams: Mapping[str, Stream]) -> None:
    replicas = min(REPLICAS, brokers.count)
    # An acknowledged record is on all but one of the replicas; a single one is all there is.
    in_sync = {"min.insync.replicas": str(max(1, replicas - 1))}
    response = await brokers.admin.create_topics(
        [
            NewTopic(
                name,
                num_partitions=1,
                replication_factor=replicas,
                topic_configs={setting: value for setting, (value, _) in SETTINGS[stream].items()} | in_sync,
            )
            for name, stream in streams.items()
        ]
    )
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if error is TopicAlreadyExistsError:  # somebody else makes the same ledger at this moment
            continue
        if issubclass(error, _NOT_ALLOWED):
            raise error(name)
        if error is not NoError:
            raise Misconfigured(f"topic {name}: cannot be created: {error.__name__}: {' '.join(map(str, message))}")
    for name in streams:
        await _usable(brokers.client, name)


async def _usable(client: AIOKafkaClient, name: str) -> None:
    """Return once the topic's leader answers: what was created can then be opened. The caller bounds the time."""
    while True:
        topic = await describe(client, name)
        if topic is not None:
            try:
                await offset(client, name, topic.leader, -1)
            except KafkaError as error:
                if not error.retriable:
                    raise
            else:
                return
        await asyncio.sleep(RETRY_S)


async def _compare(brokers: _Brokers, name: str, stream: Stream, topic: Topic) -> list[Finding]:
    findings = []
    if topic.partitions != 1:
        findings.append(Finding(name, "partitions", "1", str(topic.partitions), Severity.ERROR))
    wanted = min(REPLICAS, brokers.count)
    if topic.replicas < wanted:
        findings.append(Finding(name, "replication factor", str(wanted), str(topic.replicas), Severity.WARNING))
    found = await _settings(brokers.admin, name)
    for setting, (expected, gravity) in SETTINGS[stream].items():
        got, severity = found.get(setting, "nothing"), gravity
        if setting == "compression.type" and got == "producer":  # what we write stays readable; others' may not be
            severity = Severity.WARNING
        if not _fits(setting, expected, got):
            findings.append(Finding(name, setting, expected, got, severity))
    in_sync = found.get("min.insync.replicas", "1")
    if topic.replicas > 1 and in_sync.isdecimal() and int(in_sync) < topic.replicas - 1:
        findings.append(Finding(name, "min.insync.replicas", str(topic.replicas - 1), in_sync, Severity.WARNING))
    return findings


def _fits(setting: str, expected: str, got: str) -> bool:
    """Say whether a topic does as well with `got` as with what `create` sets."""
    if setting == "cleanup.policy":  # a list, in any order
        return set(got.replace(" ", "").split(",")) == set(expected.split(","))
    if setting in _AT_LEAST or setting in _AT_MOST:
        try:
            value, limit = float(got), float(expected)
        except ValueError:
            return False
        return value >= limit if setting in _AT_LEAST else 0 <= value <= limit
    return got == expected


async def _settings(admin: AIOKafkaAdminClient, name: str) -> dict[str, str]:
    """Return the topic's settings as they are in force, the cluster's defaults among them."""
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    ((code, message, _, _, entries),) = response.resources
    error = for_code(code)
    if error is not NoError:
        raise error(message)
    return {entry[0]: str(entry[1]) for entry in entries}
