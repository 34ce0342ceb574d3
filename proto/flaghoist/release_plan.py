"""What a release's definition says: its flags, its stages, and whom its gate lets through; and the rule that it makes.

The rule is the shared evaluator `release.ID`, in flagd's own operators, so that every evaluator of flagd's serves it.
Its buckets depend on the release's salt and the user alone, never on a flag, and a larger share only adds users. They
are the same in all three generations of `fractional`, so services that evaluate in process choose the same users.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from flaghoist.document import (
    NAME_CHARS_MAX,
    JsonValue,
    date_in,
    listed,
    object_in,
    optional_name,
    person_in,
    plain,
    read_document,
    refuse,
    shown,
    text_in,
    write_document,
)
from flaghoist.errors import BadDefinition, Malformed
from flaghoist.values import FlagKey, Person, Source

# Thousandths of a percent: one user in a hundred thousand, which a bucket of `fractional` can still tell apart.
SHARE_MAX: Final = 100_000
STAGES_MAX: Final = 50
RELEASE_FLAGS_MAX: Final = 500  # as many as one proposal can change
REQUIRES_MAX: Final = 50
TITLE_CHARS_MAX: Final = 200
SOAK_S_MAX: Final = 366 * 86_400  # more is a slip of the unit
# What a moment set ahead may cost at most: for so long no later change takes effect (design §7).
LEAD_MS_MAX: Final = 5 * 60_000
DRILL_BYTES_MAX: Final = 16 * 1024
# Evaluator names that belong to releases, before their id. A gate's key must still be a key.
GATE_PREFIX: Final = "release."
DRILL_PREFIX: Final = "drill."
ID_CHARS_MAX: Final = 200

NOBODY_RULE: Final[JsonValue] = {"==": [1, 0]}
EVERYBODY_RULE: Final[JsonValue] = {"==": [1, 1]}

# What a share's buckets are made of, for evaluators of every generation of `fractional` (docs/evaluation.md). V3 hashes
# the CBOR of a text, which is a head that says its length, then the text; so all texts are of one length, and V1 and V2
# are given that head as text. 0x78 is CBOR's head of a text of 24 .. 255 bytes; its second byte, the length, is ASCII
# up to 127, and 126 is the last one that can be printed.
BUCKET_CHARS: Final = 126
_TEXT_HEAD: Final = "x" + chr(BUCKET_CHARS)
_SALT_CHARS: Final = 16  # of the salt's SHA-256 in hex: as good as the salt, and of one length
# How much of a bucket key counts, from its end: identifiers differ there, and long ones are rare.
BUCKET_KEY_CHARS: Final = BUCKET_CHARS - _SALT_CHARS - len(":.")
# A text whose three hashes fall into different thirds, in the middle of each: it tells which generation evaluates.
GENERATION_PROBE: Final = "flaghoist-169"


class Walk(StrEnum):
    """Whether the publisher takes a release from stage to stage by itself."""

    OFF = "off"
    ON = "on"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a release: whom it lets through, and for how long at least before the next.

    `share` is in thousandths of a percent of all users (0 .. SHARE_MAX), `soak_s` in seconds.
    """

    name: str
    audience: bool
    share: int
    soak_s: int


@dataclass(frozen=True, slots=True)
class Gate:
    """Whom a release lets through now.

    Attributes:
        audience: everybody whom the plan's audience matches.
        share: of all users, in thousandths of a percent.
        kept: flags that a revert leaves as somebody changed them since, because the one who reverted said so.
    """

    audience: bool = False
    share: int = 0
    walk: Walk = Walk.OFF
    kept: tuple[tuple[Source, FlagKey], ...] = ()

    @property
    def closed(self) -> bool:
        return not self.audience and self.share == 0

    @property
    def for_everybody(self) -> bool:
        return self.share == SHARE_MAX

    def covers(self, other: "Gate | Stage") -> bool:
        """Whether it lets everybody through whom the other one does."""
        return self.share >= other.share and (self.audience or not other.audience or self.for_everybody)


CLOSED: Final = Gate()


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """A release: flags of several services that are ramped, activated, reverted and cleaned up as one unit.

    Attributes:
        flags: what it turns on; each refers to its gate by `$ref`.
        bucket_by: path of the context attribute that decides who is among a share of the users.
        salt: what this release's buckets depend on besides; releases of one salt choose the same users.
        audience: rule that says who is let through first, internal users say; None: nobody.
        stages: each lets more through than the one before.
        requires: releases that must be active for everybody while this one lets anybody through.
        lead_ms: how long after an entry a stage that the publisher takes is in force, so that all pods switch at once.
        expires_at: ISO date on which the flags should be gone.
    """

    title: str
    owner: Person
    team: str | None
    services: tuple[str, ...]
    flags: tuple[tuple[Source, FlagKey], ...]
    bucket_by: str
    salt: str
    audience: JsonValue
    stages: tuple[Stage, ...]
    requires: tuple[FlagKey, ...]
    lead_ms: int
    ticket: str | None
    expires_at: str | None
    gate: Gate

    @property
    def next_stage(self) -> int | None:
        """Index of the first stage that lets more through than the gate does now; None when there is none."""
        return next((index for index, stage in enumerate(self.stages) if not self.gate.covers(stage)), None)

    @property
    def stage(self) -> int | None:
        """Index of the last stage that the gate has reached; None before the first."""
        reached = len(self.stages) if self.next_stage is None else self.next_stage
        return reached - 1 if reached else None

    def at_stage(self, index: int) -> "ReleasePlan":
        """Return the plan with its gate where a stage says; nobody who was let through is shut out.

        After the last stage there is nothing left to walk.
        """
        stage = self.stages[index]
        gate = replace(
            self.gate,
            audience=self.gate.audience or stage.audience,
            share=max(stage.share, self.gate.share),
            walk=self.gate.walk if index + 1 < len(self.stages) else Walk.OFF,
        )
        return replace(self, gate=gate)

    def rule(self) -> JsonValue:
        """Return what its gate means as a rule: true for those who are let through."""
        return gate_rule(self.gate, audience=self.audience, bucket_by=self.bucket_by, salt=self.salt)


def gate_rule(gate: Gate, *, audience: JsonValue, bucket_by: str, salt: str) -> JsonValue:
    """Return the rule that is true for those whom a gate lets through.

    Who has no bucket key is in no share, except that of everybody. A key is text, or a whole number below 10^7. Those
    of ASCII characters have the same bucket in every evaluator of flagd's rules, of whatever generation; others have it
    in every sidecar of one ledger.
    """
    if gate.for_everybody:
        return EVERYBODY_RULE
    if gate.share == 0:
        return audience if gate.audience else NOBODY_RULE
    share: JsonValue = {
        "and": [{"!!": [{"var": bucket_by}]}, {"==": [_bucketed(gate.share, bucket_by, salt), "in"]}],
    }
    return {"or": [audience, share]} if gate.audience else share


def _bucketed(share: int, bucket_by: str, salt: str) -> JsonValue:
    """Return the rule that is "in" for those whose bucket a share reaches, else "out"."""
    # `cat` takes white space away at both ends in flagd and nowhere else: there must be none.
    padded: JsonValue = {"cat": ["." * BUCKET_KEY_CHARS, {"var": bucket_by}, "."]}
    tail: JsonValue = {"substr": [padded, -(BUCKET_KEY_CHARS + 1)]}
    salted = hashlib.sha256(salt.encode()).hexdigest()[:_SALT_CHARS] + ":"
    # V1 has a place of 31 bits: it folds the upper half of the hashes, mirrored, over the lower one. So for the others
    # a share lies at both ends. The sums stay the same whatever the share, and so do the buckets: who is let through by
    # a share is by every larger one.
    folded: list[JsonValue] = [["in", share], ["out", SHARE_MAX - share]]
    ends: list[JsonValue] = [["in", share], ["out", 2 * (SHARE_MAX - share)], ["in", share]]
    generation: JsonValue = {"fractional": [GENERATION_PROBE, ["v2", 1], ["v1", 1], ["v3", 1]]}
    headed: JsonValue = {"cat": [_TEXT_HEAD + salted, tail]}
    return {
        "if": [
            {"==": [generation, "v3"]},
            {"fractional": [{"cat": [salted, tail]}, *ends]},
            {"==": [generation, "v2"]},
            {"fractional": [headed, *ends]},
            {"fractional": [headed, *folded]},
        ]
    }


def gate_key(release: FlagKey) -> FlagKey:
    """Return the name of the evaluator that is a release's gate.

    Raises:
        Malformed: a release's name that is too long.
    """
    if len(release) > ID_CHARS_MAX:
        raise Malformed(f"release: want a name of at most {ID_CHARS_MAX} characters, got {len(release)}")
    return FlagKey(GATE_PREFIX + release)


def drill_key(release: FlagKey) -> FlagKey:
    """Return the name of the evaluator that a drill of a release switches; no flag refers to it unless told to."""
    return FlagKey(DRILL_PREFIX + release)


_PLAN: Final = ("title", "owner", "team", "services", "flags", "bucket_by", "salt", "audience", "stages")
_FIELDS: Final = (*_PLAN, "requires", "lead_ms", "ticket", "expires_at", "gate")
_STAGE: Final = ("name", "audience", "share", "soak_s")
_GATE: Final = ("audience", "share", "walk", "kept")


def parse_release(document: bytes, *, where: str = "release") -> ReleasePlan:
    """Return the release in `{"release": {…}}` (UTF-8 JSON, untrusted).

    Raises:
        BadDefinition: not such a document; it names the field, what was expected and what came. Whether its flags and
            requirements exist, and its audience compiles, the fold says.
    """
    return release_from(read_document(document, where, ("release",)).get("release"), where)


def release_from(value: object, where: str = "release") -> ReleasePlan:
    """Return the release that an object (parsed JSON or YAML) describes.

    Raises:
        BadDefinition: as parse_release.
    """
    raw = _known(plain(value, where), where, _FIELDS)
    owner = person_in(raw.get("owner"), f"{where}.owner")
    if owner is None:
        refuse(f"{where}.owner", "want the person who answers for it, got nothing")
    audience = raw.get("audience")
    if audience is not None and (type(audience) is not dict or not audience):
        refuse(f"{where}.audience", f"want an object with one operator, got {shown(audience)}")
    plan = ReleasePlan(
        title=text_in(raw.get("title"), f"{where}.title", TITLE_CHARS_MAX, least=1),
        owner=owner,
        team=optional_name(raw, "team", where),
        services=tuple(
            text_in(name, f"{where}.services[{i}]", NAME_CHARS_MAX, least=1)
            for i, name in enumerate(_list(raw.get("services"), f"{where}.services", RELEASE_FLAGS_MAX))
        ),
        flags=_flags(raw.get("flags"), f"{where}.flags"),
        bucket_by=text_in(raw.get("bucket_by"), f"{where}.bucket_by", NAME_CHARS_MAX, least=1),
        salt=text_in(raw.get("salt"), f"{where}.salt", NAME_CHARS_MAX, least=1),
        audience=audience,
        stages=_stages(raw.get("stages"), f"{where}.stages"),
        requires=_requires(raw.get("requires"), f"{where}.requires"),
        lead_ms=_whole(raw.get("lead_ms", 0), f"{where}.lead_ms", LEAD_MS_MAX, "milliseconds"),
        ticket=optional_name(raw, "ticket", where),
        expires_at=date_in(raw.get("expires_at"), f"{where}.expires_at"),
        gate=_gate(raw.get("gate"), f"{where}.gate"),
    )
    if not plan.flags:
        refuse(f"{where}.flags", "want at least one flag, got none")
    if audience is None and (plan.gate.audience or any(stage.audience for stage in plan.stages)):
        refuse(f"{where}.audience", "want a rule that says who the audience is, got none")
    if plan.gate.walk is Walk.ON and not plan.stages:
        refuse(f"{where}.stages", "want stages to walk through, got none")
    return plan


def encode_release(plan: ReleasePlan) -> bytes:
    """Return the compact JSON that is signed and that parse_release reads, to the same plan.

    Raises:
        BadDefinition: parse_release would refuse the result.
    """
    document = write_document({"release": plan_fields(plan)}, "release")
    parse_release(document)
    return document


def plan_fields(plan: ReleasePlan) -> dict[str, Any]:
    """Return the fields of a release's document, in the order that people read them; what is not set is left out."""
    gate: dict[str, Any] = {"audience": plan.gate.audience, "share": percent(plan.gate.share), "walk": plan.gate.walk}
    if plan.gate.kept:
        gate["kept"] = [flag_text(*flag) for flag in plan.gate.kept]
    fields: dict[str, Any] = {
        "title": plan.title,
        "owner": str(plan.owner),
        "team": plan.team,
        "services": list(plan.services),
        "flags": [flag_text(*flag) for flag in plan.flags],
        "bucket_by": plan.bucket_by,
        "salt": plan.salt,
        "audience": plan.audience,
        "stages": [
            {"name": s.name, "audience": s.audience, "share": percent(s.share), "soak_s": s.soak_s} for s in plan.stages
        ],
        "requires": [str(name) for name in plan.requires],
        "lead_ms": plan.lead_ms,
        "ticket": plan.ticket,
        "expires_at": plan.expires_at,
        "gate": gate,
    }
    return {name: value for name, value in fields.items() if value is not None}


def percent(share: int) -> int | float:
    """Return thousandths of a percent as percent: 12500 is 12.5."""
    return share // 1000 if share % 1000 == 0 else share / 1000


def flag_text(source: Source, key: FlagKey) -> str:
    """Return how a release's document names a flag: KEY, or SOURCE#KEY."""
    return f"{source}#{key}" if source else str(key)


def parse_drill(document: bytes, *, where: str = "drill") -> Mapping[str, Any]:
    """Return what `{"drill": {"hoisted": bool, "result": {…}?}}` says of a rehearsal.

    Raises:
        BadDefinition: not such a document.
    """
    if len(document) > DRILL_BYTES_MAX:
        refuse(where, f"want at most {DRILL_BYTES_MAX} bytes, got {len(document)}")
    raw = _known(read_document(document, where, ("drill",)).get("drill"), where, ("hoisted", "result"))
    if type(raw.get("hoisted")) is not bool:
        refuse(f"{where}.hoisted", f"want true or false, got {shown(raw.get('hoisted'))}")
    if raw.get("result") is not None:
        object_in(raw["result"], f"{where}.result")
    return raw


def encode_drill(*, hoisted: bool, result: Mapping[str, object] | None = None) -> bytes:
    """Return the compact JSON that is signed and that parse_drill reads.

    Raises:
        BadDefinition: parse_drill would refuse the result.
    """
    fields: dict[str, Any] = {"hoisted": hoisted} | ({} if result is None else {"result": plain(result, "drill")})
    document = write_document({"drill": fields}, "drill")
    parse_drill(document)
    return document


def _known(value: object, where: str, allowed: Sequence[str]) -> dict[str, Any]:
    raw = object_in(value, where)
    for key in raw:
        if key not in allowed:
            refuse(where, f"want only {listed(allowed)}, got {key!r}")
    return raw


def _list(value: object, where: str, most: int) -> list[Any]:
    if value is None:
        return []
    if type(value) is not list:
        refuse(where, f"want a list, got {shown(value)}")
    if len(value) > most:
        refuse(where, f"want at most {most}, got {len(value)}")
    return value


def _whole(value: object, where: str, most: int, unit: str) -> int:
    if type(value) is not int or not 0 <= value <= most:
        refuse(where, f"want whole {unit}, 0 .. {most}, got {shown(value)}")
    return value


def _flag(value: object, where: str) -> tuple[Source, FlagKey]:
    source, _, key = text_in(value, where, 2 * NAME_CHARS_MAX, least=1).rpartition("#")
    try:
        return Source(source), FlagKey(key)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error


def _flags(value: object, where: str) -> tuple[tuple[Source, FlagKey], ...]:
    flags = [_flag(each, f"{where}[{i}]") for i, each in enumerate(_list(value, where, RELEASE_FLAGS_MAX))]
    if len(set(flags)) != len(flags):
        refuse(where, "want each flag once, got one twice")
    return tuple(flags)


def _requires(value: object, where: str) -> tuple[FlagKey, ...]:
    names = []
    for index, name in enumerate(_list(value, where, REQUIRES_MAX)):
        try:
            names.append(FlagKey(name))
        except Malformed as error:
            raise BadDefinition(f"{where}[{index}]", str(error)) from error
    if len(set(names)) != len(names):
        refuse(where, "want each release once, got one twice")
    return tuple(names)


def share_in(value: object, where: str) -> int:
    """Return percent (0 .. 100, at most three decimals) as thousandths of a percent.

    Raises:
        BadDefinition: another value.
    """
    if type(value) not in (int, float) or not 0 <= value <= 100:  # type: ignore[operator]
        refuse(where, f"want percent, 0 .. 100, got {shown(value)}")
    share = round(value * 1000)  # type: ignore[operator]
    if abs(value * 1000 - share) > 1e-6:  # type: ignore[operator]
        refuse(where, f"want at most three decimals of a percent, got {shown(value)}")
    return share


def _flagged(raw: Mapping[str, Any], name: str, where: str) -> bool:
    value = raw.get(name, False)
    if type(value) is not bool:
        refuse(f"{where}.{name}", f"want true or false, got {shown(value)}")
    return value


def _stages(value: object, where: str) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for index, each in enumerate(_list(value, where, STAGES_MAX)):
        place = f"{where}[{index}]"
        raw = _known(each, place, _STAGE)
        stage = Stage(
            name=text_in(raw.get("name"), f"{place}.name", NAME_CHARS_MAX, least=1),
            audience=_flagged(raw, "audience", place),
            share=share_in(raw.get("share", 0), f"{place}.share"),
            soak_s=_whole(raw.get("soak_s", 0), f"{place}.soak_s", SOAK_S_MAX, "seconds"),
        )
        before = Gate(stages[-1].audience, stages[-1].share) if stages else CLOSED
        here = Gate(stage.audience, stage.share)
        if not here.covers(before) or before.covers(here):
            refuse(place, f"want a stage that lets more through than the one before, got {_openness(here)}")
        if any(stage.name == other.name for other in stages):
            refuse(f"{place}.name", f"want names that differ, got {stage.name!r} twice")
        stages.append(stage)
    return tuple(stages)


def _openness(gate: Gate) -> str:
    return f"{'the audience and ' if gate.audience else ''}{percent(gate.share)} %"


def _gate(value: object, where: str) -> Gate:
    raw = _known(value, where, _GATE)
    walk = raw.get("walk", "off")
    if walk not in list(Walk):
        refuse(f"{where}.walk", f"want one of {', '.join(Walk)}, got {shown(walk)}")
    return Gate(
        audience=_flagged(raw, "audience", where),
        share=share_in(raw.get("share", 0), f"{where}.share"),
        walk=Walk(walk),
        kept=_flags(raw.get("kept"), f"{where}.kept"),
    )
