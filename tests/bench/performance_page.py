"""docs/performance.md: its tables stand between markers and are written by the benchmarks, its prose by people."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench.figures import Result, markdown
from tests.bench.machine import sentence
from tests.bench.processes import ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
PROMISE_COLUMNS: Final = ("benchmark", "promise", "target", "measured", "verdict")


class MarkerMissing(Exception):
    """The page has no place for a section; the text names the marker."""


def rewrite(results: Mapping[str, Result], facts: dict[str, Any], *, load_after: float, page: Path = PAGE) -> None:
    """Write the sections of these benchmarks, and their rows of the list of promises; leave the rest as it is.

    Raises:
        MarkerMissing: nothing was written.
    """
    text = page.read_text(encoding="utf-8")
    machine = sentence(facts, load_after=load_after)
    for name, result in results.items():
        text = _replaced(text, name, f"{machine}\n\n{section(result)}")
    text = _replaced(text, "promises", _promises(_between(text, "promises"), results))
    page.write_text(text, encoding="utf-8")


def section(result: Result) -> str:
    """Return tables and notes of one benchmark as Markdown."""
    parts = [f"**{table.title}**\n\n{markdown(table.columns, table.rows)}" for table in result.tables]
    return "\n\n".join([*parts, *result.notes])


def promise_rows(results: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """Return a row of texts for each promise."""
    return [(name, p.what, p.target, p.measured, p.verdict.value) for name, r in results.items() for p in r.promises]


def _promises(before: str, results: Mapping[str, Result]) -> str:
    """Return the list of promises, with the rows of benchmarks that did not run as they were."""
    lines = [line for line in before.splitlines() if line.startswith("|")][2:]
    kept = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    rows = sorted([row for row in kept if row[0] not in results] + promise_rows(results), key=lambda row: row[0])
    return markdown(PROMISE_COLUMNS, rows)


def _between(text: str, name: str) -> str:
    found = re.search(_pattern(name), text, re.DOTALL)
    if found is None:
        raise MarkerMissing(f"docs/performance.md: want <!-- bench:{name} --> and <!-- /bench:{name} -->")
    return found[2]


def _replaced(text: str, name: str, content: str) -> str:
    _between(text, name)
    return re.sub(_pattern(name), lambda found: f"{found[1]}\n\n{content}\n\n{found[3]}", text, flags=re.DOTALL)


def _pattern(name: str) -> str:
    return rf"(<!-- bench:{name} -->)(.*?)(<!-- /bench:{name} -->)"
