"""Publish to visible over Kafka, beside a bare aiokafka produce-to-consume of the same bytes, in turns."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop
from aiokafka import AIOKafkaProducer

from flaghoist.codec import APPROVAL, PROPOSAL
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, Log, Stream
from flaghoist.log.location import KafkaLocation, create_log, open_log, parse
from flaghoist.records import Envelope
from flaghoist.signing import digest
from flaghoist.values import FlagKey, Seq, Source, StateId, Target
from publisher.inbox import Case
from publisher.journal import Journal
from publisher.reader import LedgerReader
from publisher.sequencer import Sequencer
from tests.bench.brokers import Brokers
from tests.bench.figures import Promise, Result, Table, Verdict, not_measured, spread
from tests.bench.ledgers import all_static, forged, root_bytes, store
from tests.bench.processes import Child, module
from tests.bench.scale import Scale
from tests.bench.servers import sidecar, wait_until_fresh
from tests.forge import PUBLISHER, Forge, Key, boolean_flag

LIMIT: Final = 1.3
FLAGS: Final = 100
KEY: Final = "shop-flag-00001"
PAUSE_S: Final = (0.02, 0.06)
SEED: Final = 20_26
WHAT: Final = "publish to visible over Kafka: p50 of bare produce-to-consume"

BARE: Final = "bare aiokafka: produce → consumed"
HANDED: Final = "signed entry handed to the log → answered"
EVENT: Final = "signed entry handed to the log → event"
WHOLE: Final = "approved proposal given to the sequencer → answered"
ACKNOWLEDGED: Final = "signed entry handed to the log → acknowledged"


def measure(scale: Scale, brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return milliseconds of each way, and the ratio of the medians."""
    if reason := brokers.missing:
        return Result((not_measured(WHAT, f"≤ {LIMIT:g} ×", reason),), ())
    say(f"following {scale.changes} publications")
    forge = forged(all_static(FLAGS))
    ledger_url, bare_url = brokers.url(), brokers.url()
    with ExitStack() as stack:
        uvloop.run(store(ledger_url, forge.records))
        uvloop.run(create_log(bare_url))
        location = parse(bare_url)
        assert isinstance(location, KafkaLocation)
        server = stack.enter_context(sidecar(ledger_url, root_bytes(forge)))
        wait_until_fresh(server, KEY)
        witness = stack.enter_context(module("witness", server.address, KEY))
        consumer = stack.enter_context(module("bare_consumer", location.bootstrap[0], location.topic))
        assert witness.heard()["ready"]
        assert consumer.heard()["ready"]
        place = Path(stack.enter_context(TemporaryDirectory()))
        found = uvloop.run(_in_turns(ledger_url, location, forge, witness, consumer, place, scale.changes))
    bare_p50 = spread(found[BARE])[0]
    rows = tuple((name, *spread(values), spread(values)[0] / bare_p50, len(values)) for name, values in found.items())
    promises = []
    for name in (HANDED, WHOLE):
        p50, p99, largest = spread(found[name])
        ratio = p50 / bare_p50
        measured = f"{ratio:.2f} × (p50 {p50:.1f}, p99 {p99:.1f}, max {largest:.1f} ms)"
        verdict = Verdict.MET if ratio <= LIMIT else Verdict.MISSED
        promises.append(Promise(f"{WHAT}; {name}", f"≤ {LIMIT:g} ×", measured, verdict))
    columns = ("from → to", "p50 ms", "p99 ms", "max ms", "p50 of bare", "samples")
    return Result(tuple(promises), (Table("Publish to visible, Kafka", columns, rows),))


class TimedLog:
    """A log that notes when its last append was called and acknowledged, and with which bytes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.handed_ns = 0
        self.acknowledged_ns = 0
        self.value = b""

    @property
    def conditional(self) -> bool:
        return self._log.conditional

    async def append(self, value: bytes, *, expected_end: int | None = None) -> int:
        self.value = value
        self.handed_ns = time.monotonic_ns()
        position = await self._log.append(value, expected_end=expected_end)
        self.acknowledged_ns = time.monotonic_ns()
        return position

    async def end(self) -> int:
        return await self._log.end()

    def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        return self._log.follow(start)


async def _in_turns(
    url: str, bare: KafkaLocation, forge: Forge, witness: Child, consumer: Child, place: Path, changes: int
) -> dict[str, list[float]]:
    pace = random.Random(SEED)
    found: dict[str, list[float]] = {name: [] for name in (BARE, HANDED, EVENT, ACKNOWLEDGED, WHOLE)}
    async with AsyncExitStack() as stack:
        log = TimedLog(await stack.enter_async_context(open_log(url)(Stream.LEDGER)))
        journal = stack.enter_context(Journal.open(place, forge.root.log_id))
        reader = LedgerReader(log, Ledger(forge.root))
        sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder="bench", clock_ms=lambda: forge.now_ms)
        await sequencer.catch_up()
        producer = AIOKafkaProducer(bootstrap_servers=bare.bootstrap, acks="all", enable_idempotence=True, linger_ms=0)
        await producer.start()
        stack.push_async_callback(producer.stop)
        for number in range(changes + 1):
            case = _case(forge, reader.ledger, number)
            await asyncio.sleep(pace.uniform(*PAUSE_S))  # the pace of the load; nothing is waited for
            begun_ns = time.monotonic_ns()
            publishing = asyncio.create_task(sequencer.publish(case))
            seen = await asyncio.to_thread(witness.heard)
            await publishing
            if seen["value"] is not (number % 2 == 0):
                raise AssertionError(f"publication {number}: the client saw another value: {seen}")
            await asyncio.sleep(pace.uniform(*PAUSE_S))
            produced_ns = time.monotonic_ns()
            await producer.send(bare.topic, log.value, partition=0)
            consumed = await asyncio.to_thread(consumer.heard)
            if number == 0:
                continue  # the first claims the epoch and connects; it is no publication like the others
            for name, from_ns, to_ns in (
                (BARE, produced_ns, consumed["received_ns"]),
                (HANDED, log.handed_ns, seen["answer_ns"]),
                (EVENT, log.handed_ns, seen["event_ns"]),
                (ACKNOWLEDGED, log.handed_ns, log.acknowledged_ns),
                (WHOLE, begun_ns, seen["answer_ns"]),
            ):
                found[name].append((to_ns - from_ns) / 1e6)
    return found


def _case(forge: Forge, ledger: Ledger, number: int) -> Case:
    version: Seq = ledger.snapshot.version_of(StateId(Target.FLAG, Source(""), FlagKey(KEY)))
    op = forge.op(KEY, boolean_flag("on" if number % 2 == 0 else "off"), version=version.number)
    proposal = forge.proposal(op)
    approval: Envelope = forge.approval(proposal)
    return Case(
        PROPOSAL.decode(proposal.payload),
        proposal,
        digest(proposal),
        ((APPROVAL.decode(approval.payload), approval),),
    )
