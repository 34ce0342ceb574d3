"""Follow a log for ever: open it anew, with fresh clients and a fresh look at DNS, whenever it goes away."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

from flaghoist.errors import LogTruncated, Unavailable
from flaghoist.log.base import Batch, OpenLog, Stream

BACKOFF_BASE_S: Final = 0.1  # a broker's restart takes seconds: a few early attempts cost nothing
BACKOFF_CAP_S: Final = 5.0  # the longest that a recovered broker waits to be noticed; as PROBE_S


def full_jitter(attempt: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return how many seconds to wait before `attempt` (from 0): anything up to the doubled base, at most `cap_s`.

    The whole range is random, so that a fleet that lost its brokers at one moment does not return at one moment.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("Full Jitter").
    """
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 32)))


async def follow_reliably(
    open_log: OpenLog,
    stream: Stream,
    start: int,
    *,
    on_lost: Callable[[Unavailable], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rng: random.Random | None = None,
) -> AsyncGenerator[Batch, None]:
    """Yield batches from position `start` on; after Unavailable open the log again and read on where it stopped.

    Args:
        on_lost: told of every loss, before the wait; the place to log it and to count it.
        sleep: waits that many seconds; an argument, so that tests own time.
        rng: where the jitter comes from.

    Raises:
        LogTruncated: where to read on is the caller's decision.
        Misconfigured: nothing that waiting would mend (LogMissing among them).
    """
    rng = rng or random.Random()  # noqa: S311  (spreads load; no secret)
    position, attempt = start, 0
    while True:
        try:
            async with open_log(stream) as log, aclosing(log.follow(position)) as batches:
                first = True
                async for batch in batches:
                    position = batch.next_position
                    # The first batch only says that the log opens; one that fails each time after it must not spin.
                    if batch.records or not first:
                        attempt = 0
                    first = False
                    yield batch
            raise Unavailable("the log ended a follow that should go on for ever")
        except LogTruncated:
            raise
        except Unavailable as lost:
            on_lost(lost)
        await sleep(full_jitter(attempt, BACKOFF_BASE_S, BACKOFF_CAP_S, rng))
        attempt += 1
