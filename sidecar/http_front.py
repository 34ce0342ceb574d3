"""The HTTP front: uvicorn's protocol with httptools, in the sidecar's own event loop.

Of uvicorn only the protocol is used. Its server would take over the signal handlers, and wakes ten times a second.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

from flaghoist.errors import Misconfigured
from sidecar.front import DRAIN_S
from sidecar.http_app import HttpApp
from sidecar.http_connection import Connections, HttpLimits
from sidecar.listeners import BACKLOG, HANDSHAKE_S, Face, Listener, UnixListener, address_text, bind
from sidecar.tls import ServerTls

LIMITS: Final = HttpLimits()


@dataclass(frozen=True, slots=True)
class HttpFront:
    """What serve_http() gives: the listeners' addresses (`host:port` or `unix:path`), in the order asked for."""

    app: HttpApp
    addresses: tuple[str, ...]
    _connections: Connections

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)


@contextlib.asynccontextmanager
async def serve_http(
    app: HttpApp,
    listen: Sequence[Listener],
    *,
    face: Face,
    tls: ServerTls | None = None,
    drain_s: float = DRAIN_S,
    limits: HttpLimits = LIMITS,
) -> AsyncIterator[HttpFront]:
    """Serve `app` on every listener while the block runs; then drain.

    Leaving the block refuses new connections, closes idle ones, lets open requests finish within `drain_s` seconds,
    and ends the rest. Streams end by themselves only if what they stream does: close the board first.

    Args:
        face: what is served here, for errors.
        tls: for the listeners with `tls` set.

    Raises:
        Misconfigured: a listener cannot be bound: the text names it, and the hint what to do.
    """
    loop = asyncio.get_running_loop()
    connections = Connections(_config(app), limits, loop)
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        stack.push_async_callback(connections.drain, drain_s)
        for listener in listen:
            bound = bind(listener, face)
            stack.callback(bound.close)
            if isinstance(listener, UnixListener):
                stack.callback(listener.path.unlink, missing_ok=True)
                addresses.append(str(listener))
            else:
                addresses.append(address_text(listener.host, bound.getsockname()[1]))
            acceptor = _Acceptor(connections, bound, tls if listener.tls else None)
            await acceptor.open()
            stack.callback(acceptor.close)
        yield HttpFront(app, tuple(addresses), connections)


class _Acceptor:
    """Accepts the connections of one listening socket, with TLS as it is at that time."""

    def __init__(self, connections: Connections, bound: socket.socket, tls: ServerTls | None) -> None:
        self._connections = connections
        self._bound = bound
        self._tls = tls
        self._server: asyncio.Server | None = None
        if tls is not None:
            tls.tell(self.open)

    async def open(self) -> None:
        """Accept from now on; open connections stay as they are.

        A server keeps the context that it was made with, and a context forgets neither a CA nor a session. So each
        renewal makes a new server on another handle of the same socket: no connection is refused in between.

        Raises:
            Misconfigured: this process has no file handle left.
        """
        more: dict[str, Any] = {}
        if self._tls is not None:
            more = {"ssl": self._tls.current.context, "ssl_handshake_timeout": HANDSHAKE_S}
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._connections, sock=self._bound.dup(), backlog=BACKLOG, **more)
        except OSError as error:
            raise Misconfigured(
                f"cannot accept connections: {error.strerror}", hint="raise the limit of open files"
            ) from error
        self.close()
        self._server = server

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()


def _config(app: HttpApp) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        # It would log a line a bad request, in another format than ours.
        log_level=logging.CRITICAL,
        # Connection.look() closes idle connections; this is only never to be sooner.
        timeout_keep_alive=24 * 3600,
    )
    config.load()
    return config
