"""Everything that ever happened to one release, entry by entry, from the verified links of the chain. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from flaghoist.authorization import Authorized
from flaghoist.outcomes import Applied, Link, Prepared, Ratified, Stepped
from flaghoist.records import Op, Release
from flaghoist.release_plan import CLOSED, ReleasePlan, parse_drill, parse_release
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Target
from publisher.documents import ops_of
from publisher.releases.wording import moved, stepped


@dataclass(frozen=True, slots=True)
class Event:
    """One entry that concerns a release.

    Attributes:
        kind: `change`, `rollback`, `emergency`, `step`, `preparation`, `ratification` or `drill`.
        what: in words: `10 % → 50 %`.
        in_force_at_ms: from when on it was in force (Unix ms); None: it did not change the release.
        authorized: who asked and who approved; None for a step.
        rule: the policy's rule that allowed it; "" for a step.
        allowed_by: of a step, the entry that said so: the last one that people approved.
        before: the release before it.
        after: the release after it; None: there is none any more.
    """

    seq: Seq
    published_at: int
    kind: str
    what: str
    in_force_at_ms: int | None
    authorized: Authorized | None
    rule: str
    allowed_by: Seq | None
    before: ReleasePlan | None
    after: ReleasePlan | None

    def people(self) -> str:
        """Return who stands behind it, in words."""
        if self.authorized is None:
            return f"by the publisher, as seq {self.allowed_by} allows"
        proposal = self.authorized.proposal
        approved = f", approved by {', '.join(self.authorized.approvers)}" if self.authorized.approvers else ""
        return f"asked by {proposal.requester}{approved}"

    def fields(self) -> dict[str, object]:
        """Return it as JSON fields; times are Unix milliseconds."""
        proposal = None if self.authorized is None else self.authorized.proposal
        return {
            "seq": self.seq.number,
            "published_at": self.published_at,
            "in_force_at": self.in_force_at_ms,
            "kind": self.kind,
            "what": self.what,
            "requester": None if proposal is None else proposal.requester,
            "approvers": [] if self.authorized is None else list(self.authorized.approvers),
            "rule": self.rule or None,
            "allowed_by_seq": None if self.allowed_by is None else self.allowed_by.number,
            "proposal": None if proposal is None else proposal.proposal_id,
            "title": None if proposal is None else proposal.title,
            "reason": None if proposal is None else proposal.reason,
            "ticket": None if proposal is None else proposal.ticket,
        }


def chronicle(links: Iterable[Link], key: FlagKey) -> list[Event]:
    """Return what happened to a release, oldest first; also to earlier ones of the same id."""
    return list(_events(links, key))


def _events(links: Iterable[Link], key: FlagKey) -> Iterator[Event]:
    plan: ReleasePlan | None = None
    approved: Seq | None = None  # the last entry on the release that people have signed
    emergencies: dict[bytes, Seq] = {}
    for link in links:
        match link:
            case Applied() | Stepped():
                for op in ops_of(link):
                    if op.key != key or op.source:
                        continue
                    if op.target is Target.DRILL:
                        yield _event(link, _drilled(op), None, plan, plan)
                    elif op.target is Target.RELEASE:
                        after = _after(plan, op)
                        yield _event(link, _what(link, plan, after), approved, plan, after)
                        plan = after
                        if isinstance(link, Applied):
                            approved = link.entry.seq
                            emergencies[link.authorized.sha256] = link.entry.seq
            case Prepared():
                if any(op.target is Target.RELEASE and op.key == key for op in link.authorized.proposal.ops):
                    percent = link.authorized.proposal.acked_percent
                    yield _event(link, f"prepared: waits until {percent} % of the fleet have it", None, plan, plan)
            case Ratified():
                if (seq := emergencies.get(link.authorized.sha256)) is not None:
                    yield _event(link, f"ratified the emergency of seq {seq}", None, plan, plan)
            case _:
                pass


def _after(before: ReleasePlan | None, op: Op) -> ReleasePlan | None:
    if op.action is Action.KILL:
        assert before is not None  # noqa: S101 — the fold kills what is there
        return replace(before, gate=CLOSED)
    return None if op.definition is None else parse_release(op.definition)


def _what(link: Applied | Stepped, before: ReleasePlan | None, after: ReleasePlan | None) -> str:
    if isinstance(link, Stepped) and before is not None and after is not None:
        return stepped(before, after)
    emergency = isinstance(link, Applied) and link.authorized.proposal.kind is ProposalKind.EMERGENCY
    return f"emergency: {moved(before, after)}" if emergency else moved(before, after)


def _drilled(op: Op) -> str:
    if op.definition is None:
        return "drill deleted"
    said = parse_drill(op.definition)
    if said.get("result") is not None:
        return "drill: result recorded"
    return f"drill: shadow gate {'opened' if said['hoisted'] else 'closed'}; nobody's answers changed"


def _event(
    link: Applied | Stepped | Prepared | Ratified,
    what: str,
    approved: Seq | None,
    before: ReleasePlan | None,
    after: ReleasePlan | None,
) -> Event:
    entry = link.entry
    changes = isinstance(link, Applied | Stepped) and before != after
    moment_ms = link.in_force_at_ms if isinstance(link, Applied | Stepped) else 0
    return Event(
        seq=entry.seq,
        published_at=entry.published_at,
        kind=_kind(link),
        what=what,
        in_force_at_ms=(moment_ms or entry.published_at) if changes else None,
        authorized=None if isinstance(link, Stepped) else link.authorized,
        rule=entry.body.policy if isinstance(entry.body, Release) else "",
        allowed_by=approved if isinstance(link, Stepped) else None,
        before=before,
        after=after,
    )


def _kind(link: Applied | Stepped | Prepared | Ratified) -> str:
    match link:
        case Stepped():
            return "step"
        case Prepared():
            return "preparation"
        case Ratified():
            return "ratification"
        case Applied():
            return str(link.authorized.proposal.kind).lower()
