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
MOMENT_AHEAD_MS = 300_000
EVERYBODY = 100_000  # thousandths of a percent
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
    activate_at: int | None = None
    lead_ms: int | None = None
    acked: int | None = None


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


@dataclass(frozen=True)
class Gated:
    """A release in force: what its plan says, where its gate stands, and what the ledger notes of it.

    Shares are in thousandths of a percent; a stage is (name, audience, share, seconds of soak).
    """

    flags: frozenset[str]
    requires: frozenset[str]
    stages: tuple[tuple[str, bool, int, int], ...]
    said: str
    team: str | None
    lead_ms: int
    audience: bool
    share: int
    walk: str
    kept: frozenset[str]
    version: int = 0
    opened_at: int | None = None
    since_ms: int = 0

    @property
    def closed(self) -> bool:
        return not self.audience and not self.share

    @property
    def plan(self) -> tuple[Any, ...]:
        """All but the gate."""
        return self.flags, self.requires, self.stages, self.said, self.team, self.lead_ms

    @property
    def next_stage(self) -> int | None:
        for n, (_, audience, share, _) in enumerate(self.stages):
            if self.share < share or (audience and not self.audience and self.share < EVERYBODY):
                return n
        return None

    @property
    def soaked_at(self) -> int:
        reached = len(self.stages) if self.next_stage is None else self.next_stage
        return self.since_ms + (self.stages[reached - 1][3] * 1000 if reached else 0)


State = dict[tuple[str, str, str], Definition | Gated]
Place = tuple[str, str, str]


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
    prepared: set[bytes] = field(default_factory=set)

    def copy(self) -> "Shadow":
        return replace(
            self,
            hashes=list(self.hashes),
            state=dict(self.state),
            versions=dict(self.versions),
            kills=list(self.kills),
            waiting=dict(self.waiting),
            prepared=set(self.prepared),
        )

    # --- links ---

    def extend(self, entry_hash: bytes) -> None:
        """A link that changes no flag."""
        self.hashes.append(entry_hash)

    def change(self, entry: Any, entry_hash: bytes) -> int:
        """A link that changed flags: say why it must not have, or what they are now; return its moment (0: none)."""
        body = entry.body
        seq = len(self.hashes) + 1
        sha256, proposal = self._asked(body)
        before = dict(self.state)
        moment_ms = self._judge(entry, body, sha256, proposal)
        self._want(proposal.acked is None or sha256 in self.prepared, "nobody has prepared it")
        self.prepared.discard(sha256)
        if proposal.kind == "EMERGENCY":
            if self._asks_for_people(proposal, before):
                self.waiting[sha256] = (proposal, before)
            self.kills.append((entry.published_at, proposal.names))
            self.min_pin = seq
        elif proposal.kind != "DRILL":
            self.min_pin = max(self.min_pin, proposal.min_pin)
        if proposal.kind != "DRILL":
            self.time = entry.published_at
        self.hashes.append(entry_hash)
        return moment_ms

    def prepare(self, entry: Any, entry_hash: bytes) -> None:
        """A link that shows what is to be published: it must be what may be, and changes nothing."""
        sha256, proposal = self._asked(entry.body.release)
        self._want(proposal.acked is not None, "nobody asked for acknowledgements")
        kept = self.state, self.versions
        self.state, self.versions = dict(self.state), dict(self.versions)
        self._judge(entry, entry.body.release, sha256, proposal)
        self.state, self.versions = kept
        self.prepared.add(sha256)
        self.hashes.append(entry_hash)

    def step(self, entry: Any, entry_hash: bytes) -> int:
        """A link by which the publisher alone went on with a release: only as the plan in force says."""
        self._frame(entry)
        step, seq = entry.body, len(self.hashes) + 1
        release = self.state.get(("RELEASE", "", str(step.release)))
        self._want(isinstance(release, Gated), "there is no such release")
        assert isinstance(release, Gated)
        self._want(release.version == step.expected_version.number, "the release had changed meanwhile")
        self._want(release.walk == "on", "the release is not walked")
        self._want(release.next_stage == step.stage, "the plan has another next stage")
        self._want(entry.published_at >= release.soaked_at, "the stage before has not lasted as long as the plan asks")
        moment_ms = entry.published_at + release.lead_ms if release.lead_ms else 0
        _, audience, share, _ = release.stages[step.stage]
        after = replace(
            release,
            audience=audience or release.audience,
            share=max(share, release.share),
            walk="off" if step.stage == len(release.stages) - 1 else "on",
        )
        place = ("RELEASE", "", str(step.release))
        before = dict(self.state)
        self.state[place] = self._noted(release, after, seq, moment_ms or entry.published_at)
        self.versions[place] = seq
        self._check_release(place, before, set(), seq)
        self.hashes.append(entry_hash)
        return moment_ms

    def _asked(self, body: Any) -> tuple[bytes, Proposal]:
        sha256 = digest(body.proposal.payload_type, body.proposal.payload)
        proposal = self.registry.proposals.get(sha256)
        self._want(proposal is not None, "nobody has signed this proposal")
        assert proposal is not None
        return sha256, proposal

    def _judge(self, entry: Any, body: Any, sha256: bytes, proposal: Proposal) -> int:
        """Fold what a proposal asks for, if the right people stand behind it; return its moment."""
        seq, at_ms = len(self.hashes) + 1, entry.published_at
        self._frame(entry)
        self._want(proposal.log == self.log, "its proposal is of another environment")
        self._want(at_ms <= proposal.expires_at, "its proposal had expired")
        self._want(proposal.min_pin <= seq, "it forbids pins to what is not there yet")
        moment_ms = self._moment(proposal, at_ms)
        before = dict(self.state)
        drills = [op.target == "DRILL" for op in proposal.ops]
        self._want(all(drills) if proposal.kind == "DRILL" else not any(drills), "only drills drill, and do no more")
        if proposal.kind == "EMERGENCY":
            self._check_emergency(proposal, body, at_ms)
            self._fold(proposal, seq, at_ms)
            return 0
        self._want(proposal.by in self.root.requesters, "who asked has not the role")
        self._want(proposal.by.person == proposal.names, "it was asked for in another's name")
        if proposal.kind == "DRILL":
            self._want(not body.approvals and body.policy == "drill", "a drill names approvals, or another reason")
            self._want(not proposal.min_pin, "a drill forbids pins")
            self._fold(proposal, seq, at_ms)
            return 0
        if proposal.kind == "ROLLBACK":
            self._check_rollback(proposal)
        else:
            self._want(proposal.kind == "CHANGE", f"nobody has said what a {proposal.kind} does")
        people = self._people(proposal, sha256, body.approvals, at_ms)
        self._fold(proposal, seq, moment_ms or at_ms)
        self._want(body.policy == self._allowed_by(proposal, people, before), "it names another reason")
        return moment_ms

    def _moment(self, proposal: Proposal, at_ms: int) -> int:
        asked = (proposal.activate_at, proposal.lead_ms, proposal.acked)
        if proposal.kind in ("EMERGENCY", "DRILL"):
            self._want(asked == (None, None, None), "an emergency or a drill has a moment")
        self._want(proposal.acked is None or 1 <= proposal.acked <= 100, "it asks for acknowledgements of nobody")
        if proposal.lead_ms is not None:
            self._want(proposal.activate_at is None, "it has two moments")
            self._want(1 <= proposal.lead_ms <= MOMENT_AHEAD_MS, "its moment is too far ahead")
            return at_ms + proposal.lead_ms
        if proposal.activate_at is not None:
            self._want(at_ms <= proposal.activate_at, "its moment was over")
            self._want(at_ms >= proposal.activate_at - MOMENT_AHEAD_MS, "its moment is too far ahead")
        return proposal.activate_at or 0

    def _check_rollback(self, proposal: Proposal) -> None:
        for op in proposal.ops:
            old = self.state.get(op.place)
            self._want(op.target == "RELEASE" and op.action == "PUT", "a rollback does more than close gates")
            self._want(isinstance(old, Gated), "a rollback is of a release that is not there")
            assert isinstance(old, Gated)
            new = gated_of(op.document["release"])
            self._want(
                new.closed and new.walk != "on" and new.plan == old.plan, "a rollback does more than close gates"
            )
            if old.opened_at is None:
                continue
            for key in old.flags:
                self._want(key in new.kept or ("FLAG", "", key) in self.state, "a flag of a rollback is gone")
            for place, flag in self.state.items():
                if isinstance(flag, Definition) and (place[2] in old.flags or flag.refers == f"release.{op.key}"):
                    changed = place[0] == "FLAG" and flag.version >= old.opened_at
                    self._want(not changed or place[2] in new.kept, "a rollback restores not what was before")

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
        kills = [op for op in proposal.ops if op.target in ("FLAG", "RELEASE") and op.action == "KILL"]
        self._want(len(kills) == len(proposal.ops) <= EMERGENCY_FLAGS, "an emergency does more than kill a few flags")
        self._want(proposal.expires_at - proposal.created_at <= EMERGENCY_LIFE_MS, "an emergency lives too long")
        self._want(proposal.created_at <= at_ms + EMERGENCY_LIFE_MS, "an emergency was signed ahead")
        recent = [p for t, p in self.kills if p == proposal.names and at_ms - KILLS_PER_MS < t]
        self._want(len(recent) < KILLS, "one person makes too many emergencies")

    def _fold(self, proposal: Proposal, seq: int, at_ms: int) -> None:
        places = [op.place for op in proposal.ops]
        self._want(len(set(places)) == len(places), "two of its ops are on one definition")
        before = dict(self.state)
        for op in proposal.ops:
            self._want(self.versions.get(op.place, 0) == op.expected, f"{op.place} had changed meanwhile")
            self._want(not op.source or op.target in ("FLAG", "EVALUATOR"), f"{op.place} has a source")
            self._want(not self._is_gate(op, proposal), f"{op.place} is the gate of a release")
            old = self.state.get(op.place)
            if old is None and op.target in ("RELEASE", "DRILL"):
                rule = f"{op.target.lower()}.{op.key}"
                taken = any(p[0] == "EVALUATOR" and p[2] == rule for p in self.state)
                self._want(not taken, f"{op.place} takes the name of a rule that is there")
            if op.action == "PUT":
                self._want(op.readable, f"{op.place} cannot be served")
                if op.target == "RELEASE":
                    was = old if isinstance(old, Gated) else None
                    self.state[op.place] = self._noted(was, gated_of(op.document["release"]), seq, at_ms)
                else:
                    self.state[op.place] = definition_of(op, seq)
                continue
            self._want(old is not None, f"{op.place} is not there")
            assert old is not None
            if op.action == "KILL":
                self._want(proposal.kind == "EMERGENCY", f"{op.place} is killed without an emergency")
                self.state[op.place] = self._killed(op.place, old, seq, at_ms)
            else:
                del self.state[op.place]
        for place in places:
            self.versions[place] = seq
        self._check_references(proposal)
        if proposal.kind != "EMERGENCY":
            flags = {op.key for op in proposal.ops if op.target == "FLAG"}
            for place in places:
                if place[0] == "RELEASE":
                    self._check_release(place, before, flags, seq)

    def _check_references(self, proposal: Proposal) -> None:
        """No flag refers to the gate of a release that is not there."""
        gone = {op.key for op in proposal.ops if op.target == "RELEASE" and op.action == "DELETE"}
        put = [op.place for op in proposal.ops if op.target == "FLAG" and op.action == "PUT"]
        for place in self.state if gone else put:
            flag = self.state[place]
            gate = flag.refers if isinstance(flag, Definition) else None
            if gate is not None and gate.startswith("release."):
                self._want(("RELEASE", "", gate[8:]) in self.state, f"{place} refers to a release that is not there")

    def _is_gate(self, op: Op, proposal: Proposal) -> bool:
        if op.target != "EVALUATOR":
            return False
        made = {other.place for other in proposal.ops if other.target in ("RELEASE", "DRILL")}
        for prefix, target in (("release.", "RELEASE"), ("drill.", "DRILL")):
            place = (target, "", op.key.removeprefix(prefix))
            if op.key.startswith(prefix) and (place in self.state or place in made):
                return True
        return False

    def _killed(self, place: Place, old: Definition | Gated, seq: int, at_ms: int) -> Definition | Gated:
        if isinstance(old, Gated):
            shut = replace(old, audience=False, share=0, walk="off", kept=frozenset())
            return self._noted(old, shut, seq, at_ms)
        self._want(old.safe is not None, f"{place} has no safe variant")
        return replace(old, version=seq, state="ENABLED", default=old.safe, rule="null", refers=None)

    @staticmethod
    def _noted(old: Gated | None, new: Gated, seq: int, at_ms: int) -> Gated:
        stands = None if old is None else (old.audience, old.share, old.walk)
        same = stands == (new.audience, new.share, new.walk)
        opened = None if new.closed else (old.opened_at if old is not None else None) or seq
        return replace(new, version=seq, opened_at=opened, since_ms=old.since_ms if old is not None and same else at_ms)

    def _check_release(self, place: Place, before: State, flags_changed: set[str], seq: int) -> None:
        """What must hold of a release that a link changed, and between it and others."""
        releases = {p[2]: r for p, r in self.state.items() if isinstance(r, Gated)}
        key, old, new = place[2], before.get(place), releases.get(place[2])
        above = [r for r in releases.values() if key in r.requires]
        if new is None:
            self._want(not above, f"a release requires {key}, which it deletes")
            return
        self._want(new.requires <= releases.keys(), f"{key} requires what is not there")
        needed, left = set[str](), list(new.requires)
        while left:
            name = left.pop()
            if name not in needed:
                needed.add(name)
                left += releases[name].requires if name in releases else ()
        self._want(key not in needed, f"{key} requires itself")
        if isinstance(old, Gated) and old.share == EVERYBODY > new.share:
            self._want(all(r.closed for r in above), f"an open release requires {key}, which it closes")
        if new.closed:
            return
        self._want(all(releases[n].share == EVERYBODY for n in new.requires), f"{key} is open before what it requires")
        for name in new.flags:
            flag = self.state.get(("FLAG", "", name))
            through = isinstance(flag, Definition) and flag.refers == f"release.{key}"
            self._want(through, f"{key} is open, and {name} does not go through its gate")
            self._want(new.opened_at != seq or name not in flags_changed, f"{key} opens and changes {name} at once")

    def _teams(self, proposal: Proposal, before: State, after: State) -> list[set[str | None]]:
        """For each op the teams whose rules decide on it; None is the rule of everything else."""
        found = []
        for op in proposal.ops:
            sides = [side.get(op.place) for side in (before, after)]
            if op.target == "FLAG":
                teams = {side.team for side in sides if side is not None}
                teams |= {d.team for place, d in after.items() if place[0] == "FLAG" and _namesake(place, op)}
            elif op.target == "RELEASE":
                old, new = sides
                teams = {side.team for side in sides if side is not None}
                inert = (not isinstance(old, Gated) or old.closed) and (
                    not isinstance(new, Gated) or (new.closed and new.walk != "on")
                )
                teams |= set() if inert else _teams_behind(f"release.{op.key}", op, before, after)
            else:
                teams = {None} | _teams_behind(op.key, op, before, after)
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


def _teams_behind(rule: str, op: Op, before: State, after: State) -> set[str | None]:
    """The teams of the flags that refer to a shared rule, before or after."""
    return {
        d.team
        for side in (before, after)
        for place, d in side.items()
        if isinstance(d, Definition) and place[0] == "FLAG" and _meant(place, op) and d.refers == rule
    }


def _referred(rule: Any) -> str | None:
    """The one shared rule that a rule of these stories refers to."""
    if isinstance(rule, dict):
        return rule["$ref"] if "$ref" in rule else next(filter(None, map(_referred, rule.values())), None)
    return next(filter(None, map(_referred, rule)), None) if isinstance(rule, list) else None


def gated_of(fields: Any) -> Gated:
    """What a release's document says."""
    known = _gated.get(id(fields))
    if known is None:
        known = _gated[id(fields)] = (fields, _gated_of(fields))
    return known[1]


def _gated_of(fields: Any) -> Gated:
    gate = fields["gate"]
    return Gated(
        frozenset(fields["flags"]),
        frozenset(fields["requires"]),
        tuple((s["name"], s["audience"], round(s["share"] * 1000), s["soak_s"]) for s in fields["stages"]),
        json.dumps([fields["title"], fields["bucket_by"], fields["salt"], fields.get("audience")], sort_keys=True),
        fields.get("team"),
        fields["lead_ms"],
        gate["audience"],
        round(gate["share"] * 1000),
        gate["walk"],
        frozenset(gate.get("kept", ())),
    )


def definition_of(op: Op, seq: int) -> Definition:
    """What a PUT leaves."""
    if op.target == "DRILL":
        drill = op.document["drill"]
        return Definition(seq, str(drill["hoisted"]), None, json.dumps(drill.get("result"), sort_keys=True))
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
        _referred(rule),
    )


# What a compiled flag says never changes; the flag is kept with it, so that its identity is not another's.
_told: dict[int, tuple[Any, Definition]] = {}
_gated: dict[int, tuple[Any, Gated]] = {}
_served: dict[int, tuple[Any, State]] = {}


def forget() -> None:
    """Forget the flags of a story that is over."""
    _told.clear()
    _gated.clear()
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
                _referred(rule),
            ),
        )
    return known[1]


def _told_of_release(release: Any) -> Gated:
    known = _gated.get(id(release))
    if known is None:
        known = _gated[id(release)] = (release, _gated_now(release))
    return known[1]


def _gated_now(release: Any) -> Gated:
    plan = release.plan
    said = [plan.title, plan.bucket_by, plan.salt, plan.audience]
    return Gated(
        frozenset(str(key) for _, key in plan.flags),
        frozenset(map(str, plan.requires)),
        tuple((s.name, s.audience, s.share, s.soak_s) for s in plan.stages),
        json.dumps(said, sort_keys=True),
        plan.team,
        plan.lead_ms,
        plan.gate.audience,
        plan.gate.share,
        plan.gate.walk.value,
        frozenset(str(key) for _, key in plan.gate.kept),
        release.version.number,
        None if release.opened_at is None else release.opened_at.number,
        release.since_ms,
    )


def _belongs(evaluator: str, snapshot: Any) -> bool:
    gate, shadow = evaluator.removeprefix("release."), evaluator.removeprefix("drill.")
    return (gate != evaluator and gate in snapshot.releases) or (shadow != evaluator and shadow in snapshot.drills)


def served_by(snapshot: Any) -> State:
    """What a reader serves, put as the model puts it."""
    known = _served.get(id(snapshot))
    if known is None:
        served: State = {("FLAG", str(flag.source), str(flag.key)): _told_of(flag) for flag in snapshot.flags()}
        for state_id, evaluator in snapshot.evaluators():
            # A gate's rule is the release's: what it lets through is held by tests/releases.
            if not state_id.source and _belongs(str(state_id.key), snapshot):
                continue
            rule = json.dumps(evaluator.rule, sort_keys=True)
            served["EVALUATOR", str(state_id.source), str(state_id.key)] = Definition(
                evaluator.version.number, "", None, rule
            )
        for key, release in snapshot.releases.items():
            served["RELEASE", "", str(key)] = _told_of_release(release)
        for key, drill in snapshot.drills.items():
            result = json.dumps(drill.result, sort_keys=True)
            served["DRILL", "", str(key)] = Definition(drill.version.number, str(drill.hoisted), None, result)
        known = _served[id(snapshot)] = (snapshot, served)
    return known[1]
