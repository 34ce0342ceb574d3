"""`kill -9` of the publisher at every step of an append: nothing is lost, doubled or signed twice, on either ledger.

Real processes with the real service, journal, log and keys; publisher_crashes/ has what they do and where they die.
"""

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.publisher_crashes.breakage import BREAKAGES
from tests.faults.publisher_crashes.steps import KINDS, STEPS, missing
from tests.kafka.broker import Broker
from tests.scenarios.operators import REPOSITORY

KILLS = 1000
# Short ledgers, since each life reads its ledger from the first entry on.
SEEDS = range(20)
# More than cores: a life waits for disks and brokers half of its time.
WORKERS = 4
# About a minute for each ledger on two idle cores.
DEADLINE_S = 1200.0


def killed(prefix: str, directory: Path, kills: int, seeds: range, broken: str = "") -> list[dict[str, Any]]:
    """Kill the publishers of one ledger a seed, and return what was found of each."""
    command = [sys.executable, "-m", "tests.faults.publisher_crashes", prefix, str(directory), str(kills)]
    process = subprocess.Popen(
        [*command, str(WORKERS), broken, *map(str, seeds)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'proto'}{os.pathsep}{REPOSITORY}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()  # its children end by themselves when it is gone
        process.wait()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def assert_nothing_lost_doubled_or_signed_twice(found: list[dict[str, Any]], seeds: range) -> None:
    """Every ledger is as it must be, and every step was hit."""
    print(told(found))
    assert {each["seed"]: each["problems"] for each in found} == {seed: [] for seed in seeds}
    at, kinds = total(found, "at"), total(found, "kinds")
    assert missing(at) == []
    assert [kind for kind in KINDS if not kinds[kind]] == []
    assert kill_count(found) >= KILLS
    assert several(found)["paused"] > 0
    assert several(found)["fresh"] > 0


def total(found: list[dict[str, Any]], what: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for each in found:
        counted.update(each["kills"][what])
    return counted


def kill_count(found: list[dict[str, Any]]) -> int:
    return total(found, "at").total() + total(found, "middle").total() + several(found)["elsewhere"]


def several(found: list[dict[str, Any]]) -> Counter[str]:
    """Return what is counted of all ledgers and has no step."""
    counted: Counter[str] = Counter()
    for each in found:
        counted.update({name: each["kills"][name] for name in ("elsewhere", "paused", "fresh", "by_themselves")})
    return counted


def told(found: list[dict[str, Any]]) -> str:
    """Return the kills by step, and what the ledgers hold, for people."""
    at, middle, tally = total(found, "at"), total(found, "middle"), Counter[str]()
    for each in found:
        tally.update(each.get("tally", {}))
    lines = [f"{'step':<18}{'at it':>7}{'after it':>10}"]
    lines += [f"{step:<18}{at[step]:>7}{middle[step]:>10}" for step in STEPS]
    lines.append(f"{kill_count(found)} kills in {sum(each['lives'] for each in found)} lives: {dict(several(found))}")
    lines.append(f"by kind of entry: {dict(total(found, 'kinds'))}; records: {dict(tally)}")
    lines.append(f"seconds a ledger: {sorted(each['all_s'] for each in found)}")
    lines += [f"seed {each['seed']}: {missed}" for each in found for missed in each["missed"]]
    return "\n".join(lines)


@pytest.mark.parametrize("seeds", [SEEDS], ids=lambda seeds: f"seeds-{seeds[0]}-to-{seeds[-1]}")
def test_a_publisher_killed_at_every_step_loses_doubles_and_signs_twice_nothing_on_sqlite(
    seeds: range, tmp_path: Path
) -> None:
    found = killed(f"sqlite:///{tmp_path}/kills-", tmp_path / "homes", KILLS // len(seeds), seeds)
    assert_nothing_lost_doubled_or_signed_twice(found, seeds)


@pytest.mark.kafka
@pytest.mark.parametrize("seeds", [SEEDS], ids=lambda seeds: f"seeds-{seeds[0]}-to-{seeds[-1]}")
def test_a_publisher_killed_at_every_step_loses_doubles_and_signs_twice_nothing_on_kafka(
    seeds: range, tmp_path: Path, kafka_broker: Broker
) -> None:
    prefix = kafka_broker.url(f"kills-{uuid.uuid4().hex[:8]}-")
    found = killed(prefix, tmp_path / "homes", KILLS // len(seeds), seeds)
    assert_nothing_lost_doubled_or_signed_twice(found, seeds)


# What the kills show of a publisher that is not as it must be.
SHOWN = {
    "sign-before-the-journal-is-written": "and the journal on disk has",
    "do-not-sync-the-journal": "before the journal is synced",
    "sync-the-journal-after-it-is-renamed": "renamed after made",
    "forget-what-was-signed": "for epoch, seq",
    "hold-every-epoch": "two machines signed",
}


@pytest.mark.parametrize("broken", BREAKAGES)
def test_kills_show_a_publisher_that_would(broken: str, tmp_path: Path) -> None:
    found = killed(f"sqlite:///{tmp_path}/kills-", tmp_path / "homes", 40, range(2), broken)
    problems = [problem for each in found for problem in each["problems"]]
    assert [problem for problem in problems if SHOWN[broken] in problem], (problems, told(found))
