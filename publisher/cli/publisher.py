"""`flaghoist publisher`: the service that appends what people have signed."""

import asyncio
import dataclasses
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from flaghoist.errors import Expired, FlaghoistError, Misconfigured, Unavailable
from flaghoist.root import Root
from flaghoist.values import Role
from publisher.cli.desk import Exit
from publisher.cli.reading import Reading, read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.signers.keyring import UnlockedKey

# How often a service that waits for another one's place on this machine looks whether it is free.
LEASE_LOOK_S: Final = 1.0
HOLDER_CHARS_MAX: Final = 200  # what a claim may hold (codec.TITLE_CHARS_MAX)


@click.command()
@click.option("--heartbeat-key", metavar="NAME|FILE|URI", help="The key that signs heartbeats; default: the only one "
              "here with that role. [env: FLAGHOIST_HEARTBEAT_KEY]")  # fmt: skip
@click.option("--heartbeat-passphrase-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Its passphrase, if it is another one.")  # fmt: skip
@click.option("--name", metavar="NAME", help="What it is called in the ledger and in heartbeats; default: HOST/PID.")
@click.option("--take-over", is_flag=True, help="Take the place of the publisher at work now, living or not.")
@click.option("--exit-when-fenced", is_flag=True, help="End (with 11) when another one takes over, instead of standing "
              "by.")  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
              show_default=True, help="Events below it are not written.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check keys, root and ledger, say what it would do, and stop there.")
@operation(ledger=True, key=True)
def publisher(
    work: Workspace,
    heartbeat_key: str | None,
    heartbeat_passphrase_file: Path | None,
    name: str | None,
    take_over: bool,
    exit_when_fenced: bool,
    log_level: str,
) -> Exit:
    """Run the publisher: append what the right people have signed, and say that it lives.

    It takes proposals, approvals, roots and emergencies from the inbox. Any number may run; one works, the others stand
    by. It writes one JSON object a line to stderr; the first SIGTERM drains it, the second ends it.

    \b
    Examples:
      flaghoist publisher
      flaghoist publisher --ledger production --key publisher --passphrase-file /run/secrets/publisher
      flaghoist publisher --dry-run
    """
    reading = read(work, through_quarantine=True)
    root = reading.root
    _check_alive(root, work.now_ms())
    holder = (name or f"{work.holder()}/{os.getpid()}")[:HOLDER_CHARS_MAX]
    held, _ = work.unlock(work.choose(Role.PUBLISHER), Role.PUBLISHER)
    beats = _heartbeat_key(work, root, heartbeat_key, heartbeat_passphrase_file)
    if work.dry_run:
        _tell_plan(work, reading, held, beats, holder)
        return Exit.OK
    from flaghoist.log.report import configure

    configure(log_level)
    service = _Run(work, reading, held, beats, holder, take_over=take_over, exit_when_fenced=exit_when_fenced)
    try:
        asyncio.run(service.run())
    except BaseExceptionGroup as group:
        expected, others = group.split(FlaghoistError)
        if expected is None or others is not None:
            raise
        raise _first(expected) from None
    return Exit.OK


def _check_alive(root: Root, now_ms: int) -> None:
    try:
        root.check_unexpired(now_ms)
    except Expired as error:
        raise Expired(
            f"root version {root.version} of {root.log_id} expired at {moment(root.record.expires_at)}",
            hint="`flaghoist root propose` makes the next one; have it signed, and `flaghoist root publish` it here",
        ) from error


def _heartbeat_key(work: Workspace, root: Root, option: str | None, passphrase_file: Path | None) -> UnlockedKey | None:
    """Return the key that signs heartbeats; None where the root has none.

    Raises:
        Misconfigured, Refused: the root asks for one, and none here can be used.
    """
    named = option or work.desk.environ.get("FLAGHOIST_HEARTBEAT_KEY")
    if not root.grant(Role.HEARTBEAT).key_ids:
        if named:
            raise Misconfigured(
                f"--heartbeat-key {named}: root version {root.version} of {root.log_id} lists no heartbeat keys",
                hint="leave it out, or add the key: `flaghoist root propose --grant HEARTBEAT=FILE.pub`",
            )
        return None
    other = dataclasses.replace(work, key_option=named)
    if passphrase_file is not None:
        other = dataclasses.replace(other, passphrase_file=passphrase_file, passphrase_fd=None, _passphrase=None)
    try:
        held, _ = other.unlock(other.choose(Role.HEARTBEAT), Role.HEARTBEAT)
    except FlaghoistError as error:
        # The same error with the same fields, told of the other key.
        error.args = (f"heartbeats: {error}", *error.args[1:])
        error.hint = error.hint.replace("--key", "--heartbeat-key")
        raise
    return held


def _tell_plan(work: Workspace, reading: Reading, held: UnlockedKey, beats: UnlockedKey | None, holder: str) -> None:
    head = reading.reader.ledger.head
    work.desk.result(
        {
            "dry_run": True,
            "log_id": reading.root.log_id,
            "ledger": work.environment.ledger,
            "holder": holder,
            "key": held.key_id,
            "heartbeat_key": None if beats is None else beats.key_id,
            "seq": head.seq.number,
            "root_version": reading.root.version,
        },
        f"would publish to {reading.root.log_id} at {work.environment.ledger} as {holder}\n"
        f"key {held.key_id}, heartbeats {'none' if beats is None else f'by key {beats.key_id}'}\n"
        f"ledger read up to seq {head.seq}, root version {reading.root.version}",
    )


@dataclasses.dataclass
class _Run:
    """One run of the service: takes this machine's lease, hears signals, and works until the first."""

    work: Workspace
    reading: Reading
    held: UnlockedKey
    beats: UnlockedKey | None
    holder: str
    take_over: bool
    exit_when_fenced: bool

    async def run(self) -> None:
        import structlog

        from publisher.heart import Heart
        from publisher.journal import Journal
        from publisher.sequencer import Sequencer
        from publisher.service import Service, check_journal

        log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
        stopping = asyncio.Event()
        service: Service | None = None
        loop = asyncio.get_running_loop()

        def heard(number: int) -> None:
            if stopping.is_set():
                raise SystemExit(128 + number)
            stopping.set()
            log.info("publisher.draining", signal=signal.Signals(number).name)
            if service is not None:
                service.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, heard, number)
        with ExitStack() as stack:
            told = False
            while not stopping.is_set():
                try:
                    journal = stack.enter_context(
                        Journal.open(self.work.home.journals, self.reading.root.log_id, service=True)
                    )
                    break
                except Unavailable as taken:
                    if not told:
                        log.info("publisher.standing_by", reason=str(taken), takes_over_after_s=LEASE_LOOK_S)
                    told = True
                    await _wait(stopping, LEASE_LOOK_S)
            else:
                return
            check_journal(journal, self.reading.reader)
            sequencer = Sequencer(
                self.reading.reader, journal, self.held, holder=self.holder, clock_ms=self.work.now_ms
            )
            service = Service(
                self.work.open_log,
                self.reading.reader,
                sequencer,
                publisher_key=self.held.key_id,
                heart=None if self.beats is None else Heart(self.beats, holder=self.holder),
                holder=self.holder,
                take_over=self.take_over,
                exit_when_fenced=self.exit_when_fenced,
            )
            if not stopping.is_set():
                await service.run()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _first(group: BaseExceptionGroup[FlaghoistError]) -> FlaghoistError:
    """Return the first error of a group of tasks, however deep."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
