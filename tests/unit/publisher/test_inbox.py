"""The inbox: what counts of the records that anyone may write into it."""

from dataclasses import replace
from itertools import permutations

import pytest

import publisher.inbox as inbox_module
from flaghoist.codec import encode_envelope
from flaghoist.records import RoleGrant, Signature
from flaghoist.signing import digest
from flaghoist.values import Decision, LogId, Person, Role
from publisher.inbox import Inbox, UnknownProposal, new_proposal_id
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, Forge, Key, boolean_flag


@pytest.fixture
def forge():
    return Forge()


def gathered(forge, *envelopes):
    return Inbox.gathered(forge.root, [encode_envelope(e) if not isinstance(e, bytes) else e for e in envelopes])


def proposal(forge, key="new-checkout", **changes):
    return forge.proposal(forge.op(key, boolean_flag()), **changes)


def test_statements_come_to_their_proposals_in_any_order(forge):
    asked = proposal(forge)
    said = forge.approval(asked)
    for records in ((asked, said), (said, asked)):
        (case,) = gathered(forge, *records).cases.values()
        assert [approval.approver for approval, _ in case.approvals] == [GRACE]


def test_newest_statement_of_a_person_counts(forge):
    asked = proposal(forge)
    yes = forge.approval(asked, approved_at=NOW_MS + 2)
    no = forge.approval(asked, decision=Decision.REJECT, approved_at=NOW_MS + 1)
    for records in ((asked, yes, no), (asked, no, yes)):
        (case,) = gathered(forge, *records).cases.values()
        assert [approval.decision for approval, _ in case.approvals] == [Decision.APPROVE]


def test_junk_forgeries_and_other_environments_are_dropped_and_counted(forge):
    asked = proposal(forge)
    inbox = gathered(
        forge,
        asked,
        b"junk",
        forge.root.envelope,
        proposal(forge, "other", by=ADA, requester=GRACE),
        proposal(forge, "another", log_id=LogId("staging")),
        forge.approval(asked, by=LINUS, approver=GRACE),
    )
    assert len(inbox.cases) == 1
    assert inbox.dropped == 5
    assert not next(iter(inbox.cases.values())).approvals


def test_id_that_is_taken_stays_with_its_first_proposal(forge):
    first = proposal(forge, "first", proposal_id="01TAKEN")
    second = proposal(forge, "second", proposal_id="01TAKEN")
    inbox = gathered(forge, first, second, first)
    assert inbox.cases["01TAKEN"].envelope == first
    assert inbox.dropped == 1


def test_proposal_is_found_by_a_prefix_that_only_it_has(forge):
    inbox = gathered(forge, proposal(forge, "a", proposal_id="01AAA"), proposal(forge, "b", proposal_id="01ABB"))
    assert inbox.find("01aaa").id == "01AAA"
    assert inbox.find("01AB").id == "01ABB"
    for unclear in ("01A", "02", ""):
        with pytest.raises(UnknownProposal):
            inbox.find(unclear)


def test_ids_sort_by_time_and_differ_by_chance():
    early, late = new_proposal_id(NOW_MS, b"\xff" * 10), new_proposal_id(NOW_MS + 1, b"\x00" * 10)
    assert early < late
    assert len(early) == len(late) == 26
    # The specification's own example of a time (github.com/ulid/spec, "Usage").
    assert new_proposal_id(1469918176385, bytes(10)).startswith("01ARYZ6S41")


# --- what a publisher that runs relies on ---


def encoded(*envelopes):
    return [encode_envelope(envelope) for envelope in envelopes]


def approved(inbox):
    return {case.id: sorted(approval.approver for approval, _ in case.approvals) for case in inbox}


def test_each_record_is_verified_once_however_often_it_comes(forge, monkeypatch):
    verified = []
    for name in ("verified_proposal", "verified_approval"):
        real = getattr(inbox_module, name)
        monkeypatch.setattr(inbox_module, name, lambda *a, real=real, name=name: verified.append(name) or real(*a))
    asked = proposal(forge)
    inbox = Inbox(forge.root)
    for data in encoded(asked, forge.approval(asked)) * 50:
        inbox.receive(data)
    assert verified == ["verified_proposal", "verified_approval"]
    assert list(approved(inbox).values()) == [[GRACE]]
    assert inbox.dropped == 0


def test_only_what_changes_a_case_is_told(forge):
    asked = proposal(forge)
    asked_data, said_data = encoded(asked, forge.approval(asked))
    inbox = Inbox(forge.root)
    assert inbox.receive(said_data) == digest(asked), "said before it was asked"
    assert inbox.receive(asked_data).approvals
    assert inbox.receive(asked_data) is None
    assert inbox.receive(said_data) is None
    assert inbox.receive(b"junk") is None


def test_flood_of_one_requester_pushes_out_only_their_own_that_expire_first(forge, monkeypatch):
    monkeypatch.setattr(inbox_module, "PROPOSALS_PER_REQUESTER_MAX", 5)
    inbox = Inbox(forge.root)
    kept = proposal(forge, "kept", by=GRACE, proposal_id="GRACE")
    long_lived = proposal(forge, "long", proposal_id="LONG", expires_at=NOW_MS + 60 * DAY_MS)
    for data in encoded(kept, long_lived):
        inbox.receive(data)
    for number in range(30):
        changes = {"proposal_id": f"{number:03}", "expires_at": NOW_MS + DAY_MS + number}
        inbox.receive(encode_envelope(proposal(forge, f"flag-{number}", **changes)))
    assert sorted(approved(inbox)) == ["026", "027", "028", "029", "GRACE", "LONG"]
    assert inbox.evicted == 26


def test_bytes_of_one_requester_are_bounded(forge, monkeypatch):
    size = len(encode_envelope(proposal(forge, "flag-0", proposal_id="000")))
    monkeypatch.setattr(inbox_module, "PROPOSAL_BYTES_PER_REQUESTER_MAX", 3 * size)
    inbox = Inbox(forge.root)
    for number in range(9):
        changes = {"proposal_id": f"{number:03}", "expires_at": NOW_MS + DAY_MS + number}
        inbox.receive(encode_envelope(proposal(forge, f"flag-{number}", **changes)))
    assert sorted(approved(inbox)) == ["006", "007", "008"]


def test_flood_of_statements_on_proposals_that_are_not_there_pushes_out_only_that_persons(forge, monkeypatch):
    monkeypatch.setattr(inbox_module, "LOOSE_STATEMENTS_PER_APPROVER_MAX", 4)
    asked = proposal(forge)
    inbox = Inbox(forge.root)
    inbox.receive(encode_envelope(forge.approval(asked, by=GRACE)))
    for number in range(20):
        other = proposal(forge, f"flag-{number}")
        inbox.receive(encode_envelope(forge.approval(other, by=LINUS)))
    assert inbox.evicted == 16
    inbox.receive(encode_envelope(asked))
    assert list(approved(inbox).values()) == [[GRACE]]


def test_expired_and_settled_records_are_not_taken_in_again(forge):
    settled = set()
    inbox = Inbox(forge.root, settled.__contains__)
    old, done = proposal(forge, "old", expires_at=NOW_MS + 10), proposal(forge, "done")
    for data in encoded(old, done):
        inbox.receive(data, now_ms=NOW_MS)
    assert len(inbox) == 2
    settled.add(digest(done))
    inbox.prune(now_ms=NOW_MS + 11)
    for data in encoded(old, done, forge.approval(old, expires_at=NOW_MS + 10), forge.approval(done)):
        inbox.receive(data, now_ms=NOW_MS + 11)
    assert len(inbox) == 0
    assert inbox.dropped == 2, "the expired ones; what is in the ledger is no junk"
    assert inbox.statements_on(digest(done)) == ()


def test_statements_on_an_emergency_in_force_stay_when_it_has_expired():
    forge = Forge(root_options={"emergency": (GRACE,)})
    kill = forge.kill_proposal("new-checkout")
    awaited = {digest(kill)}
    inbox = Inbox(forge.root, awaited=awaited.__contains__)
    later = NOW_MS + 3_600_000
    for data in encoded(kill, forge.approval(kill, by=ADA)):
        inbox.receive(data, now_ms=later)
    inbox.prune(now_ms=later)
    assert [approval.approver for approval, _ in inbox.statements_on(digest(kill))] == [ADA]


# --- roots ---


@pytest.fixture
def council():
    """Three people, two of whom must sign a root."""
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    return forge


def test_signatures_over_the_same_root_are_put_together_in_any_order(council):
    by = [council.next_root(Key(person), expires_at=NOW_MS + DAY_MS) for person in (ADA, GRACE, LINUS)]
    for order in permutations(encoded(*by)):
        inbox = Inbox(council.root)
        for data in order:
            inbox.receive(data)
        (case,) = inbox.roots
        assert case.root.people_signing(Role.ROOT, case.envelope) == {ADA, GRACE, LINUS}
        assert council.root.successor(case.envelope).version == 2
        assert inbox.receive(order[0]) is None, "nothing new"


def test_new_member_may_be_the_first_to_sign_a_root(council):
    ken = Key(Person("ken@example.org"))
    roles = dict(council.root.record.roles)
    roles[Role.ROOT] = RoleGrant(roles[Role.ROOT].key_ids | {ken.listed.key_id}, 2)
    changes = {"keys": (*council.root.record.keys, ken.listed), "roles": roles}
    by = [council.next_root(key, **changes) for key in (ken, Key(ADA))]
    inbox = Inbox(council.root)
    assert inbox.receive(encode_envelope(by[0])) is None
    assert inbox.roots == ()
    case = inbox.receive(encode_envelope(by[1]))
    assert case.root.people_signing(Role.ROOT, case.envelope) == {ken.person, ADA}


def test_roots_that_nobody_in_force_has_signed_are_not_read_and_bounded(council, monkeypatch):
    read = []
    monkeypatch.setattr(inbox_module.Root, "unsigned", lambda envelope: read.append(envelope))
    stranger = Key(Person("mallory@example.org"))
    inbox = Inbox(council.root)
    for number in range(3 * inbox_module.ROOTS_UNREAD_MAX):
        inbox.receive(encode_envelope(council.next_root(stranger, expires_at=NOW_MS + number)))
    assert read == []
    assert inbox.roots == ()
    assert len(inbox._unread) == inbox_module.ROOTS_UNREAD_MAX


def test_flood_of_roots_of_one_person_pushes_out_only_theirs(council):
    wanted = council.next_root(Key(ADA), expires_at=NOW_MS + DAY_MS)
    inbox = Inbox(council.root)
    inbox.receive(encode_envelope(wanted))
    for number in range(2 * inbox_module.ROOTS_PER_SIGNER_MAX):
        inbox.receive(encode_envelope(council.next_root(Key(GRACE), expires_at=NOW_MS + number)))
    assert len(inbox.roots) == 1 + inbox_module.ROOTS_PER_SIGNER_MAX
    assert digest(wanted) in {case.sha256 for case in inbox.roots}


def test_forged_signatures_and_roots_of_another_place_count_for_nothing(council):
    good = council.next_root(Key(ADA))
    forged = replace(good, signatures=(*good.signatures, Signature(Key(GRACE).listed.key_id, bytes(64))))
    inbox = Inbox(council.root)
    case = inbox.receive(encode_envelope(forged))
    assert case.root.people_signing(Role.ROOT, case.envelope) == {ADA}
    assert len(case.envelope.signatures) == 1
    assert inbox.receive(encode_envelope(council.next_root(Key(ADA), version=7))) is None
    assert len(inbox.roots) == 1
