"""From a release as it is to the one op that moves its gate, with all that readers would say to it beforehand. Pure.

What a move may be, the verifier decides: `checked` asks it. Here stands what an operator means by a word.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flaghoist.changes import changes_between
from flaghoist.errors import BadDefinition, NotApproved, Refused
from flaghoist.ledger import Ledger
from flaghoist.policy import PolicyRefused
from flaghoist.records import Op
from flaghoist.release_plan import (
    CLOSED,
    SHARE_MAX,
    Gate,
    ReleasePlan,
    Walk,
    encode_release,
    flag_text,
    gate_key,
    share_in,
)
from flaghoist.release_state import ReleaseState
from flaghoist.rollback import check_rollback, conflicts
from flaghoist.snapshot import SHARED, CompiledFlag, Snapshot
from flaghoist.values import Action, FlagKey, Person, ProposalKind, Role, Source, Target
from publisher.plan import Step
from publisher.releases.wording import lead_text, moved, share_text, span_text, users

# More names than anybody reads in one line; --json has them all.
NAMES_SHOWN_MAX: Final = 12
# How many decimals of a percent there may be, and that it is at most 100, share_in says.
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%\Z")


class NotWalking(Refused):
    """A walk that cannot be paused or resumed, because there is none."""

    code = "not_walking"


@dataclass(frozen=True, slots=True)
class Move:
    """One op on one release, as it is asked for.

    Attributes:
        before: the release in force.
        plan: the release as it would be.
        kind: of the proposal: a revert is a ROLLBACK, which readers hold to restoring what was before.
    """

    before: ReleaseState
    plan: ReleasePlan
    kind: ProposalKind = ProposalKind.CHANGE

    @property
    def key(self) -> FlagKey:
        return self.before.key

    @property
    def changes(self) -> bool:
        """Whether there is anything to ask for."""
        return self.plan != self.before.plan

    @property
    def op(self) -> Op:
        definition = encode_release(self.plan)
        return Op(Target.RELEASE, SHARED, self.key, self.before.version, Action.PUT, definition)

    @property
    def step(self) -> Step:
        return Step(self.op, encode_release(self.before.plan))

    @property
    def title(self) -> str:
        """What the proposal is called, unless the operator calls it something else."""
        verb = "revert" if self.kind is ProposalKind.ROLLBACK else "release"
        return f"{verb} {self.key}: {moved(self.before.plan, self.plan)}"


# --- what the words mean ---


def ramp(state: ReleaseState, goal: str | None, *, walk: bool = False) -> Move:
    """Return the move to a share of all users (`10%`), or to a stage of the plan by its name.

    A stage shuts nobody out who was let through, unless it is an earlier one than the gate has reached. A walk goes on
    from where the gate then is; one that is taken back pauses, so that it does not go forward again by itself.

    Args:
        goal: None: the gate stays, and only its walk begins.
        walk: the publisher then takes the stages that follow by itself.

    Raises:
        BadDefinition: no such stage or share; nothing left to walk.
    """
    plan = state.plan
    gate = replace(plan.gate, kept=()) if goal is None else _at(plan, goal)
    if walk:
        gate = replace(gate, walk=Walk.ON)
    elif goal is not None and plan.gate.walk is Walk.ON and not gate.covers(plan.gate):
        gate = replace(gate, walk=Walk.PAUSED)
    after = replace(plan, gate=gate)
    if walk and not plan.stages:
        raise BadDefinition(
            f"release {state.key}",
            "want stages to walk through, its plan has none",
            hint=f"give it some: `flaghoist release edit {state.key} --stage 1%:1h --stage 100%`",
        )
    if after.next_stage is None and gate.walk is not Walk.OFF:
        if walk:
            raise BadDefinition(f"release {state.key}", "want a stage left to walk to, it has reached the last one")
        after = replace(after, gate=replace(gate, walk=Walk.OFF))
    return Move(state, after)


def activate(state: ReleaseState) -> Move:
    """Return the move to everybody; a walk is over then."""
    gate = replace(state.plan.gate, share=SHARE_MAX, walk=Walk.OFF, kept=())
    return Move(state, replace(state.plan, gate=gate))


def revert(snapshot: Snapshot, state: ReleaseState, keep: Sequence[str] = ()) -> Move:
    """Return the move that closes the gate and ends a walk.

    Args:
        keep: flags (KEY or SOURCE#KEY) that somebody has changed since the gate opened and that stay as they are now.

    Raises:
        BadDefinition: one of them has not changed: it would be restored, and nothing is to be kept.
    """
    gate = state.plan.gate
    if gate.closed and gate.walk is Walk.OFF and not keep:
        return Move(state, state.plan, ProposalKind.ROLLBACK)
    changed = {flag_text(found.source, found.key): found for found in conflicts(snapshot, state)}
    kept: dict[tuple[Source, FlagKey], None] = {}
    for name in keep:
        found = changed.get(name)
        if found is None:
            known = ", ".join(changed) or "none"
            raise BadDefinition(
                f"--keep {name}",
                f"want a flag of release {state.key} that was changed since its gate opened; these were: {known}",
            )
        kept[found.source, found.key] = None
    return Move(state, replace(state.plan, gate=replace(CLOSED, kept=tuple(kept))), ProposalKind.ROLLBACK)


def pause(state: ReleaseState) -> Move:
    """Return the move that stops a walk where it is; whoever is let through stays so.

    Raises:
        NotWalking: nobody walks it.
    """
    if state.plan.gate.walk is Walk.OFF:
        raise NotWalking(
            f"release {state.key}: want one that is walked through its stages, nobody walks it",
            hint="nothing moves by itself: there is nothing to pause",
        )
    return Move(state, replace(state.plan, gate=replace(state.plan.gate, walk=Walk.PAUSED)))


def resume(state: ReleaseState) -> Move:
    """Return the move that lets a paused walk go on; the soak of its stage starts anew.

    Raises:
        NotWalking: it is not paused.
    """
    if state.plan.gate.walk is Walk.OFF:
        raise NotWalking(
            f"release {state.key}: want a walk that was paused, nobody walks it",
            hint=f"begin with `flaghoist release ramp {state.key} --walk`",
        )
    return Move(state, replace(state.plan, gate=replace(state.plan.gate, walk=Walk.ON)))


def _at(plan: ReleasePlan, goal: str) -> Gate:
    """Return the gate at a stage or share. A stage's name wins over a share that looks like it: it says more."""
    named = next((index for index, stage in enumerate(plan.stages) if stage.name == goal), None)
    if named is not None:
        stage = plan.stages[named]
        if plan.gate.covers(stage) and Gate(stage.audience, stage.share).covers(plan.gate):
            return plan.gate
        if plan.gate.covers(stage):
            return replace(plan.gate, audience=stage.audience, share=stage.share, kept=())
        return replace(plan.at_stage(named).gate, kept=())
    share = _share(plan, goal)
    return replace(plan.gate, share=share, kept=())


def _share(plan: ReleasePlan, goal: str) -> int:
    match = _SHARE.match(goal.strip())
    if match is None:
        stages = ", ".join(stage.name for stage in plan.stages) or "none"
        raise BadDefinition("", f"want a share such as 10%, or a stage of the plan ({stages}), got {goal!r}")
    value = float(match[1])
    share = share_in(value, "share")
    if share == 0:
        raise BadDefinition("share", "want more than 0 %", hint="close the gate with `flaghoist release revert`")
    return share


# --- what readers and the policy would say ---


def checked(snapshot: Snapshot, move: Move, *, at_ms: int) -> Snapshot:
    """Return the state that a move would make, folded as every reader folds it.

    Args:
        at_ms: when it would be in force (Unix ms).

    Raises:
        RevertConflict, RequirementUnmet, BadDefinition: readers would reject it, for the reason and chain they name.
    """
    ops = [move.op]
    if move.kind is ProposalKind.ROLLBACK:
        check_rollback(snapshot, ops)
    return snapshot.fold(snapshot.seq.next(), ops, at_ms=at_ms)


def revert_refusal(snapshot: Snapshot, state: ReleaseState, *, at_ms: int) -> str | None:
    """Return why a revert would be refused now, in words; None: it would be taken."""
    try:
        checked(snapshot, revert(snapshot, state), at_ms=at_ms)
    except Refused as refusal:
        return str(refusal)
    return None


def check_asking(ledger: Ledger, move: Move, after: Snapshot, requester: Person) -> None:
    """Refuse what the policy lets nobody do, or not this person, whoever approves it.

    Args:
        after: as `checked` returns it.

    Raises:
        PolicyRefused: the rule that says so.
    """
    root = ledger.root
    try:
        root.policy.allow_people(
            changes_between(ledger.snapshot, after, [move.op]),
            log_id=root.log_id,
            requester=requester,
            approvers=root.people_of(Role.APPROVER),
            root_threshold=root.grant(Role.APPROVER).threshold,
        )
    except PolicyRefused as refusal:
        if refusal.requirement != "approvals":  # those may still come
            raise
    except NotApproved:
        pass


# --- in words ---


def flags_through(snapshot: Snapshot, key: FlagKey) -> list[CompiledFlag]:
    """Return the flags that refer to a release's gate, by source and name."""
    return sorted(snapshot.referring(SHARED, gate_key(key)), key=lambda flag: (flag.source, flag.key))


def services_of(snapshot: Snapshot, state: ReleaseState) -> list[str]:
    """Return the services that a release concerns: those of its plan, then those that its flags name besides."""
    named = dict.fromkeys(state.plan.services)
    for flag in flags_through(snapshot, state.key):
        named.update(dict.fromkeys(flag.definition.governance.services))
    return list(named)


def in_words(snapshot: Snapshot, move: Move) -> list[str]:
    """Return what a move changes for whom, as lines for people."""
    before, plan = move.before, move.plan
    lines = [f"release {move.key}: {moved(before.plan, plan)}", *_for_whom(before.plan.gate, plan)]
    flags = [flag_text(flag.source, flag.key) for flag in flags_through(snapshot, move.key)]
    if before.plan.gate != replace(plan.gate, walk=before.plan.gate.walk):
        lines.append(f"  flags {_listed(flags)}")
    services = services_of(snapshot, before)
    served = f"services {_listed(services)}" if services else "every service that asks for them"
    team = f"; team {plan.team}" if plan.team else ""
    lines.append(f"  concerns {served}; owner {plan.owner}{team}")
    if move.kind is ProposalKind.ROLLBACK:
        lines += _restored(before, plan)
    return [*lines, *_walked(before.plan, plan)]


def _for_whom(before: Gate, plan: ReleasePlan) -> Iterator[str]:
    after = plan.gate
    by = f", chosen by {plan.bucket_by}" if 0 < after.share < SHARE_MAX else ""
    if (after.audience, after.share) == (before.audience, before.share):
        yield (
            f"  nobody's answer changes: it stays open for {users(after)}" if not after.closed else "  it stays closed"
        )
        return
    yield f"  open for {users(before)} → {users(after)}{by}"
    if after.covers(before) and before.share:
        yield f"  another {share_text(after.share - before.share)} of users are let through, nobody is shut out"
    elif before.covers(after) and after.share and before.share > after.share:
        yield f"  {share_text(before.share - after.share)} of users are shut out, nobody else is let through"


def _restored(before: ReleaseState, plan: ReleasePlan) -> Iterator[str]:
    if before.opened_at is not None:
        yield f"  its flags then answer as they did before its gate opened at seq {before.opened_at}"
    if plan.gate.kept:
        kept = _listed([flag_text(*flag) for flag in plan.gate.kept])
        yield f"  but these stay as they were changed since: {kept}"


def _walked(before: ReleasePlan, plan: ReleasePlan) -> Iterator[str]:
    walk = plan.gate.walk
    if walk is Walk.ON and plan.next_stage is not None:
        following = plan.stages[plan.next_stage]
        soak_s = 0 if plan.stage is None else plan.stages[plan.stage].soak_s
        when = f"{span_text(soak_s)} after this" if soak_s else "as soon as this is published"
        anew = ", its soak starts anew" if before.gate.walk is Walk.PAUSED and soak_s else ""
        yield f"  the publisher takes the next stage, {following.name} ({users(following)}), {when}{anew}"
        if plan.lead_ms:
            yield f"  each of its stages takes effect {lead_text(plan.lead_ms)} after it is published"
    elif walk is Walk.PAUSED and before.gate.walk is not Walk.PAUSED:
        yield "  its walk pauses; `flaghoist release resume` lets it go on"
    elif walk is Walk.OFF and before.gate.walk is not Walk.OFF:
        yield "  its walk ends"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return (", ".join(names[:NAMES_SHOWN_MAX]) or "none") + (f" and {more} more" if more > 0 else "")
