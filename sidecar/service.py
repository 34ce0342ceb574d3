"""The composition root: what a sidecar is made of, in the order in which it starts; it stops in reverse."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from flaghoist.errors import FlaghoistError, Misconfigured, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, Stream
from flaghoist.log.location import open_log
from flaghoist.log.reconnect import follow_reliably
from flaghoist.root import Root
from sidecar.access import GrpcAccess, guarded
from sidecar.board import Board
from sidecar.config import Config
from sidecar.faces.connect import Connect
from sidecar.faces.evaluation_v1 import DisabledOnV1, EvaluationV1
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.faces.management import Management
from sidecar.faces.ofrep import Ofrep
from sidecar.faces.sync import Sync
from sidecar.follow import Follow, Follower
from sidecar.front import FrontKind, Service, serve
from sidecar.http_app import Cors, HttpApp, HttpFace
from sidecar.http_front import HttpFront, serve_http
from sidecar.keep import Kept
from sidecar.listeners import Face
from sidecar.metrics import SidecarMetrics
from sidecar.renewal import keep_renewed
from sidecar.report import BoundedReport
from sidecar.request import RequestReader
from sidecar.tls import ServerTls
from sidecar.tokens import Tokens

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(config: Config) -> None:
    """Follow, keep, answer, until the first SIGTERM or SIGINT; then drain.

    Raises:
        Misconfigured: the root, the ledger, the state directory, a listener, TLS or the tokens cannot be used; nothing
            was served.
    """
    root = load_root(config.root)
    follow = _reader(config.ledger)
    tls = None if config.tls is None else ServerTls(config.tls, time.time)
    tokens = None if config.token_file is None else Tokens(config.token_file)
    report = BoundedReport(logger, time.monotonic)
    async with AsyncExitStack() as stack:
        kept = _open_kept(config.state_dir, root)
        if kept is not None:
            stack.callback(kept.close)
        board = Board(time.time)
        follower = Follower(Ledger(root), board, kept, report=report, clock=time.time, fresh_for_s=config.fresh_for_s)
        follower.load_kept()
        await stack.enter_async_context(_faces(config, board, follower, tls, tokens))
        with _signals() as stopping:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(follower.run(follow), name="follow")]
                working += [
                    tasks.create_task(keep_renewed(renewable, report), name=renewable.name)
                    for renewable in (tls, tokens)
                    if renewable is not None
                ]
                await stopping.wait()  # cancelled here when a task fails
                for task in working:
                    task.cancel()
            logger.info("sidecar.draining", drain_s=config.drain_s)
    logger.info("sidecar.stopped", tally=dict(follower.tally))


@asynccontextmanager
async def _faces(
    config: Config, board: Board, follower: Follower, tls: ServerTls | None, tokens: Tokens | None
) -> AsyncIterator[None]:
    """Serve every face while the block runs; then drain all but management together, and management last.

    So readiness can be asked for during the drain, and the drain takes `drain_s`, however many faces there are.
    """
    events = EventStreams(board)
    requests = RequestReader(static_context=config.context_value, header_context=config.context_from_header)
    evaluation = [
        EvaluationV1(board, events, requests=requests, disabled=DisabledOnV1(config.disabled_on_v1)),
        EvaluationV2(board, events, requests=requests),
    ]
    over_grpc: dict[Face, list[Service]] = {
        Face.RPC: [*evaluation],
        Face.SYNC: [Sync(board, static_context=config.context_value)],
    }
    fronts: list[HttpFront] = []
    management = Management(board, SidecarMetrics(board, follower.tally, events, lambda: fronts))
    evaluation_over_http: dict[bytes, HttpFace] = {b"ofrep": Ofrep(board, requests=requests)}
    evaluation_over_http |= {service.name.encode(): Connect(service) for service in evaluation}
    cors = Cors(config.cors_origins) if config.cors_origins else None

    async def open_http(stack: AsyncExitStack, face: Face, faces: Mapping[bytes, HttpFace], cors: Cors | None) -> None:
        app = HttpApp(face, guarded(faces, tokens), cors=cors)
        listen = config.listen[face]
        front = await stack.enter_async_context(serve_http(app, listen, face=face, tls=tls, drain_s=config.drain_s))
        fronts.append(front)
        for address, listener in zip(front.addresses, listen, strict=True):
            logger.info("front.opened", face=face, address=address, server="uvicorn", tls=listener.tls)

    async with AsyncExitStack() as outer:
        await open_http(outer, Face.MANAGEMENT, management.faces, None)
        together: list[AsyncExitStack] = []
        outer.push_async_callback(_close_together, together)
        for face, services in over_grpc.items():
            together.append(AsyncExitStack())
            front = await together[-1].enter_async_context(
                serve(
                    services,
                    config.listen[face],
                    board=board,
                    face=face,
                    # Of sets that go to many streams the native server keeps the memory (docs/sync.md).
                    kind=FrontKind(config.server) if face is Face.RPC else FrontKind.GRPCIO,
                    tls=tls,
                    interceptors=[] if tokens is None else [GrpcAccess(tokens)],
                    drain_s=config.drain_s,
                )
            )
            for bound in front.bound:
                logger.info("front.opened", face=face, address=bound.address, server=bound.kind, tls=bound.tls)
        together.append(AsyncExitStack())
        await open_http(together[-1], Face.OFREP, evaluation_over_http, cors)
        yield


async def _close_together(stacks: Sequence[AsyncExitStack]) -> None:
    await asyncio.gather(*(stack.aclose() for stack in stacks))


def load_root(path: Path) -> Root:
    """Return the pinned root in a file.

    Raises:
        Misconfigured: no such file, or not a root whose keys, roles and signatures hold.
    """
    try:
        return Root.from_bytes(path.read_bytes())
    except OSError as error:
        raise Misconfigured(
            f"root {path}: cannot be read: {error.strerror}",
            hint="give the file that `flaghoist init` wrote with --root; it is not secret",
        ) from error
    except FlaghoistError as error:
        raise Misconfigured(f"root {path}: {error}", hint="give the file that `flaghoist init` wrote") from error


def _reader(url: str) -> Follow:
    opened = open_log(url)

    def follow(start: int, on_lost: Callable[[Unavailable], None]) -> AsyncGenerator[Batch, None]:
        return follow_reliably(opened, Stream.LEDGER, start, on_lost=on_lost)

    return follow


def _open_kept(state_dir: Path, root: Root) -> Kept | None:
    """Open what this pod keeps of this ledger; a disk that cannot be written is no reason not to serve."""
    try:
        return Kept.open(state_dir / f"{root.log_id}-{root.sha256.hex()[:16]}.entries")
    except Misconfigured as error:
        logger.warning("kept_state.unavailable", reason=str(error), hint=error.hint)
        return None


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Set the event at the first SIGTERM or SIGINT; the second ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard(number: int) -> None:
        if stopping.is_set():
            raise SystemExit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)
    # Not removed: a second signal during the drain must be heard as well.
    yield stopping
