"""Keys: what is written, who can open it, and that nothing leaks."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from flaghoist.errors import Malformed, Misconfigured
from flaghoist.signing import verifies
from flaghoist.values import Algorithm, Person
from publisher.keys import Card, KeyDirectory, KeyExists, WrongPassphrase, unlock

ADA = Person("ada@example.org")
PASSPHRASE = b"correct horse battery"


@pytest.fixture
def keys(tmp_path: Path) -> KeyDirectory:
    return KeyDirectory(tmp_path / "keys")


def test_a_new_key_signs_what_its_card_verifies(keys: KeyDirectory) -> None:
    card = keys.create("ada", ADA, PASSPHRASE)
    held = unlock(keys.find("ada"), lambda: PASSPHRASE)
    assert held.public == card.public
    assert verifies(Algorithm.ED25519, card.public, held.sign(b"message"), b"message")
    assert verifies(Algorithm.ED25519, card.public, held.sign(b""), b"")


def test_both_files_and_their_directory_have_the_modes_that_are_promised(keys: KeyDirectory) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (keys.directory, *keys.directory.iterdir())}
    assert modes["keys"] == 0o700
    assert modes["ada.pem"] == 0o600
    assert set(modes) == {"keys", "ada.pem", "ada.pub"}


def test_openssl_opens_the_private_key(keys: KeyDirectory, tmp_path: Path) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    secret = tmp_path / "pass"
    secret.write_bytes(PASSPHRASE)
    told = subprocess.run(
        ["openssl", "pkey", "-in", keys.find("ada"), "-passin", f"file:{secret}", "-noout", "-text"],
        capture_output=True,
        check=True,
    )
    assert b"ED25519" in told.stdout


def test_the_passphrase_is_stretched_by_scrypt(keys: KeyDirectory) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    body = "".join(keys.find("ada").read_text().splitlines()[1:-1])
    assert bytes.fromhex("2b06010401da47040b") in base64.b64decode(body)  # id-scrypt, RFC 7914


def test_a_wrong_passphrase_is_refused_without_showing_it(keys: KeyDirectory) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    with pytest.raises(WrongPassphrase) as caught:
        unlock(keys.find("ada"), lambda: b"a wrong secret")
    assert "wrong secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unlocked_key_does_not_show_its_secret(keys: KeyDirectory) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    held = unlock(keys.find("ada"), lambda: PASSPHRASE)
    assert repr(held) == f"<HeldKey {held.key_id}>"


def test_a_key_is_never_overwritten(keys: KeyDirectory) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    before = keys.find("ada").read_bytes()
    with pytest.raises(KeyExists):
        keys.create("ada", ADA, PASSPHRASE)
    assert keys.find("ada").read_bytes() == before


def test_a_short_passphrase_makes_no_key(keys: KeyDirectory) -> None:
    with pytest.raises(WrongPassphrase, match="at least 8"):
        keys.create("ada", ADA, b"short")
    assert keys.names() == []


@pytest.mark.parametrize(("name", "mode"), [("keys", 0o755), ("keys/ada.pem", 0o640)])
def test_a_loose_mode_is_refused_with_the_chmod_to_run(keys: KeyDirectory, name: str, mode: int) -> None:
    keys.create("ada", ADA, PASSPHRASE)
    loose = keys.directory.parent / name
    loose.chmod(mode)
    with pytest.raises(Misconfigured, match=f"{mode:04o}") as caught:
        unlock(keys.find("ada"), lambda: PASSPHRASE)
    assert caught.value.hint == f"chmod {0o700 if name == 'keys' else 0o600:o} {loose}"


def test_a_passphrase_is_not_asked_for_a_file_that_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "ada.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    path.chmod(0o600)

    def never() -> bytes:
        raise AssertionError("asked")

    with pytest.raises(Misconfigured, match="encrypted"):
        unlock(path, never)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 65, "a b"])
def test_a_key_name_that_is_no_file_name_is_refused(keys: KeyDirectory, name: str) -> None:
    with pytest.raises(Misconfigured):
        keys.path(name)


def test_a_card_reads_back_what_was_written(keys: KeyDirectory) -> None:
    card = keys.create("ada", ADA, PASSPHRASE)
    assert Card.parse(card.render(), where="card") == card


@pytest.mark.parametrize(
    "edit",
    [
        {"person": "eve and more"},
        {"algorithm": "RSA"},
        {"public": "AAAA"},
        {"public": base64.b64encode(bytes(32)).decode()},  # the neutral element: a key of small order
        {"key_id": "0" * 32},
        {"extra": 1},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_a_damaged_card_is_refused(keys: KeyDirectory, edit: dict[str, object]) -> None:
    card = keys.create("ada", ADA, PASSPHRASE)
    with pytest.raises(Malformed):
        Card.parse(json.dumps({**card.fields(), **edit}).encode(), where="card")
