"""Reads a ledger to its end and keeps what was found: the links of the chain, and how much else lies in the log."""

from collections import Counter
from typing import Final

from flaghoist.authorization import NotUnderstood
from flaghoist.errors import Refused
from flaghoist.ledger import Advanced, Applied, Dropped, Forked, Gap, Held, Ledger, Link, Outcome, Rejected
from flaghoist.log.base import Log, read_to_end
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
        links: the entries of the chain, in seq order (seq n is links[n - 1]).
        tally: how many records had each outcome, by its name.
        dropped: the first DROPPED_KEPT_MAX of the records that count for nothing, by log position.
        published: the link of each applied proposal, by the proposal's digest.
    """

    def __init__(self, log: Log, ledger: Ledger) -> None:
        self.log = log
        self.ledger = ledger
        self.position = 0
        self.links: list[Link] = []
        self.tally: Counter[str] = Counter()
        self.dropped: dict[int, Dropped] = {}
        self._gap: tuple[int, Gap] | None = None
        self.published: dict[bytes, Applied] = {}

    async def catch_up(self) -> None:
        """Read and verify what the log holds after what was read before.

        Raises:
            BrokenChain: a gap or a fork; `NotUnderstood`: a record of a newer release.
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

    def _take(self, position: int, outcome: Outcome) -> None:
        self.tally[type(outcome).__name__.lower()] += 1
        match outcome:
            case Applied():
                self.links.append(outcome)
                self.published[outcome.authorized.sha256] = outcome
            case Advanced() | Rejected():
                self.links.append(outcome)
            case Dropped():
                if len(self.dropped) < DROPPED_KEPT_MAX:
                    self.dropped[position] = outcome
            case Gap():
                self._gap = (position, outcome)  # what is missing may stand further back in the log
            case Forked():
                raise BrokenChain(f"record at position {position}: {outcome.what} at seq {outcome.seq}")
            case Held():
                raise NotUnderstood(f"record at position {position}: {outcome.refusal}")
            case _:
                pass
