"""The sidecar's options: flag, then environment variable, then file, then default; read once, passed down.

Each option is declared once, in OPTIONS: parser, variable, help text and docs derive from it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from flaghoist.document import JsonValue
from flaghoist.environment import Environments
from flaghoist.errors import FlaghoistError, Misconfigured
from flaghoist.log.base import KEY_BYTES_MAX
from flaghoist.root import FIRST_VERSION
from sidecar.floors import NO_SEQ, Floor, Floors, time_of
from sidecar.listeners import Face, Listener, TcpListener, parse_listeners
from sidecar.pinned_root import RootPin, parse_root
from sidecar.request import header_context_from, static_context_from
from sidecar.tls import TlsFiles

ENV_PREFIX: Final = "FLAGHOIST_"
# flagd's ports, so that its clients need no configuration; unlike flagd's, reached from this machine (pod) only.
DEFAULT_LISTEN: Final = {
    Face.RPC: "127.0.0.1:8013",
    Face.MANAGEMENT: "127.0.0.1:8014",
    Face.SYNC: "127.0.0.1:8015",
    Face.OFREP: "127.0.0.1:8016",
}
SERVERS: Final = ("auto", "native", "grpcio")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
DISABLED_ON_V1: Final = ("not_found", "flagd")
SECONDS_MAX: Final = 300.0
# Of a machine's name, beside what tells sidecars of one machine apart. Longer ones are cut.
HOST_BYTES_MAX: Final = KEY_BYTES_MAX - len(":01234567")
# Six missed signs of life (log.base.PROBE_S), and as long as a signed heartbeat is valid (design §6).
FRESH_FOR_S: Final = "30"


@dataclass(frozen=True, slots=True)
class Config:
    """What a sidecar runs with; every value has been checked."""

    ledger: str
    root: RootPin
    listen: Mapping[Face, tuple[Listener, ...]]
    tls: TlsFiles | None
    token_file: Path | None
    cors_origins: tuple[str, ...]
    context_value: Mapping[str, JsonValue]
    context_from_header: Mapping[str, str]
    server: str
    state_dir: Path
    drain_s: float
    fresh_for_s: float
    require_fresh_on_cold_start: bool
    floors: Floors
    disabled_on_v1: str
    acks: bool
    instance: str
    service: str
    log_level: str


def _text(text: str) -> str:
    if not text:
        raise ValueError("want a text, got nothing")
    return text


def _path(text: str) -> Path:
    return Path(_text(text)).expanduser()


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"want {' or '.join(names)}, got {text!r}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"want true or false, got {text!r}")
    return text.lower() == "true"


def _on_off(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError(f"want on or off, got {text!r}")
    return text.lower() == "on"


def _member(text: str) -> str:
    size = len(text.encode())
    if not 1 <= size <= KEY_BYTES_MAX or not text.isprintable() or text != text.strip():
        raise ValueError(f"want a name of 1 to {KEY_BYTES_MAX} printable bytes, got {text[:80]!r} of {size}")
    return text


def _member_or_none(text: str) -> str:
    return _member(text) if text else ""


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _version(text: str) -> int:
    number = int(text)
    if not FIRST_VERSION <= number < 2**31:
        raise ValueError(f"want a version from {FIRST_VERSION} on, got {text}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= SECONDS_MAX:
        raise ValueError(f"want 0 .. {SECONDS_MAX:g} seconds, got {text}")
    return number


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name`, FLAGHOIST_NAME, and `name` in the file. A default of None means: found elsewhere, or none.

    A switch is true or false; on the command line its name alone is true.
    """

    name: str
    parse: Callable[[str], object]
    default: str | None
    help: str

    @property
    def switch(self) -> bool:
        return self.parse is _switch

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


OPTIONS: Final = (
    Option(
        "ledger", _text, None, "ledger: sqlite:///path or kafka://host:9092/topic (default: the one pinned by `init`)"
    ),
    Option(
        "root",
        parse_root,
        None,
        "the root to trust, nothing else is: a file, or sha256:HEX of any version (default: the one pinned by `init`)",
    ),
    Option("listen", parse_listeners, DEFAULT_LISTEN[Face.RPC], "evaluation over gRPC: off, or a list of addresses"),
    Option("management_listen", parse_listeners, DEFAULT_LISTEN[Face.MANAGEMENT], "health and metrics over HTTP"),
    Option("sync_listen", parse_listeners, DEFAULT_LISTEN[Face.SYNC], "flags for in-process providers over gRPC"),
    Option("ofrep_listen", parse_listeners, DEFAULT_LISTEN[Face.OFREP], "evaluation over HTTP: OFREP and Connect"),
    Option("tls_cert", _path, None, "certificate chain (PEM); with it every TCP address speaks TLS, 1.2 at least"),
    Option("tls_key", _path, None, "the certificate's private key (PEM), which nobody else may read"),
    Option("tls_client_ca", _path, None, "clients must show a certificate signed by one of these (PEM)"),
    Option("allow_plaintext_network", _switch, "false", "let addresses that others can reach do without TLS"),
    Option("token_file", _path, None, "calls must carry a bearer token of this file, one a line; not for health"),
    Option("cors_origins", _list, "", "web pages that may ask over HTTP: a list of origins, or *"),
    Option("context_value", static_context_from, "", "what every evaluation's context holds: KEY=VALUE,…"),
    Option("context_from_header", header_context_from, "", "context keys taken from a call's headers: HEADER=KEY,…"),
    Option("server", _choice(*SERVERS), "auto", "gRPC front: native (faster), grpcio, or auto"),
    Option("state_dir", _path, None, "where the last good state is kept (default: the XDG state directory)"),
    Option("drain_s", _seconds, "5", "seconds that open calls may take after SIGTERM"),
    Option(
        "fresh_for_s",
        _seconds,
        FRESH_FOR_S,
        "seconds that a log's word counts, without heartbeats",
    ),
    Option(
        "require_fresh_on_cold_start", _switch, "false", "without a kept state, serve nothing until it is proved fresh"
    ),
    Option("floor", Floor.parse, None, "serve nothing before this entry of the ledger: SEQ, or SEQ:ENTRY_HASH"),
    Option("floor_root_version", _version, str(FIRST_VERSION), "serve nothing under an earlier version of the root"),
    Option("not_before", time_of, None, "serve nothing while the clock is before this time: 2026-01-31T12:00:00Z"),
    Option("disabled_on_v1", _choice(*DISABLED_ON_V1), "not_found", "what old clients hear of a DISABLED flag"),
    Option("acks", _on_off, "on", "tell the fleet which entry this sidecar has verified and answers from: on or off"),
    Option("instance", _member, None, "name of this sidecar in the fleet, which no other has (default: HOST:PORT)"),
    Option("service", _member_or_none, "", "service that this sidecar stands beside, as the fleet shows it"),
    Option("log_level", _choice(*LOG_LEVELS), "info", "least level that is written to stderr"),
)


def read(
    sources: Sequence[tuple[str, Mapping[str, str]]],
    environments: Environments,
    state_home: Path,
    *,
    host: str = "localhost",
) -> Config:
    """Return the configuration that these sources make.

    Args:
        sources: (origin, option name → text), strongest first; origins are named in errors.
        environments: ledgers pinned on this machine, for what is not given.
        state_home: default of state_dir.
        host: this machine's name, for what is not given.

    Raises:
        Misconfigured: one message with every problem, each with where it came from.
    """
    problems: list[str] = []
    known = {option.name for option in OPTIONS}
    for origin, values in sources:
        problems += [f"{name} (from {origin}): no such option" for name in sorted(set(values) - known)]
    picked: dict[str, Any] = {option.name: _pick(option, sources, problems) for option in OPTIONS}
    _fill_from_pins(picked, environments, problems)
    _settle_listeners(picked, problems)
    if problems:
        raise Misconfigured("; ".join(problems), hint="see `flaghoist-sidecar --help`")
    entry, not_before_ms = picked.pop("floor"), picked.pop("not_before")
    root_version = picked.pop("floor_root_version")
    picked["floors"] = Floors(entry or Floor(NO_SEQ, None), root_version, not_before_ms or 0)
    picked["state_dir"] = picked["state_dir"] or state_home / "sidecar"
    picked["instance"] = picked["instance"] or default_instance(host, picked["listen"], picked["state_dir"])
    return Config(**picked)


def default_instance(host: str, listen: Mapping[Face, Sequence[Listener]], state_dir: Path) -> str:
    """Return a name that this sidecar has again after a restart, and no other one of this machine.

    The machine's name, and what two sidecars of one machine cannot share: the first fixed port that this one listens
    at. Where it has none (Unix sockets, free ports), that is the directory of its state, by its digest.
    """
    ports = (each.port for face in Face for each in listen[face] if isinstance(each, TcpListener) and each.port)
    apart = (
        next((str(port) for port in ports), "") or hashlib.sha256(str(state_dir.absolute()).encode()).hexdigest()[:8]
    )
    name = "".join(letter for letter in host if letter.isprintable()).strip() or "localhost"
    return f"{name.encode()[:HOST_BYTES_MAX].decode(errors='ignore')}:{apart}"


def _pick(option: Option, sources: Sequence[tuple[str, Mapping[str, str]]], problems: list[str]) -> object:
    for origin, values in sources:
        if option.name in values:
            try:
                return option.parse(values[option.name])
            except ValueError as error:
                problems.append(f"{option.name} (from {origin}): {error}")
                return None
    return None if option.default is None else option.parse(option.default)


def _fill_from_pins(picked: dict[str, Any], environments: Environments, problems: list[str]) -> None:
    if picked["ledger"] and picked["root"]:
        return
    try:
        pinned = environments.of_ledger(picked["ledger"])
    except FlaghoistError as error:
        problems.append(f"ledger: {error}")
        return
    if pinned is None:
        missing = "root" if picked["ledger"] else "ledger"
        problems.append(f"{missing}: not given, and `flaghoist init` has pinned none on this machine")
        return
    picked["ledger"] = picked["ledger"] or pinned.ledger
    picked["root"] = picked["root"] or pinned.root


def _settle_listeners(picked: dict[str, Any], problems: list[str]) -> None:
    cert, key, client_ca = picked.pop("tls_cert"), picked.pop("tls_key"), picked.pop("tls_client_ca")
    if (cert is None) != (key is None) or (client_ca is not None and cert is None):
        problems.append("tls_cert, tls_key: want both for TLS, and TLS for tls_client_ca")
    picked["tls"] = None if cert is None or key is None else TlsFiles(cert, key, client_ca)
    listen = {face: picked.pop(_name(face)) or () for face in Face}
    if cert is None:
        listen = {face: tuple(_plaintext(listener) for listener in listen[face]) for face in Face}
    elif not any(listener.tls for face in Face for listener in listen[face]):
        problems.append("tls_cert: no address uses it: each one is a Unix socket, plaintext, or off")
    picked["listen"] = listen
    if not picked.pop("allow_plaintext_network"):
        problems += [
            f"{_name(face)}: others can reach {listener}, and it has no TLS: give --tls-cert and --tls-key, or, if all"
            " on that network may see and change what is said, --allow-plaintext-network"
            for face in Face
            for listener in listen[face]
            if isinstance(listener, TcpListener) and not listener.loopback and not listener.tls
        ]


def _name(face: Face) -> str:
    return face.option.removeprefix("--").replace("-", "_")


def _plaintext(listener: Listener) -> Listener:
    return replace(listener, tls=False) if isinstance(listener, TcpListener) else listener
