"""The compiler: a rule in, one closure out.

It walks the rule once, checks it, inlines `$ref`, and asks each operator to build its closure from the compiled
operands. Operators choose by the shape of the operands; constant parts are computed here and never again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Never, TypeAlias

from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition
from flaghoist.targeting.bucketing import Fractional
from flaghoist.targeting.coercion import normal
from flaghoist.targeting.limits import (
    ELEMENTS_PER_NODE,
    ITERATION_NESTING_MAX,
    REF_DEPTH_MAX,
    RULE_DEPTH_MAX,
    RULE_NODES_MAX,
    Call,
    RuleFailed,
)
from flaghoist.targeting.node import Node, Step, constant

# Where we are, from the inside out: an index, or a name with what parts it from the one before. Most paths are never
# rendered: only when something is wrong.
Path: TypeAlias = tuple["Path | None", str | int, str]

_ABSENT: Final = object()

# These take as long as about eight others, which counts where elements of a list pay for the nodes that they run.
_HEAVY: Final = frozenset({"fractional", "sem_ver", "cat", "missing", "missing_some"})
_HEAVY_NODES: Final = 8


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule, ready to run.

    `references` names every evaluator that it inlined, directly or through another; `nodes` is its size, with those.
    """

    step: Step
    references: frozenset[str]
    nodes: int

    def __call__(self, context: Mapping[str, JsonValue], *, now_s: int = 0) -> JsonValue:
        """Return the rule's result for a context (as evaluation.normalised returns it).

        Raises:
            RuleFailed: the rule would need more work than limits.WORK_MAX.
        """
        result: JsonValue = self.step(context if type(context) is dict else dict(context), Call(now_s))
        return result


@dataclass(frozen=True, slots=True)
class Scope:
    """What `var` means here: the context (root), or an element of a list, which knows nothing of the context."""

    root: bool = True
    nesting: int = 0

    def element(self) -> "Scope":
        return Scope(root=False, nesting=self.nesting + 1)


class Operands:
    """The operands of one operator, not yet compiled, and how to compile or refuse them."""

    __slots__ = ("_at", "_compiler", "_depth", "_references", "operator", "raw", "scope")

    def __init__(
        self, compiler: "Compiler", operator: str, raw: Any, at: Path, depth: int, references: Path | None, scope: Scope
    ) -> None:
        self.operator = operator
        self.raw = raw
        self.scope = scope
        self._compiler = compiler
        self._at = at
        self._depth = depth
        self._references = references

    @property
    def flag_key(self) -> str:
        return self._compiler.flag_key

    @property
    def fractional(self) -> Fractional:
        return self._compiler.fractional

    @property
    def listed(self) -> list[Any]:
        """The raw operands; one that is not in a list counts as a list of one."""
        return self.raw if type(self.raw) is list else [self.raw]

    def compile(self, index: int, scope: Scope | None = None) -> Node:
        """Compile one operand, by default in this operator's own scope."""
        raw = self.raw
        if type(raw) is list:
            at: Path = (self._at, index, "")
            return self._compiler.node(raw[index], at, self._depth, self._references, scope or self.scope)
        return self._compiler.node(raw, self._at, self._depth, self._references, scope or self.scope)

    def compile_all(self) -> list[Node]:
        return [self.compile(index) for index in range(len(self.listed))]

    def compile_inner(self, raw: Any, *indexes: int) -> Node:
        """Compile a part of an operand, such as the weight in an entry of `fractional`."""
        at = self._at
        for index in indexes:
            at = (at, index, "")
        return self._compiler.node(raw, at, self._depth, self._references, self.scope)

    def branches(self) -> list[Node]:
        """Compile the operands of `if`; an `if` in the place of the last branch is flattened into this one."""
        return self._compiler.branches(self)

    def element_scope(self) -> Scope:
        """Return the scope inside this iteration.

        Raises:
            BadDefinition: iterations nested deeper than ITERATION_NESTING_MAX.
        """
        scope = self.scope.element()
        if scope.nesting > ITERATION_NESTING_MAX:
            self.refuse(f"want at most {ITERATION_NESTING_MAX} iterations inside one another")
        return scope

    def count(self) -> int:
        """Return how many nodes the rule has so far."""
        return self._compiler.nodes

    def refuse(self, message: str, *indexes: int, hint: str | None = None) -> Never:
        at = self._at
        for index in indexes:
            at = (at, index, "")
        self._compiler.refuse(at, message, hint)


Build: TypeAlias = Callable[[Operands], Node]


class Compiler:
    """State of compiling one rule: how large it has become, and which evaluators it has inlined."""

    def __init__(
        self,
        operators: Mapping[str, Build],
        where: str,
        evaluators: Mapping[str, JsonValue],
        fractional: Fractional,
        flag_key: str,
    ) -> None:
        self.flag_key = flag_key
        self.fractional = fractional
        self.nodes = 0
        self.references: set[str] = set()
        self._operators = operators
        self._evaluators = evaluators
        self._root: Path = (None, where, "")

    def rule(self, rule: JsonValue) -> CompiledRule:
        node = self.node(rule, self._root, 0, None, Scope())
        return CompiledRule(node.step, frozenset(self.references), self.nodes)

    def node(self, rule: Any, at: Path, depth: int, references: Path | None, scope: Scope) -> Node:
        """Compile one operand; `references` are the evaluators that we are inside of, the innermost first."""
        if type(rule) is str:
            self.nodes += 1  # checked with the next operator: leaves alone grow no rule
            return constant(rule)
        if isinstance(rule, dict) and rule:
            if "$ref" in rule:
                rule, at, references = self._followed(rule, at, references)
            return self._operator(rule, at, depth, references, scope)
        self._grow(1, at)
        if isinstance(rule, list):
            return self._list(rule, at, depth, references, scope)
        return constant(self._scalar(rule, at))

    def branches(self, operands: Operands) -> list[Node]:
        nodes: list[Node] = []
        while True:
            listed = operands.listed
            last = len(listed) - 1
            nodes += [operands.compile(index) for index in range(last)]
            if last < 0:
                return nodes
            inner = self._else_if(operands, last) if last % 2 == 0 else None
            if inner is None:
                nodes.append(operands.compile(last))
                return nodes
            operands = inner

    def refuse(self, at: Path, message: str, hint: str | None = None) -> Never:
        pieces: list[str] = []
        place: Path | None = at
        while place is not None:
            place, piece, lead = place
            pieces.append(f"[{piece}]" if isinstance(piece, int) else lead + piece)
        raise BadDefinition("".join(reversed(pieces)), message, hint=hint)

    def _else_if(self, operands: Operands, index: int) -> Operands | None:
        rule = operands.listed[index]
        if not (isinstance(rule, dict) and rule):
            return None
        at: Path = (operands._at, index, "") if type(operands.raw) is list else operands._at
        depth, references = operands._depth, operands._references
        if "$ref" in rule:
            rule, at, references = self._followed(rule, at, references)
        if len(rule) != 1 or not ("if" in rule or "?:" in rule):
            return None
        operator, raw = self._single(rule, at)
        self._grow(1, at)
        return Operands(self, operator, raw, (at, operator, "."), depth, references, operands.scope)

    def _followed(
        self, rule: dict[str, Any], at: Path, references: Path | None
    ) -> tuple[dict[str, Any], Path, Path | None]:
        """Return the rule that a `$ref`, if it is one, stands for; it may be another `$ref`."""
        while len(rule) == 1 and "$ref" in rule:
            name = rule["$ref"]
            if not isinstance(name, str):
                self.refuse(at, f"$ref: want an evaluator's name, got {name!r}")
            entered, count = references, 0
            while entered is not None:
                if entered[1] == name:
                    self.refuse(at, f"$ref {name!r}: the evaluator refers to itself")
                entered, count = entered[0], count + 1
            if count >= REF_DEPTH_MAX:
                self.refuse(at, f"$ref {name!r}: want at most {REF_DEPTH_MAX} evaluators inside one another")
            found = self._evaluators.get(name, _ABSENT)
            if found is _ABSENT:
                near = get_close_matches(name, self._evaluators, 1)
                self.refuse(
                    at,
                    f"$ref {name!r}: no such evaluator",
                    f"did you mean {near[0]!r}?" if near else "define it under $evaluators, or in the same proposal",
                )
            if not isinstance(found, dict) or not found:
                self.refuse(at, f"$ref {name!r}: want an evaluator that is a rule, got {_shown(found)}")
            self.references.add(name)
            self._grow(1, at)
            references = (references, name, "")
            at = (at, f"$ref({name})", ".")
            rule = found
        return rule, at, references

    def _single(self, rule: dict[str, Any], at: Path) -> tuple[str, Any]:
        if len(rule) != 1:
            names = ", ".join(map(repr, list(rule)[:4]))
            self.refuse(at, f"want an object with one operator, got {len(rule)} keys ({names})")
        [(operator, raw)] = rule.items()
        return operator, raw

    def _operator(self, rule: dict[str, Any], at: Path, depth: int, references: Path | None, scope: Scope) -> Node:
        operator, raw = self._single(rule, at)
        build = self._operators.get(operator)
        if build is None:
            near = get_close_matches(str(operator), self._operators, 1)
            hint = f"did you mean {near[0]!r}?" if near else "docs/evaluation.md lists the operators"
            self.refuse(at, f"want a known operator, got {operator!r}", hint)
        if depth >= RULE_DEPTH_MAX:
            self.refuse(at, f"want at most {RULE_DEPTH_MAX} operators inside one another")
        self._grow(_HEAVY_NODES if operator in _HEAVY else 1, at)
        return build(Operands(self, operator, raw, (at, operator, "."), depth + 1, references, scope))

    def _list(self, rule: list[Any], at: Path, depth: int, references: Path | None, scope: Scope) -> Node:
        if not any(isinstance(item, (dict, list)) for item in rule):
            self._grow(len(rule) // ELEMENTS_PER_NODE, at)
            return constant([self._scalar(item, at) for item in rule])
        if depth >= RULE_DEPTH_MAX:
            self.refuse(at, f"want at most {RULE_DEPTH_MAX} operators or lists inside one another")
        nodes = [self.node(item, (at, i, ""), depth + 1, references, scope) for i, item in enumerate(rule)]
        if all(node.constant for node in nodes):
            return constant([node.value for node in nodes])
        steps = [node.step for node in nodes]
        return Node(lambda data, call: [step(data, call) for step in steps])

    def _scalar(self, value: Any, at: Path) -> Any:
        if value is None or isinstance(value, (str, bool)):
            return value
        if isinstance(value, (int, float)):
            try:
                finite = math.isfinite(value)
            except OverflowError:
                finite = False
            if not finite:
                self.refuse(at, "want a number that fits a double, got one that does not")
            return normal(value)
        if not isinstance(value, dict):
            self.refuse(at, f"want JSON, got {_shown(value)}")
        return {}  # only the empty object comes here

    def _grow(self, nodes: int, at: Path) -> None:
        self.nodes += nodes
        if self.nodes > RULE_NODES_MAX:
            self.refuse(
                at,
                f"want at most {RULE_NODES_MAX} operators and operands, with every $ref written out",
                "use fewer or smaller evaluators",
            )


def folded(operands: Operands, run: Callable[[], Any]) -> Node:
    """Return the constant that an operator with constant operands gives.

    Raises:
        BadDefinition: it cannot give one, in any call.
    """
    try:
        return constant(run())
    except RuleFailed as failure:
        operands.refuse(f"this never has a result: {failure}")


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an empty object" if value == {} else f"{'an object' if isinstance(value, dict) else 'a list'}"
    return f"{value!r} ({type(value).__name__})" if len(repr(value)) < 60 else type(value).__name__
