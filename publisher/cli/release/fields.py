"""Releases as fields of the one JSON document that a command gives."""

from collections.abc import Mapping

from flaghoist.release_plan import ReleasePlan, percent, plan_fields
from flaghoist.release_state import ReleaseState
from publisher.releases.outlook import FlagOutlook, Needs
from publisher.releases.wiring import FlagChange


def flag_change(change: FlagChange) -> dict[str, object]:
    """Return what becomes of one flag."""
    return {
        "key": change.state_id.key,
        "source": change.state_id.source,
        "change": change.verb,
        "on": change.on or None,
        "notes": list(change.notes),
    }


def gate_fields(plan: ReleasePlan) -> dict[str, object]:
    """Return whom a release lets in."""
    gate = plan.gate
    return {
        "audience": gate.audience,
        "share_percent": percent(gate.share),
        "walk": gate.walk,
        "stage": None if plan.stage is None else plan.stage + 1,
        "stages": len(plan.stages),
    }


def state_fields(state: ReleaseState) -> dict[str, object]:
    """Return a release in force; times are Unix milliseconds."""
    return {
        "id": state.key,
        "version": state.version.number,
        "opened_at_seq": None if state.opened_at is None else state.opened_at.number,
        "since": state.since_ms,
        **gate_fields(state.plan),
        "plan": plan_fields(state.plan),
    }


def flag_outlook_fields(flag: FlagOutlook) -> Mapping[str, object]:
    """Return how a flag of a release stands."""
    return {
        "flag": flag.name,
        "state": flag.state,
        "services": list(flag.services),
        "off": flag.off,
        "on": flag.on,
        "wired": flag.wired,
    }


def needs_fields(needs: Needs) -> Mapping[str, object]:
    """Return what a change takes."""
    return {
        "change": needs.what,
        "approvals": list(needs.approvals),
        "rules": list(needs.rules),
        "refused": needs.refused,
    }
