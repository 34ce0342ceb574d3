"""OFREP answers as the bytes that leave.

The JSON of a flag ends with what is the same for all flags of a view: `"flaghoist.seq":7}}`, and why it is stale.
So the rest, its head, is made once for an answer, and lives through changes of other flags and through an outage.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from flaghoist.document import Scalar
from flaghoist.evaluation import Answer, ErrorCode, EvaluationFailed
from flaghoist.selector import Selector
from sidecar.board import Served
from sidecar.faces.rendering import (
    PIN_MISS_HEADER,
    PIN_MISS_KEY,
    SEQ_HEADER,
    SEQ_KEY,
    STALE_KEY,
    STALE_REASON_KEY,
    own_metadata,
    shown_reason,
)
from sidecar.http_app import JSON, HttpAnswer
from sidecar.staleness import ON_STALE_KEY, SAFE_VARIANT, SafeAnswer, SafeAnswers

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

    Args:
        selector: what the callers have selected.
        stale: nothing proves that the views are the newest.
        past: the callers are pinned to an older version.
    """

    def __init__(self, selector: Selector, *, stale: bool, past: bool = False) -> None:
        self._pairs = selector.pairs
        self._stale = stale
        self._past = past
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
        if answer.variant is not None:
            fields["value"] = answer.value
            fields["variant"] = answer.variant
        fields["reason"] = shown_reason(answer, stale=self._stale, past=self._past)
        safe = {ON_STALE_KEY: SAFE_VARIANT} if isinstance(answer, SafeAnswer) else {}
        return open_metadata(fields, {**self._pairs, **own_metadata(answer.metadata), **safe})


def open_metadata(fields: Mapping[str, Any], metadata: Mapping[str, Scalar]) -> bytes:
    """Return an object whose last member, `metadata`, is open for what a tail brings."""
    opened = encoded({**fields, "metadata": metadata})[:-2]
    return opened + b"," if metadata else opened


class OfrepRendering:
    """The encoded answers of one view at one age; grows to the answers that were asked for, and no further.

    Attributes:
        view: what is answered from.
        stale_s: whole seconds since the last proof of freshness; None while fresh.
        past: the callers are pinned to this, an older version.
        pin_miss: why the callers' pin was not honoured.
        safe: answers, by key, that replace those of the flags' rules at this age.
        safe_answers: those of every age; None while fresh.
        everything: the bulk answer, when no context can change it and it was asked for.

    Args:
        now: what is answered from.
        heads: those of the same selection and of the same kind.
        safe_answers: those of this view, from an earlier rendering.
    """

    def __init__(self, now: Served, heads: Heads, safe_answers: SafeAnswers | None = None) -> None:
        view = now.view
        self.view = view
        self.stale_s = now.stale_s
        self.past = now.past
        self.pin_miss = now.pin_miss
        self.everything: Bulk | None = None
        self.safe: Mapping[str, SafeAnswer] = {}
        self.safe_answers = safe_answers
        ours: dict[str, Any] = {SEQ_KEY: view.seq.number}
        if now.stale_s is not None:
            ours[STALE_KEY] = now.stale_s
            if now.why_stale:
                ours[STALE_REASON_KEY] = now.why_stale
            self.safe_answers = safe_answers or SafeAnswers(view)
            self.safe = self.safe_answers.at(now.stale_s)
        self._about_fields: tuple[tuple[bytes, bytes], ...] = ((SEQ_HEADER.encode(), str(view.seq.number).encode()),)
        if now.pin_miss is not None:
            ours[PIN_MISS_KEY] = True
            self._about_fields += ((PIN_MISS_HEADER.encode(), now.pin_miss.value.encode()),)
        self._heads = heads
        self._tail = encoded(ours)[1:] + b"}"
        self._fields = (JSON, *self._about_fields)
        self._singles: dict[int, tuple[Answer, HttpAnswer]] = {}
        self._context_free: bool | None = None

    @property
    def context_free(self) -> bool:
        """Whether no flag of the view has a rule that counts at this age."""
        if self._context_free is None:
            self._context_free = all(
                flag.fixed is not None or key in self.safe for key, flag in self.view.flags.items()
            )
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
        return HttpAnswer(status, open_metadata(about, self.view.selector.pairs) + self._tail, self._fields)

    def bulk(self, answers: Iterable[Answer | EvaluationFailed]) -> "Bulk":
        """Return the bulk response for these answers, not rendered yet."""
        tail = self._tail
        parts: list[bytes] = []
        about = open_metadata({}, self.view.selector.pairs) + tail
        digests: list[bytes] = [about]
        for head in self._heads.of_all(answers):
            if isinstance(head, Head):
                parts.append(head.json)
                digests.append(head.digest)
            else:
                failure = self._failure(head)[: -len(tail)]
                parts.append(failure)
                digests.append(blake2b(failure, digest_size=_DIGEST_BYTES).digest())
        tag = b'"' + blake2b(b"".join(digests), digest_size=_TAG_BYTES).hexdigest().encode() + b'"'
        return Bulk(parts, tail, about, (*self._about_fields, (b"etag", tag)), tag)

    def _failure(self, failure: EvaluationFailed) -> bytes:
        fields = {"key": failure.key, "errorCode": failure.error_code.value, "errorDetails": str(failure)}
        return open_metadata(fields, {**self.view.selector.pairs, **own_metadata(failure.metadata)}) + self._tail


class Bulk:
    """A bulk response. Its body is made when it is sent; the tag is that of the body all the same.

    The tag is strong: it is a digest of everything that the body is made of.
    """

    __slots__ = ("_about", "_fields", "_parts", "_rendered", "_tail", "tag")

    def __init__(
        self, parts: list[bytes], tail: bytes, about: bytes, fields: tuple[tuple[bytes, bytes], ...], tag: bytes
    ) -> None:
        self._parts = parts
        self._tail = tail
        self._about = about
        self._fields = fields
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
            body = b'{"flags":[' + flags + b"]," + self._about[1:]
            self._rendered = HttpAnswer(200, body, (JSON, *self._fields))
        return self._rendered
