"""Answers as the bytes that leave: made once for a view, because a flag has few answers and many callers."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from flaghoist.definition import JsonValue, Scalar
from flaghoist.evaluation import Answer, Reason
from flaghoist.snapshot import View
from sidecar.faces import statuses
from sidecar.faces.structs import fill

SEQ_KEY: Final = "flaghoist.seq"
STALE_KEY: Final = "flaghoist.stale_s"
SEQ_HEADER: Final = "flaghoist-seq"

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


class Rendering:
    """The encoded answers of one view at one age; grows to the answers that were asked for, and no further.

    Attributes:
        view: what is answered from.
        stale_s: whole seconds since the last proof of freshness; None while fresh.
        trailer: response metadata that every call of this view carries.
        fixed: encoded answers of flags without a rule, by kind and key.
        ruled: encoded answers of flags with a rule, by kind and (key, variant, reason).
        entries: encoded entries of a ResolveAll response, by (key, variant, reason); b"" for what is left out.
        everything: the encoded ResolveAll response, when no context can change it.
    """

    __slots__ = ("entries", "everything", "fixed", "ruled", "stale_s", "trailer", "view")

    def __init__(self, view: View, stale_s: int | None) -> None:
        self.view = view
        self.stale_s = stale_s
        self.trailer = ((SEQ_HEADER, str(view.seq.number)),)
        self.fixed: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        self.ruled: dict[Kind, dict[tuple[str, str | None, Reason], bytes]] = {kind: {} for kind in Kind}
        self.entries: dict[tuple[str, str | None, Reason], bytes] = {}
        self.everything: bytes | None = None

    def metadata(self, own: Mapping[str, Scalar]) -> dict[str, JsonValue]:
        """Return a flag's metadata with ours: the seq, and the age while stale."""
        merged: dict[str, JsonValue] = {**own, SEQ_KEY: self.view.seq.number}
        if self.stale_s is not None:
            merged[STALE_KEY] = self.stale_s
        return merged

    def reason(self, answer: Answer) -> str:
        """Return the reason as callers see it.

        An answer without a value keeps DISABLED or DEFAULT even while stale: by these words, and no others, providers
        know that the caller's own default applies.
        """
        if self.stale_s is None or answer.variant is None:
            return answer.reason.value
        return STALE_REASON

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
        fill(response.metadata, self.metadata(answer.metadata))
