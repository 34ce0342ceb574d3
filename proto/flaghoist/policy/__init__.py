"""Policy as code: who may propose and approve which changes, and what a publisher asks of them besides.

A root carries one policy as YAML (docs/policy.md). What concerns people is enforced by every reader of the ledger, all
of it by the publisher. Pure, but for the zone data that a publisher's freeze windows need (freeze.py).
"""

from flaghoist.policy.change import Change, ChangeKind, Touched
from flaghoist.policy.document import BadPolicy
from flaghoist.policy.grammar import PolicyNotUnderstood
from flaghoist.policy.people import APPROVALS_RULE, Missing, PolicyRefused
from flaghoist.policy.policy import NO_POLICY, Explanation, Match, Policy
from flaghoist.policy.publication import PastChange
from flaghoist.policy.rule import DRILL_RULE, EMERGENCY_RULE, EmergencyPolicy, Rule

__all__ = [
    "APPROVALS_RULE",
    "DRILL_RULE",
    "EMERGENCY_RULE",
    "NO_POLICY",
    "BadPolicy",
    "Change",
    "ChangeKind",
    "EmergencyPolicy",
    "Explanation",
    "Match",
    "Missing",
    "PastChange",
    "Policy",
    "PolicyNotUnderstood",
    "PolicyRefused",
    "Rule",
    "Touched",
]
