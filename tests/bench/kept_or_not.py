"""What was tried to make calls cheaper, each against the sidecar as it is, in turns: so people can see why it is so."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Final

import uvloop
from flagd.evaluation.v2 import evaluation_pb2 as v2
from google.protobuf.struct_pb2 import Struct

from sidecar.faces.ofrep import BULK_PATH
from sidecar.faces.structs import context_of
from sidecar.listeners import Face
from tests.bench.all_faces import METHOD, request_for
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, not_measured, paired_ratio
from tests.bench.go_programs import NoProgram
from tests.bench.http_load import address_of, drive_http, hey, post
from tests.bench.ledgers import (
    CONTEXT,
    STATIC,
    TEN_CONDITIONS,
    TEN_RULES,
    Flag,
    forged,
    mixed,
    root_bytes,
    store,
)
from tests.bench.load import Callers, Load, drive, ghz
from tests.bench.ofrep_calls import BODY, BULK
from tests.bench.processes import Child, running
from tests.bench.scale import Scale
from tests.bench.servers import Server
from tests.bench.sidecar_variant import named_fields, names_of
from tests.kafka.broker import free_ports

MANY: Final = Callers(50, 10)
AS_IS: Final = "as_is"
OTHER_FACES: Final = {f"FLAGHOIST_{face}_LISTEN": "127.0.0.1:0" for face in ("MANAGEMENT", "SYNC", "OFREP")}
TICK_S: Final = 0.01  # resolution of Child.cpu_s
WIDE: Final = 50  # fields of a context that a careless service sends whole


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing tried: a variant of tests.bench.sidecar_variant, the flag called, by gRPC or OFREP, and what we did."""

    what: str
    variant: str
    key: str
    verdict: str
    ofrep: bool = False
    width: int = len(CONTEXT)


TRIALS: Final = (
    Trial("encoded answers are kept: static, gRPC", "no_kept_answers", "static", "kept"),
    Trial("encoded answers are kept: ten rules, gRPC", "no_kept_answers", "ten-rules", "kept"),
    Trial("encoded answers are kept: static, OFREP", "no_kept_answers", "static", "kept", ofrep=True),
    Trial("collector frozen after load: static, gRPC", "collector_not_frozen", "static", "kept"),
    Trial("collector frozen after load: ten rules, gRPC", "collector_not_frozen", "ten-rules", "kept"),
    Trial("only named fields decoded: ten rules, 6 fields", "named_context", "ten-rules", "not kept"),
    Trial("only named fields decoded: ten rules, 50 fields", "named_context", "ten-rules", "not kept", width=WIDE),
)


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return throughput, latency and CPU with and without each, and the cost of decoding a context."""
    try:
        ghz(), hey()
    except NoProgram as reason:
        return Result((not_measured("what was tried", "a ratio", str(reason)),), ())
    flags = {**mixed(scale.flags), "static": STATIC, "ten-rules": TEN_RULES}
    with ExitStack() as stack:
        ledger = _Ledger(stack, flags)
        trials = _trials(stack, ledger, scale, say)
        workers = _workers(ledger, scale, say)
    return Result((), (trials, workers, _decoding(scale)))


class _Ledger:
    """A ledger on disk, and its root."""

    def __init__(self, stack: ExitStack, flags: Mapping[str, Flag]) -> None:
        forge = forged(flags)
        self.place = Path(stack.enter_context(TemporaryDirectory()))
        self.url = f"sqlite:///{self.place / 'ledger.db'}"
        self.root = self.place / "root"
        self.root.write_bytes(root_bytes(forge))
        uvloop.run(store(self.url, forge.records))

    @contextmanager
    def sidecar(self, variant: str, address: str | None = None) -> Iterator[Server]:
        """Run a variant on an address, or on a free port; it answers from the newest state."""
        address = address or f"127.0.0.1:{free_ports(1)[0]}"
        with TemporaryDirectory() as state:
            command = [sys.executable, "-m", "tests.bench.sidecar_variant", variant, "--ledger", self.url]
            command += ["--root", str(self.root), "--listen", address, "--server", "native", "--state-dir", state]
            with running(command, variables=OTHER_FACES) as child:
                server = Server(child, address)
                own = address_of(server, Face.OFREP)  # the last face that opens: this process has the port too
                # Asked on its own port: behind a shared one, another process may be the one that answers.
                child.wait_for(lambda: _fresh(own), "a fresh answer")
                yield server


def _fresh(ofrep: str) -> bool | None:
    status, _, body = post(
        ofrep, f"{BULK_PATH.decode()}/static", b'{"context": {}}', {"content-type": "application/json"}
    )
    return True if status == HTTPStatus.OK and json.loads(body)["reason"] != "STALE" else None


def _trials(stack: ExitStack, ledger: _Ledger, scale: Scale, say: Callable[[str], None]) -> Table:
    servers = {
        variant: stack.enter_context(ledger.sidecar(variant))
        for variant in (AS_IS, *dict.fromkeys(trial.variant for trial in TRIALS))
    }
    found: dict[Trial, dict[str, list[Load]]] = {trial: {AS_IS: [], trial.variant: []} for trial in TRIALS}
    for number in range(scale.rounds):
        for trial, loads in found.items():
            say(f"round {number + 1}, {trial.what}")
            # In turns, each round another first: what the machine does to one it does to all.
            for variant in sorted(loads, reverse=number % 2 == 1):
                loads[variant].append(_load(servers[variant], trial, scale.load_s))
    rows: list[tuple[Cell, ...]] = []
    for trial, loads in found.items():
        # "With" is the sidecar as it is for what was kept, and the variant for what was not.
        names = (AS_IS, trial.variant) if trial.verdict == "kept" else (trial.variant, AS_IS)
        with_it, without = (loads[name] for name in names)
        ratio = paired_ratio([run.calls_a_second for run in with_it], [run.calls_a_second for run in without])
        cells: list[Cell] = [trial.what, ratio]
        for figure in ("cpu_us", "p50_ms", "p99_ms"):
            cells += [median(getattr(run, figure) for run in runs) for runs in (with_it, without)]
        rows.append((*cells, trial.verdict))
    columns = (
        *("tried", "calls/s, of without", "CPU µs", "CPU µs without", "p50 ms", "p50 ms without"),
        *("p99 ms", "p99 ms without", "now"),
    )
    return Table(f"What was tried, callers {MANY}, {scale.flags:,} flags", columns, tuple(rows))


def _load(server: Server, trial: Trial, seconds: float) -> Load:
    if trial.ofrep:
        url = f"http://{address_of(server, Face.OFREP)}{BULK}/{trial.key}"
        return drive_http(server, url, BODY, MANY.count, seconds)
    request = v2.ResolveBooleanRequest.FromString(request_for(trial.key))
    request.context.CopyFrom(context(trial.width))
    return drive(server, METHOD, request.SerializeToString(), MANY, seconds)


def context(width: int) -> Struct:
    """Return the usual context, with more fields of the usual kind up to this many."""
    struct = Struct()
    struct.update(dict(CONTEXT) | {f"attribute-{number:02}": "value" for number in range(width - len(CONTEXT))})
    return struct


class _Both:
    """Two processes as one: their CPU time together."""

    def __init__(self, children: list[Child]) -> None:
        self._children = children

    @property
    def cpu_s(self) -> float:
        return sum(child.cpu_s for child in self._children)


def _workers(ledger: _Ledger, scale: Scale, say: Callable[[str], None]) -> Table:
    found: dict[tuple[str, int], list[Load]] = {}
    shares: list[float] = []
    for number in range(scale.rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            say(f"round {number + 1}, {workers} sidecars on one port")
            with ExitStack() as stack:
                address = f"127.0.0.1:{free_ports(1)[0]}"
                children = [stack.enter_context(ledger.sidecar("shared_port", address)).child for _ in range(workers)]
                both = Server(_Both(children), address)  # type: ignore[arg-type]
                for key in ("static", "ten-rules"):
                    before = [child.cpu_s for child in children]
                    load = drive(both, METHOD, request_for(key), MANY, scale.load_s)
                    found.setdefault((key, workers), []).append(load)
                    spent = [child.cpu_s - earlier for child, earlier in zip(children, before, strict=True)]
                    if workers == 2:
                        shares.append(max(spent) / max(sum(spent), TICK_S))
    rows: list[tuple[Cell, ...]] = []
    for (key, workers), runs in sorted(found.items()):
        one = [run.calls_a_second for run in found[key, 1]]
        ratio = paired_ratio([run.calls_a_second for run in runs], one)
        names = ("calls_a_second", "p50_ms", "p99_ms", "cpu_us")
        figures = [median(getattr(run, name) for run in runs) for name in names]
        rows.append((key, workers, *figures, ratio, median(shares) if workers == 2 else None))
    columns = ("answer", "sidecars", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", "of one", "busier one's share")
    return Table(f"Sidecars on one port, callers {MANY}", columns, tuple(rows))


def _decoding(scale: Scale) -> Table:
    rows: list[tuple[Cell, ...]] = []
    names = names_of(TEN_CONDITIONS)
    for width in (len(CONTEXT), WIDE):
        encoded = v2.ResolveBooleanRequest(flag_key="ten-rules", context=context(width)).SerializeToString()
        request = v2.ResolveBooleanRequest.FromString(encoded)
        rows.append(
            (
                f"{width} fields; the rules name {len(names)}",
                _us(partial(v2.ResolveBooleanRequest.FromString, encoded), scale),
                _us(partial(context_of, request.context), scale),
                _us(partial(named_fields, request.context, names), scale),
            )
        )
    columns = ("context", "parse the message, µs", "decode it whole, µs", "decode what is named, µs")
    return Table("Decoding a context", columns, tuple(rows))


def _us(call: Callable[[], object], scale: Scale) -> float:
    timer = Timer(call)
    count, took_s = timer.autorange()
    return min(timer.timeit(count) for _ in range(scale.rounds)) / count * 1e6 if took_s else 0.0
