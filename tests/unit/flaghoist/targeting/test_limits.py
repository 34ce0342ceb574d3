"""What a rule may not do: each limit stops it at the limit, at the place, with a word on what to do."""

import time
from typing import Any

import pytest

from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition
from flaghoist.targeting import CompiledRule, Fractional, RuleFailed, compile_rule
from flaghoist.targeting.limits import (
    CONTEXT_DEPTH_MAX,
    ITERATION_NESTING_MAX,
    REF_DEPTH_MAX,
    RULE_DEPTH_MAX,
    RULE_NODES_MAX,
)


def compiled(rule: Any, evaluators: dict[str, JsonValue] | None = None) -> CompiledRule:
    return compile_rule(
        rule, where="flags.f.targeting", evaluators=evaluators or {}, fractional=Fractional.V2, flag_key="f"
    )


def nested(levels: int) -> Any:
    rule: Any = {"var": "x"}
    for _ in range(levels - 1):
        rule = {"!": [rule]}
    return rule


@pytest.mark.parametrize(
    ("rule", "where", "says"),
    [
        ({"iff": [1, 2]}, "flags.f.targeting", "'iff'"),
        ({"if": [{"==": [{"var": "a"}, {"equal": []}]}, 1]}, "flags.f.targeting.if[0].==[1]", "'equal'"),
        ({"==": [1]}, "flags.f.targeting.==", "at least 2"),
        ({"%": [{"var": "x"}]}, "flags.f.targeting.%", "at least 2"),
        ({"starts_with": [{"var": "x"}]}, "flags.f.targeting.starts_with", "exactly 2"),
        ({"ends_with": [{"var": "x"}, 5]}, "flags.f.targeting.ends_with[1]", "two strings"),
        ({"sem_ver": [{"var": "x"}, "=="]}, "flags.f.targeting.sem_ver", "exactly 3"),
        ({"sem_ver": [{"var": "x"}, "==", "1.0.0"]}, "flags.f.targeting.sem_ver[1]", "one of"),
        ({"sem_ver": [{"var": "x"}, "=", "one"]}, "flags.f.targeting.sem_ver[2]", "a version"),
        ({"var": [True]}, "flags.f.targeting.var[0]", "a path"),
        ({"missing_some": [1]}, "flags.f.targeting.missing_some", "2 operands"),
        ({"missing_some": ["1", ["a"]]}, "flags.f.targeting.missing_some[0]", "a number"),
        ({"if": [True, "on"], "else": "off"}, "flags.f.targeting", "one operator"),
        ({"cat": [{"a": 1, "b": 2}]}, "flags.f.targeting.cat[0]", "one operator"),
        ({"$ref": "nope"}, "flags.f.targeting", "no such evaluator"),
        ({"$ref": 5}, "flags.f.targeting", "an evaluator's name"),
        ({"==": [{"var": "x"}, float("inf")]}, "flags.f.targeting.==[1]", "fits a double"),
        ({"==": [{"var": "x"}, 10**400]}, "flags.f.targeting.==[1]", "fits a double"),
        ({"cat": [b"bytes"]}, "flags.f.targeting.cat[0]", "want JSON"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_at_its_place(rule: Any, where: str, says: str) -> None:
    with pytest.raises(BadDefinition) as refused:
        compiled(rule)
    assert refused.value.where == where
    assert says in str(refused.value)


def test_a_misspelt_operator_gets_a_suggestion() -> None:
    with pytest.raises(BadDefinition) as refused:
        compiled({"fractionl": [["a", 1]]})
    assert "'fractional'" in refused.value.hint


def test_a_misspelt_evaluator_gets_a_suggestion() -> None:
    with pytest.raises(BadDefinition) as refused:
        compiled({"$ref": "emailWithFass"}, {"emailWithFaas": {"!": [1]}})
    assert "'emailWithFaas'" in refused.value.hint


def test_operators_nest_to_the_limit_and_no_deeper() -> None:
    assert compiled(nested(RULE_DEPTH_MAX))({"x": 1}) is (RULE_DEPTH_MAX % 2 == 1)
    with pytest.raises(BadDefinition, match="inside one another"):
        compiled(nested(RULE_DEPTH_MAX + 1))


def test_lists_in_lists_count_as_depth() -> None:
    deep: Any = {"var": "x"}
    for _ in range(RULE_DEPTH_MAX + 1):
        deep = [deep]
    with pytest.raises(BadDefinition, match="inside one another"):
        compiled({"in": [1, deep]})


def test_a_chain_of_else_ifs_is_no_depth() -> None:
    chain: Any = "last"
    for n in reversed(range(1000)):
        chain = {"if": [{"==": [{"var": "n"}, n]}, f"v{n}", chain]}
    rule = compiled(chain)
    assert [rule({"n": n}) for n in (0, 500, 999, 1000)] == ["v0", "v500", "v999", "last"]


def test_a_rule_has_at_most_so_many_nodes() -> None:
    with pytest.raises(BadDefinition, match=str(RULE_NODES_MAX)):
        compiled({"or": [{"==": [{"var": "x"}, n]} for n in range(RULE_NODES_MAX)]})


def test_an_allow_list_of_many_names_is_no_large_rule() -> None:
    rule = compiled({"in": [{"var": "x"}, [f"name-{n}" for n in range(50_000)]]})
    assert rule({"x": "name-49999"}) is True
    assert rule({"x": "name-50000"}) is False


def test_evaluators_that_multiply_are_refused_soon() -> None:
    laughs: dict[str, JsonValue] = {"0": {"in": ["a", {"var": "x"}]}}
    for level in range(1, REF_DEPTH_MAX):
        laughs[str(level)] = {"and": [{"$ref": str(level - 1)}] * 10}
    started = time.perf_counter()
    with pytest.raises(BadDefinition, match="every \\$ref written out"):
        compiled({"$ref": str(REF_DEPTH_MAX - 1)}, laughs)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "evaluators",
    [{"a": {"$ref": "a"}}, {"a": {"!": [{"$ref": "b"}]}, "b": {"if": [True, 1, {"$ref": "a"}]}}],
)
def test_an_evaluator_that_refers_to_itself_is_refused(evaluators: dict[str, JsonValue]) -> None:
    with pytest.raises(BadDefinition, match="refers to itself"):
        compiled({"if": [{"$ref": "a"}, 1, 2]}, evaluators)


def test_references_nest_to_the_limit_and_no_deeper() -> None:
    chain: dict[str, JsonValue] = {"0": {"var": "x"}}
    for level in range(1, REF_DEPTH_MAX + 1):
        chain[str(level)] = {"$ref": str(level - 1)}
    assert compiled({"$ref": str(REF_DEPTH_MAX - 1)}, chain)({"x": 1}) == 1
    with pytest.raises(BadDefinition, match=f"at most {REF_DEPTH_MAX} evaluators"):
        compiled({"$ref": str(REF_DEPTH_MAX)}, chain)


def test_a_rule_names_every_evaluator_that_it_inlined() -> None:
    evaluators: dict[str, JsonValue] = {"a": {"!": [{"$ref": "b"}]}, "b": {"var": "x"}, "unused": {"var": "y"}}
    assert compiled({"if": [{"$ref": "a"}, 1, 2]}, evaluators).references == {"a", "b"}


def test_the_same_evaluator_may_stand_twice() -> None:
    assert compiled({"and": [{"$ref": "a"}, {"$ref": "a"}]}, {"a": {"var": "x"}})({"x": 3}) == 3


def test_iterations_nest_to_the_limit_and_no_deeper() -> None:
    def maps(levels: int) -> Any:
        return {"map": [{"var": "x"}, maps(levels - 1) if levels > 1 else 1]}

    compiled(maps(ITERATION_NESTING_MAX))
    with pytest.raises(BadDefinition, match="iterations inside one another"):
        compiled(maps(ITERATION_NESTING_MAX + 1))


LONG = ["item"] * 5000
ACCUMULATOR = {"var": "accumulator"}


def keeping(condition: Any, start: str) -> Any:
    """A reduce that asks the same of its accumulator for every element."""
    return {"reduce": [{"var": "x"}, {"if": [condition, 1, ACCUMULATOR]}, {"var": start}]}


GREEDY = {
    "map in map": ({"map": [{"var": "x"}, {"map": [{"var": "xs"}, 1]}]}, {"x": [{"xs": LONG}] * 5000}),
    "nested somes": ({"some": [{"var": "x"}, {"some": [{"var": ""}, {"==": [{"var": ""}, 1]}]}]}, {"x": [LONG] * 999}),
    "text that doubles": (
        {"reduce": [{"var": "x"}, {"cat": [ACCUMULATOR, ACCUMULATOR]}, "ab"]},
        {"x": list(range(60))},
    ),
    "list that doubles": (
        {"reduce": [{"var": "x"}, {"merge": [ACCUMULATOR, ACCUMULATOR]}, [1]]},
        {"x": list(range(60))},
    ),
    "text of lists": ({"cat": [{"var": "x"}]}, {"x": [[1] * 1000] * 1000}),
    "search in long text": (keeping({"in": ["b", ACCUMULATOR]}, "t"), {"x": LONG, "t": "a" * 500_000}),
    "search in a long list": (keeping({"in": [9, ACCUMULATOR]}, "l"), {"x": LONG, "l": list(range(10, 50_000))}),
    "hashing long text": (
        keeping({"fractional": [ACCUMULATOR, [False, 1]]}, "t"),
        {"x": LONG, "t": "a" * 500_000},
    ),
    "prefixes of long text": (
        keeping({"!": [{"starts_with": [ACCUMULATOR, ACCUMULATOR]}]}, "t"),
        {"x": LONG, "t": "a" * 500_000},
    ),
    "many missing": ({"map": [{"var": "x"}, {"missing": {"var": ""}}]}, {"x": [LONG] * 100}),
    "sum of everything": ({"+": {"var": "x"}}, {"x": [1] * 100_000}),
    "filter of everything": ({"filter": [{"var": "x"}, {"sem_ver": [{"var": ""}, "<", "2"]}]}, {"x": ["1.0"] * 50_000}),
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_callers_context_cannot_make_a_rule_run_on(name: str) -> None:
    rule, context = GREEDY[name]
    run = compiled(rule)
    started = time.perf_counter()
    with pytest.raises(RuleFailed):
        run(context)
    assert time.perf_counter() - started < 2  # about 0.02 s; the budget stops it, not this


def test_a_failed_call_leaves_the_rule_as_it_was() -> None:
    rule = compiled({"map": [{"var": "x"}, {"+": [{"var": ""}, 1]}]})
    with pytest.raises(RuleFailed):
        rule({"x": [1] * 100_000})
    assert rule({"x": [1, 2]}) == [2, 3]


@pytest.mark.parametrize(
    "rule",
    [
        {"==": [{"var": "x"}, {"var": "x"}]},
        {"===": [{"var": "x"}, {"var": "x"}]},
        {"in": [{"var": "x"}, [1, "a"]]},
        {"in": [1, {"var": "x"}]},
        {"in": [{"var": "x"}, {"var": "x"}]},
        {"var": "x.0.0.0"},
        {"merge": [{"var": "x"}, 1]},
        {"map": [{"var": "x"}, {"var": ""}]},
        {"<": [{"var": "x"}, 1]},
        {"!": [{"var": "x"}]},
        {"fractional": [{"var": "x"}, ["a", 1]]},
    ],
)
def test_a_deep_context_never_overflows_the_stack(rule: JsonValue) -> None:
    deep: Any = "bottom"
    for _ in range(100_000):
        deep = [deep]
    compiled(rule)({"x": deep})
    run = compile_rule(rule, where="t", evaluators={}, fractional=Fractional.V3, flag_key="f")
    run({"x": deep})


def test_text_of_a_context_that_is_too_deep_fails_the_call() -> None:
    deep: Any = "bottom"
    for _ in range(CONTEXT_DEPTH_MAX):
        deep = [deep]
    rule = compiled({"cat": [{"var": "x"}]})
    assert rule({"x": deep}) == "bottom"
    with pytest.raises(RuleFailed):
        rule({"x": [deep]})
