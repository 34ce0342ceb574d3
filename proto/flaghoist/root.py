"""Who may do what in one environment: the only thing that a reader of the ledger trusts.

A reader is started with a root (or, later, its digest) from its own deployment, never from the ledger.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flaghoist.codec import ROOT, decode_envelope
from flaghoist.errors import Expired, Malformed, NotApproved, SignatureRefused
from flaghoist.records import Envelope, RoleGrant, RootKey, RootRecord
from flaghoist.signing import check_public, digest, key_id, verified_keys
from flaghoist.targeting import Fractional
from flaghoist.values import KeyId, LogId, Person, Role

FIRST_VERSION: Final = 1
KEYS_MAX: Final = 1000
_NO_ONE: Final = RoleGrant(frozenset(), 0)


@dataclass(frozen=True)
class Root:
    """A root whose keys, roles and signatures have been checked; `Root.verified` makes it."""

    record: RootRecord
    envelope: Envelope
    sha256: bytes

    @classmethod
    def verified(cls, envelope: Envelope) -> "Root":
        """Return the root in an envelope that comes from a trusted place.

        Raises:
            Malformed: not a root, a key that cannot be used, or roles that nobody can fill.
            NotApproved: signed by fewer people than its own ROOT role asks for.
        """
        if envelope.payload_type != ROOT.payload_type:
            raise Malformed(f"root: want {ROOT.payload_type}, got {envelope.payload_type[:100]!r}")
        root = cls(ROOT.decode(envelope.payload), envelope, digest(envelope))
        root._check()
        signed = root.people_signing(Role.ROOT, envelope)
        threshold = root.grant(Role.ROOT).threshold
        if len(signed) < threshold:
            raise NotApproved(
                f"root version {root.version}: want signatures of {threshold} people with role ROOT, got {len(signed)}",
                hint="ask the missing people to sign the root",
            )
        return root

    @classmethod
    def from_bytes(cls, data: bytes) -> "Root":
        """Return the root in a root file's bytes; raises as `verified` does."""
        return cls.verified(decode_envelope(data))

    @property
    def log_id(self) -> LogId:
        return self.record.log_id

    @property
    def version(self) -> int:
        return self.record.version

    @property
    def fractional(self) -> Fractional:
        return Fractional(self.record.fractional)

    def grant(self, role: Role) -> RoleGrant:
        return self.record.roles.get(role, _NO_ONE)

    def keys_of(self, role: Role) -> Iterable[RootKey]:
        grant = self.grant(role)
        return (key for key in self.record.keys if key.key_id in grant.key_ids)

    def key(self, wanted: KeyId) -> RootKey | None:
        return next((key for key in self.record.keys if key.key_id == wanted), None)

    def people_of(self, role: Role) -> frozenset[Person]:
        return frozenset(key.person for key in self.keys_of(role))

    def people_signing(self, role: Role, envelope: Envelope) -> frozenset[Person]:
        """Return the people whose key of that role verifies on the envelope."""
        return frozenset(key.person for key in verified_keys(envelope, self.keys_of(role)))

    def signer_in(self, role: Role, envelope: Envelope) -> RootKey:
        """Return a key of that role that verifies on the envelope.

        Raises:
            SignatureRefused: none does; the text says which keys were named.
        """
        keys = verified_keys(envelope, self.keys_of(role))
        if not keys:
            named = ", ".join(s.key_id for s in envelope.signatures) or "nobody"
            raise SignatureRefused(f"want a valid signature by a key with role {role}; signed by {named}")
        return keys[0]

    def check_unexpired(self, at_ms: int) -> None:
        if at_ms > self.record.expires_at:
            raise Expired(
                f"root version {self.version} expired at {self.record.expires_at}, now {at_ms} (Unix ms)",
                hint="publish a new root",
            )

    def _check(self) -> None:
        record = self.record
        if record.version != FIRST_VERSION or any(record.prev_root_sha256):
            raise Malformed(f"root: want version {FIRST_VERSION} without a predecessor, got {record.version}")
        if record.fractional not in tuple(Fractional):
            raise Malformed(f"root: fractional: want {' or '.join(Fractional)}, got {record.fractional[:20]!r}")
        if record.policy:
            raise Malformed("root: policy: want none, got one; a newer release wrote this root")
        if not 1 <= len(record.keys) <= KEYS_MAX:
            raise Malformed(f"root: want 1 .. {KEYS_MAX} keys, got {len(record.keys)}")
        listed = set()
        for key in record.keys:
            check_public(key.algorithm, key.public)
            if key.key_id != key_id(key.algorithm, key.public):
                raise Malformed(f"root: key {key.key_id}: is not the fingerprint of its public key")
            if key.key_id in listed:
                raise Malformed(f"root: key {key.key_id} is listed twice")
            listed.add(key.key_id)
        for role, grant in record.roles.items():
            if strangers := grant.key_ids - listed:
                raise Malformed(f"root: role {role} names keys that are not listed: {', '.join(sorted(strangers))}")
            if not 0 <= grant.threshold <= len(self.people_of(role)):
                people = len(self.people_of(role))
                raise Malformed(f"root: role {role}: threshold {grant.threshold}, but {people} people hold it")
        for role in (Role.ROOT, Role.REQUESTER, Role.PUBLISHER):
            if self.grant(role).threshold < 1:
                raise Malformed(f"root: role {role}: want a threshold of at least 1, got {self.grant(role).threshold}")
        # The publisher's is one key by design: a single sequencer (design §5).
        if self.grant(Role.PUBLISHER).threshold != 1 or self.grant(Role.REQUESTER).threshold != 1:
            raise Malformed("root: roles PUBLISHER and REQUESTER: want threshold 1")
