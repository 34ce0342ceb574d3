"""The board: freshness and its age, and watchers that skip what they had no time for."""

import asyncio

from sidecar.board import Board, VerifierState
from tests.fronts.rig import Clock, switch, view_of


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
