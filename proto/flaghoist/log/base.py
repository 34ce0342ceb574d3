"""What every log does; tests/conformance/test_log.py holds each implementation to it."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from flaghoist.errors import Malformed, TooLarge

# Kafka brokers accept 1 MiB by default (message.max.bytes); an envelope may have 512 KiB.
RECORD_BYTES_MAX: Final = 1024 * 1024 - 1024

# A host's name has 253 bytes at most (RFC 1035, 2.3.4), and a key is a name of that kind. It fits beside the largest
# record into what brokers accept.
KEY_BYTES_MAX: Final = 256

# Instances come and go, each with a key of its own, and write every 30 s: one that was silent for a day is gone.
ACKS_RETENTION_S: Final = 24 * 3600

ADD_STREAMS_HINT: Final = "run `flaghoist init` again, with the same options: it adds what a ledger made before lacks"


class Stream(StrEnum):
    """The logs of one environment: the ledger itself and those beside it.

    LEDGER and INBOX keep every record (the inbox for as long as any proposal lives). META and ACKS are `keyed`: they
    keep the newest record of each key, and may drop older ones at any time. ACKS may also drop a key under which
    nothing was written for ACKS_RETENTION_S seconds.
    """

    LEDGER = "ledger"
    INBOX = "inbox"
    META = "meta"
    ACKS = "acks"

    @property
    def keyed(self) -> bool:
        """Whether every record has a key, and only the newest record of each key is sure to stay."""
        return self in (Stream.META, Stream.ACKS)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as the log holds it.

    `position` is the log's own (SQLite rowid, Kafka offset): it grows from record to record, not always by one, and is
    a hint where to go on reading, never an order that anything trusts. The key of a record in a keyed stream is not
    here: whoever may write can choose any, so nothing may depend on it.
    """

    position: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in log order, possibly none.

    `next_position` is where to read on. `at_end` says that there was nothing after them when the log was asked: a sign
    of life that arrives at least every `PROBE_S` seconds, also from a log to which nobody writes.
    """

    records: Sequence[LogRecord]
    next_position: int
    at_end: bool


# An idle log gives a sign of life this often; a reader that misses it for PROBE_S + ANSWER_S is told Unavailable.
PROBE_S: Final = 5.0
ANSWER_S: Final = 10.0


def check_value(value: bytes) -> None:
    """Refuse what no log stores, before anything is sent.

    Raises:
        TooLarge: more than RECORD_BYTES_MAX bytes.
        Malformed: none at all.
    """
    if len(value) > RECORD_BYTES_MAX:
        raise TooLarge("log record", limit=RECORD_BYTES_MAX, got=len(value))
    if not value:
        raise Malformed("log record: want 1 byte at least, got none")


def check_key(stream: Stream, key: bytes | None) -> None:
    """Refuse a record whose key does not fit its stream, before anything is sent.

    Raises:
        Malformed: none, an empty or a too long one where the stream is keyed; one where it is not.
    """
    if not stream.keyed:
        if key is not None:
            raise Malformed(f"log record: want no key in the stream {stream.value}, which keeps every record, got one")
    elif key is None or not 1 <= len(key) <= KEY_BYTES_MAX:
        got = "none" if key is None else f"{len(key)} bytes"
        raise Malformed(f"log record: want a key of 1 to {KEY_BYTES_MAX} bytes in the stream {stream.value}, got {got}")


class Log(Protocol):
    """One append-only stream of records. Any method may raise Unavailable; the log is then closed and opened anew."""

    @property
    def conditional(self) -> bool:
        """Whether `append` honours `expected_end` (SQLite does; Kafka has no conditional append)."""
        ...

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        """Store one record durably and return its position.

        An acknowledgement need not survive a power cut: it is written anew half a minute later.

        Args:
            value: 1 .. RECORD_BYTES_MAX bytes.
            expected_end: write only if `end()` is still this; ignored where `conditional` is false. For the ledger,
                whose one sequencer must not write behind a record that it has not read.
            key: what the record is the newest of, 1 .. KEY_BYTES_MAX bytes; where the stream is keyed, and only there.

        Raises:
            TooLarge: nothing was written.
            Malformed: an empty value, or a key that does not fit the stream; nothing was written.
            LogConflict: another record came first; nothing was written.
            Unavailable: nothing was written.
            OutcomeUnknown: sent and not confirmed; read the log to learn whether it is there.
        """
        ...

    async def end(self) -> int:
        """Return the position that the next record will have; 0 for an empty log.

        Raises:
            Unavailable: the log did not answer within ANSWER_S seconds.
        """
        ...

    def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        """Yield the records from position `start` on, and then new ones as they come, for ever.

        The first batch comes as soon as the log answers, also when there is nothing to read. 0 means from the log's
        first record, wherever that is: a log whose oldest records are gone can still be read again from its start.

        In a keyed stream the first batches have what is kept: the newest record of each key, and possibly older ones.
        Records that were dropped are passed over, and are no loss: a reader that was away reads on from its position,
        and a record is never seen when a newer one of its key replaced it before it was read.

        Raises:
            LogTruncated: the log ends before `start`, or no longer holds what was there (a keyed stream: only the
                former, and a log that was made anew).
            Unavailable: the log went away; noticed within PROBE_S + ANSWER_S seconds.
        """
        ...


class Severity(StrEnum):
    """ERROR: records may be lost, or cannot be read or written. WARNING: it works, and less well than it should."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting of a log that is not as it should be; `where` is the topic or file it belongs to.

    `hint` says what to do about it; empty where correcting that setting is all.
    """

    where: str
    setting: str
    expected: str
    got: str
    severity: Severity
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.setting}: expected {self.expected}, got {self.got}"


class OpenLog(Protocol):
    """Opens one stream of one ledger; leaving the context closes it, and every reader of it."""

    def __call__(self, stream: Stream) -> AbstractAsyncContextManager[Log]: ...


async def read_to_end(log: Log, start: int = 0) -> AsyncIterator[LogRecord]:
    """Yield the records from `start` to where the log ended when it was first reached, then stop."""
    async with aclosing(log.follow(start)) as batches:
        async for batch in batches:
            for record in batch.records:
                yield record
            if batch.at_end:
                return
