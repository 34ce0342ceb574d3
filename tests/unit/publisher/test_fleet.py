"""What a fleet says of itself, folded: who is counted, who has what, who disagrees; and that nobody can fill it up."""

import random
from dataclasses import replace
from typing import Any

import pytest

from flaghoist.acknowledgement import ACK_INTERVAL_S, LEFT, encode_acknowledgement
from flaghoist.codec import ACKNOWLEDGEMENT, TITLE_CHARS_MAX, encode_envelope
from flaghoist.records import Acknowledgement, Envelope
from flaghoist.state_root import state_root
from flaghoist.values import LogId, Seq
from publisher import fleet as subject
from publisher.fleet import LATE_MS_MAX, LIVE_MS, SKEW_MS_MAX, Fleet, Parting, Reached, Trouble
from tests.forge import NOW_MS, Forge, boolean_flag

LOG = LogId("staging")
ROOT_A, ROOT_B, ROOT_C = (bytes([number]) * 32 for number in (1, 2, 3))


def ack(instance: str, seq: int = 5, **changes: Any) -> Acknowledgement:
    return replace(
        Acknowledgement(
            log_id=LOG,
            instance=instance,
            service="checkout",
            version="0.1.0",
            started_at=NOW_MS - 60_000,
            written_at=NOW_MS,
            state="FRESH",
            seq=Seq(seq),
            entry_hash=ROOT_A,
            state_root=ROOT_A,
            applied_at=NOW_MS,
            in_force=Seq(seq),
            activated_at=NOW_MS,
            late_ms=None,
            clock_offset_ms=0,
        ),
        **changes,
    )


def fleet_of(*acks: Acknowledgement, now_ms: int = NOW_MS, kept: bool = False) -> Fleet:
    fleet = Fleet(LOG)
    for each in acks:
        assert fleet.take(encode_acknowledgement(each), now_ms=now_ms, kept=kept) is not None
    return fleet


# --- the fold ---


def test_the_last_word_of_an_instance_counts_whatever_its_clock_says() -> None:
    fleet = fleet_of(ack("a", 7, written_at=NOW_MS), ack("a", 3, written_at=NOW_MS - 1000))
    assert [(m.name, m.ack.seq) for m in fleet.members] == [("a", Seq(3))]


def test_members_are_listed_by_service_and_name() -> None:
    fleet = fleet_of(ack("b", service="pay"), ack("z", service=""), ack("a", service="pay"))
    assert [m.name for m in fleet.members] == ["z", "a", "b"]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        encode_acknowledgement(ack("a"))[:-1],
        encode_acknowledgement(ack("a")) + b"\0",
        encode_acknowledgement(ack("a", log_id=LogId("production"))),
        encode_acknowledgement(ack("")),
        encode_acknowledgement(ack("ä" * 129)),
        encode_envelope(Envelope("application/x", ACKNOWLEDGEMENT.schema_sha256, b"x", ())),
    ],
    ids=["empty", "junk", "cut", "trailing", "another log", "no name", "name over a key's bytes", "another type"],
)
def test_what_is_no_acknowledgement_of_this_environment_is_counted_and_changes_nothing(junk: bytes) -> None:
    fleet = fleet_of(ack("a"))
    assert fleet.take(junk, now_ms=NOW_MS) is None
    assert (fleet.dropped, [m.name for m in fleet.members]) == (1, ["a"])


def test_a_text_over_the_limit_is_refused() -> None:
    fleet = Fleet(LOG)
    record = encode_acknowledgement(ack("a", service="s" * (TITLE_CHARS_MAX + 1)))
    assert fleet.take(record, now_ms=NOW_MS) is None


def test_a_flood_of_names_pushes_out_the_longest_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "INSTANCES_MAX", 3)
    fleet = fleet_of(ack("first"), ack("second"), ack("third"), ack("first"), ack("fourth"))
    assert {m.name for m in fleet.members} == {"first", "third", "fourth"}
    assert fleet.forgotten == 1


# --- who is live ---


def test_three_acknowledgements_in_a_row_may_be_lost() -> None:
    fleet = fleet_of(ack("a"))
    assert fleet.live(NOW_MS + 3 * int(ACK_INTERVAL_S * 1000)) == {"a"}
    assert fleet.live(NOW_MS + LIVE_MS) == {"a"}
    assert fleet.live(NOW_MS + LIVE_MS + 1) == frozenset()


def test_arrival_counts_and_not_the_writers_clock() -> None:
    assert fleet_of(ack("a", written_at=NOW_MS - 3_600_000)).live(NOW_MS) == {"a"}


@pytest.mark.parametrize(
    ("written_ms", "offset_ms", "live"),
    [
        (-LIVE_MS, 0, True),
        (-LIVE_MS - 1, 0, False),
        (-3_600_000, 3_600_000, True),
        (3_600_000, -3_600_000 - LIVE_MS - 1, False),
        (-LIVE_MS, None, True),
    ],
    ids=["within", "over", "clock an hour behind", "clock an hour ahead", "offset not known"],
)
def test_of_what_lay_in_the_stream_its_corrected_clock_says_when(
    written_ms: int, offset_ms: int | None, live: bool
) -> None:
    fleet = fleet_of(ack("a", written_at=NOW_MS + written_ms, clock_offset_ms=offset_ms), kept=True)
    assert bool(fleet.live(NOW_MS)) is live


def test_no_clock_makes_what_lay_in_the_stream_newer_than_now() -> None:
    fleet = fleet_of(ack("a", written_at=NOW_MS + 3_600_000), kept=True)
    assert fleet.members[0].seen_ms == NOW_MS


def test_who_has_left_is_not_live_and_not_waited_for() -> None:
    fleet = fleet_of(ack("a"), ack("b"))
    before = fleet.live(NOW_MS)
    fleet.take(encode_acknowledgement(ack("b", 1, state=LEFT)), now_ms=NOW_MS)
    assert fleet.live(NOW_MS) == {"a"}
    assert fleet.reached(Seq(5), now_ms=NOW_MS, among=before) == Reached(1, 1, ())
    assert fleet.members[1].troubles(Seq(9), NOW_MS) == ()


# --- who has what ---


def test_verified_and_in_force_are_counted_apart() -> None:
    fleet = fleet_of(ack("a", 7, in_force=Seq(6)), ack("b", 7), ack("c", 6))
    assert fleet.reached(Seq(7), now_ms=NOW_MS) == Reached(2, 3, ("c",))
    assert fleet.in_force(Seq(7), now_ms=NOW_MS) == Reached(1, 3, ("a", "c"))


@pytest.mark.parametrize("state", ["QUARANTINED", "UNSUPPORTED", "LOADING"])
def test_who_does_not_serve_what_it_verifies_has_not_acknowledged_it(state: str) -> None:
    fleet = fleet_of(ack("a", 7), ack("b", 7, state=state, in_force=Seq(3)))
    assert fleet.reached(Seq(7), now_ms=NOW_MS).waiting_for == ("b",)


def test_who_was_counted_and_is_silent_now_is_still_waited_for() -> None:
    fleet = fleet_of(ack("a"), ack("b"))
    among = fleet.live(NOW_MS)
    later_ms = NOW_MS + LIVE_MS + 1
    fleet.take(encode_acknowledgement(ack("a", 6)), now_ms=later_ms)
    fleet.take(encode_acknowledgement(ack("new", 6)), now_ms=later_ms)
    assert fleet.reached(Seq(6), now_ms=later_ms, among=among) == Reached(1, 2, ("b",))
    assert fleet.reached(Seq(6), now_ms=later_ms) == Reached(2, 2, ())


def test_who_follows_another_history_has_not_acknowledged_ours() -> None:
    forge = Forge()
    forge.genesis()
    forge.put("a", boolean_flag())
    ours = forge.ledger.hash_at(Seq(2))
    fleet = fleet_of(ack("same", 2, entry_hash=ours), ack("other", 2, entry_hash=ROOT_B))
    assert fleet.reached(Seq(2), now_ms=NOW_MS).done == 2
    fleet.ledger = forge.ledger
    assert fleet.reached(Seq(2), now_ms=NOW_MS).waiting_for == ("other",)
    assert fleet.in_force(Seq(2), now_ms=NOW_MS).waiting_for == ("other",)


@pytest.mark.parametrize(
    ("done", "live", "percent", "enough"),
    [
        (19, 20, 95, True),
        (18, 20, 95, False),
        (94, 99, 95, False),
        (20, 20, 100, True),
        (1999, 2000, 100, False),
        (0, 0, 0, True),
        (0, 0, 1, False),
        (0, 5, 0, True),
    ],
)
def test_a_share_is_reached_exactly(done: int, live: int, percent: int, enough: bool) -> None:
    assert Reached(done, live, ()).enough(percent) is enough


# --- who disagrees ---


def test_the_same_state_at_the_same_seq_is_no_divergence() -> None:
    assert fleet_of(ack("a", 5), ack("b", 5), ack("c", 4, state_root=ROOT_B)).divergence(NOW_MS) == []


def test_two_states_at_one_seq_are_told_and_without_an_own_ledger_both_are_suspect() -> None:
    found = fleet_of(ack("a", 5), ack("b", 5), ack("c", 5, state_root=ROOT_B)).divergence(NOW_MS)
    assert [(each.seq, each.what, each.ours) for each in found] == [(Seq(5), Parting.STATE, None)]
    assert found[0].said == ((ROOT_A, ("a", "b")), (ROOT_B, ("c",)))
    assert found[0].instances == ("a", "b", "c")


def test_two_histories_at_one_seq_are_told_once_and_not_again_as_two_states() -> None:
    found = fleet_of(ack("a", 5), ack("b", 5), ack("c", 5, entry_hash=ROOT_B, state_root=ROOT_C)).divergence(NOW_MS)
    assert [each.what for each in found] == [Parting.HISTORY]


def test_silent_instances_and_those_that_left_disagree_with_nobody() -> None:
    fleet = fleet_of(ack("silent", 5, state_root=ROOT_B))
    later_ms = NOW_MS + LIVE_MS + 1
    fleet.take(encode_acknowledgement(ack("a", 5)), now_ms=later_ms)
    fleet.take(encode_acknowledgement(ack("left", 5, state_root=ROOT_C, state=LEFT)), now_ms=later_ms)
    assert fleet.divergence(later_ms) == []


def test_a_whole_fleet_that_agrees_on_another_state_than_the_own_ledger_is_told() -> None:
    forge = Forge()
    forge.genesis()
    forge.put("a", boolean_flag())
    ours = forge.ledger.hash_at(Seq(2))
    fleet = fleet_of(*(ack(name, 2, entry_hash=ours, state_root=ROOT_B) for name in "ab"))
    fleet.ledger = forge.ledger
    assert fleet.divergence(NOW_MS) == [], "what was not noted is not known"
    fleet.note_own()
    found = fleet.divergence(NOW_MS)
    assert [(each.what, each.ours, each.instances) for each in found] == [
        (Parting.STATE, state_root(forge.ledger.snapshot), ("a", "b"))
    ]


def test_own_states_are_compared_at_the_seq_at_which_they_were_noted() -> None:
    forge = Forge()
    forge.genesis()
    fleet = fleet_of()
    fleet.ledger = forge.ledger
    acks = []
    for number in range(2, 6):
        forge.put(f"flag{number}", boolean_flag())
        fleet.note_own()
        acks.append(
            ack(f"at{number}", number, entry_hash=forge.ledger.head.entry_hash,
                state_root=state_root(forge.ledger.snapshot))
        )  # fmt: skip
    for each in acks:
        fleet.take(encode_acknowledgement(each), now_ms=NOW_MS)
    assert fleet.divergence(NOW_MS) == []
    fleet.take(encode_acknowledgement(replace(acks[1], state_root=acks[0].state_root)), now_ms=NOW_MS)
    assert [(each.seq, each.instances) for each in fleet.divergence(NOW_MS)] == [(Seq(3), ("at3",))]


def test_who_knows_more_than_the_own_ledger_is_told() -> None:
    forge = Forge()
    forge.genesis()
    fleet = fleet_of(ack("ahead", 9))
    fleet.ledger = forge.ledger
    assert [(each.what, each.instances) for each in fleet.divergence(NOW_MS)] == [(Parting.AHEAD, ("ahead",))]
    assert fleet.reached(Seq(9), now_ms=NOW_MS).done == 1, "an entry may be acknowledged before it is read here"


def test_own_states_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_OWN_ROOTS_MAX", 2)
    forge = Forge()
    forge.genesis()
    fleet = fleet_of()
    fleet.ledger = forge.ledger
    hashes = {}
    for number in range(2, 6):
        forge.put(f"flag{number}", boolean_flag())
        fleet.note_own()
        hashes[number] = forge.ledger.head.entry_hash
    for number, entry_hash in hashes.items():
        fleet.take(encode_acknowledgement(ack(f"at{number}", number, entry_hash=entry_hash)), now_ms=NOW_MS)
    assert [each.seq for each in fleet.divergence(NOW_MS)] == [Seq(4), Seq(5)]


# --- what is wrong with one ---


@pytest.mark.parametrize(
    ("changes", "troubles"),
    [
        ({}, ()),
        ({"seq": Seq(4)}, (Trouble.BEHIND,)),
        ({"state": "QUARANTINED"}, (Trouble.STILL,)),
        ({"state": "STALE"}, (Trouble.STALE,)),
        ({"clock_offset_ms": SKEW_MS_MAX}, ()),
        ({"clock_offset_ms": SKEW_MS_MAX + 1}, (Trouble.SKEWED,)),
        ({"clock_offset_ms": -SKEW_MS_MAX - 1}, (Trouble.SKEWED,)),
        ({"clock_offset_ms": None}, ()),
        ({"late_ms": LATE_MS_MAX}, ()),
        ({"late_ms": LATE_MS_MAX + 1}, (Trouble.LATE,)),
    ],
    ids=lambda value: str(value),
)
def test_troubles_are_named(changes: dict[str, Any], troubles: tuple[Trouble, ...]) -> None:
    (member,) = fleet_of(replace(ack("a"), **changes)).members
    assert member.troubles(Seq(5), NOW_MS) == troubles
    assert member.troubles(Seq(5), NOW_MS + LIVE_MS + 1) == (Trouble.SILENT,)


@pytest.mark.parametrize("seed", range(25))
def test_any_sequence_of_acknowledgements_counts_as_the_newest_of_each_do(seed: int) -> None:
    dice = random.Random(seed)
    fleet, newest, now_ms = Fleet(LOG), dict[str, tuple[int, int, int, bool]](), NOW_MS
    for _ in range(200):
        now_ms += dice.randrange(5_000)
        name, seq, left = f"pod-{dice.randrange(12)}", dice.randrange(1, 9), dice.random() < 0.1
        in_force = dice.randrange(1, seq + 1)
        state = LEFT if left else "FRESH"
        fleet.take(
            encode_acknowledgement(ack(name, seq, in_force=Seq(in_force), state=state)), now_ms=now_ms
        )  # fmt: skip
        fleet.take(dice.randbytes(dice.randrange(40)), now_ms=now_ms)
        newest[name] = (seq, in_force, now_ms, left)
        live = {n for n, (_, _, seen_ms, gone) in newest.items() if not gone and now_ms - seen_ms <= LIVE_MS}
        wanted = dice.randrange(1, 9)
        assert fleet.live(now_ms) == live
        assert fleet.reached(Seq(wanted), now_ms=now_ms) == counted(live, {n for n in live if newest[n][0] >= wanted})
        assert fleet.in_force(Seq(wanted), now_ms=now_ms) == counted(live, {n for n in live if newest[n][1] >= wanted})
    assert fleet.dropped == 200


def counted(live: set[str], done: set[str]) -> Reached:
    return Reached(len(done), len(live), tuple(sorted(live - done)))
