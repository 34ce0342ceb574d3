"""What a publisher asks besides the right people: requirements, names, dates, ramps, freezes, budgets.

A reader of the ledger does not repeat these: they are about time, and about order in a team, not about who may.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from flaghoist.definition import FlagDefinition
from flaghoist.policy.change import Change, ChangeKind
from flaghoist.policy.freeze import Zones, frozen_until
from flaghoist.policy.people import PolicyRefused, named_rules
from flaghoist.policy.ramp import share_moved
from flaghoist.policy.rule import Requirement, Rule
from flaghoist.records import Proposal
from flaghoist.release_plan import ReleasePlan
from flaghoist.values import Target


@dataclass(frozen=True, slots=True)
class PastChange:
    """A proposal that was published: when (Unix ms), and under which rules; None: under some that are not named."""

    at_ms: int
    rules: frozenset[str] | None

    @classmethod
    def of(cls, published_at: int, policy: str) -> "PastChange":
        """Return it from an entry's `published_at` and its release's `policy`."""
        return cls(published_at, named_rules(policy))


def publication_faults(
    decided: Sequence[tuple[Rule, Sequence[Change]]],
    *,
    proposal: Proposal,
    at_ms: int,
    history: Sequence[PastChange],
    zones: Zones,
) -> Iterator[PolicyRefused]:
    """Yield everything that the rules have against publishing a proposal now.

    Args:
        decided: the rules that decide, each with the changes that it decides on.

    Raises:
        ZoneMissing: no data of a freeze's zone.
    """
    for rule, changes in decided:
        for change in changes:
            yield from _requirements(rule, change, proposal)
            if (fault := _naming(rule, change)) is not None:
                yield fault
            if (fault := _expiry(rule, change, at_ms)) is not None:
                yield fault
            if (fault := _ramp(rule, change)) is not None:
                yield fault
        yield from _freezes(rule, at_ms, zones)
        if (fault := _budget(rule, at_ms, history)) is not None:
            yield fault


def _requirements(rule: Rule, change: Change, proposal: Proposal) -> Iterator[PolicyRefused]:
    missing = [wanted.value for wanted in rule.require if not _present(wanted, change, proposal)]
    if missing:
        named = ", ".join(missing)
        yield PolicyRefused(
            rule.name,
            "require",
            f"{change.op.state_id}: want {named}, got none",
            hint=f"propose it again with {named}",
        )


# What a release's plan has a field for, by the same name; of the rest there is nothing to ask.
_OF_RELEASES: Final = frozenset({Requirement.OWNER, Requirement.TEAM, Requirement.EXPIRES_AT, Requirement.SERVICES})


def _present(wanted: Requirement, change: Change, proposal: Proposal) -> bool:
    after = change.after
    if wanted is Requirement.REASON:
        return bool(proposal.reason.strip())
    plan = change.release_after
    if wanted is Requirement.TICKET:
        own = after.governance.ticket if after is not None else plan.ticket if plan is not None else None
        return bool((proposal.ticket or "").strip()) or bool(own)
    if plan is not None:
        return wanted not in _OF_RELEASES or bool(getattr(plan, wanted.value))
    if after is None:
        return True  # of a deleted flag, and of a shared rule, there is nothing to ask
    if wanted is Requirement.DESCRIPTION:
        return bool((after.description or "").strip())
    return bool(getattr(after.governance, wanted.value))


def _naming(rule: Rule, change: Change) -> PolicyRefused | None:
    """New names only: an old one that does not fit must stay changeable, and deletable."""
    created = ChangeKind.CREATE in change.kinds or (
        change.op.target is Target.EVALUATOR and change.rule_before is None and change.rule_after is not None
    )
    if rule.naming is None or not created or rule.naming.matches(change.op.key):
        return None
    return PolicyRefused(
        rule.name,
        "naming",
        f"{change.op.state_id}: want a name that is all of {rule.naming.expression}, got {str(change.op.key)!r}",
        hint="propose it under another name",
    )


def _expiry(rule: Rule, change: Change, at_ms: int) -> PolicyRefused | None:
    after = change.after or change.release_after
    # What takes back must not wait for anybody to think of a new date.
    if rule.expires_within_ms is None or after is None or change.kinds <= {ChangeKind.REVERT}:
        return None
    today = datetime.fromtimestamp(at_ms // 1000, UTC).date()
    latest = _on(at_ms + rule.expires_within_ms)
    expires = _expires_at(after)
    if expires is None:
        wanted, got = f"an expires_at of {latest} at the latest", "none"
    elif date.fromisoformat(expires) > latest:
        wanted, got = f"an expires_at of {latest} at the latest", expires
    elif date.fromisoformat(expires) < today and expires != _expires_at(change.before or change.release_before):
        wanted, got = f"an expires_at that is not over on {today}", expires
    else:
        return None
    return PolicyRefused(
        rule.name,
        "expires_within",
        f"{change.op.state_id}: want {wanted}, got {got}",
        hint="propose it again with such a date",
    )


def _on(at_ms: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).date()


def _expires_at(named: FlagDefinition | ReleasePlan | None) -> str | None:
    if isinstance(named, FlagDefinition):
        return named.governance.expires_at
    return None if named is None else named.expires_at


def _ramp(rule: Rule, change: Change) -> PolicyRefused | None:
    if rule.ramp_step is None:
        return None
    share = share_moved(change) * 100
    if share <= rule.ramp_step:
        return None
    # Rounded up, so that no text says 25 % where 25 % are allowed and refused.
    shown = -(-share * 100 // 1) / 100
    return PolicyRefused(
        rule.name,
        "ramp_step",
        f"{change.op.state_id}: want at most {rule.ramp_step} % of users moved by one change, got {float(shown):g} %",
        hint="change weights of the same `fractional` in smaller steps; docs/policy.md says what counts as moved",
    )


def _freezes(rule: Rule, at_ms: int, zones: Zones) -> Iterator[PolicyRefused]:
    for freeze in rule.freeze:
        until = frozen_until(freeze, at_ms, zones)
        if until is not None:
            ends = datetime.fromtimestamp(until // 1000, UTC)
            local = ends.astimezone(zones(freeze.zone))
            yield PolicyRefused(
                rule.name,
                "freeze",
                f"{freeze.name!r} is on until {ends:%Y-%m-%d %H:%M}Z ({local:%a %Y-%m-%d %H:%M} {freeze.zone})",
                hint="publish it then; what cannot wait is an emergency: `flaghoist kill`",
            )


def _budget(rule: Rule, at_ms: int, history: Sequence[PastChange]) -> PolicyRefused | None:
    if rule.budget is None:
        return None
    since = at_ms - rule.budget.per_ms
    spent = sorted(
        past.at_ms
        for past in history
        if since < past.at_ms <= at_ms and (past.rules is None or rule.name in past.rules)
    )
    if len(spent) < rule.budget.changes:
        return None
    free_ms = spent[len(spent) - rule.budget.changes] + rule.budget.per_ms
    free = datetime.fromtimestamp(-(-free_ms // 1000), UTC)
    return PolicyRefused(
        rule.name,
        "budget",
        f"want at most {rule.budget.changes} in {rule.budget.per_ms // 1000} s, got {len(spent)} published since then",
        hint=f"publish it from {free:%Y-%m-%d %H:%M:%S}Z on",
    )
