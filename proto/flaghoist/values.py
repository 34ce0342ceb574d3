"""Values that are valid because they exist: each is checked once, where bytes or text enter."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from flaghoist.errors import Malformed

# The ledger's epoch of its first entry; each later epoch is claimed by an entry of its own.
FIRST_EPOCH: Final = 1

# flagd accepts any key; ours travel in URLs, metrics, file names and shell commands.
_FLAG_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,254}\Z")
_LOG_ID = re.compile(r"[a-z0-9][a-z0-9._-]{2,63}\Z")
_PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}\Z")
_SOURCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,127})?\Z")
_KEY_ID = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True, order=True)
class Seq:
    """Place of an entry in its ledger: the first is 1, the next 2; 0 means none yet."""

    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < 2**63:  # Avro long, protobuf int64
            raise Malformed(f"seq: want 0 .. 2^63-1, got {self.number}")

    def next(self) -> "Seq":
        return Seq(self.number + 1)

    def __str__(self) -> str:
        return str(self.number)


def _checked(kind: str, pattern: re.Pattern[str], text: object, wanted: str) -> str:
    if not isinstance(text, str) or pattern.match(text) is None:
        shown = text if not isinstance(text, str) or len(text) <= 80 else text[:77] + "..."
        raise Malformed(f"{kind}: want {wanted}, got {shown!r}")
    return text


class FlagKey(str):
    """A name unique within its source: 1 to 255 of A-Z a-z 0-9 . _ : @ -, first a letter or digit."""

    __slots__ = ()

    def __new__(cls, text: object) -> "FlagKey":
        return super().__new__(
            cls, _checked("flag key", _FLAG_KEY, text, "1 to 255 of A-Z a-z 0-9 . _ : @ - (first a letter or digit)")
        )


class LogId(str):
    """The name of one environment: in every signed record, so that staging never counts in production."""

    __slots__ = ()

    def __new__(cls, text: object) -> "LogId":
        return super().__new__(cls, _checked("log_id", _LOG_ID, text, "3 to 64 of a-z 0-9 . _ -"))


class Person(str):
    """A human, named as the root names them (an e-mail address, say). Thresholds count people, never keys."""

    __slots__ = ()

    def __new__(cls, text: object) -> "Person":
        return super().__new__(cls, _checked("person", _PERSON, text, "1 to 128 of A-Z a-z 0-9 . _ + @ -"))


class Source(str):
    """Where a definition came from: the name of an imported file, or "" for flags that are set one by one."""

    __slots__ = ()

    def __new__(cls, text: object) -> "Source":
        return super().__new__(cls, _checked("source", _SOURCE, text, "up to 128 of A-Z a-z 0-9 . _ / -, or nothing"))


class KeyId(str):
    """Fingerprint of a public key: 32 hex digits (signing.key_id)."""

    __slots__ = ()

    def __new__(cls, text: object) -> "KeyId":
        return super().__new__(cls, _checked("key_id", _KEY_ID, text, "32 lower-case hex digits"))


class Target(StrEnum):
    """What an op changes."""

    FLAG = "FLAG"
    EVALUATOR = "EVALUATOR"
    RELEASE = "RELEASE"
    POLICY = "POLICY"
    DRILL = "DRILL"  # a rehearsal of a release: it changes no answer


class Action(StrEnum):
    """What an op does."""

    PUT = "PUT"
    DELETE = "DELETE"
    KILL = "KILL"


class ProposalKind(StrEnum):
    """What a proposal is for; each kind has rules of its own (authorization.check_kind)."""

    CHANGE = "CHANGE"
    EMERGENCY = "EMERGENCY"
    ROLLBACK = "ROLLBACK"  # closes the gates of releases, and refuses if that would not restore what was before
    DRILL = "DRILL"


class Decision(StrEnum):
    APPROVE = "APPROVE"
    REJECT = "REJECT"


class Algorithm(StrEnum):
    """Signature algorithms; a key has one, fixed in the root, and a message never chooses."""

    ED25519 = "ED25519"
    ECDSA_P256 = "ECDSA_P256"
    # An OpenSSH key, whose agent signs a wrapping of the message that no SSH login would (flaghoist.sshsig).
    SSHSIG_ED25519 = "SSHSIG_ED25519"


class Role(StrEnum):
    """What a key may do. Its holders and threshold are in the root."""

    ROOT = "ROOT"
    REQUESTER = "REQUESTER"
    APPROVER = "APPROVER"
    PUBLISHER = "PUBLISHER"
    HEARTBEAT = "HEARTBEAT"
    CHECKPOINTER = "CHECKPOINTER"
    EMERGENCY = "EMERGENCY"


@dataclass(frozen=True, slots=True, order=True)
class StateId:
    """What a definition is filed under: one source may hold one flag and one evaluator of a key."""

    target: Target
    source: Source
    key: FlagKey

    def __str__(self) -> str:
        place = f"{self.source}#{self.key}" if self.source else str(self.key)
        return place if self.target is Target.FLAG else f"{self.target.lower()} {place}"
