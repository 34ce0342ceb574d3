"""docs/security.md names the tests that hold its promises: each of them is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+(?:\.py)?)`", PAGE)))
PATHS = sorted(set(re.findall(r"`(tests/[\w/.]+)`", PAGE)))
SOURCES = {file: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("name", NAMED)
def test_test_that_holds_a_promise_exists(name):
    if name.endswith(".py"):
        assert any(file.name == name for file in SOURCES), name
    else:
        assert any(f"def {name}(" in text for text in SOURCES.values()), name


@pytest.mark.parametrize("path", PATHS)
def test_place_that_holds_a_promise_has_tests(path):
    place = ROOT / path
    assert place.is_file() or any(place.rglob("test_*.py")), path


def test_page_names_tests_at_all():
    assert len(NAMED) >= 20
    assert len(PATHS) >= 8


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w/.-]+\.md)\)", PAGE))))
def test_page_that_the_security_page_leads_to_exists(link):
    assert (ROOT / "docs" / link).is_file()
