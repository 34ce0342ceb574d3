"""Which ledgers this machine knows, and under which pinned root: what `flaghoist init` writes and both commands read.

Pure: text in, text out. The shells read and write the files.

    [environments.production]
    ledger = "kafka://broker-1:9092/flags"
    root = "/home/ada/.config/flaghoist/roots/production.root"
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured
from flaghoist.values import LogId

FILE_NAME: Final = "environments.toml"


def config_home(environ: Mapping[str, str]) -> Path:
    """Return where keys, pinned roots and settings live: $FLAGHOIST_HOME, or the XDG config directory."""
    if home := environ.get("FLAGHOIST_HOME"):
        return Path(home)
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "flaghoist"


def state_home(environ: Mapping[str, str]) -> Path:
    """Return where journals and last good states live: $FLAGHOIST_HOME/state, or the XDG state directory."""
    if home := environ.get("FLAGHOIST_HOME"):
        return Path(home) / "state"
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "flaghoist"


@dataclass(frozen=True, slots=True)
class Environment:
    """One ledger, by URL, and the file of the root that it must start with."""

    log_id: LogId
    ledger: str
    root: Path


@dataclass(frozen=True, slots=True)
class Environments:
    """The environments of this machine, by log_id."""

    known: Mapping[LogId, Environment]

    @classmethod
    def parse(cls, text: str, *, where: str) -> "Environments":
        """Read the file's text; `where` names the file in errors.

        Raises:
            Misconfigured: not TOML of the form above.
            Malformed: a log_id with odd characters.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Misconfigured(f"{where}: not TOML: {error}", hint="correct it, or remove it and pin again") from error
        if unknown := set(document) - {"environments"}:
            raise Misconfigured(f"{where}: want [environments.NAME] tables only, got {sorted(unknown)}")
        known = {}
        tables = document.get("environments", {})
        if not isinstance(tables, dict):
            raise Misconfigured(f"{where}: environments: want tables, got {tables!r}")
        for name, table in tables.items():
            if not isinstance(table, dict) or set(table) != {"ledger", "root"}:
                raise Misconfigured(f"{where}: environments.{name}: want exactly `ledger` and `root`")
            known[LogId(name)] = Environment(LogId(name), str(table["ledger"]), Path(str(table["root"])))
        return cls(known)

    def pinned(self, environment: Environment) -> "Environments":
        """Return these environments and one more, or another root for one of them."""
        return replace(self, known={**self.known, environment.log_id: environment})

    def of_ledger(self, ledger: str | None) -> Environment | None:
        """Return the environment of a ledger URL; without a URL the only one there is; None when there is none.

        Raises:
            Misconfigured: no URL given and several environments to choose from, or two for one URL.
        """
        fitting = [e for e in self.known.values() if ledger is None or e.ledger == ledger]
        if len(fitting) > 1:
            named = ", ".join(f"{e.log_id} ({e.ledger})" for e in fitting)
            raise Misconfigured(f"several environments to choose from: {named}", hint="name one with --ledger URL")
        return fitting[0] if fitting else None

    def render(self) -> str:
        """Return the file's text; parse reads it back."""
        quoted = json.dumps  # a JSON string is a TOML basic string
        return "\n".join(
            f"[environments.{quoted(e.log_id)}]\nledger = {quoted(e.ledger)}\nroot = {quoted(str(e.root))}\n"
            for _, e in sorted(self.known.items())
        )
