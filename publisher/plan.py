"""What a proposal would change, worked out before anybody signs: pure, and checked by the fold that readers use."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from typing import Final

from flaghoist.codec import ENVELOPE_BYTES_MAX, OPS_MAX
from flaghoist.definition import encode_flag, parse_flag
from flaghoist.errors import BadDefinition, Refused, TooLarge
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, FlagKey, StateId, Target
from publisher.documents import Documents, killed_by
from publisher.flagfile import BadFile, FlagFile, Json
from publisher.releases.gating import rewired

# An entry carries a proposal and its approvals in one envelope: 16 approvals with a comment of a page each need this.
_APPROVALS_BYTES: Final = 64 * 1024
PROPOSAL_BYTES_MAX: Final = ENVELOPE_BYTES_MAX - _APPROVALS_BYTES
# Title, reason, people and times of a proposal, and the names and numbers of one op, each at its longest.
_PROPOSAL_OVERHEAD_BYTES: Final = 24 * 1024
_OP_OVERHEAD_BYTES: Final = 512


NOTHING_GOVERNED: Final[Mapping[str, object]] = {}


@dataclass(frozen=True, slots=True)
class Step:
    """One op, and the definition that it would replace (None: none in force)."""

    op: Op
    before: bytes | None

    @property
    def verb(self) -> str:
        if self.op.action is Action.KILL:
            return "kill"
        if self.op.definition is None:
            return "delete"
        return "add" if self.before is None else "change"

    @property
    def after(self) -> bytes | None:
        """The definition that it would leave; None for none."""
        if self.op.action is not Action.KILL:
            return self.op.definition
        if self.before is None:
            return None
        if self.op.target is Target.FLAG and parse_flag(self.before).governance.safe_variant is None:
            return None  # nothing that could be killed: a reader would reject it
        return killed_by(self.op, self.before)

    def diff(self) -> str:
        """Return a unified diff of the definitions as indented JSON."""
        version = self.op.expected_version
        old, new = f"{self.op.state_id} (seq {version})", f"{self.op.state_id} (proposed)"
        return definition_diff(self.before, self.after, old=old, new=new)


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import would do: `batches` are the steps of each proposal, in the order of publishing."""

    batches: tuple[tuple[Step, ...], ...]
    unchanged: int
    absent: tuple[StateId, ...]  # in the ledger from this source, and not in the file

    @property
    def steps(self) -> list[Step]:
        return [step for batch in self.batches for step in batch]


def definition_diff(before: bytes | None, after: bytes | None, *, old: str, new: str) -> str:
    """Return a unified diff of two definitions as indented JSON; "" when they are the same.

    Args:
        old: names the one before.
        new: names the one after.
    """
    old = "/dev/null" if before is None else old
    new = "/dev/null" if after is None else new
    return "\n".join(unified_diff(pretty_lines(before), pretty_lines(after), old, new, n=3, lineterm=""))


def pretty_lines(document: bytes | None) -> list[str]:
    """Return a definition as people read it, line by line; nothing for None."""
    if document is None:
        return []
    return json.dumps(json.loads(document), indent=2, ensure_ascii=False).splitlines()


def same(one: bytes | None, other: bytes | None) -> bool:
    """Say whether two definitions mean the same: equal JSON, whatever the order of keys (1 and 1.0 differ)."""
    if one is None or other is None:
        return one is other
    return one == other or _canonical(one) == _canonical(other)


def put(documents: Documents, state_id: StateId, definition: bytes) -> Step | None:
    """Return the step that puts a definition; None when it is in force already."""
    before = documents.current(state_id)
    if same(before, definition):
        return None
    return Step(_op(documents, state_id, Action.PUT, definition), before)


def delete(documents: Documents, state_id: StateId) -> Step:
    """Return the step that deletes a definition in force."""
    return Step(_op(documents, state_id, Action.DELETE, None), documents.current(state_id))


def changed_flag(
    document: bytes,
    *,
    variant: str | None = None,
    state: str | None = None,
    targeting: Json = None,
    retarget: bool = False,
) -> bytes:
    """Return a flag's definition with some fields set.

    Args:
        variant: the new default variant; it must be one of the flag's.
        targeting: the new rule when `retarget`; None or `{}` removes the rule.

    Raises:
        BadDefinition: the result cannot be served.
    """
    fields = json.loads(document)
    flag = fields["flag"]
    if variant is not None:
        if variant not in flag["variants"]:
            known = ", ".join(flag["variants"])
            raise BadDefinition("defaultVariant", f"want one of the flag's variants ({known}), got {variant!r}")
        flag["defaultVariant"] = variant
    if state is not None:
        flag["state"] = state
    if retarget:
        flag.pop("targeting", None)
        if targeting:
            flag["targeting"] = targeting
    return encode_flag(flag, fields.get("governance"))


def with_governance(document: bytes, fields: Mapping[str, object]) -> bytes:
    """Return a flag's definition with some governance fields set; None takes one away.

    Raises:
        BadDefinition: the result cannot be served.
    """
    if not fields:
        return document
    top = json.loads(document)
    governance = {name: value for name, value in {**top.get("governance", {}), **fields}.items() if value is not None}
    return encode_flag(top["flag"], governance)


def _governance_of(document: bytes | None) -> Mapping[str, object]:
    governance: Mapping[str, object] = {} if document is None else json.loads(document).get("governance", {})
    return governance


def flag_document(value: Json, current: bytes | None) -> bytes:
    """Return the definition in a file's value: a bare flagd flag definition, or one with its governance beside it.

    A bare one keeps the governance of the current definition.

    Raises:
        BadDefinition: it cannot be served.
    """
    if not isinstance(value, dict):
        raise BadDefinition("", f"want an object with a flag definition, got {type(value).__name__}")
    if isinstance(value.get("flag"), dict) and "variants" not in value:
        if unknown := set(value) - {"flag", "governance"}:
            raise BadDefinition("", f"want `flag` and `governance` only, got {sorted(unknown)}")
        flag, governance = value["flag"], value.get("governance")
    else:
        flag, governance = value, json.loads(current).get("governance") if current else None
    if not isinstance(flag, dict) or not isinstance(governance, dict | None):
        raise BadDefinition("governance", f"want an object, got {type(governance).__name__}")
    return encode_flag(flag, governance)


def check(snapshot: Snapshot, batches: Iterable[Sequence[Step]]) -> Snapshot:
    """Fold the steps as a reader of the ledger would, and return the state that they would make.

    Raises:
        StaleBase, BadDefinition: a reader would reject them.
    """
    for batch in batches:
        snapshot = snapshot.fold(snapshot.seq.next(), [step.op for step in batch])
    return snapshot


def plan_import(
    file: FlagFile,
    documents: Documents,
    snapshot: Snapshot,
    *,
    where: str,
    prune: bool,
    governance: Mapping[str, object] = NOTHING_GOVERNED,
) -> ImportPlan:
    """Return the steps that make the ledger's definitions of this source those of the file.

    A flagd file says nothing of owners, safe variants and releases: a flag that has them in the ledger keeps them.

    Args:
        prune: also delete what the file does not have.
        governance: fields for every flag of the file, as with_governance takes them.

    Raises:
        BadDefinition: a field of `governance` that cannot be.
        BadFile: rules that cannot be compiled: every one of them, with its path.
        TooLarge: one definition too long for a proposal.
    """
    wanted = {StateId(Target.EVALUATOR, file.source, key): document for key, document in _in_order(file)}
    for key, document in file.flags.items():
        state_id = StateId(Target.FLAG, file.source, key)
        fields = {**_governance_of(documents.current(state_id)), **governance}
        try:
            kept = rewired(document, documents.current(state_id), snapshot.releases)
            wanted[state_id] = with_governance(kept, fields)
        except BadDefinition as error:
            hint = error.hint or "give what the file lacks with the option of that name, --safe-variant V say"
            raise BadDefinition(f"{where}: flags.{key}", str(error), hint=hint) from error
    of_files = (Target.FLAG, Target.EVALUATOR)  # a release of no file is no reason to delete it
    there = [state_id for state_id in documents.of_source(file.source) if state_id.target in of_files]
    absent = tuple(state_id for state_id in there if state_id not in wanted)
    puts = [step for state_id, document in wanted.items() if (step := put(documents, state_id, document))]
    deletes: list[Step] = []
    if prune:
        # Flags before the evaluators that they refer to.
        deletes = [delete(documents, s) for s in sorted(absent, key=lambda s: (s.target is Target.EVALUATOR, s.key))]
    batches = tuple(tuple(batch) for batch in split([*puts, *deletes]))
    try:
        check(snapshot, batches)
    except Refused as refusal:
        raise BadFile(where, _every_fault(file, documents, snapshot) or [str(refusal)]) from refusal
    return ImportPlan(batches, len(wanted) - len(puts), absent)


def split(steps: Sequence[Step]) -> list[list[Step]]:
    """Return the steps in as few proposals as the limits of a record allow, in the same order.

    Raises:
        TooLarge: a definition that fits no proposal.
    """
    batches: list[list[Step]] = []
    room = 0
    for step in steps:
        needed = _OP_OVERHEAD_BYTES + len(step.op.definition or b"")
        if needed > PROPOSAL_BYTES_MAX - _PROPOSAL_OVERHEAD_BYTES:
            limit = PROPOSAL_BYTES_MAX - _PROPOSAL_OVERHEAD_BYTES - _OP_OVERHEAD_BYTES
            raise TooLarge(str(step.op.state_id), limit=limit, got=len(step.op.definition or b""))
        if not batches or needed > room or len(batches[-1]) == OPS_MAX:
            batches.append([])
            room = PROPOSAL_BYTES_MAX - _PROPOSAL_OVERHEAD_BYTES
        batches[-1].append(step)
        room -= needed
    return batches


def _op(documents: Documents, state_id: StateId, action: Action, definition: bytes | None) -> Op:
    return Op(state_id.target, state_id.source, state_id.key, documents.version(state_id), action, definition)


def _canonical(document: bytes) -> str:
    return json.dumps(json.loads(document), sort_keys=True)


def _in_order(file: FlagFile) -> list[tuple[FlagKey, bytes]]:
    """The file's evaluators, each after those it refers to, so that a split leaves no `$ref` open."""
    ordered: dict[FlagKey, bytes] = {}
    by_name = {str(key): key for key in file.evaluators}

    def visit(name: str, above: frozenset[str]) -> None:
        key = by_name.get(name)
        if key is None or key in ordered or name in above:
            return  # dangling and circular references are refused when they are compiled
        for other in sorted(_refs(json.loads(file.evaluators[key]))):
            visit(other, above | {name})
        ordered[key] = file.evaluators[key]

    for name in by_name:
        visit(name, frozenset())
    return list(ordered.items())


def _refs(rule: Json) -> set[str]:
    if isinstance(rule, dict):
        own = rule.get("$ref")
        found = {own} if isinstance(own, str) else set()
        return found.union(*(_refs(value) for value in rule.values()))
    return set[str]().union(*(_refs(value) for value in rule)) if isinstance(rule, list) else set()


def _every_fault(file: FlagFile, documents: Documents, snapshot: Snapshot) -> list[str]:
    """Fold every definition by itself, so that the list is whole; slow, and only for a file that was refused."""
    problems: list[str] = []
    wanted = [(Target.EVALUATOR, key, document) for key, document in _in_order(file)]
    wanted += [(Target.FLAG, key, document) for key, document in file.flags.items()]
    for target, key, document in wanted:
        fault, folded = _fault(documents, snapshot, StateId(target, file.source, key), document)
        if fault is not None:
            # The fold names the source and the path; the file's name stands before the list.
            path = f"{'flags' if target is Target.FLAG else '$evaluators'}.{key}"
            fault = fault.removeprefix(f"{file.source}#")
            problems.append(fault if fault.startswith(path) else f"{path}: {fault}")
        elif target is Target.EVALUATOR:
            snapshot = folded
    return problems


def _fault(documents: Documents, snapshot: Snapshot, state_id: StateId, document: bytes) -> tuple[str | None, Snapshot]:
    try:
        return None, snapshot.fold(snapshot.seq.next(), [_op(documents, state_id, Action.PUT, document)])
    except Refused as refusal:
        return str(refusal), snapshot
