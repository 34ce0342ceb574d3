"""For those who run the sidecar: /healthz, /readyz and /metrics, on a port of their own as flagd has it (8014)."""

import json
from typing import Final

from sidecar.board import Board
from sidecar.http_app import JSON, NOT_FOUND, HttpAnswer, HttpFace, HttpRequest, method_not_allowed
from sidecar.metrics import CONTENT_TYPE, SidecarMetrics
from sidecar.status import Status

METHODS: Final = ("GET", "HEAD")

# Nothing in between may answer for us.
_FIELDS: Final = (JSON, (b"cache-control", b"no-store"))
_ALIVE: Final = b'{"status":"alive"}\n'


class Management:
    """Health and metrics of one sidecar.

    Made after the kept state was loaded and before the ledger is followed: so it can tell a snapshot from this disk
    from one that the ledger has confirmed or changed.
    """

    def __init__(self, board: Board, metrics: SidecarMetrics, status: Status | None = None) -> None:
        self._board = board
        self._status = status or Status()
        self._metrics = metrics
        self._from_disk = board.view
        self._confirmed = False

    @property
    def faces(self) -> dict[bytes, HttpFace]:
        """The routes of this face, for HttpApp."""
        return dict.fromkeys((b"healthz", b"readyz", b"metrics"), self)

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Return health, readiness or metrics."""
        if request.method not in METHODS:
            return method_not_allowed(", ".join(METHODS).encode())
        match request.path:
            case b"/healthz":
                return HttpAnswer(200, _ALIVE, _FIELDS)
            case b"/readyz":
                return self._readiness()
            case b"/metrics":
                return HttpAnswer(200, self._metrics.text(), [(b"content-type", CONTENT_TYPE.encode())])
        return NOT_FOUND

    def _readiness(self) -> HttpAnswer:
        board = self._board
        view = board.view
        facts: dict[str, object] = {"ready": view is not None and not board.closed, "state": board.state.value}
        if view is None:
            facts["reason"] = board.withheld or "no verified snapshot is loaded yet"
        else:
            stale_s = board.stale_s(board.clock())
            # Staleness alone never makes a sidecar unready: an outage of the broker must not drain the fleet.
            facts |= {
                "from": self._origin(),
                "seq": view.seq.number,
                "flags": len(view.flags),
                "fresh": stale_s is None,
            }
            if stale_s is not None:
                facts["stale_s"] = int(stale_s)
                if board.why_stale:
                    facts["stale_reason"] = board.why_stale
        divergence = self._status.divergence
        if divergence is not None and divergence.now is not None:
            facts["diverged_at_seq"] = divergence.now.seq.number
        if board.closed:
            facts["reason"] = "draining: this sidecar is about to stop"
        return HttpAnswer(200 if facts["ready"] else 503, json.dumps(facts).encode() + b"\n", _FIELDS)

    def _origin(self) -> str:
        self._confirmed = self._confirmed or self._board.fresh_until > float("-inf")
        return "disk" if self._board.view is self._from_disk and not self._confirmed else "live"
