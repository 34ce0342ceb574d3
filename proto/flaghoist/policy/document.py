"""The YAML of a policy, read strictly into nodes that know their lines: what it holds, its schema decides.

A policy decides in every pod and for as long as the ledger is read, so nothing in it may depend on how a library
guesses types: every scalar is text here, and whoever wants a number reads one from it. Anchors, aliases, tags,
directives and second documents are refused: what is reviewed is what is meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from flaghoist.errors import Faulty

POLICY_BYTES_MAX: Final = 64 * 1024  # what a root may carry (codec.POLICY_CHARS_MAX); a thousand lines
DEPTH_MAX: Final = 60  # a rule's deepest place is 5; cases carry flag definitions, whose rules nest
NODES_MAX: Final = 20_000  # 64 KiB of `[a,a,…]` hold more; no policy does


class BadPolicy(Faulty):
    """A policy with faults; `problems` names each one with its line."""

    code = "bad_policy"
    hint = "correct the policy; `flaghoist policy lint FILE` checks it, and docs/policy.md describes every field"


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar as it was written; `plain` says that it had no quotes."""

    line: int
    text: str
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    line: int
    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping, in its order; `lines` are those of the keys."""

    line: int
    nodes: dict[str, "Node"]
    lines: dict[str, int]


Node: TypeAlias = Text | Items | Fields


def kind_of(node: Node) -> str:
    """Return what a node is, for an error's text."""
    match node:
        case Items():
            return "a list"
        case Fields():
            return "a mapping"
        case Text(text=text):
            return repr(text if len(text) <= 60 else text[:57] + "...") if text else "nothing"


def read_document(text: str, *, where: str) -> Fields:
    """Return the mapping that a YAML document holds.

    Args:
        text: untrusted, at most POLICY_BYTES_MAX bytes of UTF-8.
        where: names the text in errors.

    Raises:
        BadPolicy: too long, not YAML, no mapping, or YAML beyond plain mappings, lists and scalars.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > POLICY_BYTES_MAX:
        raise BadPolicy(where, [f"want at most {POLICY_BYTES_MAX} bytes, got {size}"])
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    problems: list[str] = []
    try:
        top = _Composer(YAML(typ="safe", pure=True).parse(text), problems, where).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        said = (error.problem or error.context or "unreadable").splitlines()[0]
        raise BadPolicy(where, [*problems, f"{place}not YAML: {said}"]) from error
    except (YAMLError, ValueError) as error:
        raise BadPolicy(where, [*problems, f"not YAML: {str(error).splitlines()[0]}"]) from error
    if problems:
        raise BadPolicy(where, problems)
    if not isinstance(top, Fields):
        raise BadPolicy(where, [f"want a mapping that starts with `version: 1`, got {kind_of(top)}"])
    return top


class _Composer:
    """Builds nodes from the parser's events; stops at its limits before the parser has gone through the text."""

    def __init__(self, events: Iterator[Any], problems: list[str], where: str) -> None:
        self._events = events
        self._problems = problems
        self._where = where
        self._nodes = 0

    def document(self) -> Node:
        next(self._events)  # the stream's start
        start = next(self._events)
        if type(start).__name__ == "StreamEndEvent":
            return Text(1, "")
        if getattr(start, "version", None) is not None or getattr(start, "tags", None):
            self._fault(start, "want no directive such as %YAML or %TAG")
        node = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if type(after).__name__ != "StreamEndEvent":
            self._fault(after, "want one document, got another `---`")
        return node

    def _node(self, event: Any, depth: int) -> Node:
        line = event.start_mark.line + 1
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            limit = f"{DEPTH_MAX} levels" if depth > DEPTH_MAX else f"{NODES_MAX} values"
            raise BadPolicy(self._where, [*self._problems, f"line {line}: want at most {limit}"])
        if event.anchor is not None:
            self._fault(event, f"want no YAML anchors or aliases, got {event.anchor!r}: write it out")
        if getattr(event, "tag", None) is not None:
            self._fault(event, f"want no YAML tags, got {event.tag}")
        match type(event).__name__:
            case "MappingStartEvent":
                return self._fields(line, depth)
            case "SequenceStartEvent":
                return self._items(line, depth)
            case "ScalarEvent":
                return Text(line, event.value, event.style is None)
            case _:  # an alias, which is a fault already
                return Text(line, "")

    def _items(self, line: int, depth: int) -> Items:
        nodes = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            nodes.append(self._node(event, depth + 1))
        return Items(line, tuple(nodes))

    def _fields(self, line: int, depth: int) -> Fields:
        nodes: dict[str, Node] = {}
        lines: dict[str, int] = {}
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if not isinstance(key, Text):
                self._problems.append(f"line {key.line}: want text as a key, got {kind_of(key)}")
            elif key.text in nodes:
                self._problems.append(f"line {key.line}: {key.text}: given twice, first in line {lines[key.text]}")
            else:
                nodes[key.text], lines[key.text] = value, key.line
        return Fields(line, nodes, lines)

    def _fault(self, event: Any, text: str) -> None:
        self._problems.append(f"line {event.start_mark.line + 1}: {text}")
