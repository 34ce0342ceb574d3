"""The board: freshness and its age, past versions and how long they stay, and watchers that skip what they missed."""

import asyncio
import tracemalloc

import pytest

from flaghoist.selector import EVERYTHING, Selector
from flaghoist.snapshot import Snapshot, View, changed_keys
from flaghoist.values import Seq
from sidecar import board as board_module
from sidecar.board import PAST_MOST, PAST_S, PIN_WAIT_S, Board, NothingLoaded, VerifierState
from sidecar.request import Asked, PinMiss
from tests.fronts.rig import DEADLINE_S, Clock, eventually, put, snapshot_of, switch, view_of


def test_board_is_stale_from_its_making_until_a_proof() -> None:
    clock = Clock()
    board = Board(clock)
    made_s = clock.now_s
    assert board.state is VerifierState.LOADING
    assert board.stale_s(made_s + 7) == 7
    board.mark_fresh(made_s + 10, until_s=made_s + 40)
    assert board.stale_s(made_s + 39.9) is None
    assert board.stale_s(made_s + 40) == 30


def test_age_counts_from_the_last_proof_when_marked_stale_and_from_the_disks_when_it_says_so() -> None:
    clock = Clock()
    board = Board(clock)
    board.mark_fresh(clock.now_s)
    assert board.stale_s(clock.now_s + 1e9) is None
    board.mark_stale()
    assert board.stale_s(clock.now_s + 5) == 5
    board.mark_stale(since_s=clock.now_s - 3600)
    assert board.stale_s(clock.now_s) == 3600


def test_age_is_never_negative_when_the_clock_goes_back() -> None:
    board = Board(Clock())
    board.mark_fresh(100.0)
    board.mark_stale()
    assert board.stale_s(40.0) == 0.0


def test_watcher_gets_the_newest_view_and_skips_those_between() -> None:
    views = [view_of({"a": switch()}) for _ in range(3)]

    async def scenario() -> None:
        board = Board(Clock())
        with board.watch() as watcher:
            waiting = asyncio.ensure_future(watcher.next())
            await asyncio.sleep(0)
            assert not waiting.done()
            for view in views:
                board.put(view)
            assert await waiting is views[-1]
            again = asyncio.ensure_future(watcher.next())
            await asyncio.sleep(0)
            assert not again.done()
            board.put(views[0])
            assert await again is views[0]

    asyncio.run(scenario())


def test_cancelled_wait_loses_no_view() -> None:
    view = view_of({"a": switch()})

    async def scenario() -> None:
        board = Board(Clock())
        with board.watch() as watcher:
            waiting = asyncio.ensure_future(watcher.next())
            await asyncio.sleep(0)
            board.put(view)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await watcher.next() is view

    asyncio.run(scenario())


def test_close_ends_every_watcher_now_and_later_and_keeps_the_view() -> None:
    view = view_of({"a": switch()})

    async def scenario() -> None:
        board = Board(Clock())
        board.put(view)
        with board.watch() as first, board.watch() as second:
            assert await first.next() is view
            waiting = asyncio.ensure_future(first.next())
            await asyncio.sleep(0)
            board.close()
            assert await waiting is None
            assert await second.next() is None
            assert board.watchers == 2
        assert board.watchers == 0
        assert board.view is view

    asyncio.run(scenario())


def test_changes_of_one_pair_are_computed_once() -> None:
    old, new = view_of({"a": switch()}), view_of({"a": switch("off"), "b": switch()})
    board = Board(Clock())
    changes = board.changes(old, new)
    assert dict(changes) == {"a": "update", "b": "write"}
    assert board.changes(old, new) is changes
    assert dict(board.changes(None, new)) == {"a": "write", "b": "write"}
    assert dict(board.changes(new, old)) == {"a": "update", "b": "delete"}


# --- past versions ---


def history(count: int) -> list[View]:
    """Return views at seq 1 .. count; each flips one flag."""
    snapshot = snapshot_of({"a": switch()})
    views = [snapshot.view]
    for number in range(2, count + 1):
        flipped = switch("off" if number % 2 else "on")
        snapshot = snapshot.fold(Seq(number), [put("a", flipped, version=number - 1)])
        views.append(snapshot.view)
    return views


def pinned(seq: int) -> Asked:
    return Asked(EVERYTHING, Seq(seq), {})


def test_views_of_the_last_ten_minutes_are_kept_counted_from_when_they_were_replaced() -> None:
    clock = Clock()
    board = Board(clock)
    views = history(4)
    board.put(views[0])
    clock.now_s += 10 * PAST_S  # the newest does not age
    board.put(views[1])
    clock.now_s += 1
    board.put(views[2])
    clock.now_s += PAST_S - 1
    board.put(views[3])
    assert [board.at(view.seq) for view in views] == views
    clock.now_s += 0.5
    board.mark_fresh(clock.now_s)
    assert board.at(Seq(1)) is None
    assert board.at(Seq(2)) is views[1]
    assert board.at(Seq(5)) is None


def test_newest_and_the_one_before_stay_however_old() -> None:
    clock = Clock()
    board = Board(clock)
    views = history(3)
    for view in views:
        board.put(view)
    clock.now_s += 100 * PAST_S
    board.mark_fresh(clock.now_s)
    assert [board.at(view.seq) for view in views] == [None, *views[1:]]


def test_past_views_are_bounded_in_number() -> None:
    board = Board(Clock())
    for view in history(PAST_MOST + 50):
        board.put(view)
    assert board.past == PAST_MOST
    assert board.at(Seq(50)) is None
    assert board.at(Seq(51)) is not None


def test_past_views_are_bounded_in_bytes_and_what_they_share_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    views = history(40)
    one = board_module.PLACE_BYTES + board_module.FLAG_BYTES  # each view differs from the next in its only flag
    monkeypatch.setattr(board_module, "PAST_BYTES_MAX", 10 * one)
    board = Board(Clock())
    for view in views:
        board.put(view)
    assert board.past == 11
    last = snapshot_of({"a": switch()})
    board = Board(Clock())
    for number in range(1, 101):
        board.put(last.at_seq(Seq(number)).view)
    assert board.past == 100


def test_views_of_a_large_ledger_that_changes_often_stay_within_the_memory_that_is_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 2 * 1024 * 1024
    monkeypatch.setattr(board_module, "PAST_BYTES_MAX", limit)
    rule = {"if": [{"starts_with": [{"var": "country"}, "c"]}, "off", None]}
    snapshot = snapshot_of({f"flag-{number}": switch(targeting=rule) for number in range(2_000)})
    board = Board(Clock())
    board.put(snapshot.view)
    tracemalloc.start()
    try:
        for number in range(2, 302):
            changed = put(f"flag-{number}", switch("off", targeting=rule), version=1)
            snapshot = snapshot.fold(Seq(number), [changed])
            board.put(snapshot.view)
        del snapshot
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 < board.past < 100
    # Beside the past: 300 compiled flags of the newest view, and its dict.
    assert held < limit + 300 * board_module.FLAG_BYTES + 2_000 * board_module.PLACE_BYTES


def test_min_pin_is_raised_never_lowered_and_forgets_what_is_below() -> None:
    board = Board(Clock())
    views = history(5)
    for view in views[:4]:
        board.put(view)
    board.put(views[4], min_pin=Seq(4))
    assert [board.at(Seq(n)) for n in range(1, 6)] == [None, None, None, views[3], views[4]]
    board.put(view_of({"a": switch()}), min_pin=Seq(2))
    assert board.min_pin == Seq(4)


def test_pin_is_honoured_or_the_newest_is_served_with_the_reason() -> None:
    async def scenario() -> None:
        clock = Clock()
        board = Board(clock)
        with pytest.raises(NothingLoaded):
            await board.served(pinned(1))
        views = history(6)
        for view in views:
            board.put(view)
        board.mark_fresh(clock.now_s)
        served = await board.served(pinned(3))
        assert (served.view, served.past, served.pin_miss) == (views[2], True, None)
        served = await board.served(pinned(6))
        assert (served.view, served.past, served.pin_miss) == (views[5], False, None)
        served = await board.served(pinned(7))
        assert (served.view, served.past, served.pin_miss) == (views[5], False, PinMiss.NOT_YET)
        served = await board.served(Asked(EVERYTHING, PinMiss.MALFORMED, {}))
        assert (served.view, served.past, served.pin_miss) == (views[5], False, PinMiss.MALFORMED)
        clock.now_s += 2 * PAST_S
        board.mark_fresh(clock.now_s)
        served = await board.served(pinned(3))
        assert (served.view, served.past, served.pin_miss) == (views[5], False, PinMiss.TOO_OLD)
        board.put(views[5], min_pin=Seq(6))
        assert (await board.served(pinned(5))).pin_miss is PinMiss.MIN_PIN

    asyncio.run(scenario())


def test_selector_holds_in_the_past_too() -> None:
    async def scenario() -> None:
        board = Board(Clock())
        for view in history(2):
            board.put(view)
        selector = Selector(flag_set="none")
        served = await board.served(Asked(selector, Seq(1), {}))
        assert (served.view.seq, served.view.selector, dict(served.view.flags)) == (Seq(1), selector, {})

    asyncio.run(scenario())


def test_pin_to_what_arrives_in_time_is_honoured_at_once() -> None:
    async def scenario() -> None:
        board = Board(Clock())
        views = history(4)
        board.put(views[0])
        waiting = asyncio.ensure_future(board.served(pinned(3)))
        await asyncio.sleep(0)
        board.put(views[1])
        await asyncio.sleep(0)
        assert not waiting.done()
        board.put(views[2])
        board.put(views[3])  # and is no more the newest when the call goes on
        served = await waiting
        assert (served.view, served.pin_miss) == (views[2], None)

    asyncio.run(scenario())


def test_ten_thousand_calls_pinned_to_the_future_wait_briefly_and_leave_nothing() -> None:
    async def scenario() -> None:
        board = Board(Clock())
        board.put(view_of({"a": switch()}))
        await board.served(pinned(9))
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            began_s = asyncio.get_running_loop().time()
            calls = [asyncio.ensure_future(board.served(pinned(n))) for n in range(2, 10_002)]
            async with asyncio.timeout(DEADLINE_S):
                answers = [await call for call in calls]
            took_s = asyncio.get_running_loop().time() - began_s
            _, peak = tracemalloc.get_traced_memory()
            del calls
            assert {answer.pin_miss for answer in answers} == {PinMiss.NOT_YET}
            del answers
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # All waited at the same time, not one after another; the rest is this machine's pace.
        assert PIN_WAIT_S <= took_s < PIN_WAIT_S * 400
        assert peak - before < 64 * 1024 * 1024
        assert after - before < 4 * 1024 * 1024  # some 400 bytes a call, of what the allocator has not given back
        assert board.waiting == 0

    asyncio.run(scenario())


def test_calls_over_the_cap_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "PIN_WAITS_MAX", 1)
    monkeypatch.setattr(board_module, "PIN_WAIT_S", DEADLINE_S)

    async def scenario() -> None:
        board = Board(Clock())
        views = history(2)
        board.put(views[0])
        first = asyncio.ensure_future(board.served(pinned(2)))
        await eventually(lambda: board.waiting == 1)
        assert (await board.served(pinned(2))).pin_miss is PinMiss.NOT_YET
        assert not first.done()
        board.put(views[1])
        assert (await first).view is views[1]

    asyncio.run(scenario())


def test_cancelled_or_drained_pins_do_not_wait_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "PIN_WAIT_S", DEADLINE_S)

    async def scenario() -> None:
        board = Board(Clock())
        board.put(view_of({"a": switch()}))
        left, stays = (asyncio.ensure_future(board.served(pinned(2))) for _ in range(2))
        await eventually(lambda: board.waiting == 2)
        left.cancel()
        await eventually(lambda: board.waiting == 1)
        board.close()
        assert (await stays).pin_miss is PinMiss.NOT_YET

    asyncio.run(scenario())


def test_changes_of_many_selectors_are_each_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Selector] = []

    def counted(old: View | None, new: View) -> object:
        computed.append(new.selector)
        return changed_keys(old, new)

    monkeypatch.setattr(board_module, "changed_keys", counted)
    selectors = [EVERYTHING, *(Selector(flag_set=f"set-{n}") for n in range(60))]
    snapshot: Snapshot = snapshot_of({f"flag-{n}": switch(metadata={"flagSetId": f"set-{n}"}) for n in range(60)})
    board = Board(Clock())
    board.put(snapshot.view)
    for seq, default in ((2, "off"), (3, "on")):
        old = snapshot.view
        flipped = switch(default, metadata={"flagSetId": "set-1"})
        snapshot = snapshot.fold(Seq(seq), [put("flag-1", flipped, version=1 if seq == 2 else 2)])
        board.put(snapshot.view)
        for _ in range(3):
            changes = [board.changes(old.select(each), snapshot.view.select(each)) for each in selectors]
        assert [dict(each) for each in changes if each] == [{"flag-1": "update"}] * 2
        assert sorted(computed, key=str) == sorted(selectors, key=str)
        computed.clear()
