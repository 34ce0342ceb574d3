"""Publishers that do one thing wrong, so that it is seen that the kills show it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from publisher import journal
from publisher.journal import Journal
from publisher.sequencer import Sequencer


def _sign_before_the_journal_is_written() -> None:
    Journal._write = lambda self: None  # type: ignore[method-assign]


def _do_not_sync_the_journal() -> None:
    def replace_file(path: Path, data: bytes) -> None:
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(data)
        new.replace(path)

    journal.replace_file = replace_file  # type: ignore[attr-defined, assignment]


def _sync_the_journal_after_it_is_renamed() -> None:
    def replace_file(path: Path, data: bytes) -> None:
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, data)
        os.replace(new, path)  # noqa: PTH105 — what Path.replace calls, and what is watched
        os.fsync(descriptor)
        os.close(descriptor)

    journal.replace_file = replace_file  # type: ignore[attr-defined, assignment]


def _forget_what_was_signed() -> None:
    read = Journal._read

    def forgetful(self: Journal) -> None:
        read(self)
        self.last = None

    Journal._read = forgetful  # type: ignore[method-assign]


def _hold_every_epoch() -> None:
    """The journal is not asked whose the epoch is: two machines sign in one."""
    Sequencer.holds_epoch = property(lambda self: True)  # type: ignore[assignment, method-assign]


BREAKAGES: Mapping[str, Callable[[], None]] = {
    "sign-before-the-journal-is-written": _sign_before_the_journal_is_written,
    "do-not-sync-the-journal": _do_not_sync_the_journal,
    "sync-the-journal-after-it-is-renamed": _sync_the_journal_after_it_is_renamed,
    "forget-what-was-signed": _forget_what_was_signed,
    "hold-every-epoch": _hold_every_epoch,
}
