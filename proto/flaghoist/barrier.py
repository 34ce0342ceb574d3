"""Which state is in force at a moment: entries take effect in seq order, none before its moment. Pure; time is given.

What the ledger's state *is* never depends on a clock: it is the fold of all entries. Only since when it is served does.
Emergencies wait for nothing: what they kill is dead in every state that is served from then on (design §7).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flaghoist.errors import Refused
from flaghoist.outcomes import Applied, Link, Stepped
from flaghoist.records import Op
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.snapshot import Snapshot
from flaghoist.values import ProposalKind, Seq


@dataclass(frozen=True, slots=True)
class Coming:
    """A state that is verified, and not in force before `at_ms` (Unix ms, by the reader's clock)."""

    at_ms: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class _Kill:
    seq: Seq
    ops: Sequence[Op]


@dataclass(frozen=True, slots=True)
class InForce:
    """The state in force, and those to come, in seq order.

    Attributes:
        snapshot: what is served. Its seq is that of the last entry in force; emergencies after it are in it too.
        moment_ms: when the newest of it was to take effect (Unix ms); None: at once.
        coming: what waits for its moment.
    """

    snapshot: Snapshot
    moment_ms: int | None = None
    coming: tuple[Coming, ...] = ()
    _kills: tuple[_Kill, ...] = ()
    # The newest emergency that did not wait with the others, and the seq of the state that it was put in force in.
    _overlaid: tuple[Seq, Seq] | None = None

    def take(self, link: Link, snapshot: Snapshot, *, now_ms: int) -> "InForce":
        """Return what is in force, and to come, after one more link.

        Args:
            snapshot: the ledger's state after it.
            now_ms: the reader's clock. No entry waits for longer than LEAD_MS_MAX from now, whatever it says: one
                that a wrong clock, or a thief, has dated ahead would hold up all that come after it.
        """
        moment_ms = link.in_force_at_ms if isinstance(link, Applied | Stepped) else 0
        before = self.at(now_ms)
        waits_until_ms = min(max(moment_ms, before.coming[-1].at_ms if before.coming else 0), now_ms + LEAD_MS_MAX)
        if waits_until_ms <= now_ms:
            return InForce(snapshot, moment_ms or None, _overlaid=before._overlaid)
        # A clock that was set back has shortened the wait of this one: those before it must not come after it.
        earlier = before.coming
        if earlier and earlier[-1].at_ms > waits_until_ms:
            earlier = tuple(Coming(min(each.at_ms, waits_until_ms), each.snapshot) for each in earlier)
        after = replace(before, coming=(*earlier, Coming(waits_until_ms, snapshot)))
        if isinstance(link, Applied) and link.authorized.proposal.kind is ProposalKind.EMERGENCY:
            kill = _Kill(link.entry.seq, link.authorized.proposal.ops)
            return replace(after, moment_ms=None, _overlaid=(kill.seq, after.snapshot.seq))._killed(kill)
        return after

    def at(self, now_ms: int) -> "InForce":
        """Return what is in force at a moment; itself when nothing has changed."""
        due = [each for each in self.coming if each.at_ms <= now_ms]
        if not due:
            return self
        newest = due[-1]
        later = tuple(each for each in self.coming if each.at_ms > now_ms)
        reached = InForce(newest.snapshot, newest.at_ms, later, _overlaid=self._overlaid)
        for kill in self._kills:
            # Not of `newest`: one kill may have had everything that waits put in force, the others with it.
            if kill.seq > reached.snapshot.seq:
                reached = reached._killed(kill)
        return reached

    def pinnable_from(self, min_pin: Seq) -> Seq:
        """Return the seq from which on states that were served may be served again.

        Args:
            min_pin: from which entry on the ledger allows it. A state that was in force with an emergency in it is
                safe too, though its seq is that of an earlier entry; calls on their way are pinned to it.
        """
        return self._overlaid[1] if self._overlaid is not None and self._overlaid[0] == min_pin else min_pin

    @property
    def next_at_ms(self) -> int | None:
        """When the next state takes effect (Unix ms); None when none waits."""
        return self.coming[0].at_ms if self.coming else None

    def _killed(self, kill: _Kill) -> "InForce":
        """Return it with an emergency in force that is behind what waits."""
        try:
            snapshot = self.snapshot.fold(self.snapshot.seq, _as_they_apply_to(self.snapshot, kill.ops))
        except Refused:
            # It kills by what an entry that waits has brought, a safe variant say: then that must not wait either.
            return InForce(self.coming[-1].snapshot)
        return replace(self, snapshot=snapshot, _kills=(*self._kills, kill))


def _as_they_apply_to(snapshot: Snapshot, ops: Sequence[Op]) -> list[Op]:
    """Return the ops of an emergency for another state than the one that they were made for."""
    return [replace(op, expected_version=snapshot.version_of(op.state_id)) for op in ops if snapshot.has(op.state_id)]
