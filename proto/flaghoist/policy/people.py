"""Who must stand behind a change: the part of a policy that every reader of the ledger enforces.

Of the policy it uses names, groups and counts only: no clock, no zone data, no locale, so that every reader judges an
entry as the first one did.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flaghoist.errors import NotApproved
from flaghoist.policy.rule import Ask, Rule
from flaghoist.values import Person

# What an entry's `policy` names without a policy: the root's own threshold.
APPROVALS_RULE: Final = "approvals"
ALLOWED_BY_CHARS_MAX: Final = 200  # what an entry's `policy` may hold (codec.TITLE_CHARS_MAX)
FAULTS_SHOWN_MAX: Final = 20
_PEOPLE_SHOWN_MAX: Final = 8


class PolicyRefused(NotApproved):
    """A rule of the policy does not allow the change; `rule` names it, `requirement` the field of the rule."""

    code = "policy_refused"
    hint = "`flaghoist policy show` prints the policy in force"

    def __init__(self, rule: str, requirement: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"rule {rule!r}: {requirement}: {message}", hint=hint)
        self.rule, self.requirement = rule, requirement

    @classmethod
    def of(cls, faults: Sequence["PolicyRefused"]) -> "PolicyRefused":
        """Return one error that tells all faults; it names the rule and the requirement of the first."""
        first = faults[0]
        if len(faults) == 1:
            return first
        whole = cls(first.rule, first.requirement, "", hint="; ".join(dict.fromkeys(fault.hint for fault in faults)))
        told = list(map(str, faults[:FAULTS_SHOWN_MAX]))
        if len(faults) > len(told):
            told.append(f"and {len(faults) - len(told)} more")
        whole.args = (f"{len(faults)} faults:\n  " + "\n  ".join(told),)
        return whole


@dataclass(frozen=True, slots=True)
class Missing:
    """Approvals that are still to come.

    Attributes:
        rule: who asks; None: the root.
        count: how many people are missing.
        wanted: how many it takes.
        counted: who counts already.
        label: what the policy calls those who may.
        could: who of them is left; None: any whom the root lets approve, other than the requester and `counted`.
    """

    rule: Rule | None
    count: int
    wanted: int
    counted: tuple[Person, ...]
    label: str
    could: tuple[Person, ...] | None

    def __str__(self) -> str:
        could = "anybody else who may approve" if self.could is None else shown(self.could)
        return (
            f"want approvals of {self.wanted} from {self.label}, got {len(self.counted)} "
            f"({shown(self.counted, none='none')}); {could} may still approve"
        )


def shown(people: Iterable[Person], *, none: str = "nobody") -> str:
    """Return people's names for a text, sorted; the first few of many."""
    named = sorted(people)
    more = f" and {len(named) - _PEOPLE_SHOWN_MAX} more" if len(named) > _PEOPLE_SHOWN_MAX else ""
    return ", ".join(named[:_PEOPLE_SHOWN_MAX]) + more if named else none


def missing_approvals(
    rules: Sequence[Rule], *, requester: Person, approvers: Collection[Person], root_threshold: int
) -> list[Missing]:
    """Return every approval that is still to come, the root's threshold first.

    The requester's own never counts, and one person counts for every group they are in.
    """
    others = frozenset(approvers) - {requester}
    asks: list[tuple[Rule | None, Ask]] = [(None, Ask(root_threshold, None, "any approver"))]
    asks += [(rule, ask) for rule in rules for ask in rule.approvals]
    found = []
    for rule, ask in asks:
        counted = ask.counts(others)
        if len(counted) < ask.count:
            left = None if ask.people is None else tuple(sorted(ask.people - counted - {requester}))
            lacking = ask.count - len(counted)
            found.append(Missing(rule, lacking, ask.count, tuple(sorted(counted)), ask.label, left))
    return found


def check_people(
    rules: Sequence[Rule],
    *,
    requester: Person,
    approvers: Collection[Person],
    root_threshold: int,
    proposing: bool = True,
) -> None:
    """Refuse what the rules' people do not stand behind.

    Args:
        proposing: also who asks, and whether anybody may.

    Raises:
        PolicyRefused: a rule refuses it at all, or others must propose it, or approve it.
        NotApproved: fewer people than the root's own threshold approve it.
    """
    for rule in rules if proposing else ():
        if rule.refuse is not None:
            raise PolicyRefused(rule.name, "refuse", rule.refuse, hint="the policy allows nobody to do this")
        if rule.propose is not None and requester not in rule.propose:
            raise PolicyRefused(
                rule.name,
                "propose",
                f"want a proposal by {rule.propose_label} ({shown(rule.propose)}), got one by {requester}",
                hint="ask one of them to propose it",
            )
    missing = missing_approvals(rules, requester=requester, approvers=approvers, root_threshold=root_threshold)
    if not missing:
        return
    first = missing[0]
    if first.rule is None:
        raise NotApproved(f"{first}; nobody approves what they requested ({requester})")
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise PolicyRefused(first.rule.name, "approvals", f"{first}; requested by {requester}{more}", hint=NotApproved.hint)


def allowed_by(rules: Sequence[Rule]) -> str:
    """Return the text by which an entry names the rules that allowed it; what does not fit is counted at its end."""
    names = [rule.name for rule in rules]
    text = "+".join(names)
    kept = len(names)
    while len(text) > ALLOWED_BY_CHARS_MAX:
        kept -= 1
        text = f"{'+'.join(names[:kept])}+…{len(names) - kept}"
    return text


def named_rules(text: str) -> frozenset[str] | None:
    """Return the rules that an entry names; None when some of them were only counted."""
    names = text.split("+")
    return None if names[-1].startswith("…") else frozenset(names)
