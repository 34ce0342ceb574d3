"""The audit on a real Kafka topic: read to its end, and followed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.operators import Team, write_flags


@pytest.mark.kafka
def test_export_follows_a_topic_and_agrees_with_a_later_reading(tmp_path: Path, kafka_url: Callable[[], str]) -> None:
    team = Team.begun(tmp_path, ledger=kafka_url())
    team.imported(write_flags(tmp_path / "flags.json"))
    lines: list[bytes] = []
    with team.grace.spawn("audit", "export", "--follow") as process:
        try:
            assert process.stdout is not None
            lines += [process.stdout.readline() for _ in range(3)]
            team.published(team.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip())
            lines.append(process.stdout.readline())
            process.terminate()
            rest, said = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    assert (process.returncode, rest) == (0, b""), said
    assert json.loads(lines[-1])["after"]["flag"]["defaultVariant"] == "on"
    assert b"".join(lines).decode() == team.ada.ok("audit", "export").out
    answers = team.grace.ok("audit", "evaluate", "newCheckout", "--all", "--json").document["answers"]
    assert [answer["value"] for answer in answers] == [None, False, True]
