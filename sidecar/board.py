"""What a sidecar serves now, how fresh that is, and who waits for it to change."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, Literal

from flaghoist.snapshot import View, changed_keys

Changes = Mapping[str, Literal["write", "update", "delete"]]

# Streams that keep up ask for one pair of views, those one or two behind for another; the rest may pay for a diff.
CHANGES_KEPT: Final = 4


class VerifierState(StrEnum):
    """What the verifier says of the ledger (docs/protocol.md). Answers are served in all of them but LOADING."""

    LOADING = "LOADING"
    CATCHING_UP = "CATCHING_UP"
    FRESH = "FRESH"
    STALE = "STALE"
    LAGGING = "LAGGING"
    RESYNC = "RESYNC"
    QUARANTINED = "QUARANTINED"
    UNSUPPORTED = "UNSUPPORTED"
    ROOT_EXPIRED = "ROOT_EXPIRED"


class Board:
    """The one place where the follower writes and every face reads. Not thread-safe: it belongs to one event loop.

    Times are seconds of `clock`, a wall clock: an age can reach back to before this process started.

    Attributes:
        view: the flags served now; None until a verified snapshot is loaded. Set by put() only.
        fresh_until: when the newest proof of freshness runs out; -inf while there is none.
        state: what the verifier says; for people and metrics, it never changes an answer.
        clock: the clock, for faces that need the same time.
    """

    __slots__ = ("_changes", "_closed", "_fresh_at", "_watchers", "clock", "fresh_until", "state", "view")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.view: View | None = None
        self.state = VerifierState.LOADING
        self.fresh_until = -math.inf
        self._fresh_at = clock()
        self._watchers: set[Watcher] = set()
        self._changes: deque[tuple[View | None, View, Changes]] = deque(maxlen=CHANGES_KEPT)
        self._closed = False

    def put(self, view: View) -> None:
        """Serve `view` from now on, and wake every watcher."""
        self.view = view
        self._wake()

    def mark_fresh(self, now_s: float, *, until_s: float = math.inf) -> None:
        """Note a proof, made at `now_s`, that the view is the ledger's newest; it counts until `until_s`."""
        self._fresh_at = now_s
        self.fresh_until = until_s

    def mark_stale(self, *, since_s: float | None = None) -> None:
        """Note that the ledger's newest state is not known.

        Args:
            since_s: when the view was last known to be the newest, for one loaded from disk; else the last proof
                counts, or the board's making when there was none.
        """
        if since_s is not None:
            self._fresh_at = since_s
        self.fresh_until = -math.inf

    def stale_s(self, now_s: float) -> float | None:
        """Return the seconds since the last proof of freshness, at least 0; None while a proof counts."""
        if now_s < self.fresh_until:
            return None
        return max(0.0, now_s - self._fresh_at)

    def changes(self, old: View | None, new: View) -> Changes:
        """Return changed_keys(old, new), computed once for all streams that ask for the same pair."""
        for known_old, known_new, changes in self._changes:
            if known_new is new and known_old is old:
                return changes
        changes = changed_keys(old, new)
        self._changes.append((old, new, changes))
        return changes

    @contextmanager
    def watch(self) -> Iterator["Watcher"]:
        """Give a watcher whose first view is the one served now."""
        watcher = Watcher(self)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    @property
    def watchers(self) -> int:
        """How many watchers are open."""
        return len(self._watchers)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """End every watcher, now and later: the sidecar drains. The view stays, for calls that are still open."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.wake()


class Watcher:
    """One reader of a board. It holds one view at most, so a slow reader skips views and holds no memory."""

    __slots__ = ("_board", "_seen", "_woken")

    def __init__(self, board: Board) -> None:
        self._board = board
        self._seen: View | None = None
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let a waiting next() look again."""
        self._woken.set()

    async def next(self) -> View | None:
        """Wait for a view that this watcher has not returned yet, and return the newest; None once the board closes.

        Cancelling it loses nothing.
        """
        while not self._board.closed:
            view = self._board.view
            if view is not None and view is not self._seen:
                self._seen = view
                return view
            self._woken.clear()
            await self._woken.wait()
        return None
