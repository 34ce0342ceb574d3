"""A release as the ledger has it, and what must hold between releases: which require which, and who may close.

Pure; the fold (snapshot.py) asks it whenever an entry changes a release.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from flaghoist.errors import BadDefinition, Refused
from flaghoist.release_plan import Gate, ReleasePlan
from flaghoist.values import FlagKey, Seq


class RequirementUnmet(Refused):
    """A release that would be open while one that it requires is not, or a circle of such."""

    code = "requirement_unmet"


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """A release in force.

    Attributes:
        version: seq of the entry that last changed it.
        opened_at: seq of the entry that opened its gate; None while it is closed. Reverting restores what was before.
        since_ms: since when its gate is, and is walked, as now (Unix ms, of the entries): a soak counts from here.
    """

    key: FlagKey
    plan: ReleasePlan
    version: Seq
    opened_at: Seq | None
    since_ms: int

    @property
    def soaked_at_ms(self) -> int:
        """When its stage has lasted as long as the plan asks (Unix ms): the next may follow then."""
        stage = self.plan.stage
        soak_s = 0 if stage is None else self.plan.stages[stage].soak_s
        return self.since_ms + soak_s * 1000


def following(before: ReleaseState | None, key: FlagKey, plan: ReleasePlan, seq: Seq, at_ms: int) -> ReleaseState:
    """Return what an entry makes of a release.

    Args:
        at_ms: from when on the entry is in force.
    """
    was = None if before is None else before.plan.gate
    opened_before = None if before is None else before.opened_at
    opened_at = None if plan.gate.closed else opened_before or seq
    same = was is not None and _position(was) == _position(plan.gate)
    since_ms = before.since_ms if before is not None and same else at_ms
    return ReleaseState(key, plan, seq, opened_at, since_ms)


def _position(gate: Gate) -> Gate:
    return replace(gate, kept=())


def check_requirements(
    before: Mapping[FlagKey, ReleaseState], after: Mapping[FlagKey, ReleaseState], changed: Collection[FlagKey]
) -> None:
    """Refuse what would leave a release open whose requirement is not active for everybody.

    A kill is not asked: nothing holds up an emergency. What it leaves behind can still be closed.

    Args:
        changed: the releases that an entry changes or deletes.

    Raises:
        RequirementUnmet: the text shows the chain of releases.
        BadDefinition: a requirement that does not exist.
    """
    for key in changed:
        state = after.get(key)
        if state is not None:
            _check_exist(state, after)
            if circle := _circle(key, after):
                raise RequirementUnmet(
                    f"release {key}: want requirements without a circle, got {' requires '.join(circle)}",
                    hint="take one of these requirements away",
                )
            _check_open(state, after)
        old = before.get(key)
        lowered = old is not None and old.plan.gate.for_everybody and not _for_everybody(state)
        if state is None or lowered:
            _check_dependents(key, after, deleted=state is None)


def _for_everybody(state: ReleaseState | None) -> bool:
    return state is not None and state.plan.gate.for_everybody


def _check_exist(state: ReleaseState, after: Mapping[FlagKey, ReleaseState]) -> None:
    for name in state.plan.requires:
        if name not in after:
            raise BadDefinition(f"release {state.key}.requires", f"want releases that exist, got {str(name)!r}")


def _check_open(state: ReleaseState, after: Mapping[FlagKey, ReleaseState]) -> None:
    if state.plan.gate.closed:
        return
    for name in state.plan.requires:
        if not after[name].plan.gate.for_everybody:
            chain = _unmet(state.key, after)
            raise RequirementUnmet(
                f"release {state.key}: want what it requires active for everybody, it is not: "
                f"{' requires '.join(chain)}",
                hint=f"activate first {', then '.join(str(key) for key in reversed(chain[1:]))}",
            )


def _unmet(key: FlagKey, after: Mapping[FlagKey, ReleaseState]) -> list[FlagKey]:
    """Return a chain from a release down to the last requirement that is not active for everybody."""
    chain = [key]
    while True:
        unmet = [n for n in after[chain[-1]].plan.requires if n in after and not after[n].plan.gate.for_everybody]
        if not unmet or unmet[0] in chain:
            return chain
        chain.append(unmet[0])


def _circle(key: FlagKey, after: Mapping[FlagKey, ReleaseState]) -> list[FlagKey] | None:
    """Return the chain of requirements that leads from a release back to itself."""
    came_from: dict[FlagKey, FlagKey] = {}
    left = [key]
    while left:
        here = left.pop()
        for name in after[here].plan.requires if here in after else ():
            if name == key:
                chain = [key, here]
                while chain[-1] != key:
                    chain.append(came_from[chain[-1]])
                return chain[::-1] if here != key else [key, key]
            if name not in came_from:
                came_from[name] = here
                left.append(name)
    return None


def dependents(key: FlagKey, releases: Mapping[FlagKey, ReleaseState]) -> Iterator[FlagKey]:
    """Yield the releases that require one directly, by name."""
    return (name for name in sorted(releases) if key in releases[name].plan.requires)


def _check_dependents(key: FlagKey, after: Mapping[FlagKey, ReleaseState], *, deleted: bool) -> None:
    chain = [key]
    while True:
        above = [n for n in dependents(chain[-1], after) if deleted or not after[n].plan.gate.closed]
        if not above or above[0] in chain:
            break
        chain.append(above[0])
    if len(chain) == 1:
        return
    shown = " requires ".join(reversed(chain))
    what = "nothing that requires it when it is deleted" if deleted else "nothing open that requires it"
    hint = "edit" if deleted else "revert"
    raise RequirementUnmet(
        f"release {key}: want {what}, got {shown}",
        hint=f"{hint} first {', then '.join(str(name) for name in reversed(chain[1:]))}",
    )
