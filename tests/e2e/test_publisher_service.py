"""The publisher's service as a team runs it: real commands, processes and files, on one SQLite ledger."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flaghoist.freshness import BEAT_LIFE_MS
from tests.publisher_process import running_publisher
from tests.scenarios.operators import Operator
from tests.scenarios.trio import Trio
from tests.sidecar_process import running_sidecar


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return Trio.begun(tmp_path)


def flag_file(trio: Trio, name: str, default: str = "off") -> Path:
    file = trio.directory / f"{name}-{default}.json"
    flag = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": default}
    file.write_text(json.dumps(flag))
    return file


def proposed(trio: Trio, name: str, *options: str, by: Operator | None = None) -> str:
    desk = by or trio.linus
    return desk.ok("propose", "set", name, "--definition", flag_file(trio, name), *options, "--yes").out.strip()


def records(trio: Trio) -> dict[str, int]:
    found: dict[str, int] = trio.grace.ok("audit", "verify", "--json").document["records"]
    return found


def published(trio: Trio) -> list[str]:
    """The ids of the proposals in the ledger, in order."""
    log = trio.grace.ok("audit", "log", "--reverse", "--json").document
    return [entry["proposal"] for entry in log if entry.get("proposal")]


# --- the way of a change ---


def test_what_two_people_sign_at_their_desks_is_served_without_anybody_publishing(trio: Trio, tmp_path: Path) -> None:
    with (
        running_publisher(trio.ada) as publisher,
        running_sidecar(trio.ledger, trio.root_file, tmp_path / "state") as sidecar,
    ):
        publisher.until("publisher.started")
        asked = trio.linus.run("propose", "set", "fresh", "--definition", flag_file(trio, "fresh"), "--yes")
        assert asked.code == 0
        assert f"the publisher at work (process {publisher.pid} on this machine)" not in asked.err, "another's desk"
        assert f"/{publisher.pid}) then appends it" in asked.err, "known by its heartbeats"
        proposal = asked.out.strip()
        approved = trio.grace.ok("approve", proposal, "--yes")
        assert f"/{publisher.pid}) appends it" in approved.err
        entry = publisher.until("entry.appended", name=proposal)
        assert entry["requester"] == "linus@example.org"
        assert entry["approvers"] == ["grace@example.org"]
        assert sidecar.until("entry.applied", seq=entry["seq"])["proposal"] == proposal
        assert publisher.stop() == 0
        publisher.until("publisher.draining", signal="SIGTERM")
        publisher.until("publisher.stopped")
    assert published(trio) == [proposal]


def test_approval_given_while_nobody_works_is_taken_at_the_next_start(trio: Trio) -> None:
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        proposal = proposed(trio, "fresh")
        assert publisher.stop() == 0
    assert "`flaghoist publish" in trio.grace.ok("approve", proposal, "--yes").err, "it has said that it left"
    with running_publisher(trio.ada) as publisher:
        publisher.until("entry.appended", name=proposal)
    assert published(trio) == [proposal]


def test_killed_between_and_during_appends_it_loses_and_doubles_nothing(trio: Trio) -> None:
    proposals = [proposed(trio, f"flag-{number}") for number in range(6)]
    for proposal in proposals:
        trio.grace.ok("approve", proposal, "--yes")
    appended = 0
    for _ in range(12):
        with running_publisher(trio.ada) as publisher:
            publisher.until("publisher.started")
            # As soon as it has said that one more was appended it may be anywhere in the next append.
            if appended < len(proposals):
                publisher.until("entry.appended")
            publisher.kill()
        appended = len(published(trio))
        if appended == len(proposals):
            break
    assert published(trio) == proposals
    assert set(records(trio)) <= {"advanced", "applied", "repeated"}


def test_second_service_at_one_desk_stands_by_and_takes_over_at_once(trio: Trio) -> None:
    with running_publisher(trio.ada) as first:
        first.until("inbox.reached")
        with running_publisher(trio.ada) as second:
            told = second.until("publisher.standing_by")
            assert str(first.pid) in told["reason"]
            first.kill()
            proposal = proposed(trio, "fresh")
            trio.grace.ok("approve", proposal, "--yes")
            second.until("entry.appended", name=proposal)
            assert second.stop() == 0
    assert records(trio) == {"advanced": 1, "applied": 1}, "one journal: nobody had to claim anything"


def test_service_that_stands_by_ends_at_the_first_signal(trio: Trio) -> None:
    with running_publisher(trio.ada) as first:
        first.until("inbox.reached")
        with running_publisher(trio.ada) as second:
            second.until("publisher.standing_by")
            second.process.send_signal(signal.SIGINT)
            assert second.ended() == 0
        assert first.process.poll() is None


def test_emergency_is_appended_and_ratified_by_the_service(trio: Trio) -> None:
    trio.guarded()
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        trio.ada.ok("kill", "newCheckout", "--reason", "double charges", "--yes")
        kill = publisher.until("entry.appended", kind="emergency")["name"]
        waiting = {each["id"]: each for each in trio.grace.pending()}
        assert waiting[kill]["status"] == "waiting"
        assert waiting[kill]["in_force_since_seq"] > 0
        assert "ratify within 23h" in trio.grace.ok("pending").out
        trio.grace.ok("approve", kill, "--yes")
        publisher.until("entry.appended", kind="ratification", name=kill)
    assert trio.grace.pending() == []
    assert trio.ada.ok("publish", kill, "--yes", "--json").document["already"] is True


def test_root_that_two_people_sign_is_appended_and_beaten_under(trio: Trio) -> None:
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        trio.grace.ok("root", "propose", "--expires-days", "90", "--yes")
        (waiting,) = trio.grace.pending()
        assert (waiting["kind"], waiting["status"]) == ("ROOT", "waiting")
        assert "wants 2 signatures, got 1; ada@example.org, linus@example.org may still sign" in str(waiting["missing"])
        trio.linus.ok("root", "sign", "--yes")
        publisher.until("entry.appended", kind="root", name="root version 2")
        publisher.until("root.changed", version=2)
        proposal = proposed(trio, "fresh")
        trio.grace.ok("approve", proposal, "--yes")
        publisher.until("entry.appended", name=proposal)


# --- publish, with and without a service ---


def test_publish_by_files_hands_over_what_the_inbox_lacks_and_needs_no_publisher_key(trio: Trio) -> None:
    change, approval = trio.directory / "change.proposal", trio.directory / "grace.approval"
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        definition = flag_file(trio, "fresh")
        trio.linus.ok("propose", "set", "fresh", "--definition", definition, "--out", change, "--yes")
        trio.grace.ok("approve", change, "--out", approval, "--yes")
        done = trio.linus.ok("publish", change, "--approval", approval, "--yes")
        assert "handed over 2 records to the publisher at work" in done.err
        assert done.out.startswith("seq 2  ")
        assert trio.linus.ok("publish", change, "--yes", "--json").document["already"] is True


def test_publish_at_the_services_own_desk_waits_for_it_instead_of_refusing(trio: Trio) -> None:
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        proposal = proposed(trio, "fresh")
        trio.grace.ok("approve", proposal, "--yes")
        done = trio.ada.ok("publish", proposal, "--yes")
        assert "seq 2" in done.out


def test_publish_with_a_silent_service_says_how_it_stands(trio: Trio) -> None:
    with running_publisher(trio.ada) as publisher:
        publisher.until("inbox.reached")
        proposal = proposed(trio, "fresh")
        os.kill(publisher.pid, signal.SIGSTOP)
        try:
            trio.grace.ok("approve", proposal, "--yes")
            error = trio.ada.refused("publish", proposal, "--yes", "--timeout", "1", code=13)
            assert error["code"] == "outcome_unknown"
            assert "not in the ledger after 1 s" in error["message"]
        finally:
            os.kill(publisher.pid, signal.SIGCONT)
        publisher.until("entry.appended", name=proposal)


def test_without_a_service_publish_appends_and_beats_once(trio: Trio, tmp_path: Path) -> None:
    proposal = proposed(trio, "fresh")
    trio.grace.ok("approve", proposal, "--yes")
    with running_sidecar(trio.ledger, trio.root_file, tmp_path / "state") as sidecar:
        trio.ada.ok("publish", proposal, "--yes")
        sidecar.until("entry.applied", seq=2)
    again = proposed(trio, "second")
    assert "at work" not in trio.grace.ok("approve", again, "--yes").err, "one heartbeat is no service"
    assert newest_beat(trio)["expires_at"] - newest_beat(trio)["issued_at"] == BEAT_LIFE_MS


def newest_beat(trio: Trio) -> dict[str, Any]:
    import asyncio

    from flaghoist.codec import HEARTBEAT, decode_envelope
    from flaghoist.log.base import Stream, read_to_end
    from flaghoist.log.location import open_log

    async def last() -> dict[str, Any]:
        async with open_log(trio.ledger)(Stream.META) as log:
            (value,) = [record.value async for record in read_to_end(log)]
        beat = HEARTBEAT.decode(decode_envelope(value).payload)
        return {"issued_at": beat.issued_at, "expires_at": beat.expires_at, "holder": beat.holder}

    return asyncio.run(last())


def test_race_of_two_publishers_needs_no_new_approval(trio: Trio) -> None:
    desks = [trio.ada, machine(trio, "second")]
    for number in range(3):
        proposal = proposed(trio, f"flag-{number}")
        trio.grace.ok("approve", proposal, "--yes")
        racing = [desk.spawn("publish", proposal, "--yes", "--json") for desk in desks]
        ended = [process.communicate(timeout=60) for process in racing]
        assert [process.returncode for process in racing] == [0, 0], ended
        seqs = {json.loads(out)["seq"] for out, _ in ended}
        assert len(seqs) == 1, "both found it at one place"
    assert len(published(trio)) == 3


def machine(trio: Trio, name: str) -> Operator:
    """Another machine with the publisher's keys, and a journal of its own."""
    desk = Operator(trio.directory / name)
    shutil.copytree(trio.ada.home, desk.home, dirs_exist_ok=True)
    shutil.rmtree(desk.home / "state", ignore_errors=True)
    return desk


# --- what is wrong is said, with what to do ---


def without(name: str) -> Callable[[Trio], None]:
    def remove(trio: Trio) -> None:
        for suffix in ("pem", "pub"):
            (trio.ada.home / "keys" / f"{name}.{suffix}").unlink()

    return remove


@pytest.mark.parametrize(
    ("options", "spoil", "exit_code", "code", "says"),
    [
        (["--key", "ada"], None, 10, "wrong_role", "has no role PUBLISHER"),
        (["--key", "nobody"], None, 2, "misconfigured", "there is no"),
        ([], without("publisher"), 2, "misconfigured", "no key here has role PUBLISHER"),
        ([], without("heartbeat"), 2, "misconfigured", "heartbeats: no key here has role HEARTBEAT"),
        (["--heartbeat-key", "publisher"], None, 10, "wrong_role", "has no role HEARTBEAT"),
        (["--ledger", "nowhere"], None, 2, "misconfigured", "want a URL, or the name of a pinned environment"),
    ],
    ids=["wrong-key", "no-such-key", "no-publisher-key", "no-heartbeat-key", "wrong-heartbeat-key", "no-ledger"],
)
def test_service_that_cannot_start_says_what_to_do(
    trio: Trio, options: list[str], spoil: Callable[[Trio], None] | None, exit_code: int, code: str, says: str
) -> None:
    if spoil is not None:
        spoil(trio)
    error = trio.ada.refused("publisher", *options, code=exit_code)
    assert error["code"] == code
    assert says in error["message"]
    assert error["hint"]
    if "heartbeat" in says.lower():
        assert "--heartbeat-key" in error["hint"]


def test_service_under_an_expired_root_says_how_to_renew_it(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = (
        "import time\nnow = time.time_ns()\n"
        "time.time_ns = lambda: now + 400 * 86_400 * 10**9  # a year and more has passed\n"
    )
    ended = trio.ada.run_process("publisher", "--json", driver=driver)
    assert ended.code == 10
    assert ended.error["code"] == "expired"
    assert "flaghoist root propose" in ended.error["hint"]


def test_dry_run_checks_everything_and_starts_nothing(trio: Trio) -> None:
    ended = trio.ada.ok("publisher", "--dry-run", "--json")
    assert ended.document["log_id"] == "production"
    assert ended.document["key"] != ended.document["heartbeat_key"]
    assert records(trio) == {"advanced": 1}
