"""flagd.sync.v1: the whole set of flags for providers that evaluate in their own process.

All streams with one selector share one encoding. Each stream holds the newest set at most: a client that reads slowly
skips sets, and one that does not read at all is cut off.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, TypeVar

import grpc
import structlog
from flagd.sync.v1 import sync_pb2
from google.protobuf.message import DecodeError

from flaghoist.document import JsonValue
from flaghoist.errors import TooLarge
from flaghoist.flagd_document import document, faults, member
from flaghoist.selector import EVERYTHING, BadSelector, Selector
from flaghoist.snapshot import View
from sidecar.board import Board
from sidecar.faces import statuses
from sidecar.faces.rendering import SEQ_HEADER
from sidecar.faces.statuses import NoAnswer
from sidecar.faces.structs import fill
from sidecar.report import BugReport

logger = structlog.get_logger()

T = TypeVar("T")

SELECTOR_HEADER: Final = "flagd-selector"

# A pod has a handful of providers. A stream whose client does not read holds two or three sets in the front and in the
# kernel; with sets of 2 MiB this many of them hold less than 1 GiB.
STREAMS_MAX: Final = 128

# A set is at most a few MiB on a loopback connection. A client that takes none of it for so long does not read.
SLOW_S: Final = 30.0

# What gRPC clients accept in one message unless they are told otherwise. Beyond it they fail, and few say why.
CLIENT_MESSAGE_BYTES: Final = 4 * 1024 * 1024

# A flag takes about 20 µs to encode: so many hold up other calls for less than 2 ms.
FLAGS_A_TURN: Final = 100

# Callers choose selectors: what they can make us keep is bounded.
SETS_MAX: Final = 64


class _Set(NamedTuple):
    """The flags of one selector, encoded: `flags` bytes of FetchAllFlagsResponse, with which `response` begins."""

    view: View
    response: bytes
    flags: int


class Sync:
    """`flagd.sync.v1.FlagSyncService` over one board.

    Attributes:
        name: the service's full name.
    """

    name: ClassVar[str] = sync_pb2.DESCRIPTOR.services_by_name["FlagSyncService"].full_name

    def __init__(
        self,
        board: Board,
        *,
        static_context: Mapping[str, JsonValue] | None = None,
        streams_max: int = STREAMS_MAX,
        slow_s: float = SLOW_S,
    ) -> None:
        """Serve what `board` serves.

        Args:
            static_context: what every evaluation's context holds besides the caller's; sent with each set.
            streams_max: SyncFlags streams that may be open at a time; the next gets RESOURCE_EXHAUSTED.
            slow_s: seconds in which a client must take a set.
        """
        self._board = board
        self._streams_max = streams_max
        self._slow_s = slow_s
        self._open = 0
        self._cut_off = 0
        self._sets: dict[Selector, _Set] = {}
        self._encoding = asyncio.Lock()
        self._large: set[Selector] = set()
        self._faults: dict[str, str] = {}
        self._bugs = BugReport(logger, "call.failed", service=self.name)
        context = sync_pb2.SyncFlagsResponse()
        context.sync_context.SetInParent()
        fill(context.sync_context, static_context or {})
        # Messages that follow one another are one message: this goes after every set.
        self._context = context.SerializeToString()
        metadata = sync_pb2.GetMetadataResponse()
        metadata.metadata.CopyFrom(context.sync_context)
        self._metadata = metadata.SerializeToString()

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._open

    @property
    def cut_off(self) -> int:
        """How many streams were cut off so far because their client did not read."""
        return self._cut_off

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Return the method handlers by method name."""
        return {
            "SyncFlags": grpc.unary_stream_rpc_method_handler(self.sync_flags),
            "FetchAllFlags": grpc.unary_unary_rpc_method_handler(self.fetch_all_flags),
            "GetMetadata": grpc.unary_unary_rpc_method_handler(self.get_metadata),
        }

    async def sync_flags(self, request: bytes, context: Any) -> None:
        """Write the set as soon as there is one, and again after each change of it, until the client leaves."""
        if self._open >= self._streams_max:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {self._streams_max} sync streams may be open"
            )
        self._open += 1
        try:
            await self._guarded("SyncFlags", context, self._stream(request, context))
        finally:
            self._open -= 1

    async def fetch_all_flags(self, request: bytes, context: Any) -> bytes:
        """Return the set as it is now."""
        return await self._guarded("FetchAllFlags", context, self._fetch(request, context))

    async def get_metadata(self, _request: bytes, _context: Any) -> bytes:
        """Return the static context. Some providers call this first, and one retries for ever on any error."""
        return self._metadata

    async def _stream(self, request: bytes, context: Any) -> NoReturn:
        selector = _selector(sync_pb2.SyncFlagsRequest, request, context)
        sent: bytes | None = None
        with self._board.watch() as watcher:
            while await watcher.next() is not None:
                found = await self._set(selector)
                # Equal bytes: what changed is not in the set, or not in what clients are told of it.
                if found.response != sent:
                    sent = found.response
                    await self._write(context, sent)
        # Some providers take the end of a stream with OK as an end for good.
        raise NoAnswer(grpc.StatusCode.UNAVAILABLE, "the sidecar stops")

    async def _fetch(self, request: bytes, context: Any) -> bytes:
        selector = _selector(sync_pb2.FetchAllFlagsRequest, request, context)
        found = await self._set(selector)
        context.set_trailing_metadata(((SEQ_HEADER, str(found.view.seq.number)),))
        return found.response[: found.flags]

    async def _write(self, context: Any, response: bytes) -> None:
        """Write one set.

        Raises:
            NoAnswer: the client took longer than slow_s; it has left since, or reads again.
        """
        writing = asyncio.ensure_future(context.write(response))
        try:
            await asyncio.wait((writing,), timeout=self._slow_s)
            slow = not writing.done()
            if slow:
                self._cut_off += 1
                count = self._cut_off
                if count & (count - 1) == 0:  # the 1st, 2nd, 4th …: clients must not fill the disk
                    logger.warning("sync.cut_off", slow_s=self._slow_s, bytes=len(response), count=count)
            # Neither front can take back what it has begun to send, and it stays in memory until the client reads it or
            # leaves. So the stream counts as open until then: what clients that do not read can hold is bounded.
            await writing
        finally:
            writing.cancel()
        if slow:
            raise NoAnswer(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"cut off: the client took more than {self._slow_s:g} s to read"
            )

    async def _set(self, selector: Selector) -> _Set:
        """Return the newest set.

        Raises:
            NoAnswer: nothing is loaded yet; or the set is larger than a document may be.
        """
        view = self._board.view
        found = self._sets.get(selector)
        if found is not None and found.view is view:
            return found
        async with self._encoding:  # one stream encodes; those that wait here find it done
            view = self._board.view
            found = self._sets.get(selector)
            if view is None:
                raise statuses.nothing_loaded(self._board.state)
            if found is None or found.view is not view:
                found = await self._encoded(view, selector, found)
                if len(self._sets) >= SETS_MAX and selector not in self._sets:
                    self._sets.clear()
                self._sets[selector] = found
            return found

    async def _encoded(self, view: View, selector: Selector, before: _Set | None) -> _Set:
        selected = view.select(selector)
        if before is not None and before.view.select(selector).flags is selected.flags:
            return before._replace(view=view)
        made = 0
        for flag in list(selected.flags.values()):
            if flag.member is None:
                member(flag)
                made += 1
                if made % FLAGS_A_TURN == 0:
                    await asyncio.sleep(0)  # other calls are answered in between
        try:
            flags = sync_pb2.FetchAllFlagsResponse(flag_configuration=document(selected).decode()).SerializeToString()
        except TooLarge as refusal:
            self._note_large(selector, refusal.got)
            raise NoAnswer(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{refusal}; ask for a part of the flags with a selector"
            ) from None
        response = bytes(flags + self._context)
        self._note_size(selector, len(response))
        if made:
            self._note_faults(selected)
        if before is not None and before.response == response:
            response = before.response  # one copy of what is equal
        return _Set(view, response, len(flags))

    async def _guarded(self, method: str, context: Any, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except NoAnswer as no_answer:
            status = no_answer
        except Exception as error:  # noqa: BLE001 - a bug must not send its text to callers
            self._bugs.note(error, method=method)
            status = statuses.fault()
        await context.abort(status.code, status.text)
        raise AssertionError("abort() raises")

    def _note_size(self, selector: Selector, size: int) -> None:
        if size > CLIENT_MESSAGE_BYTES:
            self._note_large(selector, size)
        else:
            self._large.discard(selector)

    def _note_large(self, selector: Selector, size: int) -> None:
        if selector in self._large or len(self._large) >= SETS_MAX:
            return
        self._large.add(selector)
        logger.error(
            "sync.set_too_large",
            bytes=size,
            clients_accept=CLIENT_MESSAGE_BYTES,
            selector=selector.pairs,
            hint="clients refuse it by default: let them select a source or flag set, or raise their message limit",
        )

    def _note_faults(self, view: View) -> None:
        found = dict(faults(view))
        news = {key: reason for key, reason in found.items() if self._faults.get(key) != reason}
        if view.selector == EVERYTHING:
            self._faults = found
        else:
            self._faults |= news
        if news:
            key, reason = next(iter(news.items()))
            logger.warning("sync.flags_without_rule", count=len(news), first=key, reason=reason)


def _selector(message: Any, request: bytes, context: Any) -> Selector:
    """Return what a call asks for: the request metadata first, then the request's own, deprecated field.

    Raises:
        NoAnswer: neither a request nor a selector.
    """
    try:
        asked = message.FromString(request)
    except DecodeError:
        raise NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, "Invalid request: not a message of this method") from None
    text = asked.selector
    for name, value in context.invocation_metadata() or ():
        if name == SELECTOR_HEADER and value:
            text = value
            break
    try:
        return Selector.parse(text)
    except BadSelector as refusal:
        raise NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, f"{refusal} ({refusal.hint})") from None
