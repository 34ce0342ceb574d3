"""What makes, changes and deletes a release: its own op, and those that lead its flags through its gate. Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final

from flaghoist.definition import Category, FlagDefinition, FlagState, encode_evaluator, encode_flag, parse_flag
from flaghoist.errors import BadDefinition, Faulty, Refused
from flaghoist.records import Op
from flaghoist.release_plan import ReleasePlan, Walk, encode_release, flag_text, gate_key
from flaghoist.release_state import ReleaseState
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, FlagKey, Source, StateId, Target
from publisher.documents import Documents
from publisher.plan import Step, delete, put, split
from publisher.releases.file import FlagWish, ReleaseWish, plan_of
from publisher.releases.gating import NotWired, refers, unwired, wired, wired_rule, wiring_of
from publisher.releases.wording import flags_text, users

ON: Final = "on"
_SHARED: Final = Source("")


class BadRelease(Faulty):
    """A release that cannot be made so; `problems` names each reason with its place."""

    code = "bad_release"
    hint = "nothing was proposed; correct it and run the command again"


class ReleaseExists(Refused):
    """A release of this name is there already."""

    code = "release_exists"


class UnknownRelease(Refused):
    """No release of this name."""

    code = "unknown_release"
    hint = "list them with `flaghoist release list`"


class ReleaseOpen(Refused):
    """What can only be done to a release while its gate is closed."""

    code = "release_open"


class ReleaseTooLarge(Refused):
    """A release whose making needs more than one proposal, which could be published in part."""

    code = "release_too_large"
    hint = "make the release with fewer flags, then add the others with `flaghoist release edit ID --flag …`"


@dataclass(frozen=True, slots=True)
class FlagChange:
    """What making, editing or deleting a release does to one of its flags.

    Attributes:
        verb: `create`, `wire`, `unwire` or `delete`.
        on: the variant that the release turns it on to; "" when it is taken out.
        notes: what people should know of it.
    """

    state_id: StateId
    verb: str
    on: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseDraft:
    """A change of a release, worked out: `after` is None when it is deleted; `steps` are one proposal."""

    key: FlagKey
    before: ReleasePlan | None
    after: ReleasePlan | None
    steps: tuple[Step, ...]
    flags: tuple[FlagChange, ...] = field(default=())


def on_variant(definition: FlagDefinition, wanted: str | None, where: str) -> str:
    """Return the variant that a release turns a flag on to: the one wanted, else `on`, else the only one that is true.

    Raises:
        BadDefinition: none of this name; or nothing says which.
    """
    variants = definition.variants
    known = ", ".join(variants)
    if wanted is not None:
        if wanted not in variants:
            raise BadDefinition(where, f"want one of the flag's variants ({known}), got {wanted!r}")
        return wanted
    if ON in variants:
        return ON
    true = [name for name, value in variants.items() if value is True]
    if len(true) == 1:
        return true[0]
    raise BadDefinition(where, f"which variant should it turn on? Say `on: V`, one of {known}")


# --- making, editing, deleting ---


def creation(
    wish: ReleaseWish, documents: Documents, find: Callable[[str], StateId], *, where: str, today: date
) -> ReleaseDraft:
    """Return what makes a release: its own op, and those that wire or make its flags; its gate is closed.

    Args:
        find: which flag in force a name means; raises UnknownFlag, with those that look alike.
        where: the file, or what stands for it in errors.
        today: by the operator's clock.

    Raises:
        ReleaseExists: there is one of this name.
        BadRelease: with every reason why it cannot be.
        ReleaseTooLarge: it does not fit into one proposal.
    """
    assert wish.key is not None  # noqa: S101 — who makes a release has named it
    state_id = release_state_id(wish.key)
    if documents.current(state_id) is not None:
        raise ReleaseExists(
            f"release {wish.key}: there already (seq {documents.version(state_id)})",
            hint=f"change it with `flaghoist release edit {wish.key}`, or give the new one another id",
        )
    drafting = _Drafting(wish, documents, find, today)
    return drafting.drafted(None, where)


def edition(
    wish: ReleaseWish,
    state: ReleaseState,
    documents: Documents,
    find: Callable[[str], StateId],
    *,
    where: str,
    today: date,
    grow_services: bool = False,
) -> ReleaseDraft:
    """Return what makes a release as a wish says, which is whole: flags that it does not name are taken out.

    A flag of the release that is wired no more, because it was killed or edited, is wired again.

    Args:
        grow_services: the services of flags that come in are its own too.

    Raises:
        ReleaseOpen: the gate is open, and flags would be added or taken out.
        NotWired: a flag that would be taken out is wired in another way.
        BadRelease, ReleaseTooLarge: as `creation`.
    """
    return _Drafting(wish, documents, find, today, grow_services=grow_services).drafted(state, where)


def deletion(state: ReleaseState, documents: Documents, *, with_flags: bool = False) -> ReleaseDraft:
    """Return what deletes a release and gives its flags their rules back.

    Args:
        with_flags: delete its flags too, once no service asks for them; callers that still do get their own default.

    Raises:
        ReleaseOpen: its gate is open; or, `with_flags`, neither closed nor open for everybody.
        NotWired: a flag refers to the gate in another way; the text names every one.
        ReleaseTooLarge: as `creation`.
    """
    gate = state.plan.gate
    settled = gate.closed or (with_flags and gate.for_everybody)
    if not settled or gate.walk is Walk.ON:
        how = "walks through its stages" if settled else f"is open for {users(gate)}"
        raise ReleaseOpen(
            f"release {state.key} {how}: want it closed before it is deleted",
            hint=f"`flaghoist release revert {state.key}` closes it; a release that is open for everybody, and whose "
            f"flags no service asks for any more, goes with `flaghoist release delete {state.key} --with-flags`",
        )
    referring = _referring(documents, state)
    named = [state_id for state_id in referring if (state_id.source, state_id.key) in state.plan.flags]
    others = [state_id for state_id in referring if state_id not in named]
    if with_flags and not gate.closed and others:
        raise ReleaseOpen(
            f"release {state.key} is open, and other flags refer to its gate: {', '.join(map(str, others))}",
            hint=f"take them out of it first, or close it with `flaghoist release revert {state.key}`",
        )
    changes, steps = _taken_out(state, documents, others if with_flags else referring)
    if with_flags:
        changes += [FlagChange(state_id, "delete") for state_id in named]
        steps += [delete(documents, state_id) for state_id in named]
    steps.append(delete(documents, release_state_id(state.key)))
    return ReleaseDraft(state.key, state.plan, None, _one_proposal(state.key, steps), tuple(changes))


def check_audience(snapshot: Snapshot, key: FlagKey, plan: ReleasePlan) -> None:
    """Refuse an audience whose rule cannot be compiled: readers would find that only once the gate opens for it.

    Args:
        snapshot: with the evaluators that the rule may refer to.

    Raises:
        BadRelease: so it is.
    """
    if plan.audience is None:
        return
    name = StateId(Target.EVALUATOR, _SHARED, FlagKey(f"audience.{key}"))
    op = Op(name.target, name.source, name.key, snapshot.version_of(name), Action.PUT, encode_evaluator(plan.audience))
    try:
        snapshot.fold(snapshot.seq.next(), [op])
    except BadDefinition as refusal:
        said = str(refusal).replace(str(name.key), "audience").removeprefix("$evaluators.")
        raise BadRelease(f"release {key}", [said]) from refusal


def wish_of(key: FlagKey, plan: ReleasePlan) -> ReleaseWish:
    """Return the wish that a release stay as it is."""
    return ReleaseWish(
        key=key,
        title=plan.title,
        owner=plan.owner,
        team=plan.team,
        services=plan.services,
        flags=tuple(FlagWish(flag_text(*flag)) for flag in plan.flags),
        bucket_by=plan.bucket_by,
        salt=plan.salt,
        audience=plan.audience,
        stages=plan.stages,
        requires=plan.requires,
        lead_ms=plan.lead_ms,
        ticket=plan.ticket,
        expires_at=plan.expires_at,
    )


def find_release(releases: Mapping[FlagKey, ReleaseState], text: str) -> ReleaseState:
    """Return the release in force of this id.

    Raises:
        UnknownRelease: there is none; the text names those that look alike.
    """
    from difflib import get_close_matches

    found = next((state for key, state in releases.items() if key == text), None)
    if found is None:
        alike = get_close_matches(text, [str(key) for key in releases], n=3)
        hint = f"; did you mean {', '.join(alike)}?" if alike else ""
        raise UnknownRelease(f"no release {text!r}{hint}")
    return found


def release_state_id(key: FlagKey) -> StateId:
    """Return what a release is filed under."""
    return StateId(Target.RELEASE, _SHARED, key)


class _Drafting:
    """One release being worked out; what is wrong with it is collected."""

    def __init__(
        self,
        wish: ReleaseWish,
        documents: Documents,
        find: Callable[[str], StateId],
        today: date,
        *,
        grow_services: bool = False,
    ) -> None:
        assert wish.key is not None  # noqa: S101 — the callers have looked
        self._wish = wish
        self._key: FlagKey = wish.key
        self._documents = documents
        self._find = find
        self._today = today
        self._grow_services = grow_services
        self._problems: list[str] = []
        self._steps: list[Step] = []
        self._changes: list[FlagChange] = []
        self._found: list[tuple[StateId, bytes]] = []

    def drafted(self, state: ReleaseState | None, where: str) -> ReleaseDraft:
        before = None if state is None else state.plan
        self._check_dates(before)
        mine = set() if before is None else {StateId(Target.FLAG, *flag) for flag in before.flags}
        for wish in self._wishes():
            try:
                self._take(wish, mine)
            except Refused as refusal:
                said = str(refusal)
                self._problems.append(said if said.startswith(wish.where) else f"{wish.where}: {said}")
        self._check_once()
        plan = self._plan(before)
        if self._problems or plan is None:
            raise BadRelease(where, self._problems)
        if state is not None:
            self._take_out(state, plan)
        step = put(self._documents, release_state_id(self._key), encode_release(plan))
        steps = [*([step] if step else []), *self._steps]
        return ReleaseDraft(self._key, before, plan, _one_proposal(self._key, steps), tuple(self._changes))

    def _wishes(self) -> list[FlagWish]:
        """Return the flags wished for, with those that the pattern names."""
        wishes = list(self._wish.flags or ())
        if self._wish.pattern is None:
            if not wishes:
                self._problems.append("flags: want at least one flag, or a pattern that names them, got none")
            return wishes
        if not self._wish.services:
            self._problems.append("pattern: want services, of which each gets a flag, got none")
        for service in self._wish.services or ():
            name = self._wish.pattern.format(service=service, release=self._key)
            wishes.append(FlagWish(name, service=service, create=True, where=f"pattern {self._wish.pattern!r}"))
        return wishes

    def _take(self, wish: FlagWish, mine: set[StateId]) -> None:
        """Note what becomes of one flag.

        Args:
            mine: the flags that the release has already.
        """
        if wish.create:
            state_id = _named(wish)
            current = self._documents.current(state_id)
            if current is None:
                self._make(wish, state_id)
                return
            if state_id not in mine:
                raise BadDefinition(
                    wish.where,
                    f"want the name of a flag to be made, {state_id} exists (seq {self._documents.version(state_id)})",
                )
        state_id = self._find(wish.name)
        current = self._documents.current(state_id)
        assert current is not None  # noqa: S101 — found among the flags in force
        self._wire(wish, state_id, current, mine)

    def _make(self, wish: FlagWish, state_id: StateId) -> None:
        asked_by = wish.service
        services = [asked_by] if asked_by else list(self._wish.services or ())
        governance = {
            "owner": None if self._wish.owner is None else str(self._wish.owner),
            "team": self._wish.team,
            "category": Category.RELEASE.value,
            "expires_at": self._wish.expires_at,
            "ticket": self._wish.ticket,
            "safe_variant": wish.safe_variant or "off",
            "services": services,
        }
        flag: dict[str, object] = {
            "state": FlagState.ENABLED.value,
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": wired_rule(self._key, ON, None),
        }
        if wish.description:
            flag["description"] = wish.description
        document = encode_flag(flag, {name: value for name, value in governance.items() if value})
        self._note(FlagChange(state_id, "create", ON), document)

    def _wire(self, wish: FlagWish, state_id: StateId, current: bytes, mine: set[StateId]) -> None:
        definition = parse_flag(current)
        there = wiring_of(definition.targeting, self._key)
        if state_id in mine and there is not None and (wish.on is None or wish.on == there[0]):
            self._found.append((state_id, current))
            return  # as it is already
        if state_id not in mine and refers(definition, self._key):
            raise BadDefinition(
                wish.where, f'{state_id} refers to {{"$ref": "{gate_key(self._key)}"}} already: it is wired'
            )
        if there is None and refers(definition, self._key):
            # Somebody has written a rule of their own around the gate: it goes through it all the same.
            self._found.append((state_id, current))
            return
        on = on_variant(definition, wish.on, f"{wish.where} ({state_id})")
        document = unwired(current, self._key) if there is not None else current
        document = wired(document, self._key, on)
        if wish.service is not None and wish.service not in definition.governance.services:
            top = json.loads(document)
            governance = top.get("governance", {})
            services = [*definition.governance.services, wish.service]
            document = encode_flag(top["flag"], {**governance, "services": services})
        self._note(FlagChange(state_id, "wire", on, tuple(_notes(definition, on))), document)

    def _note(self, change: FlagChange, document: bytes) -> None:
        self._changes.append(change)
        self._found.append((change.state_id, document))
        step = put(self._documents, change.state_id, document)
        assert step is not None  # noqa: S101 — a rule that was not there before
        self._steps.append(step)

    def _check_once(self) -> None:
        names = [state_id for state_id, _ in self._found]
        for state_id in dict.fromkeys(name for name in names if names.count(name) > 1):
            self._problems.append(f"flags: want each flag once, got {state_id} twice")

    def _check_dates(self, before: ReleasePlan | None) -> None:
        expires = self._wish.expires_at
        if expires and (before is None or before.expires_at != expires) and date.fromisoformat(expires) < self._today:
            self._problems.append(f"expires: want a date that is not over, got {expires} (today is {self._today})")

    def _plan(self, before: ReleasePlan | None) -> ReleasePlan | None:
        services = self._wish.services
        if services is None:
            named = [name for _, document in self._found for name in parse_flag(document).governance.services]
            services = tuple(dict.fromkeys(named))
        elif self._grow_services:
            mine = () if before is None else before.flags
            new = [s for s, _ in self._found if (s.source, s.key) not in mine]
            named = [n for s, document in self._found if s in new for n in parse_flag(document).governance.services]
            services = tuple(dict.fromkeys([*services, *named]))
        flags = [(state_id.source, state_id.key) for state_id, _ in self._found]
        wish = self._wish
        if wish.owner is None:
            self._problems.append("owner: want the person who answers for it, got nothing; give --owner PERSON")
        if self._problems:
            return None  # what it lacks would only be told again
        try:
            if before is None:
                return plan_of(wish, flags, services)
            return plan_of(wish, flags, services, gate=before.gate)
        except BadDefinition as refusal:
            self._problems.append(str(refusal))
            return None

    def _take_out(self, state: ReleaseState, plan: ReleasePlan) -> None:
        wanted = set(plan.flags)
        gone = [StateId(Target.FLAG, *flag) for flag in state.plan.flags if flag not in wanted]
        # The plan was wired when it was made: what is wired again while it is open would turn on for users at once.
        if not state.plan.gate.closed and (gone or self._changes):
            named = flags_text([(s.source, s.key) for s in (*gone, *(c.state_id for c in self._changes))])
            raise ReleaseOpen(
                f"release {state.key} is open for {users(state.plan.gate)}: want it closed before its flags are "
                f"changed: {named}",
                hint=f"`flaghoist release revert {state.key}` first, or make another release of these flags; all but "
                "its flags can be edited while it is open",
            )
        changes, steps = _taken_out(state, self._documents, gone)
        self._changes += changes
        self._steps += steps


def _named(wish: FlagWish) -> StateId:
    source, _, key = wish.name.rpartition("#")
    return StateId(Target.FLAG, Source(source), FlagKey(key))


def _referring(documents: Documents, state: ReleaseState) -> list[StateId]:
    """Return the flags that a release names, and those that refer to its gate all the same."""
    named = [StateId(Target.FLAG, *flag) for flag in state.plan.flags]
    others = [
        state_id
        for state_id in documents.flags()
        if state_id not in named and refers(parse_flag(documents.current(state_id) or b""), state.key)
    ]
    return [state_id for state_id in named if documents.current(state_id) is not None] + others


def _taken_out(
    state: ReleaseState, documents: Documents, gone: Sequence[StateId]
) -> tuple[list[FlagChange], list[Step]]:
    """Return what gives flags their rules back."""
    changes, steps, problems = [], [], []
    for state_id in gone:
        document = documents.current(state_id)
        if document is None:
            continue
        try:
            step = put(documents, state_id, unwired(document, state.key))
        except NotWired as refusal:
            problems.append(f"{state_id}: {refusal}")
            continue
        if step is not None:
            changes.append(FlagChange(state_id, "unwire"))
            steps.append(step)
    if problems:
        raise NotWired(f"release {state.key}: {'; '.join(problems)}", hint="edit these flags' rules first")
    return changes, steps


def _notes(definition: FlagDefinition, on: str) -> list[str]:
    notes = []
    if definition.state is FlagState.DISABLED:
        notes.append("it is DISABLED, and stays so whatever the gate says")
    if definition.default_variant == on and definition.targeting is None:
        notes.append(f"everybody gets {on!r} already: the gate will change nothing")
    return notes


def _one_proposal(key: FlagKey, steps: Sequence[Step]) -> tuple[Step, ...]:
    batches = split(steps)
    if len(batches) > 1:
        raise ReleaseTooLarge(
            f"release {key}: want what makes it in one proposal, so that all of it is published or nothing; its "
            f"{len(steps)} changes need {len(batches)}"
        )
    return tuple(steps)


def with_flags(wish: ReleaseWish, added: Sequence[FlagWish], removed: Sequence[StateId]) -> ReleaseWish:
    """Return a wish with flags added, and others taken out."""
    gone = {flag_text(state_id.source, state_id.key) for state_id in removed}
    kept = [flag for flag in wish.flags or () if flag.name not in gone]
    return replace(wish, flags=(*kept, *added))


# --- what other changes do to releases ---


def releases_of(snapshot: Snapshot, source: Source, key: FlagKey) -> list[FlagKey]:
    """Return the releases that a flag belongs to, by name: those that name it, and those whose gate it refers to."""
    flag = snapshot.flag(source, key)
    referred = () if flag is None else flag.evaluators
    return [
        name
        for name, state in sorted(snapshot.releases.items())
        if (source, key) in state.plan.flags or gate_key(name) in referred
    ]


def cautions(snapshot: Snapshot, ops: Sequence[Op]) -> list[str]:
    """Return what changes of flags do to releases that people should know before they sign."""
    said = []
    deleted = {op.key for op in ops if op.target is Target.RELEASE and op.definition is None}
    for op in ops:
        if op.target is not Target.FLAG or op.action is Action.KILL:
            continue
        after = None if op.definition is None else parse_flag(op.definition)
        for key, state in sorted(snapshot.releases.items()):
            if (op.source, op.key) not in state.plan.flags or key in deleted:
                continue
            if not state.plan.gate.closed:
                said.append(
                    f"release {key} is open since seq {state.opened_at}: a revert of it will then need "
                    f"`--keep {flag_text(op.source, op.key)}`"
                )
            if after is None or not refers(after, key):
                said.append(
                    f"{op.state_id} goes through the gate of release {key} no more: it cannot open further before "
                    f"`flaghoist release edit {key}` wires the flag again, or takes it out"
                )
    return said
