"""Transcripts of the commands: what an operator types and sees. `pytest tests/scenarios --rewrite` writes them anew.

    ada$ flaghoist pending      somebody types; what follows is stdout, `| ` marks stderr, `[10]` an exit code
    @team                       two people with keys, a ledger, and files/shop.json published
Ids, times, hashes and directories are named by placeholders; a proposal's placeholder can be typed.
"""

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.scenarios.operators import Operator, Team

HERE = Path(__file__).parent
TYPED = re.compile(r"(?P<who>[a-z]+)\$ flaghoist (?P<args>.*)\Z")
MASKS = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<key-id>"),
    (re.compile(r"\b[0-9a-f]{8}…"), "<key>…"),
    (re.compile(r"(?<=public    )[A-Za-z0-9+/]{43}="), "<public-key>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ"), "<time>"),
    (re.compile(r"\b\d{1,2}s(?=\s)"), "0s"),
    (re.compile(r"\b\d{1,2}s old"), "0s old"),
]
ULID = re.compile(r"\b01[0-9A-HJKMNP-TV-Z]{24}\b")


class _Lines(io.StringIO):
    """One stream of a command; its whole lines go to a transcript that both streams share."""

    def __init__(self, transcript: list[str], mark: str) -> None:
        super().__init__()
        self._transcript, self._mark, self._rest = transcript, mark, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        self._transcript += [f"{self._mark}{line}".rstrip() for line in lines]
        return super().write(text)


class _Stage:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._operators = {name: Operator(directory / name) for name in ("ada", "grace")}
        self._ids: list[str] = []

    def run(self, line: str) -> list[str]:
        if line == "@team":
            team = Team.begun(self._directory)
            team.imported(Path("shop.json"))
            self._ids.clear()
            return []
        match = TYPED.match(line)
        assert match is not None, line
        said: list[str] = []
        typed = re.sub(r"<P(\d+)>", lambda m: self._ids[int(m[1]) - 1], match["args"])
        ended = self._operators[match["who"]].run(*shlex.split(typed), out=_Lines(said, ""), err=_Lines(said, "| "))
        masked = [self._masked(text) for text in said]
        return masked + ([f"[{ended.code:d}]"] if ended.code else [])

    def _masked(self, text: str) -> str:
        for found in ULID.findall(text):
            if found not in self._ids:
                self._ids.append(found)
        for number, proposal in enumerate(self._ids, 1):
            text = text.replace(proposal, f"<P{number}>")
        text = text.replace(str(self._directory), "<dir>")
        for pattern, name in MASKS:
            text = pattern.sub(name, text)
        return text


@pytest.mark.parametrize("scenario", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_commands_say_what_the_transcript_says(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (HERE / "files").iterdir():
        shutil.copy(file, tmp_path)
    stage = _Stage(tmp_path)
    expected = scenario.read_text()
    came: list[str] = []
    for line in expected.splitlines():
        if TYPED.match(line) or line == "@team":
            came += ["", line] if TYPED.match(line) else [line]
            came += stage.run(line)
        elif line.startswith("# "):
            came += ["", line] if came else [line]
    text = "\n".join(came) + "\n"
    if request.config.getoption("--rewrite"):
        scenario.write_text(text)
    assert text == scenario.read_text()
