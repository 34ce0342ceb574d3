"""A sidecar and the moments of entries: what it serves before and after, to whom, and when its life is interrupted.

The wall clock and the steady one are the test's; timers run on the event loop's own.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from flaghoist.records import Op, Release
from flaghoist.release_plan import SHARE_MAX
from flaghoist.selector import EVERYTHING
from flaghoist.values import Action, FlagKey, ProposalKind, Role, Seq, Source, Target
from sidecar.board import VerifierState
from sidecar.request import Asked, PinMiss
from tests.forge import EMERGENCY_LABEL, GRACE, NOW_MS, PUBLISHER, Forge, Key, allowing_rule, gated_flag, release_plan
from tests.unit.sidecar.pod import Pod, put_safe, run, with_keys

ROOT_OPTIONS = {"emergency": (GRACE,), "beats": True}
NEW_PUBLISHER = Key(PUBLISHER, "second")
FLAGS = ("cart.spring", "mail.spring")


@pytest.fixture
def pod(tmp_path):
    """A sidecar's ledger: a flag that can be killed (seq 2), and a closed release of two flags (seq 3)."""
    forge = Forge(root_options=ROOT_OPTIONS)
    forge.genesis()
    put_safe(forge, "on")
    ops = [forge.op(key, gated_flag("spring")) for key in FLAGS]
    forge.append(forge.release(forge.release_op("spring", release_plan(*FLAGS)), *ops))
    made = Pod(tmp_path, forge)
    made.write(*forge.records)
    made.beat()
    return made


def change(pod, *ops, **changes):
    """Append a change and return its bytes."""
    forge = pod.forge
    forge.now_ms = int(pod.now_s * 1000)
    proposal = forge.proposal(*ops, **changes)
    data = forge.append(Release(proposal, (forge.approval(proposal),), allowing_rule(forge.root)))
    assert forge.ledger.snapshot.version_of(ops[0].state_id) == forge.ledger.head.seq
    return data


def activate(pod, share=SHARE_MAX, *, lead_ms=10_000):
    return change(pod, pod.forge.hoist("spring", share=share), lead_ms=lead_ms)


def kill(pod, target, key):
    forge = pod.forge
    forge.now_ms = int(pod.now_s * 1000)
    op = Op(target, Source(""), FlagKey(key), Seq(0), Action.KILL, None)
    op = replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))
    told = {"kind": ProposalKind.EMERGENCY, "expires_at": forge.now_ms + 600_000}
    proposal = forge.proposal(op, by=GRACE, signed_by=Key(GRACE, EMERGENCY_LABEL), **told)
    data = forge.append(Release(proposal, (), "emergency"))
    assert forge.ledger.min_pin == forge.ledger.head.seq
    return data


def asked(pin=None):
    return Asked(EVERYTHING, pin, {})


def open_in(view):
    """Whether the release is open for everybody in a view; both flags must say the same."""
    rules = {repr(view.flags[key].evaluators["release.spring"]) for key in FLAGS}
    assert len(rules) == 1
    return rules == {repr({"==": [1, 1]})}


def default_of(view):
    return view.flags["new-checkout"].definition.default_variant


async def reached(pod, seq):
    await pod.until(lambda: pod.ledger.head.seq == Seq(seq))


async def fresh(pod):
    await pod.until(lambda: pod.board.state is VerifierState.FRESH)


def test_state_is_served_from_its_moment_on_and_the_board_says_when_it_was_to_be(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod, lead_ms=10_000))
            await reached(pod, 4)
            pod.elapse(9.9)
            pod.watch.look()
            assert (board.view.seq, open_in(board.view)) == (Seq(3), False)
            pod.elapse(0.1)
            pod.watch.look()
            assert (board.view.seq, open_in(board.view)) == (Seq(4), True)
            assert board.moment_ms == NOW_MS + 10_000
            assert board.activated_at_s == pod.now_s

    run(scenario)


def test_timer_wakes_it_at_the_moment_with_nobody_looking(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.now_s, pod.monotonic_s = time.time(), time.monotonic()
            pod.watch.look = lambda: None
            begun = time.monotonic()
            clock = pod.clock
            clock._wall, clock._monotonic, clock._ahead_s = time.time, time.monotonic, time.time() - time.monotonic()
            pod.write(activate(pod, lead_ms=300))
            with board.watch() as watcher:
                assert (await watcher.next()).seq == Seq(3)
                async with asyncio.timeout(5):
                    assert (await watcher.next()).seq == Seq(4)
            assert time.time() * 1000 >= board.moment_ms
            assert 0.29 < time.monotonic() - begun < 3

    run(scenario)


def test_clock_that_is_set_ahead_is_seen_at_the_next_look_long_before_the_timer(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod, lead_ms=200_000))
            await reached(pod, 4)
            pod.watch.look()
            assert board.view.seq == Seq(3)
            pod.now_s += 200
            pod.watch.look()
            assert board.view.seq == Seq(4)

    run(scenario)


def test_clock_that_is_set_ahead_is_seen_while_the_log_is_away_too(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod, lead_ms=200_000))
            await reached(pod, 4)
            pod.logs.lose()
            await pod.until(lambda: not pod.follower._caught_up)
            pod.now_s += 200
            pod.watch.look()
            assert board.view.seq == Seq(4)

    run(scenario)


def test_clock_that_is_set_back_delays_no_moment_and_takes_nothing_back(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod, lead_ms=10_000))
            await reached(pod, 4)
            pod.now_s -= 3600
            pod.monotonic_s += 10
            pod.watch.look()
            assert board.view.seq == Seq(4)
            pod.now_s -= 3600
            pod.watch.look()
            assert board.view.seq == Seq(4)

    run(scenario)


def test_looking_again_puts_nothing_anew(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(
                activate(pod, 50_000, lead_ms=5_000),
                activate(pod, lead_ms=60_000),
                kill(pod, Target.FLAG, "new-checkout"),
            )
            await reached(pod, 6)
            pod.elapse(5)
            pod.watch.look()
            view = board.view
            assert (view.seq, default_of(view)) == (Seq(4), "off")
            for _ in range(3):
                pod.watch.look()
                assert board.view is view

    run(scenario)


def test_call_that_is_pinned_to_a_seq_that_waits_is_answered_from_it_and_others_are_not(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod))
            await reached(pod, 4)
            await pod.until(lambda: board.at(Seq(4)) is not None)
            pinned, other = await board.served(asked(Seq(4))), await board.served(asked())
            assert (pinned.view.seq, open_in(pinned.view), pinned.past, pinned.pin_miss) == (Seq(4), True, True, None)
            assert (other.view.seq, open_in(other.view), other.past) == (Seq(3), False, False)
            beyond = await board.served(asked(Seq(5)))
            assert (beyond.view.seq, beyond.pin_miss) == (Seq(3), PinMiss.NOT_YET)

    run(scenario)


def test_call_that_waits_for_its_pin_is_answered_when_that_seq_arrives_though_its_moment_has_not(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            waiting = asyncio.create_task(board.until(Seq(4), 10.0))
            await pod.until(lambda: board.waiting == 1)
            pod.write(activate(pod))
            async with asyncio.timeout(5):
                await waiting
            assert board.view.seq == Seq(3)
            assert board.at(Seq(4)) is not None

    run(scenario)


def test_call_that_is_pinned_to_the_state_before_keeps_it_after_the_moment(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod))
            await reached(pod, 4)
            pod.elapse(10)
            pod.watch.look()
            served = await board.served(asked(Seq(3)))
            assert (served.view.seq, open_in(served.view), served.pin_miss) == (Seq(3), False, None)

    run(scenario)


def test_kill_during_a_wait_is_served_at_once_and_no_pin_reaches_a_state_without_it(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod), kill(pod, Target.FLAG, "new-checkout"))
            await reached(pod, 5)
            assert (board.view.seq, default_of(board.view), open_in(board.view)) == (Seq(3), "off", False)
            for pin in range(6):
                served = await board.served(asked(Seq(pin)))
                assert default_of(served.view) == "off", f"pin {pin}"
                assert (served.pin_miss is None) is (pin in (3, 5)), f"pin {pin}"
            pod.elapse(10)
            pod.watch.look()
            assert (board.view.seq, default_of(board.view), open_in(board.view)) == (Seq(5), "off", True)
            # A call that began before the moment, elsewhere, is pinned to the state of then, with the kill in it.
            served = await board.served(asked(Seq(3)))
            assert (default_of(served.view), open_in(served.view), served.pin_miss) == ("off", False, None)
            assert (await board.served(asked(Seq(4)))).pin_miss is not None

    run(scenario)


def test_min_pin_of_an_entry_that_waits_does_not_forbid_the_state_that_is_served(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(
                activate(pod, 50_000, lead_ms=5_000),
                change(pod, pod.forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000, min_pin=Seq(5)),
            )
            await reached(pod, 5)
            pod.elapse(5)
            pod.watch.look()
            served = await board.served(asked(Seq(4)))
            assert (board.view.seq, served.view.seq, served.pin_miss) == (Seq(4), Seq(4), None)
            pod.elapse(5)
            pod.watch.look()
            assert (board.view.seq, board.min_pin) == (Seq(5), Seq(5))
            assert (await board.served(asked(Seq(4)))).pin_miss is PinMiss.MIN_PIN

    run(scenario)


def test_quarantine_during_a_wait_lets_what_was_verified_before_it_come_into_force_and_nothing_else(pod):
    other = Forge(root_options=ROOT_OPTIONS)
    other.genesis()
    theirs = other.put("other")

    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod))
            await reached(pod, 4)
            pod.write(theirs)
            await pod.until(lambda: board.state is VerifierState.QUARANTINED)
            pod.write(put_safe(pod.forge, "off"))
            await reached(pod, 5)
            assert board.view.seq == Seq(3)
            pod.elapse(10)
            pod.watch.look()
            assert (board.view.seq, open_in(board.view), default_of(board.view)) == (Seq(4), True, "on")
            assert board.at(Seq(5)) is None
            keys = with_keys(pod.forge.root, Role.PUBLISHER, NEW_PUBLISHER)
            pod.write(pod.forge.rotate(signed_by=NEW_PUBLISHER, **keys))
            await pod.until(lambda: board.view.seq == Seq(6))
            assert (default_of(board.view), open_in(board.view)) == ("off", True)

    run(scenario)


def test_start_during_a_wait_serves_the_state_before_without_the_log_and_switches_at_the_moment(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.write(activate(pod, 50_000, lead_ms=4000), kill(pod, Target.FLAG, "new-checkout"), activate(pod))
            await reached(pod, 6)
            await pod.until(lambda: pod.follower.kept_seq == Seq(6))
        pod.logs.lose()
        pod.elapse(2)
        async with pod.running() as board:
            assert (board.view.seq, default_of(board.view), open_in(board.view)) == (Seq(3), "off", False)
            assert (await board.served(asked(Seq(6)))).view.seq == Seq(6)
            pod.elapse(2)
            pod.watch.look()
            assert (board.view.seq, default_of(board.view)) == (Seq(5), "off")
        pod.elapse(3600)
        async with pod.running() as board:
            assert (board.view.seq, default_of(board.view), open_in(board.view)) == (Seq(6), "off", True)

    run(scenario)


KILLED_POD = """
import asyncio, pathlib, sys
from flaghoist.values import Seq
from tests.unit.sidecar import pod as pods, test_moments as moments
from tests.forge import Forge

async def main():
    made = moments.pod.__wrapped__(pathlib.Path(sys.argv[1]))
    async with made.running() as board:
        await moments.fresh(made)
        made.write(moments.activate(made))
        await moments.reached(made, 4)
        await made.until(lambda: made.follower.kept_seq == Seq(4) and made.follower._keeping.done())
        print("waiting", board.view.seq.number, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_sidecar_that_is_killed_during_a_wait_starts_with_what_it_had_kept_and_switches_at_the_moment(tmp_path, pod):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_POD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("waiting"))
        assert line.split() == ["waiting", "3"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    pod.logs.lose()

    async def scenario():
        async with pod.running() as board:
            assert (board.view.seq, open_in(board.view)) == (Seq(3), False)
            assert board.at(Seq(4)) is not None
            pod.elapse(10)
            pod.watch.look()
            assert (board.view.seq, open_in(board.view)) == (Seq(4), True)

    run(scenario)


def test_entry_dated_an_hour_ahead_holds_up_what_follows_for_five_minutes_at_most(pod):
    async def scenario():
        async with pod.running() as board:
            await fresh(pod)
            pod.forge.now_ms = NOW_MS + 3_600_000
            proposal = pod.forge.proposal(pod.forge.hoist("spring", share=SHARE_MAX), lead_ms=1000)
            body = Release(proposal, (pod.forge.approval(proposal),), allowing_rule(pod.forge.root))
            pod.write(pod.forge.append(body), put_safe(pod.forge, "off"))
            await reached(pod, 5)
            pod.elapse(299)
            pod.watch.look()
            assert board.view.seq == Seq(3)
            pod.elapse(1)
            pod.watch.look()
            assert (board.view.seq, default_of(board.view)) == (Seq(5), "off")

    run(scenario)
