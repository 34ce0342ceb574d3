"""Keys in a cloud's KMS. AWS's: the real SDK, and an endpoint on loopback. Others': what needs no cloud."""

import socket
from pathlib import Path

import pytest

from flaghoist.errors import Misconfigured
from flaghoist.signing import check_public, verifies
from flaghoist.values import Algorithm
from publisher.signers.securesystems import EXTRAS, KeyUri, found
from tests.scenarios.operators import Ended, Operator, write_flags
from tests.signers.holders import SMALL, KmsEndpoint

URI = "awskms:alias/flaghoist"


@pytest.fixture
def ada(tmp_path: Path, kms: KmsEndpoint) -> Operator:
    ada = Operator(tmp_path / "ada")
    ada.environ |= kms.environ
    return ada


def ok(operator: Operator, *args: str | Path) -> Ended:
    ended = operator.run_process(*args)
    assert ended.code == 0, ended
    return ended


def card(ada: Operator, uri: str, driver: str = "") -> Ended:
    return ada.run_process("key", "card", "--key", uri, "--person", "publisher", "--json", driver=driver)


def test_a_ledger_is_begun_and_written_with_a_publisher_key_in_aws(
    ada: Operator, kms: KmsEndpoint, tmp_path: Path
) -> None:
    grace = Operator(tmp_path / "grace")
    members = ("--member", ada.make_key("ada", "ada@example.org"))
    members += ("--member", grace.make_key("grace", "grace@example.org"))
    url = f"sqlite:///{tmp_path}/ledger.db"
    ok(ada, "init", *SMALL, "--log-id", "staging", "--ledger", url, *members, "--publisher", URI, "--yes")
    grace.ok("root", "pin", ada.home / "roots/staging.root", "--ledger", url, "--yes")
    proposal = ok(ada, "import", write_flags(tmp_path / "flags.json"), "--yes").out.strip()
    grace.ok("approve", proposal, "--yes")
    ok(ada, "publish", proposal, "--key", URI, "--yes")
    assert grace.ok("flag", "show", "newCheckout", "--json").document["key"] == "newCheckout"
    signed = [body for action, body in kms.calls if action == "Sign"]
    assert {(b["KeyId"], b["SigningAlgorithm"]) for b in signed} == {("alias/flaghoist", "ECDSA_SHA_256")}
    assert len(signed) >= 2  # the first entry, the release


def test_a_signature_of_the_kms_verifies(kms: KmsEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in kms.environ.items():
        monkeypatch.setenv(name, value)
    held = found(URI, _no_pin, {})
    check_public(Algorithm.ECDSA_P256, held.public)
    assert held.public == kms.public
    assert verifies(held.algorithm, held.public, held.sign(b"message"), b"message")
    assert repr(held) == f"<HeldElsewhere {URI}>"


def _no_pin() -> bytes:
    raise AssertionError("a KMS has no PIN")


def test_a_key_of_another_curve_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    with KmsEndpoint(spec=ec.SECP384R1()) as kms:
        ada = Operator(tmp_path / "ada")
        ada.environ |= kms.environ
        error = card(ada, URI).error
    assert error["code"] == "misconfigured"
    assert "P-256" in error["message"]


def test_a_refusal_of_the_cloud_is_told_in_its_words(ada: Operator, kms: KmsEndpoint, tmp_path: Path) -> None:
    kms.refuses = "AccessDeniedException"
    members = ("--member", ada.make_key("ada", "ada@example.org"), "--approvals", "0")
    ended = ada.run_process(
        *("init", *SMALL, "--log-id", "staging", "--ledger", f"sqlite:///{tmp_path}/l.db", "--publisher", URI),
        *(*members, "--yes", "--json"),
    )
    assert (ended.code, ended.error["code"]) == (12, "key_holder_unavailable"), ended
    assert "AccessDeniedException" in ended.error["message"]
    assert "nothing was signed" in ended.error["hint"]
    assert "Failed to sign" not in ended.err  # the library's own log line, which would say it twice


def test_a_service_that_does_not_answer_is_given_up(ada: Operator) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        ada.environ["AWS_ENDPOINT_URL_KMS"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
        ended = card(ada, URI)
    assert (ended.code, ended.error["code"]) == (12, "key_holder_unavailable"), ended


def test_without_credentials_the_error_is_ours(ada: Operator) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del ada.environ[name]
    ended = card(ada, URI)
    assert (ended.code, ended.error["code"]) == (12, "key_holder_unavailable"), ended
    assert "credentials" in ended.error["message"]


@pytest.mark.parametrize(
    ("uri", "module", "hint"),
    [
        (URI, "boto3", "pip install 'flaghoist[awskms]'"),
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "google.cloud", "[gcpkms]"),
        ("azurekms://vault.vault.azure.net/keys/flaghoist", "azure", "[azurekms]"),
    ],
    ids=["awskms", "gcpkms", "azurekms"],
)
def test_without_its_extra_the_error_names_what_to_install(ada: Operator, uri: str, module: str, hint: str) -> None:
    ended = card(ada, uri, driver=f"import sys; sys.modules[{module!r}] = None")
    assert ended.code == 2, ended
    assert hint in ended.error["hint"]


# What securesystemslib's signers are to be called with, and return: no cloud but AWS's can be played on loopback.
PLAYED = """
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import {signer} as Signer, SSlibKey

key = SSlibKey.from_crypto(ec.generate_private_key(ec.SECP256R1()).public_key())
def import_(*names):
    print("asked for", *names, file=__import__("sys").stderr)
    return "{returns}", key
Signer.import_ = import_
"""


@pytest.mark.parametrize(
    ("uri", "signer", "asked", "returns"),
    [
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "GCPSigner",
         "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", ""),
        ("azurekms://team.vault.azure.net/keys/flags", "AzureSigner", "team flags",
         "azurekms://team.vault.azure.net/keys/flags/12ab"),
        ("azurekms://team.vault.azure.net/keys/flags/12ab", "AzureSigner", "team flags",
         "azurekms://team.vault.azure.net/keys/flags/12ab"),
    ],
    ids=["gcpkms", "azurekms", "azurekms with a version"],
)  # fmt: skip
def test_a_uri_reaches_the_signer_of_its_cloud(ada: Operator, uri: str, signer: str, asked: str, returns: str) -> None:
    ended = card(ada, uri, driver=PLAYED.format(signer=signer, returns=returns))
    assert ended.code == 0, ended
    assert f"asked for {asked}\n" in ended.err
    assert ended.document["algorithm"] == "ECDSA_P256"


def test_an_old_version_of_an_azure_key_is_refused(ada: Operator) -> None:
    newest = "azurekms://team.vault.azure.net/keys/flags/34cd"
    ended = card(ada, newest.replace("34cd", "12ab"), driver=PLAYED.format(signer="AzureSigner", returns=newest))
    assert ended.code == 2, ended
    assert newest in ended.error["message"]


@pytest.mark.parametrize(
    "uri",
    [
        "hsm:",
        "hsm:0a",
        "hsm:-1",
        "hsm:1?label=",
        "hsm:1?label=" + "x" * 33,
        "hsm:1?slot=2",
        "hsm:1?label",
        "awskms:",
        "gcpkms:",
        "azurekms:vault/keys/k",
        "azurekms://vault.example.org/keys/k",
        "azurekms://v.vault.azure.net/secrets/k",
        "azurekms://v.vault.azure.net/keys/k/v/more",
        "ftp:key",
    ],
)
def test_a_uri_of_a_wrong_form_is_refused_with_the_right_one(uri: str) -> None:
    with pytest.raises(Misconfigured, match="want"):
        KeyUri.parse(uri)


def test_every_scheme_has_an_extra_in_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) == set(project["optional-dependencies"])
