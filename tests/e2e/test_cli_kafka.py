"""The same commands over a real Kafka."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.publisher_process import running_publisher
from tests.scenarios.operators import Operator, Team, write_flags
from tests.scenarios.trio import Trio


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


@pytest.mark.kafka
def test_a_root_and_an_emergency_go_through_kafka(kafka_url: Callable[[], str], tmp_path: Path) -> None:
    trio = Trio.begun(tmp_path, ledger=kafka_url())
    trio.guarded("newCheckout")
    assert trio.rotated("--threshold", "APPROVER=2")["version"] == 2
    with running_publisher(trio.ada) as service:
        service.until("publisher.started")
        killed = trio.ada.ok("kill", "newCheckout", "--reason", "a drill", "--yes", "--json").document
        emergency = killed["emergencies"][0]["id"]
        assert trio.grace.ok("flag", "eval", "newCheckout", "--json").document["variant"] == "off"
        for desk in (trio.grace, trio.linus):
            desk.ok("approve", emergency, "--yes")
        service.until("entry.appended", kind="ratification")
    ken = Operator(tmp_path / "ken")
    digest = trio.ada.ok("root", "show", "--json").document["sha256"]
    ken.ok("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes")
    assert ken.ok("audit", "verify", "--json").document["records"]["ratified"] == 1
