"""When publishing stands still: spans of local time, which only zone data turn into instants.

Only publishers ask; a reader of the ledger never does, so that zone data, which differ between machines and change with
the years, decide nothing about an entry that is there.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, TypeAlias

from flaghoist.errors import Misconfigured
from flaghoist.policy.rule import Freeze

Zones: TypeAlias = Callable[[str], tzinfo]
_ZONES_REMEMBERED: Final = 64
_WEEK: Final = timedelta(weeks=1)


class ZoneMissing(Misconfigured):
    """This machine has no data of a time zone, so it cannot tell whether a freeze is on."""

    code = "zone_missing"
    hint = "correct the zone's name (such as Europe/Berlin), or install the system's tzdata"


@lru_cache(maxsize=_ZONES_REMEMBERED)
def system_zone(name: str) -> tzinfo:
    """Return a time zone by its IANA name, from the system's data.

    Raises:
        ZoneMissing: there is none of that name.
    """
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ZoneMissing(f"time zone {name!r}: no such zone on this machine") from error


def frozen_until(freeze: Freeze, at_ms: int, zones: Zones = system_zone) -> int | None:
    """Return when the freeze ends that is on at a time; None when none is. Unix milliseconds.

    A local time that comes twice (clocks set back) begins a freeze the first time and ends one the second; one that
    never comes (clocks set forward) is the instant of the change. So a freeze is never shorter than its policy reads.

    Raises:
        ZoneMissing: no data of its zone.
    """
    zone = zones(freeze.zone)
    for begins, ends in _spans(freeze, at_ms, zone):
        until = _instant_s(ends, zone, last=True) * 1000
        if _instant_s(begins, zone, last=False) * 1000 <= at_ms < until:
            return until
    return None


def _spans(freeze: Freeze, at_ms: int, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
    """The local spans that may hold a time."""
    if freeze.once is not None:
        yield freeze.once
    if freeze.weekly is not None:
        begin, end = (timedelta(minutes=minutes) for minutes in freeze.weekly)
        local = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone).replace(tzinfo=None)
        midnight = local.replace(hour=0, minute=0, second=0)
        monday = midnight - timedelta(days=local.weekday())
        for week in (monday - _WEEK, monday, monday + _WEEK):
            yield week + begin, week + end + (_WEEK if end <= begin else timedelta())


def _instant_s(local: datetime, zone: tzinfo, *, last: bool) -> int:
    """Return the instant of a local time, Unix seconds; the first or the last of two."""
    early, late = sorted(int(local.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    if early == late:
        return early
    if _local(early, zone) == local:
        return late if last else early
    # Clocks leap over it: find where, between what it would be by the one and by the other offset.
    while early < late:
        middle = (early + late) // 2
        if _local(middle, zone) >= local:
            late = middle
        else:
            early = middle + 1
    return early


def _local(instant_s: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC).astimezone(zone).replace(tzinfo=None)
