"""The root that a sidecar is told to trust, of any version, and where in its ledger reading begins for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flaghoist.codec import ROOT
from flaghoist.errors import FlaghoistError, Misconfigured, Unavailable
from flaghoist.log.base import Batch
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.root_chain import Beginning, RootUnknown, beginning
from sidecar.floors import sha256_of
from sidecar.keep import kept_in

SCHEME: Final = "sha256:"
# A root of a hundred people has 30 KiB. Beyond this somebody fills the log with records that look like roots.
CANDIDATE_BYTES_MAX: Final = 64 * 1024 * 1024
# A record that states a root holds its envelope, and so this text.
_MARK: Final = ROOT.payload_type.encode()

Follow = Callable[[int, Callable[[Unavailable], None]], AsyncGenerator[Batch, None]]
# What --root says: a file, or the SHA-256 of a root's signed bytes.
RootPin = Path | bytes


def parse_root(text: str) -> RootPin:
    """Return what `FILE` or `sha256:HEX` names; no file is read.

    Raises:
        ValueError: nothing, or no SHA-256.
    """
    if text.startswith(SCHEME):
        return sha256_of(text.removeprefix(SCHEME))
    if not text:
        raise ValueError(f"want a file or {SCHEME}HEX, got nothing")
    return Path(text).expanduser()


@dataclass(frozen=True, slots=True)
class PinnedRoot:
    """A root's digest, and the root itself where the pin is a file."""

    sha256: bytes
    root: Root | None

    @classmethod
    def load(cls, pin: RootPin) -> "PinnedRoot":
        """Read the file, if the pin is one.

        Raises:
            Misconfigured: no such file, or not a root whose keys, roles and own signatures hold.
        """
        if isinstance(pin, bytes):
            return cls(pin, None)
        try:
            root = Root.from_bytes(pin.read_bytes())
        except OSError as error:
            raise Misconfigured(
                f"root {pin}: cannot be read: {error.strerror}",
                hint="give the file that `flaghoist init` wrote with --root; it is not secret",
            ) from error
        except FlaghoistError as error:
            raise Misconfigured(
                f"root {pin}: {error}", hint="give the file that `flaghoist init` or `flaghoist root show` wrote"
            ) from error
        return cls(root.sha256, root)

    def at_hand(self, state_dir: Path) -> Beginning | None:
        """Return where to begin, if the pin itself or an entry that this pod kept says so; None if only the log can."""
        if self.root is not None and self.root.version == FIRST_VERSION:
            return Beginning(self.root, {})
        for records in kept_in(state_dir):
            try:
                return beginning(self.sha256, (record.value for record in records if _MARK in record.value))
            except (FlaghoistError, OSError):
                continue  # of another ledger, or of a time before the pinned root
        return None

    async def in_ledger(self, follow: Follow, on_lost: Callable[[Unavailable], None]) -> Beginning:
        """Read the ledger from its start, for as long as it takes to get there, and return where to begin.

        Raises:
            RootUnknown: the ledger does not lead to this root.
            Misconfigured: there is no such ledger, or it cannot be read.
        """
        candidates: list[bytes] = []
        size = 0
        async with aclosing(follow(0, on_lost)) as batches:
            async for batch in batches:
                for record in batch.records:
                    if _MARK in record.value:
                        candidates.append(record.value)
                        size += len(record.value)
                if size > CANDIDATE_BYTES_MAX:
                    raise RootUnknown(
                        f"root {self.sha256.hex()}: more than {CANDIDATE_BYTES_MAX} bytes of roots are in the ledger",
                        hint="start from the file of the root of version 1, or keep the state directory",
                    )
                if batch.at_end:
                    break
        # Off the event loop: health is answered meanwhile.
        return await asyncio.to_thread(beginning, self.sha256, candidates)
