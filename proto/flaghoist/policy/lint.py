"""What a policy can hardly mean, though it can be read: rules that never match, and rules that nobody satisfies."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from flaghoist.errors import Misconfigured
from flaghoist.policy.change import ChangeKind
from flaghoist.policy.freeze import Zones, frozen_until, system_zone
from flaghoist.policy.glob import Glob
from flaghoist.policy.people import shown
from flaghoist.policy.policy import Policy
from flaghoist.policy.rule import Requirement, Rule, When
from flaghoist.values import Person, Target

_OF_FLAGS_ONLY = ("team", "owner", "category", "service")
_ABOUT_PROPOSALS = frozenset({Requirement.TICKET, Requirement.REASON})
_OF_RELEASES = frozenset(
    {ChangeKind.CREATE, ChangeKind.DELETE, ChangeKind.KILL, ChangeKind.RELEASE, ChangeKind.RAMP, ChangeKind.REVERT}
)
_NOT_OF_RELEASES = frozenset({Requirement.CATEGORY, Requirement.SAFE_VARIANT, Requirement.DESCRIPTION})


class Severity(StrEnum):
    ERROR = "error"  # a publisher could not follow it, or nobody could
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at; `line` is where in the policy."""

    line: int
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.severity}: {self.text}"


def findings(policy: Policy, *, now_ms: int | None = None, zones: Zones = system_zone) -> list[Finding]:
    """Return what is odd about a policy by itself, by line.

    Args:
        now_ms: to say which freezes are over; None: not asked.
    """
    found = [*_unreachable(policy.rules), *_unused(policy)]
    for rule in policy.rules:
        found += [*_impossible(rule), *_without_effect(rule), *_freezes(rule, now_ms, zones)]
    return sorted(found, key=lambda finding: (finding.line, finding.text))


def people_findings(
    policy: Policy,
    people: Collection[Person],
    root_threshold: int,
    *,
    requesters: Collection[Person] | None = None,
    approvers: Collection[Person] | None = None,
) -> list[Finding]:
    """Return what is odd about a policy under a root: people whom it does not list, and rules nobody can satisfy.

    Args:
        people: whom the root lists, in any role.
        requesters: who may propose; None: all people.
        approvers: who may approve; None: all people.
    """
    known = frozenset(people)
    asking = known if requesters is None else frozenset(requesters)
    approving = known if approvers is None else frozenset(approvers)
    found = []
    for name, members in policy.groups.items():
        if strangers := members - known:
            line = policy.group_lines[name]
            found.append(Finding(line, Severity.WARNING, f"group {name!r}: not in the root: {shown(strangers)}"))
    for rule in policy.rules:
        if rule.refuse is None:
            found += _satisfiable(rule, asking, approving, root_threshold)
    return sorted(found, key=lambda finding: (finding.line, finding.text))


def _satisfiable(
    rule: Rule, asking: frozenset[Person], approving: frozenset[Person], root_threshold: int
) -> Iterator[Finding]:
    if rule.propose is not None and not rule.propose & asking:
        line = rule.lines.get("propose", rule.line)
        yield Finding(
            line, Severity.ERROR, f"rule {rule.name!r}: propose: the root lets none of {shown(rule.propose)} propose"
        )
        return
    stuck: dict[Person, str] = {}
    for requester in sorted(asking if rule.propose is None else rule.propose & asking):
        others = approving - {requester}
        lacking = [
            f"{ask.count} from {ask.label}, where {len(ask.counts(others))} others may approve"
            for ask in rule.approvals
            if len(ask.counts(others)) < ask.count
        ]
        if len(others) < root_threshold:
            lacking.append(f"{root_threshold} as the root asks, {len(others)} others may approve")
        if lacking:
            stuck[requester] = "; ".join(lacking)
    if not stuck:
        return
    everybody = len(stuck) == len(asking if rule.propose is None else rule.propose & asking)
    line = rule.lines.get("approvals", rule.line)
    who = "nobody" if everybody else f"proposals by {shown(stuck)}"
    can = "can satisfy it" if everybody else "can never be approved"
    severity = Severity.ERROR if everybody else Severity.WARNING
    why = next(iter(stuck.values()))
    yield Finding(line, severity, f"rule {rule.name!r}: approvals: {who} {can}: want {why}")


def _impossible(rule: Rule) -> Iterator[Finding]:
    """Rules whose own members block each other, whatever the root says."""
    if rule.propose is None:
        return
    stuck = [
        person
        for person in sorted(rule.propose)
        if any(ask.people is not None and len(ask.people - {person}) < ask.count for ask in rule.approvals)
    ]
    line = rule.lines.get("approvals", rule.line)
    if stuck and len(stuck) == len(rule.propose):
        text = f"rule {rule.name!r}: approvals: nobody can satisfy it: who may propose is needed to approve"
        yield Finding(line, Severity.ERROR, text)
    elif stuck:
        text = f"rule {rule.name!r}: approvals: what {shown(stuck)} propose can never be approved: they would be needed"
        yield Finding(line, Severity.WARNING, text)


def _unreachable(rules: Sequence[Rule]) -> Iterator[Finding]:
    for at, rule in enumerate(rules[:-1]):
        left, by = rule.when.change, []
        for earlier in rules[:at]:
            if left & earlier.when.change and covers(earlier.when, rule.when):
                left -= earlier.when.change
                by.append(f"{earlier.name!r} (line {earlier.line})")
        if not left:
            text = f"rule {rule.name!r}: can never match: {' and '.join(by)} decide first all that it is about"
            yield Finding(rule.line, Severity.ERROR, text)
        elif left != rule.when.change:
            kinds = ", ".join(sorted(rule.when.change - left))
            text = f"rule {rule.name!r}: never decides on {kinds}: {' and '.join(by)} do so first"
            # A rule without `change` after one that has it reads as "the rest", which is what it does.
            if rule.when.change != frozenset(ChangeKind):
                yield Finding(rule.line, Severity.WARNING, text)


def covers(earlier: When, later: When) -> bool:
    """Say whether all that `later` is about is surely what `earlier` is about, kinds of change apart."""
    pairs = (
        (earlier.environment, later.environment),
        (earlier.source, later.source),
        (earlier.key, later.key),
        (earlier.team, later.team),
        (earlier.owner, later.owner),
        (earlier.category, later.category),
        (earlier.service, later.service),
    )
    if earlier.target is not None and earlier.target is not later.target:
        return False
    return all(
        wide is None or (narrow is not None and all(any(_within(n, w) for w in wide) for n in narrow))
        for wide, narrow in pairs
    )


def _within(narrow: Glob, wide: Glob) -> bool:
    """Every name that `narrow` matches, `wide` matches: surely so, when it matches the pattern as if it were a name."""
    return narrow == wide or (("?" not in wide.pattern or "*" not in narrow.pattern) and wide.matches(narrow.pattern))


def _unused(policy: Policy) -> Iterator[Finding]:
    used = set()
    for rule in policy.rules:
        for label in (rule.propose_label, *(ask.label for ask in rule.approvals)):
            used |= set(label.split(" or "))
    for name in policy.groups:
        if name not in used:
            yield Finding(policy.group_lines[name], Severity.WARNING, f"group {name!r}: no rule names it")


def _without_effect(rule: Rule) -> Iterator[Finding]:
    when, line = rule.when, rule.lines.get("when", rule.line)
    asked = [name for name in _OF_FLAGS_ONLY if getattr(when, name) is not None]
    evaluators_only = when.target is Target.EVALUATOR or when.change == {ChangeKind.EVALUATOR}
    if evaluators_only and asked:
        text = f"rule {rule.name!r}: when: can never match: evaluators have no {', '.join(asked)}"
        yield Finding(line, Severity.ERROR, text)
    if when.target is Target.FLAG and when.change == {ChangeKind.EVALUATOR}:
        yield Finding(line, Severity.ERROR, f"rule {rule.name!r}: when: can never match: no flag is an evaluator")
    yield from _about_releases(rule, line)
    if when.target is Target.EVALUATOR and ChangeKind.EVALUATOR not in when.change:
        text = f"rule {rule.name!r}: when: can never match: what is done to evaluators is of the kind `evaluator`"
        yield Finding(line, Severity.ERROR, text)
    if evaluators_only and (useless := [r.value for r in rule.require if r not in _ABOUT_PROPOSALS]):
        line = rule.lines.get("require", rule.line)
        text = f"rule {rule.name!r}: require: evaluators have no {', '.join(useless)}"
        yield Finding(line, Severity.WARNING, text)
    if rule.naming is not None and not when.change & {ChangeKind.CREATE, ChangeKind.EVALUATOR}:
        line = rule.lines.get("naming", rule.line)
        text = f"rule {rule.name!r}: naming: only new names are checked, and this rule is not about `create`"
        yield Finding(line, Severity.WARNING, text)
    if (people := _same_asks(rule)) is not None:
        line = rule.lines.get("approvals", rule.line)
        text = f"rule {rule.name!r}: approvals: {people} is asked twice; one person counts for both: give one count"
        yield Finding(line, Severity.WARNING, text)


def _about_releases(rule: Rule, line: int) -> Iterator[Finding]:
    when, never = rule.when, f"rule {rule.name!r}: when: can never match"
    if when.target is Target.RELEASE and not when.change & _OF_RELEASES:
        named = ", ".join(sorted(_OF_RELEASES))
        yield Finding(line, Severity.ERROR, f"{never}: what is done to releases is one of {named}")
    # `revert` concerns the flags too that a release takes back.
    if when.target is Target.FLAG and when.change <= {ChangeKind.RELEASE, ChangeKind.RAMP}:
        yield Finding(line, Severity.ERROR, f"{never}: no flag is a release")
    if when.target is Target.RELEASE and when.source is not None:
        yield Finding(line, Severity.ERROR, f"{never}: releases have no source")
    if when.target is Target.RELEASE and (useless := [r.value for r in rule.require if r in _NOT_OF_RELEASES]):
        line = rule.lines.get("require", rule.line)
        yield Finding(line, Severity.WARNING, f"rule {rule.name!r}: require: releases have no {', '.join(useless)}")


def _same_asks(rule: Rule) -> str | None:
    seen = set()
    for ask in rule.approvals:
        if ask.people in seen:
            return ask.label
        seen.add(ask.people)
    return None


def _freezes(rule: Rule, now_ms: int | None, zones: Zones) -> Iterator[Finding]:
    for freeze in rule.freeze:
        try:
            zone = zones(freeze.zone)
            frozen_until(freeze, now_ms or 0, zones)
        except Misconfigured as error:
            yield Finding(freeze.line, Severity.ERROR, f"rule {rule.name!r}: freeze: {freeze.name!r}: {error}")
            continue
        if now_ms is not None and freeze.once is not None:
            # fold=1: the later of two local times of that name.
            over_s = freeze.once[1].replace(tzinfo=zone, fold=1).timestamp()
            if over_s * 1000 <= now_ms:
                yield Finding(freeze.line, Severity.WARNING, f"rule {rule.name!r}: freeze: {freeze.name!r} is over")
