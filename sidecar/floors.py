"""Below which state nothing is served: what a deployment knows of its ledger beyond the root.

A pod without a kept state believes the first history that it is shown. A floor in its configuration, raised now and
then, keeps a hostile log from showing it one that ends long ago. Pure.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flaghoist.codec import HASH_BYTES
from flaghoist.outcomes import Link
from flaghoist.root import FIRST_VERSION
from flaghoist.values import Seq

NO_SEQ: Final = Seq(0)
FLOOR: Final = "floor"  # Forked.what, where the other history is that of the configuration


@dataclass(frozen=True, slots=True)
class Floor:
    """An entry that the ledger must have reached: its seq and, if given, its hash."""

    seq: Seq
    entry_hash: bytes | None

    @classmethod
    def parse(cls, text: str) -> "Floor":
        """Return the floor that `SEQ` or `SEQ:ENTRY_HASH` says.

        Raises:
            ValueError: neither; the text says what was expected.
        """
        number, colon, digits = text.partition(":")
        if not number.isascii() or not number.isdecimal() or not 0 < int(number) < 2**63:
            raise ValueError(f"want SEQ or SEQ:ENTRY_HASH with a seq from 1 on, got {text[:100]!r}")
        return cls(Seq(int(number)), sha256_of(digits) if colon else None)


def sha256_of(digits: str) -> bytes:
    """Return the digest that these hex digits say.

    Raises:
        ValueError: not 64 of them.
    """
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if len(digest) != HASH_BYTES or len(digits) != 2 * HASH_BYTES:
        raise ValueError(f"want {2 * HASH_BYTES} hex digits of a SHA-256, got {digits[:100]!r}")
    return digest


def time_of(text: str) -> int:
    """Return the moment that an RFC 3339 text names, in Unix milliseconds.

    Raises:
        ValueError: no such text, or one without a time zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"want a time with its zone, as 2026-01-31T12:00:00Z, got {text[:100]!r}")
    return int(moment.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Floors:
    """All floors of one sidecar.

    Attributes:
        entry: the entry to reach.
        root_version: the root's version to reach.
        not_before_ms: when this deployment was made, or later; a clock before it is wrong (Unix milliseconds).
    """

    entry: Floor = Floor(NO_SEQ, None)
    root_version: int = FIRST_VERSION
    not_before_ms: int = 0

    def unmet(self, *, seq: Seq, root_version: int, now_ms: int) -> str | None:
        """Return which floor a state is below, for people; None when it may be served."""
        if seq < self.entry.seq:
            return f"below the floor: want the ledger at seq {self.entry.seq} at least, it is at {seq}"
        if root_version < self.root_version:
            return f"below the floor: want a root of version {self.root_version} at least, it is {root_version}"
        if now_ms < self.not_before_ms:
            return f"clock: want {_shown(self.not_before_ms)} at least, it is {_shown(now_ms)}"
        return None

    def contradicted_by(self, link: Link) -> bool:
        """Whether a link is another entry than the one that must stand at its seq."""
        return (
            self.entry.entry_hash is not None
            and link.entry.seq == self.entry.seq
            and link.entry_hash != self.entry.entry_hash
        )


def _shown(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
