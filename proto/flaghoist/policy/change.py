"""One op as a policy sees it: what it changes, of which kinds, and whose flags answer otherwise because of it."""

import json
from dataclasses import dataclass
from enum import StrEnum

from flaghoist.definition import FlagDefinition
from flaghoist.document import JsonValue
from flaghoist.records import Op
from flaghoist.values import Action, FlagKey, Source, Target


class ChangeKind(StrEnum):
    """What a change does; one change may do several, and each is judged by itself."""

    CREATE = "create"
    DELETE = "delete"
    KILL = "kill"
    STATE = "state"
    ROLLOUT = "rollout"  # the default variant, or the targeting rule
    VARIANTS = "variants"
    GOVERNANCE = "governance"
    METADATA = "metadata"  # metadata, description, and a definition that stays as it is
    EVALUATOR = "evaluator"  # a shared rule, made, changed or deleted


@dataclass(frozen=True, slots=True)
class Touched:
    """A flag that an op does not name and whose answers it may change all the same.

    An op on a shared rule touches the flags that refer to it, directly or through another; an op on a flag touches the
    flags of the same key in other sources, of which only one is served.
    """

    source: Source
    key: FlagKey
    definition: FlagDefinition


@dataclass(frozen=True, slots=True)
class Change:
    """One op, and the definitions that it leads from and to.

    Attributes:
        before: the flag in force; None for a new one, and for evaluators.
        after: the flag as it would be; None for a deleted one, and for evaluators.
        rule_before: the shared rule in force; None for a new one, and for flags.
        rule_after: the shared rule as it would be; None for a deleted one, and for flags.
        touched: other flags whose answers it may change; their rules must allow it too, as a rollout of theirs.
    """

    op: Op
    before: FlagDefinition | None = None
    after: FlagDefinition | None = None
    rule_before: JsonValue = None
    rule_after: JsonValue = None
    touched: tuple[Touched, ...] = ()

    @property
    def kinds(self) -> frozenset[ChangeKind]:
        """What it does, without what it does to `touched`; never empty."""
        return kinds_of(self)


def kinds_of(change: Change) -> frozenset[ChangeKind]:
    """Return what a change does; never empty."""
    if change.op.target is not Target.FLAG:
        return frozenset({ChangeKind.EVALUATOR})
    if change.op.action is Action.KILL:
        return frozenset({ChangeKind.KILL})
    before, after = change.before, change.after
    if after is None:
        return frozenset({ChangeKind.DELETE})
    if before is None:
        return frozenset({ChangeKind.CREATE})
    kinds = set()
    if before.state is not after.state:
        kinds.add(ChangeKind.STATE)
    if before.default_variant != after.default_variant or not same_json(before.targeting, after.targeting):
        kinds.add(ChangeKind.ROLLOUT)
    if not same_json(before.variants, after.variants):
        kinds.add(ChangeKind.VARIANTS)
    if before.governance != after.governance:
        kinds.add(ChangeKind.GOVERNANCE)
    if before.description != after.description or not same_json(before.metadata, after.metadata) or not kinds:
        kinds.add(ChangeKind.METADATA)
    return frozenset(kinds)


def same_json(one: JsonValue, other: JsonValue) -> bool:
    """Say whether two JSON values are one: 1, 1.0 and true differ, and the order of an object's keys does not count."""
    if one is other or repr(one) == repr(other):
        return True
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
