"""What was served at a time: states in the order in which they took effect, by clocks that are exact.

The ledger's state is the fold of its entries; a moment says since when it is served, and a kill waits for none
(flaghoist.barrier, as in every sidecar).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flaghoist.barrier import InForce
from flaghoist.outcomes import Applied, Ratified
from flaghoist.snapshot import Snapshot
from flaghoist.values import Seq
from publisher.audit.account import Account, EntryKind


@dataclass(frozen=True, slots=True)
class Serving:
    """A state that was served from `from_ms` on (Unix ms).

    Attributes:
        account: the entry that took effect then: the state's own, or an emergency ahead of what still waited.
        snapshot: the state; its seq is that of the newest entry in force, emergencies ahead of their turn aside.
    """

    account: Account
    snapshot: Snapshot
    from_ms: int


class Servings:
    """Follows a ledger as a sidecar does that reads each entry when it is published, with an exact clock."""

    def __init__(self) -> None:
        self._in_force: InForce | None = None
        self._waiting: dict[Seq, Account] = {}
        self._now_ms = 0

    def take(self, account: Account, snapshot: Snapshot) -> Iterator[Serving]:
        """Yield what took effect up to and with an entry, oldest first.

        Args:
            account: of an entry that was not rejected; the time of such is nobody's word.
            snapshot: the ledger's state after it.
        """
        now_ms = max(self._now_ms, account.entry.published_at)
        if account.kind is not EntryKind.DRILL and isinstance(account.link, Applied | Ratified):
            self._now_ms = now_ms  # nothing bounds the times of all others: they may be dated ahead
        yield from self.until(now_ms)
        before = self._in_force
        self._in_force = (before or InForce(snapshot)).take(account.link, snapshot, now_ms=now_ms)
        if self._in_force.snapshot.seq == account.seq:
            self._waiting.clear()
            yield Serving(account, self._in_force.snapshot, now_ms)
            return
        self._waiting[account.seq] = account
        if before is None or self._in_force.snapshot is not before.snapshot:  # an emergency, ahead of its turn
            yield Serving(account, self._in_force.snapshot, now_ms)

    def until(self, at_ms: int) -> Iterator[Serving]:
        """Yield what waited and took effect by a time (Unix ms), oldest first."""
        while self._in_force is not None and (due_ms := self._in_force.next_at_ms) is not None and due_ms <= at_ms:
            before, self._in_force = self._in_force, self._in_force.at(due_ms)
            # Those that waited for one moment are told one by one: who changed an answer is one of them.
            for number in range(len(before.coming) - len(self._in_force.coming)):
                coming = before.coming[: number + 1]
                reached = replace(before, coming=coming).at(due_ms)
                yield Serving(self._waiting.pop(coming[-1].snapshot.seq), reached.snapshot, due_ms)
