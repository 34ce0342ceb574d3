"""What a stolen key can do to releases: a publisher's with steps and moments, a requester's with drills."""

from dataclasses import replace

import pytest

from flaghoist.barrier import InForce
from flaghoist.codec import PROPOSAL
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Rejected, Stepped
from flaghoist.policy import DRILL_RULE
from flaghoist.records import Op, Preparation, Release, Step
from flaghoist.release_plan import LEAD_MS_MAX, SHARE_MAX, Stage, Walk, encode_drill
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from tests.forge import ADA, DAY_MS, GRACE, Forge, Key, allowing_rule, boolean_flag, gated_flag, release_plan

SPRING = FlagKey("spring")
STAGES = (Stage("1%", False, 1000, 3600), Stage("half", False, 50_000, 3600), Stage("all", False, SHARE_MAX, 0))
LATER = 40 * DAY_MS


@pytest.fixture
def forge() -> Forge:
    """A ledger with a release of one flag that its people walk through three stages of an hour."""
    made = Forge()
    made.genesis()
    plan = release_plan("cart.spring", stages=STAGES)
    made.append(made.release(made.release_op("spring", plan), made.op("cart.spring", gated_flag("spring"))))
    made.append(made.release(made.hoist("spring", walk=Walk.ON)))
    return made


def tried(forge: Forge, body: object, **changes: object) -> object:
    """What readers make of an entry that the publisher's key has signed; taken as well."""
    return forge.ledger.receive(forge.signed(forge.entry(body, **changes)))


def version(forge: Forge) -> Seq:
    return forge.ledger.snapshot.releases[SPRING].version


def drill(forge: Forge, **changes: object) -> Release:
    op = Op(Target.DRILL, Source(""), SPRING, Seq(0), Action.PUT, encode_drill(hoisted=True))
    op = replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))
    return Release(forge.proposal(op, kind=ProposalKind.DRILL, **changes), (), DRILL_RULE)


def test_publisher_that_dates_its_steps_ahead_walks_an_approved_plan_at_once_and_no_further(forge):
    for stage in range(3):
        ahead = forge.now_ms + LATER + stage * DAY_MS
        assert isinstance(tried(forge, Step(SPRING, version(forge), stage), published_at=ahead), Stepped)
    assert forge.ledger.snapshot.releases[SPRING].plan.gate.walk is Walk.OFF
    for stage in (0, 2, 3, -1):
        assert isinstance(tried(forge, Step(SPRING, version(forge), stage), published_at=ahead + LATER), Rejected)


@pytest.mark.parametrize("walk", [Walk.OFF, Walk.PAUSED])
def test_publisher_steps_no_release_whose_people_have_not_set_it_walking(walk, forge):
    forge.append(forge.release(forge.hoist("spring", walk=walk)))
    outcome = tried(forge, Step(SPRING, version(forge), 0), published_at=forge.now_ms + LATER)
    assert isinstance(outcome, Rejected)
    assert forge.ledger.snapshot.releases[SPRING].plan.gate.closed


def test_publisher_skips_no_stage_and_steps_no_older_plan(forge):
    older = version(forge)
    assert isinstance(tried(forge, Step(SPRING, older, 1), published_at=forge.now_ms + LATER), Rejected)
    forge.append(forge.release(forge.hoist("spring", share=500)))
    outcome = tried(forge, Step(SPRING, older, 0), published_at=forge.now_ms + LATER)
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "stale_base"


@pytest.mark.parametrize("ahead", ["step", "preparation", "drill"])
def test_entry_that_a_publisher_dates_ahead_lets_no_approval_expire(ahead, forge):
    shown = forge.proposal(forge.op("other", boolean_flag()), acked_percent=50, expires_at=forge.now_ms + LATER)
    approval = forge.approval(shown, expires_at=forge.now_ms + LATER)
    body = {
        "step": Step(SPRING, version(forge), 0),
        "preparation": Preparation(Release(shown, (approval,), allowing_rule(forge.root))),
        "drill": drill(forge, expires_at=forge.now_ms + LATER),
    }[ahead]
    outcome = tried(forge, body, published_at=forge.now_ms + LATER)
    assert not isinstance(outcome, Rejected)
    assert forge.ledger.head.published_at == forge.now_ms
    assert isinstance(tried(forge, forge.release(forge.op("cart.spring", gated_flag("spring")))), Applied)


def test_publisher_moves_no_moment_that_people_have_signed(forge):
    proposal = forge.proposal(forge.hoist("spring", share=1000), activate_at=forge.now_ms + 60_000)
    approval = forge.approval(proposal)
    moved = replace(PROPOSAL.decode(proposal.payload), activate_at=None)
    edited = replace(proposal, payload=PROPOSAL.encode(moved))
    outcome = tried(forge, Release(edited, (approval,), allowing_rule(forge.root)))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "bad_signature"
    late = tried(forge, Release(proposal, (approval,), allowing_rule(forge.root)), published_at=forge.now_ms + 60_001)
    assert isinstance(late, Rejected)
    assert late.refusal.code == "expired"


def test_entry_dated_ahead_holds_a_reader_up_for_five_minutes_at_most(forge):
    reader, in_force = Ledger(forge.first_root), None
    proposal = forge.proposal(forge.hoist("spring", share=1000), lead_ms=2000)
    approval = forge.approval(proposal)
    body = Release(proposal, (approval,), allowing_rule(forge.root))
    forge.append(body, published_at=approval_ends(forge))
    for data in forge.records:
        link = reader.receive(data)
        in_force = (in_force or InForce(reader.snapshot)).take(link, reader.snapshot, now_ms=forge.now_ms)
    assert in_force.next_at_ms == forge.now_ms + LEAD_MS_MAX
    assert in_force.at(forge.now_ms + LEAD_MS_MAX).snapshot.seq == reader.head.seq


def approval_ends(forge: Forge) -> int:
    return forge.now_ms + DAY_MS


def test_requesters_drill_changes_no_answer_and_no_pin(forge):
    before, min_pin = forge.ledger.snapshot.view.flags, forge.ledger.min_pin
    assert isinstance(tried(forge, drill(forge)), Applied)
    assert forge.ledger.snapshot.view.flags == before
    outcome = tried(forge, drill(forge, min_pin=Seq(1)))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "bad_definition"
    assert forge.ledger.min_pin == min_pin


def test_drill_takes_no_name_that_a_flag_may_refer_to_already(forge):
    rule = {"==": [{"var": "plan"}, "gold"]}
    flag = boolean_flag(targeting={"if": [{"$ref": "drill.spring"}, "on", "off"]})
    forge.append(forge.release(forge.evaluator_op("drill.spring", rule), forge.op("gold", flag)))
    outcome = tried(forge, drill(forge))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "bad_definition"


def test_drill_with_anything_else_in_it_is_no_drill(forge):
    op = forge.hoist("spring", share=1000)
    (rehearsal,) = PROPOSAL.decode(drill(forge).proposal.payload).ops
    for ops in ((op,), (rehearsal, op)):
        outcome = tried(forge, Release(forge.proposal(*ops, kind=ProposalKind.DRILL), (), DRILL_RULE))
        assert isinstance(outcome, Rejected)
        assert outcome.refusal.code == "bad_definition"


def test_drill_by_nobody_who_may_propose_is_rejected(forge):
    proposal = drill(forge).proposal
    op = PROPOSAL.decode(proposal.payload).ops[0]
    stolen = forge.proposal(op, by=GRACE, signed_by=Key(ADA), kind=ProposalKind.DRILL)
    outcome = tried(forge, Release(stolen, (), DRILL_RULE))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "wrong_role"
