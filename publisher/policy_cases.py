"""Cases that a policy is tested with: who asks for what, who approves, when, and what must come of it.

Pure: text in, results out. docs/policy.md describes the fields.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

from flaghoist.definition import FlagDefinition, encode_evaluator, flag_from_flagd, governance_from
from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition, Malformed, NotApproved, Refused
from flaghoist.policy import Change, ChangeKind, PastChange, Policy, PolicyRefused, Touched
from flaghoist.policy.document import BadPolicy, Fields, Items, Node, Text, kind_of, read_document
from flaghoist.policy.freeze import ZoneMissing, Zones, system_zone
from flaghoist.records import Op, Proposal
from flaghoist.release_plan import CLOSED, SHARE_MAX, ReleasePlan, release_from
from flaghoist.values import Action, FlagKey, LogId, Person, ProposalKind, Seq, Source, Target

THRESHOLD_DEFAULT: Final = 1
THRESHOLD_MAX: Final = 16  # as many approvals as an entry carries

_CASE: Final = (
    *("name", "environment", "requester", "approvers", "threshold", "at", "change", "changes", "ticket", "reason"),
    *("published", "expect", "rule", "because"),
)
_CHANGE: Final = ("flag", "evaluator", "release", "source", "before", "after", "kind", "with", "touches")
_GOVERNANCE: Final = (
    *("owner", "team", "category", "expires_at", "ticket", "safe_variant"),
    *("on_stale", "max_stale_s", "services"),
)
_FLAG: Final = ("state", "variants", "defaultVariant", "targeting", "metadata", "description")
# What a case need not say about a flag.
_PLAIN_FLAG: Final[Mapping[str, Any]] = {
    "state": "ENABLED",
    "variants": {"on": True, "off": False},
    "defaultVariant": "off",
}
_TARGETS: Final = {"flag": Target.FLAG, "evaluator": Target.EVALUATOR, "release": Target.RELEASE}
_NOT_OF_FLAGS: Final = frozenset({ChangeKind.EVALUATOR, ChangeKind.RELEASE, ChangeKind.RAMP, ChangeKind.REVERT})
_RELEASE_KINDS: Final = ("create", "delete", "kill", "release", "ramp", "revert")
# What a case need not say about a release.
_PLAIN_RELEASE: Final[Mapping[str, Any]] = {
    "title": "a release",
    "owner": "owner@example.org",
    "flags": ["a"],
    "bucket_by": "targetingKey",
    "salt": "a",
}
_CLOSED_GATE: Final[Mapping[str, Any]] = {"audience": False, "share": 0, "walk": "off"}
_MOMENT: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}) ?([A-Za-z][A-Za-z0-9/_+-]*)\Z")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
_CONSTANTS: Final[Mapping[str, Any]] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Case:
    """One proposal, and what must come of it; `at_ms` None: when does not matter."""

    name: str
    line: int
    environment: LogId
    requester: Person
    approvers: tuple[Person, ...]
    threshold: int
    at_ms: int | None
    changes: tuple[Change, ...]
    ticket: str | None
    reason: str
    published: tuple[PastChange, ...]
    allowed: bool
    rule: str | None
    because: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy said to one case.

    Attributes:
        fault: why the case fails; None: it passes.
        said: the entry's `policy`, or the refusal.
        matched: names of the rules that decided.
    """

    case: Case
    allowed: bool
    said: str
    matched: tuple[str, ...]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All cases' outcomes, and the names of the rules that no case was decided by."""

    outcomes: tuple[Outcome, ...]
    untested: tuple[str, ...]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.fault is not None]


def read_cases(text: str, *, where: str, environment: LogId, zones: Zones = system_zone) -> list[Case]:
    """Return the cases in a file: a mapping with `tests`, a list.

    Args:
        environment: of cases that name none.

    Raises:
        BadPolicy: with every fault, each with its line.
    """
    top = read_document(text, where=where)
    reader = _Reader(environment, zones)
    reader.known(top, ("tests",), "")
    tests = top.nodes.get("tests")
    if not isinstance(tests, Items):
        raise BadPolicy(where, [f"line {top.line}: tests: want a list of cases, got {kind_of(tests or Text(1, ''))}"])
    return reader.cases(tests, where)


def cases_in(policy: Policy, *, where: str, environment: LogId, zones: Zones = system_zone) -> list[Case]:
    """Return the cases that a policy holds itself, under `tests`; none when it has none.

    Raises:
        BadPolicy: as read_cases.
    """
    return [] if policy.tests is None else _Reader(environment, zones).cases(policy.tests, where)


def run(policy: Policy, cases: Iterable[Case], *, zones: Zones = system_zone) -> Outcomes:
    """Hold cases against a policy, as a publisher would: the people first, then all it asks besides."""
    outcomes = tuple(_outcome(policy, case, zones) for case in cases)
    tested = {name for outcome in outcomes for name in outcome.matched}
    return Outcomes(outcomes, tuple(rule.name for rule in policy.rules if rule.name not in tested))


def _outcome(policy: Policy, case: Case, zones: Zones) -> Outcome:
    rules = policy.rules_for(case.changes, case.environment)
    matched = tuple(rule.name for rule in rules)
    timed = [r.name for r in rules if r.freeze or r.budget or r.expires_within_ms is not None]
    if case.at_ms is None and timed:
        fault = f"want `at`, since rule {timed[0]!r} asks about time"
        return Outcome(case, False, fault, matched, fault)
    if case.rule is not None and case.rule not in {rule.name for rule in policy.rules}:
        fault = f"no rule {case.rule!r} in the policy"
        return Outcome(case, False, fault, matched, fault)
    allowed, said, refusal = True, "", None
    try:
        said = policy.allow_people(
            case.changes,
            log_id=case.environment,
            requester=case.requester,
            approvers=case.approvers,
            root_threshold=case.threshold,
        )
        policy.allow_publication(
            case.changes,
            proposal=_proposal(case),
            at_ms=case.at_ms or 0,
            history=[
                past if past.rules is not None else replace(past, rules=frozenset(matched)) for past in case.published
            ],
            zones=zones,
        )
    except NotApproved as error:
        allowed, said, refusal = False, str(error), error
    except ZoneMissing as error:
        return Outcome(case, False, str(error), matched, str(error))
    return Outcome(case, allowed, said, matched, _fault(case, allowed, said, matched, refusal))


def _fault(case: Case, allowed: bool, said: str, matched: tuple[str, ...], refusal: Refused | None) -> str | None:
    if allowed is not case.allowed:
        return f"want it {'allowed' if case.allowed else 'refused'}, it is {'allowed' if allowed else 'refused'}"
    by = refusal.rule if isinstance(refusal, PolicyRefused) else None
    if case.rule is not None:
        if allowed and case.rule not in matched:
            return f"want rule {case.rule!r} to decide, {' and '.join(matched)} did"
        if not allowed and case.rule != by and f"rule {case.rule!r}: " not in said:
            refusing = f"rule {by!r}" if by is not None else "the root's threshold"
            return f"want rule {case.rule!r} to refuse, {refusing} did"
    if case.because is not None:
        requirement = refusal.requirement if isinstance(refusal, PolicyRefused) else "approvals"
        if case.because != requirement and case.because not in said:
            return f"want it refused because of {case.because!r}, it was because of {requirement!r}"
    return None


def _proposal(case: Case) -> Proposal:
    return Proposal(
        log_id=case.environment,
        proposal_id="case",
        requester=case.requester,
        created_at=case.at_ms or 0,
        expires_at=case.at_ms or 0,
        kind=ProposalKind.CHANGE,
        title=case.name,
        reason=case.reason,
        ticket=case.ticket,
        ops=tuple(change.op for change in case.changes),
        activate_at=None,
        min_pin=Seq(0),
    )


def _json(node: Node) -> Any:
    """The JSON value of a node: of unquoted scalars, numbers, true, false and null are what they look like."""
    match node:
        case Items(nodes=nodes):
            return [_json(item) for item in nodes]
        case Fields(nodes=fields):
            return {key: _json(value) for key, value in fields.items()}
        case Text(text=text, plain=True) if text in _CONSTANTS or not text:
            return _CONSTANTS.get(text)
        case Text(text=text, plain=True) if _NUMBER.match(text):
            return json.loads(text)
        case Text(text=text):
            return text


@dataclass
class _Reader:
    """Reads cases, and notes every fault with its line."""

    environment: LogId
    zones: Zones
    problems: list[tuple[int, str]] = field(default_factory=list)

    def fault(self, line: int, text: str) -> None:
        self.problems.append((line, f"line {line}: {text}"))

    def known(self, fields: Fields, names: Sequence[str], path: str) -> None:
        for name in fields.nodes:
            if name not in names:
                alike = get_close_matches(name, names, n=1)
                hint = f"; did you mean {alike[0]!r}?" if alike else f"; known are {', '.join(names)}"
                self.fault(fields.lines[name], f"{path}{': ' if path else ''}{name[:60]}: no such field{hint}")

    def cases(self, tests: Items, where: str) -> list[Case]:
        cases = [self.case(node, f"tests[{at}]") for at, node in enumerate(tests.nodes)]
        found = [case for case in cases if case is not None]
        seen: dict[str, int] = {}
        for case in found:
            if case.name in seen:
                self.fault(case.line, f"case {case.name!r}: has the name of the one in line {seen[case.name]}")
            seen.setdefault(case.name, case.line)
        if self.problems:
            raise BadPolicy(where, [text for _, text in sorted(self.problems, key=lambda problem: problem[0])])
        return found

    def case(self, node: Node, path: str) -> Case | None:
        if not isinstance(node, Fields):
            self.fault(node.line, f"{path}: want a mapping, got {kind_of(node)}")
            return None
        at = node.nodes
        name = self.text(at.get("name"), node.line, f"{path}.name")
        path = f"case {name!r}" if name else path
        self.known(node, _CASE, path)
        if ("change" in at) == ("changes" in at):
            self.fault(node.line, f"{path}: want `change`, or `changes` with several")
        listed = at.get("changes")
        raw = listed.nodes if isinstance(listed, Items) else [at["change"]] if "change" in at else []
        if listed is not None and not isinstance(listed, Items):
            self.fault(listed.line, f"{path}: changes: want a list, got {kind_of(listed)}")
        changes = [self.change(item, f"{path}: change") for item in raw]
        approvers = self.people(at.get("approvers"), f"{path}: approvers")
        requester = self.made(Person, at.get("requester"), node.line, f"{path}: requester")
        environment = self.environment
        if "environment" in at:
            environment = self.made(LogId, at["environment"], node.line, f"{path}: environment") or environment
        expect = self.text(at.get("expect"), node.line, f"{path}: expect")
        if expect is not None and expect not in ("allow", "refuse"):
            self.fault(node.lines.get("expect", node.line), f"{path}: expect: want allow or refuse, got {expect!r}")
        if expect == "allow" and "because" in at:
            self.fault(node.lines["because"], f"{path}: because: want it with `expect: refuse` only")
        threshold = THRESHOLD_DEFAULT
        if "threshold" in at:
            number = _json(at["threshold"])
            if type(number) is int and 0 <= number <= THRESHOLD_MAX:
                threshold = number
            else:
                self.fault(node.lines["threshold"], f"{path}: threshold: want 0 .. {THRESHOLD_MAX}")
        if name is None or requester is None or None in changes:
            return None
        return Case(
            name=name,
            line=node.line,
            environment=environment,
            requester=requester,
            approvers=approvers,
            threshold=threshold,
            at_ms=self.moment(at["at"], f"{path}: at") if "at" in at else None,
            changes=tuple(change for change in changes if change is not None),
            ticket=self.text(at["ticket"], node.line, f"{path}: ticket") if "ticket" in at else None,
            reason=(self.text(at["reason"], node.line, f"{path}: reason") or "") if "reason" in at else "",
            published=self.published(at.get("published"), f"{path}: published"),
            allowed=expect == "allow",
            rule=self.text(at["rule"], node.line, f"{path}: rule") if "rule" in at else None,
            because=self.text(at["because"], node.line, f"{path}: because") if "because" in at else None,
        )

    # --- small things ---

    def text(self, node: Node | None, line: int, path: str) -> str | None:
        if not isinstance(node, Text) or not node.text:
            self.fault(node.line if node else line, f"{path}: want text, got {kind_of(node) if node else 'nothing'}")
            return None
        return node.text

    def made(self, make: Any, node: Node | None, line: int, path: str) -> Any:
        text = self.text(node, line, path)
        if text is None:
            return None
        try:
            return make(text)
        except Malformed as error:
            self.fault(node.line if node else line, f"{path}: {error}")
            return None

    def people(self, node: Node | None, path: str) -> tuple[Person, ...]:
        if node is None:
            return ()
        nodes = node.nodes if isinstance(node, Items) else (node,)
        found = [self.made(Person, item, item.line, path) for item in nodes]
        return tuple(person for person in found if person is not None)

    def moment(self, node: Node, path: str) -> int:
        """Unix ms of a local time with its zone."""
        found = _MOMENT.match(node.text) if isinstance(node, Text) else None
        if found is None:
            self.fault(
                node.line, f"{path}: want a time with its zone, as 2026-11-27 10:00 Europe/Berlin; got {kind_of(node)}"
            )
            return 0
        try:
            zone = UTC if found[3] in ("Z", "UTC") else self.zones(found[3])
            local = datetime.fromisoformat(f"{found[1]} {found[2]}").replace(tzinfo=zone)
            return int(local.timestamp() * 1000)
        except (ZoneMissing, ValueError, OverflowError) as error:
            self.fault(node.line, f"{path}: {error}")
            return 0

    def published(self, node: Node | None, path: str) -> tuple[PastChange, ...]:
        """Publications before this one: of the rules that decide on it, or of those named."""
        if node is None:
            return ()
        if not isinstance(node, Items):
            self.fault(node.line, f"{path}: want a list of times, got {kind_of(node)}")
            return ()
        found = []
        for item in node.nodes:
            if isinstance(item, Fields) and set(item.nodes) == {"at", "rules"}:
                rules = _json(item.nodes["rules"])
                names = frozenset(str(name) for name in (rules if isinstance(rules, list) else [rules]))
                found.append(PastChange(self.moment(item.nodes["at"], path), names))
            else:
                found.append(PastChange(self.moment(item, path), None))
        return tuple(found)

    # --- changes ---

    def change(self, node: Node, path: str) -> Change | None:
        if not isinstance(node, Fields):
            self.fault(node.line, f"{path}: want a mapping, got {kind_of(node)}")
            return None
        self.known(node, _CHANGE, path)
        at = node.nodes
        named = [name for name in _TARGETS if name in at]
        if len(named) != 1:
            self.fault(node.line, f"{path}: want one of {', '.join(f'`{name}`' for name in _TARGETS)}, with its key")
            return None
        target = _TARGETS[named[0]]
        key = self.made(FlagKey, at[named[0]], node.line, f"{path}: key")
        source = self.made(Source, at["source"], node.line, f"{path}: source") if "source" in at else Source("")
        if key is None or source is None:
            return None
        op = Op(target, source, key, Seq(0), Action.PUT, None)
        touched = self.touched(at.get("touches"), f"{path}: touches")
        try:
            if target is Target.EVALUATOR:
                return self.evaluator_change(op, at, touched)
            if target is Target.RELEASE:
                return self.release_change(op, node, path, touched)
            return self.flag_change(op, node, path, touched)
        except BadDefinition as error:
            self.fault(node.line, f"{path}: {error}")
            return None

    def evaluator_change(self, op: Op, at: Mapping[str, Node], touched: tuple[Touched, ...]) -> Change:
        before = _rule(at["before"], "before") if "before" in at else None
        after = _rule(at["after"], "after") if "after" in at else None
        if before is None and after is None:
            raise BadDefinition("", "want `before`, `after`, or both, with the rule")
        op = replace(op, action=Action.PUT if after is not None else Action.DELETE)
        return Change(op, rule_before=before, rule_after=after, touched=touched)

    def release_change(self, op: Op, node: Fields, path: str, touched: tuple[Touched, ...]) -> Change | None:
        at = node.nodes
        if ("kind" in at) == ("before" in at or "after" in at):
            self.fault(node.line, f"{path}: want `kind` (and `with`), or `before`, `after`, or both")
            return None
        if "kind" in at:
            raw = _json(at["kind"])
            if raw not in _RELEASE_KINDS:
                line = node.lines["kind"]
                self.fault(line, f"{path}: kind: want one of {', '.join(_RELEASE_KINDS)} of a release, got {raw!r}")
                return None
            plan = _plan(at.get("with", Fields(node.line, {}, {})), "with")
            return _release_change_of(ChangeKind(raw), op, plan, touched)
        before = _plan(at["before"], "before") if "before" in at else None
        after = _plan(at["after"], "after") if "after" in at else None
        op = replace(op, action=Action.PUT if after is not None else Action.DELETE)
        return Change(op, release_before=before, release_after=after, touched=touched)

    def flag_change(self, op: Op, node: Fields, path: str, touched: tuple[Touched, ...]) -> Change | None:
        at = node.nodes
        if "kind" in at:
            if "before" in at or "after" in at:
                self.fault(node.line, f"{path}: want `kind` (and `with`), or `before` and `after`, got both")
                return None
            return self.change_of_kinds(op, node, path, touched)
        if "with" in at or not ("before" in at or "after" in at):
            self.fault(node.line, f"{path}: want `kind` (and `with`), or `before`, `after`, or both")
            return None
        before = _definition(at["before"], "before") if "before" in at else None
        after = _definition(at["after"], "after") if "after" in at else None
        op = replace(op, action=Action.PUT if after is not None else Action.DELETE)
        return Change(op, before, after, touched=touched)

    def change_of_kinds(self, op: Op, node: Fields, path: str, touched: tuple[Touched, ...]) -> Change | None:
        """A change that is of exactly these kinds, of a flag that `with` describes."""
        raw = _json(node.nodes["kind"])
        names = raw if isinstance(raw, list) else [raw]
        flag_kinds = [kind.value for kind in ChangeKind if kind not in _NOT_OF_FLAGS]
        if strange := [name for name in names if name not in flag_kinds]:
            line = node.lines["kind"]
            self.fault(line, f"{path}: kind: want some of {', '.join(flag_kinds)}; got {strange[0]!r}")
            return None
        flag = _definition(node.nodes.get("with", Fields(node.line, {}, {})), "with")
        kinds = frozenset(ChangeKind(name) for name in names)
        whole = kinds & {ChangeKind.CREATE, ChangeKind.DELETE, ChangeKind.KILL}
        if whole and len(kinds) > 1:
            self.fault(node.lines["kind"], f"{path}: kind: {min(whole)} is never a part of a change, give it alone")
            return None
        if ChangeKind.CREATE in kinds:
            return Change(op, None, flag, touched=touched)
        if ChangeKind.DELETE in kinds:
            return Change(replace(op, action=Action.DELETE), flag, None, touched=touched)
        if ChangeKind.KILL in kinds:
            return Change(replace(op, action=Action.KILL), flag, flag, touched=touched)
        return Change(op, _otherwise(flag, kinds), flag, touched=touched)

    def touched(self, node: Node | None, path: str) -> tuple[Touched, ...]:
        if node is None:
            return ()
        found = []
        for item in node.nodes if isinstance(node, Items) else (node,):
            if not isinstance(item, Fields) or not {"flag"} <= set(item.nodes) <= {"flag", "source", "with"}:
                self.fault(item.line, f"{path}: want `flag`, and `source` and `with` if you like")
                continue
            key = self.made(FlagKey, item.nodes["flag"], item.line, path)
            source = self.made(Source, item.nodes["source"], item.line, path) if "source" in item.nodes else Source("")
            try:
                flag = _definition(item.nodes.get("with", Fields(item.line, {}, {})), "with")
            except BadDefinition as error:
                self.fault(item.line, f"{path}: {error}")
                continue
            if key is not None and source is not None:
                found.append(Touched(source, key, flag))
        return tuple(found)


def _definition(node: Node, where: str) -> FlagDefinition:
    """A flag by its fields and its governance, side by side; what is left out is that of a plain switch."""
    raw = _json(node)
    if not isinstance(raw, dict):
        raise BadDefinition(where, f"want a mapping, got {kind_of(node)}")
    known = (*_FLAG, *_GOVERNANCE)
    if strange := [name for name in raw if name not in known]:
        alike = get_close_matches(strange[0], known, n=1)
        hint = f"; did you mean {alike[0]!r}?" if alike else f"; known are {', '.join(known)}"
        raise BadDefinition(where, f"{strange[0]!r}: no such field{hint}")
    governance = governance_from({name: raw[name] for name in _GOVERNANCE if name in raw}, where)
    flag = {**_PLAIN_FLAG, **{name: raw[name] for name in _FLAG if name in raw}}
    return flag_from_flagd(flag, where, governance)


def _plan(node: Node, where: str) -> ReleasePlan:
    """A release by its plan's fields; what is left out is that of a closed release without stages."""
    raw = _json(node)
    if not isinstance(raw, dict):
        raise BadDefinition(where, f"want a mapping, got {kind_of(node)}")
    gate = {**_CLOSED_GATE, **raw["gate"]} if isinstance(raw.get("gate"), dict) else raw.get("gate", _CLOSED_GATE)
    return release_from({**_PLAIN_RELEASE, **raw, "gate": gate}, where)


def _release_change_of(kind: ChangeKind, op: Op, plan: ReleasePlan, touched: tuple[Touched, ...]) -> Change:
    """A change that is of exactly this kind, of a release."""
    part, whole = replace(plan.gate, share=SHARE_MAX // 2), replace(plan.gate, share=SHARE_MAX)
    half, full = replace(plan, gate=part), replace(plan, gate=whole)
    match kind:
        case ChangeKind.CREATE:
            return Change(op, release_after=replace(plan, gate=CLOSED), touched=touched)
        case ChangeKind.DELETE:
            return Change(replace(op, action=Action.DELETE), release_before=plan, touched=touched)
        case ChangeKind.KILL:
            return Change(replace(op, action=Action.KILL), release_before=plan, release_after=plan, touched=touched)
        case ChangeKind.RAMP:
            return Change(op, release_before=half, release_after=full, touched=touched)
        case ChangeKind.REVERT:
            return Change(op, release_before=full, release_after=half, touched=touched)
        case _:
            other = replace(plan, title=f"{plan.title} before")
            return Change(op, release_before=other, release_after=plan, touched=touched)


def _rule(node: Node, where: str) -> JsonValue:
    rule: JsonValue = _json(node)
    try:
        encode_evaluator(rule)
    except BadDefinition as error:
        raise BadDefinition(where, str(error)) from error
    return rule


def _otherwise(flag: FlagDefinition, kinds: frozenset[ChangeKind]) -> FlagDefinition:
    """A flag as it may have been before a change of these kinds."""
    other: dict[str, Any] = {}
    if ChangeKind.STATE in kinds:
        other["state"] = next(state for state in type(flag.state) if state is not flag.state)
    if ChangeKind.ROLLOUT in kinds:
        other["default_variant"] = next((name for name in flag.variants if name != flag.default_variant), None)
        if other["default_variant"] is None and flag.default_variant is None:
            other["default_variant"] = next(iter(flag.variants))
    if ChangeKind.VARIANTS in kinds:
        # A name that no flag has: any other value of the same type would do.
        other["variants"] = {**flag.variants, "before": next(iter(flag.variants.values()))}
    if ChangeKind.GOVERNANCE in kinds:
        other["governance"] = replace(flag.governance, services=(*flag.governance.services, "before"))
    if ChangeKind.METADATA in kinds:
        other["description"] = f"{flag.description or ''} before"
    return replace(flag, **other)
