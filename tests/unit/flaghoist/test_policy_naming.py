"""Expressions for names: what Python's own engine would match, in linear time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaghoist.errors import Malformed
from flaghoist.policy.naming import NamePattern


@pytest.mark.parametrize(
    ("expression", "name", "matches"),
    [
        ("[a-z][A-Za-z0-9.-]*", "newCheckout", True),
        ("[a-z][A-Za-z0-9.-]*", "NewCheckout", False),
        ("(web|api)[.].+", "api.x", True),
        ("(web|api)[.].+", "api.", False),
        (r"\w{2,3}-\d+", "ab-12", True),
        (r"\w{2,3}-\d+", "abcd-12", False),
        ("a|", "", True),
        ("[^x-z]{2}", "ab", True),
        ("[^x-z]{2}", "ay", False),
        (r"a\.b", "a.b", True),
        (r"a\.b", "axb", False),
        ("a{3}", "aaa", True),
        ("a{2,}", "a", False),
        (r"[\d-]+", "1-2", True),
        ("[a-]", "-", True),
    ],
)
def test_whole_names_match(expression, name, matches):
    assert NamePattern(expression).matches(name) is matches


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "1 to 200"),
        ("a" * 201, "1 to 200"),
        ("(a", r"at character 3: want \) here"),
        ("a)", "at character 2"),
        ("*a", "want something before"),
        ("a**", "one repetition"),
        ("a*?", "one repetition"),
        ("a{2,1}", "counts in order"),
        ("a{999}", "counts in order"),
        ("a{x}", "want {n}"),
        ("^a", "the whole name must match anyway"),
        ("a$", "the whole name must match anyway"),
        ("(?=a)", "plain group"),
        (r"\1", "is not understood"),
        (r"\s", "is not understood"),
        ("[z-a]", "smaller to a larger"),
        ("[]", "at least one character"),
        ("[a", "the expression ends here"),
        ("é", "printable ASCII"),
        ("(a{255}){255}", "2000 states"),
        ("((((){255}){255}){255}){255}", "2000 states"),
        ("(" * 30 + "a" + ")" * 30, "at most 20 groups"),
    ],
)
def test_what_is_not_understood_is_refused(expression, said):
    with pytest.raises(Malformed, match=said):
        NamePattern(expression)


@pytest.mark.parametrize("expression", ["(a*)*b", "(a|a)*b", "(a|aa)+b", "a*a*a*a*a*a*a*b", "(.*a){15}b", "(a?){200}b"])
def test_no_expression_takes_long_on_any_name(expression):
    pattern = NamePattern(expression)
    began = time.process_time()
    assert not pattern.matches("a" * 255)
    # 255 characters at no more than 2000 states each; Python's re would need longer than anybody waits.
    assert time.process_time() - began < 5


atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", "(a|b)", "(ab|)", r"\."])
repeats = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}"])
sequences = st.lists(st.builds(str.__add__, atoms, repeats), min_size=1, max_size=5).map("".join)
expressions = st.one_of(sequences, st.builds("({})|{}".format, sequences, sequences), sequences.map("({})*".format))


@settings(derandomize=True, max_examples=500, deadline=None)
@given(expressions, st.text("ab1.", max_size=6))
def test_matches_what_pythons_engine_matches(expression, name):
    assert NamePattern(expression).matches(name) is bool(re.fullmatch(expression, name))
