"""What a drill says of the fleet: times by instance, percentiles, who is missing; and that it fits into a record."""

import pytest

from flaghoist.release_plan import DRILL_BYTES_MAX, encode_drill, parse_drill
from flaghoist.values import Seq
from publisher.releases.rehearsal import MISSING_NAMED_MAX, Arrivals, Measured, measured


def of(took_ms: list[int], missing: tuple[str, ...] = (), revert: str | None = None) -> Measured:
    return Measured(0, 7, {f"i{n:03}": ms for n, ms in enumerate(took_ms)}, missing, {}, revert)


def test_arrival_is_the_first_word_of_that_seq_or_a_later_one():
    heard = Arrivals()
    for seq, at_s in ((4, 1.0), (6, 2.0), (6, 3.0), (5, 4.0), (7, 5.0)):
        heard.note("one", Seq(seq), at_s)
    assert [heard.first("one", Seq(seq)) for seq in (4, 5, 6, 7, 8)] == [1.0, 2.0, 2.0, 5.0, None]
    assert heard.first("two", Seq(1)) is None


def test_times_run_from_the_operators_word_and_the_silent_are_missing():
    heard = Arrivals()
    heard.note("one", Seq(6), 10.25)
    heard.note("two", Seq(5), 10.1)
    found = measured(
        heard, Seq(6), {"one", "two"}, began_s=10.0, entered_s=10.12, started_at=99, offsets_ms={"one": -4, "two": 9},
        revert=None,
    )  # fmt: skip
    assert (found.took_ms, found.missing, found.to_entry_ms) == ({"one": 250}, ("two",), 120)
    assert (found.instances, found.reached, found.complete) == (2, 1, False)
    assert found.offset_span_ms == (-4, -4)
    assert found.result()["revert"] == "allowed"


@pytest.mark.parametrize(
    ("took_ms", "percentiles"),
    [
        ([], (None, None, None)),
        ([5], (5, 5, 5)),
        ([9, 1], (1, 9, 9)),
        (list(range(1, 101)), (50, 95, 100)),
        (list(range(1, 51)), (25, 48, 50)),
    ],
)
def test_percentiles_are_times_within_which_that_share_answered(took_ms, percentiles):
    assert tuple(of(took_ms).percentile_ms(percent) for percent in (50, 95, 100)) == percentiles


def test_drill_is_complete_only_when_somebody_answered_and_nobody_is_missing():
    assert of([5]).complete
    assert not of([5], ("two",)).complete
    assert not of([]).complete


def test_largest_result_fits_into_a_record_and_is_read_back():
    names = tuple(f"{n:03}" + "\x01" * 250 for n in range(500))
    found = of([5] * 1000, names, revert="x\x01" * 5000)
    result = found.result()
    document = encode_drill(hoisted=False, result=result)
    assert len(document) <= DRILL_BYTES_MAX
    assert parse_drill(document)["result"] == result
    assert len(result["missing"]) == MISSING_NAMED_MAX
    assert (result["instances"], result["reached"]) == (1500, 1000)
