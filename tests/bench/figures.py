"""Figures as a benchmark hands them over, and as people and programs read them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

Cell = str | float | int | None


class Verdict(StrEnum):
    """What a measured figure says about a promise; `NOT_MEASURED` when a tool was missing."""

    MET = "met"
    MISSED = "MISSED"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of speed: what was promised, what came out. `measured` and `target` are texts with their units."""

    what: str
    target: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows. Numbers stay numbers until they are shown; a None is an empty cell."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: want {len(self.columns)} cells, got {row!r}")


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found; `notes` say what a reader needs to know about this very run."""

    promises: tuple[Promise, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, numbers unrounded."""
        return {
            "promises": [asdict(promise) for promise in self.promises],
            "tables": [
                {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
                for table in self.tables
            ],
            "notes": list(self.notes),
        }


def at_most(what: str, measured: float, limit: float, unit: str) -> Promise:
    """Return the promise that a figure is no larger than `limit`."""
    verdict = Verdict.MET if measured <= limit else Verdict.MISSED
    return Promise(what, f"≤ {shown(limit)} {unit}", f"{shown(measured)} {unit}", verdict)


def at_least(what: str, measured: float, limit: float, unit: str) -> Promise:
    """Return the promise that a figure is no smaller than `limit`."""
    verdict = Verdict.MET if measured >= limit else Verdict.MISSED
    return Promise(what, f"≥ {shown(limit)} {unit}", f"{shown(measured)} {unit}", verdict)


def not_measured(what: str, target: str, reason: str) -> Promise:
    """Return a promise about which this run says nothing."""
    return Promise(what, target, reason, Verdict.NOT_MEASURED)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that was measured, never one between two."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p99 and the largest."""
    return median(values), percentile(values, 99), max(values)


def paired_ratio(ours: Sequence[float], bare: Sequence[float]) -> float:
    """Return the median over rounds of ours / bare: what slows the machine down for a round slows down both."""
    return median(mine / other for mine, other in zip(ours, bare, strict=True))


def shown(cell: Cell) -> str:
    """Return a figure with as many digits as it deserves: three, and whole numbers whole."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.2g}" if 0 < abs(cell) < 0.095 else f"{cell:.2f}" if abs(cell) < 10 else f"{cell:.1f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a Markdown table whose source lines up too; columns of numbers stand to the right."""
    texts = [[shown(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(not isinstance(row[n], str) for row in rows) for n in range(len(columns))]
    widths = [max(3, len(name), *(len(row[n]) for row in texts), 3) for n, name in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True))
    return "\n".join([line(columns), f"|{'|'.join(rule)}|", *map(line, texts)])
