"""What every log does; tests/conformance/test_log.py holds each implementation to it."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from flaghoist.errors import Malformed, TooLarge

# Kafka brokers accept 1 MiB by default (message.max.bytes); an envelope may have 512 KiB.
RECORD_BYTES_MAX: Final = 1024 * 1024 - 1024


class Stream(StrEnum):
    """The logs of one environment: the ledger itself and those beside it."""

    LEDGER = "ledger"
    INBOX = "inbox"


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as the log holds it.

    `position` is the log's own (SQLite rowid, Kafka offset): it grows from record to record, not always by one, and is
    a hint where to go on reading, never an order that anything trusts.
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


class Log(Protocol):
    """One append-only stream of records. Any method may raise Unavailable; the log is then closed and opened anew."""

    @property
    def conditional(self) -> bool:
        """Whether `append` honours `expected_end` (SQLite does; Kafka has no conditional append)."""
        ...

    async def append(self, value: bytes, *, expected_end: int | None = None) -> int:
        """Store one record durably and return its position.

        Args:
            value: 1 .. RECORD_BYTES_MAX bytes.
            expected_end: write only if `end()` is still this; ignored where `conditional` is false.

        Raises:
            TooLarge: nothing was written.
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

        Raises:
            LogTruncated: the log ends before `start`, or no longer holds what was there.
            Unavailable: the log went away; noticed within PROBE_S + ANSWER_S seconds.
        """
        ...


class Severity(StrEnum):
    """ERROR: records may be lost, or cannot be read or written. WARNING: it works, and less well than it should."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting of a log that is not as it should be; `where` is the topic or file it belongs to."""

    where: str
    setting: str
    expected: str
    got: str
    severity: Severity

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
