"""What a kill does, worked out before anybody signs: a flag's safe variant, a release's closed gate, in words. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flaghoist.authorization import EMERGENCY_FLAGS_MAX
from flaghoist.definition import FlagDefinition, FlagState, parse_flag
from flaghoist.errors import Refused, UnknownFlag
from flaghoist.records import Op
from flaghoist.release_plan import GATE_PREFIX, Walk, flag_text, gate_key, percent
from flaghoist.release_state import ReleaseState, dependents
from flaghoist.rollback import Conflict, conflicts
from flaghoist.snapshot import SHARED, Snapshot
from flaghoist.values import Action, FlagKey, Seq, StateId, Target
from publisher.documents import Documents
from publisher.releases.wording import users


class NoSafeVariant(Refused):
    """A flag declares nothing that an emergency could turn it to."""

    code = "no_safe_variant"
    hint = (
        "kill the others, and change these the ordinary way: `flaghoist propose set FLAG --state disabled`, which "
        "needs approvals; then declare a safe_variant for the next time: `flaghoist propose edit FLAG`"
    )


@dataclass(frozen=True, slots=True)
class Kill:
    """One flag, as it is and as it would be for everybody."""

    state_id: StateId
    version: Seq
    now: FlagDefinition
    safe: str

    @property
    def op(self) -> Op:
        return Op(self.state_id.target, self.state_id.source, self.state_id.key, self.version, Action.KILL, None)

    @property
    def safe_already(self) -> bool:
        """Whether everybody gets the safe variant as it is."""
        now = self.now
        return now.state is FlagState.ENABLED and now.default_variant == self.safe and now.targeting is None

    def in_words(self) -> list[str]:
        """Return what changes for whom, as lines for people."""
        now = self.now
        if now.state is FlagState.DISABLED:
            was = "disabled, each service uses its own default"
        else:
            rule = ", a rule decides for some" if now.targeting is not None else " for everybody"
            was = f"{now.default_variant or 'no variant'} by default{rule}"
        value = json.dumps(now.variants[self.safe], ensure_ascii=False)
        governance = now.governance
        served = (
            f"services {', '.join(governance.services)}" if governance.services else "every service that asks for it"
        )
        owner = f"; owner {governance.owner}" if governance.owner else ""
        team = f"; team {governance.team}" if governance.team else ""
        unchanged = "; it serves that already" if self.safe_already else ""
        return [
            f"{self.state_id}: now {was}",
            f"  → {self.safe} ({value}) for everybody, whatever the context{unchanged}",
            f"  concerns {served}{owner}{team}",
        ]

    def fields(self) -> dict[str, Any]:
        """Return the same for --json."""
        return {
            "target": self.state_id.target,
            "key": self.state_id.key,
            "source": self.state_id.source,
            "state": self.now.state,
            "default_variant": self.now.default_variant,
            "has_rule": self.now.targeting is not None,
            "safe_variant": self.safe,
            "safe_value": self.now.variants[self.safe],
            "services": list(self.now.governance.services),
        }


@dataclass(frozen=True, slots=True)
class GateKill:
    """One release, whose gate closes for everybody.

    Attributes:
        flags: those that go through its gate, as people write them.
        changed: flags that somebody has changed since the gate opened: closing it does not give them back.
        open_above: releases that require it and stay open.
    """

    now: ReleaseState
    flags: tuple[str, ...]
    changed: tuple[Conflict, ...]
    open_above: tuple[FlagKey, ...]

    @property
    def state_id(self) -> StateId:
        return StateId(Target.RELEASE, SHARED, self.now.key)

    @property
    def version(self) -> Seq:
        return self.now.version

    @property
    def op(self) -> Op:
        return Op(Target.RELEASE, SHARED, self.now.key, self.version, Action.KILL, None)

    @property
    def safe_already(self) -> bool:
        """Whether nobody is let through as it is, nor would be by its walk."""
        return self.now.plan.gate.closed and self.now.plan.gate.walk is not Walk.ON

    def in_words(self) -> list[str]:
        """Return what changes for whom, as lines for people."""
        plan = self.now.plan
        walks = ", walked through its stages" if plan.gate.walk is Walk.ON else ""
        unchanged = "; it is closed already" if self.safe_already else ""
        served = f"services {', '.join(plan.services)}" if plan.services else "every service that asks for its flags"
        team = f"; team {plan.team}" if plan.team else ""
        lines = [
            f"{self.state_id}: now open for {users(plan.gate)}{walks}",
            f"  → closed: its {len(self.flags)} flags answer as they did before it opened{unchanged}",
            f"  concerns {served}; owner {plan.owner}{team}",
        ]
        lines += [f"  not given back: {conflict}" for conflict in self.changed]
        if self.open_above:
            lines.append(f"  stays open although it requires this: {', '.join(self.open_above)}")
        return lines

    def fields(self) -> dict[str, Any]:
        """Return the same for --json."""
        gate = self.now.plan.gate
        return {
            "target": self.state_id.target,
            "key": self.now.key,
            "source": "",
            "audience": gate.audience,
            "share_percent": percent(gate.share),
            "walk": gate.walk,
            "flags": list(self.flags),
            "changed_since": [flag_text(conflict.source, conflict.key) for conflict in self.changed],
            "open_above": list(self.open_above),
            "services": list(self.now.plan.services),
        }


AnyKill: TypeAlias = Kill | GateKill


def kills_of(documents: Documents, snapshot: Snapshot, wanted: Iterable[StateId]) -> tuple[AnyKill, ...]:
    """Return the kills of these flags and releases in force, each once.

    Args:
        documents: of the same ledger, read as far as `snapshot`.

    Raises:
        NoSafeVariant: some flags declare none; all of them are named.
        UnknownFlag: one is not in force.
    """
    found: list[AnyKill] = []
    without = []
    for state_id in dict.fromkeys(wanted):
        if state_id.target is Target.RELEASE:
            found.append(_gate_kill(snapshot, state_id.key))
            continue
        document = documents.current(state_id)
        if document is None:
            raise UnknownFlag(f"no flag {state_id}")
        definition = parse_flag(document)
        safe = definition.governance.safe_variant
        if safe is None:
            without.append(str(state_id))
        else:
            found.append(Kill(state_id, documents.version(state_id), definition, safe))
    if without:
        raise NoSafeVariant(f"{', '.join(without)}: want flags that declare a safe_variant, got none")
    return tuple(found)


def _gate_kill(snapshot: Snapshot, key: FlagKey) -> GateKill:
    state = snapshot.releases.get(key)
    if state is None:
        raise UnknownFlag(f"no release {key}", hint="list the releases with `flaghoist release list`")
    flags = sorted(flag_text(flag.source, flag.key) for flag in snapshot.referring(SHARED, gate_key(key)))
    above = (name for name in dependents(key, snapshot.releases) if not snapshot.releases[name].plan.gate.closed)
    return GateKill(state, tuple(flags), tuple(conflicts(snapshot, state)), tuple(above))


def of_release(snapshot: Snapshot, release: str) -> list[StateId]:
    """Return what a kill of a release kills: its gate; where there is only a shared rule of that name, its flags.

    Raises:
        UnknownFlag: there is neither.
    """
    name = release.removeprefix(GATE_PREFIX)
    if found := next((key for key in snapshot.releases if key in (release, name)), None):
        return [StateId(Target.RELEASE, SHARED, found)]
    return flags_of_release(snapshot, release)


def flags_of_release(snapshot: Snapshot, release: str) -> list[StateId]:
    """Return the flags whose rule refers to the gate of a release, sorted.

    Raises:
        UnknownFlag: there are none.
    """
    gate = release if release.startswith(GATE_PREFIX) else f"{GATE_PREFIX}{release}"
    found = [StateId(Target.FLAG, flag.source, flag.key) for flag in snapshot.flags() if gate in flag.evaluators]
    if not found:
        gates = sorted({name for flag in snapshot.flags() for name in flag.evaluators if name.startswith(GATE_PREFIX)})
        known = ", ".join(name.removeprefix(GATE_PREFIX) for name in gates) or "none"
        raise UnknownFlag(
            f"release {release!r}: no flag's rule refers to {gate!r}; releases that flags refer to: {known}",
            hint="name the flags themselves; `flaghoist flag list` shows them",
        )
    return sorted(found)


def batches(kills: Sequence[AnyKill]) -> list[Sequence[AnyKill]]:
    """Return the kills in as few emergencies as their limit allows."""
    return [kills[at : at + EMERGENCY_FLAGS_MAX] for at in range(0, len(kills), EMERGENCY_FLAGS_MAX)]
