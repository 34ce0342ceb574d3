"""What a release is, and what a change does to it, in words; the same ones in plans, histories and audits. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flaghoist.policy.change import same_json
from flaghoist.release_plan import SHARE_MAX, Gate, ReleasePlan, Stage, Walk, flag_text, percent
from flaghoist.release_state import ReleaseState
from flaghoist.values import FlagKey, Source

_SPANS_S: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
# Two units say enough of a span: 1h 30m, 2d 4h.
_SPAN_UNITS_MAX: Final = 2
_WALKS: Final = {Walk.ON: "walking", Walk.PAUSED: "paused", Walk.OFF: "not walking"}


def share_text(share: int) -> str:
    """Return thousandths of a percent as people read them: `12.5 %`."""
    return f"{percent(share)} %"


def span_text(seconds: int) -> str:
    """Return a span as people read it, in its two largest units: `45s`, `1h 30m`, `2d`; never negative."""
    left = max(seconds, 0)
    said: list[str] = []
    for unit, size in _SPANS_S:
        count, rest = divmod(left, size)
        if count and len(said) < _SPAN_UNITS_MAX:
            said.append(f"{count}{unit}")
            left = rest
        elif said:
            break  # 1d 5m is 1d: the minutes say nothing beside the days
    return " ".join(said) or "0s"


def openness(gate: Gate | Stage) -> str:
    """Return whom a gate or a stage lets through, short: `closed`, `audience`, `10 %`, `audience and 10 %`."""
    if gate.share == 0:
        return "audience" if gate.audience else "closed"
    both = gate.audience and gate.share < SHARE_MAX
    return f"{'audience and ' if both else ''}{share_text(gate.share)}"


def users(gate: Gate | Stage) -> str:
    """Return whom a gate or a stage lets through as a phrase: `nobody`, `10 % of users`, `everybody`."""
    whole = Gate(gate.audience, gate.share)
    if whole.for_everybody:
        return "everybody"
    share = f"{share_text(gate.share)} of users"
    if not gate.share:
        return "the audience" if gate.audience else "nobody"
    return f"the audience and {share}" if gate.audience else share


def moved(before: ReleasePlan | None, after: ReleasePlan | None) -> str:
    """Return what a change does to a release, in one line: `10 % → 50 %`, `paused at 10 %`, `created, closed`.

    Args:
        before: None: there was none.
        after: None: there is none any more.
    """
    if after is None:
        return "deleted" if before is not None else "nothing"
    if before is None:
        walks = ", walking" if after.gate.walk is Walk.ON else ""
        return f"created, {_open_for(after.gate)}{walks}"
    said = []
    walked = _walked(before, after)
    if openness(before.gate) != openness(after.gate):
        said.append(f"{openness(before.gate)} → {openness(after.gate)}")
    elif walked and not after.gate.closed:
        walked = f"{walked} at {openness(after.gate)}"
    if walked:
        said.append(walked)
    if kept := [flag for flag in after.gate.kept if flag not in before.gate.kept]:
        said.append(f"keeps {flags_text(kept)}")
    if changed := edited(before, after):
        said.append(f"edited: {', '.join(changed)}")
    return "; ".join(said) or "unchanged"


def stepped(before: ReleasePlan, after: ReleasePlan) -> str:
    """Return what a step of the publisher did, in one line: `10 % → 50 % (stage 3 of 5: half, as planned)`."""
    return f"{moved(before, after)} ({stage_text(after)}, as planned)"


def stage_text(plan: ReleasePlan) -> str:
    """Return where a release is among its stages: `stage 2 of 5: half`, `before stage 1 of 5`; "" without stages."""
    if not plan.stages:
        return ""
    if plan.stage is None:
        return f"before stage 1 of {len(plan.stages)}"
    name = plan.stages[plan.stage].name
    told = f": {name}" if name != share_text(plan.stages[plan.stage].share).replace(" ", "") else ""
    return f"stage {plan.stage + 1} of {len(plan.stages)}{told}"


def standing(state: ReleaseState, *, now_ms: int) -> str:
    """Return how a release stands: `10 % of users, stage 2 of 5, walking, next in 35m`.

    Args:
        now_ms: the reader's clock (Unix ms).
    """
    plan = state.plan
    said = ["on for everybody" if plan.gate.for_everybody else "closed" if plan.gate.closed else users(plan.gate)]
    if plan.stages and not plan.gate.for_everybody and (not plan.gate.closed or plan.gate.walk is not Walk.OFF):
        said.append(stage_text(plan))
    if plan.gate.walk is not Walk.OFF:
        said.append(_WALKS[plan.gate.walk])
    if plan.gate.walk is Walk.ON and plan.next_stage is not None:
        left_s = (state.soaked_at_ms - now_ms + 999) // 1000
        said.append(f"next in {span_text(left_s)}" if left_s > 0 else "next is due")
    return ", ".join(said)


def edited(before: ReleasePlan, after: ReleasePlan) -> list[str]:
    """Return what two plans differ in besides their gates, a few words for each field."""
    said = []
    if before.title != after.title:
        said.append(f"title {after.title!r}")
    for name in ("owner", "team", "bucket_by", "salt", "ticket", "expires_at"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            said.append(f"{name} {'none' if old is None else old} → {'none' if new is None else new}")
    said += _listed("services", before.services, after.services)
    said += _listed("flags", [flag_text(*f) for f in before.flags], [flag_text(*f) for f in after.flags])
    said += _listed("requires", before.requires, after.requires)
    if not same_json(before.audience, after.audience):
        said.append("audience")
    if before.stages != after.stages:
        said.append(f"stages {stages_text(before.stages)} → {stages_text(after.stages)}")
    if before.lead_ms != after.lead_ms:
        said.append(f"lead {lead_text(before.lead_ms)} → {lead_text(after.lead_ms)}")
    return said


def stages_text(stages: Sequence[Stage]) -> str:
    """Return stages in one line: `internal (audience) 1h, 1 % 1h, 100 %`; `none`."""
    return ", ".join(_stage(stage) for stage in stages) or "none"


def _stage(stage: Stage) -> str:
    named = openness(stage)
    shown = named if stage.name in (named, named.replace(" ", "")) else f"{stage.name} ({named})"
    return f"{shown} {span_text(stage.soak_s)}" if stage.soak_s else shown


def lead_text(lead_ms: int) -> str:
    """Return how long ahead a moment is set: `2s`, `500ms`, `at once`."""
    if not lead_ms:
        return "at once"
    return span_text(lead_ms // 1000) if lead_ms % 1000 == 0 else f"{lead_ms}ms"


def drilled(result: Mapping[str, Any] | None) -> str:
    """Return what a drill measured, as its record says: nobody vouches for the numbers but who signed it."""
    if not result:
        return "no result was recorded"
    said = []
    if "instances" in result:
        said.append(f"{result.get('reached', 0)} of {result['instances']} instances reached")
    told = (("p50_ms", "half of them after"), ("p95_ms", "95 % after"), ("last_ms", "the last after"))
    said += [f"{words} {result[name]} ms" for name, words in told if result.get(name) is not None]
    missing = result.get("missing")
    if missing and isinstance(missing, list):  # it may be of any shape: a drill's result is checked by nobody
        said.append(f"missing: {', '.join(map(str, missing))}")
    if result.get("revert"):
        said.append(f"a revert was {result['revert']}" if result["revert"] == "allowed" else f"but {result['revert']}")
    return ", ".join(said) or "no result was recorded"


def flags_text(flags: Sequence[tuple[Source, FlagKey]]) -> str:
    """Return flags as a list for a sentence."""
    return ", ".join(flag_text(*flag) for flag in flags)


def _open_for(gate: Gate) -> str:
    return "closed" if gate.closed else f"open for {users(gate)}"


def _walked(before: ReleasePlan, after: ReleasePlan) -> str:
    old, new = before.gate.walk, after.gate.walk
    if old is new:
        return ""
    match new:
        case Walk.PAUSED:
            return "paused"
        case Walk.ON:
            return "resumed" if old is Walk.PAUSED else "walks through its stages"
        case Walk.OFF:
            # After the last stage there is nothing left to walk.
            return "walk done" if after.gate.covers(before.gate) and after.next_stage is None else "walk ended"


def _listed(name: str, before: Sequence[str], after: Sequence[str]) -> list[str]:
    added = [f"+{each}" for each in after if each not in before]
    gone = [f"-{each}" for each in before if each not in after]
    if not added and not gone:
        return [f"{name} in another order"] if list(before) != list(after) else []
    return [f"{name} {' '.join([*added, *gone])}"]
