"""A gRPC client that tells when it saw a change: `python -m tests.bench.witness ADDRESS KEY`.

It waits on the event stream and asks for the flag when the stream names it, as an OpenFeature provider with a cache
does. So it uses no CPU until there is something to see, and none that the sidecar would need before.

A line of JSON each change, times of the system's monotonic clock: event_ns (the stream named the flag), answer_ns (an
answer of after it is here), again_ns (a second call is answered: what a call of this client takes), and the value.
"""

import json
import sys
import time

import grpc
from flagd.evaluation.v2 import evaluation_pb2 as v2
from flagd.evaluation.v2 import evaluation_pb2_grpc as v2_grpc


def main(address: str, key: str) -> None:
    """Tell of every change of one flag until the stream or stdout ends."""
    request = v2.ResolveBooleanRequest(flag_key=key)
    with grpc.insecure_channel(address) as channel:
        stub = v2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
        seq = seq_of(stub.ResolveBoolean(request, timeout=10, wait_for_ready=True))
        for event in stub.EventStream(v2.EventStreamRequest()):
            event_ns = time.monotonic_ns()
            if event.type == "provider_ready":
                print(json.dumps({"ready": True}), flush=True)
            elif event.type == "configuration_change" and key in event.data.fields["flags"].struct_value.fields:
                answer = stub.ResolveBoolean(request, timeout=10)
                answer_ns = time.monotonic_ns()
                if seq_of(answer) <= seq:
                    continue  # a new stream first names what its client may have missed: no news here
                seq = seq_of(answer)
                stub.ResolveBoolean(request, timeout=10)
                again_ns = time.monotonic_ns()
                times = {"event_ns": event_ns, "answer_ns": answer_ns, "again_ns": again_ns}
                print(json.dumps(times | {"value": answer.value}), flush=True)


def seq_of(answer: v2.ResolveBooleanResponse) -> int:
    """Return the version that an answer was made from."""
    return int(answer.metadata.fields["flaghoist.seq"].number_value)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
