"""What must hold of a ledger after all its publishers' deaths, judged by the real verifier from the first entry on."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.outcomes import Applied, Link, Prepared, Ratified, Stepped
from flaghoist.records import Entry, Step
from flaghoist.values import FlagKey, Seq
from tests.faults.publisher_crashes.life import Life
from tests.faults.publisher_crashes.people import forge_of
from tests.faults.publisher_crashes.steps import CLAIM, ROOT

# What may lie in a ledger: links of the chain; copies and late entries only where the log has no conditional append.
LINKS = ("Applied", "Advanced", "RootChanged", "Ratified", "Prepared", "Stepped")
LATE = ("Repeated", "Void")


@dataclass
class Promise:
    """What the operators asked for: proposals by digest with their kind, ratifications, and the newest root's version.

    `unwanted` are proposals that must not get in, `acked` those of `approved` that the fleet must acknowledge first,
    `walked` the releases with how many stages each is to be walked through.
    """

    approved: dict[bytes, str] = field(default_factory=dict)
    ratified: set[bytes] = field(default_factory=set)
    unwanted: set[bytes] = field(default_factory=set)
    acked: set[bytes] = field(default_factory=set)
    walked: dict[FlagKey, int] = field(default_factory=dict)
    roots: int = 1


async def judge(life: Life, promise: Promise, told: str) -> dict[str, object]:
    """Return the `problems` of a ledger, and a `tally` of its records.

    Args:
        told: a file with each entry that a publisher said to be in the ledger, a line each (seq, entry_hash).
    """
    first_root = forge_of(life.log_id).first_root
    logs = open_log(life.url)
    async with logs(Stream.LEDGER) as log:
        records = [record.value async for record in read_to_end(log)]
        conditional = log.conditional
    ledger = Ledger(first_root)
    outcomes = [ledger.receive(data) for data in records]
    tally = Counter(type(outcome).__name__ for outcome in outcomes)
    problems = [f"a record is {name}: {count} times" for name, count in tally.items() if name not in LINKS + LATE]
    if conditional:
        problems += [f"a record is {name}, in a log that refuses it" for name in LATE if tally[name]]
    links = [outcome for outcome in outcomes if isinstance(outcome, Link)]
    problems += _lost_or_doubled(promise, links, ledger)
    problems += _walked_otherwise(promise, links)
    problems += _untrue(ledger, "a publisher", _lines(Path(told)))
    for beats in sorted(Path(life.directory).glob("*.beats")):
        problems += _untrue(ledger, f"a heartbeat of {beats.stem}", _lines(beats))
    problems += _signed_twice(life)
    return {"problems": problems, "tally": dict(tally), "seq": ledger.head.seq.number, "epoch": ledger.head.epoch}


def _lost_or_doubled(promise: Promise, links: Sequence[Link], ledger: Ledger) -> list[str]:
    applied = Counter(link.authorized.sha256 for link in links if isinstance(link, Applied))
    ratified = Counter(link.authorized.sha256 for link in links if isinstance(link, Ratified))
    problems = [
        f"{kind} {sha256.hex()}: want it once, got it {applied[sha256]} times"
        for sha256, kind in promise.approved.items()
        if applied[sha256] != 1
    ]
    problems += [f"ratification {s.hex()}: got it {ratified[s]} times" for s in promise.ratified if ratified[s] != 1]
    problems += [f"ratification {s.hex()}: nobody asked for it" for s in ratified.keys() - promise.ratified]
    problems += [f"{sha256.hex()} got in: it must not" for sha256 in promise.unwanted & applied.keys()]
    problems += [f"{s.hex()}: nobody asked for it" for s in applied.keys() - promise.approved.keys() - promise.unwanted]
    if ledger.root.version != promise.roots:
        problems.append(f"root: want version {promise.roots}, got {ledger.root.version}")
    if ledger.unratified:
        problems.append(f"{len(ledger.unratified)} emergencies are not ratified")
    return problems


def _walked_otherwise(promise: Promise, links: Sequence[Link]) -> list[str]:
    """Stages that were skipped or taken twice, and proposals that were not prepared once, before their release."""
    steps: dict[FlagKey, list[int]] = {name: [] for name in promise.walked}
    prepared: Counter[bytes] = Counter()
    problems = []
    for link in links:
        match link:
            case Stepped(entry=Entry(body=Step(release=release, stage=stage))):
                steps.setdefault(release, []).append(stage)
            case Prepared(authorized=authorized):
                prepared[authorized.sha256] += 1
            case Applied(authorized=authorized) if authorized.sha256 in promise.acked - prepared.keys():
                problems.append(f"{authorized.sha256.hex()} was published before it was prepared")
            case _:
                pass
    problems += [
        f"release {name}: want stages 0 .. {promise.walked.get(name, 0) - 1} once and in order, got {stages}"
        for name, stages in steps.items()
        if stages != list(range(promise.walked.get(name, 0)))
    ]
    wanted = Counter(promise.acked)
    problems += [
        f"prepared {prepared[s]} times: {s.hex()}, want {wanted[s]}"
        for s in wanted | prepared
        if prepared[s] != wanted[s]
    ]
    return problems


def _untrue(ledger: Ledger, what: str, told: Iterable[dict[str, Any]]) -> list[str]:
    """What a publisher said to be in the ledger, and is not there."""
    return [
        f"lost: seq {entry['seq']} {entry['entry_hash']} was told by {what}"
        for entry in told
        if entry["seq"] > ledger.head.seq.number or ledger.hash_at(Seq(entry["seq"])).hex() != entry["entry_hash"]
    ]


def _signed_twice(life: Life) -> list[str]:
    """Places with two signed entries: never on one machine; between machines only who opens an epoch may compete."""
    problems: list[str] = []
    everywhere: dict[tuple[int, int], str] = {}
    for path in sorted(Path(life.directory).glob("*.signatures")):
        here: dict[tuple[int, int], str] = {}
        for note in _lines(path):
            place = (note["epoch"], note["seq"])
            if here.setdefault(place, note["hash"]) != note["hash"]:
                problems.append(f"{path.stem} signed {note['hash']} and {here[place]} for epoch, seq {place}")
            if note["kind"] not in (CLAIM, ROOT) and everywhere.setdefault(place, note["hash"]) != note["hash"]:
                problems.append(f"two machines signed {note['hash']} and {everywhere[place]} for epoch, seq {place}")
    return problems


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
