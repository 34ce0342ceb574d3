"""The audit commands on a ledger in which everything happens once (tests/audit_story.py)."""

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flaghoist.records import EpochClaim, Release
from publisher.audit.event import events, json_line
from tests import audit_story
from tests.audit_story import LAST, auditor, change, examined, told, write_more
from tests.forge import ADA, Forge, boolean_flag
from tests.scenarios.operators import Operator

NEXT = str(LAST + 1)


@pytest.fixture(scope="module")
def story() -> Forge:
    return told()


@pytest.fixture(scope="module")
def ada(story: Forge, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """Somebody who has pinned the story's first root."""
    return auditor(tmp_path_factory.mktemp("audit"), story.first_root, story.records)


def cut(directory: Path, *, after: int) -> None:
    """Take the records behind a position out of an auditor's ledger."""
    with closing(sqlite3.connect(directory / "ledger.db")) as database, database:
        assert database.execute("DELETE FROM ledger_record WHERE position > ?", (after,)).rowcount


def audit(operator: Operator, *args: str) -> Any:
    return operator.ok("audit", *args, "--json").document


def seqs(entries: Any) -> list[int]:
    return [entry["seq"] for entry in entries]


# --- log ---


def test_log_is_newest_first_and_reverse_oldest_first(ada: Operator) -> None:
    assert seqs(audit(ada, "log")) == list(range(LAST, 0, -1))
    assert seqs(audit(ada, "log", "--reverse", "--limit", "3")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--flag", "checkout"], [2, 3, 8, 9, 10]),
        (["--flag", "shop.json#col*"], [2, 5, 6, 7]),
        (["--flag", "colour", "--flag", "late"], [2, 5, 6, 7, 14]),
        (["--release", "spring"], list(range(15, 32))),
        (["--release", "spring", "--kind", "step", "--kind", "rollback"], [17, 19, 25]),
        (["--kind", "preparation", "--kind", "drill"], [21, 26, 27, 28]),
        (["--release", "checkout-v2"], [3, 4, 8, 9]),
        (["--release", "checkout"], []),
        (["--person", "linus@example.org"], [3, 4, 5, 7]),
        (["--person", "ada@*", "--kind", "root", "--kind", "rejected"], [1, 10, 13, 20, 24]),
        (["--kind", "emergency", "--kind", "ratification"], [8, 9, 30, 31]),
        (["--kind", "epoch"], [12]),
        (["--since", "2026-05-29"], list(range(5, LAST + 1))),
        (["--until", "2026-05-28"], [1, 2, 3, 4]),
        (["--since", "2026-05-28T22:26:40Z", "--until", "2026-05-28T23:26:40Z"], [3, 4]),
        (["--since", "2026-05-29T00:26:40+02:00", "--until", "2026-05-29T01:26:40+02:00"], [3, 4]),
        (["--since", "7d"], []),
        (["--until", "1d", "--limit", "2", "--kind", "change"], [2, 3]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_filters_find_what_they_say(filters: list[str], found: list[int], ada: Operator) -> None:
    assert seqs(audit(ada, "log", "--reverse", *filters)) == found


def test_log_tells_nothing_found_from_nothing_there(ada: Operator) -> None:
    assert "no such entry among 31" in ada.ok("audit", "log", "--flag", "nothing").err


def test_a_time_that_is_none_is_refused_with_the_forms(ada: Operator) -> None:
    for text in ("yesterday", "2026-13-01", "7y", ""):
        error = ada.refused("audit", "log", "--since", text, code=2)
        assert "2026-11-22" in error["message"]


# --- show ---


def test_show_has_everything_of_an_entry(ada: Operator) -> None:
    entry = audit(ada, "show", str(audit_story.EDITED))
    assert (entry["requester"], entry["approvers"]) == ("grace@example.org", ["linus@example.org"])
    assert entry["approvals"][0]["comment"] == "read it: a green colour"
    assert entry["changes"][0]["words"] == ['variants.blue: "#00f" -> "#00e"', 'variants.green: added: "#0f0"']
    assert [(one["record"], one["valid"]) for one in entry["signatures"]] == [
        ("entry", True), ("proposal", True), ("approval-1", True),
    ]  # fmt: skip
    assert entry["prev_hash"] == audit(ada, "show", str(audit_story.RAMPED))["entry_hash"]
    text = ada.ok("audit", "show", str(audit_story.EDITED)).out
    for part in (entry["entry_hash"], entry["proposal_sha256"], "approvals>=1", '+      "blue": "#00e",', "read it"):
        assert part in text


def test_show_takes_the_beginning_of_a_proposals_id(ada: Operator) -> None:
    proposal = audit(ada, "show", str(audit_story.EDITED))["proposal"]
    assert audit(ada, "show", proposal[:8].lower())["seq"] == audit_story.EDITED
    assert ada.refused("audit", "show", "nothing", code=10)["code"] == "unknown_entry"
    assert "1 .. 31" in ada.refused("audit", "show", "32", code=10)["message"]
    assert "1 .. 31" in ada.refused("audit", "show", "0", code=10)["message"]


def test_show_says_of_a_rejected_entry_what_nobody_vouches_for(ada: Operator) -> None:
    text = ada.ok("audit", "show", str(audit_story.STRANGER)).out
    assert "It changed nothing" in text
    assert "(signed by nobody who may ask)" in text
    assert "NOT VALID" in text
    assert "requested   " not in text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_the_evidence_can_be_checked_without_flaghoist(ada: Operator, tmp_path: Path) -> None:
    entry = audit(ada, "show", str(audit_story.RAMPED), "--evidence", str(tmp_path / "proof"))
    assert len(entry["evidence"]) == 4
    for command in entry["evidence"]:
        ended = subprocess.run(
            command, shell=True, cwd=tmp_path / "proof", capture_output=True, timeout=30, check=False
        )
        assert ended.returncode == 0, ended


# --- verify ---


def test_verify_counts_every_outcome_and_lists_what_must_be_looked_at(ada: Operator) -> None:
    ended = ada.ok("audit", "verify", "--json")
    document = ended.document
    assert document["whole"] is True
    assert document["records"] == {
        "advanced": 2, "applied": 18, "prepared": 1, "ratified": 2, "rejected": 5, "rootchanged": 1, "stepped": 2,
    }  # fmt: skip
    assert seqs(document["rejected"]) == [
        audit_story.SAME_PERSON, audit_story.STRANGER, audit_story.TOO_EARLY, audit_story.UNPREPARED,
        audit_story.NOT_REVERTED,
    ]  # fmt: skip
    (taint,) = document["tainted"]
    assert (taint["seq"], taint["in_force"]) == (audit_story.READDED, ["shop.json#colour"])
    assert document["unratified"] == []
    assert (document["root_version"], document["epoch"], document["break"]) == (2, 3, None)
    assert "look at them again" in ended.err


def test_verify_warns_of_an_emergency_that_nobody_stood_behind_in_time(tmp_path: Path) -> None:
    forge = told()
    records = forge.records[: audit_story.KILLED]
    ended = auditor(tmp_path, forge.first_root, records).ok("audit", "verify", "--json")
    (waiting,) = ended.document["unratified"]
    assert (waiting["seq"], waiting["overdue"], waiting["flags"]) == (audit_story.KILLED, True, ["checkout"])
    assert "OVERDUE" in ended.err


def test_verify_refuses_to_begin_at_a_checkpoint_until_there_are_any(ada: Operator) -> None:
    error = ada.refused("audit", "verify", "--from-checkpoint", code=10)
    assert error["code"] == "no_checkpoints"
    assert "later release" in error["message"]


def test_verify_says_where_a_ledger_breaks_and_the_others_tell_what_came_before(tmp_path: Path) -> None:
    forge = told()
    records = [*forge.records[:5], *forge.records[6:]]
    ada = auditor(tmp_path, forge.first_root, records)
    ended = ada.run("audit", "verify", "--json")
    assert ended.code == 10
    broken = ended.document["break"]
    assert (broken["seq"], broken["expected"], broken["got"]) == (6, "seq 6", "7")
    assert ended.document["error"]["code"] == "broken_chain"
    log = ada.run("audit", "log", "--json")
    assert (log.code, seqs(log.document)) == (10, [5, 4, 3, 2, 1])
    assert "the chain breaks" in log.err
    export = ada.run("audit", "export")
    assert (export.code, len(export.out.splitlines())) == (10, 1 + 2 + 2 + 1 + 1)


def test_a_second_history_ends_verify_with_10_and_both_hashes(tmp_path: Path) -> None:
    from dataclasses import replace

    forge = told()
    other = forge.signed(replace(forge.entry(EpochClaim("elsewhere")), prev_hash=bytes(32)))
    ended = auditor(tmp_path, forge.first_root, [*forge.records, other]).run("audit", "verify", "--json")
    assert ended.code == 10
    assert "another history" in ended.document["break"]["what"]
    assert ended.document["break"]["got"] == f"prev_hash {bytes(32).hex()}"


def test_an_auditor_who_pinned_a_later_root_verifies_from_the_first_entry(story: Forge, tmp_path: Path) -> None:
    ada = auditor(tmp_path, story.root, story.records)
    assert audit(ada, "verify")["root_version"] == 2
    assert len(audit(ada, "log")) == LAST


def test_a_ledger_that_ends_before_the_pinned_root_is_cut(story: Forge, tmp_path: Path) -> None:
    from dataclasses import replace

    from flaghoist.codec import decode_envelope, encode_envelope

    # The root's chain can be followed, from an entry that nobody has signed: it is not in force.
    stated = encode_envelope(replace(decode_envelope(story.records[audit_story.ROTATED - 1]), signatures=()))
    ada = auditor(tmp_path, story.root, story.records)
    cut(tmp_path, after=4)
    write_more(tmp_path, [stated])
    ended = ada.run("audit", "verify", "--json")
    assert (ended.code, ended.document["seq"]) == (10, 5)
    assert ended.document["break"]["expected"].startswith("root version 2")
    assert "ends too early" in ended.document["error"]["message"]


# --- diff, blame, evaluate ---


def test_diff_takes_all_forms_of_a_span(ada: Operator) -> None:
    def changed(span: str) -> list[tuple[str, str]]:
        return [(one["key"], one["change"]) for one in audit(ada, "diff", span)["changes"]]

    assert changed("5..6") == [("colour", "removed")]
    assert changed("6..5") == [("colour", "added")]
    assert changed("14") == [("late", "added")]
    assert changed("13..14") == [("late", "added")]
    assert changed("..2") == [("checkout", "added"), ("colour", "added")]
    assert changed("4..7") == []
    for wrong in ("", "..", "a..b", "1.2", "-1"):
        assert ada.refused("audit", "diff", "--", wrong, code=2)["code"] == "usage"
    assert ada.refused("audit", "diff", "2..99", code=10)["code"] == "unknown_entry"


def test_diff_shows_words_the_entries_and_a_diff(ada: Operator) -> None:
    ended = ada.ok("audit", "diff", "4..5")
    assert 'variants.blue: "#00f" -> "#00e"' in ended.out
    assert "requested by grace@example.org, approved by linus@example.org: a green colour" in ended.out
    assert '-      "blue": "#00f",' in ended.out
    assert "0 added, 1 changed, 0 removed" in ended.err
    assert '"blue"' not in ada.ok("audit", "diff", "4..5", "--words").out.replace("variants.blue", "")


def test_blame_names_for_each_line_who_set_it(ada: Operator) -> None:
    lines = audit(ada, "blame", "checkout")["lines"]
    found = {"/".join(map(str, line["path"])): line for line in lines}
    assert found["flag/defaultVariant"]["seq"] == audit_story.IMPORT
    assert found["flag/defaultVariant"]["approvers"] == ["grace@example.org"]
    text = ada.ok("audit", "blame", "checkout").out
    assert [line.partition(") ")[2] or line.rpartition(") ")[2] for line in text.splitlines()]
    gate = audit(ada, "blame", "release.checkout-v2", "--evaluator")["lines"]
    assert {line["seq"] for line in gate} == {audit_story.GATED, audit_story.RAMPED}
    (new,) = [line for line in gate if line["seq"] == audit_story.RAMPED]
    assert new["text"].strip() == '"u3"'


def test_blame_of_a_deleted_flag_is_asked_for(tmp_path: Path) -> None:
    forge = told()
    ada = auditor(tmp_path, forge.first_root, forge.records[: audit_story.DELETED])
    error = ada.refused("audit", "blame", "colour", code=10)
    assert "--deleted" in error["hint"]
    document = audit(ada, "blame", "colour", "--deleted")
    assert document["deleted_by"] == audit_story.DELETED
    assert {line["seq"] for line in document["lines"]} == {audit_story.IMPORT, audit_story.EDITED}


def test_blame_of_what_never_was_names_what_looks_alike(ada: Operator) -> None:
    assert "checkout" in ada.refused("audit", "blame", "chekout", code=10)["message"]
    assert ada.refused("audit", "blame", "checkout", "--evaluator", code=10)["code"] == "unknown_flag"


@pytest.mark.parametrize(
    ("place", "value", "version"),
    [
        ("2", False, 2),
        ("4", True, 3),
        ("2026-05-28T23:26:40Z", True, 3),
        ("2026-05-28T23:26:39Z", False, 3),
        ("2026-05-28", True, 3),
        ("8", False, 8),
        ("14", False, 8),
        ("31", False, 8),
        ("1d", False, 8),
    ],
)
def test_evaluate_answers_as_sidecars_did(place: str, value: object, version: int, ada: Operator) -> None:
    answer = audit(ada, "evaluate", "checkout", "--context", "targetingKey=u3", "--at", place)
    assert (answer["value"], answer["version"]) == (value, version)


def test_evaluate_at_the_head_is_what_flag_eval_says(ada: Operator) -> None:
    for key in ("checkout", "colour", "late"):
        now, then = ada.ok("flag", "eval", key, "--json").document, audit(ada, "evaluate", key)
        assert {name: now[name] for name in ("value", "variant", "reason", "metadata")} == {
            name: then[name] for name in ("value", "variant", "reason", "metadata")
        }


def test_evaluate_tells_each_seq_at_which_the_answer_changed(ada: Operator) -> None:
    def changes(*args: str) -> list[tuple[int, object]]:
        found = audit(ada, "evaluate", "checkout", "--context", "targetingKey=u3", *args)["answers"]
        return [(one["seq"], one["value"]) for one in found]

    assert changes("--all") == [(1, None), (2, False), (3, False), (4, True), (8, False)]
    assert changes("--at", "4", "--until", "8") == [(4, True), (8, False)]
    assert changes("--at", "2026-05-29", "--until", "2026-05-29T02:00Z") == [(4, True)]
    assert changes("--until", "2") == [(1, None), (2, False)]


def test_evaluate_says_that_a_flag_was_not_there_and_refuses_one_that_never_was(ada: Operator) -> None:
    answer = audit(ada, "evaluate", "late", "--at", "13")
    assert (answer["error_code"], answer["reason"], answer["version"]) == ("FLAG_NOT_FOUND", "ERROR", None)
    assert "checkout" in ada.refused("audit", "evaluate", "chekout", "--at", "3", code=10)["message"]
    assert ada.refused("audit", "evaluate", "late", "--at", "99", code=10)["code"] == "unknown_entry"
    assert ada.refused("audit", "evaluate", "late", "--at", "2020-01-01", code=10)["code"] == "unknown_entry"
    assert ada.refused("audit", "evaluate", "late", "--all", "--at", "3", code=2)["code"] == "usage"


# --- releases ---


def at(forge: Forge, seq: int, *, after_ms: int) -> str:
    """A time so long after an entry was published, as people write it."""
    from publisher.audit.event import rfc3339

    told_at = rfc3339(examined(forge)[1][seq - 1].entry.published_at + after_ms)
    assert told_at is not None
    return told_at


def test_log_tells_a_release_from_its_plan_to_its_drills(ada: Operator) -> None:
    text = ada.ok("audit", "log", "--release", "spring", "--reverse").out
    for part in (
        "spring, still closed (created, closed)",
        "release spring: closed → audience (stage 1 of 3: inside, as planned)",
        "plan of seq 16",
        "take spring back, keep the note (audience and 50 % → closed; keeps mail.spring)",
        "rehearse: measured (drill measured: 3 of 3 instances reached, the last after 41 ms)",
    ):
        assert part in text
    (step,) = audit(ada, "log", "--kind", "step", "--limit", "1")
    assert (step["allowed_by"], step["requester"], step["releases"]) == (audit_story.WALKED, None, ["spring"])


def test_show_of_a_step_tells_who_approved_the_plan_that_it_follows(ada: Operator) -> None:
    text = ada.ok("audit", "show", str(audit_story.STEPPED_ON)).out
    assert "allowed by  seq 16, " in text
    assert "requested by ada@example.org, approved by grace@example.org: walk spring" in text
    assert "stage 2 of 3, as planned" in text
    assert "gate.share: 0 -> 10" in text
    assert "requested   " not in text
    document = audit(ada, "show", str(audit_story.STEPPED_ON))
    assert document["step"]["allowed_by"]["seq"] == audit_story.WALKED
    assert document["step"]["allowed_by"]["approvers"] == ["grace@example.org"]
    assert [one["record"] for one in document["signatures"]] == ["entry"]


def test_show_tells_moments_preparations_and_what_they_led_to(story: Forge, ada: Operator) -> None:
    text = ada.ok("audit", "show", str(audit_story.HOISTED)).out
    assert (
        "moment      asked for 2000 ms after its entry, once 95 % of the fleet has acknowledged its preparation" in text
    )
    assert f"prepared    seq {audit_story.PREPARED}, " in text
    when = at(story, audit_story.HOISTED, after_ms=2000).replace("T", " ")
    assert f"in force    from {when} on" in text
    prepared = ada.ok("audit", "show", str(audit_story.PREPARED)).out
    assert f"published   seq {audit_story.HOISTED}, " in prepared
    assert "prepares\n    put release spring" in prepared
    document = audit(ada, "show", str(audit_story.PREPARED))
    assert (document["published_by"], document["in_force_at"]) == (audit_story.HOISTED, None)
    assert [one["record"] for one in document["signatures"]] == ["entry", "proposal", "approval-1"]
    assert audit(ada, "show", document["proposal"])["seq"] == audit_story.HOISTED


def test_a_preparation_that_was_never_published_says_so(tmp_path: Path) -> None:
    forge = told()
    ada = auditor(tmp_path, forge.first_root, forge.records[: audit_story.PREPARED])
    assert "not yet: it changed nothing so far" in ada.ok("audit", "show", str(audit_story.PREPARED)).out
    proposal = audit(ada, "show", str(audit_story.PREPARED))["proposal"]
    assert audit(ada, "show", proposal)["seq"] == audit_story.PREPARED


def test_diff_puts_what_became_of_a_release_into_words(ada: Operator) -> None:
    (delta,) = audit(ada, "diff", f"{audit_story.CREATED}..{audit_story.STEPPED_ON}")["changes"]
    assert (delta["target"], delta["key"]) == ("RELEASE", "spring")
    assert delta["words"][0] == "closed → audience and 10 %; walks through its stages"
    assert delta["seqs"] == [audit_story.WALKED, audit_story.STEPPED, audit_story.STEPPED_ON]
    (drill,) = audit(ada, "diff", str(audit_story.MEASURED))["changes"]
    assert drill["words"][0] == "drill measured: 3 of 3 instances reached, the last after 41 ms"


def test_blame_of_a_release_names_steps_with_the_people_of_their_plan(tmp_path: Path) -> None:
    forge = told()
    ada = auditor(tmp_path, forge.first_root, forge.records[: audit_story.STEPPED_ON])
    lines = audit(ada, "blame", "spring", "--release")["lines"]
    seqs_of = {"/".join(map(str, line["path"])): line["seq"] for line in lines}
    assert seqs_of["release/gate/share"] == audit_story.STEPPED_ON
    assert seqs_of["release/gate/audience"] == audit_story.STEPPED
    assert seqs_of["release/gate/walk"] == audit_story.WALKED
    assert seqs_of["release/stages/1/share"] == audit_story.CREATED
    (share,) = [line for line in lines if line["path"] == ["release", "gate", "share"]]
    assert share["allowed_by"] == audit_story.WALKED
    (text,) = [line for line in ada.ok("audit", "blame", "spring", "--release").out.splitlines() if '"walk"' in line]
    assert "ada@example.org (grace@example.org)" in text
    assert "None" not in ada.ok("audit", "blame", "spring", "--release").out
    error = ada.refused("audit", "blame", "release.spring", "--evaluator", code=10)
    assert "`flaghoist audit blame spring --release`" in error["hint"]
    assert ada.refused("audit", "blame", "spring", "--release", "--evaluator", code=2)["code"] == "usage"


def test_evaluate_at_a_time_is_what_was_served_and_at_a_seq_what_its_state_says(story: Forge, ada: Operator) -> None:
    def answered(place: str) -> tuple[object, ...]:
        who = ("--context", "email=ada@example.org", "--context", "targetingKey=u1")
        found = audit(ada, "evaluate", "cart.spring", *who, "--at", place)
        return found["value"], found["basis"], found["seq"], found["state_seq"]

    first, second = audit_story.STEPPED, audit_story.AWAITED
    assert answered(str(first)) == (True, "seq", first, first)
    assert answered(at(story, first, after_ms=1999)) == (False, "served", first - 1, first - 1)
    assert answered(at(story, first, after_ms=2000)) == (True, "served", first, first)
    # Published and waiting; killed a second later, while it waits: nobody was ever served it.
    assert answered(str(second)) == (True, "seq", second, second)
    assert answered(at(story, second, after_ms=999)) == (False, "served", second - 1, second - 1)
    assert answered(at(story, second, after_ms=1000)) == (False, "served", second + 1, second - 1)
    assert answered(at(story, second, after_ms=2000)) == (False, "served", second + 1, second + 1)


def test_evaluate_says_which_of_both_it_tells(story: Forge, ada: Operator) -> None:
    by_seq = ada.ok("audit", "evaluate", "cart.spring", "--at", str(audit_story.STEPPED)).err
    assert f"the state of seq {audit_story.STEPPED}, " in by_seq
    assert "; served from " in by_seq
    by_time = ada.ok("audit", "evaluate", "cart.spring", "--at", at(story, audit_story.STEPPED, after_ms=2500)).err
    assert "served from " in by_time
    assert "where clocks are exact: seq 17" in by_time


def test_evaluate_over_a_span_of_time_tells_since_when_each_answer_was_served(story: Forge, ada: Operator) -> None:
    first, last = at(story, audit_story.WALKED, after_ms=1), at(story, audit_story.REVERTED, after_ms=1)
    who = ("--context", "email=ada@example.org", "--context", "targetingKey=u1")
    served = audit(ada, "evaluate", "cart.spring", *who, "--at", first, "--until", last)
    lead = audit_story.LEAD_MS
    assert served["basis"] == "served"
    assert [(one["seq"], one["value"], one["in_force_at"] - one["published_at"]) for one in served["answers"]] == [
        (audit_story.WALKED, False, 0), (audit_story.STEPPED, True, lead), (audit_story.REVERTED, False, 0),
    ]  # fmt: skip
    by_seq = audit(ada, "evaluate", "cart.spring", *who, "--all")
    assert by_seq["basis"] == "seq"
    assert [(one["seq"], one["value"]) for one in by_seq["answers"]][-4:] == [
        (audit_story.STEPPED, True), (audit_story.REVERTED, False), (audit_story.AWAITED, True),
        (audit_story.CLOSED_AT_ONCE, False),
    ]  # fmt: skip
    table = ada.ok("audit", "evaluate", "cart.spring", *who, "--at", first, "--until", last).out
    assert "SERVED FROM" in table.splitlines()[0]


# --- export ---


def test_export_is_the_verified_entries_byte_for_byte(story: Forge, ada: Operator) -> None:
    expected = b"".join(json_line(event) for account in examined(story)[1] for event in events(account)).decode()
    assert ada.ok("audit", "export").out == expected
    assert ada.run_process("audit", "export").out == expected
    since = ada.ok("audit", "export", "--since-seq", "30").out
    assert expected.endswith(since)
    assert [json.loads(line)["seq"] for line in since.splitlines()] == [30, 31]


def test_export_with_json_is_one_document(ada: Operator) -> None:
    lines = [json.loads(line) for line in ada.ok("audit", "export", "--format", "cloudevents").out.splitlines()]
    assert audit(ada, "export", "--format", "cloudevents") == lines
    assert ada.refused("audit", "export", "--follow", code=2)["code"] == "usage"


def test_follow_writes_new_entries_as_they_come_and_ends_behind_a_whole_line(tmp_path: Path) -> None:
    forge = told()
    ada = auditor(tmp_path, forge.first_root, forge.records)
    with ada.spawn("audit", "export", "--follow", "--since-seq", str(LAST)) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["seq"] == LAST
            change(forge, forge.op("more", boolean_flag("on")), title="while somebody follows")
            write_more(tmp_path, forge.records[-1:])
            event = json.loads(process.stdout.readline())
            assert (event["seq"], event["title"]) == (LAST + 1, "while somebody follows")
            process.terminate()
            rest, said = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    assert (process.returncode, rest, b"Traceback" in said) == (0, b"", False)


def test_follow_ends_with_10_when_a_second_history_turns_up(tmp_path: Path) -> None:
    from dataclasses import replace

    forge = told()
    ada = auditor(tmp_path, forge.first_root, forge.records)
    with ada.spawn("audit", "export", "--follow", "--since-seq", str(LAST)) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["seq"] == LAST
            other = forge.signed(replace(forge.entry(EpochClaim("elsewhere")), prev_hash=bytes(32)))
            write_more(tmp_path, [other])
            rest, said = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    assert (process.returncode, rest) == (10, b"")
    assert b"another history" in said


def test_a_reader_that_leaves_ends_the_export_quietly(ada: Operator) -> None:
    with ada.spawn("audit", "export") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert b"Traceback" not in said


# --- what others wrote ---


def test_control_characters_of_others_never_reach_the_terminal(tmp_path: Path) -> None:
    forge = told()
    change(forge, forge.op("evil", boolean_flag("on", description="\u202eevil\x1b]0;x\x07")), title="a\x1b[2J\u202eb")
    ada = auditor(tmp_path, forge.first_root, forge.records)
    for args in (
        ["log"], ["show", NEXT], ["diff", NEXT], ["blame", "evil"], ["evaluate", "evil"],
        ["evaluate", "evil", "--all"], ["export", "--since-seq", NEXT], ["verify"],
    ):  # fmt: skip
        ended = ada.ok("audit", *args)
        for character in ("\x1b", "\x07", "\u202e"):
            assert character not in ended.out + ended.err, args


def test_a_proposals_id_cannot_pass_for_a_line_of_ours(tmp_path: Path) -> None:
    forge = told()
    proposal = forge.proposal(forge.op("late", boolean_flag("off")), proposal_id="X\nwarning: all is well\n")
    forge.append(Release(proposal, (forge.approval(proposal, by=ADA),), "approvals>=1"))
    ada = auditor(tmp_path, forge.first_root, forge.records)
    for args in (["log"], ["show", NEXT], ["verify"]):
        ended = ada.ok("audit", *args)
        assert "all is well" in ended.out + ended.err
        assert not any(line.startswith("warning: all") for line in (ended.out + ended.err).splitlines())


def test_a_rejected_entry_of_the_year_287396_breaks_no_command(tmp_path: Path) -> None:
    forge = told()
    body = forge.release(forge.op("late", boolean_flag("off")))
    forge.append(body, published_at=2**53 - 1)
    ada = auditor(tmp_path, forge.first_root, forge.records)
    for args in (["log"], ["show", NEXT], ["verify"], ["diff", NEXT], ["evaluate", "late", "--at", NEXT], ["export"]):
        ada.ok("audit", *args)
    assert audit(ada, "log", "--limit", "1")[0]["kind"] == "rejected"
