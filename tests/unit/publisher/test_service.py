"""The publisher's service on a log in memory: real keys, records, journals and verifier; time that hurries."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import structlog

from flaghoist.acknowledgement import encode_acknowledgement
from flaghoist.codec import HEARTBEAT, decode_envelope, encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.errors import Unavailable, WrongRole
from flaghoist.freshness import Counted, Heartbeats, Proof
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Applied, Forked, Prepared, Ratified, RootChanged, Stepped, Void
from flaghoist.records import Acknowledgement, EpochClaim, Op, Release, RoleGrant, Step
from flaghoist.release_plan import Stage, Walk
from flaghoist.values import Action, Decision, FlagKey, LogId, Person, Role, Seq, Source, Target
from publisher.heart import BEAT_KEY, Heart, once
from publisher.journal import Claim, Journal
from publisher.reader import LedgerReader
from publisher.sequencer import Fenced, Sequencer
from publisher.service import Clock, LedgerCut, Pace, Service, check_journal
from tests.conformance.memory_log import MemoryLogs
from tests.forge import (
    ADA,
    BEAT_LABEL,
    GRACE,
    LINUS,
    NOW_MS,
    PUBLISHER,
    Forge,
    Key,
    boolean_flag,
    gated_flag,
    release_plan,
)

PACE = Pace(beat_s=0.05, standby_s=0.01, take_over_s=0.4, retry_max_s=0.05)
WITHIN_S = 10.0


class Place:
    """One environment on a log in memory, and any number of machines with a publisher."""

    def __init__(self, tmp_path, **root_options):
        self.tmp_path = tmp_path
        options = {"beats": True, "emergency": (GRACE,), "root_threshold": 2, **root_options}
        self.forge = Forge(root_options=options)
        self.logs = MemoryLogs(probe_s=0.05)
        self.now_ms = NOW_MS
        self.logs.put(Stream.LEDGER, self.forge.genesis())

    def put(self, *envelopes):
        for envelope in envelopes:
            self.logs.put(Stream.INBOX, encode_envelope(envelope))

    def propose(self, key, *, approved_by=(LINUS,), **changes):
        asked = self.forge.proposal(self.forge.op(key, boolean_flag()), proposal_id=key.upper(), **changes)
        self.put(asked, *(self.forge.approval(asked, by=person) for person in approved_by))
        return asked

    @asynccontextmanager
    async def service(self, machine="one", *, key=None, heart=True, logs=None, **options):
        """A service that runs while the block does, with its task."""
        logs = logs or self.logs
        async with AsyncExitStack() as stack:
            log = await stack.enter_async_context(self.logs(Stream.LEDGER))
            journal = stack.enter_context(Journal.open(self.tmp_path / machine, LogId("test"), service=True))
            reader = LedgerReader(log, Ledger(self.forge.first_root), through_quarantine=True)
            await reader.catch_up()
            key = key or Key(PUBLISHER)
            sequencer = Sequencer(reader, journal, key, holder=machine, clock_ms=lambda: self.now_ms)
            check_journal(journal, reader)
            service = Service(
                logs,
                reader,
                sequencer,
                publisher_key=key.listed.key_id,
                heart=Heart(Key(PUBLISHER, BEAT_LABEL), holder=machine) if heart else None,
                holder=machine,
                clock=Clock(now_ms=lambda: self.now_ms),
                pace=PACE,
                **options,
            )
            service.task = task = asyncio.create_task(service.run())
            try:
                yield service
            finally:
                service.stop()
                async with asyncio.timeout(WITHIN_S):
                    await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def ledger(self):
        """The ledger as a reader of the whole log sees it, and every outcome."""
        ledger = Ledger(self.forge.first_root)
        return ledger, [ledger.receive(value) for value in self.logs.values(Stream.LEDGER)]

    def names(self):
        """What the ledger's releases and other entries are called, in order, from the second entry on."""
        _, outcomes = self.ledger()
        assert not [each for each in outcomes if isinstance(each, Forked)]
        named = []
        for each in outcomes[1:]:
            match each:
                case Applied(authorized=authorized):
                    named.append(authorized.proposal.proposal_id)
                case RootChanged(root=root):
                    named.append(f"root {root.version}")
                case Ratified():
                    named.append("ratified")
                case Void():
                    named.append("void")
                case _:
                    named.append(each.entry.body.holder)
        return named

    def beats(self):
        """The heartbeats in the log, decoded; only the newest is kept."""
        return [HEARTBEAT.decode(decode_envelope(value).payload) for value in self.logs.values(Stream.META)]


async def until(condition, within_s=WITHIN_S):
    """Return once a condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)  # between two looks


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def told(monkeypatch):
    """The events that services log."""
    with structlog.testing.capture_logs() as events:
        yield events


def guarded(place, key="pay"):
    """Publish a flag that can be killed."""
    definition = encode_flag(boolean_flag("on"), {"safe_variant": "off"})
    op = Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, definition)
    place.logs.put(Stream.LEDGER, place.forge.append(place.forge.release(op)))


def test_what_enough_people_approve_is_appended_and_the_new_head_is_beaten(place):
    async def scenario():
        async with place.service():
            await until(lambda: place.beats())
            place.propose("a")
            await until(lambda: place.names() == ["one", "A"])
            await until(lambda: place.beats()[-1].seq == place.ledger()[0].head.seq)
        return place.logs.values(Stream.META)

    (record,) = run(scenario())
    ledger, _ = place.ledger()
    reader = Heartbeats(ledger)
    assert isinstance(reader.receive(record, now_ms=place.now_ms), Counted)
    assert reader.standing(now_ms=place.now_ms).proof is Proof.FRESH


def test_what_too_few_approve_waits_for_the_last_approval(place):
    async def scenario():
        async with place.service() as service:
            asked = place.propose("a", approved_by=())
            await until(lambda: len(service.inbox) == 1 and place.names() == ["one"])
            place.put(place.forge.approval(asked, by=LINUS))
            await until(lambda: place.names() == ["one", "A"])

    run(scenario())


def test_what_waits_is_appended_once_emergencies_first(place):
    guarded(place)
    for key in ("a", "b"):
        place.propose(key)
    place.put(place.forge.kill_proposal("pay", proposal_id="KILL"))

    async def scenario():
        async with place.service():
            await until(lambda: len(place.names()) >= 5)
        async with place.service():  # a restart reads the same inbox
            await until(lambda: place.beats()[-1].seq == place.ledger()[0].head.seq)

    run(scenario())
    assert place.names()[1:] == ["one", "KILL", "A", "B"]


def test_rejection_further_on_in_the_inbox_blocks_at_the_start_too(place):
    asked = place.propose("a")
    for number in range(200):  # several batches
        place.propose(f"junk-{number}", approved_by=())
    place.put(place.forge.approval(asked, by=GRACE, decision=Decision.REJECT))

    async def scenario():
        async with place.service():
            place.propose("b")
            await until(lambda: "B" in place.names())

    run(scenario())
    assert place.names() == ["one", "B"]


def test_emergency_is_ratified_when_enough_stand_behind_it(place):
    guarded(place)
    kill = place.forge.kill_proposal("pay", proposal_id="KILL")
    place.put(kill)

    async def scenario():
        async with place.service():
            await until(lambda: "KILL" in place.names())
            place.now_ms += 3_600_000  # long after the emergency itself has expired
            place.forge.now_ms = place.now_ms
            place.put(place.forge.approval(kill, by=ADA))
            await until(lambda: place.names()[-1] == "ratified")
        ledger, _ = place.ledger()
        assert not ledger.unratified

    run(scenario())


def test_root_signed_in_separate_envelopes_is_appended_and_who_it_lists_counts_from_then_on(place):
    ken = Key(Person("ken@example.org"))
    record = place.forge.root.record
    roles = {**record.roles}
    for role in (Role.REQUESTER, Role.APPROVER):
        roles[role] = RoleGrant(roles[role].key_ids | {ken.listed.key_id}, roles[role].threshold)
    changes = {"keys": (*record.keys, ken.listed), "roles": roles}
    early = place.forge.proposal(place.forge.op("kens", boolean_flag()), by=ken.person, proposal_id="KENS")
    place.put(early, place.forge.approval(early, by=GRACE))

    async def scenario():
        async with place.service() as service:
            await until(lambda: service.inbox.dropped == 1)
            head = place.ledger()[0]
            place.forge.ledger = head
            for key in (Key(ADA), Key(GRACE)):
                place.put(place.forge.next_root(key, **changes))
            await until(lambda: "KENS" in place.names())
            await until(lambda: place.beats()[-1].root_version == 2)

    run(scenario())
    assert place.names() == ["one", "root 2", "KENS"]


def test_publisher_whose_key_a_new_root_no_longer_lists_ends_with_what_to_do(place, told):
    successor = Key(PUBLISHER, "next")
    record = place.forge.root.record
    roles = {**record.roles, Role.PUBLISHER: RoleGrant(frozenset({successor.listed.key_id}), 1)}

    async def scenario():
        async with place.service() as service:
            await until(lambda: service.duty.working)
            place.forge.ledger = place.ledger()[0]
            place.put(place.forge.next_root(Key(ADA), Key(GRACE), keys=(*record.keys, successor.listed), roles=roles))
            await until(lambda: "root 2" in place.names())
            await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "inbox"])

    with pytest.raises(BaseExceptionGroup) as raised:
        run(scenario())
    refusal = raised.value.exceptions[0]
    assert isinstance(refusal, WrongRole)
    assert "start the publisher with the new key" in refusal.hint


# --- several publishers ---


def test_of_two_one_works_and_the_other_takes_over_when_it_falls_silent(place, told):
    async def scenario():
        async with AsyncExitStack() as stack:
            async with place.service("one") as first:
                await until(lambda: first.duty.working)
                second = await stack.enter_async_context(place.service("two"))
                await until(lambda: any(e["event"] == "publisher.standing_by" for e in told))
                place.propose("a")
                await until(lambda: "A" in place.names())
                await asyncio.sleep(3 * PACE.take_over_s)  # as long as it beats, nobody takes its place
                assert not second.duty.working
            place.propose("b")
            await until(lambda: "B" in place.names())

    run(scenario())
    assert place.names() == ["one", "A", "two", "B"]


def test_standby_takes_over_at_once_when_the_other_is_stopped_and_after_a_silence_when_it_is_killed(place, told):
    async def timed(condition):
        began = asyncio.get_running_loop().time()
        await until(condition)
        return asyncio.get_running_loop().time() - began

    def standing_by(count):
        return lambda: sum(event["event"] == "publisher.standing_by" for event in told) >= count

    async def scenario():
        async with AsyncExitStack() as stack:
            async with place.service("one") as first:
                await until(lambda: first.duty.working)
                second = await stack.enter_async_context(place.service("two"))
                await until(standing_by(1))
            assert await timed(lambda: second.duty.working) < PACE.take_over_s / 2
            await until(lambda: place.beats()[-1].holder == "two")
            third = await stack.enter_async_context(place.service("three"))
            await until(standing_by(2))
            second.task.cancel()
            assert await timed(lambda: third.duty.working) > PACE.take_over_s / 2

    run(scenario())


def test_of_two_that_stand_by_only_one_claims_the_epoch_of_the_third(place, told):
    async def scenario():
        async with AsyncExitStack() as stack:
            async with place.service("one") as first:
                await until(lambda: place.beats())
                others = [await stack.enter_async_context(place.service(name)) for name in ("two", "three")]
                await until(lambda: all(each.duty.takes_over_in_s(0.0) is not None for each in others))
                # Both find out at one moment, whichever looks first.
                reached = asyncio.Barrier(2)
                for each in others:
                    each.sequencer.claim = together(reached, each.sequencer.claim)
            await until(lambda: any(each.duty.working for each in others))
            await asyncio.sleep(PACE.take_over_s / 2)
            assert first.task.done()
            return place.names()

    def together(reached, claim):
        async def claimed(**options):
            await reached.wait()
            return await claim(**options)

        return claimed

    names = run(scenario())
    assert names[0] == "one"
    assert names[1:] in (["two"], ["three"])


def test_two_started_at_once_end_with_one_sequence_and_one_at_work(place, told):
    async def scenario():
        async with place.service("one") as one, place.service("two") as two:
            for number in range(6):
                place.propose(f"flag-{number}")
            await until(lambda: sum(name.startswith("FLAG") for name in place.names()) == 6)
            await until(lambda: one.duty.working != two.duty.working)
            return place.names()

    names = run(scenario())
    assert sorted(name for name in names if name.startswith("FLAG")) == [f"FLAG-{n}" for n in range(6)]
    assert len([name for name in names if name in ("one", "two")]) == 1
    assert names.count("void") <= 1


def test_fenced_publisher_names_who_took_over_and_appends_nothing_more(place, told):
    async def scenario():
        async with place.service("one") as first:
            await until(lambda: first.duty.working)
            async with place.service("two", take_over=True) as second:
                await until(lambda: second.duty.working and not first.duty.working)
                place.propose("a")
                await until(lambda: "A" in place.names())
                assert not first.duty.working
                assert place.names() == ["one", "two", "A"]

    run(scenario())
    (fenced,) = [event for event in told if event["event"] == "publisher.fenced"]
    assert fenced["by"] == "two"
    assert fenced["log_level"] == "error"


def test_fenced_publisher_ends_where_it_was_told_to(place, told):
    async def scenario():
        async with place.service("one", exit_when_fenced=True) as first:
            await until(lambda: first.duty.working)
            async with place.service("two", take_over=True) as second:
                await until(lambda: second.duty.working)
                await until(lambda: not first.duty.working)
                await asyncio.sleep(0.1)

    with pytest.raises(BaseExceptionGroup) as raised:
        run(scenario())
    assert isinstance(raised.value.exceptions[0], Fenced)
    assert "was taken by two" in str(raised.value.exceptions[0])


def test_standby_does_not_take_a_lost_log_for_a_silent_publisher(place, told):
    async def scenario():
        async with place.service("one") as first:
            await until(lambda: first.duty.working)
            async with place.service("two") as second:
                await until(lambda: len(place.beats()) == 1)
                place.logs.lose()
                await asyncio.sleep(2 * PACE.take_over_s)
                place.logs.return_()
                newest = place.beats()[-1].beat_no
                await until(lambda: place.beats()[-1].beat_no > newest)
                assert not second.duty.working
                assert place.names() == ["one"]

    run(scenario())


def test_silence_counts_from_the_moment_that_the_log_is_back(place, told):
    async def scenario():
        async with place.service("one") as first:
            await until(lambda: place.beats())
            async with place.service("two") as second:
                await until(lambda: second.duty.takes_over_in_s(0.0) is not None)
                first.task.cancel()
                place.logs.lose()
                await asyncio.sleep(2 * PACE.take_over_s)
                place.logs.return_()
                await asyncio.sleep(PACE.take_over_s / 2)
                assert not second.duty.working
                await until(lambda: second.duty.working)

    run(scenario())


def test_standby_that_has_not_heard_all_heartbeats_does_not_take_over(place, told):
    """It was stopped for a while, say, and has not read yet what came meanwhile."""

    class Deaf:
        """Passes on what is there when reading begins, and nothing that comes later."""

        def __init__(self, log):
            self.append, self.end, self.conditional, self._log = log.append, log.end, log.conditional, log

        async def follow(self, start):
            async for batch in self._log.follow(start):
                yield batch
                await asyncio.Event().wait()

    @asynccontextmanager
    async def deaf(stream):
        async with place.logs(stream) as log:
            yield Deaf(log) if stream is Stream.META else log

    async def scenario():
        async with place.service("one") as first:
            await until(lambda: place.beats())
            async with place.service("two", logs=deaf) as second:
                await asyncio.sleep(3 * PACE.take_over_s)
                assert not second.duty.working
                assert first.duty.working

    run(scenario())


def test_fenced_in_the_middle_it_neither_claims_the_epoch_back_nor_beats_in_it(place, told):
    beaten = []

    async def take_over():
        async with place.logs(Stream.LEDGER) as log:
            with Journal.open(place.tmp_path / "two", LogId("test")) as journal:
                reader = LedgerReader(log, Ledger(place.forge.first_root))
                two = Sequencer(reader, journal, Key(PUBLISHER), holder="two", clock_ms=lambda: place.now_ms)
                await two.take_over()

    async def scenario():
        async with place.service("one") as first:
            await until(lambda: first.duty.working)
            append, beat = first.sequencer.append, first.heart.beat

            async def overtaken(body, **options):
                await take_over()
                first._beat_at_s = None  # one is due
                return await append(body, **options)

            def noted(ledger, **options):
                beaten.append(ledger.head.epoch)
                return beat(ledger, **options)

            first.sequencer.append, first.heart.beat = overtaken, noted
            place.propose("a")
            await until(lambda: any(event["event"] == "publisher.fenced" for event in told))
            assert place.names() == ["one", "two"]

    run(scenario())
    assert set(beaten) <= {2}, "epoch 3 is another's"


def test_heartbeat_that_was_heard_before_and_one_of_a_single_command_prove_no_life(place):
    old = place.forge.beat(beat_no=1)

    async def replay():
        number = 1
        while True:
            number += 1
            single = place.forge.beat(holder=once("laptop"), issued_at=NOW_MS + number, expires_at=NOW_MS + 20_000)
            for record in (old, single):
                place.logs.put(Stream.META, record, key=BEAT_KEY)
                await asyncio.sleep(PACE.take_over_s / 10)

    async def scenario():
        place.logs.put(Stream.META, old, key=BEAT_KEY)
        async with place.service("one") as service:
            replaying = asyncio.create_task(replay())
            try:
                await until(lambda: service.duty.working, within_s=PACE.take_over_s * 3)
            finally:
                replaying.cancel()

    run(scenario())


def test_without_heartbeat_keys_the_second_takes_over_at_its_start_and_they_do_not_fight(tmp_path, told):
    place = Place(tmp_path, beats=False)

    async def scenario():
        async with place.service("one", heart=False) as first:
            await until(lambda: first.duty.working)
            async with place.service("two", heart=False) as second:
                await until(lambda: second.duty.working and not first.duty.working)
                for key in ("a", "b", "c"):
                    place.propose(key)
                await until(lambda: "C" in place.names())

    run(scenario())
    assert place.names() == ["one", "two", "A", "B", "C"]
    assert place.beats() == []


# --- when things break ---


def test_while_the_log_is_away_nothing_is_beaten_and_then_it_goes_on(place, told):
    async def scenario():
        async with place.service("one") as service:
            await until(lambda: place.beats())
            place.logs.lose(Unavailable("the brokers are away"))
            place.propose("a")
            newest = place.beats()[-1].beat_no
            await asyncio.sleep(10 * PACE.beat_s)
            assert place.beats()[-1].beat_no == newest
            place.logs.return_()
            await until(lambda: "A" in place.names())
            await until(lambda: place.beats()[-1].seq == place.ledger()[0].head.seq)
            assert service.duty.working

    run(scenario())
    assert any(event["event"] == "ledger.lost" for event in told)


def test_heartbeat_is_dated_before_the_reading_that_it_states(place):
    """Whoever appends after that moment cannot make it a lie."""
    reading_ms = 1_000
    dated = []

    async def scenario():
        async with place.service("one") as service:
            await until(lambda: place.beats())
            read, beat = service.sequencer.catch_up, service.heart.beat

            async def slow():
                await read()
                place.now_ms += reading_ms

            def noted(ledger, *, issued_at, **options):
                dated.append(place.now_ms - issued_at)
                return beat(ledger, issued_at=issued_at, **options)

            service.sequencer.catch_up, service.heart.beat = slow, noted
            place.propose("a")
            await until(lambda: place.beats()[-1].seq == place.ledger()[0].head.seq and "A" in place.names())
            await until(lambda: len(dated) > 3)
            return place.beats()[-1]

    newest = run(scenario())
    assert min(dated) >= reading_ms
    assert newest.expires_at == newest.issued_at + 30_000


def test_quarantine_stops_heartbeats_and_releases_and_a_root_ends_it(place, told):
    thief = Key(PUBLISHER, "next")
    record = place.forge.root.record
    keys = (*record.keys, thief.listed)
    roles = {**record.roles}
    roles[Role.PUBLISHER] = RoleGrant(frozenset({Key(PUBLISHER).listed.key_id, thief.listed.key_id}), 1)
    place = Place(place.tmp_path, keys=keys, roles=roles)

    async def scenario():
        async with place.service("one") as service:
            await until(lambda: place.beats())
            fork = place.forge.signed(place.forge.entry(EpochClaim("thief"), prev_hash=b"\1" * 32), by=thief)
            place.logs.put(Stream.LEDGER, fork)
            await until(lambda: service.reader.ledger.quarantined_by is not None)
            newest = place.beats()[-1].beat_no
            place.propose("a")
            await asyncio.sleep(5 * PACE.beat_s)
            assert released(place) == []
            assert place.beats()[-1].beat_no == newest
            place.forge.ledger = service.reader.ledger
            cured = {**roles, Role.PUBLISHER: RoleGrant(frozenset({Key(PUBLISHER).listed.key_id}), 1)}
            place.put(place.forge.next_root(Key(ADA), Key(GRACE), roles=cured))
            await until(lambda: released(place) == ["A"])
            await until(lambda: place.beats()[-1].root_version == 2)

    run(scenario())
    assert any(event["event"] == "ledger.quarantined" for event in told)


def released(place):
    _, outcomes = place.ledger()
    return [each.authorized.proposal.proposal_id for each in outcomes if isinstance(each, Applied)]


def test_flood_of_junk_and_of_proposals_is_counted_in_few_lines(place, told):
    async def scenario():
        async with place.service("one") as service:
            for number in range(500):
                place.logs.put(Stream.INBOX, b"junk %d" % number)
            place.propose("a")
            await until(lambda: "A" in place.names())
            assert service.inbox.dropped == 500

    run(scenario())
    assert len(told) < 15
    assert len(json.dumps(told, default=str)) < 10_000


def test_refused_proposal_is_told_once(place, told):
    asked = place.propose("a")
    place.logs.put(
        Stream.LEDGER,
        place.forge.append(Release(asked, (place.forge.approval(asked, by=GRACE),), "approvals>=1")),
    )
    stale = place.forge.proposal(place.forge.op("a", boolean_flag("on"), version=0), proposal_id="STALE")
    place.put(stale, place.forge.approval(stale, by=GRACE))

    async def scenario():
        async with place.service("one"):
            await until(lambda: [e for e in told if e["event"] == "proposal.refused"])
            for key in ("b", "c"):
                place.propose(key)
            await until(lambda: "C" in place.names())

    run(scenario())
    (refused,) = [event for event in told if event["event"] == "proposal.refused"]
    assert (refused["name"], refused["code"], refused["status"]) == ("STALE", "stale_base", "stale")


def test_journal_that_knows_more_than_the_ledger_stops_the_start(place):
    with Journal.open(place.tmp_path / "one", LogId("test")) as journal:
        reader = LedgerReader(None, Ledger(place.forge.root))
        check_journal(journal, reader)
        journal.take_epoch(Claim(3, 7, b"\2" * 32))
        with pytest.raises(LedgerCut, match="published seq 7, and the ledger ends at 0"):
            check_journal(journal, reader)


# --- releases, moments, acknowledgements ---

SOAK_S = 60
STAGES = tuple(Stage(f"stage-{n}", False, n * 20_000, SOAK_S) for n in range(1, 6))


def walked(place, name="spring", **changes):
    """Publish a release that is walked from now on."""
    plan, forge = release_plan(f"flag.{name}", **{"stages": STAGES, **changes}), place.forge
    made = forge.release(forge.release_op(name, plan), forge.op(f"flag.{name}", gated_flag(name)))
    place.logs.put(Stream.LEDGER, forge.append(made))
    place.logs.put(Stream.LEDGER, forge.append(forge.release(forge.hoist(name, walk=Walk.ON))))


def steps(place):
    """The stages that were taken, with when (Unix ms)."""
    _, outcomes = place.ledger()
    return [(each.entry.body.stage, each.entry.published_at) for each in outcomes if isinstance(each, Stepped)]


def test_release_is_walked_over_restarts_and_a_takeover_by_its_soaks(place, told):
    walked(place)

    async def scenario():
        async with place.service("one"):
            await until(lambda: len(steps(place)) == 1)
            place.now_ms += SOAK_S * 1000 - 1
            await asyncio.sleep(5 * PACE.beat_s)
            assert len(steps(place)) == 1
            place.now_ms += 1
            await until(lambda: len(steps(place)) == 2)
        async with place.service("one"):  # a restart in the middle
            await until(lambda: place.beats())
            assert len(steps(place)) == 2
            place.now_ms += SOAK_S * 1000
            await until(lambda: len(steps(place)) == 3)
        async with place.service("two", take_over=True) as second:
            await until(lambda: second.duty.working)
            for count in (4, 5):
                place.now_ms += SOAK_S * 1000
                await until(lambda count=count: len(steps(place)) == count)

    run(scenario())
    assert steps(place) == [(n, NOW_MS + n * SOAK_S * 1000) for n in range(5)]
    ledger, _ = place.ledger()
    assert ledger.snapshot.releases[FlagKey("spring")].plan.gate.for_everybody
    said = [event for event in told if event["event"] == "entry.appended" and event["kind"] == "step"]
    assert [(e["name"], e["stage"], e["number"], e["of"], e["share"]) for e in said] == [
        ("spring", f"stage-{n}", n, 5, n * 20) for n in range(1, 6)
    ]
    assert said[0]["next_at_ms"] == NOW_MS + SOAK_S * 1000
    assert said[-1]["next_at_ms"] is None


def test_service_wakes_for_a_step_without_waiting_for_its_next_heartbeat(place):
    """By a clock that goes: the wait ends when the step is due."""
    walked(place, stages=(Stage("half", False, 50_000, 1), Stage("all", False, 100_000, 0)))

    async def scenario():
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with place.service("one") as service:
            service.pace = replace(PACE, beat_s=30.0)
            service.clock = Clock(now_ms=lambda: NOW_MS + int((loop.time() - began_s) * 1000))
            service.sequencer._clock_ms = service.clock.now_ms
            await until(lambda: len(steps(place)) == 2)

    run(scenario())
    (_, first_ms), (_, second_ms) = steps(place)
    assert 1000 <= second_ms - first_ms < 1500


def test_release_that_is_asked_back_is_told_of_once_and_goes_on_when_that_is_rejected(place, told):
    walked(place)
    asked = place.forge.proposal(place.forge.hoist("spring", walk=Walk.PAUSED), proposal_id="PAUSE")
    place.put(asked)

    async def scenario():
        async with place.service("one"):
            await until(lambda: [event for event in told if event["event"] == "walk.held"])
            await asyncio.sleep(5 * PACE.beat_s)
            assert steps(place) == []
            place.put(place.forge.approval(asked, by=GRACE, decision=Decision.REJECT))
            await until(lambda: len(steps(place)) == 1)

    run(scenario())
    (held,) = [event for event in told if event["event"] == "walk.held"]
    assert (held["name"], held["code"]) == ("spring", "asked_back")
    assert "PAUSE by ada@example.org" in held["reason"]
    assert "--reject" in held["hint"]


def test_step_that_comes_after_another_ones_pause_is_not_appended_and_no_alarm(place, told):
    walked(place)

    async def scenario():
        async with place.service("one") as service:
            await until(lambda: len(steps(place)) == 1)
            append = service.sequencer.append

            async def overtaken(body, **options):
                if isinstance(body, Step):
                    place.forge.ledger, _ = place.ledger()
                    pause = place.forge.release(place.forge.hoist("spring", walk=Walk.PAUSED))
                    place.logs.put(Stream.LEDGER, place.forge.append(pause))
                return await append(body, **options)

            service.sequencer.append = overtaken
            place.now_ms += SOAK_S * 1000
            place.forge.now_ms = place.now_ms
            await until(lambda: [event for event in told if event["event"] == "append.yielded"])
            await asyncio.sleep(5 * PACE.beat_s)

    run(scenario())
    assert len(steps(place)) == 1
    assert not [event for event in told if event["event"] == "walk.held"]


def ack(place, name, **changes):
    """Acknowledge the ledger's head as a sidecar does."""
    head = place.ledger()[0].head
    fields = {
        "log_id": LogId("test"),
        "instance": name,
        "service": "shop",
        "version": "1",
        "started_at": place.now_ms,
        "written_at": place.now_ms,
        "state": "FRESH",
        "seq": head.seq,
        "entry_hash": head.entry_hash,
        "state_root": bytes(32),
        "applied_at": place.now_ms,
        "in_force": head.seq,
        "activated_at": place.now_ms,
        "late_ms": None,
        "clock_offset_ms": 0,
    }
    place.logs.put(Stream.ACKS, encode_acknowledgement(Acknowledgement(**(fields | changes))), key=name.encode())


def test_proposal_that_asks_for_acknowledgements_is_prepared_and_published_when_the_fleet_answers(place, told):
    guarded(place)
    for name in ("pod-1", "pod-2"):
        ack(place, name)

    async def scenario():
        async with place.service("one") as service:
            place.propose("a", acked_percent=100, lead_ms=2000)
            await until(lambda: "prepared A" in entries(place))
            place.propose("b")
            place.put(place.forge.kill_proposal("pay", proposal_id="KILL"))
            await until(lambda: {"B", "KILL"} <= set(entries(place)))
            ack(place, "pod-1")
            await until(lambda: service.docket.fleet is not None and service.docket.fleet.member("pod-1") is not None)
            place.logs.put(Stream.ACKS, b"junk", key=b"junk")
            await until(lambda: service.docket.fleet.dropped == 1)
            assert "A" not in entries(place)
            ack(place, "pod-2")
            await until(lambda: "A" in entries(place))
            # Nobody is listened to any more than somebody waits for.
            ack(place, "pod-1")
            await until(lambda: service.docket.fleet is None)

    run(scenario())
    assert entries(place)[-1] == "A"
    (prepared,) = [e for e in told if e["event"] == "entry.appended" and e["kind"] == "preparation"]
    assert (prepared["name"], prepared["acked_percent"]) == ("A", 100)
    (applied,) = [e for e in told if e["event"] == "entry.appended" and e["name"] == "A" and e["kind"] == "change"]
    assert applied["in_force_at_ms"] == place.now_ms + 2000


def test_fleet_that_is_not_ready_is_told_with_who_is_missing_and_the_proposal_stays(place, told):
    ack(place, "pod-1", seq=Seq(0), entry_hash=bytes(32))

    async def scenario():
        async with place.service("one") as service:
            place.propose("a", acked_percent=95)
            await until(lambda: service.docket.fleet is not None)
            assert entries(place) == ["prepared A"]
            place.now_ms += 60_000
            await until(lambda: [event for event in told if event["event"] == "proposal.refused"])
            assert "A" not in entries(place)
            ack(place, "pod-1")
            await until(lambda: "A" in entries(place))

    run(scenario())
    (refused,) = [event for event in told if event["event"] == "proposal.refused"]
    assert refused["code"] == "not_reached"
    assert "got 0 of 1 living sidecars; not by pod-1" in refused["reason"]


def test_restart_between_preparation_and_release_prepares_nothing_twice(place):
    async def scenario():
        async with place.service("one"):
            place.propose("a", acked_percent=95)
            await until(lambda: "prepared A" in entries(place))
        ack(place, "pod-1")
        async with place.service("one"):
            await until(lambda: "A" in entries(place))

    run(scenario())
    assert entries(place).count("prepared A") == 1
    assert entries(place).count("A") == 1


def test_proposal_with_a_later_moment_is_told_of_once_and_published_when_it_may_be(place, told):
    moment_ms = NOW_MS + 3_600_000

    async def scenario():
        async with place.service("one"):
            place.propose("a", activate_at=moment_ms)
            await until(lambda: [event for event in told if event["event"] == "proposal.scheduled"])
            place.now_ms = moment_ms - 300_001
            await asyncio.sleep(5 * PACE.beat_s)
            assert "A" not in entries(place)
            place.now_ms += 1
            await until(lambda: "A" in entries(place))

    run(scenario())
    assert len([event for event in told if event["event"] == "proposal.scheduled"]) == 1
    assert not [event for event in told if event["event"] == "proposal.refused"]


def entries(place):
    """The proposals of the ledger, in order, and those that were only prepared."""
    _, outcomes = place.ledger()
    named = []
    for each in outcomes:
        if isinstance(each, Prepared):
            named.append(f"prepared {each.authorized.proposal.proposal_id}")
        elif isinstance(each, Applied):
            named.append(each.authorized.proposal.proposal_id)
    return named
