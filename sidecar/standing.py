"""From what is known to one state, and to why answers are stale. Pure; the table of states is in docs/protocol.md."""

from dataclasses import dataclass
from datetime import UTC, datetime

from flaghoist.freshness import Proof, Standing
from sidecar.board import VerifierState


@dataclass(frozen=True, slots=True)
class LogsWord:
    """What the ledger's log has said of itself: all that there is, where a root has no keys for heartbeats.

    Attributes:
        spoke_at_ms: when it last said that nothing follows what is verified (Unix ms); None before the first time.
        counts_ms: for how long that counts.
        lost: it is away, or does not hold what is verified.
    """

    spoke_at_ms: int | None
    counts_ms: int
    lost: bool

    def standing(self, *, now_ms: int) -> Standing:
        """Return what counts at this moment. A log that was lost counts until its last word has run out."""
        if self.spoke_at_ms is None:
            return Standing(Proof.STALE, 0)
        until_ms = self.spoke_at_ms + self.counts_ms
        fresh = not self.lost and now_ms <= until_ms
        return Standing(Proof.FRESH if fresh else Proof.STALE, until_ms)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a state follows from.

    Attributes:
        unsupported: a record asks for what only a newer release can do.
        quarantined: a trusted key has signed another history; or the ledger is not the one that the floor names.
        resyncing: entries are missing from the log.
        served: there is a verified snapshot to answer from.
        reached: the log's end was reached, since this sidecar started.
        proof: what counts now as proof of freshness.
    """

    unsupported: bool
    quarantined: bool
    resyncing: bool
    served: bool
    reached: bool
    proof: Proof

    @property
    def state(self) -> VerifierState:
        """The state. Of several that hold, the first: what needs a person, then what is missing, then freshness."""
        ranked = (
            (self.unsupported, VerifierState.UNSUPPORTED),
            (self.quarantined, VerifierState.QUARANTINED),
            (self.resyncing, VerifierState.RESYNC),
            (not self.served, VerifierState.LOADING),
            (not self.reached, VerifierState.CATCHING_UP),
            # Only now: until the log's end was reached, the root may be one that was replaced long ago.
            (self.proof is Proof.ROOT_EXPIRED, VerifierState.ROOT_EXPIRED),
            (self.proof is Proof.LAGGING, VerifierState.LAGGING),
            (self.proof is Proof.STALE, VerifierState.STALE),
        )
        return next((state for holds, state in ranked if holds), VerifierState.FRESH)

    def may_be_fresh(self, standing: Standing, *, now_ms: int) -> bool:
        """Whether answers are those of the newest state, by a proof that has not run out.

        A proof outlives the state FRESH: while lagging or cut off, what it proved was so that short a time ago.
        """
        if self.state not in (VerifierState.FRESH, VerifierState.LAGGING, VerifierState.STALE):
            return False
        return now_ms <= standing.fresh_until_ms


def why_not_fresh(facts: Facts, standing: Standing, *, by_heartbeat: bool, heard_at_ms: int | None) -> str:
    """Return in a few words why the state is not FRESH, for people; "" while it is.

    Args:
        heard_at_ms: when the newest heartbeat was issued, or the log last spoke (Unix ms); None if never.
    """
    match facts.state:
        case VerifierState.FRESH:
            return ""
        case VerifierState.LOADING:
            return "nothing is served yet"
        case VerifierState.CATCHING_UP:
            return "the ledger was not read to its end yet"
        case VerifierState.RESYNC:
            return "entries are missing from the ledger"
        case VerifierState.QUARANTINED:
            return "a second history was signed"
        case VerifierState.UNSUPPORTED:
            return "an entry needs a newer release"
        case VerifierState.ROOT_EXPIRED:
            return "root expired"
        case VerifierState.LAGGING:
            return f"{standing.behind} {'entry' if standing.behind == 1 else 'entries'} behind"
        case VerifierState.STALE:
            return _why_stale(standing, by_heartbeat=by_heartbeat, heard_at_ms=heard_at_ms)


def _why_stale(standing: Standing, *, by_heartbeat: bool, heard_at_ms: int | None) -> str:
    if standing.clock_behind_ms:
        return f"clock {standing.clock_behind_ms // 1000} s behind"
    what = "heartbeat" if by_heartbeat else "word of the ledger"
    if heard_at_ms is None:
        return f"no {what} yet"
    return f"no {what} since {datetime.fromtimestamp(heard_at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
