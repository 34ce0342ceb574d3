"""The gRPC front: one seam between the services and the server that carries them.

pygrpc-native speaks HTTP/2 in Rust and answers about four times as many calls a second as grpcio (docs/performance.md);
it knows plaintext TCP only. grpcio carries everything else, and all of it where the wheel of the other is missing.
"""

import asyncio
import contextlib
import errno
import importlib.util
import ipaddress
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from flaghoist.errors import Misconfigured
from sidecar.board import Board

logger = structlog.get_logger()

DRAIN_S: Final = 5.0  # the slowest of our own calls takes milliseconds; this is for clients that are slow to read
REQUEST_BYTES_MAX: Final = 1024 * 1024  # flagd's limit of a body
STREAMS_PER_CONNECTION_MAX: Final = 1024  # pygrpc-native's default; a provider keeps one stream and its open calls
SOCKET_MODE: Final = 0o660  # the pod's group; services of other users share it by fsGroup

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
)


class FrontKind(StrEnum):
    """Which server carries a listener; a Unix socket is grpcio's, whatever is chosen.

    AUTO: native for plaintext loopback TCP where its wheel is installed, else grpcio.
    """

    AUTO = "auto"
    NATIVE = "native"
    GRPCIO = "grpcio"


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A plaintext TCP address; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return address_text(self.host, self.port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine (this pod) can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A Unix socket; `mode` is the file's, so its directory and group say who may connect."""

    path: Path
    mode: int = SOCKET_MODE

    def __str__(self) -> str:
        return f"unix:{self.path}"


Listener = TcpListener | UnixListener


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


@dataclass(frozen=True, slots=True)
class Front:
    """What serve() gives: the bound listeners, in the order asked for."""

    bound: tuple[Bound, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return `host:port` or `unix:path` of each listener, as gRPC clients take them."""
        return tuple(bound.address for bound in self.bound)


def address_text(host: str, port: int) -> str:
    """Return host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def native_available() -> bool:
    """Return whether pygrpc-native is installed for this platform."""
    return importlib.util.find_spec("pygrpc_native") is not None


def kind_of(listener: Listener, wanted: FrontKind) -> FrontKind:
    """Return which server carries `listener`.

    Raises:
        Misconfigured: NATIVE is wanted and not installed.
    """
    if wanted is FrontKind.GRPCIO or isinstance(listener, UnixListener):
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
    kind: FrontKind = FrontKind.AUTO,
    drain_s: float = DRAIN_S,
    options: Iterable[tuple[str, int]] = OPTIONS,
) -> AsyncIterator[Front]:
    """Serve `services`, health and reflection on every listener while the block runs; then drain.

    Health says SERVING, for the whole ("") and for each service, once `board` has a view. Leaving the block says
    NOT_SERVING, closes the board (event streams say provider_shutdown), refuses new calls, lets open ones finish within
    `drain_s` seconds, and cancels the rest.

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
            server = _server(server_kind, tuple(options))
            for service in services:
                server.add_registered_method_handlers(service.name, dict(service.handlers()))
            servicer = Health(names)
            healths.append(servicer)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
            _reflect([*names, health.SERVICE_NAME], server, server_kind)
            # Pushed before binding: whatever fails below, what was bound is closed again.
            stack.push_async_callback(server.stop, 0)
            bound.append(Bound(_bind(server, listener, stack), server_kind))
            servers.append(server)
        for server in servers:
            await server.start()
        stack.push_async_callback(_drain, servers, healths, board, drain_s)
        announcing = asyncio.create_task(_announce(board, healths), name="health")
        stack.push_async_callback(_cancelled, announcing)
        yield Front(tuple(bound))


def _server(kind: FrontKind, options: tuple[tuple[str, int], ...]) -> Any:
    if kind is FrontKind.NATIVE:
        from sidecar.native_server import NativeServer  # only where the wheel is installed

        return NativeServer(options=options)
    return grpc.aio.server(options=options)


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


def _bind(server: Any, listener: Listener, stack: contextlib.AsyncExitStack) -> str:
    if isinstance(listener, UnixListener):
        _clear_socket(listener)
    else:
        _try_bind(listener)
    try:
        port = server.add_insecure_port(str(listener))
    except RuntimeError as error:
        raise _cannot_listen(listener, error) from error
    if isinstance(listener, UnixListener):
        stack.callback(listener.path.unlink, missing_ok=True)
        listener.path.chmod(listener.mode)
        return str(listener)
    return address_text(listener.host, port)


def _try_bind(listener: TcpListener) -> None:
    # The servers say only that binding failed; the system says why.
    try:
        family, *_, address = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _cannot_listen(listener, error) from error


def _clear_socket(listener: UnixListener) -> None:
    """Remove the socket that a killed sidecar left behind; one that still answers belongs to a live one."""
    try:
        if not stat.S_ISSOCK(listener.path.stat().st_mode):
            raise Misconfigured(
                f"cannot listen on {listener}: the file exists and is not a socket",
                hint="choose another path, or remove that file",
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(listener.path))
        except ConnectionRefusedError:
            listener.path.unlink()
            return
        except OSError as error:
            raise _cannot_listen(listener, error) from error
    raise _cannot_listen(listener, OSError(errno.EADDRINUSE, "in use"))


def _cannot_listen(listener: Listener, error: Exception) -> Misconfigured:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return Misconfigured(
            f"cannot listen on {listener}: another process does",
            hint="stop the other process (another sidecar or flagd?), or choose another address with --listen",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Misconfigured(
        f"cannot listen on {listener}: {reason}", hint="choose an address that this machine has, with --listen"
    )


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
