"""What a publisher does next, and what it remembers of refusals."""

import asyncio

import pytest

import publisher.docket as docket_module
from flaghoist.acknowledgement import encode_acknowledgement
from flaghoist.codec import encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.outcomes import Forked
from flaghoist.records import Acknowledgement, EpochClaim, Op
from flaghoist.values import Action, Decision, FlagKey, Role, Seq, Source, Target
from publisher.docket import ACKNOWLEDGED_WITHIN_MS, LOOK_AFTER_ENTRY_MS, LOOK_AGAIN_MS, Docket, MotionKind
from publisher.fleet import Fleet
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


# --- moments, and what the fleet must acknowledge first ---


def test_moment_far_ahead_is_waited_for_and_published_when_it_may_be(desk):
    moment_ms = NOW_MS + 3_600_000
    desk.propose("a", activate_at=moment_ms)
    assert desk.next() is None
    assert desk.refusals() == [("A", "not_yet")]
    (case,) = desk.inbox
    standing = docket_module.standing_of(case, desk.reader, now_ms=desk.now_ms)
    assert standing.status is docket_module.Status.SCHEDULED
    assert standing.why == "published from 2026-05-28 21:21:40Z on, takes effect at 2026-05-28 21:26:40Z"
    desk.forge.put("b")
    desk.read()
    desk.now_ms += LOOK_AFTER_ENTRY_MS
    assert desk.next() is None
    assert desk.refusals() == [], "told once"
    opens_ms = moment_ms - 300_000
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) == opens_ms
    desk.now_ms = opens_ms - 1
    assert desk.next() is None
    desk.now_ms = opens_ms
    assert desk.publish_next() == "A"
    assert desk.reader.links[-1].in_force_at_ms == moment_ms
    assert desk.refusals() == []


def test_moment_that_is_over_is_told_once_and_never_looked_at_again(desk, judged):
    desk.propose("a", activate_at=NOW_MS + 1000)
    desk.now_ms += 1001
    for _ in range(10):
        assert desk.next() is None
        desk.now_ms += LOOK_AGAIN_MS
    assert desk.refusals() == [("A", "expired")]
    assert judged == ["A"]


def acknowledged(desk, *names, seq=None, **changes):
    """Let the docket know of sidecars that have verified an entry, the head unless told."""
    head = desk.reader.ledger.head
    fleet = desk.docket.fleet or Fleet(desk.forge.root.log_id, desk.reader.ledger)
    for name in names:
        ack = Acknowledgement(
            **{
                "log_id": desk.forge.root.log_id,
                "instance": name,
                "service": "shop",
                "version": "1",
                "started_at": NOW_MS,
                "written_at": desk.now_ms,
                "state": "FRESH",
                "seq": head.seq if seq is None else Seq(seq),
                "entry_hash": head.entry_hash if seq is None else desk.reader.ledger.hash_at(Seq(seq)),
                "state_root": bytes(32),
                "applied_at": desk.now_ms,
                "in_force": Seq(1),
                "activated_at": desk.now_ms,
                "late_ms": None,
                "clock_offset_ms": 0,
                **changes,
            }
        )
        fleet.take(encode_acknowledgement(ack), now_ms=desk.now_ms)
    desk.docket.fleet = fleet


def prepared(desk, *, percent=75):
    """Publish the preparation of a proposal that asks for acknowledgements."""
    desk.propose("a", acked_percent=percent)
    acknowledged(desk, "pod-1", "pod-2", "pod-3", "pod-4")
    motion = desk.next()
    assert (motion.kind, motion.name) == (MotionKind.PREPARATION, "A")
    assert desk.publish_next() == "A"


def test_proposal_that_asks_for_acknowledgements_is_prepared_and_published_when_the_fleet_has_it(desk):
    prepared(desk)
    assert desk.docket.awaits_fleet(desk.inbox, now_ms=desk.now_ms)
    assert desk.next() is None
    acknowledged(desk, "pod-1", "pod-2")
    assert desk.next() is None
    assert desk.docket.acknowledged(desk.inbox, now_ms=desk.now_ms) == frozenset()
    acknowledged(desk, "pod-3")
    assert len(desk.docket.acknowledged(desk.inbox, now_ms=desk.now_ms)) == 1
    motion = desk.next()
    assert (motion.kind, motion.name) == (MotionKind.CHANGE, "A")
    assert desk.publish_next() == "A"
    assert desk.next() is None
    assert not desk.docket.awaits_fleet(desk.inbox, now_ms=desk.now_ms)
    assert desk.refusals() == []


def test_nothing_waits_behind_a_preparation(desk):
    guarded(desk)
    prepared(desk)
    desk.propose("b")
    assert desk.publish_next() == "B"
    desk.put(desk.forge.kill_proposal("pay", proposal_id="KILL"))
    assert desk.publish_next() == "KILL"
    assert desk.next() is None


def test_fleet_that_is_not_ready_is_given_up_after_a_minute_told_once_and_tried_when_it_is(desk):
    prepared(desk)
    acknowledged(desk, "pod-1", "pod-2")
    assert desk.next() is None
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) <= NOW_MS + LOOK_AGAIN_MS
    desk.now_ms += ACKNOWLEDGED_WITHIN_MS - 1
    assert desk.next() is None
    assert desk.docket.news == []
    assert desk.docket.wakes_at_ms(now_ms=desk.now_ms) == NOW_MS + ACKNOWLEDGED_WITHIN_MS
    desk.now_ms += 1
    acknowledged(desk, "pod-1", "pod-2", "pod-3", "pod-4", seq=1)
    acknowledged(desk, "pod-1")
    for _ in range(4):
        assert desk.next() is None
        acknowledged(desk, "pod-1", "pod-2")
        desk.now_ms += LOOK_AGAIN_MS
    (refusal,) = desk.docket.take_news()
    assert refusal.refusal.code == "not_reached"
    assert "acknowledged by 75 % of the fleet, got 1 of 4 living sidecars; not by pod-2, pod-3, pod-4" in str(
        refusal.refusal
    )
    acknowledged(desk, "pod-3", "pod-4")
    assert desk.publish_next() == "A"


def test_without_a_living_sidecar_nothing_is_published_that_asks_for_acknowledgements(desk):
    desk.propose("a", acked_percent=1)
    assert desk.publish_next() == "A"
    desk.docket.fleet = Fleet(desk.forge.root.log_id, desk.reader.ledger)
    assert desk.next() is None
    desk.now_ms += ACKNOWLEDGED_WITHIN_MS
    assert desk.next() is None
    assert desk.refusals() == [("A", "not_reached")]


def test_fleet_that_was_not_read_yet_is_waited_for_from_the_start_of_the_service_on(desk):
    prepared(desk)
    desk.now_ms += 10 * ACKNOWLEDGED_WITHIN_MS
    desk.docket = Docket(desk.reader)
    assert desk.next() is None
    assert desk.refusals() == []
    desk.now_ms += ACKNOWLEDGED_WITHIN_MS
    assert desk.next() is None
    assert desk.refusals() == [("A", "not_reached")]


def test_prepared_proposal_whose_flag_has_changed_since_is_refused_whatever_the_fleet_says(desk):
    prepared(desk)
    desk.forge.put("a")
    desk.read()
    acknowledged(desk, "pod-1", "pod-2", "pod-3", "pod-4")
    assert desk.next() is None
    assert desk.refusals() == [("A", "stale_base")]
