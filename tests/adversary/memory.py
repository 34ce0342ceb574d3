"""Remembers what pure functions of the product have returned, so that many runs of one story are fast.

The same bytes come again and again: the real functions judge them the first time, and their answer is taken from then
on. Nothing is replaced but repetition; `forgotten` runs all of it for real again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flaghoist import authorization, codec, freshness, ledger, rollback, root, signing, snapshot

_CODECS = (codec.ENTRY, codec.PROPOSAL, codec.APPROVAL, codec.ROOT, codec.HEARTBEAT)
_memories: list[dict[Any, Any]] = []


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    memory: dict[Any, Any] = {}
    _memories.append(memory)

    def remembered(*arguments: Any, **named: Any) -> Any:
        key = (arguments, *named.items()) if named else arguments
        if key in memory:
            return memory[key]
        answer = memory[key] = function(*arguments, **named)
        return answer

    remembered.__wrapped__ = function
    return remembered


class _Same:
    """One tuple of ops, which equals itself only."""

    __slots__ = ("ops",)

    def __init__(self, ops: object) -> None:
        self.ops = ops

    def __hash__(self) -> int:
        return id(self.ops)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ops is other.ops


def _ops(ops: Any) -> Any:
    return ops.ops if isinstance(ops, _Same) else ops


def forget() -> None:
    """Forget every answer; for the next story, whose bytes are others."""
    for memory in _memories:
        memory.clear()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember answers while this lasts."""
    places: list[tuple[Any, str]] = [
        (signing, "verifies"),
        (root, "check_public"),
        (ledger, "decode_envelope"),
        (freshness, "decode_envelope"),
        (ledger, "digest"),
        (ledger, "encode_release"),
        (authorization, "digest"),
        (snapshot, "parse_flag"),
        (snapshot, "parse_evaluator"),
        (snapshot, "parse_release"),
        (rollback, "parse_release"),
        *((one, "decode") for one in _CODECS),
    ]
    before = [(place, name, place.__dict__.get(name)) for place, name in places]
    for place, name in places:
        setattr(place, name, _remembering(getattr(place, name)))
    read = root.Root.__dict__["_read"]
    remembered_read = _remembering(lambda envelope: read.__func__(root.Root, envelope))
    remembered_read.__wrapped__ = read.__func__
    root.Root._read = staticmethod(remembered_read)
    fold, at_seq, empty = snapshot.Snapshot.fold, snapshot.Snapshot.at_seq, snapshot.Snapshot.__dict__["empty"]
    # Ops are compared by identity: those of one proposal are one tuple, since decoding is remembered too. A step makes
    # its one op anew each time.
    folded = _remembering(lambda before, seq, ops, at_ms: (fold(before, seq, _ops(ops), at_ms=at_ms), ops))
    snapshot.Snapshot.fold = lambda before, seq, ops, *, at_ms=0: folded(
        before, seq, _Same(ops) if isinstance(ops, tuple) else tuple(ops), at_ms
    )[0]
    snapshot.Snapshot.at_seq = _remembering(at_seq)
    snapshot.Snapshot.empty = staticmethod(_remembering(lambda f: empty.__func__(snapshot.Snapshot, f)))
    try:
        yield
    finally:
        root.Root._read = read
        snapshot.Snapshot.fold, snapshot.Snapshot.at_seq = fold, at_seq
        snapshot.Snapshot.empty = empty
        for place, name, was in before:
            if was is None:
                delattr(place, name)
            else:
                setattr(place, name, was)
        _memories.clear()
