"""Cases of a policy: read strictly, judged as a publisher would, with the reason of each failure."""

import re
from pathlib import Path

import pytest

from flaghoist.policy import BadPolicy, ChangeKind, Policy
from flaghoist.values import LogId
from publisher.policy_cases import Outcomes, cases_in, read_cases, run

PRODUCTION = LogId("production")
DOCUMENT = Path(__file__).parents[3] / "docs/policy.md"
POLICY = """\
version: 1
groups: {leads: [linus@example.org]}
rules:
  - name: payments
    when: {environment: production, team: payments}
    approvals: [{count: 1, from: leads}]
    require: ticket
    budget: {changes: 1, per: 1d}
  - name: shared
    when: {target: evaluator}
    approvals: 2
  - name: rest
"""


def outcomes(cases: str, policy: str = POLICY) -> Outcomes:
    return run(Policy.parse(policy), read_cases(f"tests:\n{cases}", where="cases", environment=PRODUCTION))


def only_fault(case: str) -> str | None:
    (outcome,) = outcomes(f"  - {case}").outcomes
    return outcome.fault


BASE = "name: c, requester: ada@example.org, at: 2026-06-10 12:00 UTC"
PAID = "change: {flag: a, kind: rollout, with: {team: payments}}"


def test_the_policy_in_the_documentation_passes_its_own_cases():
    (text,) = re.findall(r"```yaml\n(version: 1\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    policy = Policy.parse(text)
    told = run(policy, cases_in(policy, where="docs", environment=PRODUCTION))
    assert [(outcome.case.name, outcome.fault) for outcome in told.outcomes] == [
        ("a lead must stand behind what payments do", None),
        ("a quarter of the users in one step", None),
    ]
    assert told.untested == ("shared-rules", "words", "everything-else")


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (f"{{{BASE}, {PAID}, approvers: linus@example.org, ticket: A-1, expect: allow, rule: payments}}", None),
        (f"{{{BASE}, {PAID}, approvers: [grace@example.org], expect: refuse, because: approvals}}", None),
        (f"{{{BASE}, {PAID}, approvers: linus@example.org, expect: refuse, rule: payments, because: require}}", None),
        (f"{{{BASE}, {PAID}, approvers: linus@example.org, expect: refuse, because: want ticket}}", None),
        (f"{{{BASE}, {PAID}, approvers: linus@example.org, expect: allow}}", "want it allowed, it is refused"),
        (
            f"{{{BASE}, {PAID}, approvers: linus@example.org, ticket: A-1, expect: refuse}}",
            "want it refused, it is allowed",
        ),
        (
            f"{{{BASE}, {PAID}, approvers: linus@example.org, ticket: A-1, expect: allow, rule: rest}}",
            "want rule 'rest' to decide, payments did",
        ),
        (
            f"{{{BASE}, {PAID}, approvers: linus@example.org, expect: refuse, because: approvals}}",
            "want it refused because of 'approvals', it was because of 'require'",
        ),
        (
            f"{{{BASE}, {PAID}, expect: refuse, rule: payments}}",
            "want rule 'payments' to refuse, the root's threshold did",
        ),
        (f"{{{BASE}, {PAID}, expect: refuse, rule: paymets}}", "no rule 'paymets' in the policy"),
        (f"{{{BASE}, {PAID}, expect: refuse, threshold: 0, rule: payments}}", None),
        (f"{{{BASE}, {PAID}, environment: staging, approvers: ken@example.org, expect: allow, rule: rest}}", None),
        (
            f"{{name: c, requester: ada@example.org, {PAID}, expect: refuse}}",
            "want `at`, since rule 'payments' asks about time",
        ),
        (
            f"{{{BASE}, {PAID}, approvers: linus@example.org, ticket: A-1, published: [2026-06-09 12:01 UTC], "
            "expect: refuse, because: budget}",
            None,
        ),
        (
            f"{{{BASE}, {PAID}, approvers: linus@example.org, ticket: A-1, published: [2026-06-09 12:00 UTC, "
            "{at: 2026-06-10 12:00 UTC, rules: [rest]}], expect: allow}",
            None,
        ),
    ],
)
def test_what_is_said_of_a_case(case, fault):
    assert only_fault(case) == fault


def test_shared_rules_are_judged_with_the_flags_that_they_touch():
    gate = "{evaluator: gate, before: {'==': [1, 1]}, after: {'==': [1, 2]}"
    approved = "approvers: [linus@example.org, ken@example.org], ticket: A-1"
    assert only_fault(f"{{{BASE}, change: {gate}}}, {approved}, expect: allow, rule: shared}}") is None
    touching = f"{gate}, touches: {{flag: a, with: {{team: payments}}}}}}"
    assert only_fault(f"{{{BASE}, change: {touching}, {approved}, expect: allow, rule: payments}}") is None
    assert only_fault(f"{{{BASE}, change: {touching}, approvers: [grace@example.org, ken@example.org], expect: refuse, "
                      "rule: payments}") is None  # fmt: skip


RELEASES_ONLY = {ChangeKind.RELEASE, ChangeKind.RAMP, ChangeKind.REVERT}


@pytest.mark.parametrize("kind", ["create", "delete", "kill", "release", "ramp", "revert"])
@pytest.mark.parametrize("plan", ["{}", "{team: t, gate: {share: 20}}"])
def test_a_change_of_a_release_by_kind_is_of_that_kind(kind, plan):
    case = f"  - {{{BASE}, change: {{release: a, kind: {kind}, with: {plan}}}, expect: allow}}"
    (read,) = read_cases(f"tests:\n{case}", where="cases", environment=PRODUCTION)
    assert read.changes[0].kinds == {kind}


@pytest.mark.parametrize("kind", sorted(set(ChangeKind) - RELEASES_ONLY - {ChangeKind.EVALUATOR}))
@pytest.mark.parametrize(
    "flag", ["{}", "{variants: {a: 1}, defaultVariant: null}", "{team: t, description: d, state: DISABLED}"]
)
def test_a_change_by_kind_is_of_that_kind(kind, flag):
    case = f"  - {{{BASE}, change: {{flag: a, kind: {kind}, with: {flag}}}, expect: allow}}"
    (read,) = read_cases(f"tests:\n{case}", where="cases", environment=PRODUCTION)
    assert read.changes[0].kinds == {kind}


def test_a_change_of_several_kinds_is_of_all_of_them():
    kinds = "[state, rollout, variants, governance, metadata]"
    case = f"  - {{{BASE}, change: {{flag: a, kind: {kinds}}}, expect: allow}}"
    (read,) = read_cases(f"tests:\n{case}", where="cases", environment=PRODUCTION)
    assert read.changes[0].kinds == {"state", "rollout", "variants", "governance", "metadata"}


def test_values_of_definitions_are_json():
    fields = "variants: {a: {n: 1.5, t: true, s: '1', z: null}, b: {}}, defaultVariant: a"
    case = f"  - {{{BASE}, change: {{flag: a, after: {{{fields}}}}}, expect: allow}}"
    (read,) = read_cases(f"tests:\n{case}", where="cases", environment=PRODUCTION)
    assert read.changes[0].after.variants["a"] == {"n": 1.5, "t": True, "s": "1", "z": None}


def test_rules_without_a_case_are_named():
    told = outcomes(f"  - {{{BASE}, {PAID}, expect: refuse}}")
    assert told.untested == ("shared", "rest")


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("{name: c}", "line 2: case 'c': want `change`, or `changes` with several"),
        (f"{{{BASE}, {PAID}, expekt: allow}}", "line 2: case 'c': expekt: no such field; did you mean 'expect'?"),
        (f"{{{BASE}, {PAID}, expect: perhaps}}", "line 2: case 'c': expect: want allow or refuse, got 'perhaps'"),
        (
            f"{{{BASE}, {PAID}, expect: allow, because: x}}",
            "line 2: case 'c': because: want it with `expect: refuse` only",
        ),
        (f"{{{BASE}, change: {{flag: a}}, expect: allow}}", "want `kind` (and `with`), or `before`, `after`, or both"),
        (f"{{{BASE}, change: {{flag: a, kind: evaluator}}, expect: allow}}", "kind: want some of create, delete"),
        (
            f"{{{BASE}, change: {{flag: a, kind: [create, state]}}, expect: allow}}",
            "create is never a part of a change",
        ),
        (
            f"{{{BASE}, change: {{flag: a, after: {{defaultVariant: x}}}}, expect: allow}}",
            "want one of the variants (on, off)",
        ),
        (
            f"{{{BASE}, change: {{flag: a, after: {{tem: x}}}}, expect: allow}}",
            "'tem': no such field; did you mean 'team'?",
        ),
        (f"{{{BASE}, change: {{evaluator: a}}, expect: allow}}", "want `before`, `after`, or both, with the rule"),
        (f"{{{BASE}, change: {{evaluator: a, after: []}}, expect: allow}}", "want an object with one operator"),
        (f"{{{BASE}, {PAID}, expect: allow, published: [2026-06-10]}}", "published: want a time with its zone"),
        (
            "{name: c, requester: ada@example.org, at: 2026-06-10 12:00 Mars/Olympus, change: {flag: a, kind: state}"
            ", expect: allow}",
            "no such zone",
        ),
        (f"{{{BASE}, {PAID}, expect: allow, threshold: many}}", "threshold: want 0 .. 16"),
    ],
)
def test_faults_of_cases_are_named_with_their_lines(case, problem):
    with pytest.raises(BadPolicy, match=re.escape(problem)):
        outcomes(f"  - {case}")


def test_two_cases_of_one_name_are_refused():
    case = f"  - {{{BASE}, {PAID}, expect: refuse}}\n"
    with pytest.raises(BadPolicy, match="line 3: case 'c': has the name of the one in line 2"):
        outcomes(case * 2)
