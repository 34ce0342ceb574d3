"""What releases must do, in the design's words: a model that shares no code with the product and never asks it.

It folds ops into a state by itself, says which entries are refused, when each is in force, and whom a gate lets
through. Whose bucket is below which share it learns from answers, once: any two that do not fit are a violation.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

EVERYBODY: Final = 100_000  # thousandths of a percent
WAIT_MS_MAX: Final = 5 * 60_000
KILLS, KILLS_PER_MS = 10, 600_000
STAFF: Final = {"==": [{"var": "staff"}, True]}
ICELAND: Final = {"==": [{"var": "country"}, "is"]}

Context = Mapping[str, Any]


class ViolationError(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Flag:
    """A flag: `gates` are the releases whose gates it goes on behind; else `by_country` or its default says."""

    version: int
    default: str = "off"
    gates: tuple[str, ...] = ()
    by_country: bool = False
    safe: str | None = "off"

    @property
    def targeting(self) -> Any:
        rule: Any = {"if": [ICELAND, "on", "off"]} if self.by_country else None
        for gate in reversed(self.gates):
            condition = {"$ref": f"release.{gate}"}
            rule = {"if": [condition, "on"]} if rule is None else {"if": [condition, "on", rule]}
        return rule


@dataclass(frozen=True)
class Stage:
    name: str
    audience: bool
    share: int
    soak_s: int


@dataclass(frozen=True)
class Release:
    """A release: its plan, where its gate stands, and what the ledger notes of it."""

    flags: tuple[str, ...]
    requires: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    bucket_by: str = "targetingKey"
    salt: str = "salt"
    staff: bool = False
    lead_ms: int = 0
    title: str = "a release"
    audience: bool = False
    share: int = 0
    walk: str = "off"
    kept: tuple[str, ...] = ()
    version: int = 0
    opened_at: int | None = None
    since_ms: int = 0

    @property
    def closed(self) -> bool:
        return not self.audience and self.share == 0

    def lets_all_through_of(self, audience: bool, share: int) -> bool:
        return self.share >= share and (not audience or self.audience or self.share == EVERYBODY)

    @property
    def next_stage(self) -> int | None:
        for index, stage in enumerate(self.stages):
            if not self.lets_all_through_of(stage.audience, stage.share):
                return index
        return None

    @property
    def soaked_at_ms(self) -> int:
        following = self.next_stage
        reached = len(self.stages) if following is None else following
        return self.since_ms + (self.stages[reached - 1].soak_s * 1000 if reached else 0)

    def stepped(self, index: int) -> "Release":
        stage = self.stages[index]
        return replace(
            self,
            audience=self.audience or stage.audience,
            share=max(self.share, stage.share),
            walk="off" if index == len(self.stages) - 1 else self.walk,
        )

    @property
    def plan(self) -> "Release":
        """All but where its gate stands."""
        return replace(self, audience=False, share=0, walk="off", kept=(), version=0, opened_at=None, since_ms=0)


@dataclass(frozen=True)
class Op:
    """`what` is flag or release; `value` is None for a deletion, and `kill` has none."""

    what: str
    key: str
    value: Flag | Release | None = None
    kill: bool = False
    expected: int = 0


@dataclass(frozen=True)
class State:
    """All that is in force at one seq."""

    flags: Mapping[str, Flag] = field(default_factory=dict)
    releases: Mapping[str, Release] = field(default_factory=dict)
    versions: Mapping[tuple[str, str], int] = field(default_factory=dict)


class Refusal(Exception):
    """Why an entry must be refused."""


def fold(state: State, ops: Sequence[Op], seq: int, at_ms: int, *, emergency: bool = False) -> State:
    """Return what ops make of a state.

    Raises:
        Refusal: they must be refused.
    """
    flags, releases, versions = dict(state.flags), dict(state.releases), dict(state.versions)
    for op in ops:
        there = flags if op.what == "flag" else releases
        if versions.get((op.what, op.key), 0) != op.expected:
            raise Refusal(f"{op.key} is at another version")
        versions[op.what, op.key] = seq
        old = there.get(op.key)
        if (op.kill or op.value is None) and old is None:
            raise Refusal(f"{op.key} is not there")
        if op.kill and isinstance(old, Flag):
            if old.safe is None:
                raise Refusal(f"{op.key} has no safe variant")
            flags[op.key] = replace(old, version=seq, default=old.safe, gates=(), by_country=False)
        elif op.value is None and not op.kill:
            del there[op.key]
        elif isinstance(op.value, Flag):
            flags[op.key] = replace(op.value, version=seq)
        else:
            before = old if isinstance(old, Release) else None
            after = op.value if isinstance(op.value, Release) else before
            assert after is not None
            if op.kill:
                after = replace(after, audience=False, share=0, walk="off", kept=())
            releases[op.key] = _following(before, after, seq, at_ms)
    lost = [key for key, flag in flags.items() if not set(flag.gates) <= releases.keys()]
    if lost:
        raise Refusal(f"{lost} refer to a release that is not there")
    if not emergency:
        changed = {op.key for op in ops if op.what == "flag"}
        for op in ops:
            if op.what == "release":
                _check_release(op.key, state.releases, releases, flags, changed, seq)
    return State(flags, releases, versions)


def _following(before: Release | None, after: Release, seq: int, at_ms: int) -> Release:
    same = before is not None and (before.audience, before.share, before.walk) == (
        after.audience,
        after.share,
        after.walk,
    )
    opened_before = None if before is None else before.opened_at
    return replace(
        after,
        version=seq,
        opened_at=None if after.closed else opened_before or seq,
        since_ms=before.since_ms if before is not None and same else at_ms,
    )


def _check_release(
    key: str,
    before: Mapping[str, Release],
    after: Mapping[str, Release],
    flags: Mapping[str, Flag],
    changed: set[str],
    seq: int,
) -> None:
    release = after.get(key)
    dependents = {name: other for name, other in after.items() if key in other.requires}
    if release is None:
        if dependents:
            raise Refusal(f"{key} is required by {', '.join(dependents)}")
        return
    for name in release.requires:
        if name not in after:
            raise Refusal(f"{key} requires {name}, which is not there")
    if key in _needed(key, after):
        raise Refusal(f"{key} requires itself")
    if key in before and before[key].share == EVERYBODY and release.share < EVERYBODY:
        for name, other in dependents.items():
            if not other.closed:
                raise Refusal(f"{name} is open and requires {key}")
    if not release.closed:
        _check_open(key, release, after, flags, changed, seq)


def _check_open(
    key: str, release: Release, after: Mapping[str, Release], flags: Mapping[str, Flag], changed: set[str], seq: int
) -> None:
    for name in release.requires:
        if after[name].share < EVERYBODY:
            raise Refusal(f"{key} requires {name}, which is not active")
    for name in release.flags:
        if name not in flags or key not in flags[name].gates:
            raise Refusal(f"{name} does not go through the gate of {key}")
        if release.opened_at == seq and name in changed:
            raise Refusal(f"{name} is changed by the entry that opens {key}")


def _needed(key: str, releases: Mapping[str, Release]) -> set[str]:
    found: set[str] = set()
    left = list(releases[key].requires)
    while left:
        name = left.pop()
        if name not in found and name in releases:
            found.add(name)
            left += releases[name].requires
    return found


def conflicts(state: State, key: str) -> set[str]:
    """The flags of a release that are not what they were when it opened."""
    release = state.releases[key]
    if release.opened_at is None:
        return set()
    found = {name for name in release.flags if name not in state.flags}
    for name, flag in state.flags.items():
        if (name in release.flags or key in flag.gates) and flag.version >= release.opened_at:
            found.add(name)
    return found


def check_rollback(state: State, ops: Sequence[Op]) -> None:
    """Refuse a ROLLBACK that does more, or less, than restore.

    Raises:
        Refusal: it must be refused.
    """
    for op in ops:
        if op.what != "release" or not isinstance(op.value, Release):
            raise Refusal("a rollback does something else than close a gate")
        old = state.releases.get(op.key)
        if old is None:
            raise Refusal(f"{op.key} is not there")
        if not op.value.closed or op.value.walk == "on" or op.value.plan != old.plan:
            raise Refusal(f"a rollback does more than close the gate of {op.key}")
        if conflicts(state, op.key) - set(op.value.kept):
            raise Refusal(f"flags of {op.key} have changed since it opened")


# --- answers ---


@dataclass
class Buckets:
    """Between which two shares each user's bucket is, by salt: learned from answers."""

    known: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def through(self, release: Release, context: Context) -> bool | None:
        """Whether a gate lets somebody through; None: not known yet."""
        if release.share == EVERYBODY or (release.audience and context.get("staff") is True):
            return True
        user = context.get(release.bucket_by)
        if release.share == 0 or not user:
            return False
        least, most = self.known.get((release.salt, user), (0, EVERYBODY))
        return True if release.share >= most else False if release.share <= least else None

    def learn(self, release: Release, context: Context, through: bool) -> None:
        place = (release.salt, context[release.bucket_by])
        least, most = self.known.get(place, (0, EVERYBODY))
        self.known[place] = (least, min(most, release.share)) if through else (max(least, release.share), most)

    def check(self, state: State, key: str, context: Context, got: str | None) -> None:
        """Hold an answer against the state; learn from it where it must.

        Raises:
            ViolationError: it cannot be.
        """
        flag = state.flags[key]
        gates = [state.releases[gate] for gate in flag.gates]
        through = [self.through(gate, context) for gate in gates]
        possible = [
            guess
            for guess in product(*([known] if known is not None else [True, False] for known in through))
            if _answer(flag, guess, context) == got
        ]
        if not possible:
            raise ViolationError(
                f"flag {key} of {dict(context)}: want {sorted({_answer(flag, g, context) for g in _all(through)})}, "
                f"got {got}; {flag}, gates {[(g.audience, g.share) for g in gates]}"
            )
        for gate, known, guesses in zip(gates, through, zip(*possible, strict=True), strict=True):
            if known is None and len(set(guesses)) == 1:
                self.learn(gate, context, guesses[0])


def _all(through: Sequence[bool | None]) -> Iterator[tuple[bool, ...]]:
    return product(*([known] if known is not None else [True, False] for known in through))


def _answer(flag: Flag, through: Iterable[bool], context: Context) -> str:
    if any(through):
        return "on"
    if flag.by_country:
        return "on" if context.get("country") == "is" else "off"
    return flag.default


# --- time ---


@dataclass(frozen=True)
class Taken:
    """One entry as a reader has it: its state, from when on it may be served, and whom it kills."""

    state: State
    at_ms: int
    kills: tuple[Op, ...] = ()


class Barrier:
    """What one reader serves, by its own clock."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []

    def take(self, state: State, moment_ms: int, kills: Sequence[Op], now_ms: int) -> None:
        latest = max((each.at_ms for each in self.taken), default=0)
        at_ms = min(max(moment_ms, latest), now_ms + WAIT_MS_MAX)
        self.taken.append(Taken(state, at_ms, tuple(kills)))
        self.serve(now_ms)

    def serve(self, now_ms: int) -> tuple[int, State]:
        """Return the seq in force and its state, with what emergencies behind it kill."""
        seq = max((n for n, each in enumerate(self.taken, 1) if each.at_ms <= now_ms), default=0)
        state = self.taken[seq - 1].state if seq else State()
        for each in self.taken[seq:]:
            for op in each.kills:
                versions = {(op.what, op.key): op.expected}
                try:
                    there = op.key in (state.flags if op.what == "flag" else state.releases)
                    state = fold(replace(state, versions=versions), [op], seq, 0, emergency=True) if there else state
                except Refusal:
                    # What it needs waits: then nothing does.
                    self.taken = [replace(t, at_ms=min(t.at_ms, now_ms)) for t in self.taken]
                    return len(self.taken), self.taken[-1].state
        return seq, state


# --- what a reader of the product has, put as the model puts it ---


def flag_of(compiled: Any) -> tuple[int, str | None, str, str | None]:
    definition = compiled.definition
    rule = json.dumps(definition.targeting, sort_keys=True)
    return compiled.version.number, definition.default_variant, rule, definition.governance.safe_variant


def told(flag: Flag) -> tuple[int, str, str, str | None]:
    return flag.version, flag.default, json.dumps(flag.targeting, sort_keys=True), flag.safe


def release_of(state: Any) -> dict[str, Any]:
    plan = state.plan
    return {
        "flags": tuple(str(key) for _, key in plan.flags),
        "requires": tuple(str(name) for name in plan.requires),
        "stages": tuple((s.name, s.audience, s.share, s.soak_s) for s in plan.stages),
        "gate": (plan.gate.audience, plan.gate.share, plan.gate.walk.value, [str(k) for _, k in plan.gate.kept]),
        "said": (plan.bucket_by, plan.salt, plan.lead_ms, plan.title, plan.audience),
        "noted": (state.version.number, state.opened_at and state.opened_at.number, state.since_ms),
    }


def told_release(release: Release) -> dict[str, Any]:
    return {
        "flags": release.flags,
        "requires": release.requires,
        "stages": tuple((s.name, s.audience, s.share, s.soak_s) for s in release.stages),
        "gate": (release.audience, release.share, release.walk, list(release.kept)),
        "said": (release.bucket_by, release.salt, release.lead_ms, release.title, STAFF if release.staff else None),
        "noted": (release.version, release.opened_at, release.since_ms),
    }
