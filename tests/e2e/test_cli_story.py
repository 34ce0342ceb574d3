"""The main job by the operators' commands, on a real ledger in a SQLite file."""

import json
import stat
import sys
from pathlib import Path

import pytest

from tests.scenarios.operators import FLAGS, Operator, Team, write_flags


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team.begun(tmp_path)


def test_a_change_goes_from_proposal_to_evaluation(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    assert team.ada.ok("flag", "eval", "newCheckout", "--json").document["value"] is False
    proposal = team.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip()
    assert team.ada.refused("publish", proposal, "--yes", code=10)["code"] == "not_approved"
    assert team.ada.refused("approve", proposal, "--yes", code=10)["code"] == "same_person"
    team.published(proposal)
    answer = team.grace.ok("flag", "eval", "newCheckout", "--json").document
    assert (answer["value"], answer["variant"], answer["reason"], answer["seq"]) == (True, "on", "STATIC", 3)


def test_publishing_again_says_so_and_appends_nothing(team: Team, tmp_path: Path) -> None:
    proposal = team.imported(write_flags(tmp_path / "flags.json"))
    again = team.ada.ok("publish", proposal, "--yes", "--json").document
    assert (again["already"], again["seq"]) == (True, 2)
    assert team.ada.ok("audit", "verify", "--json").document["seq"] == 2


def test_proposals_and_approvals_travel_as_files(team: Team, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    proposal, approval = tmp_path / "change.proposal", tmp_path / "change.approval"
    team.ada.ok("import", flags, "--out", proposal, "--yes")
    team.grace.ok("approve", proposal, "--out", approval, "--yes")
    assert team.ada.pending() == []
    assert team.ada.refused("publish", proposal, "--yes", code=10)["code"] == "not_approved"
    team.ada.ok("publish", proposal, "--approval", approval, "--yes")
    assert team.ada.ok("flag", "list", "--json").document[0]["version"] == 2


def test_an_edited_proposal_file_counts_for_nothing(team: Team, tmp_path: Path) -> None:
    proposal = tmp_path / "change.proposal"
    team.ada.ok("import", write_flags(tmp_path / "flags.json"), "--out", proposal, "--yes")
    proposal.write_bytes(proposal.read_bytes().replace(b"HELLO", b"hallo"))
    assert team.grace.refused("approve", proposal, "--yes", code=10)["code"] == "bad_signature"


def test_a_rejection_stops_publication_until_it_is_taken_back(team: Team, tmp_path: Path) -> None:
    proposal = team.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    team.grace.ok("approve", proposal, "--reject", "--comment", "not today", "--yes")
    (waiting,) = team.ada.pending()
    assert (waiting["status"], waiting["rejecters"]) == ("rejected", ["grace@example.org"])
    refusal = team.ada.refused("publish", proposal, "--yes", code=10)
    assert "not today" in refusal["message"]
    team.published(proposal)


def test_of_two_proposals_on_one_version_the_second_is_a_conflict(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    first, second = (
        team.ada.ok("propose", "set", "newCheckout", *change, "--yes").out.strip()
        for change in (["--variant", "on"], ["--state", "disabled"])
    )
    team.published(first)
    assert {p["id"]: p["status"] for p in team.ada.pending()} == {second: "stale"}
    team.grace.ok("approve", second, "--yes")
    assert team.ada.refused("publish", second, "--yes", code=11)["code"] == "stale_base"


def test_importing_the_same_file_again_proposes_nothing(team: Team, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    team.imported(flags)
    again = team.ada.ok("import", flags, "--yes", "--json").document
    assert (again["proposals"], again["unchanged"]) == ([], 2)


def test_only_what_differs_is_proposed_and_prune_deletes_the_rest(team: Team, tmp_path: Path) -> None:
    flags = tmp_path / "flags.json"
    team.imported(write_flags(flags))
    changed = {"flags": {"newCheckout": {**FLAGS["flags"]["newCheckout"], "defaultVariant": "on"}}}
    write_flags(flags, changed)
    kept = team.ada.ok("import", flags, "--dry-run", "--json").document
    assert [(s["verb"], s["key"]) for s in kept["plan"]] == [("change", "newCheckout")]
    pruned = team.ada.ok("import", flags, "--dry-run", "--prune", "--json").document
    assert [(s["verb"], s["key"]) for s in pruned["plan"]] == [("change", "newCheckout"), ("delete", "greeting")]


def test_a_large_file_becomes_several_proposals_published_in_order(team: Team, tmp_path: Path) -> None:
    flag = FLAGS["flags"]["newCheckout"]
    ended = team.ada.ok(
        "import", write_flags(tmp_path / "many.json", {"flags": {f"f{n}": flag for n in range(501)}}), "--yes"
    )
    proposals = ended.out.split()
    assert len(proposals) == 2
    assert "2 proposals" in ended.err
    for proposal in proposals:
        team.published(proposal)
    assert len(team.ada.ok("flag", "list", "--json").document) == 501


def test_a_file_can_come_from_stdin(team: Team) -> None:
    ended = team.ada.run_process("import", "-", "--yes", "--json", stdin=json.dumps(FLAGS).encode())
    assert ended.code == 0, ended
    assert ended.document["add"] == 2


def test_a_dry_run_changes_nothing(team: Team, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    team.ada.ok("import", flags, "--dry-run")
    assert team.ada.pending() == []
    proposal = team.ada.ok("import", flags, "--yes").out.strip()
    team.grace.ok("approve", proposal, "--dry-run")
    assert [waiting["approvers"] for waiting in team.ada.pending()] == [[]]
    team.grace.ok("approve", proposal, "--yes")
    team.ada.ok("publish", proposal, "--dry-run")
    assert team.ada.ok("audit", "verify", "--json").document["records"] == {"advanced": 1}


def test_history_tells_each_change_with_people_and_diff(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    team.published(
        team.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--title", "go", "--yes").out.strip()
    )
    team.published(team.ada.ok("propose", "delete", "newCheckout", "--yes").out.strip())
    changes = team.ada.ok("history", "newCheckout", "--json").document
    assert [(c["seq"], c["action"], c["approvers"]) for c in changes] == [
        (2, "PUT", ["grace@example.org"]),
        (3, "PUT", ["grace@example.org"]),
        (4, "DELETE", ["grace@example.org"]),
    ]
    assert '-    "defaultVariant": "off"' in team.ada.ok("history", "newCheckout").out
    assert team.ada.refused("flag", "show", "newCheckout", code=10)["code"] == "unknown_flag"


def test_a_deleted_flag_can_be_made_again(team: Team, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    team.imported(flags)
    team.published(team.ada.ok("propose", "delete", "newCheckout", "--yes").out.strip())
    team.imported(flags)
    assert team.ada.ok("flag", "show", "newCheckout", "--json").document["last"]["seq"] == 4


def test_audit_log_tells_who_asked_and_who_approved(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    entries = team.ada.ok("audit", "log", "--reverse", "--json").document
    assert [entry["kind"] for entry in entries] == ["root", "change"]
    assert entries[1]["requester"] == "ada@example.org"
    assert entries[1]["approvers"] == ["grace@example.org"]


def test_doctor_finds_nothing_wrong_after_a_publication(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    checks = team.ada.ok("doctor", "--json").document
    assert {check["health"] for check in checks} == {"ok"}, checks


def test_doctor_names_the_chmod_for_a_loose_key(team: Team) -> None:
    key = team.ada.home / "keys" / "ada.pem"
    key.chmod(0o644)
    ended = team.ada.run("doctor", "--json")
    assert ended.code == 2
    assert next(c for c in ended.document if c["check"] == "key ada")["todo"] == f"chmod 600 {key}"


def test_solo_needs_no_approval_and_says_so_loudly(tmp_path: Path) -> None:
    ada = Operator(tmp_path / "ada")
    assert "nothing in solo needs an approval" in ada.ok("init", "--solo", "--person", "ada@example.org", "--yes").err
    proposal = ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    ada.ok("publish", proposal, "--yes")
    assert len(ada.ok("flag", "list", "--json").document) == 2


def test_init_run_again_finishes_and_begins_nothing_twice(tmp_path: Path) -> None:
    ada = Operator(tmp_path / "ada")
    init = ("init", "--solo", "--person", "ada@example.org", "--yes", "--json")
    first = ada.ok(*init).document
    (ada.home / "environments.toml").unlink()  # as if it had been killed before the last step
    assert ada.ok(*init).document == first


def test_init_over_another_ledger_is_refused(tmp_path: Path) -> None:
    team = Team.begun(tmp_path)
    eve = Operator(tmp_path / "eve")
    card = eve.make_key("eve", "eve@example.org")
    members = ("--member", card, "--approvals", "0", "--root-threshold", "1")
    refusal = eve.refused("init", "--log-id", "other", "--ledger", team.ledger, *members, "--yes", code=10)
    assert refusal["code"] == "already_begun"
    assert team.ada.ok("audit", "verify", "--json").document["records"] == {"advanced": 1}


def test_the_pin_of_an_environment_is_never_replaced(tmp_path: Path) -> None:
    one, other = Team.begun(tmp_path / "one"), Team.begun(tmp_path / "other")
    root = other.ada.home / "roots" / "staging.root"
    assert one.grace.refused("root", "pin", root, "--ledger", other.ledger, "--yes", code=10)["code"] == "already_begun"


def test_what_is_written_is_private(team: Team) -> None:
    for path in (team.ada.home / "environments.toml", team.ada.home / "roots" / "staging.root"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_edit_opens_again_with_the_fault_and_proposes_the_corrected_flag(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1]); text = path.read_text()\n"
        "again = text.startswith('//')\n"
        "assert not again or 'maybe' in text.splitlines()[0]\n"
        "old, new = ('maybe', 'on') if again else ('Variant\": \"off', 'Variant\": \"maybe')\n"
        "path.write_text(text.replace(old, new, 2 if again else 1))\n"
    )
    team.ada.environ["EDITOR"] = f"{sys.executable} {editor}"
    team.ada.environ["VISUAL"] = ""
    ended = team.ada.ok("propose", "edit", "newCheckout", "--yes", "--json").document
    assert ended["change"] == 1
    team.published(ended["proposals"][0]["id"])
    assert team.ada.ok("flag", "eval", "newCheckout", "--json").document["value"] is True


def test_an_unchanged_edit_proposes_nothing(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    team.ada.environ["EDITOR"] = "true"
    assert "unchanged" in team.ada.ok("propose", "edit", "newCheckout", "--yes").err


def test_eval_takes_context_as_json_file_and_pairs(team: Team, tmp_path: Path) -> None:
    team.imported(write_flags(tmp_path / "flags.json"))
    context = tmp_path / "context.json"
    context.write_text('{"email": "grace@example.org"}')
    for given in (f"@{context}", context.read_text(), "email=grace@example.org"):
        assert team.ada.ok("flag", "eval", "greeting", "--context", given).out == '"HELLO"\n'
    assert team.ada.ok("flag", "eval", "greeting").out == '"hello"\n'


def test_escape_sequences_in_other_peoples_text_are_spelled_out(team: Team, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    proposal = team.ada.ok("import", flags, "--title", "hi \x1b[2J\u202e there\n  digest ff", "--yes").out.strip()
    shown = team.grace.ok("approve", proposal, "--yes").err
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\u001b[2J\\u202e there digest ff" in shown


def test_no_terminal_and_no_yes_ends_with_usage(team: Team, tmp_path: Path) -> None:
    assert "--yes" in team.ada.refused("import", write_flags(tmp_path / "flags.json"), code=2)["message"]
    assert team.ada.pending() == []
