"""Why a call gets no answer, as a gRPC status: flagd's codes and texts, so that its providers map them as they do."""

from typing import Final

import grpc

from flaghoist.evaluation import ErrorCode, EvaluationFailed
from flaghoist.selector import BadSelector


class NoAnswer(Exception):
    """Ends a call with `code` and `text`; both are safe to show: they never name a value of the caller's context."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


_BY_ERROR_CODE: Final = {
    ErrorCode.FLAG_NOT_FOUND: (grpc.StatusCode.NOT_FOUND, "Flag not found"),
    ErrorCode.PARSE_ERROR: (grpc.StatusCode.DATA_LOSS, "Parse error"),
    ErrorCode.GENERAL: (grpc.StatusCode.UNKNOWN, "General error"),
}


def evaluation_failed(failure: EvaluationFailed) -> NoAnswer:
    """Return the status of a flag that cannot be answered."""
    return NoAnswer(*_BY_ERROR_CODE[failure.error_code])


def flag_not_found() -> NoAnswer:
    """No flag of that key; or, on v1, one without a value: v1 has no other way to make a client use its default."""
    return NoAnswer(*_BY_ERROR_CODE[ErrorCode.FLAG_NOT_FOUND])


def flag_disabled() -> NoAnswer:
    """A DISABLED flag on v1, where an answer would carry a zero value that nobody chose."""
    return NoAnswer(grpc.StatusCode.NOT_FOUND, "Flag disabled")


def type_mismatch() -> NoAnswer:
    """The flag's value is of another type than the method asked for, or would lose something in it."""
    return NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, "Type mismatch error")


def invalid_context(reason: str) -> NoAnswer:
    """The request or its context cannot be read; `reason` names no value."""
    return NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, f"Invalid context: {reason}")


def bad_selector(error: BadSelector) -> NoAnswer:
    """The header flagd-selector names neither a source nor a flag set."""
    return NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def nothing_loaded(state: str) -> NoAnswer:
    """No verified snapshot yet: a client retries, or uses its defaults."""
    return NoAnswer(grpc.StatusCode.UNAVAILABLE, f"no verified flags are loaded yet (verifier state: {state})")


def fault() -> NoAnswer:
    """A bug: the caller learns that it is ours and nothing else."""
    return NoAnswer(grpc.StatusCode.INTERNAL, "internal error; the sidecar's log names the place")
