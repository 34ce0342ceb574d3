"""Publish to visible over Kafka, beside a bare aiokafka produce-to-consume of the same bytes, in turns."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import uvloop
from aiokafka import AIOKafkaProducer

from flaghoist.codec import APPROVAL, PROPOSAL
from flaghoist.ledger import Ledger, next_entry
from flaghoist.log.base import Log, Stream
from flaghoist.log.location import KafkaLocation, create_log, open_log, parse
from flaghoist.records import Envelope, Release
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
from tests.forge import PUBLISHER, Forge, Key, allowing_rule, boolean_flag

LIMIT: Final = 1.3
FLAGS: Final = 100
KEY: Final = "shop-flag-00001"
PAUSE_S: Final = (0.02, 0.06)
SEED: Final = 20_26
WHAT: Final = "publish to visible over Kafka: p50 of bare produce-to-consume"

BARE: Final = "bare aiokafka: produce → consumed"
BARE_ACKNOWLEDGED: Final = "bare aiokafka: produce → acknowledged"
ACKNOWLEDGED: Final = "signed entry handed to the log → acknowledged"
EVENT: Final = "signed entry handed to the log → event at the client"
ANSWER: Final = "signed entry handed to the log → answer at the client"
WHOLE: Final = "approved proposal given to the sequencer → answer at the client"
ONE_CALL: Final = "the client's own call, repeated at once (part of each answer)"
PROMISED: Final = (EVENT, ANSWER, WHOLE)


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
    for name in PROMISED:
        p50, p99, largest = spread(found[name])
        ratio = p50 / bare_p50
        measured = f"{ratio:.2f} × (p50 {p50:.1f}, p99 {p99:.1f}, max {largest:.1f} ms)"
        verdict = Verdict.MET if ratio <= LIMIT else Verdict.MISSED
        promises.append(Promise(f"{WHAT}; {name}", f"≤ {LIMIT:g} ×", measured, verdict))
    columns = ("from → to", "p50 ms", "p99 ms", "max ms", "p50 of bare", "samples")
    return Result(tuple(promises), (Table("Publish to visible, Kafka", columns, rows),))


class _Run:
    """One publisher, one bare producer, and what the two processes at the other end tell."""

    def __init__(self, forge: Forge, log: Log, sequencer: Sequencer, witness: Child) -> None:
        self.found: dict[str, list[float]] = {
            name: [] for name in (BARE, BARE_ACKNOWLEDGED, ACKNOWLEDGED, EVENT, ANSWER, ONE_CALL, WHOLE)
        }
        self._forge = forge
        self._log = log
        self._sequencer = sequencer
        self._witness = witness
        self._changes = 0

    async def hand_over(self) -> bytes:
        """Append a signed entry; return its bytes."""
        await self._sequencer.catch_up()
        ledger = self._sequencer.reader.ledger
        case = self._next_case()
        release = Release(case.envelope, tuple(envelope for _, envelope in case.approvals), allowing_rule(ledger.root))
        value = self._forge.signed(next_entry(ledger, release, now_ms=self._forge.now_ms))
        begun_ns = time.monotonic_ns()
        await self._log.append(value)
        acknowledged_ns = time.monotonic_ns()
        seen = await self._seen()
        self._note(ACKNOWLEDGED, begun_ns, acknowledged_ns)
        self._note(EVENT, begun_ns, seen["event_ns"])
        self._note(ANSWER, begun_ns, seen["answer_ns"])
        self._note(ONE_CALL, seen["answer_ns"], seen["again_ns"])
        return value

    async def publish(self) -> None:
        """Publish an approved proposal as `flaghoist publish` does: read, journal, sign, append, read back."""
        await self._sequencer.catch_up()  # only so that the proposal can be written on the newest state
        case = self._next_case()
        begun_ns = time.monotonic_ns()
        published, seen = await asyncio.gather(self._sequencer.publish(case), self._seen())
        assert not published.already
        self._note(WHOLE, begun_ns, seen["answer_ns"])

    async def produce(self, producer: AIOKafkaProducer, topic: str, consumer: Child, value: bytes) -> None:
        """Send the same bytes to another topic with nothing of ours at either end."""
        begun_ns = time.monotonic_ns()
        await producer.send_and_wait(topic, value, partition=0)
        acknowledged_ns = time.monotonic_ns()
        consumed = await asyncio.to_thread(consumer.heard)
        self._note(BARE_ACKNOWLEDGED, begun_ns, acknowledged_ns)
        self._note(BARE, begun_ns, consumed["received_ns"])

    def forget(self) -> None:
        """Drop what was noted: the first of each claims the epoch and connects, and is like no other."""
        for values in self.found.values():
            values.clear()

    def _next_case(self) -> Case:
        self._changes += 1
        return _case(self._forge, self._sequencer.reader.ledger, on=self._changes % 2 == 1)

    async def _seen(self) -> Any:
        seen = await asyncio.to_thread(self._witness.heard)
        if seen["value"] is not (self._changes % 2 == 1):
            raise AssertionError(f"change {self._changes}: the client saw another value: {seen}")
        return seen

    def _note(self, name: str, from_ns: int, to_ns: int) -> None:
        self.found[name].append((to_ns - from_ns) / 1e6)


async def _in_turns(
    url: str, bare: KafkaLocation, forge: Forge, witness: Child, consumer: Child, place: Path, changes: int
) -> dict[str, list[float]]:
    pace = random.Random(SEED)
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(open_log(url)(Stream.LEDGER))
        journal = stack.enter_context(Journal.open(place, forge.root.log_id))
        reader = LedgerReader(log, Ledger(forge.root))
        sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder="bench", clock_ms=lambda: forge.now_ms)
        producer = AIOKafkaProducer(bootstrap_servers=bare.bootstrap, acks="all", enable_idempotence=True, linger_ms=0)
        await producer.start()
        stack.push_async_callback(producer.stop)
        run = _Run(forge, log, sequencer, witness)
        await sequencer.catch_up()
        await run.publish()
        for number in range(changes + 1):
            # Pauses are the pace of the load: nothing is waited for.
            await asyncio.sleep(pace.uniform(*PAUSE_S))
            value = await run.hand_over()
            await asyncio.sleep(pace.uniform(*PAUSE_S))
            await run.produce(producer, bare.topic, consumer, value)
            await asyncio.sleep(pace.uniform(*PAUSE_S))
            await run.publish()
            if number == 0:
                run.forget()
    return run.found


def _case(forge: Forge, ledger: Ledger, *, on: bool) -> Case:
    version: Seq = ledger.snapshot.version_of(StateId(Target.FLAG, Source(""), FlagKey(KEY)))
    op = forge.op(KEY, boolean_flag("on" if on else "off"), version=version.number)
    proposal = forge.proposal(op)
    approval: Envelope = forge.approval(proposal)
    return Case(
        PROPOSAL.decode(proposal.payload),
        proposal,
        digest(proposal),
        ((APPROVAL.decode(approval.payload), approval),),
    )
