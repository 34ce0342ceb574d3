"""What ops do to a state, as a policy looks at it: each definition before and after, and the flags that it touches."""

from collections.abc import Sequence

from flaghoist.policy import Change, Touched
from flaghoist.records import Op
from flaghoist.release_plan import Walk, gate_key
from flaghoist.snapshot import SHARED, CompiledFlag, Snapshot
from flaghoist.values import FlagKey, Source, Target


def changes_between(before: Snapshot, after: Snapshot, ops: Sequence[Op]) -> Sequence[Change]:
    """Return what these ops change.

    Args:
        after: `before` with these ops folded in.
    """
    return [_change(before, after, op) for op in ops]


def _change(before: Snapshot, after: Snapshot, op: Op) -> Change:
    match op.target:
        case Target.FLAG:
            return _flag_change(before, after, op)
        case Target.RELEASE:
            return _release_change(before, after, op)
        case _:
            return _evaluator_change(before, after, op)


def _flag_change(before: Snapshot, after: Snapshot, op: Op) -> Change:
    old, new = before.flag(op.source, op.key), after.flag(op.source, op.key)
    # Of equal keys one is served: making or deleting this one may decide which.
    decides = old is None or new is None
    namesakes = (flag for flag in after.named(op.key) if decides and flag.source != op.source)
    return Change(
        op,
        before=None if old is None else old.definition,
        after=None if new is None else new.definition,
        touched=tuple(_touched(flag) for flag in namesakes),
    )


def _release_change(before: Snapshot, after: Snapshot, op: Op) -> Change:
    old, new = before.releases.get(op.key), after.releases.get(op.key)
    inert = (old is None or old.plan.gate.closed) and (
        new is None or (new.plan.gate.closed and new.plan.gate.walk is not Walk.ON)
    )
    referring = _referring(before, after, SHARED, gate_key(op.key))
    return Change(
        op,
        release_before=None if old is None else old.plan,
        release_after=None if new is None else new.plan,
        # While nobody is let through, nobody's answers change.
        touched=() if inert else tuple(_touched(flag) for _, flag in sorted(referring.items())),
    )


def _evaluator_change(before: Snapshot, after: Snapshot, op: Op) -> Change:
    old, new = before.evaluator(op.source, op.key), after.evaluator(op.source, op.key)
    referring = _referring(before, after, op.source, op.key)
    return Change(
        op,
        rule_before=None if old is None else old.rule,
        rule_after=None if new is None else new.rule,
        touched=tuple(_touched(flag) for _, flag in sorted(referring.items())),
    )


def _referring(
    before: Snapshot, after: Snapshot, source: Source, evaluator: FlagKey
) -> dict[tuple[Source, FlagKey], CompiledFlag]:
    """Return the flags that refer to an evaluator before or after; as they are after, where they do in both."""
    return {(flag.source, flag.key): flag for state in (before, after) for flag in state.referring(source, evaluator)}


def _touched(flag: CompiledFlag) -> Touched:
    return Touched(flag.source, flag.key, flag.definition)
