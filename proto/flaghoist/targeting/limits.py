"""What a rule may cost: refused when it is compiled, or stopped while it runs.

A rule is written by few and approved; the context comes from anyone who may call a service. So the size of a rule is
bounded when it is proposed, and work that grows with the context is bounded in each call.
"""

from typing import Final

from flaghoist.errors import Refused

# flagd's schema allows three operands of `if`, so long chains nest in their last branch: those are flattened and do
# not count. Of the flags in flagd's own test suites none nests deeper than 9 otherwise.
RULE_DEPTH_MAX: Final = 64

# Operators and operands of one rule, its `$ref`s included. A compiled node takes about 0.12 KiB and 0.1 µs to run, so
# the largest rule takes 1.2 MiB and 1 ms.
RULE_NODES_MAX: Final = 10_000

# Of all rules of a ledger: 250 MB, and 6 s to compile. Ten thousand flags may have two hundred each. It bounds what one
# large evaluator costs that many flags refer to.
LEDGER_NODES_MAX: Final = 2_000_000

# Elements of a literal list that count as one node: an allow list of 10,000 names is 313 nodes.
ELEMENTS_PER_NODE: Final = 32

# Evaluators that refer to evaluators. flagd resolves nested ones by luck, so real files stay at one or two.
REF_DEPTH_MAX: Final = 16

# map in map in map: the work is the product of three lengths, and no use case for more is known.
ITERATION_NESTING_MAX: Final = 3

# Units of one call. A unit is one node run on one element of a list, or CHARS_PER_UNIT characters read or built: about
# 0.1 to 0.2 µs, so a call that spends all blocks its core for about 10 ms.
WORK_MAX: Final = 50_000
CHARS_PER_UNIT: Final = 64

# Strings up to this length are read without paying: simple rules stay simple.
FREE_CHARS: Final = 256

# protobuf stops at 100 nested messages, which is 33 nested Structs; JSON bodies may nest deeper.
CONTEXT_DEPTH_MAX: Final = 64

# Longer strings are never numbers or versions: the longest shortest-form double has 24 characters, npm allows 256.
NUMBER_CHARS_MAX: Final = 512
VERSION_CHARS_MAX: Final = 256


class RuleFailed(Refused):
    """A rule that cannot give a result for this context: it costs too much, or the context is nested too deeply."""

    code = "rule_failed"
    hint = "send a smaller context, or simplify the flag's rule"


class Call:
    """What one evaluation knows besides its context: the time, and how much work it may still do."""

    __slots__ = ("now_s", "work")

    def __init__(self, now_s: int) -> None:
        self.now_s = now_s
        self.work = WORK_MAX

    def spend(self, units: int) -> None:
        """Pay for work that grows with the context.

        Raises:
            RuleFailed: this call has spent WORK_MAX.
        """
        self.work -= units
        if self.work < 0:
            raise RuleFailed(f"the rule needs more than {WORK_MAX} units of work for this context")
