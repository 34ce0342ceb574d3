"""Whether the right people asked for and approved exactly these bytes: one answer for publisher, sidecar and audit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flaghoist.codec import APPROVAL, PROPOSAL, RecordCodec
from flaghoist.errors import (
    BadDefinition,
    Expired,
    Malformed,
    NotApproved,
    NotYet,
    Refused,
    SamePerson,
    SignatureRefused,
    WrongLog,
    WrongRole,
)
from flaghoist.records import Approval, Envelope, Proposal, Release
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.root import Root
from flaghoist.signing import digest
from flaghoist.values import Action, Decision, Person, ProposalKind, Role, Seq, Target

# Long enough for a publisher to take over; short, so that nobody can keep a kill for another day.
EMERGENCY_LIFE_MS_MAX: Final = 10 * 60_000
# The flags of one large release; a stolen emergency key should not turn off everything at once.
EMERGENCY_FLAGS_MAX: Final = 50


class NotUnderstood(Refused):
    """A record that asks for what only a newer release can do; it must not be skipped, since it changes state."""

    code = "not_understood"
    hint = "install the release of Flaghoist that wrote it"


@dataclass(frozen=True, slots=True)
class Authorized:
    """A proposal that its requester signed, and the people whose approvals of exactly these bytes count."""

    proposal: Proposal
    sha256: bytes
    approvals: tuple[Approval, ...]

    @property
    def approvers(self) -> tuple[Person, ...]:
        return tuple(approval.approver for approval in self.approvals)


def verified_proposal(root: Root, envelope: Envelope) -> Proposal:
    """Return the proposal in an envelope: of this ledger, signed by the person who it says asks, in the role it takes.

    Raises:
        SignatureRefused, Malformed, WrongLog, WrongRole: it is not.
    """
    _want_type(PROPOSAL, envelope)
    keys = root.signers_in((Role.REQUESTER, Role.EMERGENCY), envelope)
    proposal = PROPOSAL.decode(envelope.payload)
    if proposal.log_id != root.log_id:
        raise WrongLog(expected=root.log_id, got=proposal.log_id)
    role = role_asking(proposal.kind)
    people = {key.person for key in keys if key.key_id in root.grant(role).key_ids}
    if proposal.requester not in people:
        signed = ", ".join(sorted(f"{key.person} ({key.key_id})" for key in keys))
        raise WrongRole(
            f"proposal {proposal.proposal_id}: {proposal.kind} by {proposal.requester}, want a signature by a key of "
            f"theirs with role {role}, got {signed}"
        )
    return proposal


def role_asking(kind: ProposalKind) -> Role:
    """Return the role whose key must sign a proposal of this kind."""
    return Role.EMERGENCY if kind is ProposalKind.EMERGENCY else Role.REQUESTER


def verified_approval(root: Root, envelope: Envelope) -> Approval:
    """Return the approval (or rejection) in an envelope: of this ledger, signed by the approver it names.

    Raises:
        SignatureRefused, Malformed, WrongLog, WrongRole: it is not.
    """
    _want_type(APPROVAL, envelope)
    keys = root.signers_in((Role.APPROVER,), envelope)
    approval = APPROVAL.decode(envelope.payload)
    if approval.log_id != root.log_id:
        raise WrongLog(expected=root.log_id, got=approval.log_id)
    if approval.approver not in {key.person for key in keys}:
        raise WrongRole(f"approval by {approval.approver}, signed by {', '.join(sorted(k.person for k in keys))}")
    return approval


def stands_alone(kind: ProposalKind) -> bool:
    """Say whether a proposal of this kind is published without anybody's approval: nothing may hold up a kill, and a
    rehearsal changes no answer."""
    return kind in (ProposalKind.EMERGENCY, ProposalKind.DRILL)


def check_understood(proposal: Proposal) -> None:
    """Refuse what this release cannot carry out.

    Raises:
        NotUnderstood: an op that a newer release must apply.
    """
    for op in proposal.ops:
        if op.target is Target.POLICY:
            raise NotUnderstood(f"proposal {proposal.proposal_id}: op {op.action} of {op.target}")


def check_kind(proposal: Proposal) -> None:
    """Refuse a kill outside of an emergency, an emergency that is anything but a kill, and likewise for a drill.

    Raises:
        BadDefinition: so it is; an emergency names too many flags, or may wait too long; a moment that cannot be.
    """
    where = f"proposal {proposal.proposal_id}"
    _check_moment(proposal, where)
    if any((op.target is Target.DRILL) is not (proposal.kind is ProposalKind.DRILL) for op in proposal.ops):
        raise BadDefinition(where, f"want ops on DRILL, and nothing else, in a DRILL, got them in a {proposal.kind}")
    if proposal.kind is ProposalKind.DRILL and proposal.min_pin > Seq(0):
        raise BadDefinition(where, f"want a DRILL without a min_pin: nobody approves it, got {proposal.min_pin}")
    kills = [op for op in proposal.ops if op.action is Action.KILL]
    if proposal.kind is not ProposalKind.EMERGENCY:
        if kills:
            raise BadDefinition(where, f"want KILL in an EMERGENCY only, got it in a {proposal.kind}")
        return
    if len(kills) != len(proposal.ops):
        raise BadDefinition(where, "want an EMERGENCY to kill flags and releases and do nothing else")
    if len(kills) > EMERGENCY_FLAGS_MAX:
        raise BadDefinition(
            where, f"want at most {EMERGENCY_FLAGS_MAX} flags and releases in one EMERGENCY, got {len(kills)}"
        )
    life_ms = proposal.expires_at - proposal.created_at
    if life_ms > EMERGENCY_LIFE_MS_MAX:
        raise BadDefinition(where, f"want an EMERGENCY to live at most {EMERGENCY_LIFE_MS_MAX} ms, got {life_ms}")


def _check_moment(proposal: Proposal, where: str) -> None:
    if proposal.activate_at is None and proposal.lead_ms is None and proposal.acked_percent is None:
        return
    if proposal.kind in (ProposalKind.EMERGENCY, ProposalKind.DRILL):
        raise BadDefinition(where, f"want a {proposal.kind} without a moment: it takes effect at once")
    if proposal.activate_at is not None and proposal.lead_ms is not None:
        raise BadDefinition(where, "want activate_at or lead_ms, got both")
    if proposal.lead_ms is not None and not 0 < proposal.lead_ms <= LEAD_MS_MAX:
        raise BadDefinition(where, f"want a lead_ms of 1 .. {LEAD_MS_MAX}, got {proposal.lead_ms}")
    if proposal.acked_percent is not None and not 0 < proposal.acked_percent <= 100:
        raise BadDefinition(where, f"want an acked_percent of 1 .. 100, got {proposal.acked_percent}")


def moment_of(proposal: Proposal, *, at_ms: int) -> int:
    """Return when a proposal takes effect that is published at `at_ms` (both Unix ms); 0: at once.

    Raises:
        Expired: its moment is over.
        NotYet: its moment is further ahead than an entry may wait.
    """
    if proposal.lead_ms is not None:
        return at_ms + proposal.lead_ms
    moment = proposal.activate_at
    if moment is None:
        return 0
    what = f"proposal {proposal.proposal_id} takes effect at {moment}, published at {at_ms} (Unix ms)"
    if at_ms > moment:
        raise Expired(f"{what}: its moment was over", hint="propose it again with a later moment")
    if at_ms < moment - LEAD_MS_MAX:
        raise NotYet(
            f"{what}: want it published at most {LEAD_MS_MAX} ms ahead",
            hint="publish it then, or leave it to a publisher's service, which waits for it",
        )
    return moment


def authorize(root: Root, release: Release, *, at_ms: int) -> Authorized:
    """Return what a release changes and who allowed it.

    Every approval in a release must count: one that does not is a sign that somebody assembled it wrongly.

    Args:
        at_ms: when it was published (the entry's `published_at`), so that a replay judges as the first reader did.

    Raises:
        NotUnderstood: what it asks for needs a newer release of Flaghoist.
        BadDefinition: as `check_kind`; or an emergency is dated ahead.
        SamePerson, NotApproved, Expired, SignatureRefused, Malformed, WrongLog, WrongRole: it is not allowed.
    """
    proposal = verified_proposal(root, release.proposal)
    check_understood(proposal)
    check_kind(proposal)
    if at_ms > proposal.expires_at:
        raise Expired(
            f"proposal {proposal.proposal_id} expired at {proposal.expires_at}, published at {at_ms} (Unix ms)"
        )
    sha256 = digest(release.proposal)
    if proposal.kind is ProposalKind.EMERGENCY:
        # Dated ahead it could wait for as long; clocks may differ by its life, so that none of them delays a kill.
        if proposal.created_at > at_ms + EMERGENCY_LIFE_MS_MAX:
            raise BadDefinition(
                f"proposal {proposal.proposal_id}",
                f"want an EMERGENCY created at most {EMERGENCY_LIFE_MS_MAX} ms after it is published at {at_ms}, "
                f"got {proposal.created_at} (Unix ms)",
                hint="set the clock of the machine that signed it, and kill again",
            )
        if release.approvals:
            raise NotApproved(
                f"proposal {proposal.proposal_id}: want an EMERGENCY without approvals, got {len(release.approvals)}",
                hint="approvals of an emergency are published as its ratification",
            )
        return Authorized(proposal, sha256, ())
    if proposal.kind is ProposalKind.DRILL:
        if release.approvals:
            raise NotApproved(
                f"proposal {proposal.proposal_id}: want a DRILL without approvals, got {len(release.approvals)}",
                hint="it changes no answer, so nobody need approve it",
            )
        return Authorized(proposal, sha256, ())
    return Authorized(proposal, sha256, counted_approvals(root, proposal, sha256, release.approvals, at_ms=at_ms))


def counted_approvals(
    root: Root, proposal: Proposal, sha256: bytes, envelopes: Sequence[Envelope], *, at_ms: int
) -> tuple[Approval, ...]:
    """Return the approvals in these envelopes: all of them count, and they are as many people as the root asks for.

    Args:
        sha256: digest of the proposal as it was signed.
        at_ms: as for `authorize`.

    Raises:
        SamePerson, NotApproved, Expired, SignatureRefused, Malformed, WrongLog, WrongRole: one does not count, or they
            are too few.
    """
    approvals = [verified_approval(root, envelope) for envelope in envelopes]
    for approval in approvals:
        _check_counts(approval, proposal, sha256, at_ms)
    _check_people(root, proposal, approvals)
    return tuple(approvals)


def _want_type(codec: RecordCodec[Proposal] | RecordCodec[Approval], envelope: Envelope) -> None:
    if envelope.payload_type != codec.payload_type:
        raise Malformed(f"want {codec.payload_type}, got {envelope.payload_type[:100]!r}")


def _check_counts(approval: Approval, proposal: Proposal, sha256: bytes, at_ms: int) -> None:
    if approval.proposal_sha256 != sha256:
        raise SignatureRefused(
            f"{approval.approver} approved a proposal with digest {approval.proposal_sha256.hex()}, "
            f"this one has {sha256.hex()}: it was edited after the approval, or the approval is of another"
        )
    if approval.decision is not Decision.APPROVE:
        raise NotApproved(
            f"{approval.approver} rejected proposal {proposal.proposal_id}: {approval.comment or 'no comment'}",
            hint="settle it with them; they may approve later, or propose again",
        )
    if approval.approver == proposal.requester:
        raise SamePerson(f"{approval.approver} both requested and approved proposal {proposal.proposal_id}")
    if at_ms > approval.expires_at:
        raise Expired(
            f"the approval by {approval.approver} expired at {approval.expires_at}, published at {at_ms} (Unix ms)",
            hint=f"ask {approval.approver} to approve again",
        )


def _check_people(root: Root, proposal: Proposal, approvals: Sequence[Approval]) -> None:
    people = {approval.approver for approval in approvals}
    if len(people) != len(approvals):
        raise NotApproved(f"proposal {proposal.proposal_id}: one person's approval is given twice")
    threshold = root.grant(Role.APPROVER).threshold
    if len(people) < threshold:
        others = ", ".join(sorted(root.people_of(Role.APPROVER) - people - {proposal.requester})) or "nobody"
        raise NotApproved(
            f"proposal {proposal.proposal_id}: want approvals of {threshold} people other than {proposal.requester}, "
            f"got {len(people)} ({', '.join(sorted(people)) or 'none'}); {others} may approve",
        )
