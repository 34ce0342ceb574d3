"""What a rule of a policy says, parsed: whom it is about (`when`) and what it asks."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from flaghoist.definition import Category, FlagDefinition
from flaghoist.policy.change import Change, ChangeKind
from flaghoist.policy.glob import Glob
from flaghoist.policy.naming import NamePattern
from flaghoist.release_plan import ReleasePlan
from flaghoist.values import FlagKey, LogId, Person, Source, Target

EMERGENCY_RULE: Final = "emergency"  # what an entry's `policy` names when an emergency key killed flags
DRILL_RULE: Final = "drill"  # and when a rehearsal was recorded, which changes no answer
EVERY_KIND: Final = frozenset(ChangeKind)
# 24 h to look at what was done in a hurry; more kills than that are no emergency but an attack, or a broken script.
RATIFY_WITHIN_MS_DEFAULT: Final = 24 * 3_600_000
KILLS_DEFAULT: Final = 10
KILLS_PER_MS_DEFAULT: Final = 10 * 60_000


class Requirement(StrEnum):
    """What must be there before a change is published."""

    OWNER = "owner"
    TEAM = "team"
    CATEGORY = "category"
    EXPIRES_AT = "expires_at"
    TICKET = "ticket"  # the proposal's, or the definition's
    SAFE_VARIANT = "safe_variant"
    DESCRIPTION = "description"
    SERVICES = "services"
    REASON = "reason"  # the proposal's


@dataclass(frozen=True, slots=True)
class Facts:
    """What `when` looks at: a flag or a release before a change or after it, a flag that is touched, an evaluator."""

    target: Target
    source: Source
    key: FlagKey
    team: str | None = None
    owner: str | None = None
    category: str | None = None
    services: tuple[str, ...] = ()

    @classmethod
    def of_flag(cls, source: Source, key: FlagKey, definition: FlagDefinition) -> "Facts":
        governance = definition.governance
        return cls(
            Target.FLAG, source, key, governance.team, governance.owner, governance.category, governance.services
        )

    @classmethod
    def of_release(cls, key: FlagKey, plan: ReleasePlan) -> "Facts":
        return cls(Target.RELEASE, Source(""), key, plan.team, plan.owner, Category.RELEASE, plan.services)

    def __str__(self) -> str:
        place = f"{self.source}#{self.key}" if self.source else str(self.key)
        return place if self.target is Target.FLAG else f"{self.target.lower()} {place}"


def facts_of(change: Change) -> tuple[Facts, ...]:
    """Return what rules see of a change itself: the definition before and the one after; once when they look alike."""
    op = change.op
    if op.target is Target.RELEASE:
        plans = [plan for plan in (change.release_before, change.release_after) if plan is not None]
        return tuple(dict.fromkeys(Facts.of_release(op.key, plan) for plan in plans))
    if op.target is not Target.FLAG:
        return (Facts(op.target, op.source, op.key),)
    sides = [Facts.of_flag(op.source, op.key, side) for side in (change.before, change.after) if side is not None]
    return tuple(dict.fromkeys(sides)) or (Facts(op.target, op.source, op.key),)


def _any(globs: tuple[Glob, ...] | None, name: str | None) -> bool:
    return globs is None or (name is not None and any(glob.matches(name) for glob in globs))


@dataclass(frozen=True, slots=True)
class When:
    """What a rule is about: every condition that is given must hold, and one pattern of its list is enough.

    None: not asked. What a flag does not have (a team, say) matches no pattern, `*` neither.
    """

    environment: tuple[Glob, ...] | None = None
    target: Target | None = None
    source: tuple[Glob, ...] | None = None
    key: tuple[Glob, ...] | None = None
    team: tuple[Glob, ...] | None = None
    owner: tuple[Glob, ...] | None = None
    category: tuple[Glob, ...] | None = None
    service: tuple[Glob, ...] | None = None
    change: frozenset[ChangeKind] = EVERY_KIND

    @property
    def everything(self) -> bool:
        return self == _EVERYTHING

    def holds_in(self, log_id: LogId) -> bool:
        return _any(self.environment, log_id)

    def matches(self, facts: Facts) -> bool:
        """Say whether all conditions but `environment` and `change` hold."""
        return (
            (self.target is None or self.target is facts.target)
            and _any(self.key, facts.key)
            and _any(self.team, facts.team)
            and _any(self.source, facts.source)
            and _any(self.owner, facts.owner)
            and _any(self.category, facts.category)
            and (self.service is None or any(_any(self.service, name) for name in facts.services))
        )


_EVERYTHING: Final = When()


@dataclass(frozen=True, slots=True)
class Ask:
    """Approvals of `count` people; `people` None: any whom the root lets approve. `label` names them."""

    count: int
    people: frozenset[Person] | None
    label: str

    def counts(self, approvers: Collection[Person]) -> frozenset[Person]:
        """Return those of the approvers who count for it."""
        return frozenset(approvers) if self.people is None else self.people.intersection(approvers)


@dataclass(frozen=True, slots=True)
class Freeze:
    """A span of local time in which nothing is published: once, or every week.

    `begins` and `ends` (excluded) are local times of `zone`; a weekly one gives minutes of the week from Monday 00:00
    instead, and may run over its end.
    """

    name: str
    zone: str
    line: int
    once: tuple[datetime, datetime] | None = None
    weekly: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `changes` published proposals that a rule matched within any `per_ms` milliseconds."""

    changes: int
    per_ms: int


@dataclass(frozen=True, slots=True)
class EmergencyPolicy:
    """How kills by an emergency key are bounded.

    `ratify_within_ms`: when one must be ratified by ordinary approvals, else it alarms. `kills` within `per_ms`: more
    are refused. Milliseconds.
    """

    ratify_within_ms: int = RATIFY_WITHIN_MS_DEFAULT
    kills: int = KILLS_DEFAULT
    per_ms: int = KILLS_PER_MS_DEFAULT


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; what is not asked is None or empty.

    Attributes:
        line: where it starts in the policy.
        propose: who may propose; None: every requester of the root.
        approvals: whose approvals it asks for, beyond the root's own threshold.
        refuse: why nothing that it matches is ever allowed; None: it may be.
        ramp_step: the largest share of users that one change may move, in percent.
        expires_within_ms: how far ahead of publication a flag's `expires_at` may lie, and that it has one.
    """

    name: str
    line: int
    when: When
    propose: frozenset[Person] | None = None
    propose_label: str = ""
    approvals: tuple[Ask, ...] = ()
    refuse: str | None = None
    require: tuple[Requirement, ...] = ()
    naming: NamePattern | None = None
    expires_within_ms: int | None = None
    ramp_step: int | None = None
    freeze: tuple[Freeze, ...] = ()
    budget: Budget | None = None
    # Where the fields of this rule stand, by name.
    lines: dict[str, int] = field(default_factory=dict, compare=False, repr=False, hash=False)

    @property
    def asks(self) -> tuple[str, ...]:
        """What it asks for, a line each, as people read it; nothing for a rule that asks for nothing of its own."""
        if self.refuse is not None:
            return (f"allows nothing: {self.refuse}",)
        told = [] if self.propose is None else [f"proposed by {self.propose_label}"]
        told += [f"{ask.count} approval{'s' * (ask.count > 1)} from {ask.label}" for ask in self.approvals]
        if self.require:
            told.append(f"with {', '.join(self.require)}")
        if self.naming is not None:
            told.append(f"new names like {self.naming.expression}")
        if self.expires_within_ms is not None:
            told.append(f"expires within {_span(self.expires_within_ms)}")
        if self.ramp_step is not None:
            told.append(f"moves at most {self.ramp_step} % of users")
        told += [f"not during {freeze.name} ({freeze.zone})" for freeze in self.freeze]
        if self.budget is not None:
            told.append(f"at most {self.budget.changes} in {_span(self.budget.per_ms)}")
        return tuple(told)


def _span(ms: int) -> str:
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        if ms % size_ms == 0:
            return f"{ms // size_ms}{unit}"
    return f"{ms // 1000}s"


def first_matching(rules: Iterable[Rule], facts: Facts, kinds: frozenset[ChangeKind]) -> list[Rule]:
    """Return the rules that decide: for each kind the first that matches, in their order."""
    found = []
    left = kinds
    for rule in rules:
        if left & rule.when.change and rule.when.matches(facts):
            found.append(rule)
            left -= rule.when.change
            if not left:
                break
    return found
