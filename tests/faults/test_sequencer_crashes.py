"""Publishing under every disorder that a Kafka-like log and two machines can cause: nothing is lost or doubled.

The log is the fake one, so that a seed decides when an append is lost, delivered late or not confirmed, and
when a publisher dies; keys, records, journals and the verifier are the real ones.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import ClassVar

import pytest

from flaghoist.codec import APPROVAL, ENTRY, PROPOSAL
from flaghoist.errors import OutcomeUnknown, Refused, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Batch, Log, Stream
from flaghoist.outcomes import Applied, Forked
from flaghoist.records import EpochClaim, RootUpdate
from flaghoist.signing import digest
from flaghoist.values import LogId
from publisher.inbox import Case
from publisher.journal import Journal
from publisher.reader import LedgerReader
from publisher.sequencer import Sequencer
from tests.conformance.memory_log import MemoryLogs
from tests.forge import PUBLISHER, Forge, Key, boolean_flag


class Crash(BaseException):
    """The publisher's process dies here; whatever it had not written to disk is gone."""


class UnreliableLog:
    """A log as Kafka can look from one client: appends may fail in every way that aiokafka can report, and a late one
    arrives when it likes."""

    conditional = False

    def __init__(self, log: Log, rng: random.Random, late: list[bytes], trouble: float) -> None:
        self._log, self._rng, self._late, self._trouble = log, rng, late, trouble

    async def end(self) -> int:
        return await self._log.end()

    async def append(self, value: bytes, *, expected_end: int | None = None) -> int:
        await self._deliver_some()
        if self._rng.random() >= self._trouble:
            return await self._log.append(value)
        match self._rng.randrange(6):
            case 0:
                raise Unavailable("not sent")
            case 1:
                raise Crash
            case 2:
                self._late.append(value)
                raise OutcomeUnknown("sent, and on its way")
            case 3:
                await self._log.append(value)
                raise OutcomeUnknown("stored, and not confirmed")
            case 4:
                await self._log.append(value)
                raise Crash
            case _:
                await self._log.append(value)
                return await self._log.append(value)  # a retry that stored it twice

    async def follow(self, start: int) -> AsyncGenerator[Batch, None]:
        async for batch in self._log.follow(start):
            if self._rng.random() < self._trouble / 10:
                raise Crash
            yield batch

    async def _deliver_some(self) -> None:
        while self._late and self._rng.random() < 0.5:
            await self._log.append(self._late.pop(self._rng.randrange(len(self._late))))


class CountingSigner(Key):
    """Signs, and remembers what for: the test's proof that nothing is signed twice."""

    signed: ClassVar[list[bytes]] = []
    rng: ClassVar[random.Random] = random.Random(0)
    trouble: ClassVar[float] = 0.0

    def sign(self, message: bytes) -> bytes:
        if self.rng.random() < self.trouble / 6:
            raise Crash
        self.signed.append(message)
        if self.rng.random() < self.trouble / 6:
            raise Crash
        return super().sign(message)


def case_of(forge, n):
    proposal = forge.proposal(forge.op(f"flag-{n}", boolean_flag(), version=0), proposal_id=f"{n:026d}")
    approval = forge.approval(proposal)
    return Case(
        PROPOSAL.decode(proposal.payload),
        proposal,
        digest(proposal),
        ((APPROVAL.decode(approval.payload), approval),),
    )


@pytest.mark.parametrize("seed", range(60))
def test_two_publishers_lose_and_double_nothing_whatever_the_log_does(seed, tmp_path):
    rng = random.Random(seed)
    forge = Forge()
    logs = MemoryLogs()
    late: list[bytes] = []
    signer = CountingSigner(PUBLISHER)
    signer.signed.clear()
    CountingSigner.rng = rng
    cases = [case_of(forge, n) for n in range(6)]

    async def attempt(machine, work, trouble):
        """One run of the command on one machine; it may fail or die, as a process may."""
        CountingSigner.trouble = trouble
        async with logs(Stream.LEDGER) as log:
            with Journal.open(tmp_path / machine, LogId("test")) as journal:
                reader = LedgerReader(UnreliableLog(log, rng, late, trouble), Ledger(forge.root))
                sequencer = Sequencer(reader, journal, signer, holder=machine, clock_ms=lambda: forge.now_ms)
                await work(sequencer)

    async def scenario():
        async def init(sequencer):
            await sequencer.append(RootUpdate(forge.root.envelope))

        await attempt("one", init, 0.0)
        for _ in range(2):
            for case in rng.sample(cases, 3):
                with suppress(Crash, Unavailable, Refused):
                    await attempt(rng.choice(("one", "two")), lambda s, c=case: s.publish(c), 0.6)
        for case in cases:  # the world is well again: a rerun finishes
            await attempt("one", lambda s, c=case: s.publish(c), 0.0)
        async with logs(Stream.LEDGER) as log:
            for value in late:
                await log.append(value)

    asyncio.run(scenario())
    ledger = Ledger(forge.root)
    outcomes = [ledger.receive(value) for value in logs.values(Stream.LEDGER)]
    assert not [outcome for outcome in outcomes if isinstance(outcome, Forked)]
    applied = [outcome.authorized.sha256 for outcome in outcomes if isinstance(outcome, Applied)]
    assert sorted(applied) == sorted(case.sha256 for case in cases)
    assert_nothing_signed_twice(signer.signed)


def assert_nothing_signed_twice(signed):
    """Per machine the journal forbids it; between machines only claims of one epoch may compete for a place."""
    places = {}
    for message in set(signed):
        entry = ENTRY.decode(message.split(b" ", 4)[4])
        if not isinstance(entry.body, EpochClaim):
            assert places.setdefault((entry.epoch, entry.seq), message) == message
