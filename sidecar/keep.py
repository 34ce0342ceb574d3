"""Keeps the verified entries on this pod's disk, so that a start without the ledger still serves the last good state.

The file is trusted no more than the ledger: each entry is verified again when it is read. Its modification time is
when the state was last known to be the ledger's newest.

Beside it lie the newest heartbeat (suffix BEAT) and the proof of another history (suffix EVIDENCE), one record each.

The format is that of flaghoist.log.entries_file.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from flaghoist.codec import ENVELOPE_BYTES_MAX, decode_envelope
from flaghoist.errors import Misconfigured, Refused
from flaghoist.log.base import LogRecord
from flaghoist.log.entries_file import FRAME, MAGIC, SUFFIX, frames
from flaghoist.signing import digest
from flaghoist.values import Seq

BEAT: Final = ".heartbeat"
EVIDENCE: Final = ".fork-evidence"
REFUSED: Final = ".refused"


class Kept:
    """One ledger's kept entries, open for reading once and then for appending.

    Calls block on the disk: from an event loop, run them in a thread. `Kept.open` refuses a second sidecar on one file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        # A write that runs in a thread must not meet a descriptor that was closed, and perhaps reused, meanwhile.
        self._closing = threading.Lock()
        self._closed = False
        self._end = len(MAGIC)

    @classmethod
    def open(cls, path: Path) -> "Kept":
        """Open or make the file.

        Raises:
            Misconfigured: it cannot be written, is no such file, or another sidecar has it open.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(
                f"kept state {path}: cannot be written: {error.strerror}",
                hint="give --state-dir a writable directory; without one a start needs the ledger",
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Misconfigured(
                    f"kept state {path}: another sidecar uses it", hint="give each sidecar a --state-dir of its own"
                ) from error
            magic = os.pread(descriptor, len(MAGIC), 0)
            if MAGIC.startswith(magic) and magic != MAGIC:  # new, or torn while it was made
                os.pwrite(descriptor, MAGIC, 0)
            elif magic != MAGIC:
                raise Misconfigured(f"kept state {path}: not such a file", hint="move it away, or correct --state-dir")
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    @property
    def known_fresh_at_s(self) -> float:
        """When the kept state was last known to be the ledger's newest, in Unix seconds."""
        return os.fstat(self._descriptor).st_mtime

    def entries(self) -> Iterator[LogRecord]:
        """Yield what is kept, in order, up to the first frame that is torn. Read it to the end before appending."""
        self._end = len(MAGIC)
        for record, end in frames(self._descriptor):
            yield record
            self._end = end

    def forget_from_here(self) -> None:
        """Cut the file after the last entry that `entries` yielded and the caller came back from."""
        os.ftruncate(self._descriptor, self._end)

    def append(self, records: Sequence[LogRecord]) -> None:
        """Keep these entries durably.

        Raises:
            OSError: the disk; what was kept before still is.
        """
        with self._closing:
            if not self._closed:
                self._append(records)

    def _append(self, records: Sequence[LogRecord]) -> None:
        data = b"".join(FRAME.pack(record.position, len(record.value)) + record.value for record in records)
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], self._end + written)
        os.fsync(self._descriptor)
        self._end += written

    def set_aside(self) -> Path:
        """Begin with an empty file; what was kept goes to another one, for people to look at. Returns its path.

        Raises:
            OSError: the disk; nothing was changed.
        """
        aside = self.path.with_suffix(REFUSED)
        with self._closing, aside.open("wb") as copy:
            copy.write(self.path.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
            self._end = len(MAGIC)
            os.ftruncate(self._descriptor, self._end)
        return aside

    def read_beside(self, suffix: str) -> bytes | None:
        """Return the record beside the entries, untrusted; None when there is none that can be read."""
        try:
            with self.path.with_suffix(suffix).open("rb") as file:
                return file.read(ENVELOPE_BYTES_MAX + 1)
        except OSError:
            return None

    def write_beside(self, suffix: str, record: bytes) -> Path:
        """Replace the record beside the entries, and return its path. A crash leaves the old one or the new one.

        Raises:
            OSError: the disk.
        """
        path = self.path.with_suffix(suffix)
        new = path.with_suffix(suffix + ".new")
        new.write_bytes(record)
        new.replace(path)
        return path

    def note_fresh(self, at_s: float) -> None:
        """Note when the kept state was the ledger's newest (Unix seconds)."""
        with self._closing:
            if not self._closed:
                os.utime(self._descriptor, (at_s, at_s))

    def close(self) -> None:
        """Close the file, after a write that is under way; later writes do nothing."""
        with self._closing:
            self._closed = True
            os.close(self._descriptor)


def entry_hash_of(kept: Kept, seq: Seq) -> bytes | None:
    """Return the hash of the kept entry at a seq; None if there is none, or if it is no record. Nothing is verified."""
    record = next(islice(kept.entries(), seq.number - 1, None), None)  # entries are dense, from 1
    if record is None:
        return None
    try:
        return digest(decode_envelope(record.value))
    except Refused:
        return None


def kept_in(directory: Path) -> Iterator[Iterator[LogRecord]]:
    """Yield, of each file of entries in a directory, what it holds, untrusted. Nothing is locked or changed."""
    for path in sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file()):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.pread(descriptor, len(MAGIC), 0) == MAGIC:
                yield (record for record, _ in frames(descriptor))
        finally:
            os.close(descriptor)
