"""Which step of which release is due: the publisher walks releases by the ledger's state and a clock. Pure.

What a walk does was approved with its plan, so a step asks nobody again, nor `ramp_step`, nor a budget: those were
asked when it was switched on. Freezes hold for each step, and so does a rule that allows nothing of the kind at all.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flaghoist.changes import changes_between
from flaghoist.errors import Expired, Refused
from flaghoist.ledger import Ledger, next_entry
from flaghoist.outcomes import Dropped, Held, Rejected, Stepped
from flaghoist.policy import Change, ChangeKind, PolicyRefused
from flaghoist.policy.freeze import Zones, frozen_until, system_zone
from flaghoist.records import Op, Proposal, Step
from flaghoist.release_plan import Stage, Walk, parse_release
from flaghoist.release_state import ReleaseState
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, FlagKey, Target
from publisher.inbox import Case
from publisher.reader import BrokenChain


class AskedBack(Refused):
    """Somebody asks to pause a release or to take it back: it does not go on before that is decided."""

    code = "asked_back"


@dataclass(frozen=True, slots=True)
class NextStep:
    """The step that a release takes next.

    Attributes:
        due_ms: when the stage before has lasted as long as the plan asks (Unix ms).
        stage: where it leads.
    """

    step: Step
    due_ms: int
    stage: Stage

    @property
    def release(self) -> FlagKey:
        return self.step.release

    @property
    def sha256(self) -> bytes:
        """A name for this very step: another version of the release, or another stage, has another one."""
        told = f"step {self.step.expected_version} {self.step.stage} {self.step.release}"
        return hashlib.sha256(told.encode()).digest()


def next_steps(snapshot: Snapshot) -> list[NextStep]:
    """Return the next step of each release that is walked, the one that is due first at the front, then by name."""
    found = [step for release in snapshot.releases.values() if (step := _next_step(release)) is not None]
    return sorted(found, key=lambda step: (step.due_ms, step.release))


def _next_step(release: ReleaseState) -> NextStep | None:
    plan, index = release.plan, release.plan.next_stage
    if plan.gate.walk is not Walk.ON or index is None:
        return None
    return NextStep(Step(release.key, release.version, index), release.soaked_at_ms, plan.stages[index])


def due_steps(ledger: Ledger, *, now_ms: int) -> list[NextStep]:
    """Return the steps whose time has come, in the order in which they are taken.

    Args:
        now_ms: the publisher's clock (Unix ms).
    """
    return [step for step in next_steps(ledger.snapshot) if step.due_ms <= now_ms]


def next_due_ms(ledger: Ledger, *, after_ms: int) -> int | None:
    """Return when the next step will be due that is not due yet (Unix ms); None when none will."""
    return next((step.due_ms for step in next_steps(ledger.snapshot) if step.due_ms > after_ms), None)


def check_step(ledger: Ledger, due: NextStep, held_by: Sequence[Case], *, now_ms: int) -> None:
    """Refuse a step that must not be taken now.

    Args:
        ledger: read to its end.
        held_by: what `asked_back` says of the proposals that wait.
        now_ms: the publisher's clock (Unix ms).

    Raises:
        BrokenChain: the ledger is in quarantine.
        Expired: the root is.
        AskedBack: somebody asks to pause the release, or to take it back.
        PolicyRefused: a freeze is on, or the policy in force refuses it altogether.
        Refused: no reader would take it: a requirement is not met, a flag is gone.
        ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
    """
    if (proof := ledger.quarantined_by) is not None:
        raise BrokenChain(
            f"the ledger is in quarantine ({proof.what} at seq {proof.seq})",
            hint="the walk goes on when a root has ended it: `flaghoist root propose --revoke`",
        )
    if now_ms > ledger.root.record.expires_at:
        raise Expired(
            f"root version {ledger.root.version} has expired",
            hint="the walk goes on under its successor: `flaghoist root propose`, and have it signed",
        )
    if held_by:
        asked = ", ".join(f"{case.id} by {case.proposal.requester}" for case in held_by)
        raise AskedBack(
            f"release {due.release}: want no proposal that asks to pause it or to take it back, got {asked}",
            hint=f"answer it: `flaghoist approve {held_by[0].id}`; with --reject the walk goes on",
        )
    # The hash does not matter to the judgement, and is known only once the entry is encoded.
    judged = ledger.judge_next(next_entry(ledger, due.step, now_ms=now_ms), bytes(32))
    if isinstance(judged, Rejected | Dropped | Held):
        raise judged.refusal
    assert isinstance(judged, Stepped)  # noqa: S101 — what a step makes in this publisher's own epoch
    check_policy(ledger, judged.op, judged.snapshot, now_ms=now_ms)


def asked_back(waiting: Iterable[Case], release: ReleaseState, *, now_ms: int) -> list[Case]:
    """Return the proposals that ask to close, lower, pause or delete a release as it is now.

    A step would leave them behind: they were made for the version that it changes. So the walk waits for the answer.

    Args:
        waiting: what is neither published nor rejected.
    """
    return [case for case in waiting if now_ms <= case.proposal.expires_at and takes_back(case.proposal, release)]


def takes_back(proposal: Proposal, release: ReleaseState) -> bool:
    """Say whether a proposal asks to close, lower, pause or delete a release as it is now.

    One that was made for another version of it can never be published, and so asks for nothing.
    """
    return any(
        op.target is Target.RELEASE
        and op.key == release.key
        and op.expected_version == release.version
        and _takes_back(op, release)
        for op in proposal.ops
    )


def _takes_back(op: Op, release: ReleaseState) -> bool:
    if op.action is not Action.PUT or op.definition is None:
        return True
    try:
        after = parse_release(op.definition)
    except Refused:
        return False
    change = Change(op, release_before=release.plan, release_after=after)
    return ChangeKind.REVERT in change.kinds


def check_policy(ledger: Ledger, op: Op, after: Snapshot, *, now_ms: int, zones: Zones = system_zone) -> None:
    """Refuse a step that the policy in force forbids now, whoever has approved the plan.

    Args:
        op: what the step does.
        after: the state after it.

    Raises:
        PolicyRefused: a freeze is on, or a rule allows nothing of the kind; all such rules are named.
        ZoneMissing: no data of a freeze's zone.
    """
    policy = ledger.root.policy
    if policy.built_in:
        return
    faults: list[PolicyRefused] = []
    for rule in policy.rules_for(changes_between(ledger.snapshot, after, [op]), ledger.root.log_id):
        if rule.refuse is not None:
            hint = "pause it, or take it back: `flaghoist release pause`, `release revert`"
            faults.append(PolicyRefused(rule.name, "refuse", rule.refuse, hint=hint))
        for freeze in rule.freeze:
            if (until_ms := frozen_until(freeze, now_ms, zones)) is not None:
                ends = datetime.fromtimestamp(until_ms // 1000, UTC)
                told = f"{freeze.name!r} is on until {ends:%Y-%m-%d %H:%M}Z"
                faults.append(PolicyRefused(rule.name, "freeze", told, hint="the walk goes on then by itself"))
    if faults:
        raise PolicyRefused.of(faults)
