"""The sign-once journal: what it forbids, what survives a crash, and who may hold it."""

import subprocess
import sys
from pathlib import Path

import pytest

from flaghoist.errors import Misconfigured, Unavailable
from flaghoist.values import LogId
from publisher.journal import Claim, Journal, Mark, SignedTwice

LOG = LogId("test")


def mark(epoch, seq, letter=b"a"):
    return Mark(epoch, seq, letter * 32, b"payload " + letter)


def test_what_was_recorded_is_read_back(tmp_path):
    with Journal.open(tmp_path, LOG) as journal:
        journal.record(mark(1, 2))
        journal.take_epoch(Claim(1, 1, b"c" * 32))
    with Journal.open(tmp_path, LOG) as journal:
        assert journal.last == mark(1, 2)
        assert journal.claim == Claim(1, 1, b"c" * 32)
        journal.settle()
    with Journal.open(tmp_path, LOG) as journal:
        assert journal.last.settled


@pytest.mark.parametrize(("epoch", "seq"), [(1, 2), (1, 1), (0, 9)])
def test_other_entry_for_a_place_that_was_signed_is_refused(tmp_path, epoch, seq):
    with Journal.open(tmp_path, LOG) as journal:
        journal.record(mark(1, 2))
        with pytest.raises(SignedTwice, match="had signed"):
            journal.record(mark(epoch, seq, b"b"))
        assert journal.last == mark(1, 2)


def test_same_entry_may_be_signed_again_and_later_ones_follow(tmp_path):
    with Journal.open(tmp_path, LOG) as journal:
        for following in (mark(1, 2), mark(1, 2), mark(1, 3, b"b"), mark(2, 3, b"c")):
            journal.record(following)


def test_one_process_at_a_time_holds_it_and_a_dead_one_does_not(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from publisher.journal import Journal\n"
        f"with Journal.open(Path({str(tmp_path)!r}), 'test'):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match=f"process {holder.pid} on this machine"), Journal.open(tmp_path, LOG):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with Journal.open(tmp_path, LOG):
        pass


def test_journals_of_two_ledgers_do_not_meet(tmp_path):
    with Journal.open(tmp_path, LOG) as one, Journal.open(tmp_path, LogId("other")) as other:
        one.record(mark(1, 5))
        other.record(mark(1, 2, b"b"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"last": {}, "claim": null}', '{"last": null}'])
def test_file_that_is_no_journal_is_not_overwritten(tmp_path, text):
    file = tmp_path / "test.journal"
    file.write_text(text)
    with pytest.raises(Misconfigured, match="not a journal"), Journal.open(tmp_path, LOG):
        pass
    assert file.read_text() == text


def test_place_that_cannot_be_written_is_misconfigured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="cannot be written"), Journal.open(tmp_path / "file", LOG):
        pass


def test_crash_between_writing_and_renaming_leaves_the_old_journal(tmp_path, monkeypatch):
    with Journal.open(tmp_path, LOG) as journal:
        journal.record(mark(1, 2))

        def crash(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("pathlib.Path.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            journal.record(mark(1, 3, b"b"))
        monkeypatch.undo()
    with Journal.open(tmp_path, LOG) as journal:
        assert journal.last == mark(1, 2)
