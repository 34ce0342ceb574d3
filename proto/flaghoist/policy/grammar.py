"""Reads a policy's nodes into rules, and collects every fault with its line. docs/policy.md describes the fields."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Final, TypeVar

from flaghoist.definition import Category
from flaghoist.errors import Malformed
from flaghoist.policy.change import ChangeKind
from flaghoist.policy.document import BadPolicy, Fields, Items, Node, Text, kind_of
from flaghoist.policy.glob import Glob
from flaghoist.policy.naming import NamePattern
from flaghoist.policy.rule import (
    EMERGENCY_RULE,
    EVERY_KIND,
    Ask,
    Budget,
    EmergencyPolicy,
    Freeze,
    Requirement,
    Rule,
    When,
)
from flaghoist.values import Person, Target

VERSION: Final = 1
RULES_MAX: Final = 200  # every change is held against them in every pod
GROUPS_MAX: Final = 100
MEMBERS_MAX: Final = 1000  # as many keys as a root lists (root.KEYS_MAX)
APPROVALS_MAX: Final = 16  # as many as an entry carries (codec.APPROVALS_MAX)
CHANGES_MAX: Final = 100_000
TEXT_CHARS_MAX: Final = 500
SPAN_DAYS_MAX: Final = 3660
YEAR_MIN, YEAR_MAX = 2000, 2999  # what every zone's arithmetic can hold

DAY_MS: Final = 86_400_000
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS}
WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES: Final = 24 * 60
WEEK_MINUTES: Final = 7 * DAY_MINUTES

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SPAN: Final = re.compile(r"([1-9][0-9]{0,6})([smhdw])\Z")
_WHOLE: Final = re.compile(r"(0|[1-9][0-9]{0,8})\Z")
_PERCENT: Final = re.compile(r"([1-9][0-9]?|100)%\Z")
_MOMENT: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2})\Z")
_WEEKLY: Final = re.compile(r"([A-Z][a-z]{2}) ([0-9]{2}):([0-9]{2}) *- *([A-Z][a-z]{2}) ([0-9]{2}):([0-9]{2})\Z")
# The form of IANA names; whether there is such a zone only zone data tell, which readers of a ledger must not need.
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,30}(/[A-Za-z0-9_+-]{1,30}){0,2}\Z")

_TOP: Final = ("version", "groups", "rules", "emergency", "tests")
_WHEN: Final = ("environment", "target", "source", "key", "team", "owner", "category", "service", "change")
_TARGETS: Final = {"flag": Target.FLAG, "evaluator": Target.EVALUATOR, "release": Target.RELEASE}
_RULE: Final = (
    *("name", "when", "propose", "approvals", "refuse", "require", "naming", "expires_within", "ramp_step"),
    *("freeze", "budget"),
)

_T = TypeVar("_T")


class PolicyNotUnderstood(BadPolicy):
    """A policy of a later version: a newer release wrote it, and it must not be skipped."""

    code = "policy_not_understood"
    hint = "install the release of Flaghoist that wrote it"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a policy's text says; policy.Policy is made of it."""

    groups: Mapping[str, frozenset[Person]]
    group_lines: Mapping[str, int]
    rules: tuple[Rule, ...]
    emergency: EmergencyPolicy
    tests: Items | None


def parse(top: Fields, *, where: str) -> Parts:
    """Return what a policy's document says.

    Raises:
        PolicyNotUnderstood: its version is a later one.
        BadPolicy: with every fault.
    """
    reader = _Reader()
    version = top.nodes.get("version")
    number = reader.whole(version, "version", 1, 10**6) if version else None
    if version is None:
        reader.fault(top.line, f"version: want {VERSION}, got nothing: add `version: {VERSION}`")
    elif number is not None and number > VERSION:
        raise PolicyNotUnderstood(where, [f"line {version.line}: version: want {VERSION}, got {number}"])
    reader.known(top, _TOP, "")
    reader.read_groups(top.nodes.get("groups"))
    rules = reader.rules(top.nodes.get("rules"), top.line)
    emergency = reader.emergency(top.nodes.get("emergency"))
    tests = reader.tests(top.nodes.get("tests"))
    if reader.problems:
        raise BadPolicy(where, [text for _, text in sorted(reader.problems, key=lambda problem: problem[0])])
    return Parts(reader.groups, reader.group_lines, rules, emergency, tests)


class _Reader:
    """Reads nodes, and notes faults where a value cannot be read; what is returned then does not matter."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.groups: dict[str, frozenset[Person]] = {}
        self.group_lines: dict[str, int] = {}

    def fault(self, line: int, text: str) -> None:
        self.problems.append((line, f"line {line}: {text}"))

    def want(self, node: Node, path: str, wanted: str) -> None:
        self.fault(node.line, f"{path}: want {wanted}, got {kind_of(node)}")

    # --- small things ---

    def known(self, fields: Fields, names: Iterable[str], prefix: str) -> None:
        known = list(names)
        for name in fields.nodes:
            if name not in known:
                alike = get_close_matches(name, known, n=1)
                hint = f"; did you mean {alike[0]!r}?" if alike else f"; known are {', '.join(known)}"
                self.fault(fields.lines[name], f"{prefix}{name[:60]}: no such field{hint}")

    def fields(self, node: Node, path: str, names: Iterable[str]) -> Fields:
        if not isinstance(node, Fields):
            self.want(node, path, "a mapping")
            return Fields(node.line, {}, {})
        self.known(node, names, f"{path}.")
        return node

    def text(self, node: Node, path: str, wanted: str = "text") -> str | None:
        if not isinstance(node, Text) or not node.text or len(node.text) > TEXT_CHARS_MAX:
            self.want(node, path, f"{wanted} of 1 to {TEXT_CHARS_MAX} characters" if wanted == "text" else wanted)
            return None
        return node.text

    def listed(self, node: Node, path: str, most: int) -> list[tuple[str, Node]]:
        """A list's items with their paths; one value is a list of one."""
        if not isinstance(node, Items):
            return [(path, node)]
        if not 1 <= len(node.nodes) <= most:
            self.fault(node.line, f"{path}: want 1 to {most} values, got {len(node.nodes)}")
        return [(f"{path}[{at}]", item) for at, item in enumerate(node.nodes)]

    def matched(self, pattern: re.Pattern[str], node: Node, path: str, wanted: str) -> re.Match[str] | None:
        found = pattern.match(node.text) if isinstance(node, Text) else None
        if found is None:
            self.want(node, path, wanted)
        return found

    def whole(self, node: Node, path: str, least: int, most: int) -> int | None:
        wanted = f"a whole number {least} .. {most}"
        found = self.matched(_WHOLE, node, path, wanted)
        if found is None or not least <= int(found[1]) <= most:
            if found is not None:
                self.want(node, path, wanted)
            return None
        return int(found[1])

    def span_ms(self, node: Node, path: str) -> int | None:
        wanted = f"a span such as 30m, 24h, 90d or 2w, at most {SPAN_DAYS_MAX}d"
        found = self.matched(_SPAN, node, path, wanted)
        if found is None:
            return None
        span = int(found[1]) * _UNITS_MS[found[2]]
        if span > SPAN_DAYS_MAX * DAY_MS:
            self.want(node, path, wanted)
        return span

    def one_of(self, node: Node, path: str, choices: Mapping[str, _T]) -> _T | None:
        name = node.text if isinstance(node, Text) else ""
        if name not in choices:
            self.want(node, path, f"one of {', '.join(choices)}")
            return None
        return choices[name]

    def made(self, make: Callable[[str], _T], node: Node, path: str, wanted: str) -> _T | None:
        text = self.text(node, path, wanted)
        if text is None:
            return None
        try:
            return make(text)
        except Malformed as error:
            self.fault(node.line, f"{path}: {error}")
            return None

    # --- people ---

    def read_groups(self, node: Node | None) -> None:
        if node is None:
            return
        if not isinstance(node, Fields) or len(node.nodes) > GROUPS_MAX:
            self.want(node, "groups", f"a mapping of at most {GROUPS_MAX} groups")
            return
        for name, members in node.nodes.items():
            line, path = node.lines[name], f"groups.{name[:64]}"
            if _NAME.match(name) is None:
                self.fault(line, f"{path}: want a name of 1 to 64 of A-Z a-z 0-9 . _ -, got {name[:80]!r}")
            if not isinstance(members, Items) or not 1 <= len(members.nodes) <= MEMBERS_MAX:
                got = "nobody" if isinstance(members, Items) and not members.nodes else kind_of(members)
                self.fault(members.line, f"{path}: want a list of 1 to {MEMBERS_MAX} people, got {got}")
                self.groups[name] = frozenset()
                continue
            people: set[Person] = set()
            for at, item in enumerate(members.nodes):
                person = self.made(Person, item, f"{path}[{at}]", "a person, as the root names them")
                if person in people:
                    self.fault(item.line, f"{path}[{at}]: {person} is listed twice")
                if person is not None:
                    people.add(person)
            self.groups[name], self.group_lines[name] = frozenset(people), line

    def people(self, node: Node, path: str) -> tuple[frozenset[Person], str]:
        """The people whom groups and addresses name, and what to call them all."""
        found: set[Person] = set()
        labels = []
        for place, item in self.listed(node, path, MEMBERS_MAX):
            name = self.text(item, place, "a group, or a person's address")
            if name is None:
                continue
            labels.append(name)
            if name in self.groups:
                found |= self.groups[name]
            elif "@" in name:
                person = self.made(Person, item, place, "a person")
                found |= {person} if person is not None else set()
            else:
                # A person without an address must stand in a group: else a group's misspelt name would be a person.
                alike = get_close_matches(name, self.groups, n=1)
                hint = f"; did you mean {alike[0]!r}?" if alike else "; it needs an entry under `groups`"
                self.fault(item.line, f"{place}: no group {name[:64]!r}{hint}")
        return frozenset(found), " or ".join(labels)

    # --- rules ---

    def rules(self, node: Node | None, top_line: int) -> tuple[Rule, ...]:
        if node is None:
            self.fault(top_line, "rules: want a list of rules, got nothing")
            return ()
        if not isinstance(node, Items) or not 1 <= len(node.nodes) <= RULES_MAX:
            self.want(node, "rules", f"a list of 1 to {RULES_MAX} rules")
            return ()
        rules = [self.rule(item, f"rules[{at}]") for at, item in enumerate(node.nodes)]
        named: dict[str, Rule] = {}
        for rule in rules:
            if rule.name in named:
                self.fault(rule.line, f"rule {rule.name!r}: has the name of the one in line {named[rule.name].line}")
            named.setdefault(rule.name, rule)
        for rule in rules[:-1]:
            if rule.when.everything:
                self.fault(rule.line, f"rule {rule.name!r}: has no `when`, so the rules after it can never match")
        last = rules[-1]
        if not last.when.everything:
            self.fault(
                last.line,
                f"rule {last.name!r}: the last rule must have no `when`, so that every change is decided; add one",
            )
        return tuple(rules)

    def rule(self, node: Node, path: str) -> Rule:
        if not isinstance(node, Fields):
            self.want(node, path, "a mapping")
        fields = node if isinstance(node, Fields) else Fields(node.line, {}, {})
        at = fields.nodes
        name = self.rule_name(fields, path)
        path = f"rule {name!r}" if name is not None else path
        self.known(fields, _RULE, f"{path}: ")
        propose, propose_label = self.people(at["propose"], f"{path}: propose") if "propose" in at else (None, "")
        if "refuse" in at and (more := sorted(set(at) - {"name", "when", "refuse"})):
            self.fault(fields.lines["refuse"], f"{path}: refuse: nothing is allowed here, so want no {', '.join(more)}")
        percent = (
            self.matched(_PERCENT, at["ramp_step"], f"{path}: ramp_step", "whole percent, 1% .. 100%")
            if "ramp_step" in at
            else None
        )
        naming = at.get("naming")
        expires = at.get("expires_within")
        return Rule(
            name=name or path,
            line=fields.line,
            when=self.when(at.get("when"), f"{path}: when"),
            propose=propose,
            propose_label=propose_label,
            approvals=self.approvals(at.get("approvals"), f"{path}: approvals"),
            refuse=self.text(at["refuse"], f"{path}: refuse") if "refuse" in at else None,
            require=self.requirements(at.get("require"), f"{path}: require"),
            naming=self.made(NamePattern, naming, f"{path}: naming", "an expression") if naming is not None else None,
            expires_within_ms=None if expires is None else self.span_ms(expires, f"{path}: expires_within"),
            ramp_step=int(percent[1]) if percent else None,
            freeze=self.freezes(at.get("freeze"), f"{path}: freeze"),
            budget=self.budget(at.get("budget"), f"{path}: budget"),
            lines=fields.lines,
        )

    def rule_name(self, fields: Fields, path: str) -> str | None:
        if "name" not in fields.nodes:
            self.fault(fields.line, f"{path}: want a `name`, which every entry that it allows carries")
            return None
        node = fields.nodes["name"]
        found = self.matched(_NAME, node, f"{path}.name", "1 to 64 of A-Z a-z 0-9 . _ -")
        if found and found[0] == EMERGENCY_RULE:
            self.fault(node.line, f"{path}.name: want another name, entries call emergencies {EMERGENCY_RULE!r}")
        return found[0] if found else None

    def when(self, node: Node | None, path: str) -> When:
        if node is None:
            return When()
        fields = self.fields(node, path, _WHEN)
        if isinstance(node, Fields) and not node.nodes:
            self.fault(node.line, f"{path}: want at least one condition, or no `when`")

        def globs(name: str) -> tuple[Glob, ...] | None:
            if name not in fields.nodes:
                return None
            found = [
                self.made(Glob, item, place, "a pattern")
                for place, item in self.listed(fields.nodes[name], f"{path}.{name}", GROUPS_MAX)
            ]
            return tuple(glob for glob in found if glob is not None)

        categories = globs("category")
        for glob in categories or ():
            if not any(glob.matches(category) for category in Category):
                line = fields.lines["category"]
                self.fault(line, f"{path}.category: {glob.pattern!r} matches none of {', '.join(Category)}")
        target = fields.nodes.get("target")
        return When(
            environment=globs("environment"),
            target=None if target is None else self.one_of(target, f"{path}.target", _TARGETS),
            source=globs("source"),
            key=globs("key"),
            team=globs("team"),
            owner=globs("owner"),
            category=categories,
            service=globs("service"),
            change=self.kinds(fields.nodes.get("change"), f"{path}.change"),
        )

    def kinds(self, node: Node | None, path: str) -> frozenset[ChangeKind]:
        if node is None:
            return EVERY_KIND
        choices = {kind.value: kind for kind in ChangeKind}
        found = [self.one_of(item, place, choices) for place, item in self.listed(node, path, len(choices))]
        return frozenset(kind for kind in found if kind is not None)

    def approvals(self, node: Node | None, path: str) -> tuple[Ask, ...]:
        if node is None:
            return ()
        if isinstance(node, Text):
            count = self.whole(node, path, 0, APPROVALS_MAX)
            return () if not count else (Ask(count, None, "any approver"),)
        asks = []
        for place, item in self.listed(node, path, APPROVALS_MAX):
            fields = self.fields(item, place, ("count", "from"))
            count = 1
            if "count" in fields.nodes:
                count = self.whole(fields.nodes["count"], f"{place}.count", 1, APPROVALS_MAX) or 1
            if "from" not in fields.nodes:
                asks.append(Ask(count, None, "any approver"))
                continue
            people, label = self.people(fields.nodes["from"], f"{place}.from")
            if len(people) < count and people:
                self.fault(item.line, f"{place}: want {count} approvals from {label}, which is {len(people)} people")
            asks.append(Ask(count, people, label))
        return tuple(asks)

    def requirements(self, node: Node | None, path: str) -> tuple[Requirement, ...]:
        if node is None:
            return ()
        choices = {requirement.value: requirement for requirement in Requirement}
        found = [self.one_of(item, place, choices) for place, item in self.listed(node, path, len(choices))]
        return tuple(dict.fromkeys(requirement for requirement in found if requirement is not None))

    def budget(self, node: Node | None, path: str) -> Budget | None:
        if node is None:
            return None
        fields = self.fields(node, path, ("changes", "per"))
        if set(fields.nodes) != {"changes", "per"}:
            self.fault(fields.line, f"{path}: want `changes` and `per`")
            return None
        changes = self.whole(fields.nodes["changes"], f"{path}.changes", 1, CHANGES_MAX)
        per_ms = self.span_ms(fields.nodes["per"], f"{path}.per")
        return Budget(changes or 1, per_ms or 1)

    def emergency(self, node: Node | None) -> EmergencyPolicy:
        default = EmergencyPolicy()
        if node is None:
            return default
        fields = self.fields(node, "emergency", ("ratify_within", "kills", "per"))
        at = fields.nodes
        return EmergencyPolicy(
            (self.span_ms(at["ratify_within"], "emergency.ratify_within") if "ratify_within" in at else None)
            or default.ratify_within_ms,
            (self.whole(at["kills"], "emergency.kills", 1, CHANGES_MAX) if "kills" in at else None) or default.kills,
            (self.span_ms(at["per"], "emergency.per") if "per" in at else None) or default.per_ms,
        )

    def tests(self, node: Node | None) -> Items | None:
        """Cases are read by whoever runs them (cases.py): readers of a ledger have no use for them."""
        if node is None or isinstance(node, Items):
            return node
        self.want(node, "tests", "a list of cases")
        return None

    # --- freeze windows ---

    def freezes(self, node: Node | None, path: str) -> tuple[Freeze, ...]:
        if node is None:
            return ()
        found = [self.freeze(item, place) for place, item in self.listed(node, path, GROUPS_MAX)]
        return tuple(freeze for freeze in found if freeze is not None)

    def freeze(self, node: Node, path: str) -> Freeze | None:
        fields = self.fields(node, path, ("name", "from", "until", "weekly", "zone"))
        at = fields.nodes
        if "zone" not in at or ("weekly" in at) == ("from" in at) or ("from" in at) != ("until" in at):
            self.fault(fields.line, f"{path}: want `zone`, and `from` with `until`, or `weekly`")
            return None
        zone = self.matched(_ZONE, at["zone"], f"{path}.zone", "a time zone such as Europe/Berlin or UTC")
        name = self.text(at["name"], f"{path}.name") if "name" in at else path.rpartition(": ")[2]
        if "weekly" in at:
            weekly = self.weekly(at["weekly"], f"{path}.weekly")
            if zone is None or name is None or weekly is None:
                return None
            return Freeze(name, zone[0], fields.line, None, weekly)
        begins, ends = (self.moment(at[which], f"{path}.{which}") for which in ("from", "until"))
        if zone is None or name is None or begins is None or ends is None:
            return None
        if begins >= ends:
            self.fault(fields.line, f"{path}: want `from` before `until`, got {begins} and {ends}")
        return Freeze(name, zone[0], fields.line, (begins, ends))

    def moment(self, node: Node, path: str) -> datetime | None:
        wanted = "a local time as YYYY-MM-DD HH:MM"
        if (found := self.matched(_MOMENT, node, path, wanted)) is None:
            return None
        try:
            moment = datetime.fromisoformat(f"{found[1]} {found[2]}")
        except ValueError:
            moment = datetime.min
        if not YEAR_MIN <= moment.year <= YEAR_MAX:
            self.want(node, path, wanted)
            return None
        return moment

    def weekly(self, node: Node, path: str) -> tuple[int, int] | None:
        wanted = f'a weekly span as "Fri 16:00 - Mon 08:00", with days {", ".join(WEEKDAYS)}'
        if (found := self.matched(_WEEKLY, node, path, wanted)) is None:
            return None
        minutes = []
        for day, hour, minute in (found.group(1, 2, 3), found.group(4, 5, 6)):
            # 24:00 is the end of a day, as in ISO 8601.
            of_day = int(hour) * 60 + int(minute)
            if day not in WEEKDAYS or int(minute) > 59 or of_day > DAY_MINUTES:
                self.want(node, path, wanted)
                return None
            minutes.append((WEEKDAYS.index(day) * DAY_MINUTES + of_day) % WEEK_MINUTES)
        if minutes[0] == minutes[1]:
            self.fault(node.line, f"{path}: want two different times; a whole week is what `refuse` is for")
        return minutes[0], minutes[1]
