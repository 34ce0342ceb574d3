"""release.yaml: what a release should be, as people write it; read as a whole, and refused with every fault it has.

Pure: bytes in, wishes out. Which of them the ledger can grant, wiring.py says. The fields: docs/releases.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from string import Formatter
from typing import Any, Final, NoReturn

from flaghoist.document import NAME_CHARS_MAX, JsonValue, date_in, listed, shown, text_in
from flaghoist.errors import BadDefinition, Malformed
from flaghoist.release_plan import (
    CLOSED,
    ID_CHARS_MAX,
    LEAD_MS_MAX,
    RELEASE_FLAGS_MAX,
    REQUIRES_MAX,
    SHARE_MAX,
    SOAK_S_MAX,
    STAGES_MAX,
    TITLE_CHARS_MAX,
    Gate,
    ReleasePlan,
    Stage,
    percent,
    plan_fields,
    release_from,
    share_in,
)
from flaghoist.values import FlagKey, Person, Source
from publisher.flagfile import BadFile, Json, Syntax, parse_document

# A plan is at most 256 KiB when it is signed; comments and indentation come on top.
FILE_BYTES_MAX: Final = 1024 * 1024
BUCKET_BY: Final = "targetingKey"

_SPAN: Final = re.compile(r"(?:[0-9]{1,7}[wdhms])+\Z")
_SPAN_PART: Final = re.compile(r"([0-9]+)([wdhms])")
_UNITS_S: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LEAD: Final = re.compile(r"([0-9]{1,7})(ms|s|m)\Z")
_LEAD_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000}
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%\Z")
# [NAME=]WHO[:SOAK], where WHO is audience, a share, or audience+SHARE.
_STAGE: Final = re.compile(r"(?:(?P<name>[^=:]+)=)?(?P<who>[^=:]+)(?::(?P<soak>[^=:]+))?\Z")


@dataclass(frozen=True, slots=True)
class FlagWish:
    """A flag that a release should turn on.

    Attributes:
        name: KEY or SOURCE#KEY of a flag that exists, or of one to make when `create`.
        on: the variant that it turns on; None: the obvious one.
        service: a service that asks for it.
        safe_variant: of a flag to make: what a kill turns it to.
        where: its place in the file, for errors.
    """

    name: str
    on: str | None = None
    service: str | None = None
    create: bool = False
    description: str | None = None
    safe_variant: str | None = None
    where: str = "flags"


@dataclass(frozen=True, slots=True)
class ReleaseWish:
    """What a release should be; None is what was not said. Fields as in ReleasePlan.

    Attributes:
        key: the release's id.
        pattern: names one boolean flag a service, made with the release: `{service}.{release}`.
    """

    key: FlagKey | None = None
    title: str | None = None
    owner: Person | None = None
    team: str | None = None
    services: tuple[str, ...] | None = None
    flags: tuple[FlagWish, ...] | None = None
    pattern: str | None = None
    bucket_by: str | None = None
    salt: str | None = None
    audience: JsonValue = None
    stages: tuple[Stage, ...] | None = None
    requires: tuple[FlagKey, ...] | None = None
    lead_ms: int | None = None
    ticket: str | None = None
    expires_at: str | None = None

    def over(self, other: "ReleaseWish") -> "ReleaseWish":
        """Return both as one; what this one says wins."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(other, **said)


NO_WISH: Final = ReleaseWish()

FIELDS: Final = (
    *("release", "title", "owner", "team", "services", "flags", "pattern", "bucket_by", "salt", "audience"),
    *("stages", "requires", "lead", "ticket", "expires"),
)
_FLAG_FIELDS: Final = ("key", "on", "service", "create", "description", "safe_variant")
_STAGE_FIELDS: Final = ("name", "audience", "share", "soak")


def parse_release_file(data: bytes, *, where: str, syntax: Syntax) -> ReleaseWish:
    """Return what a release file wishes for (YAML 1.2 or JSON, untrusted).

    Raises:
        BadFile: with every fault, each with its line or path.
    """
    if len(data) > FILE_BYTES_MAX:
        raise BadFile(where, [f"want at most {FILE_BYTES_MAX} bytes, got {len(data)}"])
    document = parse_document(data, where=where, syntax=syntax, dates=True)
    if not isinstance(document, dict):
        raise BadFile(where, [f"want an object with {listed(FIELDS)}, got {shown(document)}"])
    reading = _Reading()
    wish = reading.release(document)
    if reading.problems:
        raise BadFile(where, reading.problems)
    return wish


def stages_in(texts: Sequence[str], where: str) -> tuple[Stage, ...]:
    """Return the stages that short texts describe: `1%:1h`, `audience:1h`, `half=50%:2d`, `audience+1%`.

    Raises:
        BadFile: with every fault.
    """
    reading = _Reading()
    stages = reading.stages(list(texts), where)
    if reading.problems:
        raise BadFile(where, reading.problems)
    return stages


def lead_in(value: object, where: str) -> int:
    """Return how long ahead a moment is set, in milliseconds: 0 .. LEAD_MS_MAX, from `2s`, `500ms`, `1m` or 0.

    Raises:
        BadDefinition: another value.
    """
    if value == 0 and type(value) is int:
        return 0
    match = _LEAD.match(value) if isinstance(value, str) else None
    lead_ms = int(match[1]) * _LEAD_UNITS_MS[match[2]] if match else LEAD_MS_MAX + 1
    if lead_ms > LEAD_MS_MAX:
        raise BadDefinition(where, f"want a span such as 2s or 500ms, at most 5m, got {shown(value)}")
    return lead_ms


def pattern_in(text: object, where: str) -> str:
    """Return a pattern of flag names, which has `{service}` in it, and may have `{release}`.

    Raises:
        BadDefinition: another text.
    """
    pattern = text_in(text, where, NAME_CHARS_MAX, least=1)
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise BadDefinition(where, f"want a name with {{service}} in it, got {pattern!r}: {error}") from error
    names = [name for _, name, _, _ in parts if name is not None]
    if "service" not in names or set(names) - {"service", "release"} or any(spec or how for _, _, spec, how in parts):
        raise BadDefinition(where, f"want a name with {{service}} in it, and {{release}} if you like, got {pattern!r}")
    return pattern


def release_id(value: object, where: str) -> FlagKey:
    """Return a release's id.

    Raises:
        BadDefinition: odd characters, or too long.
    """
    try:
        key = FlagKey(value)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error
    if len(key) > ID_CHARS_MAX:
        raise BadDefinition(where, f"want at most {ID_CHARS_MAX} characters, got {len(key)}")
    return key


def plan_of(
    wish: ReleaseWish, flags: Sequence[tuple[Source, FlagKey]], services: Sequence[str], *, gate: Gate = CLOSED
) -> ReleasePlan:
    """Return the plan that a wish makes, with what it does not say at its default.

    Args:
        flags: those that it wishes for, found or to be made.
        services: those that it names, or those of its flags.

    Raises:
        BadDefinition: something is missing, or does not go together.
    """
    assert wish.key is not None  # noqa: S101 — who asks for a release has named it
    if wish.owner is None:
        raise BadDefinition("owner", "want the person who answers for it, got nothing", hint="give --owner PERSON")
    plan = ReleasePlan(
        title=wish.title or str(wish.key),
        owner=wish.owner,
        team=wish.team or None,
        services=tuple(services),
        flags=tuple(flags),
        bucket_by=wish.bucket_by or BUCKET_BY,
        salt=wish.salt or str(wish.key),
        audience=wish.audience or None,
        stages=wish.stages or (),
        requires=wish.requires or (),
        lead_ms=wish.lead_ms or 0,
        ticket=wish.ticket or None,
        expires_at=wish.expires_at or None,
        gate=gate,
    )
    return release_from(plan_fields(plan), f"release {wish.key}")


def file_fields(key: FlagKey, plan: ReleasePlan) -> dict[str, Any]:
    """Return the fields of a release file that says what a release is now; its gate is no part of it."""
    said = plan_fields(plan)
    stages = []
    for stage in plan.stages:
        each: dict[str, object] = {"name": stage.name, "audience": stage.audience}
        if stage.share:
            each["share"] = f"{percent(stage.share)}%"
        if stage.soak_s:
            each["soak"] = _span(stage.soak_s)
        stages.append(each)
    shown_fields = {
        "release": str(key),
        **{name: said.get(name) for name in FIELDS if name in said},
        "stages": stages,
        "lead": _lead(plan.lead_ms) if plan.lead_ms else None,
        "expires": plan.expires_at,
    }
    return {name: shown_fields[name] for name in FIELDS if shown_fields.get(name)}


def _lead(lead_ms: int) -> str:
    return f"{lead_ms}ms" if lead_ms % 1000 else f"{lead_ms // 1000}s"


def _span(seconds: int) -> str:
    parts = []
    for unit, size in _UNITS_S.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


class _Reading:
    """Reads one document; what is wrong with it stands in `problems`, each with its path."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def release(self, document: Mapping[str, Json]) -> ReleaseWish:
        self._known(document, "", FIELDS)
        readers: dict[str, tuple[str, Callable[[Any, str], object]]] = {
            "release": ("key", release_id),
            "title": ("title", lambda value, where: text_in(value, where, TITLE_CHARS_MAX, least=1)),
            "owner": ("owner", _person),
            **{name: (name, _name) for name in ("team", "bucket_by", "salt", "ticket")},
            "services": ("services", self._names),
            "flags": ("flags", self._flags),
            "pattern": ("pattern", pattern_in),
            "audience": ("audience", audience_in),
            "stages": ("stages", self.stages),
            "requires": ("requires", self._requires),
            "lead": ("lead_ms", lead_in),
            "expires": ("expires_at", date_in),
        }
        said: dict[str, Any] = {}
        for name, (attribute, read) in readers.items():
            if document.get(name) is None:
                continue
            try:
                said[attribute] = read(document[name], name)
            except BadDefinition as refusal:
                self.problems.append(str(refusal))
        return ReleaseWish(**said)

    def stages(self, value: object, where: str) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        for index, each in enumerate(self._list(value, where, STAGES_MAX)):
            place = f"{where}[{index}]"
            try:
                stage = self._stage(each, place, stages[-1].audience if stages else False)
            except BadDefinition as refusal:
                self.problems.append(str(refusal))
                continue
            before = Gate(stages[-1].audience, stages[-1].share) if stages else CLOSED
            if before.covers(stage):
                self.problems.append(f"{place}: want a stage that lets more through than the one before")
            stages.append(stage)
        return tuple(stages)

    def _stage(self, value: object, where: str, audience: bool) -> Stage:
        raw = self._short_stage(value, where) if isinstance(value, str) else value
        if not isinstance(raw, dict):
            _refuse(where, f"want an object, or a text such as '1%:1h', got {shown(value)}")
        self._known(raw, where, _STAGE_FIELDS)
        share = _share(raw.get("share", 0), f"{where}.share")
        # Whom a stage has let through, the next does not shut out: it need not be said again.
        with_audience = _true_or_false(raw.get("audience", audience), f"{where}.audience")
        if audience and not with_audience and share != SHARE_MAX:
            _refuse(f"{where}.audience", "want the audience let through as in the stage before, got false")
        name = raw.get("name")
        if name is None:
            name = f"{percent(share)}%" if share else "audience"
        soak = raw.get("soak", 0)
        return Stage(
            name=text_in(name, f"{where}.name", NAME_CHARS_MAX, least=1),
            audience=with_audience,
            share=share,
            soak_s=span_s(soak, f"{where}.soak"),
        )

    @staticmethod
    def _short_stage(text: str, where: str) -> dict[str, object]:
        match = _STAGE.match(text.strip())
        if match is None:
            _refuse(where, f"want [NAME=]SHARE[:SOAK], such as 1%:1h or internal=audience:1h, got {text!r}")
        said: dict[str, object] = {}
        who = match["who"].strip()
        if who == "audience" or who.startswith("audience+"):
            said["audience"] = True
            who = who.removeprefix("audience").removeprefix("+")
        if who:
            said["share"] = who
        if match["name"]:
            said["name"] = match["name"].strip()
        if match["soak"]:
            said["soak"] = match["soak"].strip()
        return said

    def _flags(self, value: object, where: str) -> tuple[FlagWish, ...]:
        found: list[FlagWish] = []
        for index, each in enumerate(self._list(value, where, RELEASE_FLAGS_MAX)):
            try:
                wish = self._flag(each, f"{where}[{index}]")
            except BadDefinition as refusal:
                self.problems.append(str(refusal))
                continue
            if any(wish.name == other.name for other in found):
                self.problems.append(f"{where}[{index}]: want each flag once, got {wish.name} twice")
            found.append(wish)
        return tuple(found)

    def _flag(self, value: object, where: str) -> FlagWish:
        if isinstance(value, str):
            return FlagWish(flag_name(value, where), where=where)
        if not isinstance(value, dict):
            _refuse(where, f"want a flag's key, or an object with one, got {shown(value)}")
        self._known(value, where, _FLAG_FIELDS)
        create = _true_or_false(value.get("create", False), f"{where}.create")
        texts = {}
        for name in ("on", "service", "description", "safe_variant"):
            if value.get(name) is not None:
                texts[name] = text_in(value[name], f"{where}.{name}", NAME_CHARS_MAX, least=1)
        if not create and (unfit := [name for name in ("description", "safe_variant") if name in texts]):
            _refuse(f"{where}.{unfit[0]}", "want it only of a flag that is made with the release (create: true)")
        if create and texts.get("on") not in (None, "on"):
            _refuse(f"{where}.on", f"want a made flag's variants, on and off, turned on by 'on', got {texts['on']!r}")
        return FlagWish(flag_name(value.get("key"), f"{where}.key"), create=create, where=where, **texts)

    def _requires(self, value: object, where: str) -> tuple[FlagKey, ...]:
        names = self._list(value, where, REQUIRES_MAX)
        return tuple(release_id(name, f"{where}[{index}]") for index, name in enumerate(names))

    def _names(self, value: object, where: str) -> tuple[str, ...]:
        names = self._list(value, where, RELEASE_FLAGS_MAX)
        said = [text_in(name, f"{where}[{i}]", NAME_CHARS_MAX, least=1) for i, name in enumerate(names)]
        if len(set(said)) != len(said):
            _refuse(where, "want each name once, got one twice")
        return tuple(said)

    def _known(self, value: Mapping[str, object], where: str, allowed: Sequence[str]) -> None:
        for name in value:
            if name not in allowed:
                from difflib import get_close_matches

                alike = get_close_matches(name, allowed, n=1)
                hint = f"; did you mean {alike[0]!r}?" if alike else f", want only {listed(allowed)}"
                self.problems.append(f"{where}{'.' if where else ''}{name}: no such field{hint}")

    @staticmethod
    def _list(value: object, where: str, most: int) -> list[Any]:
        if not isinstance(value, list):
            _refuse(where, f"want a list, got {shown(value)}")
        if len(value) > most:
            _refuse(where, f"want at most {most}, got {len(value)}")
        return value


def flag_name(value: object, where: str) -> str:
    """Return KEY or SOURCE#KEY.

    Raises:
        BadDefinition: another value.
    """
    text = text_in(value, where, 2 * NAME_CHARS_MAX, least=1)
    source, _, key = text.rpartition("#")
    try:
        Source(source)
        FlagKey(key)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error
    return text


def audience_in(value: object, where: str) -> JsonValue:
    """Return the rule that says who an audience is; its operators are checked when it is compiled.

    Raises:
        BadDefinition: no rule.
    """
    if not isinstance(value, dict) or len(value) != 1:
        raise BadDefinition(
            where,
            f"want a rule, an object with one operator, got {shown(value)}",
            hint='{"ends_with": [{"var": "email"}, "@example.org"]} or {"$ref": "internal"}, say',
        )
    return value


def span_s(value: object, where: str) -> int:
    """Return a span in seconds, 0 .. SOAK_S_MAX: from `90s`, `1h`, `1h30m`, `2d`, or 0.

    Raises:
        BadDefinition: another value.
    """
    if value == 0 and type(value) is int:
        return 0
    if isinstance(value, str) and _SPAN.match(value):
        seconds = sum(int(count) * _UNITS_S[unit] for count, unit in _SPAN_PART.findall(value))
        if seconds <= SOAK_S_MAX:
            return seconds
    raise BadDefinition(
        where, f"want a span such as 30m, 1h or 2d, at most {SOAK_S_MAX // 86_400}d, got {shown(value)}"
    )


def _name(value: object, where: str) -> str:
    return text_in(value, where, NAME_CHARS_MAX, least=1)


def _person(value: object, where: str) -> Person:
    try:
        return Person(value)
    except Malformed as error:
        raise BadDefinition(where, str(error)) from error


def _share(value: object, where: str) -> int:
    if isinstance(value, str):
        match = _SHARE.match(value)
        if match is None:
            _refuse(where, f"want a share such as 1% or 0.5%, got {value!r}")
        return share_in(float(match[1]), where)
    return share_in(value, where)


def _true_or_false(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        _refuse(where, f"want true or false, got {shown(value)}")
    return value


def _refuse(where: str, message: str) -> NoReturn:
    raise BadDefinition(where, message)
