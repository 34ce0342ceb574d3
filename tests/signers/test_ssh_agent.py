"""The agent's protocol: with the real ssh-agent, and with one that misbehaves."""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaghoist import sshsig
from flaghoist.errors import FlaghoistError, Malformed, Misconfigured
from publisher.signers import agent
from publisher.signers.agent import Agent, AgentKey, AgentRefused, AgentUnavailable, KeyNotLoaded, NoAgent, public_key
from tests.signers.holders import SshAgent, must

MESSAGE = b"message"


def held(ssh_agent: SshAgent, key: Path) -> AgentKey:
    return AgentKey(Agent(str(ssh_agent.socket)), sshsig.public_of_line(key.with_suffix(".pub").read_text()))


def test_an_agent_without_keys_lists_none(ssh_agent: SshAgent) -> None:
    assert Agent.of(ssh_agent.environ).identities() == []


def test_keys_are_listed_with_their_types_and_comments(ssh_agent: SshAgent) -> None:
    ssh_agent.hold("ada", comment="ada@laptop")
    ssh_agent.hold("old", kind="rsa", comment="ada's old key, ünlucky")
    found = Agent.of(ssh_agent.environ).identities()
    assert [(i.type, i.comment, i.usable) for i in found] == [
        ("ssh-ed25519", "ada@laptop", True),
        ("ssh-rsa", "ada's old key, ünlucky", False),
    ]


@pytest.mark.parametrize("form", ["comment", "fingerprint", "line", "bare line", "pub file", "file beside it"])
def test_a_key_is_found_by_each_of_its_names(ssh_agent: SshAgent, form: str) -> None:
    ssh_agent.hold("grace", comment="grace@laptop")
    key = ssh_agent.hold("ada", comment="ada@laptop of Ada")
    line = key.with_suffix(".pub").read_text().strip()
    public = sshsig.public_of_line(line)
    name = {
        "comment": "ssh:ada@laptop of Ada",
        "fingerprint": f"ssh:{sshsig.fingerprint(public)}",
        "line": f"ssh:{line}",
        "bare line": line,
        "pub file": f"ssh:{key}.pub",
        "file beside it": f"ssh:{key}",
    }[form]
    assert public_key(name, ssh_agent.environ) == public


@pytest.mark.parametrize("form", ["line", "pub file"])
def test_a_name_that_says_the_key_needs_no_agent(ssh_agent: SshAgent, form: str) -> None:
    key = ssh_agent.make("ada")
    name = (key.with_suffix(".pub").read_text()) if form == "line" else f"{key}.pub"
    assert len(public_key(name, {})) == 32


def test_without_an_agent_the_error_says_how_to_start_one(ssh_agent: SshAgent) -> None:
    with pytest.raises(NoAgent, match="SSH_AUTH_SOCK") as caught:
        public_key("ssh:ada@laptop", {})
    assert "ssh-agent" in caught.value.hint


def test_an_agent_that_is_gone_is_unavailable(ssh_agent: SshAgent) -> None:
    key = held(ssh_agent, ssh_agent.hold("ada"))
    ssh_agent.stop()
    with pytest.raises(AgentUnavailable, match="refused"):
        key.sign(MESSAGE)


def test_a_key_that_is_not_loaded_is_told_from_one_that_may_not_be_used(ssh_agent: SshAgent) -> None:
    key = held(ssh_agent, ssh_agent.make("ada"))
    other = ssh_agent.hold("other", comment="another key")
    with pytest.raises(KeyNotLoaded, match="another key") as caught:
        key.sign(MESSAGE)
    assert "ssh-add" in caught.value.hint
    with pytest.raises(KeyNotLoaded, match="'nobody'"):
        public_key("ssh:nobody", ssh_agent.environ)
    assert held(ssh_agent, other).sign(MESSAGE)


def test_a_locked_agent_shows_no_key_and_the_error_says_so(ssh_agent: SshAgent) -> None:
    key = held(ssh_agent, ssh_agent.hold("ada"))
    ssh_agent.lock()
    with pytest.raises(KeyNotLoaded, match="locked") as caught:
        key.sign(MESSAGE)
    assert "ssh-add -X" in caught.value.hint


def test_a_key_that_asks_on_each_use_signs_after_a_yes_only(ssh_agent: SshAgent) -> None:
    path = ssh_agent.add(ssh_agent.make("ada"), confirm=True)
    key = held(ssh_agent, path)
    assert len(key.sign(MESSAGE)) == 64
    ssh_agent.answer(yes=False)
    with pytest.raises(AgentRefused) as caught:
        key.sign(MESSAGE)
    assert "confirm" in caught.value.hint


def test_two_keys_of_one_comment_are_told_apart_by_fingerprint(ssh_agent: SshAgent) -> None:
    first, second = (ssh_agent.hold(name, comment="ada") for name in ("first", "second"))
    with pytest.raises(KeyNotLoaded, match="SHA256:") as caught:
        public_key("ssh:ada", ssh_agent.environ)
    assert "fingerprint" in caught.value.hint
    assert first != second


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_another_kind_of_key_in_the_agent_is_refused(ssh_agent: SshAgent, kind: str) -> None:
    ssh_agent.hold("ada", kind=kind, comment="ada")
    with pytest.raises(Malformed, match="want type ssh-ed25519"):
        public_key("ssh:ada", ssh_agent.environ)


def test_a_certificate_beside_its_key_does_not_hide_the_key(ssh_agent: SshAgent) -> None:
    authority = ssh_agent.make("authority")
    key = ssh_agent.make("ada", comment="ada")
    must("ssh-keygen", "-q", "-s", authority, "-I", "ada", key.with_suffix(".pub"))
    ssh_agent.add(key)
    assert len(Agent.of(ssh_agent.environ).identities()) == 2
    assert len(public_key("ssh:ada", ssh_agent.environ)) == 32


@pytest.mark.parametrize("name", ["ada", "ada.pub"])
def test_a_private_key_given_as_a_public_one_is_refused_unseen(ssh_agent: SshAgent, name: str) -> None:
    key = ssh_agent.make("ada")
    secret = key.read_text()
    key.with_suffix(".pub").unlink()
    path = key.rename(key.with_name(name))
    with pytest.raises(Misconfigured, match="private key") as caught:
        public_key(f"ssh:{path}", {})
    assert not any(line in str(caught.value) for line in secret.splitlines()[1:-1])


def test_an_md5_fingerprint_is_refused(ssh_agent: SshAgent) -> None:
    with pytest.raises(Misconfigured, match="SHA256"):
        public_key("ssh:MD5:00:11", ssh_agent.environ)


# --- agents that misbehave ---

Reply = Callable[[socket.socket], None]


@contextlib.contextmanager
def misbehaving(reply: Reply) -> Iterator[Agent]:
    """An agent that does as told with each connection, once it has read the request."""
    with tempfile.TemporaryDirectory(prefix="fh-ssh-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/agent"
        listener.bind(path)
        listener.listen()
        done = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if done.is_set():
                        return
                    connection.recv(65536)
                    with contextlib.suppress(OSError):
                        reply(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Agent(path)
        finally:
            done.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(path)
            thread.join()


def frame(content: bytes) -> bytes:
    return sshsig.string(content)


def says(data: bytes) -> Reply:
    return lambda connection: connection.sendall(data)


def identities(*fields: bytes) -> bytes:
    return frame(b"\x0c" + (len(fields) // 2).to_bytes(4, "big") + b"".join(map(sshsig.string, fields)))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "hung up"),
        (b"\0\0", "hung up"),
        (frame(b""), "want an answer of 1"),
        (b"\xff\xff\xff\xff", "want an answer of 1 .. 262144 bytes, got 4294967295"),
        (b"\0\0\0\x09\x0c", "hung up after 1 of 9"),
        (frame(b"\x05"), "want a list of keys"),
        (frame(b"\x0c\xff\xff\xff\xff"), "cannot be read"),
        (frame(b"\x0c\0\0\0\x01\0\0\0\x09abc"), "cannot be read"),
        (identities(b"", b"no type"), "cannot be read"),
        (identities(sshsig.string(b"\x1b[2J"), b"escapes"), "cannot be read"),
    ],
    ids=["nothing", "half a length", "empty", "huge", "cut", "failure", "countless", "overrun", "typeless", "escapes"],
)
def test_a_list_that_is_none_is_an_error_of_the_agent(data: bytes, text: str) -> None:
    with misbehaving(says(data)) as bad, pytest.raises(AgentUnavailable, match=text):
        bad.identities()


@pytest.mark.parametrize(
    "data",
    [
        frame(b"\x0c\0\0\0\0"),
        frame(b"\x0e"),
        frame(b"\x0e" + sshsig.string(b"")),
        frame(b"\x0e" + sshsig.string(sshsig.string(b"ssh-rsa") + sshsig.string(bytes(64)))),
    ],
    ids=["a list", "empty", "nothing signed", "another type"],
)
def test_a_signature_that_is_none_is_an_error_of_the_agent(data: bytes) -> None:
    with misbehaving(says(data)) as bad, pytest.raises(AgentUnavailable):
        bad.sign(bytes(32), b"data")


def test_an_agent_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "LIST_S", 0.2)
    never = threading.Event()
    with misbehaving(lambda _: bool(never.wait(30)) and None) as bad:
        with pytest.raises(AgentUnavailable, match=r"no answer within 0.2 s"):
            bad.identities()
        never.set()


def test_an_agent_that_answers_by_the_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is for the whole answer: bytes that trickle in do not prolong it."""
    monkeypatch.setattr(agent, "LIST_S", 0.3)
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall((200_000).to_bytes(4, "big"))
        while not over.wait(0.05):
            connection.sendall(b"\x0c")

    with misbehaving(trickle) as bad:
        with pytest.raises(AgentUnavailable, match="no answer"):
            bad.identities()
        over.set()


@pytest.mark.parametrize("path", ["/nowhere/agent", "/dev/null", "/tmp/" + "x" * 200], ids=["no", "no socket", "long"])
def test_a_socket_that_is_none_is_an_error_of_ours(path: str) -> None:
    with pytest.raises(FlaghoistError, match="SSH agent at"):
        Agent(path).identities()
