"""Bad input gets a clear error and a documented exit code, and nothing is half done."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from flaghoist.values import LogId
from publisher.journal import Journal
from tests.scenarios.operators import FLAGS, Operator, Team, write_flags

GOOD: dict[str, Any] = FLAGS["flags"]["newCheckout"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """One ledger for all of these tests: none of them may change it."""
    directory = tmp_path_factory.mktemp("bad-input")
    team = Team.begun(directory)
    team.imported(write_flags(directory / "flags.json"))
    return team


@pytest.fixture(autouse=True)
def _nothing_changes(team: Team) -> Any:
    def state() -> object:
        return team.ada.ok("audit", "verify", "--json").document, team.ada.pending(), sorted(team.ada.home.rglob("*"))

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bad.json", '{"flags": {\n "a": }}', "line 2 column 7"),
        ("bad.yaml", "flags:\n  a: [1\n  b: 2\n", "line 3"),
        ("empty.json", "", "line 1"),
        ("list.json", "[]", "flags: want an object of flags by key, got an array"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(
    team: Team, tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    error = team.ada.refused("import", path, "--yes", code=10)
    assert error["code"] == "bad_file"
    assert said in error["message"]
    assert name in error["message"]


@pytest.mark.parametrize(
    ("key", "flag", "said"),
    [
        ("f", {**GOOD, "targeting": {"frobnicate": [1]}}, "frobnicate"),
        ("f", {**GOOD, "targeting": {"if": [{"$ref": "nowhere"}, "on", "off"]}}, "nowhere"),
        ("f", {**GOOD, "variants": {"on": True, "off": "no"}}, "variants"),
        ("f", {**GOOD, "defaultVariant": "maybe"}, "maybe"),
        ("f", {**GOOD, "state": "on"}, "state"),
        ("f", {**GOOD, "variants": {}}, "variants"),
        ("spaces in it", GOOD, "flag key"),
        ("../../etc/passwd", GOOD, "flag key"),
        ("f\u202e", GOOD, "flag key"),
        ("", GOOD, "flag key"),
    ],
    ids=["operator", "ref", "mixed", "default", "state", "no-variants", "spaces", "path", "bidi", "empty-key"],
)
def test_a_bad_flag_is_refused_with_its_path(team: Team, tmp_path: Path, key: str, flag: object, said: str) -> None:
    error = team.ada.refused("import", write_flags(tmp_path / "bad.json", {"flags": {key: flag}}), "--yes", code=10)
    assert error["code"] == "bad_file"
    assert f"flags.{key}" in error["message"]
    assert said in error["message"]


def test_every_bad_flag_of_a_file_is_named(team: Team, tmp_path: Path) -> None:
    flags = {"good": GOOD, **{f"bad{n}": {**GOOD, "targeting": {"frobnicate": [n]}} for n in range(3)}}
    error = team.ada.refused("import", write_flags(tmp_path / "bad.json", {"flags": flags}), "--yes", code=10)
    assert "3 problems" in error["message"]
    assert all(f"flags.bad{n}" in error["message"] for n in range(3))


def test_a_file_of_100_mb_is_refused_before_it_is_read(team: Team, tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)  # sparse: it takes no disk, and would take memory
    started = time.process_time()
    error = team.ada.refused("import", path, "--yes", code=10)
    assert error["code"] == "too_large"
    assert "10485760" in error["message"]
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "args", [("import", "no-such-file.json"), ("propose", "set", "newCheckout", "--targeting", "no-such-file")]
)
def test_a_missing_file_is_named(team: Team, args: tuple[str, ...]) -> None:
    error = team.ada.refused(*args, "--yes", code=2)
    assert "no-such-file" in error["message"]


def test_a_directory_is_no_flag_file(team: Team, tmp_path: Path) -> None:
    assert "directory" in team.ada.refused("import", tmp_path, "--yes", code=2)["message"].lower()


def test_a_wrong_passphrase_is_refused_and_not_repeated(team: Team, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase\n")
    ended = team.ada.run("propose", "set", "newCheckout", "--variant", "on", "--yes", "--passphrase-file", wrong)
    assert ended.code == 10
    assert "error[wrong_passphrase]" in ended.err
    assert "not the passphrase" not in ended.err


@pytest.mark.parametrize("content", ["", "\n", "two\nlines\n", "x" * 5000], ids=["empty", "blank", "two", "long"])
def test_a_passphrase_file_that_is_none_is_refused(team: Team, tmp_path: Path, content: str) -> None:
    path = tmp_path / "passphrase"
    path.write_text(content)
    ended = team.ada.run("propose", "set", "newCheckout", "--variant", "on", "--yes", "--passphrase-file", path)
    assert ended.code in (2, 10)
    assert "error[" in ended.err
    assert "Traceback" not in ended.err


def test_without_a_passphrase_and_a_terminal_it_ends_with_usage(team: Team) -> None:
    environ = dict(team.ada.environ)
    del team.ada.environ["FLAGHOIST_PASSPHRASE_FILE"]
    try:
        error = team.ada.refused("propose", "set", "newCheckout", "--variant", "on", "--yes", code=2)
    finally:
        team.ada.environ = environ
    assert "--passphrase-fd" in error["message"]


def test_a_passphrase_comes_from_a_descriptor(team: Team) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"not the passphrase\n")
    os.close(writer)
    try:
        ended = team.ada.run(
            "propose", "set", "newCheckout", "--variant", "on", "--yes", "--passphrase-fd", str(reader)
        )
    finally:
        os.close(reader)
    assert "error[wrong_passphrase]" in ended.err


def test_the_ledger_of_another_environment_is_refused(team: Team, tmp_path: Path) -> None:
    other = Team.begun(tmp_path, log_id="production")
    root = team.ada.home / "roots" / "staging.root"
    for args in (
        ("flag", "list"),
        ("pending",),
        ("import", write_flags(tmp_path / "f.json"), "--yes"),
        ("audit", "verify"),
    ):
        error = team.ada.refused(*args, "--ledger", other.ledger, "--root", root, code=10)
        assert error["code"] == "wrong_root"


def test_a_ledger_that_is_not_pinned_is_refused(team: Team, tmp_path: Path) -> None:
    error = team.ada.refused("flag", "list", "--ledger", f"sqlite:///{tmp_path}/other.db", code=2)
    assert "no root is pinned" in error["message"]


def test_a_ledger_that_is_not_there_is_not_made(team: Team, tmp_path: Path) -> None:
    root = team.ada.home / "roots" / "staging.root"
    error = team.ada.refused("flag", "list", "--ledger", f"sqlite:///{tmp_path}/none.db", "--root", root, code=2)
    assert error["code"] == "log_missing"
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("url", ["http://x", "sqlite://x", "kafka://", "staging2", "kafka://host:99999/t"])
def test_a_url_of_no_known_form_is_refused(team: Team, url: str) -> None:
    assert team.ada.refused("flag", "list", "--ledger", url, code=2)["code"] == "misconfigured"


def test_a_proposal_that_nobody_made_is_unknown(team: Team) -> None:
    assert team.ada.refused("publish", "01ZZZZ", "--yes", code=10)["code"] == "unknown_proposal"
    assert team.grace.refused("approve", "01ZZZZ", "--yes", code=10)["code"] == "unknown_proposal"


def test_a_file_that_is_no_proposal_is_refused(team: Team, tmp_path: Path) -> None:
    path = tmp_path / "junk.proposal"
    path.write_bytes(os.urandom(300))
    assert team.grace.refused("approve", path, "--yes", code=10)["code"] == "malformed"


def test_a_key_without_the_role_is_refused(team: Team) -> None:
    error = team.ada.refused("propose", "set", "newCheckout", "--variant", "on", "--yes", "--key", "publisher", code=10)
    assert error["code"] == "wrong_role"
    assert "ada@example.org" in error["message"]


def test_bad_settings_are_all_named(team: Team, tmp_path: Path) -> None:
    eve = Operator(tmp_path / "eve")
    eve.home.mkdir()
    (eve.home / "config.toml").write_text('legder = "x"\nkey = 7\n')
    message = eve.refused("flag", "list", code=2)["message"]
    assert "legder" in message
    assert "key" in message


@pytest.mark.parametrize("home", ["/proc/flaghoist", "/dev/null/flaghoist"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, home: str) -> None:
    eve = Operator(tmp_path / "eve")
    eve.environ["FLAGHOIST_HOME"] = home
    error = eve.refused("key", "new", "eve", "--person", "eve@example.org", code=2)
    assert home in error["message"]
    assert "FLAGHOIST_HOME" in error["hint"]
    init = ("init", "--log-id", "eve", "--solo", "--person", "eve@example.org", "--yes")
    eve.refused(*init, "--ledger", f"sqlite:///{tmp_path}/eve.db", code=2)
    assert not (tmp_path / "eve.db").exists()


def test_a_journal_that_cannot_be_written_publishes_nothing(team: Team, tmp_path: Path) -> None:
    """A file stands where the journal's directory must be: as good as a read-only disk, also for root."""
    other = Team.begun(tmp_path, log_id="production")
    proposal = other.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    other.grace.ok("approve", proposal, "--yes")
    (other.ada.home / "state").rename(other.ada.home / "state.away")
    (other.ada.home / "state").write_text("")
    error = other.ada.refused("publish", proposal, "--yes", code=2)
    assert "journal" in error["message"]
    assert other.ada.ok("audit", "verify", "--json").document["seq"] == 1
    (other.ada.home / "state").unlink()
    (other.ada.home / "state.away").rename(other.ada.home / "state")
    other.ada.ok("publish", proposal, "--yes")


def test_while_another_process_publishes_it_is_named_and_nothing_is_sent(team: Team, tmp_path: Path) -> None:
    other = Team.begun(tmp_path, log_id="production")
    proposal = other.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    other.grace.ok("approve", proposal, "--yes")
    with Journal.open(other.ada.home / "state" / "journals", LogId("production")):
        error = other.ada.refused("publish", proposal, "--yes", code=12)
    assert str(os.getpid()) in error["message"]
    assert other.ada.ok("audit", "verify", "--json").document["seq"] == 1


def test_a_broker_that_is_down_ends_with_unavailable_in_bounded_time(team: Team, tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound and not listening: the port is nobody else's meanwhile
        bound.bind(("127.0.0.1", 0))
        url = f"kafka://127.0.0.1:{bound.getsockname()[1]}/flags"
        root = team.ada.home / "roots" / "staging.root"
        started = time.monotonic()
        error = team.ada.refused("flag", "list", "--ledger", url, "--root", root, code=12)
        assert error["hint"]
        eve = Operator(tmp_path / "eve")
        eve.refused(
            "init", "--solo", "--log-id", "eve", "--person", "eve@example.org", "--ledger", url, "--yes", code=12
        )
        assert time.monotonic() - started < 60
        assert not (eve.home / "environments.toml").exists()


def test_a_bug_asks_for_a_report_and_shows_its_traceback_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from publisher.home import Home

    def broken(self: Home) -> object:
        raise ZeroDivisionError("made by the test")

    monkeypatch.setattr(Home, "settings", broken)
    eve = Operator(tmp_path / "eve")
    ended = eve.run("flag", "list")
    assert ended.code == 1
    assert "report" in ended.err
    assert "Traceback" not in ended.err
    eve.environ["FLAGHOIST_DEBUG"] = "1"
    assert "Traceback" in eve.run("flag", "list").err
