"""Which flags and releases touch the same things: whoever changes one should look at the other. Pure.

A release and its flags move together, so they are one party; a flag of no release is one by itself. An interaction is
a thing that at least two parties touch.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from flaghoist.document import JsonValue
from flaghoist.release_plan import flag_text, gate_key
from flaghoist.snapshot import SHARED, CompiledFlag, Snapshot
from flaghoist.values import FlagKey, Source
from publisher.releases.attributes import Reads, followed

Flag = tuple[Source, FlagKey]


class Why(StrEnum):
    """What joins the parties of an interaction, the closest tie first.

    GATES: one flag is gated by several releases. REQUIRES: a release requires others. SALT: releases choose the same
    users, by salt and bucket key. EVALUATOR: rules refer to one evaluator. SERVICE: they touch one service. ATTRIBUTE:
    rules read one attribute of the context.
    """

    GATES = "gates"
    REQUIRES = "requires"
    SALT = "salt"
    EVALUATOR = "evaluator"
    SERVICE = "service"
    ATTRIBUTE = "attribute"


@dataclass(frozen=True, slots=True)
class Party:
    """A release, or a flag of no release.

    Attributes:
        release: None: a flag of no release.
        flags: those of the release that touch the thing, sorted; none when its plan alone does. Else the one flag.
    """

    release: FlagKey | None
    flags: tuple[Flag, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(flag_text(*flag) for flag in self.flags)
        if self.release is None:
            return f"flag {names}"
        return f"release {self.release}" + (f" ({names})" if names else "")


@dataclass(frozen=True, slots=True)
class Interaction:
    """A thing and the parties that touch it, releases first, then by name.

    `on` names the thing: a flag, the release that requires, a salt and bucket key, an evaluator, a service, or the path
    of an attribute (attributes.WHOLE_CONTEXT: rules that may read any).
    """

    why: Why
    on: str
    parties: tuple[Party, ...]

    def touches(self, *, release: FlagKey | None, flags: Collection[Flag]) -> bool:
        """Whether a release, or one of these flags, is among the parties."""
        return any(
            (release is not None and party.release == release) or not set(flags).isdisjoint(party.flags)
            for party in self.parties
        )


def interactions(snapshot: Snapshot) -> list[Interaction]:
    """Return all interactions among the flags and releases in force, of all sources, by why and by name."""
    return _Survey(snapshot).found()


class _Survey:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._gates = {gate_key(key): key for key in snapshot.releases}
        self._releases_of: dict[Flag, list[FlagKey]] = defaultdict(list)
        self._known: dict[Source, dict[str, Reads]] = defaultdict(dict)
        # What is touched: by a flag, and by the plan of a release.
        self._by_flag: dict[tuple[Why, str], set[Flag]] = defaultdict(set)
        self._by_plan: dict[tuple[Why, str], set[FlagKey]] = defaultdict(set)

    def found(self) -> list[Interaction]:
        for key, state in self._snapshot.releases.items():
            for place in state.plan.flags:
                self._releases_of[place].append(key)
        for flag in self._snapshot.flags():
            self._take_flag(flag)
        for key in self._snapshot.releases:
            self._take_release(key)
        touched = [self._interaction(*thing) for thing in {**self._by_flag, **self._by_plan}]
        ties = [*self._gated(), *self._required(), *touched]
        order = list(Why)
        return sorted((tie for tie in ties if len(tie.parties) > 1), key=lambda tie: (order.index(tie.why), tie.on))

    def _take_flag(self, flag: CompiledFlag) -> None:
        place = (flag.source, flag.key)
        for name in flag.evaluators:
            release = self._gate(flag.source, name)
            if release is not None and release not in self._releases_of[place]:
                self._releases_of[place].append(release)
        reads = self._reads(flag.definition.targeting, flag.source)
        for why, on in self._things(reads, flag.source, flag.definition.governance.services):
            self._by_flag[why, on].add(place)

    def _take_release(self, key: FlagKey) -> None:
        plan = self._snapshot.releases[key].plan
        reads = self._reads(plan.audience, SHARED)
        bucketed = Reads(reads.attributes | {".".join(p for p in plan.bucket_by.split(".") if p)}, reads.references)
        for why, on in self._things(bucketed, SHARED, plan.services):
            self._by_plan[why, on].add(key)
        self._by_plan[Why.SALT, f"{plan.salt} by {plan.bucket_by}"].add(key)

    def _things(self, reads: Reads, source: Source, services: Collection[str]) -> Iterator[tuple[Why, str]]:
        for service in services:
            yield Why.SERVICE, service
        for attribute in reads.attributes:
            yield Why.ATTRIBUTE, attribute
        for name in reads.references:
            if self._gate(source, name) is None:
                yield Why.EVALUATOR, flag_text(self._home(source, name), FlagKey(name))

    def _reads(self, rule: JsonValue, source: Source) -> Reads:
        """What a rule reads, but not through gates: those are the release's own."""

        def rule_of(name: str) -> JsonValue:
            if self._gate(source, name) is not None:
                return None
            evaluator = self._snapshot.evaluator(self._home(source, name), FlagKey(name))
            return None if evaluator is None else evaluator.rule

        return followed(rule, rule_of, self._known[source])

    def _home(self, source: Source, name: str) -> Source:
        """The source whose evaluator a `$ref` means: its own first, then the shared ones."""
        return source if self._snapshot.evaluator(source, FlagKey(name)) is not None else SHARED

    def _gate(self, source: Source, name: str) -> FlagKey | None:
        """The release whose gate a `$ref` means."""
        release = self._gates.get(FlagKey(name))
        return release if release is not None and self._home(source, name) == SHARED else None

    def _interaction(self, why: Why, on: str) -> Interaction:
        releases: dict[FlagKey, list[Flag]] = {key: [] for key in self._by_plan.get((why, on), ())}
        alone: list[Flag] = []
        for flag in sorted(self._by_flag.get((why, on), ())):
            gating = self._releases_of.get(flag)
            if not gating:
                alone.append(flag)
            for key in gating or ():
                releases.setdefault(key, []).append(flag)
        parties = [Party(key, tuple(flags)) for key, flags in sorted(releases.items())]
        return Interaction(why, on, (*parties, *(Party(None, (flag,)) for flag in alone)))

    def _gated(self) -> Iterator[Interaction]:
        for flag, releases in self._releases_of.items():
            if len(releases) > 1:
                parties = tuple(Party(key, (flag,)) for key in sorted(releases))
                yield Interaction(Why.GATES, flag_text(*flag), parties)

    def _required(self) -> Iterator[Interaction]:
        for key, state in self._snapshot.releases.items():
            if state.plan.requires:
                parties = (Party(key), *(Party(name) for name in sorted(state.plan.requires)))
                yield Interaction(Why.REQUIRES, str(key), parties)
