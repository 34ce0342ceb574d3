"""A release over a fleet: how far apart the sidecars switch, without and with a moment, and how fast a revert is.

Everything is done as an operator does it: `flaghoist release activate` and `revert` as processes, over Kafka. When a
sidecar switched it says itself, in its acknowledgement; when its clients had the new answer, a client of all of them
says, which takes a while to ask fifty. All run on one machine and share its cores, so what is measured is an upper
bound; they share its clock too, so what clocks that differ add to a moment is not in it.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import uvloop

from flaghoist.acknowledgement import read_acknowledgement
from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from flaghoist.values import LogId, Seq
from tests.bench.brokers import Brokers
from tests.bench.figures import Promise, Result, Table, Verdict, at_most, not_measured, percentile
from tests.bench.processes import READY_S, ROOT, Child, module
from tests.bench.scale import Scale
from tests.bench.servers import sidecar, wait_until_fresh
from tests.scenarios.operators import Operator

RELEASE: Final = "spring"
SERVICES: Final = ("cart", "payment", "mail")
FLAG: Final = f"{SERVICES[0]}.{RELEASE}"
LEAD_S: Final = 2
LIMIT: Final = 1.0
REVERT_LIMIT_S: Final = 5.0
SPREAD: Final = "spread of a switch with a moment: that of one without"
REVERT: Final = "revert: from Enter to the last sidecar's new answer, p95"


def measure(scale: Scale, brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return milliseconds between the first and the last sidecar's switch, and from Enter to each one's new answer."""
    if reason := brokers.missing:
        return Result((not_measured(SPREAD, f"≤ {LIMIT:g} ×", reason), not_measured(REVERT, "", reason)), ())
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="flaghoist-fleet-")))
        url = brokers.url()
        operator = _operator(place, url)
        root = (operator.home / "roots" / "shop.root").read_bytes()
        say(f"starting {scale.sidecars} sidecars")
        servers = [stack.enter_context(sidecar(url, root)) for _ in range(scale.sidecars)]
        for server in servers:
            wait_until_fresh(server, FLAG)
        witness = stack.enter_context(module("fleet_witness", FLAG, *(server.address for server in servers)))
        for _ in servers:
            assert "ready" in witness.heard()
        fleet = _Fleet(operator, witness, len(servers))
        fleet.switch("activate")
        fleet.switch("revert")  # the first of each connects and claims the epoch, and is like no other
        plain: list[_Switch] = []
        timed: list[_Switch] = []
        reverts: list[_Switch] = []
        for number in range(scale.switches):
            say(f"switch {number + 1} of {scale.switches}")
            plain.append(fleet.switch("activate"))
            reverts.append(fleet.switch("revert"))
            timed.append(fleet.switch("activate", "--in", f"{LEAD_S}s"))
            reverts.append(fleet.switch("revert"))
    return _result(len(servers), plain, timed, reverts)


class _Switch:
    """One switch of the whole fleet.

    Attributes:
        enter_ns: when Enter was pressed (Unix ns), `ended_ns` when the command had ended.
        answers_ns: when a client had each sidecar's new answer.
        switched_ms: when each sidecar switched, as it says itself (Unix ms).
    """

    def __init__(self, enter_ns: int, answers_ns: Sequence[int], ended_ns: int, switched_ms: Sequence[int]) -> None:
        self.enter_ns = enter_ns
        self.answers_ns = answers_ns
        self.ended_ns = ended_ns
        self.switched_ms = switched_ms

    @property
    def spread_ms(self) -> float:
        return max(self.switched_ms) - min(self.switched_ms)

    @property
    def since_enter_ms(self) -> list[float]:
        return [(answer - self.enter_ns) / 1e6 for answer in self.answers_ns]


class _Fleet:
    def __init__(self, operator: Operator, witness: Child, size: int) -> None:
        self._operator = operator
        self._witness = witness
        self._size = size

    def switch(self, verb: str, *options: str) -> _Switch:
        """Run one command, and return when every sidecar answers otherwise."""
        enter_ns = time.time_ns()
        command = [str(Path(sys.executable).with_name("flaghoist")), "release", verb, RELEASE, "--yes", *options]
        process = subprocess.Popen(
            command,
            env={**os.environ, **self._operator.environ},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            told = [self._witness.heard() for _ in range(self._size)]
            _, errors = process.communicate()
            ended_ns = time.time_ns()
        except BaseException:
            process.kill()
            process.wait()
            raise
        assert process.returncode == 0, errors
        assert {each["place"] for each in told} == set(range(self._size)), told
        assert {each["value"] for each in told} == {verb == "activate"}, told
        (seq,) = {int(each["seq"]) for each in told}
        switched_ms = uvloop.run(self._switched(Seq(seq)))
        return _Switch(enter_ns, [int(each["answer_ns"]) for each in told], ended_ns, switched_ms)

    async def _switched(self, seq: Seq) -> list[int]:
        """Return when each sidecar began to answer from `seq`, once all have acknowledged that they do."""
        url, log_id = self._operator.environ["FLAGHOIST_LEDGER"], LogId("shop")
        found: dict[str, int] = {}
        async with open_log(url)(Stream.ACKS) as log, asyncio.timeout(READY_S):
            async for batch in log.follow(0):
                for record in batch.records:
                    ack = read_acknowledgement(record.value, log_id)
                    if ack.in_force == seq:
                        found[ack.instance] = ack.activated_at
                if len(found) == self._size:
                    break
        return list(found.values())


def _operator(place: Path, url: str) -> Operator:
    """One person alone with a ledger that holds a closed release of three services."""
    operator = Operator(place / "ada")
    operator.environ["FLAGHOIST_LEDGER"] = url
    operator.ok("init", "--solo", "--log-id", "shop", "--ledger", url, "--person", "ada@example.org", "--yes")
    services = [word for service in SERVICES for word in ("--service", service)]
    named = ("--pattern", "{service}.{release}", *services, "--title", "Spring", "--owner", "ada@example.org")
    operator.ok("publish", operator.ok("release", "create", RELEASE, *named, "--yes").out.strip(), "--yes")
    return operator


def _result(size: int, plain: Sequence[_Switch], timed: Sequence[_Switch], reverts: Sequence[_Switch]) -> Result:
    rows: list[tuple[Any, ...]] = []
    for name, switches in (("at once", plain), (f"with a moment, --in {LEAD_S}s", timed)):
        spreads = [switch.spread_ms for switch in switches]
        rows.append((name, median(spreads), percentile(spreads, 95), max(spreads), len(spreads)))
    ratio = rows[1][1] / max(rows[0][1], 1.0)  # the clock's resolution
    each = [since for switch in reverts for since in switch.since_enter_ms]
    first = [min(switch.since_enter_ms) for switch in reverts]
    last = [max(switch.since_enter_ms) for switch in reverts]
    ended = [(switch.ended_ns - switch.enter_ns) / 1e6 for switch in reverts]
    described = (
        ("Enter → first sidecar's new answer", first),
        ("Enter → any sidecar's new answer", each),
        ("Enter → last sidecar's new answer", last),
        ("Enter → the command has ended", ended),
    )
    times = tuple(
        (name, median(found), percentile(found, 95), percentile(found, 99), max(found), len(found))
        for name, found in described
    )
    verdict = Verdict.MET if ratio <= LIMIT else Verdict.MISSED
    barrier = Promise(SPREAD, f"≤ {LIMIT:g} ×", f"{ratio:.2f} × ({rows[1][1]:.1f} of {rows[0][1]:.1f} ms)", verdict)
    promised = at_most(REVERT, percentile(last, 95) / 1000, REVERT_LIMIT_S, "s")
    return Result(
        (barrier, promised),
        (
            Table(
                f"First to last of {size} sidecars that switch, Kafka",
                ("switch", "p50 ms", "p95 ms", "max ms", "switches"),
                tuple(rows),
            ),
            Table(
                f"Revert of a release over {size} sidecars, Kafka",
                ("from → to", "p50 ms", "p95 ms", "p99 ms", "max ms", "samples"),
                times,
            ),
        ),
        (
            "The first table is what the sidecars say of themselves, to the millisecond; the second what a client saw. "
            f"{size} sidecars, the broker, the command and the client that watches all of them share this machine's "
            "cores. Enter is the start of the process: the interpreter, reading and verifying the ledger, the key and "
            "the append are in it.",
        ),
    )
