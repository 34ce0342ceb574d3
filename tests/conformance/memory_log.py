"""A log in memory: the fake for tests of what stands on a log. It passes the conformance suite, as the real ones do."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from flaghoist.errors import FlaghoistError, LogConflict, LogTruncated, Unavailable
from flaghoist.log.base import PROBE_S, Batch, Log, LogRecord, Stream, check_key, check_value

# Small, so that a short test reads more than one batch.
BATCH_RECORDS_MAX: Final = 50


class _Records:
    """The records of one stream, in order of their positions, and those who wait for more."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.kept: list[LogRecord] = []
        self.end = 0
        self.wakers: set[asyncio.Event] = set()
        self._newest: dict[bytes, int] = {}

    def index(self, position: int) -> int:
        """Return where in `kept` the first record from `position` on is."""
        return bisect_left(self.kept, position, key=lambda record: record.position)

    def add(self, value: bytes, key: bytes | None) -> int:
        """Add a record, drop the one that it replaces, and return its position."""
        check_key(self.stream, key)
        position = self.end
        if key is not None:
            if (replaced := self._newest.get(key)) is not None:
                del self.kept[self.index(replaced)]
            self._newest[key] = position
        self.kept.append(LogRecord(position, bytes(value)))
        self.end += 1
        self.wake()
        return position

    def truncate(self, end: int) -> None:
        """Take away the records from position `end` on."""
        del self.kept[self.index(end) :]
        self.end = min(self.end, end)
        self._newest = {key: position for key, position in self._newest.items() if position < end}
        self.wake()

    def wake(self) -> None:
        for waker in self.wakers:
            waker.set()


class MemoryLogs:
    """The streams of one environment. The object itself is an OpenLog: `logs(Stream.LEDGER)` opens a stream."""

    def __init__(self, *, probe_s: float = PROBE_S) -> None:
        self._probe_s = probe_s
        self._streams = {stream: _Records(stream) for stream in Stream}
        self._open: set[MemoryLog] = set()
        self._unreachable: FlaghoistError | None = None

    @asynccontextmanager
    async def __call__(self, stream: Stream) -> AsyncIterator[Log]:
        if self._unreachable is not None:
            raise self._unreachable
        log = MemoryLog(self._streams[stream], self._probe_s)
        self._open.add(log)
        try:
            yield log
        finally:
            self._open.discard(log)
            log.fail(Unavailable("the log was closed"))

    def values(self, stream: Stream) -> list[bytes]:
        """Return what the stream holds."""
        return [record.value for record in self._streams[stream].kept]

    def put(self, stream: Stream, value: bytes, *, key: bytes | None = None) -> None:
        """Add a record as anyone with write access to a topic can: without the checks of `append`.

        A keyed stream wants a key all the same: brokers take none without one into a compacted topic.
        """
        self._streams[stream].add(value, key)

    def truncate(self, stream: Stream, end: int) -> None:
        """Take away the records from position `end` on."""
        self._streams[stream].truncate(end)

    def lose(self, error: FlaghoistError | None = None) -> None:
        """Go away: what is open raises `error`, and nothing can be opened until `return_`."""
        self._unreachable = error or Unavailable("the log is away")
        for log in list(self._open):
            log.fail(self._unreachable)

    def return_(self) -> None:
        """Be there again, with all that was stored."""
        self._unreachable = None


class MemoryLog:
    """One open stream; see base.Log."""

    conditional: Final = True

    def __init__(self, records: _Records, probe_s: float) -> None:
        self._records = records
        self._probe_s = probe_s
        self._failure: FlaghoistError | None = None

    def fail(self, error: FlaghoistError) -> None:
        """Make every call from now on, and every follower, raise `error`."""
        self._failure = self._failure or error
        self._records.wake()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        self._check()
        check_value(value)
        check_key(self._records.stream, key)
        end = self._records.end
        if expected_end is not None and expected_end != end:
            raise LogConflict(expected_end=expected_end, end=end)
        position = self._records.add(value, key)
        await asyncio.sleep(0)  # others run meanwhile, as they do while a real log writes
        return position

    async def end(self) -> int:
        self._check()
        return self._records.end

    async def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        stored, waker = self._records, asyncio.Event()
        self._records.wakers.add(waker)
        try:
            position, owed = start, True
            while True:
                waker.clear()
                self._check()
                if position > stored.end:
                    raise LogTruncated(f"expected records from position {position} on, the log ends at {stored.end}")
                first = stored.index(position)
                records = stored.kept[first : first + BATCH_RECORDS_MAX]
                position = records[-1].position + 1 if records else stored.end
                at_end = position == stored.end
                if records or owed:
                    yield Batch(records, position, at_end)
                owed = False
                if at_end and not waker.is_set():
                    try:
                        async with asyncio.timeout(self._probe_s):
                            await waker.wait()
                    except TimeoutError:
                        owed = True
        finally:
            self._records.wakers.discard(waker)
