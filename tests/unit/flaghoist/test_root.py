"""A root that exists can be used: keys, roles and signatures were checked when it was read."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flaghoist.codec import PROPOSAL, encode_envelope
from flaghoist.errors import Expired, Malformed, NotApproved, SignatureRefused
from flaghoist.records import Envelope, RoleGrant, RootKey
from flaghoist.root import Root
from flaghoist.signing import countersign, digest, key_id
from flaghoist.values import Algorithm, KeyId, Person, Role, Seq
from tests.forge import ADA, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag, root_record, sealed_root


def with_role(role, grant):
    record = root_record()
    return replace(record, roles={**record.roles, role: grant})


def test_root_is_read_back_from_its_bytes():
    envelope = sealed_root(root_record())
    root = Root.from_bytes(encode_envelope(envelope))
    assert root.sha256 == digest(envelope)
    assert root.people_of(Role.APPROVER) == {ADA, GRACE, LINUS}
    assert root.people_of(Role.PUBLISHER) == {PUBLISHER}
    assert root.grant(Role.EMERGENCY) == RoleGrant(frozenset(), 0)


def test_root_signed_by_too_few_people_is_refused():
    ids = frozenset(Key(person).listed.key_id for person in (ADA, GRACE))
    record = with_role(Role.ROOT, RoleGrant(ids, 2))
    with pytest.raises(NotApproved, match="asks for signatures of 2 people with role ROOT, got 1"):
        Root.verified(sealed_root(record, Key(ADA)))
    assert Root.verified(sealed_root(record, Key(ADA), Key(GRACE))).version == 1


def test_root_signed_by_a_stranger_is_refused():
    with pytest.raises(NotApproved):
        Root.verified(sealed_root(root_record(), Key(Person("mallory@example.org"))))


def test_two_keys_of_one_person_do_not_make_two_people():
    second = Key(ADA, "second").listed
    record = root_record()
    record = replace(
        record,
        keys=(*record.keys, second),
        roles={**record.roles, Role.ROOT: RoleGrant(frozenset({Key(ADA).listed.key_id, second.key_id}), 2)},
    )
    with pytest.raises(Malformed, match="threshold 2, but 1 people hold it"):
        Root.verified(sealed_root(record, Key(ADA), Key(ADA, "second")))


def test_key_of_small_order_is_refused_when_the_root_is_loaded():
    public = bytes([1]) + bytes(31)
    weak = RootKey(key_id(Algorithm.ED25519, public), Algorithm.ED25519, public, Person("mallory@example.org"))
    record = root_record()
    with pytest.raises(Malformed, match="prime-order"):
        Root.verified(sealed_root(replace(record, keys=(*record.keys, weak))))


def test_p256_key_is_listed_in_its_long_form_only():
    """Else one key would have two fingerprints, and could pass for two people."""
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    public = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    short = RootKey(key_id(Algorithm.ECDSA_P256, public), Algorithm.ECDSA_P256, public, GRACE)
    record = root_record()
    with pytest.raises(Malformed, match="want 65 bytes, got 33"):
        Root.verified(sealed_root(replace(record, keys=(*record.keys, short))))


def test_root_is_signed_by_keys_of_its_own_role_only():
    roles = {**root_record().roles, Role.ROOT: RoleGrant(frozenset({Key(ADA).listed.key_id}), 1)}
    with pytest.raises(NotApproved):
        Root.verified(sealed_root(root_record(roles=roles), Key(GRACE), Key(PUBLISHER)))


def test_key_under_a_fingerprint_of_another_is_refused():
    record = root_record()
    swapped = replace(record.keys[0], public=Key(ADA, "another").public)
    with pytest.raises(Malformed, match="not the fingerprint"):
        Root.verified(sealed_root(replace(record, keys=(swapped, *record.keys[1:]))))


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (root_record(version=2), "a later one with both"),
        (root_record(version=0), "version 1"),
        (root_record(version=0, prev_root_sha256=b"\1" * 32, anchor_seq=Seq(1)), "version 1"),
        (root_record(prev_root_sha256=b"\1" * 32), "without a predecessor"),
        (root_record(keys=()), "1 .. 1000 keys"),
        (root_record(fractional="v9"), "want v2 or v3"),
        (root_record(keys=(*root_record().keys, root_record().keys[0])), "listed twice"),
        (with_role(Role.APPROVER, RoleGrant(frozenset({KeyId("0" * 32)}), 0)), "not listed"),
        (with_role(Role.APPROVER, RoleGrant(frozenset(), 1)), "but 0 people hold it"),
        (with_role(Role.APPROVER, RoleGrant(frozenset(), -1)), "threshold -1"),
        (with_role(Role.PUBLISHER, RoleGrant(frozenset(), 0)), "at least 1"),
        (with_role(Role.ROOT, RoleGrant(frozenset(), 0)), "at least 1"),
        (with_role(Role.REQUESTER, RoleGrant(frozenset(), 0)), "at least 1"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_root_that_cannot_work_is_refused(record, complaint):
    with pytest.raises(Malformed, match=complaint):
        Root.verified(sealed_root(record, Key(ADA)))


def test_other_record_is_not_a_root():
    forge = Forge()
    with pytest.raises(Malformed, match="root"):
        Root.verified(forge.proposal(forge.op("new-checkout", boolean_flag())))


def test_what_was_signed_as_another_type_is_no_root():
    elsewhere = replace(sealed_root(root_record()), payload_type="text/plain", signatures=())
    with pytest.raises(Malformed, match=r"root: want application/vnd\.flaghoist\.root"):
        Root.verified(countersign(elsewhere, [Key(ADA)]))


def test_signer_outside_a_role_is_named():
    forge = Forge()
    proposal: Envelope = forge.proposal(forge.op("new-checkout", boolean_flag()))
    assert PROPOSAL.payload_type == proposal.payload_type
    with pytest.raises(SignatureRefused, match=Key(ADA).listed.key_id):
        forge.root.signers_in((Role.PUBLISHER,), proposal)


def test_root_expires_after_its_last_millisecond():
    root = Root.verified(sealed_root(root_record(expires_at=NOW_MS)))
    root.check_unexpired(NOW_MS)
    with pytest.raises(Expired, match="root version 1"):
        root.check_unexpired(NOW_MS + 1)
