"""`flaghoist audit export`: every op of every entry as one line, for other systems."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, TypeAlias

import click

from flaghoist.errors import Unavailable
from flaghoist.log.base import Batch, Stream
from flaghoist.log.reconnect import follow_reliably
from flaghoist.snapshot import paused_collector
from publisher.audit.event import cloud_event, events, json_line
from publisher.audit.examination import Examination
from publisher.cli.audit.examined import broken_chain, check_begun, conclude
from publisher.cli.desk import Exit
from publisher.cli.reading import begun_ledger
from publisher.cli.workspace import Workspace, operation

_FORMATS: Final = ("jsonl", "cloudevents")

Encode: TypeAlias = Callable[[dict[str, object]], dict[str, object]]


@click.command("export")
@click.option("--format", "line_format", type=click.Choice(_FORMATS), default="jsonl", show_default=True,
              help="jsonl: the bare events. cloudevents: CloudEvents 1.0, structured JSON, one a line.")  # fmt: skip
@click.option("--since-seq", type=click.IntRange(1), default=1, metavar="N", help="From entry N on.")
@click.option("--follow", is_flag=True, help="Go on with new entries as they come, until stopped.")
@operation(ledger=True)
def export_events(work: Workspace, line_format: str, since_seq: int, follow: bool) -> Exit:
    """Write one line for each op of each entry, and one for each other entry: what changed, who, why, by which rule.

    The same ledger gives the same bytes. To go on after a stop, give --since-seq with the seq of the last line and
    drop the lines that are known already. With --json the lines stand in one document.

    \b
    Examples:
      flaghoist audit export > audit.jsonl
      flaghoist audit export --format cloudevents --follow | forward-to-siem
      flaghoist audit export --since-seq 120
    """
    if follow and work.desk.as_json:
        raise click.UsageError("--follow: want it without --json, which is one document")
    encode = cloud_event if line_format == "cloudevents" else _bare
    sink = _Document() if work.desk.as_json else _Lines()
    with _whole_lines() as stop:
        examination = asyncio.run(_Export(work, sink, encode, since_seq, follow, stop).run())
    if isinstance(sink, _Document):
        work.desk.result(sink.events)
    return conclude(work, examination)


def _bare(event: dict[str, object]) -> dict[str, object]:
    return event


# --- where lines go ---


class _Lines:
    """Lines on stdout: each leaves whole, by itself, so that whoever stops us finds no half of one."""

    def write(self, event: dict[str, object]) -> None:
        try:
            sys.stdout.write(json_line(event).decode("ascii"))
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            data = event.get("data", event)
            seq = data.get("seq") if isinstance(data, dict) else None
            raise Unavailable(
                f"stdout: {error.strerror}; the line of seq {seq} may be cut",
                hint=f"make room, drop the last line if it is cut, and go on with --since-seq {seq}",
            ) from error


@dataclass
class _Document:
    """All events, for --json."""

    events: list[Any] = field(default_factory=list)

    def write(self, event: dict[str, object]) -> None:
        self.events.append(json.loads(json_line(event)))


@dataclass
class _Stop:
    """Set by the first signal; `wake` is called with it, from the signal's handler."""

    asked: bool = False
    wake: Callable[[], object] | None = None


@contextmanager
def _whole_lines() -> Iterator[_Stop]:
    """Let the first SIGINT or SIGTERM end the export behind a whole line; the second one ends it at once."""
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.getsignal(number) for number in numbers}

        def ask(number: int, frame: FrameType | None) -> None:
            for one, handler in before.items():
                signal.signal(one, handler)
            stop.asked = True
            if stop.wake is not None:
                stop.wake()

        for number in numbers:
            signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us there owns the signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- where they come from ---


@dataclass
class _Export:
    """One export at work: what is verified, and what of it is written."""

    work: Workspace
    sink: _Lines | _Document
    encode: Encode
    since_seq: int
    follow: bool
    stop: _Stop

    async def run(self) -> Examination:
        """Write what the ledger holds, and with `follow` what comes, until it ends or a signal asks to stop.

        Raises:
            BrokenChain: while following; without, the examination has it.
        """
        async with self.work.open_log(Stream.LEDGER) as log:
            examination = Examination(await begun_ledger(log, self.work.root))
        task = asyncio.ensure_future(self._read(examination))
        loop = asyncio.get_running_loop()
        self.stop.wake = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.stop.asked:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not self.stop.asked:
                raise
        return examination

    async def _read(self, examination: Examination) -> None:
        began = False
        batches = follow_reliably(self.work.open_log, Stream.LEDGER, 0, on_lost=self._lost)
        async with aclosing(batches):
            async for batch in batches:
                if self._taken(examination, batch):
                    return
                if not batch.at_end:
                    continue
                if not began:
                    check_begun(examination, self.work.environment.ledger)
                    began = True
                if not self.follow:
                    return
                if (found := examination.broken) is not None:
                    raise broken_chain(examination, found)

    def _lost(self, error: Unavailable) -> None:
        if not self.follow:
            raise error
        self.work.desk.say(f"{error}; trying again")

    def _taken(self, examination: Examination, batch: Batch) -> bool:
        """Take a batch's records; True when a signal asked to stop on the way."""
        with paused_collector():
            for record in batch.records:
                if self.stop.asked:
                    return True
                account = examination.take(record.position, record.value)
                if account is not None and account.seq.number >= self.since_seq:
                    for event in events(account):
                        self.sink.write(self.encode(event))
        return self.stop.asked
