"""Ask the sidecar on this loopback interface how it is, for container probes: exit code 0 for yes, 1 for no.

Usage: python -I probe.py ready|alive
    ready: it answers flags (a verified snapshot is loaded, and it is not draining).
    alive: it answers at all; a sidecar that waits for its first snapshot is alive.

It asks the management face at FLAGHOIST_MANAGEMENT_LISTEN, the sidecar's own option (default 127.0.0.1:8014). Only the
standard library is loaded, since a probe runs many times an hour in the sidecar's own limits of CPU and memory.
"""

import http.client
import os
import sys

# Ten times what a busy sidecar takes; shorter than every timeout of a probe that runs this, so that this says why.
ANSWER_S = 3.0
PATHS = {"ready": "/readyz", "alive": "/healthz"}


def ask(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code, and what was found."""
    if len(arguments) != 1 or arguments[0] not in PATHS:
        return 2, f"want {' or '.join(PATHS)}, got {arguments}"
    address = os.environ.get("FLAGHOIST_MANAGEMENT_LISTEN", "127.0.0.1:8014").split(",")[0].removeprefix("plaintext:")
    connection = http.client.HTTPConnection(address, timeout=ANSWER_S)
    try:
        connection.request("GET", PATHS[arguments[0]])
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return 1, f"{address}: {error}"
    finally:
        connection.close()
    return 0 if answer.status == http.HTTPStatus.OK else 1, f"{address}: {answer.status} {text}"


if __name__ == "__main__":
    code, found = ask(sys.argv[1:])
    print(found)  # noqa: T201 — Docker and the kubelet keep it with the probe's result
    sys.exit(code)
