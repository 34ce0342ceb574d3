"""The sidecar's options: flag, then environment variable, then file, then default; read once, passed down.

Each option is declared once, in OPTIONS: parser, variable, help text and docs derive from it.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flaghoist.environment import Environments
from flaghoist.errors import FlaghoistError, Misconfigured

ENV_PREFIX: Final = "FLAGHOIST_"
# What flagd listens on, so that its clients need no configuration.
DEFAULT_LISTEN: Final = "127.0.0.1:8013"
SERVERS: Final = ("auto", "native", "grpcio")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
DISABLED_ON_V1: Final = ("not_found", "flagd")
SECONDS_MAX: Final = 300.0
# Six missed signs of life (log.base.PROBE_S), and as long as a signed heartbeat is valid (design §6).
FRESH_FOR_S: Final = "30"


@dataclass(frozen=True, slots=True)
class Config:
    """What a sidecar runs with; every value has been checked."""

    ledger: str
    root: Path
    listen: tuple[str, int]
    unix_socket: Path | None
    server: str
    state_dir: Path
    drain_s: float
    fresh_for_s: float
    disabled_on_v1: str
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


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        address, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError as error:
        raise ValueError(f"want IP:PORT, such as {DEFAULT_LISTEN} (port 0: any free one), got {text!r}") from error
    if not 0 <= number <= 65535:
        raise ValueError(f"want a port of 0 .. 65535, got {number}")
    if not address.is_loopback:
        raise ValueError(f"want a loopback address (a pod's containers share it), got {address}")
    return str(address), number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= SECONDS_MAX:
        raise ValueError(f"want 0 .. {SECONDS_MAX:g} seconds, got {text}")
    return number


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name`, FLAGHOIST_NAME, and `name` in the file. A default of None means: found elsewhere."""

    name: str
    parse: Callable[[str], object]
    default: str | None
    help: str

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
    Option("root", _path, None, "pinned root file; the only thing that is trusted (default: the one pinned by `init`)"),
    Option("listen", _address, DEFAULT_LISTEN, "loopback address of the gRPC port"),
    Option("unix_socket", _path, None, "also answer on this Unix socket"),
    Option("server", _choice(*SERVERS), "auto", "gRPC front: native (faster), grpcio, or auto"),
    Option("state_dir", _path, None, "where the last good state is kept (default: the XDG state directory)"),
    Option("drain_s", _seconds, "5", "seconds that open calls may take after SIGTERM"),
    Option("fresh_for_s", _seconds, FRESH_FOR_S, "seconds without the ledger after which answers say STALE"),
    Option("disabled_on_v1", _choice(*DISABLED_ON_V1), "not_found", "what old clients hear of a DISABLED flag"),
    Option("log_level", _choice(*LOG_LEVELS), "info", "least level that is written to stderr"),
)


def read(sources: Sequence[tuple[str, Mapping[str, str]]], environments: Environments, state_home: Path) -> Config:
    """Return the configuration that these sources make.

    Args:
        sources: (origin, option name → text), strongest first; origins are named in errors.
        environments: ledgers pinned on this machine, for what is not given.
        state_home: default of state_dir.

    Raises:
        Misconfigured: one message with every problem, each with where it came from.
    """
    problems: list[str] = []
    known = {option.name for option in OPTIONS}
    for origin, values in sources:
        problems += [f"{name} (from {origin}): no such option" for name in sorted(set(values) - known)]
    picked: dict[str, Any] = {option.name: _pick(option, sources, problems) for option in OPTIONS}
    _fill_from_pins(picked, environments, problems)
    if problems:
        raise Misconfigured("; ".join(problems), hint="see `flaghoist-sidecar --help`")
    picked["state_dir"] = picked["state_dir"] or state_home / "sidecar"
    return Config(**picked)


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
