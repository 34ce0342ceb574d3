"""Files that are renewed while the sidecar runs: certificates every day, tokens when one leaks."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

import structlog

from flaghoist.errors import Misconfigured
from sidecar.report import BoundedReport

# Looked at this often, four stat() calls cost 15 µs. Not by inotify: a secret that Kubernetes mounts changes by the
# exchange of a symlink two directories up.
LOOK_S: Final = 1.0

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()

Fingerprint = tuple[tuple[int, ...] | None, ...]


class Renewable(Protocol):
    """What is made from files, and can be made anew while it is in use."""

    @property
    def name(self) -> str:
        """Begins the names of its events."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files it is made from."""

    @property
    def loaded(self) -> Fingerprint:
        """Their fingerprint from before the last load that succeeded, so that no change in between is missed."""

    def load(self) -> None:
        """Read the files again. May run in another thread.

        Raises:
            Misconfigured: they cannot be used; what was loaded before stays.
        """

    async def use(self) -> None:
        """Bring what was loaded to those that use it.

        Raises:
            Misconfigured: the system does not let us; load() and use() are called again.
        """


async def keep_renewed(renewable: Renewable, report: BoundedReport, *, look_s: float = LOOK_S) -> NoReturn:
    """Load `renewable` anew whenever one of its files changes, until cancelled.

    Files that cannot be used are told, bounded, and tried again at each look; until then the old ones count.

    Args:
        look_s: seconds between two looks; what is new counts after that, and the time to load it.
    """
    seen = renewable.loaded
    while True:
        await asyncio.sleep(look_s)
        # In a thread: a file on a network file system may keep us waiting.
        now = await asyncio.to_thread(fingerprint, renewable.paths)
        if now == seen:
            continue
        try:
            await asyncio.to_thread(renewable.load)
            await renewable.use()
        except Misconfigured as error:
            report.warning(f"{renewable.name}.renewal_refused", code=error.code, reason=str(error), hint=error.hint)
            continue
        seen = renewable.loaded
        event = f"{renewable.name}.renewed"
        logger.info(event, files=[str(path) for path in renewable.paths])


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Return what changes when one of these files is rewritten, replaced, or made readable."""
    return tuple(_status(path) for path in paths)


def _status(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - follows symlinks, as open() will
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
