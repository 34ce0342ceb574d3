"""What a kill does, worked out before anybody signs: each flag's safe variant, in words. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flaghoist.authorization import EMERGENCY_FLAGS_MAX
from flaghoist.definition import FlagDefinition, FlagState, parse_flag
from flaghoist.errors import Refused, UnknownFlag
from flaghoist.records import Op
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, Seq, StateId, Target
from publisher.documents import Documents

# The gate of a release is a shared rule of this name; its flags refer to it.
RELEASE_PREFIX: Final = "release."


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


def kills_of(documents: Documents, wanted: Iterable[StateId]) -> tuple[Kill, ...]:
    """Return the kills of these flags in force, each once.

    Raises:
        NoSafeVariant: some declare none; all of them are named.
    """
    found, without = [], []
    for state_id in dict.fromkeys(wanted):
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


def flags_of_release(snapshot: Snapshot, release: str) -> list[StateId]:
    """Return the flags whose rule refers to the gate of a release, sorted.

    Raises:
        UnknownFlag: there are none.
    """
    gate = release if release.startswith(RELEASE_PREFIX) else f"{RELEASE_PREFIX}{release}"
    found = [StateId(Target.FLAG, flag.source, flag.key) for flag in snapshot.flags() if gate in flag.evaluators]
    if not found:
        gates = sorted(
            {name for flag in snapshot.flags() for name in flag.evaluators if name.startswith(RELEASE_PREFIX)}
        )
        known = ", ".join(name.removeprefix(RELEASE_PREFIX) for name in gates) or "none"
        raise UnknownFlag(
            f"release {release!r}: no flag's rule refers to {gate!r}; releases that flags refer to: {known}",
            hint="name the flags themselves; `flaghoist flag list` shows them",
        )
    return sorted(found)


def batches(kills: Sequence[Kill]) -> list[Sequence[Kill]]:
    """Return the kills in as few emergencies as their limit allows."""
    return [kills[at : at + EMERGENCY_FLAGS_MAX] for at in range(0, len(kills), EMERGENCY_FLAGS_MAX)]
