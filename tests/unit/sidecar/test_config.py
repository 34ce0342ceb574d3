"""The sidecar's options: which source wins, and that every problem is said at once."""

import re
import tomllib
from pathlib import Path

import pytest

from flaghoist.environment import Environment, Environments
from flaghoist.errors import Misconfigured
from flaghoist.values import LogId
from sidecar.cli import read_config
from sidecar.config import OPTIONS, read

ROOT = Path("/etc/flaghoist/production.root")
GIVEN = {"ledger": "sqlite:////srv/ledger.db", "root": str(ROOT)}
NONE = Environments({})
STATE = Path("/var/lib/flaghoist")


def config(*sources, pins=NONE):
    return read([(f"source {n}", values) for n, values in enumerate(sources)], pins, STATE)


def test_stronger_source_wins_option_by_option():
    read_back = config({"listen": "127.0.0.1:1"}, {"listen": "127.0.0.1:2", "drain_s": "7"}, GIVEN)
    assert read_back.listen == ("127.0.0.1", 1)
    assert read_back.drain_s == 7.0
    assert read_back.ledger == GIVEN["ledger"]


def test_defaults_are_flagds_port_on_loopback_and_the_state_directory():
    read_back = config(GIVEN)
    assert read_back.listen == ("127.0.0.1", 8013)
    assert read_back.state_dir == STATE / "sidecar"
    assert read_back.disabled_on_v1 == "not_found"


def test_pinned_environment_gives_ledger_and_root():
    pins = NONE.pinned(Environment(LogId("production"), "kafka://broker:9092/flags", ROOT))
    read_back = config({}, pins=pins)
    assert (read_back.ledger, read_back.root) == ("kafka://broker:9092/flags", ROOT)


def test_root_of_a_named_ledger_is_found_among_several():
    pins = NONE.pinned(Environment(LogId("staging"), "sqlite:////a.db", Path("/a.root")))
    pins = pins.pinned(Environment(LogId("production"), "sqlite:////b.db", Path("/b.root")))
    assert config({"ledger": "sqlite:////b.db"}, pins=pins).root == Path("/b.root")
    with pytest.raises(Misconfigured, match="several environments"):
        config({}, pins=pins)


def test_every_problem_is_said_in_one_message_with_its_origin():
    with pytest.raises(Misconfigured) as caught:
        config({"listen": "0.0.0.0:8013", "drain_s": "soon"}, {"server": "apache", "colour": "red"})
    for part in (
        "listen (from source 0): want a loopback address",
        "drain_s (from source 0)",
        "server (from source 1): want auto or native or grpcio, got 'apache'",
        "colour (from source 1): no such option",
        "ledger: not given",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "8013", "localhost:8013", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_address_that_is_none_is_refused(text):
    with pytest.raises(Misconfigured, match="listen"):
        config({"listen": text}, GIVEN)


def test_ipv6_loopback_is_an_address():
    assert config({"listen": "[::1]:0"}, GIVEN).listen == ("::1", 0)


@pytest.mark.parametrize("text", ["-1", "301", "nan", "inf", "five"])
def test_seconds_out_of_range_are_refused(text):
    with pytest.raises(Misconfigured, match="drain_s"):
        config({"drain_s": text}, GIVEN)


def test_flag_beats_variable_beats_file(tmp_path):
    file = tmp_path / "sidecar.toml"
    file.write_text('drain_s = 1\nlog_level = "error"\nfresh_for_s = 9\nledger = "sqlite:////l"\nroot = "/r"\n')
    environ = {"FLAGHOIST_HOME": str(tmp_path), "FLAGHOIST_DRAIN_S": "2", "FLAGHOIST_LOG_LEVEL": "debug"}
    read_back = read_config(["--drain-s", "3"], environ)
    assert (read_back.drain_s, read_back.log_level, read_back.fresh_for_s) == (3.0, "debug", 9.0)


def test_file_that_was_named_must_be_there_and_be_toml(tmp_path):
    with pytest.raises(Misconfigured, match="No such file"):
        read_config(["--config", str(tmp_path / "missing.toml")], {"FLAGHOIST_HOME": str(tmp_path)})
    broken = tmp_path / "broken.toml"
    broken.write_text("this is no TOML")
    with pytest.raises(Misconfigured, match=re.escape(str(broken))):
        read_config(["--config", str(broken)], {"FLAGHOIST_HOME": str(tmp_path)})


def test_environments_file_is_read_back_as_it_was_written():
    pins = NONE.pinned(Environment(LogId("a.b-c"), 'kafka://h:1/t?cafile=/x"y', Path("/r oot")))
    assert Environments.parse(pins.render(), where="here") == pins
    assert tomllib.loads(pins.render())


@pytest.mark.parametrize(
    "text",
    ["not toml", "[other]\nx = 1", '[environments.a-b-c]\nledger = "x"', "environments = 3", "[environments]\na = 1"],
    ids=range(5),
)
def test_environments_file_that_is_none_is_refused_by_name(text):
    with pytest.raises(Misconfigured, match=r"environments\.toml"):
        Environments.parse(text, where="environments.toml")


def test_every_option_has_a_help_text_and_a_name_of_its_own():
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    assert all(option.help for option in OPTIONS)
