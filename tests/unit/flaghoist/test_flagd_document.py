"""The document of flagd's clients: what is in it, what is written out, what is left out, and what it costs."""

import json
from typing import Any

import pytest

from flaghoist import flagd_document
from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.errors import TooLarge
from flaghoist.flagd_document import (
    RULE_LEVELS_MAX,
    UNSENDABLE_OPERATOR,
    document,
    export_caveats,
    export_document,
    fault,
    faults,
    member,
)
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot, View
from flaghoist.targeting import Fractional
from flaghoist.targeting.references import TooDeep, written_out
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from tests.sync.sets import snapshot_of

SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}


def put(target: Target, key: str, encoded: bytes, *, source: str = "", version: int = 0) -> Op:
    return Op(target, Source(source), FlagKey(key), Seq(version), Action.PUT, encoded)


def flags_in(view: View) -> dict[str, Any]:
    whole = json.loads(document(view))
    assert list(whole) == ["flags"]
    return dict(whole["flags"])


def nested(levels: int) -> dict[str, Any]:
    """Return a rule of `levels` levels of JSON, two an operator: none of them can be flattened."""
    rule: dict[str, Any] = {"==": [1, 1]}
    for _ in range(levels // 2 - 1):
        rule = {"and": [rule]}
    return rule


def chain(links: int, last: Any = None) -> dict[str, Any]:
    """Return `if`s in the last branches of one another, in flagd's form of three operands."""
    rule: Any = last
    for number in range(links):
        rule = {"if": [{"==": [{"var": "n"}, links - number]}, "on", rule]}
    return dict(rule)


def test_a_flag_has_what_every_client_reads_and_nothing_else() -> None:
    described = SWITCH | {"description": "new", "metadata": {"a": 1, "b": "x", "c": True, "d": 1.5}, "extra": 1}
    snapshot = Snapshot.empty(Fractional.V2).fold(
        Seq(1), [put(Target.FLAG, "f", encode_flag(described, {"owner": "ada@example.org"}), source="shop")]
    )
    assert flags_in(snapshot.view) == {
        "f": {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "metadata": {"a": 1, "b": "x", "c": True, "d": 1.5},
            "source": "shop",
        }
    }


@pytest.mark.parametrize("default", [None, ""])
def test_no_default_variant_is_the_empty_text(default: str | None) -> None:
    flags = flags_in(snapshot_of({"f": SWITCH | {"defaultVariant": default}}).view)
    assert flags["f"]["defaultVariant"] == ""


@pytest.mark.parametrize("absent", ["targeting", "metadata"])
def test_what_a_flag_does_not_have_is_absent(absent: str) -> None:
    assert absent not in flags_in(snapshot_of({"f": SWITCH | {absent: {}}}).view)["f"]


def test_references_are_written_out_also_inside_one_another() -> None:
    inner = {"ends_with": [{"var": "email"}, "@example.org"]}
    evaluators = {"inner": inner, "outer": {"or": [{"$ref": "inner"}, {"!": {"$ref": "inner"}}]}}
    rule = {"if": [{"$ref": "outer"}, "on", {"if": [{"and": [{"$ref": "inner"}]}, "off", None]}]}
    view = snapshot_of({"f": SWITCH | {"targeting": rule}}, evaluators).view
    assert flags_in(view)["f"]["targeting"] == {
        "if": [{"or": [inner, {"!": inner}]}, "on", {"if": [{"and": [inner]}, "off", None]}]
    }
    assert fault(view.flags["f"]) is None


def test_a_source_sees_its_own_evaluator_before_the_shared_one() -> None:
    ops = [
        put(Target.EVALUATOR, "who", encode_evaluator({"==": [{"var": "n"}, 1]})),
        put(Target.EVALUATOR, "who", encode_evaluator({"==": [{"var": "n"}, 2]}), source="shop"),
        put(Target.EVALUATOR, "both", encode_evaluator({"!": {"$ref": "who"}})),
        *[
            put(Target.FLAG, key, encode_flag(SWITCH | {"targeting": {"if": [{"$ref": "both"}, "on"]}}), source=source)
            for key, source in (("shared", ""), ("shops", "shop"))
        ],
    ]
    flags = flags_in(Snapshot.empty(Fractional.V2).fold(Seq(1), ops).view)
    assert flags["shared"]["targeting"] == {"if": [{"!": {"==": [{"var": "n"}, 1]}}, "on"]}
    assert flags["shops"]["targeting"] == {"if": [{"!": {"==": [{"var": "n"}, 2]}}, "on"]}


def test_a_changed_evaluator_changes_the_flags_that_refer_to_it_and_no_others() -> None:
    before = snapshot_of(
        {"f": SWITCH | {"targeting": {"if": [{"$ref": "who"}, "on"]}}, "g": SWITCH}, {"who": {"==": [1, 1]}}
    )
    document(before.view)
    after = before.fold(Seq(2), [put(Target.EVALUATOR, "who", encode_evaluator({"==": [1, 2]}), version=1)])
    assert flags_in(after.view)["f"]["targeting"] == {"if": [{"==": [1, 2]}, "on"]}
    assert member(after.view.flags["g"]) is member(before.view.flags["g"])


def test_only_a_changed_flag_is_encoded_anew() -> None:
    before = snapshot_of({f"f{number}": SWITCH for number in range(50)})
    document(before.view)
    after = before.fold(Seq(2), [put(Target.FLAG, "f7", encode_flag(SWITCH | {"state": "DISABLED"}), version=1)])
    assert [key for key, flag in after.view.flags.items() if flag.member is None] == ["f7"]
    assert flags_in(after.view)["f7"]["state"] == "DISABLED"


def test_equal_flags_give_equal_bytes_in_whatever_order_they_came() -> None:
    definitions = dict.fromkeys(("b", "a", "C", "0"), SWITCH)
    backwards = dict(reversed(definitions.items()))
    assert document(snapshot_of(definitions).view) == document(snapshot_of(backwards).view)
    assert list(flags_in(snapshot_of(definitions).view)) == ["0", "C", "a", "b"]


def test_text_travels_as_utf8_and_numbers_as_they_are() -> None:
    variants = {"a": 'é"\\\u2028\x00日本', "b": "</script>"}
    numbers = {"a": 2**53 - 1, "b": 0.1, "c": -0.0, "d": 5e-324, "e": 1e300}
    view = snapshot_of(
        {
            "t": SWITCH | {"variants": variants, "defaultVariant": "a"},
            "n": SWITCH | {"variants": numbers, "defaultVariant": "a"},
        }
    ).view
    flags = flags_in(view)
    assert flags["t"]["variants"] == variants
    assert flags["n"]["variants"] == numbers
    assert "é".encode() in document(view)


def test_no_flags_are_an_empty_set() -> None:
    assert document(snapshot_of({}).view) == b'{"flags":{}}'


def test_a_chain_of_ifs_that_nests_too_deep_is_flattened() -> None:
    view = snapshot_of({"f": SWITCH | {"targeting": chain(80)}}).view
    flag = flags_in(view)["f"]
    assert fault(view.flags["f"]) is None
    assert len(flag["targeting"]["if"]) == 161
    assert flag["targeting"]["if"][:4] == [{"==": [{"var": "n"}, 1]}, "on", {"==": [{"var": "n"}, 2]}, "on"]


def test_a_chain_that_fits_stays_as_it_was_written() -> None:
    rule = chain(20, "off")
    assert flags_in(snapshot_of({"f": SWITCH | {"targeting": rule}}).view)["f"]["targeting"] == rule


def test_a_chain_goes_on_through_references() -> None:
    evaluators = {"rest": chain(40, "off")}
    rule = chain(40, {"$ref": "rest"})
    flag = flags_in(snapshot_of({"f": SWITCH | {"targeting": rule}}, evaluators).view)["f"]
    assert len(flag["targeting"]["if"]) == 161
    assert flag["targeting"]["if"][-1] == "off"


@pytest.mark.parametrize("levels", [RULE_LEVELS_MAX, RULE_LEVELS_MAX + 2])
def test_a_rule_of_more_levels_than_clients_parse_costs_that_flag_alone(levels: int) -> None:
    rule = {"if": [nested(levels - 2), "on"]}
    view = snapshot_of({"deep": SWITCH | {"targeting": rule}, "other": SWITCH}).view
    sent = flags_in(view)["deep"]["targeting"]
    if levels == RULE_LEVELS_MAX:
        assert sent == rule
        assert list(faults(view)) == []
    else:
        assert sent == {UNSENDABLE_OPERATOR: []}
        [(key, reason)] = faults(view)
        assert key == "deep"
        assert f"at most {RULE_LEVELS_MAX} levels" in reason


def test_levels_count_across_references() -> None:
    evaluators = {"deep": nested(RULE_LEVELS_MAX - 2)}
    assert written_out({"if": [{"$ref": "deep"}, "on"]}, evaluators, levels_max=RULE_LEVELS_MAX, chars_max=10_000)
    twice = {"if": [{"$ref": "deep"}, {"if": [{"!": [{"$ref": "deep"}]}, "on"]}]}
    with pytest.raises(TooDeep):
        written_out(twice, evaluators, levels_max=RULE_LEVELS_MAX, chars_max=10_000)


def test_a_small_rule_that_names_a_large_evaluator_often_costs_that_flag_alone() -> None:
    evaluators = {"large": {"in": [{"var": "email"}, ["x" * 50_000, "y" * 50_000]]}}
    rule = {"or": [{"$ref": "large"}] * 1000}  # 100 MB when it is written out
    view = snapshot_of({"bomb": SWITCH | {"targeting": rule}, "other": SWITCH}, evaluators).view
    assert len(document(view)) < 1000
    assert flags_in(view)["bomb"]["targeting"] == {UNSENDABLE_OPERATOR: []}
    assert "characters" in (fault(view.flags["bomb"]) or "")


def test_a_flag_whose_value_is_too_deep_for_clients_is_left_out() -> None:
    value: dict[str, Any] = {}
    for _ in range(RULE_LEVELS_MAX):
        value = {"v": value}
    deep = {"state": "ENABLED", "variants": {"on": value, "off": {}}, "defaultVariant": "on"}
    view = snapshot_of({"deep": deep, "other": SWITCH}).view
    assert list(flags_in(view)) == ["other"]
    assert [key for key, _ in faults(view)] == ["deep"]


def test_a_document_over_the_limit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    view = snapshot_of({f"f{number}": SWITCH for number in range(100)}).view
    size = len(document(view))
    monkeypatch.setattr(flagd_document, "DOCUMENT_BYTES_MAX", size - 100)
    with pytest.raises(TooLarge):
        document(view)
    with pytest.raises(TooLarge):
        export_document(view)


def test_an_exported_file_holds_the_same_flags_without_their_source_and_imports_again() -> None:
    view = snapshot_of(
        {"b": SWITCH | {"targeting": {"if": [{"$ref": "who"}, "on"]}, "metadata": {"x": 1}}, "a": SWITCH},
        {"who": {"==": [{"var": "n"}, 1]}},
    ).view
    whole = json.loads(export_document(view))
    assert whole["$schema"] == "https://flagd.dev/schema/v0/flags.json"
    assert whole["metadata"] == {"flaghoist.seq": 1}
    assert list(whole["flags"]) == ["a", "b"]
    assert {key: flag | {"source": ""} for key, flag in whole["flags"].items()} == flags_in(view)
    again = snapshot_of(whole["flags"]).view
    assert document(again) == document(view)


def test_an_exported_file_takes_metadata_of_the_callers() -> None:
    assert json.loads(export_document(snapshot_of({}).view, {"flagSetId": "shop"}))["metadata"] == {"flagSetId": "shop"}


def test_caveats_name_the_flags_that_flagd_answers_otherwise() -> None:
    split = SWITCH | {"targeting": {"if": [{"$ref": "half"}, "on", "off"]}}
    odd = {"state": "ENABLED", "variants": {'a"b': "x", "c": "y"}, "defaultVariant": "c"}
    flags = {"split": split, "odd": odd | {"targeting": {"if": [True, 'a"b']}}, "plain": SWITCH, "odd-but-static": odd}
    evaluators = {"half": {"fractional": [[True, 1], [False, 1]]}}
    by_generation = {
        generation: [caveat.key for caveat in export_caveats(snapshot_of(flags, evaluators).view, generation)]
        for generation in Fractional
    }
    assert by_generation == {Fractional.V2: ["odd"], Fractional.V3: ["split", "odd"]}
