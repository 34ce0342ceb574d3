"""Answers as the bytes that leave: made once for a view, because a flag has few answers and many callers."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from flaghoist.document import JsonValue, Scalar
from flaghoist.evaluation import Answer, Reason
from flaghoist.snapshot import View
from sidecar.faces import statuses
from sidecar.faces.structs import fill
from sidecar.request import PinMiss
from sidecar.staleness import ON_STALE_KEY, SAFE_VARIANT, SafeAnswer, SafeAnswers

# Metadata keys that begin so are ours; a flag's own are not shown.
OUR_PREFIX: Final = "flaghoist."
SEQ_KEY: Final = "flaghoist.seq"
STALE_KEY: Final = "flaghoist.stale_s"
STALE_REASON_KEY: Final = "flaghoist.stale_reason"
PIN_MISS_KEY: Final = "flaghoist.pin_miss"
SEQ_HEADER: Final = "flaghoist-seq"
PIN_MISS_HEADER: Final = "flaghoist-pin-miss"

# Views that calls alternate between (selectors, pins), least recently used out; as many as a view remembers selectors.
RENDERINGS_MAX: Final = 64
# Flags of all of these together: some 40 MB of encoded answers if every one is asked for, in both services.
RENDERED_FLAGS_MAX: Final = 50_000

# Not one of flagd's reasons but one of OpenFeature's: providers cache STATIC only, so a stale answer is never kept.
STALE_REASON: Final = "STALE"


class Kind(Enum):
    """The type that a Resolve method asks for; its value is the method's suffix."""

    BOOLEAN = "Boolean"
    STRING = "String"
    FLOAT = "Float"
    INT = "Int"
    OBJECT = "Object"


def _boolean(value: JsonValue) -> bool:
    if isinstance(value, bool):
        return value
    raise statuses.type_mismatch()


def _string(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    raise statuses.type_mismatch()


def _float(value: JsonValue) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            double = float(value)
        except OverflowError:
            raise statuses.type_mismatch() from None
        if int(double) == value:
            return double
    raise statuses.type_mismatch()


def _int(value: JsonValue) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise statuses.type_mismatch()


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    if isinstance(value, Mapping):
        return value
    raise statuses.type_mismatch()


# The value as its method returns it, without loss: 10 is the float 10.0 and 10.0 the int 10, but 0.5 is no int.
_AS_KIND: Final[Mapping[Kind, Callable[[JsonValue], Any]]] = {
    Kind.BOOLEAN: _boolean,
    Kind.STRING: _string,
    Kind.FLOAT: _float,
    Kind.INT: _int,
    Kind.OBJECT: _object,
}


def chosen_metadata(view: View, answer: Answer | None) -> dict[str, Scalar]:
    """Return what the caller selected and, over it as in flagd, the flag's own metadata; and if it is a safe answer.

    What a flag says under our own names is left out: only the sidecar may say it.
    """
    merged: dict[str, Scalar] = {**view.selector.pairs}
    if answer is not None:
        merged |= own_metadata(answer.metadata)
        if isinstance(answer, SafeAnswer):
            merged[ON_STALE_KEY] = SAFE_VARIANT
    return merged


def own_metadata(metadata: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    """Return a flag's metadata without what stands under our own names."""
    return {key: value for key, value in metadata.items() if not key.startswith(OUR_PREFIX)}


def shown_reason(answer: Answer, *, stale: bool, past: bool) -> str:
    """Return the reason of an answer as callers see it.

    An answer without a value keeps DISABLED or DEFAULT even while stale: by these words, and no others, providers know
    that the caller's own default applies. An answer from the past is never STATIC: a provider would keep it, though the
    events that said what has changed since were before it.
    """
    if stale and answer.variant is not None:
        return STALE_REASON
    if past and answer.reason is Reason.STATIC:
        return Reason.DEFAULT.value
    return answer.reason.value


class Rendering:
    """The encoded answers of one view at one age; grows to the answers that were asked for, and no further.

    Attributes:
        view: what is answered from.
        stale_s: whole seconds since the last proof of freshness; None while fresh.
        trailer: response metadata that every call of this view carries, unless its pin was missed.
        safe: answers, by key, that replace those of the flags' rules at this age.
        fixed: encoded answers of flags without a rule, by kind and key.
        ruled: encoded answers of flags with a rule, by kind and (key, variant, reason).
        entries: encoded entries of a ResolveAll response, by (key, variant, reason); b"" for what is left out.
        everything: the encoded ResolveAll response, when no context can change it.

    Args:
        why_stale: what keeps it from being fresh, in a few words; "" if that is not known.
        safe_answers: those of this view, from an earlier rendering.
        past: calls that are answered from it are pinned to an older version.
        missed: calls that are answered from it are pinned to a version that could not be served.
    """

    __slots__ = (
        "_missed",
        "_past",
        "_safe_answers",
        "_why_stale",
        "entries",
        "everything",
        "fixed",
        "ruled",
        "safe",
        "stale_s",
        "trailer",
        "view",
    )

    def __init__(
        self,
        view: View,
        stale_s: int | None,
        *,
        why_stale: str = "",
        past: bool = False,
        missed: bool = False,
        safe_answers: SafeAnswers | None = None,
    ) -> None:
        self.view = view
        self.stale_s = stale_s
        self.trailer = ((SEQ_HEADER, str(view.seq.number)),)
        self.fixed: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        self.ruled: dict[Kind, dict[tuple[str, str | None, Reason], bytes]] = {kind: {} for kind in Kind}
        self.entries: dict[tuple[str, str | None, Reason], bytes] = {}
        self.everything: bytes | None = None
        self.safe: Mapping[str, SafeAnswer] = {}
        self._why_stale = why_stale
        self._past = past
        self._missed = missed
        self._safe_answers = safe_answers
        if stale_s is not None:
            self._safe_answers = safe_answers or SafeAnswers(view)
            self.safe = self._safe_answers.at(stale_s)

    def aged(self, stale_s: int | None, why_stale: str = "") -> "Rendering":
        """Return the rendering of the same view at another age."""
        safe = self._safe_answers
        return Rendering(
            self.view, stale_s, why_stale=why_stale, past=self._past, missed=self._missed, safe_answers=safe
        )

    def trailer_of(self, miss: PinMiss | None) -> tuple[tuple[str, str], ...]:
        """Return the response metadata of a call whose pin was missed, or not (None)."""
        return self.trailer if miss is None else (*self.trailer, (PIN_MISS_HEADER, miss.value))

    def metadata(self, answer: Answer | None) -> dict[str, JsonValue]:
        """Return a flag's metadata, or for None that of no one flag: what was selected, the flag's own, and ours."""
        merged: dict[str, JsonValue] = {**chosen_metadata(self.view, answer)}
        merged[SEQ_KEY] = self.view.seq.number
        if self.stale_s is not None:
            merged[STALE_KEY] = self.stale_s
            if self._why_stale:
                merged[STALE_REASON_KEY] = self._why_stale
        if self._missed:
            merged[PIN_MISS_KEY] = True
        return merged

    def reason(self, answer: Answer) -> str:
        """Return the reason as callers see it."""
        return shown_reason(answer, stale=self.stale_s is not None, past=self._past)

    def fill_answer(self, response: Any, kind: Kind, answer: Answer) -> None:
        """Put an answer that has a value into a Resolve response.

        Raises:
            NoAnswer: the value is of another type.
        """
        value = _AS_KIND[kind](answer.value)
        if kind is Kind.OBJECT:
            response.value.SetInParent()
            try:
                fill(response.value, value)
            except OverflowError:  # a Struct's numbers are doubles
                raise statuses.type_mismatch() from None
        else:
            response.value = value
        response.variant = answer.variant
        self.fill_about(response, answer)

    def fill_about(self, response: Any, answer: Answer) -> None:
        """Put reason and metadata into a Resolve response or an AnyFlag."""
        response.reason = self.reason(answer)
        fill(response.metadata, self.metadata(answer))


class Renderings:
    """The renderings that calls alternate between, bounded in number and in size."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool, bool], Rendering] = {}  # least recently used first
        self._flags = 0

    def __len__(self) -> int:
        return len(self._kept)

    def of(
        self, view: View, stale_s: int | None, *, why_stale: str = "", past: bool = False, missed: bool = False
    ) -> Rendering:
        """Return the rendering for these calls; see Rendering. Why they are stale is as of the age's first call."""
        place = (id(view), past, missed)  # a rendering holds its view, so the id stays that view's
        found = self._kept.pop(place, None)
        if found is None:
            found = Rendering(view, stale_s, why_stale=why_stale, past=past, missed=missed)
            self._flags += len(view.flags)
        elif found.stale_s != stale_s:
            found = found.aged(stale_s, why_stale)
        self._kept[place] = found
        while len(self._kept) > 1 and (len(self._kept) > RENDERINGS_MAX or self._flags > RENDERED_FLAGS_MAX):
            oldest = self._kept.pop(next(iter(self._kept)))
            self._flags -= len(oldest.view.flags)
        return found
