"""A client of many sidecars that tells when each one changed: `python -m tests.bench.fleet_witness KEY ADDRESS …`.

It waits on every sidecar's event stream, and asks for the flag when a stream names it. A line of JSON for each sidecar
and change: which sidecar (its place among the arguments), the value, its version, and answer_ns, when that answer was
here (system clock). All sidecars run on this machine, so the times can be compared.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import grpc
from flagd.evaluation.v2 import evaluation_pb2 as v2
from flagd.evaluation.v2 import evaluation_pb2_grpc as v2_grpc


async def main(key: str, addresses: Sequence[str]) -> None:
    """Tell of every change of one flag at every sidecar until stdout ends."""
    async with asyncio.TaskGroup() as watching:
        for place, address in enumerate(addresses):
            watching.create_task(watch(place, address, key))


async def watch(place: int, address: str, key: str) -> None:
    """Tell of every change of the flag at one sidecar."""
    request = v2.ResolveBooleanRequest(flag_key=key)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = v2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
        known = (await stub.ResolveBoolean(request, timeout=60, wait_for_ready=True)).value
        async for event in stub.EventStream(v2.EventStreamRequest()):
            if event.type == "provider_ready":
                tell({"ready": place})
            elif event.type == "configuration_change" and key in event.data.fields["flags"].struct_value.fields:
                answer = await stub.ResolveBoolean(request, timeout=60)
                answer_ns = time.time_ns()
                if answer.value is known:
                    continue  # a new stream first names what its client may have missed: no news here
                known = answer.value
                seq = int(answer.metadata.fields["flaghoist.seq"].number_value)
                tell({"place": place, "value": answer.value, "seq": seq, "answer_ns": answer_ns})


def tell(facts: dict[str, object]) -> None:
    """Write one line at once."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
