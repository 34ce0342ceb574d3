"""What signed heartbeats prove about a reader's state, and until when."""

from dataclasses import replace

import pytest

from flaghoist.codec import encode_envelope
from flaghoist.freshness import (
    BEAT_LIFE_MS,
    BEAT_LIFE_MS_MAX,
    CLOCK_TOLERANCE_MS,
    Counted,
    Heartbeats,
    Proof,
    Refuted,
    Standing,
    Superseded,
)
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Forked
from flaghoist.records import EpochClaim, RoleGrant
from flaghoist.values import LogId, Role, Seq
from tests.forge import ADA, BEAT_LABEL, DAY_MS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag

LATER_MS = NOW_MS + BEAT_LIFE_MS
SECOND_BEATS = Key(PUBLISHER, "heartbeat 2")


class Reader:
    """A reader of a forge's ledger, as far as it was given its records."""

    def __init__(self, forge):
        self.forge = forge
        self.ledger = Ledger(forge.first_root)
        self.beats = Heartbeats(self.ledger)
        self.read = 0

    def catch_up(self, *, now_ms=NOW_MS, most=None):
        proof = None
        for data in self.forge.records[self.read : most]:
            self.ledger.receive(data)
            self.read += 1
            proof = self.beats.note_progress(now_ms=now_ms) or proof
        return proof

    def hear(self, *, now_ms=NOW_MS, **changes):
        return self.beats.receive(self.forge.beat(**changes), now_ms=now_ms)

    def proof(self, now_ms=NOW_MS):
        return self.beats.standing(now_ms=now_ms).proof


@pytest.fixture
def forge():
    forge = Forge(root_options={"beats": True})
    forge.genesis()
    forge.put("new-checkout")
    return forge


@pytest.fixture
def reader(forge):
    reader = Reader(forge)
    reader.catch_up()
    return reader


def assert_refuted(reader, data, code, *, now_ms=NOW_MS):
    before = reader.beats.standing(now_ms=now_ms)
    outcome = reader.beats.receive(data, now_ms=now_ms)
    assert isinstance(outcome, Refuted), outcome
    assert outcome.refusal.code == code
    assert reader.beats.standing(now_ms=now_ms) == before
    return outcome.refusal


# --- what proves that a state is the newest ---


def test_reader_is_stale_before_the_first_heartbeat(reader):
    assert reader.beats.standing(now_ms=NOW_MS) == Standing(Proof.STALE, 0)


def test_heartbeat_of_the_readers_head_proves_it_fresh_until_it_expires(reader):
    assert isinstance(reader.hear(), Counted)
    assert reader.beats.standing(now_ms=NOW_MS) == Standing(Proof.FRESH, LATER_MS)
    assert reader.proof(LATER_MS) is Proof.FRESH
    assert reader.beats.standing(now_ms=LATER_MS + 1) == Standing(Proof.STALE, LATER_MS)


def test_heartbeat_that_came_before_newer_entries_still_counts(forge, reader):
    reader.hear()
    forge.put("next")
    reader.catch_up()
    assert reader.proof() is Proof.FRESH


def test_heartbeat_of_a_later_head_says_how_many_entries_are_missing(forge, reader):
    for n in range(3):
        forge.put(f"next-{n}")
    reader.hear()
    assert reader.beats.standing(now_ms=NOW_MS) == Standing(Proof.LAGGING, 0, behind=3)
    reader.catch_up(most=3)
    assert reader.beats.standing(now_ms=NOW_MS).behind == 2
    reader.catch_up()
    assert reader.beats.standing(now_ms=NOW_MS) == Standing(Proof.FRESH, LATER_MS)


def test_reader_that_lags_is_stale_once_the_heartbeat_expired(forge, reader):
    forge.put("next")
    reader.hear()
    assert reader.proof(LATER_MS + 1) is Proof.STALE


def test_older_proof_does_not_hide_that_entries_are_missing(forge, reader):
    old = forge.beat()
    forge.now_ms += 1000
    forge.put("next")
    assert isinstance(reader.hear(now_ms=forge.now_ms), Counted)
    assert isinstance(reader.beats.receive(old, now_ms=forge.now_ms), Superseded)
    assert reader.proof(forge.now_ms) is Proof.LAGGING


def test_heartbeat_given_again_proves_nothing_more(forge, reader):
    beat = forge.beat()
    reader.beats.receive(beat, now_ms=NOW_MS)
    assert isinstance(reader.beats.receive(beat, now_ms=NOW_MS + 10_000), Superseded)
    assert reader.beats.standing(now_ms=NOW_MS).fresh_until_ms == LATER_MS


def test_newer_heartbeat_prolongs_the_proof(forge, reader):
    reader.hear()
    forge.now_ms += 5_000
    assert isinstance(reader.hear(now_ms=forge.now_ms), Counted)
    assert reader.beats.standing(now_ms=forge.now_ms).fresh_until_ms == LATER_MS + 5_000


def test_environment_without_heartbeat_keys_expects_none():
    assert not Heartbeats(Forge().ledger).expected
    assert Heartbeats(Forge(root_options={"beats": True}).ledger).expected


# --- what is no heartbeat ---


@pytest.mark.parametrize("junk", [b"", b"junk", bytes(200)], ids=lambda junk: f"{len(junk)}-bytes")
def test_junk_is_refuted(reader, junk):
    assert_refuted(reader, junk, "malformed")


def test_entry_is_no_heartbeat(forge, reader):
    assert_refuted(reader, forge.records[-1], "malformed")


@pytest.mark.parametrize("key", [Key(PUBLISHER), Key(ADA), SECOND_BEATS], ids=["publisher", "person", "unknown"])
def test_key_without_the_role_proves_nothing(forge, reader, key):
    assert_refuted(reader, forge.beat(by=key), "bad_signature")


def test_heartbeat_of_another_environment_proves_nothing(forge, reader):
    assert_refuted(reader, forge.beat(log_id=LogId("staging")), "wrong_log")


def test_expired_heartbeat_proves_nothing(forge, reader):
    assert_refuted(reader, forge.beat(), "expired", now_ms=LATER_MS + 1)
    assert isinstance(reader.hear(now_ms=LATER_MS), Counted)


@pytest.mark.parametrize("life_ms", [BEAT_LIFE_MS_MAX + 1, 0, -1, DAY_MS])
def test_heartbeat_lives_a_minute_at_most(forge, reader, life_ms):
    assert_refuted(reader, forge.beat(issued_at=NOW_MS + 10, expires_at=NOW_MS + 10 + life_ms), "malformed")


def test_longest_heartbeat_counts(reader):
    assert isinstance(reader.hear(expires_at=NOW_MS + BEAT_LIFE_MS_MAX), Counted)


def test_any_flipped_bit_of_a_heartbeat_is_refuted_or_leaves_the_same_one(forge, reader):
    data = forge.beat()
    for place in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 4
        outcome = Reader(forge).beats.receive(bytes(flipped), now_ms=NOW_MS)
        assert isinstance(outcome, Refuted) or outcome.beat.seq == Seq(2), place


# --- other histories ---


def test_heartbeat_of_another_entry_at_the_readers_seq_is_a_proof_of_another_history(forge, reader):
    data = forge.beat(head_hash=b"\x01" * 32)
    proof = reader.beats.receive(data, now_ms=NOW_MS)
    assert isinstance(proof, Forked)
    assert (proof.seq, proof.what, proof.ours) == (Seq(2), "heartbeat", reader.ledger.head.entry_hash)
    assert (proof.theirs, proof.signers) == (data, {Key(PUBLISHER, BEAT_LABEL).listed.key_id})
    assert reader.proof() is Proof.STALE


def test_heartbeat_of_another_entry_further_back_is_a_proof_too(reader):
    assert isinstance(reader.hear(seq=Seq(1), head_hash=b"\x01" * 32), Forked)


def test_heartbeat_is_proof_of_another_history_also_when_it_is_no_longer_the_newest(forge, reader):
    reader.hear()
    older = forge.beat(head_hash=b"\x01" * 32, issued_at=NOW_MS - 5_000)
    assert isinstance(reader.beats.receive(older, now_ms=NOW_MS), Forked)


def test_heartbeat_of_an_ended_epoch_is_proof_of_another_history_too(forge, reader):
    forge.append(EpochClaim("second"))
    reader.catch_up()
    assert isinstance(reader.hear(head_hash=b"\x01" * 32, epoch=1), Forked)


def test_reader_that_reaches_another_entry_than_the_heartbeat_had_seen_has_its_proof(forge, reader):
    branch = Forge(root_options={"beats": True})
    branch.genesis()
    branch.put("new-checkout")
    branch.put("theirs")
    ahead = branch.beat()
    assert isinstance(reader.beats.receive(ahead, now_ms=NOW_MS), Counted)
    assert reader.proof() is Proof.LAGGING
    forge.put("ours")
    proof = reader.catch_up()
    assert isinstance(proof, Forked)
    assert (proof.what, proof.theirs) == ("heartbeat", ahead)
    assert reader.proof() is Proof.STALE


# --- publishers that take turns ---


def test_publisher_that_was_replaced_proves_nothing(forge, reader):
    replaced = forge.beat(issued_at=NOW_MS + 2, expires_at=NOW_MS + 2 + BEAT_LIFE_MS)
    forge.append(EpochClaim("second"))
    reader.catch_up()
    assert "of epoch 1, which ended" in str(assert_refuted(reader, replaced, "expired"))


def test_publisher_that_was_replaced_does_not_hide_what_its_successor_appended(forge, reader):
    """Neither is what the reader has read: it knows of the successor by its heartbeat alone."""
    replaced = forge.beat(issued_at=NOW_MS + 2_000, expires_at=NOW_MS + 2_000 + BEAT_LIFE_MS)
    forge.append(EpochClaim("second"))
    assert isinstance(reader.hear(), Counted)
    assert isinstance(reader.beats.receive(replaced, now_ms=NOW_MS + 2_000), Superseded)
    assert reader.proof(NOW_MS + 2_000) is Proof.LAGGING


# --- keys, roots and clocks ---


def new_beat_key(forge):
    keys = tuple(k for k in forge.root.record.keys if k.key_id not in forge.root.grant(Role.HEARTBEAT).key_ids)
    roles = {**forge.root.record.roles, Role.HEARTBEAT: RoleGrant(frozenset({SECOND_BEATS.listed.key_id}), 1)}
    forge.rotate(Key(ADA), keys=(*keys, SECOND_BEATS.listed), roles=roles)
    assert forge.root.version == 2


def test_heartbeat_counts_no_longer_when_its_key_lost_the_role(forge, reader):
    reader.hear()
    new_beat_key(forge)
    reader.catch_up()
    assert reader.proof() is Proof.STALE
    assert isinstance(reader.hear(by=SECOND_BEATS), Counted)
    assert reader.proof() is Proof.FRESH


@pytest.mark.parametrize(
    "changes",
    [{"issued_at": NOW_MS + DAY_MS, "expires_at": NOW_MS + DAY_MS + 1}, {"epoch": 2**40}],
    ids=["far-ahead", "of-a-far-epoch"],
)
def test_stolen_key_silences_no_honest_one_after_it_lost_the_role(forge, reader, changes):
    assert isinstance(reader.hear(**changes), Counted)
    new_beat_key(forge)
    reader.catch_up()
    assert isinstance(reader.hear(by=SECOND_BEATS), Counted)
    assert reader.proof() is Proof.FRESH


def test_clock_that_ran_ahead_once_silences_no_later_heartbeat(reader):
    ahead = NOW_MS + DAY_MS
    reader.hear(issued_at=ahead, expires_at=ahead + BEAT_LIFE_MS)
    assert reader.proof() is Proof.STALE
    assert isinstance(reader.hear(), Counted)
    assert reader.proof() is Proof.FRESH


def test_clock_that_ran_ahead_once_leaves_no_proof_that_lasts(reader):
    ahead = NOW_MS + DAY_MS
    reader.hear(issued_at=ahead, expires_at=ahead + BEAT_LIFE_MS)
    reader.hear()
    assert reader.beats.standing(now_ms=LATER_MS + 1) == Standing(Proof.STALE, LATER_MS)


def test_clock_that_is_set_right_makes_a_heartbeat_count_that_seemed_early(reader):
    reader.hear(now_ms=NOW_MS - DAY_MS)
    assert reader.beats.standing(now_ms=NOW_MS) == Standing(Proof.FRESH, LATER_MS)


def test_clock_behind_the_publishers_is_noticed_and_proves_nothing(reader):
    behind = NOW_MS - CLOCK_TOLERANCE_MS - 1
    assert isinstance(reader.hear(now_ms=behind), Counted)
    assert reader.beats.standing(now_ms=behind) == Standing(Proof.STALE, 0, clock_behind_ms=CLOCK_TOLERANCE_MS + 1)


def test_clock_a_little_behind_the_publishers_is_tolerated(reader):
    behind = NOW_MS - CLOCK_TOLERANCE_MS
    reader.hear(now_ms=behind)
    assert reader.beats.standing(now_ms=behind) == Standing(Proof.FRESH, LATER_MS)


def test_clock_that_was_set_back_prolongs_no_proof(reader):
    reader.hear()
    assert reader.beats.standing(now_ms=NOW_MS - DAY_MS).clock_behind_ms == DAY_MS
    assert reader.proof(NOW_MS - DAY_MS) is Proof.STALE


def test_nothing_is_fresh_under_an_expired_root():
    forge = Forge(root_options={"beats": True, "expires_at": NOW_MS})
    forge.genesis()
    reader = Reader(forge)
    reader.catch_up()
    reader.hear()
    assert reader.proof(NOW_MS) is Proof.FRESH
    assert reader.proof(NOW_MS + 1) is Proof.ROOT_EXPIRED


def test_heartbeat_signed_by_two_keys_counts_while_one_of_them_is_listed(forge, reader):
    from flaghoist.codec import decode_envelope
    from flaghoist.signing import countersign

    both = countersign(decode_envelope(forge.beat()), [SECOND_BEATS])
    assert isinstance(reader.beats.receive(encode_envelope(both), now_ms=NOW_MS), Counted)
    junk = replace(both, signatures=both.signatures[1:])
    forge.now_ms += 1
    assert_refuted(reader, encode_envelope(junk), "bad_signature")


def test_unknown_flag_of_an_unread_entry_is_not_promised(forge, reader):
    """A heartbeat tells of a head, never of flags: what is not read is not served."""
    forge.put("unseen", boolean_flag("on"))
    reader.hear()
    assert "unseen" not in reader.ledger.snapshot.view.flags
