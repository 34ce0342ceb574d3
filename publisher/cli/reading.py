"""Reads what a command needs of the ledger and its inbox: opens, reads to the end, verifies, closes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flaghoist.codec import ROOT
from flaghoist.errors import LogMissing, WrongRoot
from flaghoist.ledger import Ledger
from flaghoist.log.base import Log, OpenLog, Stream, read_to_end
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.root_chain import RootUnknown, beginning
from flaghoist.snapshot import Snapshot
from flaghoist.values import Seq, Source, StateId
from publisher.cli.desk import Interrupted
from publisher.cli.workspace import Workspace
from publisher.documents import Documents, flag_named
from publisher.inbox import Inbox
from publisher.reader import LedgerReader


@dataclass
class Reading:
    """A ledger, verified from its first entry to its end, and the records of the inbox if they were asked for."""

    reader: LedgerReader
    inbox_records: Sequence[bytes] = field(default=(), repr=False)

    @property
    def root(self) -> Root:
        """The root in force."""
        return self.reader.ledger.root

    @property
    def snapshot(self) -> Snapshot:
        return self.reader.ledger.snapshot

    @cached_property
    def documents(self) -> Documents:
        return Documents.of(self.reader.links)

    @cached_property
    def inbox(self) -> Inbox:
        return Inbox.gathered(self.root, self.inbox_records)

    def flag_named(self, text: str) -> StateId:
        """Return the flag that KEY or SOURCE#KEY means; a bare KEY means the served one."""
        return flag_named(text, self._served_by(text))

    def find_flag(self, text: str) -> StateId:
        """Return the flag in force that KEY or SOURCE#KEY means.

        Raises:
            UnknownFlag: there is none.
        """
        return self.documents.find_flag(text, self._served_by(text))

    def _served_by(self, text: str) -> Source | None:
        served = self.snapshot.view.flags.get(text)
        return served.source if served is not None else None


def read(work: Workspace, *, inbox: bool = False, through_quarantine: bool = False) -> Reading:
    """Return the ledger of this workspace, read to its end; from then on its root in force is the workspace's.

    Args:
        through_quarantine: as for LedgerReader.

    Raises:
        Misconfigured, LogMissing: there is nothing to read.
        WrongRoot: it is the ledger of another environment.
        RootUnknown: it does not state the pinned root, or ends before it.
        BrokenChain, NotUnderstood: it cannot be followed to its end.
        Unavailable: the log.
    """
    reading = asyncio.run(
        read_ledger(
            work.open_log, work.root, work.environment.ledger, inbox=inbox, through_quarantine=through_quarantine
        )
    )
    work.in_force = reading.root
    return reading


async def read_ledger(
    open_log: OpenLog, trusted: Root, url: str, *, inbox: bool = False, through_quarantine: bool = False
) -> Reading:
    """Return the ledger that a root of any version leads to; raises as `read`."""
    async with open_log(Stream.LEDGER) as log:
        reader = LedgerReader(log, await begun_ledger(log, trusted), through_quarantine=through_quarantine)
        await reader.catch_up()
    check_begun(reader, url)
    check_reached(reader, trusted)
    if not inbox:
        return Reading(reader)
    return Reading(reader, await _records(open_log))


async def begun_ledger(log: Log, trusted: Root) -> Ledger:
    """Return an empty ledger that begins with the first root of the chain that leads to a trusted one.

    Raises:
        RootUnknown: the log does not state that root, or one before it.
        Unavailable: the log.
    """
    if trusted.version == FIRST_VERSION:
        return Ledger(trusted)
    begun = beginning(trusted.sha256, await records_with_roots(log))
    return Ledger(begun.root, begun.pinned)


async def records_with_roots(log: Log) -> list[bytes]:
    """Return the records that may state a root, untrusted: so few that memory does not grow with the ledger."""
    mark = ROOT.payload_type.encode()
    return [record.value async for record in read_to_end(log) if mark in record.value]


async def _records(open_log: OpenLog) -> list[bytes]:
    async with open_log(Stream.INBOX) as log:
        return [record.value async for record in read_to_end(log)]


def check_begun(reader: LedgerReader, url: str) -> None:
    """Refuse a ledger that does not start with the pinned root.

    Raises:
        WrongRoot: it holds records, and none of this root.
        LogMissing: it holds none.
    """
    if reader.ledger.head.seq > Seq(0):
        return
    dropped = next(iter(reader.dropped.values()), None)
    if dropped is None:
        raise LogMissing(f"ledger {url}: empty", hint="`flaghoist init` did not finish: run it again")
    if isinstance(dropped.refusal, WrongRoot):
        raise dropped.refusal
    root = reader.ledger.root
    count = sum(reader.tally.values())
    raise WrongRoot(
        expected=f"{root.sha256.hex()} ({root.log_id})", got=f"{count} records without it: {dropped.refusal}"
    )


def check_reached(reader: LedgerReader, trusted: Root) -> None:
    """Refuse a ledger that ends before the trusted root is in force: what it says then is out of date.

    Raises:
        RootUnknown: so it is.
    """
    if not reader.ledger.at_pinned_root:
        raise RootUnknown(
            f"root version {trusted.version} ({trusted.sha256.hex()}): want it in force, "
            f"got a ledger that ends at seq {reader.ledger.head.seq} with version {reader.ledger.root.version}",
            hint="the log withholds entries, or was cut: read it from another broker, and see `flaghoist doctor`",
        )


def send(work: Workspace, records: Sequence[bytes]) -> None:
    """Append records to the inbox, in order.

    Raises:
        Unavailable: nothing more was written.
        OutcomeUnknown: one may have been written; a repeated statement counts once.
    """
    try:
        asyncio.run(_send(work.open_log, records))
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted; it may be in the inbox: look with `flaghoist pending`") from stop


async def _send(open_log: OpenLog, records: Sequence[bytes]) -> None:
    async with open_log(Stream.INBOX) as log:
        for record in records:
            await log.append(record)
