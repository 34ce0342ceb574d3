"""`flaghoist restore` as operators type it, on a ledger that was lost, cut, or never was."""

import asyncio
from pathlib import Path

import pytest

from flaghoist.log.base import LogRecord, Stream, read_to_end
from flaghoist.log.entries_file import kept_entries
from flaghoist.log.location import create_log, open_log
from flaghoist.values import LogId
from publisher.journal import Journal
from sidecar.keep import Kept
from tests.scenarios.operators import Team, write_flags


@pytest.fixture
def team(tmp_path: Path) -> Team:
    team = Team.begun(tmp_path)
    team.imported(write_flags(tmp_path / "flags.json"))
    return team


@pytest.fixture
def kept(team: Team, tmp_path: Path) -> Path:
    """What a pod keeps of the team's ledger."""
    file = Kept.open(tmp_path / "pod" / "staging.entries")
    file.append([LogRecord(position, value) for position, value in enumerate(records_in(team.ledger))])
    file.close()
    return file.path


def records_in(url: str) -> list[bytes]:
    async def read() -> list[bytes]:
        async with open_log(url)(Stream.LEDGER) as log:
            return [record.value async for record in read_to_end(log)]

    return asyncio.run(read())


def lose_ledger(tmp_path: Path) -> None:
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()


def test_a_lost_ledger_is_put_back_byte_for_byte_without_any_key(team: Team, kept: Path, tmp_path: Path) -> None:
    before = records_in(team.ledger)
    lose_ledger(tmp_path)
    planned = team.grace.ok("restore", kept, "--dry-run", "--json").document
    assert (planned["log_seq"], planned["kept_seq"], planned["entries"]) == (0, 2, 2)
    assert not (tmp_path / "ledger.db").exists()
    assert team.grace.refused("restore", kept, code=2)["code"] == "usage"  # nobody to ask, and no --yes
    assert team.grace.ok("restore", kept, "--yes").out.startswith("seq 2  ")
    assert records_in(team.ledger) == before
    assert team.grace.ok("restore", kept, "--yes").out == "nothing to restore: the log has it all\n"
    # And it is the same ledger: the publisher goes on where it was.
    team.published(team.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip())
    assert team.grace.ok("audit", "verify", "--json").document["whole"] is True


def test_a_ledger_that_was_begun_anew_is_not_mixed_with_what_was_kept(team: Team, kept: Path, tmp_path: Path) -> None:
    lose_ledger(tmp_path)
    other = Team.begun(tmp_path / "other", log_id="staging", ledger=team.ledger)
    error = other.grace.refused("restore", kept, "--yes", code=10)
    assert error["code"] == "wrong_root"
    assert len(records_in(team.ledger)) == 1


def test_two_histories_are_refused_and_nothing_is_written(team: Team, kept: Path, tmp_path: Path) -> None:
    lose_ledger(tmp_path)
    asyncio.run(create_log(team.ledger))
    first, *_ = kept_entries(kept)

    async def write() -> None:
        async with open_log(team.ledger)(Stream.LEDGER) as log:
            await log.append(first)

    asyncio.run(write())
    journals = team.ada.home / "state" / "journals"
    for journal in journals.glob("*.json"):
        journal.unlink()
    proposal = team.ada.ok("import", tmp_path / "flags.json", "--title", "another past", "--yes").out.strip()
    team.published(proposal)
    assert team.grace.refused("restore", kept, "--yes", code=10)["code"] == "other_history"
    assert len(records_in(team.ledger)) == 3  # the first one, a claim, the other past


@pytest.mark.parametrize(
    ("name", "content"), [("absent", None), ("empty", b""), ("other.txt", b"FLAGHOIST-SOMETHING\n")]
)
def test_what_is_no_such_file_is_named(team: Team, tmp_path: Path, name: str, content: bytes | None) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    error = team.grace.refused("restore", file, "--yes", code=2)
    assert error["code"] == "misconfigured"
    assert str(file) in error["message"]


def test_while_this_machine_publishes_nothing_is_written(team: Team, kept: Path, tmp_path: Path) -> None:
    lose_ledger(tmp_path)
    with Journal.open(team.ada.home / "state" / "journals", LogId("staging")):
        team.ada.refused("restore", kept, "--yes", code=12)
    assert not (tmp_path / "ledger.db").exists()
