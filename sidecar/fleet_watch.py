"""What this pod has to do with the others: it tells how far it is, and compares its state with the publisher's."""

import asyncio
from collections.abc import Awaitable, Callable

from flaghoist.barrier import InForce
from flaghoist.ledger import Ledger
from flaghoist.log.base import OpenLog
from sidecar.acks import Acks, Identity
from sidecar.board import Board
from sidecar.divergence import Divergence
from sidecar.follow import Follower
from sidecar.freshness_watch import FreshnessWatch
from sidecar.progress import Progress
from sidecar.report import BoundedReport
from sidecar.state_digest import StateDigests
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock


class FleetWatch:
    """Is told by the two followers of what changed, and does the rest beside them.

    Made before the follower loads what it kept: from then on it notes how far this pod has come.

    Args:
        open_log: opens the ledger's streams.
        identity: who acknowledges; None: nobody, and the state is compared all the same.
        clock: the followers' clock.
        sleep: waits that many seconds for the stream of acknowledgements.
    """

    def __init__(
        self,
        ledger: Ledger,
        board: Board,
        open_log: OpenLog,
        *,
        follower: Follower,
        watch: FreshnessWatch,
        identity: Identity | None,
        status: Status,
        clock: SteadyClock,
        report: BoundedReport,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        digests = StateDigests()
        self.progress = Progress(board, clock)
        self.divergence = Divergence(lambda: watch.heartbeats.newest, self.progress, digests)
        self.acks: Acks | None = None
        if identity is not None:
            self.acks = Acks(
                open_log,
                ledger,
                board,
                identity=identity,
                progress=self.progress,
                digests=digests,
                status=status,
                clock=clock,
                report=report,
                sleep=sleep,
            )
        status.progress, status.divergence = self.progress, self.divergence
        follower.on_change = self._changed
        watch.on_looked = self._looked

    async def run(self) -> None:
        """Tell and compare until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.divergence.run(), name="divergence")
            if self.acks is not None:
                tasks.create_task(self.acks.run(), name="acknowledge")

    def _changed(self, state: InForce) -> None:
        self.progress.note(state)
        self._looked()

    def _looked(self) -> None:
        self.divergence.note()
        if self.acks is not None:
            self.acks.note()
