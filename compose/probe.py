"""Ask the sidecar on this loopback interface how it is, for container probes: exit code 0 for yes, 1 for no.

Usage: python -I probe.py serving|alive
    serving: it answers flags (a verified snapshot is loaded, and it is not draining).
    alive: it answers at all; a sidecar that waits for its first snapshot is alive.

It asks grpc.health.v1 at FLAGHOIST_LISTEN, the sidecar's own option (default 127.0.0.1:8013).
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Ten times what a busy sidecar takes; shorter than every timeout of a probe that runs this, so that this says why.
ANSWER_S = 3.0
QUESTIONS = ("serving", "alive")


def ask(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code, and what was found."""
    if len(arguments) != 1 or arguments[0] not in QUESTIONS:
        return 2, f"want {' or '.join(QUESTIONS)}, got {arguments}"
    address = os.environ.get("FLAGHOIST_LISTEN", "127.0.0.1:8013")
    # A proxy that the pod is configured with must not be asked for the pod's own loopback interface.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_S)
        except grpc.RpcError as error:
            return 1, f"{address}: {error.code().name}: {error.details()}"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    found = f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"
    return 0 if serving or arguments[0] == "alive" else 1, found


if __name__ == "__main__":
    code, found = ask(sys.argv[1:])
    print(found)  # noqa: T201 — Docker and the kubelet keep it with the probe's result
    sys.exit(code)
