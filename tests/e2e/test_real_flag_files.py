"""Real flag files, through the whole product, to the stock OpenFeature client: the same answers over both ledgers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.operators import Team
from tests.sidecar_process import running_sidecar

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = ("opentelemetry-demo.flagd.json", "flagd-samples.flagd.json")
KINDS = {bool: "boolean", str: "string", int: "integer", float: "float", dict: "object"}
DEFAULTS = {"boolean": False, "string": "default", "integer": -1, "float": -1.5, "object": {}}
CONTEXTS = (
    {},
    {"targetingKey": "user-1"},
    {"targetingKey": "user-2", "email": "ada@faas.com", "color": "yellow", "product_id": "OLJCESPC7Z"},
    {"targetingKey": "user-3", "email": "grace@openfeature.dev", "color": "red"},
)


def files():
    missing = [name for name in FILES if not (DATA / name).exists()]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI is set, and {DATA} lacks {missing}")
    if missing:
        pytest.skip(f"the real flag files are not beside this clone: {DATA}")
    return [DATA / name for name in FILES]


def questions():
    asked = []
    for file in files():
        for key, flag in json.loads(file.read_text())["flags"].items():
            values = list(flag["variants"].values())
            kind = KINDS[float if float in {type(v) for v in values} else type(values[0])]
            asked += [[kind, key, DEFAULTS[kind], context] for context in CONTEXTS]
    return asked


def answers_over(ledger, directory):
    team = Team.begun(directory, log_id="real-files", ledger=ledger)
    for file in files():
        team.imported(file)
    root = team.ada.home / "roots" / "real-files.root"
    with running_sidecar(team.ledger, root, directory / "state") as sidecar:
        sidecar.until("ledger.reached", seq=3)
        ended = subprocess.run(
            [sys.executable, Path(__file__).with_name("openfeature_answers.py"), str(sidecar.port)],
            input=json.dumps(questions()),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        code = sidecar.stop()
        assert code == 0
    return json.loads(ended.stdout)


def expect(answers, key, context_number, value, variant, reason):
    position = [n for n, (_, asked, _, _) in enumerate(questions()) if asked == key][context_number]
    assert answers[position] == {"key": key, "value": value, "variant": variant, "reason": reason, "error": None}


def assert_as_the_files_say(answers):
    assert [a["key"] for a in answers] == [key for _, key, _, _ in questions()]
    assert not [a for a in answers if a["error"]]
    expect(answers, "cartFailure", 0, 0, "off", "STATIC")
    expect(answers, "loadGeneratorVUs", 1, 5, "5", "CACHED")
    expect(answers, "productCatalogFailure", 2, False, "off", "TARGETING_MATCH")
    expect(answers, "myObjectFlag", 0, {"key": "val"}, "object1", "STATIC")
    expect(answers, "myFloatFlag", 0, 1.23, "one", "STATIC")
    expect(answers, "isColorYellow", 2, True, "on", "TARGETING_MATCH")
    expect(answers, "isColorYellow", 3, False, "off", "TARGETING_MATCH")
    expect(answers, "fibAlgo", 2, "binet", "binet", "TARGETING_MATCH")
    expect(answers, "fibAlgo", 3, "recursive", "recursive", "DEFAULT")
    expect(answers, "targetedFlag", 3, "BBB", "second", "TARGETING_MATCH")


def test_real_files_are_served_from_a_sqlite_ledger(tmp_path):
    assert_as_the_files_say(answers_over(None, tmp_path))


@pytest.mark.kafka
def test_real_files_are_served_alike_from_kafka_and_from_sqlite(tmp_path, kafka_url):
    over_kafka = answers_over(kafka_url(), tmp_path / "kafka")
    assert_as_the_files_say(over_kafka)
    assert over_kafka == answers_over(None, tmp_path / "sqlite")
