"""ResolveAll of 100 flags: CPU a call, with and without rules."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import uvloop
from flagd.evaluation.v1 import evaluation_pb2 as v1
from google.protobuf.struct_pb2 import Struct

from sidecar.front import FrontKind
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, at_most, not_measured
from tests.bench.go_programs import NoProgram
from tests.bench.ledgers import CONTEXT, all_ruled, all_static, forged, mixed, root_bytes, store
from tests.bench.load import Callers, Load, drive, ghz
from tests.bench.scale import Scale
from tests.bench.servers import Server, answer_of, bare, sidecar, wait_until_fresh

FLAGS: Final = 100
SETS: Final = {
    "100 static flags": all_static(FLAGS),
    "100 flags, one in three with a rule": mixed(FLAGS),
    "100 flags, each with a rule": all_ruled(FLAGS),
}
LIMIT_US: Final = 300.0
FLAGD_CPU_US: Final = 2_600.0
CALLERS: Final = (Callers(1, 1), Callers(10, 1))
BARE: Final = "bare: the bytes of 100 static flags"


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return CPU a call and throughput, on the native front."""
    try:
        ghz()
    except NoProgram as reason:
        return Result((not_measured("ResolveAll of 100 flags", f"≤ {LIMIT_US:g} µs of CPU", str(reason)),), ())
    context = Struct()
    context.update(CONTEXT)
    request = v1.ResolveAllRequest(context=context).SerializeToString()
    with ExitStack() as stack:
        servers = _servers(stack)
        loads: dict[tuple[str, Callers], list[Load]] = {(name, c): [] for name in servers for c in CALLERS}
        for number in range(scale.rounds):
            for (name, callers), found in loads.items():
                say(f"round {number + 1}, {name}, {callers} connections")
                found.append(
                    drive(servers[name], "flagd.evaluation.v1.Service.ResolveAll", request, callers, scale.load_s)
                )
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            str(callers),
            median(run.calls_a_second for run in found),
            median(run.p50_ms for run in found),
            median(run.p99_ms for run in found),
            median(run.cpu_us for run in found),
        )
        for (name, callers), found in loads.items()
    ]
    rows.append(("flagd, stated", "–", None, None, None, FLAGD_CPU_US))
    columns = ("flags", "callers over connections", "calls/s", "p50 ms", "p99 ms", "CPU µs a call")
    promises = [
        at_most(
            f"ResolveAll, {name}: CPU a call",
            max(median(run.cpu_us for run in loads[name, callers]) for callers in CALLERS),
            LIMIT_US,
            "µs",
        )
        for name in SETS
    ]
    return Result(tuple(promises), (Table("ResolveAll, native front", columns, tuple(rows)),))


def _servers(stack: ExitStack) -> dict[str, Server]:
    servers: dict[str, Server] = {}
    for name, flags in SETS.items():
        forge = forged(flags)
        url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'ledger.db'}"
        uvloop.run(store(url, forge.records))
        server = stack.enter_context(sidecar(url, root_bytes(forge)))
        wait_until_fresh(server, next(iter(flags)))
        servers[name] = server
    static = servers["100 static flags"]
    answer = answer_of(static, "/flagd.evaluation.v1.Service/ResolveAll", v1.ResolveAllRequest().SerializeToString())
    return {BARE: stack.enter_context(bare(FrontKind.NATIVE, answer)), **servers}
