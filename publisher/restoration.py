"""What of a lost or cut ledger can be put back: entries that sidecars have kept, each of which proves itself.

Pure: records in, a plan out. Nothing is signed, so no key is needed; whoever may write to the log may do it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flaghoist.errors import Refused, WrongRoot
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Link
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.root_chain import Beginning, beginning
from flaghoist.snapshot import paused_collector
from flaghoist.values import Seq


class OtherHistory(Refused):
    """What was kept and what the log holds, or two files, are of different histories."""

    code = "other_history"
    hint = "find out which one is true before anything is written: a publisher's key has signed both"


@dataclass(frozen=True, slots=True)
class Restoration:
    """What is to be appended to a log, in order.

    Attributes:
        ledger: as the entries make it that were kept the longest.
        log_head: up to which entry the log could be followed before.
        missing: the records after that, as they were first written.
    """

    ledger: Ledger
    log_head: Seq
    missing: Sequence[bytes]


def plan_restoration(trusted: Root, kept: Mapping[str, Sequence[bytes]], log: Sequence[bytes]) -> Restoration:
    """Return what puts back into a log all that was kept.

    Args:
        trusted: the root that counts, of any version.
        kept: the records of each file, by its name; untrusted.
        log: the log's records, untrusted; what stands behind a hole counts only once the hole is filled.

    Raises:
        WrongRoot, RootUnknown: no file begins with that root, or is of its chain.
        OtherHistory: two histories; nothing says which is meant.
    """
    begun = _begun(trusted, [record for records in kept.values() for record in records])
    found = {name: _followed(begun, records) for name, records in kept.items()}
    longest = max(found, key=lambda name: found[name][0].head.seq, default=None)
    if longest is None or found[longest][0].head.seq == Seq(0):
        raise WrongRoot(
            expected=f"entries that begin with root {trusted.sha256.hex()} ({trusted.log_id})",
            got=f"none in {', '.join(kept) or 'no file'}",
        )
    ledger, links = found[longest]
    there, _ = _followed(begun, log)
    for name, other in (*((name, other) for name, (other, _) in found.items()), ("the log", there)):
        _check_same(longest, ledger, name, other)
    return Restoration(ledger, there.head.seq, links[there.head.seq.number :])


def _begun(trusted: Root, records: Sequence[bytes]) -> Beginning:
    return Beginning(trusted, {}) if trusted.version == FIRST_VERSION else beginning(trusted.sha256, records)


def _followed(begun: Beginning, records: Sequence[bytes]) -> tuple[Ledger, Sequence[bytes]]:
    """Return the ledger that these records make, and those of them that are its links."""
    ledger = Ledger(begun.root, begun.pinned)
    with paused_collector():
        links = [record for record in records if isinstance(ledger.receive(record), Link)]
    return ledger, links


def _check_same(name: str, ledger: Ledger, other_name: str, other: Ledger) -> None:
    """Refuse two ledgers of which neither is the beginning of the other."""
    seq = min(ledger.head.seq, other.head.seq)
    if ledger.hash_at(seq) != other.hash_at(seq):
        raise OtherHistory(
            f"seq {seq}: {name} has {ledger.hash_at(seq).hex()}, {other_name} has {other.hash_at(seq).hex()}"
        )
