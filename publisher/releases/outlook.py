"""What a release will do, before anybody signs: whom each stage changes, what it takes, what a revert restores.

Pure: worked out by folding and judging as the ledger's readers do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flaghoist.changes import changes_between
from flaghoist.definition import FlagState
from flaghoist.errors import Refused
from flaghoist.ledger import Ledger
from flaghoist.policy.people import Missing
from flaghoist.records import Op
from flaghoist.release_plan import (
    CLOSED,
    Gate,
    ReleasePlan,
    Walk,
    encode_release,
    flag_text,
    gate_key,
    parse_drill,
    parse_release,
)
from flaghoist.rollback import conflicts
from flaghoist.snapshot import CompiledFlag, Snapshot
from flaghoist.values import Action, FlagKey, Person, Role, Source, Target
from publisher.plan import Step
from publisher.releases.gating import wiring_of
from publisher.releases.wiring import ReleaseDraft, release_state_id
from publisher.releases.wording import (
    flags_text,
    lead_text,
    moved,
    share_text,
    span_text,
    stage_text,
    users,
)


@dataclass(frozen=True, slots=True)
class FlagOutlook:
    """A flag of a release.

    Attributes:
        off: what it answers while the gate is closed, in words.
        on: the variant that the gate turns it on to; None: its rule is not one that wiring made.
        wired: its rule goes through the gate.
    """

    name: str
    services: tuple[str, ...]
    off: str
    on: str | None
    wired: bool
    state: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What a change of a release takes.

    Attributes:
        what: the change, in words.
        approvals: each approval that it takes, in words; none: nobody's.
        rules: the policy's rules that decide; empty where the root's threshold alone does.
        refused: why it would be refused as things are; None: it would not.
    """

    what: str
    approvals: tuple[str, ...]
    rules: tuple[str, ...]
    refused: str | None = None


def draft_words(draft: ReleaseDraft) -> list[str]:
    """Return a change of a release in words, as it is shown before it is signed."""
    said = [f"release {draft.key}: {moved(draft.before, draft.after)}"]
    for change in draft.flags:
        what = {
            "create": f"make the flag {change.state_id}: on/off, default off, {change.on!r} for whom the gate lets in",
            "wire": f"wire {change.state_id}: {change.on!r} for whom the gate lets in, else as it is now",
            "unwire": f"give {change.state_id} its rule back as it was before the release",
            "delete": f"delete {change.state_id}: who still asks for it gets their own default",
        }[change.verb]
        said.append(f"  {what}")
        said += [f"    note: {note}" for note in change.notes]
    gate = draft.after.gate if draft.after is not None else draft.before.gate if draft.before is not None else CLOSED
    if gate.closed:
        said.append("nobody's answers change by this: the gate is closed")
    return said


def step_words(step: Step) -> list[str]:
    """Return what an op does to a release, as lines for those who decide; none for one on anything else."""
    key = step.op.key
    if step.op.target is Target.DRILL:
        drill = "taken away" if step.after is None else _drill(parse_drill(step.after))
        return [f"rehearsal of release {key}: {drill}; nobody's answers change"]
    if step.op.target is not Target.RELEASE:
        return []
    before, after = (None if document is None else parse_release(document) for document in (step.before, step.after))
    plan = after or before
    if plan is None:
        return []
    where = f" of {', '.join(plan.services)}" if plan.services else ""
    inert = (before is None or before.gate.closed) and (after is None or after.gate.closed)
    touched = "nobody's answers change" if inert else f"it moves {flags_text(plan.flags)}{where}"
    return [f"release {key}: {moved(before, after)}; {touched}"]


def _drill(said: Mapping[str, object]) -> str:
    if said.get("result") is not None:
        return "its result is recorded"
    return f"its shadow gate {'opens' if said['hoisted'] else 'closes'}"


def flag_outlook(snapshot: Snapshot, key: FlagKey, source: Source, flag: FlagKey) -> FlagOutlook:
    """Return how a flag of a release stands; one that does not exist says so in `state`."""
    name = flag_text(source, flag)
    found = snapshot.flag(source, flag)
    if found is None:
        return FlagOutlook(name, (), "nothing: it does not exist", None, wired=False, state="missing")
    definition = found.definition
    services = definition.governance.services
    wiring = wiring_of(definition.targeting, key)
    rest = definition.targeting if wiring is None else wiring[1]
    default = definition.default_variant or "the caller's own default"
    off = default if rest is None else f"its rule, else {default}"
    if definition.state is FlagState.DISABLED:
        off = "nothing: it is DISABLED"
    return FlagOutlook(
        name, services, off, None if wiring is None else wiring[0], _refers(found, key), str(definition.state)
    )


def _refers(flag: CompiledFlag, key: FlagKey) -> bool:
    return gate_key(key) in flag.evaluators


def outlook_lines(snapshot: Snapshot, key: FlagKey, plan: ReleasePlan) -> list[str]:
    """Return a release's plan in words: its flags, its stages, and what each of these changes."""
    services = ", ".join(plan.services) or "none named"
    said = [f"release {key}: {plan.title}"]
    said.append(f"  owner     {plan.owner}{f', team {plan.team}' if plan.team else ''}")
    if plan.ticket or plan.expires_at:
        gone = f"to be gone by {plan.expires_at}" if plan.expires_at else ""
        said.append(f"  cleanup   {', '.join(text for text in (plan.ticket, gone) if text)}")
    said.append(f"  services  {services}")
    salt = "" if plan.salt == key else f", salt {plan.salt}"
    said.append(f"  users     by {plan.bucket_by}{salt}: the same ones for every flag and service")
    if plan.requires:
        said.append(f"  requires  {', '.join(plan.requires)}, active for everybody")
    if plan.lead_ms:
        said.append(
            f"  lead      {lead_text(plan.lead_ms)} from a stage's entry until it takes effect, everywhere at once"
        )
    said.append(f"  flags     {len(plan.flags)}:")
    for flag in plan.flags:
        seen = flag_outlook(snapshot, key, *flag)
        on = "another rule through the gate" if seen.on is None and seen.wired else seen.on or "NOT WIRED"
        asked_by = f"  ({', '.join(seen.services)})" if seen.services else ""
        said.append(f"    {seen.name}: {seen.off} → {on}{asked_by}")
    said.append(f"  now       {'closed' if plan.gate.closed else f'open for {users(plan.gate)}'}")
    said += _stage_lines(plan)
    return said


def _stage_lines(plan: ReleasePlan) -> list[str]:
    if not plan.stages:
        return ["  stages    none: ramp it by hand, with `flaghoist release ramp`"]
    count = f"all {len(plan.flags)} flags" if len(plan.flags) > 1 else "its flag"
    where = f" of {', '.join(plan.services)}" if plan.services else ""
    said = [f"  stages    {len(plan.stages)}; each lets more users in to {count}{where}, and shuts nobody out:"]
    for index, stage in enumerate(plan.stages):
        soak = f", for {span_text(stage.soak_s)} at least" if stage.soak_s else ""
        reached = " (done)" if plan.gate.covers(stage) else ""
        more = stage.share - (plan.stages[index - 1].share if index else 0)
        added = f" (+{share_text(more)})" if index and more else ""
        said.append(f"    {index + 1} {stage.name}: {users(stage)}{added}{soak}{reached}")
    return said


def needs_of(
    ledger: Ledger, before: Snapshot, ops: Sequence[Op], what: str, *, requester: Person | None
) -> tuple[Needs, Snapshot]:
    """Return what it takes to publish ops, and the state after them; the state before, when they are refused.

    Args:
        before: the state that they follow, which need not be the ledger's.
        requester: who would ask; None: somebody who may not approve it, as any one person.
    """
    root, policy = ledger.root, ledger.root.policy
    try:
        after = before.fold(before.seq.next(), ops)
    except Refused as refusal:
        return Needs(what, (), (), f"{refusal}{f' ({refusal.hint})' if refusal.hint else ''}"), before
    asks = requester or min(root.people_of(Role.REQUESTER), default=Person("nobody"))
    changes = changes_between(before, after, ops)
    missing = policy.missing(
        changes,
        log_id=root.log_id,
        requester=asks,
        approvers=(),
        root_threshold=root.grant(Role.APPROVER).threshold,
    )
    words = [_approvals(each, known=requester is not None) for each in missing]
    rules = () if policy.built_in else tuple(rule.name for rule in policy.rules_for(changes, root.log_id))
    return Needs(what, tuple(words), rules), after


def _approvals(missing: Missing, *, known: bool) -> str:
    """Say who must approve; who of them is left is said only of a known requester, who is not among them."""
    count = "an approval" if missing.wanted == 1 else f"{missing.wanted} approvals"
    left = "" if missing.could is None or not known else f" ({', '.join(missing.could) or 'nobody is left'})"
    who = "anybody else who may approve" if missing.could is None else missing.label
    rule = f", rule {missing.rule.name!r}" if missing.rule is not None else ""
    return f"{count} by {who}{left}{rule}"


def ahead(
    ledger: Ledger, key: FlagKey, plan: ReleasePlan, draft: ReleaseDraft | None, *, requester: Person | None
) -> list[Needs]:
    """Return what each change takes that lies ahead of a release: making it, its walk, its stages by hand, a revert.

    Args:
        draft: what makes it; None: it is in force.
    """
    found = []
    snapshot = ledger.snapshot
    if draft is not None:
        needs, snapshot = needs_of(ledger, snapshot, [step.op for step in draft.steps], "make it", requester=requester)
        found.append(needs)
        if needs.refused:
            return found
    if plan.next_stage is not None:
        walk = replace(plan, gate=replace(plan.gate, walk=Walk.ON))
        if plan.gate.walk is not Walk.ON:
            needs, _ = needs_of(ledger, snapshot, [_gate_op(snapshot, key, walk)], "walk it through its stages, "
                                "by one approved change", requester=requester)  # fmt: skip
            found.append(needs)
        nearest = plan.at_stage(plan.next_stage)
        told = f"ramp it by hand to {stage_text(nearest)}"
        found.append(needs_of(ledger, snapshot, [_gate_op(snapshot, key, nearest)], told, requester=requester)[0])
    if not plan.gate.for_everybody:
        everybody = replace(plan, gate=Gate(share=100_000))
        needs, opened = needs_of(
            ledger, snapshot, [_gate_op(snapshot, key, everybody)], "activate it for everybody", requester=requester
        )
        found.append(needs)
        if plan.gate.closed and not needs.refused:
            snapshot = opened
    state = snapshot.releases.get(key)
    if state is not None and not state.plan.gate.closed:
        closed = replace(state.plan, gate=CLOSED)
        op = _gate_op(snapshot, key, closed)
        found.append(needs_of(ledger, snapshot, [op], "revert it", requester=requester)[0])
    return found


def _gate_op(snapshot: Snapshot, key: FlagKey, plan: ReleasePlan) -> Op:
    state_id = release_state_id(key)
    return Op(state_id.target, state_id.source, key, snapshot.version_of(state_id), Action.PUT, encode_release(plan))


def revert_lines(snapshot: Snapshot, key: FlagKey, plan: ReleasePlan) -> list[str]:
    """Return what a revert would restore, and what would hold it up."""
    said = ["a revert closes the gate, at any stage; then every flag answers as before:"]
    for flag in plan.flags:
        seen = flag_outlook(snapshot, key, *flag)
        said.append(f"  {seen.name}: {seen.off}")
    state = snapshot.releases.get(key)
    found = conflicts(snapshot, state) if state is not None else []
    said += [f"  conflict: {conflict}; a revert needs `--keep` for it" for conflict in found]
    above = [str(name) for name, other in sorted(snapshot.releases.items()) if key in other.plan.requires]
    if above:
        said.append(f"  revert first what requires it, while that is open: {', '.join(above)}")
    return said


def needs_lines(needs: Sequence[Needs]) -> list[str]:
    """Return what changes take, a line for each."""
    said = []
    for each in needs:
        if each.refused:
            said.append(f"  {each.what}: refused as things are: {each.refused}")
        elif each.approvals:
            said.append(f"  {each.what}: {'; and '.join(each.approvals)}")
        else:
            said.append(f"  {each.what}: nobody's approval")
    return said


def unwired_flags(snapshot: Snapshot, key: FlagKey, plan: ReleasePlan) -> str:
    """Return the flags of a release that do not go through its gate, for a sentence; "" when all do."""
    lost = [flag for flag in plan.flags if not flag_outlook(snapshot, key, *flag).wired]
    return flags_text(lost)
