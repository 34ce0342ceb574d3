"""A log in one SQLite file: every stream of an environment in WAL mode, with a true conditional append."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from os import stat_result
from pathlib import Path
from typing import Final, NoReturn, TypeVar
from urllib.parse import quote

from flaghoist.errors import (
    FlaghoistError,
    LogConflict,
    LogMissing,
    LogTruncated,
    Misconfigured,
    OutcomeUnknown,
    Unavailable,
)
from flaghoist.log.base import (
    ACKS_RETENTION_S,
    ADD_STREAMS_HINT,
    ANSWER_S,
    KEY_BYTES_MAX,
    PROBE_S,
    Batch,
    Finding,
    Log,
    LogRecord,
    Severity,
    Stream,
    check_key,
    check_value,
)
from flaghoist.log.file_changes import FileChanges
from flaghoist.log.location import SqliteLocation

# "FLHO": tells our files from any other SQLite file (https://www.sqlite.org/fileformat2.html, "Application ID").
APPLICATION_ID: Final = 0x464C484F
# Of the tables that were there from the first. A stream that came later has a table that earlier readers never look at,
# so it needs no new version: `create` adds it to a file that lacks it.
SCHEMA_VERSION: Final = 1

# After an error of the file, so that a broken disk is not asked all the time.
POLL_AFTER_ERROR_S: Final = 0.1
# How long to wait for another process's write. Below ANSWER_S, so that the answer names the lock.
BUSY_S: Final = 5.0

# What closing waits for a disk that does not answer.
CLOSE_S: Final = 2.0

# A batch ends at either: it bounds the memory of one read and the time of its hand-over to the event loop.
BATCH_RECORDS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024

# How many of the oldest acks an append looks at. Each adds one record at most, so more than one shrinks what a fleet of
# the past left behind.
EXPIRED_ACKS_AT_ONCE: Final = 8

Result = TypeVar("Result")
_Read = tuple[list[LogRecord], int, int, bool]


def _table(stream: Stream) -> str:
    return f"{stream.value}_record"


class _Thread:
    """One thread with one connection: SQLite may block on the disk or on a lock, and the event loop must not."""

    def __init__(self, location: SqliteLocation, name: str, *, durable: bool = True) -> None:
        self._location = location
        self._durable = durable
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"flaghoist-{name}")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do `work` on the connection. Cancelling stops the wait, never the work: a transaction ends whole."""
        if self._closed:
            raise Unavailable(f"{self._location.path}: the log was closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._do, work)

    def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._connection is None:
            self._connection = _connect(self._location.path)
            if not self._durable:
                # What a power cut takes is written anew soon, and the publisher never waits for this one's sync.
                self._connection.execute("PRAGMA synchronous=NORMAL")
        return work(self._connection)

    async def close(self) -> None:
        """Close the connection once the work under way is done; wait for that CLOSE_S seconds at most."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.wrap_future(self._executor.submit(self._disconnect))
        self._executor.shutdown(wait=False)
        await asyncio.wait({closing}, timeout=CLOSE_S)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Watcher:
    """Tells the event loop when any process has committed something to the file."""

    def __init__(self, path: Path, notify: Callable[[], None]) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._notify = notify
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, name="flaghoist-watch", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Let the thread end at its next look, and wait for that: it takes a tenth of a second at most."""
        self._stopped = True
        await asyncio.to_thread(self._thread.join, CLOSE_S)

    def _watch(self) -> None:
        connection: sqlite3.Connection | None = None
        changes: FileChanges | None = None
        seen: object = None
        try:
            while not self._stopped:
                try:
                    if connection is None:
                        connection = _connect(self._path)
                    version = connection.execute("PRAGMA data_version").fetchone()
                except (sqlite3.Error, FlaghoistError):
                    # Followers read on being told, meet the same error, and are the ones to raise it.
                    self._loop.call_soon_threadsafe(self._notify)
                    time.sleep(POLL_AFTER_ERROR_S)
                    continue
                if version != seen:
                    seen = version
                    self._loop.call_soon_threadsafe(self._notify)
                # Only now: the first look made the file beside the database, to which commits are written.
                changes = changes or FileChanges(self._path.with_name(f"{self._path.name}-wal"))
                changes.wait()
        except RuntimeError:
            pass  # the event loop is closed, and with it everybody to tell
        finally:
            if changes is not None:
                changes.close()
            if connection is not None:
                connection.close()


class SqliteLog:
    """One stream of the file. Positions are dense, from 0, with holes in a keyed stream; see base.Log for the rest."""

    conditional: Final = True

    def __init__(
        self, location: SqliteLocation, stream: Stream, *, probe_s: float = PROBE_S, answer_s: float = ANSWER_S
    ) -> None:
        self._location = location
        self._stream = stream
        self._probe_s = probe_s
        self._answer_s = answer_s
        # Apart, so that a follower never waits behind an append that waits for another process's lock.
        self._reader = _Thread(location, "read")
        self._writer = _Thread(location, "write", durable=stream is not Stream.ACKS)
        self._watcher: _Watcher | None = None
        self._wakers: set[asyncio.Event] = set()
        self._closed = False
        self._opened: stat_result | None = None

    async def open(self) -> None:
        """Check that the file is a ledger that can be read.

        Raises:
            LogMissing: no such file, or it was made before there was such a stream.
            Misconfigured: not a ledger of this version, damaged, or not readable.
            Unavailable: locked for too long.
        """
        self._opened = await self._ask(lambda _: self._location.path.stat())
        await self._ask(partial(_check_table, self._location.path, self._stream))

    async def close(self) -> None:
        """Close the file; every follower is told Unavailable. The last to close it leaves one file, without a WAL."""
        self._closed = True
        self._wake()
        if self._watcher is not None:
            await self._watcher.stop()
        await self._reader.close()
        await self._writer.close()

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        check_value(value)
        check_key(self._stream, key)
        try:
            async with asyncio.timeout(self._answer_s):
                position = await self._writer.run(
                    partial(_append, self._location.path, self._stream, bytes(value), expected_end, key)
                )
        except TimeoutError as error:
            raise OutcomeUnknown(f"{self._location.path}: the disk took more than {self._answer_s:g} s") from error
        self._wake()  # our own followers need not wait for the next look
        return position

    async def end(self) -> int:
        return await self._ask(lambda connection: _end(connection, _table(self._stream)))

    async def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        waker = asyncio.Event()
        self._wakers.add(waker)
        if self._watcher is None and not self._closed:
            self._watcher = _Watcher(self._location.path, self._wake)
        try:
            position, owed = start, True  # a batch is owed at once, and again after each silence of probe_s
            while True:
                waker.clear()
                records, first, end, at_end = await self._ask(partial(_read, _table(self._stream), position))
                self._check_place(position, first, end, start)
                if records:
                    position = records[-1].position + 1
                if records or owed:
                    yield Batch(records, position, at_end)
                owed = False
                if at_end:
                    owed = await self._silence(waker)
        finally:
            self._wakers.discard(waker)

    async def _silence(self, waker: asyncio.Event) -> bool:
        """Wait for a commit; True when there was none for probe_s seconds, and the file is still the one we opened."""
        try:
            async with asyncio.timeout(self._probe_s):
                await waker.wait()
        except TimeoutError:
            await self._ask(lambda _: self._check_same_file())
            return True
        return False

    def _check_place(self, position: int, first: int, end: int, start: int) -> None:
        where = f"{self._location.path}, {self._stream.value}"
        if position > end:
            raise LogTruncated(f"{where}: expected records from position {position} on, the log ends at {end}")
        if position == start and 0 < start < first and not self._stream.keyed:
            raise LogTruncated(f"{where}: expected records from position {start} on, the log starts at {first}")

    def _check_same_file(self) -> None:
        path, opened = self._location.path, self._opened
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise LogTruncated(f"{path}: the file is gone") from error
        if opened is not None and (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino):
            raise LogTruncated(f"{path}: another file has taken the place of the one that was read")

    async def _ask(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do `work` in the reading thread, within the time that an answer may take."""
        path = self._location.path
        if self._closed:
            raise Unavailable(f"{path}: the log was closed")
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._reader.run(work)
        except TimeoutError as error:
            raise Unavailable(f"{path}: no answer within {self._answer_s:g} s: is the disk stuck?") from error
        except sqlite3.Error as error:
            _raise_clearly(error, path, "read")
        except OSError as error:
            raise Unavailable(f"{path}: cannot read: {error.strerror}") from error

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()


@asynccontextmanager
async def open_stream(
    location: SqliteLocation, stream: Stream, *, probe_s: float = PROBE_S, answer_s: float = ANSWER_S
) -> AsyncIterator[Log]:
    """Open one stream of the ledger in the file at `location`; see base.OpenLog and SqliteLog.open."""
    log = SqliteLog(location, stream, probe_s=probe_s, answer_s=answer_s)
    try:
        await log.open()
        yield log
    finally:
        await log.close()


async def create(location: SqliteLocation) -> None:
    """Make the file, or leave a ledger that stands there as it is; streams that it lacks are added.

    Raises:
        Misconfigured: something else is there, or its directory is missing or cannot be written.
        Unavailable: the disk is full, or another process holds the file.
    """
    await asyncio.to_thread(_create, location.path)


async def inspect(location: SqliteLocation) -> list[Finding]:
    """Return what is wrong with the file at `location`; see location.inspect_log."""
    return await asyncio.to_thread(_inspect, location.path)


# --- what runs in threads ---


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file that is a Flaghoist ledger, for reading and, where that is allowed, for writing."""
    try:
        if not path.is_file():
            raise _missing(path)
        # Never "immutable": a file that somebody writes to would be read torn.
        connection = _open_file(path, "rw")
    except sqlite3.Error as error:
        _raise_clearly(error, path, "open")
    except OSError as error:
        raise Misconfigured(f"{path}: cannot open: {error.strerror}") from error
    try:
        _check_ours(connection, path)
    except sqlite3.Error as error:
        connection.close()
        _raise_clearly(error, path, "open")
    except FlaghoistError:
        connection.close()
        raise
    return connection


def _open_file(path: Path, mode: str) -> sqlite3.Connection:
    # check_same_thread: the last use, closing, may be by another thread when the interpreter ends.
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    # An acknowledged record survives a power cut: WAL alone syncs at checkpoints only. fullfsync is macOS's real fsync.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")
    return connection


def _missing(path: Path) -> FlaghoistError:
    if path.is_dir():
        return Misconfigured(f"{path}: expected a file, got a directory")
    absolute = Path("/") / path
    if not path.is_absolute() and absolute.exists():
        return LogMissing(
            f"no ledger at {path.absolute()}",
            hint=f"{absolute} exists: for an absolute path write four slashes, sqlite:///{absolute}",
        )
    return LogMissing(f"no ledger at {path.absolute()}")


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise Misconfigured(
            f"{path}: not a Flaghoist ledger: expected application_id {APPLICATION_ID:#x}, got {application:#x}",
            hint="correct --ledger, or make a ledger elsewhere with `flaghoist init`",
        )
    if version != SCHEMA_VERSION:
        raise Misconfigured(
            f"{path}: expected ledger format {SCHEMA_VERSION}, got {version}",
            hint="use the version of Flaghoist that made it",
        )


def _check_table(path: Path, stream: Stream, connection: sqlite3.Connection) -> None:
    if _table(stream) in _tables(connection):
        return
    if stream.keyed:
        raise LogMissing(f"{path}: it was made before there was a stream {stream.value}", hint=ADD_STREAMS_HINT)
    raise Misconfigured(
        f"{path}: the file is damaged: expected a table {_table(stream)}, found none",
        hint="restore a copy; what a ledger holds is signed, so `flaghoist audit verify` tells a good one",
    )


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _append(
    path: Path,
    stream: Stream,
    value: bytes,
    expected_end: int | None,
    key: bytes | None,
    connection: sqlite3.Connection,
) -> int:
    table = _table(stream)
    try:
        connection.execute("BEGIN IMMEDIATE")
        position = _end(connection, table)
        if expected_end is not None and position != expected_end:
            raise LogConflict(expected_end=expected_end, end=position)
        if key is None:
            connection.execute(f"INSERT INTO {table} (position, value) VALUES (?, ?)", (position, value))  # noqa: S608
        else:
            _replace(connection, stream, position, bytes(key), value)
    except sqlite3.Error as error:
        _roll_back(connection)
        _raise_clearly(error, path, "write")
    except LogConflict:
        _roll_back(connection)
        raise
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        _roll_back(connection)
        # A commit whose sync failed may still be found on disk after a crash.
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
            raise OutcomeUnknown(f"{path}: the disk failed while the record was written: {error}") from error
        _raise_clearly(error, path, "write")
    return position


def _replace(connection: sqlite3.Connection, stream: Stream, position: int, key: bytes, value: bytes) -> None:
    """Write the newest record of `key` and drop the one before it.

    A position is never given twice: the newest row of the table is the one just written, and it is never dropped
    before a newer one is there.
    """
    table, now_ms = _table(stream), time.time_ns() // 1_000_000
    connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608
    connection.execute(
        f"INSERT INTO {table} (position, key, written_at, value) VALUES (?, ?, ?, ?)",  # noqa: S608
        (position, key, now_ms, value),
    )
    if stream is Stream.ACKS:
        # Only the first rows are looked at: the oldest, as far as the writers' clocks agree.
        connection.execute(
            f"DELETE FROM {table} WHERE written_at < ? AND position < ? AND position IN"  # noqa: S608
            f" (SELECT position FROM {table} ORDER BY position LIMIT {EXPIRED_ACKS_AT_ONCE})",
            (now_ms - ACKS_RETENTION_S * 1000, position),
        )


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _end(connection: sqlite3.Connection, table: str) -> int:
    (end,) = connection.execute(f"SELECT coalesce(max(position) + 1, 0) FROM {table}").fetchone()  # noqa: S608
    return int(end)


def _read(table: str, position: int, connection: sqlite3.Connection) -> _Read:
    """Return the records from `position` on, the log's first position, its end, and whether the records reach it."""
    connection.execute("BEGIN")  # one moment for all that is read
    try:
        (first,) = connection.execute(f"SELECT coalesce(min(position), 0) FROM {table}").fetchone()  # noqa: S608
        end = _end(connection, table)
        records: list[LogRecord] = []
        room = BATCH_BYTES_MAX
        rows = connection.execute(
            f"SELECT position, value FROM {table} WHERE position >= ? ORDER BY position LIMIT {BATCH_RECORDS_MAX}",  # noqa: S608
            (position,),
        )
        for place, value in rows:
            records.append(LogRecord(place, value if isinstance(value, bytes) else str(value).encode()))
            room -= len(records[-1].value)
            if room <= 0:
                break
        rows.close()
    finally:
        _roll_back(connection)
    return records, first, end, not records or records[-1].position + 1 >= end


def _create(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise Misconfigured(f"{path}: expected a file or nothing, got a directory or device")
    if not path.absolute().parent.is_dir():
        hint = f"make it with `mkdir -p {path.absolute().parent}`"
        if not path.is_absolute() and (Path("/") / path).parent.is_dir():
            hint += f"; for an absolute path write four slashes, sqlite:////{path}"
        raise Misconfigured(f"{path.absolute()}: its directory does not exist", hint=hint)
    connection = None
    try:
        connection = _open_file(path, "rwc")
        if _tables(connection):
            _check_ours(connection, path)
            if not _added_streams(connection):
                return
        else:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _tables(connection):  # otherwise another process was faster, and made the same
            for stream in Stream:
                if not stream.keyed:
                    connection.execute(
                        f"CREATE TABLE {_table(stream)} (position INTEGER PRIMARY KEY CHECK (position >= 0),"
                        " value BLOB NOT NULL CHECK (typeof(value) = 'blob'))"
                    )
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        for stream in _added_streams(connection):
            connection.execute(
                f"CREATE TABLE {_table(stream)} (position INTEGER PRIMARY KEY CHECK (position >= 0),"
                f" key BLOB NOT NULL UNIQUE CHECK (typeof(key) = 'blob' AND length(key) BETWEEN 1 AND {KEY_BYTES_MAX}),"
                # Unix milliseconds by the writer's clock: a hint when to drop the record, and nothing else.
                " written_at INTEGER NOT NULL,"
                " value BLOB NOT NULL CHECK (typeof(value) = 'blob'))"
            )
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        _raise_clearly(error, path, "create")
    finally:
        if connection is not None:
            connection.close()


def _added_streams(connection: sqlite3.Connection) -> list[Stream]:
    """Return the streams that came after the first files were made, and that this file lacks."""
    found = _tables(connection)
    return [stream for stream in Stream if stream.keyed and _table(stream) not in found]


def _inspect(path: Path) -> list[Finding]:
    connection = _connect(path)
    findings: list[Finding] = []
    try:
        for setting, expected in (("journal_mode", "wal"), ("quick_check", "ok")):
            (got,) = connection.execute(f"PRAGMA {setting}").fetchone()
            if str(got).lower() != expected:
                findings.append(Finding(str(path), setting, expected, str(got), Severity.ERROR))
        findings += [
            Finding(str(path), f"stream {stream.value}", "present", "missing", Severity.ERROR, ADD_STREAMS_HINT)
            for stream in _added_streams(connection)
        ]
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            findings.append(Finding(str(path), "writable", "yes, for a publisher", "no", Severity.WARNING))
        _roll_back(connection)
    except sqlite3.Error as error:
        _raise_clearly(error, path, "inspect")
    finally:
        connection.close()
    return findings


def _raise_clearly(error: sqlite3.Error, path: Path, doing: str) -> NoReturn:
    """Raise what the operator can act on in place of `error`; a misuse of SQLite stays what it is: a bug."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise Unavailable(
            f"{path}: cannot {doing}: another process held it locked for {BUSY_S:g} s",
            hint="find who holds it (`fuser FILE`), then run the same command again",
        ) from error
    if code == sqlite3.SQLITE_FULL:
        raise Unavailable(f"{path}: cannot {doing}: the disk is full", hint="make room, then try again") from error
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        raise Misconfigured(
            f"{path}: cannot {doing}: {error}: expected a file and a directory that this user can write",
            hint=f"SQLite keeps {path.name}-wal and {path.name}-shm beside the file, for readers too; "
            "a read-only file system cannot hold a live ledger",
        ) from error
    if code == sqlite3.SQLITE_NOTADB:
        raise Misconfigured(
            f"{path}: not a Flaghoist ledger: expected an SQLite file, got something else",
            hint="correct --ledger, or make a ledger elsewhere with `flaghoist init`",
        ) from error
    if code == sqlite3.SQLITE_CORRUPT:
        raise Misconfigured(
            f"{path}: the file is damaged: {error}",
            hint="restore a copy; what a ledger holds is signed, so `flaghoist audit verify` tells a good one",
        ) from error
    if code == sqlite3.SQLITE_IOERR:
        raise Unavailable(f"{path}: cannot {doing}: the disk failed: {error}") from error
    raise error
