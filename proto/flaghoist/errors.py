"""One tree of errors, split by who must act.

`Refused`: the record or request is wrong; whoever made it acts. `Unavailable`: the world is down; retry.
`Misconfigured`: the operator acts. Anything else is a bug and crashes. Codes are API: they appear in `--json`, in
metrics and in logs, and tests/unit/flaghoist/test_errors.py pins them.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

# More faults than anybody mends in one go.
PROBLEMS_SHOWN_MAX: Final = 50


class FlaghoistError(Exception):
    """Every error of this product: a stable `code`, a text of facts, and a `hint` that says what to do next."""

    code: ClassVar[str] = "error"
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class Refused(FlaghoistError):
    """The input is wrong, and nothing was changed by it; whoever made it must act."""

    code = "refused"


class Unavailable(FlaghoistError):
    """The world is down or slow; the same request may succeed later."""

    code = "unavailable"
    hint = "check that the ledger can be reached, then run the same command again"


class Misconfigured(FlaghoistError):
    """The operator's configuration cannot work."""

    code = "misconfigured"


# --- values and records ---


class Malformed(Refused):
    """Bytes or text that are not what they claim to be."""

    code = "malformed"


class TooLarge(Malformed):
    """An input over one of the stated limits; refused before it is parsed."""

    code = "too_large"

    def __init__(self, what: str, *, limit: int, got: int, unit: str = "bytes") -> None:
        super().__init__(f"{what}: at most {limit} {unit}, got {got}")
        self.limit, self.got = limit, got


class Faulty(Malformed):
    """A text with faults; `problems` names each one with its place, `where` the text. Subclasses have the code."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        shown = list(problems[:PROBLEMS_SHOWN_MAX])
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        many = f"{where}: {len(problems)} problems:\n  " + "\n  ".join(shown)
        super().__init__(many if len(problems) > 1 else f"{where}: {problems[0]}")
        self.problems = tuple(problems)


# --- signatures and roles ---


class SignatureRefused(Refused):
    """No key that the root lists verifies these bytes."""

    code = "bad_signature"


class WrongLog(Refused):
    """A record of another environment."""

    code = "wrong_log"
    hint = "check that --ledger and the pinned root belong to the same environment"

    def __init__(self, *, expected: str, got: str) -> None:
        super().__init__(f"expected log_id {expected!r}, got {got!r}")
        self.expected, self.got = expected, got


class WrongRoot(Refused):
    """The ledger starts with another root than the pinned one."""

    code = "wrong_root"
    hint = "the ledger is of another environment, or the pinned root is: check --ledger and --root"

    def __init__(self, *, expected: str, got: str) -> None:
        super().__init__(f"pinned root is {expected}, the ledger starts with {got}")


class NotApproved(Refused):
    """Fewer people than the root asks for have approved exactly these bytes."""

    code = "not_approved"
    hint = "ask another person to run `flaghoist approve`, then publish again"


class SamePerson(NotApproved):
    """The requester's own approval, which never counts."""

    code = "same_person"


class Expired(Refused):
    """A proposal, approval or root past its expiry when it was published."""

    code = "expired"
    hint = "propose it again, or ask for a fresh approval"


class NotYet(Refused):
    """Published longer before the moment at which it is to take effect than an entry may wait."""

    code = "not_yet"


class WrongRole(Refused):
    """A key that the root lists, used for what its role does not allow."""

    code = "wrong_role"


# --- state ---


class StaleBase(Refused):
    """The flag has changed since the proposal was made."""

    code = "stale_base"
    hint = "look at the current state with `flaghoist flag show`, then propose again"


class BadDefinition(Refused):
    """A flag or evaluator definition that cannot be served; `where` is the path of the field."""

    code = "bad_definition"

    def __init__(self, where: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class UnknownFlag(Refused):
    """No flag of that key."""

    code = "unknown_flag"
    hint = "list the flags with `flaghoist flag list`"


# --- log ---


class LogConflict(Refused):
    """A conditional append found that another record came first; nothing was written."""

    code = "log_conflict"
    hint = "read on from the new end, then append again"

    def __init__(self, *, expected_end: int, end: int) -> None:
        super().__init__(f"expected the log to end at {expected_end}, it ends at {end}")
        self.expected_end, self.end = expected_end, end


class LogMissing(Misconfigured):
    """There is no log at the given place."""

    code = "log_missing"
    hint = "create it with `flaghoist init`, or correct --ledger"


class LogTruncated(Unavailable):
    """The log holds no record at a position that it once had: it was cut, or made anew."""

    code = "log_truncated"
    hint = "read the log again from its start; if entries stay missing, run `flaghoist audit verify`"


class OutcomeUnknown(Unavailable):
    """An append was sent and not confirmed: the record may be in the log."""

    code = "outcome_unknown"
    hint = "run the same command again: it finishes what was sent, and never doubles it"
