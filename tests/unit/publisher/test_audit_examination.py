"""An examination says what the verifier said, entry by entry, and where a chain breaks."""

from dataclasses import replace

import pytest

from flaghoist.codec import decode_envelope
from flaghoist.definition import parse_flag
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Stepped
from flaghoist.records import EpochClaim, Release
from flaghoist.release_plan import SHARE_MAX, Gate, Stage, Walk, parse_release
from flaghoist.signing import countersign, digest
from flaghoist.values import Decision, LogId, Seq
from publisher.audit.account import EntryKind
from publisher.audit.examination import EXAMPLES_MAX, Examination
from tests import audit_story
from tests.audit_story import change, examined, told
from tests.forge import ADA, GRACE, LINUS, Forge, Key, boolean_flag, gated_flag, release_plan


@pytest.fixture(scope="module")
def story():
    return told()


@pytest.fixture(scope="module")
def accounts(story):
    return examined(story)[1]


def account(accounts, seq):
    return accounts[seq - 1]


def fed(forge, records):
    examination = Examination(Ledger(forge.first_root))
    for position, data in enumerate(records):
        examination.take(position, data)
    return examination


def test_every_entry_of_the_chain_has_an_account_of_its_kind(accounts):
    assert [account.kind for account in accounts] == [
        EntryKind.ROOT, *[EntryKind.CHANGE] * 6, EntryKind.EMERGENCY, EntryKind.RATIFICATION, EntryKind.REJECTED,
        EntryKind.REJECTED, EntryKind.EPOCH, EntryKind.ROOT, EntryKind.CHANGE,
        EntryKind.CHANGE, EntryKind.CHANGE, EntryKind.STEP, EntryKind.REJECTED, EntryKind.STEP, EntryKind.REJECTED,
        EntryKind.PREPARATION, EntryKind.CHANGE, EntryKind.CHANGE, EntryKind.REJECTED, EntryKind.ROLLBACK,
        *[EntryKind.DRILL] * 3, EntryKind.CHANGE, EntryKind.EMERGENCY, EntryKind.RATIFICATION,
    ]  # fmt: skip


def test_an_account_names_the_people_and_the_keys_that_signed(accounts):
    one = account(accounts, audit_story.RAMPED)
    assert (one.requester, one.approvers) == (ADA, [GRACE, LINUS])
    assert one.requester_key.person == ADA
    assert [statement.key.person for statement in one.approvals] == [GRACE, LINUS]
    assert [key.person for key in one.publishers] == ["publisher@example.org"]
    assert one.policy == "approvals>=1"


def test_an_emergency_names_the_emergency_key_and_what_it_made_of_the_flag(accounts):
    one = account(accounts, audit_story.KILLED)
    assert one.requester_key.key_id not in {key.key_id for key in account(accounts, audit_story.EDITED).publishers}
    assert one.requester_key.key_id != account(accounts, audit_story.EDITED).requester_key.key_id
    (change,) = one.changes
    after = parse_flag(change.after)
    assert (change.verb, after.default_variant, after.targeting) == ("kill", "off", None)


def test_a_ratification_names_its_emergency_and_who_stands_behind_it(accounts):
    one = account(accounts, audit_story.RATIFIED)
    assert one.ratified is account(accounts, audit_story.KILLED)
    assert one.approvers == [ADA]
    assert [op.key for op in one.concerned] == ["checkout"]


def test_a_rejected_entry_names_only_people_whose_signatures_hold(accounts):
    by_herself, by_nobody = account(accounts, audit_story.SAME_PERSON), account(accounts, audit_story.STRANGER)
    assert (by_herself.requester, by_herself.policy, by_herself.changes) == (ADA, None, ())
    assert (by_nobody.requester, by_nobody.proposal, list(by_nobody.people())) == (None, None, [])
    assert by_nobody.claim().requester == ADA  # it says so, and nothing vouches for it


def rejected_with(*approvals):
    """The account of an entry that was rejected, carrying these approvals: makers, given forge and proposal."""
    forge = Forge(approvals=2)
    forge.genesis()
    proposal = forge.proposal(forge.op("flag", boolean_flag()))
    made = tuple(make(forge, proposal) for make in approvals)
    forge.append(Release(proposal, made, "approvals>=2"))
    one = examined(forge)[1][-1]
    assert one.kind is EntryKind.REJECTED
    return one


@pytest.mark.parametrize(
    "approval",
    [
        lambda forge, proposal: seal_approval(forge, proposal, Key(GRACE, "stolen from nobody")),
        lambda forge, proposal: forge.approval(proposal, log_id=LogId("elsewhere")),
        lambda forge, proposal: forge.approval(forge.proposal(forge.op("other", boolean_flag()))),
    ],
    ids=["forged", "of another environment", "of another proposal"],
)
def test_an_approval_that_is_none_of_this_proposal_is_told_of_nobody(approval):
    one = rejected_with(approval)
    assert (one.requester, one.approvers, one.approvals) == (ADA, [], ())


def test_a_rejection_in_a_rejected_entry_makes_nobody_an_approver():
    one = rejected_with(
        lambda forge, proposal: forge.approval(proposal, by=LINUS),
        lambda forge, proposal: forge.approval(proposal, decision=Decision.REJECT),
    )
    assert one.approvers == [LINUS]
    assert list(one.people()) == [ADA, LINUS, GRACE]


def seal_approval(forge, proposal, key):
    """An approval in a person's name, signed by a key that is not theirs."""
    honest = forge.approval(proposal, by=key.person)
    return countersign(replace(honest, signatures=()), [key])


def test_a_deleted_and_made_anew_flag_has_nothing_before_it(accounts):
    deleted = account(accounts, audit_story.DELETED).changes[0]
    again = account(accounts, audit_story.READDED).changes[0]
    assert (deleted.verb, deleted.after, again.verb, again.before) == ("delete", None, "add", None)
    assert deleted.before == account(accounts, audit_story.EDITED).changes[0].after


def test_a_root_names_who_signed_it_and_is_in_force_from_the_next_entry_on(accounts):
    one = account(accounts, audit_story.ROTATED)
    assert (one.new_root.version, one.root.version) == (2, 1)
    assert [key.person for key in one.root_signers] == [ADA]
    assert account(accounts, audit_story.AFTER).root is one.new_root


def test_accounts_agree_with_the_sidecars_state_at_every_entry(story):
    examination = Examination(Ledger(story.first_root))
    documents = {}
    for position, data in enumerate(story.records):
        one = examination.take(position, data)
        for done in one.changes:
            documents[done.op.state_id] = done.after
        served = {(flag.source, flag.key): flag.definition for flag in examination.snapshot.flags()}
        told_of = {
            (state_id.source, state_id.key): parse_flag(document)
            for state_id, document in documents.items()
            if state_id.target == "FLAG" and document is not None
        }
        assert told_of == served, one.seq
        plans = {
            state_id.key: parse_release(document)
            for state_id, document in documents.items()
            if state_id.target == "RELEASE" and document is not None
        }
        assert plans == {key: state.plan for key, state in examination.snapshot.releases.items()}, one.seq


def test_accounts_keep_no_snapshots(accounts):
    assert not any(list(one.link.snapshot.flags()) for one in accounts if isinstance(one.link, Applied | Stepped))


def test_a_step_names_the_approved_entry_whose_plan_it_follows(accounts):
    for seq, stage in ((audit_story.STEPPED, 0), (audit_story.STEPPED_ON, 1)):
        one = account(accounts, seq)
        assert one.allowed_by is account(accounts, audit_story.WALKED)
        assert (one.allowed_by.requester, one.allowed_by.approvers) == (ADA, [GRACE])
        assert (one.requester, one.approvers, one.policy, list(one.people())) == (None, [], None, [])
        assert (one.step.release, one.step.stage, one.releases) == ("spring", stage, ["spring"])
    assert account(accounts, audit_story.TOO_EARLY).allowed_by is None


def test_a_step_follows_the_newest_approved_plan_and_not_the_step_before_it():
    forge = Forge()
    forge.genesis()
    stages = (Stage("1%", False, 1000, 0), Stage("10%", False, 10_000, 0), Stage("all", False, SHARE_MAX, 0))
    plan = release_plan("cart", stages=stages, gate=Gate(walk=Walk.ON))
    change(forge, forge.release_op("sale", plan), forge.op("cart", gated_flag("sale")), title="a walked sale")
    audit_story.step(forge, 0, of="sale")
    change(forge, forge.hoist("sale", share=5000), title="a little more, still walked", by=GRACE, approved_by=(LINUS,))
    audit_story.step(forge, 1, of="sale")
    audit_story.step(forge, 2, of="sale")
    told_by = [one.allowed_by.seq.number for one in examined(forge)[1] if one.kind is EntryKind.STEP]
    assert told_by == [2, 4, 4]


def test_what_became_of_a_release_is_put_into_words(accounts):
    said = {one.seq.number: one.moves for one in accounts if one.moves}
    assert said == {
        audit_story.CREATED: ["created, closed"],
        audit_story.WALKED: ["walks through its stages"],
        audit_story.STEPPED: ["closed → audience (stage 1 of 3: inside, as planned)"],
        audit_story.STEPPED_ON: ["audience → audience and 10 % (stage 2 of 3, as planned)"],
        audit_story.HOISTED: ["audience and 10 % → audience and 50 %; paused"],
        audit_story.REVERTED: ["audience and 50 % → closed; keeps mail.spring"],
        audit_story.DRILLED: ["drill begun: its shadow gate is open"],
        audit_story.LOWERED: ["drill: its shadow gate is closed"],
        audit_story.MEASURED: ["drill measured: 3 of 3 instances reached, the last after 41 ms"],
        audit_story.AWAITED: ["closed → 100 %"],
        audit_story.CLOSED_AT_ONCE: ["100 % → closed; walk ended"],
    }


@pytest.mark.parametrize(
    "result",
    [{}, {"missing": 5}, {"missing": {"a": 1}}, {"instances": None, "reached": []}, {"revert": 1, "p50_ms": "x\n"}],
    ids=str,
)
def test_a_result_of_any_shape_is_put_into_words(result):
    forge = Forge()
    forge.genesis()
    audit_story.drill(forge, "measured", hoisted=False, result=result)
    (said,) = examined(forge)[1][-1].moves
    assert said.startswith("drill measured: ")


def test_a_prepared_release_names_its_preparation_which_changed_nothing(accounts):
    prepared, published = account(accounts, audit_story.PREPARED), account(accounts, audit_story.HOISTED)
    assert published.prepared_by is prepared
    assert (prepared.changes, prepared.in_force_at_ms, prepared.policy) == ((), None, "approvals>=1")
    assert prepared.proposal == published.proposal
    assert account(accounts, audit_story.UNPREPARED).prepared_by is None


def test_an_entry_takes_effect_at_its_moment_and_none_after_it_before_but_an_emergency(accounts):
    def waits(seq):
        one = account(accounts, seq)
        return one.in_force_at_ms - one.entry.published_at

    for seq in (audit_story.STEPPED, audit_story.STEPPED_ON, audit_story.HOISTED, audit_story.AWAITED):
        assert waits(seq) == audit_story.LEAD_MS
    assert [waits(seq) for seq in (audit_story.CREATED, audit_story.REVERTED, audit_story.CLOSED_AT_ONCE)] == [0, 0, 0]
    forge = Forge()
    forge.genesis()
    forge.append(Release(first := forge.proposal(forge.op("a", boolean_flag()), lead_ms=2000),
                         (forge.approval(first),), "approvals>=1"))  # fmt: skip
    forge.now_ms += 500
    forge.put("b")
    forge.now_ms += 1500
    forge.put("c")
    taken = [(one.in_force_at_ms or 0) - one.entry.published_at for one in examined(forge)[1][1:]]
    assert taken == [2000, 1500, 0]


def test_a_killed_release_is_told_as_its_plan_with_a_closed_gate(accounts):
    (change,) = account(accounts, audit_story.CLOSED_AT_ONCE).changes
    before, after = parse_release(change.before), parse_release(change.after)
    assert (before.gate.share, after.gate) == (SHARE_MAX, Gate())
    assert replace(after, gate=before.gate) == before
    assert account(accounts, audit_story.STOOD_BEHIND).ratified is account(accounts, audit_story.CLOSED_AT_ONCE)


def test_a_missing_entry_is_a_break_at_the_first_record_after_it(story):
    broken = fed(story, [*story.records[:4], *story.records[5:]]).broken
    assert (broken.position, broken.seq, broken.expected, broken.got) == (4, Seq(5), "seq 5", "6")


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_lost_beginning_is_a_break_and_not_another_ledger(story, lost):
    examination = fed(story, story.records[lost:])
    assert examination.wrong_root() is None
    assert (examination.broken.seq, examination.broken.what) == (Seq(1), "entries are missing")


def test_an_entry_that_comes_late_is_no_break(story):
    records = [*story.records[:4], story.records[5], *story.records[4:]]
    assert fed(story, records).broken is None


@pytest.mark.parametrize("what", ["fork", "equivocation"])
def test_a_second_history_is_a_break_with_both_hashes(what):
    forge = Forge()
    forge.genesis()
    forge.put("one")
    entry = forge.entry(forge.release(forge.op("two", boolean_flag())))
    forge.append(entry.body)
    if what == "fork":
        other = replace(entry, seq=Seq(4), prev_hash=bytes(range(32)))
        expected, got = f"prev_hash {forge.ledger.head.entry_hash.hex()}", f"prev_hash {bytes(range(32)).hex()}"
    else:
        other = replace(entry, published_at=entry.published_at + 1)
        got = digest(decode_envelope(forge.signed(other))).hex()
        expected = forge.ledger.head.entry_hash.hex()
    examination = fed(forge, [*forge.records, forge.signed(other)])
    broken = examination.broken
    assert (broken.position, broken.expected, broken.got) == (3, expected, got)
    assert examination.tally["forked"] == 1


def test_a_fork_that_a_later_root_has_cured_is_told_and_is_no_break():
    forge = Forge()
    forge.genesis()
    forge.put("one")
    entry = forge.entry(EpochClaim("elsewhere"))
    fork = forge.signed(replace(entry, prev_hash=bytes(32)))
    forge.records.append(fork)
    forge.ledger.receive(fork)
    from flaghoist.records import RoleGrant
    from flaghoist.values import Role
    from tests.forge import PUBLISHER, Key

    new = Key(PUBLISHER, "another")
    root = forge.root.record
    roles = {**root.roles, Role.PUBLISHER: RoleGrant(frozenset({new.listed.key_id}), 1)}
    forge.rotate(keys=(*root.keys, new.listed), roles=roles, signed_by=new)
    examination, accounts = examined(forge)
    assert examination.broken is None
    assert len(examination.forks) == 1
    assert accounts[-1].kind is EntryKind.ROOT
    assert [key.key_id for key in accounts[-1].publishers] == [new.listed.key_id]


def test_a_flood_of_junk_is_counted_and_not_kept(story):
    junk = [bytes([n % 251]) * 40 for n in range(500)]
    examination = fed(story, [*story.records, *junk])
    assert examination.tally["dropped"] == 500
    assert len(examination.dropped) == EXAMPLES_MAX
    assert examination.broken is None


def test_a_ledger_of_another_root_is_named_as_such(story):
    other = Forge(log_id="other")
    examination = fed(other, story.records)
    assert examination.wrong_root().code == "wrong_root"


def test_an_entry_under_several_publishers_signatures_names_those_that_hold():
    from flaghoist.codec import encode_envelope
    from flaghoist.signing import countersign
    from tests.forge import Key

    forge = Forge()
    data = forge.genesis()
    stranger = encode_envelope(countersign(decode_envelope(data), [Key(LINUS, "stranger")]))
    forge.records[0] = stranger
    _, (one,) = examined(forge)
    assert [key.person for key in one.publishers] == ["publisher@example.org"]
