"""What the command loads before it knows what to do: kept small, so that it starts within a quarter of a second."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.operators import Operator

HEAVY = {
    "rich",
    "grpc",
    "fastavro",
    "nacl",
    "aiokafka",
    "cryptography",
    "ruamel",
    "structlog",
    "asyncio",
    "sqlite3",
    "uvloop",
}
REPORT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr))
"""


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["pnding"]], ids=" ".join)
def test_start_imports_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    ended = Operator(tmp_path).run_process(*args, driver=REPORT)
    loaded = set(json.loads(ended.err.splitlines()[-1]))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_the_installed_command_says_its_version() -> None:
    told = subprocess.run([Path(sys.executable).with_name("flaghoist"), "--version"], capture_output=True, check=True)
    assert told.stdout.startswith(b"flaghoist ")


def test_every_command_has_help_with_its_options(tmp_path: Path) -> None:
    from publisher.cli import COMMANDS

    ada = Operator(tmp_path)
    for name in COMMANDS:
        assert name in ada.ok(name, "--help").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(shell: str, tmp_path: Path) -> None:
    assert "_FLAGHOIST_COMPLETE" in Operator(tmp_path).ok("completion", shell).out


def test_a_mistyped_command_is_told_what_is_alike(tmp_path: Path) -> None:
    error = Operator(tmp_path).refused("pnding", code=2)
    assert "pending" in error["message"]


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    process = Operator(tmp_path).spawn("completion", "bash", driver="import sys; sys.stdin.read()", stdin=b"")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()  # it goes on from here
        assert process.stderr.read() == b""
    assert process.returncode == 0
