"""A bare aiokafka consumer that tells when a record came: `python -m tests.bench.bare_consumer HOST:PORT TOPIC`.

It reads as the sidecar's log does (one partition, no group, a long poll), and looks at nothing. A line of JSON each
record: received_ns of the system's monotonic clock, and its bytes.
"""

import json
import sys
import time

import uvloop
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from flaghoist.log.kafka import FETCH_WAIT_S


async def main(address: str, topic: str) -> None:
    """Tell of every record until killed."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_wait_ms=round(FETCH_WAIT_S * 1000),
        request_timeout_ms=round(FETCH_WAIT_S * 2000),
    )
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    print(json.dumps({"ready": True}), flush=True)
    async for record in consumer:
        received_ns = time.monotonic_ns()
        print(json.dumps({"received_ns": received_ns, "bytes": len(record.value)}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
