"""The file in which a sidecar keeps the entries that it has verified (sidecar/keep.py), for whoever reads it.

Nothing in it is trusted: whoever reads an entry verifies it again.

Format: MAGIC, then per entry a frame of position (int64), length (uint32), both big-endian, and the record's bytes.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flaghoist.codec import ENVELOPE_BYTES_MAX
from flaghoist.errors import Misconfigured
from flaghoist.log.base import LogRecord

MAGIC: Final = b"FLAGHOIST-ENTRIES-1\n"
SUFFIX: Final = ".entries"
FRAME: Final = struct.Struct(">qI")


def frames(descriptor: int) -> Iterator[tuple[LogRecord, int]]:
    """Yield each record and where its frame ends, up to the first frame that is torn."""
    size, end = os.fstat(descriptor).st_size, len(MAGIC)
    while end + FRAME.size <= size:
        position, length = FRAME.unpack(os.pread(descriptor, FRAME.size, end))
        start = end + FRAME.size
        if length > ENVELOPE_BYTES_MAX or start + length > size:
            return
        end = start + length
        yield LogRecord(position, os.pread(descriptor, length, start)), end


def kept_entries(path: Path) -> Iterator[bytes]:
    """Yield the records in a file, untrusted, up to the first that is torn. A sidecar may go on writing to it.

    Raises:
        Misconfigured: it cannot be read, or is no such file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Misconfigured(f"kept entries {path}: cannot be read: {error.strerror}") from error
    try:
        if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            raise Misconfigured(
                f"kept entries {path}: not such a file",
                hint=f"name a sidecar's file that ends in {SUFFIX}, from its --state-dir",
            )
        for record, _ in frames(descriptor):
            yield record.value
    finally:
        os.close(descriptor)
