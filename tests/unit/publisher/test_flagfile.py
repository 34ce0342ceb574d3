"""Flag files: what is read, and that every fault is named with its place."""

import json

import pytest

from flaghoist.definition import parse_evaluator, parse_flag
from flaghoist.values import Source
from publisher.flagfile import BadFile, FlagFile, Syntax, parse_document, parse_flag_file, syntax_of

FLAG = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}


def parsed(document: object, syntax: Syntax = Syntax.JSON) -> FlagFile:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_flag_file(data, Source("flags.json"), where="flags.json", syntax=syntax)


def problems(document: object, syntax: Syntax = Syntax.JSON) -> tuple[str, ...]:
    with pytest.raises(BadFile) as caught:
        parsed(document, syntax)
    return caught.value.problems


def test_file_metadata_is_merged_and_the_flags_own_wins() -> None:
    file = parsed(
        {
            "metadata": {"flagSetId": "shop", "version": "v1"},
            "flags": {"a": FLAG, "b": {**FLAG, "metadata": {"version": "v2"}}},
        }
    )
    metadata = {str(key): parse_flag(document).metadata for key, document in file.flags.items()}
    assert metadata == {"a": {"flagSetId": "shop", "version": "v1"}, "b": {"flagSetId": "shop", "version": "v2"}}


def test_evaluators_are_read() -> None:
    rule = {"in": ["@example.org", {"var": "email"}]}
    file = parsed({"flags": {"a": FLAG}, "$evaluators": {"staff": rule}})
    assert [parse_evaluator(document) for document in file.evaluators.values()] == [rule]


def test_yaml_says_the_same_as_json() -> None:
    text = b"flags:\n  a:\n    state: ENABLED\n    variants: {on: true, off: false}\n    defaultVariant: off\n"
    assert parsed(text, Syntax.YAML).flags == parsed({"flags": {"a": FLAG}}).flags


def test_yaml_anchors_and_merges_are_understood() -> None:
    text = (
        b"flags:\n  a: &a\n    state: ENABLED\n    variants: {on: true, off: false}\n    defaultVariant: off\n  b: *a\n"
    )
    assert len(set(parsed(text, Syntax.YAML).flags.values())) == 1


@pytest.mark.parametrize(
    ("text", "syntax", "place"),
    [
        (b'{"flags": {\n  "a": }}', Syntax.JSON, "line 2 column 8"),
        (b"flags:\n  a: [1,\n  b: 2", Syntax.YAML, "line 3"),
        (b"flags:\n  a: 1\n  a: 2\n", Syntax.YAML, "line 3 column 3"),
    ],
    ids=["json", "yaml", "yaml-duplicate"],
)
def test_wrong_syntax_is_named_with_line_and_column(text: bytes, syntax: Syntax, place: str) -> None:
    (problem,) = problems(text, syntax)
    assert place in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"flags": {"a": NaN}}', "NaN"),
        (b'{"flags": {"a": ' + b"9" * 5000 + b"}}", "digits"),
        (b'{"flags": ' + b"[" * 100_000, "nested deeper"),
        (b'{"flags": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"flags": {"a": "\\ud800"}}', "surrogate"),
        (b"[]", "flags: want an object"),
        (b"", "line 1"),
    ],
    ids=["nan", "digits", "deep-unclosed", "deep", "utf16", "surrogate", "array", "empty"],
)
def test_what_json_cannot_say_is_refused(text: bytes, said: str) -> None:
    assert said in problems(text)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"flags:\n  1: {}\n", "want text as key, got int 1"),
        (b"flags:\n  a: 2026-01-01\n", "date"),
        (b"flags:\n  a: .inf\n", "finite"),
        (b"flags: &x\n  a: *x\n", "nested deeper"),
        (b"flags:\n  a: !!python/object:os.system {}\n", "not YAML"),
    ],
    ids=["int-key", "date", "infinity", "endless", "python-tag"],
)
def test_what_yaml_can_say_and_json_cannot_is_refused(text: bytes, said: str) -> None:
    assert said in problems(text, Syntax.YAML)[0]


def test_a_yaml_bomb_is_refused_in_bounded_work() -> None:
    lines = [b"a0: &a0 [" + b"x," * 30 + b"]"]
    lines += [b"a%d: &a%d [" % (n, n) + b"*a%d," % (n - 1) * 30 + b"]" for n in range(1, 9)]
    assert "more than" in problems(b"\n".join(lines), Syntax.YAML)[0]


def test_every_duplicate_key_is_named_with_its_path() -> None:
    found = problems(b'{"flags": {"a": {"state": 1, "state": 2}, "a": {"x": 1, "x": 2}}}')
    assert "flags.a: given twice" in found
    assert "flags.a.x: given twice" in found


def test_every_bad_flag_is_named_with_its_path() -> None:
    found = problems(
        {
            "flags": {
                "good": FLAG,
                "no spaces please": FLAG,
                "mixed": {**FLAG, "variants": {"on": True, "off": "no"}},
                "lost": {**FLAG, "defaultVariant": "maybe"},
                "list": [],
            },
            "metadata": {"nested": {}},
        }
    )
    starts = ("flags.no spaces please: ", "flags.mixed", "flags.lost", "flags.list: ", "metadata.nested: ")
    assert len(found) == 5
    assert all(any(problem.startswith(start) for problem in found) for start in starts)


def test_a_long_list_of_faults_is_cut_and_says_so() -> None:
    with pytest.raises(BadFile, match="and 25 more"):
        parsed({"flags": {f"bad key {n}": FLAG for n in range(75)}})


@pytest.mark.parametrize(
    ("name", "data", "syntax"),
    [
        ("a.yaml", b"{}", Syntax.YAML),
        ("a.yml", b"{}", Syntax.YAML),
        ("a.json", b"flags:", Syntax.JSON),
        ("a", b'  {"flags": 1}', Syntax.JSON),
        ("a", b"flags:", Syntax.YAML),
    ],
)
def test_the_syntax_is_told_by_name_or_first_character(name: str, data: bytes, syntax: Syntax) -> None:
    assert syntax_of(name, data) is syntax


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_document(b"\xef\xbb\xbf{}", where="x", syntax=Syntax.JSON) == {}
