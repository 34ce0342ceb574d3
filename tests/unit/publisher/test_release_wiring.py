"""Wiring: a closed gate changes no answer, whatever rule a flag had; what takes a release away leaves what was."""

import json
import random
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from flaghoist.definition import encode_flag, parse_flag
from flaghoist.errors import BadDefinition
from flaghoist.evaluation import EvaluationFailed, evaluate, normalised
from flaghoist.outcomes import Applied, Link
from flaghoist.records import Op
from flaghoist.release_plan import SHARE_MAX, Gate, Walk, encode_release
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target
from publisher import flagfile
from publisher.documents import Documents
from publisher.flagfile import Syntax
from publisher.plan import Step, plan_import
from publisher.releases.file import FlagWish, ReleaseWish, stages_in
from publisher.releases.gating import NotWired, gates_of, rewired, unwired, wired, wiring_of
from publisher.releases.wiring import (
    BadRelease,
    ReleaseDraft,
    ReleaseExists,
    ReleaseOpen,
    ReleaseTooLarge,
    UnknownRelease,
    cautions,
    creation,
    deletion,
    edition,
    find_release,
    releases_of,
    wish_of,
    with_flags,
)
from tests.forge import ADA, Forge, boolean_flag, gated_flag, release_plan
from tests.oracle.rules import RuleMaker

TODAY = date(2026, 11, 22)
SPRING = FlagKey("spring")
REAL_FILES = Path(__file__).parents[4] / "shared" / "data"


class Desk:
    """A ledger with its documents, as a command reads them."""

    def __init__(self) -> None:
        self.forge = Forge()
        self.forge.genesis()
        self.links: list[Link] = []

    @property
    def documents(self) -> Documents:
        return Documents.of(self.links)

    @property
    def snapshot(self) -> Snapshot:
        return self.forge.ledger.snapshot

    def find(self, name: str) -> StateId:
        served = self.snapshot.view.flags.get(name)
        return self.documents.find_flag(name, None if served is None else served.source)

    def publish(self, *ops: Op) -> Applied:
        data = self.forge.signed(self.forge.entry(self.forge.release(*ops)))
        outcome = self.forge.ledger.receive(data)
        assert isinstance(outcome, Applied), outcome
        self.links.append(outcome)
        return outcome

    def put(self, **flags: Mapping[str, object]) -> None:
        self.publish(*(self.forge.op(key, flag) for key, flag in flags.items()))

    def create(self, *flags: str | FlagWish, **wishes: Any) -> ReleaseDraft:
        wished = tuple(FlagWish(flag) if isinstance(flag, str) else flag for flag in flags)
        told = {"key": SPRING, "owner": ADA, "flags": wished or None, **wishes}
        return creation(ReleaseWish(**told), self.documents, self.find, where="release.yaml", today=TODAY)

    def created(self, *flags: str | FlagWish, **wishes: Any) -> ReleaseDraft:
        draft = self.create(*flags, **wishes)
        self.take(draft.steps)
        return draft

    def take(self, steps: Sequence[Step]) -> None:
        self.publish(*(step.op for step in steps))

    def move(self, key: str = "spring", **gate: Any) -> None:
        self.publish(self.forge.hoist(key, **gate))

    def edit(self, wish: ReleaseWish, **more: Any) -> ReleaseDraft:
        state = self.snapshot.releases[SPRING]
        return edition(wish, state, self.documents, self.find, where="spring", today=TODAY, **more)


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.put(
        cart=boolean_flag(),
        mail={"state": "ENABLED", "variants": {"yes": True, "no": False}, "defaultVariant": "no"},
        color={"state": "ENABLED", "variants": {"red": "r", "blue": "b"}, "defaultVariant": "red"},
    )
    return made


def answers(snapshot: Snapshot, contexts: Sequence[Mapping[str, Any]]) -> list[object]:
    """Value, variant and error of every flag for every context."""
    given: list[object] = []
    for key in sorted(snapshot.view.flags):
        for context in contexts:
            try:
                answer = evaluate(snapshot.view, key, normalised(context), now_s=7)
                given.append((key, answer.value, answer.variant))
            except EvaluationFailed as failure:
                given.append((key, failure.code))
    return given


def snapshot_of(flags: Mapping[str, bytes], evaluators: Mapping[str, bytes]) -> Snapshot:
    ops = [Op(Target.EVALUATOR, Source(""), FlagKey(k), Seq(0), Action.PUT, d) for k, d in evaluators.items()]
    ops += [Op(Target.FLAG, Source(""), FlagKey(k), Seq(0), Action.PUT, d) for k, d in flags.items()]
    return Snapshot.empty(Fractional.V2).fold(Seq(1), ops)


def wired_snapshot(flags: Mapping[str, bytes], evaluators: Mapping[str, bytes], ons: Mapping[str, str]) -> Snapshot:
    """The same flags, each wired to a closed release."""
    plan = release_plan(*flags)
    release = Op(Target.RELEASE, Source(""), SPRING, Seq(0), Action.PUT, encode_release(plan))
    ops = [Op(Target.EVALUATOR, Source(""), FlagKey(k), Seq(0), Action.PUT, d) for k, d in evaluators.items()]
    for key, document in flags.items():
        ops.append(Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, wired(document, SPRING, ons[key])))
    return Snapshot.empty(Fractional.V2).fold(Seq(1), [release, *ops])


@pytest.mark.parametrize("seed", range(40))
def test_closed_gate_changes_no_answer_whatever_rule_a_flag_has(seed):
    maker, choose = RuleMaker(seed), random.Random(seed)
    flags, ons = {}, {}
    for number in range(12):
        raw: dict[str, Any] = {
            "state": choose.choice(["ENABLED", "ENABLED", "ENABLED", "DISABLED"]),
            "variants": {"on": True, "off": False, "a": True, "b": False, "true": True, "false": False},
        }
        if choose.random() < 0.8:
            raw["defaultVariant"] = choose.choice(["on", "off", "a"])
        if choose.random() < 0.85:
            raw["targeting"] = maker.rule()
        key = f"flag-{number}"
        flags[key], ons[key] = encode_flag(raw), choose.choice(["on", "b"])
    contexts = [maker.context() for _ in range(25)]
    assert answers(wired_snapshot(flags, {}, ons), contexts) == answers(snapshot_of(flags, {}), contexts)
    for document in flags.values():
        assert unwired(wired(document, SPRING, "on"), SPRING) == document


@pytest.mark.parametrize("name", ["opentelemetry-demo.flagd.json", "flagd-samples.flagd.json"])
def test_closed_gate_changes_no_answer_of_a_real_flag_file(name):
    file = REAL_FILES / name
    if not file.exists():
        pytest.skip(f"the real flag files are not beside this clone: {REAL_FILES}")
    parsed = flagfile.parse_flag_file(file.read_bytes(), Source(""), where=name, syntax=Syntax.JSON)
    ons = {key: next(iter(parse_flag(document).variants)) for key, document in parsed.flags.items()}
    flags = {str(key): document for key, document in parsed.flags.items()}
    evaluators = {str(key): document for key, document in parsed.evaluators.items()}
    contexts: list[dict[str, Any]] = [{}, {"targetingKey": "user-1"}, {"targetingKey": "u2", "email": "ada@faas.com"}]
    contexts += [{"targetingKey": f"user-{n}", "color": "yellow", "age": 20 + n} for n in range(40)]
    before, after = snapshot_of(flags, evaluators), wired_snapshot(flags, evaluators, ons)
    assert answers(after, contexts) == answers(before, contexts)
    for document in parsed.flags.values():
        assert unwired(wired(document, SPRING, "on"), SPRING) == document


def test_flag_goes_through_the_gates_of_several_releases_and_leaves_any_of_them():
    rule = {"if": [{"==": [{"var": "a"}, 1]}, "on", None]}
    document = encode_flag(boolean_flag(targeting=rule))
    both = wired(wired(document, FlagKey("one"), "on"), FlagKey("two"), "off")
    assert gates_of(parse_flag(both).targeting) == [("two", "off"), ("one", "on")]
    assert wiring_of(parse_flag(both).targeting, FlagKey("one")) == (
        "on",
        {"if": [{"$ref": "release.two"}, "off", rule]},
    )
    assert unwired(both, FlagKey("one")) == wired(document, FlagKey("two"), "off")
    assert unwired(unwired(both, FlagKey("one")), FlagKey("two")) == document
    assert unwired(document, FlagKey("one")) == document


def test_rule_that_names_the_gate_otherwise_is_never_guessed_away():
    document = encode_flag(boolean_flag(targeting={"if": [{"!": [{"$ref": "release.spring"}]}, "off", "on"]}))
    with pytest.raises(NotWired, match="in another way than a release wires it"):
        unwired(document, SPRING)


# --- making ---


def test_creation_is_one_proposal_of_the_release_and_its_flags_and_changes_no_answer(desk):
    contexts = [{"targetingKey": f"u{n}"} for n in range(50)]
    before = answers(desk.snapshot, contexts)
    draft = desk.created("cart", "mail", FlagWish("color", on="blue"), services=("cart", "mail"))
    assert [str(step.op.state_id) for step in draft.steps] == ["release spring", "cart", "mail", "color"]
    assert [(c.verb, c.on) for c in draft.flags] == [("wire", "on"), ("wire", "yes"), ("wire", "blue")]
    assert answers(desk.snapshot, contexts) == before
    desk.move(share=SHARE_MAX)
    assert set(answers(desk.snapshot, contexts[:1])) == {
        ("cart", True, "on"),
        ("mail", True, "yes"),
        ("color", "b", "blue"),
    }


def test_pattern_makes_one_flag_a_service_with_all_that_governs_it(desk):
    desk.created(
        pattern="{service}.{release}",
        services=("web", "api"),
        team="shop",
        ticket="SHOP-7",
        expires_at="2027-03-31",
    )
    assert desk.snapshot.releases[SPRING].plan.flags == (("", "web.spring"), ("", "api.spring"))
    definition = parse_flag(desk.documents.current(StateId(Target.FLAG, Source(""), FlagKey("web.spring"))))
    assert (definition.variants, definition.default_variant) == ({"on": True, "off": False}, "off")
    governance = definition.governance
    assert (governance.owner, governance.team, governance.category) == (ADA, "shop", "release")
    assert (governance.ticket, governance.expires_at, governance.safe_variant) == ("SHOP-7", "2027-03-31", "off")
    assert governance.services == ("web",)


def test_flag_to_be_made_has_its_own_description_and_safe_variant(desk):
    desk.created(FlagWish("banner", create=True, description="the banner", safe_variant="on"))
    definition = parse_flag(desk.documents.current(StateId(Target.FLAG, Source(""), FlagKey("banner"))))
    assert (definition.description, definition.governance.safe_variant) == ("the banner", "on")


def test_service_of_a_flag_is_written_into_it_and_the_release_names_the_services_of_its_flags(desk):
    desk.created(FlagWish("cart", service="checkout"), "mail")
    assert desk.snapshot.releases[SPRING].plan.services == ("checkout",)
    assert desk.snapshot.flag(Source(""), FlagKey("cart")).definition.governance.services == ("checkout",)


@pytest.mark.parametrize(
    ("flags", "wishes", "told"),
    [
        (("crat",), {}, "flags: no flag crat; did you mean cart?"),
        (("color",), {}, "which variant should it turn on? Say `on: V`, one of red, blue"),
        ((FlagWish("color", on="green"),), {}, "want one of the flag's variants (red, blue), got 'green'"),
        (("cart", "cart"), {}, "want each flag once, got cart twice"),
        ((FlagWish("cart", create=True),), {}, "want the name of a flag to be made, cart exists (seq 2)"),
        (
            (),
            {"pattern": "{service}", "services": ("cart",)},
            "pattern '{service}': want the name of a flag to be made",
        ),
        ((), {"pattern": "{service}"}, "pattern: want services, of which each gets a flag, got none"),
        ((), {"pattern": "{service}", "services": ("a b",)}, "pattern '{service}': flag key"),
        ((), {}, "want at least one flag, or a pattern"),
        (("cart",), {"expires_at": "2026-11-21"}, "want a date that is not over, got 2026-11-21 (today is 2026-11-22)"),
        (("cart",), {"owner": None}, "owner: want the person who answers for it"),
        (("cart",), {"stages": stages_in(["audience"], "s")}, "audience: want a rule that says who the audience is"),
    ],
)
def test_creation_that_cannot_be_is_refused_with_the_reason(desk, flags, wishes, told):
    with pytest.raises(BadRelease) as caught:
        desk.create(*flags, **wishes)
    assert told in str(caught.value)


def test_all_reasons_are_told_at_once(desk):
    with pytest.raises(BadRelease) as caught:
        desk.create("crat", "color", expires_at="2020-01-01", owner=None)
    assert len(caught.value.problems) == 4


def test_flag_that_refers_to_the_gate_already_is_refused(desk):
    desk.publish(desk.forge.evaluator_op("release.spring", {"==": [1, 0]}))
    desk.put(early=gated_flag("spring"))
    with pytest.raises(BadRelease, match=r'early refers to \{"\$ref": "release.spring"\} already'):
        desk.create("early")


def test_release_that_exists_is_not_made_again(desk):
    desk.created("cart")
    with pytest.raises(ReleaseExists, match="there already \\(seq 3\\)"):
        desk.create("mail")
    with pytest.raises(UnknownRelease, match="did you mean spring"):
        find_release(desk.snapshot.releases, "sprnig")


def test_creation_larger_than_one_proposal_is_refused(desk):
    bulky = boolean_flag(description="x" * 4000, targeting={"in": [{"var": "email"}, ["y" * 200] * 100]})
    desk.put(**{f"bulky{n}": bulky for n in range(18)})
    with pytest.raises(ReleaseTooLarge, match="want what makes it in one proposal"):
        desk.create(*(f"bulky{n}" for n in range(18)), "cart", "mail", FlagWish("color", on="red"))


def test_people_are_told_of_flags_that_a_gate_will_not_change(desk):
    desk.put(dead=boolean_flag(state="DISABLED"), done=boolean_flag("on"))
    notes = {str(c.state_id): c.notes for c in desk.create("dead", "done", "cart").flags}
    assert "DISABLED" in notes["dead"][0]
    assert "everybody gets 'on' already" in notes["done"][0]
    assert notes["cart"] == ()


# --- editing and deleting ---


def test_edit_wires_what_comes_in_and_gives_back_what_goes_out(desk):
    before = desk.documents.current(StateId(Target.FLAG, Source(""), FlagKey("cart")))
    desk.created("cart", services=("web",))
    plan = desk.snapshot.releases[SPRING].plan
    gone = [StateId(Target.FLAG, Source(""), FlagKey("cart"))]
    draft = desk.edit(with_flags(wish_of(SPRING, plan), [FlagWish("mail")], gone))
    assert [(str(c.state_id), c.verb) for c in draft.flags] == [("mail", "wire"), ("cart", "unwire")]
    desk.take(draft.steps)
    assert desk.documents.current(gone[0]) == before
    assert desk.snapshot.releases[SPRING].plan.flags == (("", "mail"),)
    assert desk.snapshot.releases[SPRING].plan.services == ("web",)


def test_services_of_flags_that_come_in_are_the_releases_too_when_nobody_names_its_services(desk):
    desk.created("cart", services=("web",))
    wish = with_flags(wish_of(SPRING, desk.snapshot.releases[SPRING].plan), [FlagWish("mail", service="post")], [])
    assert desk.edit(wish, grow_services=True).after.services == ("web", "post")
    assert desk.edit(wish).after.services == ("web",)


def test_edit_that_changes_nothing_has_no_steps(desk):
    desk.created("cart", FlagWish("color", on="blue"))
    assert desk.edit(wish_of(SPRING, desk.snapshot.releases[SPRING].plan)).steps == ()


def test_edit_wires_a_flag_again_that_lost_its_wiring(desk):
    desk.created("cart")
    desk.put(cart=boolean_flag("on"))
    draft = desk.edit(wish_of(SPRING, desk.snapshot.releases[SPRING].plan))
    assert [(str(c.state_id), c.verb) for c in draft.flags] == [("cart", "wire")]
    assert [step.op.target for step in draft.steps] == [Target.FLAG]


def test_flags_of_an_open_release_are_not_edited_and_the_rest_is(desk):
    desk.created("cart")
    desk.move(share=1000)
    plan = desk.snapshot.releases[SPRING].plan
    with pytest.raises(ReleaseOpen, match="open for 1 % of users: want it closed before its flags are changed: mail"):
        desk.edit(with_flags(wish_of(SPRING, plan), [FlagWish("mail")], []))
    with pytest.raises(ReleaseOpen, match="changed: cart"):
        desk.edit(
            with_flags(wish_of(SPRING, plan), [FlagWish("mail")], [StateId(Target.FLAG, Source(""), FlagKey("cart"))])
        )
    desk.take(desk.edit(ReleaseWish(title="Spring", expires_at="2027-01-01").over(wish_of(SPRING, plan))).steps)
    after = desk.snapshot.releases[SPRING].plan
    assert (after.title, after.gate) == ("Spring", Gate(share=1000))


def test_deletion_leaves_every_flag_as_it_was_before_the_release(desk):
    root_of_flags = {str(f.key): f.definition for f in desk.snapshot.flags()}
    desk.created("cart", "mail", FlagWish("color", on="blue"))
    desk.move(share=30_000)
    with pytest.raises(ReleaseOpen, match="open for 30 % of users: want it closed before it is deleted"):
        deletion(desk.snapshot.releases[SPRING], desk.documents)
    desk.move(share=0)
    desk.take(deletion(desk.snapshot.releases[SPRING], desk.documents).steps)
    assert SPRING not in desk.snapshot.releases
    assert {str(f.key): f.definition for f in desk.snapshot.flags()} == root_of_flags


def test_deletion_takes_flags_out_that_refer_to_the_gate_without_being_named(desk):
    desk.created("cart")
    desk.put(other=gated_flag("spring"))
    draft = deletion(desk.snapshot.releases[SPRING], desk.documents)
    assert [str(c.state_id) for c in draft.flags] == ["cart", "other"]
    desk.put(odd=boolean_flag(targeting={"if": [{"!": [{"$ref": "release.spring"}]}, "on"]}))
    with pytest.raises(NotWired, match="odd: its rule refers to"):
        deletion(desk.snapshot.releases[SPRING], desk.documents)


def test_walking_release_is_not_deleted(desk):
    desk.created("cart", stages=stages_in(["1%", "100%"], "s"))
    desk.move(walk=Walk.ON)
    with pytest.raises(ReleaseOpen, match="walks through its stages"):
        deletion(desk.snapshot.releases[SPRING], desk.documents)


def test_cleanup_deletes_an_active_release_with_its_flags(desk):
    desk.created("cart", "mail")
    desk.move(share=SHARE_MAX)
    desk.take(deletion(desk.snapshot.releases[SPRING], desk.documents, with_flags=True).steps)
    assert [str(flag.key) for flag in desk.snapshot.flags()] == ["color"]
    assert not desk.snapshot.releases


def test_cleanup_of_an_active_release_is_refused_while_other_flags_go_through_its_gate(desk):
    desk.created("cart")
    desk.put(other=gated_flag("spring"))
    desk.move(share=SHARE_MAX)
    with pytest.raises(ReleaseOpen, match="other flags refer to its gate: other"):
        deletion(desk.snapshot.releases[SPRING], desk.documents, with_flags=True)


# --- what else changes flags ---


def imported(desk: Desk, flags: Mapping[str, object], *, source: str = "", prune: bool = False):
    data = json.dumps({"flags": flags}).encode()
    file = flagfile.parse_flag_file(data, Source(source), where="f", syntax=Syntax.JSON)
    return plan_import(file, desk.documents, desk.snapshot, where="f", prune=prune)


def test_file_that_is_imported_again_keeps_its_flags_in_their_releases(desk):
    desk.created("cart")
    assert [str(s.op.state_id) for s in imported(desk, {"cart": boolean_flag()}).steps] == []
    rule = {"if": [{"==": [{"var": "a"}, 1]}, "on", "off"]}
    (step,) = imported(desk, {"cart": boolean_flag(targeting=rule)}).steps
    assert wiring_of(parse_flag(step.op.definition).targeting, SPRING) == ("on", rule)
    with pytest.raises(BadDefinition, match="want 'on', which release spring turns on, got yes, no"):
        imported(desk, {"cart": {"state": "ENABLED", "variants": {"yes": True, "no": False}}})


def test_file_that_refers_to_the_gate_itself_is_left_as_it_is(desk):
    desk.created("cart")
    document = encode_flag(gated_flag("spring", description="mine"))
    current = desk.documents.current(StateId(Target.FLAG, Source(""), FlagKey("cart")))
    assert rewired(document, current, desk.snapshot.releases) == document


def test_prune_deletes_no_release(desk):
    desk.created("cart")
    plan = imported(desk, {"cart": boolean_flag()}, prune=True)
    assert {str(s.op.state_id) for s in plan.steps} == {"mail", "color"}


def test_people_are_cautioned_before_a_change_takes_a_flag_out_of_its_release(desk):
    desk.created("cart", "mail")
    assert cautions(desk.snapshot, [desk.forge.op("color", boolean_flag())]) == []
    (said,) = cautions(desk.snapshot, [desk.forge.op("cart", boolean_flag())])
    assert "cart goes through the gate of release spring no more" in said
    desk.move(share=1000)
    (said,) = cautions(desk.snapshot, [desk.forge.op("cart", gated_flag("spring", description="x"))])
    assert "a revert of it will then need `--keep cart`" in said
    assert len(cautions(desk.snapshot, [desk.forge.op("cart", None)])) == 2
    desk.move(share=0)
    steps = deletion(desk.snapshot.releases[SPRING], desk.documents).steps
    assert cautions(desk.snapshot, [step.op for step in steps]) == []


def test_releases_of_a_flag_are_those_that_name_it_and_those_whose_gate_it_refers_to(desk):
    desk.created("cart")
    desk.put(other=gated_flag("spring"))
    assert [releases_of(desk.snapshot, Source(""), FlagKey(k)) for k in ("cart", "other", "mail")] == [
        ["spring"],
        ["spring"],
        [],
    ]
