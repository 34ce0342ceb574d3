"""What the design says may be served, in its own words: it shares no code with the verifier and never asks it.

The model knows what each key has really signed, since whoever signs tells it (`Registry`). From that alone it says
whether a link of a chain may change flags, and to what.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# docs/protocol.md and design §4, §6; written down again, so that the verifier's own constants are checked too.
EMERGENCY_LIFE_MS = 600_000
EMERGENCY_FLAGS = 50
KILLS, KILLS_PER_MS = 10, 600_000
BEAT_LIFE_MS, TOLERANCE_MS = 30_000, 5_000
# A publisher that was replaced may beat once more, before it has read of it.
LAST_BEAT_MS = 3_000
UNNOTICED_MS = BEAT_LIFE_MS + TOLERANCE_MS + LAST_BEAT_MS


class ViolationError(AssertionError):
    """An invariant does not hold; `invariant` is its number in docs/adversary.md."""

    def __init__(self, invariant: int, text: str) -> None:
        super().__init__(f"invariant {invariant}: {text}")
        self.invariant = invariant


def digest(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return hashlib.sha256(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)).digest()


@dataclass(frozen=True)
class Held:
    """One key, as the model knows it: a name, and the person who holds it."""

    name: str
    person: str


@dataclass(frozen=True)
class Root:
    """Who may do what under one root: names of keys by role."""

    version: int
    sha256: bytes
    requesters: frozenset[Held]
    approvers: frozenset[Held]
    emergency: frozenset[Held]
    beats: frozenset[str]
    threshold: int
    expires_at: int
    # Team of a flag -> people of whom one must approve a change of it; None: no policy at all.
    teams: dict[str, frozenset[str]] | None = None


@dataclass(frozen=True)
class Op:
    """An op: `document` is the parsed JSON of its definition."""

    target: str
    source: str
    key: str
    expected: int
    action: str
    document: Any = None
    readable: bool = True

    @property
    def place(self) -> tuple[str, str, str]:
        return self.target, self.source, self.key


@dataclass(frozen=True)
class Proposal:
    """A proposal that a key has signed."""

    log: str
    by: Held
    names: str
    kind: str
    created_at: int
    expires_at: int
    min_pin: int
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Approval:
    """A decision that a key has signed."""

    log: str
    by: Held
    names: str
    proposal: bytes
    approves: bool
    expires_at: int


@dataclass
class Registry:
    """Everything that was ever signed, by digest: by honest people, and by whoever stole their keys."""

    proposals: dict[bytes, Proposal] = field(default_factory=dict)
    approvals: dict[bytes, Approval] = field(default_factory=dict)
    # Roots that enough people of the one before and of themselves have signed, and what they follow.
    roots: dict[bytes, tuple[bytes, Root]] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """What is in force under one name. `rule` is the JSON of a rule."""

    version: int
    state: str
    default: str | None
    rule: str
    team: str | None = None
    safe: str | None = None
    refers: str | None = None


State = dict[tuple[str, str, str], Definition]


@dataclass
class Shadow:
    """What one chain amounts to, by the design's words: fed with its links, it says whether each may do what it did."""

    registry: Registry
    log: str
    root: Root
    hashes: list[bytes] = field(default_factory=list)
    state: State = field(default_factory=dict)
    versions: dict[tuple[str, str, str], int] = field(default_factory=dict)
    time: int = 0
    min_pin: int = 0
    kills: list[tuple[int, str]] = field(default_factory=list)
    # Emergencies that nobody stands behind yet: digest -> what their ops changed.
    waiting: dict[bytes, tuple[Proposal, State]] = field(default_factory=dict)

    def copy(self) -> "Shadow":
        return replace(
            self,
            hashes=list(self.hashes),
            state=dict(self.state),
            versions=dict(self.versions),
            kills=list(self.kills),
            waiting=dict(self.waiting),
        )

    # --- links ---

    def extend(self, entry_hash: bytes) -> None:
        """A link that changes no flag."""
        self.hashes.append(entry_hash)

    def change(self, entry: Any, entry_hash: bytes) -> None:
        """A link that changed flags: say why it must not have, or what they are now."""
        body = entry.body
        seq = len(self.hashes) + 1
        sha256 = digest(body.proposal.payload_type, body.proposal.payload)
        proposal = self.registry.proposals.get(sha256)
        self._want(proposal is not None, "nobody has signed this proposal")
        assert proposal is not None
        self._frame(entry)
        self._want(proposal.log == self.log, "its proposal is of another environment")
        self._want(entry.published_at <= proposal.expires_at, "its proposal had expired")
        self._want(proposal.min_pin <= seq, "it forbids pins to what is not there yet")
        before = dict(self.state)
        if proposal.kind == "EMERGENCY":
            self._check_emergency(proposal, body, entry.published_at)
            self._fold(proposal, seq)
            if self._asks_for_people(proposal, before):
                self.waiting[sha256] = (proposal, before)
            self.kills.append((entry.published_at, proposal.names))
            self.min_pin = seq
        else:
            self._want(proposal.kind == "CHANGE", f"nobody has said what a {proposal.kind} does")
            self._want(proposal.by in self.root.requesters, "who asked has not the role")
            self._want(proposal.by.person == proposal.names, "it was asked for in another's name")
            people = self._people(proposal, sha256, body.approvals, entry.published_at)
            self._fold(proposal, seq)
            self._want(body.policy == self._allowed_by(proposal, people, before), "it names another reason")
            self.min_pin = max(self.min_pin, proposal.min_pin)
        self.time = entry.published_at
        self.hashes.append(entry_hash)

    def change_root(self, entry: Any, entry_hash: bytes) -> None:
        """A link that changed the root."""
        body = entry.body
        sha256 = digest(body.root.payload_type, body.root.payload)
        known = self.registry.roots.get(sha256)
        self._want(known is not None, "too few people have signed this root")
        assert known is not None
        before, root = known
        self._want(before == self.root.sha256, "its root does not follow the one in force")
        self._want(entry.root_version == self.root.version, "it was published under another root")
        self._want(entry.published_at <= root.expires_at, "its root had expired")
        self._want(entry.published_at >= self.time, "it was published before its predecessor")
        self.root = root
        self.hashes.append(entry_hash)

    def ratify(self, entry: Any, entry_hash: bytes) -> None:
        """A link by which people stand behind an emergency."""
        self._frame(entry)
        self._want(entry.body.proposal_sha256 in self.waiting, "no such emergency waits")
        proposal, before = self.waiting.pop(entry.body.proposal_sha256)
        people = self._people(proposal, entry.body.proposal_sha256, entry.body.approvals, entry.published_at)
        killed = {op.place: self.state.get(op.place) for op in proposal.ops}
        after = before | {place: d for place, d in killed.items() if d is not None}
        self._rules(proposal, people, before, after)
        self.time = entry.published_at
        self.hashes.append(entry_hash)

    # --- rules ---

    def _want(self, holds: bool, text: str) -> None:
        if not holds:
            raise ViolationError(1, f"entry {len(self.hashes) + 1} took effect, although {text}")

    def _frame(self, entry: Any) -> None:
        self._want(entry.log_id == self.log, "it is of another environment")
        self._want(entry.root_version == self.root.version, "it was published under another root")
        self._want(entry.published_at <= self.root.expires_at, "the root had expired")
        self._want(entry.published_at >= self.time, "it was published before its predecessor")

    def _people(self, proposal: Proposal, sha256: bytes, envelopes: Sequence[Any], at_ms: int) -> list[str]:
        people = []
        for envelope in envelopes:
            approval = self.registry.approvals.get(digest(envelope.payload_type, envelope.payload))
            self._want(approval is not None, "nobody has signed this approval")
            assert approval is not None
            self._want(approval.log == self.log, "an approval is of another environment")
            self._want(approval.by in self.root.approvers, "an approver has not the role")
            self._want(approval.by.person == approval.names, "an approval is in another's name")
            self._want(approval.proposal == sha256, "an approval is of another proposal")
            self._want(approval.approves, "it was rejected")
            self._want(approval.names != proposal.names, "who asked approved it")
            self._want(at_ms <= approval.expires_at, "an approval had expired")
            people.append(approval.names)
        self._want(len(set(people)) == len(people), "one person's approval is counted twice")
        self._want(len(people) >= self.root.threshold, "too few people have approved it")
        return people

    def _check_emergency(self, proposal: Proposal, body: Any, at_ms: int) -> None:
        self._want(proposal.by in self.root.emergency, "who asked holds no emergency key")
        self._want(proposal.by.person == proposal.names, "it was asked for in another's name")
        self._want(not body.approvals, "an emergency has approvals")
        self._want(body.policy == "emergency", "it names another reason")
        kills = [op for op in proposal.ops if (op.target, op.action) == ("FLAG", "KILL")]
        self._want(len(kills) == len(proposal.ops) <= EMERGENCY_FLAGS, "an emergency does more than kill a few flags")
        self._want(proposal.expires_at - proposal.created_at <= EMERGENCY_LIFE_MS, "an emergency lives too long")
        self._want(proposal.created_at <= at_ms + EMERGENCY_LIFE_MS, "an emergency was signed ahead")
        recent = [p for t, p in self.kills if p == proposal.names and at_ms - KILLS_PER_MS < t]
        self._want(len(recent) < KILLS, "one person makes too many emergencies")

    def _fold(self, proposal: Proposal, seq: int) -> None:
        places = [op.place for op in proposal.ops]
        self._want(len(set(places)) == len(places), "two of its ops are on one definition")
        for op in proposal.ops:
            self._want(self.versions.get(op.place, 0) == op.expected, f"{op.place} had changed meanwhile")
            old = self.state.get(op.place)
            if op.action == "PUT":
                self._want(op.readable, f"{op.place} cannot be served")
                self.state[op.place] = definition_of(op, seq)
            else:
                self._want(old is not None, f"{op.place} is not there")
                assert old is not None
                if op.action == "KILL":
                    self._want(proposal.kind == "EMERGENCY", f"{op.place} is killed without an emergency")
                    self._want(old.safe is not None, f"{op.place} has no safe variant")
                    self.state[op.place] = replace(
                        old, version=seq, state="ENABLED", default=old.safe, rule="null", refers=None
                    )
                else:
                    del self.state[op.place]
        for op in proposal.ops:
            self.versions[op.place] = seq

    def _teams(self, proposal: Proposal, before: State, after: State) -> list[set[str | None]]:
        """For each op the teams whose rules decide on it; None is the rule of everything else."""
        found = []
        for op in proposal.ops:
            if op.target == "FLAG":
                sides = [side.get(op.place) for side in (before, after)]
                teams = {side.team for side in sides if side is not None}
                teams |= {d.team for place, d in after.items() if place[0] == "FLAG" and _namesake(place, op)}
            else:
                flags = [
                    d
                    for side in (before, after)
                    for place, d in side.items()
                    if place[0] == "FLAG" and _meant(place, op)
                ]
                teams = {None} | {d.team for d in flags if d.refers == op.key}
            found.append(teams)
        return found

    def _rules(self, proposal: Proposal, people: Iterable[str], before: State, after: State) -> str:
        if self.root.teams is None:
            return f"approvals>={self.root.threshold}"
        teams = set().union(*self._teams(proposal, before, after))
        for team in teams & self.root.teams.keys():
            group = self.root.teams[str(team)]
            self._want(bool(group & set(people)), f"nobody of team {team} approved it")
        strict = [str(team) for team in self.root.teams if team in teams]
        lenient = ["any"] if teams - self.root.teams.keys() else []
        return "+".join(strict + lenient)

    def _allowed_by(self, proposal: Proposal, people: Iterable[str], before: State) -> str:
        return self._rules(proposal, people, before, self.state)

    def _asks_for_people(self, proposal: Proposal, before: State) -> bool:
        if self.root.threshold:
            return True
        try:
            self._rules(proposal, (), before, self.state)
        except ViolationError:
            return True
        return False


def _namesake(place: tuple[str, str, str], op: Op) -> bool:
    return place[2] == op.key and place[1] != op.source


def _meant(place: tuple[str, str, str], op: Op) -> bool:
    return op.source in ("", place[1])


def definition_of(op: Op, seq: int) -> Definition:
    """What a PUT leaves."""
    if op.target == "EVALUATOR":
        return Definition(seq, "", None, json.dumps(op.document["evaluator"], sort_keys=True))
    flag, governance = op.document["flag"], op.document.get("governance", {})
    rule = flag.get("targeting")
    return Definition(
        seq,
        flag["state"],
        flag.get("defaultVariant"),
        json.dumps(rule, sort_keys=True),
        governance.get("team"),
        governance.get("safe_variant"),
        rule.get("$ref") if isinstance(rule, dict) else None,
    )


# What a compiled flag says never changes; the flag is kept with it, so that its identity is not another's.
_told: dict[int, tuple[Any, Definition]] = {}
_served: dict[int, tuple[Any, State]] = {}


def forget() -> None:
    """Forget the flags of a story that is over."""
    _told.clear()
    _served.clear()


def _told_of(flag: Any) -> Definition:
    known = _told.get(id(flag))
    if known is None:
        d = flag.definition
        rule = d.targeting
        known = _told[id(flag)] = (
            flag,
            Definition(
                flag.version.number,
                d.state.value,
                d.default_variant,
                json.dumps(rule, sort_keys=True),
                d.governance.team,
                d.governance.safe_variant,
                rule.get("$ref") if isinstance(rule, dict) else None,
            ),
        )
    return known[1]


def served_by(snapshot: Any) -> State:
    """What a reader serves, put as the model puts it."""
    known = _served.get(id(snapshot))
    if known is None:
        served: State = {("FLAG", str(flag.source), str(flag.key)): _told_of(flag) for flag in snapshot.flags()}
        for state_id, evaluator in snapshot.evaluators():
            rule = json.dumps(evaluator.rule, sort_keys=True)
            served["EVALUATOR", str(state_id.source), str(state_id.key)] = Definition(
                evaluator.version.number, "", None, rule
            )
        known = _served[id(snapshot)] = (snapshot, served)
    return known[1]
