"""Which step of which release is due, what holds it, and that a walk neither skips nor repeats a stage."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from flaghoist.codec import encode_envelope
from flaghoist.errors import OutcomeUnknown
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Applied, Forked, Rejected, Stepped
from flaghoist.records import Op, Release, Step
from flaghoist.release_plan import SHARE_MAX, Stage, Walk, parse_release
from flaghoist.values import Action, Decision, FlagKey, LogId, ProposalKind, Seq, Source, Target
from publisher.docket import LOOK_AGAIN_MS, Docket, MotionKind
from publisher.inbox import Inbox
from publisher.journal import Journal
from publisher.reader import LedgerReader
from publisher.sequencer import Fenced, Sequencer
from publisher.walk import due_steps, next_due_ms, next_steps
from tests.conformance.memory_log import MemoryLogs
from tests.forge import ADA, EMERGENCY_LABEL, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, gated_flag, release_plan

SOAK_S = 60
SOAK_MS = SOAK_S * 1000
STAGES = (
    Stage("team", True, 0, SOAK_S),
    Stage("one", True, 1000, SOAK_S),
    Stage("ten", True, 10_000, SOAK_S),
    Stage("half", True, 50_000, SOAK_S),
    Stage("all", True, SHARE_MAX, 0),
)
AUDIENCE = {"ends_with": [{"var": "email"}, "@example.org"]}
FLAG = FlagKey("spring")


class Desk:
    """One ledger as a publisher has read it, with a release in it, its inbox, and its docket."""

    def __init__(self, *releases, walk=Walk.ON, **root_options):
        self.forge = Forge(root_options={"emergency": (GRACE,), **root_options})
        self.forge.genesis()
        self.reader = LedgerReader(None, Ledger(self.forge.first_root), through_quarantine=True)
        self.docket = Docket(self.reader)
        self.inbox = Inbox(self.forge.root)
        self.now_ms = NOW_MS
        self._logs, self._asked = MemoryLogs(), 0
        for name in releases or ("spring",):
            self.create(name, walk=walk)

    def create(self, name, *, walk=Walk.ON, **changes):
        """Publish a release of one flag, and let it be walked."""
        fields = {"stages": STAGES, "audience": AUDIENCE, **changes}
        plan = release_plan(f"flag.{name}", **fields)
        self.publish(self.forge.release_op(name, plan), self.forge.op(f"flag.{name}", gated_flag(name)))
        self.publish(self.forge.hoist(name, walk=walk))

    def publish(self, *ops):
        body = self.forge.release(*ops)
        rule = self.forge.root.policy
        self.append(body if rule.built_in else replace(body, policy=rule.rules[-1].name))

    def append(self, body):
        self.forge.now_ms = self.now_ms
        self.forge.append(body)
        self.read()

    def read(self):
        async def scenario():
            for record in self.forge.records[len(self._logs.values(Stream.LEDGER)) :]:
                self._logs.put(Stream.LEDGER, record)
            async with self._logs(Stream.LEDGER) as log:
                self.reader.log = log
                await self.reader.catch_up()

        asyncio.run(scenario())
        assert not [link for link in self.reader.links if isinstance(link, Rejected)]

    def ask(self, *ops, by=ADA, approved_by=(), rejected_by=(), **changes):
        """Put a proposal of these ops into the inbox, with what people say of it."""
        self._asked += 1
        self.forge.now_ms = self.now_ms
        asked = self.forge.proposal(*ops, by=by, proposal_id=f"ASKED{self._asked}", **changes)
        self.inbox.receive(encode_envelope(asked))
        self.say(asked, *approved_by)
        self.say(asked, *rejected_by, decision=Decision.REJECT)
        return asked

    def say(self, asked, *people, decision=Decision.APPROVE):
        for person in people:
            self.inbox.receive(encode_envelope(self.forge.approval(asked, by=person, decision=decision)))

    def next(self, **changes):
        return self.docket.next(self.inbox, now_ms=self.now_ms, **changes)

    def go_on(self):
        """Append what is next, and return it."""
        motion = self.next()
        if motion is not None:
            self.append(motion.body)
        return motion

    def news(self):
        return [(each.kind, each.name, each.refusal.code) for each in self.docket.take_news()]

    @property
    def release(self):
        return self.reader.ledger.snapshot.releases[FLAG]


@pytest.fixture
def desk():
    return Desk()


def test_first_stage_is_due_at_once_and_each_other_when_the_one_before_has_soaked(desk):
    due = []
    for _ in STAGES:
        (step,) = next_steps(desk.reader.ledger.snapshot)
        due.append(step.due_ms - NOW_MS)
        desk.now_ms = step.due_ms - 1
        assert due_steps(desk.reader.ledger, now_ms=desk.now_ms) == []
        assert next_due_ms(desk.reader.ledger, after_ms=desk.now_ms) == step.due_ms
        assert desk.next() is None
        desk.now_ms = step.due_ms
        motion = desk.go_on()
        assert (motion.kind, motion.name, motion.body) == (MotionKind.STEP, "spring", step.step)
        assert desk.release.plan.stages[motion.body.stage] == step.stage
    assert due == [0, SOAK_MS, 2 * SOAK_MS, 3 * SOAK_MS, 4 * SOAK_MS]
    assert desk.release.plan.gate.for_everybody
    assert desk.release.plan.gate.walk is Walk.OFF
    assert next_steps(desk.reader.ledger.snapshot) == []


def test_soak_begins_when_a_stage_is_in_force_not_when_it_is_published():
    desk = Desk(walk=Walk.OFF)
    desk.publish(desk.forge.release_op("spring", replace(desk.forge.plan("spring", walk=Walk.ON), lead_ms=5000)))
    desk.go_on()
    (step,) = next_steps(desk.reader.ledger.snapshot)
    assert step.due_ms == NOW_MS + 5000 + SOAK_MS


def test_steps_are_taken_in_the_order_in_which_they_were_due_then_by_name():
    desk = Desk("b", "a")
    desk.now_ms += 1
    desk.create("c")
    desk.now_ms += 1
    taken = [desk.go_on().name for _ in range(3)]
    assert taken == ["a", "b", "c"]
    desk.now_ms += SOAK_MS
    assert [desk.go_on().name for _ in range(3)] == ["a", "b", "c"]


def test_late_publisher_takes_one_step_and_the_next_soaks_from_then_on(desk):
    desk.go_on()
    desk.now_ms += 10 * SOAK_MS
    assert desk.go_on().body.stage == 1
    assert desk.next() is None
    desk.now_ms += SOAK_MS
    assert desk.go_on().body.stage == 2


@pytest.mark.parametrize("walk", [Walk.OFF, Walk.PAUSED])
def test_release_that_is_not_walked_takes_no_step(walk):
    desk = Desk(walk=walk)
    desk.now_ms += 100 * SOAK_MS
    assert desk.next() is None
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) is None


def test_pause_stops_resume_soaks_anew_and_revert_ends_a_walk(desk):
    desk.go_on()
    desk.now_ms += SOAK_MS - 1
    desk.publish(desk.forge.hoist("spring", walk=Walk.PAUSED))
    desk.now_ms += 10 * SOAK_MS
    assert desk.next() is None
    desk.publish(desk.forge.hoist("spring", walk=Walk.ON))
    desk.now_ms += SOAK_MS - 1
    assert desk.next() is None, "what was seen while it was paused is no soak"
    desk.now_ms += 1
    assert desk.go_on().body.stage == 1
    desk.publish(desk.forge.hoist("spring", audience=False, share=0, walk=Walk.OFF))
    desk.now_ms += 10 * SOAK_MS
    assert desk.next() is None


def test_ramp_by_hand_moves_the_walk_on_to_the_stage_after_it(desk):
    desk.go_on()
    desk.publish(desk.forge.hoist("spring", share=20_000))
    assert desk.next() is None
    desk.now_ms += SOAK_MS
    assert desk.go_on().body.stage == 3
    assert desk.release.plan.gate.share == 50_000


def test_changes_come_before_steps_so_that_a_pause_wins(desk):
    desk.ask(desk.forge.hoist("spring", walk=Walk.PAUSED), approved_by=(LINUS,))
    assert desk.go_on().kind is MotionKind.CHANGE
    assert desk.next() is None
    assert desk.release.plan.gate.walk is Walk.PAUSED


def test_no_step_is_taken_before_the_inbox_was_read_to_its_end(desk):
    assert desk.next(complete=False) is None
    assert desk.next().kind is MotionKind.STEP


# --- what holds a step ---


def killed(desk):
    return Op(Target.RELEASE, Source(""), FLAG, desk.release.version, Action.KILL, None)


@pytest.mark.parametrize(
    ("asks", "holds"),
    [
        pytest.param(lambda desk: desk.forge.hoist("spring", walk=Walk.PAUSED), True, id="pause"),
        pytest.param(lambda desk: desk.forge.hoist("spring", audience=False, walk=Walk.OFF), True, id="revert"),
        pytest.param(lambda desk: desk.forge.release_op("spring", None), True, id="delete"),
        pytest.param(lambda desk: desk.forge.hoist("spring", share=SHARE_MAX), False, id="activate"),
        pytest.param(lambda desk: desk.forge.hoist("spring", share=20_000), False, id="ramp"),
        pytest.param(
            lambda desk: desk.forge.release_op("spring", desk.forge.plan("spring", walk=Walk.PAUSED), version=3),
            False,
            id="pause-of-an-older-version",
        ),
    ],
)
def test_step_waits_while_somebody_asks_the_release_back(desk, asks, holds):
    desk.go_on()
    desk.ask(asks(desk))
    desk.now_ms += SOAK_MS
    assert (desk.next() is None) is holds
    assert desk.news() == ([(MotionKind.STEP, "spring", "asked_back")] if holds else [])


def test_step_goes_on_when_what_asks_the_release_back_is_rejected_or_expires(desk):
    desk.go_on()
    desk.now_ms += SOAK_MS
    asked = desk.ask(desk.forge.hoist("spring", walk=Walk.PAUSED))
    assert desk.next() is None
    desk.say(asked, LINUS, decision=Decision.REJECT)
    assert desk.go_on().body.stage == 1
    desk.now_ms += SOAK_MS
    desk.ask(desk.forge.hoist("spring", walk=Walk.PAUSED), expires_at=desk.now_ms + 10_000)
    assert desk.next() is None
    desk.now_ms += LOOK_AGAIN_MS
    assert desk.go_on().body.stage == 2


def test_emergency_of_somebody_holds_the_step_until_it_is_published(desk):
    desk.go_on()
    desk.now_ms += SOAK_MS
    told = {"kind": ProposalKind.EMERGENCY, "expires_at": desk.now_ms + 600_000, "by": GRACE}
    desk.ask(killed(desk), signed_by=Key(GRACE, EMERGENCY_LABEL), **told)
    assert desk.go_on().kind is MotionKind.EMERGENCY
    assert desk.release.plan.gate.closed
    desk.now_ms += 10 * SOAK_MS
    assert desk.next() is None


FROZEN = """\
version: 1
rules:
  - name: slow
    freeze:
      - {name: party, from: 2026-05-28 20:28, until: 2026-05-29 00:00, zone: UTC}
"""
FREEZE_ENDS_MS = 1_780_012_800_000


def test_step_waits_for_the_end_of_a_freeze_and_says_so_once():
    desk = Desk(policy=FROZEN)
    desk.go_on()
    desk.now_ms += SOAK_MS
    assert FREEZE_ENDS_MS - 4 * 3_600_000 < desk.now_ms < FREEZE_ENDS_MS, "the day of the tests, 20:26:40 UTC"
    desk.now_ms = FREEZE_ENDS_MS - 3_600_000
    for _ in range(10):
        assert desk.next() is None
        desk.now_ms += LOOK_AGAIN_MS
    (refusal,) = desk.docket.take_news()
    assert refusal.refusal.code == "policy_refused"
    assert "'party' is on until 2026-05-29 00:00Z" in str(refusal.refusal)
    desk.now_ms = FREEZE_ENDS_MS
    assert desk.go_on().body.stage == 1


REFUSED = """\
version: 1
rules:
  - name: no-more
    when: {change: ramp}
    refuse: the shop is closed
  - name: others
"""


def test_step_waits_while_the_policy_in_force_refuses_what_was_approved_under_an_earlier_one():
    desk = Desk(root_threshold=2)
    desk.go_on()
    desk.forge.rotate(policy=REFUSED)
    desk.read()
    desk.inbox = Inbox(desk.forge.root)
    desk.now_ms += SOAK_MS
    assert desk.next() is None
    assert desk.news() == [(MotionKind.STEP, "spring", "policy_refused")]
    desk.forge.rotate(policy="")
    desk.read()
    desk.now_ms += LOOK_AGAIN_MS
    assert desk.go_on().body.stage == 1


def test_step_waits_for_what_the_release_requires_and_is_not_retried_in_a_hot_loop():
    desk = Desk(walk=Walk.OFF)
    desk.create("summer", requires=(FLAG,))
    for _ in range(100):
        assert desk.next() is None
    assert desk.news() == [(MotionKind.STEP, "summer", "requirement_unmet")]
    desk.publish(desk.forge.hoist("spring", audience=True, share=SHARE_MAX))
    desk.now_ms += LOOK_AGAIN_MS
    assert desk.go_on().name == "summer"


def test_quarantine_and_an_expired_root_hold_a_walk_and_are_told_once(desk):
    desk.go_on()
    desk.now_ms += SOAK_MS
    theirs = desk.forge.signed(desk.forge.entry(Step(FLAG, Seq(0), 0)))
    desk.reader.ledger.quarantine(Forked(Seq(1), "fork", bytes(32), theirs, frozenset({Key(PUBLISHER).listed.key_id})))
    for _ in range(5):
        assert desk.next() is None
        desk.now_ms += LOOK_AGAIN_MS
    assert desk.news() == [(MotionKind.STEP, "spring", "broken_chain")]
    desk.reader.ledger.quarantined_by = None
    desk.now_ms = desk.forge.root.record.expires_at + 1
    for _ in range(5):
        assert desk.next() is None
        desk.now_ms += LOOK_AGAIN_MS
    assert desk.news() == [(MotionKind.STEP, "spring", "expired")]


def test_what_holds_one_release_holds_no_other():
    desk = Desk("a", "b")
    desk.ask(desk.forge.hoist("a", walk=Walk.PAUSED))
    assert desk.go_on().name == "b"
    assert desk.next() is None


def test_publisher_sleeps_until_the_next_step_and_not_longer(desk):
    desk.go_on()
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) == NOW_MS + SOAK_MS
    desk.ask(desk.forge.hoist("spring", walk=Walk.PAUSED))
    desk.now_ms += SOAK_MS
    assert desk.next() is None
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) == desk.now_ms + LOOK_AGAIN_MS


def test_what_was_told_is_not_told_again_when_the_docket_forgets_what_is_gone(desk):
    desk.ask(desk.forge.hoist("spring", walk=Walk.PAUSED))
    assert desk.next() is None
    desk.docket.prune(desk.inbox)
    assert desk.next() is None
    assert len(desk.news()) == 1


# --- whatever happens ---

MACHINES = ("one", "two")


class Crash(Exception):
    """This publisher is gone."""


class Faulty:
    """A log whose appends may be lost or cut off from their answer."""

    def __init__(self, log, rng, chance):
        self._log, self._rng, self._chance = log, rng, chance
        self.conditional = log.conditional

    async def append(self, value, *, expected_end=None, key=None):
        fate = self._rng.random() / self._chance if self._chance else 1.0
        if fate < 0.25:
            raise Crash  # before it was sent
        if fate < 0.5:
            raise OutcomeUnknown("cut off before it arrived")
        position = await self._log.append(value, expected_end=expected_end, key=key)
        if fate < 0.75:
            raise Crash
        if fate < 1.0:
            raise OutcomeUnknown("cut off before the answer")
        return position

    async def end(self):
        return await self._log.end()

    def follow(self, start):
        return self._log.follow(start)


class World:
    """Two machines with publishers that come and go, people who change their minds, and a clock."""

    def __init__(self, seed, tmp_path):
        self.rng = random.Random(seed)
        self.tmp_path = tmp_path
        self.forge = Forge(root_options={"emergency": (GRACE,)})
        self.logs = MemoryLogs()
        self.now_ms = NOW_MS
        self.inbox = []
        self.machine = MACHINES[0]
        self.counts = Counter()
        self._asked = 0
        self.logs.put(Stream.LEDGER, self.forge.genesis())
        for name in ("spring", "summer"):
            plan = release_plan(f"flag.{name}", stages=STAGES, audience=AUDIENCE, lead_ms=self.rng.choice((0, 2000)))
            body = self.forge.release(
                self.forge.release_op(name, plan), self.forge.op(f"flag.{name}", gated_flag(name))
            )
            self.logs.put(Stream.LEDGER, self.forge.append(body))

    def run(self, turns):
        for _ in range(turns):
            self.now_ms += self.rng.choice((0, 1, 500, SOAK_MS // 2, SOAK_MS - 1, SOAK_MS, 3 * SOAK_MS))
            if self.rng.random() < 0.3:
                self.people()
            if self.rng.random() < 0.2:
                self.machine = self.rng.choice(MACHINES)
            asyncio.run(self.life(faults=0.3))
        # Nobody changes their mind any more, and nothing breaks.
        self.see()
        for name in ("spring", "summer"):
            if self.forge.plan(name).gate.walk is not Walk.ON:
                self.ask(self.forge.hoist(name, walk=Walk.ON))
        for _ in range(2 * len(STAGES) + 2):
            asyncio.run(self.life(faults=0.0))
            self.now_ms += SOAK_MS + 2000

    def see(self):
        """Let the people see the ledger as it is."""
        self.forge.ledger = Ledger(self.forge.first_root)
        for record in self.logs.values(Stream.LEDGER):
            self.forge.ledger.receive(record)
        self.forge.now_ms = self.now_ms

    def people(self):
        self.see()
        name = self.rng.choice(("spring", "summer"))
        gate = self.forge.plan(name).gate
        match self.rng.randrange(5):
            case 0:
                self.ask(self.forge.hoist(name, walk=Walk.PAUSED))
            case 1 | 2:
                self.ask(self.forge.hoist(name, walk=Walk.ON))
            case 3:
                self.ask(self.forge.hoist(name, audience=False, share=0, walk=Walk.OFF))
            case _ if not gate.for_everybody:
                self.ask(self.forge.hoist(name, share=min(SHARE_MAX, gate.share + self.rng.randrange(1, 40_000))))

    def ask(self, op):
        self._asked += 1
        asked = self.forge.proposal(op, proposal_id=f"{self._asked:026d}")
        said = self.forge.approval(asked, by=self.rng.choice((GRACE, LINUS)))
        self.inbox += [encode_envelope(asked), encode_envelope(said)]

    async def life(self, *, faults):
        """One publisher, from its start to its death."""
        async with AsyncExitStack() as stack:
            log = Faulty(await stack.enter_async_context(self.logs(Stream.LEDGER)), self.rng, faults)
            journal = stack.enter_context(Journal.open(self.tmp_path / self.machine, LogId("test")))
            reader = LedgerReader(log, Ledger(self.forge.first_root))
            sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder=self.machine, clock_ms=lambda: self.now_ms)
            try:
                await self.work(sequencer, reader)
            except Crash:
                self.counts["crashes"] += 1
            except (OutcomeUnknown, Fenced):
                self.counts["cut off"] += 1

    async def work(self, sequencer, reader):
        await sequencer.take_over()
        docket, inbox = Docket(reader), Inbox.gathered(self.forge.root, self.inbox)
        for _ in range(self.rng.randrange(1, 6)):
            await sequencer.catch_up()
            motion = docket.next(inbox, now_ms=self.now_ms)
            if motion is None:
                return
            if self.rng.random() < 0.1:
                self.now_ms += self.rng.randrange(2 * SOAK_MS)  # it was held up for a while
            await sequencer.append(motion.body, may_claim=False)
            self.counts[motion.kind] += 1


def told(outcomes):
    """What a reader who knows nothing of walks makes of the ledger: each release's gates, with their times."""
    gates, steps = {}, []
    for outcome in outcomes:
        match outcome:
            case Applied(authorized=authorized):
                ops = authorized.proposal.ops
            case Stepped(op=op):
                ops = [op]
            case _:
                continue
        for op in ops:
            if op.target is not Target.RELEASE:
                continue
            plan = parse_release(op.definition)
            at_ms = outcome.in_force_at_ms or outcome.entry.published_at
            before, since_ms = gates.get(op.key, (None, 0))
            if isinstance(outcome, Stepped):
                steps.append((op.key, before, plan, outcome.entry.published_at - since_ms))
            gates[op.key] = (plan, at_ms if before is None or before.gate != plan.gate else since_ms)
    return gates, steps


@pytest.mark.parametrize("seed", range(20))
def test_walk_takes_every_stage_once_in_order_and_soaked_whatever_dies_or_is_decided_meanwhile(seed, tmp_path):
    world = World(f"walk {seed}", tmp_path)
    world.run(40)
    ledger = Ledger(world.forge.first_root)
    outcomes = [ledger.receive(record) for record in world.logs.values(Stream.LEDGER)]
    assert not [each for each in outcomes if isinstance(each, Rejected | Forked)]
    gates, steps = told(outcomes)
    for _, before, after, soaked_ms in steps:
        reached = -1 if before.stage is None else before.stage
        assert after == before.at_stage(reached + 1), "the next stage, and no other"
        assert before.gate.walk is Walk.ON
        assert soaked_ms >= (before.stages[reached].soak_s * 1000 if reached >= 0 else 0)
        assert after.gate.covers(before.gate), "nobody is shut out"
    assert steps
    assert next_steps(ledger.snapshot) == []
    for plan, _ in gates.values():
        assert plan.gate.for_everybody
    assert world.counts["crashes"] + world.counts["cut off"] > 0


def test_step_that_was_journaled_and_not_sent_is_dated_anew_so_that_no_soak_is_lost(tmp_path):
    world = World("dated", tmp_path)
    world.see()
    world.ask(world.forge.hoist("spring", walk=Walk.ON))
    asyncio.run(world.life(faults=0.0))
    asyncio.run(world.life(faults=0.0))

    async def die_before_it_is_sent():
        async with world.logs(Stream.LEDGER) as log:
            with Journal.open(tmp_path / "one", LogId("test")) as journal:
                reader = LedgerReader(log, Ledger(world.forge.first_root))
                sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder="one", clock_ms=lambda: world.now_ms)
                await sequencer.catch_up()
                docket, inbox = Docket(reader), Inbox.gathered(world.forge.root, world.inbox)
                motion = docket.next(inbox, now_ms=world.now_ms)
                assert motion.kind is MotionKind.STEP
                reader.log = Unsent(log)
                with pytest.raises(Crash):
                    await sequencer.append(motion.body)
                return motion.body

    world.now_ms += SOAK_MS + 2000
    body = asyncio.run(die_before_it_is_sent())
    world.now_ms += 10 * SOAK_MS
    world.rng.seed(1)
    asyncio.run(world.life(faults=0.0))
    world.see()
    ledger = Ledger(world.forge.first_root)
    outcomes = [ledger.receive(record) for record in world.logs.values(Stream.LEDGER)]
    newest = [each for each in outcomes if isinstance(each, Stepped)][-1]
    assert newest.entry.body == body
    assert newest.entry.published_at == world.now_ms
    assert next_due_ms(ledger, after_ms=world.now_ms) >= world.now_ms + SOAK_MS


class Unsent(Faulty):
    """A log before which every publisher dies."""

    def __init__(self, log):
        super().__init__(log, random.Random(0), 0.0)

    async def append(self, value, *, expected_end=None, key=None):
        raise Crash


@pytest.mark.parametrize("lead_ms", [None, 2000])
def test_change_of_a_release_that_was_not_sent_is_dated_anew_too(tmp_path, lead_ms):
    world = World("release", tmp_path)
    world.see()
    asked = world.forge.proposal(world.forge.hoist("spring", walk=Walk.ON), lead_ms=lead_ms)
    body = Release(asked, (world.forge.approval(asked),), "approvals>=1")

    async def append(log_of):
        async with world.logs(Stream.LEDGER) as log:
            with Journal.open(tmp_path / "one", LogId("test")) as journal:
                reader = LedgerReader(log, Ledger(world.forge.first_root))
                sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder="one", clock_ms=lambda: world.now_ms)
                await sequencer.take_over()
                reader.log = log_of(log)
                return await sequencer.append(body)

    with pytest.raises(Crash):
        asyncio.run(append(Unsent))
    world.now_ms += 3_600_000
    link = asyncio.run(append(lambda log: log))
    assert link.entry.published_at == world.now_ms
    assert link.in_force_at_ms == (world.now_ms + lead_ms if lead_ms else 0)
