"""What is said of a release: one line for each change of it, its story entry by entry, and how it stands."""

from dataclasses import replace

import pytest

from flaghoist.outcomes import Link, Rejected
from flaghoist.records import Entry, Op, Preparation, Ratification, Release, Step
from flaghoist.release_plan import CLOSED, SHARE_MAX, Gate, Stage, Walk, encode_drill
from flaghoist.release_state import ReleaseState
from flaghoist.signing import digest
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from publisher.releases.chronicle import chronicle
from publisher.releases.outlook import step_words
from publisher.releases.wording import drilled, edited, moved, span_text, stages_text, standing, stepped
from tests.forge import ADA, EMERGENCY_LABEL, GRACE, NOW_MS, Forge, Key, gated_flag, release_plan

SPRING = FlagKey("spring")
STAGES = (Stage("internal", True, 0, 3600), Stage("10%", True, 10_000, 60), Stage("all", True, SHARE_MAX, 0))
PLAN = release_plan("cart", "shop#mail", stages=STAGES, audience={"==": [{"var": "plan"}, "beta"]})


def at(share: int = 0, *, audience: bool = False, walk: Walk = Walk.OFF, **more: object):
    return replace(PLAN, gate=Gate(audience, share, walk, **more))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, PLAN, "created, closed"),
        (None, at(1000, walk=Walk.ON), "created, open for 1 % of users, walking"),
        (at(10_000), at(50_000), "10 % → 50 %"),
        (at(), at(audience=True), "closed → audience"),
        (at(audience=True), at(12_500, audience=True), "audience → audience and 12.5 %"),
        (at(10_000, audience=True), at(SHARE_MAX, audience=True), "audience and 10 % → 100 %"),
        (at(10_000, walk=Walk.ON), at(10_000, walk=Walk.PAUSED), "paused at 10 %"),
        (at(10_000, walk=Walk.PAUSED), at(10_000, walk=Walk.ON), "resumed at 10 %"),
        (at(), at(walk=Walk.ON), "walks through its stages"),
        (at(10_000, walk=Walk.ON), at(), "10 % → closed; walk ended"),
        (at(10_000, walk=Walk.ON), at(SHARE_MAX), "10 % → 100 %; walk done"),
        (at(1000), at(kept=(("shop", FlagKey("mail")),)), "1 % → closed; keeps shop#mail"),
        (PLAN, replace(PLAN, title="new", flags=PLAN.flags[:1]), "edited: title 'new', flags -shop#mail"),
        (PLAN, None, "deleted"),
        (PLAN, PLAN, "unchanged"),
    ],
)
def test_change_of_a_release_is_said_in_one_line(before, after, words):
    assert moved(before, after) == words


def test_edits_name_each_field_and_what_it_becomes():
    after = replace(
        PLAN,
        team="shop",
        ticket="T-1",
        services=("web",),
        requires=(FlagKey("x"),),
        stages=STAGES[1:],
        audience={"==": [1, 1]},
        lead_ms=2500,
        salt="other",
    )
    assert edited(PLAN, after) == [
        "team none → shop",
        "salt a-release → other",
        "ticket none → T-1",
        "services +web",
        "requires +x",
        "audience",
        "stages internal (audience) 1h, 10% (audience and 10 %) 1m, all (100 %) → "
        "10% (audience and 10 %) 1m, all (100 %)",
        "lead at once → 2500ms",
    ]
    assert stages_text(()) == "none"


def test_spans_are_said_in_two_units_at_most():
    assert [span_text(s) for s in (0, -5, 59, 60, 5400, 86_400, 90_061, 86_700)] == [
        "0s",
        "0s",
        "59s",
        "1m",
        "1h 30m",
        "1d",
        "1d 1h",
        "1d",
    ]


def test_standing_says_where_a_release_is_and_when_it_goes_on():
    def said(plan, since_ms=NOW_MS):
        return standing(ReleaseState(SPRING, plan, Seq(3), Seq(3), since_ms), now_ms=NOW_MS)

    assert said(PLAN) == "closed"
    assert said(at(walk=Walk.ON)) == "closed, before stage 1 of 3, walking, next is due"
    assert said(at(10_000, audience=True, walk=Walk.ON)) == (
        "the audience and 10 % of users, stage 2 of 3, walking, next in 1m"
    )
    assert said(at(10_000, audience=True, walk=Walk.PAUSED)) == ("the audience and 10 % of users, stage 2 of 3, paused")
    assert said(at(SHARE_MAX)) == "on for everybody"


def test_drill_is_said_from_its_record():
    result = {"instances": 5, "reached": 4, "p50_ms": 80, "p95_ms": 120, "last_ms": 130, "missing": ["pod-3"]}
    assert drilled({**result, "revert": "allowed"}) == (
        "4 of 5 instances reached, half of them after 80 ms, 95 % after 120 ms, the last after 130 ms, "
        "missing: pod-3, a revert was allowed"
    )
    assert drilled(None) == "no result was recorded"


# --- the story ---


class Story:
    """A ledger, and its links as a command reads them."""

    def __init__(self) -> None:
        self.forge = Forge(root_options={"emergency": (GRACE,)})
        self.links: list[Link] = []
        self.forge.genesis()
        self.put(self.forge.op("other", {"state": "ENABLED", "variants": {"on": True}}))

    def take(self, entry: Entry) -> Link:
        link = self.forge.ledger.receive(self.forge.signed(entry))
        assert isinstance(link, Link), link
        assert not isinstance(link, Rejected), link.refusal
        self.links.append(link)
        return link

    def put(self, *ops: Op, **changes: object) -> Link:
        proposal = self.forge.proposal(*ops, **changes)
        alone = changes.get("kind") in (ProposalKind.EMERGENCY, ProposalKind.DRILL)
        rule = str(changes.get("kind")).lower() if alone else self.forge.release(*ops).policy
        approvals = () if alone else (self.forge.approval(proposal),)
        return self.take(self.forge.entry(Release(proposal, approvals, rule)))

    @property
    def version(self) -> Seq:
        return self.forge.ledger.snapshot.releases[SPRING].version


@pytest.fixture
def story() -> Story:
    made = Story()
    flags = [made.forge.op("cart", gated_flag("spring")), made.forge.op("mail", gated_flag("spring"), source="shop")]
    made.put(made.forge.release_op("spring", PLAN), *flags)
    return made


def test_story_of_a_release_names_who_stands_behind_each_entry(story):
    forge = story.forge
    story.put(forge.hoist("spring", audience=True, walk=Walk.ON), lead_ms=2000)
    forge.now_ms += 3_700_000
    story.take(forge.entry(Step(SPRING, story.version, 1)))
    drill = Op(Target.DRILL, Source(""), SPRING, Seq(0), Action.PUT, encode_drill(hoisted=True))
    story.put(drill, kind=ProposalKind.DRILL)
    story.put(forge.hoist("spring", audience=False, share=0, walk=Walk.OFF), kind=ProposalKind.ROLLBACK)
    story.put(forge.op("other", {"state": "ENABLED", "variants": {"on": True}, "description": "not its business"}))
    story.put(forge.release_op("spring", None), forge.op("cart", None), forge.op("mail", None, source="shop"))

    events = chronicle(story.links, SPRING)
    assert [(event.kind, event.what) for event in events] == [
        ("change", "created, closed"),
        ("change", "closed → audience; walks through its stages"),
        ("step", "audience → audience and 10 % (stage 2 of 3, as planned)"),
        ("drill", "drill: shadow gate opened; nobody's answers changed"),
        ("rollback", "audience and 10 % → closed; walk ended"),
        ("change", "deleted"),
    ]
    made, walked, step = events[:3]
    assert made.people() == f"asked by {ADA}, approved by {GRACE}"
    assert made.rule == "approvals>=1"
    assert walked.in_force_at_ms == walked.published_at + 2000
    assert (step.people(), step.allowed_by) == (f"by the publisher, as seq {walked.seq} allows", walked.seq)
    assert (step.rule, step.authorized) == ("", None)
    assert events[3].in_force_at_ms is None
    assert step.fields()["allowed_by_seq"] == walked.seq.number


def test_preparation_emergency_and_ratification_are_part_of_the_story(story):
    forge = story.forge
    proposal = forge.proposal(forge.hoist("spring", share=SHARE_MAX), lead_ms=2000, acked_percent=95)
    body = Release(proposal, (forge.approval(proposal),), forge.release(forge.hoist("spring")).policy)
    story.take(forge.entry(Preparation(body)))
    story.take(forge.entry(body))
    kill = forge.proposal(
        Op(Target.RELEASE, Source(""), SPRING, story.version, Action.KILL, None),
        by=GRACE,
        signed_by=Key(GRACE, EMERGENCY_LABEL),
        kind=ProposalKind.EMERGENCY,
        expires_at=forge.now_ms + 600_000,
    )
    story.take(forge.entry(Release(kill, (), "emergency")))
    story.take(forge.entry(Ratification(digest(kill), (forge.approval(kill, by=ADA),))))
    assert [(event.kind, event.what) for event in chronicle(story.links, SPRING)[1:]] == [
        ("preparation", "prepared: waits until 95 % of the fleet have it"),
        ("change", "closed → 100 %"),
        ("emergency", "emergency: 100 % → closed"),
        ("ratification", "ratified the emergency of seq 6"),
    ]
    assert chronicle(story.links, FlagKey("summer")) == []


def test_step_says_which_stage_was_reached():
    assert stepped(at(10_000, audience=True), at(SHARE_MAX, audience=True)) == (
        "audience and 10 % → 100 % (stage 3 of 3: all, as planned)"
    )


def test_those_who_decide_read_what_an_op_does_to_a_release(story):
    from publisher.documents import Documents
    from publisher.plan import Step as Planned

    documents = Documents.of(story.links)

    def words(op: Op) -> list[str]:
        return step_words(Planned(op, documents.current(op.state_id)))

    assert words(story.forge.hoist("spring", share=1000)) == ["release spring: closed → 1 %; it moves cart, shop#mail"]
    assert words(story.forge.release_op("spring", replace(PLAN, title="x", gate=CLOSED))) == [
        "release spring: edited: title 'x'; nobody's answers change"
    ]
    drill = Op(Target.DRILL, Source(""), SPRING, Seq(0), Action.PUT, encode_drill(hoisted=False))
    assert words(drill) == ["rehearsal of release spring: its shadow gate closes; nobody's answers change"]
    assert words(story.forge.op("cart", None)) == []
