"""What people must be told because time goes by: emergencies that nobody ratifies, a root that runs out."""

from collections.abc import Mapping
from typing import Final

import structlog

from flaghoist.ledger import Ledger
from flaghoist.outcomes import Unratified

# Of each thing a line at once, and then one so often: it must be seen, and must not fill the disk.
AGAIN_MS: Final = 3600 * 1000
# A root is signed by several people, who may be away: TUF's repositories renew a month ahead as well.
ROOT_WARNING_MS: Final = 30 * 24 * 3600 * 1000
ROOT_AGAIN_MS: Final = 24 * 3600 * 1000

logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def overdue(unratified: Mapping[bytes, Unratified], now_ms: int) -> list[Unratified]:
    """Return the emergencies whose time to be ratified is over; they stay in force."""
    return [emergency for emergency in unratified.values() if now_ms > emergency.ratify_by_ms]


class Alarms:
    """Says what is overdue, each thing once a window."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._said_ms: dict[str, int] = {}

    def look(self, now_ms: int) -> None:
        """Say what has become overdue until `now_ms` (Unix milliseconds)."""
        for emergency in overdue(self._ledger.unratified, now_ms):
            proposal = emergency.authorized.proposal
            if self._due(f"emergency {emergency.seq}", AGAIN_MS, now_ms):
                logger.error(
                    "emergency.overdue",
                    seq=emergency.seq.number,
                    proposal=proposal.proposal_id,
                    requester=proposal.requester,
                    since_s=(now_ms - emergency.ratify_by_ms) // 1000,
                    hint="it stays in force: ratify it (`flaghoist approve`), or propose what should be instead",
                )
        root = self._ledger.root
        left_ms = root.record.expires_at - now_ms
        if left_ms < ROOT_WARNING_MS and self._due(f"root {root.version}", ROOT_AGAIN_MS, now_ms):
            logger.warning(
                "root.expired" if left_ms < 0 else "root.expires_soon",
                version=root.version,
                left_s=left_ms // 1000,
                hint="propose, sign and publish the next one: `flaghoist root`",
            )

    def _due(self, what: str, again_ms: int, now_ms: int) -> bool:
        said_ms = self._said_ms.get(what)
        if said_ms is not None and now_ms - said_ms < again_ms:
            return False
        self._said_ms[what] = now_ms
        return True
