"""Reads a ledger to its end and keeps what was found: the links of the chain, and how much else lies in the log."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from flaghoist.authorization import NotUnderstood
from flaghoist.errors import Refused
from flaghoist.ledger import Ledger
from flaghoist.log.base import Log, read_to_end
from flaghoist.outcomes import (
    Advanced,
    Applied,
    Dropped,
    Forked,
    Gap,
    Held,
    Link,
    Outcome,
    Prepared,
    Ratified,
    Rejected,
    RootChanged,
    Stepped,
)
from flaghoist.snapshot import paused_collector

# A flood of junk must not fill the memory: only so many are kept as examples, all are counted.
DROPPED_KEPT_MAX: Final = 20


class BrokenChain(Refused):
    """The ledger cannot be followed any further: entries are missing, or the publisher's key signed two histories."""

    code = "broken_chain"
    hint = "run `flaghoist audit verify` to see where; change nothing until you know why"


class LedgerReader:
    """One ledger as this process has read it so far.

    Attributes:
        links: the entries of the chain, in seq order (seq n is links[n - 1]); only `ledger` has the state.
        tally: how many records had each outcome, by its name.
        dropped: the first DROPPED_KEPT_MAX of the records that count for nothing, by log position.
        published: the link of each applied proposal, by the proposal's digest.
        ratified: the link of each ratified emergency, by the proposal's digest.
        prepared: the newest link that prepared a proposal, by the proposal's digest.
        forks: proofs of other histories, by log position; the first DROPPED_KEPT_MAX of them.

    Args:
        through_quarantine: read on past a proof of another history, along the one that was read first: for the audit,
            and for who publishes the root that cures it.
        on_link: told of each link while `ledger` is at it.
    """

    def __init__(
        self,
        log: Log,
        ledger: Ledger,
        *,
        through_quarantine: bool = False,
        on_link: Callable[[Link], None] | None = None,
    ) -> None:
        self.log = log
        self._on_link = on_link
        self.ledger = ledger
        self.through_quarantine = through_quarantine
        self.forks: dict[int, Forked] = {}
        self.ratified: dict[bytes, Ratified] = {}
        self.prepared: dict[bytes, Prepared] = {}
        self.position = 0
        self.links: list[Link] = []
        self.tally: Counter[str] = Counter()
        self.dropped: dict[int, Dropped] = {}
        self._gap: tuple[int, Gap] | None = None
        self.published: dict[bytes, Applied] = {}

    async def catch_up(self) -> None:
        """Read and verify what the log holds after what was read before.

        Raises:
            BrokenChain: a gap, or a fork that no later root has cured.
            NotUnderstood: a record of a newer release.
            Unavailable: the log.
        """
        with paused_collector():
            async for record in read_to_end(self.log, self.position):
                self._take(record.position, self.ledger.receive(record.value))
                self.position = record.position + 1
        if self._gap is not None and self._gap[1].got > self.ledger.head.seq:
            position, gap = self._gap
            raise BrokenChain(
                f"record at position {position}: expected seq {self.ledger.head.seq.next()}, got {gap.got}"
            )

        proof = self.ledger.quarantined_by
        if proof is not None and not self.through_quarantine:
            raise BrokenChain(
                f"{proof.what} at seq {proof.seq}: keys {', '.join(sorted(proof.signers))} have signed another history"
            )

    def _take(self, position: int, outcome: Outcome) -> None:
        self.tally[type(outcome).__name__.lower()] += 1
        if self._on_link is not None and isinstance(outcome, Link):
            self._on_link(outcome)
        match outcome:
            case Applied():
                kept = outcome.without_state()
                self.links.append(kept)
                self.published[kept.authorized.sha256] = kept
            case Ratified():
                self.links.append(outcome)
                self.ratified[outcome.authorized.sha256] = outcome
            case Prepared():
                self.links.append(outcome)
                self.prepared[outcome.authorized.sha256] = outcome
            case Stepped():
                self.links.append(outcome.without_state())
            case Advanced() | RootChanged() | Rejected():
                self.links.append(outcome)
            case Dropped():
                if len(self.dropped) < DROPPED_KEPT_MAX:
                    self.dropped[position] = outcome
            case Gap():
                self._gap = (position, outcome)  # what is missing may stand further back in the log
            case Forked():
                if len(self.forks) < DROPPED_KEPT_MAX:
                    self.forks[position] = outcome
            case Held():
                raise NotUnderstood(f"record at position {position}: {outcome.refusal}")
            case _:
                pass
