"""Waits for another process to write to a file: told by the kernel where it can (Linux), else by looking often."""

import ctypes
import os
import select
import sys
import time
from pathlib import Path
from typing import Final

# Where the kernel tells nothing. One look costs 60 to 100 µs of CPU, waking up included (measured, 2 cores): 1 % of a
# core, and what another process wrote is seen after 5 ms in the middle, rarely after more than 10.
POLL_S: Final = 0.008
# Where it does: how often to look all the same, so that a lost event costs a moment and not for ever.
IDLE_S: Final = 0.1
# A write is told before what was written is committed (SQLite syncs in between): look this often, for this long.
SETTLING_LOOK_S: Final = 0.002
SETTLING_S: Final = 0.1

# Source: inotify(7), <sys/inotify.h>.
_IN_MODIFY: Final = 0x2
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)


class FileChanges:
    """Waits until it is worth a look whether `path` was written to; for one thread."""

    def __init__(self, path: Path) -> None:
        self._settled_at = 0.0
        self._events = _inotify(path)
        self._poll = None
        if self._events is not None:
            self._poll = select.poll()
            self._poll.register(self._events, select.POLLIN)

    def wait(self) -> None:
        """Return when it is time to look: soon after a write, or after a while."""
        if self._poll is None or self._events is None:
            time.sleep(POLL_S)
            return
        pause_s = SETTLING_LOOK_S if time.monotonic() < self._settled_at else IDLE_S
        if self._poll.poll(pause_s * 1000):
            os.read(self._events, 65536)  # what it says is known: that file was written to
            self._settled_at = time.monotonic() + SETTLING_S

    def close(self) -> None:
        """Stop listening."""
        if self._events is not None:
            os.close(self._events)
            self._events = None


def _inotify(path: Path) -> int | None:
    """Return a descriptor that becomes readable when `path` is written to, or None where there is no such thing."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    events: int = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    if events < 0:  # the user's limit (fs.inotify.max_user_instances), or a kernel without
        return None
    if libc.inotify_add_watch(events, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(events)
        return None
    return events
