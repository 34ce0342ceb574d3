"""The next root, worked out: what an edit makes of it, what it says of it, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from flaghoist.codec import ROOT, SIGNATURES_MAX
from flaghoist.records import Envelope, Revocation, RootRecord
from flaghoist.root import Root
from flaghoist.values import KeyId, Person, Role, Seq
from publisher import root_plan
from publisher.root_plan import BadRoot, Edit
from publisher.root_signatures import RootEdited, SignedRoot, UnknownRoot, check_unedited, find, signed_root
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, root_record, sealed_root

KEN = Person("ken@example.org")
LATER = NOW_MS + 2 * 365 * DAY_MS
ANCHOR = (Seq(1), b"\1" * 32)
POLICY = "version: 1\nrules: [{name: all, approvals: [{count: 1}]}]\n"


def first(**changes: object) -> Root:
    """A root that two of three sign, with an emergency key of Grace's and a heartbeat key."""
    record = root_record(root_threshold=2, emergency=(GRACE,), beats=True)
    return Root.verified(sealed_root(replace(record, **changes), Key(ADA), Key(GRACE)))  # type: ignore[arg-type]


def after(before: Root, **edit: object) -> Root:
    told = {"expires_at": LATER, **edit}
    record = root_plan.edited(before, Edit(**told), anchor=ANCHOR, past=root_plan.chain_keys([before]))  # type: ignore[arg-type]
    return unsigned(record)


def unsigned(record: RootRecord) -> Root:
    return Root.unsigned(Envelope(ROOT.payload_type, ROOT.schema_sha256, ROOT.encode(record), ()))


def key_id(person: Person, label: str = "") -> KeyId:
    return Key(person, label).listed.key_id


def revocation(person: Person, seq: int | None = None) -> Revocation:
    return Revocation(key_id(person), None if seq is None else Seq(seq), "stolen")


# --- edits ---


def test_an_edit_makes_the_version_that_follows() -> None:
    before = first()
    made = after(before)
    before.check_precedes(made)
    assert (made.version, made.record.anchor_seq, made.record.expires_at) == (2, Seq(1), LATER)
    assert made.record.roles == {role: before.grant(role) for role in Role}


def test_a_member_may_propose_and_approve_and_no_more() -> None:
    made = after(first(), added=(Key(KEN).listed,))
    assert root_plan.roles_of(made, key_id(KEN)) == (Role.REQUESTER, Role.APPROVER)


def test_somebody_removed_has_no_key_left() -> None:
    made = after(first(), removed=(GRACE,), added=(Key(KEN).listed,))
    assert all(key.person != GRACE for key in made.record.keys)
    assert made.grant(Role.EMERGENCY).threshold == 0


def test_a_new_key_takes_every_role_of_the_old_one() -> None:
    new = Key(ADA, "second").listed
    made = after(first(), replaced=((key_id(ADA), new),))
    assert root_plan.roles_of(made, new.key_id) == root_plan.roles_of(first(), key_id(ADA))
    assert made.key(key_id(ADA)) is None


def test_a_key_that_is_replaced_and_revoked_is_revoked() -> None:
    new = Key(ADA, "second").listed
    made = after(first(), replaced=((key_id(ADA), new),), revoked=(revocation(ADA, 3),))
    assert made.record.revoked == (revocation(ADA, 3),)
    assert made.people_of(Role.ROOT) == {ADA, GRACE, LINUS}


def test_revocations_accumulate_and_what_is_learned_later_is_added() -> None:
    lost = after(first(), revoked=(revocation(LINUS),), added=(Key(KEN).listed,))
    edit = Edit(LATER, revoked=(revocation(LINUS, 5), revocation(KEN)))
    again = unsigned(root_plan.edited(lost, edit, anchor=ANCHOR, past=root_plan.chain_keys([first(), lost])))
    assert again.record.revoked == (revocation(LINUS, 5), revocation(KEN))


def test_a_first_key_of_a_role_sets_its_threshold_and_the_last_one_clears_it() -> None:
    gone = ((Role.EMERGENCY, key_id(GRACE, "emergency")),)
    made = after(first(), granted=((Role.CHECKPOINTER, Key(PUBLISHER).listed),), withdrawn=gone)
    assert made.grant(Role.CHECKPOINTER).threshold == 1
    assert (made.grant(Role.EMERGENCY).threshold, made.grant(Role.EMERGENCY).key_ids) == (0, frozenset())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"added": (Key(ADA).listed,)}, "want a new member"),
        ({"removed": (KEN,)}, "want somebody whom the root lists"),
        ({"replaced": ((key_id(KEN), Key(KEN, "2").listed),)}, "want one that the root lists"),
        ({"replaced": ((key_id(ADA), Key(KEN).listed),)}, "want a card of ada@example.org"),
        ({"revoked": (revocation(KEN),)}, "want one that this root or an earlier version lists"),
        ({"withdrawn": ((Role.EMERGENCY, key_id(ADA)),)}, "has no role EMERGENCY"),
        ({"withdrawn": ((Role.PUBLISHER, key_id(PUBLISHER)),)}, "role PUBLISHER: nobody would hold it"),
        ({"removed": (ADA, GRACE, LINUS)}, "nobody would hold it"),
        ({"removed": (ADA, GRACE)}, "threshold 2, but 1 people would hold it"),
        ({"thresholds": {Role.REQUESTER: 2}}, "one signature is enough by design"),
        ({"thresholds": {Role.ROOT: 0}}, "want a threshold of at least 1"),
        ({"granted": ((Role.ROOT, replace(Key(ADA).listed, person=KEN)),)}, "to whom it belongs"),
        ({"revoked": (revocation(LINUS),), "granted": ((Role.ROOT, Key(LINUS).listed),)}, "was revoked: stolen"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_edit_that_cannot_be_meant_is_refused(edit: dict[str, object], said: str) -> None:
    with pytest.raises(BadRoot, match=said) as refused:
        after(first(), **edit)
    assert refused.value.hint


def test_a_root_under_which_no_change_could_be_approved_is_refused() -> None:
    root_plan.check_usable(after(first(), thresholds={Role.APPROVER: 2}))
    with pytest.raises(BadRoot, match="nobody could have a change approved"):
        root_plan.check_usable(after(first(), thresholds={Role.APPROVER: 3}))


def test_more_root_signatures_than_one_envelope_holds_for_old_and_new_are_refused() -> None:
    people = [Person(f"p{n}@example.org") for n in range(SIGNATURES_MAX)]
    record = root_record(members=people, root_threshold=SIGNATURES_MAX // 2)
    root_plan.check_usable(unsigned(record))
    with pytest.raises(BadRoot, match="want a threshold of at most"):
        root_plan.check_usable(unsigned(root_record(members=people, root_threshold=SIGNATURES_MAX // 2 + 1)))


def test_a_policy_with_errors_is_refused_and_one_with_warnings_told() -> None:
    impossible = POLICY.replace("count: 1", "count: 3")
    with pytest.raises(BadRoot, match="policy: line"):
        root_plan.check_policy(after(first(), policy=impossible), now_ms=NOW_MS)
    strangers = POLICY.replace("rules:", "groups: {leads: [ken@example.org, ada@example.org]}\nrules:")
    made = after(first(), policy=strangers)
    root_plan.check_policy(made, now_ms=NOW_MS)
    assert any("ken@example.org" in concern for concern in root_plan.concerns(made, now_ms=NOW_MS))


# --- words ---


def words(before: Root | None, made: Root) -> str:
    return "\n".join(root_plan.in_words(root_plan.difference(before, made)))


def test_what_each_key_gains_and_loses_is_said() -> None:
    before = first()
    said = words(before, after(before, added=(Key(KEN).listed,), removed=(LINUS,), thresholds={Role.ROOT: 1}))
    assert f"+ {KEN} (ED25519 key {key_id(KEN)}) gains REQUESTER, APPROVER" in said
    assert f"- {LINUS} (ED25519 key {key_id(LINUS)}) loses ROOT, REQUESTER, APPROVER" in said
    assert "~ ROOT takes 1 people instead of 2" in said


def test_a_renewal_says_nothing_and_a_first_root_everything() -> None:
    before = first()
    assert words(before, after(before)) == ""
    assert words(None, before).count("gains") == len(before.record.keys)


def test_a_policy_is_told_as_a_diff() -> None:
    before = first()
    assert "+rules: [{name: all" in root_plan.difference(before, after(before, policy=POLICY)).policy


@pytest.mark.parametrize(
    ("edit", "alone"),
    [
        ({}, []),
        ({"thresholds": {Role.APPROVER: 0}}, [ADA, GRACE, LINUS]),
        ({"thresholds": {Role.ROOT: 1}}, [ADA, GRACE, LINUS]),
        ({"thresholds": {Role.APPROVER: 0}, "policy": POLICY}, []),
    ],
    ids=["two of three", "no approvals", "one signs roots", "a policy asks for approvals"],
)
def test_who_alone_could_change_a_flag_is_told(edit: dict[str, object], alone: Sequence[Person]) -> None:
    made = after(first(), **edit)
    assert [power.key.person for power in root_plan.powers(made) if power.alone] == list(alone)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"expires_at": NOW_MS + 29 * DAY_MS}, "it expires in 29 days"),
        ({"expires_at": NOW_MS - 1}, "it has expired"),
        ({"thresholds": {Role.ROOT: 1}}, "ROOT takes one person"),
        ({"thresholds": {Role.ROOT: 3}}, "once one of them loses a key"),
        ({"thresholds": {Role.APPROVER: 0}}, "no change needs an approval"),
        ({"granted": ((Role.PUBLISHER, Key(ADA).listed),)}, "ada@example.org holds PUBLISHER and"),
        ({"granted": ((Role.EMERGENCY, Key(ADA).listed),)}, "is for every day and for emergencies"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_to_worry_about_is_told(edit: dict[str, object], said: str) -> None:
    assert any(said in concern for concern in root_plan.concerns(after(first(), **edit), now_ms=NOW_MS))


def test_a_sound_root_gives_nothing_to_worry_about() -> None:
    assert root_plan.concerns(first(), now_ms=NOW_MS) == []


def test_a_root_that_only_revoked_keys_could_sign_is_warned_of() -> None:
    before = first()
    assert root_plan.lost_with(before, after(before, revoked=(revocation(ADA),))) is None
    made = after(before, revoked=(revocation(ADA), revocation(GRACE)), thresholds={Role.ROOT: 1})
    assert "must sign once more" in (root_plan.lost_with(before, made) or "")


# --- signatures ---


def test_signatures_in_several_envelopes_are_put_together() -> None:
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    mine, yours = (signed_root(forge.root, forge.next_root(Key(person))) for person in (ADA, LINUS))
    assert [missing.could for missing in mine.missing] == [(GRACE, LINUS), (GRACE, LINUS)]
    both = mine.with_signatures(yours.root.envelope)
    assert (both.ready, both.people) == (True, (ADA, LINUS))
    assert forge.root.successor(both.root.envelope).version == 2


def test_signatures_of_others_and_of_other_bytes_do_not_count() -> None:
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    strange = signed_root(forge.root, forge.next_root(Key(KEN), Key(PUBLISHER)))
    assert strange.people == ()
    other = forge.next_root(Key(ADA), Key(GRACE), expires_at=LATER)
    spliced = replace(forge.next_root(Key(LINUS)), signatures=other.signatures)
    assert signed_root(forge.root, spliced).people == ()
    with pytest.raises(RootEdited, match=r"ada@example\.org, grace@example\.org"):
        check_unedited(signed_root(forge.root, spliced), spliced)


def test_of_too_many_signatures_those_are_kept_that_count_for_old_and_new() -> None:
    people = [Person(f"p{n:02}@example.org") for n in range(SIGNATURES_MAX)]
    before = Root.verified(sealed_root(root_record(members=people, root_threshold=len(people)), *map(Key, people)))
    newcomers = [Person(f"n{n}@example.org") for n in range(4)]
    edit = Edit(LATER, granted=tuple((Role.ROOT, Key(person).listed) for person in newcomers))
    record = root_plan.edited(before, edit, anchor=ANCHOR, past=root_plan.chain_keys([before]))
    case = signed_root(before, sealed_root(record, *map(Key, newcomers)))
    for person in people:
        case = case.with_signatures(sealed_root(record, Key(person)))
    assert case.ready
    assert len(case.root.envelope.signatures) == SIGNATURES_MAX


def waiting() -> list[SignedRoot]:
    forge = Forge(root_options={"root_threshold": 2})
    forge.genesis()
    return [signed_root(forge.root, forge.next_root(Key(ADA), expires_at=LATER + n)) for n in range(2)]


def test_a_root_that_waits_is_found_by_version_or_by_the_start_of_its_digest() -> None:
    one, other = waiting()
    assert find([one], None) is one
    assert find([one], "2") is one
    assert find([one, other], other.id[:8].upper()) is other


@pytest.mark.parametrize("name", [None, "2", "3", "", "zzzz"])
def test_one_that_is_not_there_or_not_alone_is_not_found(name: str | None) -> None:
    with pytest.raises(UnknownRoot) as refused:
        find(waiting(), name)
    assert refused.value.hint
