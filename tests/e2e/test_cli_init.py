"""How an environment begins: two of three sign its root, wherever their keys are, and whatever is interrupted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flaghoist.codec import ROOT, decode_envelope, encode_envelope
from flaghoist.root import Root
from flaghoist.values import Role
from publisher.home import read_root
from tests.scenarios.operators import Operator
from tests.scenarios.trio import Trio

POLICY = """\
version: 1
groups:
  leads: [grace@example.org, linus@example.org]
rules:
  - name: everything
    approvals: [{count: 1, from: leads}]
"""


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return Trio.seated(tmp_path)


def test_two_of_three_sign_the_root_that_a_team_begins_with(trio: Trio) -> None:
    waiting = trio.ada.ok(*trio.init(), "--json").document
    assert (waiting["begun"], waiting["signed_by"]) == (False, ["ada@example.org"])
    assert waiting["could_sign"] == ["grace@example.org", "linus@example.org"]
    assert not (trio.directory / "ledger.db").exists()
    trio.sign_first_root(trio.grace)
    begun = trio.ada.ok(*trio.init("--signed", trio.copy("grace")), "--json").document
    assert (begun["begun"], begun["head"], begun["root_sha256"]) == (True, 1, waiting["root_sha256"])
    root = read_root(trio.root_file)
    assert root.grant(Role.ROOT).threshold == 2
    assert root.people_of(Role.ROOT) == {"ada@example.org", "grace@example.org", "linus@example.org"}
    assert root.people_of(Role.EMERGENCY) == {"ada@example.org"}


def test_init_says_who_must_sign_and_how_to_go_on(trio: Trio) -> None:
    said = trio.ada.ok(*trio.init()).err
    assert f"ask grace@example.org or linus@example.org to run `flaghoist root sign {trio.unfinished}`" in said
    assert "the same command again, with --signed" in said


def test_publisher_and_heartbeats_have_keys_of_their_own(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    root = Root.unsigned(decode_envelope(trio.unfinished.read_bytes()))
    assert root.grant(Role.PUBLISHER).key_ids == {trio.key_id("publisher")}
    assert root.grant(Role.HEARTBEAT).key_ids == {trio.key_id("heartbeat")}


def test_without_heartbeats_nobody_may_beat(trio: Trio) -> None:
    trio.ada.ok(*trio.init("--no-heartbeats"))
    root = Root.unsigned(decode_envelope(trio.unfinished.read_bytes()))
    assert not root.grant(Role.HEARTBEAT).key_ids
    assert not (trio.ada.home / "keys" / "heartbeat.pem").exists()


def test_alone_there_are_no_heartbeats_and_one_line_is_enough(tmp_path: Path) -> None:
    ada = Operator(tmp_path / "ada")
    begun = ada.ok("init", "--solo", "--person", "ada@example.org", "--yes", "--json").document
    root = read_root(Path(begun["root"]))
    assert not root.grant(Role.HEARTBEAT).key_ids
    assert root.grant(Role.ROOT).threshold == 1


@pytest.mark.parametrize("people", [1, 2])
def test_fewer_than_three_are_told_to_be_more_or_to_accept_one_signature(trio: Trio, people: int) -> None:
    cards = [word for name in ("ada", "grace")[:people] for word in ("--member", trio.card(name))]
    words = ["init", "--log-id", "small", "--ledger", trio.ledger, *cards, "--approvals", str(people - 1), "--yes"]
    message = trio.ada.refused(*words, code=2)["message"]
    assert "Add members" in message
    assert "--root-threshold 1" in message
    assert not (trio.ada.home / "keys" / "publisher.pem").exists()
    said = trio.ada.ok(*words, "--root-threshold", "1").err
    assert "warning: ROOT takes one person" in said


def test_more_signatures_than_people_are_refused(trio: Trio) -> None:
    assert "there are 3 people" in trio.ada.refused(*trio.init("--root-threshold", "4"), code=2)["message"]


def test_copies_signed_at_once_by_others_are_put_together(tmp_path: Path) -> None:
    """None of the members' keys is where the publisher runs."""
    trio = Trio.seated(tmp_path)
    machine = Operator(tmp_path / "machine")
    waiting = machine.ok(*trio.init(), "--json").document
    assert waiting["signed_by"] == []
    copies = []
    for desk in (trio.linus, trio.grace):
        copies += ["--signed", str(trio.copy(desk.desk.name))]
        trio.copy(desk.desk.name).write_bytes(Path(waiting["root"]).read_bytes())
        desk.ok("root", "sign", trio.copy(desk.desk.name), "--yes")
    assert machine.ok(*trio.init(*copies), "--json").document["begun"]


def test_a_rerun_before_all_have_signed_asks_for_the_same_bytes(trio: Trio) -> None:
    first = trio.ada.ok(*trio.init(), "--json").document["root_sha256"]
    trio.sign_first_root(trio.grace)
    assert trio.ada.ok(*trio.init(), "--json").document["root_sha256"] == first
    assert trio.ada.ok(*trio.init("--signed", trio.copy("grace")), "--json").document["root_sha256"] == first


def test_a_rerun_with_other_options_is_refused_while_a_root_waits(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    refusal = trio.ada.refused(*trio.init("--approvals", "2"), code=10)
    assert refusal["code"] == "already_begun"
    assert str(trio.unfinished) in refusal["message"]


def test_a_rerun_after_a_crash_finishes_what_was_begun(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    trio.sign_first_root(trio.grace)
    words = trio.init("--signed", trio.copy("grace"), "--json")
    first = trio.ada.ok(*words).document
    (trio.ada.home / "environments.toml").unlink()  # as if it had been killed before the last step
    assert trio.ada.ok(*words).document == first
    assert trio.ada.ok("audit", "verify", "--json").document["seq"] == 1


def test_an_edited_copy_is_refused_by_who_signs_and_by_init(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    envelope = decode_envelope(trio.unfinished.read_bytes())
    record = ROOT.decode(envelope.payload)
    edited = ROOT.encode(replace(record, expires_at=record.expires_at + 1))
    copy = trio.copy("grace")
    copy.write_bytes(encode_envelope(replace(envelope, payload=edited)))
    refusal = trio.grace.refused("root", "sign", copy, "--yes", code=10)
    assert refusal["code"] == "root_edited"
    assert "ada@example.org" in refusal["message"]
    refusal = trio.ada.refused(*trio.init("--signed", copy), code=10)
    assert refusal["code"] == "root_edited"


def test_somebody_without_a_root_key_cannot_sign(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    eve = Operator(trio.directory / "eve")
    eve.make_key("eve", "eve@example.org")
    refusal = eve.refused("root", "sign", trio.unfinished, "--yes", code=2)
    assert "no key here has role ROOT" in refusal["message"]
    refusal = eve.refused("root", "sign", trio.unfinished, "--key", "eve", "--yes", code=10)
    assert refusal["code"] == "wrong_role"
    assert "ada@example.org, grace@example.org, linus@example.org" in refusal["message"]


def test_a_first_root_that_too_few_have_signed_says_so(trio: Trio) -> None:
    trio.ada.ok(*trio.init())
    ended = trio.ada.ok("root", "show", trio.unfinished)
    assert "asks for signatures of 2 people, got 1 (ada@example.org)" in ended.err


def test_two_cards_of_one_person_are_one_person(trio: Trio) -> None:
    second = trio.ada.make_key("ada-2", "ada@example.org")
    words = ["init", "--log-id", "two", "--ledger", trio.ledger, "--yes"]
    for card in (trio.card("ada"), second, trio.card("grace")):
        words += ["--member", str(card)]
    assert "got 2: ada@example.org, grace@example.org" in trio.ada.refused(*words, code=2)["message"]


def test_a_policy_goes_into_the_first_root(trio: Trio) -> None:
    file = trio.directory / "policy.yaml"
    file.write_text(POLICY)
    trio.ada.ok(*trio.init("--policy", file))
    assert Root.unsigned(decode_envelope(trio.unfinished.read_bytes())).record.policy == POLICY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POLICY.replace("rules", "rulez"), "policy.yaml"),
        (POLICY.replace("count: 1", "count: 9"), "policy"),
        ("", "policy"),
    ],
    ids=["unreadable", "more people than there are", "empty"],
)
def test_a_policy_that_nobody_could_follow_is_refused(trio: Trio, text: str, said: str) -> None:
    file = trio.directory / "policy.yaml"
    file.write_text(text)
    assert said in trio.ada.refused(*trio.init("--policy", file), code=10)["message"]
    assert not trio.unfinished.exists()


def test_a_dry_run_makes_no_key_and_writes_no_file(trio: Trio) -> None:
    before = sorted(trio.ada.home.rglob("*"))
    planned = trio.ada.ok(*trio.init("--dry-run"), "--json").document["plan"]
    assert [power["alone"] for power in planned["stolen_key"]] == [False] * 6
    assert sorted(trio.ada.home.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--solo",),
        ("--solo", "--person", "ada@example.org", "--root-threshold", "1"),
        ("--solo", "--person", "ada@example.org", "--policy", "policy.yaml"),
        ("--log-id", "team"),
        ("--person", "ada@example.org"),
        ("--member", "ada.pub", "--heartbeat", "x.pub", "--no-heartbeats"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_a_usage_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    ada = Operator(tmp_path / "ada")
    assert ada.refused("init", *words, "--yes", code=2)["code"] == "usage"
    assert not ada.home.exists()


def test_an_everyday_key_for_emergencies_is_warned_of(trio: Trio) -> None:
    words = trio.init("--emergency", trio.card("grace"))
    assert (
        f"key {trio.key_id('grace')} (grace@example.org) is for every day and for emergencies"
        in trio.ada.ok(*words).err
    )


def test_result_is_one_document(trio: Trio) -> None:
    assert set(json.loads(trio.ada.ok(*trio.init(), "--json").out)) >= {"root", "root_sha256", "begun", "could_sign"}


def test_a_signed_copy_of_another_run_is_refused(tmp_path: Path) -> None:
    trio, other = Trio.seated(tmp_path / "one"), Trio.seated(tmp_path / "other")
    for each in (trio, other):
        each.ada.ok(*each.init())
    other.sign_first_root(other.grace)
    refusal = trio.ada.refused(*trio.init("--signed", other.copy("grace")), code=10)
    assert refusal["code"] == "root_edited"
    assert "of another run" in refusal["message"]
