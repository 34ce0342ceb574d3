"""Everything that can be said of one entry of the chain as verified fact, and what it only claims kept apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from flaghoist.errors import Refused
from flaghoist.outcomes import Link
from flaghoist.records import Approval, Entry, Envelope, EpochClaim, Op, Proposal, Ratification, Release, RootKey
from flaghoist.root import Root
from flaghoist.values import Decision, Person, Seq

# Evaluators of this prefix are the gates of releases (docs/protocol.md).
GATE_PREFIX = "release."


class EntryKind(StrEnum):
    """What an entry did: the words of `audit log --kind`."""

    CHANGE = "change"
    EMERGENCY = "emergency"
    RATIFICATION = "ratification"
    ROOT = "root"
    EPOCH = "epoch"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class OpChange:
    """One op of an applied entry.

    Attributes:
        before: the definition that it replaced; None when there was none in force.
        after: the definition in force from then on; None after a deletion.
    """

    op: Op
    before: bytes | None
    after: bytes | None

    @property
    def verb(self) -> str:
        if self.op.action == "KILL":
            return "kill"
        if self.after is None:
            return "delete"
        return "add" if self.before is None else "change"


@dataclass(frozen=True, slots=True)
class Statement:
    """An approval whose signature holds, and the key that made it."""

    approval: Approval
    key: RootKey
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Account:
    """One entry of the chain. What stands here was verified; of a rejected entry only what holds by itself.

    Attributes:
        position: where the entry lies in the log.
        link: what the verifier made of it; the snapshot of an applied one is not kept (Examination.snapshot has it).
        envelope: the entry as it was signed.
        root: the root under which it was judged.
        publishers: the keys that signed the entry.
        proposal: what was asked for; None when there is none, or (rejected) nobody allowed to ask has signed it.
        requester_key: the key that signed it.
        approvals: what people said of exactly this proposal, by signatures that hold; unless the entry was rejected,
            all of them count.
        changes: what an applied entry did to the definitions, op by op.
        refusal: why a rejected entry changed nothing.
        new_root: the root that the entry put into force.
        root_signers: the keys that signed it, of the old and of the new root.
        ratified: the emergency that a ratification stands behind.
        quarantined: proof of another history was in the log before it, so that sidecars did not serve it at once.
    """

    position: int
    link: Link
    envelope: Envelope
    kind: EntryKind
    root: Root
    publishers: tuple[RootKey, ...]
    proposal: Proposal | None = None
    proposal_sha256: bytes | None = None
    requester_key: RootKey | None = None
    approvals: tuple[Statement, ...] = ()
    changes: tuple[OpChange, ...] = ()
    refusal: Refused | None = None
    new_root: Root | None = None
    root_signers: tuple[RootKey, ...] = ()
    ratified: "Account | None" = None
    quarantined: bool = False

    @property
    def entry(self) -> Entry:
        return self.link.entry

    @property
    def entry_hash(self) -> bytes:
        return self.link.entry_hash

    @property
    def seq(self) -> Seq:
        return self.entry.seq

    @property
    def requester(self) -> Person | None:
        return self.proposal.requester if self.proposal is not None else None

    @property
    def approvers(self) -> list[Person]:
        """Who approved; whoever rejected it is no approver, though their statement may stand in a rejected entry."""
        approved = (statement.approval for statement in self.approvals)
        return [approval.approver for approval in approved if approval.decision is Decision.APPROVE]

    @property
    def policy(self) -> str | None:
        """The rule that allowed it, which every reader recomputes; None when nothing was allowed."""
        body = self.entry.body
        return body.policy if isinstance(body, Release) and self.refusal is None else None

    @property
    def title(self) -> str:
        """One line: the proposal's title, or what the entry did."""
        if self.refusal is not None:
            return f"{self.refusal.code}: {self.refusal}"
        if self.new_root is not None:
            return f"root version {self.new_root.version}"
        if self.ratified is not None:
            title = self.ratified.proposal.title if self.ratified.proposal is not None else ""
            return f"stands behind seq {self.ratified.seq}: {title}"
        if isinstance(self.entry.body, EpochClaim):
            return f"epoch {self.entry.epoch}: {self.entry.body.holder}"
        return self.proposal.title if self.proposal is not None else ""

    @property
    def ops(self) -> tuple[Op, ...]:
        """What was asked for; of a rejected entry it was not done."""
        return self.proposal.ops if self.proposal is not None else ()

    @property
    def concerned(self) -> tuple[Op, ...]:
        """Return what it is about: its own ops, or those of the emergency that it ratifies."""
        return self.ratified.ops if self.ratified is not None else self.ops

    def people(self) -> Iterator[Person]:
        """Yield who asked, approved, or signed the root."""
        if self.proposal is not None:
            yield self.proposal.requester
        yield from (statement.approval.approver for statement in self.approvals)
        yield from (key.person for key in self.root_signers)

    def claim(self) -> Proposal | None:
        """Return what a rejected entry's proposal says, although nothing vouches for it; None when it is unreadable."""
        from flaghoist.codec import PROPOSAL

        if not isinstance(self.entry.body, Release):
            return None
        try:
            return PROPOSAL.decode(self.entry.body.proposal.payload)
        except Refused:
            return None

    @property
    def approval_envelopes(self) -> tuple[Envelope, ...]:
        body = self.entry.body
        return body.approvals if isinstance(body, Release | Ratification) else ()


@lru_cache(maxsize=4096)
def releases_in(document: bytes | None) -> frozenset[str]:
    """Return the releases whose gates a definition refers to directly."""
    if document is None or b'"$ref"' not in document:
        return frozenset()
    import json

    found: set[str] = set()
    left = [json.loads(document)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            name = value.get("$ref")
            if isinstance(name, str) and name.startswith(GATE_PREFIX):
                found.add(name.removeprefix(GATE_PREFIX))
            left += value.values()
        elif isinstance(value, list):
            left += value
    return frozenset(found)


def releases_of(op: Op, before: bytes | None, after: bytes | None) -> list[str]:
    """Return the releases that an op belongs to, sorted: whose gate it changes, or refers to before or after."""
    found = releases_in(before) | releases_in(after)
    if op.target == "EVALUATOR" and op.key.startswith(GATE_PREFIX):
        found |= {op.key.removeprefix(GATE_PREFIX)}
    return sorted(found)
