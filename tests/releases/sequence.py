"""One random sequence of what people do with releases, by really signed entries, and readers that follow it.

A seed and a set of steps are a sequence: each step draws from a source of its own, so a step can be left out and the
others do what they did. `shrunk` leaves out all that a failure does not need.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from flaghoist.barrier import InForce
from flaghoist.definition import encode_flag
from flaghoist.evaluation import evaluate
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Link, Prepared, Rejected, Stepped
from flaghoist.records import Op as SignedOp
from flaghoist.records import Preparation, Step
from flaghoist.records import Release as SignedRelease
from flaghoist.release_plan import Gate, ReleasePlan, Walk, encode_drill, encode_release
from flaghoist.release_plan import Stage as PlanStage
from flaghoist.snapshot import Snapshot
from flaghoist.state_root import state_root
from flaghoist.values import Action, FlagKey, ProposalKind, Role, Seq, Source, Target
from tests.forge import ADA, EMERGENCY_LABEL, GRACE, LINUS, Forge, Key, allowing_rule, boolean_flag
from tests.releases import model
from tests.releases.model import EVERYBODY, Barrier, Buckets, Flag, Op, Refusal, Release, Stage, State, ViolationError

STEPS: Final = 70
SHRINK_S: Final = 20.0
CLOCKS_MS: Final = (0, -3_000, 2_500, 40_000)
RELEASES: Final = tuple(f"r{n}" for n in range(1, 7))
FLAGS: Final = tuple(f"f{n}" for n in range(1, 13))
SHARES: Final = (1_000, 5_000, 12_500, 30_000, 50_000, 75_000, 99_999)
# Always the same people: some of staff, some from Iceland, one whom nobody can tell from others.
CONTEXTS: Final[Sequence[dict[str, Any]]] = (
    {},
    {"staff": True},
    *(
        {
            "targetingKey": f"user-{n}",
            "account": f"account-{n % 5}",
            **({"staff": True} if n % 9 == 0 else {}),
            **({"country": "is"} if n % 4 == 0 else {}),
        }
        for n in range(18)
    ),
)


class Reader:
    """A reader of the ledger with a clock of its own, that lags, and that is started anew now and then."""

    def __init__(self, world: "World", name: str, clock_ms: int) -> None:
        self.world, self.name, self.clock_ms = world, name, clock_ms
        self.newest_ms = 0
        self.start([])

    def start(self, kept: Sequence[bytes]) -> None:
        """Start with these entries on its disk."""
        self.ledger = Ledger(self.world.forge.first_root)
        self.in_force = InForce(self.ledger.snapshot)
        self.barrier = Barrier()
        self.read = 0
        self.take(kept)

    @property
    def now_ms(self) -> int:
        return self.world.forge.now_ms + self.clock_ms

    def take(self, records: Sequence[bytes]) -> None:
        for data in records:
            link = self.ledger.receive(data)
            if not isinstance(link, Link):
                raise ViolationError(f"{self.name} is told of entry {self.read + 1}: {link}")
            self.in_force = self.in_force.take(link, self.ledger.snapshot, now_ms=self.now_ms)
            moment_ms, kills = self.world.noted[self.read]
            self.read += 1
            self.barrier.take(self.world.history[self.read], moment_ms, kills, self.now_ms)
            want = self.world.roots[self.read]
            if state_root(self.ledger.snapshot) != want:
                raise ViolationError(f"{self.name} at seq {self.read} has another state_root than the publisher had")

    def look(self) -> None:
        """What it serves is one state: that of the seq in force, with later emergencies in it."""
        self.in_force = self.in_force.at(self.now_ms)
        seq, state = self.barrier.serve(self.now_ms)
        snapshot = self.in_force.snapshot
        if snapshot.seq.number != seq:
            raise ViolationError(f"{self.name} serves seq {snapshot.seq}, want {seq} ({self.read} are read)")
        self.world.check_served(self.name, snapshot, state)


class World:
    """One environment, the sequence of what is done to it, and who reads it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.forge = Forge(root_options={"emergency": (GRACE,)})
        self.tally: Counter[str] = Counter()
        self.told: list[str] = []
        self.buckets = Buckets()
        self.history = [State()]
        # Of each entry: its moment, and the kills in it.
        self.noted: list[tuple[int, tuple[Op, ...]]] = []
        self.roots = [state_root(Snapshot.empty(self.forge.root.fractional))]
        self.snapshots = [self.forge.ledger.snapshot]
        self.kills: list[int] = []
        self.approvals = 1
        self.prepared: list[tuple[SignedRelease, Op]] = []
        self.checked: dict[str, tuple[Any, State]] = {}
        self._note(self.forge.genesis(), self.state, 0, ())
        rng = random.Random(f"readers {seed}")
        self.readers = [Reader(self, f"reader {n}", rng.choice(CLOCKS_MS)) for n in (1, 2)]

    @property
    def state(self) -> State:
        return self.history[-1]

    @property
    def seq(self) -> int:
        return len(self.history)

    # --- one step ---

    def step(self, number: int) -> None:
        """Let time pass, have somebody do something, and have readers read."""
        rng = random.Random(f"{self.seed} {number}")
        passed_ms = rng.choice((0, 0, 200, 500, 1_000, 1_000, 2_000, 2_000, 5_000, 20_000, 61_000, 400_000))
        self.forge.now_ms += passed_ms
        acts: Sequence[tuple[int, Callable[[random.Random], str]]] = (
            (6, self._create), (8, self._mend), (2, self._edit_flag), (3, self._edit_plan), (8, self._ramp),
            (5, self._activate),
            (6, self._revert), (5, self._walk), (8, self._step_stage), (2, self._kill_flag), (2, self._kill_release),
            (1, self._delete_flag), (1, self._delete_release), (2, self._expire), (1, self._root), (2, self._prepare),
            (2, self._publish_prepared), (1, self._drill), (1, self._several),
        )  # fmt: skip
        act = rng.choices([each for _, each in acts], [weight for weight, _ in acts])[0]
        if len(self.state.releases) < 4 and rng.random() < 0.5:
            act = self._create
        line = f"step {number} (+{passed_ms / 1000:g} s, seq {self.seq}): "
        self.told.append(line + act.__name__.removeprefix("_").replace("_", " "))
        self.told[-1] = line + act(rng)
        for reader in self.readers:
            self._have_read(reader, rng)

    def _have_read(self, reader: Reader, rng: random.Random) -> None:
        records = self.forge.records
        if rng.random() < 0.6:
            reader.take(
                records[reader.read : len(records) if rng.random() < 0.8 else rng.randint(reader.read, len(records))]
            )
        reader.look()
        if rng.random() < 0.05:
            reader.start(records[: reader.read])
            self.tally["restarted"] += 1
            reader.look()

    def finish(self) -> None:
        """When all moments are over, whoever read live, anew, or from a disk has one state."""
        self.forge.now_ms += 2 * model.WAIT_MS_MAX
        for reader in self.readers:
            reader.take(self.forge.records[reader.read :])
            reader.look()
        for name in ("cold replay", "kept"):
            reader = Reader(self, name, 0)
            reader.take(self.forge.records)
            reader.look()
            self.readers.append(reader)
        ends = {(r.in_force.snapshot.seq.number, state_root(r.in_force.snapshot)) for r in self.readers}
        if ends != {(self.seq - 1, self.roots[-1])}:
            raise ViolationError(f"readers end apart: {[r.in_force.snapshot.seq.number for r in self.readers]}")

    # --- what people do ---

    def _create(self, rng: random.Random) -> str:
        missing = [name for name in RELEASES if name not in self.state.releases]
        key = rng.choice(missing if missing and rng.random() < 0.9 else RELEASES)
        release = self._plan(rng)
        if key in self.state.releases and rng.random() < 0.5:
            release = replace(self.state.releases[key], title=f"again {rng.random()}")
        flags = [name for name in release.flags if rng.random() < 0.95]
        ops = [self._put(name, self._wired(name, key, rng)) for name in flags]
        if rng.random() < 0.1:
            release = replace(release, share=EVERYBODY)
        return self._change([self._put(key, release), *ops], rng)

    def _mend(self, rng: random.Random) -> str:
        """Wire the flags of a release that do not go through its gate, as a release manager would before it opens."""
        key = self._release(rng)
        if key is None:
            return "no release to mend"
        flags = self.state.flags
        lost = [n for n in self.state.releases[key].flags if n not in flags or key not in flags[n].gates]
        if not lost:
            return f"{key} has all its flags"
        return self._change([self._put(name, self._wired(name, key, rng)) for name in lost], rng)

    def _plan(self, rng: random.Random) -> Release:
        shares = sorted(rng.sample(SHARES, rng.randint(0, 3)))
        stages = [Stage(f"{share}", False, share, rng.choice((0, 1, 60))) for share in shares]
        staff = rng.random() < 0.5
        if staff and rng.random() < 0.7:
            stages = [Stage("staff", True, 0, rng.choice((0, 5))), *(replace(s, audience=True) for s in stages)]
        if rng.random() < 0.6:
            stages.append(Stage("all", False, EVERYBODY, 0))
        taken = [name for name in RELEASES if name in self.state.releases]
        return Release(
            flags=tuple(sorted(rng.sample(FLAGS, rng.randint(1, 3)))),
            requires=tuple(sorted(rng.sample(taken, min(len(taken), rng.choice((0, 0, 0, 1, 2)))))),
            stages=tuple(stages),
            bucket_by=rng.choice(("targetingKey", "targetingKey", "account")),
            salt=rng.choice(("s1", "s2", "s3")),
            staff=staff,
            lead_ms=rng.choice((0, 0, 2_000, 60_000)),
        )

    def _wired(self, name: str, release: str, rng: random.Random) -> Flag:
        """A flag as it goes through a release's gate: new, or as it is, and behind no more than two gates."""
        flag = self.state.flags.get(name) or Flag(
            0, by_country=rng.random() < 0.3, safe=rng.choice(("off", "off", "off", "on", None))
        )
        gates = [gate for gate in flag.gates if gate != release]
        return replace(flag, gates=(release, *gates[:1]))

    def _edit_flag(self, rng: random.Random) -> str:
        name = rng.choice(FLAGS)
        flag = self.state.flags.get(name) or Flag(0)
        match rng.randrange(5):
            case 0:
                flag = replace(flag, gates=())
            case 1:
                flag = replace(flag, by_country=not flag.by_country)
            case 2:
                flag = replace(flag, safe=rng.choice((None, "off", "on")))
            case 3:
                flag = replace(flag, gates=(rng.choice(RELEASES),))
            case _:
                flag = replace(flag, default=rng.choice(("on", "off")))
        return self._change([self._put(name, flag)], rng)

    def _edit_plan(self, rng: random.Random) -> str:
        key = self._release(rng)
        if key is None:
            return "no release to edit"
        release, ops = self.state.releases[key], []
        match rng.randrange(5):
            case 0:
                release = replace(release, title=f"title {rng.random()}")
            case 1:
                release = replace(release, requires=tuple(sorted(rng.sample(RELEASES, rng.randint(0, 2)))))
            case 2:
                name = rng.choice(FLAGS)
                release = replace(release, flags=tuple(sorted({*release.flags, name})))
                ops = [self._put(name, self._wired(name, key, rng))] if rng.random() < 0.8 else []
            case 3:
                release = replace(release, flags=release.flags[:1], lead_ms=rng.choice((0, 1_000)))
            case _:
                release = replace(release, salt=rng.choice(("s1", "s2", "s3")))
        return self._change([self._put(key, release), *ops], rng)

    def _ramp(self, rng: random.Random) -> str:
        key = self._release(rng)
        if key is None:
            return "no release to ramp"
        release = self.state.releases[key]
        higher = [share for share in SHARES if share > release.share]
        share = rng.choice(higher if higher and rng.random() < 0.8 else SHARES)
        audience = (release.audience or rng.random() < 0.3) and release.staff
        return self._change([self._put(key, replace(release, share=share, audience=audience))], rng)

    def _activate(self, rng: random.Random) -> str:
        key = self._release(rng)
        if key is None:
            return "no release to activate"
        return self._change([self._put(key, replace(self.state.releases[key], share=EVERYBODY, walk="off"))], rng)

    def _several(self, rng: random.Random) -> str:
        """Two releases in one entry: both, or none."""
        keys = rng.sample(sorted(self.state.releases), min(2, len(self.state.releases)))
        share = rng.choice((0, 30_000, EVERYBODY))
        if not keys:
            return "no releases"
        return self._change([self._put(k, replace(self.state.releases[k], share=share)) for k in keys], rng)

    def _revert(self, rng: random.Random) -> str:
        key = self._release(rng, is_open=rng.random() < 0.9)
        if key is None:
            return "no release to revert"
        release = self.state.releases[key]
        closing = replace(release, audience=False, share=0, walk=rng.choice(("off", "paused")), kept=())
        if rng.random() < 0.4:
            closing = replace(closing, kept=tuple(sorted(model.conflicts(self.state, key))))
        match rng.randrange(10):
            case 0:
                closing = replace(closing, title="a rollback that says something else")
            case 1:
                closing = replace(closing, share=1_000)
        before, was = self.state, self.forge.ledger.snapshot
        said = self._change([self._put(key, closing)], rng, kind=ProposalKind.ROLLBACK)
        if self.state is not before and self.state.versions["release", key] == self.seq - 1:
            self._check_restored(key, release, closing, was)
        return said

    def _check_restored(self, key: str, release: Release, closing: Release, was: Snapshot) -> None:
        """A revert is exact: its flags are, and answer, what they did before; nothing else was touched."""
        now = self.forge.ledger.snapshot
        mine = {name for name, flag in self.state.flags.items() if key in flag.gates or name in release.flags}
        for flag in was.flags():
            found = now.flag(flag.source, flag.key)
            if found is None or model.flag_of(found) != model.flag_of(flag):
                raise ViolationError(f"reverting {key} changed the definition of {flag.key}")
        others = {k: v for k, v in was.releases.items() if k != key}
        if {k: v for k, v in now.releases.items() if k != key} != others:
            raise ViolationError(f"reverting {key} changed other releases")
        for name, context in ((n, c) for n in self.state.flags if n not in mine for c in CONTEXTS):
            if _variant(was, name, context) != _variant(now, name, context):
                raise ViolationError(f"reverting {key} changed answers of {name}, which is none of its flags")
        if release.opened_at is None or closing.kept:
            return
        then = self.snapshots[release.opened_at - 1]
        for name in mine:
            flag_then, flag_now = (s.flag(Source(""), FlagKey(name)) for s in (then, now))
            if flag_then is None or flag_now is None or model.flag_of(flag_then) != model.flag_of(flag_now):
                raise ViolationError(f"reverting {key} left {name} with another definition than it had")
            if self.state.flags[name].gates != (key,):
                continue  # another release has its say as well
            for context in CONTEXTS:
                if _variant(then, name, context) != _variant(now, name, context):
                    raise ViolationError(f"reverting {key} left {name} with another answer to {context} than it gave")
        self.tally["reverted exactly"] += 1

    def _walk(self, rng: random.Random) -> str:
        waits = [n for n, release in self.state.releases.items() if release.next_stage is not None]
        key = rng.choice(waits) if waits and rng.random() < 0.8 else self._release(rng)
        if key is None:
            return "no release to walk"
        release = self.state.releases[key]
        walk = rng.choice(("on", "on", "on", "paused")) if release.walk != "on" else rng.choice(("paused", "off"))
        if walk == "on" and not release.stages:
            return "no stages to walk through"
        return self._change([self._put(key, replace(release, walk=walk))], rng)

    def _step_stage(self, rng: random.Random) -> str:
        walked = [n for n, release in self.state.releases.items() if release.walk == "on"]
        ready = [n for n in walked if self.state.releases[n].next_stage is not None]
        walked = ready or walked
        if not walked and rng.random() < 0.9:
            return self._walk(rng)
        key = rng.choice(walked) if walked and rng.random() < 0.9 else rng.choice(RELEASES)
        release = self.state.releases.get(key)
        following = None if release is None else release.next_stage
        stage = following if following is not None and rng.random() < 0.85 else rng.randint(0, 3)
        version = self.state.versions.get(("release", key), 0) - (rng.random() < 0.1)
        if release is not None and rng.random() < 0.5:
            self.forge.now_ms = max(self.forge.now_ms, release.soaked_at_ms)
        at_ms, lead_ms = self.forge.now_ms, release.lead_ms if release else 0
        moment_ms = at_ms + lead_ms if lead_ms else 0
        after: State | Refusal
        try:
            if release is None or release.walk != "on":
                raise Refusal("it is not walked")
            if version != release.version or stage != release.next_stage:
                raise Refusal("it is another version, or another stage")
            if at_ms < release.soaked_at_ms:
                raise Refusal("the stage before has not soaked")
            op = Op("release", key, release.stepped(stage), expected=version)
            after = model.fold(self.state, [op], self.seq, moment_ms or at_ms)
        except Refusal as refusal:
            after = refusal
        step = Step(FlagKey(key), Seq(max(0, version)), stage)
        return self._append(f"step {key} to stage {stage}", step, after, moment_ms, wanted=Stepped)

    def _kill_flag(self, rng: random.Random) -> str:
        return self._kill(Op("flag", rng.choice(FLAGS), kill=True))

    def _kill_release(self, rng: random.Random) -> str:
        key = self._release(rng) or rng.choice(RELEASES)
        return self._kill(Op("release", key, kill=True))

    def _delete_flag(self, rng: random.Random) -> str:
        return self._change([self._versioned(Op("flag", rng.choice(FLAGS)))], rng)

    def _delete_release(self, rng: random.Random) -> str:
        key = self._release(rng) or rng.choice(RELEASES)
        flags = [name for name, flag in self.state.flags.items() if key in flag.gates and rng.random() < 0.9]
        ops = [self._put(n, replace(self.state.flags[n], gates=())) for n in flags]
        return self._change([self._versioned(Op("release", key)), *ops], rng)

    def _expire(self, rng: random.Random) -> str:
        """A proposal that is published too late, too early for its moment, or after it."""
        key = self._release(rng)
        if key is None:
            return "no release"
        ops = [self._put(key, replace(self.state.releases[key], title=f"late {rng.random()}"))]
        now_ms = self.forge.now_ms
        match rng.randrange(3):
            case 0:
                return self._change(ops, rng, created_at=now_ms - 9, expires_at=now_ms - 1, refused="it has expired")
            case 1:
                return self._change(ops, rng, moment_at=now_ms - 1, refused="its moment is over")
            case _:
                far = now_ms + model.WAIT_MS_MAX + 1
                return self._change(ops, rng, moment_at=far, refused="its moment is too far ahead")

    def _root(self, rng: random.Random) -> str:
        """Another number of approvals from now on."""
        self.approvals = 3 - self.approvals
        roles = dict(self.forge.root.record.roles)
        roles[Role.APPROVER] = replace(roles[Role.APPROVER], threshold=self.approvals)
        data = self.forge.rotate(Key(ADA), roles=roles)
        self._note(data, self.state, 0, ())
        if self.forge.root.version < 2:
            raise ViolationError("the root did not change")
        return f"root: {self.approvals} approvals from now on"

    def _prepare(self, rng: random.Random) -> str:
        key = self._release(rng)
        if key is None:
            return "no release"
        release = self.state.releases[key]
        op = self._put(key, replace(release, share=rng.choice((50_000, EVERYBODY))))
        body = self._signed([op], {"acked_percent": 90, "lead_ms": 2_000})
        at_ms = self.forge.now_ms + 2_000
        after: State | Refusal
        try:
            model.fold(self.state, [op], self.seq, at_ms)
            after = self.state
        except Refusal as refusal:
            after = refusal
        if isinstance(after, State):
            self.prepared.append((body, op))
        said = self._append(f"prepare {_said([op])}", Preparation(body), after, 0, wanted=Prepared)
        if isinstance(after, State) and rng.random() < 0.5:
            self.forge.now_ms += 1_500
            said += "; " + self._publish_prepared(rng, -1)
        if rng.random() < 0.2:  # one that nobody has prepared
            other = self._signed([op], {"acked_percent": 91, "lead_ms": 2_000})
            said += "; " + self._append("publish unprepared", other, Refusal("nobody prepared it"), 0, wanted=Applied)
        return said

    def _publish_prepared(self, rng: random.Random, which: int | None = None) -> str:
        if not self.prepared:
            return "nothing is prepared"
        body, op = self.prepared.pop(rng.randrange(len(self.prepared)) if which is None else which)
        moment_ms = self.forge.now_ms + 2_000
        after: State | Refusal
        try:
            if len(body.approvals) < self.approvals or body.policy != allowing_rule(self.forge.root):
                raise Refusal("the root asks for other approvals now")
            after = model.fold(self.state, [op], self.seq, moment_ms)
        except Refusal as refusal:
            after = refusal
        return self._append(f"publish what was prepared, {_said([op])}", body, after, moment_ms, wanted=Applied)

    def _drill(self, rng: random.Random) -> str:
        key = rng.choice(RELEASES)
        op = SignedOp(
            Target.DRILL, Source(""), FlagKey(key), Seq(0), Action.PUT, encode_drill(hoisted=rng.random() < 0.5)
        )
        op = replace(op, expected_version=self.forge.ledger.snapshot.version_of(op.state_id))
        proposal = self.forge.proposal(op, kind=ProposalKind.DRILL)
        return self._append(f"drill {key}", SignedRelease(proposal, (), "drill"), self.state, 0, wanted=Applied)

    # --- how it becomes an entry, and what must be true of it ---

    def _release(self, rng: random.Random, *, is_open: bool = False) -> str | None:
        names = [n for n, release in self.state.releases.items() if not is_open or not release.closed]
        return rng.choice(names) if names else None

    def _versioned(self, op: Op) -> Op:
        return replace(op, expected=self.state.versions.get((op.what, op.key), 0))

    def _put(self, key: str, value: Flag | Release) -> Op:
        return self._versioned(Op("flag" if isinstance(value, Flag) else "release", key, value))

    def _kill(self, op: Op) -> str:
        op = self._versioned(op)
        now_ms = self.forge.now_ms
        after: State | Refusal
        try:
            if sum(now_ms - model.KILLS_PER_MS < when for when in self.kills) >= model.KILLS:
                raise Refusal("too many emergencies")
            after = model.fold(self.state, [op], self.seq, now_ms, emergency=True)
            self.kills.append(now_ms)
        except Refusal as refusal:
            after = refusal
        proposal = self.forge.proposal(
            _signed_op(op),
            by=GRACE,
            signed_by=Key(GRACE, EMERGENCY_LABEL),
            kind=ProposalKind.EMERGENCY,
            expires_at=now_ms + 600_000,
        )
        body = SignedRelease(proposal, (), "emergency")
        return self._append(_said([op]), body, after, 0, wanted=Applied, kills=(op,))

    def _change(
        self,
        ops: Sequence[Op],
        rng: random.Random,
        *,
        kind: ProposalKind = ProposalKind.CHANGE,
        refused: str | None = None,
        moment_at: int | None = None,
        **changes: Any,
    ) -> str:
        """Propose, approve and publish ops, in the ordinary way or with something amiss."""
        now_ms, moment_ms, note = self.forge.now_ms, 0, ""
        if moment_at is not None:
            changes["activate_at"] = moment_at
        elif refused is None:
            match rng.randrange(8):
                case 0 | 1:
                    lead_ms = rng.choice((1, 2_000, 30_000, model.WAIT_MS_MAX))
                    changes["lead_ms"], moment_ms = lead_ms, now_ms + lead_ms
                case 2:
                    moment_ms = now_ms + rng.choice((0, 5_000, model.WAIT_MS_MAX))
                    changes["activate_at"] = moment_ms
        approvals = self.approvals
        if rng.random() < 0.03:
            refused, approvals, note = "too few have approved it", self.approvals - 1, ", approved by too few"
        if rng.random() < 0.04:
            ops = [replace(ops[0], expected=ops[0].expected + 1), *ops[1:]]
        body = self._signed(ops, {"kind": kind, **changes}, approvals=approvals)
        after: State | Refusal
        try:
            if refused is not None:
                raise Refusal(refused)
            if kind is ProposalKind.ROLLBACK:
                model.check_rollback(self.state, ops)
            after = model.fold(self.state, ops, self.seq, moment_ms or now_ms)
        except Refusal as refusal:
            after = refusal
        moment = f", in force in {(moment_ms - now_ms) / 1000:g} s" if moment_ms else ""
        what = f"{'roll back' if kind is ProposalKind.ROLLBACK else 'change'} {_said(ops)}{moment}{note}"
        return self._append(what, body, after, moment_ms, wanted=Applied)

    def _signed(self, ops: Sequence[Op], changes: dict[str, Any], *, approvals: int | None = None) -> SignedRelease:
        proposal = self.forge.proposal(*map(_signed_op, ops), **changes)
        people = (GRACE, LINUS)[: self.approvals if approvals is None else approvals]
        return SignedRelease(
            proposal,
            tuple(self.forge.approval(proposal, by=person) for person in people),
            allowing_rule(self.forge.root),
        )

    def _append(
        self,
        what: str,
        body: Any,
        after: State | Refusal,
        moment_ms: int,
        *,
        wanted: type,
        kills: tuple[Op, ...] = (),
    ) -> str:
        """Append an entry, and hold what became of it against the model."""
        ledger, before, was = self.forge.ledger, self.state, self.forge.ledger.snapshot
        data = self.forge.signed(self.forge.entry(body))
        outcome = ledger.judge(data)
        self.forge.append(body)
        if isinstance(after, Refusal):
            said = f"{what} -> refused ({getattr(getattr(outcome, 'refusal', None), 'code', '?')}: {after})"
            if not isinstance(outcome, Rejected):
                raise ViolationError(f"{what}: want it refused since {after}, got {type(outcome).__name__}")
            self._note(data, before, 0, ())
            if state_root(ledger.snapshot) != state_root(was) or ledger.snapshot.releases is not was.releases:
                raise ViolationError(f"{what}: it was refused, and changed the state")
            self.tally["refused"] += 1
            self.tally[f"refused: {outcome.refusal.code}"] += 1
            return said
        if not isinstance(outcome, wanted):
            raise ViolationError(f"{what}: want it to be {wanted.__name__}, got {outcome}"[:2000])
        if isinstance(outcome, Applied | Stepped) and outcome.in_force_at_ms != moment_ms:
            raise ViolationError(f"{what}: want it in force at {moment_ms}, got {outcome.in_force_at_ms}")
        self._note(data, after, moment_ms, kills)
        self.tally[what.split()[0] + (" " + what.split()[1] if what.startswith("roll") else "")] += 1
        return f"{what} -> done"

    def _note(self, data: bytes, after: State, moment_ms: int, kills: tuple[Op, ...]) -> None:
        """Note an entry as readers must find it."""
        snapshot = self.forge.ledger.snapshot
        if self.forge.records[-1] != data or snapshot.seq.number != self.seq:
            raise ViolationError(f"the ledger is at seq {snapshot.seq}, want {self.seq}")
        self.noted.append((moment_ms, kills))
        self.history.append(after)
        self.roots.append(state_root(snapshot))
        self.snapshots.append(snapshot)
        releases = {str(key): model.release_of(state) for key, state in snapshot.releases.items()}
        want = {key: model.told_release(release) for key, release in after.releases.items()}
        for key in releases.keys() | want.keys():
            if releases.get(key) != want.get(key):
                raise ViolationError(f"release {key}: want {want.get(key)}, got {releases.get(key)}")
        self.check_served("the fold", snapshot, after)

    def check_served(self, who: str, snapshot: Snapshot, state: State) -> None:
        """What is served is this state, and no mix of two: definitions, and the answer of each flag to everybody."""
        known = self.checked.get(who)
        if known is not None and known[0] is snapshot.view.flags and known[1] == state:
            return
        served = {str(flag.key): model.flag_of(flag) for flag in snapshot.flags()}
        want = {key: model.told(flag) for key, flag in state.flags.items()}
        for key in served.keys() | want.keys():
            if served.get(key) != want.get(key):
                raise ViolationError(f"{who}: flag {key}: want {want.get(key)}, got {served.get(key)}")
        for key in state.flags:
            for context in CONTEXTS:
                try:
                    self.buckets.check(state, key, context, _variant(snapshot, key, context))
                except ViolationError as violation:
                    raise ViolationError(f"{who} at seq {snapshot.seq}: {violation}") from None
                self.tally["answers"] += 1
        self.checked[who] = (snapshot.view.flags, state)


def _variant(snapshot: Snapshot, key: str, context: dict[str, Any]) -> str | None:
    return evaluate(snapshot.view, key, context, now_s=0).variant


def _signed_op(op: Op) -> SignedOp:
    target = Target.FLAG if op.what == "flag" else Target.RELEASE
    action = Action.KILL if op.kill else Action.DELETE if op.value is None else Action.PUT
    document = None
    if isinstance(op.value, Flag):
        rule = {} if op.value.targeting is None else {"targeting": op.value.targeting}
        governance = {} if op.value.safe is None else {"safe_variant": op.value.safe}
        document = encode_flag(boolean_flag(op.value.default, **rule), governance)
    elif isinstance(op.value, Release):
        document = encode_release(_plan_of(op.value))
    return SignedOp(target, Source(""), FlagKey(op.key), Seq(op.expected), action, document)


def _plan_of(release: Release) -> ReleasePlan:
    def named(keys: Sequence[str]) -> tuple[tuple[Source, FlagKey], ...]:
        return tuple((Source(""), FlagKey(key)) for key in keys)

    return ReleasePlan(
        title=release.title,
        owner=ADA,
        team=None,
        services=(),
        flags=named(release.flags),
        bucket_by=release.bucket_by,
        salt=release.salt,
        audience=model.STAFF if release.staff else None,
        stages=tuple(PlanStage(s.name, s.audience, s.share, s.soak_s) for s in release.stages),
        requires=tuple(FlagKey(name) for name in release.requires),
        lead_ms=release.lead_ms,
        ticket=None,
        expires_at=None,
        gate=Gate(release.audience, release.share, Walk(release.walk), named(release.kept)),
    )


def _said(ops: Sequence[Op]) -> str:
    parts = []
    for op in ops:
        if op.kill or op.value is None:
            parts.append(f"{'kill' if op.kill else 'delete'} {op.what} {op.key}")
        elif isinstance(op.value, Release):
            r = op.value
            gate = f"{r.share / 1000:g} %{' and staff' if r.audience else ''}, walk {r.walk}"
            parts.append(f"{op.key} [{' '.join(r.flags)}] requires [{' '.join(r.requires)}] {gate} kept {list(r.kept)}")
        else:
            parts.append(f"{op.key} {op.value.default} behind {list(op.value.gates)}")
    return "; ".join(parts)


def play(seed: int, steps: Collection[int] = range(STEPS)) -> World:
    """Play a sequence.

    Raises:
        ViolationError: something does not hold; so do other exceptions of the product.
    """
    world = World(seed)
    failure: Exception | None = None
    try:
        for number in sorted(steps):
            world.step(number)
        world.told.append("the end")
        world.finish()
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is told with what led to it)
        failure = error
    if failure is not None:
        raise SequenceError(seed, list(world.told), failure) from failure
    return world


class SequenceError(AssertionError):
    """A sequence in which something does not hold, and all that was done in it."""

    def __init__(self, seed: int, told: Sequence[str], failure: Exception) -> None:
        lines = "\n".join(told)
        super().__init__(f"seed {seed}:\n{lines}\n{type(failure).__name__}: {failure}")
        self.failure = failure
        self.steps = len(told)


def fails(seed: int, steps: Collection[int]) -> SequenceError | None:
    try:
        play(seed, steps)
    except SequenceError as error:
        return error
    return None


def shrunk(seed: int, *, seconds: float = SHRINK_S) -> SequenceError | None:
    """Return the failure of a seed with as few steps as can be found in the time; None when it does not fail."""
    found = fails(seed, range(STEPS))
    if found is None:
        return None
    steps, until = list(range(found.steps)), time.monotonic() + seconds
    size = max(1, len(steps) // 2)
    while size and time.monotonic() < until:
        at = 0
        while at < len(steps) and time.monotonic() < until:
            fewer = steps[:at] + steps[at + size :]
            error = fails(seed, fewer)
            if error is not None and type(error.failure) is type(found.failure):
                found, steps = error, fewer
            else:
                at += size
        size //= 2
    return found
