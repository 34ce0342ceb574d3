"""The next root, worked out before anybody signs: what it changes, and what a stolen key could do then. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from typing import Final

from flaghoist.authorization import EMERGENCY_FLAGS_MAX
from flaghoist.codec import SIGNATURES_MAX
from flaghoist.errors import Refused
from flaghoist.freshness import BEAT_LIFE_MS_MAX
from flaghoist.policy.lint import Finding, Severity, findings, people_findings
from flaghoist.records import Revocation, RoleGrant, RootKey, RootRecord
from flaghoist.root import Root
from flaghoist.values import KeyId, Person, Role, Seq

# Roles in which one signature is enough by design (root.py refuses any other threshold).
SINGLE: Final = frozenset({Role.REQUESTER, Role.PUBLISHER, Role.HEARTBEAT, Role.EMERGENCY})
_NEEDED: Final = frozenset({Role.ROOT, Role.REQUESTER, Role.PUBLISHER})
MEMBER_ROLES: Final = (Role.REQUESTER, Role.APPROVER)
_MACHINE: Final = frozenset({Role.PUBLISHER, Role.HEARTBEAT, Role.CHECKPOINTER})
_DECIDING: Final = frozenset({Role.ROOT, Role.REQUESTER, Role.APPROVER, Role.EMERGENCY})
# People are away for two weeks, and signatures take another; a month is time enough.
EXPIRES_SOON_MS: Final = 30 * 86_400_000
_DAY_MS: Final = 86_400_000


class BadRoot(Refused):
    """A change of the root that cannot be meant, or that would lock people out."""

    code = "bad_root"
    hint = "see who may do what now with `flaghoist root show`"


@dataclass(frozen=True, slots=True)
class Edit:
    """What shall be different in the next root; applied in the order of the fields.

    Attributes:
        expires_at: Unix milliseconds.
        added: keys of new members, who may then propose and approve.
        removed: people who lose all keys.
        replaced: old key to new: it takes over every role of the old one, which is no longer listed.
        revoked: keys that are no longer trusted.
        granted: a role for a key, listed or new.
        withdrawn: a role that a key loses.
        thresholds: how many people a role takes.
        policy: its text; "" for none, None for the one as before.
    """

    expires_at: int
    added: tuple[RootKey, ...] = ()
    removed: tuple[Person, ...] = ()
    replaced: tuple[tuple[KeyId, RootKey], ...] = ()
    revoked: tuple[Revocation, ...] = ()
    granted: tuple[tuple[Role, RootKey], ...] = ()
    withdrawn: tuple[tuple[Role, KeyId], ...] = ()
    thresholds: Mapping[Role, int] = field(default_factory=dict)
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What one key gains and loses."""

    key: RootKey
    gained: tuple[Role, ...]
    lost: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a root changes of the one before it; of a first root, everything.

    `thresholds` has (role, before, after), of a later root; `policy` is a unified diff, "" when it stays.
    """

    keys: tuple[KeyChange, ...]
    thresholds: tuple[tuple[Role, int, int], ...]
    revoked: tuple[Revocation, ...]
    policy: str


@dataclass(frozen=True, slots=True)
class Power:
    """What who steals one key could do with it: in words, and whether it changes flags at will, all `alone`."""

    key: RootKey
    roles: tuple[Role, ...]
    could: tuple[str, ...]
    alone: bool


def edited(before: Root, edit: Edit, *, anchor: tuple[Seq, bytes], past: Mapping[KeyId, RootKey]) -> RootRecord:
    """Return the root that follows, with an edit.

    Args:
        anchor: seq and hash of the ledger's head, as its signers see it.
        past: every key that a version of the chain has listed.

    Raises:
        BadRoot: the edit names what is not there, or contradicts itself.
    """
    draft = _Draft(before)
    for key in edit.added:
        draft.add_member(key)
    for person in edit.removed:
        draft.remove(person)
    for old, new in edit.replaced:
        draft.replace(old, new)
    for revocation in edit.revoked:
        draft.revoke(revocation, past)
    for role, key in edit.granted:
        draft.grant(role, key)
    for role, key_id in edit.withdrawn:
        draft.withdraw(role, key_id)
    return replace(
        before.record,
        version=before.version + 1,
        prev_root_sha256=before.sha256,
        anchor_seq=anchor[0],
        anchor_hash=anchor[1],
        expires_at=edit.expires_at,
        keys=draft.listed(),
        roles=draft.roles(edit.thresholds),
        policy=before.record.policy if edit.policy is None else edit.policy,
        revoked=tuple(draft.revoked.values()),
    )


class _Draft:
    """A root while it is edited."""

    def __init__(self, before: Root) -> None:
        record = before.record
        self._keys = {key.key_id: key for key in record.keys}
        self._holders = {role: set(before.grant(role).key_ids) for role in Role}
        self._thresholds = {role: before.grant(role).threshold for role in Role}
        self.revoked = {revocation.key_id: revocation for revocation in record.revoked}

    def add_member(self, key: RootKey) -> None:
        if all(key.key_id in self._holders[role] for role in MEMBER_ROLES):
            raise BadRoot(
                f"{key.person} ({key.key_id}): want a new member, got one who may propose and approve already"
            )
        for role in MEMBER_ROLES:
            self.grant(role, key)

    def grant(self, role: Role, key: RootKey) -> None:
        if key.key_id in self.revoked:
            raise BadRoot(
                f"key {key.key_id} ({key.person}) was revoked: {self.revoked[key.key_id].reason}",
                hint="a revoked key stays revoked; make a new one with `flaghoist key new`",
            )
        listed = self._keys.setdefault(key.key_id, key)
        if listed.person != key.person:
            raise BadRoot(f"key {key.key_id}: want {listed.person}, to whom it belongs, got a card of {key.person}")
        self._holders[role].add(key.key_id)

    def remove(self, person: Person) -> None:
        theirs = {key.key_id for key in self._keys.values() if key.person == person}
        if not theirs:
            known = ", ".join(sorted({key.person for key in self._keys.values()}))
            raise BadRoot(f"{person}: want somebody whom the root lists ({known})")
        for key_id in theirs:
            self._drop(key_id)

    def replace(self, old: KeyId, new: RootKey) -> None:
        roles = [role for role in Role if old in self._holders[role]]
        if old not in self._keys or not roles:
            raise BadRoot(f"key {old}: want one that the root lists, to replace it")
        person = self._keys[old].person
        if new.person != person:
            raise BadRoot(
                f"key {old} is {person}'s, the new one {new.key_id} is {new.person}'s: want a card of {person}",
                hint="another person is a new member: --add-member and --remove-person",
            )
        if new.key_id == old:
            raise BadRoot(f"key {old}: want another key in its place, got the same")
        self._drop(old)
        for role in roles:
            self.grant(role, new)

    def revoke(self, revocation: Revocation, past: Mapping[KeyId, RootKey]) -> None:
        if revocation.key_id not in self._keys and revocation.key_id not in past:
            raise BadRoot(f"key {revocation.key_id}: want one that this root or an earlier version lists")
        self._drop(revocation.key_id)
        self.revoked[revocation.key_id] = revocation

    def withdraw(self, role: Role, key_id: KeyId) -> None:
        if key_id not in self._holders[role]:
            held = ", ".join(sorted(self._holders[role])) or "none"
            raise BadRoot(f"key {key_id} has no role {role}; keys that have: {held}")
        self._holders[role].discard(key_id)

    def listed(self) -> tuple[RootKey, ...]:
        """The keys that have a role; what has none can do nothing, and is left out."""
        used = set[KeyId]().union(*self._holders.values())
        return tuple(key for key in self._keys.values() if key.key_id in used)

    def roles(self, wanted: Mapping[Role, int]) -> dict[Role, RoleGrant]:
        return {role: RoleGrant(frozenset(self._holders[role]), self._threshold(role, wanted)) for role in Role}

    def _threshold(self, role: Role, wanted: Mapping[Role, int]) -> int:
        people = len({self._keys[key_id].person for key_id in self._holders[role]})
        if role in _NEEDED and not people:
            raise BadRoot(
                f"role {role}: nobody would hold it, and nothing could be changed any more",
                hint=f"give it to another key: --grant {role}=FILE.pub, or --replace-key KEY_ID NEW.pub",
            )
        if role in SINGLE:
            if wanted.get(role, bool(people)) != bool(people):
                raise BadRoot(f"role {role}: one signature is enough by design: want no --threshold for it")
            return int(bool(people))
        threshold = wanted.get(role, self._thresholds[role])
        if role is Role.ROOT and threshold < 1:
            raise BadRoot("role ROOT: want a threshold of at least 1, got 0: anybody could make a root")
        if role is Role.CHECKPOINTER and role not in wanted:
            threshold = min(max(threshold, 1), people)
        if threshold > people:
            raise BadRoot(
                f"role {role}: threshold {threshold}, but {people} people would hold it",
                hint=f"add somebody, or lower it knowingly: --threshold {role}={people}",
            )
        return threshold

    def _drop(self, key_id: KeyId) -> None:
        for holders in self._holders.values():
            holders.discard(key_id)
        self._keys.pop(key_id, None)


def check_usable(root: Root) -> None:
    """Refuse a root under which nothing could be done any more.

    Raises:
        BadRoot: nobody could have a change approved, or no next root could be signed.
    """
    threshold = root.grant(Role.APPROVER).threshold
    approvers = root.people_of(Role.APPROVER)
    if not any(len(approvers - {person}) >= threshold for person in root.people_of(Role.REQUESTER)):
        raise BadRoot(
            f"role APPROVER: each change takes its requester and {threshold} others; with the approvers "
            f"{', '.join(sorted(approvers)) or 'nobody'} nobody could have a change approved",
            hint="add people, or lower the number of approvals knowingly",
        )
    if root.grant(Role.ROOT).threshold > SIGNATURES_MAX // 2:
        # Old and new people sign one envelope together.
        raise BadRoot(
            f"role ROOT: want a threshold of at most {SIGNATURES_MAX // 2}, got {root.grant(Role.ROOT).threshold}"
        )


def policy_findings(root: Root, *, now_ms: int) -> list[Finding]:
    """Return what is odd about a root's policy, by itself and under the root's people."""
    if root.policy.built_in:
        return []
    found = people_findings(
        root.policy,
        frozenset(key.person for key in root.record.keys),
        root.grant(Role.APPROVER).threshold,
        requesters=root.people_of(Role.REQUESTER),
        approvers=root.people_of(Role.APPROVER),
    )
    found += findings(root.policy, now_ms=now_ms)
    return sorted(set(found), key=lambda finding: (finding.line, finding.text))


def check_policy(root: Root, *, now_ms: int) -> None:
    """Refuse a policy that its people or a publisher could not follow.

    Raises:
        BadRoot: lint finds errors in it.
    """
    errors = [str(f) for f in policy_findings(root, now_ms=now_ms) if f.severity is Severity.ERROR]
    if errors:
        raise BadRoot(f"policy: {'; '.join(errors)}", hint="correct it, and check it with `flaghoist policy lint`")


def difference(before: Root | None, after: Root) -> Difference:
    """Return what a root changes of the one in force; None: there is none, it is the first."""
    keys = {key.key_id: key for root in (before, after) if root is not None for key in root.record.keys}
    changes = []
    for key in sorted(keys.values(), key=lambda key: (key.person, key.key_id)):
        old, new = roles_of(before, key.key_id), roles_of(after, key.key_id)
        if old != new:
            gained = tuple(role for role in new if role not in old)
            changes.append(KeyChange(key, gained, tuple(role for role in old if role not in new)))
    thresholds = tuple(
        (role, _threshold(before, role), _threshold(after, role))
        for role in Role
        # A single signature is enough for those by design, and of a first root all is new.
        if before is not None and role not in SINGLE and _threshold(before, role) != _threshold(after, role)
    )
    known = set() if before is None else set(before.record.revoked)
    revoked = tuple(revocation for revocation in after.record.revoked if revocation not in known)
    old_policy = "" if before is None else before.record.policy
    diff = unified_diff(
        old_policy.splitlines(), after.record.policy.splitlines(), "policy in force", "policy proposed", lineterm=""
    )
    return Difference(tuple(changes), thresholds, revoked, "\n".join(diff))


def in_words(change: Difference) -> list[str]:
    """Return a difference as lines for people, a plus or minus first; without its policy."""
    lines = []
    for key in change.keys:
        whose = f"{key.key.person} ({key.key.algorithm} key {key.key.key_id})"
        if key.gained:
            lines.append(f"+ {whose} gains {', '.join(key.gained)}")
        if key.lost:
            lines.append(f"- {whose} loses {', '.join(key.lost)}")
    lines += [f"~ {role} takes {new} people instead of {old}" for role, old, new in change.thresholds]
    for revocation in change.revoked:
        lines.append(f"- key {revocation.key_id} is revoked for ever: {revocation.reason or 'no reason given'}")
        if revocation.distrust_from_seq is not None:
            lines.append(f"  what it signed from seq {revocation.distrust_from_seq} on is to be looked at again")
    return lines


def powers(root: Root) -> tuple[Power, ...]:
    """Return what a thief of each key could do, by person."""
    found = []
    for key in sorted(root.record.keys, key=lambda key: (key.person, key.key_id)):
        roles = roles_of(root, key.key_id)
        could = tuple(_could(root, role) for role in roles)
        found.append(Power(key, roles, could, any(_alone(root, role) for role in roles)))
    return tuple(found)


def concerns(root: Root, *, now_ms: int) -> list[str]:
    """Return what an operator should worry about in a root, the worst first."""
    found = []
    record = root.record
    if now_ms > record.expires_at:
        found.append("it has expired: nothing can be published but its successor (`flaghoist root propose`)")
    elif (left_ms := record.expires_at - now_ms) <= EXPIRES_SOON_MS:
        days = left_ms // _DAY_MS
        found.append(f"it expires in {days} days: renew it with `flaghoist root propose`, which needs no options")
    alone = sorted({power.key.person for power in powers(root) if power.alone})
    if root.grant(Role.ROOT).threshold == 1:
        people = ", ".join(sorted(root.people_of(Role.ROOT)))
        found.append(f"ROOT takes one person: whoever steals one key of {people} can make a root of their own")
    elif len(root.people_of(Role.ROOT)) == root.grant(Role.ROOT).threshold:
        found.append("ROOT takes everybody who holds it: once one of them loses a key, no root can be made any more")
    if root.grant(Role.APPROVER).threshold == 0 and root.policy.built_in:
        found.append(f"no change needs an approval: each of {', '.join(alone)} alone changes any flag")
    return found + _too_many_roles(root) + [f"policy: {finding}" for finding in policy_findings(root, now_ms=now_ms)]


def lost_with(before: Root, after: Root) -> str | None:
    """Return a warning when the next root can be signed only with keys that it revokes; None when it can without."""
    revoked = {revocation.key_id for revocation in after.record.revoked}
    left = {key.person for key in before.keys_of(Role.ROOT) if key.key_id not in revoked}
    threshold = before.grant(Role.ROOT).threshold
    if len(left) >= threshold:
        return None
    return (
        f"version {before.version} asks for signatures of {threshold} people, and only {len(left)} of them keep their "
        f"key: a revoked key must sign once more"
    )


def roles_of(root: Root | None, key_id: KeyId) -> tuple[Role, ...]:
    """Return the roles of a key, in the order of Role."""
    return () if root is None else tuple(role for role in Role if key_id in root.grant(role).key_ids)


def _threshold(root: Root | None, role: Role) -> int:
    return 0 if root is None else root.grant(role).threshold


def _alone(root: Root, role: Role) -> bool:
    if role is Role.ROOT:
        return root.grant(role).threshold == 1
    return role is Role.REQUESTER and root.grant(Role.APPROVER).threshold == 0 and root.policy.built_in


def _could(root: Root, role: Role) -> str:
    threshold = root.grant(role).threshold
    limits = root.policy.emergency
    match role:
        case Role.ROOT:
            return "make a root of their own" if threshold == 1 else f"sign roots, which take {threshold} people"
        case Role.REQUESTER if _alone(root, role):
            return "change any flag"
        case Role.REQUESTER:
            return "propose, which takes others to approve"
        case Role.APPROVER:
            return "approve what others propose"
        case Role.PUBLISHER:
            return "order, delay and withhold changes, and invent none; two histories are noticed"
        case Role.HEARTBEAT:
            return f"say of an old state that it is the newest, {BEAT_LIFE_MS_MAX // 1000} s at a time"
        case Role.CHECKPOINTER:
            return "sign checkpoints"
        case Role.EMERGENCY:
            return (
                f"turn flags to their safe variants alone: {limits.kills} times in {limits.per_ms // 60_000} min, "
                f"{EMERGENCY_FLAGS_MAX} flags each time"
            )


def _too_many_roles(root: Root) -> list[str]:
    if len({key.person for key in root.record.keys}) == 1:
        return []  # alone on a laptop: everybody is told so already
    found = []
    for person in sorted({key.person for key in root.record.keys}):
        theirs = {role for key in root.record.keys if key.person == person for role in roles_of(root, key.key_id)}
        if (machine := theirs & _MACHINE) and (deciding := theirs & _DECIDING):
            found.append(
                f"{person} holds {', '.join(sorted(machine))} and {', '.join(sorted(deciding))}: "
                "who takes that machine can both withhold changes and ask for them; give the publisher keys of its own"
            )
    for key in root.record.keys:
        roles = roles_of(root, key.key_id)
        if Role.EMERGENCY in roles and set(roles) & {Role.REQUESTER, Role.APPROVER, Role.ROOT}:
            found.append(
                f"key {key.key_id} ({key.person}) is for every day and for emergencies: "
                "make a second one with `flaghoist key new NAME-emergency`"
            )
    return found


def chain_keys(roots: Sequence[Root]) -> dict[KeyId, RootKey]:
    """Return every key that these roots list."""
    return {key.key_id: key for root in roots for key in root.record.keys}
