"""Proof of a second history stops what is served; the chain goes on to the root that takes the forging keys away."""

from dataclasses import replace

import pytest

from flaghoist.freshness import Heartbeats
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Forked
from flaghoist.records import EpochClaim, Revocation, RoleGrant
from flaghoist.root import Root
from flaghoist.values import Role, Seq
from tests.forge import BEAT_LABEL, NOW_MS, PUBLISHER, Forge, Key, boolean_flag, root_record, sealed_root

SECOND = Key(PUBLISHER, "second")
THIRD = Key(PUBLISHER, "third")
BEATS = Key(PUBLISHER, BEAT_LABEL)


def with_keys(root, grants):
    """The record of a root in which these roles have these keys alone."""
    gone = frozenset[object]().union(*(root.roles[role].key_ids for role in grants if role in root.roles))
    kept = tuple(key for key in root.keys if key.key_id not in gone)
    made = {key.listed.key_id: key.listed for keys in grants.values() for key in keys}
    roles = {role: RoleGrant(frozenset(k.listed.key_id for k in keys), 1) for role, keys in grants.items()}
    return replace(root, keys=(*kept, *made.values()), roles={**root.roles, **roles})


@pytest.fixture
def forge():
    """Two publisher keys, one for heartbeats, three entries."""
    forge = Forge(root_options={"beats": True})
    record = with_keys(root_record(beats=True), {Role.PUBLISHER: [Key(PUBLISHER), SECOND]})
    forge.root = Root.verified(sealed_root(record))
    forge.genesis()
    forge.put("new-checkout")
    forge.put("other")
    return forge


def equivocation(forge, *, by=None):
    """What a key says that has signed another entry at the head's place."""
    head = forge.ledger.head
    release = forge.release(forge.op("stolen", boolean_flag("on")))
    entry = forge.entry(release, seq=head.seq, prev_hash=forge.ledger.hash_at(Seq(head.seq.number - 1)))
    return forge.signed(entry, by=by)


def rotate(forge, publishers, beats=(BEATS,), **changes):
    """Append a root with these keys; the last publisher signs its entry."""
    grants = {Role.PUBLISHER: publishers, Role.HEARTBEAT: list(beats)}
    record = with_keys(forge.root.record, grants)
    before = forge.root.record.keys
    gone = tuple(Revocation(k.key_id, None, "stolen") for k in before if k not in record.keys)
    changes = {"keys": record.keys, "roles": record.roles, "revoked": (*forge.root.record.revoked, *gone), **changes}
    data = forge.rotate(signed_by=publishers[-1], **changes)
    forge.publisher = publishers[-1]
    return data


def test_chain_goes_on_in_quarantine(forge):
    proof = forge.ledger.receive(equivocation(forge))
    assert isinstance(proof, Forked)
    forge.append(EpochClaim("honest"))
    forge.put("third")
    assert forge.ledger.head.seq == Seq(5)
    assert forge.ledger.quarantined_by is proof


def test_root_that_takes_the_forging_key_away_ends_the_quarantine(forge):
    forge.ledger.receive(equivocation(forge))
    rotate(forge, [SECOND])
    assert forge.ledger.root.version == 2
    assert forge.ledger.quarantined_by is None
    forge.put("after")
    assert "after" in forge.ledger.snapshot.view.flags


def test_root_that_leaves_the_forging_key_does_not_end_it(forge):
    proof = forge.ledger.receive(equivocation(forge))
    rotate(forge, [Key(PUBLISHER), THIRD])
    assert forge.ledger.root.version == 2
    assert forge.ledger.quarantined_by is proof
    rotate(forge, [THIRD])
    assert forge.ledger.quarantined_by is None


def test_second_forging_key_must_go_as_well(forge):
    proof = forge.ledger.receive(equivocation(forge))
    forge.ledger.receive(equivocation(forge, by=SECOND))
    assert forge.ledger.quarantined_by is proof  # the first one is the evidence
    rotate(forge, [SECOND])
    assert forge.ledger.quarantined_by is proof
    rotate(forge, [THIRD])
    assert forge.ledger.quarantined_by is None


def test_forging_key_that_moves_to_another_role_keeps_the_quarantine(forge):
    proof = forge.ledger.receive(equivocation(forge))
    grants = {Role.PUBLISHER: [SECOND], Role.HEARTBEAT: [Key(PUBLISHER)]}
    record = with_keys(forge.root.record, grants)
    forge.rotate(signed_by=SECOND, keys=record.keys, roles=record.roles)
    assert forge.ledger.root.version == 2
    assert forge.ledger.quarantined_by is proof


def test_heartbeat_of_another_history_is_a_proof_that_its_key_must_answer_for(forge):
    beats = Heartbeats(forge.ledger)
    proof = beats.receive(forge.beat(head_hash=b"\x01" * 32), now_ms=NOW_MS)
    assert isinstance(proof, Forked)
    assert (proof.what, proof.signers) == ("heartbeat", {BEATS.listed.key_id})
    forge.ledger.quarantine(proof)
    rotate(forge, [THIRD])
    assert forge.ledger.quarantined_by is proof
    new_beats = Key(PUBLISHER, "heartbeat 2")
    rotate(forge, [THIRD], beats=[new_beats])
    assert forge.ledger.quarantined_by is None
    assert beats.receive(forge.beat(by=new_beats), now_ms=NOW_MS).beat.seq == forge.ledger.head.seq


def test_reader_on_the_forged_side_learns_of_it_from_the_honest_side(forge):
    fork = Ledger(forge.first_root)
    for data in forge.records[:2]:
        fork.receive(data)
    branch = Forge(root_options={"beats": True})
    branch.root = forge.first_root
    for data in forge.records[:2]:
        branch.ledger.receive(data)
    stolen = branch.put("stolen")
    assert isinstance(fork.receive(stolen), Applied)
    assert isinstance(fork.receive(forge.records[2]), Forked)
    assert fork.quarantined_by is not None


def test_replay_after_the_cure_meets_the_proof_and_the_cure_again(forge):
    forged = equivocation(forge)
    log = [*forge.records, forged]
    forge.ledger.receive(forged)
    log.append(rotate(forge, [SECOND]))
    log.append(forge.put("after"))
    reader = Ledger(forge.first_root)
    quarantined = []
    for data in log:
        reader.receive(data)
        quarantined.append(reader.quarantined_by is not None)
    assert quarantined == [False, False, False, True, False, False]
    assert reader.head == forge.ledger.head


def test_forged_entry_after_the_cure_is_junk(forge):
    forged = equivocation(forge)
    rotate(forge, [SECOND])
    assert type(forge.ledger.receive(forged)).__name__ == "Dropped"
    assert forge.ledger.quarantined_by is None
