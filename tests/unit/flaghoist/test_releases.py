"""Releases in the ledger: gates, stages, requirements, exact reverts, steps; each judged by the verifier itself."""

import re
from dataclasses import replace

import pytest

from flaghoist.definition import encode_flag
from flaghoist.errors import BadDefinition
from flaghoist.evaluation import evaluate
from flaghoist.outcomes import Applied, Prepared, Rejected, Stepped
from flaghoist.records import Op, Preparation, Release, Step
from flaghoist.release_plan import SHARE_MAX, Gate, Stage, Walk, encode_drill
from flaghoist.rollback import check_rollback
from flaghoist.state_root import state_root
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from tests.forge import (
    ADA,
    DAY_MS,
    EMERGENCY_LABEL,
    GRACE,
    LINUS,
    NOW_MS,
    Forge,
    Key,
    boolean_flag,
    gated_flag,
    release_plan,
)

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
    drill = Op(Target.DRILL, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_drill(hoisted=True))
    refused = put(forge, forge.op("lamp", boolean_flag("on")), drill)
    assert isinstance(refused, Rejected)
    assert "want ops on DRILL, and nothing else, in a DRILL" in str(refused.refusal)


def drill_op(forge: Forge, key: str = "spring", *, source: str = "") -> Op:
    op = Op(Target.DRILL, Source(source), FlagKey(key), Seq(0), Action.PUT, encode_drill(hoisted=True))
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def kill_op(forge: Forge, key: str, target: Target = Target.RELEASE) -> Op:
    op = Op(target, Source(""), FlagKey(key), Seq(0), Action.KILL, None)
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def refused(forge: Forge, *ops: Op, **changes: object) -> str:
    """What readers say to a change that they refuse; it must leave everything as it was."""
    root = state_root(forge.ledger.snapshot)
    outcome = put(forge, *ops, **changes)
    assert isinstance(outcome, Rejected)
    assert state_root(forge.ledger.snapshot) == root
    return f"{outcome.refusal.code}: {outcome.refusal}"


def emergency(forge: Forge, *ops: Op, **changes: object) -> object:
    told = {"kind": ProposalKind.EMERGENCY, "expires_at": forge.now_ms + 600_000, **changes}
    proposal = forge.proposal(*ops, by=GRACE, signed_by=Key(GRACE, EMERGENCY_LABEL), **told)
    return take(forge, Release(proposal, (), "emergency"))


def drill(forge: Forge, *ops: Op, **changes: object) -> object:
    return take(forge, Release(forge.proposal(*ops, kind=ProposalKind.DRILL, **changes), (), "drill"))


# --- moments ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lead_ms": 0}, "want a lead_ms of 1 .. 300000, got 0"),
        ({"lead_ms": 300_001}, "want a lead_ms of 1 .. 300000, got 300001"),
        ({"acked_percent": 0}, "want an acked_percent of 1 .. 100, got 0"),
        ({"acked_percent": 101}, "want an acked_percent of 1 .. 100, got 101"),
        ({"lead_ms": 1, "activate_at": NOW_MS + 1}, "want activate_at or lead_ms, got both"),
        ({"activate_at": NOW_MS - 1}, "expired: .* its moment was over"),
        ({"activate_at": NOW_MS + 300_001}, "not_yet: .* want it published at most 300000 ms ahead"),
    ],
    ids=str,
)
def test_moment_that_cannot_be_is_refused(forge, changes, said):
    assert re.search(said, refused(forge, forge.hoist("spring", share=SHARE_MAX), **changes))


@pytest.mark.parametrize("changes", [{"lead_ms": 1}, {"activate_at": NOW_MS + 1}, {"acked_percent": 1}], ids=str)
def test_emergencies_and_drills_have_no_moment(forge, changes):
    for outcome in (emergency(forge, kill_op(forge, "spring"), **changes), drill(forge, drill_op(forge), **changes)):
        assert isinstance(outcome, Rejected)
        assert "without a moment: it takes effect at once" in str(outcome.refusal)


@pytest.mark.parametrize(("ahead_ms", "wanted"), [(0, Applied), (300_000, Applied)])
def test_moment_may_be_now_or_five_minutes_ahead(forge, ahead_ms, wanted):
    outcome = put(forge, forge.hoist("spring", share=SHARE_MAX), activate_at=NOW_MS + ahead_ms)
    assert isinstance(outcome, wanted)
    assert outcome.in_force_at_ms == NOW_MS + ahead_ms


def test_soak_counts_from_the_moment_on_at_which_a_stage_took_effect(forge):
    put(forge, forge.hoist("spring", share=1000, walk=Walk.ON), lead_ms=30_000)
    release = forge.ledger.snapshot.releases[FlagKey("spring")]
    assert release.soaked_at_ms == NOW_MS + 30_000 + 60_000
    forge.now_ms = release.soaked_at_ms
    put(forge, forge.release_op("spring", replace(forge.plan("spring"), lead_ms=5000)))
    version = forge.ledger.snapshot.releases[FlagKey("spring")].version
    stepped = take(forge, Step(FlagKey("spring"), version, 1))
    assert isinstance(stepped, Stepped)
    assert stepped.in_force_at_ms == forge.now_ms + 5000
    assert forge.ledger.snapshot.releases[FlagKey("spring")].soaked_at_ms == forge.now_ms + 5000 + 60_000


# --- preparations ---


def test_preparation_is_judged_as_its_release_will_be(forge):
    op = forge.hoist("spring", share=SHARE_MAX)
    alone = forge.proposal(op, acked_percent=95)
    without = take(forge, Preparation(Release(alone, (), "approvals>=1")))
    assert isinstance(without, Rejected)
    assert without.refusal.code == "not_approved"
    plain = take(forge, Preparation(forge.release(op)))
    assert isinstance(plain, Rejected)
    assert "want a proposal prepared only if it asks for acknowledgements" in str(plain.refusal)


def test_each_publication_takes_a_preparation_of_its_own(forge):
    proposal = forge.proposal(
        forge.release_op("spring", replace(forge.plan("spring"), title="again")), acked_percent=95
    )
    body = Release(proposal, (forge.approval(proposal),), "approvals>=1")
    assert isinstance(take(forge, Preparation(body)), Prepared)
    assert isinstance(take(forge, body), Applied)
    again = take(forge, body)
    assert isinstance(again, Rejected)


# --- steps ---


@pytest.mark.parametrize(
    ("walk", "changes", "said"),
    [
        (Walk.OFF, {}, "its walk is off"),
        (Walk.PAUSED, {}, "its walk is paused"),
        (Walk.ON, {"release": FlagKey("nowhere")}, "there is none of this name"),
        (Walk.ON, {"expected_version": Seq(2)}, "expected version 2, it is at 3"),
        (Walk.ON, {"stage": 1}, "want the next stage, 0, got 1"),
        (Walk.ON, {"stage": 7}, "want the next stage, 0, got 7"),
    ],
    ids=str,
)
def test_step_that_no_plan_says_is_refused(forge, walk, changes, said):
    put(forge, forge.hoist("spring", walk=walk))
    outcome = take(forge, replace(Step(FlagKey("spring"), Seq(3), 0), **changes))
    assert isinstance(outcome, Rejected)
    assert said in str(outcome.refusal)


def test_walk_ends_with_its_last_stage_and_shuts_nobody_out(forge):
    put(forge, forge.hoist("spring", share=30_000, walk=Walk.ON))
    shares = []
    for _ in range(2):
        release = forge.ledger.snapshot.releases[FlagKey("spring")]
        forge.now_ms = release.soaked_at_ms
        assert isinstance(take(forge, Step(FlagKey("spring"), release.version, release.plan.next_stage)), Stepped)
        gate = forge.ledger.snapshot.releases[FlagKey("spring")].plan.gate
        shares.append((gate.share, gate.walk))
    assert shares == [(50_000, Walk.ON), (SHARE_MAX, Walk.OFF)]


def test_step_after_a_ramp_of_the_audience_keeps_the_share_that_somebody_set():
    plan = release_plan("a", stages=(Stage("staff", True, 0, 0),), audience={"==": [1, 1]}, gate=Gate(share=5000))
    assert plan.at_stage(0).gate.share == 5000


# --- gates ---


def test_gate_opens_only_when_all_flags_of_the_release_go_through_it(forge):
    plan = forge.plan("spring", share=1000)
    nowhere = replace(plan, flags=(*plan.flags, (Source(""), FlagKey("nowhere"))))
    assert "want flags that exist" in refused(forge, forge.release_op("spring", nowhere))
    put(forge, forge.op("lamp", boolean_flag("on")))
    beside = replace(plan, flags=(*plan.flags, (Source(""), FlagKey("lamp"))))
    assert "want flags that refer to" in refused(forge, forge.release_op("spring", beside))
    wired = forge.op("cart.spring", gated_flag("spring", metadata={"n": 1}))
    assert "changes no flag of it" in refused(forge, wired, forge.release_op("spring", plan))
    assert isinstance(put(forge, forge.release_op("spring", plan)), Applied)
    # It is open already: a flag may be edited beside it.
    assert isinstance(
        put(forge, forge.op("cart.spring", gated_flag("spring")), forge.hoist("spring", share=2000)), Applied
    )


def test_gates_name_belongs_to_one_thing(forge):
    rule = {"==": [1, 1]}
    assert "want an op on the release" in refused(forge, forge.evaluator_op("release.spring", rule, source="shop"))
    beside = forge.release_op("new", release_plan("x")), forge.evaluator_op("release.new", rule)
    assert "release.new" in refused(forge, *beside)
    assert "release.new" in refused(forge, *reversed(beside))
    put(forge, forge.evaluator_op("release.later", rule, source="shop"), forge.evaluator_op("drill.later", rule))
    assert "there is one" in refused(forge, forge.release_op("later", release_plan("x")))
    shadowed = drill(forge, drill_op(forge, "later"))
    assert isinstance(shadowed, Rejected)
    assert "there is one" in str(shadowed.refusal)


def test_releases_and_drills_have_no_source(forge):
    op = forge.release_op("new", release_plan("x"))
    assert "release of no source, got 'shop'" in refused(forge, replace(op, source=Source("shop")))
    outcome = drill(forge, drill_op(forge, source="shop"))
    assert isinstance(outcome, Rejected)
    assert "drill of no source" in str(outcome.refusal)


def test_release_that_flags_refer_to_is_not_deleted(forge):
    deleting = forge.release_op("spring", None)
    assert refused(forge, deleting).startswith("bad_definition")
    plain = [forge.op(key, boolean_flag()) for key in ("cart.spring", "mail.spring")]
    assert isinstance(put(forge, deleting, *plain), Applied)
    assert not forge.ledger.snapshot.releases


# --- what one release requires of another ---


@pytest.fixture
def two(forge: Forge) -> Forge:
    """`summer`, open for some, requires `spring`, open for everybody."""
    put(forge, forge.op("sun", gated_flag("summer")),
        forge.release_op("summer", release_plan("sun", requires=(FlagKey("spring"),))))  # fmt: skip
    put(forge, forge.hoist("spring", share=SHARE_MAX))
    assert isinstance(put(forge, forge.hoist("summer", share=1000)), Applied)
    return forge


def test_required_release_is_neither_lowered_nor_deleted_under_an_open_one(two):
    assert "requirement_unmet" in refused(two, two.hoist("spring", share=99_000))
    plain = [two.op(key, boolean_flag()) for key in ("cart.spring", "mail.spring")]
    assert "when it is deleted, got summer requires spring" in refused(two, two.release_op("spring", None), *plain)
    put(two, two.hoist("summer", share=0))
    assert "requirement_unmet" in refused(two, two.release_op("spring", None), *plain)
    assert isinstance(put(two, two.hoist("spring", share=0)), Applied)
    assert "requirement_unmet" in refused(two, two.release_op("spring", None), *plain)


def test_both_may_close_in_one_entry_and_a_kill_asks_nobody(two):
    assert isinstance(put(two, two.hoist("spring", share=0), two.hoist("summer", share=0)), Applied)
    assert isinstance(put(two, two.hoist("spring", share=SHARE_MAX), two.hoist("summer", share=SHARE_MAX)), Applied)
    assert isinstance(emergency(two, kill_op(two, "spring")), Applied)
    assert not two.ledger.snapshot.releases[FlagKey("summer")].plan.gate.closed
    assert "requirement_unmet" in refused(two, two.hoist("summer", share=50_000))
    assert isinstance(put(two, two.hoist("summer", share=0)), Applied)


def test_requirement_that_does_not_exist_is_refused(forge):
    plan = replace(forge.plan("spring"), requires=(FlagKey("nowhere"),))
    assert "want releases that exist, got 'nowhere'" in refused(forge, forge.release_op("spring", plan))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_circle_of_requirements_is_refused_with_all_of_it_shown(forge, length):
    names = [f"c{n}" for n in range(length)]
    for before, name in zip([None, *names], names, strict=False):
        requires = () if before is None else (FlagKey(before),)
        assert isinstance(put(forge, forge.release_op(name, release_plan("x", requires=requires))), Applied)
    closing = replace(forge.plan(names[0]), requires=(FlagKey(names[-1]),))
    said = refused(forge, forge.release_op(names[0], closing))
    assert said.startswith("requirement_unmet")
    assert said.count(" requires ") == length


# --- rollbacks ---


def rollback(forge: Forge, *ops: Op) -> str:
    return refused(forge, *ops, kind=ProposalKind.ROLLBACK)


def test_rollback_closes_gates_and_does_nothing_else(forge):
    put(forge, forge.hoist("spring", share=50_000, walk=Walk.ON))
    nothing_else = "want a ROLLBACK to close the gate and to change nothing else of the release"
    assert nothing_else in rollback(forge, forge.hoist("spring", share=1000, walk=Walk.OFF))
    assert nothing_else in rollback(forge, forge.hoist("spring", share=0))
    edited = replace(forge.plan("spring", share=0, walk=Walk.OFF), title="another")
    assert nothing_else in rollback(forge, forge.release_op("spring", edited))
    assert "do nothing else, got PUT of FLAG" in rollback(forge, forge.op("lamp", boolean_flag("on")))
    assert "do nothing else, got DELETE of RELEASE" in rollback(forge, forge.release_op("spring", None))
    assert "there is none of this name" in rollback(forge, forge.release_op("nowhere", release_plan("x")))
    paused = forge.hoist("spring", share=0, walk=Walk.PAUSED)
    assert isinstance(put(forge, paused, kind=ProposalKind.ROLLBACK), Applied)


@pytest.mark.parametrize(
    "changes",
    [{"source": Source("shop")}, {"definition": None}, {"action": Action.KILL}, {"target": Target.EVALUATOR}],
    ids=str,
)
def test_rollbacks_op_is_the_put_of_a_release_of_no_source(forge, changes):
    put(forge, forge.hoist("spring", share=50_000))
    op = forge.hoist("spring", share=0)
    check_rollback(forge.ledger.snapshot, [op])
    with pytest.raises(BadDefinition, match="close gates and do nothing else"):
        check_rollback(forge.ledger.snapshot, [replace(op, **changes)])


def test_flags_that_were_deleted_or_wired_since_a_gate_opened_stand_against_a_rollback(forge):
    put(forge, forge.hoist("spring", share=50_000))
    put(forge, forge.op("mail.spring", None))
    put(forge, forge.op("late", gated_flag("spring")))
    said = rollback(forge, forge.hoist("spring", share=0))
    assert "late was changed at seq 5" in said
    assert "mail.spring was deleted at seq 4" in said
    kept = tuple((Source(""), FlagKey(key)) for key in ("late", "mail.spring"))
    assert isinstance(put(forge, forge.hoist("spring", share=0, kept=kept), kind=ProposalKind.ROLLBACK), Applied)


def test_flag_that_was_changed_before_the_gate_opened_stands_against_nothing_however_often_it_was_ramped(forge):
    put(forge, forge.op("mail.spring", gated_flag("spring", metadata={"n": 1})))
    for share in (1000, 2000, 50_000):
        put(forge, forge.hoist("spring", share=share))
    release = forge.ledger.snapshot.releases[FlagKey("spring")]
    assert release.opened_at == Seq(4)
    assert isinstance(put(forge, forge.hoist("spring", share=0), kind=ProposalKind.ROLLBACK), Applied)
    put(forge, forge.hoist("spring", share=1000))
    put(forge, forge.op("mail.spring", gated_flag("spring", metadata={"n": 2})))
    put(forge, forge.hoist("spring", share=2000))
    assert "mail.spring was changed at seq 9" in rollback(forge, forge.hoist("spring", share=0))


def test_rollback_of_a_closed_release_conflicts_with_nothing(forge):
    put(forge, forge.op("mail.spring", gated_flag("spring", metadata={"n": 1})))
    assert isinstance(put(forge, forge.hoist("spring", share=0), kind=ProposalKind.ROLLBACK), Applied)


# --- drills ---


def test_drill_does_nothing_but_drill_asks_nobody_and_forbids_no_pins(forge):
    for outcome, said in (
        (drill(forge, forge.op("lamp", boolean_flag("on"))), "want ops on DRILL, and nothing else"),
        (drill(forge, drill_op(forge), forge.op("lamp", boolean_flag("on"))), "want ops on DRILL, and nothing else"),
        (drill(forge, drill_op(forge), min_pin=Seq(1)), "want a DRILL without a min_pin"),
    ):
        assert isinstance(outcome, Rejected)
        assert said in str(outcome.refusal)
    assert "in a DRILL, got them in a CHANGE" in refused(forge, drill_op(forge))
    proposal = forge.proposal(drill_op(forge), kind=ProposalKind.DRILL)
    approved = take(forge, Release(proposal, (forge.approval(proposal),), "drill"))
    assert isinstance(approved, Rejected)
    assert "want a DRILL without approvals, got 1" in str(approved.refusal)


def test_drill_moves_no_time_so_that_nobody_alone_can_date_the_ledger_ahead(forge):
    before = forge.ledger.head.published_at
    proposal = forge.proposal(drill_op(forge), kind=ProposalKind.DRILL)
    assert isinstance(take(forge, Release(proposal, (), "drill"), published_at=NOW_MS + 6 * DAY_MS), Applied)
    assert forge.ledger.head.published_at == before


# --- whom the policy asks ---


def test_strict_flag_behind_a_gate_is_judged_when_it_opens_or_is_walked(forge):
    policy = "version: 1\nrules:\n  - {name: strict, when: {team: pay}, approvals: 2}\n  - {name: any}\n"
    forge.rotate(Key(ADA), policy=policy)
    document = encode_flag(gated_flag("spring"), {"team": "pay"})
    op = replace(forge.op("cart.spring", gated_flag("spring")), definition=document)
    both = forge.proposal(op)
    approvals = tuple(forge.approval(both, by=person) for person in (GRACE, LINUS))
    assert isinstance(take(forge, Release(both, approvals, "strict+any")), Applied)
    for gate in ({"share": 1000}, {"walk": Walk.ON}):
        proposal = forge.proposal(forge.hoist("spring", **gate))
        outcome = take(forge, Release(proposal, (forge.approval(proposal),), "any"))
        assert isinstance(outcome, Rejected)
        assert "'strict'" in str(outcome.refusal)
    inert = forge.proposal(forge.hoist("spring", walk=Walk.PAUSED))
    assert isinstance(take(forge, Release(inert, (forge.approval(inert),), "any")), Applied)


def test_step_that_is_dated_ahead_goes_no_further_than_the_plan_and_moves_no_time(forge):
    """Whoever has the publisher's key can hurry a walk: a step is judged by the time that its entry says."""
    put(forge, forge.hoist("spring", share=1000, walk=Walk.ON))
    version, before = forge.ledger.snapshot.releases[FlagKey("spring")].version, forge.ledger.head.published_at
    assert isinstance(take(forge, Step(FlagKey("spring"), version, 2), published_at=NOW_MS + DAY_MS), Rejected)
    hurried = take(forge, Step(FlagKey("spring"), version, 1), published_at=NOW_MS + DAY_MS)
    assert isinstance(hurried, Stepped)
    assert forge.ledger.head.published_at == before
    # People stop it at any time, and the walk that they let go on soaks from then.
    assert isinstance(put(forge, forge.hoist("spring", walk=Walk.PAUSED)), Applied)
    assert isinstance(put(forge, forge.hoist("spring", walk=Walk.ON)), Applied)
    assert forge.ledger.snapshot.releases[FlagKey("spring")].soaked_at_ms == forge.now_ms + 60_000


@pytest.mark.parametrize(
    "audience", [{"iff": [1, 2]}, {"$ref": "staff"}], ids=["unknown operator", "unknown reference"]
)
def test_release_whose_audience_cannot_be_served_is_rejected_before_it_opens(forge, audience):
    refused = put(forge, forge.release_op("spring", replace(forge.plan("spring"), audience=audience)))
    assert isinstance(refused, Rejected)
    assert refused.refusal.code == "bad_definition"
    assert "release.spring.audience" in str(refused.refusal)
