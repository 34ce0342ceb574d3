"""Moves of a release's gate: what the words of an operator mean, and what readers would say, before anybody signs."""

import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from flaghoist.errors import BadDefinition
from flaghoist.outcomes import Applied, Rejected
from flaghoist.policy import PolicyRefused
from flaghoist.records import Release
from flaghoist.release_plan import SHARE_MAX, Gate, Stage, Walk
from flaghoist.release_state import ReleaseState, RequirementUnmet
from flaghoist.rollback import RevertConflict
from flaghoist.root import Root
from flaghoist.snapshot import Snapshot
from flaghoist.values import FlagKey, ProposalKind, Source
from publisher.releases import hoist
from publisher.releases.wiring import find_release
from tests.forge import ADA, GRACE, NOW_MS, Forge, boolean_flag, gated_flag, release_plan, root_record, sealed_root

STAGES = (
    Stage("internal", True, 0, 3600),
    Stage("1%", True, 1000, 3600),
    Stage("half", True, 50_000, 60),
    Stage("all", True, SHARE_MAX, 0),
)
STAFF = {"ends_with": [{"var": "email"}, "@example.org"]}
SPRING = FlagKey("spring")


@pytest.fixture
def forge() -> Forge:
    """A ledger with a closed release of two flags and four stages."""
    made = Forge()
    made.genesis()
    plan = release_plan(
        "cart.spring", "mail.spring", stages=STAGES, audience=STAFF, services=("cart", "mail"), team="shop"
    )
    made.append(
        made.release(
            made.release_op("spring", plan),
            made.op("cart.spring", gated_flag("spring")),
            made.op("mail.spring", gated_flag("spring")),
        )
    )
    return made


def state(forge: Forge) -> ReleaseState:
    return find_release(forge.ledger.snapshot.releases, "spring")


def opened(forge: Forge, **gate: object) -> ReleaseState:
    """Open the gate as told."""
    forge.append(forge.release(forge.hoist("spring", **gate)))
    return state(forge)


def taken(forge: Forge, move: hoist.Move) -> object:
    """What every reader says to an entry with this move."""
    proposal = forge.proposal(move.op, kind=move.kind)
    body = Release(proposal, (forge.approval(proposal),), forge.release(move.op).policy)
    return forge.ledger.judge(forge.signed(forge.entry(body)))


def gate_of(move: hoist.Move) -> tuple[bool, int, Walk]:
    gate = move.plan.gate
    return gate.audience, gate.share, gate.walk


# --- ramp ---


@pytest.mark.parametrize(
    ("goal", "gate"),
    [
        ("10%", (False, 10_000)),
        ("10 %", (False, 10_000)),
        ("0.001%", (False, 1)),
        ("100%", (False, SHARE_MAX)),
        ("internal", (True, 0)),
        ("1%", (True, 1000)),
        ("half", (True, 50_000)),
    ],
)
def test_goal_is_a_share_of_all_users_or_a_stage_by_name(forge, goal, gate):
    assert gate_of(hoist.ramp(state(forge), goal)) == (*gate, Walk.OFF)


@pytest.mark.parametrize(
    "goal", ["", "10", "halt", "-1%", "%", "1e3%", "nan%", "101%", "0.0001%", "0%", "ten%", "1_0%"]
)
def test_goal_that_is_neither_is_refused(forge, goal):
    with pytest.raises(BadDefinition, match="want"):
        hoist.ramp(state(forge), goal)


def test_unknown_goal_names_the_stages(forge):
    with pytest.raises(BadDefinition, match=r"a stage of the plan \(internal, 1%, half, all\), got 'haf'"):
        hoist.ramp(state(forge), "haf")


def test_later_stage_shuts_nobody_out_who_was_let_through_before(forge):
    wide = opened(forge, share=20_000)
    assert gate_of(hoist.ramp(wide, "internal")) == (True, 20_000, Walk.OFF)
    assert gate_of(hoist.ramp(wide, "half")) == (True, 50_000, Walk.OFF)


def test_earlier_stage_takes_back_what_came_after_it(forge):
    wide = opened(forge, audience=True, share=50_000)
    assert gate_of(hoist.ramp(wide, "1%")) == (True, 1000, Walk.OFF)


def test_goal_that_is_reached_already_changes_nothing(forge):
    wide = opened(forge, audience=True, share=50_000)
    assert not hoist.ramp(wide, "half").changes
    assert not hoist.ramp(wide, "50%").changes
    assert not hoist.activate(opened(forge, share=SHARE_MAX)).changes
    assert not hoist.ramp(opened(forge, audience=False), "all").changes


def test_walk_goes_on_after_a_ramp_and_pauses_after_one_that_takes_back(forge):
    walked = opened(forge, audience=True, share=1000, walk=Walk.ON)
    assert gate_of(hoist.ramp(walked, "2%")) == (True, 2000, Walk.ON)
    assert gate_of(hoist.ramp(walked, "internal")) == (True, 0, Walk.PAUSED)
    assert gate_of(hoist.ramp(walked, "internal", walk=True)) == (True, 0, Walk.ON)
    assert gate_of(hoist.ramp(walked, "all")) == (True, SHARE_MAX, Walk.OFF)
    assert gate_of(hoist.ramp(walked, "100%")) == (True, SHARE_MAX, Walk.OFF)


def test_walk_begins_with_or_without_a_goal(forge):
    assert gate_of(hoist.ramp(state(forge), None, walk=True)) == (False, 0, Walk.ON)
    assert gate_of(hoist.ramp(state(forge), "1%", walk=True)) == (True, 1000, Walk.ON)


def test_walk_without_a_stage_to_walk_to_is_refused(forge):
    with pytest.raises(BadDefinition, match="it has reached the last one"):
        hoist.ramp(state(forge), "100%", walk=True)
    bare = replace(state(forge), plan=replace(state(forge).plan, stages=(), gate=Gate()))
    with pytest.raises(BadDefinition, match="want stages to walk through") as refusal:
        hoist.ramp(bare, "1%", walk=True)
    assert "flaghoist release edit spring --stage" in refusal.value.hint


# --- pause, resume ---


def test_pause_and_resume_change_the_walk_and_nothing_else(forge):
    walked = opened(forge, share=1000, walk=Walk.ON)
    paused = hoist.pause(walked)
    assert gate_of(paused) == (False, 1000, Walk.PAUSED)
    assert replace(paused.plan, gate=walked.plan.gate) == walked.plan
    again = hoist.resume(replace(walked, plan=paused.plan))
    assert gate_of(again) == (False, 1000, Walk.ON)
    assert not hoist.pause(replace(walked, plan=paused.plan)).changes
    assert not hoist.resume(walked).changes


@pytest.mark.parametrize("act", [hoist.pause, hoist.resume])
def test_what_nobody_walks_is_neither_paused_nor_resumed(forge, act: Callable[[ReleaseState], hoist.Move]):
    with pytest.raises(hoist.NotWalking):
        act(state(forge))


def test_resume_says_that_the_soak_starts_anew(forge):
    resting = opened(forge, audience=True, share=1000, walk=Walk.PAUSED)
    words = hoist.in_words(forge.ledger.snapshot, hoist.resume(resting))
    assert "the publisher takes the next stage, half (the audience and 50 % of users), 1h after this, its soak" in (
        "\n".join(words)
    )
    assert words[-1].endswith("its soak starts anew")


# --- revert ---


def test_revert_closes_the_gate_and_ends_the_walk_as_readers_want_it(forge):
    walked = opened(forge, share=1000, walk=Walk.ON)
    move = hoist.revert(forge.ledger.snapshot, walked)
    assert (gate_of(move), move.kind) == ((False, 0, Walk.OFF), ProposalKind.ROLLBACK)
    after = hoist.checked(forge.ledger.snapshot, move, at_ms=NOW_MS)
    assert after.releases[SPRING].opened_at is None
    assert isinstance(taken(forge, move), Applied)


def test_revert_over_a_changed_flag_is_refused_unless_the_flag_is_kept(forge):
    wide = opened(forge, share=SHARE_MAX)
    forge.append(forge.release(forge.op("mail.spring", gated_flag("spring", metadata={"note": "edited"}))))
    snapshot = forge.ledger.snapshot
    with pytest.raises(RevertConflict, match=r"mail\.spring was changed at seq 4") as refusal:
        hoist.checked(snapshot, hoist.revert(snapshot, wide), at_ms=NOW_MS)
    assert "--keep mail.spring" in refusal.value.hint
    move = hoist.revert(snapshot, wide, ["mail.spring"])
    assert move.plan.gate.kept == ((Source(""), FlagKey("mail.spring")),)
    assert isinstance(taken(forge, move), Applied)
    assert "but these stay as they were changed since: mail.spring" in "\n".join(hoist.in_words(snapshot, move))


@pytest.mark.parametrize("name", ["cart.spring", "nothing"])
def test_only_what_has_changed_can_be_kept(forge, name):
    wide = opened(forge, share=SHARE_MAX)
    with pytest.raises(BadDefinition, match=rf"--keep {name}: want a flag .* these were: none"):
        hoist.revert(forge.ledger.snapshot, wide, [name])


def test_revert_of_a_closed_release_changes_nothing(forge):
    assert not hoist.revert(forge.ledger.snapshot, state(forge)).changes


def test_next_ramp_forgets_what_a_revert_has_kept(forge):
    wide = opened(forge, share=SHARE_MAX)
    forge.append(forge.release(forge.op("mail.spring", gated_flag("spring", metadata={"note": "edited"}))))
    closing = hoist.revert(forge.ledger.snapshot, wide, ["mail.spring"])
    proposal = forge.proposal(closing.op, kind=closing.kind)
    forge.append(Release(proposal, (forge.approval(proposal),), forge.release(closing.op).policy))
    assert state(forge).plan.gate.kept
    assert not hoist.revert(forge.ledger.snapshot, state(forge)).changes
    for move in (hoist.ramp(state(forge), "10%"), hoist.activate(state(forge)), hoist.ramp(state(forge), "1%")):
        assert move.plan.gate.kept == ()


# --- what readers would say ---


def test_chain_of_requirements_is_told_before_anybody_signs(forge):
    forge.append(
        forge.release(
            forge.release_op("summer", release_plan("sun", requires=(SPRING,))), forge.op("sun", gated_flag("summer"))
        )
    )
    snapshot = forge.ledger.snapshot
    summer = find_release(snapshot.releases, "summer")
    with pytest.raises(RequirementUnmet, match="summer requires spring"):
        hoist.checked(snapshot, hoist.ramp(summer, "1%"), at_ms=NOW_MS)
    opened(forge, share=SHARE_MAX)
    forge.append(forge.release(forge.hoist("summer", share=1000)))
    snapshot = forge.ledger.snapshot
    told = hoist.revert_refusal(snapshot, state(forge), at_ms=NOW_MS)
    assert told is not None
    assert "got summer requires spring" in told
    assert hoist.revert_refusal(snapshot, find_release(snapshot.releases, "summer"), at_ms=NOW_MS) is None


def test_flag_that_is_not_wired_is_told_before_anybody_signs(forge):
    forge.append(forge.release(forge.op("mail.spring", boolean_flag())))
    with pytest.raises(BadDefinition, match=r"mail\.spring does not"):
        hoist.checked(forge.ledger.snapshot, hoist.activate(state(forge)), at_ms=NOW_MS)


POLICY = """
version: 1
groups: {captains: [grace@example.org], approvers: [grace@example.org, linus@example.org]}
rules:
  - {name: first, when: {change: ramp}, RULE}
  - {name: rest}
"""


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("propose: captains, approvals: [{count: 2, from: approvers}]", "want a proposal by captains"),
        ("refuse: not in this week", "not in this week"),
        ("approvals: [{count: 2, from: approvers}]", None),
    ],
)
def test_policy_that_does_not_let_this_person_ask_says_so_and_awaits_approvals_else(rule, told):
    forge = Forge()
    forge.root = Root.verified(sealed_root(root_record(policy=POLICY.replace("RULE", rule))))
    forge.genesis()
    plan = release_plan("cart.spring")
    op = forge.release_op("spring", plan)
    body = replace(forge.release(op, forge.op("cart.spring", gated_flag("spring"))), policy="rest")
    forge.append(body)
    move = hoist.ramp(state(forge), "10%")
    after = hoist.checked(forge.ledger.snapshot, move, at_ms=NOW_MS)
    if told is None:
        hoist.check_asking(forge.ledger, move, after, ADA)
        return
    with pytest.raises(PolicyRefused, match=told):
        hoist.check_asking(forge.ledger, move, after, ADA)
    if "captains" in rule:
        hoist.check_asking(forge.ledger, move, after, GRACE)


def test_plan_says_in_words_which_services_flags_and_users_change(forge):
    words = hoist.in_words(forge.ledger.snapshot, hoist.ramp(opened(forge, share=1000), "10%"))
    assert words == [
        "release spring: 1 % → 10 %",
        "  open for 1 % of users → 10 % of users, chosen by targetingKey",
        "  another 9 % of users are let through, nobody is shut out",
        "  flags cart.spring, mail.spring",
        "  concerns services cart, mail; owner ada@example.org; team shop",
    ]


# --- any sequence of moves ---

ACTS: tuple[Callable[[random.Random, Snapshot, ReleaseState], hoist.Move], ...] = (
    lambda rng, _, state: hoist.ramp(state, f"{rng.choice([0.5, 1, 3, 20, 77.125, 100])}%", walk=rng.random() < 0.2),
    lambda rng, _, state: hoist.ramp(state, rng.choice(STAGES).name, walk=rng.random() < 0.2),
    lambda rng, _, state: hoist.ramp(state, None, walk=True),
    lambda rng, _, state: hoist.activate(state),
    lambda rng, snapshot, state: hoist.revert(snapshot, state),
    lambda rng, _, state: hoist.pause(state),
    lambda rng, _, state: hoist.resume(state),
)


@pytest.mark.parametrize("seed", range(20))
def test_readers_take_every_move_that_was_checked_and_no_other(forge, seed):
    rng = random.Random(seed)
    taken_moves = 0
    for _ in range(40):
        if rng.random() < 0.1:
            forge.append(forge.release(forge.op("mail.spring", gated_flag("spring", metadata={"n": rng.random()}))))
        snapshot = forge.ledger.snapshot
        try:
            move = rng.choice(ACTS)(rng, snapshot, state(forge))
        except (BadDefinition, hoist.NotWalking):
            continue
        if not move.changes:
            continue
        outcome = taken(forge, move)
        if isinstance(outcome, Rejected):
            with pytest.raises(type(outcome.refusal), match=re.escape(str(outcome.refusal))):
                hoist.checked(snapshot, move, at_ms=forge.now_ms)
            continue
        after = hoist.checked(snapshot, move, at_ms=forge.now_ms)
        taken_moves += 1
        assert isinstance(outcome, Applied)
        assert outcome.snapshot.releases == after.releases
        assert hoist.in_words(snapshot, move)
        proposal = forge.proposal(move.op, kind=move.kind)
        forge.append(Release(proposal, (forge.approval(proposal),), forge.release(move.op).policy))
    assert taken_moves > 5
