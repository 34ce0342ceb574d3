"""An examination says what the verifier said, entry by entry, and where a chain breaks."""

from dataclasses import replace

import pytest

from flaghoist.codec import decode_envelope
from flaghoist.definition import parse_flag
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied
from flaghoist.records import EpochClaim, Release
from flaghoist.signing import countersign, digest
from flaghoist.values import Decision, LogId, Seq
from publisher.audit.account import EntryKind
from publisher.audit.examination import EXAMPLES_MAX, Examination
from tests import audit_story
from tests.audit_story import examined, told
from tests.forge import ADA, GRACE, LINUS, Forge, Key, boolean_flag


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
        for change in one.changes:
            documents[change.op.state_id] = change.after
        served = {(flag.source, flag.key): flag.definition for flag in examination.snapshot.flags()}
        told_of = {
            (state_id.source, state_id.key): parse_flag(document)
            for state_id, document in documents.items()
            if state_id.target == "FLAG" and document is not None
        }
        assert told_of == served, one.seq


def test_accounts_keep_no_snapshots(accounts):
    assert not any(list(one.link.snapshot.flags()) for one in accounts if isinstance(one.link, Applied))


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
