"""Differences between states, answers of the past, and signatures checked with tools that are not ours."""

import shutil
import subprocess

import pytest

from flaghoist.evaluation import Answer
from flaghoist.ledger import Ledger
from flaghoist.records import Release, Step
from flaghoist.release_plan import LEAD_MS_MAX, SHARE_MAX, Gate, Stage, Walk
from flaghoist.sshsig import signed_bytes
from flaghoist.values import Algorithm, FlagKey, Seq
from publisher.audit.difference import difference
from publisher.audit.examination import Examination
from publisher.audit.serving import Servings
from publisher.audit.signatures import evidence, signatures
from publisher.audit.travel import Traveller
from publisher.audit.wording import diff, words
from tests import audit_story
from tests.audit_story import change, examined, told
from tests.forge import ADA, GRACE, Forge, Key, boolean_flag, gated_flag, release_plan


@pytest.fixture(scope="module")
def story():
    return told()


@pytest.fixture(scope="module")
def accounts(story):
    return examined(story)[1]


def differing(accounts, old, new):
    return {str(delta.state_id): delta.verb for delta in difference(accounts, Seq(old), Seq(new))}


def test_a_difference_names_what_was_added_changed_and_removed(accounts):
    assert differing(accounts, audit_story.IMPORT, audit_story.EDITED) == {
        "evaluator release.checkout-v2": "added", "checkout": "changed", "shop.json#colour": "changed",
    }  # fmt: skip
    assert differing(accounts, audit_story.EDITED, audit_story.DELETED) == {"shop.json#colour": "removed"}


def test_a_difference_is_told_backwards_when_the_newer_seq_comes_first(accounts):
    assert differing(accounts, audit_story.DELETED, audit_story.EDITED) == {"shop.json#colour": "added"}


def test_what_was_changed_and_changed_back_does_not_differ(accounts):
    # Seqs 5 to 7: another colour, no colours, the first colours again.
    assert differing(accounts, audit_story.RAMPED, audit_story.READDED) == {}


def test_differences_from_the_beginning_are_the_whole_state(story, accounts):
    examination, _ = examined(story)
    deltas = difference(accounts, Seq(0), Seq(len(accounts)))
    served = {(flag.source, flag.key) for flag in examination.snapshot.flags()}
    assert {(d.state_id.source, d.state_id.key) for d in deltas if d.state_id.target == "FLAG"} == served


@pytest.mark.parametrize("middle", range(audit_story.LAST + 1))
def test_differences_add_up(accounts, middle):
    """What differs from 0 to the end is what differs to any seq and from there on, taken together."""
    whole = {d.state_id: d.after for d in difference(accounts, Seq(0), Seq(audit_story.LAST))}
    first = {d.state_id: d.after for d in difference(accounts, Seq(0), Seq(middle))}
    second = {d.state_id: d.after for d in difference(accounts, Seq(middle), Seq(audit_story.LAST))}
    together = {state_id: after for state_id, after in {**first, **second}.items() if after is not None}
    assert {k: v for k, v in whole.items() if v is not None} == together


def test_a_change_is_put_into_words(accounts):
    (one,) = accounts[audit_story.EDITED - 1].changes
    assert words(one.before, one.after) == ['variants.blue: "#00f" -> "#00e"', 'variants.green: added: "#0f0"']
    assert '+      "blue": "#00e",' in diff(one.before, one.after, old="a", new="b")


def test_the_order_of_keys_is_no_difference():
    assert words(b'{"flag":{"a":1,"b":2}}', b'{"flag":{"b":2,"a":1}}') == ["the same definition again"]
    assert diff(b'{"a":1,"b":2}', b'{"b":2,"a":1}', old="a", new="b") == ""


# --- answers ---


def travelled(story, key="checkout", source=None, first=0, last=audit_story.LAST, **context):
    traveller = Traveller(key, source, context, Seq(first), Seq(last))
    examination = Examination(Ledger(story.first_root))
    for position, data in enumerate(story.records):
        account = examination.take(position, data)
        traveller.watch(account, examination.snapshot)
    return traveller


def answers(traveller):
    return [
        (given.seq.number, given.answer.value if isinstance(given.answer, Answer) else given.error_code)
        for given in traveller.given
    ]


def test_answers_change_where_an_entry_changed_them_for_this_caller(story):
    assert answers(travelled(story, targetingKey="u3")) == [
        (1, "FLAG_NOT_FOUND"), (2, False), (3, False), (4, True), (8, False),
    ]  # fmt: skip
    assert answers(travelled(story, targetingKey="u1"))[2:] == [(3, True), (8, False)]


def test_a_span_begins_with_the_answer_in_force_at_its_first_seq(story):
    assert answers(travelled(story, first=audit_story.EDITED, last=audit_story.KILLED, targetingKey="u3")) == [
        (5, True), (8, False),
    ]  # fmt: skip


def test_a_span_that_begins_at_a_rejected_entry_has_the_answer_from_before_it(story):
    given = travelled(story, first=audit_story.STRANGER, targetingKey="u3").given
    assert [(one.seq.number, one.answer.value) for one in given] == [(audit_story.RATIFIED, False)]


def test_a_deleted_flag_was_not_found_until_it_was_made_anew(story):
    assert answers(travelled(story, key="colour")) == [
        (1, "FLAG_NOT_FOUND"), (2, "#f00"), (6, "FLAG_NOT_FOUND"), (7, "#f00"),
    ]  # fmt: skip
    assert answers(travelled(story, key="colour", source="")) == [(1, "FLAG_NOT_FOUND")]


def test_rules_see_the_time_of_the_entry_or_the_time_that_is_asked_for():
    forge = Forge()
    forge.genesis()
    rule = {"if": [{">": [{"var": "$flagd.timestamp"}, forge.now_ms // 1000 + 5400]}, "on", "off"]}
    change(forge, forge.op("flag", boolean_flag(targeting=rule)), title="on after an hour and a half")
    change(forge, forge.op("other", boolean_flag()), title="another flag, an hour later")
    by_entry = Traveller("flag", None, {}, Seq(2), Seq(9))
    fixed = Traveller("flag", None, {}, Seq(2), Seq(9), at_ms=forge.now_ms)
    examination = Examination(Ledger(forge.first_root))
    for position, data in enumerate(forge.records):
        account = examination.take(position, data)
        by_entry.watch(account, examination.snapshot)
        fixed.watch(account, examination.snapshot)
    assert [(given.seq.number, given.answer.value) for given in by_entry.given] == [(2, False), (3, True)]
    assert [(given.seq.number, given.answer.value) for given in fixed.given] == [(2, True)]


# --- what was served ---


def served(forge):
    """Each state that was served: the entry that brought it, the seq that sidecars told, and since when."""
    examination, servings, found = Examination(Ledger(forge.first_root)), Servings(), []
    for position, data in enumerate(forge.records):
        account = examination.take(position, data)
        if account.refusal is None:
            found += servings.take(account, examination.snapshot)
    found += servings.until(2**53)
    return found


def lead(forge, *ops, **more):
    proposal = forge.proposal(*ops, **more)
    forge.append(Release(proposal, (forge.approval(proposal),), "approvals>=1"))


def test_every_state_is_served_once_in_the_order_of_seqs_and_none_before_its_moment(story, accounts):
    whole = served(story)
    assert [one.from_ms for one in whole] == sorted(one.from_ms for one in whole)
    calm = [one for one in whole if one.account.seq.number < audit_story.AWAITED]
    assert [one.account.seq for one in calm] == [
        one.seq for one in accounts if one.refusal is None and one.seq.number < audit_story.AWAITED
    ]
    for one in calm:
        assert one.snapshot.seq == one.account.seq
        if one.account.in_force_at_ms is not None:
            assert one.from_ms == one.account.in_force_at_ms


def test_a_kill_is_served_before_what_waits_and_is_in_all_that_comes_after_it(story):
    last = [
        (one.account.seq.number, one.snapshot.seq.number, one.snapshot.releases["spring"].plan.gate.closed)
        for one in served(story)
        if one.account.seq.number >= audit_story.MEASURED
    ]
    assert last == [
        (audit_story.MEASURED, audit_story.MEASURED, True),
        (audit_story.CLOSED_AT_ONCE, audit_story.MEASURED, True),
        (audit_story.AWAITED, audit_story.AWAITED, True),
        (audit_story.CLOSED_AT_ONCE, audit_story.CLOSED_AT_ONCE, True),
        (audit_story.STOOD_BEHIND, audit_story.STOOD_BEHIND, True),
    ]


def test_of_two_entries_that_take_effect_at_one_moment_the_one_that_changed_an_answer_is_named():
    forge = Forge()
    forge.genesis()
    forge.put("flag", boolean_flag("off"))
    lead(forge, forge.op("flag", boolean_flag("on")), lead_ms=2000)
    forge.put("other")
    forge.now_ms += 10_000
    traveller = Traveller("flag", None, {}, Seq(0), Seq(9))
    for one in served(forge):
        traveller.watch(one.account, one.snapshot, from_ms=one.from_ms)
    found = [(given.seq.number, given.from_ms - forge.now_ms, given.error_code) for given in traveller.given]
    assert found == [(1, -10_000, "FLAG_NOT_FOUND"), (2, -10_000, None), (3, -8000, None)]


def test_a_step_that_a_publisher_dated_ahead_holds_later_entries_up_for_as_long_as_it_may_and_no_longer():
    forge = Forge()
    forge.genesis()
    stages = (Stage("1%", False, 1000, 0), Stage("all", False, SHARE_MAX, 0))
    plan = release_plan("cart", stages=stages, gate=Gate(walk=Walk.ON), lead_ms=2000)
    change(forge, forge.release_op("sale", plan), forge.op("cart", gated_flag("sale")), title="a walked sale")
    version = forge.ledger.snapshot.releases["sale"].version
    forge.append(Step(FlagKey("sale"), version, 0), published_at=forge.now_ms + 90 * 86_400_000)
    forge.now_ms += 1000
    forge.put("other")
    examination = Examination(Ledger(forge.first_root))
    accounts = [examination.take(position, data) for position, data in enumerate(forge.records)]
    assert (accounts[-1].kind, accounts[-1].in_force_at_ms) == ("change", forge.now_ms + LEAD_MS_MAX)
    last = [(one.account.kind, one.from_ms) for one in served(forge)][-2:]
    assert last == [("step", forge.now_ms + LEAD_MS_MAX), ("change", forge.now_ms + LEAD_MS_MAX)]


# --- signatures ---


def test_every_signature_of_every_entry_of_the_story_is_valid_but_the_strangers(accounts):
    wrong = [(a.seq.number, one.record) for a in accounts for one in signatures(a) if not one.valid]
    assert wrong == [(audit_story.STRANGER, "proposal")]


def test_evidence_of_an_unknown_key_is_none(accounts):
    unknown = [one for one in signatures(accounts[audit_story.STRANGER - 1]) if one.key is None]
    assert [evidence(one) for one in unknown] == [None]


def written(directory, proof):
    for name, data in proof.files.items():
        (directory / name).write_bytes(data)
    return subprocess.run(proof.command, shell=True, cwd=directory, capture_output=True, timeout=30, check=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_accepts_the_evidence_and_refuses_it_when_a_byte_is_changed(accounts, tmp_path):
    checked = [one for one in signatures(accounts[audit_story.RAMPED - 1]) if one.key.algorithm == Algorithm.ED25519]
    assert len(checked) == 4
    for one in checked:
        proof = evidence(one)
        assert written(tmp_path, proof).returncode == 0
        message = next(name for name in proof.files if name.endswith(".pae"))
        (tmp_path / message).write_bytes(one.message + b"!")
        ended = subprocess.run(proof.command, shell=True, cwd=tmp_path, capture_output=True, timeout=30, check=False)
        assert ended.returncode != 0


class SshKey(Key):
    """As Key, but an SSH key: it signs what an agent would."""

    def sign(self, message: bytes) -> bytes:
        return super().sign(signed_bytes(message))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_ssh_keygen_accepts_the_evidence_of_an_ssh_key_and_refuses_another_persons(tmp_path):
    from dataclasses import replace

    from flaghoist.codec import APPROVAL
    from flaghoist.records import Approval
    from flaghoist.root import Root
    from flaghoist.signing import digest, seal
    from flaghoist.values import Decision, Role
    from tests.forge import DAY_MS, allowing_rule, root_record, sealed_root

    grace = SshKey(GRACE, "ssh", Algorithm.SSHSIG_ED25519)
    record = root_record("staging")
    roles = dict(record.roles)
    roles[Role.APPROVER] = replace(roles[Role.APPROVER], key_ids=frozenset({grace.listed.key_id}))
    forge = Forge(log_id="staging")
    forge.root = Root.verified(sealed_root(replace(record, keys=(*record.keys, grace.listed), roles=roles), Key(ADA)))
    forge.genesis()
    proposal = forge.proposal(forge.op("flag", boolean_flag()))
    approval = Approval(
        forge.root.log_id, digest(proposal), GRACE, Decision.APPROVE, forge.now_ms, forge.now_ms + DAY_MS, None
    )
    forge.append(Release(proposal, (seal(APPROVAL, approval, [grace]),), allowing_rule(forge.root)))
    (one,) = [s for s in signatures(examined(forge)[1][1]) if s.record == "approval-1"]
    assert one.valid
    proof = evidence(one)
    ended = written(tmp_path, proof)
    assert ended.returncode == 0, ended
    assert b"Good" in ended.stdout
    other = proof.command.replace(GRACE, ADA)
    assert subprocess.run(other, shell=True, cwd=tmp_path, capture_output=True, timeout=30, check=False).returncode != 0
