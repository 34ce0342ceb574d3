"""What lint says of policies that can be read and can hardly be meant."""

from datetime import UTC, datetime

import pytest

from flaghoist.policy import Policy
from flaghoist.policy.lint import Severity, findings, people_findings
from flaghoist.values import Person

ADA, GRACE, LINUS, KEN = (Person(f"{name}@example.org") for name in ("ada", "grace", "linus", "ken"))
NOW_MS = int(datetime(2026, 6, 10, tzinfo=UTC).timestamp() * 1000)
GROUPS = "groups:\n  payments: [ada@example.org, grace@example.org]\n  leads: [linus@example.org]\n"


def policy(*rules: str, groups: str = "") -> Policy:
    return Policy.parse("version: 1\n" + groups + "rules:\n" + "".join(f"  - {rule}\n" for rule in rules))


def found(*rules: str, groups: str = "") -> list[str]:
    return [str(finding) for finding in findings(policy(*rules, groups=groups), now_ms=NOW_MS)]


def test_a_sound_policy_has_no_findings():
    sound = (
        "{name: a, when: {key: 'pay.*'}, propose: payments, approvals: [{count: 1, from: leads}]}",
        "{name: b, when: {key: 'p*'}, naming: '[a-z]+', freeze: {weekly: Fri 16:00 - Mon 08:00, zone: Europe/Berlin}}",
        "{name: c}",
    )
    assert found(*sound, groups=GROUPS) == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("key: 'pay.*'", "key: 'pay.*'"),
        ("key: 'pay.*'", "key: 'pay.eu.*'"),
        ("key: 'pay.*'", "key: [pay.a, 'pay.b*']"),
        ("key: 'pay.*'", "key: 'pay.*', team: payments"),
        ("team: [a, b]", "team: b"),
        ("team: '*'", "team: b"),
        ("change: [create, delete, state]", "change: create"),
        ("target: flag", "target: flag, key: a"),
        ("service: 'w*'", "service: web"),
    ],
)
def test_a_rule_that_an_earlier_one_covers_can_never_match(earlier, later):
    assert found(f"{{name: a, when: {{{earlier}}}}}", f"{{name: b, when: {{{later}}}}}", "{name: c}") == [
        "line 4: error: rule 'b': can never match: 'a' (line 3) decide first all that it is about"
    ]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("key: 'pay.eu.*'", "key: 'pay.*'"),
        ("key: 'pay.?'", "key: 'pay.*'"),
        ("key: 'pay.*', team: payments", "key: 'pay.*'"),
        ("team: a", "team: [a, b]"),
        ("target: flag", "key: a"),
        ("environment: production", "key: a"),
        ("change: create", "change: delete"),
    ],
)
def test_a_rule_that_an_earlier_one_does_not_cover_is_not_reported(earlier, later):
    assert found(f"{{name: a, when: {{{earlier}}}}}", f"{{name: b, when: {{{later}}}}}", "{name: c}") == []


def test_several_rules_together_may_cover_one():
    rules = (
        "{name: a, when: {key: 'p*', change: [create]}}",
        "{name: b, when: {change: [delete, kill]}}",
        "{name: c, when: {key: pay, change: [create, delete]}}",
        "{name: d, when: {key: pay, change: [delete, state]}}",
        "{name: e}",
    )
    assert found(*rules) == [
        "line 5: error: rule 'c': can never match: 'a' (line 3) and 'b' (line 4) decide first all that it is about",
        "line 6: warning: rule 'd': never decides on delete: 'b' (line 4) do so first",
    ]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("when: {target: evaluator, team: a}", "error: rule 'a': when: can never match: evaluators have no team"),
        ("when: {target: flag, change: evaluator}", "error: rule 'a': when: can never match: no flag is an evaluator"),
        ("when: {target: evaluator, change: create}", "error: rule 'a': when: can never match: what is done to"),
        ("when: {change: evaluator}, require: [owner]", "warning: rule 'a': require: evaluators have no owner"),
        ("when: {change: state}, naming: a", "warning: rule 'a': naming: only new names are checked"),
        ("when: {key: a}, approvals: [{count: 1}, {count: 2}]", "warning: rule 'a': approvals: any approver is asked"),
        (
            "when: {key: a}, freeze: {name: x, from: 2026-01-01 00:00, until: 2026-06-10 00:00, zone: UTC}",
            "warning: rule 'a': freeze: 'x' is over",
        ),
        (
            "when: {key: a}, freeze: {name: x, weekly: Fri 16:00 - Mon 08:00, zone: Mars/Olympus_Mons}",
            "error: rule 'a': freeze: 'x': time zone 'Mars/Olympus_Mons': no such zone",
        ),
    ],
)
def test_fields_without_effect_and_zones_unknown_here(rule, said):
    told = found(f"{{name: a, {rule}}}", "{name: b}")
    assert len(told) == 1
    assert told[0].startswith(f"line 3: {said}")


def test_a_freeze_that_ends_later_is_not_over():
    freeze = "freeze: {name: x, from: 2026-01-01 00:00, until: 2026-06-10 00:01, zone: UTC}"
    assert found(f"{{name: a, {freeze}}}") == []


def test_a_group_that_no_rule_names_is_told():
    assert found("{name: a, approvals: [{count: 1, from: payments}]}", groups=GROUPS) == [
        "line 4: warning: group 'leads': no rule names it"
    ]


def test_who_may_propose_and_is_needed_to_approve_is_told():
    asks = "approvals: [{count: 2, from: payments}]"
    (told,) = found(
        f"{{name: a, propose: payments, {asks}}}", groups=GROUPS.replace("  leads: [linus@example.org]\n", "")
    )
    assert told == "line 5: error: rule 'a': approvals: nobody can satisfy it: who may propose is needed to approve"
    (told,) = found("{name: a, propose: [payments, leads], approvals: [{count: 1, from: leads}]}", groups=GROUPS)
    assert told == (
        "line 6: warning: rule 'a': approvals: what linus@example.org propose can never be approved: "
        "they would be needed"
    )


def told_of(rule: str, people: list[Person], threshold: int = 1, **roles: list[Person]) -> list[str]:
    return [str(f) for f in people_findings(policy(rule, groups=GROUPS), people, threshold, **roles)]


def test_people_whom_the_root_does_not_list_are_told():
    everybody = [ADA, GRACE, LINUS]
    rule = "{name: a, approvals: [{count: 1, from: payments}]}"
    assert told_of(rule, everybody) == []
    assert told_of(rule, [GRACE, LINUS, KEN]) == [
        "line 3: warning: group 'payments': not in the root: ada@example.org",
        "line 6: warning: rule 'a': approvals: proposals by grace@example.org can never be approved: "
        "want 1 from payments, where 0 others may approve",
    ]
    assert policy(rule, groups=GROUPS).check_against(everybody, 1) == []


def test_rules_that_the_roots_people_cannot_satisfy_are_errors():
    everybody = [ADA, GRACE, LINUS, KEN]
    rule = "{name: a, propose: payments, approvals: [{count: 1, from: leads}]}"
    assert told_of(rule, everybody, approvers=[ADA, GRACE]) == [
        "line 6: error: rule 'a': approvals: nobody can satisfy it: want 1 from leads, where 0 others may approve"
    ]
    assert told_of(rule, everybody, requesters=[LINUS]) == [
        "line 6: error: rule 'a': propose: the root lets none of ada@example.org, grace@example.org propose"
    ]
    assert told_of(rule, everybody, 4) == [
        "line 6: error: rule 'a': approvals: nobody can satisfy it: want 4 as the root asks, 3 others may approve"
    ]
    assert told_of("{name: a, refuse: never}", [], 1) == [
        "line 3: warning: group 'payments': not in the root: ada@example.org, grace@example.org",
        "line 4: warning: group 'leads': not in the root: linus@example.org",
    ]


def test_errors_are_what_stops_a_publisher_or_its_people():
    found_here = findings(policy("{name: a, when: {key: 'a'}}", "{name: b, when: {key: 'a'}}", "{name: c}"))
    assert [finding.severity for finding in found_here] == [Severity.ERROR]
