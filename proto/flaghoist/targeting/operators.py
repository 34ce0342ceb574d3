"""The language: every operator by its name, and the one way in."""

from collections.abc import Mapping
from typing import Final

from flaghoist.document import JsonValue
from flaghoist.targeting import access, arithmetic, comparison, lists, logic, strings, version
from flaghoist.targeting.bucketing import Fractional, build_fractional
from flaghoist.targeting.compiler import Build, CompiledRule, Compiler

OPERATORS: Final[Mapping[str, Build]] = {
    **access.OPERATORS,
    **logic.OPERATORS,
    **comparison.OPERATORS,
    **arithmetic.OPERATORS,
    **strings.OPERATORS,
    **lists.OPERATORS,
    **version.OPERATORS,
    "fractional": build_fractional,
}


def compile_rule(
    rule: JsonValue,
    *,
    where: str,
    evaluators: Mapping[str, JsonValue],
    fractional: Fractional,
    flag_key: str,
) -> CompiledRule:
    """Return a rule as one closure.

    Args:
        rule: parsed JSON: lists are list, objects are dict.
        where: path of the rule for errors, such as `flags.newUi.targeting`.
        evaluators: what `$ref` may name, by name; each is compiled into the rule where it is named.
        flag_key: what `$flagd.flagKey` and the default key of `fractional` say.

    Raises:
        BadDefinition: an unknown operator, a wrong operand, a `$ref` that leads nowhere or to itself, a rule over one
            of the limits, or a part that could never have a result; `where` is the path of the part.
    """
    return Compiler(OPERATORS, where, evaluators, fractional, flag_key).rule(rule)
