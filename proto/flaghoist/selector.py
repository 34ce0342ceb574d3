"""flagd's selectors: which part of the flags a client asks for.

Source: flagd's docs, "Selectors"; what is measured of it in docs/evaluation.md.
"""

from dataclasses import dataclass
from typing import Final

from flaghoist.errors import Refused

FLAG_SET_KEY: Final = "flagSetId"
SOURCE_KEY: Final = "source"


class BadSelector(Refused):
    """A selector that names neither a source nor a flag set."""

    code = "bad_selector"
    hint = f"want {SOURCE_KEY}=NAME or {FLAG_SET_KEY}=ID"


@dataclass(frozen=True, slots=True)
class Selector:
    """A part of the flags: those of one source, those of one flag set ("": of none), or all (both None)."""

    source: str | None = None
    flag_set: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Return what the text selects: `source=NAME`, `flagSetId=ID` (empty: flags without a set), `NAME` or nothing.

        Raises:
            BadSelector: another key.
        """
        text = text.strip()
        if not text:
            return EVERYTHING
        key, separator, value = text.partition("=")
        if not separator:
            return cls(source=text)
        if key == SOURCE_KEY:
            return cls(source=value)
        if key == FLAG_SET_KEY:
            return cls(flag_set=value)
        raise BadSelector(f"selector: want {SOURCE_KEY} or {FLAG_SET_KEY}, got {key[:40]!r}")

    @property
    def pairs(self) -> dict[str, str]:
        """What was selected, as it is told back in the metadata of a response about many flags."""
        pairs = {SOURCE_KEY: self.source, FLAG_SET_KEY: self.flag_set}
        return {key: value for key, value in pairs.items() if value is not None}


EVERYTHING: Final = Selector()
