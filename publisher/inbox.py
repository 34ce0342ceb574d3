"""What waits to be published: proposals, roots, and what people say of them, folded from records that anyone may write.

Pure; the shell reads the inbox stream (or files) and hands over the bytes. Each record is verified once, when it comes,
and whatever one key can sign at will is bounded: a flood by one person pushes out that person's own records only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from flaghoist.authorization import verified_approval, verified_proposal
from flaghoist.codec import APPROVAL, PROPOSAL, ROOT, SIGNATURES_MAX, decode_envelope
from flaghoist.errors import Expired, Malformed, Refused
from flaghoist.records import Approval, Envelope, Proposal, Signature
from flaghoist.root import Root
from flaghoist.signing import digest, verified_keys
from flaghoist.values import Person, Role

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

# What waits of one requester. The largest import (10 MiB) is some forty proposals; a pipeline that proposes for a whole
# team stays far below. The bytes are what 64 of the largest proposals take.
PROPOSALS_PER_REQUESTER_MAX: Final = 1000
PROPOSAL_BYTES_PER_REQUESTER_MAX: Final = 32 * 1024 * 1024
# Statements of one approver on proposals that are not here (yet): they may come in any order.
LOOSE_STATEMENTS_PER_APPROVER_MAX: Final = 1000
# Roots that one person has signed; people discuss one or two at a time.
ROOTS_PER_SIGNER_MAX: Final = 16
# Roots that nobody in force has signed yet: of these only signatures are kept, which anybody may make.
ROOTS_UNREAD_MAX: Final = 64

Statement: TypeAlias = tuple[Approval, Envelope]


class UnknownProposal(Refused):
    """No proposal of that id, or several that start with it."""

    code = "unknown_proposal"
    hint = "list what waits with `flaghoist pending`"


@dataclass(frozen=True, slots=True)
class Case:
    """One proposal and the newest statement of each person about exactly its bytes, rejections included."""

    proposal: Proposal
    envelope: Envelope
    sha256: bytes
    approvals: tuple[Statement, ...]

    @property
    def id(self) -> str:
        return self.proposal.proposal_id


@dataclass(frozen=True, slots=True)
class RootCase:
    """A root that waits for signatures: its bytes, and every signature over them that counts for it.

    A signature counts if it is by a key of role ROOT of the root in force, or of this one.
    """

    root: Root
    sha256: bytes

    @property
    def envelope(self) -> Envelope:
        return self.root.envelope


def _nothing(_: bytes) -> bool:
    return False


@dataclass
class Inbox:
    """The verified proposals and roots so far. `receive` takes one record; the order of records hardly matters.

    Attributes:
        root: the root in force: who counts. Under another root the inbox is read anew.
        settled: says of a proposal's digest that nothing more is to be decided about it; it is not taken in again.
        awaited: says of a proposal's digest that statements on it matter though it has expired: an emergency in force.
        dropped: records that count for nothing.
        evicted: proposals, statements and roots that more of the same person's have pushed out.
    """

    root: Root
    settled: Callable[[bytes], bool] = _nothing
    awaited: Callable[[bytes], bool] = _nothing
    dropped: int = field(default=0, init=False)
    evicted: int = field(default=0, init=False)
    _cases: dict[bytes, Case] = field(default_factory=dict, init=False, repr=False)
    _ids: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)
    _roots: dict[bytes, RootCase] = field(default_factory=dict, init=False, repr=False)
    _statements: dict[bytes, dict[Person, Statement]] = field(default_factory=dict, init=False, repr=False)
    _of_requester: dict[Person, "_Share"] = field(default_factory=dict, init=False, repr=False)
    _loose_of: dict[Person, "_Share"] = field(default_factory=dict, init=False, repr=False)
    _unread: dict[bytes, tuple[Signature, ...]] = field(default_factory=dict, init=False, repr=False)
    _signer_of_root: dict[bytes, Person] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def gathered(cls, root: Root, records: Iterable[bytes]) -> "Inbox":
        """Return the inbox that these records make.

        A second proposal under an id that is taken is dropped: ids are how people name proposals to each other.
        """
        inbox = cls(root)
        for data in records:
            inbox.receive(data)
        return inbox

    @property
    def cases(self) -> Mapping[str, Case]:
        """The proposals by id, in the order in which they came."""
        return {case.id: case for case in self._cases.values()}

    @property
    def roots(self) -> tuple[RootCase, ...]:
        """The roots that wait for signatures, in the order in which they came."""
        return tuple(self._roots.values())

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases.values())

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, sha256: bytes) -> Case | None:
        """Return the proposal with that digest, if it is here."""
        return self._cases.get(sha256)

    def statements_on(self, sha256: bytes) -> tuple[Statement, ...]:
        """Return what people say of a proposal, whether or not it is here itself."""
        return tuple(self._statements.get(sha256, {}).values())

    def receive(self, data: bytes, *, now_ms: int | None = None) -> Case | RootCase | bytes | None:
        """Take one record; what is not signed by the right key changes nothing.

        Args:
            data: a record's value, untrusted.
            now_ms: wall clock; what has expired by then is not taken in. None: it is, to be shown.

        Returns:
            The case that is new or has changed; the digest of a proposal that is not here, when something was said of
            it; None when nothing has changed.
        """
        try:
            envelope = decode_envelope(data)
            if envelope.payload_type == PROPOSAL.payload_type:
                return self._take_proposal(envelope, len(data), now_ms)
            if envelope.payload_type == APPROVAL.payload_type:
                return self._take_statement(envelope, now_ms)
            if envelope.payload_type == ROOT.payload_type:
                return self._take_root(envelope)
            raise Malformed(f"want a proposal, an approval or a root, got {envelope.payload_type[:100]!r}")
        except Refused:
            self.dropped += 1
            return None

    def prune(self, *, now_ms: int) -> None:
        """Forget what is settled or has expired."""
        expired = [c for c in self if now_ms > c.proposal.expires_at and not self.awaited(c.sha256)]
        for case in {c.sha256: c for c in (*expired, *(c for c in self if self.settled(c.sha256)))}.values():
            self._forget(case)
        for person, share in self._loose_of.items():
            for sha256 in [s for s, (expires_at, _) in share.parts.items() if now_ms > expires_at or self.settled(s)]:
                self._forget_statement(person, sha256)

    def find(self, id_or_prefix: str) -> Case:
        """Return the one proposal whose id starts so; case does not matter.

        Raises:
            UnknownProposal: none, or several (which are named).
        """
        return find(self, id_or_prefix)

    # --- proposals ---

    def _take_proposal(self, envelope: Envelope, size: int, now_ms: int | None) -> Case | None:
        sha256 = digest(envelope)
        if sha256 in self._cases or self.settled(sha256):
            return None
        proposal = verified_proposal(self.root, envelope)
        if now_ms is not None and now_ms > proposal.expires_at and not self.awaited(sha256):
            raise Expired(f"proposal {proposal.proposal_id} expired at {proposal.expires_at}, now {now_ms} (Unix ms)")
        if proposal.proposal_id in self._ids:
            raise Malformed(f"proposal {proposal.proposal_id}: another one has this id")
        # What was said of it before it came belongs to it now, and is no longer loose.
        for person in self._statements.get(sha256, {}):
            self._loose_of[person].drop(sha256)
        case = Case(proposal, envelope, sha256, self.statements_on(sha256))
        self._cases[sha256] = case
        self._ids[proposal.proposal_id] = sha256
        share = self._of_requester.setdefault(proposal.requester, _Share())
        share.add(sha256, proposal.expires_at, size)
        while share.over(PROPOSALS_PER_REQUESTER_MAX, PROPOSAL_BYTES_PER_REQUESTER_MAX):
            self.evicted += 1
            self._forget(self._cases[share.first_to_expire()])
        return self._cases.get(sha256)

    def _forget(self, case: Case) -> None:
        del self._cases[case.sha256]
        del self._ids[case.id]
        self._of_requester[case.proposal.requester].drop(case.sha256)
        self._statements.pop(case.sha256, None)

    # --- statements ---

    def _take_statement(self, envelope: Envelope, now_ms: int | None) -> Case | bytes | None:
        claimed = APPROVAL.decode(envelope.payload)
        said = self._statements.get(claimed.proposal_sha256, {}).get(claimed.approver)
        if said is not None and said[1].payload == envelope.payload:
            return None  # verified before
        approval = verified_approval(self.root, envelope)
        sha256, person = approval.proposal_sha256, approval.approver
        if self.settled(sha256):
            return None
        if now_ms is not None and now_ms > approval.expires_at:
            raise Expired(f"the approval by {person} expired at {approval.expires_at}, now {now_ms} (Unix ms)")
        if said is not None and said[0].approved_at > approval.approved_at:
            return None
        self._statements.setdefault(sha256, {})[person] = (approval, envelope)
        case = self._cases.get(sha256)
        if case is not None:
            self._cases[sha256] = replace(case, approvals=self.statements_on(sha256))
            return self._cases[sha256]
        share = self._loose_of.setdefault(person, _Share())
        share.add(sha256, approval.expires_at, 1)
        if share.over(LOOSE_STATEMENTS_PER_APPROVER_MAX, LOOSE_STATEMENTS_PER_APPROVER_MAX):
            self.evicted += 1
            self._forget_statement(person, share.first_to_expire())
        return sha256

    def _forget_statement(self, person: Person, sha256: bytes) -> None:
        self._loose_of[person].drop(sha256)
        said = self._statements[sha256]
        del said[person]
        if not said:
            del self._statements[sha256]

    # --- roots ---

    def _take_root(self, envelope: Envelope) -> RootCase | None:
        sha256 = digest(envelope)
        known = self._roots.get(sha256)
        if known is None and not self.root.people_signing(Role.ROOT, envelope):
            # Not read before somebody in force stands behind it: to check a thousand strange keys takes a while.
            self._set_aside(sha256, envelope.signatures)
            return None
        if known is None:
            stated = Root.unsigned(envelope)
            self.root.check_precedes(stated)
            earlier = self._unread.pop(sha256, ())
            counting = self._counting(stated, replace(envelope, signatures=(*envelope.signatures, *earlier)))
        else:
            stated = known.root
            had = {signature.key_id for signature in known.envelope.signatures}
            more = tuple(s for s in envelope.signatures if s.key_id not in had)
            counting = self._counting(stated, replace(envelope, signatures=more))
            if not counting:
                return None
            counting = (*known.envelope.signatures, *counting)
        signatures = self._most_needed(stated, counting)
        whole = replace(envelope, schema_sha256=ROOT.schema_sha256, signatures=signatures)
        case = RootCase(replace(stated, envelope=whole), sha256)
        self._roots[sha256] = case
        # Whose share it takes: the first of the people in force who stand behind it.
        signer = self._signer_of_root.setdefault(sha256, min(self.root.people_signing(Role.ROOT, whole)))
        same = [s for s, person in self._signer_of_root.items() if person == signer]
        if len(same) > ROOTS_PER_SIGNER_MAX:
            self.evicted += 1
            del self._roots[same[0]], self._signer_of_root[same[0]]
        return self._roots.get(sha256)

    def _set_aside(self, sha256: bytes, signatures: tuple[Signature, ...]) -> None:
        """Keep signatures over a root that nobody in force has signed yet: a new member may be the first to sign."""
        self.dropped += 1
        kept = {signature.key_id: signature for signature in (*self._unread.pop(sha256, ()), *signatures)}
        if kept:
            self._unread[sha256] = tuple(kept.values())[:SIGNATURES_MAX]
        if len(self._unread) > ROOTS_UNREAD_MAX:
            del self._unread[next(iter(self._unread))]

    def _counting(self, stated: Root, envelope: Envelope) -> tuple[Signature, ...]:
        """Return the signatures by keys of role ROOT, of the root in force or of the one that is stated."""
        keys = {key.key_id: key for judge in (self.root, stated) for key in judge.keys_of(Role.ROOT)}
        verified = {key.key_id for key in verified_keys(envelope, keys.values())}
        unique = {s.key_id: s for s in envelope.signatures if s.key_id in verified}
        return tuple(unique.values())

    def _most_needed(self, stated: Root, signatures: tuple[Signature, ...]) -> tuple[Signature, ...]:
        """Return as many as an envelope may have, those first that count for both roots."""
        grants = [judge.grant(Role.ROOT).key_ids for judge in (self.root, stated)]
        ranked = sorted(signatures, key=lambda s: -sum(s.key_id in key_ids for key_ids in grants))
        return tuple(ranked[:SIGNATURES_MAX])


class _Share:
    """What one person takes up: for each part by digest when it expires, and its size."""

    __slots__ = ("bytes", "parts")

    def __init__(self) -> None:
        self.parts: dict[bytes, tuple[int, int]] = {}
        self.bytes = 0

    def add(self, sha256: bytes, expires_at: int, size: int) -> None:
        self.drop(sha256)
        self.parts[sha256] = (expires_at, size)
        self.bytes += size

    def drop(self, sha256: bytes) -> None:
        self.bytes -= self.parts.pop(sha256, (0, 0))[1]

    def over(self, count_max: int, bytes_max: int) -> bool:
        return len(self.parts) > count_max or self.bytes > bytes_max

    def first_to_expire(self) -> bytes:
        """Return the part that is of use for the shortest time: old records, written again, push out nothing."""
        return min(self.parts, key=lambda sha256: self.parts[sha256][0])


def find(cases: Iterable[Case], id_or_prefix: str) -> Case:
    """Return the one of these cases whose id starts so; case does not matter.

    Raises:
        UnknownProposal: none, or several (which are named).
    """
    wanted = id_or_prefix.upper()
    fitting = [case for case in cases if case.id.startswith(wanted)] if wanted else []
    if len(fitting) != 1:
        named = ", ".join(case.id for case in fitting[:5])
        raise UnknownProposal(f"{id_or_prefix!r}: want one proposal, got {len(fitting)} {named}".rstrip())
    return fitting[0]


def new_proposal_id(now_ms: int, random_bytes: bytes) -> str:
    """Return a ULID (github.com/ulid/spec): 48 bits of time and 80 random bits, so that ids sort by time.

    Args:
        random_bytes: 10 bytes from the operating system's generator.
    """
    number = int.from_bytes(now_ms.to_bytes(6, "big") + random_bytes, "big")
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
