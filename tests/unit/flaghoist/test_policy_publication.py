"""What a publisher holds against a change besides people: requirements, names, dates, ramps, freezes, budgets."""

from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaghoist.definition import FlagDefinition, flag_from_flagd, governance_from
from flaghoist.policy import Change, PastChange, Policy, PolicyRefused, ramp
from flaghoist.policy.freeze import ZoneMissing, frozen_until
from flaghoist.policy.ramp import share_moved
from flaghoist.records import Op, Proposal
from flaghoist.values import Action, FlagKey, LogId, Person, ProposalKind, Seq, Source, Target

ADA = Person("ada@example.org")
DAY_MS = 86_400_000


def ms(text: str) -> int:
    """Unix ms of an ISO time, UTC when it names no offset."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


NOW = ms("2026-06-10 12:00")
GOVERNANCE = ("owner", "team", "category", "expires_at", "ticket", "safe_variant", "services")


def flag(**fields: Any) -> FlagDefinition:
    governance = {name: fields.pop(name) for name in GOVERNANCE if name in fields}
    raw = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off", **fields}
    return flag_from_flagd(raw, "flag", governance_from(governance))


def change(before: FlagDefinition | None, after: FlagDefinition | None, key: str = "a") -> Change:
    op = Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT if after else Action.DELETE, None)
    return Change(op, before, after)


def rule_change(before: Any, after: Any, key: str = "gate") -> Change:
    op = Op(Target.EVALUATOR, Source(""), FlagKey(key), Seq(0), Action.PUT if after else Action.DELETE, None)
    return Change(op, rule_before=before, rule_after=after)


def proposal(*changes: Change, **more: Any) -> Proposal:
    fields: dict[str, Any] = {
        "log_id": LogId("production"), "proposal_id": "p", "requester": ADA, "created_at": NOW, "expires_at": NOW,
        "kind": ProposalKind.CHANGE, "title": "a change", "reason": "", "ticket": None,
        "ops": tuple(change.op for change in changes), "activate_at": None, "min_pin": Seq(0),
    }  # fmt: skip
    return Proposal(**{**fields, **more})


def policy(fields: str) -> Policy:
    return Policy.parse(f"version: 1\nrules: [{{name: r, {fields}}}]")


def faults(fields: str, *changes: Change, at_ms: int = NOW, history: Any = (), **more: Any) -> list[str]:
    found = policy(fields).publication_faults(
        changes, proposal=proposal(*changes, **more), at_ms=at_ms, history=history
    )
    return [str(fault).removeprefix("rule 'r': ") for fault in found]


# --- require, naming, expires_within ---


def test_everything_that_is_required_and_missing_is_named_at_once():
    wanted = "require: [owner, team, category, expires_at, ticket, safe_variant, description, services, reason]"
    assert faults(wanted, change(None, flag(team="shop", description=" "))) == [
        "require: a: want owner, category, expires_at, ticket, safe_variant, description, services, reason, got none"
    ]


def test_what_is_required_may_be_there():
    full = flag(
        owner="ada@example.org", team="t", category="release", expires_at="2026-07-01", safe_variant="off",
        description="d", services=["web"],
    )  # fmt: skip
    wanted = "require: [owner, team, category, expires_at, ticket, safe_variant, description, services, reason]"
    assert faults(wanted, change(None, full), ticket="SHOP-1", reason="asked for") == []


@pytest.mark.parametrize("more", [{"ticket": "SHOP-1"}, {}], ids=["proposal", "flag"])
def test_a_ticket_may_stand_in_the_proposal_or_in_the_flag(more):
    after = flag() if more else flag(ticket="SHOP-1")
    assert faults("require: ticket", change(None, after), **more) == []


def test_of_a_deleted_flag_only_what_the_proposal_says_is_required():
    assert faults("require: [owner, ticket]", change(flag(), None)) == ["require: a: want ticket, got none"]


def test_names_are_checked_when_they_are_new():
    assert faults("naming: '[a-z-]+'", change(None, flag(), "Bad_1")) == [
        "naming: Bad_1: want a name that is all of [a-z-]+, got 'Bad_1'"
    ]
    assert faults("naming: '[a-z-]+'", change(flag(), flag(defaultVariant="on"), "Bad_1")) == []
    assert faults("naming: '[a-z-]+'", change(flag(), None, "Bad_1")) == []
    assert faults("naming: '[a-z-]+'", rule_change(None, {"==": [1, 1]}, "Gate")) == [
        "naming: evaluator Gate: want a name that is all of [a-z-]+, got 'Gate'"
    ]


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (None, "2026-09-08", None),
        (None, "2026-09-09", "want an expires_at of 2026-09-08 at the latest, got 2026-09-09"),
        (None, None, "want an expires_at of 2026-09-08 at the latest, got none"),
        (None, "2026-06-10", None),
        (None, "2026-06-09", "want an expires_at that is not over on 2026-06-10, got 2026-06-09"),
        ("2026-06-09", "2026-06-09", None),
    ],
    ids=["last day", "a day later", "none", "today", "over", "over, and was so"],
)
def test_expiry(before, after, fault):
    old = flag(expires_at=before) if before else None
    new = flag(expires_at=after) if after else flag()
    assert faults("expires_within: 90d", change(old, new)) == ([f"expires_within: a: {fault}"] if fault else [])


# --- ramps ---


def split(on: int, off: int, *key: Any) -> dict[str, Any]:
    return {"fractional": [*key, ["on", on], ["off", off]]}


USER = {"var": "user"}


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        (flag(), flag(), 0),
        (flag(targeting=split(10, 90)), flag(targeting=split(35, 65)), 25),
        (flag(targeting=split(1, 9)), flag(targeting=split(35, 65)), 25),
        (flag(targeting=split(35, 65)), flag(targeting=split(10, 90)), 25),
        (flag(safe_variant="off", targeting=split(95, 5)), flag(safe_variant="off", targeting=split(0, 1)), 0),
        (flag(safe_variant="on", targeting=split(95, 5)), flag(safe_variant="off", targeting=split(0, 1)), 95),
        (
            flag(variants={"on": 1, "off": 2}, safe_variant="off", targeting=split(95, 5)),
            flag(variants={"on": 1, "off": 3}, safe_variant="off", targeting=split(0, 1)),
            100,
        ),
        (flag(), flag(targeting=split(10, 90)), 10),
        (flag(targeting=split(100, 0)), flag(defaultVariant="on"), 100),
        (flag(targeting=split(100, 0, USER), defaultVariant="on"), flag(defaultVariant="on"), 0),
        (flag(), flag(defaultVariant="on"), 100),
        (flag(), flag(safe_variant="on", defaultVariant="on"), 100),
        (flag(), flag(state="DISABLED"), 100),
        (flag(state="DISABLED"), flag(state="DISABLED", defaultVariant="on"), 0),
        (flag(targeting=split(10, 90, USER)), flag(targeting=split(10, 90)), 100),
        (flag(targeting=split(10, 90, USER)), flag(targeting=split(20, 80, USER)), 10),
        (flag(targeting={"if": [USER, "on", split(10, 90)]}), flag(targeting={"if": [USER, "on", split(30, 70)]}), 20),
        (flag(targeting={"if": [USER, "on", split(1, 9)]}), flag(targeting={"if": [True, "on", split(1, 9)]}), 100),
        (flag(), flag(targeting={"if": [USER, "on"]}), 100),
        (flag(), flag(targeting={"if": [USER, "off", split(5, 95)]}), 5),
        (flag(targeting={"if": [USER, split(1, 9)]}), flag(targeting={"if": [USER, split(2, 8)]}), 10),
        (flag(targeting={"if": [USER, "on"]}), flag(targeting={"if": [USER, "on"]}, defaultVariant="on"), 100),
        (flag(targeting={"cat": ["o", "n"]}), flag(targeting={"cat": ["o", "n"]}), 0),
        (flag(targeting={"cat": ["o", "n"]}), flag(targeting={"cat": ["o", "ff"]}), 100),
        (flag(safe_variant="off", targeting={"cat": ["o", "n"]}), flag(safe_variant="off"), 0),
        (flag(variants={"a": 1, "b": 2}, defaultVariant="a"), flag(variants={"a": 1, "b": 3}, defaultVariant="a"), 0),
        (flag(variants={"a": 1, "b": 2}, defaultVariant="a"), flag(variants={"a": 9, "b": 2}, defaultVariant="a"), 100),
        (
            flag(variants={"on": 1, "off": 2}, targeting=split(10, 90)),
            flag(variants={"on": 3, "off": 2}, targeting=split(10, 90)),
            10,
        ),
        (flag(targeting=split(10, 90)), flag(targeting={"fractional": [["on", {"var": "n"}], ["off", 9]]}), 100),
        (flag(targeting={"fractional": [["on"], ["off"]]}), flag(targeting=split(3, 1)), 25),
        (
            flag(targeting={"fractional": [[None, 90], ["on", 10]]}),
            flag(targeting={"fractional": [[None, 80], ["on", 20]]}),
            10,
        ),
        (flag(targeting={"fractional": [["off", 50], ["on", 50]]}), flag(targeting=split(50, 50)), 100),
        (None, flag(targeting=split(10, 90)), 10),
        (None, flag(defaultVariant="on"), 0),
        (None, flag(defaultVariant="on", safe_variant="off"), 100),
        (None, flag(state="DISABLED", defaultVariant="on", safe_variant="off"), 0),
        (None, flag(targeting={"if": [USER, "on"]}), 100),
        (flag(defaultVariant="on"), None, 0),
    ],
)  # fmt: skip
def test_share_of_users_that_a_change_moves(before, after, percent):
    assert share_moved(change(before, after)) * 100 == percent


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        (split(10, 90, USER), split(30, 70, USER), 20),
        ({"if": [USER, True, split(0, 1)]}, {"if": [USER, True, split(1, 9)]}, 10),
        ({"if": [USER, True, False]}, {"if": [USER, True, split(1, 9)]}, 100),
        ({"==": [USER, "ada"]}, {"==": [USER, "grace"]}, 100),
        (None, split(10, 90), 0),
        (split(10, 90), None, 0),
    ],
)
def test_share_of_users_that_a_shared_rule_moves(before, after, percent):
    assert share_moved(rule_change(before, after)) * 100 == percent


def test_a_step_is_refused_that_moves_more_and_taken_that_moves_as_much():
    step = "ramp_step: 25%"
    assert faults(step, change(flag(targeting=split(0, 100)), flag(targeting=split(25, 75)))) == []
    assert faults(step, change(flag(targeting=split(0, 10_000)), flag(targeting=split(2501, 7499)))) == [
        "ramp_step: a: want at most 25 % of users moved by one change, got 25.01 %"
    ]
    told = faults(step, change(flag(targeting=split(0, 3_000_000)), flag(targeting=split(750_001, 2_249_999))))
    assert told == ["ramp_step: a: want at most 25 % of users moved by one change, got 25.01 %"]


def test_what_is_not_compared_any_more_counts_as_moved(monkeypatch):
    step = change(flag(targeting=split(10, 90)), flag(targeting=split(20, 80)))
    assert share_moved(step) == Fraction(1, 10)
    monkeypatch.setattr(ramp, "STEPS_MAX", 3)
    assert share_moved(step) == Fraction(9, 10)


def test_a_rule_nested_to_any_size_is_bounded():
    def nested(depth: int, on: int) -> Any:
        return "on" if depth == 0 else {"fractional": [[nested(depth - 1, on), on], [nested(depth - 1, on + 1), 7]]}

    assert share_moved(change(flag(targeting=nested(9, 1)), flag(targeting=nested(9, 2)))) <= 1


weights = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(weights, weights, st.randoms(use_true_random=False))
def test_share_is_what_counting_buckets_gives(before, after, random):
    names = ("v0", "v1", "v2")
    old = [(random.choice(names), weight) for weight in before]
    new = [(random.choice(names), weight) for weight in after]
    buckets = sum(before) * sum(after)

    def given_to(entries: list[tuple[str, int]], bucket: int) -> str:
        place = Fraction(bucket, buckets) * sum(weight for _, weight in entries)
        for name, weight in entries:
            if place < weight:
                return name
            place -= weight
        raise AssertionError(entries)

    moved = sum(given_to(old, bucket) != given_to(new, bucket) for bucket in range(buckets))
    fields: dict[str, Any] = {"variants": dict.fromkeys(names, True), "defaultVariant": "v0"}
    rules = [{"fractional": [list(entry) for entry in entries]} for entries in (old, new)]
    found = share_moved(change(flag(**fields, targeting=rules[0]), flag(**fields, targeting=rules[1])))
    assert found == Fraction(moved, buckets)


# --- freezes ---


def freeze_of(text: str) -> Callable[[str], bool]:
    (freeze,) = policy(f"freeze: {{{text}}}").rules[0].freeze

    def frozen(moment: str) -> bool:
        return frozen_until(freeze, ms(moment)) is not None

    return frozen


@pytest.mark.parametrize(
    ("moment", "frozen"),
    [
        ("2026-11-27 04:59:59", False),
        ("2026-11-27 05:00", True),
        ("2026-12-01 04:58:59", True),
        ("2026-12-01 04:59", False),
    ],
)
def test_a_freeze_is_on_from_its_first_minute_to_before_its_last(moment, frozen):
    black_friday = freeze_of("from: 2026-11-27 00:00, until: 2026-11-30 23:59, zone: America/New_York")
    assert black_friday(moment) is frozen


@pytest.mark.parametrize(
    ("moment", "frozen"),
    [
        ("2026-06-12 15:59+02:00", False),
        ("2026-06-12 16:00+02:00", True),
        ("2026-06-14 12:00+02:00", True),
        ("2026-06-15 07:59+02:00", True),
        ("2026-06-15 08:00+02:00", False),
        ("2026-01-16 15:59+01:00", False),
        ("2026-01-16 16:00+01:00", True),
    ],
)
def test_a_weekly_freeze_follows_the_local_clock_through_the_year(moment, frozen):
    assert freeze_of('weekly: "Fri 16:00 - Mon 08:00", zone: Europe/Berlin')(moment) is frozen


@pytest.mark.parametrize(
    ("text", "moment", "frozen"),
    [
        # 2026-10-25, Berlin: 03:00 CEST becomes 02:00 CET at 01:00Z; 02:30 comes at 00:30Z and at 01:30Z.
        ("from: 2026-10-25 02:30, until: 2026-10-25 12:00, zone: Europe/Berlin", "2026-10-25 00:29:59", False),
        ("from: 2026-10-25 02:30, until: 2026-10-25 12:00, zone: Europe/Berlin", "2026-10-25 00:30", True),
        ("from: 2026-10-25 02:30, until: 2026-10-25 12:00, zone: Europe/Berlin", "2026-10-25 01:10", True),
        ("from: 2026-10-25 00:00, until: 2026-10-25 02:30, zone: Europe/Berlin", "2026-10-25 00:45", True),
        ("from: 2026-10-25 00:00, until: 2026-10-25 02:30, zone: Europe/Berlin", "2026-10-25 01:29:59", True),
        ("from: 2026-10-25 00:00, until: 2026-10-25 02:30, zone: Europe/Berlin", "2026-10-25 01:30", False),
        ('weekly: "Sun 02:30 - Sun 02:45", zone: Europe/Berlin', "2026-10-25 01:00", True),
        ('weekly: "Sun 02:30 - Sun 02:45", zone: Europe/Berlin', "2026-10-25 01:45", False),
        # 2026-03-29, Berlin: 02:00 CET becomes 03:00 CEST at 01:00Z; 02:30 never comes.
        ("from: 2026-03-29 02:30, until: 2026-03-29 12:00, zone: Europe/Berlin", "2026-03-29 00:59:59", False),
        ("from: 2026-03-29 02:30, until: 2026-03-29 12:00, zone: Europe/Berlin", "2026-03-29 01:00", True),
        ("from: 2026-03-29 00:00, until: 2026-03-29 02:30, zone: Europe/Berlin", "2026-03-29 00:59:59", True),
        ("from: 2026-03-29 00:00, until: 2026-03-29 02:30, zone: Europe/Berlin", "2026-03-29 01:00", False),
        # Lord Howe Island moves by half an hour; Samoa left out 2011-12-30 altogether.
        ("from: 2026-10-04 02:15, until: 2026-10-05 00:00, zone: Australia/Lord_Howe", "2026-10-03 15:29:59", False),
        ("from: 2026-10-04 02:15, until: 2026-10-05 00:00, zone: Australia/Lord_Howe", "2026-10-03 15:30", True),
        ("from: 2011-12-30 12:00, until: 2011-12-31 12:00, zone: Pacific/Apia", "2011-12-30 09:59:59", False),
        ("from: 2011-12-30 12:00, until: 2011-12-31 12:00, zone: Pacific/Apia", "2011-12-30 10:00", True),
    ],
)
def test_a_freeze_is_never_shorter_than_it_reads_where_clocks_are_changed(text, moment, frozen):
    assert freeze_of(text)(moment) is frozen


def test_a_weekly_freeze_to_the_end_of_sunday_ends_as_the_week_does():
    weekend = freeze_of('weekly: "Sat 00:00 - Sun 24:00", zone: UTC')
    assert [weekend(f"2026-06-{day} {hour}") for day, hour in (("12", "23:59"), ("13", "00:00"), ("14", "23:59"))] == [
        False,
        True,
        True,
    ]
    assert not weekend("2026-06-15 00:00")


def test_a_freeze_says_until_when():
    weekends = 'freeze: {name: weekends, weekly: "Fri 16:00 - Mon 08:00", zone: Europe/Berlin}'
    told = faults(weekends, change(None, flag()), at_ms=ms("2026-06-13 12:00"))
    assert told == ["freeze: 'weekends' is on until 2026-06-15 06:00Z (Mon 2026-06-15 08:00 Europe/Berlin)"]


@pytest.mark.parametrize("zone", ["Mars/Olympus_Mons", "Europe", "Etc"])
def test_a_zone_that_this_machine_does_not_know_stops_a_publisher(zone):
    with pytest.raises(ZoneMissing, match=f"time zone '{zone}': no such zone"):
        faults(f"freeze: {{weekly: Fri 16:00 - Mon 08:00, zone: {zone}}}", change(None, flag()))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.integers(ms("2026-01-01") // 60_000, ms("2027-01-01") // 60_000), st.sampled_from(["Europe/Berlin", "UTC"]))
def test_where_clocks_stand_still_a_weekly_freeze_is_what_the_wall_clock_says(minute, zone):
    from zoneinfo import ZoneInfo

    place: tzinfo = ZoneInfo(zone)
    local = datetime.fromtimestamp(minute * 60, UTC).astimezone(place)
    wanted = (local.weekday(), local.hour) >= (4, 16) or (local.weekday(), local.hour) < (0, 8)
    frozen = freeze_of(f'weekly: "Fri 16:00 - Mon 08:00", zone: {zone}')
    assert frozen(datetime.fromtimestamp(minute * 60, UTC).isoformat()) is wanted


# --- budgets ---


def test_a_budget_counts_what_its_rule_allowed_within_its_span():
    hour = 3_600_000
    history = [
        PastChange(NOW - 24 * hour, frozenset({"r"})),
        PastChange(NOW - 23 * hour, frozenset({"r", "other"})),
        PastChange(NOW - 1 * hour, frozenset({"other"})),
    ]
    assert faults("budget: {changes: 2, per: 1d}", change(None, flag()), history=history) == []
    history.append(PastChange(NOW - 2 * hour, None))
    assert faults("budget: {changes: 2, per: 1d}", change(None, flag()), history=history) == [
        "budget: want at most 2 in 86400 s, got 2 published since then"
    ]
    with pytest.raises(PolicyRefused) as refused:
        policy("budget: {changes: 2, per: 1d}").allow_publication(
            [change(None, flag())], proposal=proposal(), at_ms=NOW, history=history
        )
    assert refused.value.hint == "publish it from 2026-06-10 13:00:00Z on"
    assert faults("budget: {changes: 2, per: 1d}", change(None, flag()), at_ms=NOW + hour, history=history) == []


# --- all of it ---


def test_all_faults_are_told_in_one_error_that_names_the_first():
    asked = policy("require: owner, ramp_step: 10%, naming: '[a-z]+'")
    with pytest.raises(PolicyRefused) as refused:
        asked.allow_publication(
            [change(None, flag(targeting=split(1, 1)), "A1")], proposal=proposal(), at_ms=NOW, history=[]
        )
    assert (refused.value.rule, refused.value.requirement) == ("r", "require")
    assert str(refused.value).startswith("3 faults:\n  rule 'r': require: A1: want owner")


def test_nothing_here_holds_up_an_emergency():
    always = 'require: owner, freeze: {weekly: "Mon 00:00 - Sun 23:59", zone: UTC}'
    assert faults(always, change(flag(), flag())) != []
    assert faults(always, change(flag(), flag()), kind=ProposalKind.EMERGENCY) == []


def test_only_rules_that_decide_are_held_against_a_change():
    two = Policy.parse("version: 1\nrules: [{name: a, when: {key: 'x*'}, require: owner}, {name: b, require: team}]")
    changes = [change(None, flag(), "x1"), change(None, flag(), "y1")]
    found = two.publication_faults(changes, proposal=proposal(*changes), at_ms=NOW, history=[])
    assert [str(fault) for fault in found] == [
        "rule 'a': require: x1: want owner, got none",
        "rule 'b': require: y1: want team, got none",
    ]
