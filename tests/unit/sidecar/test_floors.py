"""Floors: what they say, how they are written, and what stands below them."""

import pytest

from flaghoist.values import Seq
from sidecar.floors import Floor, Floors, time_of

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("text", "floor"), [("7", Floor(Seq(7), None)), (f"7:{HASH}", Floor(Seq(7), bytes.fromhex(HASH)))]
)
def test_floor_is_a_seq_and_perhaps_its_hash(text: str, floor: Floor) -> None:
    assert Floor.parse(text) == floor


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "7:", "7:ab", f"7:{HASH}0", f"x:{HASH}", "²", "7:" + "zz" * 32, "9" * 30]
)
def test_what_is_no_floor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="want"):
        Floor.parse(text)


def test_time_has_a_zone() -> None:
    assert time_of("2027-01-15T08:00:00Z") == time_of("2027-01-15T09:00:00+01:00") == 1_800_000_000_000
    for text in ("2027-01-15T08:00:00", "yesterday", ""):
        with pytest.raises(ValueError, match="zone"):
            time_of(text)


@pytest.mark.parametrize(
    ("seq", "version", "now_ms", "said"),
    [
        (6, 3, 2000, "want the ledger at seq 7 at least, it is at 6"),
        (7, 2, 2000, "want a root of version 3 at least, it is 2"),
        (7, 3, 999, "clock: want 1970-01-01T00:00:01Z at least"),
        (7, 3, 1000, None),
        (8, 4, 2000, None),
    ],
)
def test_state_below_a_floor_is_named_with_the_floor(seq: int, version: int, now_ms: int, said: str | None) -> None:
    floors = Floors(Floor(Seq(7), None), 3, 1000)
    unmet = floors.unmet(seq=Seq(seq), root_version=version, now_ms=now_ms)
    assert unmet is None if said is None else said in str(unmet)


def test_without_floors_everything_may_be_served() -> None:
    assert Floors().unmet(seq=Seq(0), root_version=1, now_ms=0) is None
