"""Who would be answered otherwise: contexts, recorded or made up, evaluated under the state before a change and after.

Pure. The evaluation is the sidecars' own, so what stands here is what callers would get.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flaghoist.document import JsonValue
from flaghoist.errors import Faulty, Malformed, TooLarge
from flaghoist.evaluation import Answer, EvaluationFailed, evaluate, normalised
from flaghoist.policy.change import same_json
from flaghoist.release_plan import flag_text
from flaghoist.snapshot import CompiledFlag, Snapshot, View
from flaghoist.values import FlagKey
from publisher.releases.hoist import flags_through

# A day's distinct contexts of a busy service; more are a load test, not a look ahead.
CONTEXTS_MAX: Final = 100_000
CONTEXTS_BYTES_MAX: Final = 64 * 1024 * 1024
# What sidecars accept as one request's context (flagd's own limit of a message).
CONTEXT_BYTES_MAX: Final = 1024 * 1024
# The share of a release is off by less than 1 % of all users in 19 of 20 samples of this size (binomial, 1.96 σ).
SAMPLE_SIZE: Final = 10_000
# Two to three seconds of evaluations on one core.
EVALUATIONS_MAX: Final = 200_000
SAMPLE_LEAST: Final = 100
# A label is for people to find the context again.
_LABEL_CHARS_MAX: Final = 60

Context = Mapping[str, JsonValue]


class BadContexts(Faulty):
    """Lines that are no contexts; each is named."""

    code = "bad_contexts"
    hint = "want one JSON object a line, as callers send them; nothing was proposed"


@dataclass(frozen=True, slots=True)
class Case:
    """One context, and what people find it by: its line or number, and its targeting key."""

    label: str
    context: Context


@dataclass(frozen=True, slots=True)
class Given:
    """What one flag answers to one context.

    Attributes:
        variant: None when no variant is named.
        error: the code of a failure, after which a service uses its own default; "" for an answer.
    """

    value: JsonValue
    variant: str | None
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"error {self.error}"
        return self.variant if self.variant is not None else json.dumps(self.value, ensure_ascii=False)

    def same(self, other: "Given") -> bool:
        """Whether a caller could not tell them apart: 1, 1.0 and true are three answers."""
        return (self.variant, self.error) == (other.variant, other.error) and same_json(self.value, other.value)


@dataclass(frozen=True, slots=True)
class Difference:
    """One flag that answers a context otherwise; `flag` is KEY, or SOURCE#KEY."""

    flag: str
    before: Given
    after: Given


@dataclass(frozen=True, slots=True)
class Shift:
    """Who of some contexts would be answered otherwise.

    Attributes:
        contexts: how many were evaluated.
        flags: which flags, whether or not any of them differs.
        changed: the contexts with a difference, in the order given, each with its differences by flag.
    """

    contexts: int
    flags: tuple[str, ...]
    changed: tuple[tuple[Case, tuple[Difference, ...]], ...]

    @property
    def share(self) -> float:
        """Of the contexts with a difference among all, in percent; 0 of none."""
        return 100 * len(self.changed) / self.contexts if self.contexts else 0.0

    @property
    def counts(self) -> dict[tuple[str, str, str], int]:
        """How many contexts each flag answers otherwise: by flag, and what it answered before and would after."""
        counted = Counter((d.flag, str(d.before), str(d.after)) for _, differences in self.changed for d in differences)
        return dict(sorted(counted.items()))


def shift_of(
    before: Snapshot, after: Snapshot, release: FlagKey, cases: Iterable[Case], *, now_s: int, more: Sequence[str] = ()
) -> Shift:
    """Return whom a change of a release answers otherwise.

    Evaluated are the flags that go through its gate before or after, of all sources.

    Args:
        now_s: what rules see as the time, Unix seconds.
        more: names (KEY or SOURCE#KEY) of further flags to look at.
    """
    views = [_view(snapshot, release, more) for snapshot in (before, after)]
    names = sorted({*views[0].flags, *views[1].flags})
    changed = []
    count = 0
    for case in cases:
        count += 1
        differences = tuple(_differences(names, views, case.context, now_s))
        if differences:
            changed.append((case, differences))
    return Shift(count, tuple(names), tuple(changed))


def _view(snapshot: Snapshot, release: FlagKey, more: Sequence[str]) -> View:
    """Return the flags concerned as a view, by the names that people write: also those that another source hides."""
    found: dict[str, CompiledFlag] = {flag_text(f.source, f.key): f for f in flags_through(snapshot, release)}
    wanted = set(more) - found.keys()
    if wanted:
        named = ((flag_text(flag.source, flag.key), flag) for flag in snapshot.flags())
        found.update((name, flag) for name, flag in named if name in wanted)
    return View(snapshot.seq, found)


def _differences(names: Sequence[str], views: Sequence[View], context: Context, now_s: int) -> Iterator[Difference]:
    for name in names:
        given_before, given_after = (_given(view, name, context, now_s) for view in views)
        if not given_before.same(given_after):
            yield Difference(name, given_before, given_after)


def _given(view: View, name: str, context: Context, now_s: int) -> Given:
    try:
        answer: Answer = evaluate(view, name, context, now_s=now_s)
    except EvaluationFailed as failure:
        return Given(None, None, str(failure.error_code))
    return Given(answer.value, answer.variant)


# --- contexts ---


def contexts_in(data: bytes, *, where: str) -> list[Case]:
    """Return the contexts of a file with one JSON object a line; empty lines are passed over.

    Args:
        data: untrusted UTF-8.
        where: the file's name, for errors.

    Raises:
        BadContexts: lines that are no JSON objects, or not what a sidecar would take; each with its number.
        TooLarge: more than CONTEXTS_MAX contexts.
    """
    cases: list[Case] = []
    problems: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        if len(cases) == CONTEXTS_MAX:
            raise TooLarge(where, limit=CONTEXTS_MAX, got=CONTEXTS_MAX + 1, unit="contexts")
        try:
            cases.append(_case(line, f"line {number}"))
        except (Malformed, ValueError) as fault:
            problems.append(f"line {number}: {fault}")
    if problems:
        raise BadContexts(where, problems)
    return cases


def _case(line: bytes, place: str) -> Case:
    if len(line) > CONTEXT_BYTES_MAX:
        raise TooLarge("context", limit=CONTEXT_BYTES_MAX, got=len(line))
    try:
        value: Any = json.loads(line)
    except RecursionError:
        raise Malformed("want JSON that is not nested so deeply") from None
    except UnicodeDecodeError:
        raise Malformed("want UTF-8") from None
    except ValueError as error:
        raise Malformed(f"want JSON, {error}") from error
    if not isinstance(value, dict):
        raise Malformed(f"want an object, got {type(value).__name__}")
    return case_of(value, place)


def case_of(context: Mapping[str, object], place: str) -> Case:
    """Return a context as sidecars see it, under a label: where it stands, and whose it is.

    Raises:
        Malformed: not what a sidecar would take.
    """
    key = context.get("targetingKey")
    named = f" ({key[:_LABEL_CHARS_MAX]})" if isinstance(key, str) and key else ""
    return Case(f"{place}{named}", normalised(context))


def sample(bucket_by: str, *, flags: int) -> list[Case]:
    """Return contexts of made-up users who differ in nothing but the bucket key: they show a share, never an audience.

    Args:
        bucket_by: path of the attribute that decides who is among a share.
        flags: how many flags each will be evaluated for; of very many fewer users are made.
    """
    size = max(min(SAMPLE_SIZE, EVALUATIONS_MAX // (2 * max(flags, 1))), SAMPLE_LEAST)
    parts = [part for part in bucket_by.split(".") if part]
    return [Case(f"user {n}", _nested(parts, f"user-{n}")) for n in range(size)]


def _nested(parts: Sequence[str], value: str) -> dict[str, JsonValue]:
    """Return a context in which the rule's path leads to that value."""
    if not parts:
        return {}
    return {parts[0]: _nested(parts[1:], value) if parts[1:] else value}
