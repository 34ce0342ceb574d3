"""Who last changed each line of a definition: told by the field's path, so that a line that moved keeps its blame."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

from flaghoist.values import StateId
from publisher.audit.account import Account, OpChange
from publisher.audit.wording import canonical, canonical_lines, same_value

# Two lists are aligned in time that grows with the product of their lengths; longer ones are compared place by place.
ALIGNED_MAX: Final = 250_000

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Past:
    """One change of a definition, and the entry that made it."""

    account: Account
    change: OpChange


@dataclass(frozen=True, slots=True)
class BlamedLine:
    """One line of a definition as canonical JSON, where it stands in the document, and what set it last."""

    number: int
    text: str
    path: Path
    past: Past


@dataclass(frozen=True, slots=True)
class _Node:
    """A value with its blame; `inside` are the blamed values of an object or list, in the document's order."""

    past: Past
    inside: Mapping[str, "_Node"] | Sequence["_Node"] | None


def history(accounts: Iterable[Account], state_id: StateId) -> list[Past]:
    """Return every change of a definition, oldest first."""
    return [
        Past(account, change) for account in accounts for change in account.changes if change.op.state_id == state_id
    ]


def blame(pasts: Sequence[Past]) -> list[BlamedLine]:
    """Return the lines of the newest definition in these changes (its last one, when it is deleted now).

    A definition that was deleted and made anew is blamed from its new beginning on.

    Args:
        pasts: every change of one definition, oldest first.
    """
    value: Any = None
    node: _Node | None = None
    for past in pasts:
        if past.change.after is None:
            continue
        after = canonical(past.change.after)
        fresh = node is None or past.change.before is None
        node = _made(after, past) if fresh or node is None else _changed(node, value, after, past)
        value = after
    if node is None:
        return []
    lines: list[BlamedLine] = []
    _write(value, node, (), "", "", lines)
    assert [line.text for line in lines] == canonical_lines(value)  # noqa: S101 — one text, two ways to write it
    return lines


def _made(value: Any, past: Past) -> _Node:
    if isinstance(value, dict):
        return _Node(past, {name: _made(item, past) for name, item in value.items()})
    if isinstance(value, list):
        return _Node(past, [_made(item, past) for item in value])
    return _Node(past, None)


def _changed(node: _Node, before: Any, after: Any, past: Past) -> _Node:
    """The blame of `after`, where `node` is that of `before`: what is the same keeps its own."""
    if isinstance(before, dict) and isinstance(after, dict) and isinstance(node.inside, Mapping):
        inside = node.inside
        return _Node(
            node.past,
            {
                name: _changed(inside[name], before[name], item, past) if name in inside else _made(item, past)
                for name, item in after.items()
            },
        )
    if isinstance(before, list) and isinstance(after, list) and isinstance(node.inside, Sequence):
        return _Node(node.past, _aligned(node.inside, before, after, past))
    return node if same_value(before, after) else _made(after, past)


def _aligned(nodes: Sequence[_Node], before: list[Any], after: list[Any], past: Past) -> list[_Node]:
    """The blame of a list's items: those that were there before keep theirs, wherever they stand now."""
    old, new = ([json.dumps(item, sort_keys=True) for item in items] for items in (before, after))
    found: list[_Node] = []
    if len(old) * len(new) > ALIGNED_MAX:
        steps: Iterable[tuple[str, int, int, int, int]] = [("replace", 0, len(old), 0, len(new))]
    else:
        steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for what, i1, i2, j1, j2 in steps:
        for offset in range(j2 - j1):
            at, place = i1 + offset, j1 + offset
            if what == "equal":
                found.append(nodes[at])
            elif at < i2:  # an edited item: what is inside of it may be as old as before
                found.append(_changed(nodes[at], before[at], after[place], past))
            else:
                found.append(_made(after[place], past))
    return found


def _write(value: Any, node: _Node, path: Path, lead: str, tail: str, lines: list[BlamedLine]) -> None:
    """Add the lines of a value as canonical JSON has them; `lead` stands before its first, `tail` after its last."""
    indent = "  " * len(path)
    if isinstance(value, dict) and value and isinstance(node.inside, Mapping):
        names: list[Any] = sorted(value)
        opening, closing = "{", "}"
        leads = [f"{json.dumps(name, ensure_ascii=False)}: " for name in names]
    elif isinstance(value, list) and value:
        names, opening, closing, leads = list(range(len(value))), "[", "]", [""] * len(value)
    else:
        _add(f"{indent}{lead}{json.dumps(value, ensure_ascii=False)}{tail}", path, node.past, lines)
        return
    _add(f"{indent}{lead}{opening}", path, node.past, lines)
    inside: Any = node.inside
    for at, name in enumerate(names):
        comma = "," if at < len(names) - 1 else ""
        _write(value[name], inside[name], (*path, name), leads[at], comma, lines)
    _add(f"{indent}{closing}{tail}", path, node.past, lines)


def _add(text: str, path: Path, past: Past, lines: list[BlamedLine]) -> None:
    lines.append(BlamedLine(len(lines) + 1, text, path, past))
