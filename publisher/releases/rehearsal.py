"""What a drill has measured: when each instance said that it answers from the lowered shadow gate. Pure."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flaghoist.values import Seq

# A record of a drill has 16 KiB (flaghoist.release_plan): so many names fit at their longest, however they are escaped.
MISSING_NAMED_MAX: Final = 30
_NAME_CHARS_MAX: Final = 64
_REVERT_CHARS_MAX: Final = 500


class Arrivals:
    """When each instance was first heard to answer from a seq, by this machine's monotonic clock."""

    def __init__(self) -> None:
        self._heard: dict[str, list[tuple[Seq, float]]] = defaultdict(list)

    def note(self, name: str, in_force: Seq, at_s: float) -> None:
        """Take note of an acknowledgement, in the order in which they come."""
        heard = self._heard[name]
        if not heard or in_force > heard[-1][0]:
            heard.append((in_force, at_s))

    def first(self, name: str, seq: Seq) -> float | None:
        """Return when an instance first answered from `seq`, or a later one; None: it has not said so."""
        return next((at_s for in_force, at_s in self._heard.get(name, ()) if in_force >= seq), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """One drill.

    Attributes:
        started_at: when the operator asked for the shadow gate to be lowered (Unix ms).
        to_entry_ms: from then until the entry was in the ledger.
        took_ms: from then until the instance was heard to answer from that entry, by name.
        missing: instances that were live and did not say so in time.
        offsets_ms: the publisher's clock less theirs, by name, as far as they told.
        revert: why a revert would have been refused when it was asked; None: it would have been taken.
    """

    started_at: int
    to_entry_ms: int
    took_ms: Mapping[str, int]
    missing: tuple[str, ...]
    offsets_ms: Mapping[str, int]
    revert: str | None

    @property
    def instances(self) -> int:
        return len(self.took_ms) + len(self.missing)

    @property
    def reached(self) -> int:
        return len(self.took_ms)

    @property
    def complete(self) -> bool:
        """Whether every live instance has answered, and there was one."""
        return self.reached > 0 and not self.missing

    def percentile_ms(self, percent: int) -> int | None:
        """Return the time within which that share of those who answered did (nearest rank); None of nobody."""
        ranked = sorted(self.took_ms.values())
        return ranked[max(-(-percent * len(ranked) // 100), 1) - 1] if ranked else None

    @property
    def offset_span_ms(self) -> tuple[int, int] | None:
        """The least and the most that clocks differ; None when nobody told."""
        offsets = self.offsets_ms.values()
        return (min(offsets), max(offsets)) if offsets else None

    def result(self) -> dict[str, Any]:
        """Return what the ledger keeps of it, small enough for a record; times are whole milliseconds."""
        span = self.offset_span_ms
        return {
            "started_at": self.started_at,
            "instances": self.instances,
            "reached": self.reached,
            "to_entry_ms": self.to_entry_ms,
            "p50_ms": self.percentile_ms(50),
            "p95_ms": self.percentile_ms(95),
            "last_ms": self.percentile_ms(100),
            "missing": [name[:_NAME_CHARS_MAX] for name in self.missing[:MISSING_NAMED_MAX]],
            "clock_offset_ms": None if span is None else list(span),
            "revert": "allowed" if self.revert is None else self.revert[:_REVERT_CHARS_MAX],
        }


def measured(
    arrivals: Arrivals,
    seq: Seq,
    among: Collection[str],
    *,
    began_s: float,
    entered_s: float,
    started_at: int,
    offsets_ms: Mapping[str, int],
    revert: str | None,
) -> Measured:
    """Return what was measured of the entry `seq`.

    Args:
        among: the instances that were live, without those that have left in order since.
        began_s: when the operator asked, by the clock of the arrivals.
        entered_s: when the entry was in the ledger.
    """
    took_ms, missing = {}, []
    for name in sorted(among):
        at_s = arrivals.first(name, seq)
        if at_s is None:
            missing.append(name)
        else:
            took_ms[name] = round((at_s - began_s) * 1000)
    told = {name: offset for name, offset in offsets_ms.items() if name in took_ms}
    to_entry_ms = round((entered_s - began_s) * 1000)
    return Measured(started_at, to_entry_ms, took_ms, tuple(missing), told, revert)
