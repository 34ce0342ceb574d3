"""How roots move on: proposed, shown, signed by two of three, published; and what is refused on the way."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flaghoist.codec import ENTRY, ROOT, decode_envelope, encode_envelope
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.signing import seal
from publisher.cli.workspace import Workspace
from publisher.keys import unlock
from tests.publisher_process import running_publisher
from tests.scenarios.operators import PASSPHRASE, Operator
from tests.scenarios.trio import Trio

DAY_MS = 86_400_000
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
    return Trio.begun(tmp_path, "--no-heartbeats")


@pytest.fixture
def in_days(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the operators' clock so many days ahead."""

    def ahead(days: int) -> None:
        monkeypatch.setattr(Workspace, "now_ms", staticmethod(lambda: time.time_ns() // 1_000_000 + days * DAY_MS))

    return ahead


# --- the way of a root ---


def test_a_root_takes_two_of_three_and_then_counts(trio: Trio) -> None:
    proposed = trio.proposed("--threshold", "APPROVER=2")
    assert trio.ada.refused("root", "publish", proposed, "--yes", code=10)["code"] == "not_approved"
    signed = trio.linus.ok("root", "sign", proposed, "--yes", "--json").document
    assert (signed["signed_by"], signed["missing"]) == (["grace@example.org", "linus@example.org"], [])
    published = trio.ada.ok("root", "publish", "--yes", "--json").document
    assert (published["version"], published["seq"], published["already"]) == (2, 2, False)
    for desk in (trio.ada, trio.grace, trio.linus):
        shown = desk.ok("root", "show", "--json").document
        assert (shown["version"], shown["standing"]) == (2, "in force")
        assert shown["roles"]["APPROVER"]["threshold"] == 2


def test_a_new_member_may_propose_and_the_pinned_root_of_others_stays_valid(trio: Trio) -> None:
    ken = Operator(trio.directory / "ken")
    card = ken.make_key("ken", "ken@example.org")
    ken.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    flags = trio.directory / "flags.json"
    flags.write_text('{"flags": {"a": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}}}')
    assert "no key here has role REQUESTER" in ken.refused("import", flags, "--yes", code=2)["message"]
    trio.rotated("--add-member", card)
    proposal = ken.ok("import", flags, "--yes").out.strip()
    trio.grace.ok("approve", proposal, "--yes")
    trio.ada.ok("publish", proposal, "--yes")
    assert [flag["key"] for flag in trio.linus.ok("flag", "list", "--json").document] == ["a"]


def test_the_plan_says_who_gains_what_and_what_a_stolen_key_could_do(trio: Trio) -> None:
    eve = Operator(trio.directory / "ken").make_key("ken", "ken@example.org")
    ended = trio.grace.ok("root", "propose", "--add-member", eve, "--remove-person", "ada@example.org",
                          "--grant", f"ROOT={eve}", "--dry-run")  # fmt: skip
    assert "+ ken@example.org (ED25519 key" in ended.err
    assert "gains ROOT, REQUESTER, APPROVER" in ended.err
    assert "- ada@example.org (ED25519 key" in ended.err
    assert "loses EMERGENCY" in ended.err
    assert "sign roots, which take 2 people" in ended.err
    assert "order, delay and withhold changes" in ended.err
    lowered = trio.grace.ok("root", "propose", "--threshold", "ROOT=1", "--threshold", "APPROVER=0", "--dry-run")
    assert "ALONE: make a root of their own; change any flag" in lowered.err
    assert "warning: no change needs an approval" in lowered.err


def test_signers_are_shown_what_the_proposer_was_shown(trio: Trio) -> None:
    shown = trio.grace.ok("root", "propose", "--threshold", "APPROVER=2", "--yes").err
    signing = trio.linus.ok("root", "sign", "--dry-run").err
    plan = shown.split("version 2 is signed by")[0].splitlines()
    assert signing.splitlines()[: len(plan)] == plan


def test_without_options_a_root_is_renewed(trio: Trio) -> None:
    ended = trio.grace.ok("root", "propose", "--expires-days", "30", "--yes")
    assert "nothing changes but how long it lasts" in ended.err
    trio.linus.ok("root", "sign", "--yes")
    trio.ada.ok("root", "publish", "--yes")
    assert "it expires in" in trio.ada.ok("root", "show").err


def test_an_expired_root_allows_its_successor_and_nothing_else(trio: Trio, in_days: Callable[[int], None]) -> None:
    in_days(400)
    flag = trio.directory / "flag.json"
    flag.write_text('{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}')
    asked = trio.ada.ok("propose", "set", "a", "--definition", flag, "--key", "ada", "--yes").out.strip()
    trio.grace.ok("approve", asked, "--yes")
    assert trio.ada.refused("publish", asked, "--yes", code=10)["code"] == "expired"
    assert "it has expired" in trio.ada.ok("root", "show").err
    assert trio.rotated()["version"] == 2
    assert "expired" not in trio.ada.ok("root", "show").err


def test_a_proposed_root_that_waited_too_long_is_not_signed(trio: Trio, in_days: Callable[[int], None]) -> None:
    proposed = trio.proposed("--expires-days", "5")
    in_days(6)
    refusal = trio.linus.refused("root", "sign", proposed, "--yes", code=10)
    assert refusal["code"] == "expired"
    assert "root propose" in refusal["hint"]


def test_publishing_again_finds_what_was_published(trio: Trio) -> None:
    proposed = trio.rotated("--threshold", "APPROVER=2")["sha256"]
    assert trio.ada.ok("root", "publish", proposed, "--yes", "--json").document["already"]
    assert trio.ada.refused("root", "publish", "--yes", code=10)["code"] == "unknown_root"


def test_roots_travel_as_files_signed_at_once(trio: Trio) -> None:
    root = trio.directory / "next.root"
    machine = Operator(trio.directory / "machine")
    machine.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    said = machine.ok("root", "propose", "--threshold", "APPROVER=2", "--out", root, "--yes").err
    assert "it stays unsigned" in said
    signed = [trio.directory / f"{name}-signed.root" for name in ("grace", "linus")]
    for desk, out in zip((trio.grace, trio.linus), signed, strict=True):
        desk.ok("root", "sign", root, "--out", out, "--yes")
    assert trio.ada.refused("root", "publish", signed[0], "--yes", code=10)["code"] == "not_approved"
    assert trio.ada.ok("root", "publish", *signed, "--yes", "--json").document["version"] == 2


def test_a_publishers_service_appends_the_root_and_the_command_waits_for_it(tmp_path: Path) -> None:
    trio = Trio.begun(tmp_path)
    with running_publisher(trio.ada) as service:
        service.until("publisher.started")
        trio.linus.ok("root", "sign", trio.proposed("--threshold", "APPROVER=2"), "--yes")
        service.until("root.changed", version=2)
        # Handed over by somebody who has no publisher's key, and files instead of an inbox.
        root = trio.directory / "third.root"
        trio.grace.ok("root", "propose", "--threshold", "APPROVER=1", "--out", root, "--yes")
        trio.linus.ok("root", "sign", root, "--out", root.with_suffix(".signed"), "--yes")
        ended = trio.linus.ok("root", "publish", root, root.with_suffix(".signed"), "--yes", "--json")
    assert "handed over to the publisher at work" in ended.err
    assert ended.document["version"] == 3


def test_without_a_service_and_without_its_key_a_root_is_not_published(tmp_path: Path) -> None:
    trio = Trio.begun(tmp_path)
    trio.linus.ok("root", "sign", trio.proposed(), "--yes")
    refusal = trio.linus.refused("root", "publish", "--yes", code=2)
    assert "no key here has role PUBLISHER" in refusal["message"]
    assert "flaghoist publisher" in refusal["hint"]


# --- what is refused ---


def test_a_root_proposed_on_an_older_one_must_be_proposed_again(trio: Trio) -> None:
    late = trio.directory / "late.root"
    trio.grace.ok("root", "propose", "--threshold", "APPROVER=2", "--out", late, "--yes")
    trio.rotated()
    for words in (("root", "sign", late), ("root", "publish", late)):
        desk = trio.linus if "sign" in words else trio.ada
        refusal = desk.refused(*words, "--yes", code=10)
        assert "want version 3" in refusal["message"]
        assert "propose it again" in refusal["hint"]


def test_an_edited_root_is_refused_by_who_signs_and_who_publishes(trio: Trio) -> None:
    file = trio.directory / "next.root"
    trio.grace.ok("root", "propose", "--out", file, "--yes")
    envelope = decode_envelope(file.read_bytes())
    record = ROOT.decode(envelope.payload)
    edited = ROOT.encode(replace(record, expires_at=record.expires_at + 1))
    file.write_bytes(encode_envelope(replace(envelope, payload=edited)))
    for desk, command in ((trio.linus, "sign"), (trio.ada, "publish")):
        refusal = desk.refused("root", command, file, "--yes", code=10)
        assert refusal["code"] == "root_edited"
        assert "grace@example.org" in refusal["message"]
    assert trio.linus.refused("root", "show", file, code=10)["code"] == "root_edited"


def test_files_of_two_different_roots_are_not_put_together(trio: Trio) -> None:
    files = [trio.directory / f"{n}.root" for n in "ab"]
    for days, file in zip(("100", "200"), files, strict=True):
        trio.grace.ok("root", "propose", "--expires-days", days, "--out", file, "--yes")
    assert "got 2 different ones" in trio.ada.refused("root", "publish", *files, "--yes", code=10)["message"]


def test_of_two_roots_that_wait_one_must_be_named(trio: Trio) -> None:
    one, other = trio.proposed("--expires-days", "100"), trio.proposed("--expires-days", "200")
    message = trio.linus.refused("root", "sign", "--yes", code=10)["message"]
    assert one[:16] in message
    assert other[:16] in message
    trio.linus.ok("root", "sign", one[:8], "--yes")


def test_a_stranger_neither_proposes_nor_signs(trio: Trio) -> None:
    eve = Operator(trio.directory / "eve")
    eve.make_key("eve", "eve@example.org")
    eve.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    assert "no key here has role ROOT" in eve.refused("root", "propose", "--yes", code=2)["message"]
    assert eve.refused("root", "propose", "--key", "eve", "--yes", code=10)["code"] == "wrong_role"
    trio.proposed()
    refusal = eve.refused("root", "sign", "--key", "eve", "--yes", code=10)
    assert refusal["code"] == "wrong_role"
    assert "grace@example.org" in refusal["message"]


def test_signing_twice_does_not_count_twice(trio: Trio) -> None:
    proposed = trio.proposed()
    ended = trio.grace.ok("root", "sign", proposed, "--yes", "--json")
    assert "has signed it already" in ended.err
    assert [missing["people_missing"] for missing in ended.document["missing"]] == [1, 1]
    assert trio.ada.refused("root", "publish", proposed, "--yes", code=10)["code"] == "not_approved"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--remove-person", "ada@example.org", "--remove-person", "grace@example.org"], "threshold 2, but 1 people"),
        (["--remove-person", "nobody@example.org"], "want somebody whom the root lists"),
        (["--threshold", "ROOT=4"], "threshold 4, but 3 people"),
        (["--threshold", "ROOT=0"], "want a threshold of at least 1"),
        (["--threshold", "APPROVER=3"], "nobody could have a change approved"),
        (["--threshold", "PUBLISHER=2"], "one signature is enough by design"),
        (["--add-member", "{ada}"], "want a new member"),
        (["--replace-key", "{id:ada}", "{grace}"], "want a card of ada@example.org"),
        (["--replace-key", "{id:ada}", "{ada}"], "got the same"),
        (["--revoke-role", "PUBLISHER={id:publisher}"], "PUBLISHER"),
        (["--revoke-role", "EMERGENCY={id:grace}"], "has no role EMERGENCY"),
        (["--revoke", "{id:publisher}", "--reason", "stolen"], "PUBLISHER"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_lock_people_out_or_is_not_meant_is_refused(trio: Trio, words: list[str], said: str) -> None:
    names = {f"id:{name}": trio.key_id(name) for name in ("ada", "grace", "publisher")}
    names |= {name: str(trio.card(name)) for name in ("ada", "grace")}
    for name, value in names.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    refusal = trio.grace.refused("root", "propose", *words, "--yes", code=10)
    assert said in refusal["message"]
    assert refusal["hint"]


@pytest.mark.parametrize(
    "words",
    [
        ["--reason", "x"],
        ["--revoke", "0123456789abcdef0123456789abcdef"],
        ["--revoke", "0123456789abcdef0123456789abcdef", "--reason", "x"],
        ["--distrust-from", "3"],
        ["--threshold", "KING=1"],
        ["--threshold", "ROOT=many"],
        ["--grant", "EMERGENCY"],
        ["--policy", "p.yaml", "--no-policy"],
        ["--key", "grace", "--expires-days", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(trio: Trio, words: list[str]) -> None:
    assert trio.grace.refused("root", "propose", *words, "--yes", code=2)["code"] == "usage"


def test_a_policy_is_shown_as_a_diff_and_a_bad_one_refused(trio: Trio) -> None:
    file = trio.directory / "policy.yaml"
    file.write_text(POLICY.replace("count: 1", "count: 7"))
    assert "policy" in trio.grace.refused("root", "propose", "--policy", file, "--yes", code=10)["message"]
    file.write_text(POLICY)
    assert "+  - name: everything" in trio.grace.ok("root", "propose", "--policy", file, "--dry-run").err
    trio.rotated("--policy", file)
    assert trio.ada.ok("root", "show", "--json").document["policy"]["rules"] == ["everything"]
    trio.rotated("--no-policy")
    assert trio.ada.ok("root", "show", "--json").document["policy"] is None


# --- keys that are lost or stolen ---


def test_a_lost_publisher_key_is_replaced_by_one_that_publishes_its_own_root(trio: Trio) -> None:
    machine = Operator(trio.directory / "machine")
    machine.make_key("publisher", "publisher")
    card = machine.home / "keys" / "publisher.pub"
    machine.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    proposed = trio.proposed("--replace-key", trio.key_id("publisher")[:8], card)
    trio.linus.ok("root", "sign", proposed, "--yes")
    assert machine.ok("root", "publish", "--yes", "--json").document["version"] == 2
    roles = {key["key_id"]: key["roles"] for key in machine.ok("root", "show", "--json").document["keys"]}
    assert roles[json.loads(card.read_text())["key_id"]] == ["PUBLISHER"]
    assert trio.key_id("publisher") not in roles


def test_what_a_stolen_key_asked_for_is_listed_with_what_to_do(trio: Trio) -> None:
    trio.guarded()
    revoked = ["--revoke", trio.key_id("ada"), "--reason", "laptop stolen", "--distrust-from", "2"]
    said = trio.grace.ok("root", "propose", *revoked, "--dry-run").err
    assert "is revoked for ever: laptop stolen" in said
    assert "what it signed from seq 2 on is to be looked at again" in said
    proposed = trio.proposed(*revoked)
    trio.linus.ok("root", "sign", proposed, "--yes")
    ended = trio.ada.ok("root", "publish", proposed, "--yes")
    assert "seq 2 by key" in ended.err
    assert "ada@example.org (laptop stolen): in force: newCheckout" in ended.err
    assert "flaghoist history newCheckout" in ended.err
    again = trio.ada.ok("root", "publish", proposed, "--yes", "--json").document
    assert [(taint["seq"], [s["key"] for s in taint["in_force"]]) for taint in again["tainted"]] == [
        (2, ["newCheckout"])
    ]
    shown = trio.ada.ok("root", "show", "--json").document
    assert shown["revoked"] == [{"key_id": trio.key_id("ada"), "reason": "laptop stolen", "distrust_from_seq": 2}]
    refusal = trio.grace.refused("root", "propose", "--add-member", trio.card("ada"), "--yes", code=10)
    assert "was revoked: laptop stolen" in refusal["message"]


def test_a_revoked_key_that_must_sign_once_more_is_warned_of(trio: Trio) -> None:
    ken = Operator(trio.directory / "ken").make_key("ken", "ken@example.org")
    words = ["--grant", f"ROOT={ken}", "--threshold", "ROOT=2"]
    for name in ("ada", "linus"):
        words += ["--revoke", trio.key_id(name)]
    words += ["--add-member", str(ken), "--reason", "both stolen"]
    said = trio.grace.ok("root", "propose", *words, "--dry-run").err
    assert "a revoked key must sign once more" in said


def test_a_root_without_the_forging_key_ends_a_quarantine(trio: Trio) -> None:
    trio.guarded()
    asyncio.run(_equivocate(trio))
    refusal = trio.grace.refused("flag", "list", code=10)
    assert refusal["code"] == "broken_chain"
    still = trio.proposed()
    trio.linus.ok("root", "sign", still, "--yes")
    assert "want one without the keys" in trio.ada.refused("root", "publish", still, "--yes", code=10)["message"]
    machine = Operator(trio.directory / "machine")
    card = machine.make_key("publisher", "publisher")
    machine.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    old = trio.key_id("publisher")
    cure = trio.proposed("--replace-key", old, card, "--revoke", old, "--reason", "signed two histories")
    trio.linus.ok("root", "sign", cure, "--yes")
    machine.ok("root", "publish", cure, "--yes")
    assert [flag["key"] for flag in trio.grace.ok("flag", "list", "--json").document] == ["newCheckout"]


async def _equivocate(trio: Trio) -> None:
    """Sign another entry for the place of the newest one, with the publisher's own key."""
    held = unlock(trio.ada.home / "keys" / "publisher.pem", lambda: PASSPHRASE.encode())
    async with open_log(trio.ledger)(Stream.LEDGER) as log:
        newest = [record.value async for record in read_to_end(log)][-1]
        entry = ENTRY.decode(decode_envelope(newest).payload)
        await log.append(encode_envelope(seal(ENTRY, replace(entry, published_at=entry.published_at + 1), [held])))


# --- looking ---


def test_history_tells_who_signed_each_version_and_an_earlier_one_is_shown(trio: Trio) -> None:
    trio.rotated("--threshold", "APPROVER=2")
    document = trio.ada.ok("root", "show", "--history", "--json").document
    assert [(v["version"], v["signed_by"]) for v in document["history"]] == [
        (1, ["ada@example.org", "grace@example.org"]),
        (2, ["grace@example.org", "linus@example.org"]),
    ]
    first = trio.ada.ok("root", "show", "--at", "1", "--json").document
    assert (first["version"], first["standing"], first["roles"]["APPROVER"]["threshold"]) == (1, "earlier", 1)
    assert trio.ada.refused("root", "show", "--at", "3", code=10)["code"] == "unknown_root"
    assert "VERSION  DIGEST" in trio.ada.ok("root", "show", "--history").out


def test_one_who_runs_the_publisher_with_their_own_key_is_warned_of(trio: Trio) -> None:
    trio.rotated("--grant", f"PUBLISHER={trio.key_id('linus')}")
    assert "linus@example.org holds PUBLISHER and" in trio.ada.ok("root", "show").err


# --- pins ---


def test_a_root_is_pinned_by_its_digest_alone(trio: Trio) -> None:
    digest = trio.rotated("--threshold", "APPROVER=2")["sha256"]
    ken = Operator(trio.directory / "ken")
    pinned = ken.ok("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes", "--json").document
    assert pinned["version"] == 2
    assert ken.ok("root", "show", "--json").document["sha256"] == digest
    assert ken.ok("audit", "verify", "--json").document["seq"] == 2


@pytest.mark.parametrize("digest", ["00" * 32, "zz", "abcd"])
def test_a_digest_that_the_ledger_does_not_state_is_refused(trio: Trio, digest: str) -> None:
    ken = Operator(trio.directory / "ken")
    ken.refused("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes", code=2)
    assert not (ken.home / "environments.toml").exists()


def test_a_pin_moves_forward_along_its_chain_and_never_back(trio: Trio) -> None:
    digest = trio.rotated()["sha256"]
    first = trio.directory / "first.root"
    first.write_bytes(trio.root_file.read_bytes())
    trio.grace.ok("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes")
    assert trio.grace.ok("flag", "list", "--json").document == []
    assert (
        trio.grace.refused("root", "pin", first, "--ledger", trio.ledger, "--yes", code=10)["code"] == "already_begun"
    )


def test_a_ledger_that_ends_before_the_pinned_root_is_refused(trio: Trio, tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes((tmp_path / "ledger.db").read_bytes())
    digest = trio.rotated()["sha256"]
    ken = Operator(tmp_path / "ken")
    ken.ok("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes")
    root = ken.home / "roots" / "production.root"
    old = f"sqlite:///{tmp_path}/old.db"
    assert ken.refused("flag", "list", "--ledger", old, "--root", root, code=2)["code"] == "root_unknown"


def test_doctor_looks_at_the_root_in_force_and_not_at_an_old_pin(trio: Trio, in_days: Callable[[int], None]) -> None:
    trio.rotated("--expires-days", "800")
    in_days(400)  # the pinned root has expired
    checks = {check["check"]: check for check in trio.grace.ok("doctor", "--json").document}
    assert checks["root in force"]["health"] == "ok"
    in_days(790)
    checks = {check["check"]: check for check in trio.grace.ok("doctor", "--json").document}
    assert "root propose" in checks["root in force"]["todo"]
    in_days(900)
    assert trio.grace.run("doctor").code == 10


def test_a_root_that_was_made_on_another_history_is_not_signed(trio: Trio, tmp_path: Path) -> None:
    """Somebody shows Grace a copy of the ledger in which another change was published."""
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "ledger.db").read_bytes())
    journals = trio.ada.home / "state" / "journals"
    before = {path: path.read_bytes() for path in journals.iterdir()}
    trio.guarded("a")
    for path, data in before.items():
        path.write_bytes(data)
    there = ("--ledger", f"sqlite:///{copy}", "--root", trio.root_file)
    file = tmp_path / "next.root"
    asked = trio.ada.ok("propose", "set", "b", "--definition", tmp_path / "a.json", "--key", "ada", *there, "--yes")
    trio.grace.ok("approve", asked.out.strip(), *there, "--yes")
    trio.ada.ok("publish", asked.out.strip(), *there, "--yes")
    trio.grace.ok("root", "propose", *there, "--out", file, "--yes")
    for desk, command in ((trio.linus, "sign"), (trio.ada, "publish")):
        refusal = desk.refused("root", command, file, "--yes", code=10)
        assert refusal["code"] == "wrong_root"
        assert "another history" in refusal["message"]


def test_a_root_that_is_only_written_down_in_the_ledger_is_not_in_force(trio: Trio, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    old.write_bytes((tmp_path / "ledger.db").read_bytes())
    digest = trio.rotated()["sha256"]
    ken = Operator(tmp_path / "ken")
    ken.ok("root", "pin", f"sha256:{digest}", "--ledger", trio.ledger, "--yes")
    asyncio.run(_write_down(trio.ledger, f"sqlite:///{old}"))
    words = ("--ledger", f"sqlite:///{old}")
    refusal = ken.refused("flag", "list", *words, "--root", ken.home / "roots" / "production.root", code=2)
    assert refusal["code"] == "root_unknown"
    assert "want it in force, got a ledger that ends at seq 1 with version 1" in refusal["message"]
    eve = Operator(tmp_path / "eve")
    refusal = eve.refused("root", "pin", f"sha256:{digest}", *words, "--yes", code=2)
    assert refusal["code"] == "root_unknown"


async def _write_down(ledger: str, elsewhere: str) -> None:
    """Copy the newest entry without its signature, as anybody can who writes to the log."""
    async with open_log(ledger)(Stream.LEDGER) as log:
        newest = [record.value async for record in read_to_end(log)][-1]
    async with open_log(elsewhere)(Stream.LEDGER) as log:
        await log.append(encode_envelope(replace(decode_envelope(newest), signatures=())))
