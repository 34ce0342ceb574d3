"""What an evaluation says: an answer, or why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from flaghoist.document import JsonValue, Scalar
from flaghoist.errors import Refused


class Reason(StrEnum):
    """Why a flag has its value. STATIC says that no context can change it: clients may cache it."""

    STATIC = "STATIC"
    TARGETING_MATCH = "TARGETING_MATCH"
    DEFAULT = "DEFAULT"
    DISABLED = "DISABLED"


class ErrorCode(StrEnum):
    """Why a flag has no value: OpenFeature's error codes."""

    FLAG_NOT_FOUND = "FLAG_NOT_FOUND"
    PARSE_ERROR = "PARSE_ERROR"
    GENERAL = "GENERAL"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one evaluation, shared between calls: nothing inside may be changed.

    `value` and `variant` are None when the flag is DISABLED, or has no default variant and no rule matched.
    """

    key: str
    value: JsonValue
    variant: str | None
    reason: Reason
    metadata: Mapping[str, Scalar]


class EvaluationFailed(Refused):
    """A flag that cannot be answered; `metadata` is the flag's own, empty when the flag is unknown."""

    code = "evaluation_failed"

    def __init__(
        self, key: str, error_code: ErrorCode, message: str, *, metadata: Mapping[str, Scalar] | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.error_code = error_code
        self.metadata: Mapping[str, Scalar] = metadata if metadata is not None else {}
