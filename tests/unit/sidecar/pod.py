"""One sidecar without its faces: the real verifier and followers, on a log in memory and clocks of the test's."""

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace

import structlog

from flaghoist.codec import ENTRY, encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.errors import Misconfigured
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.reconnect import follow_reliably
from flaghoist.records import EpochClaim, Op, RoleGrant
from flaghoist.signing import countersign, seal
from flaghoist.values import Action, FlagKey, Source, StateId, Target
from sidecar.board import Board
from sidecar.fleet_watch import FleetWatch
from sidecar.floors import Floors
from sidecar.follow import Follower
from sidecar.freshness_watch import FreshnessWatch
from sidecar.keep import Kept
from sidecar.report import BoundedReport
from sidecar.restarting import Restarting
from sidecar.status import Status
from sidecar.steady_clock import SteadyClock
from tests.conformance.memory_log import MemoryLogs
from tests.forge import NOW_MS, Forge, boolean_flag

DEADLINE_S = 10.0


class Pod:
    """One sidecar without its faces, on a fake log and a clock of the test's."""

    def __init__(self, tmp_path, forge=None, *, fresh_for_s=30.0, floors=None, require_fresh=False, identity=None):
        self.forge = forge or Forge()
        self.logs = MemoryLogs(probe_s=0.05)
        self.path = tmp_path / "pod.entries"
        self.now_s = NOW_MS / 1000  # as everybody's in the forge
        self.monotonic_s = 0.0
        self.fresh_for_s = fresh_for_s
        self.floors = floors or Floors()
        self.require_fresh = require_fresh
        self.identity = identity  # None: it acknowledges nothing
        self.waits = []  # what it would have waited for the stream of acknowledgements
        self.sleep = self._hurry
        self.pinned = {}
        self.root = self.forge.first_root

    def write(self, *values):
        for value in values:
            self.logs.put(Stream.LEDGER, value)

    def elapse(self, seconds):
        """Let time go by, on every clock."""
        self.now_s += seconds
        self.monotonic_s += seconds

    def beat(self, data=None, **changes):
        """Write a heartbeat, by default that of the honest publisher at this moment."""
        self.forge.now_ms = int(self.now_s * 1000)
        self.logs.put(Stream.META, data or self.forge.beat(**changes), key=b"heartbeat")

    @asynccontextmanager
    async def running(self, *, keep=True):
        kept = Kept.open(self.path) if keep else None
        self.clock = SteadyClock(lambda: self.now_s, lambda: self.monotonic_s)
        report = BoundedReport(structlog.get_logger(), lambda: self.now_s)
        board, status, ledger = Board(lambda: self.now_s), Status(), Ledger(self.root, self.pinned)
        self.renewed = self.looks_at_beats = 0
        watch = FreshnessWatch(
            ledger,
            board,
            clock=self.clock,
            fresh_for_s=self.fresh_for_s,
            status=status,
            report=report,
            renew_clients=self._renew,
            monotonic=lambda: self.monotonic_s,
        )
        follower = Follower(
            ledger,
            board,
            kept,
            watch=watch,
            status=status,
            report=report,
            clock=self.clock,
            floors=self.floors,
            require_fresh=self.require_fresh,
        )
        fleet = FleetWatch(
            ledger,
            board,
            self.logs,
            follower=follower,
            watch=watch,
            identity=self.identity,
            status=status,
            clock=self.clock,
            report=report,
            sleep=self.sleep,
        )
        self.board, self.follower, self.watch, self.status, self.ledger = board, follower, watch, status, ledger
        follower.load_kept()
        self.task = asyncio.create_task(follower.run(self._reader(Stream.LEDGER)))
        self.beats = Restarting()
        beats = asyncio.create_task(self.beats.run(lambda: watch.follow(self._reader(Stream.META))))
        ticking = asyncio.create_task(watch.run())
        telling = asyncio.create_task(fleet.run())
        try:
            yield board
        finally:
            tasks = (self.task, beats, ticking, telling)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, Misconfigured):
                    await task
            if kept is not None:
                kept.close()

    async def _hurry(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0.001)

    def _renew(self):
        self.renewed += 1
        self.follower.renew_client()
        self.beats.restart()

    def _reader(self, stream):
        async def no_wait(_):
            await asyncio.sleep(0.001)

        async def follow(start, on_lost):
            reading = follow_reliably(self.logs, stream, start, on_lost=on_lost, sleep=no_wait)
            async with aclosing(reading) as batches:
                async for batch in batches:
                    yield batch
                    if stream is Stream.META:
                        self.looks_at_beats += 1

        return follow

    async def until_kept(self):
        """What is served has reached the disk: the follower keeps after it serves."""
        await self.until(lambda: self.board.view is not None and self.path.stat().st_mtime == self.now_s)

    async def until(self, condition):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.001)


def default_of(board, key="new-checkout"):
    return board.view.flags[key].definition.default_variant


def of_newer_release(forge):
    """A record that a publisher has signed, of a type that this release does not know."""
    record = seal(ENTRY, forge.entry(EpochClaim("publisher-1")), [])
    newer = replace(record, payload_type="application/vnd.flaghoist.barrier.v1+avro")
    return encode_envelope(countersign(newer, [forge.publisher]))


def run(scenario):
    asyncio.run(scenario())


def with_keys(root, role, *keys):
    """The changes to a root that give a role to exactly these keys; what else changes is up to the caller."""
    listed = {key.key_id: key for key in root.record.keys} | {key.listed.key_id: key.listed for key in keys}
    roles = {**root.record.roles, role: RoleGrant(frozenset(key.listed.key_id for key in keys), 1 if keys else 0)}
    return {"keys": tuple(listed.values()), "roles": roles}


def put_safe(forge, variant="off", **governance):
    """Append an approved change of the flag `new-checkout`, which has a safe variant: it can be killed."""
    definition = encode_flag(boolean_flag(variant), {"safe_variant": "off", **governance})
    key = FlagKey("new-checkout")
    version = forge.ledger.snapshot.version_of(StateId(Target.FLAG, Source(""), key))
    return forge.append(forge.release(Op(Target.FLAG, Source(""), key, version, Action.PUT, definition)))
