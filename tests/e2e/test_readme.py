"""What the README shows is run here as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.operators import Team, write_flags

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
ENDS_WITHIN_S = 30


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


@pytest.mark.kafka
def test_consumer_of_the_audit_topic_prints_who_changed_what(tmp_path, kafka_url):
    url = kafka_url()
    team = Team.begun(tmp_path, ledger=url)
    team.imported(write_flags(tmp_path / "flags.json"))
    (program,) = [block for block in blocks("python") if "AIOKafkaConsumer" in block]
    brokers, topic = url.removeprefix("kafka://").split("/")
    reading = subprocess.Popen(
        [sys.executable, "-c", program, brokers, topic], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        line = reading.stdout.readline()
    finally:
        reading.kill()
        reading.communicate(timeout=ENDS_WITHIN_S)
    assert line.split() == ["2", "ada@example.org", "import", "flags.json", "['newCheckout',", "'greeting']"]


def test_every_file_that_the_documentation_links_to_is_there():
    documents = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_make_targets_that_the_readme_names_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"[$`] ?make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
