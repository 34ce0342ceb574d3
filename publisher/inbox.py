"""What waits to be published: proposals and what people say of them, gathered from records that anyone may write.

Pure; the shell reads the inbox stream (or files) and hands over the bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from flaghoist.authorization import verified_approval, verified_proposal
from flaghoist.codec import APPROVAL, PROPOSAL, decode_envelope
from flaghoist.errors import Malformed, Refused
from flaghoist.records import Approval, Envelope, Proposal
from flaghoist.root import Root
from flaghoist.signing import digest
from flaghoist.values import Person

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


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
    approvals: tuple[tuple[Approval, Envelope], ...]

    @property
    def id(self) -> str:
        return self.proposal.proposal_id


@dataclass(frozen=True, slots=True)
class Inbox:
    """The verified proposals by id, oldest first, and how many records counted for nothing."""

    cases: Mapping[str, Case]
    dropped: int

    @classmethod
    def gathered(cls, root: Root, records: Iterable[bytes]) -> "Inbox":
        """Verify each record and put statements to their proposals; the order of records does not matter for that.

        A second proposal under an id that is taken is dropped: ids are how people name proposals to each other.
        """
        proposals: dict[str, tuple[Proposal, Envelope, bytes]] = {}
        statements: dict[bytes, dict[Person, tuple[Approval, Envelope]]] = {}
        dropped = 0
        for data in records:
            try:
                envelope = decode_envelope(data)
                if envelope.payload_type == PROPOSAL.payload_type:
                    proposal, sha256 = verified_proposal(root, envelope), digest(envelope)
                    known = proposals.setdefault(proposal.proposal_id, (proposal, envelope, sha256))
                    dropped += known[2] != sha256
                elif envelope.payload_type == APPROVAL.payload_type:
                    approval = verified_approval(root, envelope)
                    of_proposal = statements.setdefault(approval.proposal_sha256, {})
                    earlier = of_proposal.get(approval.approver)
                    if earlier is None or earlier[0].approved_at <= approval.approved_at:
                        of_proposal[approval.approver] = (approval, envelope)
                else:
                    raise Malformed(f"want a proposal or an approval, got {envelope.payload_type[:100]!r}")
            except Refused:
                dropped += 1
        cases = {
            proposal_id: Case(proposal, envelope, sha256, tuple(statements.get(sha256, {}).values()))
            for proposal_id, (proposal, envelope, sha256) in proposals.items()
        }
        return cls(cases, dropped)

    def find(self, id_or_prefix: str) -> Case:
        """Return the one proposal whose id starts so; case does not matter.

        Raises:
            UnknownProposal: none, or several (which are named).
        """
        wanted = id_or_prefix.upper()
        fitting = [case for name, case in self.cases.items() if name.startswith(wanted)] if wanted else []
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
