"""Runs the drills of docs/recovery.md: its fenced blocks, in order, at the desks of the people whom their prompts name.

A line `ada$ …` is a command, typed at a terminal that answers `y` to what it is asked; the lines under it are what it
must print, each somewhere and in that order, with … for anything. Variables that one person sets are known to all: they
tell each other. Cards (`*.pub`) are handed to everybody. `systemctl` and `kubectl` stand for whatever runs the
services: the stage plays them with the real programs. A pod's commands only look; they are run again until they print
what they must.
"""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.publisher_process import PublisherProcess, running_publisher
from tests.scenarios.operators import REPOSITORY, Operator
from tests.security.production import PEOPLE, Production
from tests.sidecar_process import SidecarProcess, running_sidecar

DOCUMENT: Final = REPOSITORY / "docs" / "recovery.md"
COMMAND_S: Final = 60.0
# The longest that a pod takes to notice anything: a heartbeat's life, its interval, and room.
NOTICED_S: Final = 45.0
_PROMPT: Final = re.compile(r"(?P<who>ada|grace|linus|publisher|pod-[ab])\$ +(?P<line>.*)")
_SETS: Final = re.compile(r"(?P<name>[A-Z_]+)=")
_SECTION: Final = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^( *)```console\n(?P<text>.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Where the document's pods listen; on one machine each has ports of its own.
_FACES: Final = {"localhost:8014": "management", "localhost:8016": "ofrep"}


@dataclass(frozen=True)
class Command:
    """One command of the document, who types it, and what it must print."""

    who: str
    line: str
    expected: Sequence[str]

    @property
    def may_fail(self) -> bool:
        return any(line.startswith("error[") for line in self.expected)


@dataclass(frozen=True)
class Printed:
    """What a command printed, and its exit code."""

    code: int
    out: str
    talk: str

    @property
    def lines(self) -> list[str]:
        """What a terminal shows. Results and talk are two streams: each may come before the other."""
        return [line.rstrip() for line in (self.talk + self.out + self.talk).splitlines()]


def blocks_of(title: str, text: str) -> list[list[Command]]:
    """Return the commands of each fenced block under a heading of a document."""
    parts = _SECTION.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return [_commands(match["text"]) for match in _BLOCK.finditer(sections[title])]


def titles_of(text: str) -> list[str]:
    """Return the headings of a document's sections that have commands."""
    return [match["title"] for match in _SECTION.finditer(text) if blocks_of(match["title"], text)]


def _commands(text: str) -> list[Command]:
    found: list[Command] = []
    lines = iter(text.splitlines())
    for line in lines:
        stripped = line.strip()
        if match := _PROMPT.fullmatch(stripped):
            typed = match["line"]
            while typed.endswith("\\"):
                typed = f"{typed[:-1].rstrip()} {next(lines).strip()}"
            found.append(Command(match["who"], typed, []))
        elif stripped:
            last = found[-1]
            found[-1] = Command(last.who, last.line, [*last.expected, stripped])
    return found


def missing(expected: Sequence[str], lines: Sequence[str]) -> str | None:
    """Return the first expected line that was not printed after those before it; None when all were."""
    printed = iter(lines)
    for wanted in expected:
        pattern = re.compile(".*".join(map(re.escape, wanted.split("…"))))
        if not any(pattern.fullmatch(line.strip()) for line in printed):
            return wanted
    return None


class Stage:
    """The people, the publisher's service and two pods of one environment, while the block runs.

    Attributes:
        desks: who sits where; a machine that was lost is replaced here.
        variables: what the document leaves to be filled in, and what its commands set.
    """

    def __init__(self, production: Production, directory: Path) -> None:
        self.production = production
        self.directory = directory
        self.root = directory / "pods.root"  # what pods are deployed with; the machine that made it may be lost
        shutil.copy(production.root, self.root)
        self.desks: dict[str, Operator] = {name: production.at(name) for name in PEOPLE} | {
            "publisher": production.host
        }
        self.variables: dict[str, str] = {"LEDGER": production.url}
        self.pods: dict[str, SidecarProcess] = {}
        self.publisher: PublisherProcess | None = None
        self._stack = ExitStack()
        self._running: dict[str, AbstractContextManager[SidecarProcess]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self._stop(name)

    # --- what runs ---

    def start_publisher(self) -> PublisherProcess:
        """Start the service at the publisher's desk, and wait until it works."""
        self._running["publisher"] = process = running_publisher(self.desks["publisher"])
        self.publisher = process.__enter__()
        self.publisher.until("inbox.reached")
        return self.publisher

    def stop_publisher(self) -> None:
        self._stop("publisher")

    def start_pod(self, name: str, url: str | None = None) -> SidecarProcess:
        """Start a pod's sidecar, on what it keeps if it does."""
        self._running[name] = running_sidecar(url or self.production.url, self.root, self.kept(name))
        self.pods[name] = self._running[name].__enter__()
        self.pods[name].until("front.opened", face="ofrep")
        return self.pods[name]

    def stop_pod(self, name: str) -> None:
        self._stop(name)

    def kept(self, name: str) -> Path:
        """Return where a pod keeps its state."""
        return self.directory / name

    def _stop(self, name: str) -> None:
        self._running.pop(name).__exit__(None, None, None)

    # --- commands ---

    def run(self, command: Command) -> Printed:
        """Run one command of the document, and hold what it prints to it."""
        deadline = time.monotonic() + NOTICED_S
        while True:
            printed = self._run_once(command)
            lacks = missing(command.expected, printed.lines)
            right = lacks is None and (printed.code != 0) == command.may_fail
            if right:
                return printed
            if not command.who.startswith("pod") or time.monotonic() > deadline:
                raise AssertionError(f"{command.who}$ {command.line}\nwant {lacks!r}, ended with {printed.code}:\n"
                                     + "\n".join(printed.lines))  # fmt: skip
            time.sleep(0.2)  # between two looks, with a deadline

    def _run_once(self, command: Command) -> Printed:
        words = shlex.split(command.line)
        if words[0] == "systemctl":
            return self._systemctl(*words[1:])
        if words[0] == "kubectl":
            return self._kubectl(command.who, *words[1:])
        desk = self.desks.get(command.who)
        line = command.line
        if desk is None:
            for there, face in _FACES.items():
                line = line.replace(there, self.pods[command.who].address_of(face))
            return self._typed(line, self.kept(command.who), {"PATH": os.environ["PATH"]})
        printed = self._typed(line, _room(desk), desk.environ)
        for other in self.desks.values():
            for card in (other.home / "keys").glob("*.pub"):
                for hands in self.desks.values():
                    shutil.copy(card, _room(hands))
        return printed

    def _systemctl(self, verb: str, unit: str) -> Printed:
        assert unit == "flaghoist-publisher", unit
        actions: Mapping[str, Sequence[Callable[[], object]]] = {
            "start": [self.start_publisher],
            "stop": [self.stop_publisher],
            "restart": [self.stop_publisher, self.start_publisher],
        }
        for action in actions[verb]:
            action()
        return Printed(0, "", "")

    def _kubectl(self, who: str, verb: str, what: str, name: str) -> Printed:
        """Delete a pod, whose directory goes with it, and which another one follows; or copy what a pod keeps."""
        if verb == "cp":
            pod, _, path = what.partition(":")
            assert path == "/var/lib/flaghoist", path
            shutil.copytree(self.kept(pod), _room(self.desks[who]) / name)
            return Printed(0, "", "")
        assert (verb, what) == ("delete", "pod")
        self.stop_pod(name)
        shutil.rmtree(self.kept(name))
        self.start_pod(name)
        return Printed(0, f'pod "{name}" deleted\n', "")

    def _typed(self, line: str, room: Path, environ: Mapping[str, str]) -> Printed:
        name = match["name"] if (match := _SETS.match(line)) else None
        said = room / ".said"
        script = f"set -eu -o pipefail\n{line}\n" + (f"printf %s \"${name}\" > '{said}'" if name else "")
        commands = Path(sys.executable).parent
        everything = {
            **environ,
            **self.variables,
            "PATH": f"{commands}{os.pathsep}{environ['PATH']}",
            "PYTHONPATH": f"{REPOSITORY / 'proto'}{os.pathsep}{REPOSITORY}",
        }
        printed = on_terminal(["bash", "-c", script], everything, room)
        if name is not None and printed.code == 0:
            self.variables[name] = said.read_text()
        return printed


def _room(desk: Operator) -> Path:
    room = desk.desk / "room"
    room.mkdir(exist_ok=True)
    return room


def on_terminal(command: Sequence[str], environ: Mapping[str, str], directory: Path) -> Printed:
    """Run a command at a terminal that answers every question with y; its output goes where a pipe would read it."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        command, cwd=directory, env=dict(environ), stdin=slave, stderr=slave, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        assert process.stdout is not None
        texts = {master: b"", process.stdout.fileno(): b""}
        waiting, answered, deadline = set(texts), 0, time.monotonic() + COMMAND_S
        try:
            while waiting:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{command}: not done within {COMMAND_S:g} s: {texts}")
                ready, _, _ = select.select(list(waiting), [], [], 1.0)
                for descriptor in ready:
                    try:
                        part = os.read(descriptor, 65536)
                    except OSError:  # Linux says EIO when the other side of a terminal is closed
                        part = b""
                    texts[descriptor] += part
                    if not part:
                        waiting.discard(descriptor)
                while answered < texts[master].count(b"[y/N] "):
                    os.write(master, b"y\n")
                    answered += 1
            process.wait(COMMAND_S)
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(master)
        out, talk = texts[process.stdout.fileno()].decode(), texts[master].decode().replace("\r\n", "\n")
    return Printed(process.returncode, out, talk)


class Drill:
    """One section of the document, run block by block."""

    def __init__(self, stage: Stage, title: str) -> None:
        self.stage = stage
        self._blocks = iter(blocks_of(title, DOCUMENT.read_text(encoding="utf-8")))

    def block(self) -> list[Printed]:
        """Run the next block; return what each command printed."""
        return [self.stage.run(command) for command in next(self._blocks)]

    def rest(self) -> None:
        """Run all blocks that are left."""
        for commands in self._blocks:
            for command in commands:
                self.stage.run(command)

    def ended(self) -> bool:
        """Whether the document has no more blocks."""
        return next(self._blocks, None) is None
