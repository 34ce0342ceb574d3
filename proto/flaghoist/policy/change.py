"""One op as a policy sees it: what it changes, of which kinds, and whose flags answer otherwise because of it."""

import json
from dataclasses import dataclass, replace
from enum import StrEnum

from flaghoist.definition import FlagDefinition
from flaghoist.document import JsonValue
from flaghoist.records import Op
from flaghoist.release_plan import ReleasePlan, Walk
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
    RELEASE = "release"  # a release's plan: no gate opens or closes by it
    RAMP = "ramp"  # a release's gate opens further, or the publisher is told to walk it
    REVERT = "revert"  # a release's gate closes, wholly or in part, or its walk is paused


@dataclass(frozen=True, slots=True)
class Touched:
    """A flag that an op does not name and whose answers it may change all the same.

    An op on a shared rule, or on a release, whose gate is one, touches the flags that refer to it, directly or through
    another; an op on a flag touches the flags of the same key in other sources, of which only one is served.
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
        release_before: the release in force; None for a new one, and for anything else.
        release_after: the release as it would be; None for a deleted one, and for anything else.
        touched: other flags whose answers it may change; their rules must allow it too, as `touched_kinds` of change.
    """

    op: Op
    before: FlagDefinition | None = None
    after: FlagDefinition | None = None
    rule_before: JsonValue = None
    rule_after: JsonValue = None
    release_before: ReleasePlan | None = None
    release_after: ReleasePlan | None = None
    touched: tuple[Touched, ...] = ()

    @property
    def touched_kinds(self) -> frozenset[ChangeKind]:
        """What it does to `touched`: a rollout, or a revert when it only takes back."""
        reverts = self.op.target is Target.RELEASE and ChangeKind.REVERT in self.kinds
        return frozenset({ChangeKind.REVERT if reverts else ChangeKind.ROLLOUT})

    @property
    def kinds(self) -> frozenset[ChangeKind]:
        """What it does, without what it does to `touched`; never empty."""
        return kinds_of(self)


def kinds_of(change: Change) -> frozenset[ChangeKind]:
    """Return what a change does; never empty."""
    if change.op.action is Action.KILL:
        return frozenset({ChangeKind.KILL})
    if change.op.target is Target.RELEASE:
        return _kinds_of_release(change.release_before, change.release_after)
    if change.op.target is not Target.FLAG:
        return frozenset({ChangeKind.EVALUATOR})
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


def _kinds_of_release(before: ReleasePlan | None, after: ReleasePlan | None) -> frozenset[ChangeKind]:
    if after is None:
        return frozenset({ChangeKind.DELETE})
    kinds = set()
    if before is None:
        kinds.add(ChangeKind.CREATE)
        opens = not after.gate.closed
        lowers = False
        walks = after.gate.walk is Walk.ON
    else:
        lowers = before.gate.covers(after.gate) and not after.gate.covers(before.gate)
        opens = not before.gate.covers(after.gate) or (not after.gate.closed and _chooses_others(before, after))
        # While it is walked, its stages are what the publisher may do by itself.
        walks = after.gate.walk is Walk.ON and (before.gate.walk is not Walk.ON or before.stages != after.stages)
        if not lowers and before.gate.walk is Walk.ON and after.gate.walk is not Walk.ON:
            lowers = True
    if opens or walks:
        kinds.add(ChangeKind.RAMP)
    elif lowers:
        kinds.add(ChangeKind.REVERT)
    if before is not None and (not kinds or replace(before, gate=after.gate) != after):
        kinds.add(ChangeKind.RELEASE)
    return frozenset(kinds)


def _chooses_others(before: ReleasePlan, after: ReleasePlan) -> bool:
    """Whether the same gate would let other users through."""
    return (before.bucket_by, before.salt) != (after.bucket_by, after.salt) or not same_json(
        before.audience, after.audience
    )


def same_json(one: JsonValue, other: JsonValue) -> bool:
    """Say whether two JSON values are one: 1, 1.0 and true differ, and the order of an object's keys does not count."""
    if one is other or repr(one) == repr(other):
        return True
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
