"""Each benchmark still works: it makes its figures. Whether they are good, people read in docs/performance.md."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.faces.events import STREAMS_MAX
from tests.bench.figures import Promise, Result, Table, Verdict, at_least, at_most, markdown, percentile
from tests.bench.go_programs import BIN
from tests.bench.hostile_load import RSS_LIMIT_MIB, STREAMS
from tests.bench.performance_page import MarkerMissing, rewrite
from tests.bench.processes import ROOT
from tests.kafka.broker import Broker

# Under a minute as a rule; a loaded machine may take several times that.
DEADLINE_S = 300.0

TABLES = {
    "evaluation": {"One evaluation in process"},
    "replay": {"Replay"},
    "unary_calls": {"ResolveBoolean, native front", "ResolveBoolean, grpcio front"},
    "all_faces": {"ResolveBoolean, all faces at work"},
    "resolve_all": {"ResolveAll, native front"},
    "ofrep_calls": {"OFREP, one flag", "OFREP, bulk"},
    "change_to_visible": {"One flag changed among 300"},
    "start": {"Start with 300 flags"},
    "publish_to_visible": {"Publish to visible, Kafka"},
    "idle_cost": {"An idle sidecar"},
    "sync_fanout": {"Sync of 300 flags"},
    "hostile_load": {"A caller among hostile clients, 300 flags"},
    "fleet_switch": {"First to last of 3 sidecars that switch, Kafka", "Revert of a release over 3 sidecars, Kafka"},
    "kept_or_not": {
        "What was tried, callers 50 over 10, 300 flags",
        "Sidecars on one port, callers 50 over 10",
        "Decoding a context",
    },
}
NEEDS_GHZ = ["unary_calls", "all_faces", "resolve_all"]
NEEDS_HEY = ["ofrep_calls", "kept_or_not"]
NEEDS_KAFKA = ["change_to_visible", "start", "publish_to_visible", "idle_cost", "fleet_switch"]
FACTS = {
    "date": "2026-01-01 00:00 UTC",
    "processor": "one",
    "cores": 1,
    "memory_gib": 1.0,
    "system": "Linux",
    "python": "3.11",
    "packages": {},
    "commit": "abc",
    "load_average": 0.0,
}


def quick(names: list[str], *more: str) -> Any:
    command = [sys.executable, "-m", "tests.bench", *names, "--quick", "--json", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, name in enumerate(names, start=1):
        assert f"[{number}/{len(names)}] {name}: begins" in done.stderr
    return json.loads(done.stdout)


def check_figures(document: Any, names: list[str]) -> None:
    assert document["machine"]["cores"] >= 1
    assert list(document["benchmarks"]) == names
    for name in names:
        found = document["benchmarks"][name]
        assert {table["title"] for table in found["tables"]} == TABLES[name]
        assert all(table["rows"] for table in found["tables"])
        assert all(promise["verdict"] in ("met", "MISSED") for promise in found["promises"]), found["promises"]
        assert found["promises"] or name in ("idle_cost", "sync_fanout", "kept_or_not")


def test_benchmarks_in_process_make_their_figures() -> None:
    names = ["evaluation", "replay"]
    check_figures(quick(names), names)


def test_benchmark_of_in_process_providers_makes_its_figures() -> None:
    check_figures(quick(["sync_fanout"]), ["sync_fanout"])


def test_benchmarks_under_load_make_their_figures() -> None:
    if shutil.which("go") is None and not (BIN / "ghz").exists():
        pytest.skip("no ghz, and no Go to install it")
    check_figures(quick(NEEDS_GHZ), NEEDS_GHZ)


def test_benchmarks_under_http_load_make_their_figures() -> None:
    if shutil.which("go") is None and not (BIN / "hey").exists():
        pytest.skip("no hey, and no Go to install it")
    check_figures(quick(NEEDS_HEY), NEEDS_HEY)


def test_other_callers_are_answered_and_memory_stays_bounded_among_hostile_clients() -> None:
    found = quick(["hostile_load"])["benchmarks"]["hostile_load"]
    check_figures({"machine": {"cores": 1}, "benchmarks": {"hostile_load": found}}, ["hostile_load"])
    for row in found["tables"][0]["rows"]:
        assert row["calls"] > 0, row
        assert row["not answered"] == 0, row
        assert row["peak"] <= RSS_LIMIT_MIB, row
    told = found["notes"][0]
    assert f"OK {STREAMS_MAX:,}" in told
    assert f"RESOURCE_EXHAUSTED {STREAMS - STREAMS_MAX:,}" in told


@pytest.mark.kafka
def test_benchmarks_with_a_broker_make_their_figures(kafka_broker: Broker) -> None:
    document = quick(NEEDS_KAFKA, "--kafka", kafka_broker.address)
    check_figures(document, NEEDS_KAFKA)
    ledgers = {row["ledger"] for row in document["benchmarks"]["idle_cost"]["tables"][0]["rows"]}
    assert ledgers == {"SQLite", "Kafka"}


def test_quick_figures_never_reach_the_docs() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--write-docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 2
    assert "not for the docs" in done.stderr


def test_promise_says_whether_it_was_met() -> None:
    assert at_most("a", 1.0, 1.0, "µs").verdict is Verdict.MET
    assert at_most("a", 1.1, 1.0, "µs").verdict is Verdict.MISSED
    assert at_least("a", 0.6, 0.6, "×").verdict is Verdict.MET
    assert at_least("a", 0.5, 0.6, "×") == Promise("a", "≥ 0.60 ×", "0.50 ×", Verdict.MISSED)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 201)]
    assert percentile(values, 99) == 198.0
    assert percentile(values, 50) == 100.0
    assert percentile([7.0], 99) == 7.0


def test_page_keeps_prose_and_the_rows_of_benchmarks_that_did_not_run(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(
        "before\n<!-- bench:promises -->\n\n"
        + markdown(("benchmark", "promise", "target", "measured", "verdict"), [("b", "old b", "", "", "met")])
        + "\n\n<!-- /bench:promises -->\nbetween\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nafter\n",
        encoding="utf-8",
    )
    result = Result((at_most("new a", 1.0, 2.0, "ms"),), (Table("T", ("x", "ms"), (("one", 1.5),)),))
    rewrite({"a": result}, FACTS, load_after=0.5, page=page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "between" in text
    assert "new a" in text
    assert "old b" in text
    assert "| one | 1.50 |" in text
    assert "\nold\n" not in text
    rewrite({"a": result}, FACTS, load_after=0.5, page=page)
    assert page.read_text(encoding="utf-8") == text


def test_page_without_the_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(MarkerMissing):
        rewrite({"a": Result((), ())}, FACTS, load_after=0.5, page=page)
    assert page.read_text(encoding="utf-8") == "nothing here\n"
