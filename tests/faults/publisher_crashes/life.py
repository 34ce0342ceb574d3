"""One life of a publisher: the real service, journal, log and keys in a process of its own, told of step by step."""

import asyncio
import base64
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from flaghoist.codec import ENTRY, HEARTBEAT
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, Log, OpenLog, Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.log.report import configure
from flaghoist.records import Entry, RootUpdate
from flaghoist.signing import key_id
from flaghoist.values import Algorithm, LogId, Seq
from publisher.docket import Docket
from publisher.heart import Heart
from publisher.inbox import Inbox
from publisher.journal import Claim, Journal, Mark
from publisher.reader import LedgerReader
from publisher.sequencer import Sequencer, Taken
from publisher.service import Clock, Pace, Service, check_journal
from tests.faults.publisher_crashes.breakage import BREAKAGES
from tests.faults.publisher_crashes.people import BEAT_KEY, PUBLISHER_KEY, SharedClock, forge_of
from tests.faults.publisher_crashes.steps import EPOCH, GENESIS, NOWHERE, RECORD, SETTLE, Reporter, Target, kind_of

# In a container a publisher has the same process id each time it is started.
PROCESS_ID = 7
# A heartbeat also when nothing is appended, so that its steps keep coming.
BEAT_S = 0.2
STANDBY_S = 0.05

SERVICE, COMMAND, INIT = "service", "command", "init"


@dataclass(frozen=True)
class Life:
    """What one process does, and where it is to be killed.

    Attributes:
        what: SERVICE: `flaghoist publisher`; COMMAND: `flaghoist publish` without a service; INIT: the first entry.
        machine: who has the journal; two machines have one publisher key.
        broken: what it does wrong, one of breakage.BREAKAGES; "" for nothing.
        take_over: whoever is at work, at once; else after `take_over_s` of silence.
    """

    url: str
    log_id: str
    directory: str
    machine: str
    what: str
    zero_ns: int
    take_over: bool = False
    take_over_s: float = 0.15
    target: Target = NOWHERE
    broken: str = ""

    @property
    def journals(self) -> Path:
        return Path(self.directory) / self.machine

    @property
    def signatures(self) -> Path:
        """Every signature of an entry by this machine, a line each."""
        return Path(self.directory) / f"{self.machine}.signatures"

    @property
    def beats(self) -> Path:
        """Which head each heartbeat by this machine states, a line each."""
        return Path(self.directory) / f"{self.machine}.beats"

    def rendered(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parsed(cls, text: str) -> "Life":
        fields = json.loads(text)
        return cls(**{**fields, "target": Target(**fields["target"])})


class WatchedLog:
    """A log that tells before and after each append."""

    def __init__(self, log: Log, step: str, watch: "Watch") -> None:
        self._log, self._step, self._watch = log, step, watch

    @property
    def conditional(self) -> bool:
        return self._log.conditional

    async def append(self, value: bytes, *, expected_end: int | None = None, key: bytes | None = None) -> int:
        self._watch.reporter.at(f"{self._step}.begin")
        position = await self._log.append(value, expected_end=expected_end, key=key)
        self._watch.reading_back = self._step == "append"
        self._watch.reporter.at(f"{self._step}.done")
        return position

    async def end(self) -> int:
        return await self._log.end()

    def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        return self._log.follow(start)


class WatchedReader(LedgerReader):
    """A reader that tells before and after it reads to the end."""

    watch: ClassVar["Watch"]

    async def catch_up(self) -> None:
        step = "readback" if self.watch.reading_back else "ledger"
        self.watch.reading_back = False
        self.watch.reporter.at(f"{step}.begin")
        await super().catch_up()
        self.watch.reporter.at(f"{step}.done")


class WatchedJournal(Journal):
    """A journal that tells what it writes; the writing itself is told of by Watch.files."""

    watch: ClassVar["Watch"]

    def record(self, mark: Mark) -> None:
        with self.watch.writing(RECORD, entry_hash=mark.entry_hash.hex()):
            super().record(mark)

    def settle(self) -> None:
        if self.last is None or self.last.settled:
            super().settle()
            return
        with self.watch.writing(SETTLE, mark=self.last):
            super().settle()

    def take_epoch(self, claim: Claim) -> None:
        with self.watch.writing(EPOCH, mark=self.last):
            super().take_epoch(claim)


class WatchedSequencer(Sequencer):
    """A sequencer that tells what it has built and what it has found in the ledger again."""

    watch: ClassVar["Watch"]

    async def _commit(self, entry: Entry) -> Taken | None:
        self.watch.reporter.kind = kind_of(entry)
        self.watch.reporter.at("entry.built")
        return await super()._commit(entry)

    async def _send(self, mark: Mark) -> Taken | None:
        self.watch.reporter.kind = kind_of(ENTRY.decode(mark.payload))
        link = await super()._send(mark)
        if link is not None:
            self.watch.reporter.at("entry.taken", seq=link.entry.seq.number, entry_hash=link.entry_hash.hex())
        return link


class WatchedSigner:
    """Signs entries, if the journal on disk says so, and notes each signature before anybody gets it."""

    algorithm = Algorithm.ED25519
    public = PUBLISHER_KEY.public

    def __init__(self, watch: "Watch", journal: Path, signatures: Path) -> None:
        self._watch, self._journal = watch, journal
        self._notes = os.open(signatures, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def sign(self, message: bytes) -> bytes:
        entry_hash = hashlib.sha256(message).hexdigest()
        entry = ENTRY.decode(message.split(b" ", 4)[4])
        self._watch.reporter.at("sign.begin", entry_hash=entry_hash)
        self._check_journal(entry_hash)
        signature = PUBLISHER_KEY.sign(message)
        note = {"epoch": entry.epoch, "seq": entry.seq.number, "hash": entry_hash, "kind": kind_of(entry)}
        os.write(self._notes, json.dumps(note).encode() + b"\n")
        self._watch.reporter.at("sign.done", entry_hash=entry_hash)
        return signature

    def _check_journal(self, entry_hash: str) -> None:
        try:
            last = json.loads(self._journal.read_bytes())["last"]
        except FileNotFoundError:
            last = None
        if last is None or base64.b64decode(last["entry_hash"]).hex() != entry_hash:
            self._watch.reporter.problem(f"signed {entry_hash}, and the journal on disk has {last}")


class WatchedHeartKey:
    """Signs heartbeats, and notes each before anybody gets it."""

    algorithm = Algorithm.ED25519
    public = BEAT_KEY.public

    def __init__(self, watch: "Watch", beats: Path) -> None:
        self._watch = watch
        self._notes = os.open(beats, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def sign(self, message: bytes) -> bytes:
        beat = HEARTBEAT.decode(message.split(b" ", 4)[4])
        self._watch.reporter.at("beat.sign")
        note = {"seq": beat.seq.number, "entry_hash": beat.head_hash.hex()}
        os.write(self._notes, json.dumps(note).encode() + b"\n")
        return BEAT_KEY.sign(message)


class Watch:
    """What tells of the steps of one life."""

    def __init__(self, reporter: Reporter, journals: Path) -> None:
        self.reporter = reporter
        self.reading_back = False
        self._journals = str(journals)
        self._writing = ""
        self._facts: dict[str, object] = {}
        WatchedReader.watch = WatchedJournal.watch = WatchedSequencer.watch = self
        self._watch_files()

    @contextmanager
    def writing(self, what: str, *, mark: Mark | None = None, **facts: object) -> Iterator[None]:
        """Tell of the steps in which the journal is replaced, while the block runs."""
        kind = self.reporter.kind
        if mark is not None:
            self.reporter.kind = kind_of(ENTRY.decode(mark.payload))
        self._writing, self._facts = what, facts
        self._tell("begin")
        try:
            yield
        finally:
            self._writing = ""
            self.reporter.kind = kind

    def _tell(self, stage: str) -> None:
        if self._writing:
            self.reporter.at(f"{self._writing}.{stage}", **self._facts)

    def _watch_files(self) -> None:
        """Stand between this process and the calls that make a file durable; only this process is concerned."""
        real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

        def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            descriptor = real_open(path, flags, *rest, **options)
            if flags & os.O_EXCL and str(path).startswith(self._journals):
                self._tell("made")
            return descriptor

        def synced(descriptor: int) -> None:
            directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            if not directory:
                self._tell("written")
            real_fsync(descriptor)
            if not directory:
                self._tell("synced")
            elif self._writing:
                self._tell("done")
            else:
                self.reporter.at("directory.synced")

        def replaced(source: Any, target: Any, **options: Any) -> None:
            real_replace(source, target, **options)
            self._tell("renamed")

        os.open, os.fsync, os.replace = opened, synced, replaced  # type: ignore[assignment]
        os.getpid = lambda: PROCESS_ID

    def logs(self, url: str) -> OpenLog:
        """Return what opens the ledger's streams, telling of what is appended to it and of heartbeats."""
        inner = open_log(url)
        told = {Stream.LEDGER: "append", Stream.META: "beat"}

        @asynccontextmanager
        async def opened(stream: Stream) -> AsyncIterator[Log]:
            async with inner(stream) as log:
                yield WatchedLog(log, told[stream], self) if stream in told else log

        return opened


async def live(life: Life, reporter: Reporter) -> None:
    """Do what this life is for, until it is killed or, unless it is a service, done."""
    watch = Watch(reporter, life.journals)
    clock = SharedClock(life.zero_ns)
    root = forge_of(life.log_id).first_root
    logs = watch.logs(life.url)
    async with logs(Stream.LEDGER) as log:
        reader = WatchedReader(log, Ledger(root), through_quarantine=True)
        if life.what == SERVICE:
            await reader.catch_up()  # as the command does, before it waits for its turn on this machine
        with WatchedJournal.open(life.journals, LogId(life.log_id), service=life.what == SERVICE) as journal:
            reporter.at("lease.taken")
            signer = WatchedSigner(watch, life.journals / f"{life.log_id}.journal", life.signatures)
            sequencer = WatchedSequencer(reader, journal, signer, holder=life.machine, clock_ms=clock.now_ms)
            if life.what == INIT:
                await sequencer.catch_up()
                if reader.ledger.head.seq == Seq(0):
                    reporter.kind = GENESIS
                    await sequencer.append(RootUpdate(root.envelope))
            elif life.what == COMMAND:
                await _publish_all(logs, sequencer, clock)
            else:
                check_journal(journal, reader)
                await Service(
                    logs,
                    reader,
                    sequencer,
                    publisher_key=key_id(signer.algorithm, signer.public),
                    heart=Heart(WatchedHeartKey(watch, life.beats), holder=life.machine),
                    holder=life.machine,
                    take_over=life.take_over,
                    clock=Clock(now_ms=clock.now_ms),
                    pace=Pace(beat_s=BEAT_S, standby_s=STANDBY_S, take_over_s=life.take_over_s),
                ).run()


async def _publish_all(logs: OpenLog, sequencer: WatchedSequencer, clock: SharedClock) -> None:
    """Publish what waits in the inbox, taking the epoch if need be, as the command without a service does."""
    docket = Docket(sequencer.reader)
    while True:
        await sequencer.catch_up()
        ledger = sequencer.reader.ledger
        async with logs(Stream.INBOX) as log:
            inbox = Inbox.gathered(ledger.root, [record.value async for record in read_to_end(log)])
        motion = docket.next(inbox, now_ms=clock.now_ms())
        if motion is None:
            return
        await sequencer.append(motion.body)


def run(life: Life, report: int, hold: int) -> int:
    """Live in this process; the exit code."""
    reporter = Reporter(report, hold, life.target)
    talk = os.open(Path(life.directory) / "publisher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(talk, 2)
    configure("info")
    if life.broken:
        BREAKAGES[life.broken]()
    try:
        asyncio.run(live(life, reporter))
    except BaseException as error:  # noqa: BLE001 — all that ends a publisher is told
        import traceback

        traceback.print_exc()
        if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
            reporter.problem(f"{life.what} on {life.machine} ended: {_told(error)}")
        return 1
    return 0


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"[:1000]


if __name__ == "__main__":
    sys.exit(run(Life.parsed(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
