"""Immutable flag state at one seq, compiled: what an entry's ops make of the snapshot before it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from flaghoist.answer import Answer
from flaghoist.definition import FlagDefinition
from flaghoist.records import Op
from flaghoist.targeting import Fractional
from flaghoist.values import FlagKey, Seq, Source, StateId


class CompiledFlag:
    """One served flag: its definition, and every answer that it can give, made ahead of time.

    `version` is the seq of the entry that last changed the definition.
    """

    __slots__ = ("definition", "fixed", "key", "source", "version")

    key: FlagKey
    source: Source
    definition: FlagDefinition
    version: Seq
    fixed: Answer | None


class View:
    """The flags that are served at one seq: of equal keys the one of the later source wins.

    Sources stand in the order of their first appearance in the ledger, source "" before all others.
    """

    __slots__ = ("flags", "seq")

    seq: Seq
    flags: Mapping[str, CompiledFlag]


class Snapshot:
    """Every definition of one ledger at one seq. Immutable: fold returns another."""

    __slots__ = ("_view", "fractional", "seq")

    seq: Seq
    fractional: Fractional

    @classmethod
    def empty(cls, fractional: Fractional) -> "Snapshot":
        """Return the snapshot before the first entry: seq 0, no definitions."""
        raise NotImplementedError

    @property
    def view(self) -> View:
        """What is served; made on first use and kept."""
        raise NotImplementedError

    def version_of(self, state_id: StateId) -> Seq:
        """Return the seq of the entry that last changed this definition; of a deleted one, the seq of its deletion;
        Seq(0) if it never existed."""
        raise NotImplementedError

    def fold(self, seq: Seq, ops: Sequence[Op]) -> "Snapshot":
        """Return the snapshot at `seq`: this one with all ops applied.

        Raises:
            StaleBase: an op expects another version than version_of says.
            BadDefinition: an op's definition cannot be served; two ops name one definition; a deleted one does not
                exist; a `$ref` of any flag or evaluator would point nowhere; an action or target that changes no state.
        """
        raise NotImplementedError

    def at_seq(self, seq: Seq) -> "Snapshot":
        """Return the same state at a later seq, for an entry that changes nothing."""
        raise NotImplementedError


def changed_keys(old: View | None, new: View) -> Mapping[str, Literal["write", "update", "delete"]]:
    """Return what a client that knows `old` must hear about `new`: `write` is a new key. None: it knows nothing."""
    raise NotImplementedError
