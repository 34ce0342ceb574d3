"""What each operator gives, where it differs from flagd or no oracle shows it. tests/oracle has the rest."""

import math
from typing import Any

import pytest

from flaghoist.document import JsonValue
from flaghoist.targeting import Fractional, compile_rule
from flaghoist.targeting.coercion import scalar_text, variant_name


def run(rule: JsonValue, context: dict[str, Any] | None = None) -> Any:
    compiled = compile_rule(rule, where="t", evaluators={}, fractional=Fractional.V2, flag_key="flag")
    return compiled(context or {}, now_s=1_700_000_000)


CONTEXT: dict[str, Any] = {
    "targetingKey": "user-1",
    "email": "ada@example.org",
    "age": 36,
    "null": None,
    "empty": "",
    "object": {},
    "list": ["a", 1, None, True],
    "nested": [[1, [2, "x"]], {"k": 1}],
    "$flagd": {"flagKey": "forged", "timestamp": 1, "admin": True},
    "users": [{"name": "ada", "age": 36}, {"name": "grace", "age": 45}],
}


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        # flagd stops with PARSE_ERROR at these; we do as JSONLogic does.
        ({"+": [{"var": "nope"}, 1]}, 1),
        ({"+": [True, {"var": "age"}]}, 37),
        ({"-": {"var": "age"}}, -36),
        ({"max": [None, -1]}, 0),
        ({"cat": ["is ", True]}, "is true"),
        ({"cat": [{"var": "list"}]}, "a,1,,true"),
        ({"cat": [{"var": "nested"}]}, "1,2,x,[object Object]"),
        ({"in": [36, "age 36"]}, True),
        ({"in": [{"var": "nope"}, "null"]}, False),
        ({"in": [5, [None, True, 5]]}, True),
        ({"in": [1, [True]]}, False),
        ({"in": [True, [1]]}, False),
        ({"in": [{"var": "list"}, [["a", 1]]]}, False),
        ({"all": ["text", True]}, False),
        ({"none": [{"var": "email"}, True]}, True),
        ({"map": [{"var": "email"}, {"var": ""}]}, []),
        ({"substr": ["abc", None]}, "abc"),
        ({"substr": ["abc", 0, -9]}, ""),
        ({"merge": {"var": "nope"}}, [None]),
        ({"missing": [["age", "nope"]]}, ["nope"]),
        ({"missing": {"merge": ["age", "nope"]}}, ["nope"]),
        ({"reduce": [{"var": "users"}, {"max": [{"var": "accumulator"}, {"var": "current.age"}]}, None]}, 45),
        ({"reduce": [{"var": "nope"}, 1]}, None),
        # What we decided ourselves.
        ({"in": [0, ["text"]]}, False),
        ({"!": {"var": "list"}}, False),
        ({"!!": []}, False),
        ({"if": [{"var": "object"}, 1, 2]}, 2),
        ({"if": [{}, 1, 2]}, 2),
        ({"var": "$flagd.flagKey"}, "flag"),
        ({"var": "$flagd.timestamp"}, 1_700_000_000),
        ({"var": "$flagd.admin"}, None),
        ({"var": ["$flagd.admin", "no"]}, "no"),
        ({"var": {"cat": ["$flagd", ".admin"]}}, None),
        ({"var": {"cat": ["$flagd", ".flagKey"]}}, "flag"),
        ({"var": "$flagd"}, {"flagKey": "flag", "timestamp": 1_700_000_000}),
        ({"missing": ["$flagd.flagKey", "$flagd.admin"]}, ["$flagd.admin"]),
        ({"var": {"if": [True, "users.1.name"]}}, "grace"),
        ({"var": [{"cat": ["users.", 0, ".name"]}, "none"]}, "ada"),
        ({"var": "users.-1.name"}, None),
        ({"var": "users.1_0"}, None),
        ({"var": "users.١"}, None),  # an Arabic digit is no index
        ({"var": "users.99999999999999999999"}, None),
        ({"filter": [{"var": "list"}, {"var": ""}]}, ["a", 1, True]),
        ({"map": [{"var": "users"}, {"var": "$flagd.flagKey"}]}, [None, None]),
        ({"map": [{"var": "users"}, {"var": "email"}]}, [None, None]),
        ({"map": [[1, {"var": "age"}], {"*": [{"var": ""}, 2]}]}, [2, 72]),
        ({"==": [{"var": "list"}, {"var": "list"}]}, False),
        ({"===": [{"var": "object"}, {"var": "object"}]}, False),
        ({"===": [1, 1.0]}, True),
        ({"===": [1, True]}, False),
        ({"<": ["é", "z"]}, False),
        ({"<": ["\uffff", "😀"]}, True),  # by code point, as Go compares UTF-8; UTF-16 has it the other way round
        ({"if": [False, 1, False, 2, {"if": [False, 3, {"if": [True, 4, 5]}]}]}, 4),
        ({"and": [True, {"var": "age"}, "last"]}, "last"),
        ({"and": []}, None),
        ({"or": [{"var": "nope"}, {"var": "empty"}]}, ""),
    ],
)
def test_operator_gives(rule: JsonValue, result: Any) -> None:
    given = run(rule, CONTEXT)
    assert given == result
    assert type(given) is type(result)


def test_the_whole_context_has_our_own_flagd_properties() -> None:
    whole = run({"var": ""}, CONTEXT)
    assert whole == {**CONTEXT, "$flagd": {"flagKey": "flag", "timestamp": 1_700_000_000}}
    assert CONTEXT["$flagd"]["admin"] is True


def test_a_division_by_zero_orders_like_an_infinity_and_equals_nothing_when_undefined() -> None:
    assert run({">": [{"/": [1, {"var": "z"}]}, 10**9]}, {"z": 0}) is True
    assert run({"<": [{"/": [-1, {"var": "z"}]}, 0]}, {"z": 0}) is True
    assert run({"==": [{"%": [1, {"var": "z"}]}, {"%": [1, {"var": "z"}]}]}, {"z": 0}) is False
    assert math.isinf(run({"*": [1e300, 1e300]}))


def test_no_number_grows_without_end() -> None:
    power: JsonValue = {"reduce": [{"var": "x"}, {"*": [{"var": "accumulator"}, 10]}, 10]}
    assert run(power, {"x": [0] * 400}) == math.inf


@pytest.mark.parametrize("text", ["inf", "nan", "1_0", "0x10", "٣", "1e", "--1", "1" * 513, "1e999"])
def test_text_that_is_no_decimal_number_compares_like_nan(text: str) -> None:
    assert run({"<": [{"var": "t"}, 10**15]}, {"t": text}) is False
    assert run({">": [{"var": "t"}, -(10**15)]}, {"t": text}) is False


@pytest.mark.parametrize("huge", [10**400, -(10**400)], ids=["positive", "negative"])
def test_numbers_that_no_double_holds_never_crash_a_rule(huge: int) -> None:
    for rule in (
        {"+": [{"var": "x"}, 1]}, {"<": [{"var": "x"}, 1]}, {"==": [{"var": "x"}, 1]}, {"cat": [{"var": "x"}, "!"]},
        {"in": [{"var": "x"}, [1, "1"]]}, {"sem_ver": [{"var": "x"}, "=", "1"]}, {"%": [{"var": "x"}, 7]},
        {"var": {"var": "x"}}, {"substr": ["abc", {"var": "x"}]},
    ):  # fmt: skip
        run(rule, {"x": huge})
    for generation in Fractional:
        rule = {"fractional": [{"var": "x"}, ["a", {"var": "x"}], ["b", 1]]}
        compile_rule(rule, where="t", evaluators={}, fractional=generation, flag_key="f")({"x": huge})


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ("on", "on"), (True, "true"), (False, "false"), (1, "1"), (-0.5, "-0.5"), (1.0, "1"), (10**20, "1" + "0" * 20),
        (1e21, "1e+21"), (1.5e-7, "1.5e-7"), (1e-5, "0.00001"), (1e16, "10000000000000000"), ([], None), ({}, None),
        (math.nan, None), (math.inf, None), ('say "hi" & go', 'say "hi" & go'),
    ],
)  # fmt: skip
def test_a_result_names_a_variant_as_json_would_write_it(result: Any, name: str | None) -> None:
    assert variant_name(result) == name


@pytest.mark.parametrize(("number", "text"), [(1e21, "1" + "0" * 21), (1.5, "1.5"), (2.0, "2"), (1e-7, "0.0000001")])
def test_numbers_become_text_without_an_exponent(number: float, text: str) -> None:
    assert scalar_text(number) == text


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("1.2.3", True), ("v1.2.3", True), (1, False), ("1.2.3.4", None), ("1.2-rc1", None), ("01.0.0", None)]
    + [(value, None) for value in ("", "x", None, True, [], {}, "1.2.3-", "1.2.3-01", "1." + "2" * 300)],
)
def test_what_is_no_version_compares_as_null(version: Any, wanted: bool | None) -> None:
    assert run({"sem_ver": [{"var": "v"}, ">=", "1.2.3"]}, {"v": version}) is wanted


@pytest.mark.parametrize("operator", ["starts_with", "ends_with"])
@pytest.mark.parametrize("value", [None, 5, True, ["ada"], {}])
def test_what_is_no_text_neither_starts_nor_ends_with_any(operator: str, value: Any) -> None:
    assert run({operator: [{"var": "x"}, "a"]}, {"x": value}) is None
    assert run({operator: [{"cat": ["a", "b"]}, {"var": "x"}]}, {"x": value}) is None
