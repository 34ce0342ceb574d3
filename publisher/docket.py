"""What a publisher does next: emergencies first, then roots, ratifications, and changes in the order they came.

Pure. What was refused is remembered, and looked at again when something has changed that may matter to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from flaghoist.errors import FlaghoistError, StaleBase
from flaghoist.ledger import Ledger
from flaghoist.records import Body
from flaghoist.values import ProposalKind
from publisher.inbox import Case, Inbox, RootCase
from publisher.reader import LedgerReader
from publisher.standing import (
    Standing,
    Status,
    approvals_lack,
    emergency_case,
    ratification_standing,
    root_standing,
    standing_of,
)

# A refusal that time may lift (a freeze, a budget, a rate) is looked at this often: people do not notice more.
LOOK_AGAIN_MS: Final = 30_000
# After another entry, a refusal may be outdated at once: the next part of an import, say. One judgement takes about a
# millisecond; a thousand refused ones must not take a publisher's whole time for every entry.
LOOK_AFTER_ENTRY_MS: Final = 1_000


class MotionKind(StrEnum):
    """What a motion is about; the order of publishing."""

    EMERGENCY = "emergency"
    ROOT = "root"
    RATIFICATION = "ratification"
    CHANGE = "change"


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
    """When a case was judged last, and on which statements or signatures; None: it was refused when it was sent."""

    subject: tuple[object, ...] | None
    head: int
    at_ms: int
    final: bool
    told: str


class Docket:
    """The queue of one publisher.

    Attributes:
        news: refusals since somebody last took them from here; each is told once, until it changes.
    """

    def __init__(self, reader: LedgerReader) -> None:
        self.news: list[Refusal] = []
        self._reader = reader
        self._looks: dict[bytes, _Look] = {}

    @property
    def _ledger(self) -> Ledger:
        return self._reader.ledger

    def next(self, inbox: Inbox, *, now_ms: int, complete: bool = True) -> Motion | None:
        """Return what to append now; None when there is nothing.

        Args:
            complete: the inbox was read to its end. Before that no change is published: somebody may have rejected it
                further on. Nothing holds up an emergency.

        Raises:
            ZoneMissing: the policy has a freeze in a time zone of which this machine has no data.
        """
        only_roots = self._ledger.quarantined_by is not None or now_ms > self._ledger.root.record.expires_at
        for kind, subject in self._due(inbox, complete=complete, only_roots=only_roots, now_ms=now_ms):
            standing = self._judged(kind, subject, now_ms)
            if standing.status is Status.READY and standing.body is not None:
                return Motion(kind, _name(subject), subject.sha256, standing.body)
            self._remember(kind, subject, standing, now_ms)
        return None

    def take_news(self) -> list[Refusal]:
        """Return the refusals since the last call."""
        news, self.news = self.news, []
        return news

    def refuse(self, motion: Motion, refusal: FlaghoistError, *, now_ms: int) -> None:
        """Note that a motion was not taken after all, so that it is not tried again at once."""
        before = self._looks.get(motion.sha256)
        told = before.told if before is not None else ""
        self._looks[motion.sha256] = _Look(None, self._ledger.head.seq.number, now_ms, False, told)
        self._tell(Refusal(motion.kind, motion.name, Status.REFUSED, refusal), motion.sha256)

    def prune(self, inbox: Inbox) -> None:
        """Forget what was thought of cases that are gone."""
        here = {case.sha256 for case in inbox} | {case.sha256 for case in inbox.roots} | self._ledger.unratified.keys()
        self._looks = {sha256: look for sha256, look in self._looks.items() if sha256 in here}

    def _due(
        self, inbox: Inbox, *, complete: bool, only_roots: bool, now_ms: int
    ) -> Iterator[tuple[MotionKind, Case | RootCase]]:
        """Yield what is worth a judgement, in the order of publishing."""
        published, root = self._reader.published, self._ledger.root
        waiting = [] if only_roots else [case for case in inbox if case.sha256 not in published]
        for case in waiting:
            if case.proposal.kind is ProposalKind.EMERGENCY and self._worth(case.sha256, (), now_ms):
                yield MotionKind.EMERGENCY, case
        for named in inbox.roots:
            if self._worth(named.sha256, named.envelope.signatures, now_ms):
                yield MotionKind.ROOT, named
        if only_roots or not complete:
            return
        for emergency in list(self._ledger.unratified.values()):
            case = emergency_case(emergency, self._reader, inbox)
            if self._worth(case.sha256, case.approvals, now_ms):
                yield MotionKind.RATIFICATION, case
        for case in waiting:
            if case.proposal.kind is ProposalKind.EMERGENCY or approvals_lack(case, root, now_ms):
                continue
            if self._worth(case.sha256, case.approvals, now_ms):
                yield MotionKind.CHANGE, case

    def _worth(self, sha256: bytes, subject: tuple[object, ...], now_ms: int) -> bool:
        look = self._looks.get(sha256)
        if look is None or (look.subject is not None and look.subject != subject):
            return True
        if look.final:
            return False
        moved = look.head != self._ledger.head.seq.number
        return now_ms - look.at_ms >= (LOOK_AFTER_ENTRY_MS if moved else LOOK_AGAIN_MS)

    def _judged(self, kind: MotionKind, subject: Case | RootCase, now_ms: int) -> Standing:
        if isinstance(subject, RootCase):
            return root_standing(subject, self._ledger, now_ms=now_ms)
        if kind is MotionKind.RATIFICATION:
            emergency = self._ledger.unratified[subject.sha256]
            return ratification_standing(subject, emergency, self._ledger, now_ms=now_ms)
        return standing_of(subject, self._reader, now_ms=now_ms)

    def _remember(self, kind: MotionKind, subject: Case | RootCase, standing: Standing, now_ms: int) -> None:
        seen = subject.envelope.signatures if isinstance(subject, RootCase) else subject.approvals
        if kind is MotionKind.EMERGENCY:
            seen = ()
        before = self._looks.get(subject.sha256)
        final = standing.status in (Status.EXPIRED, Status.PUBLISHED) or self._stays_stale(subject, standing)
        told = before.told if before is not None else ""
        self._looks[subject.sha256] = _Look(tuple(seen), self._ledger.head.seq.number, now_ms, final, told)
        if standing.refusal is not None and standing.status not in (Status.WAITING, Status.OVERDUE):
            self._tell(Refusal(kind, _name(subject), standing.status, standing.refusal), subject.sha256)

    def _stays_stale(self, subject: Case | RootCase, standing: Standing) -> bool:
        """Whether a flag has gone on since the proposal: versions only grow, so it can never be published."""
        if isinstance(subject, RootCase) or not isinstance(standing.refusal, StaleBase):
            return False
        snapshot = self._ledger.snapshot
        return any(op.expected_version < snapshot.version_of(op.state_id) for op in subject.proposal.ops)

    def _tell(self, refusal: Refusal, sha256: bytes) -> None:
        look, text = self._looks[sha256], f"{refusal.refusal.code}: {refusal.refusal}"
        if look.told != text:
            self._looks[sha256] = _Look(look.subject, look.head, look.at_ms, look.final, text)
            self.news.append(refusal)


def _name(subject: Case | RootCase) -> str:
    return f"root version {subject.root.version}" if isinstance(subject, RootCase) else subject.id
