"""What a publisher does next, and what it remembers of refusals."""

import asyncio

import pytest

import publisher.docket as docket_module
from flaghoist.codec import encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Forked
from flaghoist.records import EpochClaim, Op
from flaghoist.values import Action, Decision, FlagKey, Role, Seq, Source, Target
from publisher.docket import LOOK_AFTER_ENTRY_MS, LOOK_AGAIN_MS, Docket, MotionKind
from publisher.inbox import Inbox
from publisher.reader import LedgerReader
from tests.conformance.memory_log import MemoryLogs
from tests.forge import ADA, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, Forge, Key, boolean_flag

GUARDED = boolean_flag("on")
SAFE = {"safe_variant": "off"}


class Desk:
    """One ledger as a publisher has read it, its inbox, and its docket."""

    def __init__(self, **root_options):
        self.forge = Forge(root_options={"emergency": (GRACE,), "root_threshold": 2, **root_options})
        self.forge.genesis()
        self.logs = MemoryLogs()
        self.reader = LedgerReader(None, Ledger(self.forge.first_root), through_quarantine=True)
        self.inbox = Inbox(self.forge.root)
        self.docket = Docket(self.reader)
        self.now_ms = NOW_MS
        self.read()

    def read(self):
        """Read what the forge has appended."""

        async def scenario():
            for record in self.forge.records[len(self.logs.values(Stream.LEDGER)) :]:
                self.logs.put(Stream.LEDGER, record)
            async with self.logs(Stream.LEDGER) as log:
                self.reader.log = log
                await self.reader.catch_up()

        asyncio.run(scenario())

    def put(self, *envelopes):
        for envelope in envelopes:
            self.inbox.receive(encode_envelope(envelope))

    def propose(self, key, *, approved_by=(LINUS,), by=ADA, decision=Decision.APPROVE, **changes):
        """Put a proposal and its approvals into the inbox; return its id."""
        name = changes.pop("name", key.upper())
        version = changes.pop("version", None)
        asked = self.forge.proposal(
            self.forge.op(key, boolean_flag(), version=version), by=by, proposal_id=name, **changes
        )
        self.put(asked, *(self.forge.approval(asked, by=person, decision=decision) for person in approved_by))
        return asked

    def next(self, **changes):
        return self.docket.next(self.inbox, now_ms=self.now_ms, **changes)

    def publish_next(self):
        """Append what is next, and return its name."""
        motion = self.next()
        if motion is None:
            return None
        self.forge.now_ms = self.now_ms
        self.forge.append(motion.body)
        self.read()
        return motion.name

    def refusals(self):
        news, self.docket.news = self.docket.news, []
        return [(each.name, each.refusal.code) for each in news]


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def judged(monkeypatch):
    """Names of the proposals that were judged in full, as they are."""
    found = []
    real = docket_module.standing_of
    monkeypatch.setattr(
        docket_module, "standing_of", lambda case, *a, **k: found.append(case.id) or real(case, *a, **k)
    )
    return found


def guarded(desk, key="pay"):
    """Publish a flag with a safe variant, so that it can be killed."""
    definition = encode_flag(GUARDED, SAFE)
    desk.forge.append(desk.forge.release(Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, definition)))
    desk.read()


def test_changes_are_published_in_the_order_in_which_they_came(desk):
    for key in ("b", "a", "c"):
        desk.propose(key)
    assert [desk.publish_next() for _ in range(4)] == ["B", "A", "C", None]


def test_emergency_comes_before_everything_else_and_a_root_before_changes(desk):
    guarded(desk)
    desk.propose("a")
    root = desk.forge.next_root(Key(ADA), Key(GRACE), Key(LINUS))
    desk.put(root)
    kill = desk.forge.kill_proposal("pay", proposal_id="KILL")
    desk.put(kill)
    motions = []
    while (motion := desk.next()) is not None and len(motions) < 5:
        motions.append(motion.kind)
        desk.forge.append(motion.body)
        desk.read()
        if motion.kind is MotionKind.ROOT:
            desk.inbox = Inbox(desk.forge.root)  # under the new root the inbox is read anew
            desk.propose("a")
            desk.put(desk.forge.approval(kill, by=ADA))
    assert motions == [MotionKind.EMERGENCY, MotionKind.ROOT, MotionKind.RATIFICATION, MotionKind.CHANGE]


def test_nothing_but_an_emergency_is_published_before_the_inbox_was_read_to_its_end(desk):
    guarded(desk)
    asked = desk.propose("a")
    assert desk.next(complete=False) is None
    desk.put(desk.forge.kill_proposal("pay"))
    assert desk.next(complete=False).kind is MotionKind.EMERGENCY
    desk.put(desk.forge.approval(asked, by=GRACE, decision=Decision.REJECT))
    assert desk.next().kind is MotionKind.EMERGENCY


def test_standing_rejection_blocks_until_it_is_taken_back(desk):
    asked = desk.propose("a")
    desk.put(desk.forge.approval(asked, by=GRACE, decision=Decision.REJECT, approved_at=NOW_MS))
    assert desk.next() is None
    desk.put(desk.forge.approval(asked, by=GRACE, approved_at=NOW_MS + 1))
    assert desk.next().name == "A"


def test_proposals_that_too_few_approve_cost_no_judgement(desk, judged):
    for number in range(50):
        desk.propose(f"flag-{number}", approved_by=())
    assert desk.next() is None
    assert judged == []


def test_stale_proposal_is_judged_once_and_told_once(desk, judged):
    desk.forge.put("a")
    desk.read()
    desk.propose("a", version=0)
    for minute in range(100):
        desk.now_ms = NOW_MS + minute * 60_000
        assert desk.next() is None
    desk.forge.put("b")
    desk.read()
    desk.now_ms += LOOK_AGAIN_MS
    assert desk.next() is None
    assert judged == ["A"]
    assert desk.refusals() == [("A", "stale_base")]


def test_part_of_an_import_is_looked_at_again_when_what_it_refers_to_is_there(desk, judged):
    rule = {"if": [{"$ref": "staff"}, "on", "off"]}
    asked = desk.forge.proposal(desk.forge.op("a", boolean_flag(targeting=rule)), proposal_id="A")
    desk.put(asked, desk.forge.approval(asked))
    assert desk.next() is None
    assert desk.refusals() == [("A", "bad_definition")]
    desk.now_ms += LOOK_AFTER_ENTRY_MS
    assert desk.next() is None
    assert judged == ["A"], "nothing has changed that may matter"
    desk.forge.append(desk.forge.release(desk.forge.evaluator_op("staff", {"==": [{"var": "email"}, "x"]})))
    desk.read()
    assert desk.next().name == "A"


def test_another_approval_makes_a_refused_case_worth_a_look_at_once(judged):
    desk = Desk(policy=TWO_GROUPS)
    asked = desk.propose("a", approved_by=(GRACE,))
    assert desk.next() is None
    assert desk.next() is None
    assert judged == ["A"]
    desk.put(desk.forge.approval(asked, by=LINUS))
    assert desk.next().name == "A"


TWO_GROUPS = """\
version: 1
groups:
  payments: [grace@example.org]
  leads: [linus@example.org]
rules:
  - name: both
    approvals: [{count: 1, from: payments}, {count: 1, from: leads}]
"""

FROZEN = """\
version: 1
rules:
  - name: slow
    freeze:
      - {name: party, from: 2026-05-28 00:00, until: 2026-05-29 00:00, zone: UTC}
"""


def test_what_is_frozen_is_published_when_the_freeze_is_over_and_told_once():
    desk = Desk(policy=FROZEN)
    desk.propose("a", expires_at=NOW_MS + 7 * DAY_MS)
    for _ in range(100):
        assert desk.next() is None
        desk.now_ms += 1000
    assert desk.refusals() == [("A", "policy_refused")]
    desk.now_ms = NOW_MS + DAY_MS
    assert desk.next().name == "A"


def test_refusal_at_the_append_is_not_retried_in_a_hot_loop(desk):
    desk.propose("a")
    motion = desk.next()
    desk.docket.refuse(motion, docket_module.StaleBase("the world has moved"), now_ms=desk.now_ms)
    assert desk.next() is None
    desk.now_ms += LOOK_AGAIN_MS
    assert desk.next().name == "A"


def test_under_an_expired_root_only_a_root_is_published(desk):
    root = desk.forge.next_root(Key(ADA), Key(GRACE), Key(LINUS), expires_at=NOW_MS + 900 * DAY_MS)
    desk.propose("a", expires_at=NOW_MS + 800 * DAY_MS)
    desk.now_ms = desk.forge.root.record.expires_at + 1
    assert desk.next() is None
    desk.put(root)
    assert desk.next().kind is MotionKind.ROOT


def test_in_quarantine_only_a_root_is_published(desk):
    desk.propose("a")
    theirs = desk.forge.signed(desk.forge.entry(EpochClaim("thief")))
    desk.reader.ledger.quarantine(Forked(Seq(1), "fork", bytes(32), theirs, frozenset({Key(PUBLISHER).listed.key_id})))
    assert desk.next() is None
    desk.put(desk.forge.next_root(Key(ADA), Key(GRACE)))
    assert desk.next().kind is MotionKind.ROOT


def test_root_waits_for_both_thresholds(desk):
    desk.put(desk.forge.next_root(Key(ADA)))
    assert desk.next() is None
    desk.put(desk.forge.next_root(Key(GRACE)))
    motion = desk.next()
    assert motion.kind is MotionKind.ROOT
    assert desk.forge.root.people_signing(Role.ROOT, motion.body.root) == {ADA, GRACE}


def test_emergency_that_is_never_ratified_stays_and_is_no_motion(desk):
    guarded(desk)
    desk.put(desk.forge.kill_proposal("pay", proposal_id="KILL"))
    assert desk.publish_next() == "KILL"
    assert desk.next() is None
    desk.now_ms += 30 * DAY_MS
    assert desk.next() is None
    (emergency,) = desk.reader.ledger.unratified.values()
    assert emergency.ratify_by_ms < desk.now_ms
    assert desk.refusals() == []
