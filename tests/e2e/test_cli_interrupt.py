"""Ctrl-C at each step of publish: the code is 130, the talk says whether something may have been sent, and running the
same command again finishes or refuses, and never doubles."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.scenarios.operators import Ended, Team, write_flags

# Sends this process a SIGINT at the Nth call or return in the modules that read, journal, sign and append: a real
# Ctrl-C, at a place that does not depend on the machine's speed. What it counts goes to stderr at exit.
DRIVER = """
import atexit, os, signal, sys, threading
AT, COUNT = {at}, 0
PLACES = ("publisher/sequencer.py", "publisher/journal.py", "publisher/reader.py", "flaghoist/log/sqlite.py")
def watch(frame, event, _):
    global COUNT
    if event in ("call", "return") and frame.f_code.co_filename.endswith(PLACES) and ARMED:
        COUNT += 1
        if COUNT == AT:
            os.kill(os.getpid(), signal.SIGINT)
ARMED = False
def arm(frame, event, argument):
    global ARMED
    if event == "call" and frame.f_code.co_name == "_publish":
        ARMED = True
    watch(frame, event, argument)
sys.setprofile(arm)
threading.setprofile(arm)
atexit.register(lambda: print("steps", COUNT, file=sys.stderr))
"""
# How many places of the run are tried; each starts two processes.
PLACES_TRIED = 12


@pytest.fixture
def approved(tmp_path: Path) -> tuple[Team, str]:
    """A team, and a proposal that is ready to be published."""
    team = Team.begun(tmp_path)
    proposal = team.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    team.grace.ok("approve", proposal, "--yes")
    return team, proposal


def releases(team: Team, proposal: str) -> int:
    """How many entries of the ledger carry this proposal; the chain is verified on the way."""
    return sum(entry["proposal"] == proposal for entry in team.ada.ok("audit", "log", "--json").document)


def check_after_interrupt(team: Team, proposal: str, ended: Ended) -> None:
    assert "Traceback" not in ended.err, ended.err
    if ended.code == 130:
        assert "interrupted" in ended.err
        if "nothing was sent" in ended.err:
            assert releases(team, proposal) == 0
    else:
        assert ended.code == 0, ended  # it was done before the signal could count
    team.ada.ok("publish", proposal, "--yes")
    assert releases(team, proposal) == 1
    assert team.ada.ok("audit", "verify", "--json").document["rejected"] == []


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many calls and returns an undisturbed publish makes."""
    directory = tmp_path_factory.mktemp("undisturbed")
    team = Team.begun(directory)
    proposal = team.ada.ok("import", write_flags(directory / "flags.json"), "--yes").out.strip()
    team.grace.ok("approve", proposal, "--yes")
    ended = team.ada.run_process("publish", proposal, "--yes", driver=DRIVER.format(at=0))
    assert ended.code == 0, ended
    return int(ended.err.splitlines()[-1].split()[1])


@pytest.mark.parametrize("place", range(PLACES_TRIED))
def test_interrupted_anywhere_a_rerun_publishes_exactly_once(
    approved: tuple[Team, str], steps: int, place: int
) -> None:
    team, proposal = approved
    assert steps > PLACES_TRIED
    at = 1 + place * (steps - 1) // (PLACES_TRIED - 1)
    ended = team.ada.run_process("publish", proposal, "--yes", driver=DRIVER.format(at=at))
    check_after_interrupt(team, proposal, ended)


def test_interrupted_while_the_passphrase_is_read_nothing_was_sent(approved: tuple[Team, str]) -> None:
    team, proposal = approved
    reader, writer = os.pipe()
    announce = (
        "import os\n"
        "_read = os.read\n"
        "def read(descriptor, size):\n"
        '    print("reading", flush=True)\n'
        "    return _read(descriptor, size)\n"
        "os.read = read"
    )
    process = team.ada.spawn(
        "publish", proposal, "--yes", "--passphrase-fd", str(reader), driver=announce, pass_fds=(reader,)
    )
    with process:
        os.close(reader)
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    os.close(writer)
    assert "nothing was sent" in err.decode()
    check_after_interrupt(team, proposal, Ended(process.returncode, out.decode(), err.decode()))


def test_interrupted_while_the_ledger_is_locked_by_another_the_rerun_publishes(approved: tuple[Team, str]) -> None:
    """The append waits for another writer of the file when Ctrl-C comes."""
    team, proposal = approved
    announce = (
        "import publisher.cli.publish as p\n"
        "_append = p.Outgoing.append\n"
        "async def append(self, value, *, expected_end=None):\n"
        '    print("appending", flush=True)\n'
        "    return await _append(self, value, expected_end=expected_end)\n"
        "p.Outgoing.append = append"
    )
    path = Path(team.ledger.removeprefix("sqlite:///"))
    other = sqlite3.connect(path, isolation_level=None)
    process = team.ada.spawn("publish", proposal, "--yes", driver=announce)
    with process:
        try:
            other.execute("BEGIN IMMEDIATE")
            assert process.stdout is not None
            assert process.stdout.readline() == b"appending\n"
            process.send_signal(signal.SIGINT)
        finally:
            other.execute("ROLLBACK")
            other.close()
        out, err = process.communicate(timeout=60)
    check_after_interrupt(team, proposal, Ended(process.returncode, out.decode(), err.decode()))


def test_killed_at_any_step_a_rerun_publishes_exactly_once(approved: tuple[Team, str], steps: int) -> None:
    team, proposal = approved
    driver = DRIVER.replace("signal.SIGINT", "signal.SIGKILL").format(at=steps // 2)
    ended = team.ada.run_process("publish", proposal, "--yes", driver=driver)
    assert ended.code == -signal.SIGKILL
    team.ada.ok("publish", proposal, "--yes")
    assert releases(team, proposal) == 1
