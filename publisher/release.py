"""What publishes a proposal: its approvals that count, under the rule that allows it; or the reason why it may not."""

from collections.abc import Sequence
from dataclasses import replace

from flaghoist.authorization import EMERGENCY_RULE, Authorized, authorize
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Link
from flaghoist.records import Envelope, Ratification, Release
from flaghoist.values import ProposalKind, Role
from publisher.inbox import Case


def release_of(ledger: Ledger, case: Case, links: Sequence[Link], *, now_ms: int) -> Release:
    """Return the body that publishes a case, with the approvals that count now and the rule that allows it.

    Args:
        ledger: read to its end.
        links: its chain, for what the policy limits over time.

    Raises:
        Refused: as authorization.authorize, the fold and the policy say; a standing rejection is one of the reasons.
    """
    if case.proposal.kind is ProposalKind.EMERGENCY:
        release = Release(case.envelope, (), EMERGENCY_RULE)
    else:
        release = Release(case.envelope, _approvals(ledger, case, now_ms), "")
    authorized = authorize(ledger.root, release, at_ms=now_ms)
    after = ledger.snapshot.fold(ledger.snapshot.seq.next(), case.proposal.ops)
    rule = ledger.rule_allowing(authorized, ledger.snapshot, after, at_ms=now_ms)
    return replace(release, policy=rule)


def ratification_of(ledger: Ledger, case: Case, *, now_ms: int) -> tuple[Ratification, Authorized]:
    """Return the body that ratifies an emergency in force, and who stands behind it.

    Raises:
        Refused: they are too few, or one does not count.
        KeyError: the emergency does not wait to be ratified.
    """
    body = Ratification(case.sha256, _approvals(ledger, case, now_ms))
    return body, ledger.ratified(ledger.unratified[case.sha256], body.approvals, at_ms=now_ms)


def _approvals(ledger: Ledger, case: Case, now_ms: int) -> tuple[Envelope, ...]:
    """The statements to publish: those that have not expired; all of them, when they are too few, to say what lacks."""
    statements = [(a, e) for a, e in case.approvals if a.approver != case.proposal.requester]
    unexpired = [(a, e) for a, e in statements if a.expires_at >= now_ms]
    enough = len(unexpired) >= ledger.root.grant(Role.APPROVER).threshold
    return tuple(e for _, e in (unexpired if enough else case.approvals))
