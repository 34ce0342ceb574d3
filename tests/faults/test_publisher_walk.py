"""Walks against a real Kafka: killed publishers, a standby, brokers that restart, people who change their minds."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flaghoist.acknowledgement import encode_acknowledgement
from flaghoist.codec import APPROVAL, PROPOSAL, encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.outcomes import Applied, Forked, Prepared, Rejected, Stepped
from flaghoist.records import Acknowledgement, Approval, Op, Proposal
from flaghoist.release_plan import SHARE_MAX, ReleasePlan, Stage, Walk, encode_release
from flaghoist.root import Root
from flaghoist.signing import digest, seal
from flaghoist.state_root import state_root
from flaghoist.values import Action, Decision, FlagKey, Person, ProposalKind, Seq, Source, StateId, Target
from publisher.duty import TAKE_OVER_S
from publisher.inbox import new_proposal_id
from publisher.keys import HeldKey, KeyDirectory, unlock
from tests.faults.test_publisher_service import machine, wait_until
from tests.forge import boolean_flag, gated_flag, release_plan
from tests.kafka.broker import Broker
from tests.publisher_process import running_publisher
from tests.scenarios.operators import PASSPHRASE
from tests.scenarios.trio import Trio

pytestmark = pytest.mark.kafka

RELEASE = FlagKey("spring")
SOAK_S = 3
STAGES = tuple(Stage(f"{share} %", False, share * 1000, SOAK_S) for share in (1, 10, 50, 90, 100))
# A killed publisher is replaced after TAKE_OVER_S, a lost broker is back after some seconds; a loaded machine is slow.
WITHIN_S = TAKE_OVER_S + 60.0
LINUS, GRACE = Person("linus@example.org"), Person("grace@example.org")


@dataclass
class Place:
    """A ledger with people who sign at once, so that what is asked for is in the inbox within milliseconds."""

    trio: Trio
    keys: dict[Person, HeldKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for person, desk in ((LINUS, self.trio.linus), (GRACE, self.trio.grace)):
            keys = KeyDirectory(desk.home / "keys")
            self.keys[person] = unlock(keys.path(str(person).partition("@")[0]), PASSPHRASE.encode)

    @property
    def ledger(self) -> Ledger:
        return self.read()[0]

    def read(self) -> tuple[Ledger, list[Any]]:
        """The ledger as a reader of the whole topic has it, and each outcome."""

        async def records() -> list[bytes]:
            async with open_log(self.trio.ledger)(Stream.LEDGER) as log:
                return [record.value async for record in read_to_end(log)]

        ledger = Ledger(Root.from_bytes(self.trio.root_file.read_bytes()))
        outcomes = [ledger.receive(record) for record in asyncio.run(records())]
        assert not [each for each in outcomes if isinstance(each, Forked | Rejected)]
        return ledger, outcomes

    def ask(self, *ops: Op, **changes: Any) -> str:
        """Let Linus propose these ops and Grace approve them; return the proposal's id."""
        now_ms = time.time_ns() // 1_000_000
        root = Root.from_bytes(self.trio.root_file.read_bytes())
        proposal = Proposal(
            log_id=root.log_id,
            proposal_id=new_proposal_id(now_ms, os.urandom(10)),
            requester=LINUS,
            created_at=now_ms,
            expires_at=now_ms + 3_600_000,
            kind=ProposalKind.CHANGE,
            title="a change",
            reason="a test needs it",
            ticket=None,
            ops=ops,
            activate_at=None,
            min_pin=Seq(0),
        )
        asked = seal(PROPOSAL, replace(proposal, **changes), [self.keys[LINUS]])
        said = Approval(root.log_id, digest(asked), GRACE, Decision.APPROVE, now_ms, now_ms + 3_600_000, None)
        self.send(Stream.INBOX, encode_envelope(asked), encode_envelope(seal(APPROVAL, said, [self.keys[GRACE]])))
        return proposal.proposal_id

    def send(self, stream: Stream, *records: bytes, key: bytes | None = None) -> None:
        async def append() -> None:
            async with open_log(self.trio.ledger)(stream) as log:
                for record in records:
                    await log.append(record, key=key)

        asyncio.run(append())

    def create(self) -> str:
        """Ask for the release with its flag, walked from its first entry on."""
        plan = release_plan("flag.spring", stages=STAGES, owner=LINUS)
        plan = replace(plan, gate=replace(plan.gate, walk=Walk.ON))
        flag = encode_flag(gated_flag("spring"), {})
        return self.ask(
            self.op(Target.RELEASE, RELEASE, encode_release(plan)), self.op(Target.FLAG, FlagKey("flag.spring"), flag)
        )

    def hoist(self, **gate: Any) -> Op:
        """The op that changes the release's gate as told."""
        plan = self.plan
        return self.op(Target.RELEASE, RELEASE, encode_release(replace(plan, gate=replace(plan.gate, **gate))))

    def flag(self, name: str) -> Op:
        return self.op(Target.FLAG, FlagKey(name), encode_flag(boolean_flag(), {}))

    def op(self, target: Target, key: FlagKey, definition: bytes) -> Op:
        version = self.ledger.snapshot.version_of(StateId(target, Source(""), key))
        return Op(target, Source(""), key, version, Action.PUT, definition)

    @property
    def plan(self) -> ReleasePlan:
        return self.ledger.snapshot.releases[RELEASE].plan

    def steps(self) -> list[tuple[int, int]]:
        """The stages that were taken, and when (Unix ms)."""
        _, outcomes = self.read()
        return [(each.entry.body.stage, each.entry.published_at) for each in outcomes if isinstance(each, Stepped)]

    def published_at(self, proposal: str) -> int | None:
        _, outcomes = self.read()
        for each in outcomes:
            if isinstance(each, Applied) and each.authorized.proposal.proposal_id == proposal:
                return int(each.entry.published_at)
        return None

    def until_stage(self, stage: int) -> None:
        """Wait until a stage (from 0) was taken."""
        wait_until(lambda: bool(self.steps()) and self.steps()[-1][0] >= stage, WITHIN_S)

    def until_published(self, proposal: str) -> int:
        wait_until(lambda: self.published_at(proposal) is not None, WITHIN_S)
        found = self.published_at(proposal)
        assert found is not None
        return found


@pytest.fixture
def place(kafka_url: Callable[[], str], tmp_path: Path) -> Place:
    return Place(Trio.begun(tmp_path, ledger=kafka_url()))


def assert_soaked(steps: list[tuple[int, int]]) -> None:
    for (_, earlier), (_, later) in pairwise(steps):
        assert later - earlier >= SOAK_S * 1000


def test_walk_takes_each_stage_once_over_kills_a_takeover_and_a_restart_of_the_brokers(
    place: Place, kafka_broker: Broker
) -> None:
    standby = machine(place.trio, "second")
    with running_publisher(place.trio.ada) as first:
        first.until("inbox.reached")
        place.create()
        place.until_stage(1)
        first.kill()
    with running_publisher(place.trio.ada) as again, running_publisher(standby) as second:
        second.until("publisher.standing_by")
        place.until_stage(2)
        again.kill()
        wait_until(lambda: second.count("epoch.claimed") > 0, WITHIN_S)
        second.until("entry.appended", kind="step", number=4)
        kafka_broker.kill()
        second.until("ledger.lost")
        kafka_broker.start()
        place.until_stage(4)
        second.until("entry.appended", kind="step", number=5)
    steps = place.steps()
    print(
        "\nseconds between the stages:",
        [round((b - a) / 1000, 1) for (_, a), (_, b) in pairwise(steps)],
    )
    assert [stage for stage, _ in steps] == [0, 1, 2, 3, 4]
    assert_soaked(steps)
    assert place.plan.gate.share == SHARE_MAX
    assert place.plan.gate.walk is Walk.OFF


def test_pause_stops_a_walk_resume_lets_it_soak_anew_and_revert_ends_it(place: Place) -> None:
    with running_publisher(place.trio.ada) as publisher:
        publisher.until("inbox.reached")
        place.create()
        place.until_stage(0)
        paused = place.ask(place.hoist(walk=Walk.PAUSED))
        place.until_published(paused)
        before = place.steps()
        time.sleep(2 * SOAK_S)  # in which a walk would have gone on
        place.until_published(place.ask(place.flag("another")))
        assert place.steps() == before
        resumed_ms = place.until_published(place.ask(place.hoist(walk=Walk.ON)))
        place.until_stage(before[-1][0] + 1)
        assert place.steps()[-1][1] - resumed_ms >= SOAK_S * 1000
        closing = place.hoist(share=0, walk=Walk.OFF)
        place.until_published(place.ask(closing, kind=ProposalKind.ROLLBACK))
        before = place.steps()
        time.sleep(2 * SOAK_S)  # likewise
        place.until_published(place.ask(place.flag("yet.another")))
        assert place.steps() == before
        assert place.plan.gate.closed
    assert [stage for stage, _ in before] == list(range(len(before)))
    assert_soaked(before)


def test_prepared_proposal_survives_a_kill_and_is_published_once_the_fleet_has_it(place: Place) -> None:
    with running_publisher(place.trio.ada) as first:
        first.until("inbox.reached")
        asked = place.ask(place.flag("acked"), acked_percent=100)
        first.until("entry.appended", kind="preparation", name=asked)
        first.kill()
    ledger, outcomes = place.read()
    assert isinstance(outcomes[-1], Prepared)
    with running_publisher(place.trio.ada) as again:
        other = place.ask(place.flag("other"))
        again.until("entry.appended", kind="change", name=other)
        assert place.published_at(asked) is None
        now_ms = time.time_ns() // 1_000_000
        ack = Acknowledgement(
            log_id=ledger.root.log_id,
            instance="pod-1",
            service="shop",
            version="1",
            started_at=now_ms,
            written_at=now_ms,
            state="FRESH",
            seq=ledger.head.seq,
            entry_hash=ledger.head.entry_hash,
            state_root=state_root(ledger.snapshot),
            applied_at=now_ms,
            in_force=ledger.head.seq,
            activated_at=now_ms,
            late_ms=None,
            clock_offset_ms=0,
        )
        place.send(Stream.ACKS, encode_acknowledgement(ack), key=b"pod-1")
        again.until("entry.appended", kind="change", name=asked)
    _, outcomes = place.read()
    assert len([each for each in outcomes if isinstance(each, Prepared)]) == 1
    assert len([each for each in outcomes if isinstance(each, Applied)]) == 2
