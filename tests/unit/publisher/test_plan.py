"""Plans: only what differs, in an order that never leaves a reference open, in as few proposals as fit."""

import json
from collections.abc import Mapping

import pytest

from flaghoist.definition import encode_evaluator, encode_flag, parse_flag
from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition, StaleBase, TooLarge
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.targeting import Fractional
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target
from publisher.documents import Documents
from publisher.flagfile import BadFile, FlagFile
from publisher.plan import Step, changed_flag, check, flag_document, plan_import, put, same, split

SOURCE = Source("flags.json")
EMPTY = Snapshot.empty(Fractional.V2)
ON_OFF = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}


def flag(targeting: object = None) -> bytes:
    return encode_flag({**ON_OFF, "targeting": targeting} if targeting else ON_OFF)


def file(flags: Mapping[str, bytes], evaluators: Mapping[str, JsonValue] | None = None) -> FlagFile:
    rules = {FlagKey(key): encode_evaluator(rule) for key, rule in (evaluators or {}).items()}
    return FlagFile(SOURCE, {FlagKey(key): document for key, document in flags.items()}, rules)


def step(key: str, document: bytes | None = None, expected: int = 0) -> Step:
    return Step(Op(Target.FLAG, SOURCE, FlagKey(key), Seq(expected), Action.PUT, document or flag()), None)


def test_an_import_into_an_empty_ledger_adds_everything() -> None:
    plan = plan_import(file({"a": flag(), "b": flag()}), Documents(), EMPTY, where="f", prune=False)
    assert [(s.verb, s.op.key, s.op.expected_version) for s in plan.steps] == [
        ("add", "a", Seq(0)),
        ("add", "b", Seq(0)),
    ]


def test_evaluators_come_before_what_refers_to_them() -> None:
    rules: dict[str, JsonValue] = {"a": {"$ref": "b"}, "b": {"!": [{"$ref": "c"}]}, "c": {"var": "x"}}
    plan = plan_import(
        file({"f": flag({"if": [{"$ref": "a"}, "on", "off"]})}, rules), Documents(), EMPTY, where="f", prune=False
    )
    assert [str(s.op.key) for s in plan.steps] == ["c", "b", "a", "f"]


def test_every_rule_that_cannot_be_compiled_is_named() -> None:
    flags = {"good": flag(), "one": flag({"frobnicate": [1]}), "two": flag({"$ref": "nowhere"})}
    with pytest.raises(BadFile) as caught:
        plan_import(file(flags), Documents(), EMPTY, where="f", prune=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "flags.one.targeting",
        "flags.two.targeting",
    ]
    assert "frobnicate" in caught.value.problems[0]


@pytest.mark.parametrize(("count", "sizes"), [(500, [500]), (501, [500, 1]), (1200, [500, 500, 200])])
def test_more_ops_than_a_proposal_may_hold_are_split_in_order(count: int, sizes: list[int]) -> None:
    steps = [step(f"f{n}") for n in range(count)]
    batches = split(steps)
    assert [len(batch) for batch in batches] == sizes
    assert [s for batch in batches for s in batch] == steps


def test_more_bytes_than_an_envelope_may_hold_are_split() -> None:
    large = b"x" * 100_000
    assert [len(batch) for batch in split([step(f"f{n}", large) for n in range(9)])] == [4, 4, 1]


def test_a_definition_that_fits_no_proposal_is_refused() -> None:
    with pytest.raises(TooLarge):
        split([step("f", b"x" * 600_000)])


def test_a_step_on_another_version_is_refused_as_a_reader_would() -> None:
    with pytest.raises(StaleBase):
        check(EMPTY, [[step("f", expected=7)]])


def test_an_equal_definition_is_no_change_whatever_its_order() -> None:
    one, other = flag(), json.dumps({"flag": dict(reversed(list(json.loads(flag())["flag"].items())))}).encode()
    assert one != other
    assert same(one, other)
    assert not same(b'{"a": 1}', b'{"a": true}')
    assert not same(one, None)


def test_a_new_definition_of_nothing_is_an_addition() -> None:
    added = put(Documents(), StateId(Target.FLAG, SOURCE, FlagKey("f")), flag())
    assert added is not None
    assert added.verb == "add"
    assert added.diff().startswith("--- /dev/null\n+++ flags.json#f (proposed)")


def test_set_changes_only_what_it_names() -> None:
    changed = parse_flag(changed_flag(flag({"var": "x"}), variant="on", state="DISABLED"))
    assert (changed.default_variant, changed.state, changed.targeting) == ("on", "DISABLED", {"var": "x"})


def test_a_rule_is_replaced_and_removed() -> None:
    assert parse_flag(changed_flag(flag({"var": "x"}), targeting={"var": "y"}, retarget=True)).targeting == {"var": "y"}
    assert parse_flag(changed_flag(flag({"var": "x"}), targeting={}, retarget=True)).targeting is None


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadDefinition, match="on, off"):
        changed_flag(flag(), variant="maybe")


def test_a_bare_definition_keeps_the_governance() -> None:
    current = encode_flag(ON_OFF, {"owner": "ada@example.org"})
    assert parse_flag(flag_document(dict(ON_OFF), current)).governance.owner == "ada@example.org"
    assert parse_flag(flag_document({"flag": dict(ON_OFF)}, current)).governance.owner is None
