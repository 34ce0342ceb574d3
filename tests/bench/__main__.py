"""`python -m tests.bench [NAME …]`: measure, and say what was promised and what came out.

stdout is the report, stderr the progress. Exit codes: 0 measured (whether promises are met or missed), 2 usage. It is a
report and no test: a busy machine must not fail a build.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tests.bench import (
    all_faces,
    change_to_visible,
    evaluation,
    fleet_switch,
    hostile_load,
    idle_cost,
    kept_or_not,
    machine,
    ofrep_calls,
    publish_to_visible,
    replay,
    resolve_all,
    start,
    sync_fanout,
    unary_calls,
)
from tests.bench.brokers import Brokers
from tests.bench.figures import Result, markdown
from tests.bench.performance_page import PROMISE_COLUMNS, promise_rows, rewrite, section
from tests.bench.scale import FULL, QUICK, Scale

Measure = Callable[[Scale, Brokers, Callable[[str], None]], Result]

BENCHMARKS: Final[Mapping[str, Measure]] = {
    "evaluation": evaluation.measure,
    "unary_calls": unary_calls.measure,
    "all_faces": all_faces.measure,
    "resolve_all": resolve_all.measure,
    "ofrep_calls": ofrep_calls.measure,
    "change_to_visible": change_to_visible.measure,
    "start": start.measure,
    "publish_to_visible": publish_to_visible.measure,
    "replay": replay.measure,
    "idle_cost": idle_cost.measure,
    "sync_fanout": sync_fanout.measure,
    "hostile_load": hostile_load.measure,
    "kept_or_not": kept_or_not.measure,
    "fleet_switch": fleet_switch.measure,
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that are named, or all; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick and options.write_docs:
        print("--quick only shows that the benchmarks work: its figures are not for the docs", file=sys.stderr)
        return 2
    names = options.names or list(BENCHMARKS)
    facts = machine.describe()
    results: dict[str, Result] = {}
    with Brokers(options.kafka) as brokers:
        for number, name in enumerate(names, start=1):

            def say(what: str, place: str = f"[{number}/{len(names)}] {name}") -> None:
                print(f"{place}: {what}", file=sys.stderr, flush=True)

            say("begins")
            results[name] = BENCHMARKS[name](QUICK if options.quick else FULL, brokers, say)
            if not options.json:
                print(f"\n## {name}\n\n{section(results[name])}\n", flush=True)
    load_after = os.getloadavg()[0]
    if options.json:
        print(json.dumps(_document(results, facts, load_after), indent=2))
    else:
        print(
            f"\n{markdown(PROMISE_COLUMNS, promise_rows(results))}\n\n{machine.sentence(facts, load_after=load_after)}"
        )
    if options.write_docs:
        rewrite(results, facts, load_after=load_after)
        print("docs/performance.md is rewritten", file=sys.stderr)
    return 0


def _document(results: Mapping[str, Result], facts: dict[str, Any], load_after: float) -> dict[str, Any]:
    return {
        "machine": facts | {"load_average_after": load_after},
        "benchmarks": {name: result.as_json() for name, result in results.items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure what docs/performance.md reports.")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="only see that each benchmark works (under a minute)")
    parser.add_argument("--json", action="store_true", help="one document on stdout, numbers unrounded")
    parser.add_argument("--write-docs", action="store_true", help="rewrite the tables of docs/performance.md")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
