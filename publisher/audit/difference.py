"""What differs between the states at two seqs, worked out from the entries between them."""

from collections.abc import Iterable
from dataclasses import dataclass

from flaghoist.values import Seq, StateId
from publisher.audit.account import Account
from publisher.audit.wording import change_words
from publisher.plan import same


@dataclass(frozen=True, slots=True)
class Delta:
    """One definition that differs; `seqs` are the entries between the two states that changed it, oldest first.

    `before` and `after` are None where there is none.
    """

    state_id: StateId
    before: bytes | None
    after: bytes | None
    seqs: tuple[Seq, ...]

    @property
    def verb(self) -> str:
        if self.after is None:
            return "removed"
        return "added" if self.before is None else "changed"

    def words(self) -> list[str]:
        """Return what differs, in words."""
        return change_words(self.state_id.target, self.before, self.after)


def difference(accounts: Iterable[Account], old: Seq, new: Seq) -> list[Delta]:
    """Return the definitions that differ between the states at `old` and at `new`, sorted.

    A definition that was changed and changed back does not differ. With `new` before `old` it is told backwards.

    Args:
        accounts: of the whole chain, in seq order.
    """
    first, last = min(old, new), max(old, new)
    befores: dict[StateId, bytes | None] = {}
    afters: dict[StateId, bytes | None] = {}
    seqs: dict[StateId, list[Seq]] = {}
    for account in accounts:
        if not first < account.seq <= last:
            continue
        for change in account.changes:
            state_id = change.op.state_id
            befores.setdefault(state_id, change.before)
            afters[state_id] = change.after
            seqs.setdefault(state_id, []).append(account.seq)
    deltas = []
    for state_id in sorted(befores):
        before, after = befores[state_id], afters[state_id]
        if not same(before, after):
            pair = (before, after) if old <= new else (after, before)
            deltas.append(Delta(state_id, *pair, tuple(seqs[state_id])))
    return deltas
