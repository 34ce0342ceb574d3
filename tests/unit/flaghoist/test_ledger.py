"""The verifier's table of outcomes (docs/protocol.md), row by row: what each record does to the chain and the state."""

from dataclasses import replace

import pytest

from flaghoist.authorization import NotUnderstood
from flaghoist.codec import ENTRY, decode_envelope, encode_envelope
from flaghoist.ledger import Ledger, replay
from flaghoist.outcomes import Advanced, Applied, Dropped, Forked, Gap, Held, Rejected, Repeated, Void
from flaghoist.records import EpochClaim, Op, Release, RoleGrant, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import countersign, digest, seal
from flaghoist.values import Action, Decision, FlagKey, LogId, Role, Seq, Source, StateId, Target
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag, root_record, sealed_root

FLAG = StateId(Target.FLAG, Source(""), FlagKey("new-checkout"))


@pytest.fixture
def forge():
    forge = Forge()
    forge.genesis()
    forge.put("new-checkout")
    return forge


def facts(ledger):
    """All that a refused input must leave as it was."""
    return ledger.head, ledger.snapshot, ledger.min_pin, ledger.stopped_by, ledger.quarantined_by


def assert_changes_nothing(forge, data, outcome_type, code=None):
    before = facts(forge.ledger)
    outcome = forge.ledger.receive(data)
    assert isinstance(outcome, outcome_type), outcome
    if code is not None:
        assert outcome.refusal.code == code
    assert facts(forge.ledger) == before
    return outcome


def assert_rejected(forge, data, code):
    """The chain advances, the state does not."""
    flags_before, seq_before = forge.ledger.snapshot.version_of(FLAG), forge.ledger.head.seq
    outcome = forge.ledger.receive(data)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.refusal.code == code
    assert forge.ledger.head.seq == seq_before.next()
    assert forge.ledger.snapshot.version_of(FLAG) == flags_before
    # What follows is judged for what it says: the rejected entry is a link that the next one is bound to.
    following = forge.release(forge.op("other", boolean_flag()))
    assert isinstance(forge.ledger.judge(forge.signed(forge.entry(following))), Applied | Rejected)


def test_genesis_states_the_pinned_root_and_advances_the_chain():
    forge = Forge()
    outcome = forge.ledger.receive(forge.signed(forge.entry(RootUpdate(forge.root.envelope))))
    assert isinstance(outcome, Advanced)
    assert forge.ledger.head.seq == Seq(1)


def test_approved_release_is_applied_and_names_its_people(forge):
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    outcome = forge.ledger.receive(data)
    assert isinstance(outcome, Applied)
    assert outcome.authorized.proposal.requester == ADA
    assert outcome.authorized.approvers == (GRACE,)
    assert forge.ledger.snapshot.version_of(FLAG) == Seq(3)
    assert forge.ledger.snapshot.view.flags["new-checkout"].definition.default_variant == "on"


def test_judging_changes_nothing(forge):
    before = facts(forge.ledger)
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    assert isinstance(forge.ledger.judge(data), Applied)
    assert facts(forge.ledger) == before


# --- dropped: anyone can write these ---


@pytest.mark.parametrize(
    "junk", [b"", b"\x00", b"junk", bytes(1000), b"\xff" * 600_000], ids=lambda b: f"{len(b)}-bytes"
)
def test_junk_is_dropped(forge, junk):
    assert_changes_nothing(forge, junk, Dropped)


def test_record_over_the_size_limit_is_dropped_before_it_is_parsed(forge):
    assert_changes_nothing(forge, bytes(512 * 1024 + 1), Dropped, "too_large")


def test_trailing_bytes_are_dropped(forge):
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    assert_changes_nothing(forge, data + b"\x00", Dropped, "malformed")


def test_entry_signed_by_a_key_that_is_not_the_publishers_is_dropped(forge):
    entry = forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))))
    assert_changes_nothing(forge, forge.signed(entry, by=Key(ADA)), Dropped, "bad_signature")


def test_entry_under_an_unknown_key_is_dropped(forge):
    entry = forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))))
    assert_changes_nothing(forge, forge.signed(entry, by=Key(PUBLISHER, "another")), Dropped, "bad_signature")


def test_any_flipped_bit_of_a_signed_entry_is_dropped_or_leaves_the_same_entry(forge):
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    honest = forge.ledger.judge(data)
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1
        outcome = forge.ledger.judge(bytes(flipped))
        # The framing outside the signature (a schema hint, say) may differ; what is signed may not.
        assert isinstance(outcome, Dropped) or outcome == honest, place


def test_entry_of_another_environment_is_dropped(forge):
    entry = forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), log_id=LogId("production"))
    assert_changes_nothing(forge, forge.signed(entry), Dropped, "wrong_log")


def test_proposal_signed_as_if_it_were_an_entry_is_dropped(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")))
    disguised = replace(proposal, payload_type=ENTRY.payload_type, schema_sha256=ENTRY.schema_sha256)
    assert_changes_nothing(forge, encode_envelope(disguised), Dropped, "bad_signature")


def test_record_of_a_foreign_type_is_dropped(forge):
    entry = decode_envelope(forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))))))
    foreign = countersign(replace(entry, payload_type="text/plain", signatures=()), [Key(PUBLISHER)])
    assert_changes_nothing(forge, encode_envelope(foreign), Dropped, "malformed")


def test_ledger_that_starts_with_another_root_is_dropped():
    other = Forge()
    other.root = Root.verified(sealed_root(root_record(approvals=0)))
    forge = Forge()
    outcome = forge.ledger.receive(other.signed(forge.entry(RootUpdate(other.root.envelope))))
    assert isinstance(outcome, Dropped)
    assert outcome.refusal.code == "wrong_root"
    assert forge.ledger.head.seq == Seq(0)


def test_release_before_the_root_is_dropped():
    forge = Forge()
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag()))))
    assert isinstance(forge.ledger.receive(data), Dropped)


# --- repeated, void, gap ---


def test_entry_read_twice_is_ignored(forge):
    for data, seq in zip(forge.records, (1, 2), strict=True):
        assert assert_changes_nothing(forge, data, Repeated).seq == Seq(seq)


def test_entry_after_a_missing_one_is_a_gap(forge):
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), seq=Seq(9)))
    gap = assert_changes_nothing(forge, data, Gap)
    assert (gap.expected, gap.got) == (Seq(3), Seq(9))


def test_publisher_that_claims_the_next_epoch_fences_the_one_before(forge):
    late = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    forge.append(EpochClaim("second-publisher"))
    assert forge.ledger.head.epoch == 2
    assert_changes_nothing(forge, late, Void)
    stale_epoch = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), epoch=1))
    assert_changes_nothing(forge, stale_epoch, Void)


def test_second_claim_of_one_epoch_is_void_and_the_first_holds(forge):
    second = forge.signed(forge.entry(EpochClaim("second-publisher")))
    third = forge.signed(forge.entry(EpochClaim("third-publisher")))
    assert isinstance(forge.ledger.receive(second), Advanced)
    assert_changes_nothing(forge, third, Void)


def test_epoch_that_nobody_claimed_is_void(forge):
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), epoch=2))
    assert_changes_nothing(forge, data, Void)


def test_epoch_cannot_be_claimed_ahead(forge):
    assert_changes_nothing(forge, forge.signed(forge.entry(EpochClaim("hasty"), epoch=5)), Void)


# --- fork and equivocation: the reader is quarantined; the chain goes on for its cure (test_quarantine.py) ---


def assert_quarantined(forge, data, what):
    head, snapshot = forge.ledger.head, forge.ledger.snapshot
    outcome = forge.ledger.receive(data)
    assert isinstance(outcome, Forked)
    assert (outcome.what, outcome.theirs) == (what, data)
    assert outcome.signers == {Key(PUBLISHER).listed.key_id}
    assert (forge.ledger.head, forge.ledger.snapshot) == (head, snapshot)
    forge.put("honest")
    assert forge.ledger.quarantined_by is outcome


def test_two_entries_for_one_place_in_one_epoch_are_an_equivocation(forge):
    other = Forge()
    other.genesis()
    assert other.records[0] == forge.records[0]
    assert_quarantined(forge, other.put("other"), "equivocation")


def test_next_entry_on_another_history_is_a_fork(forge):
    data = forge.signed(
        forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), prev_hash=b"\x01" * 32)
    )
    assert_quarantined(forge, data, "fork")


def test_past_entry_on_another_history_is_a_fork(forge):
    forge.put("second")
    data = forge.signed(forge.entry(EpochClaim("late"), seq=Seq(2), prev_hash=b"\x01" * 32))
    assert_quarantined(forge, data, "fork")


# --- time: only what people's expiries bound moves it on ---


def test_claim_dated_far_ahead_locks_nobody_out(forge):
    forge.append(EpochClaim("second-publisher"), published_at=NOW_MS + 300 * DAY_MS)
    assert forge.ledger.head.epoch == 2
    forge.put("later")
    assert "later" in forge.ledger.snapshot.view.flags


def test_root_published_at_its_last_moment_locks_nobody_out(forge):
    forge.append(RootUpdate(forge.next_root()), published_at=forge.root.record.expires_at)
    assert forge.ledger.root.version == 2
    forge.put("later")
    assert "later" in forge.ledger.snapshot.view.flags


def test_release_cannot_be_dated_before_the_one_that_it_follows(forge):
    forge.put("other")
    forge.append(EpochClaim("second-publisher"), published_at=NOW_MS + DAY_MS)
    early = forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), published_at=NOW_MS - 1)
    assert_rejected(forge, forge.signed(early), "expired")


# --- rejected: the chain advances, the state does not ---


def test_release_without_approval_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")), approved_by=())
    assert_rejected(forge, forge.signed(forge.entry(release)), "not_approved")


def test_requesters_own_approval_does_not_count(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")), by=ADA, approved_by=(ADA,))
    assert_rejected(forge, forge.signed(forge.entry(release)), "same_person")


def test_one_person_with_two_keys_counts_once():
    second = Key(GRACE, "second")
    record = root_record(approvals=2)
    approver = record.roles[Role.APPROVER]
    record = replace(
        record,
        keys=(*record.keys, second.listed),
        roles={**record.roles, Role.APPROVER: replace(approver, key_ids=approver.key_ids | {second.listed.key_id})},
    )
    forge = Forge()
    forge.root = Root.verified(sealed_root(record))
    forge.ledger = Ledger(forge.root)
    forge.genesis()
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag()))
    first = forge.approval(proposal)
    again = replace(first, signatures=())
    release = Release(proposal, (first, countersign(again, [second])), "approvals>=2")
    assert_rejected(forge, forge.signed(forge.entry(release)), "not_approved")


def test_approval_of_another_proposal_is_rejected(forge):
    approved = forge.proposal(forge.op("new-checkout", boolean_flag("off")))
    shipped = forge.proposal(forge.op("new-checkout", boolean_flag("on")))
    release = Release(shipped, (forge.approval(approved),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "bad_signature")


def test_proposal_edited_after_its_approval_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("off")))
    edited = replace(release.proposal, payload=release.proposal.payload.replace(b'"off"}', b'"on"} '))
    assert edited != release.proposal
    assert_rejected(forge, forge.signed(forge.entry(replace(release, proposal=edited))), "bad_signature")


def test_rejection_is_not_an_approval(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")))
    release = Release(proposal, (forge.approval(proposal, decision=Decision.REJECT),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "not_approved")


def test_approval_signed_by_another_than_it_names_is_rejected(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")))
    release = Release(proposal, (forge.approval(proposal, by=ADA, approver=GRACE),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "wrong_role")


def test_proposal_signed_by_another_than_it_names_is_rejected(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), by=ADA, requester=LINUS)
    release = Release(proposal, (forge.approval(proposal),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "wrong_role")


def test_approval_by_somebody_without_that_role_is_rejected():
    forge = Forge()
    forge.root = Root.verified(sealed_root(root_record(approvers=(GRACE, ADA))))
    forge.ledger = Ledger(forge.root)
    forge.genesis()
    release = forge.release(forge.op("new-checkout", boolean_flag()), approved_by=(LINUS,))
    assert_rejected(forge, forge.signed(forge.entry(release)), "bad_signature")


def test_expired_approval_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    entry = forge.entry(release, published_at=NOW_MS + DAY_MS + 1)
    assert_rejected(forge, forge.signed(entry), "expired")


def test_approval_counts_until_its_very_expiry(forge):
    entry = forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on"))), published_at=NOW_MS + DAY_MS)
    assert isinstance(forge.ledger.receive(forge.signed(entry)), Applied)


def test_expired_proposal_is_rejected(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), expires_at=NOW_MS - 1)
    release = Release(proposal, (forge.approval(proposal),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "expired")


def test_entry_dated_before_its_predecessor_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    assert_rejected(forge, forge.signed(forge.entry(release, published_at=NOW_MS - 1)), "expired")


def test_entry_under_an_expired_root_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    entry = forge.entry(release, published_at=NOW_MS + 366 * DAY_MS)
    assert_rejected(forge, forge.signed(entry), "expired")


def test_change_of_a_flag_that_changed_meanwhile_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    forge.put("new-checkout", boolean_flag("on"))
    assert_rejected(forge, forge.signed(forge.entry(release)), "stale_base")


def test_proposal_cannot_be_published_twice(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    forge.append(release)
    assert_rejected(forge, forge.signed(forge.entry(release)), "stale_base")


def test_creation_cannot_be_published_again_after_a_deletion(forge):
    creation = forge.release(forge.op("short-lived", boolean_flag()))
    forge.append(creation)
    forge.append(forge.release(forge.op("short-lived", None)))
    assert_rejected(forge, forge.signed(forge.entry(creation)), "stale_base")


def test_one_stale_op_rejects_all_ops_of_its_entry(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")), forge.op("other", boolean_flag(), version=7))
    assert_rejected(forge, forge.signed(forge.entry(release)), "stale_base")


def test_definition_that_cannot_be_served_is_rejected(forge):
    bad = forge.raw_op("new-checkout", {"flag": {"state": "ENABLED", "variants": {}, "defaultVariant": "on"}})
    assert_rejected(forge, forge.signed(forge.entry(forge.release(bad))), "bad_definition")


def asking(forge, min_pin, *, default="on"):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag(default)), min_pin=Seq(min_pin))
    return Release(proposal, (forge.approval(proposal),), "approvals>=1")


def test_proposal_that_forbids_pins_to_what_is_not_there_yet_is_rejected(forge):
    assert_rejected(forge, forge.signed(forge.entry(asking(forge, 4))), "bad_definition")
    assert forge.ledger.min_pin == Seq(0)


def test_refusal_of_a_min_pin_says_what_was_expected(forge):
    outcome = forge.ledger.judge(forge.signed(forge.entry(asking(forge, 9))))
    assert outcome.refusal.where.endswith(".min_pin")
    assert "want at most its entry's seq 3, got 9" in str(outcome.refusal)


def test_proposal_of_another_environment_is_rejected(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), log_id=LogId("staging"))
    release = Release(proposal, (forge.approval(proposal),), "approvals>=1")
    assert_rejected(forge, forge.signed(forge.entry(release)), "wrong_log")


def test_wrong_root_version_is_rejected(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    assert_rejected(forge, forge.signed(forge.entry(release, root_version=2)), "wrong_root")


# --- held: what only a newer release understands must not be skipped ---


def assert_held(forge, data):
    before = forge.ledger.head, forge.ledger.snapshot
    outcome = forge.ledger.receive(data)
    assert isinstance(outcome, Held)
    assert isinstance(outcome.refusal, NotUnderstood)
    assert (forge.ledger.head, forge.ledger.snapshot) == before
    honest = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag("on")))))
    assert forge.ledger.receive(honest) is outcome


def test_newer_type_of_record_by_the_publisher_is_held(forge):
    entry = decode_envelope(forge.signed(forge.entry(EpochClaim("newer"))))
    newer = replace(entry, payload_type="application/vnd.flaghoist.entry.v2+avro", signatures=())
    head = forge.ledger.head
    outcome = forge.ledger.receive(encode_envelope(countersign(newer, [Key(PUBLISHER)])))
    assert isinstance(outcome, Held)
    assert outcome.signers == {Key(PUBLISHER).listed.key_id}
    assert (forge.ledger.stopped_by, forge.ledger.head) == (outcome, head)


def newer_record(forge, *, by):
    entry = decode_envelope(forge.signed(forge.entry(EpochClaim("newer"))))
    newer = replace(entry, payload_type="application/vnd.flaghoist.entry.v2+avro", signatures=())
    return encode_envelope(countersign(newer, [by]))


def test_chain_goes_on_after_a_newer_record_that_shows_no_place_in_it_and_stays_unserved(forge):
    held = forge.ledger.receive(newer_record(forge, by=Key(PUBLISHER)))
    forge.put("next")
    assert forge.ledger.head.seq == Seq(3)
    assert forge.ledger.stopped_by is held


def test_root_that_takes_the_key_from_whoever_wrote_a_newer_record_lets_the_state_be_served_again(forge):
    successor = Key(PUBLISHER, "second")
    forge.ledger.receive(newer_record(forge, by=Key(PUBLISHER)))
    forge.rotate(expires_at=NOW_MS + 30 * DAY_MS)
    assert forge.ledger.root.version == 2
    assert forge.ledger.stopped_by is not None
    roles = {**forge.root.record.roles, Role.PUBLISHER: RoleGrant(frozenset({successor.listed.key_id}), 1)}
    keys = tuple(key for key in forge.root.record.keys if key.person != PUBLISHER)
    forge.rotate(keys=(*keys, successor.listed), roles=roles)
    assert forge.ledger.root.version == 3
    assert forge.ledger.stopped_by is None


def test_entry_of_seq_0_is_dropped(forge):
    assert_changes_nothing(forge, forge.signed(forge.entry(EpochClaim("none"), seq=Seq(0))), Dropped, "malformed")


def test_first_entry_of_another_epoch_is_dropped():
    forge = Forge()
    first = forge.signed(forge.entry(RootUpdate(forge.root.envelope), epoch=2))
    assert_changes_nothing(forge, first, Dropped, "malformed")


def test_what_was_signed_as_another_type_is_neither_a_proposal_nor_an_approval(forge):
    """A key may serve elsewhere: what it signed there says nothing here, though its bytes are the same."""
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    assert_rejected(
        forge, forge.signed(forge.entry(replace(release, proposal=elsewhere(release.proposal, ADA)))), "malformed"
    )
    approval = elsewhere(release.approvals[0], GRACE)
    assert_rejected(forge, forge.signed(forge.entry(replace(release, approvals=(approval,)))), "malformed")


def elsewhere(envelope, person):
    return countersign(replace(envelope, payload_type="text/plain", signatures=()), [Key(person)])


def test_approval_given_twice_is_rejected_though_there_are_enough(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")))
    once = forge.approval(proposal)
    assert_rejected(forge, forge.signed(forge.entry(Release(proposal, (once, once), "approvals>=1"))), "not_approved")


def test_newer_type_of_record_by_anybody_else_is_dropped(forge):
    entry = decode_envelope(forge.signed(forge.entry(EpochClaim("newer"))))
    newer = replace(entry, payload_type="application/vnd.flaghoist.entry.v2+avro", signatures=())
    assert_changes_nothing(forge, encode_envelope(countersign(newer, [Key(ADA)])), Dropped, "bad_signature")


def test_op_that_this_release_cannot_apply_is_held(forge):
    op = Op(Target.POLICY, Source(""), FlagKey("new-checkout"), Seq(2), Action.DELETE, None)
    assert_held(forge, forge.signed(forge.entry(forge.release(op))))


# --- min_pin ---


def test_min_pin_is_the_largest_that_an_applied_proposal_asked_for(forge):
    assert forge.ledger.min_pin == Seq(0)
    forge.append(asking(forge, 3))
    assert forge.ledger.min_pin == Seq(3)
    forge.append(asking(forge, 2, default="off"))
    assert forge.ledger.min_pin == Seq(3)
    forge.put("other")
    assert forge.ledger.min_pin == Seq(3)
    assert replay(forge.root, forge.records).min_pin == Seq(3)


def test_min_pin_of_a_proposal_that_is_not_applied_does_not_count(forge):
    proposal = forge.proposal(forge.op("new-checkout", boolean_flag("on")), min_pin=Seq(3))
    assert_rejected(forge, forge.signed(forge.entry(Release(proposal, (), "approvals>=1"))), "not_approved")
    assert forge.ledger.min_pin == Seq(0)


# --- replay ---


def test_replay_of_a_ledger_ends_where_its_publisher_is(forge):
    forge.put("new-checkout", boolean_flag("on"))
    forge.append(EpochClaim("second-publisher"))
    forge.append(forge.release(forge.op("new-checkout", None)))
    again = replay(forge.root, forge.records)
    assert again.head == forge.ledger.head
    assert again.head.entry_hash == digest(decode_envelope(forge.records[-1]))
    assert not again.snapshot.view.flags


def test_solo_root_needs_no_approval():
    forge = Forge(approvals=0)
    forge.genesis()
    data = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag()), approved_by=())))
    assert isinstance(forge.ledger.receive(data), Applied)


def test_two_approvals_are_two_people():
    forge = Forge(approvals=2)
    forge.genesis()
    one = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag()), approved_by=(GRACE,))))
    two = forge.signed(forge.entry(forge.release(forge.op("new-checkout", boolean_flag()), approved_by=(GRACE, LINUS))))
    assert isinstance(forge.ledger.judge(one), Rejected)
    assert isinstance(forge.ledger.judge(two), Applied)


def test_entry_with_many_signatures_is_refused_by_the_limit(forge):
    entry = forge.entry(EpochClaim("second-publisher"))
    crowd = [Key(PUBLISHER, str(n)) for n in range(16)]
    assert_changes_nothing(forge, encode_envelope(seal(ENTRY, entry, [Key(PUBLISHER), *crowd])), Dropped, "too_large")
