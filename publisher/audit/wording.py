"""A change of one definition in words, and as a diff of canonical JSON."""

import json
from collections.abc import Mapping
from difflib import unified_diff
from typing import Any, Final

from flaghoist.values import Target
from publisher.audit.account import OpChange, moved_in_words

# A value longer than this is not worth a line of words; the diff has it whole.
SHOWN_CHARS_MAX: Final = 60
# What people compare value by value; everything else (a rule, say) is told as changed, and the diff says how.
_OPENED: Final = frozenset({"flag", "variants", "metadata", "governance", "release", "gate", "drill"})
# Everything of a definition stands under one of these: the word says nothing.
_OUTERMOST: Final = frozenset({"flag", "release", "drill"})
_ABSENT: Final = object()


def canonical(document: bytes | None) -> Any:
    """Return a definition's JSON; None for none."""
    return None if document is None else json.loads(document)


def canonical_lines(value: object) -> list[str]:
    """Return a JSON value as canonical text, line by line: keys sorted, two spaces a level; nothing for None."""
    if value is None:
        return []
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).split("\n")


def words(before: bytes | None, after: bytes | None) -> list[str]:
    """Return what differs between two definitions, field by field: `defaultVariant: "off" -> "on"`."""
    if before is None or after is None:
        return []
    said: list[str] = []
    _compare(json.loads(before), json.loads(after), (), said)
    return said or ["the same definition again"]


def change_words(target: Target, before: bytes | None, after: bytes | None, *, step: bool = False) -> list[str]:
    """Return what differs between two definitions: of a release, what became of its gate, then field by field.

    Args:
        step: the publisher took the release to its next stage, as its plan says.
    """
    said = moved_in_words(target, before, after, step=step)
    return ([said] if said is not None else []) + words(before, after)


def headline(change: OpChange) -> str:
    """Return what an op did in a few words: `change checkout`."""
    return f"{change.verb} {change.op.state_id}"


def diff(before: bytes | None, after: bytes | None, *, old: str, new: str) -> str:
    """Return a unified diff of two definitions as canonical JSON; `old` and `new` name them."""
    lines = unified_diff(
        canonical_lines(canonical(before)),
        canonical_lines(canonical(after)),
        "/dev/null" if before is None else old,
        "/dev/null" if after is None else new,
        lineterm="",
    )
    return "\n".join(lines)


def same_value(one: object, other: object) -> bool:
    """Say whether two JSON values are the same; 1, 1.0 and true are not, and the order of keys does not count."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _compare(before: Any, after: Any, path: tuple[str, ...], said: list[str]) -> None:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        here = (*path, name)
        if old is not _ABSENT and new is not _ABSENT:
            if same_value(old, new):
                continue
            if isinstance(old, Mapping) and isinstance(new, Mapping) and name in _OPENED and len(path) < 2:
                _compare(old, new, here, said)
                continue
        said.append(f"{_named(here)}: {_told(old, new)}")


def _named(path: tuple[str, ...]) -> str:
    return ".".join(path[1:] if path[0] in _OUTERMOST and len(path) > 1 else path)


def _told(old: object, new: object) -> str:
    one, other = _shown(old), _shown(new)
    if old is _ABSENT:
        return "added" if other is None else f"added: {other}"
    if new is _ABSENT:
        return "removed" if one is None else f"removed: {one}"
    return "changed" if one is None or other is None else f"{one} -> {other}"


def _shown(value: object) -> str | None:
    if value is _ABSENT:
        return None
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS_MAX else None
