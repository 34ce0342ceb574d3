"""What a policy sees of a release: kinds of change, whose flags it touches, who must stand behind it, its ramps."""

from dataclasses import replace
from fractions import Fraction

import pytest

from flaghoist.changes import changes_between
from flaghoist.definition import encode_flag
from flaghoist.outcomes import Applied, Rejected
from flaghoist.policy.ramp import share_moved
from flaghoist.policy.rule import facts_of
from flaghoist.records import Op, Release
from flaghoist.release_plan import CLOSED, SHARE_MAX, Gate, Stage, Walk
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from tests.forge import ADA, GRACE, LINUS, Forge, gated_flag, release_plan

STAGES = (Stage("one", False, 1000, 60), Stage("half", False, 50_000, 60), Stage("all", False, SHARE_MAX, 0))
POLICY = """
version: 1
groups:
  payments: [linus@example.org]
rules:
  - name: way-back
    when: {change: revert}
  - name: payments
    when: {target: flag, team: payments, change: rollout}
    approvals: [{count: 1, from: payments}]
  - name: ramps
    when: {target: release, service: mail, change: ramp}
    approvals: [{count: 1}]
  - name: rest
"""


def half(**gate: object) -> Gate:
    return replace(CLOSED, share=50_000, **gate)  # type: ignore[arg-type]


PLAN = release_plan("cart.spring", stages=STAGES, audience={"==": [{"var": "tier"}, "staff"]}, services=("mail",))


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (None, PLAN, {"create"}),
        (PLAN, None, {"delete"}),
        (PLAN, PLAN, {"release"}),
        (PLAN, replace(PLAN, title="another"), {"release"}),
        (PLAN, replace(PLAN, gate=half()), {"ramp"}),
        (replace(PLAN, gate=half()), PLAN, {"revert"}),
        (replace(PLAN, gate=half(audience=True)), replace(PLAN, gate=half()), {"revert"}),
        (replace(PLAN, gate=half()), replace(PLAN, gate=replace(CLOSED, audience=True)), {"ramp"}),
        (PLAN, replace(PLAN, gate=replace(CLOSED, walk=Walk.ON)), {"ramp"}),
        (replace(PLAN, gate=half(walk=Walk.ON)), replace(PLAN, gate=half(walk=Walk.PAUSED)), {"revert"}),
        (replace(PLAN, gate=half(walk=Walk.PAUSED)), replace(PLAN, gate=half(walk=Walk.ON)), {"ramp"}),
        (replace(PLAN, gate=half(walk=Walk.ON)), replace(PLAN, gate=CLOSED), {"revert"}),
        (replace(PLAN, gate=half(walk=Walk.ON)), replace(PLAN, gate=half(walk=Walk.ON), stages=STAGES[:2]),
         {"ramp", "release"}),
        (replace(PLAN, gate=half()), replace(PLAN, gate=half(), salt="others"), {"ramp", "release"}),
        (replace(PLAN, gate=half()), replace(PLAN, gate=CLOSED, title="and renamed"), {"revert", "release"}),
    ],
)  # fmt: skip
def test_change_of_a_release_is_of_these_kinds(before, after, kinds):
    forge = Forge()
    forge.genesis()
    state = forge.ledger.snapshot
    seq = Seq(1)
    flag = forge.op("cart.spring", gated_flag("spring"))
    if before is not None:
        state = state.fold(Seq(2), [forge.release_op("spring", replace(before, gate=CLOSED)), flag])
        opened = forge.release_op("spring", before, version=2)
        state, seq = state.fold(Seq(3), [opened]), Seq(3)
    action = Action.DELETE if after is None else Action.PUT
    definition = None if after is None else forge.release_op("spring", after).definition
    version = state.version_of(flag.state_id) if before is None else seq
    op = Op(Target.RELEASE, Source(""), FlagKey("spring"), version, action, definition)
    ops = [op, flag] if before is None else [op]
    if after is None:
        ops.append(Op(Target.FLAG, Source(""), FlagKey("cart.spring"), Seq(2), Action.DELETE, None))
    (change, *_) = changes_between(state, state.fold(seq.next(), ops), ops)
    assert change.kinds == kinds


def test_release_is_seen_by_its_team_owner_services_and_category():
    forge = Forge()
    forge.genesis()
    plan = replace(PLAN, team="checkout")
    op = forge.release_op("spring", plan)
    ops = [op, forge.op("cart.spring", gated_flag("spring"))]
    (change, _) = changes_between(forge.ledger.snapshot, forge.ledger.snapshot.fold(Seq(2), ops), ops)
    (facts,) = facts_of(change)
    assert (facts.target, facts.team, facts.owner) == (Target.RELEASE, "checkout", ADA)
    assert (facts.category, facts.services) == ("release", ("mail",))


# --- enforced by every reader ---


@pytest.fixture
def forge() -> Forge:
    """Under POLICY: a closed release of a flag of team payments and one of nobody's."""
    made = Forge(root_options={"policy": POLICY})
    made.genesis()
    flag = encode_flag(gated_flag("spring"), {"team": "payments"})
    ops = [
        made.release_op("spring", release_plan("cart.spring", "mail.spring", services=("mail",))),
        replace(made.op("cart.spring", gated_flag("spring")), definition=flag),
        made.op("mail.spring", gated_flag("spring")),
    ]
    assert isinstance(judged(made, *ops, rule="rest"), Applied)
    return made


def judged(forge: Forge, *ops: Op, rule: str, approved_by: tuple[str, ...] = (GRACE,)) -> object:
    release: Release = replace(forge.release(*ops, approved_by=approved_by), policy=rule)  # type: ignore[arg-type]
    return forge.ledger.receive(forge.signed(forge.entry(release)))


def test_opening_a_gate_takes_the_people_of_every_flag_behind_it(forge):
    opening = forge.hoist("spring", share=SHARE_MAX)
    refused = judged(forge, opening, rule="payments+ramps+rest")
    assert isinstance(refused, Rejected)
    assert "rule 'payments'" in str(refused.refusal)
    assert isinstance(
        judged(forge, forge.hoist("spring", share=SHARE_MAX), rule="payments+ramps+rest", approved_by=(LINUS,)), Applied
    )


def test_taking_back_is_a_revert_for_the_release_and_for_its_flags(forge):
    judged(forge, forge.hoist("spring", share=SHARE_MAX), rule="payments+ramps+rest", approved_by=(LINUS,))
    assert isinstance(judged(forge, forge.hoist("spring", share=0), rule="way-back"), Applied)


def test_editing_a_closed_release_touches_no_flag(forge):
    plan = replace(forge.plan("spring"), title="renamed")
    assert isinstance(judged(forge, forge.release_op("spring", plan), rule="rest"), Applied)


# --- ramps ---


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (PLAN, replace(PLAN, gate=half()), Fraction(1, 2)),
        (replace(PLAN, gate=half()), replace(PLAN, gate=replace(CLOSED, share=60_000)), Fraction(1, 10)),
        (replace(PLAN, gate=half()), PLAN, Fraction(0)),
        (PLAN, replace(PLAN, gate=replace(CLOSED, audience=True)), Fraction(0)),
        (replace(PLAN, gate=half()), replace(PLAN, gate=half(), salt="others"), Fraction(1)),
        (PLAN, replace(PLAN, gate=replace(CLOSED, walk=Walk.ON)), Fraction(1, 2)),
        (PLAN, replace(PLAN, gate=replace(CLOSED, walk=Walk.ON), stages=STAGES[:1]), Fraction(1, 100)),
        (PLAN, None, Fraction(0)),
    ],
)
def test_release_moves_at_most_this_share_of_users_by_a_change(before, after, moved):
    forge = Forge()
    forge.genesis()
    flag = forge.op("cart.spring", gated_flag("spring"))
    made = forge.ledger.snapshot.fold(Seq(2), [forge.release_op("spring", replace(before, gate=CLOSED)), flag])
    made = made.fold(Seq(3), [forge.release_op("spring", before, version=2)])
    op = replace(forge.release_op("spring", after), expected_version=Seq(3))
    ops = [op]
    if after is None:
        ops.append(Op(Target.FLAG, Source(""), FlagKey("cart.spring"), Seq(2), Action.DELETE, None))
    change = changes_between(made, made.fold(Seq(4), ops), ops)[0]
    assert share_moved(change) == moved
