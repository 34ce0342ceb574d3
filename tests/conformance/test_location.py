"""The one URL that names a ledger: what it means, and what is refused."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from flaghoist.errors import Misconfigured, Unavailable
from flaghoist.log.base import Stream
from flaghoist.log.location import KafkaLocation, Security, SqliteLocation, open_log, parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("sqlite:///ledger.db", SqliteLocation(Path("ledger.db"))),
        ("sqlite:///./data/ledger.db", SqliteLocation(Path("data/ledger.db"))),
        ("sqlite:////var/lib/flags/ledger.db", SqliteLocation(Path("/var/lib/flags/ledger.db"))),
        ("sqlite:///my%20flags.db", SqliteLocation(Path("my flags.db"))),
        ("kafka://localhost:9092/flags", KafkaLocation((("localhost", 9092),), "flags")),
        ("kafka://broker/flags", KafkaLocation((("broker", 9092),), "flags")),
        (
            "kafka://a.example.org:9092,b.example.org:9093/shop.flags_1",
            KafkaLocation((("a.example.org", 9092), ("b.example.org", 9093)), "shop.flags_1"),
        ),
        ("kafka://[::1]:9092/flags", KafkaLocation((("::1", 9092),), "flags")),
        (
            "kafka://b:9093/flags?security=sasl_ssl&credentials=/run/secrets/kafka&cafile=/etc/ca.pem",
            KafkaLocation(
                (("b", 9093),),
                "flags",
                Security.SASL_SSL,
                cafile=Path("/etc/ca.pem"),
                credentials=Path("/run/secrets/kafka"),
            ),
        ),
    ],
)
def test_url_means_one_place_and_is_written_back_the_same(url, location):
    assert parse(url) == location
    assert parse(str(location)) == location


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "expected sqlite:///"),
        ("ledger.db", "expected sqlite:///"),
        ("postgres://h/db", "kafka://host:9092"),
        ("SQLITE:///ledger.db", "expected sqlite:///"),
        ("sqlite://ledger.db", "too few slashes"),
        ("sqlite:///", "path of a file"),
        ("sqlite:///dir/", "path of a file"),
        ("sqlite:///a.db?mode=ro", "unknown parameter 'mode'"),
        ("sqlite:///a.db#x", "fragment"),
        ("kafka://host:9092", "topic"),
        ("kafka://host:9092/", "topic"),
        ("kafka:///flags", "broker"),
        ("kafka://host:9092,/flags", "broker"),
        ("kafka://host:0/flags", "broker"),
        ("kafka://host:65536/flags", "broker"),
        ("kafka://host:x/flags", "broker"),
        ("kafka://ho st/flags", "broker"),
        ("kafka://h/a/b", "topic"),
        ("kafka://h/..", "topic"),
        ("kafka://h/" + "x" * 238, "topic"),
        ("kafka://h/flags?security=tls", "expected one of plaintext, ssl, sasl_ssl"),
        ("kafka://h/flags?secruity=ssl", "unknown parameter 'secruity'"),
        ("kafka://h/flags?security=ssl&security=ssl", "twice"),
        ("kafka://h/flags?security=", "no value"),
        ("kafka://h/flags?security", "name=value"),
        ("kafka://h/flags?cafile=ca.pem", "plaintext"),
        ("kafka://h/flags?security=sasl_ssl", "credentials=FILE"),
        ("kafka://h/flags?security=ssl&credentials=f", "sasl_ssl"),
        ("kafka://h/flags?security=ssl&keyfile=f", "certfile"),
    ],
)
def test_url_of_another_form_is_refused_by_name(url, text):
    with pytest.raises(Misconfigured) as refused:
        parse(url)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["kafka://ada:s3cret@h:9092/flags", "kafka://h/flags?password=s3cret", "kafka://h/flags?sasl_password=s3cret"],
)
def test_password_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(Misconfigured) as refused:
        parse(url)
    assert "s3cret" not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read"),
        ("", "got no mechanism, username, password"),
        ("mechanism = PLAIN\nusername = ada\n", "got no password"),
        ("mechanism = MD5\nusername = ada\npassword = s3cret\n", "mechanism: expected one of"),
        ("mechanism = PLAIN\npassword = s3cret\npassword = s3cret\n", "line 3"),
        ("s3cret\n", "line 1"),
        ("passwort = s3cret\n", "line 1"),
    ],
)
def test_unusable_credentials_are_refused_and_not_repeated(tmp_path, content, text):
    file = tmp_path / "credentials"
    if content is not None:
        file.write_text(content)

    async def scenario():
        async with open_log(f"kafka://127.0.0.1:9/flags?security=sasl_ssl&credentials={file}")(Stream.LEDGER):
            pass

    with pytest.raises(Misconfigured) as refused:
        asyncio.run(scenario())
    assert text in str(refused.value)
    assert str(file) in str(refused.value)
    assert "s3cret" not in str(refused.value) + refused.value.hint


def test_certificate_file_that_is_none_is_refused(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")

    async def scenario():
        async with open_log(f"kafka://127.0.0.1:9/flags?security=ssl&cafile={file}")(Stream.LEDGER):
            pass

    with pytest.raises(Misconfigured, match="expected PEM certificates"):
        asyncio.run(scenario())


def test_broker_that_is_down_is_told_with_its_address():
    async def scenario():
        async with open_log("kafka://127.0.0.1:9/flags")(Stream.LEDGER):
            pass

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9: .*refused"):
        asyncio.run(scenario())


def test_naming_a_kafka_ledger_does_not_load_the_kafka_library():
    program = "import sys; from flaghoist.log.location import open_log; open_log('kafka://h/flags')"
    found = subprocess.run(
        [sys.executable, "-c", f"{program}; print([name for name in sys.modules if 'kafka' in name])"],
        env={"PYTHONPATH": str(ROOT / "proto")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
