# ruff: noqa: E501 (the table of rules reads best in long lines)
"""Make flagd-0.16.1.jsonl: what flagd's own evaluator gives for random rules, and for rules chosen by hand.

    cd tests/oracle/flagd && go mod tidy && go build -o /tmp/flagd-oracle . && cd -
    python -m tests.oracle.make_flagd_vectors /tmp/flagd-oracle > tests/oracle/flagd-0.16.1.jsonl

One line a vector: rule, context (with `$flagd`, as flagd adds it), and either result, or error where flagd's evaluator
fails on an operand's type (it answers PARSE_ERROR then; we have a result: "operand types" in docs/evaluation.md).
`differs` names the deliberate difference that the vector shows.
"""

import json
import subprocess
import sys
from typing import Any

from tests.oracle.rules import RuleMaker

FLAGD = {"flagKey": "flag", "timestamp": 1_700_000_000}
SEEDS = 12
RULES_A_SEED = 50

USERS = [{"id": 1, "age": 20, "tags": ["a"]}, {"id": 2, "age": 40}]
BY_HAND: list[tuple[Any, dict[str, Any], str | None]] = [
    *[({op: [left, right]}, {}, None) for op in ("==", "!=", "===", "!==", "<", "<=", ">", ">=")
      for left in (None, True, 0, 1, "", "1", "a", "1e3", " 1") for right in (None, False, 0, 1000, "", "1", "b", [], {})],
    *[({"<=": [1, {"var": "x"}, 3]}, {"x": x}, None) for x in (0, 1, 2, 3, 4, "2", None)],
    *[({">": [3, {"var": "x"}, 1]}, {"x": x}, None) for x in (0, 1, 2, 3)],
    *[({"!!": [value]}, {}, None) for value in (None, 0, "", "0", [], [0], False, -1, 0.0)],
    *[({"!": [{"var": "x"}]}, {"x": value}, None) for value in ({}, {"a": 0}, [], [0], "", "x", 0)],
    *[({"and": value}, {}, None) for value in ([None, True], [1, "a"], [1, 0, 2], ["", 1], [[], 1], [[1], 2])],
    *[({"or": value}, {}, None) for value in ([None, None], [0, ""], [False, "x"], [[], 0], [None, 3])],
    *[({"+": value}, {}, None) for value in ([], ["5"], ["abc", 1], ["", 2], [0.1, 0.2], [1, 2, 3], ["1e2"], ["-2"])],
    *[({"-": value}, {}, None) for value in ([5], [5, 2], ["7", "2"], [1, 2, 3], [0.3, 0.1])],
    *[({"*": value}, {}, None) for value in ([2, 3], ["2", 3], [1, 2, 3], [0.1, 3])],
    *[({"/": value}, {}, None) for value in ([4, 2], [1, 3], ["9", 2], [8, 2, 2])],
    *[({"%": value}, {}, None) for value in ([7, 3], [-7, 3], [7, -3], [5.5, 2], ["7", "4"], [-1, 10])],
    *[({"max": value}, {}, None) for value in ([], [1], [1, 3, 2], ["5", 4], [-2, -1])],
    *[({"min": {"var": "x"}}, {"x": value}, None) for value in ([], [3, 1, 2], ["5", 4])],
    *[({"<": [1, {"/": [1, 0]}]}, {}, None), ({"if": [{"%": [1, 0]}, "nan", "no"]}, {}, None)],
    *[({"cat": value}, {}, None) for value in ([], ["a"], [" a "], [" a", "b "], ["a", None, 1], [1.5, 2.0], [1e21],
                                               [1e-7, ""], [0.1, "%"], [123456789012345680000, "x"], "lone", ["\u00a0", "x"])],
    *[({"cat": {"var": "x"}}, {"x": ["a", 1, None]}, None)],
    *[({"substr": ["flaghoist", *rest]}, {}, None) for rest in ([0], [4], [-5], [9], [10], [-9], [-10], [0, 4], [4, 2],
                                                              [4, -2], [-5, 3], [0, -9], [1.9], ["2"], [3, 100], [2, 0])],
    ({"substr": ["Zürich✓", 1, 5]}, {}, None), ({"substr": [12345, 1]}, {}, None), ({"substr": [None, 0]}, {}, None),
    *[({"in": [needle, {"var": "x"}]}, {"x": x}, None) for needle in (1, "1", 5, "a", True, None, 2.5)
      for x in (["1"], [1], ["a", "b"], [True], [None, "a"], [[1, 10]], [], None, 7, {"a": 1})
      if not (isinstance(needle, int | float) and x in (["a", "b"], [None, "a"], [True]))
      and not (x == [[1, 10]] and not isinstance(needle, int | float | str)) and not (needle is True and x == [[1, 10]])],
    *[({"in": ["b", text]}, {}, None) for text in ("abc", "", "ABC")],
    *[({"in": [{"var": "v"}, ["8", 9, "x"]]}, {"v": v}, None) for v in (8, 9, "9", "8", 8.0, "x", 10)],
    *[({"var": path}, {"a": {"b": [10, {"c": 1}]}, "n": None, "s": "text", "0": "zero"}, None)
      for path in ("a.b.0", "a.b.1.c", "a.b.2", "a..b.0", ".a.b.0", "n", "n.x", "s.0", "s.length", 0, ["zz", 5],
                   ["n", "d"], ["a.b.9", "d"], "$flagd.flagKey", "$flagd.timestamp", "$flagd.nope", ["a"], "a.b")],
    *[({"map": [{"var": "users"}, {"var": path}]}, {"users": USERS}, None) for path in ("", "id", "tags.0", "nope")],
    *[({"filter": [{"var": "users"}, {">": [{"var": "age"}, 30]}]}, {"users": USERS}, None)],
    *[({op: [{"var": "users"}, {"<": [{"var": "age"}, limit]}]}, {"users": users}, None)
      for op in ("all", "some", "none") for limit in (10, 30, 50) for users in (USERS, [])],
    *[({"reduce": [{"var": "x"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 10]}, {"x": x}, None)
      for x in ([], [1, 2, 3], ["4"])],
    *[({"merge": value}, {"x": [1, [2]]}, None) for value in ([], [1, 2], [[1], [2, 3]], [[1, [2]], 3], [{"var": "x"}, 9])],
    *[({"missing": value}, {"a": 1, "e": "", "n": None}, None) for value in ([], ["a", "b"], ["e", "n"], "b", ["a"])],
    *[({"missing_some": [n, ["a", "b", "c"]]}, {"a": 1}, None) for n in (0, 1, 2, 3)],
    *[({"starts_with": [{"var": "x"}, "ab"]}, {"x": x}, None) for x in ("abc", "ba", "", 5, None, ["ab"])],
    *[({"ends_with": [{"var": "x"}, ""]}, {"x": x}, None) for x in ("abc", "", None)],
    *[({"sem_ver": [{"var": "v"}, op, "1.2.3"]}, {"v": v}, None) for op in ("=", "!=", "<", "<=", ">", ">=", "^", "~")
      for v in ("1.2.3", "v1.2.3", "V1.2.4", "1", "1.2", "2.0.0", "1.2.3-rc.1", "1.2.3+b", "1.10.0", "01.2.3", "1.2.3.4",
                "1.2-rc1", "1.2+b", "", "x", 1, 1.2, 1.25, None, True, "vv1", " 1.2.3")],
    *[({"sem_ver": [left, "<", right]}, {}, None) for left, right in (
        ("1.0.0-alpha", "1.0.0-alpha.1"), ("1.0.0-alpha.1", "1.0.0-alpha.beta"), ("1.0.0-2", "1.0.0-10"),
        ("1.0.0-beta.11", "1.0.0-rc.1"), ("1.0.0-rc.1", "1.0.0"), ("1.0.0-01", "1.0.0"), ("1.0.0-0a", "1.0.0"),
        ("99999999999999999999.0.0", "100000000000000000000.0.0"))],
    *[({"fractional": value}, {"targetingKey": "user-7", "id": 5, "none": None}, None) for value in (
        [["a", 50], ["b", 50]], [["a"], ["b"]], [["a", 0], ["b", 1]], [["a", None], ["b", 1]], [["a", -5], ["b", 1]],
        [["a", 1, "extra"], ["b", 1]], [{"var": "id"}, ["a", 1], ["b", 1]], [{"var": "none"}, ["a", 1], ["b", 1]],
        [None, ["a", 1], ["b", 1]], ["", ["a", 1], ["b", 1]], [["a", {"var": "id"}], ["b", 5]],
        [["a", {"+": [{"var": "id"}, 0.5]}], ["b", 5]], [[True, 1], [False, 1]], [[None, 1]], [[7, 1]], [["a", 2147483647]],
        [[{"if": [True, "x"]}, 1], ["b", 1]], [["a", {"var": "nope"}], ["b", 1]], [["a", {"-": [1, 5]}], ["b", 1]])],
    ({"fractional": [["a", 1], ["b", 1]]}, {}, None), ({"fractional": [["a", 1]]}, {"targetingKey": ""}, None),
    ({"fractional": [["a", 1]]}, {"targetingKey": 5}, None), ({"fractional": [["a", 1]]}, {"targetingKey": None}, None),
    ({"if": [{"fractional": [[True, 1], [False, 99]]}, "on", "off"]}, {"targetingKey": "user-3"}, None),
    *[({"fractional": [{"var": "k"}, ["low", 1], ["high", 1]]}, {"k": k}, None)
      for k in ("ejOoVL", "SI7p-", "6LvT0", "ceQdGm", "é", "日本", "😀")],
    *[({"fractional": [{"var": "k"}, *[[n, 1] for n in range(100)]]}, {"k": k}, None)
      for k in ("ejOoVL", "SI7p-", "6LvT0", "ceQdGm", "", "user-1", "flaguser-1", "é", "日本", "😀", "a" * 300)],
    *[({"if": value}, {"x": {}}, None) for value in ([], ["lone"], [False, 1], [True, 1], [False, 1, False, 2, 3],
                                                     [{"var": "x"}, "yes", "no"], [None, 1, 2])],
    ({"?:": [True, "a", "b"]}, {}, None),
    ({"in": [0, ["text"]]}, {}, "zero is not every text"),
    ({"in": [{"var": "n"}, ["a", "b"]]}, {"n": 0}, "zero is not every text"),
    ({"==": ["1_000", 1000]}, {}, "only decimal numbers"), ({"==": ["0x1p4", 16]}, {}, "only decimal numbers"),
    ({"<": [1, "Infinity"]}, {}, "only decimal numbers"), ({"!": [{"var": "x"}, 1]}, {"x": 0}, None),
    ({"!!": {"var": "x"}}, {"x": [0, 1]}, "one operand is one operand"),
    ({"!": {"var": "x"}}, {"x": [0]}, "one operand is one operand"),
    ({"filter": [{"var": "xs"}, {"==": [{"var": "id"}, 3]}]}, {"xs": [{"id": 1}, {"id": 3}], "id": 3},
     "elements hide the context"),
    ({"none": [{"var": "xs"}, {"==": [{"var": "id"}, 3]}]}, {"xs": [{"id": 1}], "id": 3}, "elements hide the context"),
    ({"some": [{"var": "xs"}, {"==": [{"var": "id"}, 3]}]}, {"xs": [{"id": 1}], "id": 3}, "elements hide the context"),
    ({"if": [True, {"var": "sent"}]}, {"sent": {"cat": ["a caller's", " rule"]}}, "callers send no rules"),
    ({"var": "list.name"}, {"list": ["first"]}, "a list has no names"),
    ({"reduce": [{"var": "x"}, {"cat": [{"var": "accumulator"}, {"var": "current"}]}, 0]}, {"x": [1, 2]},
     "reduce keeps its type"),
    ({"reduce": [{"var": "nope"}, {"var": "current"}, 7]}, {}, "reduce of nothing is its start"),
    ({"var": ["a", 1, 2]}, {}, "a default beside more"),
]  # fmt: skip


# Of the random rules, those that meet a named difference: by seed and number.
RANDOM: dict[tuple[int, int], str] = {(11, 9): "zero is not every text"}


def vectors() -> list[dict[str, Any]]:
    made = [{"rule": r, "context": {**c, "$flagd": FLAGD}, "differs": d} for r, c, d in BY_HAND]
    for seed in range(SEEDS):
        maker = RuleMaker(seed)
        made += [
            {"rule": maker.rule(), "context": {**maker.context(), "$flagd": FLAGD}, "differs": RANDOM.get((seed, n))}
            for n in range(RULES_A_SEED)
        ]
    return made


def main() -> None:
    made = vectors()
    lines = "".join([json.dumps([vector["rule"], vector["context"]]) + "\n" for vector in made])
    run = subprocess.run([sys.argv[1]], input=lines, capture_output=True, text=True, check=True)
    for vector, line in zip(made, run.stdout.splitlines(), strict=True):
        vector |= {"error": line[1:]} if line.startswith("!") else {"result": json.loads(line)}
        print(
            json.dumps(
                {key: value for key, value in vector.items() if key != "differs" or value}, separators=(",", ":")
            )
        )


if __name__ == "__main__":
    main()
