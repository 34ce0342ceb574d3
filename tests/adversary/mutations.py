"""Takes one check after another out of the verifier, and says who notices: an adversary's seed, or a unit test.

`python -m tests.adversary.mutations --write-docs` looks at all of them anew, and writes checks.json and the table in
docs/adversary.md. test_mutations.py holds that each row is still so.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.adversary import memory, model
from tests.adversary import story as stories
from tests.adversary.checks import Check, checks, without
from tests.adversary.simulation import RUNS_A_STORY, Run, clear_forged
from tests.adversary.story import THEFTS, Story

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = Path(__file__).with_name("checks.json")
DOCS: Final = ROOT / "docs" / "adversary.md"
# Which runs are tried before the unit tests are asked: this many stories of every theft, this many runs of each.
STORIES: Final = 6 * len(THEFTS)
RUNS: Final = 5
UNIT: Final = "tests/unit/flaghoist"
# Then these are asked, in this order.
TESTS: Final = tuple(
    f"{UNIT}/test_{name}.py"
    for name in (
        *("ledger", "root", "root_chain", "quarantine", "emergency", "ratification", "freshness", "changes", "taint"),
        *("signing", "snapshot", "codec", "policy", "releases", "policy_enforced"),
    )
)
BEGIN, END = "<!-- checks: begin -->", "<!-- checks: end -->"


@dataclass(frozen=True)
class Noticed:
    """Who notices that a check is gone. `seed` of the simulation, or `test` (a node id of pytest)."""

    check: str
    breaks: str
    seed: int | None = None
    seeds_needed: int | None = None
    test: str | None = None


def seeds() -> Iterator[int]:
    """The runs that are tried, in their order: every theft early on."""
    for run in range(RUNS):
        for number in range(STORIES):
            yield number * RUNS_A_STORY + run


def first_seed(check: Check, library: Sequence[Story]) -> Noticed | None:
    """Return the first run that notices, if one does."""
    for count, seed in enumerate(seeds(), 1):
        breaks = breaks_at(check, seed, library[seed // RUNS_A_STORY])
        if breaks is not None:
            return Noticed(check.name, breaks, seed, count)
    return None


def breaks_at(check: Check, seed: int, story: Story) -> str | None:
    """Play one run without a check, of a story that was written with it; return what broke, None if nothing."""
    _forget()
    try:
        with without(check):
            Run(seed, story).play()
    except Exception as error:  # noqa: BLE001 (without a check the verifier may fail in any way)
        return _said(error)
    finally:
        _forget()
    return None


def first_test(check: Check, *tests: str) -> str | None:
    """Return the first unit test that fails without a check."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "tests.adversary.plugin",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [*command, *(tests or TESTS)],
        cwd=ROOT,
        env={**os.environ, "WITHOUT_CHECK": check.name, "PYTHONPATH": f"{ROOT / 'proto'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode not in (0, 1) and found is None:
        raise RuntimeError(run.stdout + run.stderr)
    return found[1] if found else None


def look(name: str) -> Noticed | str:
    """Return who notices that a check is gone; the check's name, if nobody does."""
    check = checks()[name]
    with memory.remembered():
        noticed = first_seed(check, _library())
    if noticed is not None:
        return noticed
    test = first_test(check)
    return Noticed(name, "", test=test) if test is not None else name


_stories: list[Story] = []


def _library() -> Sequence[Story]:
    """The stories, written with all checks in place."""
    while len(_stories) < STORIES:
        _stories.append(stories.make(len(_stories)))
    return _stories


def _forget() -> None:
    memory.forget()
    model.forget()
    clear_forged()


def _said(error: Exception) -> str:
    text = str(error) if isinstance(error, model.ViolationError) else f"{type(error).__name__}: {error}"
    text = re.sub(r"\b[0-9a-f]{32,}\b", "…", text.splitlines()[0] if text else type(error).__name__)
    return re.sub(r"\bsidecar \d\b", "a sidecar", text)[:160]


def read_table() -> list[Noticed]:
    return [Noticed(**row) for row in json.loads(TABLE.read_text())]


def table_of(rows: Sequence[Noticed]) -> str:
    """The rows as docs/adversary.md shows them."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    def row(one: Noticed) -> str:
        if one.test is not None:
            noticed = f"`{one.test.removeprefix(UNIT + '/')}`"
            return f"| `{cell(one.check)}` | the unit test fails | {cell(noticed)} | |"
        return f"| `{cell(one.check)}` | {cell(one.breaks)} | {one.seed} | {one.seeds_needed} |"

    head = ["| without | what breaks | first seed, or unit test | runs needed |", "|---|---|---|---|"]
    return "\n".join([*head, *(row(one) for one in rows)])


def write(rows: Sequence[Noticed]) -> None:
    TABLE.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    text = DOCS.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table_of(rows)}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write-docs", action="store_true", help="write checks.json and the table in docs/adversary.md"
    )
    parser.add_argument("--only", default="", help="look at the checks whose name contains this")
    parser.add_argument("--new", action="store_true", help="keep the rows that there are, and look at new checks only")
    arguments = parser.parse_args()
    kept = {row.check: row for row in read_table()} if arguments.new else {}
    names = [name for name in checks() if arguments.only in name and name not in kept]
    rows, unnoticed = [], []
    with ProcessPoolExecutor(2) as pool:
        for name, found in zip(names, pool.map(look, names), strict=True):
            if isinstance(found, str):
                unnoticed.append(name)
                print(f"NOBODY  {name}", flush=True)
                continue
            rows.append(found)
            print(f"{found.seeds_needed or 'test':>6}  {name}: {found.test or found.breaks}", flush=True)
    print(f"{len(rows)} of {len(names)} checks are missed when they are gone")
    if arguments.write_docs and not arguments.only:
        found_now = {row.check: row for row in rows}
        write([row for name in checks() if (row := found_now.get(name) or kept.get(name)) is not None])
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
