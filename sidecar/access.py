"""Who gets no answer: calls without a token, over gRPC and over HTTP. Health and liveness ask for none."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc

from sidecar.http_app import JSON, HttpAnswer, HttpFace, HttpRequest, HttpStream
from sidecar.tokens import Tokens

TEXT: Final = "want a bearer token that this sidecar knows"
HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
OPEN_PATHS: Final = frozenset((b"healthz", b"readyz"))  # probes have no token, and learn nothing of flags

_UNAUTHORIZED: Final = HttpAnswer(
    401, b'{"errorDetails":"' + TEXT.encode() + b'"}', [JSON, (b"www-authenticate", b'Bearer realm="flaghoist"')]
)


class GrpcAccess(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers UNAUTHENTICATED to calls without a token. An open stream goes on when its token is taken away."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler:
        """Return the call's own handler, or one that refuses."""
        if not handler_call_details.method.startswith(HEALTH_PREFIX):
            metadata = handler_call_details.invocation_metadata or ()
            if not self._tokens.allow(value for key, value in metadata if key == "authorization"):
                return _REFUSING
        return await continuation(handler_call_details)


async def _refuse(_request: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, TEXT)


_REFUSING: Final = grpc.unary_unary_rpc_method_handler(_refuse)


class HttpAccess:
    """A face that answers 401 to requests without a token, before it looks at anything else of them."""

    def __init__(self, face: HttpFace, tokens: Tokens) -> None:
        self._face = face
        self._tokens = tokens

    async def answer(self, request: HttpRequest) -> HttpAnswer | HttpStream:
        """Return the face's own answer, or 401."""
        if not self._tokens.allow(request.all(b"authorization")):
            return _UNAUTHORIZED
        return await self._face.answer(request)


def guarded(faces: Mapping[bytes, HttpFace], tokens: Tokens | None) -> Mapping[bytes, HttpFace]:
    """Return the faces of one listener so that those but OPEN_PATHS ask for a token; None: none does."""
    if tokens is None:
        return faces
    return {name: face if name in OPEN_PATHS else HttpAccess(face, tokens) for name, face in faces.items()}
