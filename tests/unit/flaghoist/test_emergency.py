"""One emergency key turns flags to their safe variants, and can do nothing else."""

from dataclasses import replace

import pytest

from flaghoist.authorization import EMERGENCY_FLAGS_MAX, EMERGENCY_LIFE_MS_MAX
from flaghoist.codec import PROPOSAL
from flaghoist.definition import encode_flag, killed_document
from flaghoist.ledger import replay
from flaghoist.outcomes import Applied, Rejected
from flaghoist.policy import EMERGENCY_RULE
from flaghoist.records import Op, Release
from flaghoist.values import Action, FlagKey, LogId, ProposalKind, Role, Seq, Source, StateId, Target
from tests.forge import ADA, EMERGENCY_LABEL, GRACE, LINUS, NOW_MS, Forge, Key, boolean_flag

SAFE = {"safe_variant": "off"}
RULE = {"if": [{"==": [{"var": "country"}, "is"]}, "on", "off"]}
MINUTE_MS = 60_000


def put(forge, key, flag=None, governance=SAFE, source=""):
    op = forge.op(key, boolean_flag("on"), source=source)
    op = replace(op, definition=encode_flag(flag or boolean_flag("on", targeting=RULE), governance))
    return forge.append(forge.release(op))


@pytest.fixture
def forge():
    """GRACE and LINUS hold emergency keys; checkout (with a safe variant) and bare (without) are in force."""
    forge = Forge(root_options={"emergency": (GRACE, LINUS)})
    forge.genesis()
    put(forge, "checkout")
    put(forge, "bare", boolean_flag("on"), {})
    assert forge.ledger.head.seq == Seq(3)
    return forge


def flag(ledger, key="checkout", source=""):
    return ledger.snapshot.flag(Source(source), FlagKey(key))


def judged(forge, proposal, approvals=(), policy=EMERGENCY_RULE, **entry):
    return forge.ledger.judge(forge.signed(forge.entry(Release(proposal, tuple(approvals), policy), **entry)))


def refusal(outcome, code):
    assert isinstance(outcome, Rejected), outcome
    assert outcome.refusal.code == code, outcome.refusal
    return outcome.refusal


# --- what it does ---


def test_kill_serves_the_safe_variant_to_everybody(forge):
    forge.kill("checkout")
    definition = flag(forge.ledger).definition
    assert (definition.default_variant, definition.targeting, definition.state) == ("off", None, "ENABLED")
    assert flag(forge.ledger).rule is None


def test_kill_of_a_disabled_flag_serves_the_safe_variant(forge):
    put(forge, "checkout", boolean_flag("on", state="DISABLED"))
    forge.kill("checkout")
    assert (flag(forge.ledger).definition.state, flag(forge.ledger).fixed.variant) == ("ENABLED", "off")


def test_kill_leaves_what_a_person_would_have_written(forge):
    before = encode_flag(boolean_flag("on", targeting=RULE), SAFE)
    forge.kill("checkout")
    by_hand = Forge()
    by_hand.genesis()
    by_hand.append(by_hand.release(replace(by_hand.op("checkout", boolean_flag()), definition=killed_document(before))))
    assert flag(forge.ledger).definition == flag(by_hand.ledger).definition


def test_kill_touches_no_other_flag(forge):
    put(forge, "checkout", source="shop")
    before = flag(forge.ledger)
    forge.kill("checkout", source="shop")
    assert flag(forge.ledger, source="shop").definition.default_variant == "off"
    assert flag(forge.ledger) is before


def test_several_flags_are_killed_as_one(forge):
    put(forge, "search")
    forge.kill("checkout", "search")
    assert {flag(forge.ledger, key).version for key in ("checkout", "search")} == {Seq(5)}


def test_kill_forbids_every_pin_to_what_was_before_it(forge):
    forge.kill("checkout")
    assert forge.ledger.min_pin == forge.ledger.head.seq == Seq(4)
    forge.put("later")
    assert forge.ledger.min_pin == Seq(4)
    assert replay(forge.first_root, forge.records).min_pin == Seq(4)


def test_kill_that_is_refused_forbids_no_pin(forge):
    forge.kill("bare")
    assert forge.ledger.min_pin == Seq(0)


def test_killed_flag_can_be_changed_again_in_the_ordinary_way(forge):
    forge.kill("checkout")
    put(forge, "checkout")
    assert flag(forge.ledger).definition.default_variant == "on"


# --- what it cannot do ---


def test_flag_without_a_safe_variant_cannot_be_killed(forge):
    refused = refusal(judged(forge, forge.kill_proposal("bare")), "bad_definition")
    assert "safe_variant" in str(refused)
    assert "propose the change instead" in refused.hint


def test_one_flag_that_cannot_be_killed_keeps_all_of_an_emergency_back(forge):
    refusal(judged(forge, forge.kill_proposal("checkout", "bare")), "bad_definition")


@pytest.mark.parametrize("key", ["nobody", "bare-not"])
def test_flag_that_does_not_exist_cannot_be_killed(forge, key):
    refusal(judged(forge, forge.kill_proposal(key)), "bad_definition")


def test_deleted_flag_cannot_be_killed(forge):
    forge.append(forge.release(forge.op("checkout", None)))
    refusal(judged(forge, forge.kill_proposal("checkout")), "bad_definition")


def test_flag_that_changed_meanwhile_is_not_killed(forge):
    proposal = forge.kill_proposal("checkout")
    put(forge, "checkout")
    refusal(judged(forge, proposal), "stale_base")


def test_kill_cannot_be_published_twice(forge):
    proposal = forge.kill_proposal("checkout")
    forge.append(Release(proposal, (), EMERGENCY_RULE))
    refusal(judged(forge, proposal), "stale_base")


@pytest.mark.parametrize("action", [Action.PUT, Action.DELETE])
def test_emergency_does_nothing_but_kill(forge, action):
    op = forge.op("checkout", boolean_flag("on") if action is Action.PUT else None)
    proposal = forge.proposal(
        op,
        by=GRACE,
        signed_by=Key(GRACE, EMERGENCY_LABEL),
        kind=ProposalKind.EMERGENCY,
        expires_at=NOW_MS + EMERGENCY_LIFE_MS_MAX,
    )
    assert "do nothing else" in str(refusal(judged(forge, proposal), "bad_definition"))


def test_emergency_kills_no_evaluator(forge):
    forge.append(forge.release(forge.evaluator_op("gate", RULE)))
    op = Op(Target.EVALUATOR, Source(""), FlagKey("gate"), Seq(4), Action.KILL, None)
    proposal = forge.proposal(
        op,
        by=GRACE,
        signed_by=Key(GRACE, EMERGENCY_LABEL),
        kind=ProposalKind.EMERGENCY,
        expires_at=NOW_MS + EMERGENCY_LIFE_MS_MAX,
    )
    refusal(judged(forge, proposal), "bad_definition")


def test_ordinary_change_kills_nothing(forge):
    op = Op(Target.FLAG, Source(""), FlagKey("checkout"), Seq(2), Action.KILL, None)
    proposal = forge.proposal(op, by=ADA)
    outcome = judged(forge, proposal, [forge.approval(proposal)], "approvals>=1")
    assert "EMERGENCY only" in str(refusal(outcome, "bad_definition"))


def test_emergency_needs_no_approval_and_takes_none(forge):
    proposal = forge.kill_proposal("checkout")
    refused = refusal(judged(forge, proposal, [forge.approval(proposal, by=ADA)]), "not_approved")
    assert "ratification" in refused.hint


def test_entry_of_an_emergency_names_no_other_rule(forge):
    assert "policy" in str(refusal(judged(forge, forge.kill_proposal("checkout"), (), "approvals>=1"), "not_approved"))


# --- whose key ---


def test_ordinary_key_makes_no_emergency(forge):
    proposal = forge.kill_proposal("checkout")
    for key in (Key(GRACE), Key(ADA)):
        again = forge.proposal(
            *_ops(proposal), by=key.person, kind=ProposalKind.EMERGENCY, expires_at=NOW_MS + MINUTE_MS
        )
        assert "role EMERGENCY" in str(refusal(judged(forge, again), "wrong_role"))


def test_emergency_key_asks_for_no_ordinary_change(forge):
    op = forge.op("checkout", boolean_flag("on"))
    proposal = forge.proposal(op, by=GRACE, signed_by=Key(GRACE, EMERGENCY_LABEL))
    outcome = judged(forge, proposal, [forge.approval(proposal, by=ADA)], "approvals>=1")
    assert "role REQUESTER" in str(refusal(outcome, "wrong_role"))


def test_emergency_names_the_person_whose_key_signed_it(forge):
    proposal = forge.kill_proposal("checkout", by=GRACE, requester=ADA)
    refusal(judged(forge, proposal), "wrong_role")


def test_emergency_key_of_nobody_in_the_root_does_nothing(forge):
    refusal(judged(forge, forge.kill_proposal("checkout", by=ADA)), "bad_signature")


def test_emergency_of_another_environment_is_rejected(forge):
    refusal(judged(forge, forge.kill_proposal("checkout", log_id=LogId("staging"))), "wrong_log")


def _ops(proposal):
    return PROPOSAL.decode(proposal.payload).ops


# --- how long, how much, how often ---


def test_emergency_lives_ten_minutes_at_most(forge):
    longer = forge.kill_proposal("checkout", expires_at=NOW_MS + EMERGENCY_LIFE_MS_MAX + 1)
    assert "live at most" in str(refusal(judged(forge, longer), "bad_definition"))
    longest = forge.kill_proposal("checkout", expires_at=NOW_MS + EMERGENCY_LIFE_MS_MAX)
    assert isinstance(judged(forge, longest), Applied)


def test_expired_emergency_is_rejected(forge):
    proposal = forge.kill_proposal("checkout", expires_at=NOW_MS)
    assert isinstance(judged(forge, proposal, published_at=NOW_MS), Applied)
    refusal(judged(forge, proposal, published_at=NOW_MS + 1), "expired")


def test_emergency_cannot_be_signed_ahead_and_kept(forge):
    at = NOW_MS + EMERGENCY_LIFE_MS_MAX
    ahead = forge.kill_proposal("checkout", created_at=at + 1, expires_at=at + MINUTE_MS)
    assert "set the clock" in refusal(judged(forge, ahead), "bad_definition").hint
    fast_clock = forge.kill_proposal("checkout", created_at=at, expires_at=at + EMERGENCY_LIFE_MS_MAX)
    assert isinstance(judged(forge, fast_clock), Applied)


def test_one_emergency_kills_fifty_flags_at_most(forge):
    keys = [f"flag-{n}" for n in range(EMERGENCY_FLAGS_MAX + 1)]
    ops = [replace(forge.op(k, boolean_flag()), definition=encode_flag(boolean_flag("on"), SAFE)) for k in keys]
    forge.append(forge.release(*ops))
    refusal(judged(forge, forge.kill_proposal(*keys)), "bad_definition")
    assert isinstance(judged(forge, forge.kill_proposal(*keys[:-1])), Applied)


def kill_and_revive(forge, times, *, by=GRACE):
    for _ in range(times):
        forge.kill("checkout", by=by)
        assert flag(forge.ledger).definition.default_variant == "off"
        put(forge, "checkout")


def test_one_person_makes_ten_emergencies_in_ten_minutes_at_most(forge):
    kill_and_revive(forge, 10)
    refused = refusal(judged(forge, forge.kill_proposal("checkout")), "not_approved")
    assert "has made 10 emergencies in the last 600 s" in str(refused)


def test_limit_of_emergencies_is_each_persons_own(forge):
    kill_and_revive(forge, 10)
    assert isinstance(judged(forge, forge.kill_proposal("checkout", by=LINUS)), Applied)


def test_limit_of_emergencies_moves_with_time(forge):
    kill_and_revive(forge, 10)
    forge.now_ms += 10 * MINUTE_MS - 1
    refusal(judged(forge, forge.kill_proposal("checkout")), "not_approved")
    forge.now_ms += 1
    assert isinstance(judged(forge, forge.kill_proposal("checkout")), Applied)


def test_policy_sets_the_limit_of_emergencies():
    policy = "version: 1\nrules:\n  - name: any\nemergency:\n  kills: 1\n  per: 1h\n"
    forge = Forge(root_options={"emergency": (GRACE,), "policy": policy})
    forge.genesis()
    op = replace(forge.op("checkout", boolean_flag()), definition=encode_flag(boolean_flag("on"), SAFE))
    forge.append(replace(forge.release(op), policy="any"))
    forge.kill("checkout")
    forge.append(replace(forge.release(replace(op, expected_version=Seq(3))), policy="any"))
    assert forge.ledger.snapshot.version_of(StateId(Target.FLAG, Source(""), FlagKey("checkout"))) == Seq(4)
    refusal(judged(forge, forge.kill_proposal("checkout")), "not_approved")


def test_emergency_before_a_root_without_its_key_stays_in_force_and_none_comes_after(forge):
    forge.kill("checkout")
    later = forge.kill_proposal("checkout")
    keys = tuple(k for k in forge.root.record.keys if k.key_id != Key(GRACE, EMERGENCY_LABEL).listed.key_id)
    roles = {**forge.root.record.roles}
    left = frozenset({Key(LINUS, EMERGENCY_LABEL).listed.key_id})
    roles[Role.EMERGENCY] = replace(roles[Role.EMERGENCY], key_ids=left)
    forge.rotate(Key(ADA), keys=keys, roles=roles)
    assert forge.root.version == 2
    assert flag(forge.ledger).definition.default_variant == "off"
    refusal(judged(forge, later), "bad_signature")
