"""On a terminal: it asks, hides what is typed, draws tables; and takes no for an answer."""

import codecs
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.scenarios.operators import PASSPHRASE, Operator, Team, write_flags

ANSWER_S = 30.0


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, operator: Operator, *args: str | Path, ask: bool = True) -> None:
        if ask:
            operator.environ.pop("FLAGHOIST_PASSPHRASE_FILE", None)
        operator.environ["TERM"] = "xterm"
        self._master, slave = pty.openpty()
        self.process = operator.spawn(*args, terminal=slave)
        os.close(slave)
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read until the text was printed since the last call."""
        fresh, deadline = "", time.monotonic() + ANSWER_S
        while text not in fresh:
            assert time.monotonic() < deadline, (text, self.seen)
            ready, _, _ = select.select([self._master], [], [], 1.0)
            if ready:
                part = self._decoder.decode(os.read(self._master, 65536))
                fresh += part
                self.seen += part

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + ANSWER_S
        try:
            while True:
                ready, _, _ = select.select([self._master], [], [], 1.0)
                if not ready and time.monotonic() >= deadline:
                    self.process.kill()
                    raise AssertionError(f"it does not end; it said {self.seen[-2000:]!r}")
                if ready:
                    part = os.read(self._master, 65536)
                    if not part:
                        break
                    self.seen += self._decoder.decode(part)
        except OSError:  # Linux says EIO when the other side is closed
            pass
        os.close(self._master)
        try:
            return self.process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture
def team(tmp_path: Path) -> Team:
    team = Team.begun(tmp_path)
    team.imported(write_flags(tmp_path / "flags.json"))
    return team


def test_a_proposal_is_signed_after_a_yes_and_a_hidden_passphrase(team: Team) -> None:
    terminal = Terminal(team.ada, "propose", "set", "newCheckout", "--variant", "on")
    terminal.read_until("[y/N]")
    terminal.type("y\n")
    terminal.read_until("Passphrase of key ada")
    terminal.type(PASSPHRASE + "\n")
    assert terminal.end() == 0
    assert PASSPHRASE not in terminal.seen
    assert len(team.ada.pending()) == 1


@pytest.mark.parametrize("answer", ["n\n", "\n", "maybe\n"], ids=["no", "enter", "other"])
def test_anything_but_yes_signs_nothing(team: Team, answer: str) -> None:
    terminal = Terminal(team.ada, "propose", "set", "newCheckout", "--variant", "on")
    terminal.read_until("[y/N]")
    terminal.type(answer)
    assert terminal.end() == 2
    assert "nothing was done" in terminal.seen
    assert team.ada.pending() == []


def test_ctrl_c_at_the_question_ends_with_130(team: Team) -> None:
    terminal = Terminal(team.ada, "propose", "set", "newCheckout", "--variant", "on")
    terminal.read_until("[y/N]")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "nothing was sent" in terminal.seen
    assert "Traceback" not in terminal.seen


def test_ctrl_c_at_the_passphrase_ends_with_130(team: Team) -> None:
    terminal = Terminal(team.ada, "propose", "set", "newCheckout", "--variant", "on", "--yes")
    terminal.read_until("Passphrase of key ada")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert team.ada.pending() == []


def test_a_new_passphrase_is_asked_twice(tmp_path: Path) -> None:
    eve = Operator(tmp_path / "eve")
    terminal = Terminal(eve, "key", "new", "eve", "--person", "eve@example.org")
    terminal.read_until("New passphrase")
    terminal.type("one passphrase\n")
    terminal.read_until("Once more")
    terminal.type("another passphrase\n")
    assert terminal.end() == 2
    assert "differ" in terminal.seen
    assert not (eve.home / "keys").exists()


def test_a_table_is_drawn_and_no_color_is_heeded(team: Team) -> None:
    terminal = Terminal(team.ada, "flag", "list")
    assert terminal.end() == 0
    assert "newCheckout" in terminal.seen
    assert "─" in terminal.seen
    assert "\x1b[3" not in terminal.seen
