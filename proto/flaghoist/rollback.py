"""Whether closing a release's gate restores exactly what its flags were before it opened: every reader asks it. Pure.

What other releases and other flags became meanwhile is none of its business: it stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flaghoist.errors import BadDefinition, Refused
from flaghoist.records import Op
from flaghoist.release_plan import Walk, flag_text, gate_key, parse_release
from flaghoist.release_state import ReleaseState
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target


class RevertConflict(Refused):
    """A revert that would not restore what was before: somebody has changed a flag of the release since it opened."""

    code = "revert_conflict"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A flag that is not what it was when its release's gate opened.

    `changed_at` is the seq of the entry that changed it; `what` says it in a few words.
    """

    source: Source
    key: FlagKey
    changed_at: Seq
    what: str

    def __str__(self) -> str:
        return f"{flag_text(self.source, self.key)} was {self.what} at seq {self.changed_at}"


def conflicts(snapshot: Snapshot, release: ReleaseState) -> list[Conflict]:
    """Return the flags of a release that are not as they were when it opened, by name; none while it is closed.

    Its flags are those that its plan names and those that refer to its gate.
    """
    if release.opened_at is None:
        return []
    return sorted(_conflicts(snapshot, release, release.opened_at), key=lambda found: (found.source, found.key))


def _conflicts(snapshot: Snapshot, release: ReleaseState, opened_at: Seq) -> Iterator[Conflict]:
    gate = gate_key(release.key)
    named = set(release.plan.flags)
    for source, key in named:
        flag = snapshot.flag(source, key)
        if flag is None:
            yield Conflict(source, key, snapshot.version_of(StateId(Target.FLAG, source, key)), "deleted")
        elif flag.version >= opened_at:
            what = "changed" if gate in flag.evaluators else "changed, and refers to the gate no more,"
            yield Conflict(source, key, flag.version, what)
    for flag in snapshot.flags():
        if gate in flag.evaluators and flag.version >= opened_at and (flag.source, flag.key) not in named:
            yield Conflict(flag.source, flag.key, flag.version, "changed")


def check_rollback(snapshot: Snapshot, ops: Sequence[Op]) -> None:
    """Refuse a ROLLBACK that is anything but the closing of gates, or that would restore something else.

    Args:
        snapshot: the state that it follows.

    Raises:
        RevertConflict: flags have changed since the gate opened, and the gate's `kept` does not name them.
        BadDefinition: an op of another sort.
    """
    for op in ops:
        where = f"release.{op.key}"
        if op.target is not Target.RELEASE or op.action is not Action.PUT or op.definition is None or op.source:
            raise BadDefinition(
                where, f"want a ROLLBACK to close gates and do nothing else, got {op.action} of {op.target}"
            )
        release = snapshot.releases.get(op.key)
        if release is None:
            raise BadDefinition(where, "want a release that exists, there is none of this name")
        plan = parse_release(op.definition, where=where)
        if not plan.gate.closed or plan.gate.walk is Walk.ON or replace(plan, gate=release.plan.gate) != release.plan:
            raise BadDefinition(where, "want a ROLLBACK to close the gate and to change nothing else of the release")
        left = [found for found in conflicts(snapshot, release) if (found.source, found.key) not in plan.gate.kept]
        if left:
            names = " ".join(f"--keep {flag_text(found.source, found.key)}" for found in left)
            raise RevertConflict(
                f"release {op.key} opened at seq {release.opened_at}; since then {'; '.join(map(str, left))}: closing "
                "its gate would not restore what was before",
                hint=f"change them back first; or revert with {names} to leave them as they are now",
            )
