"""`flaghoist policy` as an operator runs it."""

import json
from pathlib import Path

import pytest

from tests.scenarios.operators import Operator, Team, write_flags

POLICY = """\
version: 1
groups:
  leads: [grace@example.org]
rules:
  - name: leads-approve
    when: {team: payments}
    approvals: [{count: 1, from: leads}]
  - name: rest
"""
CASES = """\
tests:
  - name: grace approves
    requester: ada@example.org
    approvers: [grace@example.org]
    change: {flag: a, kind: rollout, with: {team: payments}}
    expect: allow
    rule: leads-approve
  - name: ada alone does not
    requester: grace@example.org
    approvers: [ada@example.org]
    change: {flag: a, kind: rollout, with: {team: payments}}
    expect: refuse
    because: approvals
"""


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "ada")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_sound_policy_passes_lint_without_any_environment(operator: Operator, tmp_path: Path) -> None:
    ended = operator.ok("policy", "lint", write(tmp_path / "p.yaml", POLICY))
    assert ended.out == f"{tmp_path}/p.yaml: 2 rules, 0 errors, 0 warnings\n"


def test_every_fault_of_a_policy_is_told_with_its_line(operator: Operator, tmp_path: Path) -> None:
    file = write(tmp_path / "p.yaml", POLICY.replace("when:", "wenn:").replace("leads}", "leaders}"))
    error = operator.refused("policy", "lint", file, code=10)
    assert error["code"] == "bad_policy"
    assert error["message"].splitlines()[1:] == [
        "  line 5: rule 'leads-approve': has no `when`, so the rules after it can never match",
        "  line 6: rule 'leads-approve': wenn: no such field; did you mean 'when'?",
        "  line 7: rule 'leads-approve': approvals[0].from: no group 'leaders'; did you mean 'leads'?",
    ]


def test_lint_ends_with_10_on_a_rule_that_never_matches(operator: Operator, tmp_path: Path) -> None:
    shadowed = POLICY.replace("  - name: rest", "  - name: again\n    when: {team: payments}\n  - name: rest")
    file = write(tmp_path / "p.yaml", shadowed)
    ended = operator.run("policy", "lint", file)
    assert (ended.code, ended.out) == (10, "")
    assert "error[policy_lint]" in ended.err
    assert "line 8: error: rule 'again': can never match" in ended.err
    document = operator.run("policy", "lint", file, "--json")
    assert document.code == 10
    assert [f["severity"] for f in document.document["findings"]] == ["error"]


def test_lint_holds_a_policys_people_against_the_pinned_root(tmp_path: Path) -> None:
    team = Team.begun(tmp_path)
    ended = team.ada.ok("policy", "lint", write(tmp_path / "p.yaml", POLICY))
    assert "under the root of staging" in ended.out
    assert "proposals by grace@example.org can never be approved" in ended.err
    stranger = write(tmp_path / "q.yaml", POLICY.replace("grace@", "mallory@"))
    refused = team.ada.run("policy", "lint", stranger, "--json")
    assert refused.code == 10
    assert {f["text"].split(":")[0] for f in refused.document["findings"]} == {"group 'leads'", "rule 'leads-approve'"}


def test_cases_that_pass_are_a_line_each(operator: Operator, tmp_path: Path) -> None:
    policy, cases = write(tmp_path / "p.yaml", POLICY), write(tmp_path / "t.yaml", CASES)
    ended = operator.ok("policy", "test", policy, "--tests", cases)
    assert ended.out.splitlines() == [
        "ok    grace approves",
        "ok    ada alone does not",
        "2 cases: 2 passed, 0 failed",
        "rules that no case is decided by: rest",
    ]


def test_a_case_that_fails_says_what_was_wanted_and_what_came(operator: Operator, tmp_path: Path) -> None:
    policy = write(tmp_path / "p.yaml", POLICY.replace("  - name: rest", "  - name: rest\n    approvals: 2"))
    cases = write(tmp_path / "t.yaml", CASES.replace("team: payments", "team: search"))
    ended = operator.run("policy", "test", policy, "--tests", cases)
    assert ended.code == 10
    assert ended.out.splitlines()[:5] == [
        "FAIL  grace approves (line 2): want it allowed, it is refused",
        "    - allow by rule 'leads-approve'",
        "    + refuse: rule 'rest': approvals: want approvals of 2 from any approver, got 1 (grace@example.org); "
        "anybody else who may approve may still approve; requested by ada@example.org",
        "      decided by rest",
        "ok    ada alone does not",
    ]
    document = operator.run("policy", "test", policy, "--tests", cases, "--json").document
    assert (document["passed"], document["failed"], document["untested_rules"]) == (1, 1, ["leads-approve"])
    assert [case["passed"] for case in document["cases"]] == [False, True]


def test_cases_may_stand_in_the_policy(operator: Operator, tmp_path: Path) -> None:
    ended = operator.ok("policy", "test", write(tmp_path / "p.yaml", POLICY + CASES), "--json")
    assert ended.document["passed"] == 2


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("", 10, "bad_policy"), (POLICY, 2, "misconfigured")],
    ids=["an empty policy", "no cases"],
)
def test_nothing_to_test_is_no_success(operator: Operator, tmp_path: Path, text: str, code: int, said: str) -> None:
    error = operator.refused("policy", "test", write(tmp_path / "p.yaml", text), code=code)
    assert error["code"] == said


def test_files_that_cannot_be_read_are_named(operator: Operator, tmp_path: Path) -> None:
    assert operator.refused("policy", "lint", tmp_path / "none.yaml", code=2)["code"] == "misconfigured"
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe")
    assert "want UTF-8" in operator.refused("policy", "lint", tmp_path / "p.yaml", code=2)["message"]
    (tmp_path / "p.yaml").write_bytes(b"#" * 70_000)
    assert operator.refused("policy", "lint", tmp_path / "p.yaml", code=10)["code"] == "too_large"


def test_show_tells_what_is_asked_where_there_is_no_policy(tmp_path: Path) -> None:
    team = Team.begun(tmp_path)
    assert team.grace.ok("policy", "show").out == "# staging has no policy: the root alone asks for 1 approval\n"
    document = json.loads(team.grace.ok("policy", "show", "--json").out)
    assert (document["text"], document["rules"], document["root_approvals"]) == (None, [], 1)
    assert document["emergency"] == {"ratify_within_ms": 86_400_000, "kills": 10, "per_ms": 600_000}


def test_a_policy_in_force_is_shown_and_refuses_by_the_name_of_its_rule(tmp_path: Path) -> None:
    team = Team.begun(tmp_path)
    team.imported(write_flags(tmp_path / "flags.json"))
    text = POLICY.replace("{team: payments}", "{key: newCheckout}").replace(
        "from: leads}]", "from: leads}]\n    require: [reason]"
    )
    team.ada.ok("root", "propose", "--policy", write(tmp_path / "p.yaml", text), "--yes")
    team.ada.ok("root", "publish", "--yes")
    assert team.grace.ok("policy", "show").out == text
    shown = team.grace.ok("policy", "show", "--json").document
    assert shown["root_version"] == 2
    assert [(rule["name"], rule["asks"]) for rule in shown["rules"]] == [
        ("leads-approve", ["1 approval from leads", "with reason"]),
        ("rest", []),
    ]
    proposal = team.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip()
    team.grace.ok("approve", proposal, "--yes")
    error = team.ada.refused("publish", proposal, "--yes", code=10)
    assert error["code"] == "policy_refused"
    assert error["message"] == "rule 'leads-approve': require: flags.json#newCheckout: want reason, got none"
    reasoned = team.ada.ok(
        "propose", "set", "newCheckout", "--variant", "on", "--reason", "a sale", "--yes"
    ).out.strip()
    team.published(reasoned)
    entry = max(team.ada.ok("audit", "log", "--json").document, key=lambda entry: entry["seq"])
    assert entry["policy"] == "leads-approve"
