"""Releases from the command line: made from a file or options, approved by somebody else, looked at, taken away."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.scenarios.operators import Team, write_flags

OWNED = ("--owner", "ada@example.org")
FLAGS = {
    "flags": {
        "newCheckout": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"},
        "cart": {
            "state": "ENABLED",
            "variants": {"v1": "one", "v2": "two"},
            "defaultVariant": "v1",
            "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "v2", None]},
        },
        "mail": {"state": "ENABLED", "variants": {"yes": True, "no": False}, "defaultVariant": "no"},
    }
}
RELEASE = """
release: checkout-v2
title: Checkout v2
owner: ada@example.org
team: checkout
services: [cart, web]
flags:
  - newCheckout
  - {key: cart, on: v2, service: cart}
pattern: "{service}.{release}"
audience: {ends_with: [{var: email}, "@example.org"]}
stages:
  - {name: internal, audience: true, soak: 1h}
  - {share: 10%, soak: 1d}
  - share: 100%
lead: 2s
ticket: SHOP-7
expires: 2027-03-31
"""


@pytest.fixture
def team(tmp_path: Path) -> Team:
    made = Team.begun(tmp_path)
    made.imported(write_flags(tmp_path / "flags.json", FLAGS))
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE)
    return path


def create(team: Team, file: Path) -> str:
    proposal = team.ada.ok("release", "create", file, "--yes").out.strip()
    team.published(proposal)
    return proposal


def ramp(team: Team, *words: str) -> None:
    team.published(team.ada.ok("release", *words, "--yes").out.split()[0])


def evaluated(team: Team, key: str, **context: str) -> object:
    told = [word for name, value in context.items() for word in ("--context", f"{name}={value}")]
    return team.ada.ok("flag", "eval", key, *told, "--json").document["value"]


def test_release_is_made_from_a_file_by_two_people_and_changes_nobodys_answers(team, file):
    shown = team.ada.ok("release", "create", file, "--dry-run")
    assert "release checkout-v2: Checkout v2" in shown.out
    assert "make the flag cart.checkout-v2: on/off, default off" in shown.out
    assert "nobody's answers change by this: the gate is closed" in shown.out
    assert team.grace.pending() == []

    asked = team.ada.ok("release", "create", file, "--yes")
    assert "proposed: create release checkout-v2: Checkout v2" in asked.err
    (waiting,) = team.grace.pending()
    assert {op["target"] for op in waiting["ops"]} == {"RELEASE", "FLAG"}
    assert len(waiting["ops"]) == 5
    approved = team.grace.ok("approve", waiting["id"], "--yes")
    assert "release checkout-v2: created, closed; nobody's answers change" in approved.err
    team.ada.ok("publish", waiting["id"], "--yes")

    assert evaluated(team, "cart", targetingKey="u1") == "one"
    assert evaluated(team, "cart", targetingKey="u1", email="grace@example.org") == "two"
    assert evaluated(team, "web.checkout-v2", targetingKey="u1") is False
    assert team.ada.refused("release", "create", file, "--yes", code=10)["code"] == "release_exists"


def test_release_is_made_from_options(team):
    made = team.ada.ok(
        *("release", "create", "wallet", "--flag", "newCheckout", "--flag", "cart=v2", "--flag", "mail"),
        *("--owner", "grace@example.org", "--service", "web", "--stage", "1%:1h", "--stage", "half=50%:2d"),
        *("--stage", "100%", "--bucket-by", "account", "--requires", "", "--expires", "2027-06-30"),
        *("--audience", '{"==": [{"var": "plan"}, "beta"]}', "--title", "The wallet", "--ticket", "SHOP-9"),
        *("--reason", "customers ask for it", "--yes", "--json"),
    ).document
    assert made["release"] == "wallet"
    assert [(flag["key"], flag["change"], flag["on"]) for flag in made["flags"]] == [
        ("newCheckout", "wire", "on"),
        ("cart", "wire", "v2"),
        ("mail", "wire", "yes"),
    ]
    team.published(made["proposals"][0]["id"])
    plan = team.ada.ok("release", "show", "wallet", "--json").document["plan"]
    assert plan["stages"] == [
        {"name": "1%", "audience": False, "share": 1, "soak_s": 3600},
        {"name": "half", "audience": False, "share": 50, "soak_s": 172_800},
        {"name": "100%", "audience": False, "share": 100, "soak_s": 0},
    ]
    assert (plan["title"], plan["owner"], plan["bucket_by"]) == ("The wallet", "grace@example.org", "account")
    (event,) = team.ada.ok("release", "history", "wallet", "--json").document
    assert (event["reason"], event["ticket"]) == ("customers ask for it", "SHOP-9")


def test_options_win_over_the_file(team, file):
    team.published(team.ada.ok("release", "create", file, "other", "--team", "web", "--yes").out.strip())
    shown = team.ada.ok("release", "show", "other", "--json").document
    assert (shown["id"], shown["plan"]["team"], shown["plan"]["salt"]) == ("other", "web", "other")


REFUSALS = (
    (("create", "x"), 10, "flags: want at least one flag, or a pattern that names them, got none"),
    (("create", "x", "--flag", "newChekout"), 10, "did you mean newCheckout?"),
    (("create", "x", "--flag", "mail", "--expires", "2020-01-01"), 10, "want a date that is not over"),
    (("create", "x", "--flag", "cart"), 10, "Say `on: V`, one of v1, v2"),
    (("create", "x", "--flag", "mail", *OWNED, "--requires", "y"), 10, "want releases that exist, got 'y'"),
    (
        ("create", "x", "--flag", "mail", *OWNED, "--audience", '{"nosuch": []}'),
        10,
        "audience: want a known operator",
    ),
    (("create", "x", "--flag", "mail", *OWNED, "--stage", "audience"), 10, "audience: want a rule that says who"),
    (("create", "x", "--stage", "5%=1h=2"), 2, "--stage[0]: want [NAME=]SHARE[:SOAK]"),
    (("create", "x", "--owner", ""), 2, "--owner: person"),
    (("create",), 2, "want FILE, or ID with options, or both"),
    (("create", "missing.yaml"), 2, "missing.yaml"),
    (("edit", "nosuch", "--title", "t"), 10, "no release 'nosuch'"),
    (("show", "nosuch"), 10, "no release 'nosuch'"),
    (("history", "nosuch"), 10, "no release 'nosuch'"),
    (("diff", "nosuch", "1..2"), 10, "no release 'nosuch'"),
    (("delete", "nosuch"), 10, "no release 'nosuch'"),
    (("plan", "nosuch"), 10, "no release 'nosuch'"),
    (("creat",), 2, "did you mean 'create'?"),
)


def test_what_cannot_be_is_refused_with_the_reason(team):
    for args, code, told in REFUSALS:
        message = team.ada.refused("release", *args, code=code)["message"]
        assert told in message, (args, message)
    assert team.ada.pending() == []


def test_faults_of_a_file_are_told_at_once(team, file):
    file.write_text(
        RELEASE.replace("soak: 1h", "soak: soon").replace("lead: 2s", "lead: 1h").replace("owner:", "owned:")
    )
    error = team.ada.refused("release", "create", file, code=10)
    assert error["code"] == "bad_file"
    for fault in ("3 problems", "owned: no such field; did you mean 'owner'?", "stages[0].soak", "lead: want a span"):
        assert fault in error["message"]


def test_plan_says_what_each_stage_changes_and_what_it_takes_before_anything_is_signed(team, file):
    before = team.ada.ok("release", "plan", file)
    assert "next: `flaghoist release create" in before.err
    assert "what the file changes:" in before.out
    assert "make it: an approval by anybody else who may approve" in before.out
    create(team, file)
    said = team.ada.ok("release", "plan", "checkout-v2").out
    for line in (
        "  services  cart, web",
        "  lead      2s from a stage's entry",
        "    flags.json#cart: its rule, else v1 → v2  (cart)",
        "    web.checkout-v2: off → on  (web)",
        "  stages    3; each lets more users in to all 4 flags of cart, web, and shuts nobody out:",
        "    1 internal: the audience, for 1h at least",
        "    2 10%: the audience and 10 % of users (+10 %), for 1d at least",
        "    3 100%: everybody (+90 %)",
        "  walk it through its stages, by one approved change: an approval by anybody else who may approve",
        "  revert it: an approval by anybody else who may approve",
        "a revert closes the gate, at any stage; then every flag answers as before:",
    ):
        assert line in said, line
    document = team.ada.ok("release", "plan", "checkout-v2", "--json").document
    assert [needs["refused"] for needs in document["needs"]] == [None] * 4
    assert "make it" not in said


def test_plan_says_that_a_requirement_is_not_met(team, file):
    create(team, file)
    made = team.ada.ok(
        *("release", "create", "wallet", "--flag", "mail", "--owner", "ada@example.org"),
        *("--requires", "checkout-v2", "--stage", "100%", "--yes"),
    )
    team.published(made.out.strip())
    said = team.ada.ok("release", "plan", "wallet").out
    assert "refused as things are: release wallet: want what it requires active for everybody" in said
    assert team.ada.ok("release", "show", "checkout-v2", "--json").document["required_by"] == ["wallet"]


def test_show_list_history_and_diff_follow_a_release(team, file):
    create(team, file)
    assert "checkout-v2  Checkout v2  ada@example.org  closed" in team.ada.ok("release", "list").out
    ramp(team, "ramp", "checkout-v2", "10%")
    (row,) = team.ada.ok("release", "list", "--json").document
    assert (row["standing"], row["overdue"]) == ("the audience and 10 % of users, stage 2 of 3", False)
    shown = team.ada.ok("release", "show", "checkout-v2").out
    assert "  now       open for the audience and 10 % of users" in shown
    assert "  opened    seq 4, asked by ada@example.org, approved by grace@example.org" in shown
    assert "  next      stage 3 of 3: `flaghoist release ramp checkout-v2 100%`, say" in shown
    ramp(team, "revert", "checkout-v2")

    told = team.ada.ok("release", "history", "checkout-v2").out
    changes = [line.split("Z  ")[1] for line in told.splitlines() if line.startswith("seq ")]
    assert changes == ["created, closed", "closed → audience and 10 %", "audience and 10 % → closed"]
    assert told.count("asked by ada@example.org, approved by grace@example.org (rule approvals>=1)") == 3
    assert "    in force from " in told

    documents = team.ada.ok("release", "diff", "checkout-v2", "3..4", "--json").document
    assert documents["what"] == "closed → audience and 10 %"
    assert [change["target"] for change in documents["changes"]] == ["RELEASE"]
    whole = team.ada.ok("release", "diff", "checkout-v2", "..3")
    assert "+++ flags.json#cart (seq 3)" in whole.out
    assert "seq 0 to 3: created, closed; 4 of 4 flags differ" in whole.err
    assert team.ada.ok("release", "diff", "checkout-v2", "4..5").out.startswith("--- release checkout-v2 (seq 4)")
    assert team.ada.ok("release", "diff", "checkout-v2", "3..5").out == ""
    assert "want seqs up to 5" in team.ada.refused("release", "diff", "checkout-v2", "3..9", code=2)["message"]


def test_changed_flag_is_shown_as_a_conflict_and_the_one_who_changes_it_is_warned(team, file):
    create(team, file)
    ramp(team, "ramp", "checkout-v2", "10%")
    warned = team.ada.ok("propose", "set", "web.checkout-v2", "--owner", "grace@example.org", "--yes")
    assert "warning: release checkout-v2 is open since seq 4: a revert of it will then need" in warned.err
    proposal = warned.out.strip()
    assert "a revert of it will then need `--keep web.checkout-v2`" in team.grace.ok("approve", proposal, "--yes").err
    team.ada.ok("publish", proposal, "--yes")
    (conflict,) = team.ada.ok("release", "show", "checkout-v2", "--json").document["conflicts"]
    assert (conflict["key"], conflict["changed_at_seq"], conflict["what"]) == ("web.checkout-v2", 5, "changed")
    assert "a revert needs `--keep` for it" in team.ada.ok("release", "plan", "checkout-v2").out


def test_edit_changes_the_plan_and_its_flags(team, file, tmp_path):
    create(team, file)
    ids = team.ada.ok(
        *("release", "edit", "checkout-v2", "--flag", "mail", "--remove-flag", "newCheckout"),
        *("--stage", "5%:1h", "--stage", "100%", "--audience", "", "--ticket", "", "--yes", "--json"),
    ).document
    assert [(flag["key"], flag["change"]) for flag in ids["flags"]] == [("mail", "wire"), ("newCheckout", "unwire")]
    team.published(ids["proposals"][0]["id"])
    plan = team.ada.ok("release", "show", "checkout-v2", "--json").document["plan"]
    assert plan["flags"] == ["flags.json#cart", "cart.checkout-v2", "web.checkout-v2", "flags.json#mail"]
    assert [stage["name"] for stage in plan["stages"]] == ["5%", "100%"]
    assert "audience" not in plan
    assert "ticket" not in plan
    written = tmp_path / "as-it-is.yaml"
    written.write_text(team.ada.ok("release", "show", "checkout-v2", "--file").out)
    assert YAML(typ="safe", pure=True).load(written)["release"] == "checkout-v2"
    unchanged = team.ada.ok("release", "edit", "checkout-v2", written, "--yes")
    assert "nothing to propose: release checkout-v2 is so already (seq 4)" in unchanged.err
    assert unchanged.out == ""


def test_flags_of_an_open_release_are_not_edited(team, file):
    create(team, file)
    ramp(team, "ramp", "checkout-v2", "10%")
    error = team.ada.refused("release", "edit", "checkout-v2", "--flag", "mail", code=10)
    assert error["code"] == "release_open"
    assert team.ada.refused("release", "delete", "checkout-v2", code=10)["code"] == "release_open"


def test_file_imported_again_leaves_the_release_alone(team, file, tmp_path):
    create(team, file)
    again = team.ada.ok("import", tmp_path / "flags.json", "--prune", "--yes")
    assert "0 to add, 0 to change, 0 to delete, 3 unchanged" in again.err
    listed = {row["key"]: row["releases"] for row in team.ada.ok("flag", "list", "--json").document}
    assert listed["cart"] == ["checkout-v2"]
    assert listed["mail"] == []
    assert "in release checkout-v2 (closed)" in team.ada.ok("flag", "show", "cart").err


def test_export_carries_the_gate_so_that_flagd_serves_the_release(team, file, tmp_path):
    create(team, file)
    ramp(team, "ramp", "checkout-v2", "10%")
    exported = team.ada.ok("export").out
    assert "release.checkout-v2" not in exported
    document = json.loads(exported)
    # Read as a file of its own, it answers as the ledger does: the gate stands in each rule.
    other = Team.begun(tmp_path / "other", log_id="other")
    other.imported(write_flags(tmp_path / "exported.json", {"flags": document["flags"]}))
    for user in range(25):
        here, there = (evaluated(t, "cart", targetingKey=f"user-{user}") for t in (team, other))
        assert here == there
    assert evaluated(other, "newCheckout", targetingKey="u", email="ada@example.org") is True


def test_delete_gives_the_flags_their_rules_back(team, file):
    before = team.ada.ok("flag", "show", "newCheckout", "--json").document["definition"]
    create(team, file)
    asked = team.ada.ok("release", "delete", "checkout-v2", "--yes")
    assert "give flags.json#newCheckout its rule back as it was before the release" in asked.err
    team.published(asked.out.strip())
    assert team.ada.ok("flag", "show", "newCheckout", "--json").document["definition"] == before
    assert team.ada.ok("release", "list", "--json").document == []
    assert [event["what"] for event in team.ada.ok("release", "history", "checkout-v2", "--json").document] == [
        "created, closed",
        "deleted",
    ]


def test_cleanup_takes_the_flags_with_an_active_release(team, file):
    create(team, file)
    ramp(team, "activate", "checkout-v2")
    team.published(team.ada.ok("release", "delete", "checkout-v2", "--with-flags", "--yes").out.strip())
    assert [row["key"] for row in team.ada.ok("flag", "list", "--json").document] == ["mail"]
