"""The composition root: what a sidecar is made of, in the order in which it starts; it stops in reverse."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from flaghoist.errors import Misconfigured, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, OpenLog, Stream
from flaghoist.log.entries_file import SUFFIX
from flaghoist.log.location import open_log
from flaghoist.log.reconnect import follow_reliably
from flaghoist.root_chain import Beginning
from sidecar.access import GrpcAccess, guarded
from sidecar.acks import Identity
from sidecar.board import Board
from sidecar.config import Config
from sidecar.faces.connect import Connect
from sidecar.faces.evaluation_v1 import DisabledOnV1, EvaluationV1
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.faces.management import Management
from sidecar.faces.ofrep import Ofrep
from sidecar.faces.sync import Sync
from sidecar.fleet_watch import FleetWatch
from sidecar.floors import Floors
from sidecar.follow import Follow, Follower
from sidecar.freshness_watch import FreshnessWatch
from sidecar.front import FrontKind, Service, serve
from sidecar.http_app import Cors, HttpApp, HttpFace
from sidecar.http_front import HttpFront, serve_http
from sidecar.keep import Kept, entry_hash_of
from sidecar.listeners import Face
from sidecar.metrics import SidecarMetrics
from sidecar.pinned_root import PinnedRoot
from sidecar.renewal import keep_renewed
from sidecar.report import BoundedReport
from sidecar.request import RequestReader
from sidecar.restarting import Restarting
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock
from sidecar.tls import ServerTls
from sidecar.tokens import Tokens

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(config: Config, *, wall: Callable[[], float] = time.time) -> None:
    """Follow, keep, answer, until the first SIGTERM or SIGINT; then drain.

    Args:
        wall: this machine's clock (Unix seconds).

    Raises:
        Misconfigured: the root, the ledger, the state directory, a listener, TLS or the tokens cannot be used; nothing
            was served.
    """
    pin = PinnedRoot.load(config.root)
    opened = open_log(config.ledger)
    tls = None if config.tls is None else ServerTls(config.tls, time.time)
    tokens = None if config.token_file is None else Tokens(config.token_file)
    report = BoundedReport(logger, time.monotonic)
    board, status = Board(wall), Status()
    async with AsyncExitStack() as stack:
        verifying = Verifying(config, board, status, report, opened, wall)
        stack.callback(verifying.close)
        if (begins := pin.at_hand(config.state_dir)) is not None:
            verifying.begin(begins)
        else:
            board.withheld = "the pinned root was not found yet: it is looked for in the ledger"
        await stack.enter_async_context(_faces(config, board, status, tls, tokens))
        with _signals() as stopping:
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(verifying.run(pin), name="verify")]
                working += [
                    tasks.create_task(keep_renewed(renewable, report), name=renewable.name)
                    for renewable in (tls, tokens)
                    if renewable is not None
                ]
                await stopping.wait()  # cancelled here when a task fails
                for task in working:
                    task.cancel()
            logger.info("sidecar.draining", drain_s=config.drain_s)
    logger.info("sidecar.stopped", tally=dict(status.tally))


class Verifying:
    """All that reads and verifies: made once it is known where the ledger begins."""

    def __init__(
        self,
        config: Config,
        board: Board,
        status: Status,
        report: BoundedReport,
        opened: OpenLog,
        wall: Callable[[], float],
    ) -> None:
        self._config = config
        self._board = board
        self._status = status
        self._report = report
        self._opened = opened
        self._wall = wall
        self._kept: Kept | None = None
        self._follower: Follower | None = None
        self._watch: FreshnessWatch | None = None
        self._beats = Restarting()
        self._fleet: FleetWatch | None = None

    def begin(self, begins: Beginning) -> None:
        """Make the verifier, and serve what this pod kept."""
        config, clock = self._config, SteadyClock(self._wall)
        ledger = Ledger(begins.root, begins.pinned)
        self._kept = _open_kept(config.state_dir, begins, config.floors)
        self._watch = FreshnessWatch(
            ledger,
            self._board,
            clock=clock,
            fresh_for_s=config.fresh_for_s,
            status=self._status,
            report=self._report,
            renew_clients=self._renew_clients,
        )
        self._follower = Follower(
            ledger,
            self._board,
            self._kept,
            watch=self._watch,
            status=self._status,
            report=self._report,
            clock=clock,
            floors=config.floors,
            require_fresh=config.require_fresh_on_cold_start,
        )
        self._fleet = FleetWatch(
            ledger,
            self._board,
            self._opened,
            follower=self._follower,
            watch=self._watch,
            identity=Identity(config.instance, config.service) if config.acks else None,
            status=self._status,
            clock=clock,
            report=self._report,
        )
        self._follower.load_kept()

    async def run(self, pin: PinnedRoot) -> None:
        """Read until cancelled.

        Raises:
            Misconfigured: the ledger does not lead to the pinned root, or cannot be followed, and nothing is served.
        """
        follow = _reader(self._opened, Stream.LEDGER)
        if self._follower is None:
            logger.info("root.searched", sha256=pin.sha256.hex())
            self.begin(await pin.in_ledger(follow, self._lost))
        follower, watch, fleet = self._follower, self._watch, self._fleet
        assert follower is not None  # noqa: S101 (begin() made all)
        assert watch is not None  # noqa: S101
        assert fleet is not None  # noqa: S101
        beats = _reader(self._opened, Stream.META)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run(follow), name="follow")
            tasks.create_task(self._beats.run(lambda: watch.follow(beats)), name="heartbeats")
            tasks.create_task(watch.run(), name="freshness")
            tasks.create_task(fleet.run(), name="fleet")

    def close(self) -> None:
        """Close what was kept; later writes do nothing."""
        if self._kept is not None:
            self._kept.close()

    def _lost(self, error: Unavailable) -> None:
        self._report.warning("ledger.lost", code=error.code, reason=str(error))

    def _renew_clients(self) -> None:
        if self._follower is not None:
            self._follower.renew_client()
        self._beats.restart()


@asynccontextmanager
async def _faces(
    config: Config, board: Board, status: Status, tls: ServerTls | None, tokens: Tokens | None
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
    sync = Sync(board, static_context=config.context_value)
    over_grpc: dict[Face, list[Service]] = {
        Face.RPC: [*evaluation],
        Face.SYNC: [sync],
    }
    fronts: list[HttpFront] = []
    metrics = SidecarMetrics(board, status.tally, events, lambda: fronts, status=status, sync=sync)
    management = Management(board, metrics, status)
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


def _reader(opened: OpenLog, stream: Stream) -> Follow:
    def follow(start: int, on_lost: Callable[[Unavailable], None]) -> AsyncGenerator[Batch, None]:
        return follow_reliably(opened, stream, start, on_lost=on_lost)

    return follow


def _open_kept(state_dir: Path, begins: Beginning, floors: Floors) -> Kept | None:
    """Open what this pod keeps of this ledger; a disk that cannot be written is no reason not to serve.

    The name says the ledger and its first root, so that a pod finds its state whichever root it is pinned to.
    """
    root = begins.root
    try:
        kept = Kept.open(state_dir / f"{root.log_id}-{root.sha256.hex()[:16]}{SUFFIX}")
    except Misconfigured as error:
        logger.warning("kept_state.unavailable", reason=str(error), hint=error.hint)
        return None
    floor = floors.entry
    if floor.entry_hash is not None:
        found = entry_hash_of(kept, floor.seq)
        if found is not None and found != floor.entry_hash:
            # Of another history from somewhere before the floor on: none of it can be built upon.
            try:
                aside = kept.set_aside()
            except OSError as error:
                kept.close()
                logger.warning("kept_state.unavailable", reason=f"{kept.path}: {error.strerror}")
                return None
            logger.error("kept_state.below_floor", seq=floor.seq.number, got=found.hex(), aside=str(aside))
    return kept


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
