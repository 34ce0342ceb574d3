"""One HTTP connection, and all of one server: uvicorn's protocol, with bounds on what clients can make us hold.

uvicorn with httptools bounds neither the size of a request's head, nor the time that a request may take to arrive, nor
how long an answer may lie unread. In a pod, where others share the port, each of these is memory.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from sidecar.http_app import BODY_BYTES_MAX

HEAD_BYTES_MAX: Final = 1024 * 1024  # flagd's limit of a request's headers
FIELDS_MAX: Final = 256  # each costs 200 bytes of memory, however short it is; services meshes add some 20
URL_BYTES_MAX: Final = 16 * 1024  # a path of ours is at most 300 bytes, or 900 with every byte as %XX
PIPELINE_MAX: Final = 16  # no client that we know pipelines at all
DISCARD_BYTES_MAX: Final = 8 * 1024 * 1024  # read on that long after a 413, so that the client can see it


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What the clients of one listener may make it hold.

    connections_max: open ones; below the file limit of 1024 that many systems start a process with. One more takes
        the place of the one whose last request is the longest ago.
    idle_s: seconds between two requests: nginx's 75.
    request_s: seconds from the first byte of a request to its last; a client on this machine needs milliseconds.
    unread_s: seconds that an answer may wait for a client that does not read it.
    held_bytes_max: all unfinished requests together: 15 of the largest, which in memory take up to three times that.
    unread_bytes_max: all answers together that clients are slow to read; small ones (64 KiB) do not count.
    look_s: seconds between two looks at the connections.
    """

    connections_max: int = 512
    idle_s: float = 75.0
    request_s: float = 10.0
    unread_s: float = 30.0
    held_bytes_max: int = 16 * 1024 * 1024
    unread_bytes_max: int = 32 * 1024 * 1024
    look_s: float = 1.0


class Connections:
    """All open connections of one server; the one whose last request is the longest ago stands first."""

    def __init__(self, config: uvicorn.Config, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.held_bytes = 0
        self.state = ServerState()
        self._config = config
        self._loop = loop
        self._open: dict[Connection, None] = {}
        self._unread: dict[Connection, None] = {}
        self._look: asyncio.TimerHandle | None = None
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __len__(self) -> int:
        return len(self._open)

    def __call__(self) -> "Connection":
        """Make the protocol of one accepted connection."""
        return Connection(self, self._config, self._loop)

    def opened(self, connection: "Connection") -> bool:
        """Take in a connection; False when all others are at work for their clients and it must go."""
        if len(self._open) >= self.limits.connections_max:
            waiting = next((other for other in self._open if not other.answering), None)
            if waiting is None:
                return False
            self.closed(waiting)
            waiting.abort()
        self._open[connection] = None
        self._all_closed.clear()
        if self._look is None:
            self._look_again()
        return True

    def asked(self, connection: "Connection") -> None:
        """Note that a whole request came."""
        if self._open.pop(connection, connection) is None:
            self._open[connection] = None

    def closed(self, connection: "Connection") -> None:
        self._unread.pop(connection, None)
        self._open.pop(connection, None)
        if not self._open:
            self._all_closed.set()

    def hold(self, count: int) -> None:
        """Note bytes of an unfinished request. When all clients together send too many, the slowest go."""
        self.held_bytes += count
        if self.held_bytes > self.limits.held_bytes_max:
            for connection in list(self._open):
                if connection.held_bytes:
                    connection.abort()
                    if self.held_bytes <= self.limits.held_bytes_max:
                        return

    def unread(self, connection: "Connection") -> None:
        """Note that a client is slow to read. When all of them together leave too much, the slowest go."""
        self._unread[connection] = None
        for slowest, sizes in _remaining_sizes(list(self._unread)):
            if sizes <= self.limits.unread_bytes_max:
                return
            slowest.abort()

    def read(self, connection: "Connection") -> None:
        """Note that the client has caught up."""
        self._unread.pop(connection, None)

    async def drain(self, drain_s: float) -> None:
        """Let open requests finish within `drain_s` seconds, then end what is left."""
        for connection in list(self._open):
            connection.shutdown()
        try:
            async with asyncio.timeout(drain_s):
                await self._all_closed.wait()
        except TimeoutError:
            for connection in list(self._open):
                connection.abort()
        tasks = list(self.state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._look is not None:
            self._look.cancel()

    def _look_again(self) -> None:
        now_s = self._loop.time()
        for connection in list(self._open):
            connection.look(now_s)
        # RFC 9110, section 6.6.1: an origin server with a clock sends it.
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._look = self._loop.call_later(self.limits.look_s, self._look_again) if self._open else None


def _remaining_sizes(connections: "list[Connection]") -> "Iterator[tuple[Connection, int]]":
    """Yield each connection, the slowest first, with what it and all after it leave unread."""
    sizes = [connection.unread_bytes for connection in connections]
    left = sum(sizes)
    for connection, size in zip(connections, sizes, strict=True):
        yield connection, left
        left -= size


class Connection(HttpToolsProtocol):
    """One client's connection. What it has not finished, sending or reading, is counted and limited in time."""

    def __init__(self, all_open: Connections, config: uvicorn.Config, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config=config, server_state=all_open.state, app_state={}, _loop=loop)
        self.held_bytes = 0
        self._all = all_open
        self._in_head = False
        self._in_request = False
        self._since_s = loop.time()
        self._unread_since_s: float | None = None
        self._refusal = 400
        self._closing = False

    @property
    def answering(self) -> bool:
        """Whether a whole request is being answered: the client waits for us, not we for it."""
        return not self._in_request and self.cycle is not None and not self.cycle.response_complete

    @property
    def unread_bytes(self) -> int:
        """Bytes that were answered and not yet taken by the client's machine."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """End the connection at once; what was not sent is dropped."""
        self._release()
        self._closing = True
        self.transport.abort()

    def look(self, now_s: float) -> None:
        """End the connection if its client takes too long."""
        limits = self._all.limits
        if self.unread_bytes:
            if self._unread_since_s is None:
                self._unread_since_s = now_s
            elif now_s - self._unread_since_s > limits.unread_s:
                self.abort()
            return
        self._unread_since_s = None
        waited_s = now_s - self._since_s
        if self._in_request:
            if waited_s > limits.request_s:
                self.abort()
        elif not self.answering and waited_s > limits.idle_s:
            self.transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._all.opened(self):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        self._all.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._unset_keepalive_if_required()
        count = len(data)
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as offer:
                data = self._declined() + data[offer.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
        if self._in_request:
            self._note_unfinished(count)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.unread(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._all.read(self)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_request = self._in_head = True
        self._since_s = self.loop.time()

    def on_headers_complete(self) -> None:
        refusal = self._head_refusal(0)
        if len(self.pipeline) >= PIPELINE_MAX or self.parser.get_method() == b"CONNECT":
            refusal = 400
        if refusal is not None:
            self._refusal = refusal
            raise _TooMuchError
        if self.parser.should_upgrade():
            return
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # the client offers another protocol: httptools leaves its body out, and _declined() mends that
        super().on_message_complete()
        self._in_request = False
        self._since_s = self.loop.time()
        if self.held_bytes:
            self._release()
        self._all.asked(self)

    # uvicorn's name for: what came is no HTTP request

    def send_400_response(self, msg: str) -> None:
        self._closing = True
        self._release()
        body = b"" if self._refusal != 400 else msg.encode("ascii", "replace")
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = b"".join([name + b": " + value + b"\r\n" for name, value in fields])
        self.transport.write(STATUS_LINE[self._refusal] + head + b"\r\n" + body)
        self.transport.close()

    def _declined(self) -> bytes:
        """Return the head of the current request again, without its offer to go on in another protocol.

        Clients may make that offer with any request, as java.net.http does for HTTP/2; declining is to answer as if
        they had not: RFC 9110, section 7.8.
        """
        fields = [(name, value) for name, value in self.headers if name not in (b"connection", b"upgrade")]
        if any(b"close" in value.lower() for name, value in self.headers if name == b"connection"):
            fields.append((b"connection", b"close"))
        head = b"".join([b"%b: %b\r\n" % each for each in fields])
        declined = b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, head)
        # The old one takes nothing more after a request that said `close`.
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return declined

    def _head_refusal(self, count: int) -> int | None:
        if len(self.url) > URL_BYTES_MAX:
            return 414
        if len(self.headers) > FIELDS_MAX or self.held_bytes + count > HEAD_BYTES_MAX:
            return 431
        return None

    def _note_unfinished(self, count: int) -> None:
        if self._in_head:
            refusal = self._head_refusal(count)
            if refusal is not None:
                self._refusal = refusal
                self.send_400_response("")
                return
        elif self.held_bytes + count > HEAD_BYTES_MAX + BODY_BYTES_MAX + DISCARD_BYTES_MAX:
            self.abort()
            return
        self.held_bytes += count
        self._all.hold(count)

    def _release(self) -> None:
        self._all.held_bytes -= self.held_bytes
        self.held_bytes = 0


class _TooMuchError(Exception):
    """Ends httptools' parsing; uvicorn then calls send_400_response."""
