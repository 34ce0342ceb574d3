"""The composition root: what a sidecar is made of, in the order in which it starts; it stops in reverse."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import structlog

from flaghoist.errors import FlaghoistError, Misconfigured, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, Stream
from flaghoist.log.location import open_log
from flaghoist.log.reconnect import follow_reliably
from flaghoist.root import Root
from sidecar.board import Board
from sidecar.config import Config
from sidecar.faces.evaluation_v1 import DisabledOnV1, EvaluationV1
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.follow import Follow, Follower
from sidecar.front import FrontKind, Listener, TcpListener, UnixListener, serve
from sidecar.keep import Kept
from sidecar.report import BoundedReport

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(config: Config) -> None:
    """Follow, keep, answer, until the first SIGTERM or SIGINT; then drain.

    Raises:
        Misconfigured: the root, the ledger, the state directory or a listener cannot be used; nothing was served.
    """
    root = load_root(config.root)
    follow = _reader(config.ledger)
    async with AsyncExitStack() as stack:
        kept = _open_kept(config.state_dir, root)
        if kept is not None:
            stack.callback(kept.close)
        board = Board(time.time)
        follower = Follower(
            Ledger(root),
            board,
            kept,
            report=BoundedReport(logger, time.monotonic),
            clock=time.time,
            fresh_for_s=config.fresh_for_s,
        )
        follower.load_kept()
        events = EventStreams(board)
        services = [
            EvaluationV1(board, events, disabled=DisabledOnV1(config.disabled_on_v1)),
            EvaluationV2(board, events),
        ]
        front = await stack.enter_async_context(
            serve(
                services,
                _listeners(config),
                board=board,
                kind=FrontKind(config.server),
                drain_s=config.drain_s,
            )
        )
        for bound in front.bound:
            logger.info("front.opened", address=bound.address, server=bound.kind)
        with _signals() as stopping:
            async with asyncio.TaskGroup() as tasks:
                feed = tasks.create_task(follower.run(follow), name="follow")
                stop = tasks.create_task(stopping.wait(), name="stop")
                stop.add_done_callback(lambda _: feed.cancel())
                feed.add_done_callback(lambda _: stop.cancel())
            logger.info("sidecar.draining", drain_s=config.drain_s)
    logger.info("sidecar.stopped", tally=dict(follower.tally))


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


def _listeners(config: Config) -> list[Listener]:
    listeners: list[Listener] = [TcpListener(*config.listen)]
    if config.unix_socket is not None:
        listeners.append(UnixListener(config.unix_socket))
    return listeners


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
