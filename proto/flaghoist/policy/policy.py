"""A policy: the rules of one environment, as its root carries them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from flaghoist.policy import grammar
from flaghoist.policy.change import Change, ChangeKind
from flaghoist.policy.document import Items, read_document
from flaghoist.policy.freeze import Zones, system_zone
from flaghoist.policy.people import (
    APPROVALS_RULE,
    Missing,
    PolicyRefused,
    allowed_by,
    check_people,
    missing_approvals,
)
from flaghoist.policy.publication import PastChange, publication_faults
from flaghoist.policy.rule import EmergencyPolicy, Facts, Rule, When, facts_of, first_matching
from flaghoist.records import Proposal
from flaghoist.values import LogId, Person, ProposalKind

_BUILT_IN: Final = Rule(APPROVALS_RULE, 0, When())
_ENVIRONMENTS_REMEMBERED: Final = 16  # a process reads one or two ledgers


@dataclass(frozen=True, slots=True)
class Match:
    """Which rules decide on one flag or evaluator that a change concerns, and for which kinds of change."""

    facts: Facts
    kinds: frozenset[ChangeKind]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which rules decide on one change: of its definition before, after, and of the flags that it touches."""

    change: Change
    matches: tuple[Match, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(dict.fromkeys(rule for match in self.matches for rule in match.rules))


@dataclass(frozen=True)
class Policy:
    """Rules in the order of the file: for each change the first that matches decides.

    `text` is the policy as written, "" of the built-in one, which asks for the root's own threshold and no more.
    """

    text: str
    groups: dict[str, frozenset[Person]]
    group_lines: dict[str, int]
    rules: tuple[Rule, ...]
    emergency: EmergencyPolicy
    tests: Items | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, *, where: str = "policy") -> "Policy":
        """Return the policy in a YAML text; "" is the built-in one.

        Args:
            text: untrusted, at most document.POLICY_BYTES_MAX bytes.
            where: names the text in errors.

        Raises:
            PolicyNotUnderstood: a newer release wrote it.
            BadPolicy: with every fault, each with its line. Zone names are checked for their form only (zones.py).
        """
        if not text:
            return NO_POLICY
        parts = grammar.parse(read_document(text, where=where), where=where)
        return cls(text, dict(parts.groups), dict(parts.group_lines), parts.rules, parts.emergency, parts.tests)

    @property
    def built_in(self) -> bool:
        return not self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def explain(self, changes: Sequence[Change], log_id: LogId) -> tuple[Explanation, ...]:
        """Return for each change which rules decide, and why: what people are told before they ask others."""
        rules = _rules_of(self, log_id)
        return tuple(Explanation(change, _matches(rules, change)) for change in changes)

    def rules_for(self, changes: Sequence[Change], log_id: LogId) -> tuple[Rule, ...]:
        """Return the rules that decide on these changes, each once, in the order of the file. All must allow."""
        rules = _rules_of(self, log_id)
        if len(rules) == 1:
            return rules
        found = {rule.name for change in changes for match in _matches(rules, change) for rule in match.rules}
        return tuple(rule for rule in rules if rule.name in found)

    def missing(
        self,
        changes: Sequence[Change],
        *,
        log_id: LogId,
        requester: Person,
        approvers: Collection[Person],
        root_threshold: int,
    ) -> list[Missing]:
        """Return every approval that is still to come before `allow_people` allows the changes."""
        rules = self.rules_for(changes, log_id)
        return missing_approvals(rules, requester=requester, approvers=approvers, root_threshold=root_threshold)

    def allow_people(
        self,
        changes: Sequence[Change],
        *,
        log_id: LogId,
        requester: Person,
        approvers: Collection[Person],
        root_threshold: int,
        proposing: bool = True,
    ) -> str:
        """Return what the entry's `policy` names: the rules that allow these changes by these people.

        This runs in every reader of the ledger, on every entry, and depends on nothing but its arguments.

        Args:
            approvers: people whose approvals of exactly this proposal count; the requester among them is ignored.
            root_threshold: how many distinct approvers the root asks for, whatever the rules say.
            proposing: whether it also matters who asks, and whether the change may be asked for at all; not when
                people stand behind an emergency that is in force.

        Raises:
            PolicyRefused: a rule does not allow it; the text says what it asked for and who could still approve.
            NotApproved: fewer approvers than the root's threshold.
        """
        rules = self.rules_for(changes, log_id)
        check_people(
            rules, requester=requester, approvers=approvers, root_threshold=root_threshold, proposing=proposing
        )
        return f"{APPROVALS_RULE}>={root_threshold}" if self.built_in else allowed_by(rules)

    def publication_faults(
        self,
        changes: Sequence[Change],
        *,
        proposal: Proposal,
        at_ms: int,
        history: Sequence[PastChange],
        zones: Zones = system_zone,
    ) -> list[PolicyRefused]:
        """Return everything for which `allow_publication` would refuse, one by one: what proposers are told early.

        Raises:
            ZoneMissing: no data of a freeze's zone.
        """
        if self.built_in or proposal.kind in (ProposalKind.EMERGENCY, ProposalKind.DRILL):
            return []
        decided: dict[Rule, list[Change]] = {}
        for explanation in self.explain(changes, proposal.log_id):
            for rule in explanation.rules:
                decided.setdefault(rule, []).append(explanation.change)
        in_order = [(rule, decided[rule]) for rule in self.rules if rule in decided]
        return list(publication_faults(in_order, proposal=proposal, at_ms=at_ms, history=history, zones=zones))

    def allow_publication(
        self,
        changes: Sequence[Change],
        *,
        proposal: Proposal,
        at_ms: int,
        history: Sequence[PastChange],
        zones: Zones = system_zone,
    ) -> None:
        """Refuse what a publisher must not publish now, though the right people stand behind it.

        An emergency is never refused here: nothing may hold up a kill. Nor is a rehearsal, which changes no answer.

        Args:
            at_ms: the publisher's clock, Unix milliseconds.
            history: what was published before; as far back as the longest budget (`budget_ms`) is enough.
            zones: time zones by name; this machine's.

        Raises:
            PolicyRefused: naming the rule and which of its requirements; of several faults, all in one text.
            ZoneMissing: no data of a freeze's zone.
        """
        faults = self.publication_faults(changes, proposal=proposal, at_ms=at_ms, history=history, zones=zones)
        if faults:
            raise PolicyRefused.of(faults)

    @property
    def budget_ms(self) -> int:
        """How far back the longest budget looks, in milliseconds; 0 when there is none."""
        return max((rule.budget.per_ms for rule in self.rules if rule.budget is not None), default=0)

    def check_against(
        self,
        people: Collection[Person],
        root_threshold: int,
        *,
        requesters: Collection[Person] | None = None,
        approvers: Collection[Person] | None = None,
    ) -> list[str]:
        """Return warnings about the policy under a root: people it does not list, rules that nobody can satisfy.

        Args:
            people: whom the root lists, in any role.
            requesters: who may propose; None: all people.
            approvers: who may approve; None: all people.
        """
        from flaghoist.policy.lint import people_findings

        found = people_findings(self, people, root_threshold, requesters=requesters, approvers=approvers)
        return [str(finding) for finding in found]


NO_POLICY: Final = Policy("", {}, {}, (_BUILT_IN,), EmergencyPolicy())


@lru_cache(maxsize=_ENVIRONMENTS_REMEMBERED)
def _rules_of(policy: Policy, log_id: LogId) -> tuple[Rule, ...]:
    return tuple(rule for rule in policy.rules if rule.when.holds_in(log_id))


def _matches(rules: Sequence[Rule], change: Change) -> tuple[Match, ...]:
    kinds = change.kinds
    found = [Match(facts, kinds, tuple(first_matching(rules, facts, kinds))) for facts in facts_of(change)]
    for touched in change.touched:
        facts = Facts.of_flag(touched.source, touched.key, touched.definition)
        found.append(Match(facts, change.touched_kinds, tuple(first_matching(rules, facts, change.touched_kinds))))
    return tuple(found)
