"""From the root that a reader trusts, of whatever version, back to the first: where reading a ledger begins."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flaghoist.codec import ENTRY, decode_envelope
from flaghoist.errors import Misconfigured, Refused
from flaghoist.records import Envelope, RootUpdate
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.signing import digest


class RootUnknown(Misconfigured):
    """The ledger does not state the root that a reader is told to trust, or not what led to it."""

    code = "root_unknown"
    hint = "check that --ledger and --root belong to the same environment, and that the ledger is read from its start"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a ledger must start with, and the later roots that it must reach."""

    root: Root
    pinned: Mapping[int, bytes]


def beginning(trusted: bytes, records: Iterable[bytes]) -> Beginning:
    """Return where to begin, given the digest of a root of any version.

    Each root names its predecessor by digest, so that trust in one is trust in all before it, whoever wrote them down.

    Args:
        trusted: SHA-256 digest of the root's signed bytes, from the reader's own deployment.
        records: the ledger's records from its start, untrusted; read until all that is needed was found.

    Raises:
        RootUnknown: they do not state that root, or one before it.
        Malformed, NotApproved: a root that cannot be used.
    """
    stated: dict[bytes, Envelope] = {}
    wanted, chain = trusted, list[Root]()
    for data in records:
        envelope = _stated_root(data)
        if envelope is None:
            continue
        stated[digest(envelope)] = envelope
        while (found := stated.get(wanted)) is not None:
            root = Root.unsigned(found)
            chain.append(root)
            if root.version == FIRST_VERSION:
                return Beginning(Root.verified(found), {r.version: r.sha256 for r in chain if r is not root})
            wanted = root.record.prev_root_sha256
    raise RootUnknown(f"root {wanted.hex()}: want it in the ledger, got {len(stated)} other roots")


def _stated_root(data: bytes) -> Envelope | None:
    """Return the root that a record states, whoever wrote it: only its digest will count."""
    try:
        envelope = decode_envelope(data)
        if envelope.payload_type != ENTRY.payload_type:
            return None
        entry = ENTRY.decode(envelope.payload)
    except Refused:
        return None
    return entry.body.root if isinstance(entry.body, RootUpdate) else None
