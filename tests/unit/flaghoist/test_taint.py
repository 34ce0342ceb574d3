"""What a distrusted key has signed is listed, with the definitions in force that rest on it."""

import pytest

from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, RootChanged
from flaghoist.records import Revocation
from flaghoist.taint import tainted
from flaghoist.values import FlagKey, Seq, Source, StateId, Target
from tests.forge import ADA, EMERGENCY_LABEL, GRACE, LINUS, Forge, Key, boolean_flag
from tests.unit.flaghoist.test_emergency import put


def key_of(person, label=""):
    return Key(person, label).listed.key_id


def named(key):
    return StateId(Target.FLAG, Source(""), FlagKey(key))


def without(forge, *key_ids):
    """What a root says that lists these keys no more."""
    gone = frozenset(key_ids)
    roles = {}
    for role, grant in forge.root.record.roles.items():
        left = grant.key_ids - gone
        roles[role] = type(grant)(left, min(grant.threshold, len(left)))
    return {"keys": tuple(k for k in forge.root.record.keys if k.key_id not in gone), "roles": roles}


def revoke(forge, key_id, from_seq, reason="laptop stolen"):
    revocation = Revocation(key_id, None if from_seq is None else Seq(from_seq), reason)
    revoked = (*(r for r in forge.root.record.revoked if r.key_id != key_id), revocation)
    forge.rotate(Key(ADA), **without(forge, key_id), revoked=revoked)
    assert forge.root.record.revoked == revoked


def links(forge):
    ledger = Ledger(forge.first_root)
    return [outcome for outcome in map(ledger.receive, forge.records) if hasattr(outcome, "entry")]


@pytest.fixture
def forge():
    """Entries 2 to 4 put a, b and c: requested by LINUS, LINUS and ADA, approved by GRACE, ADA and GRACE."""
    forge = Forge(root_options={"emergency": (LINUS,)})
    forge.genesis()
    forge.append(forge.release(forge.op("a", boolean_flag()), by=LINUS, approved_by=(GRACE,)))
    forge.append(forge.release(forge.op("b", boolean_flag()), by=LINUS, approved_by=(ADA,)))
    forge.append(forge.release(forge.op("c", boolean_flag()), by=ADA, approved_by=(GRACE,)))
    return forge


def test_nothing_is_tainted_while_no_key_is_distrusted(forge):
    assert tainted(links(forge)) == ()
    revoke(forge, key_of(LINUS), None, "retired")
    assert isinstance(links(forge)[-1], RootChanged)
    assert tainted(links(forge)) == ()


def test_what_a_distrusted_key_requested_from_that_seq_on_is_tainted(forge):
    revoke(forge, key_of(LINUS), 3)
    (found,) = tainted(links(forge))
    assert (found.seq, found.key_id, found.reason) == (Seq(3), key_of(LINUS), "laptop stolen")
    assert found.in_force == (named("b"),)


def test_what_a_distrusted_key_approved_is_tainted(forge):
    revoke(forge, key_of(GRACE), 1)
    assert [(found.seq, found.in_force) for found in tainted(links(forge))] == [
        (Seq(2), (named("a"),)),
        (Seq(4), (named("c"),)),
    ]


def test_definition_that_others_changed_since_rests_on_them(forge):
    forge.append(forge.release(forge.op("b", boolean_flag("on")), by=ADA, approved_by=(GRACE,)))
    revoke(forge, key_of(LINUS), 2)
    assert [(found.seq, found.in_force) for found in tainted(links(forge))] == [
        (Seq(2), (named("a"),)),
        (Seq(3), ()),
    ]


def test_entry_by_two_distrusted_keys_is_listed_for_each(forge):
    revoke(forge, key_of(LINUS), 2)
    revoke(forge, key_of(GRACE), 2)
    assert [(f.seq, f.key_id) for f in tainted(links(forge)) if f.seq == Seq(2)] == sorted(
        [(Seq(2), key_of(LINUS)), (Seq(2), key_of(GRACE))], key=lambda pair: pair[1]
    )


def test_later_root_may_distrust_a_revoked_key_further_back(forge):
    revoke(forge, key_of(LINUS), None)
    revoke(forge, key_of(LINUS), 2)
    assert [found.seq for found in tainted(links(forge))] == [Seq(2), Seq(3)]


def test_emergency_and_the_flags_that_it_left_are_tainted(forge):
    put(forge, "checkout")
    forge.kill("checkout", by=LINUS)
    assert isinstance(links(forge)[-1], Applied)
    revoke(forge, key_of(LINUS, EMERGENCY_LABEL), 1)
    assert [(found.seq, found.in_force) for found in tainted(links(forge))] == [(Seq(6), (named("checkout"),))]


def test_ratification_by_a_distrusted_key_is_tainted_and_leaves_no_flags(forge):
    put(forge, "checkout")
    forge.ratify(forge.kill("checkout", by=LINUS), by=(GRACE,))
    revoke(forge, key_of(GRACE), 7)
    assert [(found.seq, found.in_force) for found in tainted(links(forge))] == [(Seq(7), ())]


def test_rejected_entry_taints_nothing(forge):
    forge.append(forge.release(forge.op("d", boolean_flag()), by=LINUS, approved_by=()))
    assert forge.ledger.head.seq == Seq(5)
    revoke(forge, key_of(LINUS), 4)
    assert tainted(links(forge)) == ()
