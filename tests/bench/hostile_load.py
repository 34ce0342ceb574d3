"""Hostile clients, and what a well-behaved caller of the same sidecar notices of them; and the memory they take."""

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
import uvloop

from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from sidecar.listeners import Face
from tests.bench.all_faces import request_for
from tests.bench.brokers import Brokers
from tests.bench.figures import Cell, Result, Table, at_most, percentile, shown
from tests.bench.hostile_clients import RESOLVE, RULED
from tests.bench.http_load import address_of
from tests.bench.ledgers import forged, mixed, root_bytes, store
from tests.bench.ofrep_calls import BODY, BULK
from tests.bench.processes import module
from tests.bench.scale import Scale
from tests.bench.servers import Server, channel, sidecar, wait_until_fresh
from tests.forge import Forge, boolean_flag

CHANGING: Final = "shop-flag-00001"
CLIENTS: Final = 100
STREAMS: Final = 10_000
CALLERS: Final = 8
# A sidecar of 10,000 flags takes 100 MiB by itself; pods are often given 512 MiB for one.
RSS_LIMIT_MIB: Final = 512.0
CALL_EVERY_S: Final = 0.01
# A provider's deadline (evaluation over gRPC); after DEADLINE_S a call counts as not answered at all.
PROVIDER_DEADLINE_MS: Final = 500.0
DEADLINE_S: Final = 10.0
CHANGE_EVERY_S: Final = 0.1
SETTLE_S: Final = 2.0
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Attack:
    """What one kind of hostile clients does, to which faces; `changes`: a flag changes meanwhile, again and again."""

    name: str
    kind: str
    count: int
    faces: tuple[Face, ...]
    changes: bool = False


ATTACKS: Final = (
    Attack("10,000 event streams", "streams", STREAMS, (Face.RPC,), changes=True),
    Attack("10,000 event streams, only their first message read", "idle_streams", STREAMS, (Face.RPC,), changes=True),
    Attack("100 event streams, never read", "unread_events", CLIENTS, (Face.RPC,), changes=True),
    Attack("100 sync streams, never read", "unread_sets", CLIENTS, (Face.SYNC,), changes=True),
    Attack("100 bulk evaluations, never read", "unread_bulk", CLIENTS, (Face.OFREP,), changes=True),
    Attack("random bytes to every port", "noise", CALLERS, tuple(Face)),
    Attack("huge and deep contexts", "contexts", CALLERS, (Face.RPC, Face.OFREP)),
)


@dataclass(slots=True)
class Polite:
    """A caller that asks by gRPC and by OFREP in turn, a hundred times a second, and notes how long it takes."""

    server: Server
    ofrep: str
    took_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call while the block runs."""
        stop = threading.Event()
        caller = threading.Thread(target=self._call, args=(stop,), name="polite")
        caller.start()
        try:
            yield
        finally:
            stop.set()
            caller.join()

    def _call(self, stop: threading.Event) -> None:
        request = request_for(RULED)
        web = http.client.HTTPConnection(self.ofrep, timeout=DEADLINE_S)
        with channel(self.server) as opened:
            resolve = opened.unary_unary(RESOLVE)

            def over_http() -> None:
                web.request("POST", f"{BULK}/{RULED}", BODY)
                answer = web.getresponse()
                answer.read()
                if answer.status != http.client.OK:
                    raise ConnectionError(f"status {answer.status}")

            calls = (lambda: resolve(request, timeout=DEADLINE_S, wait_for_ready=True), over_http)
            number = 0
            while not stop.wait(CALL_EVERY_S):
                began = time.monotonic()
                try:
                    calls[number % 2]()
                except (grpc.RpcError, OSError, http.client.HTTPException) as error:
                    self.failures.append(repr(error)[:200])
                    web.close()
                self.took_ms.append((time.monotonic() - began) * 1000)
                number += 1
        web.close()


@dataclass(frozen=True, slots=True)
class _Found:
    rss_mib: tuple[float, float, float]  # before, peak, after
    took_ms: list[float]
    failures: list[str]
    told: list[Any]


def measure(scale: Scale, _brokers: Brokers, say: Callable[[str], None]) -> Result:
    """Return memory before, at most and after; a polite caller's latency; and what the hostile ones were told."""
    seconds = min(10.0, 8 * scale.load_s)
    forge = forged(mixed(scale.flags))
    base = list(forge.records)
    changes = _changes(forge, round(seconds / CHANGE_EVERY_S))
    root = root_bytes(forge)
    rows: list[tuple[Cell, ...]] = []
    promises = []
    notes = []
    for attack in (None, *ATTACKS):
        name = attack.name if attack else "nobody else"
        say(name)
        found = _attacked(attack, base, root, changes, seconds)
        p50, p99, largest = median(found.took_ms), percentile(found.took_ms, 99), max(found.took_ms)
        late = sum(took > PROVIDER_DEADLINE_MS for took in found.took_ms)
        rows.append((name, *found.rss_mib, p50, p99, largest, len(found.took_ms), late, len(found.failures)))
        if attack:
            promises.append(at_most(f"{name}: peak RSS", found.rss_mib[1], RSS_LIMIT_MIB, "MiB"))
            failed = f"{name}: calls of another caller that were not answered"
            promises.append(at_most(failed, len(found.failures), 0, f"of {len(found.took_ms):,}"))
            notes += [f"{name}: {told}." for told in map(_sentence, found.told) if told]
    columns = (
        *("meanwhile", "RSS before, MiB", "peak", "after"),
        *("caller's p50 ms", "p99", "max", "calls", "over 500 ms", "not answered"),
    )
    table = Table(f"A caller among hostile clients, {scale.flags:,} flags", columns, tuple(rows))
    return Result(tuple(promises), (table,), (" ".join(notes),))


def _changes(forge: Forge, count: int) -> list[bytes]:
    return [forge.put(CHANGING, boolean_flag("on" if number % 2 == 0 else "off")) for number in range(count)]


def _attacked(attack: Attack | None, base: list[bytes], root: bytes, changes: list[bytes], seconds: float) -> _Found:
    with ExitStack() as stack:
        url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'ledger.db'}"
        uvloop.run(store(url, base))
        server = stack.enter_context(sidecar(url, root))
        wait_until_fresh(server, RULED)
        addresses = {face: address_of(server, face) for face in Face}
        polite = Polite(server, addresses[Face.OFREP])
        before_mib = server.child.rss_mib()
        told = []
        with polite.calling():
            if attack is None:
                uvloop.run(_append_slowly(url, changes))
            else:
                targets = [addresses[face] for face in attack.faces]
                with module("hostile_clients", attack.kind, str(attack.count), str(SEED), *targets) as clients:
                    told.append(clients.heard())
                    if attack.changes:
                        uvloop.run(_append_slowly(url, changes))
                    else:
                        time.sleep(seconds)  # the length of the attack; nothing is waited for
                    if attack.kind in ("noise", "contexts"):
                        clients.process.terminate()
                        told.append(clients.heard())
        peak_mib = server.child.rss_mib(peak=True)
        time.sleep(SETTLE_S)
        return _Found((before_mib, peak_mib, server.child.rss_mib()), polite.took_ms, polite.failures, told)


async def _append_slowly(url: str, changes: list[bytes]) -> None:
    async with open_log(url)(Stream.LEDGER) as log:
        for change in changes:
            await asyncio.sleep(CHANGE_EVERY_S)  # the pace of the changes; nothing is waited for
            await log.append(change)


def _sentence(told: dict[str, Any]) -> str:
    flat = {name: value for name, value in told.items() if name != "answers"} | told.get("answers", {})
    return ", ".join(f"{name} {shown(value)}" for name, value in flat.items())
