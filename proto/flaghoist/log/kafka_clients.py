"""Kafka clients as the log needs them: how brokers are reached, and what a topic is, asked without creating it."""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    SaslAuthenticationFailed,
    StaleMetadata,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from flaghoist.errors import FlaghoistError, Misconfigured, Unavailable
from flaghoist.log.location import KafkaLocation, Security

# Closing hands nothing over that matters; a broker that is gone must not hold up a shutdown.
CLOSE_S: Final = 2.0
# Between two attempts of one request, while a leader moves or a broker starts.
RETRY_S: Final = 0.1
# A topic that was made a moment ago may not be known to every broker yet.
UNKNOWN_TOPIC_S: Final = 1.0

LATEST: Final = -1
EARLIEST: Final = -2

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
CREDENTIALS_FORM: Final = "lines of `mechanism = PLAIN|SCRAM-SHA-256|SCRAM-SHA-512`, `username = ...`, `password = ...`"

# While brokers are away the library repeats itself ten times a second; what it says reaches callers as errors. Whoever
# wants to read along sets the logger's level before this module is loaded.
if logging.getLogger("aiokafka").level == logging.NOTSET:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def client_options(location: KafkaLocation, *, answer_s: float) -> dict[str, Any]:
    """Return what every aiokafka client of this place is made with.

    Raises:
        Misconfigured: a certificate, key or credentials file cannot be used; it says which, and never what is in it.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": location.bootstrap,
        "client_id": "flaghoist",
        "request_timeout_ms": round(answer_s * 1000),
        "retry_backoff_ms": round(RETRY_S * 1000),
        "security_protocol": location.security.value.upper(),
    }
    if location.security is not Security.PLAINTEXT:
        options["ssl_context"] = _tls(location)
    if location.credentials is not None:
        credentials = _credentials(location.credentials)
        options["sasl_mechanism"] = credentials["mechanism"]
        options["sasl_plain_username"] = credentials["username"]
        options["sasl_plain_password"] = credentials["password"]
    return options


def _tls(location: KafkaLocation) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=location.cafile)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"cafile {location.cafile}: expected PEM certificates: {error}") from error
    if location.certfile is not None:
        try:
            # An empty password: a key that needs one is refused, not asked for on the terminal.
            context.load_cert_chain(location.certfile, location.keyfile, password="")
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(str(file) for file in (location.certfile, location.keyfile) if file is not None)
            raise Misconfigured(f"{files}: expected a PEM certificate and its unencrypted key: {error}") from error
    return context


def _credentials(path: Path) -> Mapping[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"credentials {path}: cannot read: {error}", hint=f"write {CREDENTIALS_FORM}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        # Only the line's number is told: what stands there may be the password.
        if not equals or name not in ("mechanism", "username", "password") or name in found or not value:
            raise Misconfigured(f"credentials {path}, line {number}: expected {CREDENTIALS_FORM}, each once")
        found[name] = value
    if missing := [name for name in ("mechanism", "username", "password") if name not in found]:
        raise Misconfigured(f"credentials {path}: expected {CREDENTIALS_FORM}, got no {', '.join(missing)}")
    if found["mechanism"] not in MECHANISMS:
        raise Misconfigured(f"credentials {path}: mechanism: expected one of {', '.join(MECHANISMS)}")
    return found


async def close_quietly(*closings: Callable[[], Awaitable[None]]) -> None:
    """Close clients, each for at most CLOSE_S seconds; what goes wrong while closing changes nothing any more.

    In tasks of their own: aiokafka's fetcher may raise CancelledError out of its own stop(), which must not be taken
    for a cancellation of ours.
    """
    tasks = [asyncio.ensure_future(closing()) for closing in closings]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def connected(location: KafkaLocation, *, answer_s: float) -> AsyncIterator[AIOKafkaClient]:
    """Connect to the brokers for as long as the context lasts.

    Raises:
        Misconfigured: the brokers refuse who we say we are.
        Unavailable: none of them answered within `answer_s` seconds.
    """
    options = client_options(location, answer_s=answer_s)
    client = AIOKafkaClient(**options)
    try:
        try:
            async with asyncio.timeout(answer_s):
                await client.bootstrap()
        except (KafkaError, OSError, TimeoutError) as error:
            raise await _why_not(location, options) from error
        yield client
    finally:
        await close_quietly(client.close)


async def _why_not(location: KafkaLocation, options: dict[str, Any]) -> FlaghoistError:
    """Return the error that says what keeps us from the brokers: the library tells that only to its log."""
    rest = {name: value for name, value in options.items() if name not in ("bootstrap_servers", "retry_backoff_ms")}
    reasons: list[str] = []
    for host, port in location.brokers:
        try:
            async with asyncio.timeout(CLOSE_S):
                connection = await create_conn(host, port, **rest)
            connection.close()
            reasons.append(f"{host}:{port}: connects, and does not answer")
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError) as error:
            return Misconfigured(f"{host}:{port} refuses the credentials in {location.credentials}: {error}")
        except ssl.SSLCertVerificationError as error:
            return Misconfigured(f"{host}:{port}: its certificate is not trusted: {error.verify_message}")
        except TimeoutError:
            reasons.append(f"{host}:{port}: no answer within {CLOSE_S:g} s")
        except OSError as error:
            reasons.append(f"{host}:{port}: {os.strerror(error.errno) if error.errno else error}")
        except KafkaError as error:
            reasons.append(f"{host}:{port}: {error} (is it {location.security.value}?)")
    return Unavailable(f"no Kafka broker can be reached: {'; '.join(reasons)}")


# --- what a topic is ---


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka is untyped
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


# Metadata v10 (Kafka 2.8, KIP-516) is the first that tells a topic's id; the library stops at v5.
# Source: clients/src/main/resources/common/message/MetadataRequest.json and MetadataResponse.json of Apache Kafka.
class _TopicResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicRequestV10(RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TopicResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicRequest(Request[_TopicRequestV10]):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY: ClassVar[int] = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_TopicRequestV10]) -> _TopicRequestV10:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, False, {})


@dataclass(frozen=True, slots=True)
class Topic:
    """What the brokers say of a topic. `topic_id` is None where they are too old to tell (before Kafka 2.8)."""

    topic_id: bytes | None
    partitions: int
    replicas: int
    leader: int


async def describe(client: AIOKafkaClient, topic: str) -> Topic | None:
    """Return what `topic` is, or None when there is none. Asking never creates it, whatever the brokers allow.

    Raises:
        KafkaError: no broker answered, or the answer was an error; `retriable` says which.
    """
    node = client.get_random_node()
    if node is None:
        raise StaleMetadata("no broker is known")
    try:
        response = (await client.send(node, _TopicRequest(topic))).to_object()
    except NotImplementedError:
        old = await client.send(node, MetadataRequest([topic], allow_auto_topic_creation=False))
        response = old.to_object()
    (found,) = response["topics"]
    error = for_code(found["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if error is not NoError:
        raise error(topic)
    partitions = found["partitions"]
    return Topic(
        topic_id=found.get("topic_id"),
        partitions=len(partitions),
        replicas=min((len(partition["replicas"]) for partition in partitions), default=0),
        leader=next((partition["leader"] for partition in partitions if partition["partition"] == 0), -1),
    )


async def offset(client: AIOKafkaClient, topic: str, leader: int, which: int) -> int:
    """Return the LATEST or EARLIEST offset of the topic's partition 0, as its leader has it.

    Raises:
        KafkaError: the leader did not answer, or with an error; `retriable` says which.
    """
    if leader < 0:
        raise LeaderNotAvailableError(topic)
    response = await client.send(leader, OffsetRequest(-1, 0, [(topic, [(0, which)])]))
    ((_, ((_, code, *answer),)),) = response.topics
    error = for_code(code)
    if error is not NoError:
        raise error(topic)
    return int(answer[-1])


def refusal(error: KafkaError, topic: str) -> FlaghoistError:
    """Return the error of this product for one that the brokers answered with."""
    if isinstance(error, TopicAuthorizationFailedError):
        return Misconfigured(f"topic {topic}: the brokers do not allow it to us", hint="ask for read access (ACL)")
    return Unavailable(f"topic {topic}: {type(error).__name__}: {error}")
