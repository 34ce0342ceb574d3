"""What publishes a proposal: its approvals that count, under the rule that allows it; or the reason why it may not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flaghoist.authorization import Authorized, authorize, moment_of, stands_alone
from flaghoist.changes import changes_between
from flaghoist.codec import APPROVALS_MAX
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Link
from flaghoist.policy import EMERGENCY_RULE, PastChange
from flaghoist.records import Envelope, Preparation, Ratification, Release
from flaghoist.rollback import check_rollback
from flaghoist.values import Decision, ProposalKind, Role
from publisher.inbox import Case


def release_of(ledger: Ledger, case: Case, links: Sequence[Link], *, now_ms: int) -> Release:
    """Return the body that publishes a case, with the approvals that count now and the rule that allows it.

    Args:
        ledger: read to its end.
        links: its chain, for what the policy limits over time.

    Raises:
        Refused: as authorization.authorize, the fold and the policy say; a standing rejection is one of the reasons.
        ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
    """
    approvals = () if stands_alone(case.proposal.kind) else _approvals(ledger, case, now_ms)
    release = Release(case.envelope, approvals, "")
    authorized = authorize(ledger.root, release, at_ms=now_ms)
    moment_of(case.proposal, at_ms=now_ms)
    if case.proposal.kind is ProposalKind.ROLLBACK:
        check_rollback(ledger.snapshot, case.proposal.ops)
    after = ledger.snapshot.fold(ledger.snapshot.seq.next(), case.proposal.ops)
    rule = ledger.rule_allowing(authorized, ledger.snapshot, after, at_ms=now_ms)
    policy = ledger.root.policy
    if not policy.built_in:
        policy.allow_publication(
            changes_between(ledger.snapshot, after, case.proposal.ops),
            proposal=case.proposal,
            at_ms=now_ms,
            history=tuple(_past_changes(links, since_ms=now_ms - policy.budget_ms)),
        )
    return replace(release, policy=rule)


def preparation_of(ledger: Ledger, case: Case, links: Sequence[Link], *, now_ms: int) -> Preparation:
    """Return the body that shows a case to all readers, so that they acknowledge it before it is published.

    Raises:
        Refused, ZoneMissing: as `release_of`: nobody is shown what could not be published now.
    """
    return Preparation(release_of(ledger, case, links, now_ms=now_ms))


def to_prepare(ledger: Ledger, case: Case) -> bool:
    """Say whether a case must be prepared before it can be published, and is not yet."""
    return case.proposal.acked_percent is not None and not ledger.is_prepared(case.sha256)


def ratification_of(ledger: Ledger, case: Case, *, now_ms: int) -> tuple[Ratification, Authorized]:
    """Return the body that ratifies an emergency in force, and who stands behind it.

    Raises:
        Refused: they are too few, or one does not count.
        KeyError: the emergency does not wait to be ratified.
    """
    body = Ratification(case.sha256, _approvals(ledger, case, now_ms))
    return body, ledger.ratified(ledger.unratified[case.sha256], body.approvals, at_ms=now_ms)


def _past_changes(links: Sequence[Link], *, since_ms: int) -> Iterator[PastChange]:
    """Yield what was published since then, the newest first; emergencies use up no budget."""
    for link in reversed(links):
        if not isinstance(link, Applied):
            continue  # the time of a rejected entry says nothing
        if link.entry.published_at <= since_ms:
            return
        body = link.entry.body
        if isinstance(body, Release) and body.policy != EMERGENCY_RULE:
            yield PastChange.of(link.entry.published_at, body.policy)


def _approvals(ledger: Ledger, case: Case, now_ms: int) -> tuple[Envelope, ...]:
    """The statements to publish: those that have not expired; all of them, when they are too few, to say what lacks."""
    statements = [(a, e) for a, e in case.approvals if a.approver != case.proposal.requester]
    unexpired = [(a, e) for a, e in statements if a.expires_at >= now_ms]
    enough = len(unexpired) >= ledger.root.grant(Role.APPROVER).threshold
    chosen = unexpired if enough else list(case.approvals)
    if len(chosen) > APPROVALS_MAX:
        # More people stand behind it than an entry can name: rejections first, since each blocks, then those of whom
        # the most groups of the policy ask.
        groups = ledger.root.policy.groups.values()
        chosen.sort(
            key=lambda s: (s[0].decision is not Decision.REJECT, -sum(s[0].approver in people for people in groups))
        )
    return tuple(e for _, e in chosen[:APPROVALS_MAX])
