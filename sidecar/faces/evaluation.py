"""What flagd's two evaluation services share: from request bytes to response bytes, fast where nothing varies."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from flaghoist.errors import Malformed
from flaghoist.evaluation import Answer, EvaluationFailed, evaluate
from flaghoist.selector import BadSelector
from sidecar.board import Board
from sidecar.faces import statuses
from sidecar.faces.events import EventStreams
from sidecar.faces.rendering import Kind, Rendering, Renderings
from sidecar.faces.statuses import NoAnswer
from sidecar.faces.structs import context_of
from sidecar.report import BugReport
from sidecar.request import Asked, RequestReader

logger = structlog.get_logger()

UnaryCall = Callable[[bytes, Any], Awaitable[bytes]]
# Of one call: the request's bytes, what its headers ask, what it is answered from, and Unix seconds.
Answering = Callable[[bytes, Asked, Rendering, int], bytes]


class EvaluationFace(ABC):
    """One version of `flagd.evaluation`, over one board.

    Handlers take and return bytes, so that an answer that was given before costs a lookup. Once a call has the view
    that it asks for, all of it happens in one turn of the event loop: it sees one view.
    """

    name: ClassVar[str]
    messages: ClassVar[Any]  # the generated module of this version

    def __init__(self, board: Board, events: EventStreams, *, requests: RequestReader | None = None) -> None:
        self._board = board
        self._events = events
        self._requests = requests or RequestReader()
        self._rendering: Rendering | None = None
        self._renderings = Renderings()
        self._bugs = BugReport(logger, "call.failed", service=self.name)

    def handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Return the method handlers by method name."""
        handlers = {f"Resolve{kind.value}": grpc.unary_unary_rpc_method_handler(self._resolve(kind)) for kind in Kind}
        handlers["EventStream"] = grpc.unary_stream_rpc_method_handler(self._events.serve)
        return handlers

    @abstractmethod
    def render_without_value(self, rendering: Rendering, kind: Kind, answer: Answer) -> bytes:
        """Return the response for a flag that is DISABLED, or has no default and no matching rule.

        Raises:
            NoAnswer: this version has no such response.
        """

    def _newest(self, now_s: float) -> Rendering:
        board = self._board
        view = board.view
        if view is None:
            raise statuses.nothing_loaded(board.state)
        stale_s, why_stale = None, ""
        if now_s >= board.fresh_until:
            stale_s, why_stale = int(board.stale_s(now_s) or 0), board.why_stale
        rendering = self._rendering
        if rendering is None or rendering.view is not view or rendering.stale_s != stale_s:
            rendering = self._rendering = self._renderings.of(view, stale_s, why_stale=why_stale)
        return rendering

    def guarded(self, method: str, answer: Answering) -> UnaryCall:
        """Return a handler that finds what a call is answered from, and turns what `answer` raises into a status.

        Callers are told nothing of a bug. Every answer, a status too, says the seq that it was made from.
        """
        board = self._board
        clock = board.clock
        read = self._requests.read

        async def call(request: bytes, context: Any) -> bytes:
            try:
                asked = read(context.invocation_metadata())
                if asked.simple or board.view is None:
                    clock_s = clock()
                    now_s = int(clock_s)
                    rendering = self._newest(clock_s)
                    context.set_trailing_metadata(rendering.trailer)
                else:
                    served = await board.served(asked)
                    now_s = served.now_s
                    missed = served.pin_miss is not None
                    rendering = self._renderings.of(
                        served.view, served.stale_s, why_stale=served.why_stale, past=served.past, missed=missed
                    )
                    context.set_trailing_metadata(rendering.trailer_of(served.pin_miss))
                return answer(request, asked, rendering, now_s)
            except NoAnswer as no_answer:
                status = no_answer
            except BadSelector as bad:
                status = statuses.bad_selector(bad)
            except Exception as error:  # noqa: BLE001 - a bug must not send its text, which may quote a context
                self._bugs.note(error, method=method)
                status = statuses.fault()
            await context.abort(status.code, status.text)
            raise AssertionError("abort() raises")

        return call

    def _resolve(self, kind: Kind) -> UnaryCall:
        parse = getattr(self.messages, f"Resolve{kind.value}Request").FromString

        def answer(request: bytes, asked: Asked, rendering: Rendering, now_s: int) -> bytes:
            try:
                call = parse(request)
            except DecodeError:
                raise statuses.invalid_context("not a request, or nested too deep") from None
            encoded = rendering.fixed[kind].get(call.flag_key)
            if encoded is not None:
                return encoded
            return self._answer(rendering, kind, call, asked, now_s)

        return self.guarded(f"Resolve{kind.value}", answer)

    def _answer(self, rendering: Rendering, kind: Kind, call: Any, asked: Asked, now_s: int) -> bytes:
        key = call.flag_key
        view = rendering.view
        flag = view.flags.get(key)
        if flag is None:
            raise statuses.flag_not_found()
        fixed = rendering.safe.get(key, flag.fixed)
        if fixed is not None:
            encoded = rendering.fixed[kind][key] = self._render(rendering, kind, fixed)
            return encoded
        try:
            answer = evaluate(view, key, asked.context(context_of(call.context)), now_s=now_s)
        except EvaluationFailed as failure:
            raise statuses.evaluation_failed(failure) from None
        except Malformed as malformed:
            raise statuses.invalid_context(str(malformed)) from None
        outcome = (key, answer.variant, answer.reason)
        ruled = rendering.ruled[kind].get(outcome)
        if ruled is None:
            ruled = rendering.ruled[kind][outcome] = self._render(rendering, kind, answer)
        return ruled

    def _render(self, rendering: Rendering, kind: Kind, answer: Answer) -> bytes:
        if answer.variant is None:
            return self.render_without_value(rendering, kind, answer)
        response = self.response(kind)
        rendering.fill_answer(response, kind, answer)
        return bytes(response.SerializeToString())

    def response(self, kind: Kind) -> Any:
        """Return an empty response message of this version."""
        return getattr(self.messages, f"Resolve{kind.value}Response")()
