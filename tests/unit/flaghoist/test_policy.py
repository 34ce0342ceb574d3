"""A policy: read with every fault named, matched for each kind, before and after, and enforced by people."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaghoist.definition import FlagDefinition, flag_from_flagd, governance_from
from flaghoist.errors import NotApproved
from flaghoist.policy import (
    NO_POLICY,
    BadPolicy,
    Change,
    ChangeKind,
    PastChange,
    Policy,
    PolicyNotUnderstood,
    PolicyRefused,
    Touched,
)
from flaghoist.policy.people import ALLOWED_BY_CHARS_MAX
from flaghoist.records import Op
from flaghoist.values import Action, FlagKey, LogId, Person, Seq, Source, Target

ADA, GRACE, LINUS, KEN = (Person(f"{name}@example.org") for name in ("ada", "grace", "linus", "ken"))
EVERYBODY = (ADA, GRACE, LINUS, KEN)
PRODUCTION, STAGING = LogId("production"), LogId("staging")

SAMPLE = """\
version: 1
groups:
  payments: [ada@example.org, grace@example.org]
  leads: [linus@example.org, ken@example.org]
rules:
  - name: payments-release
    when: {environment: "production", key: "pay.*", team: payments, change: [create, rollout, delete]}
    propose: [payments]
    approvals: [{count: 1, from: payments}, {count: 1, from: leads}]
  - name: shared-rules
    when: {target: evaluator}
    approvals: [{count: 2, from: leads}]
  - name: words
    when: {change: metadata}
    approvals: 0
  - name: everything-else
    approvals: [{count: 1}]
"""


def flag(**fields: object) -> FlagDefinition:
    governance = {name: fields.pop(name) for name in ("team", "owner", "category", "services") if name in fields}
    raw = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off", **fields}
    return flag_from_flagd(raw, "flag", governance_from(governance))


def op(key: str, *, target: Target = Target.FLAG, source: str = "", action: Action = Action.PUT) -> Op:
    return Op(target, Source(source), FlagKey(key), Seq(0), action, None)


def change(key: str, before: FlagDefinition | None, after: FlagDefinition | None, **more: object) -> Change:
    return Change(op(key, action=Action.PUT if after is not None else Action.DELETE), before, after, **more)


def rules(policy: Policy, *changes: Change, log_id: LogId = PRODUCTION) -> list[str]:
    return [rule.name for rule in policy.rules_for(changes, log_id)]


def allow(policy: Policy, changes: list[Change], requester: Person, *approvers: Person, threshold: int = 1) -> str:
    return policy.allow_people(
        changes, log_id=PRODUCTION, requester=requester, approvers=approvers, root_threshold=threshold
    )


PAYMENTS = flag(team="payments")
TURNED_ON = flag(team="payments", defaultVariant="on")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.parse(SAMPLE)


# --- which rules decide ---


def test_first_rule_that_matches_decides(policy):
    assert rules(policy, change("pay.checkout", PAYMENTS, TURNED_ON)) == ["payments-release"]


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("search", PAYMENTS, TURNED_ON),
        ("pay.checkout", flag(), flag(defaultVariant="on")),
        ("pay.checkout", flag(team="search"), flag(team="search", defaultVariant="on")),
        ("xpay.checkout", PAYMENTS, TURNED_ON),
    ],
    ids=["other key", "no team", "other team", "key only ends like it"],
)
def test_what_misses_one_condition_falls_through(policy, key, before, after):
    assert rules(policy, change(key, before, after)) == ["everything-else"]


def test_rule_of_another_environment_does_not_match(policy):
    assert rules(policy, change("pay.checkout", PAYMENTS, TURNED_ON), log_id=STAGING) == ["everything-else"]


def test_moving_a_flag_out_of_a_strict_team_needs_the_strict_rule():
    strict = "version: 1\nrules: [{name: strict, when: {team: payments}, approvals: 2}, {name: rest}]"
    moved_out = change("pay.checkout", PAYMENTS, flag(team="search"))
    moved_in = change("pay.checkout", flag(team="search"), PAYMENTS)
    for moved in (moved_out, moved_in):
        assert rules(Policy.parse(strict), moved) == ["strict", "rest"]


def test_every_kind_of_a_change_is_judged_so_that_a_lenient_rule_cannot_carry_a_rollout(policy):
    words = flag(description="new words")
    assert rules(policy, change("search", flag(), words)) == ["words"]
    both = change("search", flag(), replace(words, default_variant="on"))
    assert rules(policy, both) == ["words", "everything-else"]


def test_rules_of_touched_flags_must_allow_a_shared_rule(policy):
    ramp = Change(
        op("release.spring", target=Target.EVALUATOR),
        rule_before={"==": [1, 1]},
        rule_after={"==": [1, 2]},
        touched=(Touched(Source(""), FlagKey("pay.checkout"), PAYMENTS), Touched(Source(""), FlagKey("a"), flag())),
    )
    assert rules(policy, ramp) == ["payments-release", "shared-rules", "everything-else"]


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (None, flag(), {"create"}),
        (flag(), None, {"delete"}),
        (flag(), flag(state="DISABLED"), {"state"}),
        (flag(), flag(defaultVariant="on"), {"rollout"}),
        (flag(), flag(targeting={"if": [True, "on"]}), {"rollout"}),
        (flag(), flag(variants={"on": True, "off": False, "maybe": True}), {"variants"}),
        (flag(variants={"off": 1}), flag(variants={"off": 1.0}), {"variants"}),
        (flag(), flag(team="search"), {"governance"}),
        (flag(), flag(metadata={"a": 1}), {"metadata"}),
        (flag(), flag(description="words"), {"metadata"}),
        (flag(), flag(), {"metadata"}),
        (flag(), flag(team="a", description="b", defaultVariant="on"), {"governance", "metadata", "rollout"}),
        (flag(variants={"a": 1, "off": 2}), flag(variants={"off": 2, "a": 1}), {"metadata"}),
    ],
)
def test_kinds_of_a_change(before, after, kinds):
    assert {str(kind) for kind in change("a", before, after).kinds} == kinds


def test_a_kill_and_a_shared_rule_are_kinds_of_their_own():
    assert Change(op("a", action=Action.KILL), flag(), flag()).kinds == {ChangeKind.KILL}
    assert Change(op("a", target=Target.EVALUATOR)).kinds == {ChangeKind.EVALUATOR}


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("source: shop.json", True),
        ("source: [other, shop*]", True),
        ("source: shop", False),
        ("owner: ada@*", True),
        ("category: [release, experiment]", True),
        ("category: migration", False),
        ("service: api", True),
        ("service: [web?, ui]", False),
        ("service: web", True),
        ("team: '*'", True),
        ("target: flag", True),
        ("target: evaluator", False),
        ("key: '?heckout'", True),
        ("key: 'Checkout'", False),
        ("key: 'c*k*t'", True),
        ("key: 'c*k*x'", False),
        ("key: 'c*k'", False),
        ("key: '*out'", True),
        ("key: 'check'", False),
    ],
)
def test_condition(condition, matches):
    policy = Policy.parse(f"version: 1\nrules: [{{name: asked, when: {{{condition}}}}}, {{name: rest}}]")
    asked = flag(team="shop", owner="ada@example.org", category="release", services=["api", "web"])
    found = policy.rules_for([Change(op("checkout", source="shop.json"), None, asked)], PRODUCTION)
    assert [rule.name for rule in found] == (["asked"] if matches else ["rest"])


def test_a_flag_without_a_team_is_of_no_team():
    policy = Policy.parse("version: 1\nrules: [{name: any-team, when: {team: '*'}}, {name: rest}]")
    assert rules(policy, change("a", None, flag())) == ["rest"]


# --- people ---


def test_the_right_people_are_allowed_and_the_rule_is_named(policy):
    assert allow(policy, [change("pay.checkout", PAYMENTS, TURNED_ON)], ADA, GRACE, LINUS) == "payments-release"


def test_without_a_policy_the_roots_threshold_holds():
    changes = [change("a", None, flag())]
    assert allow(NO_POLICY, changes, ADA, GRACE, LINUS, threshold=2) == "approvals>=2"
    assert allow(Policy.parse(""), changes, ADA, threshold=0) == "approvals>=0"
    with pytest.raises(NotApproved, match=r"want approvals of 2 from any approver, got 1 \(grace@example.org\)"):
        allow(NO_POLICY, changes, ADA, GRACE, threshold=2)


def test_only_who_may_propose_is_allowed(policy):
    with pytest.raises(PolicyRefused, match=r"'payments-release': propose: .* got one by linus") as refused:
        allow(policy, [change("pay.checkout", PAYMENTS, TURNED_ON)], LINUS, ADA, GRACE, KEN)
    assert (refused.value.rule, refused.value.requirement) == ("payments-release", "propose")


def test_refusal_names_the_rule_what_is_missing_and_who_could_approve(policy):
    with pytest.raises(PolicyRefused) as refused:
        allow(policy, [change("pay.checkout", PAYMENTS, TURNED_ON)], ADA, GRACE)
    assert str(refused.value) == (
        "rule 'payments-release': approvals: want approvals of 1 from leads, got 0 (none); "
        "ken@example.org, linus@example.org may still approve; requested by ada@example.org"
    )


def test_the_requesters_own_approval_never_counts(policy):
    with pytest.raises(PolicyRefused, match="want approvals of 1 from payments, got 0"):
        allow(policy, [change("pay.checkout", PAYMENTS, TURNED_ON)], ADA, ADA, LINUS)


def test_one_person_counts_for_every_group_they_are_in_and_the_roots_threshold_stays():
    policy = Policy.parse(
        f"version: 1\ngroups: {{a: [{GRACE}, {KEN}], b: [{GRACE}]}}\n"
        "rules: [{name: both, approvals: [{count: 1, from: a}, {count: 1, from: b}]}]"
    )
    changes = [change("x", None, flag())]
    assert allow(policy, changes, ADA, GRACE) == "both"
    with pytest.raises(NotApproved, match="want approvals of 2 from any approver, got 1"):
        allow(policy, changes, ADA, GRACE, threshold=2)


def test_a_rule_may_refuse_everything():
    policy = Policy.parse("version: 1\nrules: [{name: legal, when: {key: 'tax.*'}, refuse: ask legal}, {name: rest}]")
    with pytest.raises(PolicyRefused, match="'legal': refuse: ask legal"):
        allow(policy, [change("tax.rate", None, flag())], ADA, GRACE, LINUS, KEN)


def test_all_rules_that_decide_must_allow_and_all_are_named(policy):
    changes = [change("pay.checkout", PAYMENTS, TURNED_ON), change("search", None, flag())]
    assert allow(policy, changes, ADA, GRACE, LINUS) == "payments-release+everything-else"
    with pytest.raises(PolicyRefused, match="payments-release"):
        allow(policy, changes, ADA, LINUS, KEN)


def test_more_names_than_fit_are_counted_and_then_stand_for_any_rule():
    names = [f"rule-{number:02}-{'x' * 40}" for number in range(20)]
    listed = "\n".join(f"  - {{name: {name}, when: {{key: k{at}}}}}" for at, name in enumerate(names))
    policy = Policy.parse(f"version: 1\nrules:\n{listed}\n  - name: rest")
    changes = [change(f"k{at}", None, flag()) for at in range(20)]
    text = allow(policy, changes, ADA, GRACE)
    assert text == f"{'+'.join(names[:3])}+…17" or len(text) <= ALLOWED_BY_CHARS_MAX
    assert text.endswith(f"+…{20 - text.count('rule-')}")
    assert PastChange.of(1, text).rules is None
    assert PastChange.of(1, "a+b").rules == {"a", "b"}


def test_what_is_missing_is_told_with_who_could_give_it(policy):
    missing = policy.missing(
        [change("pay.checkout", PAYMENTS, TURNED_ON)],
        log_id=PRODUCTION,
        requester=ADA,
        approvers=[],
        root_threshold=2,
    )
    assert [(m.rule.name if m.rule else None, m.count, m.label, m.could) for m in missing] == [
        (None, 2, "any approver", None),
        ("payments-release", 1, "payments", (GRACE,)),
        ("payments-release", 1, "leads", (KEN, LINUS)),
    ]


def test_explanation_tells_for_each_side_which_rules_decide(policy):
    moved = change("pay.checkout", TURNED_ON, flag(team="search"))
    (explained,) = policy.explain([moved], PRODUCTION)
    assert [(match.facts.team, [rule.name for rule in match.rules]) for match in explained.matches] == [
        ("payments", ["payments-release", "everything-else"]),
        ("search", ["everything-else"]),
    ]
    assert explained.rules[0].asks == ("proposed by payments", "1 approval from payments", "1 approval from leads")


# --- properties ---

people = st.lists(st.sampled_from(EVERYBODY), unique=True)
teams = st.sampled_from([None, "payments", "search"])
sides = st.one_of(
    st.none(),
    st.builds(
        lambda team, default, words: flag(
            **({"team": team} if team else {}), defaultVariant=default, **({"description": words} if words else {})
        ),
        teams,
        st.sampled_from(["on", "off"]),
        st.sampled_from(["", "words"]),
    ),
)
changes_of = st.builds(
    lambda key, before, after: change(key, before, after if before or after else flag()),
    st.sampled_from(["pay.a", "pay.b", "search"]),
    sides,
    sides,
)


def judged(policy: Policy, changes: list[Change], requester: Person, approvers: list[Person], threshold: int) -> str:
    try:
        return allow(policy, changes, requester, *approvers, threshold=threshold)
    except NotApproved as refusal:
        return f"refused: {refusal}"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(changes_of, min_size=1, max_size=3), st.sampled_from(EVERYBODY), people, st.integers(0, 3), st.data())
def test_the_order_of_approvers_does_not_matter(policy, changes, requester, approvers, threshold, data):
    shuffled = data.draw(st.permutations(approvers))
    assert judged(policy, changes, requester, approvers, threshold) == judged(
        policy, changes, requester, shuffled, threshold
    )


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(changes_of, min_size=1, max_size=3), st.sampled_from(EVERYBODY), people, people, st.integers(0, 3))
def test_more_approvers_never_refuse_what_fewer_allowed(policy, changes, requester, approvers, more, threshold):
    allowed = judged(policy, changes, requester, approvers, threshold)
    if not allowed.startswith("refused"):
        assert judged(policy, changes, requester, [*approvers, *more], threshold) == allowed


@settings(derandomize=True, max_examples=200, deadline=None)
@given(changes_of)
def test_a_change_and_its_way_back_are_decided_by_the_same_rules(policy, there):
    if there.before is None or there.after is None:
        return
    back = replace(there, before=there.after, after=there.before)
    assert rules(policy, there) == rules(policy, back)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(changes_of, min_size=1, max_size=4))
def test_rules_of_many_changes_are_those_of_each(policy, changes):
    assert set(rules(policy, *changes)) == {name for one in changes for name in rules(policy, one)}


# --- reading ---


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("rules: [{name: a}]", ["line 1: version: want 1, got nothing: add `version: 1`"]),
        ("version: one\nrules: [{name: a}]", ["line 1: version: want a whole number 1 .. 1000000, got 'one'"]),
        ("version: 1", ["line 1: rules: want a list of rules, got nothing"]),
        ("version: 1\nrules: []", ["line 2: rules: want a list of 1 to 200 rules, got a list"]),
        ("- a", ["want a mapping that starts with `version: 1`, got a list"]),
        ("", ["want a mapping that starts with `version: 1`, got nothing"]),
        (
            "version: 1\nrule: x\nrules: [{name: a, aprovals: 1}]",
            [
                "line 2: rule: no such field; did you mean 'rules'?",
                "line 3: rule 'a': aprovals: no such field; did you mean 'approvals'?",
            ],
        ),
        (
            "version: 1\nrules: [{name: a}, {name: b}]",
            ["line 2: rule 'a': has no `when`, so the rules after it can never match"],
        ),
        (
            "version: 1\nrules: [{name: a, when: {key: x}}]",
            ["line 2: rule 'a': the last rule must have no `when`, so that every change is decided; add one"],
        ),
        (
            "version: 1\nrules:\n  - {name: a, when: {key: x}}\n  - name: a",
            ["line 4: rule 'a': has the name of the one in line 3"],
        ),
        (
            "version: 1\ngroups: {a: []}\nrules: [{name: r}]",
            ["line 2: groups.a: want a list of 1 to 1000 people, got nobody"],
        ),
        (
            "version: 1\ngroups: {leads: [a@b.c]}\nrules: [{name: r, approvals: [{count: 1, from: leaders}]}]",
            ["line 3: rule 'r': approvals[0].from: no group 'leaders'; did you mean 'leads'?"],
        ),
        (
            "version: 1\ngroups: {leads: [a@b.c]}\nrules: [{name: r, approvals: [{count: 2, from: leads}]}]",
            ["line 3: rule 'r': approvals[0]: want 2 approvals from leads, which is 1 people"],
        ),
        (
            "version: 1\nrules:\n  - name: emergency",
            ["line 3: rules[0].name: want another name, entries call emergencies 'emergency'"],
        ),
        (
            "version: 1\nrules: [{name: r, refuse: no, approvals: 1}]",
            ["line 2: rule 'r': refuse: nothing is allowed here, so want no approvals"],
        ),
        (
            "version: 1\nrules: [{name: r, ramp_step: 0.25}]",
            ["line 2: rule 'r': ramp_step: want whole percent, 1% .. 100%, got '0.25'"],
        ),
        (
            "version: 1\nrules: [{name: a, when: {key: 'a[bc]'}}, {name: b}]",
            ["line 2: rule 'a': when.key: 'a[bc]': want a pattern with * and ? only, got [ ]; list several"],
        ),
        (
            "version: 1\nrules: [{name: a, when: {category: releases}}, {name: b}]",
            ["line 2: rule 'a': when.category: 'releases' matches none of release, experiment, migration, operational"],
        ),
        ("version: 1\nversion: 1\nrules: [{name: a}]", ["line 2: version: given twice, first in line 1"]),
        ("version: &v 1\nrules: [{name: a}]", ["line 1: want no YAML anchors or aliases, got 'v': write it out"]),
        ("version: !!int 1\nrules: [{name: a}]", ["line 1: want no YAML tags, got tag:yaml.org,2002:int"]),
        ("version: 1\nrules: [{name: a}]\n---\na: 1", ["line 3: want one document, got another `---`"]),
        ("%YAML 1.1\n---\nversion: 1\nrules: [{name: a}]", ["line 2: want no directive such as %YAML or %TAG"]),
        ("version: 1\nrules: [{name: a}", None),
        ("version: 1\n\trules: x", None),
        (
            "version: 1\nrules: [{name: r, budget: {changes: 3}}]",
            ["line 2: rule 'r': budget: want `changes` and `per`"],
        ),
        (
            "version: 1\nrules: [{name: r, freeze: {weekly: Fri 16:00 - Mon 08:00}}]",
            ["line 2: rule 'r': freeze: want `zone`, and `from` with `until`, or `weekly`"],
        ),
        (
            "version: 1\nrules: [{name: r, freeze: {weekly: Fri 16:00 - Fri 16:00, zone: UTC}}]",
            ["line 2: rule 'r': freeze.weekly: want two different times; a whole week is what `refuse` is for"],
        ),
        (
            "version: 1\nrules: [{name: r, freeze: {from: 2026-02-30 00:00, until: 2026-03-01 00:00, zone: UTC}}]",
            ["line 2: rule 'r': freeze.from: want a local time as YYYY-MM-DD HH:MM, got '2026-02-30 00:00'"],
        ),
    ],
)
def test_faults_are_named_with_their_lines(text, problems):
    with pytest.raises(BadPolicy) as refused:
        Policy.parse(text or "\n")
    if problems is not None:
        assert list(refused.value.problems) == problems
    assert refused.value.problems[0].startswith(("line ", "want "))


def test_a_later_version_is_not_skipped():
    with pytest.raises(PolicyNotUnderstood, match="line 1: version: want 1, got 2"):
        Policy.parse("version: 2\nwhatever: [1]")


@pytest.mark.parametrize(
    "text",
    [
        "a" * 70_000,
        "[" * 30_000,
        "version: 1\nrules: " + "[" * 100 + "]" * 100,
        "version: 1\nx: [" + "a," * 25_000 + "]",
    ],
    ids=["long", "endlessly nested", "nested", "many values"],
)
def test_what_is_over_a_limit_is_refused(text):
    with pytest.raises(BadPolicy, match=r"at most|not YAML"):
        Policy.parse(text)


def test_words_that_yaml_takes_for_other_things_stay_words():
    policy = Policy.parse("version: 1\nrules: [{name: on, when: {team: no, key: 1.10}}, {name: null, approvals: 1}]")
    assert [rule.name for rule in policy.rules] == ["on", "null"]
    assert policy.rules[0].when.team[0].pattern == "no"
    assert policy.rules[0].when.key[0].pattern == "1.10"


def test_defaults_of_emergencies_and_what_a_policy_makes_of_them():
    assert (NO_POLICY.emergency.ratify_within_ms, NO_POLICY.emergency.kills, NO_POLICY.emergency.per_ms) == (
        86_400_000,
        10,
        600_000,
    )
    told = Policy.parse("version: 1\nrules: [{name: r}]\nemergency: {ratify_within: 4h, kills: 3}").emergency
    assert (told.ratify_within_ms, told.kills, told.per_ms) == (4 * 3_600_000, 3, 600_000)


def test_sidecars_read_a_policy_whose_zones_they_do_not_know():
    text = "version: 1\nrules: [{name: r, freeze: {weekly: Fri 16:00 - Mon 08:00, zone: Mars/Olympus_Mons}}]"
    policy = Policy.parse(text)
    assert allow(policy, [change("a", None, flag())], ADA, GRACE) == "r"
