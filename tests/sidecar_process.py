"""A sidecar as users run it: the real command in a process of its own, stopped by its own id."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 30.0
OTHER_FACES = ("management", "sync", "ofrep")


class SidecarProcess:
    """A running sidecar: where it listens, and the events that it has logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[Mapping[str, Any]] = []
        self._heard = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def address(self) -> str:
        """host:port of the gRPC listener."""
        return self.address_of("rpc")

    @property
    def port(self) -> int:
        return self.port_of("rpc")

    def address_of(self, face: str) -> str:
        """host:port, or unix:path, of a face: rpc, sync, ofrep or management; the last one that opened."""
        return str(self.until("front.opened", face=face)["address"])

    def port_of(self, face: str) -> int:
        return int(self.address_of(face).rpartition(":")[2])

    @property
    def text(self) -> str:
        """What it said on stderr that is no event: how it refused to start."""
        return "".join(str(e["text"]) for e in self.events if e["event"] == "text")

    def until(self, event: str, **facts: object) -> Mapping[str, Any]:
        """Wait for an event with these facts and return it."""
        with self._heard:
            self._heard.wait_for(lambda: self._find(event, facts) or self._ended, STARTS_WITHIN_S)
            match = self._find(event, facts)
            assert match is not None, f"no {event} {facts} in {self.events[-5:]}"
            return match

    def stop(self) -> int:
        """Ask it to drain and return its exit code; kill it if it does not."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended()

    def kill(self) -> int:
        """Kill -9, by its own id."""
        self.process.kill()
        return self.ended()

    def ended(self) -> int:
        """Wait until it ends by itself and return its exit code; kill it if it does not."""
        try:
            self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(ENDS_WITHIN_S)
        return self.process.returncode

    def _find(self, event: str, facts: Mapping[str, object]) -> Mapping[str, Any] | None:
        wanted = {"event": event, **facts}
        return next((e for e in reversed(self.events) if wanted.items() <= e.items()), None)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line}
            with self._heard:
                self.events.append(event)
                self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()


@contextmanager
def running_sidecar(
    ledger: str, root: Path | str, state_dir: Path, *options: str, listen: str = "127.0.0.1:0"
) -> Iterator[SidecarProcess]:
    """Run `flaghoist-sidecar` while the block runs; nothing of the user's own configuration is read.

    Args:
        root: a file, or sha256:HEX.
        options: more of the command line; what is named again here wins.
        listen: of the gRPC face; the others take free ports, so that any number of sidecars runs on one machine.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLAGHOIST_")}
    process = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("flaghoist-sidecar"), "--ledger", ledger, "--root", root),
            *("--state-dir", state_dir, "--listen", listen),
            *(part for face in OTHER_FACES for part in (f"--{face}-listen", "127.0.0.1:0")),
            *options,
        ],
        env={**environ, "FLAGHOIST_HOME": str(state_dir / "no-home")},
        stderr=subprocess.PIPE,
        text=True,
    )
    sidecar = SidecarProcess(process)
    try:
        yield sidecar
    finally:
        sidecar.stop()
