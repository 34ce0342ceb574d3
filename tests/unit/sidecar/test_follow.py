"""The follower: what the log brings, what the board then serves, and what is kept for a start without the log."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from flaghoist.errors import LogMissing, Unavailable
from flaghoist.log.base import Stream
from flaghoist.records import Release
from flaghoist.values import Seq
from sidecar.board import VerifierState
from sidecar.report import LINES_A_WINDOW
from tests.forge import Forge, boolean_flag
from tests.unit.sidecar.pod import Pod, default_of, of_newer_release, run


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    pod.write(pod.forge.genesis(), pod.forge.put("new-checkout"))
    return pod


def test_view_is_put_once_the_end_of_the_log_was_reached(pod):
    async def scenario():
        async with pod.running() as board:
            assert board.view is None
            await pod.until(lambda: board.view is not None)
            assert board.view.seq == Seq(2)
            assert board.state is VerifierState.FRESH
            assert board.stale_s(pod.now_s) is None

    run(scenario)


def test_applied_entry_is_served(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: board.view.seq == Seq(3))
            assert default_of(board) == "on"

    run(scenario)


def test_history_is_not_replayed_to_the_callers(pod):
    """A sidecar that starts must not serve last year's states on its way to today's."""

    async def scenario():
        pod.write(*(pod.forge.put("new-checkout", boolean_flag(v)) for v in ("on", "off") * 40))
        seen = []
        async with pod.running() as board:
            with board.watch() as watcher:
                seen.append((await watcher.next()).seq)
            await pod.until(lambda: board.view.seq == pod.forge.ledger.head.seq)
        assert seen == [pod.forge.ledger.head.seq]

    run(scenario)


def test_each_entry_can_be_pinned_to_also_one_that_came_with_others(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.write(*(pod.forge.put("new-checkout", boolean_flag(v)) for v in ("on", "off", "on")))
            await pod.until(lambda: board.view.seq == Seq(5))
            kept = [board.at(Seq(n)).flags["new-checkout"].definition.default_variant for n in (2, 3, 4, 5)]
            assert kept == ["off", "on", "off", "on"]
            assert board.at(Seq(1)) is None

    run(scenario)


def test_min_pin_reaches_the_board_live_and_from_what_was_kept(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            proposal = pod.forge.proposal(pod.forge.op("new-checkout", boolean_flag("on")), min_pin=Seq(3))
            pod.write(pod.forge.append(Release(proposal, (pod.forge.approval(proposal),), "approvals>=1")))
            await pod.until(lambda: board.view.seq == Seq(3))
            assert (board.min_pin, board.at(Seq(2))) == (Seq(3), None)
            await pod.until_kept()
        pod.logs.lose()
        async with pod.running() as board:
            assert board.min_pin == Seq(3)

    run(scenario)


def test_log_without_entries_makes_no_sidecar_ready(tmp_path):
    pod = Pod(tmp_path)
    pod.write(b"junk")

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: pod.status.tally["dropped"] == 1)
            assert board.view is None

    run(scenario)


def test_junk_forgeries_and_replays_change_nothing(pod):
    forged = Forge("staging")
    forged.genesis()

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            view = board.view
            pod.write(b"junk", pod.forge.records[1], forged.records[0], bytes(100))
            await pod.until(lambda: pod.status.tally.total() == 6)
            assert board.view is view
            assert board.state is VerifierState.FRESH

    run(scenario)


def test_rejected_entry_advances_the_seq_and_changes_no_flag(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            release = pod.forge.release(pod.forge.op("new-checkout", boolean_flag("on")), approved_by=())
            pod.write(pod.forge.append(release))
            await pod.until(lambda: board.view.seq == Seq(3))
            assert default_of(board) == "off"
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: board.view.seq == Seq(4))
            assert default_of(board) == "on"

    run(scenario)


def test_flood_of_junk_is_counted_and_not_logged_record_by_record(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            with capture_logs() as lines:
                pod.write(*(b"junk %d" % n for n in range(2000)))
                await pod.until(lambda: pod.status.tally["dropped"] == 2000)
            assert len([line for line in lines if line["event"] == "record.dropped"]) == LINES_A_WINDOW
            with capture_logs() as lines:
                pod.now_s += 61
                pod.write(b"more junk")
                await pod.until(lambda: pod.status.tally["dropped"] == 2001)
            suppressed = [line for line in lines if line["event"] == "events.suppressed"]
            assert [line["count"] for line in suppressed] == [2000 - LINES_A_WINDOW]

    run(scenario)


def test_lost_log_is_followed_on_when_it_returns_and_stale_answers_say_their_age(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.logs.lose(Unavailable("the brokers are away"))
            await pod.until(lambda: board.state is VerifierState.STALE)
            assert board.stale_s(pod.now_s + 29) is None
            assert board.stale_s(pod.now_s + 31) == 31
            assert default_of(board) == "off"
            pod.logs.return_()
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: board.view.seq == Seq(3))
            assert board.state is VerifierState.FRESH

    run(scenario)


def test_start_without_the_log_serves_what_was_kept_and_says_how_old_it_is(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until_kept()
            kept_at_s = pod.now_s
        pod.logs.lose()
        pod.now_s += 3600
        async with pod.running() as board:
            assert board.view.seq == Seq(2)
            assert default_of(board) == "off"
            assert board.stale_s(pod.now_s) == pytest.approx(pod.now_s - kept_at_s)

    run(scenario)


def test_start_with_kept_state_reads_on_where_it_ended(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until_kept()
        pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
        async with pod.running() as board:
            await pod.until(lambda: board.view.seq == Seq(3))
            assert pod.status.tally == {"repeated": 1, "applied": 1}  # it asks whether the log still holds the head

    run(scenario)


@pytest.mark.parametrize("damage", ["torn", "flipped", "emptied"])
def test_damaged_kept_state_is_cut_and_made_good_from_the_log(pod, damage):
    async def scenario():
        async with pod.running() as board:
            await pod.until_kept()
        data = bytearray(pod.path.read_bytes())
        match damage:
            case "torn":
                del data[-10:]
            case "flipped":
                data[-100] ^= 1
            case "emptied":
                data.clear()
        pod.path.write_bytes(data)
        async with pod.running() as board:
            await pod.until(lambda: board.state is VerifierState.FRESH)
            await pod.until_kept()
            assert board.view.seq == Seq(2)
        pod.logs.lose()
        async with pod.running() as board:
            assert board.view.seq == Seq(2)

    run(scenario)


def test_kept_state_of_somebody_elses_making_is_not_served(tmp_path):
    theirs = Pod(tmp_path, Forge(approvals=0))
    theirs.write(theirs.forge.genesis(), theirs.forge.put("new-checkout", boolean_flag("on")))

    async def scenario():
        async with theirs.running() as board:
            await theirs.until_kept()
        ours = Pod(tmp_path)
        ours.logs.lose()
        async with ours.running() as board:
            assert board.view is None

    run(scenario)


def test_without_a_writable_place_it_serves_all_the_same(pod):
    async def scenario():
        async with pod.running(keep=False) as board:
            await pod.until(lambda: board.view is not None)
            assert default_of(board) == "off"

    run(scenario)


def test_fork_quarantines_keeps_the_last_good_state_and_the_evidence(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            other = Forge()
            other.genesis()
            theirs = other.put("other")
            pod.write(theirs)
            await pod.until(lambda: board.state is VerifierState.QUARANTINED)
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await asyncio.sleep(0)
            assert default_of(board) == "off"
            assert board.stale_s(pod.now_s) is not None
            assert pod.path.with_suffix(".fork-evidence").read_bytes() == theirs

    run(scenario)


def test_record_of_a_newer_release_is_held_and_said(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.write(of_newer_release(pod.forge))
            await pod.until(lambda: board.state is VerifierState.UNSUPPORTED)
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: pod.status.tally["applied"] == 2)
            assert default_of(board) == "off"
            assert board.stale_s(pod.now_s) is not None
            assert board.why_stale == "an entry needs a newer release"

    run(scenario)


def test_gap_is_said_and_mended_when_the_entries_are_there_again(pod, monkeypatch):
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.01)
    missing = pod.forge.put("second")
    after = pod.forge.put("new-checkout", boolean_flag("on"))

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.write(after)
            await pod.until(lambda: board.state is VerifierState.RESYNC)
            assert board.view.seq == Seq(2)
            pod.write(missing, after)
            await pod.until(lambda: board.view.seq == Seq(4))
            assert default_of(board) == "on"

    run(scenario)


def test_entries_that_stay_missing_are_looked_for_now_and_then_only(pod, monkeypatch):
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.2)
    pod.forge.put("withheld")

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            began_s = time.monotonic()
            pod.write(pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: pod.status.tally["gap"] == 4)  # as it comes, at once, and then after a wait each
            assert time.monotonic() - began_s >= 2 * 0.2

    run(scenario)


def test_log_that_was_cut_is_read_again_from_its_start(pod, monkeypatch):
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.01)

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.logs.truncate(Stream.LEDGER, 0)
            await pod.until(lambda: board.state is not VerifierState.FRESH)
            assert default_of(board) == "off"
            assert board.stale_s(pod.now_s) is not None
            pod.write(*pod.forge.records, pod.forge.put("new-checkout", boolean_flag("on")))
            await pod.until(lambda: board.view.seq == Seq(3))

    run(scenario)


def test_missing_log_ends_a_sidecar_that_has_nothing_to_serve(tmp_path):
    pod = Pod(tmp_path)
    pod.logs.lose(LogMissing("no ledger there"))

    async def scenario():
        async with pod.running():
            with pytest.raises(LogMissing):
                await pod.task

    run(scenario)


def test_log_that_lacks_the_kept_head_is_no_proof_of_freshness(pod, monkeypatch):
    """A log made anew is as long as the old one, perhaps; what counts is that it holds what this pod has verified."""
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.01)

    async def scenario():
        async with pod.running():
            await pod.until_kept()
        pod.logs.truncate(Stream.LEDGER, 0)
        pod.write(b"junk", b"more junk")
        async with pod.running() as board:
            await pod.until(lambda: board.state is VerifierState.RESYNC)
            assert board.stale_s(pod.now_s) is not None
            assert default_of(board) == "off"

    run(scenario)
