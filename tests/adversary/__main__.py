"""`make adversary SEED=…`: one run with a transcript; without a seed, for a minute, runs that no test has played."""

import argparse
import random
import sys
import time
from typing import Final

from tests.adversary.memory import remembered
from tests.adversary.model import ViolationError
from tests.adversary.simulation import RUNS_A_STORY, Player

PLAYED_BY_TESTS: Final = 100_000


def transcript(seed: int) -> int:
    """Print what happens in one run."""
    player = Player()
    story = player.story_of(seed)
    stolen = " and ".join(story.theft) or "no key"
    print(f"seed {seed}, story {story.number}: the adversary has {stolen}; the honest log:")
    for record in story.log:
        note = "" if record.link else "   (no link of the chain)"
        print(f"{(record.at_ms - story.begins_ms) / 1000:6.1f} s  {record.what}{note}")
    print("what happens:")
    try:
        player.play(seed, print)
    except ViolationError as violation:
        print(f"VIOLATION  {violation}")
        return 1
    print("every invariant holds")
    return 0


def explore(seconds: float) -> int:
    """Play new seeds for a while."""
    player, failed = Player(), 0
    until = time.monotonic() + seconds
    with remembered():
        while time.monotonic() < until:
            first = random.randrange(PLAYED_BY_TESTS, 10**9) // RUNS_A_STORY * RUNS_A_STORY
            for seed in range(first, first + RUNS_A_STORY):
                try:
                    player.play(seed)
                except ViolationError as violation:
                    failed += 1
                    print(f"make adversary SEED={seed}: {violation}")
    runs, events = player.tally["runs"], player.tally["events"]
    print(f"{runs:,} new runs, {events:,} events, {events / seconds:,.0f} events/s; {failed} broke an invariant")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="the run to tell")
    parser.add_argument("--seconds", type=float, default=60, help="how long to play new runs")
    arguments = parser.parse_args()
    return transcript(arguments.seed) if arguments.seed is not None else explore(arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
