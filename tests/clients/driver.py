"""Drives a client program, whatever its language: one JSON line each way (README.md has the protocol)."""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# For failures only: a JVM on a busy machine takes seconds to its first answer.
ANSWER_S: Final = 60.0
CENSUS_S: Final = 300.0  # of one request; the test sends some thousands of users with each
EVENT_S: Final = 30.0
END_S: Final = 15.0

# A deadline of 500 ms, the providers' default, is missed now and then on two busy cores; what it does is not tested.
DEADLINE_MS: Final = 5000


class Unsupported(Exception):
    """The provider has nothing that could answer."""


class ClientFailed(Exception):
    """The program ended, or did not answer in time; the text has what it wrote to stderr."""


@dataclass(frozen=True)
class Answer:
    """What a client got for one flag. `error_code` is OpenFeature's, None when the flag was resolved."""

    value: Any
    variant: str | None
    reason: str | None
    error_code: str | None
    metadata: Mapping[str, Any]


class Client:
    """A running client program."""

    def __init__(self, process: "subprocess.Popen[str]", stderr: Path) -> None:
        self._process = process
        self._stderr = stderr
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def evaluate(self, kind: str, key: str, default: Any, context: Mapping[str, Any] | None = None) -> Answer:
        """Return what the client gets for a flag.

        Args:
            kind: boolean, string, integer, float or object.
            context: None for no context at all; `targetingKey` in it may be missing or None.
        """
        answer = self.ask(op="evaluate", type=kind, key=key, default=default, context=context)
        return Answer(
            answer["value"], answer["variant"] or None, answer["reason"], answer["errorCode"], answer["metadata"] or {}
        )

    def census(self, keys: Sequence[str], contexts: Sequence[Mapping[str, Any] | None]) -> dict[str, str]:
        """Return for each boolean flag one mark a context, in order: `1` it is on, `0` it is off, `?` an error."""
        marks = self.ask(op="census", keys=list(keys), contexts=list(contexts), within_s=CENSUS_S)["marks"]
        return {key: str(marks[key]) for key in keys}

    def forget(self) -> None:
        """Forget the changes that the provider has told of so far."""
        self.ask(op="forget")

    def change_of(self, key: str, *, within_s: float = EVENT_S) -> bool:
        """Wait for the provider's own event that names a changed flag, since `forget`; False: it did not come.

        Raises:
            Unsupported: the provider has no events.
        """
        return self._happens("await_change", within_s, key=key)

    def ready(self, *, within_s: float = EVENT_S) -> bool:
        """Wait until the provider is ready; False: it did not become so."""
        return self._happens("await_ready", within_s)

    def lost(self, *, within_s: float = EVENT_S) -> bool:
        """Wait until the provider says that it is stale or in error; False: it did not.

        Raises:
            Unsupported: the provider has no events.
        """
        return self._happens("await_stale_or_error", within_s)

    def ask(self, *, within_s: float = ANSWER_S, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            Unsupported, ClientFailed
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._lines.get(timeout=within_s) or "null")
        except (BrokenPipeError, queue.Empty) as error:
            raise ClientFailed(f"no answer to {request}; stderr: {self._stderr.read_text()[-3000:]}") from error
        if answer is None:
            raise ClientFailed(f"ended at {request}; stderr: {self._stderr.read_text()[-3000:]}")
        if "error" in answer:
            assert answer["error"] == "unsupported", answer
            raise Unsupported(request["op"])
        return dict(answer)

    def stop(self) -> None:
        """Ask the program to quit, and kill it by its own id when it does not."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write('{"op":"quit"}\n')
            self._process.stdin.close()
            self._process.wait(END_S)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join(END_S)

    def _happens(self, op: str, within_s: float, **more: Any) -> bool:
        answer = self.ask(within_s=within_s + ANSWER_S, op=op, timeoutMs=int(within_s * 1000), **more)
        return bool(answer["happened"])

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextmanager
def running_client(
    command: Sequence[str],
    port: int,
    directory: Path,
    *,
    mode: str = "rpc",
    deadline_ms: int = DEADLINE_MS,
    cache: str = "lru",
) -> Iterator[Client]:
    """Run a client program while the block runs; nothing of the user's own flagd configuration is read.

    Args:
        command: what `build.built` returned.
        port: of the sidecar on 127.0.0.1: its evaluation port for rpc, its sync port for in-process.
        directory: gets the program's stderr.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stderr = directory / "stderr.log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLAGD_")}
    options = ("--host", "127.0.0.1", "--port", port, "--mode", mode, "--deadline-ms", deadline_ms, "--cache", cache)
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            [*command, *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environ,
            text=True,
            encoding="utf-8",
        )
    client = Client(process, stderr)
    try:
        yield client
    finally:
        client.stop()
