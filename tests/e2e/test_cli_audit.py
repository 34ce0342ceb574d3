"""What audit and doctor say of a ledger that somebody has tampered with."""

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from tests.scenarios.operators import Team, write_flags


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """A ledger with four entries: the root and three releases."""
    team = Team.begun(tmp_path)
    team.imported(write_flags(tmp_path / "flags.json"))
    for variant in ("on", "off"):
        team.published(team.ada.ok("propose", "set", "newCheckout", "--variant", variant, "--yes").out.strip())
    return team


def write_record(team: Team, value: bytes) -> None:
    async def append() -> None:
        async with open_log(team.ledger)(Stream.LEDGER) as log:
            await log.append(value)

    asyncio.run(append())


def delete_record(team: Team, position: int) -> None:
    database = sqlite3.connect(team.ledger.removeprefix("sqlite:///"))
    try:
        with database:
            deleted = database.execute("DELETE FROM ledger_record WHERE position = ?", (position,)).rowcount
    finally:
        database.close()
    assert deleted == 1


def health(team: Team, check: str) -> tuple[str, str]:
    found = next(c for c in team.ada.run("doctor", "--json").document if c["check"] == check)
    return found["health"], found["text"]


def test_junk_is_counted_and_breaks_nothing(team: Team) -> None:
    write_record(team, os.urandom(200))
    ended = team.ada.ok("audit", "verify", "--json")
    assert ended.document["records"] == {"advanced": 1, "applied": 3, "dropped": 1}
    assert "counts for nothing" in ended.err
    assert health(team, "junk")[0] == "warn"
    assert team.ada.ok("flag", "list", "--json").document


def test_a_missing_entry_is_a_break_with_its_position_and_seq(team: Team) -> None:
    delete_record(team, 2)
    error = team.ada.refused("audit", "verify", code=10)
    assert error["code"] == "broken_chain"
    assert "position 3: expected seq 3, got 4" in error["message"]
    assert "verified up to seq 2" in error["message"]
    for command in (["flag", "list"], ["pending"], ["doctor"]):
        assert team.ada.run(*command).code == 10


def test_a_cut_off_end_is_noticed_by_the_machine_that_published_it(team: Team) -> None:
    delete_record(team, 3)
    team.ada.ok("audit", "verify")  # nobody else can know
    assert health(team, "journal") == (
        "fail",
        "misconfigured: this machine published seq 4, and the ledger ends at 3",
    )
