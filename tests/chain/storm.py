"""A storm: flags flip and sidecars lag, while requests go through the chain, some pinned and some not."""

import random
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.chain.services import Answer, Chain, Sight

PINNED: Final = 200
UNPINNED: Final = 100
CLIENTS: Final = 4

# Some seven requests a flip: a third of those without pins see two versions, and the others one.
FLIP_PAUSE_S: Final = (0.01, 0.05)
FLIPS_MAX: Final = 400  # a sidecar keeps the last 600 versions; the storm is over long before

# One sidecar at a time hears nothing for so long; below the 50 ms for which a pinned call waits for its version.
HALT_S: Final = (0.01, 0.03)
HALT_PAUSE_S: Final = (0.02, 0.08)

STORM_S: Final = 50.0


@dataclass(frozen=True)
class Trip:
    """One request through the chain, and what each service saw of it."""

    pinned: bool
    sights: Sequence[Sight]

    @property
    def answers(self) -> list[Answer]:
        """In the order in which they were given; the first is what the others are pinned to."""
        return [answer for sight in self.sights for answer in (sight.a, sight.b)]

    @property
    def missed(self) -> list[Answer]:
        """The answers that say that they are not of the version which they were pinned to."""
        return [answer for answer in self.answers if answer.pin_miss is not None]

    @property
    def kept(self) -> list[Answer]:
        """All other answers."""
        return [answer for answer in self.answers if answer.pin_miss is None]


def storm(chain: Chain, order: Sequence[str], seed: int) -> list[Trip]:
    """Send PINNED and UNPINNED requests in a random order while a publisher flips and sidecars are halted."""
    rng = random.Random(seed)
    pins = [True] * PINNED + [False] * UNPINNED
    rng.shuffle(pins)
    with _until_over(chain, random.Random(rng.random())), ThreadPoolExecutor(CLIENTS) as clients:
        try:
            sent = clients.map(lambda pinned: Trip(pinned, chain.ask(order, pins=pinned)), pins, timeout=STORM_S)
            return list(sent)
        finally:
            clients.shutdown(cancel_futures=True)


@contextmanager
def _until_over(chain: Chain, rng: random.Random) -> Iterator[None]:
    """Flip, and halt, while the block runs; what either raises is raised here."""
    over = threading.Event()
    with ThreadPoolExecutor(2) as workers:
        working = [
            workers.submit(_flip, chain, random.Random(rng.random()), over),
            workers.submit(_halt, chain, random.Random(rng.random()), over),
        ]
        try:
            yield
        finally:
            over.set()
        for work in working:
            work.result()


def _flip(chain: Chain, rng: random.Random, over: threading.Event) -> None:
    for _ in range(FLIPS_MAX):
        if over.wait(rng.uniform(*FLIP_PAUSE_S)):
            return
        chain.flip()


def _halt(chain: Chain, rng: random.Random, over: threading.Event) -> None:
    sidecars = [sidecar.process for sidecar in chain.sidecars.values()]
    while not over.wait(rng.uniform(*HALT_PAUSE_S)):
        process = rng.choice(sidecars)
        process.send_signal(signal.SIGSTOP)
        try:
            over.wait(rng.uniform(*HALT_S))
        finally:
            process.send_signal(signal.SIGCONT)
