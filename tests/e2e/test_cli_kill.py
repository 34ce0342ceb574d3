"""Emergencies from the command line: one key, the safe variant, in seconds; who may, how often, and what others do."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from publisher.cli import kill as kill_module
from publisher.cli.reading import send
from tests.publisher_process import running_publisher
from tests.scenarios.operators import Operator
from tests.scenarios.trio import GUARDED, Trio

FLAG = "newCheckout"
WHY = ("--reason", "orders fail")


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    trio = Trio.begun(tmp_path, "--no-heartbeats")
    trio.guarded(FLAG)
    return trio


def served(desk: Operator, flag: str = FLAG) -> Any:
    """What somebody gets whom the flag's rule turns it on for."""
    return desk.ok("flag", "eval", flag, "--context", "email=kim@example.org", "--json").document["value"]


def test_a_kill_serves_the_safe_variant_to_everybody(trio: Trio) -> None:
    assert served(trio.grace) is True
    killed = trio.ada.ok("kill", FLAG, *WHY, "--incident", "INC-7", "--yes", "--json").document
    assert served(trio.grace) is False
    assert [(kill["key"], kill["safe_variant"], kill["safe_value"]) for kill in killed["kills"]] == [
        (FLAG, "off", False)
    ]
    assert killed["emergencies"][0]["seq"] == 3
    assert killed["took_s"] >= 0
    entry = trio.ada.ok("audit", "show", "3", "--json").document
    assert (entry["policy"], entry["ticket"], entry["reason"]) == ("emergency", "INC-7", "orders fail")


def test_the_plan_says_what_is_served_now_and_whom_it_concerns(trio: Trio) -> None:
    ended = trio.ada.ok("kill", FLAG, *WHY, "--dry-run")
    assert "newCheckout: now on by default, a rule decides for some" in ended.err
    assert "→ off (false) for everybody" in ended.err
    assert "services checkout, web; owner linus@example.org" in ended.err
    assert trio.ada.ok("audit", "verify", "--json").document["seq"] == 2


def test_it_says_who_must_ratify_until_when(trio: Trio) -> None:
    ended = trio.ada.ok("kill", FLAG, *WHY, "--yes")
    assert "to be ratified by 1 of grace@example.org, linus@example.org until" in ended.err
    assert "flaghoist approve" in ended.err
    number = trio.ada.ok("history", FLAG, "--json").document[-1]
    assert (number["action"], number["after"]["flag"]["defaultVariant"]) == ("KILL", "off")


def test_a_killed_flag_is_shown_as_it_is_served(trio: Trio) -> None:
    trio.ada.ok("kill", FLAG, *WHY, "--yes")
    shown = trio.grace.ok("flag", "show", FLAG, "--json").document["definition"]["flag"]
    assert (shown["state"], shown["defaultVariant"], "targeting" in shown) == ("ENABLED", "off", False)
    assert '-    "defaultVariant": "on"' in trio.grace.ok("history", FLAG).out


def test_after_a_kill_the_flag_is_changed_as_any_other(trio: Trio) -> None:
    trio.ada.ok("kill", FLAG, *WHY, "--yes")
    asked = trio.grace.ok("propose", "set", FLAG, "--variant", "on", "--yes").out.strip()
    trio.linus.ok("approve", asked, "--yes")
    trio.ada.ok("publish", asked, "--yes")
    assert served(trio.linus) is True


def test_flags_without_a_safe_variant_are_refused_all_of_them_by_name(trio: Trio) -> None:
    bare = dict.fromkeys(("bare-1", "bare-2"), GUARDED["flag"])
    file = trio.directory / "bare.json"
    file.write_text(json.dumps({"flags": bare}))
    asked = trio.ada.ok("import", file, "--source", "bare", "--key", "ada", "--yes").out.strip()
    trio.grace.ok("approve", asked, "--yes")
    trio.ada.ok("publish", asked, "--yes")
    refusal = trio.ada.refused("kill", FLAG, "bare-1", "bare-2", *WHY, "--yes", code=10)
    assert refusal["code"] == "no_safe_variant"
    assert "bare#bare-1, bare#bare-2" in refusal["message"]
    assert "flaghoist propose set FLAG --state disabled" in refusal["hint"]
    assert served(trio.grace) is True


def test_who_has_no_emergency_key_is_told_who_has(trio: Trio) -> None:
    refusal = trio.grace.refused("kill", FLAG, *WHY, "--yes", code=2)
    assert "no key here has role EMERGENCY" in refusal["message"]
    assert "ada@example.org can kill it" in refusal["hint"]
    refusal = trio.grace.refused("kill", FLAG, *WHY, "--key", "grace", "--yes", code=10)
    assert refusal["code"] == "wrong_role"


def test_without_any_emergency_key_it_says_how_to_get_one(trio: Trio) -> None:
    trio.rotated("--revoke-role", f"EMERGENCY={trio.key_id('ada-emergency')}")
    refusal = trio.ada.refused("kill", FLAG, *WHY, "--yes", code=10)
    assert "lists no emergency key" in refusal["message"]
    assert "--grant EMERGENCY=" in refusal["hint"]


def test_an_unknown_flag_is_refused_with_what_looks_alike(trio: Trio) -> None:
    assert f"did you mean {FLAG}" in trio.ada.refused("kill", "newChekout", *WHY, "--yes", code=10)["message"]


@pytest.mark.parametrize(
    "words", [(FLAG,), (FLAG, "--reason", " "), ("--reason", "x"), (FLAG, *WHY, "--incident", "")], ids=" ".join
)
def test_a_kill_needs_a_flag_and_a_reason(trio: Trio, words: tuple[str, ...]) -> None:
    assert trio.ada.refused("kill", *words, "--yes", code=2)["code"] == "usage"


def test_more_kills_than_the_policy_allows_are_refused_and_others_named(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrules: [{name: all}]\nemergency: {kills: 1, per: 10m}\n")
    seated = Trio.seated(tmp_path)
    second = seated.grace.make_key("grace-emergency", "grace@example.org")
    options = ("--no-heartbeats", "--policy", policy, "--emergency", second)
    seated.ada.ok(*seated.init(*options))
    seated.sign_first_root(seated.grace)
    seated.ada.ok(*seated.init(*options, "--signed", seated.copy("grace")))
    seated.grace.ok("root", "pin", seated.root_file, "--ledger", seated.ledger, "--yes")
    seated.guarded("a")
    seated.guarded("b")
    seated.ada.ok("kill", "a", *WHY, "--yes")
    refusal = seated.ada.refused("kill", "b", *WHY, "--yes", code=10)
    assert "want at most 1" in refusal["message"]
    assert "grace@example.org can kill it now" in refusal["hint"]
    assert served(seated.ada, "b") is True


def test_a_release_is_killed_with_all_of_its_flags(trio: Trio) -> None:
    gated = {**GUARDED["flag"], "targeting": {"$ref": "release.summer"}}
    for name in ("one", "two"):
        file = trio.directory / f"{name}.json"
        file.write_text(json.dumps({"flag": gated, "governance": GUARDED["governance"]}))
    document = {
        "flags": {name: gated | {"targeting": {"$ref": "release.summer"}} for name in ("one", "two")},
        "$evaluators": {"release.summer": {"if": [True, "on", "off"]}},
    }
    file = trio.directory / "release.json"
    file.write_text(json.dumps(document))
    _publish(trio, "import", file, "--source", "")
    for name in ("one", "two"):
        _publish(trio, "propose", "set", name, "--definition", trio.directory / f"{name}.json")
    killed = trio.ada.ok("kill", "--release", "summer", *WHY, "--yes", "--json").document
    assert [kill["key"] for kill in killed["kills"]] == ["one", "two"]
    assert len(killed["emergencies"]) == 1
    assert served(trio.grace, "one") is False
    refusal = trio.ada.refused("kill", "--release", "winter", *WHY, "--yes", code=10)
    assert "no flag's rule refers to 'release.winter'" in refusal["message"]


def _publish(trio: Trio, *words: str | Path) -> None:
    for asked in trio.ada.ok(*words, "--key", "ada", "--yes").out.split():
        trio.grace.ok("approve", asked, "--yes")
        trio.ada.ok("publish", asked, "--yes")


def test_a_flag_that_changes_meanwhile_is_killed_as_it_is_then(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's change gets in between the signature and the entry; the first signature is then for nothing."""
    interrupted: list[bool] = []

    def send_and_change(*args: Any) -> None:
        send(*args)
        if not interrupted:
            interrupted.append(True)
            _publish(trio, "propose", "set", FLAG, "--state", "disabled")

    monkeypatch.setattr(kill_module, "send", send_and_change)
    ended = trio.ada.ok("kill", FLAG, *WHY, "--yes")
    assert "the flags have changed meanwhile: signing again" in ended.err
    assert trio.grace.ok("flag", "show", FLAG, "--json").document["definition"]["flag"]["state"] == "ENABLED"
    assert served(trio.grace) is False


def test_a_flag_that_never_holds_still_is_given_up_after_some_signatures(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["disabled", "enabled"] * kill_module.ATTEMPTS_MAX)

    def send_and_change(*args: Any) -> None:
        send(*args)
        _publish(trio, "propose", "set", FLAG, "--state", next(states))

    monkeypatch.setattr(kill_module, "send", send_and_change)
    refusal = trio.ada.refused("kill", FLAG, *WHY, "--yes", code=11)
    assert f"changed {kill_module.ATTEMPTS_MAX} times" in refusal["message"]


def test_without_a_publisher_the_kill_waits_in_the_inbox_and_says_so(trio: Trio) -> None:
    machine = Operator(trio.directory / "elsewhere")
    machine.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
    (machine.home / "keys").mkdir(mode=0o700)
    for suffix in (".pem", ".pub"):
        name = f"ada-emergency{suffix}"
        (machine.home / "keys" / name).write_bytes((trio.ada.home / "keys" / name).read_bytes())
        (machine.home / "keys" / name).chmod(0o600)
    ended = machine.run("kill", FLAG, *WHY, "--timeout", "1", "--yes")
    assert ended.code == 13
    assert "no publisher is at work" in ended.err
    assert served(trio.grace) is True
    with running_publisher(trio.ada) as service:
        service.until("emergency.applied")
    assert served(trio.grace) is False


@pytest.fixture
def beating(tmp_path: Path) -> Trio:
    trio = Trio.begun(tmp_path)
    trio.guarded(FLAG)
    return trio


def test_a_service_takes_a_kill_within_seconds_and_its_ratification_when_it_is_approved(beating: Trio) -> None:
    trio = beating
    with running_publisher(trio.ada) as service:
        service.until("publisher.started")
        killed = trio.ada.ok("kill", FLAG, *WHY, "--yes", "--json").document
        assert killed["took_s"] < 10
        assert served(trio.grace) is False
        emergency = killed["emergencies"][0]["id"]
        trio.grace.ok("approve", emergency, "--yes")
        wait_until(lambda: trio.ada.ok("audit", "log", "--json").document[0]["kind"] == "ratification")


def test_an_emergency_is_ratified_by_hand_without_a_service(trio: Trio) -> None:
    emergency = trio.ada.ok("kill", FLAG, *WHY, "--yes", "--json").document["emergencies"][0]["id"]
    trio.grace.ok("approve", emergency, "--yes")
    trio.ada.ok("publish", emergency, "--yes")
    assert trio.ada.ok("audit", "log", "--json").document[0]["kind"] == "ratification"


def wait_until(holds: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
