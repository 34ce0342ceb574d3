"""What `flaghoist flag interactions` shows of a real ledger: who touches what a flag or a release touches."""

import json
from typing import Any

import pytest

from tests.scenarios.operators import Team


def switch(**more: Any) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off", **more}


STAFF = {"ends_with": [{"var": "email"}, "@example.org"]}
FLAGS = {
    "cart-limit": switch(),
    "beta-search": switch(targeting={"if": [{"$ref": "staff"}, "on"]}),
    "by-mail": switch(targeting={"if": [{"==": [{"var": "email"}, "ada@example.org"]}, "on"]}),
    "alone": switch(targeting={"if": [{"var": "nobody-else-asks"}, "on"]}),
}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """A ledger with four flags of a file; `cart-limit` is of the services cart and pay, `beta-search` of search."""
    team = Team.begun(tmp_path_factory.mktemp("interactions"))
    file = team.ada.desk / "shop.json"
    file.write_text(json.dumps({"flags": FLAGS, "$evaluators": {"staff": STAFF}}))
    team.published(team.ada.ok("import", file, "--yes").out.strip())
    for key, services in {"cart-limit": ("cart", "pay"), "beta-search": ("search", "pay")}.items():
        options = [part for service in services for part in ("--service", service)]
        team.published(team.ada.ok("propose", "set", f"shop.json#{key}", *options, "--yes").out.strip())
    return team


def ties(team, *args):
    found = team.ada.ok("flag", "interactions", *args, "--json").document
    return {(tie["why"], tie["what"]): [party["flags"] for party in tie["parties"]] for tie in found}


def test_flags_are_listed_by_what_they_touch_together(team):
    assert ties(team) == {
        ("service", "pay"): [["shop.json#beta-search"], ["shop.json#cart-limit"]],
        ("attribute", "email"): [["shop.json#beta-search"], ["shop.json#by-mail"]],
    }
    lines = team.ada.ok("flag", "interactions").out.splitlines()
    assert lines[0].split() == ["WHY", "WHAT", "WHO"]
    assert lines[1].split(maxsplit=2) == ["service", "pay", "flag shop.json#beta-search, flag shop.json#cart-limit"]


def test_one_flag_is_asked_about_by_its_key_or_full_name(team):
    assert list(ties(team, "cart-limit")) == [("service", "pay")]
    assert list(ties(team, "shop.json#by-mail")) == [("attribute", "email")]
    assert list(ties(team, "beta-search", "--why", "attribute")) == [("attribute", "email")]


def test_nothing_in_common_is_said_so(team):
    ended = team.ada.ok("flag", "interactions", "alone")
    assert (ended.out, ended.err.strip()) == ("", "no interaction of alone")
    assert ties(team, "alone") == {}


def test_name_that_is_neither_flag_nor_release_is_refused_with_those_alike(team):
    error = team.ada.refused("flag", "interactions", "cart-limits", code=10)
    assert error["code"] == "unknown_flag"
    assert "cart-limit" in error["message"]


def test_sort_that_does_not_exist_is_refused_with_those_that_do(team):
    ended = team.ada.run("flag", "interactions", "--why", "team")
    assert ended.code == 2
    assert "service" in ended.err


def test_release_interacts_as_one_with_its_flags(tmp_path):
    team = Team.begun(tmp_path)
    file = team.ada.desk / "flags.json"
    file.write_text(json.dumps({"flags": {"cart.spring": switch(), "mail.spring": switch(), "cart.old": switch()}}))
    team.published(team.ada.ok("import", file, "--yes", "--source", "").out.strip())
    for key in ("cart.spring", "cart.old"):
        team.published(team.ada.ok("propose", "set", key, "--service", "cart", "--yes").out.strip())
    made = team.ada.ok(
        *(
            "release",
            "create",
            "spring",
            "--title",
            "Spring",
            "--owner",
            "ada@example.org",
            "--service",
            "cart",
            "--flag",
            "cart.spring",
        ),
        *("--flag", "mail.spring", "--yes"),
    )
    team.published(made.out.strip())
    [tie] = team.ada.ok("flag", "interactions", "spring", "--json").document
    assert tie == {
        "why": "service",
        "what": "cart",
        "parties": [
            {"release": "spring", "flags": ["cart.spring"]},
            {"release": None, "flags": ["cart.old"]},
        ],
    }
    assert team.ada.ok("flag", "interactions", "mail.spring", "--json").document == []
    ended = team.ada.ok("flag", "interactions", "cart.spring")
    assert "release spring (cart.spring), flag cart.old" in ended.out
    assert "flag interactions spring" in ended.err
