"""OFREP: flags over HTTP, for OpenFeature's OFREP providers and for `curl`. docs/ofrep.md says what each case answers.

Source: protocol/service/openapi.yaml 0.3.0 of open-feature/protocol, and flagd 0.16.1 where that is silent.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from flaghoist.errors import Malformed, TooLarge
from flaghoist.evaluation import EvaluationFailed, evaluate, evaluate_all
from flaghoist.selector import BadSelector, Selector
from sidecar.board import Board, NothingLoaded, Served
from sidecar.faces.ofrep_rendering import Bulk, Heads, OfrepRendering, encoded
from sidecar.faces.ofrep_request import context_of
from sidecar.http_app import JSON, NOT_FOUND, HttpAnswer, HttpRequest, method_not_allowed
from sidecar.request import PinMiss, RequestReader

BULK_PATH: Final = b"/ofrep/v1/evaluate/flags"
SINGLE_PREFIX: Final = BULK_PATH + b"/"
RENDERINGS_MAX: Final = 16  # views that requests alternate between, the least used first; each keeps what was asked for

_POST_ONLY: Final = method_not_allowed(b"POST")


class Ofrep:
    """The OFREP face over one board. All of a call after its body has come happens in one turn of the event loop."""

    def __init__(self, board: Board, *, requests: RequestReader | None = None) -> None:
        self._board = board
        self._requests = requests or RequestReader()
        self._rendering: OfrepRendering | None = None
        self._renderings: dict[tuple[int, bool, PinMiss | None], OfrepRendering] = {}
        self._heads: dict[tuple[Selector, bool], Heads] = {}

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
            asked = self._requests.read(request.fields)
            now = await self._board.served(asked)
        except TooLarge as too_large:
            return _general(413, str(too_large))
        except BadSelector as bad:
            return _bad_selector(bad, key)
        except NothingLoaded as nothing:
            return _general(503, str(nothing))
        rendering = self._rendered(now)
        try:
            context = asked.context(context_of(body))
        except Malformed as malformed:
            return rendering.refused(400, "INVALID_CONTEXT", str(malformed), key or None)
        if not key:
            bulk = rendering.everything
            if bulk is None:
                answers = evaluate_all(rendering.view, context, now_s=now.now_s)
                if rendering.safe:
                    answers = (rendering.safe.get(answer.key, answer) for answer in answers)
                bulk = rendering.bulk(answers)
                if rendering.context_free:
                    rendering.everything = bulk
            return _conditional(request, bulk)
        try:
            return rendering.single(rendering.safe.get(key) or evaluate(rendering.view, key, context, now_s=now.now_s))
        except EvaluationFailed as failure:
            return rendering.failed(failure)

    def _rendered(self, now: Served) -> OfrepRendering:
        rendering = self._rendering
        if (
            rendering is not None
            and rendering.view is now.view
            and rendering.stale_s == now.stale_s
            and rendering.past is now.past
            and rendering.pin_miss is now.pin_miss
        ):
            return rendering
        place = (id(now.view), now.past, now.pin_miss)  # a rendering holds its view, so the id is that view's
        rendering = self._renderings.pop(place, None)
        if rendering is None or rendering.stale_s != now.stale_s:
            heads = self._heads_of(now, turn=rendering is None and now.pin_miss is None)
            safe_answers = None if rendering is None else rendering.safe_answers
            rendering = OfrepRendering(now, heads, safe_answers)
        self._renderings[place] = self._rendering = rendering
        if len(self._renderings) > RENDERINGS_MAX:
            del self._renderings[next(iter(self._renderings))]
        return rendering

    def _heads_of(self, now: Served, *, turn: bool) -> Heads:
        """Return the heads of a selection, which live from view to view; those of the past are not kept."""
        stale = now.stale_s is not None
        if now.past:
            return Heads(now.view.selector, stale=stale, past=True)
        if turn:
            for each in (True, False):
                known = self._heads.get((now.view.selector, each))
                if known is not None:
                    known.turn()
        place = (now.view.selector, stale)
        heads = self._heads.pop(place, None) or Heads(now.view.selector, stale=stale)
        self._heads[place] = heads
        if len(self._heads) > RENDERINGS_MAX:
            del self._heads[next(iter(self._heads))]
        return heads


def _bad_selector(bad: BadSelector, key: str) -> HttpAnswer:
    about = {"key": key} if key else {}
    return HttpAnswer(400, encoded({**about, "errorCode": "GENERAL", "errorDetails": str(bad)}), [JSON])


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
