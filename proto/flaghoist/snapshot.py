"""Immutable flag state at one seq, compiled: what an entry's ops make of the snapshot before it.

Snapshots share all that an entry did not change. A flag is compiled when its definition, or an evaluator that it
refers to, changes, and never for a call.
"""

import gc
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from flaghoist.answer import Answer, Reason
from flaghoist.definition import FlagDefinition, FlagState, killed, parse_evaluator, parse_flag
from flaghoist.document import JsonValue
from flaghoist.errors import BadDefinition, Malformed, StaleBase
from flaghoist.records import Op
from flaghoist.release_plan import (
    CLOSED,
    DRILL_PREFIX,
    EVERYBODY_RULE,
    GATE_PREFIX,
    NOBODY_RULE,
    drill_key,
    gate_key,
    parse_drill,
    parse_release,
)
from flaghoist.release_state import ReleaseState, check_requirements, following
from flaghoist.selector import EVERYTHING, FLAG_SET_KEY, Selector
from flaghoist.targeting import CompiledRule, Fractional, compile_rule
from flaghoist.targeting.limits import LEDGER_NODES_MAX
from flaghoist.values import Action, FlagKey, Seq, Source, StateId, Target

# Flags that are set one by one, and the gates of releases, are in this source: every other one may refer to them.
SHARED: Final = Source("")

# From here on a fold makes so many objects, none of them garbage, that the collector would walk them all again and
# again (measured: 130 µs a flag instead of 30).
GC_PAUSE_OPS: Final = 32

# Selectors come from the few providers of one pod.
SELECTED_VIEWS_MAX: Final = 64

_NEVER: Final = Seq(0)

_T = TypeVar("_T")


NO_EVALUATORS: Final[Mapping[str, JsonValue]] = {}


class CompiledFlag:
    """One served flag: its definition, its compiled rule, and every answer that it can give, made ahead of time.

    `version` is the seq of the entry that last changed the definition. `fixed` is the answer to all calls, None when
    the flag has a rule; then `matches` holds the answers by variant, and `default` the one when no variant is named.
    `evaluators` are the rules that the flag's own refers to, directly or through another, by name. `member` is where
    flagd_document keeps what it made of the flag.
    """

    __slots__ = (
        "default",
        "definition",
        "evaluators",
        "fixed",
        "key",
        "leaf",
        "matches",
        "member",
        "rule",
        "source",
        "version",
    )

    def __init__(
        self,
        key: FlagKey,
        source: Source,
        definition: FlagDefinition,
        version: Seq,
        rule: CompiledRule | None,
        evaluators: Mapping[str, JsonValue] = NO_EVALUATORS,
    ) -> None:
        self.key = key
        self.source = source
        self.definition = definition
        self.version = version
        self.rule = rule
        self.evaluators = evaluators
        self.member: tuple[bytes, str | None] | None = None
        self.leaf: bytes | None = None
        self.fixed: Answer | None = None
        self.matches: Mapping[str, Answer] = {}
        name = definition.default_variant
        if definition.state is FlagState.DISABLED:
            self.fixed = Answer(str(key), None, None, Reason.DISABLED, definition.metadata)
            self.default = self.fixed
            return
        value = definition.variants[name] if name is not None else None
        # Without a rule and without a default variant the reason is DEFAULT, as in flagd: there is nothing to cache.
        reason = Reason.STATIC if rule is None and name is not None else Reason.DEFAULT
        self.default = Answer(str(key), value, name, reason, definition.metadata)
        if rule is None:
            self.fixed = self.default
        else:
            self.matches = {
                variant: Answer(str(key), value, variant, Reason.TARGETING_MATCH, definition.metadata)
                for variant, value in definition.variants.items()
            }


NO_SOURCES: Final[Mapping[Source, Mapping[str, CompiledFlag]]] = {}


class View:
    """The flags that are served at one seq: of equal keys the one of the later source wins.

    Sources stand in the order of their first appearance in the ledger, source "" before all others.
    """

    __slots__ = ("_selected", "_sources", "flags", "selector", "seq")

    def __init__(
        self,
        seq: Seq,
        flags: Mapping[str, CompiledFlag],
        sources: Mapping[Source, Mapping[str, CompiledFlag]] = NO_SOURCES,
        selector: Selector = EVERYTHING,
    ) -> None:
        self.seq = seq
        self.flags = flags
        self.selector = selector
        self._sources = sources
        self._selected: dict[Selector, View] = {}

    def select(self, selector: Selector) -> "View":
        """Return the view of a part of the flags; the same object for the same selector while it is remembered.

        Of a source, also flags that a later source hides from the view of everything are seen.
        """
        if selector == self.selector:
            return self
        found = self._selected.get(selector)
        if found is None:
            if len(self._selected) >= SELECTED_VIEWS_MAX:
                self._selected.clear()  # callers choose selectors: what they can make us remember is bounded
            found = View(self.seq, self._chosen(selector), self._sources, selector)
            self._selected[selector] = found
        return found

    def _chosen(self, selector: Selector) -> Mapping[str, CompiledFlag]:
        if selector.source is not None:
            return self._sources.get(Source(selector.source), {}) if _is_source(selector.source) else {}
        chosen: dict[str, CompiledFlag] = {}
        for flags in self._sources.values():
            for key, flag in flags.items():
                flag_set = flag.definition.metadata.get(FLAG_SET_KEY, "")
                if selector.flag_set is None or flag_set == selector.flag_set:
                    chosen[key] = flag
        return chosen


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A shared rule, checked; `references` are the evaluators that it refers to."""

    key: FlagKey
    rule: JsonValue
    version: Seq
    references: frozenset[str]


@dataclass(frozen=True, slots=True)
class Drill:
    """A rehearsal of a release: whether its shadow gate stands open, and what was measured last."""

    key: FlagKey
    hoisted: bool
    result: Mapping[str, Any] | None
    version: Seq


NO_RELEASES: Final[Mapping[FlagKey, ReleaseState]] = {}
NO_DRILLS: Final[Mapping[FlagKey, Drill]] = {}


class Snapshot:
    """Every definition of one ledger at one seq. Immutable: fold returns another.

    `releases` are by name; the gate of each is an evaluator of the source "". `drills` are by the release's name.
    `state_root` is where state_root.py keeps what it made of it.
    """

    __slots__ = (
        "_evaluators",
        "_flags",
        "_nodes",
        "_versions",
        "_view",
        "drills",
        "fractional",
        "releases",
        "seq",
        "state_root",
    )

    def __init__(
        self,
        seq: Seq,
        fractional: Fractional,
        flags: dict[Source, dict[str, CompiledFlag]],
        evaluators: dict[Source, dict[str, Evaluator]],
        versions: dict[StateId, Seq],
        nodes: int,
        releases: Mapping[FlagKey, ReleaseState] = NO_RELEASES,
        drills: Mapping[FlagKey, Drill] = NO_DRILLS,
    ) -> None:
        """Take ownership of the dicts; use empty() and fold() instead. `nodes` is the size of all flags' rules."""
        self.seq = seq
        self.fractional = fractional
        self._flags = flags
        self._evaluators = evaluators
        self._versions = versions
        self._nodes = nodes
        self.releases = releases
        self.drills = drills
        self._view: View | None = None
        self.state_root: bytes | None = None

    @classmethod
    def empty(cls, fractional: Fractional) -> "Snapshot":
        """Return the snapshot before the first entry: seq 0, no definitions."""
        return cls(_NEVER, fractional, {SHARED: {}}, {SHARED: {}}, {}, 0)

    @property
    def view(self) -> View:
        """What is served; made on first use and kept."""
        if self._view is None:
            self._view = View(self.seq, self._merged(), self._flags)
        return self._view

    def version_of(self, state_id: StateId) -> Seq:
        """Return the seq of the entry that last changed this definition; of a deleted one, the seq of its deletion;
        Seq(0) if it never existed."""
        return self._versions.get(state_id, _NEVER)

    def flag(self, source: Source, key: FlagKey) -> CompiledFlag | None:
        """Return a flag of one source, also one that a later source hides from the view."""
        return self._flags.get(source, {}).get(key)

    def evaluator(self, source: Source, key: FlagKey) -> Evaluator | None:
        return self._evaluators.get(source, {}).get(key)

    def named(self, key: FlagKey) -> Iterator[CompiledFlag]:
        """Yield the flags of this key, of all sources."""
        for flags in self._flags.values():
            if (flag := flags.get(key)) is not None:
                yield flag

    def flags(self) -> Iterator[CompiledFlag]:
        """Yield the flags of all sources."""
        for flags in self._flags.values():
            yield from flags.values()

    def referring(self, source: Source, evaluator: FlagKey) -> Iterator[CompiledFlag]:
        """Yield the flags whose rule refers to an evaluator; those of every source, when it is a shared one."""
        for flag in self.flags():
            if evaluator in flag.evaluators and source in (flag.source, SHARED):
                yield flag

    def evaluators(self) -> Iterator[tuple[StateId, Evaluator]]:
        """Yield the evaluators of all sources."""
        for source, evaluators in self._evaluators.items():
            for evaluator in evaluators.values():
                yield StateId(Target.EVALUATOR, source, evaluator.key), evaluator

    @property
    def sources(self) -> Iterable[Source]:
        """The sources, in the order in which one's flags win over another's."""
        return self._flags

    def gone(self) -> Iterator[tuple[StateId, Seq]]:
        """Yield the definitions that were deleted, with the seq of their deletion."""
        for state_id, version in self._versions.items():
            if not self.has(state_id):
                yield state_id, version

    def has(self, state_id: StateId) -> bool:
        """Say whether there is a definition of this name in force."""
        match state_id.target:
            case Target.FLAG:
                return self.flag(state_id.source, state_id.key) is not None
            case Target.EVALUATOR:
                return self.evaluator(state_id.source, state_id.key) is not None
            case Target.RELEASE:
                return not state_id.source and state_id.key in self.releases
            case Target.DRILL:
                return not state_id.source and state_id.key in self.drills
            case _:
                return False

    def fold(self, seq: Seq, ops: Sequence[Op], *, at_ms: int = 0) -> "Snapshot":
        """Return the snapshot at `seq`: this one with all ops applied.

        Args:
            at_ms: from when on they are in force (Unix ms); the soak of a release's stage counts from there.

        Raises:
            StaleBase: an op expects another version than version_of says.
            RequirementUnmet: a release would be open whose requirement is not.
            BadDefinition: an op's definition cannot be served; two ops name one definition; a deleted one does not
                exist; a `$ref` of any flag or evaluator would point nowhere; an action or target that changes no state;
                all rules together would be larger than LEDGER_NODES_MAX.
        """
        if not ops:
            return self.at_seq(seq)
        with paused_collector(len(ops) >= GC_PAUSE_OPS):
            return _Fold(self, seq, at_ms).applied(ops)

    def at_seq(self, seq: Seq) -> "Snapshot":
        """Return the same state at a later seq, for an entry that changes nothing."""
        same = Snapshot(
            seq,
            self.fractional,
            self._flags,
            self._evaluators,
            self._versions,
            self._nodes,
            self.releases,
            self.drills,
        )
        same.state_root = self.state_root
        if self._view is not None:
            same._view = View(seq, self._view.flags, self._flags)
        return same

    def _merged(self) -> Mapping[str, CompiledFlag]:
        served = [flags for flags in self._flags.values() if flags]
        if len(served) == 1:
            return served[0]
        merged: dict[str, CompiledFlag] = {}
        for flags in served:
            merged.update(flags)
        return merged


class _Fold:
    """One fold at work: copies of what changes, and what must be compiled anew."""

    def __init__(self, before: Snapshot, seq: Seq, at_ms: int) -> None:
        self._before = before
        self._seq = seq
        self._at_ms = at_ms
        self._releases: dict[FlagKey, ReleaseState] = {}
        self._drills = before.drills
        # Whose order with other releases matters: all that change, but not those that an emergency closes.
        self._to_check: set[FlagKey] = set()
        self._flags = dict(before._flags)
        self._evaluators = dict(before._evaluators)
        self._versions = before._versions.copy()
        self._nodes = before._nodes
        self._scopes: dict[Source, Mapping[str, JsonValue]] = {}
        self._copied: set[tuple[int, Source]] = set()
        # Names of the evaluators that this fold puts or deletes, of whatever source.
        self._changed_names: frozenset[str] = frozenset()

    def applied(self, ops: Sequence[Op]) -> Snapshot:
        flags: dict[tuple[Source, FlagKey], FlagDefinition] = {}
        evaluators: dict[tuple[Source, FlagKey], JsonValue] = {}
        changed: set[tuple[Source, FlagKey]] = set()
        seen: set[StateId] = set()
        for op in ops:
            state_id = op.state_id
            if state_id in seen:
                raise BadDefinition(_place(state_id), "want one op on a definition, got two in one entry")
            seen.add(state_id)
            self._check(op, state_id)
            self._versions[state_id] = self._seq
            place = (op.source, op.key)
            if op.target in (Target.RELEASE, Target.DRILL):
                gate, rule = self._take_release(op) if op.target is Target.RELEASE else self._take_drill(op)
                if any(key == gate for _, key in evaluators):
                    raise BadDefinition(_place(state_id), f"want no op on the evaluator {gate} beside it, got one")
                changed.add((SHARED, gate))
                if rule is None:
                    del self._writable(self._evaluators, SHARED)[gate]
                else:
                    evaluators[SHARED, gate] = rule
            elif op.target is Target.EVALUATOR:
                changed.add(place)
                if op.definition is None:
                    del self._writable(self._evaluators, op.source)[op.key]
                else:
                    evaluators[place] = parse_evaluator(op.definition, where=_place(state_id))
            elif op.action is Action.KILL:
                flags[place] = killed(self._before._flags[op.source][op.key].definition, where=_place(state_id))
            elif op.definition is None:
                flags_of = self._writable(self._flags, op.source)
                self._nodes -= _nodes(flags_of.pop(op.key))
            else:
                flags[place] = parse_flag(op.definition, where=_place(state_id))
        for (source, key), rule in evaluators.items():
            self._writable(self._evaluators, source)[key] = Evaluator(key, rule, self._seq, frozenset())
        self._changed_names = frozenset(str(key) for _, key in changed)
        if changed:
            self._compile_evaluators(changed)
        for (source, key), definition in flags.items():
            self._compile_flag(source, key, definition, self._seq)
        if changed:
            self._compile_dependents(changed, flags)
        before = self._before
        releases = self._releases_after(seen) if self._releases or self._to_check else before.releases
        return Snapshot(
            self._seq,
            before.fractional,
            self._flags,
            self._evaluators,
            self._versions,
            self._nodes,
            releases,
            self._drills,
        )

    def _take_release(self, op: Op) -> tuple[FlagKey, JsonValue]:
        """Note what an op makes of a release, and return its gate and that one's rule; None when it deletes it."""
        key, gate, before = op.key, gate_key(op.key), self._before.releases.get(op.key)
        if op.action is Action.KILL:
            assert before is not None  # noqa: S101 — _check looked
            plan = replace(before.plan, gate=CLOSED)
        else:
            self._to_check.add(key)
            if op.definition is None:
                return gate, None
            plan = parse_release(op.definition, where=_place(op.state_id))
            if before is None:
                self._check_name_free(gate)
        self._releases[key] = following(before, key, plan, self._seq, self._at_ms)
        return gate, plan.rule()

    def _take_drill(self, op: Op) -> tuple[FlagKey, JsonValue]:
        """Note what an op makes of a rehearsal, and return its shadow gate and that one's rule; None: it deletes it."""
        shadow = drill_key(op.key)
        drills = dict(self._drills)
        self._drills = drills
        if op.definition is None:
            del drills[op.key]
            return shadow, None
        said = parse_drill(op.definition, where=_place(op.state_id))
        if op.key not in self._before.drills:
            self._check_name_free(shadow)
        drills[op.key] = Drill(op.key, said["hoisted"], said.get("result"), self._seq)
        return shadow, EVERYBODY_RULE if said["hoisted"] else NOBODY_RULE

    def _check_name_free(self, name: FlagKey) -> None:
        """Refuse a gate's name that something else has: flags would refer to that, or to either."""
        for source, evaluators in self._evaluators.items():
            if name in evaluators:
                raise BadDefinition(
                    _place(StateId(Target.EVALUATOR, source, name)),
                    "want no evaluator of a release's name, there is one",
                    hint="delete that evaluator first, or give the release another name",
                )

    def _releases_after(self, seen: Iterable[StateId]) -> Mapping[FlagKey, ReleaseState]:
        before = self._before.releases
        after = {key: state for key, state in before.items() if key not in self._to_check} | self._releases
        check_requirements(before, after, self._to_check)
        in_this_entry = {(state_id.source, state_id.key) for state_id in seen if state_id.target is Target.FLAG}
        for key in self._to_check:
            if (state := after.get(key)) is not None and not state.plan.gate.closed:
                self._check_flags(state, in_this_entry)
        for key in self._to_check & after.keys():
            # Also while the gate is closed: its ramp must not be the first to hear of it.
            where = f"{_place(StateId(Target.RELEASE, SHARED, key))}.audience"
            self._rule(after[key].plan.audience or NOBODY_RULE, SHARED, where, "")
        return after

    def _check_flags(self, state: ReleaseState, in_this_entry: set[tuple[Source, FlagKey]]) -> None:
        """Refuse to open a gate that not all of the release's flags go through: it would open half of them."""
        where = f"{_place(StateId(Target.RELEASE, SHARED, state.key))}.flags"
        gate = gate_key(state.key)
        for source, key in state.plan.flags:
            named = StateId(Target.FLAG, source, key)
            flag = self._flags.get(source, {}).get(key)
            if flag is None:
                raise BadDefinition(where, f"want flags that exist, got {named}", hint="create it, or leave it out")
            if gate not in flag.evaluators:
                raise BadDefinition(
                    where,
                    f'want flags that refer to {{"$ref": "{gate}"}}, {named} does not',
                    hint="edit the release, which wires its flags, before it opens",
                )
            if state.opened_at == self._seq and (source, key) in in_this_entry:
                raise BadDefinition(
                    where,
                    f"want the gate opened by an entry that changes no flag of it, this one changes {named}",
                    hint="publish the flags first, then open the gate: what was before can then be restored",
                )

    def _check(self, op: Op, state_id: StateId) -> None:
        if op.target is Target.POLICY:
            raise BadDefinition(_place(state_id), f"want an op on a definition, got {op.target}")
        if op.action is Action.KILL and op.target not in (Target.FLAG, Target.RELEASE):
            raise BadDefinition(_place(state_id), f"want KILL of a flag or a release, got it of {op.target}")
        if op.source and op.target in (Target.RELEASE, Target.DRILL):
            raise BadDefinition(_place(state_id), f"want a {op.target.lower()} of no source, got {op.source!r}")
        if op.target is Target.EVALUATOR and self._belongs_to_release(op.key):
            raise BadDefinition(
                _place(state_id),
                "want an op on the release: this evaluator is its gate",
                hint="ramp, activate or revert it with `flaghoist release`",
            )
        if (op.definition is None) is (op.action is Action.PUT):
            wanted = "a definition with PUT" if op.action is Action.PUT else f"no definition with {op.action}"
            raise BadDefinition(_place(state_id), f"want {wanted}")
        version = self._versions.get(state_id, _NEVER)
        if op.expected_version != version:
            raise StaleBase(f"{state_id}: expected version {op.expected_version}, it is at {version}")
        if op.action is not Action.PUT and not self._before.has(state_id):
            raise BadDefinition(
                _place(state_id), f"want something to {op.action.lower()}, there is nothing of this name"
            )

    def _belongs_to_release(self, name: FlagKey) -> bool:
        """Whether an evaluator of this name, of whatever source, is or would hide a release's gate or its shadow."""
        release, drill = name.removeprefix(GATE_PREFIX), name.removeprefix(DRILL_PREFIX)
        return (release != name and (release in self._before.releases or release in self._releases)) or (
            drill != name and drill in self._drills
        )

    def _writable(self, sources: dict[Source, dict[str, _T]], source: Source) -> dict[str, _T]:
        """Return a source's definitions for change: copied the first time, then ours."""
        mark = (id(sources), source)
        if mark not in self._copied:
            self._copied.add(mark)
            sources[source] = dict(sources.get(source, {}))
        return sources[source]

    def _scope(self, source: Source) -> Mapping[str, JsonValue]:
        """The evaluators that `$ref` may name in a source: its own first, then the shared ones."""
        scope = self._scopes.get(source)
        if scope is None:
            rules = [{key: found.rule for key, found in self._evaluators.get(source, {}).items()}]
            if source != SHARED:
                rules.append(dict(self._scope(SHARED)))
            scope = rules[0] if len(rules) == 1 else ChainMap(*rules)
            self._scopes[source] = scope
        return scope

    def _compile_evaluators(self, changed: set[tuple[Source, FlagKey]]) -> None:
        """Check the changed evaluators, and all that refer to them: their operators exist, and their own `$ref`s."""
        for source, evaluators in list(self._evaluators.items()):
            names = _names(changed, source)
            for found in list(evaluators.values()):
                key = found.key
                if (source, key) not in changed and names.isdisjoint(found.references):
                    continue
                state_id = StateId(Target.EVALUATOR, source, key)
                compiled = self._rule(found.rule, source, _place(state_id), "")
                checked = Evaluator(key, found.rule, found.version, compiled.references)
                self._writable(self._evaluators, source)[key] = checked

    def _compile_dependents(
        self, changed: set[tuple[Source, FlagKey]], just_compiled: Mapping[tuple[Source, FlagKey], object]
    ) -> None:
        for source, flags in list(self._flags.items()):
            names = _names(changed, source)
            if not names:
                continue
            for flag in list(flags.values()):
                key = flag.key
                if flag.rule is None or names.isdisjoint(flag.rule.references) or (source, key) in just_compiled:
                    continue
                self._compile_flag(source, key, flag.definition, flag.version)

    def _compile_flag(self, source: Source, key: FlagKey, definition: FlagDefinition, version: Seq) -> None:
        rule, evaluators = None, NO_EVALUATORS
        flags = self._writable(self._flags, source)
        before = flags.get(key)
        if before is not None and before.rule is not None and self._same_rule(before, definition):
            rule, evaluators = before.rule, before.evaluators
        elif definition.targeting is not None:
            where = f"{_place(StateId(Target.FLAG, source, key))}.targeting"
            rule = self._rule(definition.targeting, source, where, key)
            if rule.references:
                scope = self._scope(source)
                evaluators = {name: scope[name] for name in rule.references}
        flag = CompiledFlag(key, source, definition, version, rule, evaluators)
        self._nodes += _nodes(flag) - _nodes(before)
        if self._nodes > LEDGER_NODES_MAX:
            raise BadDefinition(
                _place(StateId(Target.FLAG, source, key)),
                f"want at most {LEDGER_NODES_MAX} operators and operands in all flags' rules, every $ref written out",
                hint="make the evaluator smaller that most flags refer to",
            )
        flags[key] = flag

    def _same_rule(self, before: CompiledFlag, definition: FlagDefinition) -> bool:
        """Whether a flag's compiled rule serves its new definition too: most changes keep the rule."""
        if not self._changed_names.isdisjoint(before.rule.references if before.rule else ()):
            return False
        # Not ==: to Python 1, 1.0 and True are equal, and to a rule they are not.
        return repr(before.definition.targeting) == repr(definition.targeting)

    def _rule(self, rule: JsonValue, source: Source, where: str, flag_key: str) -> CompiledRule:
        return compile_rule(
            rule,
            where=where,
            evaluators=self._scope(source),
            fractional=self._before.fractional,
            flag_key=str(flag_key),
        )


def changed_keys(old: View | None, new: View) -> Mapping[str, Literal["write", "update", "delete"]]:
    """Return what a client that knows `old` must hear about `new`: `write` is a new key. None: it knows nothing."""
    changes: dict[str, Literal["write", "update", "delete"]] = {}
    known = old.flags if old is not None else {}
    if known is new.flags:
        return changes
    for key, flag in new.flags.items():
        before = known.get(key)
        if before is None:
            changes[str(key)] = "write"
        elif before is not flag:
            changes[str(key)] = "update"
    if len(known) + sum(change == "write" for change in changes.values()) != len(new.flags):
        for key in known.keys() - new.flags.keys():
            changes[str(key)] = "delete"
    return changes


def _is_source(text: str) -> bool:
    try:
        Source(text)
    except Malformed:
        return False
    return True


def _nodes(flag: CompiledFlag | None) -> int:
    return flag.rule.nodes if flag is not None and flag.rule is not None else 0


def _names(changed: Iterable[tuple[Source, FlagKey]], source: Source) -> frozenset[str]:
    """The names among changed evaluators that a `$ref` in a source may mean."""
    return frozenset(str(key) for place, key in changed if place in (source, SHARED))


_PLURALS: Final = {Target.FLAG: "flags", Target.EVALUATOR: "$evaluators"}


def _place(state_id: StateId) -> str:
    """Where a definition stands, as a flagd file would say it."""
    inside = _PLURALS.get(state_id.target) or state_id.target.lower()
    return f"{state_id.source}#{inside}.{state_id.key}" if state_id.source else f"{inside}.{state_id.key}"


@contextmanager
def paused_collector(pause: bool = True) -> Iterator[None]:
    """Keep the garbage collector still while many objects are made that live on: it would walk them over and over."""
    if not (pause and gc.isenabled()):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
