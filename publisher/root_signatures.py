"""The next root on its way: who has signed its exact bytes, and who is missing. Pure.

A root is passed around as an envelope; each person signs its bytes, in an envelope of their own or in one that others
have signed before. Signatures over equal bytes are put together here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from flaghoist.codec import SIGNATURES_MAX
from flaghoist.errors import Refused, SignatureRefused
from flaghoist.records import Envelope, RootKey, Signature
from flaghoist.root import Root
from flaghoist.signing import verified_keys
from flaghoist.values import KeyId, Person, Role

_PREFIX_MIN: Final = 4  # a shorter start of a digest could mean any root


class UnknownRoot(Refused):
    """No root of that digest or version waits for signatures, or several do."""

    code = "unknown_root"
    hint = "see what waits with `flaghoist pending`, and what is in force with `flaghoist root show --history`"


class RootEdited(SignatureRefused):
    """A root carries a signature that does not fit its bytes: it was edited, or damaged, after somebody signed it."""

    code = "root_edited"
    hint = "ask who proposed it for the file again; sign nothing that differs from what they meant"


@dataclass(frozen=True, slots=True)
class Missing:
    """Signatures that are still to come before a root counts.

    Attributes:
        judge: the version that asks for them: the one in force, or the new one itself.
        count: how many people are missing.
        wanted: how many it takes.
        signed: who has signed already.
        could: who of the others may sign.
    """

    judge: int
    count: int
    wanted: int
    signed: tuple[Person, ...]
    could: tuple[Person, ...]

    def __str__(self) -> str:
        signed = ", ".join(self.signed) or "none"
        could = ", ".join(self.could) or "nobody"
        return (
            f"version {self.judge} asks for signatures of {self.wanted} people, got {len(self.signed)} ({signed}); "
            f"{could} may still sign"
        )


@dataclass(frozen=True, slots=True)
class SignedRoot:
    """A root that waits, with the valid signatures of people whom the old or the new version lets sign.

    `before` is the root in force; None for a first root.
    """

    before: Root | None
    root: Root

    @property
    def id(self) -> str:
        """The digest in hex; people name it by its start."""
        return self.root.sha256.hex()

    @property
    def judges(self) -> tuple[Root, ...]:
        """The roots whose people must sign: the one in force, and the new one itself."""
        return (self.root,) if self.before is None else (self.before, self.root)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What is still to come; nothing once the root counts."""
        found = []
        for judge in self.judges:
            signed = judge.people_signing(Role.ROOT, self.root.envelope)
            wanted = judge.grant(Role.ROOT).threshold
            if len(signed) < wanted:
                could = tuple(sorted(judge.people_of(Role.ROOT) - signed))
                found.append(Missing(judge.version, wanted - len(signed), wanted, tuple(sorted(signed)), could))
        return tuple(found)

    @property
    def ready(self) -> bool:
        """Whether both versions have the signatures that they ask for."""
        return not self.missing

    @property
    def people(self) -> tuple[Person, ...]:
        """Everybody who has signed."""
        signed = (judge.people_signing(Role.ROOT, self.root.envelope) for judge in self.judges)
        return tuple(sorted(frozenset[Person]().union(*signed)))

    @property
    def waits_for(self) -> tuple[Person, ...]:
        """Everybody whose signature would bring it further."""
        return tuple(sorted({person for missing in self.missing for person in missing.could}))

    def with_signatures(self, envelope: Envelope) -> "SignedRoot":
        """Return it with the valid signatures of another envelope of the same bytes as well."""
        merged = self.root.envelope.signatures + _valid(self.judges, envelope)
        return replace(self, root=_with(self.root, _fitting(self.judges, self.root.envelope, merged)))


def signed_root(before: Root | None, envelope: Envelope) -> SignedRoot:
    """Return the root in an envelope: one that could follow `before`, and the signatures in it that count.

    Args:
        envelope: untrusted.

    Raises:
        Malformed, WrongLog: not a root, or not the next one.
    """
    root = Root.unsigned(envelope)
    if before is not None:
        before.check_precedes(root)
    judges = (root,) if before is None else (before, root)
    return SignedRoot(before, _with(root, _fitting(judges, envelope, _valid(judges, envelope))))


def check_unedited(case: SignedRoot, envelope: Envelope) -> None:
    """Refuse an envelope with a signature by a key that may sign this root and that does not fit its bytes.

    Raises:
        RootEdited: so it is; the text names the people whose signature does not fit.
    """
    valid = {signature.key_id for signature in _valid(case.judges, envelope)}
    named = {signature.key_id for signature in envelope.signatures} - valid
    people = sorted({key.person for key in _keys(case.judges) if key.key_id in named})
    if people:
        raise RootEdited(
            f"root version {case.root.version}: the signature of {', '.join(people)} does not fit these bytes "
            f"(digest {case.id})"
        )


def find(waiting: Iterable[SignedRoot], name: str | None) -> SignedRoot:
    """Return the one root that waits; by version, or by the start of its digest, when `name` says so.

    Raises:
        UnknownRoot: none, or several.
    """
    wanted = (name or "").lower()
    fitting = [
        case
        for case in waiting
        if name is None
        or wanted == str(case.root.version)
        or (len(wanted) >= _PREFIX_MIN and case.id.startswith(wanted))
    ]
    if len(fitting) != 1:
        named = ", ".join(f"{case.id[:16]} (version {case.root.version})" for case in fitting[:5])
        asked = "want one root that waits" if name is None else f"{name!r}: want one root that waits"
        raise UnknownRoot(f"{asked}, got {len(fitting)} {named}".rstrip())
    return fitting[0]


def _keys(judges: Iterable[Root]) -> list[RootKey]:
    return list({key.key_id: key for judge in judges for key in judge.keys_of(Role.ROOT)}.values())


def _valid(judges: Iterable[Root], envelope: Envelope) -> tuple[Signature, ...]:
    by_key = {signature.key_id: signature for signature in envelope.signatures}
    return tuple(by_key[key.key_id] for key in verified_keys(envelope, _keys(judges)))


def _fitting(judges: tuple[Root, ...], envelope: Envelope, signatures: Iterable[Signature]) -> Envelope:
    """Return the envelope with these valid signatures, each key's once; of too many those that count for both roots."""
    by_key: dict[KeyId, Signature] = {signature.key_id: signature for signature in signatures}
    kept = list(by_key.values())
    if len(kept) > SIGNATURES_MAX:

        def counts(signature: Signature) -> int:
            return sum(signature.key_id in judge.grant(Role.ROOT).key_ids for judge in judges)

        kept = sorted(kept, key=lambda signature: -counts(signature))[:SIGNATURES_MAX]
    return replace(envelope, signatures=tuple(kept))


def _with(root: Root, envelope: Envelope) -> Root:
    return Root(root.record, envelope, root.sha256)
