"""What is in force at a moment: order, moments, emergencies, and wrong clocks. All entries are really signed."""

import itertools
from dataclasses import replace

import pytest

from flaghoist.barrier import InForce
from flaghoist.definition import encode_flag
from flaghoist.evaluation import evaluate
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Link, Rejected
from flaghoist.records import EpochClaim, Op, Release, Step
from flaghoist.release_plan import LEAD_MS_MAX, SHARE_MAX, Stage, Walk
from flaghoist.state_root import state_root
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from tests.forge import (
    EMERGENCY_LABEL,
    GRACE,
    NOW_MS,
    Forge,
    Key,
    allowing_rule,
    boolean_flag,
    gated_flag,
    release_plan,
)

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS


class Reader:
    """One reader with its own clock, which takes the entries that a forge has appended."""

    def __init__(self, forge, *, clock_ms=0):
        self.forge = forge
        self.ledger = Ledger(forge.first_root)
        self.in_force = InForce(self.ledger.snapshot)
        self.clock_ms = clock_ms
        self.read = 0

    def take_all(self, now_ms=None):
        """Take what is there, at the forge's time or another."""
        for data in self.forge.records[self.read :]:
            link = self.ledger.receive(data)
            assert isinstance(link, Link)
            now = (self.forge.now_ms if now_ms is None else now_ms) + self.clock_ms
            self.in_force = self.in_force.take(link, self.ledger.snapshot, now_ms=now)
            self.read += 1
        return self

    def at(self, now_ms):
        self.in_force = self.in_force.at(now_ms + self.clock_ms)
        return self.in_force

    @property
    def seq(self):
        return self.in_force.snapshot.seq.number

    def variant(self, key, user="u1"):
        view = self.in_force.snapshot.view
        return evaluate(view, key, {"targetingKey": user}, now_s=0).variant if key in view.flags else None


@pytest.fixture
def forge():
    """Flags `lamp` (on, safe: off) and `horn`, and a closed release `spring` of two flags."""
    made = Forge(root_options={"emergency": (GRACE,)})
    made.genesis()
    put(
        made,
        flag(made, "lamp", "on", safe="off"),
        flag(made, "horn", "on"),
        made.op("cart.spring", gated_flag("spring")),
        made.op("mail.spring", gated_flag("spring")),
        made.release_op(
            "spring",
            release_plan(
                "cart.spring",
                "mail.spring",
                stages=(Stage("half", False, 50_000, 0), Stage("all", False, SHARE_MAX, 0)),
            ),
        ),
    )
    return made


@pytest.fixture
def reader(forge):
    return Reader(forge).take_all()


def flag(forge, key, default="on", *, safe=None):
    document = encode_flag(boolean_flag(default), {} if safe is None else {"safe_variant": safe})
    return forge._op(Target.FLAG, key, document, "", None)


def put(forge, *ops, **changes):
    """Append a change that must be applied."""
    proposal = forge.proposal(*ops, **changes)
    forge.append(Release(proposal, (forge.approval(proposal),), allowing_rule(forge.root)))
    assert forge.ledger.snapshot.seq == forge.ledger.head.seq
    assert all(forge.ledger.snapshot.version_of(op.state_id) == forge.ledger.head.seq for op in ops)


def kill(forge, *targets):
    """Append an emergency on flags (KEY) and releases (release.ID)."""
    ops = []
    for name in targets:
        target, key = (Target.RELEASE, name[8:]) if name.startswith("release.") else (Target.FLAG, name)
        op = Op(target, Source(""), FlagKey(key), Seq(0), Action.KILL, None)
        ops.append(replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id)))
    proposal = forge.proposal(
        *ops,
        by=GRACE,
        signed_by=Key(GRACE, EMERGENCY_LABEL),
        kind=ProposalKind.EMERGENCY,
        expires_at=forge.now_ms + 10 * MINUTE_MS,
    )
    forge.append(Release(proposal, (), "emergency"))
    assert all(forge.ledger.snapshot.version_of(op.state_id) == forge.ledger.head.seq for op in ops)
    assert forge.ledger.min_pin == forge.ledger.head.seq


# --- order ---


def test_entry_without_a_moment_is_in_force_at_once(forge, reader):
    put(forge, flag(forge, "lamp", "off", safe="off"))
    reader.take_all()
    assert (reader.seq, reader.variant("lamp")) == (3, "off")
    assert (reader.in_force.moment_ms, reader.in_force.coming, reader.in_force.next_at_ms) == (None, (), None)


def test_entry_with_a_moment_is_in_force_from_that_millisecond_on_and_not_before(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    reader.take_all()
    assert reader.in_force.next_at_ms == NOW_MS + 2000
    assert [each.snapshot.seq for each in reader.in_force.coming] == [Seq(3)]
    before = reader.in_force
    assert reader.at(NOW_MS + 1999) is before
    assert (reader.seq, reader.variant("cart.spring")) == (2, "off")
    reader.at(NOW_MS + 2000)
    assert (reader.seq, reader.variant("cart.spring"), reader.variant("mail.spring")) == (3, "on", "on")
    assert reader.in_force.moment_ms == NOW_MS + 2000
    assert reader.in_force.next_at_ms is None


def test_absolute_moment_and_a_steps_lead_are_moments_as_well(forge, reader):
    put(forge, forge.hoist("spring", walk=Walk.ON), activate_at=NOW_MS + 4000)
    plan = replace(forge.plan("spring"), lead_ms=3000)
    put(forge, forge.release_op("spring", plan))
    reader.take_all()
    assert [each.at_ms for each in reader.in_force.coming] == [NOW_MS + 4000, NOW_MS + 4000]
    forge.now_ms += 5000
    reader.at(forge.now_ms)
    forge.append(Step(FlagKey("spring"), forge.ledger.head.seq, 0))
    reader.take_all()
    assert [each.at_ms for each in reader.in_force.coming] == [forge.now_ms + 3000]
    assert reader.at(forge.now_ms + 3000).snapshot.releases[FlagKey("spring")].plan.gate.share == 50_000


def test_no_entry_overtakes_one_that_waits(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    put(forge, flag(forge, "lamp", "off", safe="off"))
    put(forge, flag(forge, "horn", "off"), lead_ms=3000)
    put(forge, flag(forge, "bell", "on"), lead_ms=20_000)
    reader.take_all()
    at = [each.at_ms - NOW_MS for each in reader.in_force.coming]
    assert at == [10_000, 10_000, 10_000, 20_000]
    reader.at(NOW_MS + 3000)
    assert (reader.seq, reader.variant("lamp"), reader.variant("horn")) == (2, "on", "on")
    reader.at(NOW_MS + 10_000)
    assert (reader.seq, reader.variant("lamp"), reader.variant("horn"), reader.variant("bell")) == (
        5,
        "off",
        "off",
        None,
    )
    reader.at(NOW_MS + 20_000)
    assert (reader.seq, reader.variant("bell")) == (6, "on")


def test_entry_that_changes_nothing_waits_its_turn_too(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    refused = forge.append(Release(forge.proposal(flag(forge, "lamp", "off")), (), allowing_rule(forge.root)))
    assert refused == forge.records[-1]
    forge.append(EpochClaim("publisher-2"))
    reader.take_all()
    assert (reader.seq, [each.snapshot.seq.number for each in reader.in_force.coming]) == (2, [3, 4, 5])
    assert reader.at(NOW_MS + 2000).snapshot.seq == Seq(5)
    assert reader.variant("lamp") == "on"


def test_entry_that_comes_when_its_moment_is_over_is_in_force_at_once_and_says_its_moment(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    reader.take_all(NOW_MS + 2000)
    assert (reader.seq, reader.in_force.moment_ms, reader.in_force.coming) == (3, NOW_MS + 2000, ())


def test_several_moments_that_are_over_lead_to_the_newest_of_them(forge, reader):
    for n in range(1, 6):
        put(forge, flag(forge, "lamp", "on" if n % 2 else "off", safe="off"), lead_ms=n * SECOND_MS)
    reader.take_all()
    reader.at(NOW_MS + 3500)
    assert (reader.seq, reader.in_force.moment_ms) == (5, NOW_MS + 3000)
    assert [each.snapshot.seq.number for each in reader.in_force.coming] == [6, 7]


@pytest.mark.parametrize("until_ms", [0, 4999, 6000, 9000, 12_000])
def test_how_often_one_looks_changes_nothing(forge, until_ms):
    for n, lead in enumerate((5000, 1000, 9000, 2000)):
        put(forge, flag(forge, f"f{n}"), lead_ms=lead)
        if n == 2:
            kill(forge, "lamp")
    often, once = Reader(forge).take_all(), Reader(forge).take_all()
    for now in range(0, until_ms + 1, 125):
        often.at(NOW_MS + now)
    often.at(NOW_MS + until_ms)
    once.at(NOW_MS + until_ms)
    assert often.seq == once.seq
    assert state_root(often.in_force.snapshot) == state_root(once.in_force.snapshot)


# --- emergencies ---


def test_kill_waits_for_nothing_and_leaves_what_waits_waiting(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    kill(forge, "lamp")
    reader.take_all()
    assert (reader.seq, reader.variant("lamp"), reader.variant("cart.spring")) == (2, "off", "off")
    assert reader.in_force.moment_ms is None
    reader.at(NOW_MS + 10_000)
    assert (reader.seq, reader.variant("lamp"), reader.variant("cart.spring")) == (4, "off", "on")
    assert state_root(reader.in_force.snapshot) == state_root(forge.ledger.snapshot)


def test_kill_of_a_release_closes_its_gate_in_what_is_served_and_it_does_not_open_when_the_moment_comes(forge):
    put(forge, forge.hoist("spring", share=50_000))
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    kill(forge, "release.spring")
    reader = Reader(forge).take_all()
    users = [f"u{n}" for n in range(50)]
    assert {reader.variant(key, user) for key in ("cart.spring", "mail.spring") for user in users} == {"off"}
    assert reader.seq == 3
    for now in (5000, 10_000, 60_000):
        reader.at(NOW_MS + now)
        assert {reader.variant(key, user) for key in ("cart.spring", "mail.spring") for user in users} == {"off"}
    assert reader.seq == 5


def test_kill_of_an_activation_that_waits_keeps_it_from_ever_being_served(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    reader.take_all()
    forge.now_ms += 9000
    kill(forge, "release.spring")
    reader.take_all()
    for now in range(9000, 12_000, 100):
        reader.at(NOW_MS + now)
        assert reader.variant("cart.spring") == "off"


def test_kill_behind_two_waiting_entries_is_in_force_in_each_state_on_the_way(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    put(forge, flag(forge, "lamp", "on", safe="off"), flag(forge, "bell", "on"), lead_ms=20_000)
    kill(forge, "lamp", "release.spring")
    reader.take_all()
    seen = []
    for now in (0, 9999, 10_000, 19_999, 20_000):
        reader.at(NOW_MS + now)
        seen.append((reader.seq, reader.variant("lamp"), reader.variant("cart.spring"), reader.variant("bell")))
    before, between, after = (2, "off", "off", None), (3, "off", "off", None), (5, "off", "off", "on")
    assert seen == [before, before, between, between, after]
    assert state_root(reader.in_force.snapshot) == state_root(forge.ledger.snapshot)


def test_kill_of_what_only_a_waiting_entry_has_brought_lets_it_never_be_seen_alive(forge, reader):
    put(forge, flag(forge, "siren", "on", safe="off"), lead_ms=10_000)
    put(forge, flag(forge, "bell", "on"), lead_ms=20_000)
    kill(forge, "siren")
    reader.take_all()
    assert (reader.seq, reader.variant("siren")) == (2, None)
    reader.at(NOW_MS + 10_000)
    assert (reader.seq, reader.variant("siren"), reader.variant("bell")) == (3, "off", None)
    reader.at(NOW_MS + 20_000)
    assert (reader.seq, reader.variant("siren"), reader.variant("bell")) == (5, "off", "on")


def test_kill_whose_safe_variant_comes_with_a_waiting_entry_takes_that_with_it(forge, reader):
    put(forge, flag(forge, "horn", "on", safe="off"), lead_ms=10_000)
    put(forge, flag(forge, "bell", "on"), lead_ms=20_000)
    kill(forge, "horn")
    reader.take_all()
    assert (reader.seq, reader.variant("horn"), reader.variant("bell")) == (5, "off", "on")
    assert (reader.in_force.coming, reader.in_force.next_at_ms) == ((), None)
    assert state_root(reader.in_force.snapshot) == state_root(forge.ledger.snapshot)


def test_kill_that_takes_what_waits_with_it_is_not_made_again_on_what_people_did_since(forge, reader):
    """Two kills wait behind a state in which one of them cannot be; then somebody turns the other's flag on again."""
    put(forge, flag(forge, "siren", "on"), lead_ms=10_000)
    put(forge, flag(forge, "siren", "on", safe="off"), lead_ms=20_000)
    kill(forge, "siren")
    kill(forge, "lamp")
    put(forge, flag(forge, "lamp", "on", safe="off"))
    reader.take_all()
    assert (reader.seq, reader.variant("siren"), reader.variant("lamp")) == (2, None, "off")
    reader.at(NOW_MS + 10_000)
    assert (reader.seq, reader.variant("siren"), reader.variant("lamp")) == (7, "off", "on")
    assert state_root(reader.in_force.snapshot) == state_root(forge.ledger.snapshot)


def test_flag_that_people_turned_on_again_behind_a_kill_stays_dead_until_that_entry_is_in_force(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    kill(forge, "lamp")
    put(forge, flag(forge, "lamp", "on", safe="off"), lead_ms=30_000)
    reader.take_all()
    seen = []
    for now in (0, 10_000, 29_999, 30_000):
        reader.at(NOW_MS + now)
        seen.append((reader.seq, reader.variant("lamp")))
    assert seen == [(2, "off"), (4, "off"), (4, "off"), (5, "on")]


def test_seq_says_the_last_entry_in_force_though_a_kill_behind_it_is_in_the_state(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    kill(forge, "lamp")
    reader.take_all()
    assert reader.in_force.snapshot.seq == reader.in_force.snapshot.view.seq == Seq(2)
    assert state_root(reader.in_force.snapshot) != state_root(Reader(forge).ledger.snapshot)


def test_state_with_a_kill_in_it_can_be_pinned_to_while_the_ledger_forbids_it_and_others_cannot(forge, reader):
    assert reader.in_force.pinnable_from(Seq(0)) == Seq(0)
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    kill(forge, "lamp")
    reader.take_all()
    assert reader.in_force.pinnable_from(reader.ledger.min_pin) == Seq(2)
    reader.at(NOW_MS + 10_000)
    assert reader.in_force.pinnable_from(reader.ledger.min_pin) == Seq(2)
    # Another emergency: what was in force with the first in it has not the second.
    forge.now_ms += 20_000
    kill(forge, "release.spring")
    reader.take_all()
    assert reader.in_force.pinnable_from(reader.ledger.min_pin) == Seq(5)


def test_state_before_a_kill_that_met_no_barrier_cannot_be_pinned_to(forge, reader):
    kill(forge, "lamp")
    reader.take_all()
    assert reader.in_force.pinnable_from(reader.ledger.min_pin) == Seq(3)


def test_what_is_in_force_by_an_emergency_has_no_moment_to_be_late_for(forge, reader):
    put(forge, forge.hoist("spring", share=50_000), lead_ms=1000)
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    reader.take_all()
    reader.at(NOW_MS + 1000)
    assert (reader.seq, reader.in_force.moment_ms) == (3, NOW_MS + 1000)
    kill(forge, "lamp")
    reader.take_all(NOW_MS + 2000)
    assert (reader.seq, reader.variant("lamp"), reader.in_force.moment_ms) == (3, "off", None)


def test_entry_that_comes_after_a_moment_at_which_nobody_looked_finds_it_in_force(forge, reader):
    put(forge, forge.hoist("spring", share=50_000), lead_ms=1000)
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=10_000)
    reader.take_all()
    kill(forge, "lamp")
    reader.take_all(NOW_MS + 2000)
    assert (reader.seq, [each.snapshot.seq.number for each in reader.in_force.coming]) == (3, [4, 5])


# --- clocks ---


def test_nothing_waits_for_longer_than_five_minutes_after_it_came_whatever_a_clock_says(forge, reader):
    forge.now_ms += 60 * MINUTE_MS  # the publisher's clock is an hour ahead
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    put(forge, flag(forge, "lamp", "off", safe="off"))
    reader.take_all(NOW_MS)
    assert [each.at_ms - NOW_MS for each in reader.in_force.coming] == [LEAD_MS_MAX, LEAD_MS_MAX]
    assert reader.at(NOW_MS + LEAD_MS_MAX - 1).snapshot.seq == Seq(2)
    assert reader.at(NOW_MS + LEAD_MS_MAX).snapshot.seq == Seq(4)


def test_chain_of_long_moments_does_not_add_up(forge, reader):
    for n in range(5):
        put(forge, flag(forge, f"f{n}"), lead_ms=LEAD_MS_MAX)
    reader.take_all()
    assert {each.at_ms for each in reader.in_force.coming} == {NOW_MS + LEAD_MS_MAX}


def test_clock_that_is_behind_switches_late_by_no_more_than_it_is_wrong(forge):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    late = Reader(forge, clock_ms=-700).take_all()
    assert late.at(NOW_MS + 2699).snapshot.seq == Seq(2)
    assert late.at(NOW_MS + 2700).snapshot.seq == Seq(3)


def test_clock_that_is_far_ahead_knows_no_wait(forge):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    assert Reader(forge, clock_ms=60 * MINUTE_MS).take_all().seq == 3


def test_order_holds_when_the_clock_is_set_back_while_entries_wait(forge, reader):
    put(forge, flag(forge, "f1"), lead_ms=LEAD_MS_MAX)
    reader.take_all()
    put(forge, flag(forge, "f2"), lead_ms=LEAD_MS_MAX)
    reader.take_all(NOW_MS - 60 * MINUTE_MS)
    at = [each.at_ms for each in reader.in_force.coming]
    assert at == sorted(at) == [NOW_MS - 55 * MINUTE_MS] * 2
    seen = []
    for now in range(-60, 10):
        reader.at(NOW_MS + now * MINUTE_MS)
        seen.append(reader.seq)
    assert seen == sorted(seen)
    assert (seen[4], seen[5]) == (2, 4)


def test_what_was_in_force_stays_so_when_the_clock_is_set_back(forge, reader):
    put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=2000)
    reader.take_all()
    reader.at(NOW_MS + 2000)
    assert reader.at(NOW_MS - MINUTE_MS).snapshot.seq == Seq(3)


# --- late joiners and restarts ---


def story(forge):
    """Entries at different times, with and without moments, emergencies among them; return when each was appended."""
    appended = [NOW_MS, NOW_MS]
    acts = (
        lambda: put(forge, forge.hoist("spring", share=50_000), lead_ms=8000),
        lambda: put(forge, flag(forge, "lamp", "on", safe="off"), flag(forge, "siren", "on", safe="off")),
        lambda: kill(forge, "lamp"),
        lambda: put(forge, forge.hoist("spring", share=SHARE_MAX), lead_ms=30_000),
        lambda: forge.append(EpochClaim("publisher-2")),
        lambda: kill(forge, "siren", "release.spring"),
        lambda: put(forge, flag(forge, "bell"), lead_ms=1000),
        lambda: put(forge, flag(forge, "lamp", "on", safe="off"), lead_ms=25_000),
    )
    for act in acts:
        forge.now_ms += 2000
        act()
        appended.append(forge.now_ms)
    return appended


LOOKS = range(0, 80_000, 1000)


@pytest.mark.parametrize("joined_s", [0, 3, 5, 7, 9, 11, 13, 15, 17, 30, 60])
def test_reader_that_joins_late_or_starts_anew_serves_what_one_does_that_was_always_there(forge, joined_s):
    appended = story(forge)
    live, late = Reader(forge), None
    records, forge.records = forge.records, []
    compared = 0
    for now in (NOW_MS + look for look in LOOKS):
        while len(forge.records) < len(records) and appended[len(forge.records)] <= now:
            forge.records.append(records[len(forge.records)])
            live.take_all(now)
            if late is not None:
                late.take_all(now)
        live.at(now)
        if now >= NOW_MS + joined_s * SECOND_MS:
            late = late or Reader(forge).take_all(now)
            late.at(now)
            assert late.seq == live.seq, f"{now - NOW_MS} ms"
            assert state_root(late.in_force.snapshot) == state_root(live.in_force.snapshot), f"{now - NOW_MS} ms"
            assert late.in_force.next_at_ms == live.in_force.next_at_ms
            compared += 1
    assert compared == len(LOOKS) - joined_s
    assert live.seq == len(records)
    assert state_root(live.in_force.snapshot) == state_root(live.ledger.snapshot)


@pytest.mark.parametrize("clocks", list(itertools.product((-3000, 0, 4000), repeat=2)), ids=str)
def test_readers_with_wrong_clocks_end_equal_and_no_killed_flag_is_ever_alive(forge, clocks):
    appended = story(forge)
    readers = [Reader(forge, clock_ms=clock) for clock in clocks]
    records, forge.records = forge.records, []
    killed_at, revived_at = appended[4], appended[-1] + 25_000
    for now in (NOW_MS + look for look in LOOKS):
        while len(forge.records) < len(records) and appended[len(forge.records)] <= now:
            forge.records.append(records[len(forge.records)])
            for reader in readers:
                reader.take_all(now)
        for reader in readers:
            before = reader.seq
            reader.at(now)
            assert reader.seq >= before
            if killed_at <= now < revived_at - reader.clock_ms:
                assert reader.variant("lamp") == "off"
            if now >= appended[7]:
                assert reader.variant("siren") in (None, "off")
                assert reader.variant("cart.spring") == "off"
    roots = {(reader.seq, state_root(reader.in_force.snapshot)) for reader in readers}
    assert roots == {(len(records), state_root(readers[0].ledger.snapshot))}


def test_refused_entry_is_one_that_changes_nothing(forge, reader):
    data = forge.append(Release(forge.proposal(flag(forge, "lamp", "off")), (), allowing_rule(forge.root)))
    judged = Ledger(forge.first_root)
    outcomes = [judged.receive(each) for each in forge.records]
    assert (forge.records[-1], type(outcomes[-1])) == (data, Rejected)
    reader.take_all()
    assert (reader.seq, reader.variant("lamp")) == (3, "on")
