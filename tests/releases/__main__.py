"""`make sequences SEED=…`: one sequence with a transcript; without a seed, for minutes, ones that no test plays."""

import argparse
import random
import sys
import time
from typing import Final

from tests.releases.sequence import SequenceError, play, shrunk

PLAYED_BY_TESTS: Final = 1_000


def transcript(seed: int) -> int:
    """Print what happens in one sequence; of one that fails, the fewest steps that do."""
    failure = shrunk(seed)
    if failure is not None:
        print(failure)
        return 1
    world = play(seed)
    print("\n".join(world.told))
    print("everything holds:", ", ".join(f"{count:,} {what}" for what, count in sorted(world.tally.items())))
    return 0


def explore(seconds: float) -> int:
    """Play new seeds for a while."""
    until, played, failed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        seed = random.randrange(PLAYED_BY_TESTS, 10**9)
        played += 1
        try:
            play(seed)
        except SequenceError:
            failed += 1
            print(shrunk(seed))
    print(f"{played:,} new sequences; {failed} in which something did not hold")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="the sequence to tell")
    parser.add_argument("--seconds", type=float, default=180, help="how long to play new ones")
    arguments = parser.parse_args()
    return transcript(arguments.seed) if arguments.seed is not None else explore(arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
