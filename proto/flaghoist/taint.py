"""What a key that is no longer trusted has signed, and which definitions still rest on it."""

from collections.abc import Iterable
from dataclasses import dataclass

from flaghoist.outcomes import Applied, Link, Ratified, RootChanged, Stepped
from flaghoist.records import Ratification, Release, Revocation
from flaghoist.values import KeyId, Seq, StateId


@dataclass(frozen=True, slots=True)
class Taint:
    """An entry that a distrusted key took part in, and the definitions in force that it left."""

    seq: Seq
    key_id: KeyId
    reason: str
    in_force: tuple[StateId, ...]


def tainted(links: Iterable[Link]) -> tuple[Taint, ...]:
    """Return the entries that revocations with `distrust_from_seq` point at, oldest first.

    Args:
        links: the whole chain so far, in seq order.
    """
    chain = list(links)
    distrusted: dict[KeyId, Revocation] = {}
    last_changed: dict[StateId, Seq] = {}
    for link in chain:
        if isinstance(link, RootChanged):
            distrusted |= {r.key_id: r for r in link.root.record.revoked if r.distrust_from_seq is not None}
        elif isinstance(link, Applied):
            last_changed |= {op.state_id: link.entry.seq for op in link.authorized.proposal.ops}
        elif isinstance(link, Stepped):
            last_changed[link.op.state_id] = link.entry.seq
    if not distrusted:
        return ()
    found = []
    for link in chain:
        for key_id in sorted(_signers(link) & distrusted.keys()):
            revocation = distrusted[key_id]
            from_seq = revocation.distrust_from_seq
            if from_seq is not None and link.entry.seq >= from_seq:
                left = _left_by(link, last_changed)
                found.append(Taint(link.entry.seq, key_id, revocation.reason, left))
    return tuple(found)


def _signers(link: Link) -> set[KeyId]:
    """The keys that asked for or approved what a link did; the publisher's key decides nothing."""
    if not isinstance(link, Applied | Ratified):
        return set()
    match link.entry.body:
        case Release(proposal=proposal, approvals=approvals):
            envelopes = (proposal, *approvals)
        case Ratification(approvals=approvals):
            envelopes = approvals
        case _:
            return set()
    return {signature.key_id for envelope in envelopes for signature in envelope.signatures}


def _left_by(link: Link, last_changed: dict[StateId, Seq]) -> tuple[StateId, ...]:
    if not isinstance(link, Applied):
        return ()
    ops = link.authorized.proposal.ops
    return tuple(sorted(op.state_id for op in ops if last_changed.get(op.state_id) == link.entry.seq))
