"""What an SSH key signs for us is what OpenSSH's own tools sign and accept: both ways, with the real ssh-keygen."""

import base64
import random
from pathlib import Path

import pytest

from flaghoist import sshsig
from flaghoist.errors import Malformed
from flaghoist.signing import pae, verifies
from flaghoist.values import Algorithm
from publisher.signers.agent import Agent, AgentKey
from tests.signers.holders import SshAgent, must, ran, raw_signature

SSH = Algorithm.SSHSIG_ED25519
PERSON = "ada@example.org"
MESSAGE = pae("application/vnd.flaghoist.proposal.v1+avro", bytes(range(256)))
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, section 5.1


@pytest.fixture
def key(ssh_agent: SshAgent) -> Path:
    return ssh_agent.hold("ada", comment="ada@laptop")


def public_of(key: Path) -> bytes:
    return sshsig.public_of_line(key.with_suffix(".pub").read_text())


def accepted(key: Path, armour: str, message: bytes, *, namespace: str = "flaghoist") -> bool:
    """Say whether `ssh-keygen -Y verify` takes the signature for Ada's."""
    signers = key.with_name("signers")
    signers.write_text(sshsig.allowed_signer(PERSON, public_of(key)) + "\n")
    file = key.with_name("signature")
    file.write_text(armour)
    command = ("ssh-keygen", "-Y", "verify", "-f", signers, "-I", PERSON, "-n", namespace, "-s", file)
    return ran(*command, stdin=message).returncode == 0


def signed_by_ssh_keygen(key: Path, message: bytes, *more: str, namespace: str = "flaghoist") -> str:
    return must("ssh-keygen", "-Y", "sign", "-q", "-f", key, "-n", namespace, *more, stdin=message).decode()


@pytest.mark.parametrize("message", [b"", b"m", MESSAGE, bytes(1 << 20)], ids=len)
def test_ssh_keygen_accepts_what_an_agents_key_signs(ssh_agent: SshAgent, key: Path, message: bytes) -> None:
    held = AgentKey(Agent(str(ssh_agent.socket)), public_of(key))
    signature = held.sign(message)
    assert verifies(SSH, held.public, signature, message)
    armour = sshsig.armoured(held.public, signature)
    assert accepted(key, armour, message)
    assert not accepted(key, armour, message + b"\0")
    assert not accepted(key, armour, message, namespace="git")


@pytest.mark.parametrize("message", [b"", b"m", MESSAGE, bytes(1 << 20)], ids=len)
def test_what_ssh_keygen_signs_is_accepted_and_armoured_alike(key: Path, message: bytes) -> None:
    armour = signed_by_ssh_keygen(key, message)
    signature = raw_signature(armour)
    assert verifies(SSH, public_of(key), signature, message)
    assert sshsig.armoured(public_of(key), signature) == armour


@pytest.mark.parametrize("seed", range(8))
def test_a_signature_with_a_flipped_bit_is_accepted_by_neither(key: Path, seed: int) -> None:
    dice = random.Random(seed)
    signature = bytearray(raw_signature(signed_by_ssh_keygen(key, MESSAGE)))
    signature[dice.randrange(64)] ^= 1 << dice.randrange(8)
    assert not verifies(SSH, public_of(key), bytes(signature), MESSAGE)
    assert not accepted(key, sshsig.armoured(public_of(key), bytes(signature)), MESSAGE)


def test_a_signature_for_another_use_is_accepted_by_neither(key: Path) -> None:
    signature = raw_signature(signed_by_ssh_keygen(key, MESSAGE, namespace="git"))
    assert not verifies(SSH, public_of(key), signature, MESSAGE)
    assert not accepted(key, sshsig.armoured(public_of(key), signature), MESSAGE)


def test_a_bare_ed25519_signature_is_accepted_by_neither(ssh_agent: SshAgent, key: Path) -> None:
    bare = Agent(str(ssh_agent.socket)).sign(public_of(key), MESSAGE)
    assert verifies(Algorithm.ED25519, public_of(key), bare, MESSAGE)
    assert not verifies(SSH, public_of(key), bare, MESSAGE)
    assert not accepted(key, sshsig.armoured(public_of(key), bare), MESSAGE)


def test_an_ssh_signature_does_not_pass_for_a_bare_one(key: Path) -> None:
    signature = raw_signature(signed_by_ssh_keygen(key, MESSAGE))
    assert not verifies(Algorithm.ED25519, public_of(key), signature, MESSAGE)


def test_sha256_is_refused_since_a_record_has_no_place_to_say_so(key: Path) -> None:
    signature = raw_signature(signed_by_ssh_keygen(key, MESSAGE, "-O", "hashalg=sha256"))
    assert not verifies(SSH, public_of(key), signature, MESSAGE)
    assert not accepted(key, sshsig.armoured(public_of(key), signature), MESSAGE)


def test_a_second_signature_cannot_be_made_out_of_one(key: Path) -> None:
    signature = raw_signature(signed_by_ssh_keygen(key, MESSAGE))
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + GROUP_ORDER).to_bytes(32, "little")
    assert not verifies(SSH, public_of(key), twin, MESSAGE)


def test_fingerprint_is_the_one_that_ssh_add_shows(ssh_agent: SshAgent, key: Path) -> None:
    shown = must("ssh-add", "-l", environ=ssh_agent.environ).decode()
    assert sshsig.fingerprint(public_of(key)) in shown.split()


def test_public_line_is_the_one_in_the_pub_file(key: Path) -> None:
    line = key.with_suffix(".pub").read_text().rsplit(maxsplit=1)[0]
    assert sshsig.public_line(public_of(key)) == line


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_another_kind_of_key_is_refused_with_what_works(ssh_agent: SshAgent, kind: str) -> None:
    line = ssh_agent.make("other", kind=kind).with_suffix(".pub").read_text()
    with pytest.raises(Malformed, match="want type ssh-ed25519, got") as caught:
        sshsig.public_of_line(line)
    assert "ssh-keygen -t ed25519" in caught.value.hint


def line_of(*fields: bytes) -> str:
    return f"key {base64.b64encode(b''.join(map(sshsig.string, fields))).decode()} a comment"


def test_a_fido_key_is_refused_with_why() -> None:
    line = line_of(b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")
    with pytest.raises(Malformed) as caught:
        sshsig.public_of_line(line)
    assert "counter" in caught.value.hint


def test_a_certificate_is_refused_with_why() -> None:
    with pytest.raises(Malformed) as caught:
        sshsig.public_of_line(line_of(b"ssh-ed25519-cert-v01@openssh.com", bytes(32), bytes(32)))
    assert "certificate" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        line_of(b"ssh-ed25519"),
        line_of(b"ssh-ed25519", bytes(31)),
        line_of(b"ssh-ed25519", bytes(32), b"more"),
        line_of(b"\xff\x00"),
    ],
    ids=["empty", "no-key", "no-base64", "cut", "no-public", "short", "long", "no-type"],
)
def test_a_damaged_line_is_no_key(line: str) -> None:
    with pytest.raises(Malformed):
        sshsig.public_of_line(line)
