"""A second history: what is served stays, what comes is verified and not shown, and a root is the only cure."""

import pytest
from structlog.testing import capture_logs

from flaghoist.values import Role, Seq
from sidecar.board import VerifierState
from sidecar.keep import EVIDENCE
from tests.forge import ADA, PUBLISHER, Forge, Key, boolean_flag
from tests.unit.sidecar.pod import Pod, default_of, of_newer_release, run, with_keys

NEW_PUBLISHER, NEW_BEATS = Key(PUBLISHER, "second"), Key(PUBLISHER, "second heartbeat")
OPTIONS = {"beats": True}


def forge():
    made = Forge(root_options=OPTIONS)
    made.genesis()
    made.put("new-checkout")
    return made


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path, forge())
    pod.write(*pod.forge.records)
    pod.beat()
    return pod


def equivocation():
    """Another second entry, by the same publisher."""
    other = Forge(root_options=OPTIONS)
    other.genesis()
    return other.put("other")


def another_head(pod):
    """A heartbeat that saw another entry where this ledger's head is."""
    return pod.forge.beat(head_hash=bytes(32))


def cure(pod, role=Role.PUBLISHER):
    """The root that replaces whoever forged, and the publisher that goes on."""
    keys = with_keys(pod.forge.root, role, NEW_PUBLISHER if role is Role.PUBLISHER else NEW_BEATS)
    if role is Role.HEARTBEAT:
        return pod.forge.rotate(Key(ADA), **keys)
    rotated = pod.forge.rotate(Key(ADA), signed_by=NEW_PUBLISHER, **keys)
    pod.forge.publisher = NEW_PUBLISHER
    return rotated


def fresh(pod):
    return pod.board.state is VerifierState.FRESH and pod.board.stale_s(pod.now_s) is None


def quarantined(pod):
    return pod.board.state is VerifierState.QUARANTINED


def flip(pod, variant):
    return pod.forge.put("new-checkout", boolean_flag(variant))


def test_nothing_new_is_served_or_kept_and_the_cure_brings_the_newest_and_keeps_all_of_it(pod):
    theirs = equivocation()

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            with capture_logs() as lines:
                pod.write(theirs)
                await pod.until(lambda: quarantined(pod))
                assert board.stale_s(pod.now_s) is not None
                assert board.why_stale == "a second history was signed"
                pod.write(flip(pod, "on"), pod.forge.put("second"))
                await pod.until(lambda: pod.ledger.head.seq == Seq(4))
                pod.beat()
                await pod.until(lambda: pod.status.beats["counted"] == 2 or quarantined(pod))
                assert (default_of(board), board.view.seq) == ("off", Seq(2))
                assert pod.path.with_suffix(EVIDENCE).read_bytes() == theirs
            forked = [line for line in lines if line["event"] == "ledger.forked"]
            assert [(line["what"], line["seq"]) for line in forked] == [("equivocation", 2)]
            assert forked[0]["signers"] == [Key(PUBLISHER).listed.key_id]
            with capture_logs() as lines:
                pod.write(cure(pod))
                await pod.until(lambda: board.view.seq == Seq(5))
                pod.now_s += 1
                pod.beat()
                await pod.until(lambda: fresh(pod))
            assert [line["root_version"] for line in lines if line["event"] == "quarantine.ended"] == [2]
            assert default_of(board) == "on"
            pod.write(flip(pod, "off"))
            await pod.until(lambda: board.view.seq == Seq(6))
            await pod.until(lambda: pod.follower.kept_seq == Seq(6))
        pod.logs.lose()
        async with pod.running() as board:
            assert board.view.seq == Seq(6)
            assert "second" in board.view.flags

    run(scenario)


def test_restart_is_no_cure(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            await pod.until(lambda: pod.follower.kept_seq == Seq(2))
            pod.write(equivocation(), flip(pod, "on"))
            await pod.until(lambda: quarantined(pod))
        async with pod.running() as board:
            await pod.until(lambda: pod.ledger.head.seq == Seq(3))
            assert quarantined(pod)
            assert default_of(board) == "off"
        pod.logs.lose()
        async with pod.running() as board:
            assert quarantined(pod)  # the evidence on the disk still proves it
            assert default_of(board) == "off"

    run(scenario)


def test_cold_start_in_a_quarantine_serves_what_was_verified_before_the_proof(pod):
    pod.write(flip(pod, "on"), equivocation(), flip(pod, "off"))

    async def scenario():
        async with pod.running(keep=False) as board:
            await pod.until(lambda: board.view is not None)
            assert quarantined(pod)
            assert (default_of(board), board.view.seq) == ("on", Seq(3))
            assert board.stale_s(pod.now_s) is not None

    run(scenario)


def test_quarantine_that_was_cured_long_ago_is_no_stop_on_the_way_and_nothing_of_it_is_shown(pod):
    pod.write(equivocation(), flip(pod, "on"))
    pod.write(cure(pod), flip(pod, "off"), flip(pod, "on"))

    async def scenario():
        pod.beat()
        async with pod.running() as board:
            seen = []
            with board.watch() as watcher:
                seen.append((await watcher.next()).seq)
            await pod.until(lambda: fresh(pod))
            assert seen == [pod.forge.ledger.head.seq]
            await pod.until(lambda: pod.follower.kept_seq == pod.forge.ledger.head.seq)
        pod.logs.lose()
        async with pod.running() as board:
            assert board.view.seq == pod.forge.ledger.head.seq

    run(scenario)


def test_heartbeat_that_saw_another_head_quarantines_also_after_a_restart_and_its_keys_replacement_cures(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            await pod.until(lambda: pod.follower.kept_seq == Seq(2))
            pod.now_s += 1
            theirs = another_head(pod)
            pod.beat(theirs)
            await pod.until(lambda: quarantined(pod))
            assert pod.path.with_suffix(EVIDENCE).read_bytes() == theirs
        pod.now_s += 3600  # it has expired, and is no less a proof
        pod.beat()
        async with pod.running() as board:
            assert quarantined(pod)
            pod.write(flip(pod, "on"))
            await pod.until(lambda: pod.ledger.head.seq == Seq(3))
            assert default_of(board) == "off"
            pod.write(cure(pod, Role.HEARTBEAT))
            await pod.until(lambda: board.view.seq == Seq(4))
            pod.beat(by=NEW_BEATS)
            await pod.until(lambda: fresh(pod))
            assert default_of(board) == "on"

    run(scenario)


def test_entry_that_is_not_the_one_a_heartbeat_had_seen_is_never_shown(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.now_s += 1
            pod.beat(seq=Seq(3), head_hash=bytes(32))
            await pod.until(lambda: board.state is VerifierState.LAGGING)
            shown = []
            with board.watch() as watcher:
                shown.append((await watcher.next()).seq)
                pod.write(flip(pod, "on"))
                await pod.until(lambda: quarantined(pod))
            assert (default_of(board), board.view.seq) == ("off", Seq(2))
            pod.now_s += 1
            pod.beat()  # the log, and the disk, keep the newest only: the proof is on the disk by itself
            await pod.until(lambda: pod.status.beats["counted"] == 3)
        async with pod.running() as board:
            await pod.until(lambda: pod.ledger.head.seq == Seq(3))
            await pod.until(lambda: quarantined(pod))
            assert (default_of(board), board.view.seq) == ("off", Seq(2))

    run(scenario)


def test_further_forgeries_make_no_log_without_a_bound(pod):
    async def scenario():
        async with pod.running():
            await pod.until(lambda: fresh(pod))
            with capture_logs() as lines:
                pod.write(*[equivocation()] * 300)
                await pod.until(lambda: pod.status.tally["forked"] == 300)
            assert len(lines) < 20

    run(scenario)


def test_root_that_leaves_the_forger_its_role_is_no_cure(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.write(equivocation())
            await pod.until(lambda: quarantined(pod))
            pod.write(pod.forge.rotate(Key(ADA)), flip(pod, "on"))
            await pod.until(lambda: pod.ledger.head.seq == Seq(4))
            assert quarantined(pod)
            assert default_of(board) == "off"

    run(scenario)


def test_what_a_stolen_key_says_of_a_newer_release_ends_with_its_role(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.write(of_newer_release(pod.forge))
            await pod.until(lambda: board.state is VerifierState.UNSUPPORTED)
            pod.write(flip(pod, "on"))
            await pod.until(lambda: pod.ledger.head.seq == Seq(3))
            assert default_of(board) == "off"
            pod.write(cure(pod))
            pod.now_s += 1
            pod.beat()
            await pod.until(lambda: fresh(pod))
            assert default_of(board) == "on"
            await pod.until(lambda: pod.follower.kept_seq == Seq(4))

    run(scenario)
