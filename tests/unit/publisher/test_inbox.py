"""The inbox: what counts of the records that anyone may write into it."""

import pytest

from flaghoist.codec import encode_envelope
from flaghoist.values import Decision, LogId
from publisher.inbox import Inbox, UnknownProposal, new_proposal_id
from tests.forge import ADA, GRACE, LINUS, NOW_MS, Forge, boolean_flag


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
