"""What this machine's publisher has signed: written to disk before each signature, so that no seq is signed twice.

Holding the journal open is the machine's lease: one process at a time (design: docs/protocol.md, "One sequencer").
"""

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured, Refused, Unavailable
from flaghoist.values import LogId
from publisher.files import replace_file, sync_directory

# What a service writes into the lock behind its process id.
_SERVICE: Final = " service"


class SignedTwice(Refused):
    """This machine has signed another entry for that place of the ledger."""

    code = "signed_twice"
    hint = "run the command again: it claims a new epoch first"


@dataclass(frozen=True, slots=True)
class Mark:
    """One entry that this machine signed or was about to: `payload` is its exact bytes.

    `settled`: it is known to be in the ledger, or known never to be; otherwise it may be on its way.
    """

    epoch: int
    seq: int
    entry_hash: bytes
    payload: bytes
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The entry by which this machine took its epoch."""

    epoch: int
    seq: int
    entry_hash: bytes


class Journal:
    """The sign-once journal of one ledger on this machine; open it with `Journal.open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last: Mark | None = None
        self.claim: Claim | None = None
        if path.exists():
            self._read()

    @classmethod
    @contextmanager
    def open(cls, directory: Path, log_id: LogId, *, service: bool = False) -> Iterator["Journal"]:
        """Take this machine's lease of the ledger, and give it back on leaving.

        Args:
            directory: where journals live; made if missing, mode 0700.
            service: it is held for long, by a publisher that takes what others hand over (`service_at` tells them).

        Raises:
            Unavailable: another process on this machine holds it; the text names its pid.
            Misconfigured: the directory cannot be written, or holds something else.
        """
        lock_path = directory / f"{log_id}.lock"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(
                f"journal {lock_path}: cannot be written: {error.strerror}",
                hint="the publisher must write its journal before it signs: set FLAGHOIST_HOME to a writable place",
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _written(lock).split(" ")[0] or "unknown"
                raise Unavailable(
                    f"ledger {log_id}: process {holder} on this machine is publishing",
                    hint="wait for it, or stop it, then run the same command again",
                ) from error
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}{_SERVICE if service else ''}".encode(), 0)
            # An earlier run, killed right after it replaced the journal, left what a power cut could still take back.
            sync_directory(directory)
            yield cls(directory / f"{log_id}.journal")
        finally:
            os.close(lock)

    @staticmethod
    def service_at(directory: Path, log_id: LogId) -> int | None:
        """Return the process id of the publisher service that holds this machine's lease; None when none does."""
        try:
            lock = os.open(directory / f"{log_id}.lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            pid, _, rest = _written(lock).partition(" ")
            # Only what a service wrote is tried: the try itself would turn away whoever takes the lease meanwhile.
            if f" {rest}" != _SERVICE or not pid.isdecimal():
                return None
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(pid)
        finally:
            os.close(lock)
        return None

    def record(self, mark: Mark) -> None:
        """Write durably that this entry is about to be signed.

        Raises:
            SignedTwice: another entry was signed for this (epoch, seq), or a later one.
        """
        last = self.last
        if last is not None and (mark.epoch, mark.seq) <= (last.epoch, last.seq) and mark.entry_hash != last.entry_hash:
            raise SignedTwice(
                f"epoch {mark.epoch} seq {mark.seq}: asked to sign {mark.entry_hash.hex()}, "
                f"had signed {last.entry_hash.hex()} for epoch {last.epoch} seq {last.seq}"
            )
        self.last = mark
        self._write()

    def settle(self) -> None:
        """Note that the last entry's fate is known."""
        if self.last is not None and not self.last.settled:
            self.last = Mark(self.last.epoch, self.last.seq, self.last.entry_hash, self.last.payload, settled=True)
            self._write()

    def take_epoch(self, claim: Claim) -> None:
        """Note that this machine holds an epoch."""
        self.claim = claim
        self._write()

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            last, claim = document["last"], document["claim"]
            if last is not None:
                hashes = {name: base64.b64decode(last[name], validate=True) for name in ("entry_hash", "payload")}
                self.last = Mark(last["epoch"], last["seq"], **hashes, settled=last["settled"])
            if claim is not None:
                self.claim = Claim(claim["epoch"], claim["seq"], base64.b64decode(claim["entry_hash"], validate=True))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Misconfigured(
                f"journal {self._path}: not a journal: {error}",
                hint="move it away: the next publish then claims a new epoch, which is safe",
            ) from error

    def _write(self) -> None:
        """Replace the file as a whole: after a crash it is the old one or the new one."""
        document = {"last": None if self.last is None else asdict(self.last)}
        document["claim"] = None if self.claim is None else asdict(self.claim)
        text = json.dumps(document, default=lambda value: base64.b64encode(value).decode("ascii"))
        replace_file(self._path, text.encode())


def _written(lock: int) -> str:
    return os.pread(lock, 40, 0).decode("ascii", "replace").strip()
