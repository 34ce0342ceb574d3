"""The six steps of an append, one by one: what each failure leaves behind, and what the next run makes of it."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from flaghoist.codec import APPROVAL, PROPOSAL, decode_envelope
from flaghoist.errors import Expired, NotApproved, OutcomeUnknown, StaleBase, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Advanced, Applied
from flaghoist.records import EpochClaim, RootUpdate
from flaghoist.signing import digest
from flaghoist.values import Decision, LogId
from publisher.inbox import Case
from publisher.journal import Journal
from publisher.reader import BrokenChain, LedgerReader
from publisher.release import release_of
from publisher.sequencer import Fenced, Sequencer
from tests.conformance.memory_log import MemoryLogs
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag


class Place:
    """One environment on a fake log, published to from any number of machines."""

    def __init__(self, tmp_path, approvals=1):
        self.tmp_path = tmp_path
        self.forge = Forge(approvals=approvals)
        self.logs = MemoryLogs()
        self.now_ms = NOW_MS
        self.fail_append = None

    @asynccontextmanager
    async def sequencer(self, machine="one"):
        async with self.logs(Stream.LEDGER) as log:
            with Journal.open(self.tmp_path / machine, LogId("test")) as journal:
                failing = FailingLog(log, self)
                reader = LedgerReader(failing, Ledger(self.forge.root))
                yield Sequencer(reader, journal, Key(PUBLISHER), holder=machine, clock_ms=lambda: self.now_ms)

    async def init(self):
        async with self.sequencer() as sequencer:
            return await sequencer.append(RootUpdate(self.forge.root.envelope))

    async def publish(self, case, machine="one"):
        async with self.sequencer(machine) as sequencer:
            return await sequencer.publish(case)

    def case(self, key="new-checkout", *, approved_by=(GRACE,), decision=Decision.APPROVE, **changes):
        proposal = self.forge.proposal(self.forge.op(key, boolean_flag(), version=0), **changes)
        approvals = [self.forge.approval(proposal, by=person, decision=decision) for person in approved_by]
        return Case(
            PROPOSAL.decode(proposal.payload),
            proposal,
            digest(proposal),
            tuple((APPROVAL.decode(approval.payload), approval) for approval in approvals),
        )

    def bodies(self):
        ledger = Ledger(self.forge.root)
        outcomes = [ledger.receive(value) for value in self.logs.values(Stream.LEDGER)]
        return [type(o.entry.body).__name__ for o in outcomes if isinstance(o, Applied | Advanced)]


class FailingLog:
    """Passes everything on, and fails the next append as it is told."""

    def __init__(self, log, place):
        self._log, self._place = log, place
        self.conditional, self.end, self.follow = log.conditional, log.end, log.follow

    async def append(self, value, *, expected_end=None):
        failure, self._place.fail_append = self._place.fail_append, None
        if failure is None:
            return await self._log.append(value, expected_end=expected_end)
        error, stored = failure
        if stored:
            await self._log.append(value)
        raise error


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    asyncio.run(place.init())
    return place


def test_approved_proposal_is_published_as_one_entry(place):
    published = asyncio.run(place.publish(place.case()))
    assert not published.already
    assert published.link.entry.seq.number == 2
    assert place.bodies() == ["RootUpdate", "Release"]


def test_publishing_again_finds_what_is_there(place):
    case = place.case()
    first = asyncio.run(place.publish(case))
    again = asyncio.run(place.publish(case))
    assert again.already
    assert again.link.entry_hash == first.link.entry_hash
    assert len(place.logs.values(Stream.LEDGER)) == 2


def test_making_the_ledger_again_finds_what_is_there(place):
    again = asyncio.run(place.init())
    assert again.entry.seq.number == 1
    assert len(place.logs.values(Stream.LEDGER)) == 1


@pytest.mark.parametrize(
    ("case_changes", "error"),
    [
        ({"approved_by": ()}, NotApproved),
        ({"approved_by": (ADA,)}, NotApproved),
        ({"decision": Decision.REJECT}, NotApproved),
        ({"expires_at": NOW_MS - 1}, Expired),
    ],
    ids=["no-approval", "own-approval", "rejection", "expired"],
)
def test_what_is_not_allowed_is_refused_before_anything_is_signed_or_sent(place, case_changes, error):
    with pytest.raises(error):
        asyncio.run(place.publish(place.case(**case_changes)))
    assert len(place.logs.values(Stream.LEDGER)) == 1
    with Journal.open(place.tmp_path / "one", LogId("test")) as journal:
        assert journal.last.seq == 1


def test_stale_proposal_is_refused_before_anything_is_sent(place):
    asyncio.run(place.publish(place.case()))
    with pytest.raises(StaleBase):
        asyncio.run(place.publish(place.case(title="the same flag, proposed without knowing of the first")))
    assert len(place.logs.values(Stream.LEDGER)) == 2


def test_standing_rejection_blocks_even_when_enough_others_approve(place):
    """A standing rejection blocks: it is settled between people, not outvoted."""
    case = place.case(approved_by=(GRACE,))
    rejection = place.forge.approval(case.envelope, by=LINUS, decision=Decision.REJECT)
    both = Case(
        case.proposal, case.envelope, case.sha256, (*case.approvals, (APPROVAL.decode(rejection.payload), rejection))
    )
    with pytest.raises(NotApproved, match="rejected"):
        asyncio.run(place.publish(both))


def test_expired_approval_is_left_out_when_the_others_suffice(place):
    case = place.case(approved_by=(GRACE,))
    old = place.forge.approval(case.envelope, by=LINUS, expires_at=NOW_MS - 1)
    both = Case(case.proposal, case.envelope, case.sha256, (*case.approvals, (APPROVAL.decode(old.payload), old)))
    published = asyncio.run(place.publish(both))
    assert published.link.authorized.approvers == (GRACE,)


def test_entry_that_was_stored_and_not_confirmed_is_found_by_the_next_run(place):
    case = place.case()
    place.fail_append = (OutcomeUnknown("no answer"), True)
    with pytest.raises(OutcomeUnknown):
        asyncio.run(place.publish(case))
    assert asyncio.run(place.publish(case)).already
    assert place.bodies() == ["RootUpdate", "Release"]


def test_entry_that_may_be_lost_is_sent_again_as_the_very_same_bytes(place):
    case = place.case()
    place.fail_append = (OutcomeUnknown("no answer"), False)
    with pytest.raises(OutcomeUnknown):
        asyncio.run(place.publish(case))
    with Journal.open(place.tmp_path / "one", LogId("test")) as journal:
        payload = journal.last.payload
    place.now_ms += 1000
    asyncio.run(place.publish(case))
    assert place.bodies() == ["RootUpdate", "Release"]
    assert decode_envelope(place.logs.values(Stream.LEDGER)[-1]).payload == payload


def test_entry_that_was_certainly_not_sent_never_turns_up_on_its_own(place):
    place.fail_append = (Unavailable("connection refused"), False)
    with pytest.raises(Unavailable):
        asyncio.run(place.publish(place.case("unsent")))
    asyncio.run(place.publish(place.case("another")))
    # Its place was spent by a signature that nobody has, so the next entry stands in an epoch of its own.
    assert place.bodies() == ["RootUpdate", "EpochClaim", "Release"]


def test_entry_whose_approval_expired_meanwhile_is_not_sent_again(place):
    place.fail_append = (OutcomeUnknown("no answer"), False)
    with pytest.raises(OutcomeUnknown):
        asyncio.run(place.publish(place.case("unsent")))
    place.now_ms += 2 * DAY_MS
    place.forge.now_ms += 2 * DAY_MS
    asyncio.run(place.publish(place.case("another")))
    assert place.bodies() == ["RootUpdate", "EpochClaim", "Release"]


def test_claim_that_was_not_sent_is_sent_again_as_the_very_same_bytes(place):
    place.fail_append = (Unavailable("connection refused"), False)
    with pytest.raises(Unavailable):
        asyncio.run(place.publish(place.case(), machine="two"))
    place.now_ms += 1000
    asyncio.run(place.publish(place.case(), machine="two"))
    assert place.bodies() == ["RootUpdate", "EpochClaim", "Release"]


def test_first_entry_that_was_not_sent_is_sent_again_as_the_very_same_bytes(tmp_path):
    place = Place(tmp_path)
    place.fail_append = (Unavailable("connection refused"), False)
    with pytest.raises(Unavailable):
        asyncio.run(place.init())
    place.now_ms += 1000
    assert asyncio.run(place.init()).entry.published_at == NOW_MS
    assert place.bodies() == ["RootUpdate"]


def test_root_that_was_not_sent_is_published_by_running_the_same_command_again(place):
    async def rotate(root):
        async with place.sequencer() as sequencer:
            return await sequencer.append(RootUpdate(root))

    async def head():
        async with place.sequencer() as sequencer:
            await sequencer.catch_up()
            return sequencer.reader.ledger.head

    at = asyncio.run(head())
    root = place.forge.next_root(anchor_seq=at.seq, anchor_hash=at.entry_hash)
    place.fail_append = (Unavailable("connection refused"), False)
    with pytest.raises(Unavailable):
        asyncio.run(rotate(root))
    place.now_ms += 1000
    assert asyncio.run(rotate(root)).root.version == 2


def test_second_machine_claims_an_epoch_and_the_first_claims_it_back(place):
    for key, machine in (("a", "one"), ("b", "two"), ("c", "two"), ("d", "one")):
        asyncio.run(place.publish(place.case(key), machine))
    assert place.bodies() == [
        *("RootUpdate", "Release", "EpochClaim", "Release", "Release", "EpochClaim", "Release"),
    ]


def test_machine_that_lost_its_journal_claims_an_epoch_first(place):
    (place.tmp_path / "one" / "test.journal").unlink()
    asyncio.run(place.publish(place.case()))
    assert place.bodies() == ["RootUpdate", "EpochClaim", "Release"]


def test_second_process_on_a_machine_is_told_who_holds_the_lease(place):
    with (
        Journal.open(place.tmp_path / "one", LogId("test")),
        pytest.raises(Unavailable, match=r"process \d+ on this machine is publishing"),
    ):
        asyncio.run(place.publish(place.case()))


def test_ledger_with_a_gap_is_not_appended_to(place):
    asyncio.run(place.publish(place.case("a")))
    asyncio.run(place.publish(place.case("b")))
    values = place.logs.values(Stream.LEDGER)
    place.logs = MemoryLogs()
    for value in (values[0], values[2]):
        place.logs.put(Stream.LEDGER, value)
    with pytest.raises(BrokenChain, match="expected seq 2, got 3"):
        asyncio.run(place.publish(place.case("c")))
    assert len(place.logs.values(Stream.LEDGER)) == 2


def test_junk_between_reading_and_appending_costs_a_retry_and_nothing_else(place):
    class Interrupting(FailingLog):
        interrupted = False

        async def append(self, value, *, expected_end=None):
            if not Interrupting.interrupted:
                Interrupting.interrupted = True
                place.logs.put(Stream.LEDGER, b"junk that anyone may write")
            return await super().append(value, expected_end=expected_end)

    async def scenario():
        async with place.logs(Stream.LEDGER) as log:
            with Journal.open(place.tmp_path / "one", LogId("test")) as journal:
                reader = LedgerReader(Interrupting(log, place), Ledger(place.forge.root))
                sequencer = Sequencer(reader, journal, Key(PUBLISHER), holder="one", clock_ms=lambda: place.now_ms)
                await sequencer.publish(place.case())
                return reader.tally

    tally = asyncio.run(scenario())
    assert tally["dropped"] == 1
    assert place.bodies() == ["RootUpdate", "Release"]


def test_claims_are_links_that_change_no_flag(place):
    async def scenario():
        async with place.sequencer("two") as sequencer:
            await sequencer.publish(place.case())
            return sequencer.reader.links

    links = asyncio.run(scenario())
    assert isinstance(links[1].entry.body, EpochClaim)
    assert links[1].entry.epoch == 2


def test_publisher_that_may_not_claim_is_told_that_it_was_fenced_and_sends_nothing(place):
    async def scenario():
        async with place.sequencer("one") as one, place.sequencer("two") as two:
            await two.take_over()
            with pytest.raises(Fenced):
                await one.append(RootUpdate(place.forge.next_root()), may_claim=False)
            release = release_of(one.reader.ledger, place.case(), one.reader.links, now_ms=NOW_MS)
            with pytest.raises(Fenced):
                await one.append(release, may_claim=False)

    asyncio.run(scenario())
    assert place.bodies() == ["RootUpdate", "EpochClaim"]


def test_standby_that_was_beaten_to_the_claim_does_not_claim_over_it(place):
    async def scenario():
        async with place.sequencer("two") as two, place.sequencer("three") as three:
            for standby in (two, three):
                await standby.catch_up()
            silent = two.reader.ledger.head.epoch
            assert await two.claim(over_epoch=silent)
            assert not await three.claim(over_epoch=silent)
            assert two.holds_epoch
            assert await two.claim(over_epoch=silent), "its own already"

    asyncio.run(scenario())
    assert place.bodies() == ["RootUpdate", "EpochClaim"]
