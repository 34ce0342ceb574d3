"""What a publisher does next: emergencies, roots, ratifications, changes in the order they came, steps of releases.

Pure. What was refused is remembered, and looked at again when something has changed that may matter to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from flaghoist.errors import FlaghoistError, Refused, StaleBase
from flaghoist.ledger import Ledger
from flaghoist.records import Body, Preparation, Release
from flaghoist.values import Decision, ProposalKind, Seq, Target
from publisher.fleet import Fleet, NotReached, Reached
from publisher.inbox import Case, Inbox, RootCase
from publisher.reader import LedgerReader
from publisher.release import to_prepare
from publisher.standing import (
    Standing,
    Status,
    approvals_lack,
    counting,
    emergency_case,
    published_from_ms,
    ratification_standing,
    root_standing,
    standing_of,
)
from publisher.walk import NextStep, asked_back, check_step, due_steps, next_due_ms, next_steps

# A refusal that time may lift (a freeze, a budget, a rate) is looked at this often: people do not notice more.
LOOK_AGAIN_MS: Final = 30_000
# After another entry, a refusal may be outdated at once: the next part of an import, say. One judgement takes about a
# millisecond; a thousand refused ones must not take a publisher's whole time for every entry.
LOOK_AFTER_ENTRY_MS: Final = 1_000
# A living sidecar acknowledges an entry within a second, and every 30 s whatever happens: who has not said a word of a
# preparation after two of these intervals will not be waited for.
ACKNOWLEDGED_WITHIN_MS: Final = 60_000
# Instances that are named in a refusal; `flaghoist fleet` has them all.
_MISSING_SHOWN_MAX: Final = 5


class MotionKind(StrEnum):
    """What a motion is about; the order of publishing."""

    EMERGENCY = "emergency"
    ROOT = "root"
    RATIFICATION = "ratification"
    PREPARATION = "preparation"  # of a change, in its turn
    CHANGE = "change"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class Motion:
    """One entry to append: `name` is what people call it, `sha256` the digest of what it carries."""

    kind: MotionKind
    name: str
    sha256: bytes
    body: Body


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that enough people stand behind, and that is not published all the same."""

    kind: MotionKind
    name: str
    status: Status
    refusal: FlaghoistError


@dataclass(frozen=True, slots=True)
class _Look:
    """When a case was judged last, and on what.

    Attributes:
        seen: the statements, signatures and whatever else it rested on; None: it was refused when it was sent.
        again_ms: when time alone makes it worth another look (Unix ms).
    """

    seen: tuple[object, ...] | None
    head: int
    at_ms: int
    again_ms: int
    final: bool
    told: str


@dataclass(frozen=True, slots=True)
class _Due:
    """What is worth a judgement.

    Attributes:
        seen: what the judgement rests on, besides the ledger and the time.
        held_by: of a step, the proposals that ask the release back.
    """

    kind: MotionKind
    subject: Case | RootCase | NextStep
    seen: tuple[object, ...]
    held_by: tuple[Case, ...] = ()


class Docket:
    """The queue of one publisher.

    Attributes:
        news: refusals since somebody last took them from here; each is told once, until it changes.
        fleet: what sidecars say of themselves, read to the end of their stream; None while it was not.
    """

    def __init__(self, reader: LedgerReader) -> None:
        self.news: list[Refusal] = []
        self.fleet: Fleet | None = None
        self._reader = reader
        self._looks: dict[bytes, _Look] = {}
        # Digest of a prepared proposal: since when acknowledgements of it are awaited here (Unix ms).
        self._awaited_since: dict[bytes, int] = {}

    @property
    def _ledger(self) -> Ledger:
        return self._reader.ledger

    def next(self, inbox: Inbox, *, now_ms: int, complete: bool = True) -> Motion | None:
        """Return what to append now; None when there is nothing.

        Args:
            complete: the inbox was read to its end. Before that no change is published and no release goes on: somebody
                may have rejected it, or asked it back, further on. Nothing holds up an emergency.

        Raises:
            ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
        """
        only_roots = self._ledger.quarantined_by is not None or now_ms > self._ledger.root.record.expires_at
        for due in self._due(inbox, complete=complete, only_roots=only_roots, now_ms=now_ms):
            standing = self._judged(due, now_ms)
            if standing.status is Status.READY and standing.body is not None:
                kind = MotionKind.PREPARATION if isinstance(standing.body, Preparation) else due.kind
                return Motion(kind, _name(due.subject), due.subject.sha256, standing.body)
            self._remember(due, standing, now_ms)
        return None

    def wakes_at_ms(self, *, now_ms: int) -> int | None:
        """Return when time alone may bring something to append (Unix ms), if nothing else happens; None: never."""
        found = [look.again_ms for look in self._looks.values() if not look.final and look.again_ms > now_ms]
        if (due_ms := next_due_ms(self._ledger, after_ms=now_ms)) is not None:
            found.append(due_ms)
        return min(found, default=None)

    def awaits_fleet(self, inbox: Inbox, *, now_ms: int) -> bool:
        """Say whether a proposal waits for sidecars to acknowledge its preparation."""
        return next(self._prepared(inbox, now_ms), None) is not None

    def acknowledged(self, inbox: Inbox, *, now_ms: int) -> frozenset[bytes]:
        """Return the digests of the prepared proposals that enough of the fleet has acknowledged."""
        found = ((case, self._reached(case, now_ms)) for case in self._prepared(inbox, now_ms))
        return frozenset(case.sha256 for case, reached in found if reached is not None and _enough(reached, case))

    def take_news(self) -> list[Refusal]:
        """Return the refusals since the last call."""
        news, self.news = self.news, []
        return news

    def refuse(self, motion: Motion, refusal: FlaghoistError, *, now_ms: int) -> None:
        """Note that a motion was not taken after all, so that it is not tried again at once."""
        self._look(motion.sha256, None, now_ms=now_ms)
        self._tell(Refusal(motion.kind, motion.name, Status.REFUSED, refusal), motion.sha256)

    def prune(self, inbox: Inbox) -> None:
        """Forget what was thought of cases that are gone."""
        here = {case.sha256 for case in inbox} | {case.sha256 for case in inbox.roots} | self._ledger.unratified.keys()
        here |= {step.sha256 for step in next_steps(self._ledger.snapshot)}
        self._looks = {sha256: look for sha256, look in self._looks.items() if sha256 in here}
        self._awaited_since = {sha256: since for sha256, since in self._awaited_since.items() if sha256 in here}

    def _due(self, inbox: Inbox, *, complete: bool, only_roots: bool, now_ms: int) -> Iterator[_Due]:
        """Yield what is worth a judgement, in the order of publishing."""
        published, root = self._reader.published, self._ledger.root
        unpublished = [case for case in inbox if case.sha256 not in published]
        waiting = [] if only_roots else unpublished
        for case in waiting:
            if case.proposal.kind is ProposalKind.EMERGENCY and self._worth(case.sha256, (), now_ms):
                yield _Due(MotionKind.EMERGENCY, case, ())
        for named in inbox.roots:
            if self._worth(named.sha256, named.envelope.signatures, now_ms):
                yield _Due(MotionKind.ROOT, named, named.envelope.signatures)
        if not complete:
            return
        for emergency in [] if only_roots else list(self._ledger.unratified.values()):
            case = emergency_case(emergency, self._reader, inbox)
            if self._worth(case.sha256, case.approvals, now_ms):
                yield _Due(MotionKind.RATIFICATION, case, case.approvals)
        for case in waiting:
            if case.proposal.kind is ProposalKind.EMERGENCY or approvals_lack(case, root, now_ms):
                continue
            reached = self._reached(case, now_ms)
            seen = (*case.approvals, reached is not None and _enough(reached, case))
            if self._worth(case.sha256, seen, now_ms):
                yield _Due(MotionKind.CHANGE, case, seen)
        yield from self._due_steps(unpublished, now_ms)

    def _due_steps(self, unpublished: Sequence[Case], now_ms: int) -> Iterator[_Due]:
        """Yield the steps of releases that are due, whatever holds them: it is told why one does not go on."""
        due = due_steps(self._ledger, now_ms=now_ms)
        # A large import waits, say: its thousands of ops are looked through once, and only when a step is due.
        about = [case for case in unpublished if due and any(op.target is Target.RELEASE for op in case.proposal.ops)]
        for step in due:
            release = self._ledger.snapshot.releases[step.release]
            asked = asked_back(about, release, now_ms=now_ms)
            held_by = tuple(case for case in asked if not _rejected(case, now_ms))
            seen = tuple(case.sha256 for case in held_by)
            if self._worth(step.sha256, seen, now_ms):
                yield _Due(MotionKind.STEP, step, seen, held_by)

    def _worth(self, sha256: bytes, seen: tuple[object, ...], now_ms: int) -> bool:
        look = self._looks.get(sha256)
        if look is None or (look.seen is not None and look.seen != seen):
            return True
        if look.final:
            return False
        moved = look.head != self._ledger.head.seq.number
        return now_ms >= (min(look.at_ms + LOOK_AFTER_ENTRY_MS, look.again_ms) if moved else look.again_ms)

    def _judged(self, due: _Due, now_ms: int) -> Standing:
        subject = due.subject
        if isinstance(subject, RootCase):
            return root_standing(subject, self._ledger, now_ms=now_ms)
        if isinstance(subject, NextStep):
            return step_standing(subject, due.held_by, self._ledger, now_ms=now_ms)
        if due.kind is MotionKind.RATIFICATION:
            emergency = self._ledger.unratified[subject.sha256]
            return ratification_standing(subject, emergency, self._ledger, now_ms=now_ms)
        standing = standing_of(subject, self._reader, now_ms=now_ms)
        if standing.status is not Status.READY or subject.proposal.acked_percent is None:
            return standing
        return self._once_acknowledged(subject, standing, now_ms)

    # --- what the fleet must acknowledge first ---

    def _prepared(self, inbox: Inbox, now_ms: int) -> Iterator[Case]:
        """Yield the cases that were prepared and can still be published."""
        for case in inbox:
            if case.proposal.acked_percent is None or not self._ledger.is_prepared(case.sha256):
                continue
            if case.sha256 not in self._reader.published and now_ms <= case.proposal.expires_at:
                yield case

    def _reached(self, case: Case, now_ms: int) -> Reached | None:
        """Return how much of the fleet has acknowledged a case's preparation; None while that is not known."""
        if self.fleet is None or not self._ledger.is_prepared(case.sha256):
            return None
        return self.fleet.reached(self._reader.prepared[case.sha256].entry.seq, now_ms=now_ms)

    def _once_acknowledged(self, case: Case, ready: Standing, now_ms: int) -> Standing:
        """Return the standing of a case that is ready but for its preparation, and the fleet's answer to that."""
        if to_prepare(self._ledger, case):
            assert isinstance(ready.body, Release)  # noqa: S101 — what a case that is ready is published by
            return replace(ready, body=Preparation(ready.body))
        reached = self._reached(case, now_ms)
        if reached is not None and _enough(reached, case):
            return ready
        since_ms = self._awaited_since.setdefault(case.sha256, now_ms)
        refusal = _not_reached(case, self._reader.prepared[case.sha256].entry.seq, reached)
        over = now_ms >= since_ms + ACKNOWLEDGED_WITHIN_MS
        return replace(ready, status=Status.REFUSED if over else Status.WAITING, body=None, refusal=refusal)

    # --- what is remembered ---

    def _remember(self, due: _Due, standing: Standing, now_ms: int) -> None:
        sha256 = due.subject.sha256
        final = standing.status in (Status.EXPIRED, Status.PUBLISHED) or self._stays_stale(due.subject, standing)
        again_ms = now_ms + LOOK_AGAIN_MS
        if isinstance(due.subject, Case) and standing.status is Status.SCHEDULED:
            assert due.subject.proposal.activate_at is not None  # noqa: S101 — else it has no moment
            again_ms = published_from_ms(due.subject.proposal.activate_at)
        elif standing.status is Status.WAITING and sha256 in self._awaited_since:
            again_ms = min(again_ms, self._awaited_since[sha256] + ACKNOWLEDGED_WITHIN_MS)
        self._look(sha256, due.seen, now_ms=now_ms, again_ms=again_ms, final=final)
        if standing.refusal is not None and standing.status not in (Status.WAITING, Status.OVERDUE):
            self._tell(Refusal(due.kind, _name(due.subject), standing.status, standing.refusal), sha256)

    def _look(
        self,
        sha256: bytes,
        seen: tuple[object, ...] | None,
        *,
        now_ms: int,
        again_ms: int | None = None,
        final: bool = False,
    ) -> None:
        before = self._looks.get(sha256)
        self._looks[sha256] = _Look(
            seen=seen,
            head=self._ledger.head.seq.number,
            at_ms=now_ms,
            again_ms=now_ms + LOOK_AGAIN_MS if again_ms is None else again_ms,
            final=final,
            told="" if before is None else before.told,
        )

    def _stays_stale(self, subject: Case | RootCase | NextStep, standing: Standing) -> bool:
        """Whether a flag has gone on since the proposal: versions only grow, so it can never be published."""
        if not isinstance(subject, Case) or not isinstance(standing.refusal, StaleBase):
            return False
        snapshot = self._ledger.snapshot
        return any(op.expected_version < snapshot.version_of(op.state_id) for op in subject.proposal.ops)

    def _tell(self, refusal: Refusal, sha256: bytes) -> None:
        # How many have acknowledged goes up and down; that it was given up is told once.
        told = "" if isinstance(refusal.refusal, NotReached) else f": {refusal.refusal}"
        look, text = self._looks[sha256], f"{refusal.refusal.code}{told}"
        if look.told != text:
            self._looks[sha256] = replace(look, told=text)
            self.news.append(refusal)


def step_standing(due: NextStep, held_by: Sequence[Case], ledger: Ledger, *, now_ms: int) -> Standing:
    """Return where the next step of a release stands that is due.

    Args:
        held_by: proposals that ask the release back.

    Raises:
        ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
    """
    try:
        check_step(ledger, due, held_by, now_ms=now_ms)
    except Refused as refusal:
        return Standing(Status.REFUSED, why=str(refusal), refusal=refusal)
    return Standing(Status.READY, body=due.step)


def _enough(reached: Reached, case: Case) -> bool:
    return reached.enough(_percent(case))


def _not_reached(case: Case, seq: Seq, reached: Reached | None) -> NotReached:
    wanted = f"proposal {case.id}: want seq {seq}, which prepares it, acknowledged by {_percent(case)} % of the fleet"
    if reached is None:
        return NotReached(f"{wanted}; the stream of acknowledgements could not be read")
    missing = ", ".join(reached.waiting_for[:_MISSING_SHOWN_MAX])
    more = len(reached.waiting_for) - _MISSING_SHOWN_MAX
    others = f"; not by {missing}" + (f" and {more} more" if more > 0 else "") if missing else ""
    return NotReached(f"{wanted}, got {reached.done} of {reached.live} living sidecars{others}")


def _percent(case: Case) -> int:
    """Return how much of the fleet must acknowledge a case first; 0: nobody need."""
    return case.proposal.acked_percent or 0


def _rejected(case: Case, now_ms: int) -> bool:
    return any(approval.decision is Decision.REJECT for approval in counting(case, now_ms))


def _name(subject: Case | RootCase | NextStep) -> str:
    if isinstance(subject, NextStep):
        return str(subject.release)
    return f"root version {subject.root.version}" if isinstance(subject, RootCase) else subject.id
