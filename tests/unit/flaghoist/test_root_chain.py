"""Roots follow one another only by the will of enough people of both, and readers may begin at any one they trust."""

from dataclasses import replace

import pytest

from flaghoist.codec import ENTRY, decode_envelope, encode_envelope
from flaghoist.errors import Malformed, NotApproved, WrongLog
from flaghoist.ledger import Ledger, replay
from flaghoist.outcomes import Applied, Dropped, Forked, Gap, Held, Rejected, Repeated, RootChanged, Void
from flaghoist.records import EpochClaim, Revocation, RoleGrant, RootUpdate
from flaghoist.root import Root
from flaghoist.root_chain import RootUnknown, beginning
from flaghoist.signing import digest, seal
from flaghoist.values import Algorithm, KeyId, LogId, Person, Role, Seq
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag, root_record, sealed_root

MALLORY = Person("mallory@example.org")
SECOND_PUBLISHER = Key(PUBLISHER, "second")
FUTURE_POLICY = "version: 2\nrules:\n  - name: any\n"


@pytest.fixture
def forge():
    """Two of ADA, GRACE and LINUS sign roots; one flag is in force."""
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    forge.put("new-checkout")
    return forge


def with_publisher(forge, key, **changes):
    """What a root says that has another publisher key, and nothing else new."""
    old = forge.root.grant(Role.PUBLISHER).key_ids
    keys = tuple(k for k in forge.root.record.keys if k.key_id not in old)
    roles = {**forge.root.record.roles, Role.PUBLISHER: RoleGrant(frozenset({key.listed.key_id}), 1)}
    return {"keys": (*keys, key.listed), "roles": roles, **changes}


def judged(forge, root, *, by=None):
    return forge.ledger.judge(forge.signed(forge.entry(RootUpdate(root)), by=by))


def refusal_of(forge, root):
    """A root that its people could not make: its entry is a link that changes nothing."""
    outcome = judged(forge, root)
    assert isinstance(outcome, Rejected), outcome
    return outcome.refusal


# --- who must sign ---


def test_root_signed_by_enough_people_of_both_is_taken_and_opens_an_epoch(forge):
    assert isinstance(judged(forge, forge.next_root(Key(ADA), Key(LINUS))), RootChanged)
    forge.rotate(Key(ADA), Key(LINUS))
    assert (forge.root.version, forge.ledger.head.epoch) == (2, 2)


def test_root_signed_by_too_few_people_of_the_one_before_is_rejected(forge):
    refusal = refusal_of(forge, forge.next_root(Key(ADA)))
    assert refusal.code == "not_approved"
    assert "version 1 asks for signatures of 2 people" in str(refusal)


def test_root_signed_by_too_few_people_of_itself_is_rejected(forge):
    roles = {**forge.root.record.roles}
    roles[Role.ROOT] = replace(roles[Role.ROOT], threshold=3)
    refusal = refusal_of(forge, forge.next_root(Key(ADA), Key(GRACE), roles=roles))
    assert "version 2 asks for signatures of 3 people" in str(refusal)
    assert isinstance(judged(forge, forge.next_root(Key(ADA), Key(GRACE), Key(LINUS), roles=roles)), RootChanged)


def test_new_people_alone_cannot_take_a_root_over(forge):
    new = [Key(Person(f"{name}@example.org")) for name in ("mallory", "trudy")]
    roles = {**forge.root.record.roles, Role.ROOT: RoleGrant(frozenset(k.listed.key_id for k in new), 2)}
    keys = (*forge.root.record.keys, *(k.listed for k in new))
    assert refusal_of(forge, forge.next_root(*new, keys=keys, roles=roles)).code == "not_approved"
    assert isinstance(judged(forge, forge.next_root(*new, Key(ADA), Key(GRACE), keys=keys, roles=roles)), RootChanged)


def test_two_keys_of_one_person_sign_a_root_once(forge):
    second = Key(ADA, "second")
    roles = {**forge.root.record.roles}
    roles[Role.ROOT] = replace(roles[Role.ROOT], key_ids=roles[Role.ROOT].key_ids | {second.listed.key_id})
    forge.rotate(keys=(*forge.root.record.keys, second.listed), roles=roles)
    assert forge.root.version == 2
    assert refusal_of(forge, forge.next_root(Key(ADA), second)).code == "not_approved"


# --- its place in the chain ---


@pytest.mark.parametrize("version", [1, 3, 4])
def test_root_that_is_not_the_next_version_is_rejected(forge, version):
    changes = {} if version > 1 else {"anchor_seq": Seq(0), "anchor_hash": bytes(32), "prev_root_sha256": bytes(32)}
    assert refusal_of(forge, forge.next_root(version=version, **changes)).code == "malformed"


def test_root_after_another_predecessor_is_rejected(forge):
    assert "propose it again" in refusal_of(forge, forge.next_root(prev_root_sha256=b"\x01" * 32)).hint


def test_root_of_another_environment_is_rejected(forge):
    assert refusal_of(forge, forge.next_root(log_id=LogId("production"))).code == "wrong_log"
    with pytest.raises(WrongLog):
        forge.root.successor(forge.next_root(log_id=LogId("production")))


def test_root_whose_signers_saw_another_history_is_rejected(forge):
    refusal = refusal_of(forge, forge.next_root(anchor_hash=b"\x01" * 32))
    assert refusal.code == "wrong_root"
    assert "signers did not see" in str(refusal)


def test_root_anchored_at_what_is_not_there_yet_is_rejected(forge):
    assert refusal_of(forge, forge.next_root(anchor_seq=Seq(9))).code == "wrong_root"


def test_root_may_be_anchored_at_an_earlier_entry(forge):
    root = forge.next_root(anchor_seq=Seq(1), anchor_hash=forge.ledger.hash_at(Seq(1)))
    assert isinstance(judged(forge, root), RootChanged)


def test_root_with_another_bucketing_is_rejected(forge):
    assert "users would move" in str(refusal_of(forge, forge.next_root(fractional="v3")))


def test_root_that_was_expired_when_it_was_published_is_rejected(forge):
    assert refusal_of(forge, forge.next_root(expires_at=NOW_MS - 1)).code == "expired"
    assert isinstance(judged(forge, forge.next_root(expires_at=NOW_MS)), RootChanged)


def test_root_with_a_policy_of_a_newer_release_is_held(forge):
    outcome = forge.ledger.receive(forge.signed(forge.entry(RootUpdate(forge.next_root(policy=FUTURE_POLICY)))))
    assert isinstance(outcome, Held)
    assert not outcome.signers
    honest = forge.signed(forge.entry(EpochClaim("another")))
    assert forge.ledger.receive(honest) is outcome  # nothing that follows can be judged


def test_policy_of_a_newer_release_that_too_few_people_signed_holds_nobody_up(forge):
    assert refusal_of(forge, forge.next_root(Key(ADA), policy=FUTURE_POLICY)).code == "not_approved"


# --- revoked keys ---


def test_revoked_key_stays_revoked(forge):
    lost = Revocation(KeyId("0" * 32), None, "laptop stolen")
    forge.rotate(revoked=(lost,))
    assert forge.root.record.revoked == (lost,)
    with pytest.raises(Malformed, match="revoked before as well"):
        forge.root.successor(forge.next_root(revoked=()))
    assert refusal_of(forge, forge.next_root(revoked=())).code == "malformed"


def test_revoked_key_cannot_be_listed_again(forge):
    gone = Revocation(Key(LINUS).listed.key_id, None, "left")
    assert "stays revoked" in refusal_of(forge, forge.next_root(revoked=(gone,))).hint


def test_revoked_key_cannot_come_back_under_another_algorithm(forge):
    ssh = replace(Key(MALLORY).listed, algorithm=Algorithm.SSHSIG_ED25519)
    ssh = replace(ssh, key_id=Key(MALLORY, algorithm=Algorithm.SSHSIG_ED25519).listed.key_id)
    gone = Revocation(Key(MALLORY).listed.key_id, None, "left")
    root = forge.next_root(keys=(*forge.root.record.keys, ssh), revoked=(gone,))
    assert "stays revoked" in refusal_of(forge, root).hint


def test_one_public_key_under_two_algorithms_does_not_make_two_people():
    record = root_record()
    ssh = replace(Key(ADA, algorithm=Algorithm.SSHSIG_ED25519).listed, person=MALLORY)
    with pytest.raises(Malformed, match="could pass for two people"):
        Root.verified(sealed_root(replace(record, keys=(*record.keys, ssh))))


def test_key_revoked_twice_is_refused():
    twice = (Revocation(KeyId("0" * 32), None, "lost"),) * 2
    with pytest.raises(Malformed, match="named twice"):
        Root.verified(sealed_root(root_record(revoked=twice)))


@pytest.mark.parametrize("role", [Role.PUBLISHER, Role.HEARTBEAT, Role.EMERGENCY, Role.REQUESTER])
def test_role_of_one_signature_has_a_threshold_of_one(role):
    record = root_record(emergency=(ADA, GRACE), beats=True)
    grant = replace(record.roles[Role.REQUESTER], threshold=2)
    with pytest.raises(Malformed, match="want threshold 1"):
        Root.verified(sealed_root(replace(record, roles={**record.roles, role: grant})))


# --- who may publish it, and what became of the keys before ---


def test_publisher_of_the_new_root_may_publish_it_when_the_old_key_is_lost(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    assert isinstance(judged(forge, root, by=SECOND_PUBLISHER), RootChanged)


def test_publisher_of_a_new_root_that_too_few_people_signed_is_nobody(forge):
    root = forge.next_root(Key(ADA), **with_publisher(forge, SECOND_PUBLISHER))
    assert isinstance(judged(forge, root, by=SECOND_PUBLISHER), Dropped)


def test_next_root_by_strangers_is_not_read(forge):
    """Else what is wrong inside of it would be said; and whoever writes to a log must not cost its readers time."""
    crowded = tuple(replace(Key(MALLORY, str(n)).listed, key_id=KeyId("0" * 32)) for n in range(3))
    root = forge.next_root(Key(MALLORY), keys=crowded)
    assert judged(forge, root, by=Key(MALLORY)).refusal.code == "bad_signature"


def test_new_root_that_no_publisher_signed_is_dropped(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    assert isinstance(judged(forge, root, by=Key(MALLORY)), Dropped)
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER), policy=FUTURE_POLICY)
    assert isinstance(judged(forge, root, by=Key(MALLORY)), Dropped)


def test_new_publisher_is_nobody_before_its_root_is_in_force(forge):
    forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    outcome = forge.ledger.judge(forge.signed(forge.entry(EpochClaim("hasty")), by=SECOND_PUBLISHER))
    assert isinstance(outcome, Dropped)


def test_first_entry_is_the_trusted_roots_publishers_alone():
    forge = Forge()
    first = forge.signed(forge.entry(RootUpdate(forge.root.envelope)), by=SECOND_PUBLISHER)
    assert isinstance(forge.ledger.judge(first), Dropped)


def test_new_root_further_on_says_that_entries_are_missing(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    far = forge.signed(forge.entry(RootUpdate(root), seq=Seq(4)), by=SECOND_PUBLISHER)
    assert forge.ledger.judge(far) == Gap(Seq(3), Seq(4))


def test_new_root_in_place_of_a_verified_entry_says_that_there_is_another_history(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    other = forge.signed(forge.entry(RootUpdate(root), seq=Seq(2), prev_hash=b"\x01" * 32), by=SECOND_PUBLISHER)
    assert isinstance(forge.ledger.judge(other), Forked)


def test_new_root_that_lost_its_place_in_a_race_is_void(forge):
    lost = forge.signed(
        forge.entry(RootUpdate(forge.next_root(**with_publisher(forge, SECOND_PUBLISHER)))), by=SECOND_PUBLISHER
    )
    forge.append(EpochClaim("winner"))
    assert isinstance(forge.ledger.judge(lost), Void)


def test_publisher_of_a_root_that_cannot_come_into_force_does_not_extend_the_chain(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER), anchor_hash=b"\x01" * 32)
    assert isinstance(judged(forge, root, by=SECOND_PUBLISHER), Dropped)
    late = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER), expires_at=NOW_MS - 1)
    assert isinstance(judged(forge, late, by=SECOND_PUBLISHER), Dropped)


def test_new_root_on_another_history_is_a_fork(forge):
    root = forge.next_root(**with_publisher(forge, SECOND_PUBLISHER))
    other = forge.signed(forge.entry(RootUpdate(root), prev_hash=b"\x01" * 32), by=SECOND_PUBLISHER)
    assert isinstance(forge.ledger.judge(other), Forked)


def test_old_publisher_is_nobody_after_its_key_was_taken_out_but_its_entries_stay(forge):
    late = forge.signed(forge.entry(forge.release(forge.op("late", boolean_flag()))))
    forge.rotate(**with_publisher(forge, SECOND_PUBLISHER))
    for place, data in enumerate(forge.records[:2], 1):
        assert forge.ledger.judge(data) == Repeated(Seq(place))
    assert isinstance(forge.ledger.judge(late), Dropped)
    next_one = forge.entry(forge.release(forge.op("next", boolean_flag())))
    assert isinstance(forge.ledger.judge(forge.signed(next_one)), Dropped)
    assert isinstance(forge.ledger.judge(forge.signed(next_one, by=SECOND_PUBLISHER)), Applied)


def test_entry_under_the_root_before_is_rejected(forge):
    forge.rotate()
    stale = forge.entry(forge.release(forge.op("next", boolean_flag())), root_version=1)
    outcome = forge.ledger.judge(forge.signed(stale))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "wrong_root"


def test_person_whom_the_new_root_leaves_out_can_no_longer_approve(forge):
    release = forge.release(forge.op("new-checkout", boolean_flag("on")))
    without = Key(GRACE).listed.key_id
    roles = {r: replace(g, key_ids=g.key_ids - {without}) for r, g in forge.root.record.roles.items()}
    keys = tuple(key for key in forge.root.record.keys if key.key_id != without)
    forge.rotate(keys=keys, roles=roles, revoked=(Revocation(without, None, "left"),))
    assert forge.root.version == 2
    outcome = forge.ledger.judge(forge.signed(forge.entry(release)))
    assert isinstance(outcome, Rejected)


def test_expired_root_allows_nothing_but_its_successor(forge):
    forge.now_ms = NOW_MS + 366 * DAY_MS
    for body in (forge.release(forge.op("late", boolean_flag())), EpochClaim("late")):
        assert forge.ledger.judge(forge.signed(forge.entry(body))).refusal.code == "expired"
    root = forge.next_root(expires_at=forge.now_ms + DAY_MS)
    assert isinstance(judged(forge, root), RootChanged)


# --- pins ---


def history(forge):
    """Roots 1 to 3 in one ledger."""
    forge.rotate()
    forge.put("between")
    forge.rotate(**with_publisher(forge, SECOND_PUBLISHER), signed_by=SECOND_PUBLISHER)
    forge.publisher = SECOND_PUBLISHER
    forge.put("after")
    return forge.records


def test_reader_that_trusts_a_later_root_begins_at_the_first_and_must_reach_it(forge):
    records = history(forge)
    start = beginning(forge.root.sha256, records)
    assert start.root.sha256 == forge.first_root.sha256
    assert sorted(start.pinned) == [2, 3]
    ledger = Ledger(start.root, start.pinned)
    reached = []
    for data in records:
        ledger.receive(data)
        reached.append(ledger.at_pinned_root)
    assert reached == [False, False, False, False, True, True]
    assert ledger.head == forge.ledger.head


def test_reader_that_trusts_the_first_root_has_nothing_more_to_reach(forge):
    history(forge)
    start = beginning(forge.first_root.sha256, forge.records)
    assert start.pinned == {}
    assert Ledger(start.root).at_pinned_root


def test_later_root_that_is_not_the_trusted_one_is_rejected(forge):
    trusted = digest(forge.next_root())
    other = forge.next_root(expires_at=NOW_MS + 400 * DAY_MS)
    ledger = replay(forge.first_root, forge.records)
    ledger.pinned = {2: trusted}
    outcome = ledger.receive(forge.signed(forge.entry(RootUpdate(other))))
    assert isinstance(outcome, Rejected)
    assert outcome.refusal.code == "wrong_root"
    assert not ledger.at_pinned_root


def test_trusted_root_that_the_ledger_does_not_lead_to_is_named(forge):
    history(forge)
    with pytest.raises(RootUnknown, match="want it in the ledger, got 3 other roots"):
        beginning(b"\x07" * 32, [b"junk", *forge.records])
    with pytest.raises(RootUnknown):
        beginning(forge.root.sha256, forge.records[4:])  # what led to it is missing


def test_first_root_counts_only_as_its_people_signed_it(forge):
    weak = replace(forge.first_root.envelope, signatures=forge.first_root.envelope.signatures[:1])
    stated = encode_envelope(seal(ENTRY, replace(_genesis(forge), body=RootUpdate(weak)), [Key(MALLORY)]))
    with pytest.raises(NotApproved):
        beginning(forge.first_root.sha256, [stated])


def _genesis(forge):
    return ENTRY.decode(decode_envelope(forge.records[0]).payload)
