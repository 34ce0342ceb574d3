"""Files that are written whole or not at all, whatever a killed process left beside them."""

import os
from pathlib import Path

import pytest

from flaghoist.errors import Misconfigured
from publisher.files import replace_file, sync_directory


def left_behind(path: Path) -> Path:
    """Where this process would begin to write `path` anew."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def test_what_a_killed_process_of_the_same_id_had_begun_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"old")
    left_behind(path).write_bytes(b"half of something longer")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["journal"]


def test_a_link_that_lies_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "journal", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"somebody's")
    left_behind(path).symlink_to(elsewhere)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert elsewhere.read_bytes() == b"somebody's"


def test_a_directory_that_is_not_there_cannot_be_made_durable(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be written"):
        sync_directory(tmp_path / "missing")
