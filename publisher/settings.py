"""What an operator sets once: `config.toml` beside the keys. Pure: text in, settings out.

ledger = "kafka://broker-1:9092/flags"     # a ledger's URL, or the name of a pinned environment
key = "ada"                                # a key's name, or a path to it
passphrase_file = "/run/secrets/ada"
editor = "vim"
"""

import tomllib
from dataclasses import dataclass, fields
from typing import Final

from flaghoist.errors import Misconfigured

FILE_NAME: Final = "config.toml"
SETTINGS_BYTES_MAX: Final = 64 * 1024  # four short lines; more is another file


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's defaults: weaker than an option, and than its environment variable."""

    ledger: str | None = None
    key: str | None = None
    passphrase_file: str | None = None
    editor: str | None = None

    @classmethod
    def parse(cls, text: str, *, where: str) -> "Settings":
        """Return the settings in a file's text; `where` names the file in errors.

        Raises:
            Misconfigured: not TOML, or unknown names and bad values: all of them in one text.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Misconfigured(f"{where}: not TOML: {error}", hint="correct the file") from error
        known = [field.name for field in fields(cls)]
        problems = [f"{name}: no such setting" for name in document if name not in known]
        problems += [
            f"{name}: want text in quotes, got {value!r}"
            for name, value in document.items()
            if name in known and not (isinstance(value, str) and value)
        ]
        if problems:
            raise Misconfigured(f"{where}: {'; '.join(problems)}", hint=f"the settings are {', '.join(known)}")
        return cls(**document)
