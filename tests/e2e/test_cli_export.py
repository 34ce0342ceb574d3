"""`flaghoist export`: what is written can be taken in again, and answers as before."""

import json

import pytest

from tests.scenarios.operators import Team, write_flags

SHOP = {
    "metadata": {"flagSetId": "shop"},
    "flags": {
        "banner": {
            "state": "ENABLED",
            "variants": {"red": "#F00", "blue": "#00F"},
            "defaultVariant": "red",
            "targeting": {"if": [{"$ref": "staff"}, {"fractional": [["red", 1], ["blue", 1]]}, None]},
        },
        "limit": {"state": "DISABLED", "variants": {"low": 1, "high": 2.5}, "defaultVariant": "low"},
        "bare": {"state": "ENABLED", "variants": {"on": True}, "metadata": {"flagSetId": "own"}},
    },
    "$evaluators": {"staff": {"ends_with": [{"var": "email"}, "@example.org"]}},
}
CONTEXTS = ({}, {"email": "a@example.org", "targetingKey": "u1"}, {"email": "b@example.org", "targetingKey": "u7"})


def answers(team):
    found = []
    for key in SHOP["flags"]:
        for context in CONTEXTS:
            document = team.ada.ok("flag", "eval", key, "--context", json.dumps(context), "--json").document
            found.append({name: document[name] for name in ("value", "variant", "reason")})
    return found


@pytest.fixture
def team(tmp_path):
    team = Team.begun(tmp_path / "first")
    team.imported(write_flags(tmp_path / "shop.json", SHOP))
    return team


def test_exported_file_answers_alike_when_it_is_imported_elsewhere(team, tmp_path):
    file = tmp_path / "exported.json"
    team.ada.ok("export", "--out", file)
    exported = json.loads(file.read_text())
    assert "$evaluators" not in exported
    assert "$ref" not in file.read_text()
    assert exported["flags"]["bare"]["metadata"]["flagSetId"] == "own"
    second = Team.begun(tmp_path / "second")
    second.imported(file)
    assert answers(second) == answers(team)


def test_stdout_is_the_file(team, tmp_path):
    team.ada.ok("export", "--out", tmp_path / "out.json")
    assert team.ada.ok("export").out == (tmp_path / "out.json").read_text().rstrip("\n") + "\n"
    assert team.ada.ok("export", "--json").document["document"] == json.loads((tmp_path / "out.json").read_text())


def test_one_source_is_exported_alone(team, tmp_path):
    team.imported(write_flags(tmp_path / "office.json"))
    assert set(json.loads(team.ada.ok("export").out)["flags"]) == {*SHOP["flags"], "newCheckout", "greeting"}
    assert set(json.loads(team.ada.ok("export", "--source", "shop.json").out)["flags"]) == set(SHOP["flags"])
    assert json.loads(team.ada.ok("export", "--source", "nothing").out)["flags"] == {}


def test_file_imported_again_with_prune_replaces_exactly_what_its_source_gave(team, tmp_path):
    team.imported(write_flags(tmp_path / "office.json"))
    fewer = {**SHOP, "flags": {"banner": SHOP["flags"]["banner"]}}
    proposal = team.ada.ok(
        "import", write_flags(tmp_path / "shop.json", fewer), "--source", "shop.json", "--prune", "--yes"
    ).out.strip()
    team.published(proposal)
    assert set(json.loads(team.ada.ok("export").out)["flags"]) == {"banner", "newCheckout", "greeting"}
    assert team.ada.ok("audit", "verify", "--json").document["seq"] == 4
