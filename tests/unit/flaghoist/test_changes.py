"""What a policy sees of an entry's ops, and what every reader of the ledger holds an entry to by it."""

from dataclasses import replace

import pytest

from flaghoist.changes import changes_between
from flaghoist.definition import encode_flag
from flaghoist.outcomes import Applied, Rejected
from flaghoist.values import FlagKey, Seq, Source
from tests.forge import ADA, GRACE, LINUS, Forge, boolean_flag

POLICY = """\
version: 1
groups:
  payments: [linus@example.org]
rules:
  - name: payments
    when: {team: payments}
    propose: [ada@example.org, linus@example.org]
    approvals: {count: 1, from: payments}
  - name: closed
    when: {key: "closed-*"}
    refuse: nobody may
  - name: gates
    when: {target: evaluator, key: "release.*"}
    approvals: 2
  - name: any
"""
STRICT = {"team": "payments"}


def governed(forge, key, governance=None, *, default="off", source="", **flag):
    op = forge.op(key, boolean_flag(), source=source)
    return replace(op, definition=encode_flag(boolean_flag(default, **flag), governance or {}))


def judged(forge, *ops, by=ADA, approved_by=(GRACE,), policy="any"):
    release = replace(forge.release(*ops, by=by, approved_by=approved_by), policy=policy)
    return forge.ledger.judge(forge.signed(forge.entry(release)))


def apply(forge, *ops, **options):
    outcome = judged(forge, *ops, **options)
    assert isinstance(outcome, Applied), outcome.refusal
    forge.ledger.take(outcome)


def refusal(outcome, code="policy_refused"):
    assert isinstance(outcome, Rejected), outcome
    assert outcome.refusal.code == code, outcome.refusal
    return str(outcome.refusal)


@pytest.fixture
def forge():
    forge = Forge(root_options={"policy": POLICY})
    forge.genesis()
    apply(forge, governed(forge, "pay", STRICT), approved_by=(LINUS,), policy="payments")
    apply(forge, governed(forge, "banner"))
    return forge


# --- what the ops change ---


def changes(forge, *ops):
    before = forge.ledger.snapshot
    return changes_between(before, before.fold(forge.ledger.head.seq.next(), ops), ops)


def test_change_of_a_flag_has_the_definition_before_and_after(forge):
    (change,) = changes(forge, governed(forge, "banner", default="on"))
    assert (change.before.default_variant, change.after.default_variant) == ("off", "on")
    assert change.touched == ()


def test_new_flag_has_no_definition_before_and_a_deleted_one_none_after(forge):
    made, gone = changes(forge, governed(forge, "new"), forge.op("banner", None))
    assert (made.before, gone.after) == (None, None)
    assert (made.after.default_variant, gone.before.default_variant) == ("off", "off")


def test_flag_touches_those_of_the_same_key_in_other_sources(forge):
    (change,) = changes(forge, governed(forge, "pay", source="shop"))
    assert [(touched.source, touched.key) for touched in change.touched] == [("", "pay")]


def gated(forge, key="gated", governance=None, ref="gate", source=""):
    return governed(forge, key, governance, targeting={"$ref": ref}, source=source)


GATE = {"if": [{"==": [{"var": "country"}, "is"]}, "on", "off"]}


def test_shared_rule_touches_the_flags_of_every_source_that_refer_to_it(forge):
    apply(forge, forge.evaluator_op("gate", GATE))
    apply(forge, gated(forge), gated(forge, "theirs", source="shop"), governed(forge, "other"))
    (change,) = changes(forge, forge.evaluator_op("gate", {"if": [True, "on", "off"]}))
    assert [(touched.source, touched.key) for touched in change.touched] == [("", "gated"), ("shop", "theirs")]
    assert (change.rule_before, change.rule_after) == (GATE, {"if": [True, "on", "off"]})


def test_shared_rule_touches_flags_that_refer_to_it_through_another(forge):
    apply(forge, forge.evaluator_op("inner", GATE), forge.evaluator_op("outer", {"$ref": "inner"}))
    apply(forge, gated(forge, ref="outer"))
    (change,) = changes(forge, forge.evaluator_op("inner", {"if": [True, "on", "off"]}))
    assert [touched.key for touched in change.touched] == ["gated"]


def test_rule_of_one_source_touches_its_own_flags_alone(forge):
    apply(forge, forge.evaluator_op("gate", GATE, source="shop"), forge.evaluator_op("gate", GATE))
    apply(forge, gated(forge), gated(forge, "theirs", source="shop"))
    (change,) = changes(forge, forge.evaluator_op("gate", {"if": [True, "on", "off"]}, source="shop"))
    assert [touched.key for touched in change.touched] == ["theirs"]


def test_rule_that_hides_a_shared_one_touches_the_flags_that_it_now_decides(forge):
    apply(forge, forge.evaluator_op("gate", GATE))
    apply(forge, gated(forge, "theirs", source="shop"))
    (change,) = changes(forge, forge.evaluator_op("gate", {"if": [True, "on", "off"]}, source="shop"))
    assert [touched.key for touched in change.touched] == ["theirs"]


def test_rule_touches_flags_that_referred_to_it_before_and_such_as_do_so_now(forge):
    apply(forge, forge.evaluator_op("gate", GATE))
    apply(forge, gated(forge, "before"))
    ops = (
        forge.evaluator_op("gate", {"if": [True, "on", "off"]}),
        governed(forge, "before"),
        gated(forge, "after"),
    )
    assert [touched.key for touched in changes(forge, *ops)[0].touched] == ["after", "before"]


# --- what every reader holds an entry to ---


def test_entry_names_the_rules_that_allowed_it(forge):
    assert isinstance(judged(forge, governed(forge, "banner")), Applied)
    ops = governed(forge, "banner"), governed(forge, "pay", STRICT)
    assert isinstance(judged(forge, *ops, approved_by=(LINUS,), policy="payments+any"), Applied)


@pytest.mark.parametrize("policy", ["", "payments", "approvals>=1", "any+any", "Any", "emergency"])
def test_entry_that_names_another_rule_than_allowed_it_is_rejected(forge, policy):
    outcome = judged(forge, governed(forge, "banner"), policy=policy)
    assert "want the rule that allowed it, 'any'" in refusal(outcome, "not_approved")


def test_group_of_the_policy_must_approve(forge):
    text = refusal(judged(forge, governed(forge, "pay", STRICT), policy="payments"))
    assert "linus@example.org may still approve" in text
    assert isinstance(judged(forge, governed(forge, "pay", STRICT), approved_by=(LINUS,), policy="payments"), Applied)


def test_member_of_a_group_does_not_approve_what_they_ask_for(forge):
    outcome = judged(forge, governed(forge, "pay", STRICT), by=LINUS, approved_by=(GRACE,), policy="payments")
    refusal(outcome)


def test_only_those_whom_the_policy_names_propose(forge):
    outcome = judged(forge, governed(forge, "pay", STRICT), by=GRACE, approved_by=(LINUS,), policy="payments")
    assert "propose" in refusal(outcome)


def test_what_the_policy_refuses_nobody_does(forge):
    outcome = judged(forge, governed(forge, "closed-door"), approved_by=(GRACE, LINUS), policy="closed")
    assert "nobody may" in refusal(outcome)


def test_flag_does_not_leave_a_strict_team_by_a_lenient_rule(forge):
    refusal(judged(forge, governed(forge, "pay"), policy="any"))
    assert isinstance(judged(forge, governed(forge, "pay"), approved_by=(LINUS,), policy="payments+any"), Applied)


def test_flag_does_not_enter_a_strict_team_by_a_lenient_rule(forge):
    refusal(judged(forge, governed(forge, "banner", STRICT), policy="any"))


def test_strict_flag_is_not_deleted_by_a_lenient_rule(forge):
    refusal(judged(forge, forge.op("pay", None), policy="any"))


def test_strict_flag_is_not_hidden_by_a_namesake(forge):
    refusal(judged(forge, governed(forge, "pay", source="shop"), policy="any"))
    outcome = judged(forge, governed(forge, "pay", source="shop"), approved_by=(LINUS,), policy="payments+any")
    assert isinstance(outcome, Applied)


def test_strict_flag_is_not_changed_through_a_shared_rule(forge):
    apply(forge, forge.evaluator_op("gate", GATE))
    apply(forge, gated(forge, "pay", STRICT), approved_by=(LINUS,), policy="payments")
    everybody = forge.evaluator_op("gate", {"if": [True, "on", "off"]})
    refusal(judged(forge, everybody, policy="any"))
    assert isinstance(judged(forge, everybody, approved_by=(LINUS,), policy="payments+any"), Applied)


def test_one_strict_op_makes_its_whole_entry_strict(forge):
    refusal(judged(forge, governed(forge, "banner"), governed(forge, "pay", STRICT), policy="payments+any"))


def test_policy_may_ask_for_more_people_than_the_root(forge):
    gate = forge.evaluator_op("release.spring", GATE)
    refusal(judged(forge, gate, policy="gates"))
    assert isinstance(judged(forge, gate, approved_by=(GRACE, LINUS), policy="gates"), Applied)


def test_policy_cannot_ask_for_fewer_people_than_the_root():
    forge = Forge(approvals=2, root_options={"policy": POLICY})
    forge.genesis()
    refusal(judged(forge, governed(forge, "banner")), "not_approved")
    assert isinstance(judged(forge, governed(forge, "banner"), approved_by=(GRACE, LINUS)), Applied)


def test_policy_of_the_next_root_judges_what_follows_it(forge):
    forge.rotate(policy=POLICY.replace("approvals: 2", "approvals: 1"))
    assert forge.root.version == 2
    assert isinstance(judged(forge, forge.evaluator_op("release.spring", GATE), policy="gates"), Applied)


def test_state_is_as_before_when_the_policy_refuses(forge):
    release = replace(forge.release(governed(forge, "pay")), policy="any")
    forge.append(release)
    assert forge.ledger.head.seq == Seq(4)
    assert forge.ledger.snapshot.flag(Source(""), FlagKey("pay")).definition.governance.team == "payments"
