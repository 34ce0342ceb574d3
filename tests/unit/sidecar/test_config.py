"""The sidecar's options: which source wins, and that every problem is said at once."""

import re
import tomllib
from itertools import dropwhile
from pathlib import Path

import pytest

from flaghoist.environment import Environment, Environments
from flaghoist.errors import Misconfigured
from flaghoist.values import LogId
from sidecar.cli import read_config
from sidecar.config import OPTIONS, read
from sidecar.listeners import Face, TcpListener, UnixListener
from sidecar.tls import TlsFiles

ROOT = Path("/etc/flaghoist/production.root")
GIVEN = {"ledger": "sqlite:////srv/ledger.db", "root": str(ROOT)}
NONE = Environments({})
STATE = Path("/var/lib/flaghoist")


def config(*sources, pins=NONE):
    return read([(f"source {n}", values) for n, values in enumerate(sources)], pins, STATE)


def test_stronger_source_wins_option_by_option():
    read_back = config({"listen": "127.0.0.1:1"}, {"listen": "127.0.0.1:2", "drain_s": "7"}, GIVEN)
    assert read_back.listen[Face.RPC] == (TcpListener("127.0.0.1", 1),)
    assert read_back.drain_s == 7.0
    assert read_back.ledger == GIVEN["ledger"]


def test_defaults_are_flagds_ports_on_loopback_without_tls_and_the_state_directory():
    read_back = config(GIVEN)
    ports = {Face.RPC: 8013, Face.MANAGEMENT: 8014, Face.SYNC: 8015, Face.OFREP: 8016}
    assert {face: read_back.listen[face] for face in ports} == {
        face: (TcpListener("127.0.0.1", port),) for face, port in ports.items()
    }
    assert (read_back.tls, read_back.token_file, read_back.cors_origins) == (None, None, ())
    assert read_back.state_dir == STATE / "sidecar"
    assert read_back.disabled_on_v1 == "not_found"


def test_acknowledgements_are_on_and_name_what_is_given():
    assert config(GIVEN).acks
    read_back = config({"acks": "off", "instance": "checkout-5c8f", "service": "checkout"}, GIVEN)
    assert (read_back.acks, read_back.instance, read_back.service) == (False, "checkout-5c8f", "checkout")
    assert config(GIVEN).service == ""


@pytest.mark.parametrize("name", ["", " web", "web ", "we\nb", "we\x1bb", "x" * 257, "\N{SNOWMAN}" * 86])
def test_name_that_the_fleet_could_not_show_is_refused(name):
    with pytest.raises(Misconfigured, match=r"instance .*want a name of 1 to 256 printable bytes"):
        config({"instance": name}, GIVEN)
    if name:
        with pytest.raises(Misconfigured, match=r"service .*want a name of 1 to 256 printable bytes"):
            config({"service": name}, GIVEN)


@pytest.mark.parametrize("switch", ["", "yes", "true", "1"])
def test_acknowledgements_are_on_or_off(switch):
    with pytest.raises(Misconfigured, match=r"acks .*want on or off"):
        config({"acks": switch}, GIVEN)


def named(**values):
    return read([("source", {**values, **GIVEN})], NONE, STATE, host="web-7").instance


def test_sidecars_of_one_machine_have_names_apart_and_the_same_again_after_a_restart():
    free = {option.name: "127.0.0.1:0" for option in OPTIONS if option.name.endswith("listen")}
    off = dict.fromkeys(free, "off")
    assert named() == named() == "web-7:8013"
    assert named(listen="127.0.0.1:9013") == "web-7:9013"
    assert named(listen="unix:/run/rpc.sock") == "web-7:8015", "the first fixed port of any face"
    assert named(listen="unix:/run/rpc.sock,127.0.0.1:9013") == "web-7:9013"
    names = {named(**options, state_dir=each) for options in (free, off) for each in ("/var/one", "/var/two")}
    assert len(names) == 2, "where there is no fixed port, the state directory tells them apart"
    assert all(re.fullmatch(r"web-7:[0-9a-f]{8}", name) for name in names)


@pytest.mark.parametrize("host", ["", "x" * 400, "\N{SNOWMAN}" * 200, "a\nb"])
def test_name_that_a_machine_gives_is_one_that_the_fleet_can_show(host):
    name = read([("source", GIVEN)], NONE, STATE, host=host).instance
    assert config({"instance": name}, GIVEN).instance == name
    assert name.endswith(":8013")


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
        config({"listen": "everywhere", "drain_s": "soon"}, {"server": "apache", "colour": "red"})
    for part in (
        "listen (from source 0): want IP:PORT",
        "drain_s (from source 0)",
        "server (from source 1): want auto or native or grpcio, got 'apache'",
        "colour (from source 1): no such option",
        "ledger: not given",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "8013", "localhost:8013", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:1,", "off,unix:/s"),
        *("unix:relative.sock", "unix:", "unix:/" + 103 * "x", "plaintext:unix:/s", "plaintext:off", "tcp:127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("option", [face.option.removeprefix("--").replace("-", "_") for face in Face])
def test_address_that_is_none_is_refused(option, text):
    with pytest.raises(Misconfigured, match=f"^{option} "):
        config({option: text}, GIVEN)


def test_ipv6_loopback_is_an_address():
    assert config({"listen": "[::1]:0"}, GIVEN).listen[Face.RPC] == (TcpListener("::1", 0),)


def test_every_face_takes_a_list_of_addresses_a_unix_socket_or_nothing():
    read_back = config(
        {
            "listen": "127.0.0.1:1, unix:/run/rpc.sock",
            "management_listen": "off",
            "ofrep_listen": "unix:/run/ofrep.sock",
        },
        GIVEN,
    )
    assert read_back.listen[Face.RPC] == (TcpListener("127.0.0.1", 1), UnixListener(Path("/run/rpc.sock")))
    assert read_back.listen[Face.MANAGEMENT] == ()
    assert read_back.listen[Face.OFREP] == (UnixListener(Path("/run/ofrep.sock")),)


TLS = {"tls_cert": "/tls/crt", "tls_key": "/tls/key"}


def test_with_a_certificate_every_tcp_address_has_tls_but_those_marked_plaintext():
    read_back = config({**TLS, "tls_client_ca": "/tls/ca", "listen": "plaintext:127.0.0.1:1,0.0.0.0:2,unix:/s"}, GIVEN)
    assert [listener.tls for listener in read_back.listen[Face.RPC]] == [False, True, False]
    assert [listener.tls for listener in read_back.listen[Face.OFREP]] == [True]
    assert read_back.tls == TlsFiles(Path("/tls/crt"), Path("/tls/key"), Path("/tls/ca"))


@pytest.mark.parametrize("face", [face.option.removeprefix("--").replace("-", "_") for face in Face])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "plaintext:0.0.0.0:1", "[::ffff:7f00:1]:1"])
@pytest.mark.parametrize("more", [{}, TLS], ids=["bare", "tls"])
def test_plaintext_that_others_can_reach_needs_its_own_word(face, address, more):
    if more and not address.startswith("plaintext:"):
        assert config({face: address, **more}, GIVEN)
        return
    with pytest.raises(Misconfigured, match=f"^{face}: others can reach .*--allow-plaintext-network"):
        config({face: address, **more}, GIVEN)
    assert config({face: address, "allow_plaintext_network": "true", **more}, GIVEN)


@pytest.mark.parametrize("part", [["tls_cert"], ["tls_key"], ["tls_client_ca"], ["tls_key", "tls_client_ca"]], ids=str)
def test_half_of_tls_is_refused(part):
    with pytest.raises(Misconfigured, match="tls_cert, tls_key: want both"):
        config(dict.fromkeys(part, "/file"), GIVEN)


def test_certificate_that_no_address_uses_is_refused():
    closed = {option.name: "off" for option in OPTIONS if option.name.endswith("listen")}
    with pytest.raises(Misconfigured, match="no address uses it"):
        config({**closed, "listen": "plaintext:127.0.0.1:0,unix:/s", **TLS}, GIVEN)


@pytest.mark.parametrize("text", ["yes", "1", ""])
def test_switch_is_true_or_false(text):
    with pytest.raises(Misconfigured, match="allow_plaintext_network"):
        config({"allow_plaintext_network": text}, GIVEN)


def test_switch_is_true_by_its_name_alone(tmp_path):
    environ = {"FLAGHOIST_HOME": str(tmp_path)}
    given = [f"--{name}={value}" for name, value in GIVEN.items()]
    read_back = read_config([*given, "--allow-plaintext-network", "--listen", "0.0.0.0:1"], environ)
    assert read_back.listen[Face.RPC] == (TcpListener("0.0.0.0", 1),)
    with pytest.raises(Misconfigured, match="others can reach"):
        read_config([*given, "--allow-plaintext-network=false", "--listen", "0.0.0.0:1"], environ)


def test_list_in_the_file_is_a_list(tmp_path):
    file = tmp_path / "sidecar.toml"
    file.write_text(
        'listen = ["127.0.0.1:1", "unix:/s"]\ncors_origins = ["https://a.example.org", "https://b.example.org"]\n'
        'allow_plaintext_network = true\nledger = "sqlite:////l"\nroot = "/r"\n'
    )
    read_back = read_config([], {"FLAGHOIST_HOME": str(tmp_path)})
    assert read_back.listen[Face.RPC] == (TcpListener("127.0.0.1", 1), UnixListener(Path("/s")))
    assert read_back.cors_origins == ("https://a.example.org", "https://b.example.org")


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


def test_contexts_are_added_to_as_flagd_does():
    read_back = config({"context_value": "region=eu,tier=gold", "context_from_header": "X-User=user"}, GIVEN)
    assert read_back.context_value == {"region": "eu", "tier": "gold"}
    assert read_back.context_from_header == {"x-user": "user"}
    assert (config(GIVEN).context_value, config(GIVEN).context_from_header) == ({}, {})
    with pytest.raises(Misconfigured, match=r"context_value \(from source 0\)"):
        config({"context_value": "nonsense"}, GIVEN)


OPTIONS_PAGE = Path(__file__).parents[3] / "docs" / "sidecar.md"
TABLE_HEAD = "| option | default | meaning |\n|---|---|---|\n"


def test_table_of_options_in_the_docs_is_the_declared_one(request):
    lines = []
    for option in OPTIONS:
        default = f"`{option.default}`" if option.default else ""
        lines.append(f"| `{option.flag}` | {default} | {option.help.replace('|', chr(92) + '|')} |\n")
    page = OPTIONS_PAGE.read_text(encoding="utf-8")
    before, head, rest = page.partition(TABLE_HEAD)
    assert head, f"{OPTIONS_PAGE} has no table of options"
    after = "".join(dropwhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True)))
    expected = before + TABLE_HEAD + "".join(lines) + after
    if request.config.getoption("--rewrite"):
        OPTIONS_PAGE.write_text(expected, encoding="utf-8")
    assert OPTIONS_PAGE.read_text(encoding="utf-8") == expected, "run this test with --rewrite"
