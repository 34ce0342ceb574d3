"""Where a proposal, an emergency or a root stands, and what it still takes: one answer for operators and the service.

Pure. Each judgement is the publisher's own (release.py) on the ledger as it was read.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from flaghoist.authorization import check_understood, stands_alone
from flaghoist.changes import changes_between
from flaghoist.errors import Expired, FlaghoistError, NotYet, Refused
from flaghoist.ledger import Ledger, next_entry
from flaghoist.outcomes import Rejected, Unratified
from flaghoist.records import Approval, Preparation, Ratification, Release, RootUpdate, Step
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.root import Root
from flaghoist.snapshot import Snapshot
from flaghoist.values import Decision, Person, Role
from publisher.inbox import Case, Inbox, RootCase
from publisher.reader import LedgerReader
from publisher.release import ratification_of, release_of


class Status(StrEnum):
    """READY: it is published as soon as a publisher sees it, and the fleet has acknowledged it if it asks for that."""

    READY = "ready"
    WAITING = "waiting"  # for people
    SCHEDULED = "scheduled"  # its moment is further ahead than an entry may wait
    REFUSED = "refused"  # by the policy, as things are now
    REJECTED = "rejected"  # by somebody who may approve
    STALE = "stale"  # the flags have changed since, or it cannot be served
    EXPIRED = "expired"
    PUBLISHED = "published"
    OVERDUE = "overdue"  # an emergency that should have been ratified by now


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a case stands.

    Attributes:
        approvers: whose approvals would count now.
        rejecters: whose rejections stand.
        needed: how many people the root asks for.
        why: what the status rests on, in words.
        missing: each approval or signature that is still to come, in words.
        rules: the policy's rules that decide.
        body: what publishes it, when READY.
        refusal: what a publisher says to it, when it does not publish it.
    """

    status: Status
    approvers: tuple[Person, ...] = ()
    rejecters: tuple[Person, ...] = ()
    needed: int = 0
    why: str = ""
    missing: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    body: Release | Preparation | Ratification | RootUpdate | Step | None = None
    refusal: FlaghoistError | None = None


def counting(case: Case, now_ms: int) -> tuple[Approval, ...]:
    """Return the statements that count now: not expired, and not the requester's own."""
    return tuple(a for a, _ in case.approvals if a.expires_at >= now_ms and a.approver != case.proposal.requester)


def approvals_lack(case: Case, root: Root, now_ms: int) -> bool:
    """Say whether a case cannot be published for want of people, whatever else: cheap, without any signature."""
    if stands_alone(case.proposal.kind):
        return False
    said = counting(case, now_ms)
    rejected = any(a.decision is Decision.REJECT for a in said)
    return rejected or len(said) < root.grant(Role.APPROVER).threshold


def standing_of(case: Case, reader: LedgerReader, *, now_ms: int) -> Standing:
    """Return where a proposal stands in a ledger that was read to its end.

    Raises:
        ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
    """
    ledger = reader.ledger
    said = counting(case, now_ms)
    approvers = tuple(a.approver for a in said if a.decision is Decision.APPROVE)
    rejecters = tuple(a.approver for a in said if a.decision is Decision.REJECT)
    alone = stands_alone(case.proposal.kind)
    needed = 0 if alone else ledger.root.grant(Role.APPROVER).threshold

    def standing(status: Status, why: str = "", refusal: FlaghoistError | None = None) -> Standing:
        return Standing(status, approvers, rejecters, needed, why, missing, rules, body, refusal)

    missing: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    body: Release | None = None
    if done := reader.published.get(case.sha256):
        return standing(Status.PUBLISHED, f"seq {done.entry.seq}")
    if now_ms > case.proposal.expires_at:
        return standing(Status.EXPIRED)
    moment_ms = case.proposal.activate_at
    if moment_ms is not None and now_ms > moment_ms:
        refusal = Expired(f"its moment, {_instant(moment_ms)}, is over", hint="propose it again with a later moment")
        return standing(Status.EXPIRED, str(refusal), refusal)
    if rejecters and not alone:
        return standing(Status.REJECTED, f"by {', '.join(rejecters)}")
    try:
        check_understood(case.proposal)
        after = ledger.snapshot.fold(ledger.snapshot.seq.next(), case.proposal.ops)
    except Refused as refusal:
        return standing(Status.STALE, str(refusal), refusal)
    if not alone:
        missing, rules = _people(case, ledger, after, approvers)
    try:
        body = release_of(ledger, case, reader.links, now_ms=now_ms)
    except Refused as refusal:
        if missing:
            return standing(Status.WAITING, refusal=refusal)
        if isinstance(refusal, NotYet) and moment_ms is not None:
            opens, at = _instant(published_from_ms(moment_ms)), _instant(moment_ms)
            why = f"published from {opens} on, takes effect at {at}"
            return standing(Status.SCHEDULED, why, NotYet(f"proposal {case.id}: {why}", hint=refusal.hint))
        return standing(Status.REFUSED, str(refusal), refusal)
    if ledger.is_prepared(case.sha256):
        percent, seq = case.proposal.acked_percent, reader.prepared[case.sha256].entry.seq
        return standing(
            Status.READY, f"prepared at seq {seq}; waits until {percent} % of the fleet have acknowledged it"
        )
    return standing(Status.READY)


def published_from_ms(moment_ms: int) -> int:
    """Return from when on a proposal may be published that takes effect at a moment (both Unix ms)."""
    return moment_ms - LEAD_MS_MAX


def _instant(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def ratification_standing(case: Case, emergency: Unratified, ledger: Ledger, *, now_ms: int) -> Standing:
    """Return where an emergency stands that is in force and that waits to be ratified."""
    said = counting(case, now_ms)
    approvers = tuple(a.approver for a in said if a.decision is Decision.APPROVE)
    rejecters = tuple(a.approver for a in said if a.decision is Decision.REJECT)
    after = emergency.before.fold(emergency.seq, emergency.authorized.proposal.ops)
    missing, rules = _people(case, ledger, after, approvers, before=emergency.before)
    status = Status.OVERDUE if now_ms > emergency.ratify_by_ms else Status.WAITING
    needed = ledger.root.grant(Role.APPROVER).threshold

    def standing(status: Status, why: str, body: Ratification | None, refusal: Refused | None) -> Standing:
        return Standing(status, approvers, rejecters, needed, why, missing, rules, body, refusal)

    if rejecters:
        return standing(status, f"rejected by {', '.join(rejecters)}", None, None)
    try:
        body, _ = ratification_of(ledger, case, now_ms=now_ms)
    except Refused as refusal:
        return standing(status, "" if missing else str(refusal), None, refusal)
    return standing(Status.READY, "", body, None)


def root_standing(case: RootCase, ledger: Ledger, *, now_ms: int) -> Standing:
    """Return where the next root stands; `approvers` are the people who have signed it."""
    missing, signed = [], set[Person]()
    for judge, named in ((ledger.root, "in force"), (case.root, "proposed")):
        threshold = judge.grant(Role.ROOT).threshold
        people = judge.people_signing(Role.ROOT, case.envelope)
        signed |= people
        if len(people) < threshold:
            could = ", ".join(sorted(judge.people_of(Role.ROOT) - people)) or "nobody"
            missing.append(
                f"the root {named} (version {judge.version}) wants {threshold} signatures, got {len(people)}; "
                f"{could} may still sign"
            )
    needed = max(judge.grant(Role.ROOT).threshold for judge in (ledger.root, case.root))
    body = RootUpdate(case.envelope)
    if missing:
        return Standing(Status.WAITING, tuple(sorted(signed)), needed=needed, missing=tuple(missing))
    # The hash does not matter to the judgement, and is known only once the entry is encoded.
    judged = ledger.judge_next(next_entry(ledger, body, now_ms=now_ms), bytes(32))
    if isinstance(judged, Rejected):
        refusal = judged.refusal
        return Standing(Status.REFUSED, tuple(sorted(signed)), needed=needed, why=str(refusal), refusal=refusal)
    return Standing(Status.READY, tuple(sorted(signed)), needed=needed, body=body)


def emergency_case(emergency: Unratified, reader: LedgerReader, inbox: Inbox) -> Case:
    """Return an emergency in force with what people say of it; it may have been published without the inbox."""
    sha256 = emergency.authorized.sha256
    body = reader.published[sha256].entry.body
    assert isinstance(body, Release)  # noqa: S101 — only a release carries an emergency
    return Case(emergency.authorized.proposal, body.proposal, sha256, inbox.statements_on(sha256))


def _people(
    case: Case,
    ledger: Ledger,
    after: Snapshot,
    approvers: tuple[Person, ...],
    *,
    before: Snapshot | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return in words which approvals are missing, and which rules of the policy decide."""
    root, policy = ledger.root, ledger.root.policy
    changes = changes_between(ledger.snapshot if before is None else before, after, case.proposal.ops)
    missing = policy.missing(
        changes,
        log_id=root.log_id,
        requester=case.proposal.requester,
        approvers=approvers,
        root_threshold=root.grant(Role.APPROVER).threshold,
    )
    rules = () if policy.built_in else tuple(rule.name for rule in policy.rules_for(changes, root.log_id))
    words = [f"rule {m.rule.name!r}: {m}" if m.rule is not None else str(m) for m in missing]
    return tuple(words), rules
