"""flagd's targeting language: JSONLogic with flagd's operators, compiled to closures when a definition is applied.

docs/evaluation.md lists the operators, and each difference from flagd 0.16.1.
"""

from flaghoist.targeting.bucketing import Fractional as Fractional
from flaghoist.targeting.compiler import CompiledRule as CompiledRule
from flaghoist.targeting.limits import Call as Call
from flaghoist.targeting.limits import RuleFailed as RuleFailed
from flaghoist.targeting.operators import compile_rule as compile_rule
