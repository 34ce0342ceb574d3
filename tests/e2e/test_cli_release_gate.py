"""Moving a release from the command line: real commands, real sidecars, and what these answer before and after."""

import json
import os
import pty
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc

from tests.e2e.world import Client
from tests.publisher_process import running_publisher
from tests.scenarios.operators import FLAGS, Operator, Team, write_flags
from tests.scenarios.trio import Trio
from tests.sidecar_process import SidecarProcess, running_sidecar

WITHIN_S = 30.0
USERS = [f"user-{n}" for n in range(40)]
CREATE = (
    "release", "create", "spring", "--flag", "newCheckout", "--flag", "greeting=loud", "--owner", "ada@example.org",
    "--service", "shop", "--stage", "1%:1h", "--stage", "half=50%:1h", "--stage", "all=100%", "--yes",
)  # fmt: skip


@dataclass(frozen=True)
class Solo:
    """One person who needs nobody's approval, and a release `spring` of two flags."""

    ada: Operator
    url: str
    directory: Path

    @classmethod
    def begun(cls, directory: Path, url: str | None = None) -> "Solo":
        ada, url = Operator(directory / "ada"), url or f"sqlite:///{directory}/ledger.db"
        ada.ok("init", "--solo", "--person", "ada@example.org", "--log-id", "staging", "--ledger", url, "--yes")
        solo = cls(ada, url, directory)
        solo.publish("import", write_flags(directory / "flags.json"), "--source", "", "--yes")
        solo.publish(*CREATE)
        return solo

    def publish(self, *words: str | Path) -> None:
        self.ada.ok("publish", self.ada.ok(*words).out.strip(), "--yes")

    def move(self, *words: str | Path) -> Mapping[str, Any]:
        """Move the release and return what is said of it."""
        found: Mapping[str, Any] = self.ada.ok("release", *words, "--yes", "--json").document
        return found

    def definitions(self) -> dict[str, Any]:
        return {key: self.shown(key) for key in FLAGS["flags"]}

    def shown(self, key: str) -> Any:
        return self.ada.ok("flag", "show", key, "--json").document["definition"]

    @contextmanager
    def sidecar(self, name: str = "one") -> "Iterator[Pod]":
        root = self.ada.home / "roots" / "staging.root"
        with (
            running_sidecar(self.url, root, self.directory / f"state-{name}", "--instance", name) as process,
            grpc.insecure_channel(process.address) as channel,
        ):
            Client(channel).until_ready()
            yield Pod(process, evaluation_pb2_grpc.ServiceStub(channel))


@dataclass(frozen=True)
class Pod:
    """A running sidecar, and a caller of it."""

    process: SidecarProcess
    stub: Any

    def answers(self, user: str) -> dict[str, str]:
        """The variant of every flag for a user."""
        request = evaluation_pb2.ResolveAllRequest()
        request.context.update({"targetingKey": user, "email": f"{user}@example.com"})
        flags = self.stub.ResolveAll(request, timeout=WITHIN_S).flags
        return {key: flag.variant for key, flag in flags.items()}

    def everybody(self) -> dict[str, dict[str, str]]:
        return {user: self.answers(user) for user in USERS}

    def until(self, wanted: dict[str, dict[str, str]]) -> None:
        until(lambda: self.everybody() == wanted)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def all_on(users: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {user: {"newCheckout": "on", "greeting": "loud"} for user in users}


@pytest.fixture
def solo(tmp_path: Path) -> Solo:
    return Solo.begun(tmp_path)


def test_ramp_activate_and_revert_change_all_flags_and_restore_every_answer_and_definition(solo):
    contexts = solo.directory / "users.jsonl"
    contexts.write_text("".join(json.dumps({"targetingKey": user}) + "\n" for user in USERS))
    with solo.sidecar() as pod:
        before, definitions = pod.everybody(), solo.definitions()
        assert {tuple(sorted(given.items())) for given in before.values()} == {
            (("greeting", "plain"), ("newCheckout", "off"))
        }
        dry = solo.ada.ok("release", "ramp", "spring", "30%", "--dry-run", "--contexts", contexts, "--json").document
        assert (dry["shift"]["contexts"], dry["moved"]) == (len(USERS), "closed → 30 %")
        foretold = {each["context"].split("(")[1].rstrip(")") for each in dry["shift"]["contexts_changed"]}
        assert 5 < len(foretold) < 20

        ramped = solo.move("ramp", "spring", "30%", "--wait", "100%")
        assert (ramped["moved"], ramped["fleet"]["reached"]) == ("closed → 30 %", 1)
        assert pod.everybody() == {user: all_on([user])[user] if user in foretold else before[user] for user in USERS}

        activated = solo.move("activate", "spring", "--wait", "100%")
        assert activated["after"]["share_percent"] == 100
        assert pod.everybody() == all_on(USERS)

        # Another release changes another flag meanwhile: that stays.
        solo.publish("propose", "set", "other", "--definition", other(solo.directory), "--yes")
        solo.publish("release", "create", "summer", "--flag", "other", "--owner", "ada@example.org", "--yes")
        solo.move("activate", "summer", "--wait", "100%")

        reverted = solo.move("revert", "spring", "--wait", "100%")
        assert reverted["moved"] == "100 % → closed"
        assert pod.everybody() == {user: {**given, "other": "on"} for user, given in before.items()}
        assert solo.definitions() == definitions
        entry = solo.ada.ok("audit", "show", str(reverted["proposals"][0]["seq"]), "--json").document
        assert entry["title"] == "revert spring: 100 % → closed"


def other(directory: Path) -> Path:
    file = directory / "other.json"
    file.write_text(json.dumps({"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}))
    return file


def test_conflict_is_named_and_refused_until_the_flag_is_kept_or_changed_back(solo):
    solo.move("activate", "spring")
    solo.publish("propose", "set", "greeting", "--variant", "loud", "--yes")
    refusal = solo.ada.refused("release", "revert", "spring", "--yes", code=10)
    assert refusal["code"] == "revert_conflict"
    assert "release spring opened at seq 4; since then greeting was changed at seq 5" in refusal["message"]
    assert "--keep greeting" in refusal["hint"]
    assert solo.ada.refused("release", "revert", "spring", "--keep", "newCheckout", "--yes", code=10)["code"] == (
        "bad_definition"
    )
    kept = solo.move("revert", "spring", "--keep", "greeting")
    assert kept["moved"] == "100 % → closed; keeps greeting"
    assert solo.shown("greeting")["flag"]["defaultVariant"] == "loud"


def test_chain_of_requirements_is_shown_when_one_is_opened_too_early_or_reverted_too_soon(solo):
    solo.publish("propose", "set", "other", "--definition", other(solo.directory), "--yes")
    solo.publish("release", "create", "summer", "--flag", "other", "--owner", "ada@example.org", "--requires", "spring",
                 "--yes")  # fmt: skip
    early = solo.ada.refused("release", "ramp", "summer", "1%", "--yes", code=10)
    assert early["code"] == "requirement_unmet"
    assert "summer requires spring" in early["message"]
    assert early["hint"] == "activate first spring"
    solo.move("activate", "spring")
    solo.move("ramp", "summer", "1%")
    for words in (("revert", "spring"), ("ramp", "spring", "half")):
        refusal = solo.ada.refused("release", *words, "--yes", code=10)
        assert "got summer requires spring" in refusal["message"]
    drill = solo.ada.ok("release", "drill", "spring", "--dry-run", "--json").document
    assert "summer requires spring" in drill["revert"]
    solo.move("revert", "summer")
    solo.move("revert", "spring")


def test_moment_is_kept_by_the_sidecar(solo):
    with solo.sidecar() as pod:
        before = pod.everybody()
        moved = solo.move("activate", "spring", "--in", "3s")
        moment_s = (moved["proposals"][0]["published_at"] + 3000) / 1000
        assert moved["moment"]["lead_ms"] == 3000
        seen: list[tuple[float, bool]] = []
        while not (seen and seen[-1][1]):
            asked_at_s, given = time.time(), pod.answers(USERS[0])
            seen.append((asked_at_s, given == all_on(USERS[:1])[USERS[0]]))
            assert seen[-1][1] or given == before[USERS[0]]
            assert time.time() < moment_s + WITHIN_S
        assert len([at_s for at_s, on in seen if not on]) > 5
        assert moment_s - 0.05 <= time.time() < moment_s + 1.0


def test_moment_at_a_time_waits_in_the_inbox_while_it_is_far_ahead(solo):
    now_s = int(time.time())
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s + 120))
    far = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now_s + 3600))
    waiting = solo.ada.ok("release", "ramp", "spring", "10%", "--at", far, "--yes")
    assert f"flaghoist publish {waiting.out.strip()}` then: it is published from" in waiting.err
    assert solo.ada.ok("audit", "verify", "--json").document["seq"] == 3
    published = solo.move("ramp", "spring", "10%", "--at", soon)
    assert published["proposals"][0]["seq"] == 4
    # What comes after it takes effect no sooner: a drill would measure the wait.
    refusal = solo.ada.refused("release", "drill", "spring", "--yes", code=10)
    assert (refusal["code"], "drill again when it is over" in refusal["hint"]) == ("not_yet", True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--at", "2020-01-01T00:00Z"), "is over"),
        (("--at", "7d"), "want a time such as"),
        (("--at", "2030-01-01"), "want a time such as"),
        (("--at", "2030-01-01T00:00Z", "--in", "2s"), "want --at or --in, got both"),
        (("--in", "6m"), "at most 5m"),
        (("--in", "2"), "want a span such as 2s"),
        (("--when-acked", "0%"), "want 1% .. 100%"),
        (("--when-acked", "95%", "--in", "0"), "longer than 0"),
        (("--contexts", "no-such-file"), "no-such-file"),
    ],
)
def test_moments_and_contexts_that_cannot_be_are_refused_before_anything_is_read(tmp_path, words, told):
    ada = Operator(tmp_path / "ada")
    assert told in ada.refused("release", "activate", "spring", *words, "--yes", code=2)["message"]


def test_dry_run_names_who_would_change_and_bad_lines_by_number(solo):
    lines = ['{"targetingKey": "kim", "email": "kim@example.org"}', '{"targetingKey": "sam"}']
    words = ("release", "activate", "spring", "--dry-run", "--contexts", "-")
    ended = solo.ada.run_process(*words, stdin="\n".join(lines).encode())
    assert ended.code == 0, ended
    assert "of 2 contexts, 2 are answered otherwise (100.0 %):" in ended.out
    assert "  greeting: plain → loud for 1\n  newCheckout: off → on for 2\n" in ended.out
    assert "  line 2 (sam): greeting plain → loud" in ended.out
    bad = solo.ada.run_process(*words, stdin=b"{}\nnonsense\n[]\n")
    assert bad.code == 10
    assert "stdin: 2 problems" in bad.err
    assert "line 2: want JSON" in bad.err
    assert "line 3: want an object, got list" in bad.err
    sampled = solo.ada.ok("release", "ramp", "spring", "10%", "--dry-run").out
    assert "of 10000 made-up users" in sampled
    assert solo.ada.ok("audit", "verify", "--json").document["seq"] == 3


def test_walk_begins_pauses_and_resumes_and_says_what_comes_next(solo):
    walked = solo.ada.ok("release", "ramp", "spring", "1%", "--walk", "--yes")
    assert "the publisher takes the next stage, half (50 % of users), 1h after this" in walked.err
    assert solo.move("pause", "spring")["moved"] == "paused at 1 %"
    assert solo.move("pause", "spring") == {"proposals": [], "release": "spring", "unchanged": 1}
    resumed = solo.ada.ok("release", "resume", "spring", "--yes")
    assert "1h after this, its soak starts anew" in resumed.err
    solo.move("revert", "spring")
    assert solo.ada.refused("release", "resume", "spring", "--yes", code=10)["code"] == "not_walking"


def test_acknowledged_release_is_prepared_first_and_changes_nothing_when_the_fleet_is_away(solo):
    with solo.sidecar() as pod:
        # Nobody acknowledges while it stands still; nothing changes then.
        until(lambda: len(fleet(solo.ada)) == 1)
        pod.process.process.send_signal(signal.SIGSTOP)
        try:
            ended = solo.ada.run("release", "activate", "spring", "--when-acked", "100%", "--timeout", "2", "--yes",
                                 "--json")  # fmt: skip
            assert ended.code == 14, ended
            assert "no answer has changed" in ended.error["message"]
            assert "`flaghoist publish` with that id goes on from there" in ended.error["hint"]
        finally:
            pod.process.process.send_signal(signal.SIGCONT)
        moved = solo.move("activate", "spring", "--when-acked", "100%", "--in", "500ms", "--wait", "100%")
        assert pod.everybody() == all_on(USERS)
        kinds = [entry["kind"] for entry in solo.ada.ok("audit", "log", "--json").document]
        assert kinds[:3] == ["change", "preparation", "preparation"]
        assert moved["moment"] == {"at": None, "lead_ms": 500, "acked_percent": 100}


def fleet(operator: Operator) -> list[Mapping[str, Any]]:
    """The instances that have acknowledged anything."""
    ended = operator.run("fleet", "--json")
    found: list[Mapping[str, Any]] = ended.document["instances"]
    return found


# --- several people ---


def test_what_others_must_approve_waits_and_is_then_published_by_the_same_command(tmp_path):
    team = Team.begun(tmp_path)
    team.imported(write_flags(tmp_path / "flags.json"))
    created = (word.replace("newCheckout", "flags.json#newCheckout") for word in CREATE)
    team.published(team.ada.ok(*(word.replace("greeting", "flags.json#greeting") for word in created)).out.strip())
    ended = team.ada.ok("release", "ramp", "spring", "10%", "--yes")
    asked = ended.out.strip()
    assert "  still needs an approval by anybody else who may approve" in ended.err
    assert f"flaghoist approve {asked}" in ended.err
    early = team.ada.refused("release", "ramp", "spring", "10%", "--publish", "--yes", code=10)
    assert early["code"] == "not_approved"
    assert asked in early["message"]
    team.grace.ok("approve", asked, "--yes")
    none = team.ada.refused("release", "ramp", "spring", "11%", "--publish", "--yes", code=10)
    assert "got none that asks for it" in none["message"]
    published = team.ada.ok("release", "ramp", "spring", "10%", "--publish", "--yes", "--json").document
    assert (published["proposals"][0]["id"], published["proposals"][0]["seq"]) == (asked, 4)


@pytest.mark.parametrize("words", [("release", "revert", "spring", "--emergency"), ("kill", "--release", "spring")])
def test_emergency_closes_a_release_without_approvals_and_others_ratify_it(tmp_path, words):
    trio = Trio.begun(tmp_path, "--no-heartbeats")
    trio.guarded()
    for asked in (
        ("release", "create", "spring", "--flag", "newCheckout", "--owner", "ada@example.org", "--service", "web"),
        ("release", "activate", "spring"),
    ):
        proposal = trio.ada.ok(*asked, "--key", "ada", "--yes").out.strip()
        trio.grace.ok("approve", proposal, "--yes")
        trio.ada.ok("publish", proposal, "--yes")
    ended = trio.ada.ok(*words, "--reason", "orders fail", "--dry-run")
    assert "release spring: now open for everybody" in ended.err
    assert "→ closed: its 1 flags answer as they did before it opened" in ended.err
    assert trio.ada.run(*words, "--yes").code == 2  # without a reason
    killed = trio.ada.ok(*words, "--reason", "orders fail", "--yes", "--json").document
    [kill] = killed["kills"]
    assert (kill["target"], kill["key"], kill["share_percent"], kill["flags"]) == (
        "RELEASE", "spring", 100, ["newCheckout"],
    )  # fmt: skip
    shown = trio.grace.ok("release", "show", "spring", "--json").document
    assert shown["share_percent"] == 0
    emergency = killed["emergencies"][0]["id"]
    trio.grace.ok("approve", emergency, "--yes")
    trio.ada.ok("publish", emergency, "--yes")
    again = trio.ada.ok("release", "activate", "spring", "--key", "ada", "--yes").out.strip()
    trio.grace.ok("approve", again, "--yes")


def test_emergency_never_waits_for_a_moment(tmp_path):
    ada = Operator(tmp_path / "ada")
    Solo.begun(tmp_path)
    for more in (("--in", "2s"), ("--when-acked", "95%"), ("--keep", "greeting"), ("--publish",)):
        words = ("release", "revert", "spring", "--emergency", "--reason", "x", *more, "--yes")
        assert "it takes effect at once" in ada.refused(*words, code=2)["message"]


# --- drills ---


def test_drill_measures_each_live_sidecar_and_records_it_without_changing_an_answer(solo):
    solo.move("activate", "spring")
    with solo.sidecar("one") as one, solo.sidecar("two") as two:
        until(lambda: len(fleet(solo.ada)) == 2)
        before = [one.everybody(), two.everybody()]
        found = solo.ada.ok("release", "drill", "spring", "--yes", "--json").document
        assert (found["instances"], found["reached"], found["missing"]) == (2, 2, [])
        assert sorted(found["took_ms"]) == ["one", "two"]
        assert found["to_entry_ms"] > 0
        assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["last_ms"] < WITHIN_S * 1000
        assert found["revert"] == "allowed"
        assert found["seqs"] == [5, 6, 7]
        assert [one.everybody(), two.everybody()] == before
    shown = solo.ada.ok("release", "show", "spring", "--json").document["drill"]
    assert shown["hoisted"] is False
    assert shown["result"]["p95_ms"] == found["p95_ms"]
    closing = solo.move("revert", "spring")
    assert closing["moved"] == "100 % → closed"


def test_drill_names_who_is_missing_and_the_next_one_lowers_what_an_interrupted_one_left(solo):
    with solo.sidecar("one") as one, solo.sidecar("two") as two:
        until(lambda: len(fleet(solo.ada)) == 2)
        two.process.process.send_signal(signal.SIGSTOP)
        try:
            ended = solo.ada.run("release", "drill", "spring", "--yes", "--timeout", "2")
            assert ended.code == 14, ended
            assert "1 of 2 live sidecars answered from the lowered gate" in ended.out
            assert "missing: two" in ended.err
            with solo.ada.spawn("release", "drill", "spring", "--yes", "--timeout", "60") as process:
                try:
                    until(lambda: hoisted(solo.ada))
                    process.send_signal(signal.SIGINT)
                    _, err = process.communicate(timeout=WITHIN_S)
                except BaseException:
                    process.kill()
                    raise
            assert process.returncode == 130, err
            assert b"the next drill lowers its shadow gate first" in err
        finally:
            two.process.process.send_signal(signal.SIGCONT)
        assert hoisted(solo.ada)
        ended = solo.ada.ok("release", "drill", "spring", "--yes", "--json")
        assert "an earlier drill was interrupted: its shadow gate is lowered first" in ended.err
        assert (ended.document["reached"], ended.document["missing"]) == (2, [])
        titles = [entry["title"] for entry in solo.ada.ok("audit", "log", "--json").document[:4]]
        assert [title.removeprefix("drill of release spring: ") for title in titles] == [
            "record what was measured", "lower the shadow gate", "raise the shadow gate",
            "lower what an earlier drill left",
        ]  # fmt: skip
        assert not hoisted(solo.ada)
        assert one.answers(USERS[0]) == {"newCheckout": "off", "greeting": "plain"}


def hoisted(operator: Operator) -> bool:
    drill = operator.ok("release", "show", "spring", "--json").document["drill"]
    return drill is not None and drill["hoisted"]


def test_drill_without_sidecars_signs_nothing(solo):
    refusal = solo.ada.refused("release", "drill", "spring", "--yes", code=14)
    assert "want sidecars that acknowledge" in refusal["message"]
    assert solo.ada.ok("audit", "verify", "--json").document["seq"] == 3


def test_drill_goes_by_the_publisher_at_work(tmp_path):
    trio = Trio.begun(tmp_path)
    trio.guarded()
    proposal = trio.ada.ok("release", "create", "spring", "--flag", "newCheckout", "--owner", "ada@example.org",
                           "--service", "web", "--key", "ada", "--yes").out.strip()  # fmt: skip
    trio.grace.ok("approve", proposal, "--yes")
    trio.ada.ok("publish", proposal, "--yes")
    with (
        running_publisher(trio.ada) as service,
        running_sidecar(trio.ledger, trio.root_file, tmp_path / "state", "--instance", "one") as sidecar,
    ):
        service.until("publisher.started")
        sidecar.until("front.opened", face="rpc")
        until(lambda: len(fleet(trio.grace)) == 1)
        found = trio.grace.ok("release", "drill", "spring", "--yes", "--json").document
    assert (found["instances"], found["reached"]) == (1, 1)
    assert trio.grace.ok("audit", "log", "--json").document[0]["policy"] == "drill"


@pytest.mark.kafka
def test_revert_and_drill_over_kafka(kafka_url, tmp_path):
    solo = Solo.begun(tmp_path, kafka_url())
    with solo.sidecar("one") as one, solo.sidecar("two"):
        before = one.everybody()
        solo.move("activate", "spring", "--when-acked", "100%", "--in", "1s", "--wait", "100%")
        assert one.everybody() == all_on(USERS)
        found = solo.ada.ok("release", "drill", "spring", "--yes", "--json").document
        assert (found["reached"], found["missing"], found["revert"]) == (2, [], "allowed")
        # Sidecars may have it before this machine has read it back.
        assert found["to_entry_ms"] > 0
        assert 0 < found["last_ms"] < WITHIN_S * 1000
        solo.move("revert", "spring", "--wait", "100%")
        assert one.everybody() == before


def test_drill_on_a_terminal_begins_with_the_operators_enter(solo):
    with solo.sidecar("one"):
        until(lambda: len(fleet(solo.ada)) == 1)
        lead, follow = pty.openpty()
        process = solo.ada.spawn("release", "drill", "spring", terminal=follow)
        try:
            screen = Screen(lead)
            screen.until("Drill the revert of release spring")
            screen.type("y\n")
            screen.until("press Enter to lower it")
            screen.type("\n")
            screen.until("recorded as seq 6")
            assert process.wait(WITHIN_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class Screen:
    """The other end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, wanted: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while wanted not in self._text:
            ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))
            assert ready, self._text
            self._text += os.read(self._descriptor, 65536).decode(errors="replace")
