"""The kept entries on disk: what is read back, and what happens to a file that is damaged or taken."""

import pytest

from flaghoist.errors import Misconfigured
from flaghoist.log.base import LogRecord
from flaghoist.log.entries_file import MAGIC
from sidecar.keep import Kept

RECORDS = [LogRecord(position, bytes([position]) * (position + 1)) for position in range(5)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "pod.entries"


def kept(path, records):
    store = Kept.open(path)
    list(store.entries())
    store.append(records)
    store.close()


def read(path):
    store = Kept.open(path)
    try:
        return list(store.entries())
    finally:
        store.close()


def test_entries_are_read_back_in_order(path):
    kept(path, RECORDS[:2])
    kept(path, RECORDS[2:])
    assert read(path) == RECORDS


def test_file_and_directory_are_the_owners_alone(path):
    kept(path, RECORDS)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("lost", range(1, 20))
def test_torn_tail_costs_only_what_was_torn(path, lost):
    kept(path, RECORDS)
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    found = read(path)
    assert found == RECORDS[: len(found)]
    assert len(found) >= len(RECORDS) - 2


def test_what_follows_a_cut_is_overwritten(path):
    kept(path, RECORDS)
    store = Kept.open(path)
    entries = store.entries()
    next(entries)
    next(entries)  # the caller comes back from the first, and refuses the second
    store.forget_from_here()
    store.append([LogRecord(9, b"new")])
    store.close()
    assert read(path) == [RECORDS[0], LogRecord(9, b"new")]


def test_absurd_length_ends_the_reading(path):
    kept(path, RECORDS[:1])
    with path.open("ab") as file:
        file.write(b"\0" * 8 + b"\xff" * 4 + b"x" * 100)
    assert read(path) == RECORDS[:1]


def test_second_sidecar_on_one_file_is_refused(path):
    store = Kept.open(path)
    with pytest.raises(Misconfigured, match="another sidecar uses it"):
        Kept.open(path)
    store.close()
    Kept.open(path).close()


def test_file_of_another_kind_is_not_touched(path):
    path.parent.mkdir()
    path.write_bytes(b"somebody's holiday pictures")
    with pytest.raises(Misconfigured, match="not such a file"):
        Kept.open(path)
    assert path.read_bytes() == b"somebody's holiday pictures"


def test_file_torn_while_it_was_made_is_made_again(path):
    path.parent.mkdir()
    path.write_bytes(MAGIC[:5])
    kept(path, RECORDS)
    assert read(path) == RECORDS


def test_place_that_cannot_be_written_is_misconfigured(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(Misconfigured, match="cannot be written"):
        Kept.open(tmp_path / "file" / "pod.entries")


def test_time_of_freshness_is_read_back(path):
    store = Kept.open(path)
    store.note_fresh(1_000_000.0)
    store.close()
    store = Kept.open(path)
    assert store.known_fresh_at_s == 1_000_000.0
    store.close()


def test_writes_after_closing_do_nothing(path):
    store = Kept.open(path)
    store.close()
    store.append(RECORDS)
    store.note_fresh(1.0)
    assert read(path) == []
