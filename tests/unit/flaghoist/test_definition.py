"""Definitions: what is accepted, what is refused, and where an error points."""

import datetime
import json
from typing import Any

import pytest

from flaghoist.definition import (
    NO_GOVERNANCE,
    SAFE_INT_MAX,
    Category,
    FlagState,
    Governance,
    encode_evaluator,
    encode_flag,
    flag_from_flagd,
    governance_from,
    parse_evaluator,
    parse_flag,
)
from flaghoist.document import DEFINITION_BYTES_MAX, DOCUMENT_DEPTH_MAX
from flaghoist.errors import BadDefinition
from flaghoist.values import Person

FLAG: dict[str, Any] = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
GOVERNANCE: dict[str, Any] = {
    "owner": "ada@example.org", "team": "checkout", "category": "release", "expires_at": "2027-02-28",
    "ticket": "SHOP-1", "safe_variant": "off", "on_stale": "safe_variant", "max_stale_s": 600,
    "services": ["cart", "web"],
}  # fmt: skip


def refused(document: bytes) -> BadDefinition:
    with pytest.raises(BadDefinition) as caught:
        parse_flag(document)
    return caught.value


def with_flag(**fields: Any) -> dict[str, Any]:
    return {**FLAG, **fields}


def test_a_flag_and_its_governance_are_read() -> None:
    flag = parse_flag(
        encode_flag(with_flag(targeting={"if": [True, "on"]}, metadata={"v": 2}, description="d"), GOVERNANCE)
    )
    assert flag.state is FlagState.ENABLED
    assert flag.variants == {"on": True, "off": False}
    assert flag.default_variant == "off"
    assert flag.targeting == {"if": [True, "on"]}
    assert flag.metadata == {"v": 2}
    assert flag.description == "d"
    assert flag.governance == Governance(
        owner=Person("ada@example.org"), team="checkout", category=Category.RELEASE, expires_at="2027-02-28",
        ticket="SHOP-1", safe_variant="off", on_stale="safe_variant", max_stale_s=600, services=("cart", "web"),
    )  # fmt: skip


def test_a_flag_needs_no_governance() -> None:
    assert parse_flag(encode_flag(FLAG)).governance == NO_GOVERNANCE
    assert parse_flag(encode_flag(FLAG, {})).governance == NO_GOVERNANCE


@pytest.mark.parametrize("targeting", [None, {}])
def test_no_rule_and_the_empty_rule_are_the_same(targeting: Any) -> None:
    assert flag_from_flagd(with_flag(targeting=targeting), "f").targeting is None


@pytest.mark.parametrize("default", [None, ""])
def test_a_flag_may_have_no_default_variant(default: Any) -> None:
    assert flag_from_flagd(with_flag(defaultVariant=default), "f").default_variant is None
    assert flag_from_flagd({key: FLAG[key] for key in ("state", "variants")}, "f").default_variant is None


def test_unknown_keys_of_a_flagd_flag_are_tolerated() -> None:
    assert flag_from_flagd(with_flag(source="x", selector="y", future={"a": [None]}), "f").default_variant == "off"


@pytest.mark.parametrize(
    "variants", [{"a": 1, "b": 2.5}, {"a": "x"}, {"a": {}, "b": {"deep": [None, 1]}}, {"a": SAFE_INT_MAX}]
)
def test_variants_of_one_type_are_accepted(variants: Any) -> None:
    assert flag_from_flagd({"state": "DISABLED", "variants": variants}, "f").variants == variants


@pytest.mark.parametrize(
    ("fields", "where", "says"),
    [
        ({"variants": {"on": True, "off": 0}}, "f.variants.off", "'on' is a bool, got 0 (number)"),
        ({"variants": {"on": "x", "off": {}}}, "f.variants.off", "one type"),
        ({"variants": {}}, "f.variants", "at least one variant, got {}"),
        ({"variants": None}, "f.variants", "got null"),
        ({"variants": ["on"]}, "f.variants", "got a list"),
        ({"variants": {"on": [1]}}, "f.variants.on", "got a list"),
        ({"variants": {"on": None}}, "f.variants.on", "got null"),
        ({"variants": {"": True}}, "f.variants", "1 to 255"),
        ({"variants": {"n": SAFE_INT_MAX + 1}}, "f.variants.n", "±9007199254740991"),
        ({"variants": {"n": float("nan")}}, "f.variants.n", "finite"),
        ({"defaultVariant": "onn"}, "f.defaultVariant", "one of the variants (on, off), got 'onn'"),
        ({"defaultVariant": True}, "f.defaultVariant", "got true"),
        ({"state": None}, "f.state", "got nothing"),
        ({"state": "enabled"}, "f.state", "got 'enabled'"),
        ({"state": True}, "f.state", "got true"),
        ({"targeting": "on"}, "f.targeting", "got 'on'"),
        ({"targeting": []}, "f.targeting", "got a list"),
        ({"metadata": {"a": None}}, "f.metadata.a", "got null"),
        ({"metadata": {"a": {}}}, "f.metadata.a", "got an object"),
        ({"metadata": {"": 1}}, "f.metadata", "empty"),
        ({"metadata": [1]}, "f.metadata", "got a list"),
        ({"metadata": {"a": 2**60}}, "f.metadata.a", "±"),
        ({"description": 5}, "f.description", "got 5"),
        ({"variants": {1: True}}, "f.variants", "want text as a key, got 1"),
        ({"metadata": {"since": datetime.date(2026, 1, 1)}}, "f.metadata.since", "(date)"),
    ],
)
def test_a_bad_field_is_refused_with_its_path(fields: dict[str, Any], where: str, says: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        flag_from_flagd(with_flag(**fields), "f")
    assert caught.value.where == where
    assert says in str(caught.value)


def test_a_missing_state_has_a_hint() -> None:
    with pytest.raises(BadDefinition) as caught:
        flag_from_flagd({"variants": {"on": True}}, "flags.newUi")
    assert caught.value.hint == 'add "state": "ENABLED"'


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"owner": "not a person!"}, "governance.owner"),
        ({"owner": 5}, "governance.owner"),
        ({"team": ""}, "governance.team"),
        ({"category": "feature"}, "governance.category"),
        ({"category": []}, "governance.category"),
        ({"expires_at": "2026-02-30"}, "governance.expires_at"),
        ({"expires_at": "20260228"}, "governance.expires_at"),
        ({"expires_at": 2026}, "governance.expires_at"),
        ({"max_stale_s": 0}, "governance.max_stale_s"),
        ({"max_stale_s": 1.5}, "governance.max_stale_s"),
        ({"max_stale_s": True}, "governance.max_stale_s"),
        ({"on_stale": "default"}, "governance.on_stale"),
        ({"safe_variant": None}, "governance.on_stale"),
        ({"services": "cart"}, "governance.services"),
        ({"services": ["cart", 5]}, "governance.services[1]"),
        ({"ownr": "ada@example.org"}, "governance"),
    ],
)
def test_bad_governance_is_refused_with_its_path(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        governance_from({**GOVERNANCE, **fields})
    assert caught.value.where == where


def test_the_safe_variant_must_be_a_variant() -> None:
    with pytest.raises(BadDefinition) as caught:
        encode_flag(FLAG, {**GOVERNANCE, "safe_variant": "gone"})
    assert caught.value.where == "flag.governance.safe_variant"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "line 1 column 1"),
        (b"{", "line 1 column 2"),
        (b'{"flag": {}}\n garbage', "line 2"),
        (b"[]", "want an object, got a list"),
        (b"{}", 'under "flag"'),
        (b'{"flag": 5}', "got 5"),
        (b'{"flag": {}, "flags": {}}', "'flags'"),
        (b'\xff{"flag": {}}', "UTF-8"),
        (b'\xef\xbb\xbf{"flag": {}}', "want JSON"),
        (json.dumps({"flag": FLAG}).encode("utf-16"), "UTF-8"),
        (b'{"flag": {"state": "ENABLED", "state": "DISABLED"}}', "'state' stands twice"),
        (b'{"flag": {"variants": {"on": NaN}}}', "NaN"),
        (b'{"flag": {"variants": {"on": -Infinity}}}', "-Infinity"),
        (b'{"flag": {"variants": {"on": 1e999}}}', "fit a double"),
        (b'{"flag": {"variants": {"on": ' + b"9" * 5000 + b"}}}", "fit a double"),
        (b'{"flag": {"description": "\\ud800"}}', "surrogate"),
        (b'{"flag": ' + b'{"a":' * 5000, "levels"),
        (b'{"flag": ' + b'{"a":' * 300 + b"1" + b"}" * 301, "levels"),
        (b" " * (DEFINITION_BYTES_MAX + 1), f"{DEFINITION_BYTES_MAX} bytes"),
    ],
    ids=range(19),
)
def test_what_is_no_document_is_refused(document: bytes, says: str) -> None:
    assert says in str(refused(document))


def test_a_document_nests_to_the_limit() -> None:
    value: Any = 1
    for _ in range(DOCUMENT_DEPTH_MAX - 4):
        value = [value]
    flag = {"state": "ENABLED", "variants": {"v": {"x": value}}}
    assert parse_flag(encode_flag(flag)).variants == flag["variants"]


def test_a_structure_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(BadDefinition):
        encode_flag(with_flag(variants={"v": loop}))


def test_what_is_signed_is_compact_and_keeps_its_order_and_letters() -> None:
    document = encode_flag({"state": "ENABLED", "variants": {"b": "Zürich", "a": "x"}}, {"team": "é"})
    assert (
        document == '{"flag":{"state":"ENABLED","variants":{"b":"Zürich","a":"x"}},"governance":{"team":"é"}}'.encode()
    )


def test_encoding_refuses_what_parsing_would() -> None:
    with pytest.raises(BadDefinition):
        encode_flag(with_flag(state="on"))
    with pytest.raises(BadDefinition):
        encode_flag(with_flag(description="\udc00"))
    with pytest.raises(BadDefinition):
        encode_flag(with_flag(variants={"v": "x" * DEFINITION_BYTES_MAX}, defaultVariant="v"))


def test_an_evaluator_round_trips() -> None:
    rule = {"in": ["@example.org", {"var": "email"}]}
    assert encode_evaluator(rule) == b'{"evaluator":{"in":["@example.org",{"var":"email"}]}}'
    assert parse_evaluator(encode_evaluator(rule)) == rule


@pytest.mark.parametrize(
    "document", [b'{"evaluator": {}}', b'{"evaluator": 1}', b"{}", b'{"evaluator": {"!": 1}, "x": 1}']
)
def test_what_is_no_evaluator_is_refused(document: bytes) -> None:
    with pytest.raises(BadDefinition) as caught:
        parse_evaluator(document)
    assert caught.value.where == "evaluator"
