"""A hundred thousand runs of an adversary against sidecars: no invariant of docs/adversary.md breaks.

A failing run is played again, with a transcript, by `make adversary SEED=…`.
"""

import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import pytest

from tests.adversary.memory import remembered
from tests.adversary.model import ViolationError
from tests.adversary.simulation import Player

RUNS = 100_000
BLOCK = 2_500
PROCESSES = 2
BLOCKS = [range(start, start + BLOCK) for start in range(0, RUNS, BLOCK)]


@dataclass
class Played:
    tally: Counter[str]
    failures: list[str]


def play(seeds: range) -> Played:
    player, failures = Player(), []
    with remembered():
        for seed in seeds:
            try:
                player.play(seed)
            except ViolationError as violation:
                failures.append(f"make adversary SEED={seed}: {violation}")
    return Played(player.tally, failures)


@pytest.fixture(scope="module")
def played():
    """All blocks, under way in other processes, by their first seed."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        futures: dict[int, Future[Played]] = {block.start: pool.submit(play, block) for block in BLOCKS}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda block: f"seeds-{block.start}-to-{block.stop - 1}")
def test_no_run_breaks_an_invariant(played, seeds):
    failures = played[seeds.start].result().failures
    assert not failures, "\n".join(failures[:10])


def test_the_runs_were_all_played_and_everything_happened_in_them(played, capsys):
    tally = sum((future.result().tally for future in played.values()), Counter())
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:>12,}  {what}" for what, count in sorted(tally.items())))
    assert tally["runs"] == RUNS
    everything = {
        *("Applied", "Advanced", "RootChanged", "Ratified", "Stepped", "Prepared", "Rejected"),
        *("Repeated", "Void", "Dropped", "Gap", "Forked", "Held"),
        *(f"heartbeat {outcome}" for outcome in ("Counted", "Superseded", "Refuted", "Forked")),
        *("quarantine cured", "restarted", "fresh after an event", "started anew at the end"),
    }
    assert everything <= tally.keys()


def test_one_seed_is_one_run():
    told: list[list[str]] = [[], []]
    for transcript in told:
        Player().play(1_234, transcript.append)
    assert told[0] == told[1]
    assert len(told[0]) >= 20


def test_remembered_answers_are_the_real_ones():
    """The same runs without memory: every signature is verified each time."""
    plain, quick = Player(), Player()
    started = time.monotonic()
    for seed in range(20_000, 21_000, 50):
        plain.play(seed)
    with remembered():
        for seed in range(20_000, 21_000, 50):
            quick.play(seed)
    assert plain.tally == quick.tally, f"after {time.monotonic() - started:.0f} s"
