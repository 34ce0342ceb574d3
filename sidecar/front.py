"""The gRPC front: one seam between the services and the server that carries them.

pygrpc-native speaks HTTP/2 in Rust and answers about four times as many calls a second as grpcio (docs/performance.md);
it knows plaintext TCP only. grpcio carries everything else, TLS and Unix sockets, and all of it where the wheel of the
other is missing.
"""

import asyncio
import contextlib
import importlib.util
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from flaghoist.errors import Misconfigured
from sidecar.board import Board
from sidecar.listeners import (
    HANDSHAKE_S,
    Face,
    Listener,
    TcpListener,
    UnixListener,
    address_text,
    cannot_listen,
    try_bind,
)
from sidecar.tls import ServerTls, TlsMaterial

logger = structlog.get_logger()

DRAIN_S: Final = 5.0  # the slowest of our own calls takes milliseconds; this is for clients that are slow to read
REQUEST_BYTES_MAX: Final = 1024 * 1024  # flagd's limit of a body
STREAMS_PER_CONNECTION_MAX: Final = 1024  # pygrpc-native's default; a provider keeps one stream and its open calls

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Two sidecars on one port would each get a part of the calls; the second must fail instead.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # flagd's providers ping, some every 10 s and without a call; grpcio's defaults cut them off at the third ping.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client that stopped answering (a frozen process, say) leaves a stream behind; pings find it.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1000)),
)


class FrontKind(StrEnum):
    """Which server carries a listener; TLS and Unix sockets are grpcio's, whatever is chosen.

    AUTO: native for plaintext loopback TCP where its wheel is installed, else grpcio.
    """

    AUTO = "auto"
    NATIVE = "native"
    GRPCIO = "grpcio"


class Service(Protocol):
    """A gRPC service: its full name, and a handler for each method name."""

    @property
    def name(self) -> str:
        """Full name, such as `flagd.evaluation.v1.Service`."""

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Return asyncio handlers by method name."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener that accepts calls: the address clients use, and the server behind it (never AUTO)."""

    address: str
    kind: FrontKind
    tls: bool


@dataclass(frozen=True, slots=True)
class Front:
    """What serve() gives: the bound listeners, in the order asked for."""

    bound: tuple[Bound, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return `host:port` or `unix:path` of each listener, as gRPC clients take them."""
        return tuple(bound.address for bound in self.bound)


def native_available() -> bool:
    """Return whether pygrpc-native is installed for this platform."""
    return importlib.util.find_spec("pygrpc_native") is not None


def kind_of(listener: Listener, wanted: FrontKind) -> FrontKind:
    """Return which server carries `listener`.

    Raises:
        Misconfigured: NATIVE is wanted and not installed.
    """
    if wanted is FrontKind.GRPCIO or listener.tls or isinstance(listener, UnixListener):
        return FrontKind.GRPCIO
    if native_available():
        return FrontKind.NATIVE if wanted is FrontKind.NATIVE or listener.loopback else FrontKind.GRPCIO
    if wanted is FrontKind.NATIVE:
        raise Misconfigured(
            "the native gRPC server is asked for, and pygrpc-native is not installed",
            hint="use --server auto, or install pygrpc-native (wheels for Linux and macOS)",
        )
    return FrontKind.GRPCIO


@contextlib.asynccontextmanager
async def serve(
    services: Sequence[Service],
    listen: Sequence[Listener],
    *,
    board: Board,
    face: Face = Face.RPC,
    kind: FrontKind = FrontKind.AUTO,
    tls: ServerTls | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    drain_s: float = DRAIN_S,
    options: Iterable[tuple[str, int]] = OPTIONS,
) -> AsyncIterator[Front]:
    """Serve `services`, health and reflection on every listener while the block runs; then drain.

    Health says SERVING, for the whole ("") and for each service, once `board` has a view. Leaving the block says
    NOT_SERVING, closes the board (event streams say provider_shutdown), refuses new calls, lets open ones finish within
    `drain_s` seconds, and cancels the rest.

    Args:
        face: what is served here, for errors.
        tls: for the listeners with `tls` set.
        interceptors: see every call first, those to health and reflection as well.

    Raises:
        Misconfigured: a listener cannot be bound: the text names it, and the hint what to do.
    """
    names = [service.name for service in services]
    async with contextlib.AsyncExitStack() as stack:
        healths = []
        bound = []
        servers = []
        for listener in listen:
            server_kind = kind_of(listener, kind)
            server = _server(server_kind, tuple(options), interceptors)
            for service in services:
                server.add_registered_method_handlers(service.name, dict(service.handlers()))
            servicer = Health(names)
            healths.append(servicer)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
            _reflect([*names, health.SERVICE_NAME], server, server_kind)
            # Pushed before binding: whatever fails below, what was bound is closed again.
            stack.push_async_callback(server.stop, 0)
            bound.append(Bound(_bind(server, listener, face, tls, stack), server_kind, listener.tls))
            servers.append(server)
        for server in servers:
            await server.start()
        stack.push_async_callback(_drain, servers, healths, board, drain_s)
        announcing = asyncio.create_task(_announce(board, healths), name="health")
        stack.push_async_callback(_cancelled, announcing)
        yield Front(tuple(bound))


def _server(
    kind: FrontKind, options: tuple[tuple[str, int], ...], interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> Any:
    if kind is FrontKind.NATIVE:
        from sidecar.native_server import NativeServer  # only where the wheel is installed

        return NativeServer(interceptors=interceptors, options=options)
    return grpc.aio.server(interceptors=interceptors, options=options)


def _reflect(names: Sequence[str], server: Any, kind: FrontKind) -> None:
    if kind is FrontKind.NATIVE:
        # pygrpc-native hands bidirectional methods, which reflection is, to a grpcio server on a socket in a temporary
        # folder. A read-only file system is no reason not to serve flags.
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            logger.warning("reflection.left_out", reason="no writable folder for temporary files; set TMPDIR")
            return
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server, pool=_Descriptors())


class _Descriptors:
    """The default descriptor pool, which here also finds methods: some clients (ghz) ask by a method's full name."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the pool's name
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service_name, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(service_name)
            return service.methods_by_name[method].containing_service.file


def _bind(server: Any, listener: Listener, face: Face, tls: ServerTls | None, stack: contextlib.AsyncExitStack) -> str:
    # The servers say only that binding failed; the system says why.
    try_bind(listener, face)
    try:
        if listener.tls:
            assert tls is not None  # noqa: S101 - config.py gives every such listener its files
            port = server.add_secure_port(str(listener), _credentials(tls))
        else:
            port = server.add_insecure_port(str(listener))
    except RuntimeError as error:
        raise cannot_listen(listener, face, error) from error
    if isinstance(listener, TcpListener):
        return address_text(listener.host, port)
    stack.callback(listener.path.unlink, missing_ok=True)
    listener.path.chmod(listener.mode)
    return str(listener)


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    given = tls.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        # Called before each handshake, in a thread of grpcio's.
        nonlocal given
        if tls.current is given:
            return None
        given = tls.current
        return _certificates(given)

    return grpc.dynamic_ssl_server_credentials(
        _certificates(given), renewed, require_client_authentication=given.client_ca is not None
    )


def _certificates(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], material.client_ca)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: NOT_SERVING until serving() is called, and again, for good, from draining() on.

    grpcio's own servicer never ends a watch, which would hold up the drain.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._statuses = dict.fromkeys(("", *services), health_pb2.HealthCheckResponse.NOT_SERVING)
        self._draining = False
        self._changed = asyncio.Event()

    def serving(self) -> None:
        """Say SERVING, for the whole and for each service."""
        if not self._draining:
            self._say(health_pb2.HealthCheckResponse.SERVING)

    def draining(self) -> None:
        """Say NOT_SERVING, and end every watch with it."""
        self._draining = True
        self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    def _say(self, status: int) -> None:
        self._statuses = dict.fromkeys(self._statuses, status)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - grpc.health.v1's name
        """Return the status of one service; NOT_FOUND for one that is not ours."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - grpc.health.v1's name
        """Stream the status of one service, at first and at each change, until the client or the front ends it."""
        told = None
        while True:
            changed = self._changed  # taken before the status: a change in between is not missed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            elif self._draining:
                return
            else:
                await changed.wait()


async def _announce(board: Board, healths: Sequence[Health]) -> None:
    with board.watch() as watcher:
        if await watcher.next() is not None:
            for servicer in healths:
                servicer.serving()


async def _drain(servers: Sequence[Any], healths: Sequence[Health], board: Board, drain_s: float) -> None:
    for servicer in healths:
        servicer.draining()
    board.close()
    await asyncio.gather(*(server.stop(drain_s) for server in servers))


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
