"""Reads a ledger for an audit: opens it, verifies every record, tells how far it is, and what is wrong at the end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flaghoist.errors import LogMissing, Refused
from flaghoist.log.base import Stream, read_to_end
from flaghoist.snapshot import Snapshot, paused_collector
from flaghoist.values import Seq
from publisher.audit.account import Account
from publisher.audit.examination import Break, Examination
from publisher.cli.desk import Exit
from publisher.cli.reading import begun_ledger
from publisher.cli.workspace import Workspace
from publisher.reader import BrokenChain

# Who waits longer than this wants to know for what.
PROGRESS_EVERY_S: Final = 2.0

Watch = Callable[[Account, Snapshot], None]


class UnknownEntry(Refused):
    """No entry of that seq, or of that time."""

    code = "unknown_entry"
    hint = "see which there are with `flaghoist audit log`"


@dataclass(frozen=True, slots=True)
class Examined:
    """A ledger, verified from its first record to its end or to where it breaks; an account of every entry."""

    examination: Examination
    accounts: list[Account]

    @property
    def head(self) -> Seq:
        return self.examination.ledger.head.seq

    def account_at(self, seq: Seq) -> Account:
        """Return the account of one entry.

        Raises:
            UnknownEntry: there is none.
        """
        if not Seq(1) <= seq <= self.head:
            raise UnknownEntry(f"seq {seq}: want 1 .. {self.head}, where the ledger ends")
        return self.accounts[seq.number - 1]

    def in_force_at(self, at_ms: int) -> Account:
        """Return the newest entry that was published by then (Unix ms); rejected ones do not count.

        Raises:
            UnknownEntry: the ledger is younger.
        """
        found = None
        for account in self.accounts:
            if account.refusal is None:
                if account.entry.published_at > at_ms:
                    break
                found = account
        if found is None:
            first = self.accounts[0].entry.published_at
            raise UnknownEntry(f"time {at_ms} (Unix ms): want {first} or later, when the ledger begins")
        return found


def examine(work: Workspace, *, watch: Watch | None = None) -> Examined:
    """Read and verify the whole ledger of a workspace.

    Args:
        watch: sees each entry with the state that it made. The states are not kept.

    Raises:
        Misconfigured, LogMissing: there is nothing to read.
        WrongRoot: it is the ledger of another environment.
        RootUnknown: it does not state the pinned root.
        Unavailable: the log.
    """
    return asyncio.run(_examine(work, watch))


async def _examine(work: Workspace, watch: Watch | None) -> Examined:
    async with work.open_log(Stream.LEDGER) as log:
        examination = Examination(await begun_ledger(log, work.root))
        accounts: list[Account] = []
        end = await log.end()
        told_at = time.monotonic()
        with paused_collector():
            async for record in read_to_end(log):
                account = examination.take(record.position, record.value)
                if account is not None:
                    accounts.append(account)
                    if watch is not None:
                        watch(account, examination.snapshot)
                if time.monotonic() - told_at >= PROGRESS_EVERY_S:
                    told_at = time.monotonic()
                    head = examination.ledger.head.seq
                    work.desk.say(f"verified up to seq {head}, position {record.position} of {end}")
    check_begun(examination, work.environment.ledger)
    return Examined(examination, accounts)


def check_begun(examination: Examination, url: str) -> None:
    """Refuse a ledger that does not start with the trusted root.

    Raises:
        WrongRoot: it holds records, and none of this root.
        LogMissing: it holds none.
    """
    if not examination.records:
        raise LogMissing(f"ledger {url}: empty", hint="`flaghoist init` did not finish: run it again")
    if (refusal := examination.wrong_root()) is not None:
        raise refusal


def broken_chain(examination: Examination, found: Break) -> BrokenChain:
    """Return the error that says where a ledger breaks, and how far it was verified."""
    head = examination.ledger.head
    return BrokenChain(f"{found}; verified up to seq {head.seq} ({head.entry_hash.hex()})")


def conclude(work: Workspace, examination: Examination) -> Exit:
    """End a command that has told what was verified: OK, or REFUSED with a warning where the chain breaks."""
    found = examination.broken
    if found is None:
        return Exit.OK
    work.desk.warn(f"the chain breaks: {broken_chain(examination, found)}; what is told here is what came before")
    return Exit.REFUSED
