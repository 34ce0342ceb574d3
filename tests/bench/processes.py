"""Other processes under measurement: started, watched through /proc, and stopped by their own pid."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, TypeVar

ROOT: Final = Path(__file__).resolve().parents[2]
# For failures only: a loaded machine may take many times what a start usually does.
READY_S: Final = 60.0
STOP_S: Final = 15.0
LOOK_S: Final = 0.002

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


class ChildFailed(Exception):
    """A process that is needed for a figure ended, or never did what was waited for; the text holds its last words."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process; what it says on stderr is in `errors`, a file."""

    process: "subprocess.Popen[str]"
    errors: Path
    _lines: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def cpu_s(self) -> float:
        """CPU time of all threads so far, user and system, in seconds; resolution 10 ms."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICKS_A_SECOND  # utime, stime: proc_pid_stat(5)

    @property
    def wakeups(self) -> int:
        """How often its threads have gone to sleep by themselves so far, so how often they were woken."""
        total = 0
        for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
            total += _status_field(status, "voluntary_ctxt_switches")
        return total

    def rss_mib(self, *, peak: bool = False) -> float:
        """Resident memory now, or the most there ever was, in MiB."""
        return _status_field(Path(f"/proc/{self.pid}/status"), "VmHWM" if peak else "VmRSS") / 1024

    def listen(self) -> None:
        """Read its stdout from now on, in a thread of its own: a pipe has no deadline, a queue has."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        pipe: IO[str] | None = self.process.stdout
        assert pipe is not None
        for line in pipe:
            self._lines.put(line)
        self._lines.put("")

    def heard(self) -> Any:
        """Return the next line of JSON on its stdout.

        Raises:
            ChildFailed: it ended, or said nothing for READY_S seconds.
        """
        try:
            line = self._lines.get(timeout=READY_S)
        except queue.Empty:
            raise ChildFailed(self._last_words(f"said nothing for {READY_S:g} s")) from None
        if not line:
            raise ChildFailed(self._last_words("ended"))
        return json.loads(line)

    def wait_for(self, look: Callable[[], T | None], what: str) -> T:
        """Return what `look` finds, asked again and again until it does.

        Raises:
            ChildFailed: the process ended first, or READY_S seconds passed.
        """
        deadline = time.monotonic() + READY_S
        while (found := look()) is None:
            if self.process.poll() is not None:
                raise ChildFailed(self._last_words(f"ended with {self.process.returncode} before {what}"))
            if time.monotonic() > deadline:
                raise ChildFailed(self._last_words(f"no {what} within {READY_S:g} s"))
            time.sleep(LOOK_S)
        return found

    def _last_words(self, fact: str) -> str:
        words = self.errors.read_text(encoding="utf-8")[-1500:]
        return f"{Path(str(self.process.args[0])).name} {fact}; stderr: {words}"  # type: ignore[index]


def _status_field(status: Path, name: str) -> int:
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # a thread that has just ended
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def running(
    command: Sequence[str], *, speaks: bool = False, variables: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a command in a directory without a configuration of ours; end it on leaving.

    Args:
        speaks: it writes lines of JSON to its stdout.
        variables: added to its environment.
    """
    with tempfile.TemporaryDirectory(prefix="flaghoist-bench-") as home:
        errors = Path(home) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else subprocess.DEVNULL,
                stderr=stderr,
                text=True,
                env=_environment(home) | dict(variables or {}),
                cwd=ROOT,
            )
        child = Child(process, errors)
        if speaks:
            child.listen()
        try:
            yield child
        finally:
            _stop(process)


@contextmanager
def module(name: str, *arguments: str) -> Iterator[Child]:
    """Run `python -m tests.bench.NAME`, which speaks lines of JSON."""
    with running([sys.executable, "-m", f"tests.bench.{name}", *arguments], speaks=True) as child:
        yield child


def _environment(home: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        # An installed product has its byte code compiled; a start is not to be measured without.
        if not name.startswith(("FLAGHOIST_", "XDG_")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return kept | {"HOME": home}


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
