"""Without any one check of the verifier somebody notices: an adversary's seed, or a unit test (docs/adversary.md)."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.adversary import memory
from tests.adversary import story as stories
from tests.adversary.checks import checks
from tests.adversary.mutations import DOCS, breaks_at, first_test, read_table, table_of
from tests.adversary.simulation import RUNS_A_STORY, Run

CHECKS = checks()
ROWS = read_table()
BY_SEED = [row for row in ROWS if row.seed is not None]
BY_TEST = [row for row in ROWS if row.test is not None]


@pytest.fixture(scope="module")
def written():
    """Stories, written with every check in place, by number; answers are remembered."""
    with memory.remembered():
        yield {n: stories.make(n) for n in sorted({row.seed // RUNS_A_STORY for row in BY_SEED})}


def test_table_has_every_check_and_is_in_the_docs():
    assert {row.check for row in ROWS} == set(CHECKS), "run `python -m tests.adversary.mutations --write-docs`"
    assert table_of(ROWS) in DOCS.read_text()


@pytest.mark.parametrize("row", BY_SEED, ids=lambda row: f"{row.check} (seed {row.seed})")
def test_seed_breaks_an_invariant_without_the_check_and_none_with_it(row, written):
    story = written[row.seed // RUNS_A_STORY]
    assert breaks_at(CHECKS[row.check], row.seed, story) is not None
    memory.forget()
    Run(row.seed, story).play()


@pytest.fixture(scope="module")
def asked():
    """Every unit test of the table, run without its check; one process each."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {row.check: pool.submit(first_test, CHECKS[row.check], str(row.test)) for row in BY_TEST}


@pytest.mark.parametrize("row", BY_TEST, ids=lambda row: row.check)
def test_unit_test_fails_without_the_check(row, asked):
    assert asked[row.check].result() == row.test
