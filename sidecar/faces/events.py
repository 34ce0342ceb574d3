"""EventStream: what a client that caches answers must hear. The same bytes serve v1 and v2: the messages are equal."""

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, Final

import grpc
from flagd.evaluation.v2.evaluation_pb2 import EventStreamResponse

from flaghoist.selector import BadSelector, Selector
from flaghoist.snapshot import View
from flaghoist.values import Seq
from sidecar.board import CHANGES_KEPT, Board, Changes, Watcher
from sidecar.faces import statuses
from sidecar.faces.structs import fill
from sidecar.request import RequestReader

KEEP_ALIVE_S: Final = 20.0  # flagd's interval

# One message must stay below 4 MiB, what gRPC clients accept by default: a key has at most 255 bytes, 40 go with it.
KEYS_PER_EVENT: Final = 10_000

# A pod has a handful of providers, each with one stream; this stops a leaking client before it takes the memory. Of a
# young sidecar with 10,000 static flags each new stream is told some 270 KiB (measured: 4,096 streams took 1.2 GiB).
STREAMS_MAX: Final = 512

READY: Final = EventStreamResponse(type="provider_ready").SerializeToString()
KEEP_ALIVE: Final = EventStreamResponse(type="keep_alive").SerializeToString()
SHUTDOWN: Final = EventStreamResponse(type="provider_shutdown").SerializeToString()


class EventStreams:
    """Every open event stream of one board, over all faces."""

    def __init__(self, board: Board, *, keep_alive_s: float = KEEP_ALIVE_S, streams_max: int = STREAMS_MAX) -> None:
        self._board = board
        self._keep_alive_s = keep_alive_s
        self._streams_max = streams_max
        self._open = 0
        self._requests = RequestReader()
        # Of the newest version that a stream was told of: by the changes' ids, which stay theirs while they are here.
        self._encoded: dict[int, tuple[Changes, tuple[bytes, ...]]] = {}
        self._encoded_at = Seq(0)
        self._cacheable: tuple[View, tuple[bytes, ...]] | None = None

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._open

    async def serve(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Yield the encoded events of one client until it leaves or the board closes.

        `provider_ready` waits for the first view: a provider that is told so asks at once. A client that reads slowly
        skips views, and its next event names every key that changed in between. A client that selects a part of the
        flags hears of that part.
        """
        try:
            selector = self._requests.selector(context.invocation_metadata())
        except BadSelector as bad:
            status = statuses.bad_selector(bad)
            await context.abort(status.code, status.text)
        if self._open >= self._streams_max:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {self._streams_max} event streams may be open"
            )
        self._open += 1
        try:
            with self._board.watch() as watcher:
                shown: View | None = None
                while True:
                    try:
                        view = await self._next(watcher)
                    except TimeoutError:
                        yield KEEP_ALIVE
                        continue
                    if view is None:
                        yield SHUTDOWN
                        # An error, since Node's provider never comes back after a stream that ended well (measured).
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "the sidecar is stopping")
                        return
                    view = view.select(selector)
                    if shown is None:
                        yield READY
                        for event in self._missed(view, selector):
                            yield event
                    else:
                        for event in self._events(self._board.changes(shown, view), view.seq):
                            yield event
                    shown = view
        finally:
            self._open -= 1

    async def _next(self, watcher: Watcher) -> View | None:
        async with asyncio.timeout(self._keep_alive_s):
            return await watcher.next()

    def _missed(self, view: View, selector: Selector) -> tuple[bytes, ...]:
        """Return the events of what a client that has lost its stream may not have heard.

        Providers keep their cached answers through a short loss, and drop only the keys that they hear of; so the new
        stream names what changed lately, or every flag that may be cached while this sidecar cannot know.
        """
        before = self._board.view_before_past
        if before is not None:
            return self._events(self._board.changes(before.select(selector), view), view.seq)
        if self._cacheable is None or self._cacheable[0] is not view:
            cacheable: Changes = {key: "update" for key, flag in view.flags.items() if flag.fixed is not None}
            self._cacheable = (view, tuple(encoded_changes(cacheable)))
        return self._cacheable[1]

    def _events(self, changes: Changes, seq: Seq) -> tuple[bytes, ...]:
        # A board returns the same object to all streams that ask for the same change: encode it once.
        if not changes:
            return ()
        if seq > self._encoded_at:
            self._encoded.clear()
            self._encoded_at = seq
        found = self._encoded.get(id(changes))
        if found is None:
            found = (changes, tuple(encoded_changes(changes)))
            if len(self._encoded) < CHANGES_KEPT:
                self._encoded[id(changes)] = found
        return found[1]


def encoded_changes(changes: Changes) -> list[bytes]:
    """Return the `configuration_change` events that name every changed key; none when nothing changed."""
    entries = iter(changes.items())
    events = []
    while part := dict(islice(entries, KEYS_PER_EVENT)):
        event = EventStreamResponse(type="configuration_change")
        fill(event.data, {"flags": {key: {"type": change} for key, change in part.items()}})
        events.append(event.SerializeToString())
    return events
