"""Load on an HTTP server by hey, a program in Go: the caller's cost must not be Python's."""

import csv
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sidecar.listeners import Face
from tests.bench.figures import percentile
from tests.bench.go_programs import installed
from tests.bench.load import Load
from tests.bench.processes import READY_S
from tests.bench.servers import Server

HEY: Final = "github.com/rakyll/hey@v0.1.5"


def hey() -> Path:
    """Return the program; raises NoProgram where it cannot be had."""
    return installed("hey", HEY)


def address_of(server: Server, face: Face) -> str:
    """Return host:port of one of a sidecar's faces, as its log tells it."""

    def look() -> str | None:
        for line in server.child.errors.read_text(encoding="utf-8").splitlines():
            if line.startswith("{") and line.endswith("}"):
                event = json.loads(line)
                if event.get("event") == "front.opened" and event["face"] == face.value:
                    return str(event["address"])
        return None

    return server.child.wait_for(look, f"listener of {face}")


def post(address: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers by name in lower case, and body of one answer."""
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers=dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=READY_S) as answer:
            return answer.status, _fields(answer.headers), answer.read()
    except urllib.error.HTTPError as error:  # 304 is one, to urllib
        with error:
            return error.code, _fields(error.headers), error.read()


def _fields(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def drive_http(
    server: Server,
    url: str,
    body: bytes,
    callers: int,
    seconds: float,
    *,
    status: int = 200,
    headers: Sequence[str] = (),
) -> Load:
    """POST this body as fast as the callers, each on a connection of its own, can, for so long.

    Raises:
        RuntimeError: a call got another status, or none: figures of errors are no figures.
    """
    with TemporaryDirectory() as place:
        data = Path(place) / "body"
        data.write_bytes(body)
        command = [str(hey()), "-z", f"{round(seconds * 1000)}ms", "-c", str(callers), "-m", "POST", "-D", str(data)]
        command += ["-T", "application/json", "-o", "csv", "-disable-compression"]
        for header in headers:
            command += ["-H", header]
        before_s = server.child.cpu_s
        done = subprocess.run([*command, url], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        cpu_s = server.child.cpu_s - before_s
    if done.returncode:
        raise RuntimeError(f"hey ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
    calls = list(csv.DictReader(done.stdout.splitlines()))
    statuses = {call["status-code"] for call in calls}
    if statuses != {str(status)}:
        raise RuntimeError(f"want {status} for every call, got {sorted(statuses)}: {done.stderr[-600:]}")
    took_ms = [float(call["response-time"]) * 1000 for call in calls]
    whole_s = max(float(call["offset"]) + float(call["response-time"]) for call in calls)
    return Load(len(calls) / whole_s, percentile(took_ms, 50), percentile(took_ms, 99), cpu_s / len(calls) * 1e6)
