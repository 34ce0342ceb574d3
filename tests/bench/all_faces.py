"""ResolveBoolean while every face is at work: the ratios to a bare server must hold with idle streams open."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import uvloop
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.struct_pb2 import Struct

from sidecar.front import FrontKind
from sidecar.listeners import Face
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, at_least, not_measured, paired_ratio
from tests.bench.go_programs import NoProgram
from tests.bench.http_load import address_of
from tests.bench.ledgers import CONTEXT, forged, root_bytes, store
from tests.bench.load import Callers, Load, drive, ghz
from tests.bench.processes import module
from tests.bench.scale import Scale
from tests.bench.servers import Server, answer_of, bare, sidecar, wait_until_fresh
from tests.bench.unary_calls import CALLERS, FLAGS, LIMITS

# A pod has a handful of providers; this is twenty times as many.
EVENT_STREAMS: Final = 100
SYNC_STREAMS: Final = 20
HTTP_CONNECTIONS: Final = 50
METHOD: Final = "flagd.evaluation.v2.Service.ResolveBoolean"
BARE: Final = "bare"


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return calls a second, latency and CPU on the native front, beside a bare server."""
    try:
        ghz()
    except NoProgram as reason:
        return Result((not_measured("ResolveBoolean, all faces at work", "ratio to bare", str(reason)),), ())
    found: dict[tuple[str, Callers], list[Load]] = {
        (name, callers): [] for callers in CALLERS for name in (BARE, *FLAGS)
    }
    with ExitStack() as stack:
        servers = _servers(stack)
        names = list(servers)
        for number in range(scale.rounds):
            for callers in CALLERS:
                say(f"round {number + 1}, {callers} connections")
                # In turns, each round another first: what the machine does to one it does to all.
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    request = request_for("static" if name == BARE else name)
                    found[name, callers].append(drive(servers[name], METHOD, request, callers, scale.load_s))

    def throughput(name: str, callers: Callers) -> list[float]:
        return [run.calls_a_second for run in found[name, callers]]

    ratios = {
        (name, callers): paired_ratio(throughput(name, callers), throughput(BARE, callers)) for name, callers in found
    }
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            str(callers),
            median(run.calls_a_second for run in runs),
            median(run.p50_ms for run in runs),
            median(run.p99_ms for run in runs),
            median(run.cpu_us for run in runs),
            ratios[name, callers],
        )
        for (name, callers), runs in found.items()
    ]
    promises = [
        at_least(
            f"ResolveBoolean, {name}, native front, all faces at work, callers {callers}: throughput of bare",
            ratios[name, callers],
            limit,
            "×",
        )
        for name, limit in LIMITS.items()
        for callers in CALLERS
    ]
    columns = ("answer", "callers over connections", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", "of bare")
    note = f"Open and idle: {EVENT_STREAMS} event streams, {SYNC_STREAMS} sync streams, {HTTP_CONNECTIONS} to OFREP."
    return Result(tuple(promises), (Table("ResolveBoolean, all faces at work", columns, tuple(rows)),), (note,))


def _servers(stack: ExitStack) -> dict[str, Server]:
    forge = forged(FLAGS)
    url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'ledger.db'}"
    uvloop.run(store(url, forge.records))
    ours = stack.enter_context(sidecar(url, root_bytes(forge), front=FrontKind.NATIVE))
    wait_until_fresh(ours, "static")
    answer = answer_of(ours, "/flagd.evaluation.v2.Service/ResolveBoolean", request_for("static"))
    addresses = [address_of(ours, face) for face in (Face.RPC, Face.SYNC, Face.OFREP)]
    counts = [str(count) for count in (EVENT_STREAMS, SYNC_STREAMS, HTTP_CONNECTIONS)]
    idle = stack.enter_context(module("idle_clients", *addresses, *counts))
    idle.heard()
    return {BARE: stack.enter_context(bare(FrontKind.NATIVE, answer)), **dict.fromkeys(FLAGS, ours)}


def request_for(key: str) -> bytes:
    """Return the encoded request for a flag, with a usual context; v1 and v2 are encoded alike."""
    context = Struct()
    context.update(CONTEXT)
    return v2.ResolveBooleanRequest(flag_key=key, context=context).SerializeToString()
