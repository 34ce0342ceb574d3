"""ResolveBoolean over gRPC: the sidecar beside a bare server on the same front that returns a constant."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import uvloop
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.struct_pb2 import Struct

from sidecar.front import FrontKind
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Promise, Result, Table, at_least, at_most, not_measured, paired_ratio
from tests.bench.go_programs import NoProgram
from tests.bench.ledgers import CONTEXT, STATIC, TEN_RULES, forged, root_bytes, store
from tests.bench.load import Callers, Load, drive, ghz
from tests.bench.scale import Scale
from tests.bench.servers import Server, answer_of, bare, sidecar, wait_until_fresh

FLAGS: Final = {"static": STATIC, "ten-rules": TEN_RULES}
LIMITS: Final = {"static": 0.7, "ten-rules": 0.6}
CALLERS: Final = (Callers(1, 1), Callers(50, 1), Callers(50, 10))
VERSIONS: Final = ("flagd.evaluation.v1", "flagd.evaluation.v2")
# What flagd 0.16.1 did on a machine of this kind, with a static flag: stated, not measured here.
FLAGD_CALLS_A_SECOND: Final = 5_600.0
FLAGD_CPU_US: Final = 140.0
FLAGD_P50_MS: Final = 0.39
FLAGD_P99_MS: Final = 1.9
TIMES_FLAGD: Final = 2.5

_Loads = dict[str, list[Load]]


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return calls a second, latency and CPU, of each front, version and set of callers."""
    try:
        ghz()
    except NoProgram as reason:
        return Result((not_measured("ResolveBoolean over gRPC", "ratio to a bare server", str(reason)),), ())
    tables, promises = [], []
    for front in (FrontKind.NATIVE, FrontKind.GRPCIO):
        loads = _loads(front, scale, say)
        tables.append(_table(front, loads))
        promises += _promises(front, loads)
        if front is FrontKind.NATIVE:
            promises += _aims(loads)
    return Result(tuple(promises), tuple(tables))


def _loads(front: FrontKind, scale: Scale, say: Callable[[str], None]) -> dict[tuple[str, Callers], _Loads]:
    found: dict[tuple[str, Callers], _Loads] = {(v, c): {} for v in VERSIONS for c in CALLERS}
    with ExitStack() as stack:
        servers = _servers(stack, front)
        for number in range(scale.rounds):
            for version, callers in found:
                say(f"{front} front, round {number + 1}, {version.rpartition('.')[2]}, {callers} connections")
                # In turns, each round another first: what the machine does to one it does to all.
                names = list(servers)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    load = drive(
                        servers[name],
                        f"{version}.Service.ResolveBoolean",
                        _request("static" if name == "bare" else name),
                        callers,
                        scale.load_s,
                    )
                    found[version, callers].setdefault(name, []).append(load)
    return found


def _servers(stack: ExitStack, front: FrontKind) -> dict[str, Server]:
    forge = forged(FLAGS)
    url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'ledger.db'}"
    uvloop.run(store(url, forge.records))
    ours = stack.enter_context(sidecar(url, root_bytes(forge), front=front))
    wait_until_fresh(ours, "static")
    # The very bytes that the sidecar sends: the messages of v1 and v2 are encoded alike.
    answer = answer_of(ours, "/flagd.evaluation.v2.Service/ResolveBoolean", _request("static"))
    return {"bare": stack.enter_context(bare(front, answer)), "static": ours, "ten-rules": ours}


def _request(key: str) -> bytes:
    """The requests of v1 and v2 are encoded alike."""
    context = Struct()
    context.update(CONTEXT)
    return v2.ResolveBooleanRequest(flag_key=key, context=context).SerializeToString()


def _table(front: FrontKind, loads: dict[tuple[str, Callers], _Loads]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (version, callers), found in loads.items():
        for name, runs in found.items():
            rows.append(
                (
                    version.rpartition(".")[2],
                    str(callers),
                    name,
                    median(run.calls_a_second for run in runs),
                    median(run.p50_ms for run in runs),
                    median(run.p99_ms for run in runs),
                    median(run.cpu_us for run in runs),
                    1.0 if name == "bare" else _ratio(found, name),
                )
            )
    if front is FrontKind.NATIVE:
        rows.append(
            ("–", "1 over 1", "flagd, stated", FLAGD_CALLS_A_SECOND, FLAGD_P50_MS, FLAGD_P99_MS, FLAGD_CPU_US, None)
        )
    columns = ("", "callers over connections", "answer", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", "of bare")
    return Table(f"ResolveBoolean, {front} front", columns, tuple(rows))


def _ratio(found: _Loads, name: str) -> float:
    def throughput(who: str) -> list[float]:
        return [run.calls_a_second for run in found[who]]

    return paired_ratio(throughput(name), throughput("bare"))


def _promises(front: FrontKind, loads: dict[tuple[str, Callers], _Loads]) -> list[Promise]:
    promises = []
    for name, limit in LIMITS.items():
        for callers in CALLERS:
            ratios = [_ratio(loads[version, callers], name) for version in VERSIONS]
            what = f"ResolveBoolean, {name}, {front} front, callers {callers}: throughput of bare (worse of v1, v2)"
            promises.append(at_least(what, min(ratios), limit, "×"))
    return promises


def _aims(loads: dict[tuple[str, Callers], _Loads]) -> list[Promise]:
    def worst(callers: Callers, figure: Callable[[Load], float], choose: Any) -> float:
        return float(choose(median(map(figure, loads[version, callers]["static"])) for version in VERSIONS))

    one, many = CALLERS[0], CALLERS[-1]
    return [
        at_least(
            f"aim: throughput of flagd as stated, static, callers {many}",
            worst(many, lambda run: run.calls_a_second, min) / FLAGD_CALLS_A_SECOND,
            TIMES_FLAGD,
            "×",
        ),
        at_most(
            "aim: below flagd's p50 as stated, static, one caller",
            worst(one, lambda run: run.p50_ms, max),
            FLAGD_P50_MS,
            "ms",
        ),
        at_most(
            "aim: below flagd's p99 as stated, static, one caller",
            worst(one, lambda run: run.p99_ms, max),
            FLAGD_P99_MS,
            "ms",
        ),
    ]
