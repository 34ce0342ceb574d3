"""Who may do what in one environment: the only thing that a reader of the ledger trusts.

A reader is started with a root, or its digest, from its own deployment, and follows the chain of its successors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from flaghoist.codec import ROOT, decode_envelope
from flaghoist.errors import Expired, Malformed, NotApproved, SignatureRefused, WrongLog
from flaghoist.policy import Policy
from flaghoist.records import Envelope, RoleGrant, RootKey, RootRecord
from flaghoist.signing import check_public, digest, key_id, verified_keys
from flaghoist.targeting import Fractional
from flaghoist.values import Algorithm, KeyId, LogId, Person, Role, Seq

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
        root = cls._read(envelope)
        root.check_signed_by(root)
        _ = root.policy
        return root

    @classmethod
    def unsigned(cls, envelope: Envelope) -> "Root":
        """Return the root in an envelope whose signatures nobody has checked: for those who are asked to sign it.

        Raises:
            Malformed: not a root, a key or a policy that cannot be used, or roles that nobody can fill.
        """
        root = cls._read(envelope)
        _ = root.policy
        return root

    @classmethod
    def _read(cls, envelope: Envelope) -> "Root":
        if envelope.payload_type != ROOT.payload_type:
            raise Malformed(f"root: want {ROOT.payload_type}, got {envelope.payload_type[:100]!r}")
        root = cls(ROOT.decode(envelope.payload), envelope, digest(envelope))
        root._check()
        return root

    def successor(self, envelope: Envelope) -> "Root":
        """Return the next version, signed by the people whom this one and the next one ask for.

        Raises:
            Malformed: not a root, not the next version of this one, or one that lists a revoked key again.
            PolicyNotUnderstood: a newer release wrote its policy.
            WrongLog: of another environment.
            NotApproved: too few people of this root, or of the next one, have signed it.
        """
        following = self.signed_successor(envelope)
        _ = following.policy  # last: only of a root that people have signed does it matter that it is not understood
        return following

    def signed_successor(self, envelope: Envelope) -> "Root":
        """Return the next version as `successor` does, but for its policy, which is not read yet.

        Raises:
            Malformed, WrongLog, NotApproved: as `successor`.
        """
        following = Root._read(envelope)
        self.check_precedes(following)
        for judge in (self, following):
            following.check_signed_by(judge)
        return following

    def check_precedes(self, following: "Root") -> None:
        """Refuse a root that is not the next version of this one, apart from who signed it.

        Raises:
            Malformed, WrongLog: as `successor`.
        """
        record = following.record
        if record.log_id != self.log_id:
            raise WrongLog(expected=self.log_id, got=record.log_id)
        if record.version != self.version + 1 or record.prev_root_sha256 != self.sha256:
            raise Malformed(
                f"root: want version {self.version + 1} after {self.sha256.hex()}, "
                f"got version {record.version} after {record.prev_root_sha256.hex()}",
                hint="propose it again, on the root that is in force (`flaghoist root show`)",
            )
        if record.fractional != self.record.fractional:
            raise Malformed(
                f"root: fractional: want {self.record.fractional} as before, got {record.fractional}: users would move",
                hint="a ledger keeps its bucketing for life; begin another ledger to change it",
            )
        if forgotten := {r.key_id for r in self.record.revoked} - {r.key_id for r in record.revoked}:
            raise Malformed(
                f"root: revoked: want the keys that were revoked before as well: {', '.join(sorted(forgotten))}",
                hint="a revoked key stays revoked; give the person a new one",
            )

    def check_signed_by(self, judge: "Root") -> None:
        """Refuse this root unless as many people sign it as `judge` (its predecessor, or itself) asks for.

        Raises:
            NotApproved: too few; the text says who could still sign.
        """
        signed = judge.people_signing(Role.ROOT, self.envelope)
        threshold = judge.grant(Role.ROOT).threshold
        if len(signed) < threshold:
            others = ", ".join(sorted(judge.people_of(Role.ROOT) - signed)) or "nobody"
            raise NotApproved(
                f"root version {self.version}: version {judge.version} asks for signatures of {threshold} people with "
                f"role ROOT, got {len(signed)} ({', '.join(sorted(signed)) or 'none'}); {others} may sign",
                hint="ask the missing people to run `flaghoist root sign`",
            )

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

    @cached_property
    def policy(self) -> Policy:
        """The rules beyond the thresholds."""
        return Policy.parse(self.record.policy)

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

    def signers_in(self, roles: Sequence[Role], envelope: Envelope) -> Sequence[RootKey]:
        """Return the keys of these roles that verify on the envelope; one at least.

        Raises:
            SignatureRefused: none does; the text says which keys were named.
        """
        allowed = frozenset[KeyId]().union(*(self.grant(role).key_ids for role in roles))
        keys = verified_keys(envelope, (key for key in self.record.keys if key.key_id in allowed))
        if not keys:
            named = ", ".join(s.key_id for s in envelope.signatures) or "nobody"
            wanted = " or ".join(roles)
            raise SignatureRefused(f"want a valid signature by a key with role {wanted}; signed by {named}")
        return keys

    def check_unexpired(self, at_ms: int) -> None:
        if at_ms > self.record.expires_at:
            raise Expired(
                f"root version {self.version} expired at {self.record.expires_at}, now {at_ms} (Unix ms)",
                hint="publish a new root",
            )

    def _check(self) -> None:
        self._check_place()
        self._check_keys()
        self._check_roles()

    def _check_place(self) -> None:
        record = self.record
        first = record.version == FIRST_VERSION
        anchored = any(record.prev_root_sha256) and record.anchor_seq > Seq(0)
        unanchored = not any(record.prev_root_sha256) and record.anchor_seq == Seq(0) and not any(record.anchor_hash)
        if record.version < FIRST_VERSION or not (unanchored if first else anchored):
            raise Malformed(
                f"root: want version {FIRST_VERSION} without a predecessor and anchor, or a later one with both; "
                f"got version {record.version}"
            )
        if record.fractional not in tuple(Fractional):
            raise Malformed(f"root: fractional: want {' or '.join(Fractional)}, got {record.fractional[:20]!r}")

    def _check_keys(self) -> None:
        record = self.record
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
        if len({key.public for key in record.keys}) != len(listed):
            raise Malformed("root: keys: one public key is listed under two algorithms: it could pass for two people")
        if len({r.key_id for r in record.revoked}) != len(record.revoked):
            raise Malformed("root: revoked: a key is named twice")
        # Under another algorithm the same key has another fingerprint.
        names = {key_id(algorithm, key.public) for key in record.keys for algorithm in Algorithm}
        if back := names & {r.key_id for r in record.revoked}:
            raise Malformed(
                f"root: keys that are revoked are listed: {', '.join(sorted(back))}",
                hint="a revoked key stays revoked; give the person a new one",
            )

    def _check_roles(self) -> None:
        record, listed = self.record, {key.key_id for key in self.record.keys}
        for role, grant in record.roles.items():
            if strangers := grant.key_ids - listed:
                raise Malformed(f"root: role {role} names keys that are not listed: {', '.join(sorted(strangers))}")
            if not 0 <= grant.threshold <= len(self.people_of(role)):
                people = len(self.people_of(role))
                raise Malformed(f"root: role {role}: threshold {grant.threshold}, but {people} people hold it")
        for role in (Role.ROOT, Role.REQUESTER, Role.PUBLISHER):
            if self.grant(role).threshold < 1:
                raise Malformed(f"root: role {role}: want a threshold of at least 1, got {self.grant(role).threshold}")
        # One signature each, by design: a single sequencer, one person who asks, one who stops the fire.
        for role in (Role.PUBLISHER, Role.REQUESTER, Role.HEARTBEAT, Role.EMERGENCY):
            grant = self.grant(role)
            if grant.threshold != bool(grant.key_ids):
                raise Malformed(f"root: role {role}: want threshold 1, or 0 without keys, got {grant.threshold}")
