"""Snapshots: all ops of an entry or none; only what changed is compiled; views and what changed between them."""

import gc
import random
from typing import Any

import pytest

from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.errors import BadDefinition, StaleBase
from flaghoist.evaluation import evaluate
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, changed_keys
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target

ON_OFF = {"on": True, "off": False}


def flag(default: str = "on", targeting: Any = None) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": ON_OFF, "defaultVariant": default, "targeting": targeting}


def put(key: str, definition: dict[str, Any], version: int = 0, source: str = "") -> Op:
    return Op(Target.FLAG, Source(source), FlagKey(key), Seq(version), Action.PUT, encode_flag(definition))


def put_evaluator(key: str, rule: Any, version: int = 0, source: str = "") -> Op:
    return Op(Target.EVALUATOR, Source(source), FlagKey(key), Seq(version), Action.PUT, encode_evaluator(rule))


def delete(key: str, version: int, source: str = "", target: Target = Target.FLAG) -> Op:
    return Op(target, Source(source), FlagKey(key), Seq(version), Action.DELETE, None)


def flag_id(key: str, source: str = "") -> StateId:
    return StateId(Target.FLAG, Source(source), FlagKey(key))


def folded(*entries: list[Op]) -> Snapshot:
    snapshot = Snapshot.empty(Fractional.V2)
    for number, ops in enumerate(entries, 1):
        snapshot = snapshot.fold(Seq(number), ops)
    return snapshot


def served(snapshot: Snapshot, **context: Any) -> dict[str, str | None]:
    return {key: evaluate(snapshot.view, key, context, now_s=0).variant for key in snapshot.view.flags}


def test_the_empty_snapshot_serves_nothing() -> None:
    empty = Snapshot.empty(Fractional.V3)
    assert (empty.seq, empty.fractional, dict(empty.view.flags)) == (Seq(0), Fractional.V3, {})
    assert empty.version_of(flag_id("a")) == Seq(0)


def test_a_fold_applies_all_ops_and_leaves_the_snapshot_before_it_alone() -> None:
    one = folded([put("a", flag("on")), put("b", flag("off"))])
    two = one.fold(Seq(2), [put("a", flag("off"), 1), delete("b", 1), put("c", flag("on"))])
    assert served(one) == {"a": "on", "b": "off"}
    assert served(two) == {"a": "off", "c": "on"}
    assert (one.seq, two.seq, one.view.seq, two.view.seq) == (Seq(1), Seq(2), Seq(1), Seq(2))


def test_a_version_is_the_seq_of_the_last_change_and_of_the_deletion() -> None:
    snapshot = folded([put("a", flag()), put("b", flag())], [put("a", flag("off"), 1)], [delete("b", 1)])
    assert snapshot.version_of(flag_id("a")) == Seq(2)
    assert snapshot.version_of(flag_id("b")) == Seq(3)
    assert snapshot.version_of(flag_id("never")) == Seq(0)
    assert snapshot.view.flags["a"].version == Seq(2)


def test_a_deleted_flag_comes_back_only_on_top_of_its_deletion() -> None:
    snapshot = folded([put("a", flag())], [delete("a", 1)])
    for stale in (0, 1):
        with pytest.raises(StaleBase, match=f"a: expected version {stale}, it is at 2"):
            snapshot.fold(Seq(3), [put("a", flag(), stale)])
    assert served(snapshot.fold(Seq(3), [put("a", flag(), 2)])) == {"a": "on"}


@pytest.mark.parametrize("expected", [0, 2])
def test_a_stale_base_is_refused(expected: int) -> None:
    with pytest.raises(StaleBase):
        folded([put("a", flag())]).fold(Seq(2), [put("a", flag(), expected)])


def test_versions_of_one_key_are_apart_by_source_and_target() -> None:
    snapshot = folded(
        [put("a", flag()), put("a", flag("off"), source="shop"), put_evaluator("a", {"var": "x"})],
        [put("a", flag(), 1, source="shop")],
    )
    assert snapshot.version_of(flag_id("a")) == Seq(1)
    assert snapshot.version_of(flag_id("a", "shop")) == Seq(2)
    assert snapshot.version_of(StateId(Target.EVALUATOR, Source(""), FlagKey("a"))) == Seq(1)


BAD = {
    "the same flag twice": [put("c", flag()), put("c", flag("off"))],
    "put and delete of one flag": [put("a", flag(), 1), delete("a", 1)],
    "a deletion of nothing": [delete("never", 0)],
    "a bad definition": [put("c", flag()), Op(Target.FLAG, Source(""), FlagKey("d"), Seq(0), Action.PUT, b"{}")],
    "an unknown operator": [put("c", flag(targeting={"iff": [1, 2]}))],
    "an unknown operator in an evaluator": [put_evaluator("e", {"iff": [1, 2]})],
    "a reference to nothing": [put("c", flag(targeting={"if": [{"$ref": "gone"}, "on"]}))],
    "an evaluator that refers to nothing": [put_evaluator("e", {"!": [{"$ref": "gone"}]})],
    "an evaluator that refers to itself": [put_evaluator("e", {"!": [{"$ref": "e"}]})],
    "a deleted evaluator in use": [delete("gate", 1, target=Target.EVALUATOR)],
    "an evaluator made to refer to its user": [put_evaluator("gate", {"$ref": "outer"}, 1)],
    "a policy": [Op(Target.POLICY, Source(""), FlagKey("p"), Seq(0), Action.PUT, b"{}")],
    "a release": [Op(Target.RELEASE, Source(""), FlagKey("r"), Seq(0), Action.PUT, b"{}")],
    "a kill": [Op(Target.FLAG, Source(""), FlagKey("a"), Seq(1), Action.KILL, None)],
    "a put of nothing": [Op(Target.FLAG, Source(""), FlagKey("c"), Seq(0), Action.PUT, None)],
    "a delete with a definition": [Op(Target.FLAG, Source(""), FlagKey("a"), Seq(1), Action.DELETE, b"{}")],
}


@pytest.mark.parametrize("name", BAD)
def test_an_entry_with_one_bad_op_changes_nothing(name: str) -> None:
    base = folded(
        [
            put("a", flag()),
            put("user", flag("off", {"if": [{"$ref": "outer"}, "on"]})),
            put_evaluator("gate", {"==": [{"var": "x"}, 1]}),
            put_evaluator("outer", {"!": [{"$ref": "gate"}]}),
        ]
    )
    before = served(base, x=1)
    with pytest.raises(BadDefinition):
        base.fold(Seq(2), [put("fine", flag()), *BAD[name]])
    assert served(base, x=1) == before
    assert base.version_of(flag_id("fine")) == Seq(0)


def test_an_error_names_the_flag_and_the_field() -> None:
    with pytest.raises(BadDefinition) as caught:
        folded([put("newUi", flag(targeting={"if": [{"iff": []}, "on"]}), source="shop.json")])
    assert caught.value.where == "shop.json#flags.newUi.targeting.if[0]"


def test_a_changed_evaluator_changes_every_flag_that_refers_to_it_and_no_other() -> None:
    rule = {"if": [{"$ref": "outer"}, "on", "off"]}
    one = folded(
        [
            put("uses", flag("off", rule)),
            put("plain", flag("off", {"if": [{"==": [{"var": "x"}, 1]}, "on", "off"]})),
            put_evaluator("gate", {"==": [{"var": "x"}, 1]}),
            put_evaluator("outer", {"and": [{"$ref": "gate"}, True]}),
        ]
    )
    two = one.fold(Seq(2), [put_evaluator("gate", {"==": [{"var": "x"}, 2]}, 1)])
    assert (served(one, x=1)["uses"], served(one, x=2)["uses"]) == ("on", "off")
    assert (served(two, x=1)["uses"], served(two, x=2)["uses"]) == ("off", "on")
    assert two.view.flags["plain"] is one.view.flags["plain"]
    assert two.version_of(flag_id("uses")) == Seq(1)
    assert changed_keys(one.view, two.view) == {"uses": "update"}


@pytest.mark.parametrize("through", ["gate", "own"])
def test_a_changed_shared_evaluator_changes_the_flags_of_every_source(through: str) -> None:
    rule = {"if": [{"$ref": through}, "on", "off"]}
    gate = {"==": [{"var": "x"}, 1]}
    one = folded(
        [
            put_evaluator("gate", gate),
            *[put_evaluator("own", {"!": [{"!": [{"$ref": "gate"}]}]}, source=source) for source in ("shop", "pay")],
            put("buy", flag("off", rule), source="shop"),
            put("refund", flag("off", rule), source="pay"),
        ]
    )
    assert served(one, x=1) == {"buy": "on", "refund": "on"}
    two = one.fold(Seq(2), [put_evaluator("gate", {"!": [gate]}, 1)])
    assert served(two, x=1) == {"buy": "off", "refund": "off"}
    with pytest.raises(BadDefinition, match="no such evaluator"):
        two.fold(Seq(3), [delete("gate", 2, target=Target.EVALUATOR)])


def test_a_flag_and_the_evaluator_it_needs_may_come_in_one_entry_in_any_order() -> None:
    snapshot = folded([put("f", flag("off", {"if": [{"$ref": "late"}, "on"]})), put_evaluator("late", {"var": "x"})])
    assert served(snapshot, x=1) == {"f": "on"}


def test_a_flag_and_its_evaluator_may_go_in_one_entry() -> None:
    one = folded([put("f", flag("off", {"if": [{"$ref": "e"}, "on"]})), put_evaluator("e", {"var": "x"})])
    assert served(one.fold(Seq(2), [delete("e", 1, target=Target.EVALUATOR), delete("f", 1)])) == {}


def test_a_reference_means_its_own_source_first_and_then_the_shared_one() -> None:
    rule = {"if": [{"$ref": "e"}, "on", "off"]}
    one = folded([put("f", flag("off", rule), source="shop"), put_evaluator("e", {"==": [{"var": "x"}, 1]})])
    assert served(one, x=1) == {"f": "on"}
    two = one.fold(Seq(2), [put_evaluator("e", {"==": [{"var": "x"}, 2]}, source="shop")])
    assert (served(two, x=1), served(two, x=2)) == ({"f": "off"}, {"f": "on"})
    three = two.fold(Seq(3), [delete("e", 2, "shop", Target.EVALUATOR)])
    assert served(three, x=1) == {"f": "on"}


def test_another_sources_evaluators_are_out_of_reach() -> None:
    with pytest.raises(BadDefinition, match="no such evaluator"):
        folded([put("f", flag("off", {"$ref": "e"}), source="a"), put_evaluator("e", {"var": "x"}, source="b")])


def test_of_equal_keys_the_later_source_is_served_and_the_shared_one_is_first() -> None:
    one = folded([put("k", flag("on"), source="first")], [put("k", flag("off"), source="second")])
    assert served(one) == {"k": "off"}
    two = one.fold(Seq(3), [put("k", flag("on"))])
    assert served(two) == {"k": "off"}
    three = two.fold(Seq(4), [delete("k", 2, "second")])
    assert three.view.flags["k"].source == "first"


def test_a_source_keeps_its_place_when_its_flags_go_and_come_back() -> None:
    one = folded(
        [put("k", flag("on"), source="first")], [put("k", flag("off"), source="second")], [delete("k", 1, "first")]
    )
    assert served(one.fold(Seq(4), [put("k", flag("on"), 3, "first")])) == {"k": "off"}


def test_an_entry_that_changes_nothing_shares_the_state() -> None:
    one = folded([put("a", flag())])
    later = one.at_seq(Seq(7))
    assert (later.seq, later.view.seq) == (Seq(7), Seq(7))
    assert later.view.flags is one.view.flags
    assert one.fold(Seq(7), []).view.flags is one.view.flags
    assert changed_keys(one.view, later.view) == {}


def test_changed_keys_say_what_a_client_must_hear() -> None:
    one = folded([put("a", flag()), put("b", flag()), put("c", flag())])
    two = one.fold(Seq(2), [put("a", flag("off"), 1), delete("b", 1), put("d", flag())])
    assert changed_keys(one.view, two.view) == {"a": "update", "b": "delete", "d": "write"}
    assert changed_keys(None, one.view) == {"a": "write", "b": "write", "c": "write"}
    assert changed_keys(two.view, one.view) == {"a": "update", "b": "write", "d": "delete"}
    assert changed_keys(one.view, one.view) == {}


@pytest.mark.parametrize("seed", range(15))
def test_random_entries_fold_to_what_a_plain_model_holds(seed: int) -> None:
    rng = random.Random(seed)
    snapshot, seq = Snapshot.empty(Fractional.V2), 0
    model: dict[tuple[str, str], tuple[str, int]] = {}
    versions: dict[tuple[str, str], int] = {}
    order: list[str] = [""]
    for _ in range(40):
        seq += 1
        ops, after = [], dict(model)
        for place in rng.sample([(s, k) for s in ("", "x", "y") for k in "abcd"], rng.randrange(5)):
            source, key = place
            if place in after and rng.random() < 0.4:
                ops.append(delete(key, versions[place], source))
                del after[place]
            else:
                variant = rng.choice(["on", "off"])
                ops.append(put(key, flag(variant), versions.get(place, 0), source))
                after[place] = (variant, seq)
        good = rng.random() < 0.8
        if not good:
            with pytest.raises((StaleBase, BadDefinition)):
                snapshot.fold(Seq(seq), [*ops, put("e", flag(), 99)])
            continue
        before, snapshot = snapshot, snapshot.fold(Seq(seq), ops)
        for op in ops:
            versions[op.source, op.key] = seq
            if op.source not in order:
                order.append(op.source)
        model = after
        merged = {key: value for source in order for (s, key), value in model.items() if s == source}
        assert served(snapshot) == {key: variant for key, (variant, _) in merged.items()}
        assert {key: found.version.number for key, found in snapshot.view.flags.items()} == {
            key: version for key, (_, version) in merged.items()
        }
        told = {key: before.view.flags[key] for key in before.view.flags}
        for key, change in changed_keys(before.view, snapshot.view).items():
            assert (change == "write") is (key not in told)
            if change == "delete":
                del told[key]
            else:
                told[key] = snapshot.view.flags[key]
        assert told == dict(snapshot.view.flags)
    assert {place: snapshot.version_of(flag_id(place[1], place[0])).number for place in versions} == versions


def test_a_large_evaluator_is_refused_before_too_many_flags_refer_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaghoist.snapshot.LEDGER_NODES_MAX", 1000)
    large = {"or": [{"==": [{"var": "x"}, n]} for n in range(60)]}  # 241 nodes
    uses = flag("off", {"if": [{"$ref": "large"}, "on"]})
    base = folded([put_evaluator("large", large), *[put(f"f{n}", uses) for n in range(4)]])
    with pytest.raises(BadDefinition, match="at most 1000 operators") as caught:
        base.fold(Seq(2), [put("f4", uses)])
    assert caught.value.where == "flags.f4"
    with pytest.raises(BadDefinition, match="at most 1000 operators"):
        base.fold(Seq(2), [put_evaluator("large", {"or": [large, large]}, 1)])
    freed = base.fold(Seq(2), [delete("f0", 1), put("f1", flag(), 1)])
    assert len(freed.fold(Seq(3), [put("f4", uses), put("f5", uses)]).view.flags) == 5


@pytest.mark.parametrize("enabled", [True, False])
def test_a_large_fold_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    ops = [put(f"f{n}", flag()) for n in range(100)]
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        folded(ops)
        assert gc.isenabled() is enabled
        with pytest.raises(BadDefinition):
            folded([*ops, *ops])
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_a_rule_that_did_not_change_is_not_compiled_again() -> None:
    before = folded([put("a", flag("off", {"==": [{"var": "x"}, 1]}))])
    after = before.fold(Seq(2), [put("a", flag("on", {"==": [{"var": "x"}, 1]}), 1)])
    assert after.view.flags["a"].rule is before.view.flags["a"].rule
    assert after.view.flags["a"].default.variant == "on"


@pytest.mark.parametrize(("was", "becomes"), [(1, True), (1, 1.5), (0, False), ("1", 1)])
def test_a_rule_that_python_takes_for_equal_is_compiled_again(was: object, becomes: object) -> None:
    before = folded([put("a", flag("off", {"===": [{"var": "x"}, was]}))])
    after = before.fold(Seq(2), [put("a", flag("off", {"===": [{"var": "x"}, becomes]}), 1)])
    assert after.view.flags["a"].rule is not before.view.flags["a"].rule


@pytest.mark.parametrize("source", ["", "file"])
def test_a_rule_whose_evaluator_changes_in_the_same_entry_is_compiled_again(source: str) -> None:
    rule = {"if": [{"$ref": "staff"}, "on", "off"]}
    before = folded([put_evaluator("staff", {"==": [{"var": "x"}, 1]}), put("a", flag("off", rule), source="file")])
    version = 1 if source == "" else 0
    after = before.fold(
        Seq(2),
        [
            put_evaluator("staff", {"==": [{"var": "x"}, 2]}, version, source),
            put("a", flag("on", rule), 1, source="file"),
        ],
    )
    assert served(after, x=2) == {"a": "on"}
    assert served(after, x=1) == {"a": "off"}


def test_an_op_on_a_policy_is_refused() -> None:
    op = Op(Target.POLICY, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_flag(flag()))
    with pytest.raises(BadDefinition, match="want an op on a definition, got POLICY"):
        Snapshot.empty(Fractional.V2).fold(Seq(1), [op])
