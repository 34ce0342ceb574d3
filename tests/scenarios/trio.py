"""Three people with a root that two of them must sign; Ada runs the publisher and has an emergency key."""

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.scenarios.operators import Operator

GUARDED = {
    "flag": {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "on",
        "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.org"]}, "on", "off"]},
    },
    "governance": {"owner": "linus@example.org", "services": ["checkout", "web"], "safe_variant": "off"},
}
PEOPLE = ("ada", "grace", "linus")


@functools.cache
def _keys() -> "TemporaryDirectory[str]":
    """Homes with keys, made once in a run of the tests: a passphrase is meant to take time."""
    directory = TemporaryDirectory(prefix="flaghoist-keys-")
    for name in PEOPLE:
        desk = Operator(Path(directory.name) / f"desk-{name}")
        desk.make_key(name, f"{name}@example.org")
        if name == "ada":
            desk.make_key("ada-emergency", "ada@example.org")
        desk.home.rename(Path(directory.name) / name)
    return directory


@dataclass(frozen=True)
class Trio:
    """Their desks, and the ledger between them."""

    directory: Path
    ada: Operator
    grace: Operator
    linus: Operator
    ledger: str
    log_id: str

    @classmethod
    def seated(cls, directory: Path, *, log_id: str = "production", ledger: str | None = None) -> "Trio":
        """Three people with keys, before there is an environment."""
        desks = [Operator(directory / name) for name in PEOPLE]
        for name, desk in zip(PEOPLE, desks, strict=True):
            shutil.copytree(Path(_keys().name) / name, desk.home)
        return cls(directory, *desks, ledger or f"sqlite:///{directory}/ledger.db", log_id)

    @classmethod
    def begun(
        cls, directory: Path, *options: str | Path, log_id: str = "production", ledger: str | None = None
    ) -> "Trio":
        """An environment, begun as docs/roots.md says, and pinned by all three."""
        trio = cls.seated(directory, log_id=log_id, ledger=ledger)
        trio.ada.ok(*trio.init(*options))
        trio.sign_first_root(trio.grace)
        trio.ada.ok(*trio.init(*options, "--signed", trio.copy("grace")))
        for desk in (trio.grace, trio.linus):
            desk.ok("root", "pin", trio.root_file, "--ledger", trio.ledger, "--yes")
        return trio

    def card(self, name: str) -> Path:
        owner = name.split("-")[0]
        return self.directory / (owner if owner in PEOPLE else "ada") / "home" / "keys" / f"{name}.pub"

    def key_id(self, name: str) -> str:
        found: str = json.loads(self.card(name).read_text())["key_id"]
        return found

    def init(self, *options: str | Path) -> list[str | Path]:
        """The words of `flaghoist init` for all three."""
        members = [word for name in PEOPLE for word in ("--member", self.card(name))]
        emergency = ("--emergency", self.card("ada-emergency"))
        return ["init", "--log-id", self.log_id, "--ledger", self.ledger, *members, *emergency, *options, "--yes"]

    @property
    def root_file(self) -> Path:
        return self.ada.home / "roots" / f"{self.log_id}.root"

    @property
    def unfinished(self) -> Path:
        return self.ada.home / "roots" / f"{self.log_id}.unfinished.root"

    def copy(self, name: str) -> Path:
        return self.directory / f"{name}.root"

    def sign_first_root(self, *desks: Operator) -> None:
        """Give a copy of the unfinished root to each, and let them sign it."""
        for desk in desks:
            copy = self.copy(desk.desk.name)
            copy.write_bytes(self.unfinished.read_bytes())
            desk.ok("root", "sign", copy, "--yes")

    def proposed(self, *options: str | Path, by: Operator | None = None) -> str:
        """Propose the next root, and return its digest."""
        found: str = (by or self.grace).ok("root", "propose", *options, "--yes", "--json").document["sha256"]
        return found

    def rotated(self, *options: str | Path) -> dict[str, Any]:
        """Propose as Grace, sign as Linus, publish as Ada."""
        proposed = self.proposed(*options)
        self.linus.ok("root", "sign", proposed, "--yes")
        found: dict[str, Any] = self.ada.ok("root", "publish", proposed, "--yes", "--json").document
        return found

    def guarded(self, flag: str = "newCheckout", **governance: Any) -> str:
        """Publish a flag with a safe variant, asked for by Ada and approved by Grace; return the proposal's id."""
        file = self.directory / f"{flag}.json"
        file.write_text(json.dumps({**GUARDED, "governance": {**GUARDED["governance"], **governance}}))
        asked = self.ada.ok("propose", "set", flag, "--definition", file, "--key", "ada", "--yes").out.strip()
        self.grace.ok("approve", asked, "--yes")
        self.ada.ok("publish", asked, "--yes")
        return asked
