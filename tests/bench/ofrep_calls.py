"""OFREP over HTTP: the sidecar beside a bare uvicorn that returns a constant; single flags, and bulk of 100."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from sidecar.faces.ofrep import BULK_PATH
from sidecar.listeners import Face
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Promise, Result, Table, at_least, at_most, not_measured, paired_ratio
from tests.bench.go_programs import NoProgram
from tests.bench.http_load import address_of, drive_http, hey, post
from tests.bench.ledgers import (
    CONTEXT,
    STATIC,
    TEN_RULES,
    Flag,
    all_ruled,
    all_static,
    forged,
    mixed,
    root_bytes,
    store,
)
from tests.bench.load import Load
from tests.bench.processes import module
from tests.bench.scale import Scale
from tests.bench.servers import Server, sidecar, wait_until_fresh

FLAGS: Final = 100
CALLERS: Final = (1, 50)
SINGLE: Final = {"static": STATIC, "ten-rules": TEN_RULES}
SETS: Final = {
    "100 static flags": all_static(FLAGS),
    "100 flags, one in three with a rule": mixed(FLAGS),
    "100 flags, each with a rule": all_ruled(FLAGS),
}
RATIO_LIMIT: Final = 0.6
BULK_LIMIT_US: Final = 300.0
# What flagd 0.16.1 did on a machine of this kind, with a static flag: stated, not measured here.
FLAGD_CALLS_A_SECOND: Final = 7_600.0
FLAGD_CPU_US: Final = 89.0
FLAGD_BULK_CPU_US: Final = 1_760.0

BULK: Final = BULK_PATH.decode()
BODY: Final = json.dumps({"context": CONTEXT}).encode()
BARE: Final = "bare uvicorn"


@dataclass(frozen=True, slots=True)
class _Target:
    """Whom to call, and what must come back."""

    server: Server
    url: str
    status: int = 200
    headers: tuple[str, ...] = ()


_Loads = dict[tuple[str, int], list[Load]]


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return calls a second, latency and CPU of single and bulk evaluations, and of answers that did not change."""
    try:
        hey()
    except NoProgram as reason:
        return Result((not_measured("OFREP over HTTP", "ratio to a bare uvicorn", str(reason)),), ())
    with ExitStack() as stack:
        single = _loads(_single(stack), scale, say)
    with ExitStack() as stack:
        bulk = _loads(_bulk(stack), scale, say)
    return Result((*_single_promises(single), *_bulk_promises(bulk)), (_single_table(single), _bulk_table(bulk)))


def _loads(targets: dict[str, _Target], scale: Scale, say: Callable[[str], None]) -> _Loads:
    found: _Loads = {(name, callers): [] for callers in CALLERS for name in targets}
    names = list(targets)
    for number in range(scale.rounds):
        for callers in CALLERS:
            # In turns, each round another first: what the machine does to one it does to all.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                say(f"round {number + 1}, {name}, callers {callers}")
                target = targets[name]
                load = drive_http(
                    target.server,
                    target.url,
                    BODY,
                    callers,
                    scale.load_s,
                    status=target.status,
                    headers=target.headers,
                )
                found[name, callers].append(load)
    return found


def _single(stack: ExitStack) -> dict[str, _Target]:
    server, address = _sidecar(stack, SINGLE)
    targets = {name: _Target(server, f"http://{address}{BULK}/{name}") for name in SINGLE}
    _, headers, answer = post(address, f"{BULK}/static", BODY, {"content-type": "application/json"})
    return {BARE: _bare(stack, answer, headers["flaghoist-seq"]), **targets}


def _bulk(stack: ExitStack) -> dict[str, _Target]:
    targets: dict[str, _Target] = {}
    for name, flags in SETS.items():
        server, address = _sidecar(stack, flags)
        _, headers, answer = post(address, BULK, BODY, {"content-type": "application/json"})
        if not targets:
            targets[f"{BARE}: the bytes of {name}"] = _bare(stack, answer, headers["flaghoist-seq"])
        url = f"http://{address}{BULK}"
        targets[name] = _Target(server, url)
        targets[_unchanged(name)] = _Target(server, url, 304, (f"If-None-Match: {headers['etag']}",))
    return targets


def _unchanged(name: str) -> str:
    return f"{name}: 304"


def _sidecar(stack: ExitStack, flags: Mapping[str, Flag]) -> tuple[Server, str]:
    forge = forged(flags)
    url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'ledger.db'}"
    uvloop.run(store(url, forge.records))
    server = stack.enter_context(sidecar(url, root_bytes(forge)))
    wait_until_fresh(server, next(iter(flags)))
    return server, address_of(server, Face.OFREP)


def _bare(stack: ExitStack, answer: bytes, seq: str) -> _Target:
    child = stack.enter_context(module("bare_http_server", answer.hex(), seq))
    address = child.heard()["address"]
    return _Target(Server(child, address), f"http://{address}{BULK}")


def _of_bare(loads: _Loads, bare: str, name: str, callers: int) -> float:
    def throughput(who: str) -> list[float]:
        return [run.calls_a_second for run in loads[who, callers]]

    return paired_ratio(throughput(name), throughput(bare))


def _figures(runs: Sequence[Load]) -> tuple[float, float, float, float]:
    return (
        median(run.calls_a_second for run in runs),
        median(run.p50_ms for run in runs),
        median(run.p99_ms for run in runs),
        median(run.cpu_us for run in runs),
    )


def _single_table(loads: _Loads) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, callers, *_figures(runs), _of_bare(loads, BARE, name, callers))
        for (name, callers), runs in loads.items()
    ]
    rows.append(("flagd, stated", None, FLAGD_CALLS_A_SECOND, None, None, FLAGD_CPU_US, None))
    columns = ("answer", "callers", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", "of bare")
    return Table("OFREP, one flag", columns, tuple(rows))


def _bulk_table(loads: _Loads) -> Table:
    rows: list[tuple[Cell, ...]] = [(name, callers, *_figures(runs)) for (name, callers), runs in loads.items()]
    rows.append(("flagd, stated", None, None, None, None, FLAGD_BULK_CPU_US))
    return Table("OFREP, bulk", ("answer", "callers", "calls/s", "p50 ms", "p99 ms", "CPU µs a call"), tuple(rows))


def _single_promises(loads: _Loads) -> list[Promise]:
    return [
        at_least(
            f"OFREP, {name}, callers {callers}: throughput of bare uvicorn",
            _of_bare(loads, BARE, name, callers),
            RATIO_LIMIT,
            "×",
        )
        for name in SINGLE
        for callers in CALLERS
    ]


def _bulk_promises(loads: _Loads) -> list[Promise]:
    def cpu_us(name: str) -> float:
        return max(median(run.cpu_us for run in loads[name, callers]) for callers in CALLERS)

    promises = [at_most(f"OFREP bulk, {name}: CPU a call", cpu_us(name), BULK_LIMIT_US, "µs") for name in SETS]
    for name in SETS:
        ratio = cpu_us(_unchanged(name)) / cpu_us(name)
        promises.append(at_most(f"OFREP bulk, {name}: CPU of a 304, of that of a 200", ratio, 1.0, "×"))
    return promises
