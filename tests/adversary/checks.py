"""Every check of the verifier, found in its source, and the verifier without one of them."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

# Where a reader of the ledger decides; None: in all functions of the module.
PLACES: Final[dict[str, tuple[str, ...] | None]] = {
    "ledger": None,
    "authorization": None,
    "freshness": None,
    "root": ("Root.",),
    "root_chain": None,
    "signing": ("check_public", "verified_keys", "_ed25519_verifies", "verifies"),
    "snapshot": ("_Fold._check", "_Fold.applied"),
    "release_state": None,
    "rollback": None,
    "definition": ("killed",),
    "policy.people": ("check_people", "missing_approvals"),
    "codec": (
        "_Walk.items",
        "RecordCodec.decode",
        "_hash",
        "_time",
        "_envelope_from",
        "decode_envelope",
        "_op_from",
        "_proposal_from",
        "_approvals",
        "_root_from",
    ),
    "changes": None,
    "taint": None,
}
# Functions that only tell people something, or that a publisher uses before it signs.
NOT_CHECKS: Final = frozenset({"Ledger.hash_at", "next_entry", "replay", "RecordCodec.encode"})
# What a check does when it does not hold.
_VERDICTS: Final = frozenset(
    {"Dropped", "Void", "Forked", "Gap", "Held", "Rejected", "Refuted", "Superseded", "Standing", "Repeated"}
)


class Substitute(NamedTuple):
    """A check that is no `if`: what a function says, what it says without the check, and what that is."""

    module: str
    function: str
    says: str
    instead: str
    what: str


SUBSTITUTES: Final = (
    Substitute(
        "signing",
        "verified_keys",
        "and verifies(key.algorithm, key.public, signed[key.key_id], message)",
        "",
        "the signature verifies",
    ),
    Substitute(
        "root",
        "Root.people_signing",
        "return frozenset(key.person for key in verified_keys(envelope, self.keys_of(role)))",
        "return frozenset(str(key.key_id) for key in verified_keys(envelope, self.keys_of(role)))",
        "signatures of a root are counted by person, not by key",
    ),
    Substitute(
        "root",
        "Root.people_signing",
        "self.keys_of(role)",
        "self.record.keys",
        "only keys of the ROOT role sign a root",
    ),
    Substitute(
        "root",
        "Root.signers_in",
        "if key.key_id in allowed",
        "",
        "only keys of the role sign a proposal or an approval",
    ),
    Substitute(
        "root",
        "Root.signed_successor",
        "for judge in (self, following):",
        "for judge in (following,):",
        "people of the root in force sign the next one",
    ),
    Substitute(
        "root",
        "Root.signed_successor",
        "for judge in (self, following):",
        "for judge in (self,):",
        "people of the next root sign it as well",
    ),
    Substitute(
        "authorization",
        "verified_proposal",
        "if key.key_id in root.grant(role).key_ids",
        "",
        "the key has the role that this kind of proposal takes",
    ),
    Substitute(
        "ledger",
        "Ledger.judge",
        "self.root.keys_of(Role.PUBLISHER)",
        "self.root.record.keys",
        "only keys of the PUBLISHER role sign entries",
    ),
    Substitute(
        "ledger",
        "Ledger.take",
        "entry.published_at if _moves_time(link) else self.head.published_at",
        "entry.published_at",
        "only a time that people's expiries bound moves the ledger's",
    ),
    Substitute(
        "ledger",
        "Ledger._take_release",
        "self.min_pin = entry.seq",
        "pass",
        "an emergency forbids pins to what was before it",
    ),
    Substitute(
        "ledger",
        "Ledger._take_release",
        "max(self.min_pin, proposal.min_pin)",
        "proposal.min_pin",
        "min_pin never falls",
    ),
    Substitute(
        "ledger",
        "Ledger._take_release",
        "self._kills.append((entry.published_at, proposal.requester))",
        "pass",
        "emergencies are counted",
    ),
    Substitute(
        "ledger",
        "Ledger._check_rate",
        "person == proposal.requester and ",
        "",
        "each person's emergencies are counted by themselves",
    ),
    Substitute(
        "ledger",
        "Ledger.take",
        "del self.unratified[link.authorized.sha256]",
        "pass",
        "an emergency is ratified once",
    ),
    Substitute(
        "ledger",
        "Ledger.quarantine",
        "self._forgers |= proof.signers",
        "pass",
        "forging keys are remembered",
    ),
    Substitute(
        "ledger",
        "Ledger.ratified",
        ("self._rule_for(authorized, emergency.before, emergency.before.fold(emergency.seq, proposal.ops))"),
        "pass",
        "the policy's people ratify",
    ),
    Substitute(
        "ledger",
        "Ledger.ratified",
        "counted = counted_approvals(self.root, proposal, sha256, approvals, at_ms=at_ms)",
        "counted = ()",
        "people ratify",
    ),
    Substitute(
        "ledger",
        "Ledger._judged",
        "_check_min_pin(proposal, entry.seq)",
        "pass",
        "a proposal forbids no pins to the future",
    ),
    Substitute(
        "ledger",
        "Ledger.judge_next",
        "self._check_frame(entry)",
        "pass",
        "root version, expiry and time of an entry",
    ),
    Substitute(
        "ledger",
        "Ledger._successor",
        "self._check_trusted(following)",
        "pass",
        "the next root is the trusted one, and anchored here",
    ),
    Substitute(
        "ledger",
        "Ledger._judge_root",
        "following.check_unexpired(entry.published_at)",
        "pass",
        "the next root has not expired",
    ),
    Substitute(
        "ledger",
        "Ledger._check_frame",
        "self.root.check_unexpired(entry.published_at)",
        "pass",
        "an expired root allows its successor only",
    ),
    Substitute(
        "ledger",
        "Ledger._take_root",
        "and not self._forgers",
        "",
        "a root cures a quarantine only without the forging keys",
    ),
    Substitute(
        "ledger",
        "Ledger._take_root",
        "self._forgers &= publishers | root.grant(Role.HEARTBEAT).key_ids",
        "pass",
        "a root without the forging keys cures a quarantine",
    ),
    Substitute(
        "ledger",
        "Ledger._take_root",
        "and self.stopped_by.signers.isdisjoint(publishers)",
        "",
        "a root cures what a newer record stopped only without its signer",
    ),
    Substitute(
        "ledger",
        "Ledger.judge",
        "if self.stopped_by is not None and not self.stopped_by.signers:",
        "if False:",
        "nothing is taken after a link that is not understood",
    ),
    Substitute(
        "ledger",
        "Ledger.receive",
        "self.quarantine(outcome)",
        "pass",
        "another history stops what is served",
    ),
    Substitute(
        "ledger",
        "Ledger.receive",
        "self._hold(outcome)",
        "pass",
        "what is not understood stops what is served",
    ),
    Substitute(
        "ledger",
        "Ledger._asks_for_approvals",
        "return True",
        "return False",
        "an emergency waits for its ratification",
    ),
    Substitute(
        "freshness",
        "Heartbeats._newest_outranks",
        "or not self._still_trusted()",
        "",
        "a key that lost its role silences nobody",
    ),
    Substitute(
        "freshness",
        "Heartbeats._newest_outranks",
        "if newest.issued_at > now_ms + CLOCK_TOLERANCE_MS:",
        "if False:",
        "a clock that ran ahead silences nobody",
    ),
    Substitute(
        "freshness",
        "Heartbeats._newest_outranks",
        ("(beat.epoch, beat.issued_at, beat.beat_no) <= (newest.epoch, newest.issued_at, newest.beat_no)"),
        "(beat.issued_at, beat.beat_no) <= (newest.issued_at, newest.beat_no)",
        "a later epoch's heartbeat outranks an earlier one's",
    ),
    Substitute(
        "freshness",
        "Heartbeats._another_history",
        "ledger.hash_at(beat.seq) == beat.head_hash",
        "True",
        "a heartbeat names the reader's own entry",
    ),
    Substitute(
        "definition",
        "killed",
        "if safe is None:",
        "if False:",
        "a killed flag declares its safe variant",
    ),
    Substitute(
        "policy.people",
        "missing_approvals",
        "asks += [(rule, ask) for rule in rules for ask in rule.approvals]",
        "pass",
        "the policy's people approve",
    ),
    Substitute(
        "policy.people",
        "missing_approvals",
        "others = frozenset(approvers) - {requester}",
        "others = frozenset(approvers)",
        "who asked is in no group that approves",
    ),
    Substitute(
        "ledger",
        "_opens_epoch",
        "EpochClaim | RootUpdate",
        "EpochClaim",
        "a root opens an epoch",
    ),
    Substitute(
        "authorization",
        "authorize",
        "check_kind(proposal)",
        "pass",
        "an emergency kills flags only, and nothing else does",
    ),
    Substitute(
        "authorization",
        "authorize",
        "check_understood(proposal)",
        "pass",
        "what only a newer release can do is held",
    ),
    Substitute(
        "authorization",
        "counted_approvals",
        "_check_people(root, proposal, approvals)",
        "pass",
        "as many people approve as the root asks for",
    ),
    Substitute(
        "authorization",
        "counted_approvals",
        "_check_counts(approval, proposal, sha256, at_ms)",
        "pass",
        "each approval counts for this proposal",
    ),
    Substitute(
        "freshness",
        "Heartbeats._verified",
        "root.signers_in((Role.HEARTBEAT,), envelope)",
        "root.record.keys",
        "a heartbeat is signed by a key of that role",
    ),
    Substitute(
        "freshness",
        "Heartbeats.receive",
        "self._ahead is None and beat.issued_at <= now_ms + CLOCK_TOLERANCE_MS",
        "self._ahead is None",
        "a heartbeat from a clock ahead proves nothing yet",
    ),
    Substitute(
        "root",
        "Root._check_keys",
        "for algorithm in Algorithm",
        "for algorithm in (key.algorithm,)",
        "a revoked key stays so under every algorithm",
    ),
    Substitute(
        "changes",
        "_flag_change",
        "touched=tuple(_touched(flag) for flag in namesakes)",
        "touched=()",
        "flags that another hides are judged too",
    ),
    Substitute(
        "changes",
        "_evaluator_change",
        "touched=tuple(_touched(flag) for _, flag in sorted(referring.items()))",
        "touched=()",
        "flags of a shared rule are judged too",
    ),
    Substitute(
        "changes",
        "_flag_change",
        "before=None if old is None else old.definition",
        "before=None",
        "a flag is judged by what it was as well",
    ),
    Substitute(
        "changes",
        "_flag_change",
        "after=None if new is None else new.definition",
        "after=None",
        "a flag is judged by what it becomes as well",
    ),
    Substitute(
        "ledger",
        "_moves_time",
        "link.authorized.proposal.kind is not ProposalKind.DRILL",
        "True",
        "a drill moves no time: one requester alone may date it",
    ),
    Substitute(
        "ledger",
        "Ledger._judged",
        "check_rollback(self.snapshot, proposal.ops)",
        "pass",
        "a rollback closes gates only, and restores what was before",
    ),
    Substitute(
        "ledger",
        "Ledger._judged",
        "at_ms=moment_ms or entry.published_at",
        "at_ms=entry.published_at",
        "a soak counts from the moment on",
    ),
    Substitute(
        "ledger",
        "Ledger._judge_step",
        "at_ms=moment_ms or entry.published_at",
        "at_ms=entry.published_at",
        "a soak counts from the moment of a step on",
    ),
    Substitute(
        "ledger",
        "Ledger._judge_step",
        "entry.published_at + lead_ms if lead_ms else 0",
        "0",
        "a step takes effect when its plan says",
    ),
    Substitute(
        "authorization",
        "check_kind",
        "_check_moment(proposal, where)",
        "pass",
        "a moment is one that can be",
    ),
    Substitute(
        "release_plan",
        "ReleasePlan.at_stage",
        "max(stage.share, self.gate.share)",
        "stage.share",
        "a step shuts nobody out",
    ),
    Substitute(
        "release_plan",
        "ReleasePlan.at_stage",
        "self.gate.walk if index + 1 < len(self.stages) else Walk.OFF",
        "self.gate.walk",
        "after the last stage nothing is walked",
    ),
    Substitute(
        "release_state",
        "following",
        "None if plan.gate.closed else opened_before or seq",
        "None if plan.gate.closed else seq",
        "a gate is open since it was closed last",
    ),
    Substitute(
        "release_state",
        "following",
        "before.since_ms if before is not None and same else at_ms",
        "before.since_ms if before is not None else at_ms",
        "each stage soaks by itself",
    ),
    Substitute(
        "release_state",
        "check_requirements",
        "_check_open(state, after)",
        "pass",
        "a release opens after what it requires",
    ),
    Substitute(
        "release_state",
        "check_requirements",
        "_check_exist(state, after)",
        "pass",
        "what a release requires exists",
    ),
    Substitute(
        "release_state",
        "check_requirements",
        "if state is None or lowered:",
        "if state is None:",
        "a release is not lowered under an open one that requires it",
    ),
    Substitute(
        "release_state",
        "check_requirements",
        "if state is None or lowered:",
        "if lowered:",
        "a release is not deleted under one that requires it",
    ),
    Substitute(
        "snapshot",
        "_Fold._releases_after",
        "self._check_flags(state, in_this_entry)",
        "pass",
        "an open gate is what all flags of the release go through",
    ),
    Substitute(
        "snapshot",
        "_Fold._take_release",
        "self._to_check.add(key)",
        "pass",
        "only an emergency is not asked for requirements and flags",
    ),
    Substitute(
        "snapshot",
        "_Fold._take_release",
        "self._check_name_free(gate)",
        "pass",
        "a new gate takes no other rule's name",
    ),
    Substitute(
        "snapshot",
        "_Fold._take_drill",
        "self._check_name_free(shadow)",
        "pass",
        "a new shadow gate takes no other rule's name",
    ),
    Substitute(
        "rollback",
        "conflicts",
        "if release.opened_at is None:",
        "if True:",
        "a rollback meets what was changed since the gate opened",
    ),
    Substitute(
        "rollback",
        "_conflicts",
        "if gate in flag.evaluators and flag.version >= opened_at and",
        "if False and",
        "flags that the plan does not name, and that go through the gate, count",
    ),
    Substitute(
        "rollback",
        "_conflicts",
        "elif flag.version >= opened_at:",
        "elif False:",
        "flags that were changed since the gate opened count",
    ),
    Substitute(
        "changes",
        "_release_change",
        "touched=() if inert else tuple(_touched(flag) for _, flag in sorted(referring.items()))",
        "touched=()",
        "flags behind a gate are judged too",
    ),
    Substitute(
        "changes",
        "_release_change",
        "new.plan.gate.closed and new.plan.gate.walk is not Walk.ON",
        "new.plan.gate.closed",
        "a walk is judged like the opening that it leads to",
    ),
)


@dataclass(frozen=True)
class Check:
    """One check: `name` says where it stands and what it asks; without it, `source` is what the module says."""

    name: str
    module: str
    function: str
    source: str


def checks() -> dict[str, Check]:
    """Return every check by name."""
    found: dict[str, Check] = {}
    for check in (*_ifs(), *_substitutes()):
        if check.name in found:
            raise ValueError(f"two checks are named {check.name}")
        found[check.name] = check
    return found


@contextmanager
def without(check: Check) -> Iterator[None]:
    """Take a check out of the running verifier while this lasts."""
    module = importlib.import_module(f"flaghoist.{check.module}")
    function = _function(module, check.function)
    code = _code(compile(check.source, inspect.getsourcefile(module) or "?", "exec"), check.function)
    was = function.__code__
    if code is None or code.co_freevars != was.co_freevars:
        raise ValueError(f"{check.name}: no such function without it")
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = was


def _ifs() -> Iterator[Check]:
    for module, functions in PLACES.items():
        text = _text(module)
        tree = ast.parse(text)
        seen: dict[str, int] = {}
        for name, function in _functions(tree):
            if name in NOT_CHECKS or (functions is not None and not name.startswith(functions)):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.If) and _refuses(node):
                    for condition in _conditions(node.test):
                        label = f"{module}.{name}: {_line(condition)}"
                        seen[label] = seen.get(label, 0) + 1
                        if seen[label] > 1:
                            label += f" ({seen[label]})"
                        yield Check(label, module, name, _replaced(text, condition, "False"))


def _substitutes() -> Iterator[Check]:
    for module, name, says, instead, what in SUBSTITUTES:
        text = _text(module)
        function = next(node for found, node in _functions(ast.parse(text)) if found == name)
        lines = text.splitlines(keepends=True)
        start = sum(map(len, lines[: function.lineno - 1]))
        end = sum(map(len, lines[: function.end_lineno]))
        body = text[start:end]
        if says not in body:
            raise ValueError(f"{module}.{name} no longer says {says!r}")
        yield Check(
            f"{module}.{name}: {what}", module, name, text[:start] + body.replace(says, instead, 1) + text[end:]
        )


def _conditions(test: ast.expr) -> list[ast.expr]:
    """What is asked: each side of an `or` by itself."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return [condition for value in test.values for condition in _conditions(value)]
    return [test]


def _refuses(node: ast.If) -> bool:
    last = node.body[-1]
    if isinstance(last, ast.Raise):
        return True
    if not isinstance(last, ast.Return) or last.value is None:
        return False
    names = {n.id for n in ast.walk(last.value) if isinstance(n, ast.Name)}
    return bool(names & (_VERDICTS | {"proof"}))


def _replaced(text: str, node: ast.expr, instead: str) -> str:
    lines = text.splitlines(keepends=True)

    def at(line: int, column: int) -> int:
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    begin, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
    if any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):  # what it names is used later
        instead = f"(({text[begin:end]}), False)[1]"
    return text[:begin] + instead + text[end:]


def _line(node: ast.expr) -> str:
    return ast.unparse(node)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


@cache
def _text(module: str) -> str:
    return inspect.getsource(importlib.import_module(f"flaghoist.{module}"))


def _function(module: ModuleType, name: str) -> FunctionType:
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    match found:
        case classmethod() | staticmethod():
            found = found.__func__
        case property():
            found = found.fget
        case cached_property():
            found = found.func
    return inspect.unwrap(found)


def _code(code: CodeType, name: str) -> CodeType | None:
    if code.co_qualname == name:
        return code
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and (found := _code(constant, name)) is not None:
            return found
    return None
