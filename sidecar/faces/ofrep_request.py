"""What an OFREP request asks: its view and its context. All that a request says besides the flag's key enters here."""

from dataclasses import dataclass

from flaghoist.definition import JsonValue
from flaghoist.errors import Unavailable
from flaghoist.evaluation import normalised
from flaghoist.snapshot import View
from sidecar.board import Board
from sidecar.faces.json_body import json_object
from sidecar.http_app import HttpRequest


class NothingLoaded(Unavailable):
    """No verified flags yet, so there is nothing to answer from."""

    code = "nothing_loaded"
    hint = "retry, or use the caller's defaults; /readyz says what is missing"


@dataclass(frozen=True, slots=True)
class Served:
    """What is answered from.

    `stale_s` is in whole seconds since the last proof of freshness, None while fresh; `now_s` in Unix seconds.
    """

    view: View
    stale_s: int | None
    now_s: int


async def served(board: Board, request: HttpRequest) -> Served:
    """Return the view that answers this request.

    Raises:
        NothingLoaded: no view yet.
    """
    view = board.view
    if view is None:
        raise NothingLoaded(f"no verified flags are loaded yet (verifier state: {board.state})")
    now_s = board.clock()
    # Whole seconds, so that answers of an outage are encoded once a second and not once a call.
    stale_s = None if now_s < board.fresh_until else int(board.stale_s(now_s) or 0)
    return Served(view, stale_s, int(now_s))


def context_of(request: HttpRequest, body: bytes) -> dict[str, JsonValue]:
    """Return the context in which the flags are evaluated, as rules expect it.

    An empty body, one without a context, and a context that is not an object count as {}, as in flagd. A null
    `targetingKey` is left out: that is how some providers say that there is none.

    Raises:
        Malformed: the body is not one JSON object; the text says where, and names no value.
    """
    given = json_object(body).get("context")
    if type(given) is not dict:
        return {}
    context = normalised(given)
    if "targetingKey" in context and context["targetingKey"] is None:
        del context["targetingKey"]
    return context
