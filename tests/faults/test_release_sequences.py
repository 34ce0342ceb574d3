"""Random sequences of what people do with releases: every reader has one consistent state, and all have the same.

What is done: create, edit (flags and plans, with requirements), ramp, activate, roll back, walk, step, pause, kill
(flags and releases), delete, drill, prepare, let expire or miss a moment, change the root; by entries that are really
signed, through the real verifier. A model that shares no code with it (tests/releases/model.py) says of each entry
whether it is refused and what it makes of the state. What must hold:

- after each entry the fold is that of the model; a refused one leaves the state (its state_root) as it was;
- at every seq, and in all that a reader serves, each answer fits one state: all flags of a release agree on each user;
- a user has one bucket a salt, whatever the share, the flag, the reader and the seq: shares that rise only add users
  (how many a share lets through, other tests count over a million users);
- a revert restores the definitions and answers of the release's flags, and touches no other flag or release;
- readers lag, have wrong clocks, and start anew from what they kept; what they serve is what their own moments and
  the emergencies allow; they and a cold replay end at one state_root.

Seen to fail, each within the seeds below, when the product is broken so:

- a gate's bucket depends on the flag; a share's place among the buckets moves when it rises;
- a step leaves the walk on after the last stage, lowers a share, does not wait for the soak, skips a stage, or goes on
  though the walk is paused; `opened_at` moves with each ramp; a soak counts from an edit, or from the entry instead of
  its moment;
- a rollback does not ask whether flags have changed, changes the plan besides, or leaves the gate open;
- a gate opens though a flag does not go through it, or by an entry that changes its flag; requirements are not asked; a
  release is lowered, or deleted, under one that requires it; a circle of requirements is taken;
- a moment that is over, or too far ahead, is taken; a proposal is published that nobody prepared;
- an entry overtakes one that waits; an emergency waits with the others, or is forgotten when the next state comes;
- flags behind a gate are not compiled anew when it moves; a state_root depends on the reader.

A seed that fails is told with the fewest steps that were found to fail: `make sequences SEED=…`.
"""

from collections import Counter

import pytest

from tests.releases.sequence import STEPS, SequenceError, play, shrunk

SEEDS = 110
_tally: Counter[str] = Counter()


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed-{seed}")
def test_releases_are_one_state_at_every_seq_for_every_reader(seed):
    try:
        _tally.update(play(seed).tally)
    except SequenceError as error:
        pytest.fail(str(shrunk(seed) or error), pytrace=False)


def test_everything_happened_in_these_sequences(request):
    if request.session.testscollected < SEEDS:
        pytest.skip("counts what the seeds before it did; run all of them")
    everything = {
        *("change", "step", "kill", "roll back", "drill", "prepare", "publish", "restarted", "reverted exactly"),
        *(f"refused: {code}" for code in ("stale_base", "bad_definition", "requirement_unmet", "revert_conflict")),
        *(f"refused: {code}" for code in ("expired", "not_yet", "not_approved")),
    }
    assert {what: _tally[what] for what in everything if _tally[what] < 10} == {}


def test_a_seed_is_a_sequence_and_a_step_can_be_left_out_of_it():
    whole, again = play(3), play(3)
    assert whole.told == again.told
    fewer = play(3, [number for number in range(STEPS) if number != 20])
    assert len(fewer.told) == len(whole.told) - 1
    assert fewer.told[:20] == whole.told[:20]


def test_failure_is_told_with_few_steps(monkeypatch):
    """A product that is broken: a revert that forgets what it must restore."""
    monkeypatch.setattr("flaghoist.ledger.check_rollback", lambda snapshot, ops: None)
    seed = next(seed for seed in range(SEEDS) if _fails(seed))
    failure = shrunk(seed, seconds=10)
    assert failure is not None
    assert failure.steps < STEPS / 2
    assert any(word in str(failure).splitlines()[-2] for word in ("revert", "roll back"))


def _fails(seed):
    try:
        play(seed)
    except SequenceError:
        return True
    return False
