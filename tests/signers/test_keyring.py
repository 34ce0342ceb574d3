"""Operators whose keys are SSH keys: how commands find them, and what is said when they cannot."""

import subprocess
from pathlib import Path

import pytest

from flaghoist import sshsig
from flaghoist.codec import decode_envelope
from flaghoist.signing import pae
from flaghoist.values import Algorithm, Role
from publisher.home import read_root
from tests.scenarios.operators import Operator, Team, write_flags
from tests.signers.holders import SMALL, SshAgent, ran

COMMENT = "ada@laptop"


class SshTeam:
    """Ada and Grace have SSH keys, in one agent; the publisher's key is a file of Ada's."""

    def __init__(self, directory: Path, ssh_agent: SshAgent) -> None:
        self.agent = ssh_agent
        self.ada, self.grace = Operator(directory / "ada"), Operator(directory / "grace")
        self.keys = {name: ssh_agent.hold(name, comment=f"{name}@laptop") for name in ("ada", "grace")}
        cards = []
        for operator, name in ((self.ada, "ada"), (self.grace, "grace")):
            operator.environ["SSH_AUTH_SOCK"] = str(ssh_agent.socket)
            cards.append(operator.desk / f"{name}.pub")
            person = f"{name}@example.org"
            operator.ok("key", "card", "--ssh", f"{name}@laptop", "--person", person, "--out", cards[-1])
        members = [word for card in cards for word in ("--member", str(card))]
        url = f"sqlite:///{directory}/ledger.db"
        # The publisher's new key is made, and nobody's passphrase is asked for the root: the agent signs it.
        self.ada.ok("init", *SMALL, "--log-id", "staging", "--ledger", url, *members, "--yes")
        self.root_file = self.ada.home / "roots/staging.root"
        self.grace.ok("root", "pin", self.root_file, "--ledger", url, "--yes")

    def public(self, name: str) -> bytes:
        return sshsig.public_of_line(self.keys[name].with_suffix(".pub").read_text())

    def named(self, name: str) -> str:
        return f"ssh:{sshsig.fingerprint(self.public(name))}"


@pytest.fixture
def team(tmp_path: Path, ssh_agent: SshAgent) -> SshTeam:
    return SshTeam(tmp_path, ssh_agent)


def test_people_with_ssh_keys_propose_approve_and_sign_the_root(team: SshTeam, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    proposal = team.ada.ok("import", flags, "--key", f"ssh:{COMMENT}", "--yes").out.strip()
    team.grace.environ["FLAGHOIST_KEY"] = team.named("grace")
    team.grace.ok("approve", proposal, "--yes")
    team.ada.ok("publish", proposal, "--yes")
    root = read_root(team.root_file)
    algorithms = {str(key.person): key.algorithm for key in root.record.keys}
    assert algorithms["ada@example.org"] is Algorithm.SSHSIG_ED25519
    assert algorithms["publisher"] is Algorithm.ED25519
    assert not list((team.grace.home / "keys").glob("*"))


def test_a_signed_record_is_checked_by_ssh_keygen_alone(team: SshTeam, tmp_path: Path) -> None:
    out = tmp_path / "change.proposal"
    team.ada.ok("import", write_flags(tmp_path / "f.json"), "--key", f"ssh:{COMMENT}", "--out", out, "--yes")
    envelope = decode_envelope(out.read_bytes())
    signers, armour = tmp_path / "signers", tmp_path / "signature"
    signers.write_text(sshsig.allowed_signer("ada@example.org", team.public("ada")) + "\n")
    armour.write_text(sshsig.armoured(team.public("ada"), envelope.signatures[0].signature))
    command = ("ssh-keygen", "-Y", "verify", "-f", signers, "-I", "ada@example.org", "-n", "flaghoist", "-s", armour)
    message = pae(envelope.payload_type, envelope.payload)
    assert ran(*command, stdin=message).returncode == 0
    assert ran(*command, stdin=message.replace(b"newCheckout", b"newCheckouts")).returncode != 0


def test_the_only_fitting_key_of_the_agent_is_found_by_itself(tmp_path: Path, ssh_agent: SshAgent) -> None:
    ada, grace = Operator(tmp_path / "ada"), Operator(tmp_path / "grace")
    key = ssh_agent.make("grace")
    card = tmp_path / "grace.pub"
    grace.ok("key", "card", "--ssh", f"{key}.pub", "--person", "grace@example.org", "--out", card)
    url = f"sqlite:///{tmp_path}/ledger.db"
    members = ("--member", ada.make_key("ada", "ada@example.org"), "--member", card)
    ada.ok("init", *SMALL, "--log-id", "staging", "--ledger", url, *members, "--yes")
    grace.ok("root", "pin", ada.home / "roots/staging.root", "--ledger", url, "--yes")
    proposal = ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()

    missing = grace.refused("approve", proposal, "--yes", code=2)
    assert "SSH_AUTH_SOCK names no agent" in missing["message"]
    grace.environ["SSH_AUTH_SOCK"] = str(ssh_agent.socket)
    unloaded = grace.refused("approve", proposal, "--yes", code=2)
    assert "the SSH agent holds none of their keys" in unloaded["message"]
    ssh_agent.add(key)
    assert grace.ok("approve", proposal, "--yes", "--json").document["approver"] == "grace@example.org"
    ssh_agent.stop()
    gone = grace.refused("approve", proposal, "--yes", code=2)
    assert "SSH agent at" in gone["message"]


def test_two_fitting_keys_must_be_named(team: SshTeam, tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.json")
    error = team.ada.refused("import", flags, "--yes", code=2)
    assert team.named("ada") in error["message"]
    assert error["hint"].startswith("name one: --key ssh:SHA256:")
    proposal = team.ada.ok("import", flags, "--key", team.named("ada"), "--yes").out.strip()
    assert team.grace.refused("approve", proposal, "--key", team.named("ada"), "--yes", code=10)


def test_the_setting_names_an_ssh_key_and_a_key_with_the_role_still_publishes(team: SshTeam, tmp_path: Path) -> None:
    (team.ada.home / "config.toml").write_text(f'key = "{team.named("ada")}"\n')
    (team.grace.home / "config.toml").write_text('key = "ssh:grace@laptop"\n')
    proposal = team.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    team.grace.ok("approve", proposal, "--yes")
    team.agent.stop()  # nobody asks it: the publisher's key is a file, and a fingerprint says which key is meant
    team.ada.ok("publish", proposal, "--yes")


def test_an_agent_that_is_gone_signs_nothing(team: SshTeam, tmp_path: Path) -> None:
    team.agent.stop()
    flags = write_flags(tmp_path / "flags.json")
    error = team.ada.refused("import", flags, "--key", team.named("ada"), "--yes", code=12)
    assert error["code"] == "ssh_agent_unavailable"
    assert "nothing was signed" in error["hint"]
    assert team.ada.pending() == []


def test_a_person_who_says_no_to_the_agent_signs_nothing(team: SshTeam, tmp_path: Path) -> None:
    subprocess.run(["ssh-add", "-q", "-d", team.keys["ada"]], env=team.agent.environ, check=True)
    team.agent.add(team.keys["ada"], confirm=True)
    team.agent.answer(yes=False)
    flags = write_flags(tmp_path / "flags.json")
    error = team.ada.refused("import", flags, "--key", f"ssh:{COMMENT}", "--yes", code=10)
    assert error["code"] == "ssh_agent_refused"
    assert team.ada.pending() == []


def test_an_ssh_key_that_the_root_does_not_list_has_no_role(team: SshTeam, tmp_path: Path) -> None:
    team.agent.hold("stranger", comment="stranger")
    error = team.ada.refused("import", write_flags(tmp_path / "f.json"), "--key", "ssh:stranger", "--yes", code=10)
    assert error["code"] == "wrong_role"


def test_an_ssh_key_does_not_pass_for_a_file_key_of_the_same_public_half(team: SshTeam) -> None:
    root = read_root(team.root_file)
    ssh = next(key for key in root.record.keys if key.person == "ada@example.org")
    assert ssh.public == team.public("ada")
    from flaghoist.signing import key_id

    assert root.key(key_id(Algorithm.ED25519, ssh.public)) is None


def test_key_list_shows_files_and_those_agent_keys_that_a_pinned_root_lists(team: SshTeam) -> None:
    team.agent.hold("stranger", comment="stranger")
    listed = {(row["name"], row["holder"], row["person"]) for row in team.ada.ok("key", "list", "--json").document}
    assert listed == {
        ("publisher", "file", "publisher"),
        (team.named("ada"), "ssh-agent", "ada@example.org"),
        (team.named("grace"), "ssh-agent", "grace@example.org"),
    }


def test_key_list_goes_on_without_its_agent_and_says_so(team: SshTeam) -> None:
    team.agent.stop()
    ended = team.ada.ok("key", "list")
    assert "publisher" in ended.out
    assert "SSH agent at" in ended.err


def test_doctor_tells_which_of_the_agents_keys_may_do_what(team: SshTeam) -> None:
    told = {check["check"]: check["text"] for check in team.grace.ok("doctor", "--json").document}
    assert told[f"key {team.named('grace')}"] == "grace@example.org, with the SSH agent: approver, requester, root"
    team.agent.stop()
    told = {check["check"]: check["health"] for check in team.grace.ok("doctor", "--json").document}
    assert told["ssh agent"] == "warn"


def test_a_card_is_printed_when_no_file_is_named(team: SshTeam) -> None:
    argv = ("key", "card", "--ssh", team.named("ada"), "--person", "ada@example.org")
    assert team.ada.ok(*argv).out == (team.ada.desk / "ada.pub").read_text()


def test_a_card_is_never_overwritten_and_a_dry_run_writes_none(team: SshTeam, tmp_path: Path) -> None:
    argv = ("key", "card", "--ssh", COMMENT, "--person", "ada@example.org", "--out")
    assert "already" in team.ada.refused(*argv, team.ada.desk / "ada.pub", code=2)["message"]
    team.ada.ok(*argv, tmp_path / "new.pub", "--dry-run")
    assert not (tmp_path / "new.pub").exists()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ((), "one of --ssh"),
        (("--ssh", COMMENT, "--key", "hsm:1"), "one of --ssh"),
        (("--key", "publisher"), "key show publisher"),
        (("--key", "kms:alias/x"), "awskms:"),
    ],
    ids=["none", "both", "a file", "no scheme"],
)
def test_a_card_of_something_else_is_a_usage_error(team: SshTeam, argv: tuple[str, ...], text: str) -> None:
    assert text in team.ada.refused("key", "card", "--person", "ada@example.org", *argv, code=2)["message"]


def test_the_agent_is_not_asked_where_the_root_lists_no_ssh_key(tmp_path: Path) -> None:
    team = Team.begun(tmp_path)
    team.ada.environ["SSH_AUTH_SOCK"] = "/nowhere/agent"
    assert "SSH agent" not in team.ada.ok("import", write_flags(tmp_path / "flags.json"), "--yes").err


def test_init_may_be_told_which_ssh_key_signs(tmp_path: Path, ssh_agent: SshAgent) -> None:
    ada = Operator(tmp_path / "ada")
    ada.environ["SSH_AUTH_SOCK"] = str(ssh_agent.socket)
    cards = []
    for name in ("ada", "grace"):
        ssh_agent.hold(name, comment=name)
        cards.append(tmp_path / f"{name}.pub")
        ada.ok("key", "card", "--ssh", name, "--person", f"{name}@example.org", "--out", cards[-1])
    begun = ("init", *SMALL, "--log-id", "staging", "--ledger", f"sqlite:///{tmp_path}/ledger.db", "--yes")
    members = [word for card in cards for word in ("--member", str(card))]
    ssh_agent.hold("stranger", comment="stranger")
    assert "stranger" in ada.refused(*begun, *members, "--sign-with", "ssh:stranger", code=2)["message"]
    ada.ok(*begun, *members, "--sign-with", "ssh:grace")
    root = read_root(ada.home / "roots/staging.root")
    assert root.people_signing(Role.ROOT, root.envelope) == {"grace@example.org"}
