"""What becomes of one record of the log: each outcome, and what it does to a reader (table: docs/protocol.md)."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from flaghoist.authorization import Authorized, NotUnderstood
from flaghoist.errors import Refused
from flaghoist.records import Entry, Op
from flaghoist.root import Root
from flaghoist.snapshot import Snapshot
from flaghoist.values import KeyId, Seq


@dataclass(frozen=True, slots=True)
class Applied:
    """A release: the chain and the state advanced.

    `in_force_at_ms` is the moment before which it must not be served (Unix ms); 0: it may be at once.
    """

    entry: Entry
    entry_hash: bytes
    authorized: Authorized
    snapshot: Snapshot
    in_force_at_ms: int = 0

    def without_state(self) -> "Applied":
        """Return the same link with an empty snapshot, for who keeps a whole chain: states share little in memory."""
        return replace(self, snapshot=Snapshot.empty(self.snapshot.fractional).at_seq(self.entry.seq))


@dataclass(frozen=True, slots=True)
class Advanced:
    """The ledger's first entry, or a claim of the next epoch: the chain advanced, the flags did not."""

    entry: Entry
    entry_hash: bytes


@dataclass(frozen=True, slots=True)
class RootChanged:
    """The next version of the root: from the next entry on it says who may do what. It opens an epoch."""

    entry: Entry
    entry_hash: bytes
    root: Root


@dataclass(frozen=True, slots=True)
class Ratified:
    """People stand behind an emergency that an earlier entry carried; the flags did not change."""

    entry: Entry
    entry_hash: bytes
    authorized: Authorized


@dataclass(frozen=True, slots=True)
class Prepared:
    """A release that will be published once enough sidecars say that they have seen it; the flags did not change."""

    entry: Entry
    entry_hash: bytes
    authorized: Authorized


@dataclass(frozen=True, slots=True)
class Stepped:
    """A release went on to its next stage, as its approved plan says: the chain and the state advanced.

    `op` is what it did to the release; `in_force_at_ms` as for Applied.
    """

    entry: Entry
    entry_hash: bytes
    op: Op
    snapshot: Snapshot
    in_force_at_ms: int = 0

    def without_state(self) -> "Stepped":
        """Return the same link with an empty snapshot, as Applied does."""
        return replace(self, snapshot=Snapshot.empty(self.snapshot.fractional).at_seq(self.entry.seq))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A link of the chain whose content is not allowed: the chain advanced, the state did not. An alarm."""

    entry: Entry
    entry_hash: bytes
    refusal: Refused


@dataclass(frozen=True, slots=True)
class Repeated:
    """An entry that was verified before; ignored."""

    seq: Seq


@dataclass(frozen=True, slots=True)
class Void:
    """An entry by a publisher that had lost the race, or its epoch; ignored."""

    seq: Seq
    why: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes that no publisher of this ledger signed, or that are no entry: anyone can write such. Ignored."""

    refusal: Refused


@dataclass(frozen=True, slots=True)
class Gap:
    """An entry arrived before the one it follows: read the ledger again, or elsewhere."""

    expected: Seq
    got: Seq


@dataclass(frozen=True, slots=True)
class Forked:
    """Proof that a trusted key has signed another history: the reader is quarantined.

    Attributes:
        seq: where they part.
        what: "fork", "equivocation", or "heartbeat".
        ours: entry hash that this reader has there (of seq - 1, when `what` is "fork").
        theirs: the other record, as evidence.
        signers: the keys that signed it; a root that takes their roles away ends the quarantine.
    """

    seq: Seq
    what: str
    ours: bytes
    theirs: bytes
    signers: frozenset[KeyId]


@dataclass(frozen=True, slots=True)
class Held:
    """A valid record that needs a newer release: the reader keeps what it serves.

    Attributes:
        signers: who signed a record that shows no place in the chain. The chain goes on without it, unserved, until a
            root takes their roles away: a stolen key must not end a ledger for good. Empty for a link of the chain,
            after which nothing more is taken.
    """

    refusal: NotUnderstood
    signers: frozenset[KeyId] = frozenset()


@dataclass(frozen=True, slots=True)
class Unratified:
    """An emergency that is in force and that too few people stand behind yet.

    Times are Unix milliseconds; past `ratify_by_ms` it is an alarm, and stays in force.
    """

    seq: Seq
    published_at: int
    ratify_by_ms: int
    authorized: Authorized
    before: Snapshot


Link: TypeAlias = Applied | Advanced | RootChanged | Ratified | Prepared | Stepped | Rejected
Outcome: TypeAlias = Link | Repeated | Void | Dropped | Gap | Forked | Held
