"""HTTP requests to answers: routes, bodies, CORS and bugs, the same for every HTTP face. A plain ASGI application.

Plain, because a framework would cost as much as an evaluation (docs/decisions/0007-http-server.md).
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any, Final, Protocol

import structlog

from flaghoist.errors import Misconfigured, TooLarge
from sidecar.report import BugReport

logger = structlog.get_logger()

BODY_BYTES_MAX: Final = 1024 * 1024  # flagd's limit of a body
PREFLIGHT_S: Final = 600  # browsers ask again after this; Chromium caps it at 7200
JSON: Final = (b"content-type", b"application/json")
TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
# What a browser's script may read of an answer, besides its body.
EXPOSED: Final = b"ETag, flaghoist-seq, flaghoist-pin-miss"

Fields = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,]+\Z")


class ClientLeft(Exception):
    """The client is gone before its request was whole; nobody waits for an answer."""


class HttpRequest:
    """One request. `path` is as the client wrote it, without the query: `%2F` is still `%2F`.

    `fields` are the headers as sent, `headers` those by name: of one that is sent more than once the last. Names are
    lower case.
    """

    __slots__ = ("_receive", "fields", "headers", "method", "path")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.fields: Fields = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.fields)
        self._receive = receive

    def all(self, name: bytes) -> list[bytes]:
        """Return every value of a header, in the order sent."""
        return [value for field, value in self.fields if field == name]

    async def body(self) -> bytes:
        """Read the whole body, once.

        Raises:
            TooLarge: more than BODY_BYTES_MAX bytes; no more than that was held.
            ClientLeft: the connection ended first.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > BODY_BYTES_MAX:
            raise TooLarge("request body", limit=BODY_BYTES_MAX, got=int(declared))
        message = await self._receive()
        if message["type"] == "http.request" and not message["more_body"]:
            body: bytes = message["body"]
            return body
        parts: list[bytes] = []
        count = 0
        while message["type"] == "http.request":
            parts.append(message["body"])
            count += len(message["body"])
            if count > BODY_BYTES_MAX:
                raise TooLarge("request body", limit=BODY_BYTES_MAX, got=count)
            if not message["more_body"]:
                return b"".join(parts)
            message = await self._receive()
        raise ClientLeft

    async def left(self) -> None:
        """Return when the client is gone. Call it after body()."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class HttpAnswer:
    """One answer, ready to be sent any number of times: its ASGI messages. Nobody changes them."""

    __slots__ = ("body", "head", "status")

    def __init__(self, status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        fields = list(headers)
        if status not in (204, 304):  # these have no body, so no length: RFC 9110, section 8.6
            fields.append((b"content-length", str(len(body)).encode()))
        self.status = status
        self.head: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": fields}
        self.body: dict[str, Any] = {"type": "http.response.body", "body": body}


class HttpStream:
    """An answer without an end of its own: `chunks` are sent as they come, until the client leaves."""

    __slots__ = ("chunks", "head", "status")

    def __init__(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], chunks: AsyncGenerator[bytes, None]
    ) -> None:
        self.status = status
        self.head: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": list(headers)}
        self.chunks = chunks


class HttpFace(Protocol):
    """What answers the paths that begin with one segment."""

    async def answer(self, request: HttpRequest) -> HttpAnswer | HttpStream:
        """Return the answer to one request; what it raises besides ClientLeft is a bug, and becomes a 500."""


NOT_FOUND: Final = HttpAnswer(404, b"404 page not found\n", [TEXT])
# No text of the bug: it may quote a caller's context.
FAULT: Final = HttpAnswer(
    500, b'{"errorDetails":"internal error; the sidecar\'s log names the place"}', [JSON, (b"connection", b"close")]
)


def method_not_allowed(allowed: bytes) -> HttpAnswer:
    """Return the answer to a method that a path does not have; `allowed` is a list such as b"GET, HEAD"."""
    return HttpAnswer(405, b"405 method not allowed\n", [TEXT, (b"allow", allowed)])


class Cors:
    """Which web pages may read the answers (Fetch standard, "CORS protocol"). Cookies are never part of it.

    Args:
        allowed_origins: such as `https://shop.example.org`, or `*` for every one.

    Raises:
        Misconfigured: an origin that no browser would send.
    """

    def __init__(self, allowed_origins: Iterable[str]) -> None:
        origins = list(allowed_origins)
        for origin in origins:
            if origin != "*" and _ORIGIN.match(origin) is None:
                raise Misconfigured(
                    f"allowed origin: want scheme://host[:port] in lower case, or *, got {origin!r}",
                    hint="write it as the browser sends it: no path, no slash at the end",
                )
        self._any = "*" in origins
        self._allowed = frozenset(origin.encode() for origin in origins)

    def preflight(self, request: HttpRequest) -> HttpAnswer | None:
        """Return the answer to a browser's question before the real request; None for any other request."""
        headers = request.headers
        if request.method != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        fields = self._fields(request)
        if any(name == b"access-control-allow-origin" for name, _ in fields):
            fields += [
                (b"access-control-allow-methods", b"POST, GET, HEAD"),
                (b"access-control-max-age", str(PREFLIGHT_S).encode()),
            ]
            asked = headers.get(b"access-control-request-headers")
            if asked:
                fields.append((b"access-control-allow-headers", asked))
        return HttpAnswer(204, headers=fields)

    def head(self, answer: HttpAnswer | HttpStream, request: HttpRequest) -> dict[str, Any]:
        """Return the answer's first message with what a browser must see."""
        return {**answer.head, "headers": [*answer.head["headers"], *self._fields(request)]}

    def _fields(self, request: HttpRequest) -> Fields:
        if self._any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        origin = request.headers.get(b"origin")
        if origin is None or origin not in self._allowed:
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
        ]


class HttpApp:
    """The ASGI application of one listener.

    Args:
        name: says in logs and metrics which one it is.
        faces: by the first segment of the path, such as b"ofrep".
        cors: which web pages may read the answers; None: none.

    Attributes:
        tally: answers sent so far, by status.
    """

    def __init__(self, name: str, faces: Mapping[bytes, HttpFace], *, cors: Cors | None = None) -> None:
        self.name = name
        self.tally: Counter[int] = Counter()
        self._faces = dict(faces)
        self._cors = cors
        self._bugs = BugReport(logger, "request.failed", app=self.name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = HttpRequest(scope, receive)
        cors = self._cors
        preflight = None if cors is None else cors.preflight(request)
        if preflight is not None:
            self.tally[204] += 1
            await send(preflight.head)
            await send(preflight.body)
            return
        try:
            face = self._faces.get(request.path.split(b"/", 2)[1])
            answer = NOT_FOUND if face is None else await face.answer(request)
        except ClientLeft:
            return
        except Exception as error:  # noqa: BLE001 - a bug must not send its text, which may quote a context
            self._bugs.note(error)
            answer = FAULT
        self.tally[answer.status] += 1
        await send(answer.head if cors is None else cors.head(answer, request))
        if type(answer) is HttpAnswer:
            await send(answer.body)
        else:
            assert isinstance(answer, HttpStream)  # noqa: S101 - HttpFace allows no third
            await self._send_stream(answer, request, send)

    async def _send_stream(self, stream: HttpStream, request: HttpRequest, send: Send) -> None:
        sending = asyncio.ensure_future(_send_chunks(stream, send))
        leaving = asyncio.ensure_future(request.left())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            outcome, _ = await asyncio.gather(sending, leaving, return_exceptions=True)
        if isinstance(outcome, Exception):
            self._bugs.note(outcome)


async def _send_chunks(stream: HttpStream, send: Send) -> None:
    async with aclosing(stream.chunks) as chunks:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
