"""A policy in a root, enforced by the verifier: what a publisher's key alone cannot get past."""

import json
from dataclasses import replace

import pytest

from flaghoist.definition import encode_flag
from flaghoist.outcomes import Applied, Rejected
from flaghoist.records import Op, Release
from flaghoist.values import Seq
from tests.forge import ADA, GRACE, LINUS, Forge, boolean_flag

POLICY = """\
version: 1
groups:
  leads: [linus@example.org]
rules:
  - name: payments
    when: {team: payments}
    propose: [ada@example.org]
    approvals: [{count: 1, from: leads}]
    require: [ticket]
  - name: rest
"""


@pytest.fixture
def forge() -> Forge:
    forge = Forge(root_options={"policy": POLICY})
    forge.genesis()
    return forge


def of_team(forge: Forge, key: str, team: str | None, default: str = "off", source: str = "") -> Op:
    definition = encode_flag(boolean_flag(default), {"team": team} if team else {})
    return replace(forge.op(key, boolean_flag(), source=source), definition=definition)


def judged(forge: Forge, *ops: Op, rule: str, by=ADA, approved_by=(GRACE,)):
    release = replace(forge.release(*ops, by=by, approved_by=approved_by), policy=rule)
    return forge.ledger.receive(forge.signed(forge.entry(release)))


def text(outcome: Rejected) -> str:
    assert isinstance(outcome, Rejected), outcome
    return f"{outcome.refusal.code}: {outcome.refusal}"


def test_an_entry_whose_rules_people_allow_is_applied(forge):
    outcome = judged(forge, of_team(forge, "pay", "payments"), rule="payments", approved_by=(LINUS,))
    assert isinstance(outcome, Applied)


def test_an_entry_without_the_group_that_its_rule_asks_for_is_rejected(forge):
    told = text(judged(forge, of_team(forge, "pay", "payments"), rule="payments"))
    assert told.startswith("policy_refused: rule 'payments': approvals: want approvals of 1 from leads, got 0")


def test_an_entry_proposed_by_another_is_rejected(forge):
    told = text(judged(forge, of_team(forge, "pay", "payments"), rule="payments", by=GRACE, approved_by=(LINUS,)))
    assert told.startswith("policy_refused: rule 'payments': propose: want a proposal by ada@example.org")


@pytest.mark.parametrize("named", ["rest", "payments+rest", "approvals>=1", "", "emergency"])
def test_an_entry_that_names_another_rule_than_the_true_one_is_rejected(forge, named):
    told = text(judged(forge, of_team(forge, "pay", "payments"), rule=named, approved_by=(LINUS,)))
    assert "want the rule that allowed it, 'payments'" in told


def test_a_flag_is_not_moved_out_of_its_team_without_the_team(forge):
    judged(forge, of_team(forge, "pay", "payments"), rule="payments", approved_by=(LINUS,))
    told = text(judged(forge, of_team(forge, "pay", None), rule="payments+rest"))
    assert "want approvals of 1 from leads" in told
    moved = judged(forge, of_team(forge, "pay", None), rule="payments+rest", approved_by=(LINUS,))
    assert isinstance(moved, Applied)


def test_a_flag_is_not_hidden_by_one_of_its_key_in_another_source(forge):
    judged(forge, of_team(forge, "pay", "payments"), rule="payments", approved_by=(LINUS,))
    told = text(judged(forge, of_team(forge, "pay", None, source="other.json"), rule="payments+rest"))
    assert "want approvals of 1 from leads" in told


def test_a_shared_rule_is_not_changed_without_those_whose_flags_refer_to_it(forge):
    assert isinstance(judged(forge, forge.evaluator_op("gate", {"==": [1, 2]}), rule="rest"), Applied)
    flag = json.dumps(
        {"flag": boolean_flag(targeting={"if": [{"$ref": "gate"}, "on"]}), "governance": {"team": "payments"}}
    ).encode()
    put = replace(forge.op("pay", boolean_flag()), definition=flag)
    assert isinstance(judged(forge, put, rule="payments", approved_by=(LINUS,)), Applied)
    told = text(judged(forge, forge.evaluator_op("gate", {"==": [1, 1]}), rule="payments+rest"))
    assert "want approvals of 1 from leads" in told
    opened = judged(forge, forge.evaluator_op("gate", {"==": [1, 1]}), rule="payments+rest", approved_by=(LINUS,))
    assert isinstance(opened, Applied)


def test_readers_leave_to_the_publisher_what_is_not_about_people(forge):
    release: Release = forge.release(of_team(forge, "pay", "payments"), approved_by=(LINUS,))
    outcome = forge.ledger.receive(forge.signed(forge.entry(replace(release, policy="payments"))))
    assert isinstance(outcome, Applied)
    assert outcome.authorized.proposal.ticket is None
    assert outcome.entry.seq == Seq(2)
