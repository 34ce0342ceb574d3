"""What the publisher's service tells its operators: JSON lines, once, or again while somebody must act."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from flaghoist.ledger import Ledger
from flaghoist.log.report import BoundedReport
from flaghoist.outcomes import Applied, Forked, Link, Prepared, Stepped
from flaghoist.records import Release
from flaghoist.release_plan import Walk, parse_release, percent
from flaghoist.values import ProposalKind
from publisher.docket import Motion, MotionKind, Refusal
from publisher.inbox import Inbox
from publisher.sequencer import Taken
from publisher.standing import Status

# How often what people must act on is said again.
ALARM_EVERY_S: Final = 3600.0
ROOT_EXPIRY_EVERY_S: Final = 86_400.0
COUNTS_EVERY_S: Final = 60.0
# Time to get as many people to sign as a root asks for.
ROOT_EXPIRY_WARN_MS: Final = 30 * 86_400_000

_REFUSED: Final = {MotionKind.ROOT: "root.refused", MotionKind.STEP: "walk.held"}


class Bulletin:
    """Tells of one publisher; what others can cause at will it tells within bounds.

    Args:
        links_told: how many links of the chain need not be told of.
    """

    def __init__(
        self, logger: structlog.typing.FilteringBoundLogger, steady_s: Callable[[], float], *, links_told: int
    ) -> None:
        self._logger = logger
        self._steady_s = steady_s
        self.report = BoundedReport(logger, steady_s)
        self._links_told = links_told
        self._told_at_s: dict[str, float] = {}
        self._told_counts: dict[str, int] = {}

    def links(self, links: Sequence[Link]) -> None:
        """Tell of the links that were read since the last call."""
        for link in links[self._links_told :]:
            self._logger.debug("entry.read", seq=link.entry.seq.number, what=type(link).__name__.lower())
        self._links_told = len(links)

    def appended(self, motion: Motion, link: Taken) -> None:
        """Tell of an entry that this publisher has appended."""
        facts: dict[str, object] = {}
        if isinstance(link, Applied) and isinstance(link.entry.body, Release):
            facts["requester"] = link.authorized.proposal.requester
            facts["approvers"] = link.authorized.approvers
            facts["policy"] = link.entry.body.policy
            if link.authorized.proposal.kind is ProposalKind.EMERGENCY:
                self._logger.warning("emergency.applied", name=motion.name, requester=facts["requester"])
        elif isinstance(link, Prepared):
            proposal = link.authorized.proposal
            facts |= {"requester": proposal.requester, "acked_percent": proposal.acked_percent}
        elif isinstance(link, Stepped):
            facts |= _step_facts(link)
        if isinstance(link, Applied | Stepped) and link.in_force_at_ms:
            facts["in_force_at_ms"] = link.in_force_at_ms
        self._logger.info(
            "entry.appended",
            kind=motion.kind,
            name=motion.name,
            seq=link.entry.seq.number,
            entry_hash=link.entry_hash.hex(),
            **facts,
        )

    def refusals(self, refusals: Iterable[Refusal]) -> None:
        """Tell what cannot be appended, and why."""
        for refusal in refusals:
            if refusal.status is Status.SCHEDULED:
                self._logger.info("proposal.scheduled", name=refusal.name, reason=str(refusal.refusal))
                continue
            self.report.warning(
                _REFUSED.get(refusal.kind, "proposal.refused"),
                code=refusal.refusal.code,
                kind=refusal.kind,
                name=refusal.name,
                status=refusal.status,
                reason=str(refusal.refusal)[:1000],
                **({"hint": refusal.refusal.hint} if refusal.kind is MotionKind.STEP else {}),
            )

    def quarantined(self, proof: Forked) -> None:
        """Tell of a proof of another history."""
        self._logger.error(
            "ledger.quarantined",
            what=proof.what,
            seq=proof.seq.number,
            signers=sorted(proof.signers),
            reason="a trusted key has signed another history: only a root that takes its role away is published",
            hint="see docs/recovery.md: `flaghoist root propose --revoke`",
        )

    def alarms(self, ledger: Ledger, *, now_ms: int) -> None:
        """Tell what people must act on, again from time to time.

        Args:
            now_ms: Unix milliseconds.
        """
        if ledger.quarantined_by is not None and self._due("quarantine", ALARM_EVERY_S):
            self.quarantined(ledger.quarantined_by)
        for emergency in ledger.unratified.values():
            if now_ms > emergency.ratify_by_ms and self._due(f"emergency {emergency.seq}", ALARM_EVERY_S):
                proposal = emergency.authorized.proposal
                self._logger.error(
                    "emergency.overdue",
                    name=proposal.proposal_id,
                    seq=emergency.seq.number,
                    requester=proposal.requester,
                    since_ms=now_ms - emergency.ratify_by_ms,
                    hint=f"it stays in force; let people ratify it: `flaghoist approve {proposal.proposal_id}`",
                )
        self._root_expiry(ledger, now_ms)

    def counts(self, inbox: Inbox, tally: Counter[str]) -> None:
        """Tell how many records counted for nothing, where there are more than when it was last told."""
        found = {
            "inbox.dropped": inbox.dropped,
            "inbox.evicted": inbox.evicted,
            "ledger.dropped": tally["dropped"],
            "ledger.voided": tally["void"],
            "ledger.rejected": tally["rejected"],
        }
        for event, count in found.items():
            told = self._told_counts.get(event, 0)
            if count > told and self._due(event, COUNTS_EVERY_S):
                self._logger.warning(event, count=count, since_told=count - told)
                self._told_counts[event] = count

    def _root_expiry(self, ledger: Ledger, now_ms: int) -> None:
        left_ms = ledger.root.record.expires_at - now_ms
        if left_ms < 0 and self._due("root expired", ALARM_EVERY_S):
            self._logger.error(
                "root.expired",
                version=ledger.root.version,
                reason="nothing but its successor is published, and sidecars take nothing as fresh",
                hint="`flaghoist root propose`, and have it signed",
            )
        elif 0 <= left_ms < ROOT_EXPIRY_WARN_MS and self._due("root expires", ROOT_EXPIRY_EVERY_S):
            self._logger.warning(
                "root.expires",
                version=ledger.root.version,
                in_days=left_ms // 86_400_000,
                hint="`flaghoist root propose`, and have it signed in time",
            )

    def _due(self, what: str, every_s: float) -> bool:
        now_s = self._steady_s()
        if what in self._told_at_s and now_s - self._told_at_s[what] < every_s:
            return False
        self._told_at_s[what] = now_s
        return True


def _step_facts(link: Stepped) -> dict[str, object]:
    """Return where a step has led, and when the next is due."""
    assert link.op.definition is not None  # noqa: S101 — a step puts the release with another gate
    plan = parse_release(link.op.definition)
    assert plan.stage is not None  # noqa: S101 — a step leads to a stage
    stage = plan.stages[plan.stage]
    goes_on = plan.gate.walk is Walk.ON
    since_ms = link.in_force_at_ms or link.entry.published_at
    return {
        "stage": stage.name,
        "number": plan.stage + 1,
        "of": len(plan.stages),
        "audience": plan.gate.audience,
        "share": percent(plan.gate.share),
        "next_at_ms": since_ms + stage.soak_s * 1000 if goes_on else None,
    }
