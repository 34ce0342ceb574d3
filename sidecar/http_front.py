"""The HTTP front: uvicorn's protocol with httptools, in the sidecar's own event loop.

Of uvicorn only the protocol is used. Its server would take over the signal handlers, and wakes ten times a second.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import uvicorn

from flaghoist.errors import Misconfigured
from sidecar.front import DRAIN_S, TcpListener, address_text
from sidecar.http_app import HttpApp
from sidecar.http_connection import Connections, HttpLimits

LIMITS: Final = HttpLimits()
BACKLOG: Final = 1024  # connections that the kernel keeps for us while we are busy


@dataclass(frozen=True, slots=True)
class HttpFront:
    """What serve_http() gives: the listeners' addresses (`host:port`), in the order asked for."""

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
    listen: Sequence[TcpListener],
    *,
    option: str,
    drain_s: float = DRAIN_S,
    limits: HttpLimits = LIMITS,
) -> AsyncIterator[HttpFront]:
    """Serve `app` on every listener while the block runs; then drain.

    Leaving the block refuses new connections, closes idle ones, lets open requests finish within `drain_s` seconds,
    and ends the rest. Streams end by themselves only if what they stream does: close the board first.

    Args:
        option: the option that names the listener, for the hint of an error, such as `--ofrep-listen`.

    Raises:
        Misconfigured: a listener cannot be bound: the text names it, and the hint what to do.
    """
    loop = asyncio.get_running_loop()
    connections = Connections(_config(app), limits, loop)
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        stack.push_async_callback(connections.drain, drain_s)
        for listener in listen:
            bound = _bind(listener, option)
            stack.callback(bound.close)
            server = await loop.create_server(connections, sock=bound, backlog=BACKLOG)
            stack.callback(server.close)
            addresses.append(address_text(listener.host, bound.getsockname()[1]))
        yield HttpFront(app, tuple(addresses), connections)


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


def _bind(listener: TcpListener, option: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(listener, option, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Now, not when the server starts: only a listening socket keeps a second sidecar off the port.
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise _cannot_listen(listener, option, error) from error
    return bound


def _cannot_listen(listener: TcpListener, option: str, error: OSError) -> Misconfigured:
    if error.errno == errno.EADDRINUSE:
        return Misconfigured(
            f"cannot listen on {listener}: another process does",
            hint=f"stop the other process (another sidecar or flagd?), or choose another address with {option}",
        )
    return Misconfigured(
        f"cannot listen on {listener}: {error.strerror or error}",
        hint=f"choose an address that this machine has, with {option}",
    )
