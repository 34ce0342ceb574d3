"""The same commands over a real Kafka."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.operators import Team, write_flags


@pytest.mark.kafka
def test_a_change_goes_through_kafka_and_everything_verifies(kafka_url: Callable[[], str], tmp_path: Path) -> None:
    team = Team.begun(tmp_path, ledger=kafka_url())
    proposal = team.imported(write_flags(tmp_path / "flags.json"))
    assert team.ada.ok("publish", proposal, "--yes", "--json").document["already"] is True
    assert team.grace.ok("flag", "eval", "newCheckout", "--json").document["value"] is False
    assert team.grace.ok("audit", "verify", "--json").document["records"] == {"advanced": 1, "applied": 1}
    checks = team.ada.ok("doctor", "--json").document
    assert {check["health"] for check in checks} <= {"ok", "warn"}, checks
    assert next(c for c in checks if c["check"] == "chain")["health"] == "ok"
