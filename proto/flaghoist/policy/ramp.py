"""How many users one change moves: a bound that never says too little, seen from definitions alone.

What it can see: weights of `fractional`, which variant a branch of `if` gives, default variants, values of variants.
What it cannot: how many users a condition matches (each branch counts as if it were everybody), what other operators
give (any difference in or around one is 100 %), and what several definitions of one proposal do together.
docs/policy.md has the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final, TypeAlias

from flaghoist.definition import FlagDefinition, FlagState
from flaghoist.document import JsonValue
from flaghoist.policy.change import Change, same_json
from flaghoist.release_plan import CLOSED, SHARE_MAX, ReleasePlan, Walk
from flaghoist.targeting.bucketing import WEIGHT_MAX, weight_of
from flaghoist.values import Action, Target

NOBODY: Final = Fraction(0)
EVERYBODY: Final = Fraction(1)
# Pairs of branches that are compared before everybody is taken as moved; a rule of 256 KiB against itself takes fewer.
STEPS_MAX: Final = 50_000


def share_moved(change: Change) -> Fraction:
    """Return the largest share of users, 0 .. 1, who may get another answer by this change.

    Users who get the flag's declared safe variant are never counted: the way back is free. Deleting a flag and killing
    it count as nobody, since neither could be done in smaller steps.
    """
    if change.op.target is Target.RELEASE:
        return _moved_by_release(change.release_before, change.release_after)
    if change.op.target is not Target.FLAG:
        if change.op.action is Action.DELETE or change.rule_before is None:
            return NOBODY  # what nothing refers to yet, or any more
        return _SharedRule().moved(change.rule_before, change.rule_after)
    before, after = change.before, change.after
    if after is None or change.op.action is Action.KILL:
        return NOBODY
    if before is None:
        # Nobody had an answer of it: as if all had the variant that it falls back to.
        before = replace(
            after,
            state=after.state,
            targeting=None,
            default_variant=after.governance.safe_variant or after.default_variant,
        )
    if before.state is not after.state:
        return EVERYBODY
    if after.state is FlagState.DISABLED:
        return NOBODY
    return _FlagRule(before, after).moved(before.targeting, after.targeting)


def _moved_by_release(before: ReleasePlan | None, after: ReleasePlan | None) -> Fraction:
    """Return the largest step that a release takes by a change, or may take by itself after it.

    A share that shrinks moves nobody: the way back is free. An audience counts as nobody: the plan names it, and people
    approve it by name.
    """
    if after is None or (after.gate.closed and after.gate.walk is not Walk.ON):
        return NOBODY
    was = CLOSED if before is None else before.gate
    steps = [max(0, after.gate.share - was.share)]
    if (
        before is not None
        and not was.closed
        and not after.gate.closed
        and (before.bucket_by, before.salt)
        != (
            after.bucket_by,
            after.salt,
        )
    ):
        steps.append(SHARE_MAX)
    if after.gate.walk is Walk.ON:
        shares = [after.gate.share, *(max(stage.share, after.gate.share) for stage in after.stages)]
        steps += [later - earlier for earlier, later in pairwise(shares)]
    return Fraction(max(steps), SHARE_MAX)


@dataclass(frozen=True, slots=True)
class _Constant:
    value: JsonValue


@dataclass(frozen=True, slots=True)
class _If:
    """Conditions, and one result more than conditions: the last is what else is given."""

    conditions: Sequence[JsonValue]
    results: Sequence[JsonValue]


@dataclass(frozen=True, slots=True)
class _Fractional:
    """What it buckets by, and the results with their shares, which add up to 1."""

    key: JsonValue
    shares: Sequence[tuple[JsonValue, Fraction]]


@dataclass(frozen=True, slots=True)
class _Opaque:
    pass


_Form: TypeAlias = _Constant | _If | _Fractional | _Opaque


class _SharedRule:
    """Compares two forms of a shared rule; what comes out of it is compared as it is."""

    def __init__(self) -> None:
        self._steps = STEPS_MAX

    # Whether everything that a result names means the same before and after.
    same_meaning = True

    def same_result(self, before: JsonValue, after: JsonValue) -> bool:
        """Say whether users who had one result and get the other are not moved."""
        return same_json(before, after)

    def without_key(self, before: _Form, after: _Form) -> Fraction:
        """Return what moves among those who have nothing to bucket by: `fractional` gives them null."""
        return NOBODY

    def moved(self, before: JsonValue, after: JsonValue) -> Fraction:
        self._steps -= 1
        if self._steps < 0:
            return EVERYBODY
        if self.same_meaning and same_json(before, after):
            return NOBODY
        old, new = _form(before), _form(after)
        match old, new:
            case _Constant(one), _Constant(other):
                return NOBODY if self.same_result(one, other) else EVERYBODY
            case _If(), _If():
                if len(old.results) != len(new.results) or not all(map(same_json, old.conditions, new.conditions)):
                    return EVERYBODY
                return self._worst(zip(old.results, new.results, strict=True))
            # The other side gives each branch's users the same as everybody else.
            case _If(), _Constant() | _Fractional():
                return self._worst((result, after) for result in old.results)
            case _Constant() | _Fractional(), _If():
                return self._worst((before, result) for result in new.results)
            case ((_Constant() | _Fractional()), (_Constant() | _Fractional())):
                return self._across(old, new)
            case _, _Constant(other) if self.same_result(_UNKNOWN, other):
                return NOBODY
            case _:
                return EVERYBODY

    def _worst(self, pairs: Iterator[tuple[JsonValue, JsonValue]]) -> Fraction:
        worst = NOBODY
        for before, after in pairs:
            worst = max(worst, self.moved(before, after))
            if worst == EVERYBODY:
                break
        return worst

    def _across(self, old: _Constant | _Fractional, new: _Constant | _Fractional) -> Fraction:
        """Lay one division of all users over the other, and add up where the results differ."""
        if isinstance(old, _Fractional) and isinstance(new, _Fractional) and not same_json(old.key, new.key):
            return EVERYBODY  # bucketed by another thing, everybody may fall elsewhere
        total = NOBODY
        for share, before, after in _overlaid(_shares(old), _shares(new)):
            total += share * self.moved(before, after)
        return max(total, self.without_key(old, new))


class _FlagRule(_SharedRule):
    """Compares a flag's rule before and after; results are names of variants, null is the default variant."""

    def __init__(self, before: FlagDefinition, after: FlagDefinition) -> None:
        super().__init__()
        self._before, self._after = before, after
        self.same_meaning = before.default_variant == after.default_variant and same_json(
            before.variants, after.variants
        )
        safe = after.governance.safe_variant
        # What became the safe variant only now, or means something else now, is no way back.
        kept = safe is not None and safe == before.governance.safe_variant
        if kept and not same_json(before.variants.get(safe or ""), after.variants.get(safe or "")):
            kept = False
        self._safe = safe if kept else None

    def same_result(self, before: JsonValue, after: JsonValue) -> bool:
        new = _variant(after, self._after)
        if new is not None and new == self._safe:
            return True
        if before is _UNKNOWN:
            return False
        old = _variant(before, self._before)
        if old != new:
            return False
        return old is None or same_json(self._before.variants.get(old), self._after.variants.get(old))

    def without_key(self, before: _Form, after: _Form) -> Fraction:
        one = before.value if isinstance(before, _Constant) else None
        other = after.value if isinstance(after, _Constant) else None
        return NOBODY if self.same_result(one, other) else EVERYBODY


# What an operator that is not understood gives; equal to no result.
_UNKNOWN: Final[JsonValue] = {"": None}


def _variant(result: JsonValue, flag: FlagDefinition) -> str | None:
    """The variant that a rule's result names; bools name variants as text, as in flagd."""
    if result is None:
        return flag.default_variant
    if isinstance(result, bool):
        return "true" if result else "false"
    return result if isinstance(result, str) else repr(result)


def _form(rule: JsonValue) -> _Form:
    if not isinstance(rule, Mapping):
        return _Opaque() if isinstance(rule, list) else _Constant(rule)
    if len(rule) != 1:
        return _Opaque()
    ((name, operands),) = rule.items()
    if name == "if" and isinstance(operands, list):
        return _if(operands)
    if name == "fractional" and isinstance(operands, list):
        return _fractional(operands)
    return _Opaque()


def _if(operands: Sequence[JsonValue]) -> _Form:
    if not operands:
        return _Constant(None)
    alone = len(operands) % 2 == 1
    pairs = operands[:-1] if alone else operands
    return _If(pairs[0::2], [*pairs[1::2], operands[-1] if alone else None])


def _fractional(operands: Sequence[JsonValue]) -> _Form:
    keyed = bool(operands) and not isinstance(operands[0], list)
    entries: list[tuple[JsonValue, int]] = []
    for entry in operands[keyed:]:
        if not isinstance(entry, list) or not entry:
            return _Opaque()
        raw = entry[1] if len(entry) > 1 else None
        weight = None if isinstance(raw, Mapping | list) else weight_of(raw)
        if weight is None:
            return _Opaque()
        entries.append((entry[0], weight))
    total = sum(weight for _, weight in entries)
    if not 0 < total <= WEIGHT_MAX:
        return _Opaque()
    return _Fractional(operands[0] if keyed else None, [(result, Fraction(w, total)) for result, w in entries])


def _shares(form: _Constant | _Fractional) -> Sequence[tuple[JsonValue, Fraction]]:
    return form.shares if isinstance(form, _Fractional) else [(form.value, EVERYBODY)]


def _overlaid(
    before: Sequence[tuple[JsonValue, Fraction]], after: Sequence[tuple[JsonValue, Fraction]]
) -> Iterator[tuple[Fraction, JsonValue, JsonValue]]:
    """Yield the pieces that both divisions cut the users into: buckets are taken in the order of the entries."""
    old, new = 0, 0
    left_old, left_new = before[0][1], after[0][1]
    while True:
        share = min(left_old, left_new)
        if share:
            yield share, before[old][0], after[new][0]
        left_old, left_new = left_old - share, left_new - share
        while not left_old:
            old += 1
            if old == len(before):
                return
            left_old = before[old][1]
        while not left_new:
            new += 1
            if new == len(after):
                return
            left_new = after[new][1]
