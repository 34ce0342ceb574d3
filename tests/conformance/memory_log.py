"""A log in memory: the fake for tests of what stands on a log. It passes the conformance suite, as the real ones do."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from flaghoist.errors import FlaghoistError, LogConflict, LogTruncated, Unavailable
from flaghoist.log.base import PROBE_S, Batch, Log, LogRecord, Stream, check_value

# Small, so that a short test reads more than one batch.
BATCH_RECORDS_MAX: Final = 50


class _Records:
    """The records of one stream, and those who wait for more."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.wakers: set[asyncio.Event] = set()

    def wake(self) -> None:
        for waker in self.wakers:
            waker.set()


class MemoryLogs:
    """The streams of one environment. The object itself is an OpenLog: `logs(Stream.LEDGER)` opens a stream."""

    def __init__(self, *, probe_s: float = PROBE_S) -> None:
        self._probe_s = probe_s
        self._streams = {stream: _Records() for stream in Stream}
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
        return list(self._streams[stream].values)

    def put(self, stream: Stream, value: bytes) -> None:
        """Add a record as anyone with write access to a topic can: without the checks of `append`."""
        self._streams[stream].values.append(value)
        self._streams[stream].wake()

    def truncate(self, stream: Stream, end: int) -> None:
        """Take away the records from position `end` on."""
        del self._streams[stream].values[end:]
        self._streams[stream].wake()

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

    async def append(self, value: bytes, *, expected_end: int | None = None) -> int:
        self._check()
        check_value(value)
        end = len(self._records.values)
        if expected_end is not None and expected_end != end:
            raise LogConflict(expected_end=expected_end, end=end)
        self._records.values.append(bytes(value))
        self._records.wake()
        await asyncio.sleep(0)  # others run meanwhile, as they do while a real log writes
        return end

    async def end(self) -> int:
        self._check()
        return len(self._records.values)

    async def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        values, waker = self._records.values, asyncio.Event()
        self._records.wakers.add(waker)
        try:
            position, owed = start, True
            while True:
                waker.clear()
                self._check()
                if position > len(values):
                    raise LogTruncated(f"expected records from position {position} on, the log ends at {len(values)}")
                found = values[position : position + BATCH_RECORDS_MAX]
                records = [LogRecord(place, value) for place, value in enumerate(found, start=position)]
                position += len(records)
                at_end = position == len(values)
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
