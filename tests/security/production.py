"""An environment as a team runs it: three people, two of whom sign a root, and a machine that publishes."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from publisher.keys import HeldKey, read_card, unlock
from tests.scenarios.operators import PASSPHRASE, Operator

PEOPLE = {"ada": "ada@example.org", "grace": "grace@example.org", "linus": "linus@example.org"}
HOST_PERSON = "publisher"  # as `flaghoist init` names it
LOG_ID = "production"


@dataclass(frozen=True)
class Production:
    """Ada, Grace and Linus at their desks, and the publisher's machine, which holds its own two keys."""

    ada: Operator
    grace: Operator
    linus: Operator
    host: Operator
    url: str

    @classmethod
    def begun(cls, directory: Path, url: str, *init: str, driver: str = "") -> "Production":
        """Make it with the commands that its people would type.

        Args:
            init: more options of `flaghoist init`.
            driver: Python that runs before `init`, on the publisher's machine.
        """
        ada, grace, linus, host = (Operator(directory / name) for name in (*PEOPLE, "host"))
        made = cls(ada, grace, linus, host, url)
        cards = [made.at(name).make_key(name, person) for name, person in PEOPLE.items()]
        emergency = made.grace.make_key("grace-emergency", PEOPLE["grace"])
        begin: list[str | Path] = [
            *("init", "--log-id", LOG_ID, "--ledger", url, "--emergency", emergency, "--json", "--yes"),
            *(word for card in cards for word in ("--member", str(card))),
            *init,
        ]
        draft = Path(made._ok(begin, driver).document["root"])
        copies: list[str | Path] = []
        for person in ("ada", "grace"):
            copy = directory / f"{person}.root"
            shutil.copy(draft, copy)
            made.at(person).ok("root", "sign", copy, "--yes")
            copies += ["--signed", copy]
        assert made._ok([*begin, *copies], driver).document["begun"] is True
        for person in PEOPLE:
            made.at(person).ok("root", "pin", made.root, "--ledger", url, "--yes")
        return made

    def _ok(self, command: Sequence[str | Path], driver: str) -> Any:
        ended = self.host.run_process(*command, driver=driver)
        assert ended.code == 0, ended
        return ended

    def at(self, name: str) -> Operator:
        """Return the desk of ada, grace, linus or host."""
        found: Operator = getattr(self, name)
        return found

    @property
    def root(self) -> Path:
        """The first root, which everybody has pinned."""
        return self.host.home / "roots" / f"{LOG_ID}.root"

    def key_id(self, name: str, key: str) -> str:
        """Return the id of a key at a desk."""
        return read_card(self.at(name).home / "keys" / f"{key}.pub").key_id

    def stolen(self, name: str, key: str) -> HeldKey:
        """Return a private key from a desk, as a thief has it."""
        return unlock(self.at(name).home / "keys" / f"{key}.pem", lambda: PASSPHRASE.encode())

    def propose(self, flag: str, definition: Path, *, by: str = "ada") -> str:
        """Propose a flag; return the proposal's id."""
        return self.at(by).ok("propose", "set", flag, "--definition", definition, "--yes").out.split()[0]

    def change(self, flag: str, definition: Path) -> Mapping[str, Any]:
        """Have a flag proposed by Ada, approved by Grace, and published; return what `publish` says."""
        proposal = self.propose(flag, definition)
        self.grace.ok("approve", proposal, "--yes")
        published: Mapping[str, Any] = self.host.ok("publish", proposal, "--yes", "--json").document
        return published
