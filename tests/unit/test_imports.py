"""The tree is the architecture: who may import whom, read from every file (docs/architecture.md has the picture)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"flaghoist": ROOT / "proto/flaghoist", "sidecar": ROOT / "sidecar", "publisher": ROOT / "publisher"}
MAY_IMPORT = {
    "flaghoist": set(),
    "sidecar": {"flaghoist", "flagd"},
    "publisher": {"flaghoist", "flagd"},
}
OURS = {*HOMES, "flagd"}
# The protocol decides from bytes and arguments alone: no clock, no disk, no network, no log lines.
FORBIDDEN_TO_THE_CORE = {"aiokafka", "asyncio", "logging", "os", "random", "socket", "sqlite3", "structlog", "time"}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def files(package: str) -> list[Path]:
    found = sorted(HOMES[package].rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", HOMES)
def test_package_imports_only_what_its_layer_may(package):
    forbidden = OURS - MAY_IMPORT[package] - {package}
    for file in files(package):
        assert forbidden.isdisjoint(roots(imported(file))), file


def test_core_of_the_protocol_does_no_io():
    for file in files("flaghoist"):
        if "log" in file.relative_to(HOMES["flaghoist"]).parts:
            continue
        assert FORBIDDEN_TO_THE_CORE.isdisjoint(roots(imported(file))), file
        assert not {name for name in imported(file) if name.startswith("flaghoist.log")}, file


def test_core_modules_import_downwards_only():
    """Each module may import those before it: the way of a record reads in one direction."""
    order = [
        *("errors", "values", "records", "environment", "codec", "sshsig", "signing", "targeting.limits", "document"),
        *("definition", "release_plan", "release_state", "targeting", "policy", "root", "authorization", "answer"),
        *("selector", "snapshot", "state_root", "rollback", "changes", "outcomes", "ledger", "barrier", "freshness"),
        *("root_chain", "taint", "evaluation", "flagd_document", "acknowledgement"),
    ]

    def rank(module: str) -> int:
        fitting = [n for n, prefix in enumerate(order) if module == prefix or module.startswith(prefix + ".")]
        return max(fitting, default=-1)

    for file in files("flaghoist"):
        module = ".".join(file.relative_to(HOMES["flaghoist"]).with_suffix("").parts).removesuffix(".__init__")
        if module.startswith("log") or module == "__init__":
            continue
        assert rank(module) >= 0, f"{file}: give the module its place in this order"
        for name in imported(file):
            if name.startswith("flaghoist.") and (target := rank(name.removeprefix("flaghoist."))) >= 0:
                assert target <= rank(module), f"{file} imports {name}"
