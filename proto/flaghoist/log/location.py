"""Where a ledger is: the one URL that names it, parsed, and the log implementation that it stands for."""

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from flaghoist.errors import Misconfigured
from flaghoist.log.base import ANSWER_S, PROBE_S, Finding, Log, OpenLog, Stream

SQLITE_FORM: Final = "sqlite:///relative/ledger.db or sqlite:////absolute/ledger.db"
KAFKA_FORM: Final = "kafka://host:9092[,host:9092]/topic[?security=plaintext|ssl|sasl_ssl]"

_KAFKA_PORT: Final = 9092  # the port of Kafka's own sample configuration (config/server.properties)
# Kafka allows 249 characters; ".checkpoints" is the longest suffix of a ledger's other topics (design: docs/).
_TOPIC_LENGTH_MAX: Final = 249 - len(".checkpoints")
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]+\Z")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.?)+\Z")
_BROKER: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?\Z")


class Security(StrEnum):
    """How brokers are reached. A password over plaintext is not offered."""

    PLAINTEXT = "plaintext"
    SSL = "ssl"
    SASL_SSL = "sasl_ssl"


@dataclass(frozen=True, slots=True)
class SqliteLocation:
    """One SQLite file that holds every stream of one environment; a relative path starts at the working directory."""

    path: Path

    def __str__(self) -> str:
        return f"sqlite:///{quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class KafkaLocation:
    """Brokers to begin at, the ledger's topic, and the files that prove who we are and who they are.

    `credentials` is a file of `key = value` lines (mechanism, username, password): no secret is ever part of the URL.
    """

    brokers: tuple[tuple[str, int], ...]
    topic: str
    security: Security = Security.PLAINTEXT
    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    credentials: Path | None = None

    @property
    def bootstrap(self) -> list[str]:
        """The brokers as Kafka clients take them."""
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.brokers]

    def topic_of(self, stream: Stream) -> str:
        """Return the topic that holds `stream`: the ledger's own name, or that and a suffix."""
        return self.topic if stream is Stream.LEDGER else f"{self.topic}.{stream.value}"

    def __str__(self) -> str:
        query = {"security": self.security.value} if self.security is not Security.PLAINTEXT else {}
        for name in ("cafile", "certfile", "keyfile", "credentials"):
            if (path := getattr(self, name)) is not None:
                query[name] = str(path)
        return f"kafka://{','.join(self.bootstrap)}/{self.topic}" + (f"?{urlencode(query)}" if query else "")


Location = SqliteLocation | KafkaLocation


def parse(url: str) -> Location:
    """Return the place that `url` names. Nothing is opened, and no file is read.

    Raises:
        Misconfigured: not a URL of a known form. A URL that may carry a password is not repeated in the text.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("sqlite", "kafka"):
        shown = f"{scheme}://" if separator else repr(url[:80])
        raise Misconfigured(f"ledger URL: expected {SQLITE_FORM}, or {KAFKA_FORM}, got {shown}")
    if "#" in rest:
        raise Misconfigured("ledger URL: expected no fragment, got one (write # in a file name as %23)")
    place, _, query = rest.partition("?")
    if scheme == "sqlite":
        return _parse_sqlite(place, _parameters(query, allowed=frozenset()))
    return _parse_kafka(
        place, _parameters(query, allowed=frozenset({"security", "cafile", "certfile", "keyfile", "credentials"}))
    )


def _parameters(query: str, *, allowed: frozenset[str]) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise Misconfigured("ledger URL: expected name=value pairs joined by & after the ?") from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            expected = ", ".join(sorted(allowed)) or "none"
            raise Misconfigured(f"ledger URL: unknown parameter {name[:40]!r}; known here: {expected}")
        if name in parameters:
            raise Misconfigured(f"ledger URL: {name} is given twice")
        if not value:
            raise Misconfigured(f"ledger URL: {name} has no value")
        parameters[name] = value
    return parameters


def _parse_sqlite(place: str, _: Mapping[str, str]) -> SqliteLocation:
    # As SQLAlchemy writes it: three slashes, then the path; an absolute path therefore has four.
    if not place.startswith("/"):
        raise Misconfigured(f"ledger URL: expected {SQLITE_FORM}, got a host or too few slashes: sqlite://{place[:80]}")
    path = unquote(place[1:])
    if not path or path.endswith("/") or "\0" in path:
        raise Misconfigured(f"ledger URL: expected the path of a file, got {path[:80]!r} (form: {SQLITE_FORM})")
    return SqliteLocation(Path(path))


def _parse_kafka(place: str, parameters: Mapping[str, str]) -> KafkaLocation:
    if "@" in place:
        raise Misconfigured(
            "ledger URL: expected no user name or password in it",
            hint="write them into a file and name it: security=sasl_ssl&credentials=FILE",
        )
    authority, slash, topic = place.partition("/")
    if not slash or not topic:
        raise Misconfigured(f"ledger URL: expected a topic after the brokers ({KAFKA_FORM}), got none")
    if _TOPIC.match(topic) is None or topic in (".", "..") or len(topic) > _TOPIC_LENGTH_MAX:
        raise Misconfigured(
            f"ledger URL: topic: expected 1 to {_TOPIC_LENGTH_MAX} of A-Z a-z 0-9 . _ -, got {topic[:80]!r}"
        )
    security = _security(parameters.get("security", Security.PLAINTEXT.value))
    files = {name: Path(value) for name, value in parameters.items() if name != "security"}
    _check_files(security, files)
    return KafkaLocation(tuple(_broker(text) for text in authority.split(",")), topic, security, **files)


def _broker(text: str) -> tuple[str, int]:
    match = _BROKER.match(text)
    host = match and (match["v6"] or match["host"])
    port = int(match["port"] or _KAFKA_PORT) if match else 0
    if not match or not host or not 0 < port < 65536 or (match["host"] and _HOST.match(host) is None):
        raise Misconfigured(f"ledger URL: broker: expected host:port, got {text[:80]!r} (form: {KAFKA_FORM})")
    return host, port


def _security(text: str) -> Security:
    try:
        return Security(text)
    except ValueError:
        known = ", ".join(security.value for security in Security)
        raise Misconfigured(f"ledger URL: security: expected one of {known}, got {text[:40]!r}") from None


def _check_files(security: Security, files: Mapping[str, Path]) -> None:
    if security is Security.PLAINTEXT and files:
        named = ", ".join(sorted(files))
        raise Misconfigured(f"ledger URL: {named} given, and security is plaintext: expected ssl or sasl_ssl")
    if security is Security.SASL_SSL and "credentials" not in files:
        raise Misconfigured("ledger URL: security=sasl_ssl: expected credentials=FILE as well, got none")
    if security is Security.SSL and "credentials" in files:
        raise Misconfigured("ledger URL: credentials given, and security is ssl: expected sasl_ssl")
    if "keyfile" in files and "certfile" not in files:
        raise Misconfigured("ledger URL: keyfile given: expected certfile as well, got none")


def open_log(url: str, *, probe_s: float = PROBE_S, answer_s: float = ANSWER_S) -> OpenLog:
    """Return what opens the streams of the ledger at `url`; nothing is opened yet.

    Args:
        url: see SQLITE_FORM and KAFKA_FORM.
        probe_s: seconds between an idle follower's signs of life.
        answer_s: seconds to wait for any answer of the log.

    Raises:
        Misconfigured: not such a URL. Opening a stream raises LogMissing, Misconfigured or Unavailable.
    """
    location = parse(url)

    # Each implementation is loaded when it is used: aiokafka takes longer to import than `flaghoist --version` may run.
    def open_stream(stream: Stream) -> AbstractAsyncContextManager[Log]:
        if isinstance(location, SqliteLocation):
            from flaghoist.log.sqlite import open_stream as open_table

            return open_table(location, stream, probe_s=probe_s, answer_s=answer_s)
        from flaghoist.log.kafka import open_stream as open_topic

        return open_topic(location, stream, probe_s=probe_s, answer_s=answer_s)

    return open_stream


async def create_log(url: str) -> None:
    """Make the streams of a new ledger at `url`. What exists already and is as it should be is left as it is.

    Raises:
        Misconfigured: not such a URL, or what stands there cannot be a ledger; each wrong setting is named.
        Unavailable: the brokers or the file system did not do it.
    """
    location = parse(url)
    if isinstance(location, SqliteLocation):
        from flaghoist.log.sqlite import create as create_file

        await create_file(location)
    else:
        from flaghoist.log.kafka_topics import create as create_topics

        await create_topics(location)


async def inspect_log(url: str) -> list[Finding]:
    """Return what is wrong with the settings of the ledger at `url`; nothing found, nothing wrong.

    Raises:
        LogMissing, Misconfigured, Unavailable: there is nothing to inspect, or no way to it.
    """
    location = parse(url)
    if isinstance(location, SqliteLocation):
        from flaghoist.log.sqlite import inspect as inspect_file

        return await inspect_file(location)
    from flaghoist.log.kafka_topics import inspect as inspect_topics

    return await inspect_topics(location)
