"""The definitions of one ledger as they were signed, and every change of each: what people look at and compare.

Pure: folded from the verified links of the chain (reader.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flaghoist.authorization import Authorized
from flaghoist.definition import killed_document
from flaghoist.errors import UnknownFlag
from flaghoist.outcomes import Applied, Link, Stepped
from flaghoist.records import Op
from flaghoist.release_plan import CLOSED, encode_release, parse_release
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target


@dataclass(frozen=True, slots=True)
class Change:
    """One op of one applied entry; `before` and `after` are the definitions around it, None where there is none."""

    link: Applied | Stepped
    op: Op
    before: bytes | None
    after: bytes | None

    @property
    def seq(self) -> Seq:
        return self.link.entry.seq

    @property
    def authorized(self) -> Authorized | None:
        """Who asked and who approved; None for a stage that the publisher took, as its approved plan says."""
        return self.link.authorized if isinstance(self.link, Applied) else None

    @property
    def title(self) -> str:
        """What it is about, as the one who asked has put it."""
        return "next stage, as planned" if self.authorized is None else self.authorized.proposal.title


@dataclass(frozen=True)
class Documents:
    """The history of every definition, oldest change first."""

    changes: Mapping[StateId, list[Change]] = field(default_factory=dict)

    @classmethod
    def of(cls, links: Iterable[Link]) -> "Documents":
        """Return what these links of a chain (all, in seq order) make of the definitions."""
        changes: dict[StateId, list[Change]] = {}
        for link in links:
            if not isinstance(link, Applied | Stepped):
                continue
            for op in ops_of(link):
                past = changes.setdefault(op.state_id, [])
                before = past[-1].after if past else None
                after = killed_by(op, before) if before is not None and op.action is Action.KILL else op.definition
                past.append(Change(link, op, before, after))
        return cls(changes)

    def current(self, state_id: StateId) -> bytes | None:
        """Return the definition in force; None when there never was one, or it is deleted."""
        past = self.changes.get(state_id)
        return past[-1].after if past else None

    def at(self, state_id: StateId, seq: Seq) -> bytes | None:
        """Return the definition in force after an entry; None when there was none."""
        past = [change for change in self.changes.get(state_id, ()) if change.seq <= seq]
        return past[-1].after if past else None

    def version(self, state_id: StateId) -> Seq:
        """Return what an op on this definition must give as `expected_version`."""
        past = self.changes.get(state_id)
        return past[-1].seq if past else Seq(0)

    def of_source(self, source: Source) -> Mapping[StateId, bytes]:
        """Return the definitions in force that came from one source."""
        return {
            state_id: document
            for state_id in self.changes
            if state_id.source == source and (document := self.current(state_id)) is not None
        }

    def find_flag(self, key: str, served_by: Source | None) -> StateId:
        """Return which definition an operator means by KEY or SOURCE#KEY.

        Args:
            served_by: the source whose flag of that key is served (View); it is what a bare KEY means. None: none is.

        Raises:
            Malformed: odd characters.
            UnknownFlag: none in force; the text names keys that look alike.
        """
        state_id = flag_named(key, served_by)
        if self.current(state_id) is None:
            raise UnknownFlag(f"no flag {state_id}{_alike(key, self.flags())}")
        return state_id

    def past_flags(self, key: FlagKey) -> list[StateId]:
        """Return every flag that ever had this key, whichever its source, sorted; deleted ones too."""
        return sorted(s for s in self.changes if s.target is Target.FLAG and s.key == key)

    def flags(self) -> list[StateId]:
        """Return the flags in force, sorted."""
        return sorted(s for s in self.changes if s.target is Target.FLAG and self.current(s) is not None)


def ops_of(link: Applied | Stepped) -> Sequence[Op]:
    """Return what a link of the chain does to definitions."""
    return link.authorized.proposal.ops if isinstance(link, Applied) else (link.op,)


def killed_by(op: Op, before: bytes) -> bytes:
    """Return the definition that a KILL leaves of the one in force."""
    if op.target is Target.RELEASE:
        return encode_release(replace(parse_release(before), gate=CLOSED))
    return killed_document(before)


def flag_named(key: str, served_by: Source | None) -> StateId:
    """Return what KEY or SOURCE#KEY names, whether or not there is such a flag.

    Raises:
        Malformed: odd characters.
    """
    source, marked, name = key.rpartition("#")
    if marked:
        return StateId(Target.FLAG, Source(source), FlagKey(name))
    return StateId(Target.FLAG, served_by or Source(""), FlagKey(key))


def _alike(key: str, known: Iterable[StateId]) -> str:
    from difflib import get_close_matches

    alike = get_close_matches(key, [str(state_id.key) for state_id in known], n=3)
    return f"; did you mean {', '.join(alike)}?" if alike else ""
