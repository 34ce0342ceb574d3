"""OFREP answers as the bytes that leave.

The JSON of a flag ends with what is the same for all flags of a view: `"flaghoist.seq":7}}`, and the age while stale.
So the rest, its head, is made once for an answer, and lives through changes of other flags and through an outage.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from flaghoist.definition import Scalar
from flaghoist.evaluation import Answer, ErrorCode, EvaluationFailed
from flaghoist.snapshot import View
from sidecar.faces.rendering import SEQ_HEADER, SEQ_KEY, STALE_KEY, STALE_REASON
from sidecar.http_app import JSON, HttpAnswer

STATUS_OF: Final = {ErrorCode.FLAG_NOT_FOUND: 404, ErrorCode.PARSE_ERROR: 400, ErrorCode.GENERAL: 400}

_DIGEST_BYTES: Final = 8  # of one flag's head
_TAG_BYTES: Final = 16


def encoded(value: Any) -> bytes:
    """Return compact JSON; ints stay ints."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class Head(NamedTuple):
    """One flag's JSON without its end, and the digest of that; `answer` is kept so that its id stays its own."""

    answer: Answer
    json: bytes
    digest: bytes


class Heads:
    """The heads of answers, by the answers' ids: a view's answers are made once, when its flags are compiled.

    What two views in a row do not ask for is forgotten.
    """

    def __init__(self, *, stale: bool) -> None:
        self._stale = stale
        self._now: dict[int, Head] = {}
        self._before: dict[int, Head] = {}

    def turn(self) -> None:
        """Note that another view is served."""
        self._before, self._now = self._now, {}

    def of_all(self, answers: Iterable[Answer | EvaluationFailed]) -> list[Head | EvaluationFailed]:
        """Return the head of each answer; a failure is returned as it is."""
        known = self._now.get
        return [known(id(answer)) or self._remembered(answer) for answer in answers]

    def of(self, answer: Answer) -> Head:
        """Return the head of one answer."""
        return self._now.get(id(answer)) or self._made(answer)

    def _remembered(self, answer: Answer | EvaluationFailed) -> Head | EvaluationFailed:
        return self._made(answer) if isinstance(answer, Answer) else answer

    def _made(self, answer: Answer) -> Head:
        head = self._before.get(id(answer))
        if head is None:
            json_head = self._json(answer)
            head = Head(answer, json_head, blake2b(json_head, digest_size=_DIGEST_BYTES).digest())
        self._now[id(answer)] = head
        return head

    def _json(self, answer: Answer) -> bytes:
        fields: dict[str, Any] = {"key": answer.key}
        # An answer without a value keeps its reason while stale: it tells providers that the caller's default applies.
        reason = answer.reason.value
        if answer.variant is not None:
            fields["value"] = answer.value
            fields["variant"] = answer.variant
            if self._stale:
                reason = STALE_REASON
        fields["reason"] = reason
        return open_metadata(fields, answer.metadata)


def open_metadata(fields: Mapping[str, Any], metadata: Mapping[str, Scalar]) -> bytes:
    """Return an object whose last member, `metadata`, is open for what a tail brings; ours is left out of it."""
    own = {key: value for key, value in metadata.items() if key not in (SEQ_KEY, STALE_KEY)}
    opened = encoded({**fields, "metadata": own})[:-2]
    return opened + b"," if own else opened


class OfrepRendering:
    """The encoded answers of one view at one age; grows to the answers that were asked for, and no further.

    Attributes:
        view: what is answered from.
        stale_s: whole seconds since the last proof of freshness; None while fresh.
        everything: the bulk answer, when no context can change it and it was asked for.
    """

    def __init__(self, view: View, stale_s: int | None, heads: Heads) -> None:
        self.view = view
        self.stale_s = stale_s
        self.everything: Bulk | None = None
        self._heads = heads
        ours = {SEQ_KEY: view.seq.number} if stale_s is None else {SEQ_KEY: view.seq.number, STALE_KEY: stale_s}
        self._tail = encoded(ours)[1:] + b"}"
        self._seq_field = (SEQ_HEADER.encode(), str(view.seq.number).encode())
        self._fields = (JSON, self._seq_field)
        self._singles: dict[int, tuple[Answer, HttpAnswer]] = {}
        self._context_free: bool | None = None

    @property
    def context_free(self) -> bool:
        """Whether no flag of the view has a rule."""
        if self._context_free is None:
            self._context_free = all(flag.fixed is not None for flag in self.view.flags.values())
        return self._context_free

    def single(self, answer: Answer) -> HttpAnswer:
        """Return the response that carries one answer."""
        found = self._singles.get(id(answer))
        if found is None:
            response = HttpAnswer(200, self._heads.of(answer).json + self._tail, self._fields)
            found = self._singles[id(answer)] = (answer, response)
        return found[1]

    def failed(self, failure: EvaluationFailed) -> HttpAnswer:
        """Return the response for a flag that cannot be answered."""
        return HttpAnswer(STATUS_OF[failure.error_code], self._failure(failure), self._fields)

    def refused(self, status: int, error_code: str, details: str, key: str | None) -> HttpAnswer:
        """Return the response to a request that cannot be read; `key` is None for a bulk request."""
        fields = {"errorCode": error_code, "errorDetails": details}
        about = fields if key is None else {"key": key, **fields}
        return HttpAnswer(status, open_metadata(about, {}) + self._tail, self._fields)

    def bulk(self, answers: Iterable[Answer | EvaluationFailed]) -> "Bulk":
        """Return the bulk response for these answers, not rendered yet."""
        tail = self._tail
        parts: list[bytes] = []
        digests: list[bytes] = [tail]
        for head in self._heads.of_all(answers):
            if isinstance(head, Head):
                parts.append(head.json)
                digests.append(head.digest)
            else:
                failure = self._failure(head)[: -len(tail)]
                parts.append(failure)
                digests.append(blake2b(failure, digest_size=_DIGEST_BYTES).digest())
        tag = b'"' + blake2b(b"".join(digests), digest_size=_TAG_BYTES).hexdigest().encode() + b'"'
        return Bulk(parts, tail, self._seq_field, tag)

    def _failure(self, failure: EvaluationFailed) -> bytes:
        fields = {"key": failure.key, "errorCode": failure.error_code.value, "errorDetails": str(failure)}
        return open_metadata(fields, failure.metadata) + self._tail


class Bulk:
    """A bulk response. Its body is made when it is sent; the tag is that of the body all the same.

    The tag is strong: it is a digest of everything that the body is made of.
    """

    __slots__ = ("_fields", "_parts", "_rendered", "_tail", "tag")

    def __init__(self, parts: list[bytes], tail: bytes, seq_field: tuple[bytes, bytes], tag: bytes) -> None:
        self._parts = parts
        self._tail = tail
        self._fields = (seq_field, (b"etag", tag))
        self._rendered: HttpAnswer | None = None
        self.tag = tag

    def not_modified(self) -> HttpAnswer:
        """Return the response to a client that has this body."""
        return HttpAnswer(304, headers=self._fields)

    def rendered(self) -> HttpAnswer:
        """Return the response with its body."""
        if self._rendered is None:
            parts, tail = self._parts, self._tail
            flags = (tail + b",").join(parts) + tail if parts else b""
            body = b'{"flags":[' + flags + b'],"metadata":{' + tail
            self._rendered = HttpAnswer(200, body, (JSON, *self._fields))
        return self._rendered
