"""Following a log for ever, over losses; the log is the fake that passes the conformance suite."""

import asyncio
import random
from contextlib import aclosing

import pytest

from flaghoist.errors import LogMissing, LogTruncated, Unavailable
from flaghoist.log.base import Stream
from flaghoist.log.reconnect import BACKOFF_CAP_S, follow_reliably, full_jitter
from tests.conformance.memory_log import MemoryLogs


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 20))


@pytest.mark.parametrize("seed", range(20))
def test_wait_is_anywhere_up_to_the_doubled_base_and_never_over_the_cap(seed):
    rng = random.Random(seed)
    for attempt in (0, 1, 5, 40, 5000):
        waits = [full_jitter(attempt, 0.1, 5.0, rng) for _ in range(200)]
        highest = min(5.0, 0.1 * 2 ** min(attempt, 40))
        assert 0 <= min(waits) < highest / 4
        assert highest * 3 / 4 < max(waits) <= highest


def test_reading_goes_on_where_it_stopped_after_every_loss():
    async def scenario():
        logs, lost, waits = MemoryLogs(probe_s=0.05), [], []

        async def sleep(seconds):
            waits.append(seconds)
            logs.return_()
            await asyncio.sleep(0)

        async with aclosing(
            follow_reliably(logs, Stream.LEDGER, 0, on_lost=lost.append, sleep=sleep, rng=random.Random(1))
        ) as batches:
            found = []
            for number in range(200):
                logs.put(Stream.LEDGER, b"%d" % number)
                if number % 7 == 0:
                    logs.lose()
                while len(found) <= number:
                    found += [record.value for record in (await anext(batches)).records]
        assert found == [b"%d" % number for number in range(200)]
        assert len(lost) == len(waits) == 29
        assert all(isinstance(error, Unavailable) for error in lost)

    run(scenario())


def test_waits_grow_to_the_cap_while_the_log_is_away_and_start_over_once_it_was_back():
    async def scenario():
        logs, waits = MemoryLogs(probe_s=0.05), []
        logs.lose()

        async def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 30:
                logs.return_()
            await asyncio.sleep(0)

        class Highest(random.Random):
            def uniform(self, a, b):
                return b

        follow = follow_reliably(logs, Stream.LEDGER, 0, on_lost=lambda _: None, sleep=sleep, rng=Highest())
        async with aclosing(follow) as batches:
            await anext(batches)
            assert waits[:3] == [0.1, 0.2, 0.4]
            assert waits[-1] == BACKOFF_CAP_S
            await anext(batches)  # a second sign of life: the log really is back
            logs.lose()
            logs._unreachable = None
            await anext(batches)
            assert waits[30] == 0.1

    run(scenario())


def test_log_that_opens_and_fails_at_once_is_not_asked_in_a_tight_loop():
    async def scenario():
        logs, waits = MemoryLogs(), []

        async def sleep(seconds):
            waits.append(seconds)
            await asyncio.sleep(0)

        class Highest(random.Random):
            def uniform(self, a, b):
                return b

        follow = follow_reliably(logs, Stream.LEDGER, 0, on_lost=lambda _: None, sleep=sleep, rng=Highest())
        async with aclosing(follow) as batches:
            for _ in range(8):
                await anext(batches)
                for log in logs._open:
                    log.fail(Unavailable("again"))
        assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]

    run(scenario())


@pytest.mark.parametrize("error", [LogTruncated("cut"), LogMissing("gone")], ids=["truncated", "missing"])
def test_what_waiting_cannot_mend_is_the_callers(error):
    async def scenario():
        logs = MemoryLogs()
        async with aclosing(follow_reliably(logs, Stream.LEDGER, 0, on_lost=pytest.fail)) as batches:
            await anext(batches)
            logs.lose(error)
            with pytest.raises(type(error)):
                await anext(batches)

    run(scenario())
