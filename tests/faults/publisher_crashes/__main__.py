"""`python -m tests.faults.publisher_crashes URL-PREFIX DIRECTORY KILLS WORKERS BREAKAGE SEED...`: a JSON line a ledger.

Every process here is forked from this one after it has loaded all that a publisher loads, so that a life takes tens of
milliseconds; it has one thread, which is what makes that safe.
"""

import gc
import json
import os
import sys
import threading
import traceback
from pathlib import Path

import flaghoist.log.kafka
import flaghoist.log.kafka_topics
import flaghoist.log.sqlite  # noqa: F401 — loaded once, for all that are forked
from tests.faults.publisher_crashes import campaign


def main(prefix: str, directory: Path, kills: int, workers: int, broken: str, seeds: list[int]) -> int:
    """Share the ledgers among as many workers; the exit code says only whether each of them got to its end."""
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    children = [os.fork() or work(prefix, directory, kills, broken, seeds[n::workers]) for n in range(workers)]
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


def work(prefix: str, directory: Path, kills: int, broken: str, seeds: list[int]) -> int:
    code = 1
    try:
        for seed in seeds:
            place = directory / f"ledger-{seed}"
            url = f"{prefix}{seed}.db" if prefix.startswith("sqlite") else f"{prefix}{seed}"
            found = campaign.run(url, seed, place, kills, broken)
            os.write(1, json.dumps(found).encode() + b"\n")
        code = 0
    except BaseException:  # noqa: BLE001 — whatever it was, this child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    url_prefix, where, kills_each, worker_count, broken, *numbers = sys.argv[1:]
    sys.exit(main(url_prefix, Path(where), int(kills_each), int(worker_count), broken, [int(n) for n in numbers]))
