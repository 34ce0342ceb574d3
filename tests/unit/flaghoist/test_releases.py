"""Releases in the ledger: gates, stages, requirements, exact reverts, steps; each judged by the verifier itself."""

from dataclasses import replace

import pytest

from flaghoist.outcomes import Applied, Prepared, Rejected, Stepped
from flaghoist.records import Op, Preparation, Release, Step
from flaghoist.release_plan import SHARE_MAX, Stage, Walk
from flaghoist.state_root import state_root
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from tests.forge import EMERGENCY_LABEL, GRACE, Forge, Key, boolean_flag, gated_flag, release_plan

STAGES = (Stage("one", False, 1000, 60), Stage("half", False, 50_000, 60), Stage("all", False, SHARE_MAX, 0))


@pytest.fixture
def forge() -> Forge:
    """A ledger with a closed release, `spring`, of two flags of two services."""
    made = Forge(root_options={"emergency": (GRACE,)})
    made.genesis()
    plan = release_plan("cart.spring", "mail.spring", stages=STAGES)
    put(
        made,
        made.release_op("spring", plan),
        made.op("cart.spring", gated_flag("spring")),
        made.op("mail.spring", gated_flag("spring")),
    )
    return made


def put(forge: Forge, *ops: Op, **changes: object) -> object:
    """Append a release of these ops, changed as told, and return its outcome."""
    proposal = forge.proposal(*ops, **changes)
    body = Release(proposal, (forge.approval(proposal),), forge.release(*ops).policy)
    return take(forge, body)


def take(forge: Forge, body: object, **changes: object) -> object:
    data = forge.signed(forge.entry(body, **changes))
    outcome = forge.ledger.judge(data)
    forge.ledger.receive(data)
    forge.records.append(data)
    return outcome


def answers(forge: Forge, user: str) -> set[str | None]:
    from flaghoist.evaluation import evaluate

    view = forge.ledger.snapshot.view
    return {evaluate(view, key, {"targetingKey": user}, now_s=0).variant for key in ("cart.spring", "mail.spring")}


def test_one_op_on_the_gate_turns_all_flags_of_a_release_and_another_takes_them_back(forge):
    assert answers(forge, "u1") == {"off"}
    before = forge.ledger.snapshot
    assert isinstance(put(forge, forge.hoist("spring", share=SHARE_MAX)), Applied)
    assert answers(forge, "u1") == {"on"}
    closing = forge.hoist("spring", share=0)
    assert isinstance(put(forge, closing, kind=ProposalKind.ROLLBACK), Applied)
    assert answers(forge, "u1") == {"off"}
    for flag in before.flags():
        assert forge.ledger.snapshot.flag(flag.source, flag.key) is not None
    assert forge.ledger.snapshot.releases[FlagKey("spring")].opened_at is None


def test_a_share_lets_the_same_users_through_for_every_flag(forge):
    put(forge, forge.hoist("spring", share=30_000))
    users = [f"user-{n}" for n in range(2000)]
    assert all(len(answers(forge, user)) == 1 for user in users)
    through = [user for user in users if answers(forge, user) == {"on"}]
    assert 500 < len(through) < 700
    put(forge, forge.hoist("spring", share=60_000))
    assert all(answers(forge, user) == {"on"} for user in through)


def test_rollback_over_a_changed_flag_is_refused_unless_it_keeps_it(forge):
    put(forge, forge.hoist("spring", share=SHARE_MAX))
    put(forge, forge.op("mail.spring", gated_flag("spring", metadata={"note": "edited"})))
    refused = put(forge, forge.hoist("spring", share=0), kind=ProposalKind.ROLLBACK)
    assert isinstance(refused, Rejected)
    assert refused.refusal.code == "revert_conflict"
    assert "mail.spring was changed at seq 4" in str(refused.refusal)
    assert "--keep mail.spring" in refused.refusal.hint
    kept = ((Source(""), FlagKey("mail.spring")),)
    assert isinstance(put(forge, forge.hoist("spring", share=0, kept=kept), kind=ProposalKind.ROLLBACK), Applied)


def test_step_takes_the_next_stage_when_the_one_before_has_soaked(forge):
    put(forge, forge.hoist("spring", walk=Walk.ON))
    release = forge.ledger.snapshot.releases[FlagKey("spring")]
    first = take(forge, Step(FlagKey("spring"), release.version, 0))
    assert isinstance(first, Stepped)
    version = forge.ledger.snapshot.releases[FlagKey("spring")].version
    early = take(forge, Step(FlagKey("spring"), version, 1))
    assert isinstance(early, Rejected)
    assert early.refusal.code == "not_yet"
    forge.now_ms += 60_000
    assert isinstance(take(forge, Step(FlagKey("spring"), version, 1)), Stepped)
    again = take(forge, Step(FlagKey("spring"), version, 1))
    assert isinstance(again, Rejected)
    assert again.refusal.code == "stale_base"
    version = forge.ledger.snapshot.releases[FlagKey("spring")].version
    skipped = take(forge, Step(FlagKey("spring"), version, 1))
    assert isinstance(skipped, Rejected)


def test_release_that_asks_for_acknowledgements_must_be_prepared_first(forge):
    proposal = forge.proposal(forge.hoist("spring", share=SHARE_MAX), lead_ms=2000, acked_percent=95)
    body = Release(proposal, (forge.approval(proposal),), forge.release(forge.hoist("spring")).policy)
    assert isinstance(take(forge, body), Rejected)
    prepared = take(forge, Preparation(body))
    assert isinstance(prepared, Prepared)
    done = take(forge, body)
    assert isinstance(done, Applied)
    assert done.in_force_at_ms == done.entry.published_at + 2000


def test_requirement_must_be_active_and_cannot_be_reverted_first(forge):
    put(forge, forge.release_op("summer", release_plan("sun", requires=(FlagKey("spring"),))),
        forge.op("sun", gated_flag("summer")))  # fmt: skip
    early = put(forge, forge.hoist("summer", share=1000))
    assert isinstance(early, Rejected)
    assert "summer requires spring" in str(early.refusal)
    put(forge, forge.hoist("spring", share=SHARE_MAX))
    assert isinstance(put(forge, forge.hoist("summer", share=1000)), Applied)
    under = put(forge, forge.hoist("spring", share=0), kind=ProposalKind.ROLLBACK)
    assert isinstance(under, Rejected)
    assert "got summer requires spring" in str(under.refusal)
    circle = put(forge, forge.release_op("spring", replace(forge.plan("spring"), requires=(FlagKey("summer"),))))
    assert isinstance(circle, Rejected)
    assert "circle" in str(circle.refusal)


def test_drill_needs_no_approval_and_changes_no_flag(forge):
    from flaghoist.release_plan import encode_drill

    before, root = forge.ledger.snapshot.view, state_root(forge.ledger.snapshot)
    op = Op(Target.DRILL, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_drill(hoisted=True))
    proposal = forge.proposal(op, kind=ProposalKind.DRILL)
    assert isinstance(take(forge, Release(proposal, (), "drill")), Applied)
    assert dict(forge.ledger.snapshot.view.flags) == dict(before.flags)
    assert state_root(forge.ledger.snapshot) != root


def test_emergency_may_close_a_release(forge):
    put(forge, forge.hoist("spring", share=SHARE_MAX))
    op = Op(Target.RELEASE, Source(""), FlagKey("spring"), Seq(3), Action.KILL, None)
    told = {"kind": ProposalKind.EMERGENCY, "expires_at": forge.now_ms + 600_000}
    proposal = forge.proposal(op, by=GRACE, signed_by=Key(GRACE, EMERGENCY_LABEL), **told)
    assert isinstance(take(forge, Release(proposal, (), "emergency")), Applied)
    assert answers(forge, "u1") == {"off"}


def test_evaluator_of_a_releases_name_belongs_to_the_release(forge):
    refused = put(forge, forge.evaluator_op("release.spring", {"==": [1, 1]}))
    assert isinstance(refused, Rejected)
    assert "want an op on the release" in str(refused.refusal)
    assert isinstance(put(forge, forge.op("cart.other", boolean_flag("on"))), Applied)


def test_change_with_a_drill_among_its_ops_is_refused(forge):
    from flaghoist.release_plan import encode_drill

    drill = Op(Target.DRILL, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_drill(hoisted=True))
    refused = put(forge, forge.op("lamp", boolean_flag("on")), drill)
    assert isinstance(refused, Rejected)
    assert "want ops on DRILL, and nothing else, in a DRILL" in str(refused.refusal)
