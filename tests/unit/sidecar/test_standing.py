"""From facts to a state, to whether answers are fresh, and to why not: as tables."""

from dataclasses import replace

import pytest

from flaghoist.freshness import Proof, Standing
from sidecar.board import VerifierState
from sidecar.standing import Facts, LogsWord, why_not_fresh

NOW_MS = 1_800_000_000_000
FINE = Facts(unsupported=False, quarantined=False, resyncing=False, served=True, reached=True, proof=Proof.FRESH)
# In the order of the ranking: each fact, and the state that it alone makes.
RANKED = [
    ({"unsupported": True}, VerifierState.UNSUPPORTED),
    ({"quarantined": True}, VerifierState.QUARANTINED),
    ({"resyncing": True}, VerifierState.RESYNC),
    ({"served": False}, VerifierState.LOADING),
    ({"reached": False}, VerifierState.CATCHING_UP),
    ({"proof": Proof.ROOT_EXPIRED}, VerifierState.ROOT_EXPIRED),
    ({"proof": Proof.LAGGING}, VerifierState.LAGGING),
    ({"proof": Proof.STALE}, VerifierState.STALE),
    ({}, VerifierState.FRESH),
]


@pytest.mark.parametrize(("facts", "state"), RANKED, ids=[state.value for _, state in RANKED])
def test_each_state_follows_from_one_fact(facts: dict[str, object], state: VerifierState) -> None:
    assert replace(FINE, **facts).state is state  # type: ignore[arg-type]


@pytest.mark.parametrize("first", range(len(RANKED)))
@pytest.mark.parametrize("second", range(len(RANKED)))
def test_of_two_facts_the_one_that_ranks_first_makes_the_state(first: int, second: int) -> None:
    if first < second:
        assert replace(FINE, **{**RANKED[second][0], **RANKED[first][0]}).state is RANKED[first][1]  # type: ignore[arg-type]


def test_every_state_can_be_reached() -> None:
    assert {state for _, state in RANKED} == set(VerifierState)


@pytest.mark.parametrize(
    ("facts", "fresh"),
    [
        ({}, True),
        ({"proof": Proof.LAGGING}, True),
        ({"proof": Proof.STALE}, True),
        ({"proof": Proof.ROOT_EXPIRED}, False),
        ({"reached": False}, False),
        ({"served": False}, False),
        ({"resyncing": True}, False),
        ({"quarantined": True}, False),
        ({"unsupported": True}, False),
    ],
)
def test_answers_are_fresh_until_the_last_proof_runs_out_and_in_no_doubt(facts: dict[str, object], fresh: bool) -> None:
    it = replace(FINE, **facts)  # type: ignore[arg-type]
    until_ms = NOW_MS + 10_000
    assert it.may_be_fresh(Standing(it.proof, until_ms), now_ms=until_ms) is fresh
    assert it.may_be_fresh(Standing(it.proof, until_ms), now_ms=until_ms + 1) is False
    assert it.may_be_fresh(Standing(it.proof, 0), now_ms=NOW_MS) is False


@pytest.mark.parametrize(
    ("facts", "standing", "why"),
    [
        ({}, Standing(Proof.FRESH, NOW_MS), ""),
        ({"served": False}, Standing(Proof.FRESH, NOW_MS), "nothing is served yet"),
        ({"reached": False}, Standing(Proof.FRESH, NOW_MS), "the ledger was not read to its end yet"),
        ({"resyncing": True}, Standing(Proof.FRESH, NOW_MS), "entries are missing from the ledger"),
        ({"quarantined": True}, Standing(Proof.FRESH, NOW_MS), "a second history was signed"),
        ({"unsupported": True}, Standing(Proof.FRESH, NOW_MS), "an entry needs a newer release"),
        ({"proof": Proof.ROOT_EXPIRED}, Standing(Proof.ROOT_EXPIRED, 0), "root expired"),
        ({"proof": Proof.LAGGING}, Standing(Proof.LAGGING, NOW_MS, behind=1), "1 entry behind"),
        ({"proof": Proof.LAGGING}, Standing(Proof.LAGGING, NOW_MS, behind=3), "3 entries behind"),
        ({"proof": Proof.STALE}, Standing(Proof.STALE, 0, clock_behind_ms=12_900), "clock 12 s behind"),
        ({"proof": Proof.STALE}, Standing(Proof.STALE, 0), "no heartbeat since 2027-01-15T08:00:00Z"),
    ],
)
def test_why_answers_are_stale_is_said_in_a_few_words(facts: dict[str, object], standing: Standing, why: str) -> None:
    it = replace(FINE, **facts)  # type: ignore[arg-type]
    assert why_not_fresh(it, standing, by_heartbeat=True, heard_at_ms=NOW_MS) == why


def test_what_was_never_heard_has_no_time() -> None:
    stale = replace(FINE, proof=Proof.STALE)
    said = [why_not_fresh(stale, Standing(Proof.STALE, 0), by_heartbeat=by, heard_at_ms=None) for by in (True, False)]
    assert said == ["no heartbeat yet", "no word of the ledger yet"]


def test_a_logs_word_counts_its_time_also_when_the_log_is_lost_and_is_fresh_only_while_it_is_not() -> None:
    assert LogsWord(None, 30_000, lost=False).standing(now_ms=NOW_MS) == Standing(Proof.STALE, 0)
    spoke = LogsWord(NOW_MS, 30_000, lost=False)
    until_ms = NOW_MS + 30_000
    assert spoke.standing(now_ms=until_ms) == Standing(Proof.FRESH, until_ms)
    assert spoke.standing(now_ms=until_ms + 1) == Standing(Proof.STALE, until_ms)
    assert replace(spoke, lost=True).standing(now_ms=NOW_MS) == Standing(Proof.STALE, until_ms)
