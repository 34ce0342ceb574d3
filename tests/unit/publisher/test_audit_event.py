"""Exported lines: golden bytes, their schemas, what each kind of entry says. `--rewrite` writes the vectors anew."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from publisher.audit.event import EventType, cloud_event, events, json_line, rfc3339
from tests import audit_story
from tests.audit_story import examined, told

REPOSITORY = Path(__file__).parents[3]
VECTORS = REPOSITORY / "tests/vectors/audit"
SCHEMAS = REPOSITORY / "docs/schema"


@pytest.fixture(scope="module")
def accounts():
    return examined(told())[1]


@pytest.fixture(scope="module")
def lines(accounts):
    return {
        "export.jsonl": [json_line(event) for account in accounts for event in events(account)],
        "export.cloudevents.jsonl": [json_line(cloud_event(e)) for account in accounts for e in events(account)],
    }


def checked(schema, *files):
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--schemafile", SCHEMAS / schema, *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def of(accounts, seq):
    return list(events(accounts[seq - 1]))


@pytest.mark.parametrize("name", ["export.jsonl", "export.cloudevents.jsonl"])
def test_the_story_gives_the_golden_bytes(name, lines, request):
    came = b"".join(lines[name])
    if request.config.getoption("--rewrite"):
        (VECTORS / name).write_bytes(came)
    assert came == (VECTORS / name).read_bytes()


def test_two_readings_give_the_same_bytes(lines):
    again = examined(told())[1]
    came = b"".join(json_line(event) for account in again for event in events(account))
    assert hashlib.sha256(came).digest() == hashlib.sha256(b"".join(lines["export.jsonl"])).digest()


@pytest.mark.parametrize(
    ("name", "schema"),
    [("export.jsonl", "audit-event.v1.json"), ("export.cloudevents.jsonl", "audit-cloudevent.v1.json")],
)
def test_every_line_is_what_its_schema_says(name, schema, lines, tmp_path):
    files = []
    for number, line in enumerate(lines[name]):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_bytes(line)
    ended = checked(schema, *files)
    assert ended.returncode == 0, ended.stdout


def test_schemas_are_schemas():
    command = [sys.executable, "-m", "check_jsonschema", "--check-metaschema", *SCHEMAS.glob("audit-*.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    "spoilt",
    [
        {"initiator": None},
        {"policy": None},
        {"before": None, "after": None},
        {"seq": 0},
        {"entry_hash": "00"},
        {"surplus": 1},
        {"kind": "rejected"},
        {"target": "EVALUATOR"},
        {"refusal": {"code": "expired", "message": "late"}},
    ],
    ids=lambda spoilt: "-".join(spoilt),
)
def test_the_schema_refuses_a_change_that_lacks_or_bends_a_fact(spoilt, accounts, tmp_path):
    file = tmp_path / "line.json"
    file.write_bytes(json_line(of(accounts, audit_story.EDITED)[0] | spoilt))
    assert checked("audit-event.v1.json", file).returncode == 1


def test_all_types_of_event_are_in_the_story(accounts):
    assert {event["type"] for account in accounts for event in events(account)} == set(EventType)


def test_a_change_has_a_line_for_each_op_with_both_whole_states(accounts):
    first, second = of(accounts, audit_story.IMPORT)
    assert (first["op"], first["key"], second["op"], second["source"]) == (0, "checkout", 1, "shop.json")
    assert first["before"] is None
    assert first["after"]["governance"]["owner"] == "ada@example.org"
    assert (first["ticket"], first["reason"], first["policy"]) == ("SHOP-1", "a test needs it", "approvals>=1")
    assert first["initiator"]["person"] == "ada@example.org"
    assert [(one["person"], one["comment"]) for one in first["approvals"]] == [
        ("grace@example.org", "read it: import shop.json")
    ]


def test_lines_follow_each_other_from_state_to_state(accounts):
    states = {}
    for account in accounts:
        for event in events(account):
            if event["target"] is not None:
                place = (event["target"], event["source"], event["key"])
                assert event["before"] == states.get(place)
                states[place] = event["after"]
    assert states[("FLAG", "shop.json", "colour")]["flag"]["defaultVariant"] == "red"


def test_a_release_is_named_by_its_gate_and_by_the_flags_that_refer_to_it(accounts):
    named = {(e["seq"], e["key"]): e["releases"] for account in accounts for e in events(account) if e["target"]}
    assert named[(audit_story.GATED, "release.checkout-v2")] == ["checkout-v2"]
    assert named[(audit_story.GATED, "checkout")] == ["checkout-v2"]
    assert named[(audit_story.KILLED, "checkout")] == ["checkout-v2"]  # what the flag referred to until then
    assert named[(audit_story.EDITED, "colour")] == []


def test_a_kill_says_what_it_made_of_the_flag(accounts):
    (event,) = of(accounts, audit_story.KILLED)
    assert (event["kind"], event["action"], event["approvals"]) == ("emergency", "KILL", [])
    assert "targeting" in event["before"]["flag"]
    assert "targeting" not in event["after"]["flag"]


def test_a_rejected_entry_says_why_and_gives_no_claim_for_a_fact(accounts):
    (by_herself,), (by_nobody,) = of(accounts, audit_story.SAME_PERSON), of(accounts, audit_story.STRANGER)
    assert (by_herself["refusal"]["code"], by_nobody["refusal"]["code"]) == ("same_person", "bad_signature")
    assert by_herself["asked"] == [{"target": "FLAG", "source": "", "key": "checkout", "action": "PUT"}]
    assert by_herself["initiator"]["person"] == "ada@example.org"
    for name in ("initiator", "title", "reason", "ticket", "policy", "before", "after"):
        assert by_nobody[name] is None
    assert by_nobody["asked"] == []
    assert (by_herself["releases"], by_nobody["releases"]) == ([], [])


def test_a_step_says_which_stage_and_which_approved_entry_allowed_it(accounts):
    (event,) = of(accounts, audit_story.STEPPED)
    assert (event["type"], event["kind"], event["release"]) == (EventType.RELEASE_CHANGED, "step", "spring")
    assert event["step"]["stage"] == 0
    assert event["step"]["expected_version"] == audit_story.WALKED
    planned = of(accounts, audit_story.WALKED)[0]
    assert event["step"]["allowed_by"] == {
        "seq": audit_story.WALKED, "proposal_id": planned["proposal_id"], "requester": "ada@example.org",
        "approvers": ["grace@example.org"], "policy": "approvals>=1",
    }  # fmt: skip
    assert (event["initiator"], event["approvals"], event["policy"]) == (None, [], None)
    assert event["before"]["release"]["gate"] == {"audience": False, "share": 0, "walk": "on"}
    assert event["after"]["release"]["gate"] == {"audience": True, "share": 0, "walk": "on"}
    (early,) = of(accounts, audit_story.TOO_EARLY)
    assert (early["refusal"]["code"], early["release"], early["releases"]) == ("not_yet", "spring", ["spring"])
    assert early["step"] == {"stage": 1, "expected_version": audit_story.STEPPED, "allowed_by": None}


def test_moments_tell_what_was_asked_for_and_since_when_it_is_served(accounts):
    (prepared,), (event,) = of(accounts, audit_story.PREPARED), of(accounts, audit_story.HOISTED)
    assert (event["lead_ms"], event["acked_percent"], event["prepared_by"]) == (2000, 95, audit_story.PREPARED)
    assert event["moment"] == event["in_force_at"] == event["published_at"] + 2000
    assert (prepared["moment"], prepared["in_force_at"], prepared["type"]) == (None, None, EventType.RELEASE_PREPARED)
    assert prepared["asked"] == [{"target": "RELEASE", "source": "", "key": "spring", "action": "PUT"}]
    assert (prepared["releases"], prepared["policy"]) == (["spring"], "approvals>=1")
    (killed,) = of(accounts, audit_story.CLOSED_AT_ONCE)
    assert (killed["moment"], killed["in_force_at"]) == (None, killed["published_at"])
    assert killed["in_force_at"] < of(accounts, audit_story.AWAITED)[0]["in_force_at"]


def test_a_drill_has_its_result_and_nobodys_approval(accounts):
    (event,) = of(accounts, audit_story.MEASURED)
    assert (event["type"], event["kind"], event["policy"]) == (EventType.RELEASE_DRILLED, "drill", "drill")
    assert (event["release"], event["approvals"]) == ("spring", [])
    assert event["after"]["drill"]["result"] == {"instances": 3, "reached": 3, "last_ms": 41}


def test_a_ratification_names_the_release_that_was_closed(accounts):
    (event,) = of(accounts, audit_story.STOOD_BEHIND)
    assert (event["ratified"]["flags"], event["ratified"]["releases"]) == ([], ["spring"])
    assert event["releases"] == ["spring"]
    (flags,) = of(accounts, audit_story.RATIFIED)
    assert flags["ratified"]["releases"] == []


@pytest.mark.parametrize(
    ("seq", "spoilt"),
    [
        (audit_story.STEPPED, {"step": None}),
        (audit_story.STEPPED, {"policy": "approvals>=1"}),
        (audit_story.STEPPED, {"kind": "change"}),
        (audit_story.STEPPED, {"gate": None}),
        (audit_story.HOISTED, {"kind": "step"}),
        (audit_story.HOISTED, {"in_force_at": None}),
        (audit_story.HOISTED, {"release": None}),
        (audit_story.HOISTED, {"target": "FLAG"}),
        (audit_story.PREPARED, {"in_force_at": 1}),
        (audit_story.PREPARED, {"asked": []}),
        (audit_story.PREPARED, {"acked_percent": None}),
        (audit_story.MEASURED, {"kind": "step"}),
        (audit_story.MEASURED, {"policy": None}),
    ],
    ids=str,
)
def test_the_schema_refuses_a_release_that_lacks_or_bends_a_fact(seq, spoilt, accounts, tmp_path):
    file = tmp_path / "line.json"
    file.write_bytes(json_line(of(accounts, seq)[0]))
    assert checked("audit-event.v1.json", file).returncode == 0
    file.write_bytes(json_line(of(accounts, seq)[0] | spoilt))
    assert checked("audit-event.v1.json", file).returncode == 1


def test_ids_are_unique_and_sequences_sort_as_the_ledger_does(lines):
    wrapped = [json.loads(line) for line in lines["export.cloudevents.jsonl"]]
    assert len({one["id"] for one in wrapped}) == len(wrapped)
    assert [one["sequence"] for one in wrapped] == sorted(one["sequence"] for one in wrapped)
    assert wrapped[1]["id"] == "staging/2/0"
    assert wrapped[2]["subject"] == "shop.json#colour"
    subjects = {(one["data"]["seq"], one["data"]["op"]): one["subject"] for one in wrapped}
    assert subjects[audit_story.STEPPED, 0] == subjects[audit_story.DRILLED, 0] == "release spring"
    assert subjects[audit_story.PREPARED, 0].startswith("proposal ")


def test_a_line_is_ascii_and_one_line_whatever_a_title_says(accounts):
    from dataclasses import replace

    one = accounts[audit_story.EDITED - 1]
    nasty = replace(one, proposal=replace(one.proposal, title="a\nb\u2028\x1b[31m\u202e é"))
    (event,) = events(nasty)
    line = json_line(event)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert json.loads(line)["title"] == "a\nb\u2028\x1b[31m\u202e é"


def test_times_are_told_to_the_millisecond_and_left_out_where_they_cannot_be():
    assert rfc3339(1_780_000_000_001) == "2026-05-28T20:26:40.001Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(2**53 - 1) is None
    wrapped = cloud_event(
        {"log_id": "staging", "seq": 1, "op": 0, "type": EventType.ENTRY_REJECTED, "time": None, "data": {}}
    )
    assert "time" not in wrapped
