"""Version pins through three services in three languages: one request sees one version, whatever happens meanwhile."""

from collections.abc import Sequence
from itertools import permutations

import pytest

from tests.chain.services import SERVICES, Chain, Sight
from tests.chain.storm import Trip, storm

ORDERS = list(permutations(SERVICES))
PIN_KEY = "flaghoist.seq"

# Of a storm's pinned requests. A pinned call waits 50 ms for its version, and a sidecar is halted for up to 30 ms: so
# only busy cores make one miss (measured on two cores at a load of 13: none of 3,600; without that wait 5 of 1,200).
# Whoever misses says so, and is compared with nobody.
MISSED_SHARE_MAX = 0.05


def order_id(order: Sequence[str]) -> str:
    return "-".join(order)


every_order = pytest.mark.parametrize("order", ORDERS, ids=order_id)


def versions(sights: Sequence[Sight]) -> set[int]:
    return {answer.seq for sight in sights for answer in (sight.a, sight.b)}


@pytest.fixture(
    scope="module",
    params=[(order, seed) for seed, order in enumerate(ORDERS)],
    ids=lambda p: f"{order_id(p[0])}-seed{p[1]}",
)
def trips(request: pytest.FixtureRequest, chain: Chain) -> list[Trip]:
    """What the requests of one storm saw; the order of services and the seed are the test's id."""
    order, seed = request.param
    return storm(chain, order, seed)


def test_pinned_requests_never_see_two_versions_while_flags_flip(trips: list[Trip]) -> None:
    pinned = [trip for trip in trips if trip.pinned]
    for trip in pinned:
        edge = trip.answers[0]
        assert {(answer.seq, answer.value) for answer in trip.kept} == {(edge.seq, edge.value)}, trip
    missed = [trip for trip in pinned if trip.missed]
    print(f"{len(missed)} of {len(pinned)} pinned requests missed: {[a.pin_miss for t in missed for a in t.missed]}")
    assert {answer.pin_miss for trip in missed for answer in trip.missed} <= {"not-yet"}
    assert len(missed) <= MISSED_SHARE_MAX * len(pinned)
    assert len({trip.answers[0].seq for trip in pinned}) > 10  # the flags did flip meanwhile


def test_some_requests_without_pins_see_two_versions_while_flags_flip(trips: list[Trip]) -> None:
    unpinned = [trip for trip in trips if not trip.pinned]
    torn = [trip for trip in unpinned if len(versions(trip.sights)) > 1]
    contradicted = [trip for trip in unpinned if len({answer.value for answer in trip.answers}) > 1]
    print(f"{len(torn)} of {len(unpinned)} requests without pins saw two versions, {len(contradicted)} two values")
    assert torn
    assert contradicted
    assert not [trip for trip in unpinned if trip.missed]


def test_every_answer_has_the_value_of_the_version_that_it_names(trips: list[Trip], chain: Chain) -> None:
    for trip in trips:
        assert all(answer.value == chain.versions[answer.seq] for answer in trip.answers), trip


@every_order
def test_pin_is_added_to_the_baggage_of_others(chain: Chain, order: Sequence[str]) -> None:
    theirs = "tenant=zo%C3%AB;cached,trace=7"
    edge, *others = chain.ask(order, pins=True, baggage=theirs)
    assert edge.baggage == theirs
    assert [other.baggage for other in others] == [f"{theirs},{PIN_KEY}={edge.a.seq}"] * 2


@every_order
def test_nothing_is_added_to_the_baggage_without_pins(chain: Chain, order: Sequence[str]) -> None:
    assert [sight.baggage for sight in chain.ask(order, pins=False)] == [""] * 3


@every_order
def test_request_that_comes_pinned_to_a_past_version_sees_that_one_everywhere(
    chain: Chain, order: Sequence[str]
) -> None:
    past = chain.newest
    chain.flip()
    for pin in (past, chain.newest):
        sights = chain.ask(order, pins=True, baggage=f"tenant=ada,{PIN_KEY}={pin}")
        answers = [answer for sight in sights for answer in (sight.a, sight.b)]
        assert [(answer.seq, answer.value, answer.pin_miss) for answer in answers] == [
            (pin, chain.versions[pin], None)
        ] * 6


@every_order
def test_request_pinned_to_a_version_that_does_not_come_is_answered_and_says_so(
    chain: Chain, order: Sequence[str]
) -> None:
    sights = chain.ask(order, pins=True, baggage=f"{PIN_KEY}={chain.newest + 1000}")
    assert {answer.pin_miss for sight in sights for answer in (sight.a, sight.b)} == {"not-yet"}
