"""What a publisher's heartbeat says of the state, so that sidecars can compare theirs with it."""

import pytest

from flaghoist.codec import HEARTBEAT, decode_envelope
from flaghoist.ledger import Ledger
from flaghoist.state_root import state_root
from publisher.heart import Heart
from tests.forge import BEAT_LABEL, NOW_MS, PUBLISHER, Forge, Key


@pytest.fixture
def forge():
    forge = Forge(root_options={"beats": True})
    forge.genesis()
    forge.put("new-checkout")
    return forge


def said(heart, ledger):
    return HEARTBEAT.decode(decode_envelope(heart.beat(ledger, issued_at=NOW_MS)).payload)


def test_heartbeat_says_the_digest_of_the_state_at_its_seq(forge):
    heart = Heart(Key(PUBLISHER, BEAT_LABEL), holder="publisher-1")
    digests = []
    for key in ("new-checkout", "second", "third"):
        forge.put(key)
        reader = Ledger(forge.first_root)
        for record in forge.records:
            reader.receive(record)
        beat = said(heart, forge.ledger)
        assert beat.seq == reader.head.seq
        assert beat.state_root == state_root(reader.snapshot)
        digests.append(beat.state_root)
    assert len(set(digests)) == 3


def test_digest_is_made_once_a_state_and_not_once_a_heartbeat(forge):
    heart = Heart(Key(PUBLISHER, BEAT_LABEL), holder="publisher-1")
    assert said(heart, forge.ledger).state_root == forge.ledger.snapshot.state_root
    forge.ledger.snapshot.state_root = bytes(32)  # what is kept is taken
    assert said(heart, forge.ledger).state_root == bytes(32)
