"""Asks a sidecar all the time, over gRPC and OFREP, and writes down every answer; a process of its own, so that nobody
else's work is in its times.

    python -m tests.security.asker --rpc 127.0.0.1:8013 --ofrep 127.0.0.1:8016 --flag newCheckout --out answers.jsonl

It ends when its input does.
"""

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

import grpc
from flagd.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc

# Between two questions on one face.
PAUSE_S: Final = 0.005
DEADLINE_S: Final = 10.0


def asked_by_grpc(address: str, flag: str) -> Callable[[], dict[str, Any]]:
    """Return what asks once for an integer flag."""
    stub = evaluation_pb2_grpc.ServiceStub(grpc.insecure_channel(address))  # type: ignore[no-untyped-call]
    request = evaluation_pb2.ResolveIntRequest(flag_key=flag)

    def ask() -> dict[str, Any]:
        answer = stub.ResolveInt(request, timeout=DEADLINE_S)
        return {
            "value": answer.value,
            "seq": int(answer.metadata.fields["flaghoist.seq"].number_value),
            "reason": answer.reason,
        }

    return ask


def asked_by_ofrep(address: str, flag: str) -> Callable[[], dict[str, Any]]:
    """Return what asks once for a flag, on a connection that stays open."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)

    def ask() -> dict[str, Any]:
        connection.request("POST", f"/ofrep/v1/evaluate/flags/{flag}", b'{"context":{}}')
        answer = json.loads(connection.getresponse().read())
        return {"value": answer["value"], "seq": answer["metadata"]["flaghoist.seq"], "reason": answer["reason"]}

    return ask


def keep_asking(
    face: str, ask: Callable[[], dict[str, Any]], out: TextIO, writing: threading.Lock, stop: threading.Event
) -> None:
    """Ask until told to stop; one line an answer, or a failure."""
    while not stop.is_set():
        began_s = time.monotonic()
        try:
            answer = ask()
        except Exception as error:  # noqa: BLE001 — whatever it is, the caller got no answer
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        ended_s = time.monotonic()
        line = {"face": face, "at_s": ended_s, "took_s": ended_s - began_s, **answer}
        with writing:
            out.write(json.dumps(line) + "\n")
        time.sleep(PAUSE_S)


def main() -> None:
    """Ask until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rpc", required=True)
    parser.add_argument("--ofrep", required=True)
    parser.add_argument("--flag", required=True)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    stop, writing = threading.Event(), threading.Lock()
    with options.out.open("w") as out:
        asking = {
            "grpc": asked_by_grpc(options.rpc, options.flag),
            "ofrep": asked_by_ofrep(options.ofrep, options.flag),
        }
        threads = [
            threading.Thread(target=keep_asking, args=(face, ask, out, writing, stop)) for face, ask in asking.items()
        ]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
