"""flagd's evaluation services by Connect with JSON: POST /flagd.evaluation.v1.Service/ResolveBoolean, for browsers.

Each call goes through the gRPC face's own handler, so both answer alike. Source: Connect protocol, connectrpc.com,
"Unary-Request" and "Server-Streaming".
"""

import json
import struct
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

from flaghoist.errors import Malformed, TooLarge
from sidecar.faces.evaluation import EvaluationFace
from sidecar.faces.json_body import json_object
from sidecar.faces.statuses import NoAnswer
from sidecar.http_app import JSON, NOT_FOUND, HttpAnswer, HttpRequest, HttpStream, method_not_allowed

UNARY: Final = b"application/json"
STREAMING: Final = b"application/connect+json"
ENVELOPE: Final = struct.Struct(">BI")  # flags, length
LAST: Final = 0b10  # flag of the message that ends a stream

HTTP_STATUS: Final = {  # "Error Codes"; those that the evaluation services use
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
}


class CallContext:
    """What a gRPC handler sees of its call."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self.trailer: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the request's headers."""
        return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._request.fields)

    def set_trailing_metadata(self, trailer: Iterable[tuple[str, str]]) -> None:
        """Set what goes with the answer."""
        self.trailer = tuple(trailer)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call.

        Raises:
            NoAnswer: always.
        """
        raise NoAnswer(code, details)


class Connect:
    """One evaluation service over Connect; its path begins with the service's full name."""

    def __init__(self, service: EvaluationFace) -> None:
        self._methods: Mapping[str, MethodDescriptor] = service.messages.DESCRIPTOR.services_by_name[
            "Service"
        ].methods_by_name
        self._handlers = service.handlers()

    async def answer(self, request: HttpRequest) -> HttpAnswer | HttpStream:
        """Return the answer to one call, or the stream of one."""
        method = self._methods.get(request.path.rpartition(b"/")[2].decode("ascii"))
        if method is None or request.path.count(b"/") != 2:
            return NOT_FOUND
        if request.method != "POST":
            return method_not_allowed(b"POST")
        wanted = STREAMING if method.server_streaming else UNARY
        if request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != wanted:
            return HttpAnswer(415, headers=[(b"accept-post", wanted)])
        context = CallContext(request)
        try:
            body = await request.body()
            call = _parsed(method.input_type, body[ENVELOPE.size :] if method.server_streaming else body)
            if method.server_streaming:
                events = self._handlers[method.name].unary_stream(call, context)
                return HttpStream(200, [(b"content-type", STREAMING)], _enveloped(method, events))
            encoded = await self._handlers[method.name].unary_unary(call, context)
        except TooLarge as too_large:
            return _failed(NoAnswer(grpc.StatusCode.RESOURCE_EXHAUSTED, str(too_large)), context)
        except NoAnswer as no_answer:
            return _failed(no_answer, context)
        return HttpAnswer(200, _json(method.output_type, encoded), [JSON, *_fields(context)])


def _parsed(message_type: Any, body: bytes) -> bytes:
    message = message_factory.GetMessageClass(message_type)()
    try:
        json_format.ParseDict(json_object(body), message, ignore_unknown_fields=True)
        encoded: bytes = message.SerializeToString()
    except Malformed as malformed:
        raise NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, str(malformed)) from None
    except (json_format.ParseError, ValueError):  # its text may quote the body
        raise NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, f"want the JSON of a {message_type.full_name}") from None
    return encoded


def _json(message_type: Any, encoded: bytes) -> bytes:
    message = message_factory.GetMessageClass(message_type).FromString(encoded)
    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False, separators=(",", ":")).encode()


def _error(no_answer: NoAnswer) -> dict[str, str]:
    return {"code": no_answer.code.name.lower(), "message": no_answer.text}


def _failed(no_answer: NoAnswer, context: CallContext) -> HttpAnswer:
    body = json.dumps(_error(no_answer), ensure_ascii=False, separators=(",", ":")).encode()
    return HttpAnswer(HTTP_STATUS.get(no_answer.code, 500), body, [JSON, *_fields(context)])


def _fields(context: CallContext) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in context.trailer]


async def _enveloped(method: MethodDescriptor, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    end: dict[str, Any] = {}
    try:
        async with aclosing(events) as opened:
            async for event in opened:
                message = _json(method.output_type, event)
                yield ENVELOPE.pack(0, len(message)) + message
    except NoAnswer as no_answer:
        end["error"] = _error(no_answer)
    last = json.dumps(end).encode()
    yield ENVELOPE.pack(LAST, len(last)) + last
