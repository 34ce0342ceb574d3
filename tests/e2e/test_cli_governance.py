"""Who answers for a flag is set by options, kept by imports, and never half set."""

import json

import pytest

from tests.scenarios.operators import Team

FLAG = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}


@pytest.fixture
def team(tmp_path):
    return Team.begun(tmp_path)


def governance(team, key):
    return team.ada.ok("flag", "show", key, "--json").document["definition"].get("governance")


def file_of(team, flags):
    path = team.ada.desk / "shop.json"
    path.write_text(json.dumps({"flags": flags}))
    return path


def set_by_ada(team, *options):
    proposal = team.ada.ok("propose", "set", "shop.json#checkout", *options, "--yes").out.strip()
    team.published(proposal)


def test_options_govern_every_flag_of_an_import(team):
    team.published(team.ada.ok("import", file_of(team, {"checkout": FLAG}), "--team", "shop", "--yes").out.strip())
    assert governance(team, "checkout") == {"team": "shop"}


def test_import_keeps_what_governs_a_flag(team):
    team.imported(file_of(team, {"checkout": FLAG}))
    set_by_ada(team, "--owner", "ada@example.org", "--safe-variant", "off", "--service", "web", "--max-stale", "5m",
               "--on-stale", "safe_variant", "--expires", "2027-03-31", "--category", "release")  # fmt: skip
    fields = {
        "owner": "ada@example.org",
        "safe_variant": "off",
        "services": ["web"],
        "max_stale_s": 300,
        "on_stale": "safe_variant",
        "expires_at": "2027-03-31",
        "category": "release",
    }
    assert governance(team, "checkout") == fields
    assert team.ada.ok("import", file_of(team, {"checkout": FLAG}), "--yes", "--json").document["unchanged"] == 1
    team.imported(file_of(team, {"checkout": {**FLAG, "defaultVariant": "on"}}))
    assert governance(team, "checkout") == fields


def test_empty_option_takes_a_field_away(team):
    team.published(team.ada.ok("import", file_of(team, {"checkout": FLAG}), "--team", "shop", "--yes").out.strip())
    set_by_ada(team, "--team", "", "--safe-variant", "off")
    assert governance(team, "checkout") == {"safe_variant": "off"}


def test_import_whose_flag_lost_its_safe_variant_is_refused_by_name(team):
    file = file_of(team, {"checkout": FLAG})
    team.published(team.ada.ok("import", file, "--safe-variant", "off", "--yes").out.strip())
    without = {**FLAG, "variants": {"on": True, "dark": False}, "defaultVariant": "on"}
    error = team.ada.refused("import", file_of(team, {"checkout": without}), "--yes", code=10)
    assert error["code"] == "bad_definition"
    assert "flags.checkout" in error["message"]
    assert "safe_variant" in error["message"]


def test_field_that_cannot_be_is_refused_before_anything_is_signed(team):
    team.imported(file_of(team, {"checkout": FLAG}))
    for option in (("--category", "whim"), ("--expires", "soon"), ("--safe-variant", "dark"), ("--owner", "a b")):
        error = team.ada.refused("propose", "set", "shop.json#checkout", *option, "--yes", code=10)
        assert error["code"] in ("bad_definition", "malformed")
    assert team.ada.ok("pending", "--json").document == []
