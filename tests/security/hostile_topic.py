"""Writes a seeded flood of hostile records into the topics of a ledger on Kafka, beside whatever honest people write.

    python -m tests.security.hostile_topic --ledger kafka://127.0.0.1:9092/flags --records 10000 --seed 7

It needs what an attacker has: write access to the topics. With --stolen it also has keys. It prints one JSON document:
how many records of which kind it wrote where. tests/security/test_hostile_topic.py runs it and watches what it does.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from flaghoist.codec import ENTRY, decode_envelope
from flaghoist.errors import Refused
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.kafka_clients import client_options
from flaghoist.log.kafka_topics import MESSAGE_BYTES
from flaghoist.log.location import KafkaLocation, open_log, parse
from flaghoist.outcomes import Link
from flaghoist.records import RootUpdate
from flaghoist.root import Root
from flaghoist.signing import verified_keys
from publisher.keys import unlock
from tests.security.hostile_records import COMPRESSED, WRITTEN, Hostile, Write

ANSWER_S: Final = 30.0
CLOSE_S: Final = 2.0
# Records under way at once.
WINDOW: Final = 50
# One burst in so many goes through a transaction: committed, aborted, or left open.
TRANSACTION_EVERY: Final = 10
OPEN_TRANSACTIONS_MAX: Final = 3


@dataclass
class Written:
    """What was written; `streams` counts records that brokers hold, also those of transactions that were aborted."""

    streams: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    transactions: Counter[str] = field(default_factory=Counter)
    value_bytes: int = 0


class Attack:
    """One attacker with write access, and the clients that it writes with."""

    def __init__(self, location: KafkaLocation, url: str, seed: int) -> None:
        self._location = location
        self._url = url
        self._rng = random.Random(seed)
        self._seed = seed
        self.written = Written()
        self._plain: AIOKafkaProducer
        self._compressed: AIOKafkaProducer
        self._left_open: list[AIOKafkaProducer] = []

    def _producer(self, **more: Any) -> AIOKafkaProducer:
        options = client_options(self._location, answer_s=ANSWER_S)
        return AIOKafkaProducer(**options, max_request_size=4 * MESSAGE_BYTES, **more)

    async def run(self, hostile: Hostile, count: int, rate: float) -> None:
        """Write so many records, at most `rate` a second.

        Args:
            hostile: has heard what the topics hold.
        """
        async with AsyncExitStack() as stack:
            self._plain, self._compressed = self._producer(), self._producer(compression_type="gzip")
            for producer in (self._plain, self._compressed):
                await producer.start()
                stack.push_async_callback(producer.stop)
            began_s = time.monotonic()
            burst: list[Write] = []
            for number, write in enumerate(hostile.writes(count), 1):
                burst.append(write)
                if len(burst) == WINDOW or number == count:
                    await self._send(burst)
                    burst = []
                    await asyncio.sleep(max(0.0, began_s + number / rate - time.monotonic()))

    async def _send(self, burst: list[Write]) -> None:
        if self._rng.randrange(TRANSACTION_EVERY) == 0:
            await self._send_in_transaction(burst)
            return
        sent = [await self._hand_over(self._compressed if w.kind == COMPRESSED else self._plain, w) for w in burst]
        await asyncio.gather(*sent)
        self._count(burst)

    async def _send_in_transaction(self, burst: list[Write]) -> None:
        name = f"hostile-{self._seed}-{sum(self.written.transactions.values())}"
        producer = self._producer(transactional_id=name)
        await producer.start()
        await producer.begin_transaction()
        await asyncio.gather(*[await self._hand_over(producer, write) for write in burst])
        self._count(burst)
        ends = ["committed", "aborted"] + ["left open"] * (len(self._left_open) < OPEN_TRANSACTIONS_MAX)
        end = self._rng.choice(ends)
        self.written.transactions[end] += 1
        if end == "left open":
            self._left_open.append(producer)  # a reader of committed records only would stop here
            return
        await (producer.commit_transaction() if end == "committed" else producer.abort_transaction())
        await producer.stop()

    async def _hand_over(self, producer: AIOKafkaProducer, write: Write) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = await producer.send(
            self._location.topic_of(write.stream),
            write.value,
            key=write.key,
            partition=0,
            timestamp_ms=write.timestamp_ms,
            headers=list(write.headers),
        )
        return future

    def _count(self, burst: list[Write]) -> None:
        for write in burst:
            self.written.streams[write.stream.value] += 1
            self.written.kinds[f"{write.stream.value}: {write.kind}"] += 1
            self.written.value_bytes += len(write.value or b"")

    async def close(self) -> None:
        """Leave; transactions that are open stay open until the brokers give up on them."""
        for producer in self._left_open:
            producer._closed = True  # its own stop() would wait, and say so when it is collected
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await producer.client.close()


class Ear:
    """Reads the topics as the attacker may, for good records and the ledger's head."""

    def __init__(self, url: str, ledger: Ledger, hostile: Hostile) -> None:
        self._url = url
        self._ledger = ledger
        self._hostile = hostile
        self.reached = {stream: asyncio.Event() for stream in WRITTEN}

    async def follow(self, stream: Stream) -> None:
        """Listen until cancelled."""
        async with open_log(self._url)(stream) as log, aclosing(log.follow(0)) as batches:
            async for batch in batches:
                for record in batch.records:
                    self._hear(stream, record.value)
                    await asyncio.sleep(0)
                if batch.at_end:
                    self.reached[stream].set()

    def _hear(self, stream: Stream, value: bytes) -> None:
        if stream is Stream.LEDGER:
            if isinstance(self._ledger.receive(value), Link):
                self._hostile.hear(stream, value)
            return
        try:
            known = verified_keys(decode_envelope(value), self._ledger.root.record.keys)
        except Refused:
            return
        if known:
            self._hostile.hear(stream, value)


async def first_root(url: str) -> Root:
    """Return the root that a ledger begins with, as anybody can read it there.

    Raises:
        SystemExit: the ledger is empty.
    """
    async with open_log(url)(Stream.LEDGER) as log, aclosing(log.follow(0)) as batches:
        async for batch in batches:
            for record in batch.records:
                with suppress(Refused):
                    body = ENTRY.decode(decode_envelope(record.value).payload).body
                    if isinstance(body, RootUpdate):
                        return Root.verified(body.root)
            if batch.at_end:
                break
    raise SystemExit(f"{url}: no ledger begins here; make one with `flaghoist init`")


async def attack(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole attack, and return what was written."""
    location = parse(options.ledger)
    if not isinstance(location, KafkaLocation):
        raise SystemExit(f"{options.ledger}: want a ledger on Kafka")
    passphrase = options.passphrase_file.read_bytes().strip() if options.passphrase_file else b""
    stolen = [unlock(path, lambda: passphrase) for path in options.stolen]
    ledger = Ledger(await first_root(options.ledger))
    hostile = Hostile(
        options.seed, ledger, stolen=stolen, flags=options.flag or ["newCheckout"],
        now_ms=lambda: time.time_ns() // 1_000_000,
    )  # fmt: skip
    ear, attacker = Ear(options.ledger, ledger, hostile), Attack(location, options.ledger, options.seed)
    listening = [asyncio.create_task(ear.follow(stream)) for stream in WRITTEN]
    began_s = time.monotonic()
    try:
        for reached in ear.reached.values():
            async with asyncio.timeout(ANSWER_S):
                await reached.wait()
        await attacker.run(hostile, options.records, options.rate)
    finally:
        for task in listening:
            task.cancel()
        ended = await asyncio.gather(*listening, return_exceptions=True)
        await attacker.close()
    for failure in ended:
        if not isinstance(failure, asyncio.CancelledError):
            raise SystemExit(f"listening ended: {failure!r}")
    written = attacker.written
    return {
        "seed": options.seed,
        "records": sum(written.streams.values()),
        "value_bytes": written.value_bytes,
        "seconds": round(time.monotonic() - began_s, 1),
        "streams": dict(written.streams),
        "transactions": dict(written.transactions),
        "kinds": dict(sorted(written.kinds.items())),
    }


def main() -> int:
    """Parse the command line, attack, and print what was written; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", required=True, metavar="URL", help="kafka://host:9092/topic")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=400.0, help="records a second, at most")
    parser.add_argument("--flag", action="append", help="a flag that forgeries try to change; once or more often")
    parser.add_argument("--stolen", action="append", type=Path, default=[], metavar="KEY.pem", help="a stolen key")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="opens the stolen keys")
    print(json.dumps(asyncio.run(attack(parser.parse_args())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
