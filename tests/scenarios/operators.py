"""Operators at their desks: each has a home of their own and runs the real command, here or as a process."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from publisher.cli import main

PASSPHRASE = "correct horse battery"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.document["error"]
        return found


class Operator:
    """One person (or machine) with a configuration directory."""

    def __init__(self, desk: Path) -> None:
        self.desk = desk
        self.home = desk / "home"
        desk.mkdir(parents=True, exist_ok=True)
        passphrase = desk / "passphrase"
        passphrase.write_text(PASSPHRASE + "\n")
        passphrase.chmod(0o600)
        self.environ = {
            "FLAGHOIST_HOME": str(self.home),
            "FLAGHOIST_PASSPHRASE_FILE": str(passphrase),
            "PATH": os.environ["PATH"],
            "NO_COLOR": "1",
        }

    def run(self, *args: str | Path, out: io.StringIO | None = None, err: io.StringIO | None = None) -> Ended:
        """Run a command in this process, not on a terminal."""
        out, err = out or io.StringIO(), err or io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(arg) for arg in args], self.environ)
        return Ended(code, out.getvalue(), err.getvalue())

    def ok(self, *args: str | Path) -> Ended:
        """Run a command that must work."""
        ended = self.run(*args)
        assert ended.code == 0, ended
        return ended

    def refused(self, *args: str | Path, code: int) -> Mapping[str, str]:
        """Run a command that must fail so, with --json; return the error."""
        ended = self.run(*args, "--json")
        assert ended.code == code, ended
        assert "Traceback" not in ended.err
        return ended.error

    def spawn(
        self,
        *args: str | Path,
        driver: str = "",
        stdin: bytes | None = None,
        terminal: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a command as a process of its own.

        Args:
            driver: Python that runs before it.
            terminal: a terminal's descriptor, which becomes its controlling one and all of its streams.
        """
        # As in the foreground of a shell: whoever runs the tests in the background has made their children deaf to it.
        ctrl_c = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
        program = f"{ctrl_c}\n{driver}\nimport sys\nfrom publisher.cli import main\nsys.exit(main())"
        streams: dict[str, int] = {
            "stdin": subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        if terminal is not None:
            streams = dict.fromkeys(streams, terminal)
            # Not preexec_fn: the child itself makes the terminal its controlling one, so that Ctrl-C reaches it.
            program = f"import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{program}"
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, args)],
            env={**self.environ, "PYTHONPATH": f"{REPOSITORY / 'proto'}{os.pathsep}{REPOSITORY}"},
            start_new_session=terminal is not None,
            pass_fds=pass_fds,
            **streams,
        )

    def run_process(self, *args: str | Path, driver: str = "", stdin: bytes | None = None) -> Ended:
        """Run a command as a process of its own, to its end."""
        with self.spawn(*args, driver=driver, stdin=stdin) as process:
            try:
                out, err = process.communicate(stdin, timeout=60)
            except BaseException:
                process.kill()
                raise
        return Ended(process.returncode, out.decode(), err.decode())

    def make_key(self, name: str, person: str) -> Path:
        """Make a key and return its card."""
        self.ok("key", "new", name, "--person", person)
        return self.home / "keys" / f"{name}.pub"

    def pending(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self.ok("pending", "--json").document
        return found


@dataclass(frozen=True)
class Team:
    """Ada runs the publisher and proposes, Grace approves; one ledger between them."""

    ada: Operator
    grace: Operator
    ledger: str

    @classmethod
    def begun(cls, directory: Path, *, log_id: str = "staging", ledger: str | None = None) -> "Team":
        ada, grace = Operator(directory / "ada"), Operator(directory / "grace")
        cards = [ada.make_key("ada", "ada@example.org"), grace.make_key("grace", "grace@example.org")]
        url = ledger or f"sqlite:///{directory}/ledger.db"
        members = [word for card in cards for word in ("--member", str(card))]
        # Two people, and no publisher's service that could beat.
        ada.ok(
            "init", "--log-id", log_id, "--ledger", url, *members, "--root-threshold", "1", "--no-heartbeats", "--yes"
        )
        root = ada.home / "roots" / f"{log_id}.root"
        grace.ok("root", "pin", root, "--ledger", url, "--yes")
        return cls(ada, grace, url)

    def imported(self, file: Path) -> str:
        """Import, approve and publish a flag file; return the proposal's id."""
        proposal = self.ada.ok("import", file, "--yes").out.strip()
        self.published(proposal)
        return proposal

    def published(self, proposal: str) -> None:
        self.grace.ok("approve", proposal, "--yes")
        self.ada.ok("publish", proposal, "--yes")


FLAGS = {
    "flags": {
        "newCheckout": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"},
        "greeting": {
            "state": "ENABLED",
            "variants": {"plain": "hello", "loud": "HELLO"},
            "defaultVariant": "plain",
            "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "loud", None]},
        },
    }
}


def write_flags(path: Path, document: object = FLAGS) -> Path:
    """Write a flag file and return its path."""
    path.write_text(json.dumps(document, indent=2))
    return path
