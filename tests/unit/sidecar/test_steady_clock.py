"""The clock that freshness is measured by: ahead with the wall clock, never back with it."""

import pytest

from sidecar.steady_clock import SteadyClock


class Clocks:
    def __init__(self) -> None:
        self.wall_s = 1_800_000_000.0
        self.monotonic_s = 50.0
        self.steady = SteadyClock(lambda: self.wall_s, lambda: self.monotonic_s)

    def elapse(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def test_it_tells_the_wall_clocks_time_while_nobody_sets_it() -> None:
    clocks = Clocks()
    clocks.elapse(100)
    assert clocks.steady() == 1_800_000_100.0
    assert clocks.steady.now_ms == 1_800_000_100_000
    assert clocks.steady.set_back_s == 0.0


def test_it_follows_a_step_ahead() -> None:
    clocks = Clocks()
    clocks.wall_s += 3600
    assert clocks.steady() == 1_800_003_600.0
    assert clocks.steady.set_back_s == 0.0


@pytest.mark.parametrize("back_s", [0.5, 20.0, 86_400.0])
def test_it_runs_on_when_the_wall_clock_is_set_back_and_tells_by_how_much(back_s: float) -> None:
    clocks = Clocks()
    clocks.elapse(10)
    clocks.wall_s -= back_s
    assert clocks.steady() == 1_800_000_010.0
    clocks.elapse(5)
    assert clocks.steady() == 1_800_000_015.0
    assert clocks.steady.set_back_s == pytest.approx(back_s)


def test_it_is_the_wall_clock_again_once_that_has_caught_up() -> None:
    clocks = Clocks()
    clocks.wall_s -= 30
    clocks.steady()
    clocks.wall_s += 40
    assert clocks.steady() == 1_800_000_010.0
    assert clocks.steady.set_back_s == 0.0
