"""`flaghoist demo` from the outside: it exits with 0 only if each step really held."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO_S = 120


def run_demo(*arguments, **environ):
    return subprocess.run(
        [Path(sys.executable).with_name("flaghoist"), "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        env={**os.environ, **environ},
        check=False,
    )


def test_demo_tells_its_story_and_every_step_holds():
    ended = run_demo()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for line in (
        "not_approved",
        "same_person",
        "three dropped",
        "in all three services",
        "none before the moment",
        "all three see checkout-v2 = off",
        "ratified",
        "Every step held",
    ):
        assert line in ended.stdout


def test_demo_prints_one_json_document_and_leaves_what_it_was_told_to_keep(tmp_path):
    ended = run_demo("--json", "--keep", str(tmp_path / "stage"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(ended.stdout)
    assert figures["audit"]["seq"] == 7
    assert 0 < figures["revert_ms"] < 10_000
    assert 0 <= figures["spread_ms"] < 10_000
    assert 0 < figures["flip_ms"] < 10_000
    assert (tmp_path / "stage" / "ledger.db").exists()
    assert (tmp_path / "stage" / "passphrase").stat().st_mode & 0o077 == 0


def test_demo_fails_when_a_step_does_not_hold(tmp_path):
    """A sidecar that cannot start, for one: the exit code must not be 0 whatever was printed before."""
    (tmp_path / "sidecar").mkdir()
    (tmp_path / "sidecar" / "__init__.py").write_text("raise SystemExit('no sidecar today')")
    ended = run_demo(PYTHONPATH=str(tmp_path))
    assert ended.returncode != 0
    assert "demo_failed" in ended.stderr
