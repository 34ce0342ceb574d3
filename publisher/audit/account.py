"""Everything that can be said of one entry of the chain as verified fact, and what it only claims kept apart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from flaghoist.codec import PROPOSAL
from flaghoist.errors import Refused
from flaghoist.outcomes import Applied, Link, Stepped
from flaghoist.records import (
    Approval,
    Entry,
    Envelope,
    EpochClaim,
    Op,
    Preparation,
    Proposal,
    Ratification,
    Release,
    RootKey,
    Step,
)
from flaghoist.release_plan import GATE_PREFIX, ReleasePlan, parse_drill, parse_release
from flaghoist.root import Root
from flaghoist.values import Decision, Person, Seq, Target
from publisher.releases.wording import drilled, moved, stepped


class EntryKind(StrEnum):
    """What an entry did: the words of `audit log --kind`."""

    CHANGE = "change"
    ROLLBACK = "rollback"
    PREPARATION = "preparation"
    STEP = "step"
    DRILL = "drill"
    EMERGENCY = "emergency"
    RATIFICATION = "ratification"
    ROOT = "root"
    EPOCH = "epoch"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class OpChange:
    """One op of an applied entry, or what a step did.

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

    @property
    def releases(self) -> list[str]:
        """The releases that it belongs to, sorted."""
        return releases_of(self.op, self.before, self.after)

    def moved(self, *, step: bool = False) -> str | None:
        """Return what became of a release, or of its rehearsal, in words; None for an op on anything else.

        Args:
            step: the publisher took it to its next stage, as its plan says.
        """
        return moved_in_words(self.op.target, self.before, self.after, step=step)


def moved_in_words(target: Target, before: bytes | None, after: bytes | None, *, step: bool = False) -> str | None:
    """Return what two definitions say became of a release, as OpChange.moved does."""
    if target is Target.DRILL:
        return _rehearsed(after)
    if target is not Target.RELEASE:
        return None
    old, new = _plan(before), _plan(after)
    return stepped(old, new) if step and old and new else moved(old, new)


def _plan(document: bytes | None) -> ReleasePlan | None:
    return None if document is None else parse_release(document)


def _rehearsed(document: bytes | None) -> str:
    if document is None:
        return "its drill is forgotten"
    drill = parse_drill(document)
    if drill.get("result") is not None:
        return f"drill measured: {drilled(drill['result'])}"
    return "drill begun: its shadow gate is open" if drill["hoisted"] else "drill: its shadow gate is closed"


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
        link: what the verifier made of it; the snapshot is not kept (Examination.snapshot has it).
        envelope: the entry as it was signed.
        root: the root under which it was judged.
        publishers: the keys that signed the entry.
        proposal: what was asked for; None when there is none, or (rejected) nobody allowed to ask has signed it.
        requester_key: the key that signed it.
        approvals: what people said of exactly this proposal, by signatures that hold; unless the entry was rejected,
            all of them count.
        changes: what an applied entry, or a step, did to the definitions, op by op.
        in_force_at_ms: since when what it changed is served where clocks are exact (Unix ms); None: it changed nothing.
        allowed_by: of a step: the approved entry that set the plan which it follows, and the walk on.
        prepared_by: the entry that showed it to the fleet before it was published.
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
    in_force_at_ms: int | None = None
    allowed_by: "Account | None" = None
    prepared_by: "Account | None" = None

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
    def release(self) -> Release | None:
        """The proposal and its approvals as the entry carries them, published or prepared; None when it has none."""
        return carried(self.entry)

    @property
    def step(self) -> Step | None:
        """The step that the entry takes; of a rejected one, that it would have taken."""
        return self.entry.body if isinstance(self.entry.body, Step) else None

    @property
    def moment_ms(self) -> int | None:
        """The moment that the entry itself sets (Unix ms); None when what it changed may be served at once."""
        return (self.link.in_force_at_ms or None) if isinstance(self.link, Applied | Stepped) else None

    @property
    def policy(self) -> str | None:
        """The rule that allowed it, which every reader recomputes; None when nothing was allowed."""
        return self.release.policy if self.release is not None and self.refusal is None else None

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
        if self.step is not None:
            return f"release {self.step.release}: {'; '.join(self.moves)}"
        return self.proposal.title if self.proposal is not None else ""

    @property
    def ops(self) -> tuple[Op, ...]:
        """What was asked for; of a rejected entry it was not done."""
        return self.proposal.ops if self.proposal is not None else ()

    @property
    def concerned(self) -> tuple[Op, ...]:
        """Return what it is about: its own ops, what a step did, or those of the emergency that it ratifies."""
        if isinstance(self.link, Stepped):
            return (self.link.op,)
        return self.ratified.ops if self.ratified is not None else self.ops

    @property
    def releases(self) -> list[str]:
        """The releases that it is about, sorted: of a rejected entry, and a prepared one, by what was asked for."""
        if self.step is not None:
            return [str(self.step.release)]
        if self.ratified is not None:
            return self.ratified.releases
        if self.changes:
            found = {name for change in self.changes for name in change.releases}
        else:
            found = {name for op in self.ops for name in releases_of(op, None, op.definition)}
        return sorted(found)

    @property
    def moves(self) -> list[str]:
        """What became of each release that it changed, in words."""
        return [said for change in self.changes if (said := change.moved(step=self.step is not None)) is not None]

    def people(self) -> Iterator[Person]:
        """Yield who asked, approved, or signed the root."""
        if self.proposal is not None:
            yield self.proposal.requester
        yield from (statement.approval.approver for statement in self.approvals)
        yield from (key.person for key in self.root_signers)

    def claim(self) -> Proposal | None:
        """Return what a rejected entry's proposal says, although nothing vouches for it; None when it is unreadable."""
        if self.release is None:
            return None
        try:
            return PROPOSAL.decode(self.release.proposal.payload)
        except Refused:
            return None

    @property
    def approval_envelopes(self) -> tuple[Envelope, ...]:
        return approvals_in(self.entry)


def carried(entry: Entry) -> Release | None:
    """Return the proposal with its approvals that an entry publishes or prepares; None when it does neither."""
    match entry.body:
        case Release() as release:
            return release
        case Preparation(release=release):
            return release
        case _:
            return None


def approvals_in(entry: Entry) -> tuple[Envelope, ...]:
    """Return the approvals that an entry carries, of whatever."""
    if isinstance(entry.body, Ratification):
        return entry.body.approvals
    release = carried(entry)
    return release.approvals if release is not None else ()


@lru_cache(maxsize=4096)
def releases_in(document: bytes | None) -> frozenset[str]:
    """Return the releases whose gates a definition refers to directly."""
    if document is None or b'"$ref"' not in document:
        return frozenset()
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
    """Return the releases that an op belongs to, sorted: which it changes, rehearses, or refers to before or after."""
    found = releases_in(before) | releases_in(after)
    if op.target in (Target.RELEASE, Target.DRILL):
        found |= {str(op.key)}
    elif op.target is Target.EVALUATOR and op.key.startswith(GATE_PREFIX):
        found |= {op.key.removeprefix(GATE_PREFIX)}
    return sorted(found)
