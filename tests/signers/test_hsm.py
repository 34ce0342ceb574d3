"""Keys in a PKCS#11 token: SoftHSM's. Its module reads its settings once a process: each test runs the real command."""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from flaghoist.codec import PROPOSAL, decode_envelope
from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from flaghoist.records import Envelope
from flaghoist.signing import verified_keys
from flaghoist.values import Algorithm, Role
from publisher.home import read_root
from publisher.keys import read_card
from tests.scenarios.operators import FLAGS, PASSPHRASE, REPOSITORY, Ended, Operator, write_flags
from tests.signers.holders import SMALL, Token, must

PUBLISHED_S = 30.0


@pytest.fixture
def ada(tmp_path: Path, token: Token) -> Operator:
    """Ada; the PIN of her token is in her passphrase file."""
    ada = Operator(tmp_path / "ada")
    ada.environ |= token.environ
    return ada


def card(ada: Operator, uri: str) -> Ended:
    return ada.run_process("key", "card", "--key", uri, "--person", "ada@example.org", "--json")


def refused(ended: Ended, *, code: int, error: str) -> dict[str, str]:
    assert (ended.code, ended.error["code"]) == (code, error), ended
    assert "Traceback" not in ended.err
    assert PASSPHRASE not in ended.out + ended.err
    return dict(ended.error)


def ok(operator: Operator, *args: str | Path) -> Ended:
    ended = operator.run_process(*args)
    assert ended.code == 0, ended
    return ended


def test_a_change_is_proposed_approved_and_published_with_keys_in_a_token(
    ada: Operator, token: Token, tmp_path: Path
) -> None:
    uri, grace_uri, publisher_uri = (token.make(hsm_id) for hsm_id in (1, 2, 10))
    cards = [tmp_path / "ada.pub", tmp_path / "grace.pub"]
    ok(ada, "key", "card", "--key", uri, "--person", "ada@example.org", "--out", cards[0])
    ok(ada, "key", "card", "--key", grace_uri, "--person", "grace@example.org", "--out", cards[1])
    members = [word for path in cards for word in ("--member", str(path))]
    begun = ("init", *SMALL, "--log-id", "staging", "--ledger", f"sqlite:///{tmp_path}/ledger.db", *members)
    ok(ada, *begun, "--publisher", publisher_uri, "--sign-with", uri, "--sign-with", grace_uri, "--yes")
    ada.environ["FLAGHOIST_KEY"] = uri
    proposal = ok(ada, "import", write_flags(tmp_path / "flags.json", FLAGS), "--yes").out.strip()
    own = ada.run_process("approve", proposal, "--yes", "--json")
    assert own.code == 10, own
    ok(ada, "approve", proposal, "--key", grace_uri, "--yes")
    ok(ada, "publish", proposal, "--key", publisher_uri, "--yes")
    root = read_root(ada.home / "roots/staging.root")
    assert {key.algorithm for key in root.record.keys} == {Algorithm.ECDSA_P256}
    assert not (ada.home / "keys").exists()
    assert ada.ok("flag", "show", "newCheckout", "--json").document["key"] == "newCheckout"


def test_the_service_publishes_and_beats_with_keys_in_a_token(ada: Operator, token: Token, tmp_path: Path) -> None:
    publisher, heartbeat = token.make(1), token.make(2)
    ok(ada, "key", "card", "--key", heartbeat, "--person", "publisher", "--out", tmp_path / "heartbeat.pub")
    members = ("--member", ada.make_key("ada", "ada@example.org"))
    members += ("--member", ada.make_key("grace", "grace@example.org"))
    url = f"sqlite:///{tmp_path}/ledger.db"
    keys = ("--publisher", publisher, "--heartbeat", tmp_path / "heartbeat.pub", "--root-threshold", "1")
    ok(ada, "init", "--log-id", "staging", "--ledger", url, *members, *keys, "--yes")
    with ada.spawn("publisher", "--key", publisher, "--heartbeat-key", heartbeat) as service:
        try:
            proposal = ada.ok("import", write_flags(tmp_path / "f.json"), "--key", "ada", "--yes").out.strip()
            ada.ok("approve", proposal, "--key", "grace", "--yes")
            deadline = time.monotonic() + PUBLISHED_S
            while ada.run("flag", "show", "newCheckout").code != 0:
                assert time.monotonic() < deadline, service.poll()
                assert service.poll() is None, service.communicate()
        finally:
            service.terminate()
            try:
                _, said = service.communicate(timeout=PUBLISHED_S)
            except subprocess.TimeoutExpired:
                service.kill()
                raise
    assert service.returncode == 0, said
    assert PASSPHRASE.encode() not in said
    ok(ada, "audit", "verify")
    root = read_root(ada.home / "roots/staging.root")
    assert root.people_signing(Role.HEARTBEAT, asyncio.run(newest_heartbeat(url))) == {"publisher"}


async def newest_heartbeat(url: str) -> Envelope:
    async with open_log(url)(Stream.META) as log, aclosing(log.follow(0)) as batches:
        async for batch in batches:
            for record in batch.records:
                return decode_envelope(record.value)
    raise AssertionError("no heartbeat")


def test_a_signature_of_the_token_verifies_under_its_card(ada: Operator, token: Token, tmp_path: Path) -> None:
    uri = token.make(1)
    grace = Operator(tmp_path / "grace").make_key("grace", "grace@example.org")
    ada.make_key("linus", "linus@example.org")
    ok(ada, "key", "card", "--key", uri, "--person", "ada@example.org", "--out", tmp_path / "ada.pub")
    members = ("--member", grace, "--member", tmp_path / "ada.pub", "--member", ada.home / "keys/linus.pub")
    ok(ada, "init", *SMALL, "--log-id", "staging", "--ledger", f"sqlite:///{tmp_path}/ledger.db", *members, "--yes")
    out = tmp_path / "change.proposal"
    ok(ada, "import", write_flags(tmp_path / "flags.json"), "--key", uri, "--out", out, "--yes")
    envelope = decode_envelope(out.read_bytes())
    root = read_root(ada.home / "roots/staging.root")
    listed = root.key(read_card(tmp_path / "ada.pub").key_id)
    assert listed is not None
    assert verified_keys(envelope, [listed]) == [listed]
    assert PROPOSAL.decode(envelope.payload).requester == "ada@example.org"


def test_a_card_is_made_without_the_pin(ada: Operator, token: Token) -> None:
    uri = token.make(1)
    del ada.environ["FLAGHOIST_PASSPHRASE_FILE"]
    made = card(ada, uri)
    assert made.code == 0, made
    assert made.document["algorithm"] == "ECDSA_P256"


def test_the_module_may_be_named_in_the_uri(ada: Operator, token: Token) -> None:
    uri = token.make(1)
    module = ada.environ.pop("PYKCS11LIB")
    assert "PYKCS11LIB" in refused(card(ada, uri), code=2, error="misconfigured")["message"]
    assert card(ada, f"{uri}&module-path={module}").code == 0


def signing_with(ada: Operator, token: Token, uri: str, tmp_path: Path) -> Ended:
    """Have the token sign a root."""
    publisher = token.make(2)
    ok(ada, "key", "card", "--key", uri, "--person", "ada@example.org", "--out", tmp_path / "ada.pub")
    grace = Operator(tmp_path / "grace").make_key("grace", "grace@example.org")
    begun = (*SMALL, "--log-id", "staging", "--ledger", f"sqlite:///{tmp_path}/ledger.db", "--member", grace)
    return ada.run_process(
        "init",
        *begun,
        "--member",
        tmp_path / "ada.pub",
        "--sign-with",
        uri,
        "--publisher",
        publisher,
        "--yes",
        "--json",
    )


def test_a_wrong_pin_is_refused_without_showing_it(ada: Operator, token: Token, tmp_path: Path) -> None:
    uri = token.make(1)
    secret = "a wrong secret"
    Path(ada.environ["FLAGHOIST_PASSPHRASE_FILE"]).write_text(f"{secret}\n")
    ended = signing_with(ada, token, uri, tmp_path)
    assert "locks itself" in refused(ended, code=10, error="wrong_pin")["hint"]
    assert secret not in ended.out + ended.err
    assert not (ada.home / "environments.toml").exists()


TRIED_TWICE = """
import os, sys
from publisher.signers.securesystems import WrongPin, found
from securesystemslib.signer import HSMSigner

tries, sign = [], HSMSigner.sign
HSMSigner.sign = lambda *args: tries.append(1) or sign(*args)
held = found(sys.argv[1], lambda: b"a wrong secret", os.environ)
for _ in range(2):
    try:
        held.sign(b"message")
    except WrongPin as error:
        print(error.code, len(tries))
"""


def test_a_wrong_pin_is_not_tried_again_by_one_process(ada: Operator, token: Token) -> None:
    path = {"PYTHONPATH": f"{REPOSITORY / 'proto'}{os.pathsep}{REPOSITORY}"}
    told = must(sys.executable, "-c", TRIED_TWICE, token.make(1), environ={**ada.environ, **path})
    assert told.decode().splitlines() == ["wrong_pin 1", "wrong_pin 1"]


def test_without_a_pin_and_a_terminal_it_says_how_to_give_one(ada: Operator, token: Token, tmp_path: Path) -> None:
    uri = token.make(1)
    del ada.environ["FLAGHOIST_PASSPHRASE_FILE"]
    error = refused(signing_with(ada, token, uri, tmp_path), code=2, error="usage")
    assert "PIN of hsm:1?label=flags" in error["message"]
    assert "--passphrase-fd" in error["message"]


def test_a_missing_token_is_told_from_a_missing_key(ada: Operator, token: Token) -> None:
    uri = token.make(1)
    assert "label another" in refused(card(ada, "hsm:1?label=another"), code=2, error="misconfigured")["message"]
    missing = refused(card(ada, uri.replace("hsm:1", "hsm:7")), code=2, error="misconfigured")
    assert "could not find ECDSA key" in missing["message"]
    assert "pkcs11-tool" in missing["hint"]


def test_a_token_without_the_private_half_is_refused_when_it_must_sign(
    ada: Operator, token: Token, tmp_path: Path
) -> None:
    uri = token.make(1)
    token.forget_private(1)
    error = refused(signing_with(ada, token, uri, tmp_path), code=2, error="misconfigured")
    assert "private key" in error["message"]


def test_two_tokens_must_be_told_apart_by_label(ada: Operator, token: Token) -> None:
    token.make(1)
    token.initialise("other")
    assert "Multiple PKCS#11 tokens" in refused(card(ada, "hsm:1"), code=2, error="misconfigured")["message"]
    assert card(ada, "hsm:1?label=flags").code == 0


def test_another_curve_is_refused(ada: Operator, token: Token) -> None:
    uri = token.make(1, curve="secp384r1")
    assert "P-256" in refused(card(ada, uri), code=2, error="misconfigured")["message"]


def test_a_file_that_is_no_module_is_refused(ada: Operator, tmp_path: Path) -> None:
    nowhere, no_module = tmp_path / "nowhere.so", tmp_path / "text.so"
    no_module.write_text("not a library")
    ada.environ["PYKCS11LIB"] = str(nowhere)
    assert "no such file" in refused(card(ada, "hsm:1"), code=2, error="misconfigured")["message"]
    ada.environ["PYKCS11LIB"] = str(no_module)
    refused(card(ada, "hsm:1"), code=12, error="key_holder_unavailable")


def test_without_the_extra_the_error_names_what_to_install(ada: Operator) -> None:
    hidden = "import sys; sys.modules['pkcs11'] = None"
    ended = ada.run_process("key", "card", "--key", "hsm:1", "--person", "ada", "--json", driver=hidden)
    assert refused(ended, code=2, error="misconfigured")["hint"] == "pip install 'flaghoist[hsm]'"
    hidden = "import sys; sys.modules['securesystemslib'] = None"
    ended = ada.run_process("key", "card", "--key", "hsm:1", "--person", "ada", "--json", driver=hidden)
    assert refused(ended, code=2, error="misconfigured")["hint"] == "pip install 'flaghoist[hsm]'"


@pytest.mark.parametrize("uri", ["hsm:1?pin=1234567", "hsm:1?1234567", "hsm:x?pin=1234567", "pkcs11:pin-value=1234567"])
def test_a_pin_in_a_keys_name_is_refused_and_not_repeated(ada: Operator, uri: str) -> None:
    ended = card(ada, uri)
    error = refused(ended, code=2, error="misconfigured")
    assert json.loads(ended.out) == {"error": error}
    assert "1234567" not in ended.out + ended.err
