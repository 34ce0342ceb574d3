"""OFREP: flags over HTTP, for OpenFeature's OFREP providers and for `curl`. docs/ofrep.md says what each case answers.

Source: protocol/service/openapi.yaml 0.3.0 of open-feature/protocol, and flagd 0.16.1 where that is silent.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from flaghoist.errors import Malformed, TooLarge
from flaghoist.evaluation import EvaluationFailed, evaluate, evaluate_all
from sidecar.board import Board
from sidecar.faces.ofrep_rendering import Bulk, Heads, OfrepRendering, encoded
from sidecar.faces.ofrep_request import NothingLoaded, Served, context_of, served
from sidecar.http_app import JSON, NOT_FOUND, HttpAnswer, HttpRequest, method_not_allowed

BULK_PATH: Final = b"/ofrep/v1/evaluate/flags"
SINGLE_PREFIX: Final = BULK_PATH + b"/"
RENDERINGS_MAX: Final = 16  # views that requests alternate between, the least used first; each keeps what was asked for

_POST_ONLY: Final = method_not_allowed(b"POST")


class Ofrep:
    """The OFREP face over one board. All of a call after its body has come happens in one turn of the event loop."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rendering: OfrepRendering | None = None
        self._renderings: dict[int, OfrepRendering] = {}
        self._heads = {stale: Heads(stale=stale) for stale in (False, True)}

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Return the answer to a single or a bulk evaluation."""
        path = request.path
        if path.startswith(SINGLE_PREFIX):
            # A key has no slash, and one that is written %2F is none either: flagd's router sees them the same way.
            key = unquote_to_bytes(path[len(SINGLE_PREFIX) :]).decode(errors="replace")
            if "/" in key:
                return NOT_FOUND
        elif path == BULK_PATH:
            key = ""
        else:
            return NOT_FOUND
        if request.method != "POST":
            return _POST_ONLY
        try:
            body = await request.body()
            now = await served(self._board, request)
        except TooLarge as too_large:
            return _general(413, str(too_large))
        except NothingLoaded as nothing:
            return _general(503, str(nothing))
        rendering = self._rendered(now)
        try:
            context = context_of(request, body)
        except Malformed as malformed:
            return rendering.refused(400, "INVALID_CONTEXT", str(malformed), key or None)
        if not key:
            bulk = rendering.everything
            if bulk is None:
                bulk = rendering.bulk(evaluate_all(rendering.view, context, now_s=now.now_s))
                if rendering.context_free:
                    rendering.everything = bulk
            return _conditional(request, bulk)
        try:
            return rendering.single(evaluate(rendering.view, key, context, now_s=now.now_s))
        except EvaluationFailed as failure:
            return rendering.failed(failure)

    def _rendered(self, now: Served) -> OfrepRendering:
        rendering = self._rendering
        if rendering is not None and rendering.view is now.view and rendering.stale_s == now.stale_s:
            return rendering
        rendering = self._renderings.pop(id(now.view), None)  # it holds its view, so the id is that view's
        if rendering is None:
            for heads in self._heads.values():
                heads.turn()
        if rendering is None or rendering.stale_s != now.stale_s:
            rendering = OfrepRendering(now.view, now.stale_s, self._heads[now.stale_s is not None])
        self._renderings[id(now.view)] = self._rendering = rendering
        if len(self._renderings) > RENDERINGS_MAX:
            del self._renderings[next(iter(self._renderings))]
        return rendering


def _general(status: int, details: str) -> HttpAnswer:
    return HttpAnswer(status, encoded({"errorDetails": details}), [JSON])


def _conditional(request: HttpRequest, bulk: Bulk) -> HttpAnswer:
    if b"if-none-match" in request.headers and _names(request.all(b"if-none-match"), bulk.tag):
        return bulk.not_modified()
    return bulk.rendered()


def _names(fields: list[bytes], tag: bytes) -> bool:
    """Return whether If-None-Match names a tag, compared weakly: RFC 9110, sections 8.8.3.2 and 13.1.2."""
    for field in fields:
        for candidate in field.split(b","):  # our tags have no comma, so half of another's never equals one
            candidate = candidate.strip()
            if candidate == b"*" or candidate.removeprefix(b"W/") == tag:
                return True
    return False
