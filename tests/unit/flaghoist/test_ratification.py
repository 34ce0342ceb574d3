"""An emergency stays in force whatever happens; people stand behind it, or do not."""

from dataclasses import replace

import pytest

from flaghoist.codec import ENTRY, decode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import replay
from flaghoist.outcomes import Ratified, Rejected
from flaghoist.records import Ratification
from flaghoist.signing import digest
from flaghoist.values import Decision, FlagKey, LogId, Seq, Source
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, Forge, boolean_flag

SAFE = {"safe_variant": "off"}


def environment(**options):
    forge = Forge(root_options={"emergency": (GRACE,), **options.pop("root", {})}, **options)
    forge.genesis()
    return forge


def put(forge, key, governance=SAFE, *, approved_by=(GRACE,), policy=None):
    op = replace(forge.op(key, boolean_flag()), definition=encode_flag(boolean_flag("on"), governance))
    release = forge.release(op, approved_by=approved_by)
    forge.append(release if policy is None else replace(release, policy=policy))
    assert forge.ledger.snapshot.flag(Source(""), FlagKey(key)) is not None


@pytest.fixture
def forge():
    forge = environment()
    put(forge, "checkout")
    return forge


def proposal_of(emergency):
    return ENTRY.decode(decode_envelope(emergency).payload).body.proposal


def judged(forge, sha256, approvals):
    return forge.ledger.judge(forge.signed(forge.entry(Ratification(sha256, tuple(approvals)))))


def refusal(outcome, code):
    assert isinstance(outcome, Rejected), outcome
    assert outcome.refusal.code == code, outcome.refusal
    return outcome.refusal


def test_emergency_waits_for_its_ratification_a_day_long(forge):
    emergency = proposal_of(forge.kill("checkout"))
    waiting = forge.ledger.unratified[digest(emergency)]
    assert (waiting.seq, waiting.published_at, waiting.ratify_by_ms) == (Seq(3), NOW_MS, NOW_MS + DAY_MS)


def test_ratified_emergency_waits_no_longer_and_changes_no_flag(forge):
    killed = forge.kill("checkout")
    flags = forge.ledger.snapshot.view.flags
    data = forge.ratify(killed)
    assert forge.ledger.unratified == {}
    assert forge.ledger.snapshot.view.flags is flags
    assert forge.ledger.min_pin == Seq(3)
    link = replay(forge.first_root, forge.records[:-1]).judge(data)
    assert isinstance(link, Ratified)
    assert (link.authorized.proposal.requester, link.authorized.approvers) == (GRACE, (ADA,))


def test_one_emergency_is_ratified_once(forge):
    killed = forge.kill("checkout")
    forge.ratify(killed)
    proposal = proposal_of(killed)
    refused = refusal(judged(forge, digest(proposal), [forge.approval(proposal, by=ADA)]), "not_approved")
    assert "no emergency with digest" in str(refused)


def test_what_is_no_emergency_is_not_ratified(forge):
    ordinary = forge.proposal(forge.op("other", boolean_flag()))
    refusal(judged(forge, digest(ordinary), [forge.approval(ordinary, by=GRACE)]), "not_approved")


def test_emergency_that_was_refused_is_not_ratified(forge):
    forge.put("bare")
    refused = proposal_of(forge.kill("bare"))
    refusal(judged(forge, digest(refused), [forge.approval(refused, by=ADA)]), "not_approved")


def test_ratification_without_approvals_is_rejected(forge):
    proposal = proposal_of(forge.kill("checkout"))
    assert "want approvals of 1 people" in str(refusal(judged(forge, digest(proposal), []), "not_approved"))


def test_who_made_an_emergency_does_not_ratify_it(forge):
    proposal = proposal_of(forge.kill("checkout"))
    refusal(judged(forge, digest(proposal), [forge.approval(proposal, by=GRACE)]), "same_person")


def test_approvals_of_another_emergency_do_not_count(forge):
    put(forge, "search")
    first, second = (proposal_of(forge.kill(key)) for key in ("checkout", "search"))
    refusal(judged(forge, digest(first), [forge.approval(second, by=ADA)]), "bad_signature")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expires_at": NOW_MS - 1}, "expired"),
        ({"decision": Decision.REJECT}, "not_approved"),
        ({"approver": LINUS}, "wrong_role"),
        ({"log_id": LogId("staging")}, "wrong_log"),
    ],
    ids=["expired", "rejection", "in-another's-name", "of-another-environment"],
)
def test_approval_that_would_not_count_for_a_change_does_not_count_here(forge, changes, code):
    proposal = proposal_of(forge.kill("checkout"))
    refusal(judged(forge, digest(proposal), [forge.approval(proposal, by=ADA, **changes)]), code)


def test_ratification_takes_as_many_people_as_a_change():
    forge = environment(approvals=2)
    put(forge, "checkout", approved_by=(GRACE, LINUS))
    proposal = proposal_of(forge.kill("checkout"))
    one = forge.approval(proposal, by=ADA)
    refusal(judged(forge, digest(proposal), [one]), "not_approved")
    refusal(judged(forge, digest(proposal), [one, one]), "not_approved")
    assert isinstance(judged(forge, digest(proposal), [one, forge.approval(proposal, by=LINUS)]), Ratified)


def test_emergency_stays_in_force_when_nobody_ratifies_it_in_time(forge):
    killed = forge.kill("checkout")
    forge.now_ms += 3 * DAY_MS
    forge.put("later")
    flag = forge.ledger.snapshot.flag(Source(""), FlagKey("checkout"))
    assert flag.definition.default_variant == "off"
    assert digest(proposal_of(killed)) in forge.ledger.unratified
    forge.ratify(killed)  # late is better than never
    assert forge.ledger.unratified == {}


def test_ratification_judges_the_change_by_the_state_that_it_changed(forge):
    killed = forge.kill("checkout")
    forge.append(forge.release(forge.op("checkout", None)))
    forge.ratify(killed)
    assert forge.ledger.unratified == {}


def test_solo_emergency_needs_no_ratification():
    forge = environment(approvals=0)
    put(forge, "checkout", approved_by=())
    forge.kill("checkout")
    assert forge.ledger.min_pin == Seq(3)
    assert forge.ledger.unratified == {}


# --- with a policy ---

POLICY = """\
version: 1
groups:
  sre: [linus@example.org]
rules:
  - name: payments
    when: {team: payments}
    approvals: {count: 1, from: sre}
  - name: any
emergency:
  ratify_within: 1h
"""


@pytest.mark.parametrize("threshold", [0, 1])
def test_ratification_takes_the_people_whom_the_policy_asks_for(threshold):
    forge = environment(approvals=threshold, root={"policy": POLICY})
    put(forge, "checkout", {**SAFE, "team": "payments"}, approved_by=(LINUS,), policy="payments")
    proposal = proposal_of(forge.kill("checkout"))
    assert forge.ledger.unratified[digest(proposal)].ratify_by_ms == NOW_MS + 3_600_000
    refused = refusal(judged(forge, digest(proposal), [forge.approval(proposal, by=ADA)]), "policy_refused")
    assert "linus@example.org may still approve" in str(refused)
    assert isinstance(judged(forge, digest(proposal), [forge.approval(proposal, by=LINUS)]), Ratified)


@pytest.mark.parametrize("closed", ["propose: [sre]", "refuse: not by hand"])
def test_kill_that_its_maker_could_not_have_proposed_can_be_ratified(closed):
    policy = POLICY.replace("approvals: {count: 1, from: sre}", f"approvals: {{count: 1, from: sre}}\n    {closed}")
    forge = environment(root={"policy": POLICY})
    put(forge, "checkout", {**SAFE, "team": "payments"}, approved_by=(LINUS,), policy="payments")
    forge.rotate(policy=policy)
    proposal = proposal_of(forge.kill("checkout"))
    refusal(judged(forge, digest(proposal), [forge.approval(proposal, by=ADA)]), "policy_refused")
    assert isinstance(judged(forge, digest(proposal), [forge.approval(proposal, by=LINUS)]), Ratified)


def test_emergency_for_which_neither_root_nor_policy_asks_approvals_needs_no_ratification():
    forge = environment(approvals=0, root={"policy": POLICY})
    put(forge, "search", approved_by=(), policy="any")
    forge.kill("search")
    assert forge.ledger.min_pin == Seq(3)
    assert forge.ledger.unratified == {}
