"""Freshness by signed heartbeats, on clocks of the test's: what proves it, what does not, and what is said of it."""

import pytest
from structlog.testing import capture_logs

from flaghoist.errors import Misconfigured
from flaghoist.log.base import Stream
from flaghoist.values import Role, Seq
from sidecar.board import VerifierState
from sidecar.floors import Floor, Floors
from sidecar.keep import BEAT
from tests.forge import ADA, BEAT_LABEL, DAY_MS, GRACE, NOW_MS, PUBLISHER, Forge, Key
from tests.unit.sidecar.pod import Pod, default_of, put_safe, run, with_keys

BEATS, OTHER_BEATS = Key(PUBLISHER, BEAT_LABEL), Key(PUBLISHER, "second heartbeat")


def beating(tmp_path, **options):
    pod = Pod(tmp_path, Forge(root_options={"beats": True, "emergency": (GRACE,)}), **options)
    pod.write(pod.forge.genesis(), put_safe(pod.forge))
    return pod


@pytest.fixture
def pod(tmp_path):
    return beating(tmp_path)


def fresh(pod):
    return pod.board.state is VerifierState.FRESH and pod.board.stale_s(pod.now_s) is None


def counted(pod, outcome, count=1):
    return lambda: pod.status.beats[outcome] >= count


def test_logs_word_proves_nothing_where_the_root_has_keys_for_heartbeats(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            assert board.state is VerifierState.STALE
            assert board.stale_s(pod.now_s) is not None
            assert board.why_stale == "no heartbeat yet"
            pod.beat()
            await pod.until(lambda: fresh(pod))
            assert board.why_stale == ""

    run(scenario)


def test_start_is_not_reported_as_stale_answers_unless_no_heartbeat_comes_for_long(pod):
    async def scenario():
        with capture_logs() as lines:
            async with pod.running() as board:
                await pod.until(lambda: board.state is VerifierState.STALE)
                assert [line for line in lines if line["event"] == "answers.stale"] == []
                pod.elapse(31)
                await pod.until(lambda: any(line["event"] == "answers.stale" for line in lines))
                pod.beat()
                await pod.until(lambda: fresh(pod))
        said = [line["event"] for line in lines if line["event"].startswith("answers.")]
        assert said == ["answers.stale", "answers.fresh"]

    run(scenario)


def test_state_is_stale_once_the_last_heartbeat_has_run_out_and_the_age_counts_from_its_issue(pod):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.now_s += 29
            assert board.stale_s(pod.now_s) is None
            pod.now_s += 2
            assert board.stale_s(pod.now_s) == 31
            await pod.until(lambda: board.state is VerifierState.STALE)
            assert board.why_stale == "no heartbeat since 2026-05-28T20:26:40Z"
            assert board.view.seq == Seq(2)
            pod.beat()
            await pod.until(lambda: fresh(pod))

    run(scenario)


def test_old_heartbeats_prove_nothing_when_they_are_shown_again(pod):
    async def scenario():
        old = pod.forge.beat()
        pod.beat(old)
        async with pod.running():
            await pod.until(lambda: fresh(pod))
            pod.now_s += 10
            pod.beat()
            await pod.until(counted(pod, "counted", 2))
            pod.now_s += 21
            pod.beat(old)
            pod.beat(old)
            await pod.until(counted(pod, "refuted"))
            pod.now_s += 10
            await pod.until(lambda: pod.board.state is VerifierState.STALE)

    run(scenario)


@pytest.mark.parametrize("forged", ["stranger", "publisher", "other ledger", "junk", "too long a life", "expired"])
def test_what_is_no_heartbeat_of_this_ledger_proves_nothing(pod, forged):
    forge = pod.forge

    def record():
        match forged:
            case "stranger":
                return forge.beat(by=Key(ADA, BEAT_LABEL))
            case "publisher":
                return forge.beat(by=Key(PUBLISHER))
            case "other ledger":
                return forge.beat(log_id="staging")
            case "junk":
                return b"junk"
            case "too long a life":
                return forge.beat(expires_at=forge.now_ms + 60_001)
            case "expired":
                return forge.beat(issued_at=forge.now_ms - 60_000, expires_at=forge.now_ms - 30_000)

    async def scenario():
        pod.beat(record())
        async with pod.running() as board:
            await pod.until(counted(pod, "refuted"))
            assert board.state is VerifierState.STALE
            assert pod.status.beats == {"refuted": 1}
            pod.beat()
            await pod.until(lambda: fresh(pod))

    run(scenario)


def test_flood_of_forged_heartbeats_is_counted_and_not_logged_one_by_one(pod):
    async def scenario():
        pod.beat()
        async with pod.running():
            await pod.until(lambda: fresh(pod))
            with capture_logs() as lines:
                for n in range(500):
                    pod.logs.put(Stream.META, b"junk %d" % n, key=b"%d" % n)
                await pod.until(counted(pod, "refuted", 500))
            assert len([line for line in lines if line["event"] == "heartbeat.refused"]) == 5
            assert fresh(pod)

    run(scenario)


def test_heartbeat_that_knows_of_more_makes_the_state_lag_until_the_entries_come(pod):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            withheld = [put_safe(pod.forge, v) for v in ("on", "off", "on")]
            pod.now_s += 5
            pod.beat()
            await pod.until(lambda: board.state is VerifierState.LAGGING)
            assert board.why_stale == "3 entries behind"
            assert pod.status.lag_entries == 3
            assert board.stale_s(pod.now_s) is None  # the first heartbeat's word still counts
            pod.now_s += 26
            assert board.stale_s(pod.now_s) == 31
            pod.write(*withheld)
            await pod.until(lambda: board.view.seq == Seq(5))
            pod.beat()
            await pod.until(lambda: fresh(pod))
            assert pod.status.lag_entries == 0

    run(scenario)


def test_proof_becomes_the_states_own_when_the_entries_that_it_knew_of_come_in_time(pod):
    async def scenario():
        late = put_safe(pod.forge, "on")
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: board.state is VerifierState.LAGGING)
            assert board.stale_s(pod.now_s) is not None
            pod.write(late)
            await pod.until(lambda: fresh(pod))

    run(scenario)


def test_clock_that_is_behind_the_heartbeats_is_not_believed_and_said(pod):
    async def scenario():
        ahead = pod.forge.now_ms + 12_400
        pod.beat(pod.forge.beat(issued_at=ahead, expires_at=ahead + 30_000))
        async with pod.running() as board:
            await pod.until(counted(pod, "counted"))
            assert board.state is VerifierState.STALE
            assert board.stale_s(pod.now_s) is not None
            assert board.why_stale == "clock 12 s behind"
            assert pod.status.clock_behind_s == pytest.approx(12.4)
            assert pod.status.clock_offset_s == pytest.approx(12.4)

    run(scenario)


@pytest.mark.parametrize("back_s", [20, 3600])
def test_clock_set_back_extends_no_freshness_and_is_said_once(pod, back_s):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            with capture_logs() as lines:
                pod.now_s -= back_s
                await pod.until(lambda: pod.status.clock_set_back_s > 0)
                pod.elapse(31)
                await pod.until(lambda: board.state is VerifierState.STALE)
                assert board.stale_s(pod.now_s) == 31
            assert [line["by_s"] for line in lines if line["event"] == "clock.set_back"] == [back_s]
            assert pod.status.clock_set_back_s == back_s

    run(scenario)


def test_heartbeats_from_before_the_clock_was_set_back_prove_nothing(pod):
    async def scenario():
        old = pod.forge.beat()
        pod.now_s += 100
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.now_s -= 100
            pod.beat(old)
            await pod.until(counted(pod, "refuted"))
            assert board.state is VerifierState.STALE

    run(scenario)


def test_start_with_a_clock_behind_the_kept_heartbeat_is_stale_whatever_is_shown_to_it(pod):
    async def scenario():
        old = pod.forge.beat()
        pod.now_s += 600
        pod.beat()
        async with pod.running():
            await pod.until(lambda: fresh(pod))
        assert pod.path.with_suffix(BEAT).exists()
        pod.now_s -= 600
        pod.beat(old)
        async with pod.running() as board:
            await pod.until(counted(pod, "counted"))
            assert board.state is VerifierState.STALE
            assert board.why_stale == "clock 600 s behind"
            assert default_of(board) == "off"

    run(scenario)


@pytest.mark.parametrize("damage", [b"", b"junk"])
def test_kept_heartbeat_that_is_damaged_is_passed_over(pod, damage):
    async def scenario():
        pod.beat()
        async with pod.running():
            await pod.until(lambda: fresh(pod))
        pod.path.with_suffix(BEAT).write_bytes(damage)
        async with pod.running():
            await pod.until(lambda: fresh(pod))

    run(scenario)


def test_expired_root_makes_answers_stale_until_the_next_root(tmp_path):
    pod = beating(tmp_path)
    pod.forge.rotate(Key(ADA), expires_at=NOW_MS + 3600_000)
    pod.write(pod.forge.records[-1])

    async def scenario():
        pod.beat()
        async with pod.running() as board:
            with capture_logs() as lines:
                await pod.until(lambda: fresh(pod))
            assert [line["version"] for line in lines if line["event"] == "root.expires_soon"] == [2]
            pod.now_s += 3601
            pod.beat()
            await pod.until(lambda: board.state is VerifierState.ROOT_EXPIRED)
            assert board.stale_s(pod.now_s) is not None
            assert board.why_stale == "root expired"
            assert default_of(board) == "off"
            pod.write(pod.forge.rotate(Key(ADA), expires_at=pod.forge.now_ms + 365 * DAY_MS))
            pod.beat()
            await pod.until(lambda: fresh(pod))
            assert pod.status.ledger.root.version == 3

    run(scenario)


def test_expired_root_counts_also_where_there_are_no_heartbeats(tmp_path):
    pod = Pod(tmp_path)
    pod.write(pod.forge.genesis(), pod.forge.put("new-checkout"))

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.now_s += 366 * 24 * 3600
            await pod.until(lambda: board.state is VerifierState.ROOT_EXPIRED)
            assert board.stale_s(pod.now_s) is not None

    run(scenario)


def test_next_heartbeat_key_counts_with_its_root_and_the_one_before_no_more(pod):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            rotated = pod.forge.rotate(Key(ADA), **with_keys(pod.forge.root, Role.HEARTBEAT, OTHER_BEATS))
            pod.now_s += 1
            pod.beat(by=OTHER_BEATS)  # before the root that says whose it is
            await pod.until(counted(pod, "refuted"))
            with capture_logs() as lines:
                pod.write(rotated)
                await pod.until(lambda: board.view.seq == Seq(3))
                await pod.until(lambda: fresh(pod))
            changed = [line for line in lines if line["event"] == "root.changed"]
            assert [(line["version"], line["sha256"]) for line in changed] == [(2, pod.forge.root.sha256.hex())]
            pod.now_s += 31
            pod.beat(by=BEATS)
            await pod.until(counted(pod, "refuted", 2))
            assert board.state is VerifierState.STALE

    run(scenario)


def test_root_that_brings_heartbeats_has_them_followed_and_one_that_drops_them_has_the_logs_word_count(tmp_path):
    pod = Pod(tmp_path)
    pod.write(pod.forge.genesis(), pod.forge.put("new-checkout"))

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.write(pod.forge.rotate(Key(ADA), **with_keys(pod.forge.root, Role.HEARTBEAT, BEATS)))
            await pod.until(lambda: board.state is VerifierState.STALE)
            pod.beat()
            await pod.until(lambda: fresh(pod))
            pod.now_s += 31
            await pod.until(lambda: board.state is VerifierState.STALE)
            roles = {**pod.forge.root.record.roles}
            del roles[Role.HEARTBEAT]
            pod.write(pod.forge.rotate(Key(ADA), roles=roles))
            await pod.until(lambda: fresh(pod))

    run(scenario)


def test_new_clients_are_made_when_heartbeats_stop_on_a_log_that_is_well_and_not_again_and_again(pod):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.elapse(29)
            assert pod.renewed == 0
            pod.elapse(2)
            with capture_logs() as lines:
                await pod.until(lambda: pod.renewed == 1)
                await pod.until(lambda: pod.status.tally["repeated"] == 1)  # only the head is read again
            assert [line["event"] for line in lines if line["log_level"] == "error"] == []
            looks = pod.looks_at_beats
            pod.elapse(29)  # the first wait between two is 30 s at least, and 60 at most
            await pod.until(lambda: pod.looks_at_beats > looks + 2)
            assert pod.renewed == 1
            pod.elapse(32)
            await pod.until(lambda: pod.renewed == 2)
            pod.write(put_safe(pod.forge, "on"))
            pod.beat()
            await pod.until(lambda: fresh(pod) and board.view.seq == Seq(3))
            assert pod.status.clients_renewed == 2

    run(scenario)


def test_new_clients_must_still_show_what_was_verified(pod, monkeypatch):
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.01)

    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until(lambda: fresh(pod))
            pod.logs.truncate(Stream.LEDGER, 0)
            pod.write(b"another", b"log")
            pod.follower.renew_client()
            await pod.until(lambda: board.state is VerifierState.RESYNC)
            assert board.stale_s(pod.now_s) is not None
            assert default_of(board) == "off"

    run(scenario)


# --- cold starts, and floors ---


def test_cold_start_serves_nothing_until_it_is_proved_fresh_where_that_is_asked_for(tmp_path):
    pod = beating(tmp_path, require_fresh=True)

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.withheld != "")
            assert board.view is None
            assert board.state is VerifierState.LOADING
            assert "cold start" in board.withheld
            pod.beat()
            await pod.until(lambda: fresh(pod))
            assert board.withheld == ""
            pod.now_s += 31
            await pod.until(lambda: board.state is VerifierState.STALE)
            assert default_of(board) == "off"  # once served, always served
        pod.logs.lose()
        async with pod.running() as board:
            assert default_of(board) == "off"  # what was kept is no cold start

    run(scenario)


def test_cold_start_that_asks_for_freshness_without_keys_for_it_is_misconfigured(tmp_path):
    pod = Pod(tmp_path, require_fresh=True)
    pod.write(pod.forge.genesis(), pod.forge.put("new-checkout"))

    async def scenario():
        async with pod.running():
            with pytest.raises(Misconfigured, match="keys for heartbeats"):
                await pod.task

    run(scenario)


@pytest.mark.parametrize("with_hash", [False, True])
def test_nothing_below_the_floor_is_served_from_the_ledger_or_the_disk(pod, with_hash):
    async def scenario():
        pod.beat()
        async with pod.running() as board:
            await pod.until_kept()
        third = put_safe(pod.forge, "on")
        head = pod.forge.ledger.head
        pod.floors = Floors(Floor(head.seq, head.entry_hash if with_hash else None))
        async with pod.running() as board:
            await pod.until(lambda: pod.status.tally["repeated"] == 1)
            assert board.view is None
            assert "want the ledger at seq 3 at least, it is at 2" in board.withheld
            pod.write(third)
            await pod.until(lambda: board.view is not None)
            assert default_of(board) == "on"
            assert board.withheld == ""

    run(scenario)


def test_another_entry_at_the_floor_is_refused_kept_as_evidence_and_no_end(pod, monkeypatch):
    """The history that the floor names may stand further on in the log; only that one is ever served."""
    monkeypatch.setattr("sidecar.follow.RESYNC_S", 0.01)
    other = Forge(root_options={"beats": True, "emergency": (GRACE,)})
    other.genesis()
    put_safe(other)
    theirs = put_safe(other, "on")
    ours = pod.forge.put("second")
    head = pod.forge.ledger.head
    pod.floors = Floors(Floor(head.seq, head.entry_hash))

    async def scenario():
        pod.write(theirs)
        async with pod.running() as board:
            with capture_logs() as lines:
                await pod.until(lambda: board.state is VerifierState.QUARANTINED)
            await pod.until(lambda: "another ledger than the floor names" in board.withheld)
            assert board.view is None
            assert [line["what"] for line in lines if line["event"] == "ledger.forked"] == ["floor"]
            assert pod.path.with_suffix(".fork-evidence").read_bytes() == theirs
            pod.write(ours)
            # The publisher has signed both: that is a second history, whichever the floor names.
            await pod.until(lambda: board.view is not None)
            assert set(board.view.flags) == {"new-checkout", "second"}
            assert default_of(board) == "off"

    run(scenario)


def test_floor_of_the_roots_version_holds_until_that_root_is_in_force(pod):
    pod.floors = Floors(root_version=2)

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: "want a root of version 2" in board.withheld)
            pod.write(pod.forge.rotate(Key(ADA)))
            await pod.until(lambda: board.view is not None)

    run(scenario)


def test_pinned_later_root_is_a_floor_also_for_what_was_kept(pod):
    async def scenario():
        pod.beat()
        async with pod.running():
            await pod.until_kept()
        rotated = pod.forge.rotate(Key(ADA))
        pod.pinned = {2: pod.forge.root.sha256}
        async with pod.running() as board:
            await pod.until(lambda: "below the pinned root: want version 2" in board.withheld)
            assert board.view is None
            pod.write(rotated)
            await pod.until(lambda: board.view is not None)

    run(scenario)


def test_clock_before_the_time_that_the_configuration_knows_serves_nothing(pod):
    pod.floors = Floors(not_before_ms=NOW_MS + 60_000)

    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: "clock: want" in board.withheld)
            assert board.view is None
            pod.now_s += 60
            await pod.until(lambda: board.view is not None)

    run(scenario)


# --- emergencies ---


def test_emergency_is_said_when_applied_once_a_window_when_overdue_and_when_ratified(pod):
    async def scenario():
        async with pod.running() as board:
            await pod.until(lambda: board.view is not None)
            pod.forge.now_ms = int(pod.now_s * 1000)
            with capture_logs() as lines:
                killed = pod.forge.kill("new-checkout")
                pod.write(killed)
                await pod.until(lambda: board.view.seq == Seq(3))
                assert board.min_pin == Seq(3)
                pod.now_s += 24 * 3600 + 1
                pod.beat()
                await pod.until(lambda: any(line["event"] == "emergency.overdue" for line in lines))
                for _ in range(3):
                    pod.now_s += 600
                    pod.beat()
                    await pod.until(lambda: fresh(pod))
            said = [line for line in lines if line["event"].startswith("emergency.")]
            assert [line["event"] for line in said] == ["emergency.applied", "emergency.overdue"]
            assert said[0]["flags"] == ["new-checkout"]
            assert said[1]["since_s"] == 1
            with capture_logs() as lines:
                pod.now_s += 1801
                pod.beat()
                await pod.until(lambda: any(line["event"] == "emergency.overdue" for line in lines))
                pod.write(pod.forge.ratify(killed))
                await pod.until(lambda: board.view.seq == Seq(4))
                pod.now_s += 3601
                pod.beat()
                await pod.until(lambda: fresh(pod))
            said = [line["event"] for line in lines if line["event"].startswith("emergency.")]
            assert said == ["emergency.overdue", "emergency.ratified"]

    run(scenario)
