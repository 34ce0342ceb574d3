"""The fleet as operators see it: real sidecars, what they say of themselves, and commands that wait for them."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flaghoist.acknowledgement import encode_acknowledgement, read_acknowledgement
from flaghoist.codec import PROPOSAL, decode_envelope, encode_envelope
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.records import Acknowledgement
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.signing import seal
from flaghoist.values import LogId, Seq
from publisher.keys import unlock
from tests.e2e.test_cli_terminal import Terminal
from tests.publisher_process import running_publisher
from tests.scenarios.operators import PASSPHRASE, Ended, Operator, Team, write_flags
from tests.sidecar_process import SidecarProcess, running_sidecar

LOG = LogId("staging")
HAPPENS_WITHIN_S = 30.0


@dataclass
class Harbour:
    """A team, and sidecars that follow its ledger."""

    team: Team
    pods: dict[str, SidecarProcess]

    @property
    def ada(self) -> Operator:
        return self.team.ada

    def fleet(self, *args: str, code: int = 0) -> Any:
        ended = self.ada.run("fleet", "--json", *args)
        assert ended.code == code, ended
        return ended.document

    def until_head(self) -> Any:
        """Return the fleet once every pod has the newest entry."""

        def all_there() -> Any:
            ended = self.ada.run("fleet", "--json")
            seen = ended.document
            return seen if ended.code == 0 and seen["in_force"] == seen["live"] == len(self.pods) else None

        return until(all_there)

    def approved(self, *, variant: str | None = None, **changes: Any) -> Path:
        """A change of the flag that differs from what it is, signed and approved, as files."""
        was = self.ada.ok("flag", "show", "newCheckout", "--json").document["definition"]["flag"]["defaultVariant"]
        files = self.ada.desk / "change.proposal", self.ada.desk / "change.approval"
        for file in files:
            file.unlink(missing_ok=True)
        change = "on" if was == "off" else "off"
        self.ada.ok("propose", "set", "newCheckout", "--variant", variant or change, "--out", files[0], "--yes")
        envelope = decode_envelope(files[0].read_bytes())
        key = unlock(self.ada.home / "keys" / "ada.pem", PASSPHRASE.encode)
        proposal = replace(PROPOSAL.decode(envelope.payload), **changes)
        files[0].write_bytes(encode_envelope(seal(PROPOSAL, proposal, [key])))
        self.team.grace.ok("approve", files[0], "--out", files[1], "--yes")
        return files[0]

    def publish(self, proposal: Path, *args: str) -> Ended:
        approval = proposal.with_suffix(".approval")
        return self.ada.run("publish", proposal, "--approval", approval, "--yes", "--json", *args)


def until(look: Callable[[], Any]) -> Any:
    """Return what is seen as soon as it is true."""
    deadline = time.monotonic() + HAPPENS_WITHIN_S
    while not (seen := look()):
        assert time.monotonic() < deadline, look
        time.sleep(0.05)
    return seen


@contextmanager
def moored(directory: Path, names: Sequence[str], *, ledger: str | None = None) -> Iterator[Harbour]:
    team = Team.begun(directory, ledger=ledger)
    team.imported(write_flags(directory / "flags.json"))
    root = team.ada.home / "roots" / f"{LOG}.root"
    with ExitStack() as stack:
        pods = {
            name: stack.enter_context(
                running_sidecar(
                    team.ledger, root, directory / name, "--instance", name, "--service", name.partition("-")[0]
                )
            )
            for name in names
        }
        harbour = Harbour(team, pods)
        harbour.until_head()
        yield harbour


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with moored(tmp_path_factory.mktemp("harbour"), ("checkout-1", "checkout-2", "web-1")) as found:
        yield found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Team, Path, Path]:
    """A team before anybody follows its ledger, where it is, and a copy of all that it has."""
    directory = tmp_path_factory.mktemp("empty")
    team = Team.begun(directory / "team")
    team.imported(write_flags(directory / "team" / "flags.json"))
    shutil.copytree(directory / "team", directory / "kept")
    return team, directory / "team", directory / "kept"


@pytest.fixture
def empty(begun: tuple[Team, Path, Path]) -> Harbour:
    team, place, kept = begun
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    return Harbour(team, {})


@contextmanager
def halted(pod: SidecarProcess) -> Iterator[None]:
    """A pod that does nothing any more, and has not said so."""
    os.kill(pod.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pod.process.pid, signal.SIGCONT)


def write_acks(ledger: str, *acks: Acknowledgement) -> None:
    async def write() -> None:
        async with open_log(ledger)(Stream.ACKS) as log:
            for ack in acks:
                await log.append(encode_acknowledgement(ack), key=ack.instance.encode())

    asyncio.run(write())


def made_up(team: Team, instance: str, **changes: Any) -> Acknowledgement:
    """What an honest sidecar would say that has everything, with changes."""
    entry = team.ada.ok("audit", "log", "--json", "--limit", "1").document[0]
    now_ms = time.time_ns() // 1_000_000
    seq = Seq(entry["seq"])
    honest = Acknowledgement(
        log_id=LOG, instance=instance, service="web", version="0.1.0", started_at=now_ms, written_at=now_ms,
        state="FRESH", seq=seq, entry_hash=bytes.fromhex(entry["entry_hash"]), state_root=bytes(32), applied_at=now_ms,
        in_force=seq, activated_at=now_ms, late_ms=None, clock_offset_ms=3,
    )  # fmt: skip
    return replace(honest, **changes)


# --- looking ---


def test_every_sidecar_is_shown_with_the_state_that_this_machine_has_verified(harbour: Harbour) -> None:
    seen = harbour.until_head()
    assert [(each["instance"], each["service"]) for each in seen["instances"]] == [
        ("checkout-1", "checkout"),
        ("checkout-2", "checkout"),
        ("web-1", "web"),
    ]
    assert len({each["state_root"] for each in seen["instances"]}) == 1
    assert {(each["behind"], each["seq"], each["in_force"]) for each in seen["instances"]} == {
        (0, seen["head"], seen["head"])
    }
    assert seen["divergence"] == []


def test_the_table_has_a_line_for_each_and_the_sum_below_it(harbour: Harbour) -> None:
    harbour.until_head()
    ended = harbour.ada.ok("fleet", "--service", "checkout")
    head, *lines = ended.out.splitlines()
    assert head.split("  ")[0] == "INSTANCE"
    assert [line.split()[:2] for line in lines] == [["checkout-1", "checkout"], ["checkout-2", "checkout"]]
    assert "2 live" in ended.err


def test_looking_needs_no_key(harbour: Harbour, tmp_path: Path) -> None:
    nobody = Operator(tmp_path / "nobody")
    nobody.ok("root", "pin", harbour.ada.home / "roots" / f"{LOG}.root", "--ledger", harbour.team.ledger, "--yes")
    assert nobody.ok("fleet", "--json").document["live"] == 3


def test_a_fleet_that_nobody_has_spoken_for_is_empty_and_fails_only_if_asked(empty: Harbour) -> None:
    assert empty.fleet()["instances"] == []
    assert empty.fleet("--fail-on", "nobody", code=14)["error"]["code"] == "not_reached"


def test_another_state_at_the_same_seq_ends_with_20_and_names_who_has_it(empty: Harbour) -> None:
    write_acks(empty.team.ledger, made_up(empty.team, "web-7"))
    seen = empty.fleet(code=20)
    assert seen["error"]["code"] == "diverged"
    assert "web-7" in seen["error"]["message"]
    assert [(each["what"], each["instances"]) for each in seen["divergence"]] == [("state_root", ["web-7"])]
    ended = empty.ada.run("fleet")
    assert ended.code == 20
    assert "DIFFERS" in ended.out
    assert "web-7" in ended.err
    assert "hint:" in ended.err


def test_an_older_state_than_the_newest_is_compared_too(harbour: Harbour) -> None:
    """The state at each seq that somebody names is made while the ledger is read."""
    first = harbour.until_head()["head"]
    with halted(harbour.pods["web-1"]):
        assert harbour.publish(harbour.approved()).code == 0
        seen = until(lambda: (d := harbour.fleet()) and d["in_force"] == 2 and d)
        assert {each["seq"] for each in seen["instances"]} == {first, first + 1}
        acks = read_acks(harbour.team.ledger)
        forged = replace(acks["web-1"], state_root=bytes(32))
        write_acks(harbour.team.ledger, forged)
        found = harbour.fleet(code=20)["divergence"]
        assert [(each["seq"], each["instances"]) for each in found] == [(first, ["web-1"])]
        assert found[0]["ours"] == acks["web-1"].state_root.hex()
    harbour.until_head()


def read_acks(ledger: str) -> dict[str, Acknowledgement]:
    async def read() -> dict[str, Acknowledgement]:
        async with open_log(ledger)(Stream.ACKS) as log:
            acks = [read_acknowledgement(record.value, LOG) async for record in read_to_end(log)]
            return {ack.instance: ack for ack in acks}

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"seq": Seq(1), "in_force": Seq(1)}, "behind"),
        ({"clock_offset_ms": -1200}, "skewed"),
        ({"state": "QUARANTINED"}, "still"),
        ({"state": "STALE"}, "stale"),
        ({"late_ms": 900}, "late"),
        ({"written_at": 1}, "silent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trouble_fails_where_it_was_asked_for(empty: Harbour, changes: dict[str, Any], trouble: str) -> None:
    write_acks(empty.team.ledger, made_up(empty.team, "web-1"))
    honest = bytes.fromhex(empty.fleet(code=20)["divergence"][0]["ours"])
    genesis = empty.ada.ok("audit", "show", "1", "--json").document["entry_hash"]
    if trouble == "behind":
        # What it has at seq 1 is not what it will have: the digest of a state without any flag.
        changes = {**changes, "entry_hash": bytes.fromhex(genesis)}
        write_acks(empty.team.ledger, made_up(empty.team, "web-1", **changes))
        honest = bytes.fromhex(empty.fleet(code=20)["divergence"][0]["ours"])
    write_acks(empty.team.ledger, made_up(empty.team, "web-1", **{"state_root": honest, **changes}))
    args = ("--all",)
    assert empty.fleet(*args)["instances"][0]["troubles"] == [trouble]
    failed = empty.fleet(*args, "--fail-on", trouble, code=14)
    assert f"1 of 1 instances are {trouble}: web-1" in failed["error"]["message"]


def test_a_name_that_moves_the_cursor_is_shown_spelled_out(empty: Harbour) -> None:
    write_acks(empty.team.ledger, made_up(empty.team, "web\x1b[2J\nok-1"))
    ended = empty.ada.run("fleet")
    assert "\x1b" not in ended.out + ended.err
    assert "web\\u001b[2J ok-1" in ended.out


def test_junk_in_the_stream_is_counted(empty: Harbour) -> None:
    async def write() -> None:
        async with open_log(empty.team.ledger)(Stream.ACKS) as log:
            await log.append(b"junk", key=b"web-1")

    asyncio.run(write())
    assert empty.fleet()["dropped"] == 1
    check = next(c for c in empty.ada.ok("doctor", "--json").document if c["check"] == "fleet")
    assert check["health"] == "ok", "nobody is live, so nobody is missed"


def test_doctor_looks_at_the_fleet(harbour: Harbour, empty: Harbour) -> None:
    harbour.until_head()
    check = next(c for c in harbour.ada.ok("doctor", "--json").document if c["check"] == "fleet")
    # On a machine that is busy enough, an entry's delivery looks like a clock that is off.
    assert check["health"] in ("ok", "warn")
    assert check["text"].startswith("3 ")
    write_acks(empty.team.ledger, made_up(empty.team, "web-7"))
    ended = empty.ada.run("doctor", "--json")
    check = next(c for c in ended.document if c["check"] == "fleet")
    assert (ended.code, check["health"]) == (20, "fail")
    assert "web-7" in check["text"]


def test_a_ledger_that_was_made_before_there_were_acknowledgements_says_what_to_do(empty: Harbour) -> None:
    with sqlite3.connect(empty.team.ledger.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TABLE acks_record")
    error = empty.ada.refused("fleet", code=2)
    assert error["code"] == "log_missing"
    assert "flaghoist init" in error["hint"]
    ended = empty.publish(empty.approved(), "--wait", "50%", "--timeout", "30")
    assert (ended.code, ended.document["already"]) == (14, False)
    assert "cannot be read" in ended.document["error"]["message"]


def test_a_ledger_that_cannot_be_followed_leaves_the_instances_to_compare_with_each_other(empty: Harbour) -> None:
    for number in range(2):
        empty.publish(empty.approved())
        write_acks(empty.team.ledger, made_up(empty.team, f"web-{number}"))
    with sqlite3.connect(empty.team.ledger.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM ledger_record WHERE position = 2")
    ended = empty.ada.run("fleet")
    assert "instances are compared with each other" in ended.err
    assert [line.split()[3] for line in ended.out.splitlines()[1:3]] == ["?", "?"]
    assert ended.code == 0, "they are at two seqs, so there is nothing to compare"


# --- watching ---


def test_a_watch_writes_a_document_for_each_change_and_ends_on_ctrl_c(harbour: Harbour) -> None:
    head = harbour.until_head()["head"]
    process = harbour.ada.spawn("fleet", "--watch", "--json")
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["head"], len(first["instances"])) == (head, 3)
        assert harbour.publish(harbour.approved()).code == 0
        moved: dict[str, int] = {}
        while set(moved.values()) != {head + 1} or len(moved) < 3:
            document = json.loads(process.stdout.readline())
            moved |= {each["instance"]: each["in_force"] for each in document["instances"]}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HAPPENS_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, b"")


def test_a_watch_that_ends_while_the_fleet_differs_ends_with_20(empty: Harbour) -> None:
    process = empty.ada.spawn("fleet", "--watch")
    try:
        assert process.stdout is not None
        assert b"0 live" in process.stdout.readline()
        write_acks(empty.team.ledger, made_up(empty.team, "web-7"))
        while b"web-7" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HAPPENS_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 20
    assert b"error[diverged]" in err


def test_on_a_terminal_the_table_is_drawn_again(harbour: Harbour) -> None:
    head = harbour.until_head()["head"]
    terminal = Terminal(harbour.ada, "fleet", "--watch", ask=False)
    terminal.read_until(f"3 have verified seq {head}")
    assert harbour.publish(harbour.approved()).code == 0
    terminal.read_until(f"3 have verified seq {head + 1}, 3 answer from it")
    terminal.type("\x03")
    assert terminal.end() == 0


# --- publish --wait ---


def test_publish_waits_until_the_fleet_answers_from_it(harbour: Harbour) -> None:
    harbour.until_head()
    ended = harbour.publish(harbour.approved(), "--wait", "100%")
    assert ended.code == 0, ended
    document = ended.document
    assert (document["fleet"]["live"], document["fleet"]["reached"], document["fleet"]["missing"]) == (3, 3, [])
    seen = harbour.fleet()
    assert {each["in_force"] for each in seen["instances"]} == {document["seq"]}
    assert document["fleet"]["seconds"] < HAPPENS_WITHIN_S


def test_publish_ends_with_14_when_too_few_have_it_and_finds_them_when_run_again(harbour: Harbour) -> None:
    harbour.until_head()
    proposal = harbour.approved()
    with halted(harbour.pods["web-1"]):
        ended = harbour.publish(proposal, "--wait", "95%", "--timeout", "1")
        assert ended.code == 14, ended
        document = ended.document
        assert document["fleet"] | {"seconds": 0} == {
            "seq": document["seq"], "what": "in_force", "wanted_percent": 95, "live": 3, "reached": 2, "enough": False,
            "seconds": 0, "missing": ["web-1"], "differing": [],
        }  # fmt: skip
        assert document["error"]["code"] == "not_reached"
        assert "2 of 3 live sidecars (66 %)" in document["error"]["message"]
        enough = harbour.publish(proposal, "--wait", "66%", "--timeout", "5")
        assert (enough.code, enough.document["already"]) == (0, True)
    again = harbour.publish(proposal, "--wait", "100", "--timeout", str(int(HAPPENS_WITHIN_S)))
    assert (again.code, again.document["fleet"]["reached"]) == (0, 3)


def test_with_nobody_live_only_a_share_of_nothing_is_reached(empty: Harbour) -> None:
    ended = empty.publish(empty.approved(), "--wait", "1%", "--timeout", "30")
    assert ended.code == 14
    assert ended.document["fleet"]["seconds"] < 20, "nobody who could still come would be counted"
    assert "no sidecar was live" in ended.document["error"]["message"]
    assert empty.publish(empty.approved(), "--wait", "0%").code == 0


@pytest.mark.parametrize("share", ["101%", "-1", "half", "", "9.5%", "٩٥"])
def test_a_share_that_is_none_is_a_fault_of_the_command_line(empty: Harbour, share: str) -> None:
    assert empty.ada.refused("publish", "any", "--wait", share, code=2)["code"] == "usage"


def test_on_a_terminal_a_bar_shows_how_far_it_is(harbour: Harbour) -> None:
    harbour.until_head()
    proposal = harbour.approved()
    passphrase = harbour.ada.desk / "passphrase"
    with halted(harbour.pods["web-1"]):
        terminal = Terminal(
            harbour.ada, "publish", proposal, "--approval", proposal.with_suffix(".approval"), "--yes",
            "--wait", "100%", "--passphrase-file", passphrase, ask=False,
        )  # fmt: skip
        terminal.read_until("2 of 3 sidecars answer from seq")
    terminal.read_until("3 of 3 live sidecars (100 %) answer from seq")
    assert terminal.end() == 0


# --- moments and preparations ---


def test_with_a_moment_the_fleet_verifies_first_and_answers_from_it_then(harbour: Harbour) -> None:
    harbour.until_head()
    ended = harbour.publish(harbour.approved(lead_ms=1500), "--wait", "100%")
    assert ended.code == 0, ended
    assert ended.document["fleet"]["seconds"] >= 1.0
    acks = harbour.fleet()["instances"]
    assert all(each["activated_at"] >= ended.document["published_at"] + 1500 for each in acks), acks


def test_a_moment_far_ahead_is_published_by_nobody_yet(empty: Harbour) -> None:
    at_ms = (time.time_ns() // 1_000_000_000 + 3600) * 1000
    ended = empty.publish(empty.approved(activate_at=at_ms))
    assert ended.code == 10, ended
    assert ended.error["code"] == "not_yet"
    opens = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime((at_ms - LEAD_MS_MAX) / 1000))
    assert f"it can be published from {opens} on" in ended.error["message"]
    assert "would wait for it" in ended.error["hint"]


def test_what_asks_for_acknowledgements_is_shown_to_the_fleet_before_it_is_published(harbour: Harbour) -> None:
    head = harbour.until_head()["head"]
    ended = harbour.publish(harbour.approved(acked_percent=100))
    assert ended.code == 0, ended
    kinds = [each["kind"] for each in entries_after(harbour, head)]
    assert kinds == ["preparation", "change"]
    assert ended.document["seq"] == head + 2


def test_nothing_changes_while_too_few_have_acknowledged_and_the_same_command_goes_on(harbour: Harbour) -> None:
    head = harbour.until_head()["head"]
    before = harbour.ada.ok("flag", "show", "newCheckout", "--json").document["definition"]
    proposal = harbour.approved(acked_percent=95)
    with halted(harbour.pods["checkout-2"]):
        for _ in range(2):
            ended = harbour.publish(proposal, "--timeout", "1")
            assert ended.code == 14, ended
            assert "is not published" in ended.error["message"]
            assert "missing: checkout-2" in ended.error["message"]
        assert harbour.ada.ok("flag", "show", "newCheckout", "--json").document["definition"] == before
        assert [each["kind"] for each in entries_after(harbour, head)] == ["preparation"]
    ended = harbour.publish(proposal, "--timeout", str(int(HAPPENS_WITHIN_S)), "--wait", "100%")
    assert (ended.code, ended.document["seq"]) == (0, head + 2), ended


def entries_after(harbour: Harbour, seq: int) -> list[Any]:
    found = harbour.ada.ok("audit", "log", "--json", "--reverse").document
    return [each for each in found if each["seq"] > seq]


def test_a_dry_run_says_that_it_would_prepare(empty: Harbour) -> None:
    proposal = empty.approved(acked_percent=95)
    approval = proposal.with_suffix(".approval")
    ended = empty.ada.ok("publish", proposal, "--approval", approval, "--dry-run")
    assert "would prepare" in ended.out
    assert entries_after(empty, 2) == []


# --- by a service at work ---


def test_with_a_service_at_work_the_command_waits_for_it_and_for_the_fleet(harbour: Harbour) -> None:
    head = harbour.until_head()["head"]
    with running_publisher(harbour.ada) as service:
        service.until("publisher.started")
        ended = harbour.publish(harbour.approved(), "--wait", "100%")
        assert ended.code == 0, ended
        assert ended.document["fleet"]["reached"] == 3
        prepared = harbour.publish(harbour.approved(acked_percent=100))
        assert prepared.code == 0, prepared
        at_ms = (time.time_ns() // 1_000_000_000 + 3600) * 1000
        early = harbour.publish(harbour.approved(activate_at=at_ms))
        assert (early.code, early.error["code"]) == (10, "not_yet")
        assert "nothing is left to do" in early.error["hint"]
        assert [each["title"] for each in harbour.ada.pending()], "it waits in the inbox"
    kinds = [each["kind"] for each in entries_after(harbour, head)]
    assert [kind for kind in kinds if kind in ("preparation", "change")] == ["change", "preparation", "change"]


# --- Kafka ---


@pytest.mark.kafka
def test_the_fleet_is_seen_and_waited_for_over_kafka(kafka_url: Callable[[], str], tmp_path: Path) -> None:
    with moored(tmp_path, ("checkout-1", "web-1"), ledger=kafka_url()) as harbour:
        reached = harbour.publish(harbour.approved(), "--wait", "100%")
        assert (reached.code, reached.document["fleet"]["reached"]) == (0, 2)
        with halted(harbour.pods["web-1"]):
            short = harbour.publish(harbour.approved(), "--wait", "100%", "--timeout", "2")
            assert (short.code, short.document["fleet"]["missing"]) == (14, ["web-1"])
        seen = harbour.until_head()
        assert len({each["state_root"] for each in seen["instances"]}) == 1
        prepared = harbour.publish(harbour.approved(acked_percent=100, lead_ms=500), "--wait", "100%")
        assert prepared.code == 0, prepared
        write_acks(harbour.team.ledger, made_up(harbour.team, "web-7"))
        assert harbour.fleet(code=20)["divergence"][0]["instances"] == ["web-7"]
