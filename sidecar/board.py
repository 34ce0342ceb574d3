"""What a sidecar serves now and served lately, how fresh that is, and who waits for it to change."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from flaghoist.errors import Unavailable
from flaghoist.snapshot import View, changed_keys
from flaghoist.values import Seq
from sidecar.request import Asked, PinMiss

Changes = Mapping[str, Literal["write", "update", "delete"]]

# Of each selector that streams have: streams that keep up ask for one pair of views, those behind pay for their diff.
CHANGES_KEPT: Final = 64

# A pin lasts as long as requests do that cross many services: ten minutes, design "Pins".
PAST_S: Final = 600.0
# The newest, and the one before it, which calls on their way here are pinned to.
PAST_LEAST: Final = 2
PAST_MOST: Final = 600  # one change a second for PAST_S
# What past views alone keep in memory, estimated; large ledgers that change often keep less than PAST_S.
PAST_BYTES_MAX: Final = 64 * 1024 * 1024
# Measured: 31 bytes for a flag's place in a dict, and a view has up to two; 1.0 KB a compiled flag without a rule, 6.5
# with one of three operators.
PLACE_BYTES: Final = 64
FLAG_BYTES: Final = 8 * 1024

# Of a pin to a version that is not here yet, design "Pins": an entry reaches all sidecars within some 20 ms.
PIN_WAIT_S: Final = 0.05
# Calls that wait at once; those beyond are answered without waiting.
PIN_WAITS_MAX: Final = 4096

NO_MIN_PIN: Final = Seq(0)


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


class NothingLoaded(Unavailable):
    """No verified flags yet, so there is nothing to answer from."""

    code = "nothing_loaded"
    hint = "retry, or use the caller's defaults; /readyz says what is missing"


@dataclass(frozen=True, slots=True)
class Served:
    """What one call is answered from.

    Attributes:
        view: the flags that the call asked for.
        now_s: Unix seconds.
        stale_s: whole seconds since the last proof of freshness, so that the answers of an outage are encoded once a
            second and not once a call; None while fresh.
        past: the call is pinned to an older version, whose flags are not those of the newest.
        pin_miss: why the call's pin was not honoured; None when it was, or there is none.
        why_stale: see Board.
    """

    view: View
    now_s: int
    stale_s: int | None
    past: bool
    pin_miss: PinMiss | None
    why_stale: str = ""


@dataclass(slots=True)
class _Past:
    """A view, from when until when it was the newest, and what it keeps in memory that the next one does not."""

    view: View
    since_s: float
    until_s: float = math.inf
    bytes: int = 0


class Board:
    """The one place where the follower writes and every face reads. Not thread-safe: it belongs to one event loop.

    Times are seconds of `clock`, a wall clock: an age can reach back to before this process started.

    Attributes:
        view: the flags served now; None until a verified snapshot is loaded. Set by put() only.
        activated_at_s: when that was first served (Unix seconds); 0 before the first.
        moment_ms: the moment before which it must not be served (Unix ms); None when none was set.
        min_pin: calls pinned to an older version are answered from the newest. Raised by put() only.
        fresh_until: when the newest proof of freshness runs out; -inf while there is none.
        state: what the verifier says; for people and metrics, it never changes an answer.
        why_stale: what keeps answers from being fresh, in a few words; they carry it while they are stale.
        withheld: why nothing is served though there is something, in a few words; "" when it is.
        clock: the clock, for faces that need the same time.
    """

    __slots__ = (
        "_changes",
        "_closed",
        "_coming",
        "_fresh_at",
        "_past",
        "_past_bytes",
        "_waiting",
        "_watchers",
        "activated_at_s",
        "clock",
        "fresh_until",
        "min_pin",
        "moment_ms",
        "state",
        "view",
        "why_stale",
        "withheld",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.view: View | None = None
        self.state = VerifierState.LOADING
        self.fresh_until = -math.inf
        self.why_stale = ""
        self.withheld = ""
        self._fresh_at = clock()
        self.min_pin = Seq(0)
        self._past: dict[Seq, _Past] = {}  # in the order of put(), so the newest is the last
        self._past_bytes = 0
        self._waiting: dict[asyncio.Future[None], Seq] = {}
        self._watchers: set[Watcher] = set()
        self._coming: dict[Seq, View] = {}
        self.activated_at_s = 0.0
        self.moment_ms: int | None = None
        self._changes: deque[tuple[View | None, View, Changes]] = deque(maxlen=CHANGES_KEPT)
        self._closed = False

    def announce(self, coming: Sequence[View]) -> None:
        """Note the verified views that are not in force yet: calls that are pinned to one are answered from it.

        Whoever pins a call has seen that view in force elsewhere: its clock says that the moment has come.
        """
        self._coming = {view.seq: view for view in coming}
        for waiter, seq in self._waiting.items():
            if seq in self._coming:
                _wake(waiter)

    def put(self, view: View, *, min_pin: Seq = NO_MIN_PIN, moment_ms: int | None = None) -> None:
        """Serve `view` from now on, and wake everyone who waits; the view before it stays for calls pinned to it.

        Args:
            min_pin: versions below it must not be served again; one that is lower than before changes nothing.
            moment_ms: when it was to take effect; None: at once.
        """
        now_s = self.clock()
        self.activated_at_s, self.moment_ms = now_s, moment_ms
        if self.view is not None and self.view.seq in self._past:
            self._supersede(self._past[self.view.seq], view, now_s)
        replaced = self._past.pop(view.seq, None)
        if replaced is not None:
            self._past_bytes -= replaced.bytes
        self._past[view.seq] = _Past(view, now_s)
        if self.view is not None:
            # Who lags behind this view too pays for a diff; kept pairs would keep old views.
            known = (each for each in self._changes if each[1].seq >= self.view.seq)
            self._changes = deque(known, maxlen=CHANGES_KEPT)
        self.view = view
        if min_pin > self.min_pin:
            self.min_pin = min_pin
        self._forget(now_s)
        for waiter, seq in self._waiting.items():
            if seq <= view.seq:
                _wake(waiter)
        self._wake()

    def _supersede(self, past: _Past, view: View, now_s: float) -> None:
        past.until_s = now_s
        if past.view.flags is view.flags:
            return
        changes = self.changes(past.view, view)
        alone = sum(change != "write" for change in changes.values())
        past.bytes = len(past.view.flags) * PLACE_BYTES + alone * FLAG_BYTES
        self._past_bytes += past.bytes

    def _forget(self, now_s: float) -> None:
        while len(self._past) > 1:
            seq, oldest = next(iter(self._past.items()))
            needed = seq >= self.min_pin and (
                len(self._past) <= PAST_LEAST
                or (
                    len(self._past) <= PAST_MOST
                    and self._past_bytes <= PAST_BYTES_MAX
                    and now_s - oldest.until_s <= PAST_S
                )
            )
            if needed:
                return
            self._past_bytes -= oldest.bytes
            del self._past[seq]

    @property
    def past(self) -> int:
        """How many versions can be served, the newest among them."""
        return len(self._past)

    @property
    def view_before_past(self) -> View | None:
        """The view that was the newest PAST_S ago; None when this board does not reach back so far."""
        oldest = next(iter(self._past.values()), None)
        return oldest.view if oldest is not None and oldest.since_s <= self.clock() - PAST_S else None

    def at(self, seq: Seq) -> View | None:
        """Return the view of one version; None when it is not here yet, or no more, or must not be served again.

        A version that is here and waits for its moment is served to whoever asks for it by its seq.
        """
        if seq < self.min_pin:
            return None
        past = self._past.get(seq)
        return self._coming.get(seq) if past is None else past.view

    async def until(self, seq: Seq, timeout_s: float) -> None:
        """Return when the view served is of `seq` or newer, or the time is over; at once when very many wait."""
        if self._closed or len(self._waiting) >= PIN_WAITS_MAX:
            return
        if self.view is not None and (self.view.seq >= seq or seq in self._coming):
            return
        # No asyncio.timeout(): its exceptions make cycles, and garbage of calls that were in vain should not pile up.
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting[waiter] = seq
        timer = loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            del self._waiting[waiter]

    @property
    def waiting(self) -> int:
        """How many calls wait for a version to come."""
        return len(self._waiting)

    async def served(self, asked: Asked) -> Served:
        """Return what a call is answered from; one that is pinned to a version still to come may wait PIN_WAIT_S.

        Raises:
            NothingLoaded: no view yet.
        """
        view = self.view
        miss: PinMiss | None = None
        pin = asked.pin
        if view is None:
            raise NothingLoaded(f"no verified flags are loaded yet (verifier state: {self.state})")
        if isinstance(pin, Seq):
            if pin > view.seq:
                await self.until(pin, PIN_WAIT_S)
            view, miss = self._pinned(pin)
        elif pin is not None:
            miss = pin
        now_s = self.clock()
        stale_s = None if now_s < self.fresh_until else int(self.stale_s(now_s) or 0)
        past = self.view is not None and view.flags is not self.view.flags
        why_stale = "" if stale_s is None else self.why_stale
        return Served(view.select(asked.selector), int(now_s), stale_s, past, miss, why_stale)

    def _pinned(self, pin: Seq) -> tuple[View, PinMiss | None]:
        newest = self.view
        assert newest is not None  # noqa: S101 (served() looked)
        if pin < self.min_pin:
            return newest, PinMiss.MIN_PIN
        view = self.at(pin)
        if view is None and pin > newest.seq:
            return newest, PinMiss.NOT_YET
        return (newest, PinMiss.TOO_OLD) if view is None else (view, None)

    def mark_fresh(self, now_s: float, *, until_s: float = math.inf) -> None:
        """Note a proof, made at `now_s`, that the view is the ledger's newest; it counts until `until_s`."""
        self._fresh_at = now_s
        self.fresh_until = until_s
        self._forget(now_s)  # while nothing changes: old versions go after PAST_S, not at the next change

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
        for waiter in self._waiting:
            _wake(waiter)
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.wake()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


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
