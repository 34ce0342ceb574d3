"""How far this pod has come: what it has verified, what it answers from, and when that was."""

from flaghoist.barrier import InForce
from flaghoist.snapshot import Snapshot, View
from flaghoist.values import Seq
from sidecar.board import Board
from sidecar.steady_clock import SteadyClock


class Progress:
    """Noted by the ledger's follower; read by metrics and by the acknowledgement.

    Times are Unix milliseconds of the clock by which moments are kept, which is never set back.

    Attributes:
        started_ms: when this sidecar began.
        verified: the newest state that may be served, in force or not: in quarantine the last good one. None before the
            first look.
        applied_ms: when that was verified; 0 before the first.
        in_force: the seq that is answered from; 0 while nothing is.
        activated_ms: when it was first answered from; 0 before the first.
        late_ms: how long that was after the moment that was set for it; None when there was none, or when it had passed
            before this sidecar began, which is nobody's delay.
        next_at_ms: when the next state takes effect; None when none waits.
    """

    def __init__(self, board: Board, clock: SteadyClock) -> None:
        self._board = board
        self._clock = clock
        self._view: View | None = None
        self.started_ms = clock.now_ms
        self.verified: Snapshot | None = None
        self.applied_ms = 0
        self.in_force = Seq(0)
        self.activated_ms = 0
        self.late_ms: int | None = None
        self.next_at_ms: int | None = None

    def note(self, state: InForce) -> None:
        """Take note of what may be served, as it is verified and as it comes into force.

        Args:
            state: of the follower, right after it has shown on the board what of it is in force.
        """
        now_ms = self._clock.now_ms
        newest = state.coming[-1].snapshot if state.coming else state.snapshot
        if self.verified is None or newest.seq != self.verified.seq:
            self.applied_ms = now_ms
        self.verified = newest
        self.next_at_ms = state.next_at_ms
        view, moment_ms = self._board.view, self._board.moment_ms
        if view is not None and view is not self._view:
            self._view, self.in_force, self.activated_ms = view, view.seq, now_ms
            set_for_us = moment_ms is not None and moment_ms >= self.started_ms
            self.late_ms = now_ms - moment_ms if set_for_us and moment_ms is not None else None

    def moment_in_s(self) -> float:
        """Return the seconds until the next state takes effect; 0 when none waits."""
        return 0.0 if self.next_at_ms is None else max(0.0, (self.next_at_ms - self._clock.now_ms) / 1000)
