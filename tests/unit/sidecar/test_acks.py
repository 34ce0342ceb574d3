"""What a sidecar tells the fleet: when, of what, and that it costs no answer. Log and clocks are the test's."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from flaghoist import __version__
from flaghoist.acknowledgement import ACK_INTERVAL_S, LEFT, read_acknowledgement
from flaghoist.errors import LogMissing, Misconfigured, OutcomeUnknown, Unavailable
from flaghoist.log.base import Stream
from flaghoist.records import Release
from flaghoist.state_root import state_root
from flaghoist.values import Seq
from sidecar import acks
from sidecar.acks import BACKOFF_CAP_S, REFUSED_AGAIN_S, TELLS_AT_ONCE, Identity, interval_s
from sidecar.board import VerifierState
from sidecar.floors import Floor, Floors
from sidecar.state_digest import StateDigests
from tests.conformance.memory_log import MemoryLog
from tests.forge import GRACE, Forge, allowing_rule, boolean_flag
from tests.unit.sidecar.pod import Pod, put_safe, run

INSTANCE = "checkout-7d9f-x2x4z"


@pytest.fixture
def pod(tmp_path):
    return telling(tmp_path)


def telling(tmp_path, **options):
    """A sidecar that acknowledges, on a ledger of two entries and heartbeats."""
    forge = Forge(root_options={"beats": True, "emergency": (GRACE,)})
    pod = Pod(tmp_path, forge, identity=Identity(INSTANCE, "checkout"), **options)
    pod.write(pod.forge.genesis(), put_safe(pod.forge))
    pod.beat()
    return pod


def told(pod):
    """The newest acknowledgement; None before the first."""
    records = pod.logs.values(Stream.ACKS)
    assert len(records) <= 1, "each instance has one key"
    return read_acknowledgement(records[0], pod.root.log_id) if records else None


async def until_told(pod, **facts):
    """Wait for an acknowledgement that says these facts, and return it."""
    await pod.until(lambda: (ack := told(pod)) is not None and all(getattr(ack, k) == v for k, v in facts.items()))
    return told(pod)


def change_at(pod, lead_ms):
    """Append an approved change that takes effect later."""
    forge = pod.forge
    forge.now_ms = int(pod.now_s * 1000)
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), lead_ms=lead_ms)
    pod.write(forge.append(Release(proposal, (forge.approval(proposal),), allowing_rule(forge.root))))


def events(lines, name):
    return [line for line in lines if line["event"] == name]


class Broken:
    """The logs of a pod, of which one stream fails as told: when it is opened, or when it is written to."""

    def __init__(self, logs, stream):
        self.logs = logs
        self.stream = stream
        self.opening = self.writing = self.slowed = None
        self.opened = 0

    def __getattr__(self, name):
        return getattr(self.logs, name)

    @asynccontextmanager
    async def __call__(self, stream):
        if stream is self.stream:
            self.opened += 1
            if self.opening is not None:
                raise self.opening
        async with self.logs(stream) as log:
            yield self.failing(log) if stream is self.stream else log

    def failing(self, log):
        append = log.append

        async def fail_or_append(*args, **kwargs):
            if self.writing is not None:
                raise self.writing
            if self.slowed is not None:
                await self.slowed.wait()
            return await append(*args, **kwargs)

        log.append = fail_or_append
        return log


@pytest.fixture
def broken(pod):
    pod.logs = Broken(pod.logs, Stream.ACKS)
    return pod.logs


# --- what is told ---


def test_acknowledgement_says_who_has_verified_and_serves_what_since_when(pod):
    async def scenario():
        async with pod.running() as board:
            await until_told(pod, seq=Seq(2), state="FRESH")
            pod.elapse(4)
            pod.write(pod.forge.put("second"))
            ack = await until_told(pod, seq=Seq(3))
            now_ms, head = int(pod.now_s * 1000), pod.forge.ledger.head
            assert (ack.instance, ack.service, ack.version) == (INSTANCE, "checkout", __version__)
            assert (ack.entry_hash, ack.state_root) == (head.entry_hash, state_root(pod.forge.ledger.snapshot))
            assert ack.in_force == board.view.seq == Seq(3)
            assert (ack.started_at, ack.applied_at, ack.activated_at) == (now_ms - 4000, now_ms, now_ms)
            assert ack.written_at == now_ms
            assert ack.late_ms is None

    run(scenario)


def test_state_that_waits_for_its_moment_is_acknowledged_when_verified_and_again_when_in_force(pod):
    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2), state="FRESH")
            verified_ms = int(pod.now_s * 1000)
            change_at(pod, 10_000)
            ack = await until_told(pod, seq=Seq(3))
            assert (ack.in_force, ack.applied_at) == (Seq(2), verified_ms)
            assert ack.state_root == state_root(pod.forge.ledger.snapshot)
            assert pod.status.progress.moment_in_s() == 10
            pod.elapse(10.004)
            pod.watch.look()
            ack = await until_told(pod, in_force=Seq(3))
            assert (ack.late_ms, ack.applied_at) == (4, verified_ms)
            assert ack.activated_at == verified_ms + 10_004
            assert pod.status.progress.moment_in_s() == 0

    run(scenario)


def test_moment_that_had_passed_before_a_sidecar_began_is_nobodys_delay(pod):
    async def scenario():
        change_at(pod, 2_000)
        pod.elapse(3600)
        pod.beat()
        async with pod.running():
            assert (await until_told(pod, in_force=Seq(3))).late_ms is None
        pod.elapse(3600)
        async with pod.running():  # and from the disk
            assert (await until_told(pod, in_force=Seq(3), started_at=int(pod.now_s * 1000))).late_ms is None

    run(scenario)


def test_entry_that_arrives_after_its_moment_is_late(pod):
    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2))
            sent_s = pod.now_s
            pod.elapse(9)
            pod.forge.now_ms = int(sent_s * 1000)
            proposal = pod.forge.proposal(pod.forge.op("new-checkout", boolean_flag("on")), lead_ms=2_000)
            body = Release(proposal, (pod.forge.approval(proposal),), allowing_rule(pod.forge.root))
            pod.write(pod.forge.append(body))
            assert (await until_told(pod, in_force=Seq(3))).late_ms == 7_000

    run(scenario)


def test_quarantined_sidecar_acknowledges_what_it_serves_and_says_so(pod):
    other = Forge(root_options=pod.forge.root_options)
    other.genesis()
    theirs = put_safe(other, "on")

    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2))
            good = told(pod)
            pod.write(theirs)
            await until_told(pod, state="QUARANTINED")
            pod.write(pod.forge.put("second"))
            await pod.until(lambda: pod.ledger.head.seq == Seq(3))
            await asyncio.sleep(0.01)
            ack = told(pod)
            assert (ack.seq, ack.entry_hash, ack.state_root) == (good.seq, good.entry_hash, good.state_root)
            assert ack.in_force == Seq(2)

    run(scenario)


def test_sidecar_that_serves_nothing_yet_says_how_far_it_is(tmp_path):
    async def scenario():
        pod = telling(tmp_path, floors=Floors(Floor(Seq(3), None)))
        async with pod.running():
            ack = await until_told(pod, state="LOADING")
            assert (ack.seq, ack.in_force, ack.activated_at) == (Seq(2), Seq(0), 0)
            pod.write(pod.forge.put("second"))
            await until_told(pod, seq=Seq(3), in_force=Seq(3))

    run(scenario)


def test_sidecar_that_ends_in_order_says_so_last(pod):
    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2))
        ack = told(pod)
        assert (ack.state, ack.seq) == (LEFT, Seq(2))

    run(scenario)


def test_sidecar_without_an_identity_acknowledges_nothing(tmp_path):
    async def scenario():
        pod = telling(tmp_path)
        pod.identity = None
        async with pod.running():
            await pod.until(lambda: pod.board.state is VerifierState.FRESH)
            pod.write(pod.forge.put("second"))
            await pod.until(lambda: pod.board.view.seq == Seq(3))
        assert pod.logs.values(Stream.ACKS) == []

    run(scenario)


# --- when ---


def test_burst_of_entries_makes_few_acknowledgements_and_the_last_is_of_the_newest(pod):
    pod.sleep = asyncio.sleep

    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2), state="FRESH")
            pod.write(*(pod.forge.put(f"flag-{n}") for n in range(200)))
            await until_told(pod, seq=Seq(202), in_force=Seq(202))
            assert pod.status.acks_written <= TELLS_AT_ONCE + 10

    run(scenario)


def test_change_is_acknowledged_once_however_often_others_look_meanwhile(pod, broken):
    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2), state="FRESH")
            for number in (3, 4, 5):
                written, goes_on = pod.status.acks_written, asyncio.Event()
                broken.slowed = goes_on
                pod.write(pod.forge.put(f"flag-{number}"))
                await pod.until(lambda number=number: pod.board.view.seq == Seq(number))
                for _ in range(5):
                    pod.watch.look()
                    await asyncio.sleep(0.001)
                broken.slowed = None
                goes_on.set()
                await until_told(pod, in_force=Seq(number))
                await asyncio.sleep(0.02)
                assert pod.status.acks_written == written + 1

    run(scenario)


def test_history_that_is_read_is_not_acknowledged_entry_by_entry(pod):
    pod.write(*(pod.forge.put(f"flag-{n}") for n in range(200)))

    async def scenario():
        async with pod.running():
            ack = await until_told(pod, in_force=Seq(202))
            assert ack.seq == Seq(202)
            assert pod.status.acks_written <= 2  # once it serves, and once a heartbeat has made it fresh

    run(scenario)


def test_quiet_sidecar_is_heard_every_interval_and_without_a_change_not_between(pod, monkeypatch):
    async def scenario():
        async with pod.running():
            await until_told(pod, state="FRESH")
            for _ in range(20):
                pod.watch.look()
                pod.follower.on_change(pod.follower._in_force)
                await asyncio.sleep(0.001)
            written = pod.status.acks_written
            assert written <= 2
        monkeypatch.setattr(acks, "ACK_INTERVAL_S", 0.05)
        async with pod.running():
            await pod.until(lambda: pod.status.acks_written >= 5)

    run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_silence_is_never_longer_than_the_fleet_counts_with_and_spread_over_a_third_of_it(seed):
    rng = random.Random(seed)
    silences = [interval_s(rng) for _ in range(1000)]
    assert ACK_INTERVAL_S == 30.0
    assert 20 <= min(silences) < 21
    assert 29 < max(silences) <= 30


# --- when the stream does not take it ---


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("sent"), TimeoutError("bug"), KeyError("bug")])
@pytest.mark.parametrize("when", ["opening", "writing"])
def test_stream_that_is_away_costs_no_answer_and_is_told_the_newest_when_it_is_back(pod, broken, when, error):
    async def scenario():
        setattr(broken, when, error)
        async with pod.running() as board:
            await pod.until(lambda: board.state is VerifierState.FRESH and pod.status.acks_failed >= 50)
            pod.write(pod.forge.put("second"))
            await pod.until(lambda: board.view.seq == Seq(3))
            assert not pod.task.done()
            assert told(pod) is None
            assert pod.status.acks_written == 0
            setattr(broken, when, None)
            await until_told(pod, seq=Seq(3))

    with capture_logs() as lines:
        run(scenario)
    assert 0 < len(events(lines, "acks.lost") + events(lines, "acks.failed")) < 12, "bounded"
    assert max(pod.waits) <= BACKOFF_CAP_S


def test_waits_for_a_stream_that_is_away_grow_and_are_spread(pod, broken):
    async def scenario():
        broken.opening = Unavailable("away")
        async with pod.running():
            await pod.until(lambda: len(pod.waits) >= 200)

    run(scenario)
    assert max(pod.waits[:3]) <= 0.4
    later = pod.waits[20:]
    assert min(later) < 1 < 9 < max(later)


@pytest.mark.parametrize("when", ["opening", "writing"])
@pytest.mark.parametrize(
    ("error", "code"), [(LogMissing("no topic"), "log_missing"), (Misconfigured("not authorized"), "misconfigured")]
)
def test_stream_that_is_missing_or_refuses_is_said_once_and_tried_again_seldom(pod, broken, when, error, code):
    async def scenario():
        setattr(broken, when, error)
        async with pod.running() as board:
            await pod.until(lambda: board.state is VerifierState.FRESH and broken.opened >= 10)
            pod.write(pod.forge.put("second"))
            await pod.until(lambda: board.view.seq == Seq(3))
            setattr(broken, when, None)
            await until_told(pod, seq=Seq(3))
            await pod.until(lambda: len(events(lines, "acks.accepted")) == 1)

    with capture_logs() as lines:
        run(scenario)
    (refused,) = events(lines, "acks.refused")
    assert refused["code"] == code
    assert refused["hint"]
    long = [wait for wait in pod.waits if wait > BACKOFF_CAP_S]
    assert len(long) >= 9
    assert REFUSED_AGAIN_S / 2 <= min(long) < max(long) <= REFUSED_AGAIN_S


def test_sidecar_whose_stream_does_not_answer_ends_all_the_same(pod, monkeypatch):
    monkeypatch.setattr(acks, "FAREWELL_S", 0.05)

    async def scenario():
        async with pod.running():
            await until_told(pod, state="FRESH")
            never = asyncio.Event()

            async def hang(self, *_, **__):
                await never.wait()

            monkeypatch.setattr(MemoryLog, "append", hang)
        assert told(pod).state == "FRESH"

    async def timed():
        began_s = time.monotonic()
        await scenario()
        return time.monotonic() - began_s

    with capture_logs() as lines:
        assert asyncio.run(timed()) < 5
    assert [line["code"] for line in events(lines, "acks.lost")] == ["farewell"]


# --- the digest ---


def test_digest_is_made_in_slices_between_which_others_run_and_only_once():
    forge = Forge()
    forge.genesis()
    for batch in range(4):
        ops = [forge.op(f"flag-{batch}-{n}", boolean_flag()) for n in range(500)]
        forge.append(forge.release(*ops))
    snapshot = forge.ledger.snapshot

    async def scenario():
        digests, turns, done = StateDigests(), 0, asyncio.Event()

        async def others():
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        first, second = await asyncio.gather(digests.of(snapshot), digests.of(snapshot))
        done.set()
        await running
        assert first is second
        assert turns >= 5
        return first

    digest = asyncio.run(scenario())
    again = Forge()
    for record in forge.records:
        again.ledger.receive(record)
    assert digest == state_root(again.ledger.snapshot)


# --- clocks ---


@pytest.mark.parametrize(("ahead_s", "skewed"), [(0.2, False), (2, True), (-0.2, False), (-2, True), (3600, True)])
def test_clock_that_is_ahead_or_behind_is_noticed_in_the_acknowledgement(pod, ahead_s, skewed):
    """The publisher's heartbeats say its time; this pod's clock says another."""

    pod.logs.truncate(Stream.META, 0)  # whoever was ahead from the first has counted none

    async def scenario():
        async with pod.running():
            await until_told(pod, seq=Seq(2))
            await pod.until(lambda: pod.looks_at_beats >= 1)
            for n in range(3):
                pod.elapse(5)
                issued_at = round((pod.now_s - ahead_s) * 1000)
                beat = {"issued_at": issued_at, "expires_at": issued_at + 30_000, "beat_no": 10**15 + n}
                pod.beat(pod.forge.beat(**beat))
                await pod.until(lambda n=n: sum(pod.status.beats.values()) == n + 1)
            pod.write(pod.forge.put("second"))
            ack = await until_told(pod, seq=Seq(3))
            assert ack.clock_offset_ms == -ahead_s * 1000
            assert pod.status.clock_offset.skewed is skewed

    with capture_logs() as lines:
        run(scenario)
    assert len(events(lines, "clock.skewed")) == skewed


def counted(pod, number):
    return lambda: pod.status.beats["counted"] >= number


def test_heartbeat_that_the_stream_has_kept_tells_nothing_of_the_clock(pod):
    pod.elapse(20)

    async def scenario():
        async with pod.running():
            await until_told(pod, state="FRESH")
            assert told(pod).clock_offset_ms is None
            pod.beat()
            await pod.until(counted(pod, 2))
            assert pod.status.clock_offset_s == 0

    run(scenario)


def test_old_heartbeats_that_somebody_shows_again_make_no_skew(pod):
    old = pod.forge.beat()

    async def scenario():
        async with pod.running():
            await pod.until(counted(pod, 1))
            pod.elapse(40)
            pod.beat()
            await pod.until(counted(pod, 2))
            for n in range(5):
                pod.logs.put(Stream.META, old, key=b"again-%d" % n)
            await pod.until(lambda: pod.status.beats["refuted"] == 5)
            assert pod.status.clock_offset.ms == 0

    run(scenario)


def test_one_heartbeat_that_was_held_up_is_no_skew(pod):
    async def scenario():
        async with pod.running():
            await pod.until(counted(pod, 1))
            for held_up_s in (0.01, 3, 0.02):
                pod.elapse(5)
                issued_at = int((pod.now_s - held_up_s) * 1000)
                pod.beat(pod.forge.beat(issued_at=issued_at, expires_at=issued_at + 30_000))
                number = pod.status.beats["counted"] + 1
                await pod.until(counted(pod, number))
                assert not pod.status.clock_offset.skewed
            assert pod.status.clock_offset.ms == -10

    run(scenario)


def test_entry_dated_ahead_says_that_this_clock_is_behind_also_without_heartbeats(tmp_path):
    async def scenario():
        pod = Pod(tmp_path, identity=Identity(INSTANCE, ""))
        pod.write(pod.forge.genesis(), put_safe(pod.forge))
        async with pod.running():
            await until_told(pod, in_force=Seq(2))
            assert not pod.status.clock_offset.skewed
            pod.forge.now_ms += 1_500
            pod.write(pod.forge.put("second"))
            assert (await until_told(pod, seq=Seq(3))).clock_offset_ms == 1_500
            assert pod.status.clock_offset.skewed
            pod.elapse(60)
            for n in range(3):
                pod.forge.now_ms = int(pod.now_s * 1000)
                pod.write(pod.forge.put(f"later-{n}"))
            await until_told(pod, seq=Seq(6))
            assert not pod.status.clock_offset.skewed

    run(scenario)


# --- the publisher's state ---


def test_state_that_is_not_the_publishers_is_an_alarm_and_changes_no_answer(pod):
    async def scenario():
        async with pod.running() as board:
            await until_told(pod, state="FRESH")
            view = board.view
            for _ in range(3):
                pod.elapse(5)
                pod.beat(pod.forge.beat(issued_at=int(pod.now_s * 1000), state_root=b"x" * 32))
                await pod.until(counted(pod, pod.status.beats["counted"] + 1))
            await pod.until(lambda: pod.status.divergence.now is not None)
            assert (pod.status.divergence.now.seq, pod.status.divergence.count) == (Seq(2), 1)
            assert board.view is view
            assert board.state is VerifierState.FRESH
            pod.write(pod.forge.put("second"))
            pod.elapse(5)
            pod.beat(state_root=state_root(pod.forge.ledger.snapshot))
            await pod.until(lambda: pod.status.divergence.now is None)
            assert pod.status.divergence.count == 1

    with capture_logs() as lines:
        run(scenario)
    (diverged,) = events(lines, "state.diverged")
    assert (diverged["seq"], diverged["theirs"]) == (2, b"x".hex() * 32)
    assert diverged["ours"] != diverged["theirs"]
    assert diverged["log_level"] == "error"
    assert len(events(lines, "state.agrees")) == 1


def test_states_are_compared_when_the_entries_come_that_a_heartbeat_has_seen(pod):
    async def scenario():
        async with pod.running() as board:
            await until_told(pod, state="FRESH")
            entry = pod.forge.put("second")
            pod.elapse(5)
            pod.beat(state_root=b"x" * 32)
            await pod.until(lambda: board.state is VerifierState.LAGGING)
            assert pod.status.divergence.now is None
            pod.write(entry)
            await pod.until(lambda: pod.status.divergence.now is not None)
            assert pod.status.divergence.now.seq == Seq(3)

    run(scenario)


def test_publishers_state_is_this_pods_through_changes_of_every_kind(pod):
    """Also in force or not: what is compared is what was verified."""
    forge = pod.forge

    async def scenario():
        async with pod.running() as board:
            await until_told(pod, state="FRESH")
            change_at(pod, 10_000)
            for entry in (lambda: forge.kill("new-checkout"), lambda: forge.put("second")):
                pod.write(entry())
                pod.elapse(1)
                pod.beat(state_root=state_root(forge.ledger.snapshot))
                await until_told(pod, seq=forge.ledger.head.seq)
                await pod.until(lambda: board.state is VerifierState.FRESH)
                assert board.view.seq < forge.ledger.head.seq
            ack = told(pod)
            assert ack.state_root == state_root(forge.ledger.snapshot)
            assert ack.in_force < ack.seq
        assert pod.status.divergence.count == 0

    run(scenario)
