"""What the commands that move a release's gate share: their options, the plan that is shown, and the way it goes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from flaghoist.errors import BadDefinition, Misconfigured, NotApproved, WrongRole
from flaghoist.outcomes import Applied
from flaghoist.release_plan import LEAD_MS_MAX
from flaghoist.snapshot import Snapshot
from flaghoist.values import Person, Role
from publisher.cli import appending, converging
from publisher.cli.audit.instant import instant
from publisher.cli.converging import Converged, Percent
from publisher.cli.decide import show_case
from publisher.cli.desk import Exit
from publisher.cli.flag import merged_context
from publisher.cli.proposing import AT_ONCE, Asked, Timing, Wording, propose_ops, tell_asked, timing_words, worded
from publisher.cli.publish import publish_case
from publisher.cli.reading import Reading
from publisher.cli.release.fields import gate_fields
from publisher.cli.times import moment
from publisher.cli.workspace import Command, Workspace
from publisher.files import read_limited
from publisher.fleet import NotReached
from publisher.inbox import Case
from publisher.releases import hoist, shift
from publisher.releases.file import lead_in
from publisher.releases.hoist import Move
from publisher.releases.outlook import Needs, needs_of
from publisher.releases.shift import CONTEXTS_BYTES_MAX, Shift
from publisher.releases.wording import moved
from publisher.standing import Standing, Status, standing_of

# What `--when-acked` takes when it is not told otherwise: time for the slowest pod to read one entry (design §7).
LEAD_MS_DEFAULT: Final = 2_000
# More rows than anybody reads; --json has them all.
SHIFT_ROWS_MAX: Final = 20


class LeadType(click.ParamType[int]):
    """An option's value such as 2s, 500ms or 1m, at most five minutes; in milliseconds, 0 is at once."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the milliseconds."""
        if isinstance(value, int):
            return value
        try:
            return lead_in(0 if value in ("0", "0s") else value, "")
        except BadDefinition as error:
            self.fail(str(error), param, ctx)


class MomentType(click.ParamType[int]):
    """An option's value that is a point of time ahead, with or without its zone; in Unix milliseconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return Unix milliseconds."""
        if isinstance(value, int):
            return value
        found = instant(str(value).strip())
        if found is None or found.ago or found.first_ms != found.last_ms:
            self.fail(
                f"want a time such as 2026-11-22T18:00Z (UTC unless it says otherwise), got {value!r}", param, ctx
            )
        return found.first_ms


@dataclass(frozen=True, slots=True)
class Asking:
    """What the shared options of a move say.

    Attributes:
        timing: when it takes effect; None: as its command and its plan have it.
        contexts: of callers, to be evaluated before and after; None: none were given.
        publish: only publish what others have approved already.
        wait_percent: of the fleet, to wait for once it is published; None: not at all.
        timeout_s: for the service, and for the fleet.
    """

    timing: Timing | None
    contexts: tuple[shift.Case, ...] | None
    publish: bool
    wait_percent: int | None
    timeout_s: int


def asking(*, timed: bool) -> Callable[[Command], Command]:
    """Give a command the shared options, as one Wording and one Asking.

    Args:
        timed: also those for its moment.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(
            work: Workspace,
            wording: Wording,
            contexts_file: str | None,
            contexts: tuple[str, ...],
            publish: bool,
            wait_percent: int | None,
            timeout_s: int,
            at_ms: int | None = None,
            lead_ms: int | None = None,
            acked_percent: int | None = None,
            **values: Any,
        ) -> Exit | None:
            timing = _timing(work, at_ms, lead_ms, acked_percent)
            told = Asking(timing, _contexts(contexts_file, contexts), publish, wait_percent, timeout_s)
            return command(work, wording, told, **values)

        decorated = worded(run)
        for option in reversed((*(_TIMED if timed else ()), *_SHARED, converging.WAIT, converging.TIMEOUT)):
            decorated = option(decorated)
        return decorated

    return decorate


_TIMED: Final = (
    click.option("--at", "at_ms", type=MomentType(), metavar="TIME",
                 help="Take effect then, in every pod: 2026-11-22T18:00Z."),
    click.option("--in", "lead_ms", type=LeadType(), metavar="SPAN",
                 help="Take effect so long after it is published, in every pod: 2s; at most 5m; 0 is at once."),
    click.option("--when-acked", "acked_percent", type=Percent(), metavar="PERCENT",
                 help="Show it to the fleet first; publish it only once so much of it has acknowledged that."),
)  # fmt: skip
_SHARED: Final = (
    click.option("--contexts", "contexts_file", metavar="FILE|-",
                 help="Callers' contexts, one JSON object a line: say who of them would be answered otherwise."),
    click.option("--context", "contexts", multiple=True, metavar="JSON|@FILE|K=V",
                 help="One more context; given several times, they are merged, later ones win."),
    click.option("--publish", is_flag=True, help="Publish the approved proposal that asks for this; sign no new one."),
)  # fmt: skip


def _timing(work: Workspace, at_ms: int | None, lead_ms: int | None, acked_percent: int | None) -> Timing | None:
    if at_ms is not None and lead_ms is not None:
        raise click.UsageError("want --at or --in, got both")
    if acked_percent == 0:
        raise click.UsageError("--when-acked: want 1% .. 100%, got 0%")
    if at_ms is not None and at_ms <= work.now_ms():
        raise click.UsageError(f"--at: want a time ahead, {moment(at_ms)} is over")
    if acked_percent is not None and lead_ms == 0:
        raise click.UsageError("--when-acked: want it with --at, or with --in longer than 0")
    if (at_ms, lead_ms, acked_percent) == (None, None, None):
        return None
    if lead_ms is None and at_ms is None:
        lead_ms = LEAD_MS_DEFAULT
    return Timing(at_ms, lead_ms or None, acked_percent)


def _contexts(file: str | None, texts: tuple[str, ...]) -> tuple[shift.Case, ...] | None:
    if file is None and not texts:
        return None
    cases: list[shift.Case] = []
    if file is not None:
        path = Path("/dev/stdin") if file == "-" else Path(file)
        data = read_limited(path, limit_bytes=CONTEXTS_BYTES_MAX, what="contexts")
        cases += shift.contexts_in(data, where="stdin" if file == "-" else file)
    if texts:
        cases.append(shift.case_of(merged_context(texts), "--context"))
    return tuple(cases)


# --- one move ---


def carry_out(
    work: Workspace, reading: Reading, move: Move, wording: Wording, told: Asking, *, lead_ms: int = 0
) -> Exit:
    """Show a move, sign it, publish it if nobody else need approve it, and wait for the fleet if that was asked for.

    Args:
        reading: with the inbox, when `told.publish`.
        lead_ms: its moment when the options say nothing of it; 0: at once.

    Raises:
        Refused: as readers, or the policy, would say.
        Misconfigured, WrongRole, Unavailable, OutcomeUnknown, Interrupted: as propose_ops.
    """
    state = move.before
    if not move.changes:
        work.desk.result({"proposals": [], "release": state.key, "unchanged": 1}, None)
        work.desk.say(f"nothing to propose: release {state.key} is so already (seq {state.version})")
        return Exit.OK
    default = Timing(lead_ms=lead_ms) if lead_ms else AT_ONCE
    timing = default if told.timing is None else told.timing
    now_ms = work.now_ms()
    snapshot = reading.snapshot
    after = hoist.checked(snapshot, move, at_ms=timing.activate_at or now_ms + (timing.lead_ms or 0))
    found = _shift(work, move, snapshot, after, told)
    fields = move_fields(move, timing) | ({} if found is None else {"shift": shift_fields(found)})
    if told.publish:
        return _publish_approved(work, reading, move, told, fields)
    requester = _requester(work, reading)
    needs, _ = needs_of(reading.reader.ledger, snapshot, [move.op], "it", requester=requester)
    fields["approvals"] = list(needs.approvals)
    if requester is not None:
        hoist.check_asking(reading.reader.ledger, move, after, requester)
    scheduled = timing.activate_at is not None and timing.activate_at > now_ms + LEAD_MS_MAX
    words = [*hoist.in_words(snapshot, move), *timing_words(timing), *_needs_words(needs, scheduled=scheduled)]
    if found is not None:
        words += shift_words(found, sampled=told.contexts is None)
    try:
        asked = propose_ops(
            work, reading, [[move.step]], wording, move.title, fields, words=words, kind=move.kind, timing=timing,
            publish=not scheduled, wait_s=told.timeout_s,
        )  # fmt: skip
    except NotReached as refusal:
        # It is signed and waits: the same command again would sign another one.
        refusal.hint = "see who is missing with `flaghoist fleet`; `flaghoist publish` with that id goes on from there"
        raise
    return asked if isinstance(asked, Exit) else conclude(work, reading, asked, fields, told)


def conclude(work: Workspace, reading: Reading, asked: Asked, fields: Mapping[str, object], told: Asking) -> Exit:
    """Wait for the fleet if something was published and that was asked for; then tell what became of it."""
    if not asked.links:
        if told.wait_percent is not None:
            work.desk.say("not published yet: the fleet is not waited for")
        return tell_asked(work, reading, asked, fields)
    link = asked.links[-1]
    converged = _converged(work, reading, link, told)
    if converged is None:
        return tell_asked(work, reading, asked, fields)
    fields = {**fields, "fleet": converged.fields}
    if converged.enough:
        tell_asked(work, reading, asked, fields)
        work.desk.say(converged.words)
        return Exit.OK
    failure = converged.refusal(
        f"seq {link.entry.seq} is published", "it stays; see who is missing with `flaghoist fleet`, or wait longer"
    )
    error = {"code": failure.code, "message": str(failure), "hint": failure.hint}
    tell_asked(work, reading, asked, {**fields, "error": error} if work.desk.as_json else fields)
    if not work.desk.as_json:
        work.desk.fail(failure.code, str(failure), failure.hint)
    return converged.exit


def _converged(work: Workspace, reading: Reading, link: Applied, told: Asking) -> Converged | None:
    if told.wait_percent is None:
        return None
    work.desk.say(f"published as seq {link.entry.seq}; waiting for {told.wait_percent} % of the fleet")
    return converging.wait_for(work, reading, link, percent=told.wait_percent, timeout_s=told.timeout_s)


def _publish_approved(
    work: Workspace, reading: Reading, move: Move, told: Asking, fields: Mapping[str, object]
) -> Exit:
    case, standing = _approved(work, reading, move)
    holder = appending.service_at_work(work, reading)
    if holder is None:
        replace(work, key_option=None).choose(Role.PUBLISHER)  # before anybody is asked
    show_case(work.desk, case, reading)
    fields = {**fields, "moment": _timing_fields(_timing_of(case))}
    if work.dry_run:
        work.desk.result({"dry_run": True, "id": case.id, **fields}, f"would publish {case.id}")
        return Exit.OK
    if not work.desk.confirm(f"Publish {case.id} to {reading.root.log_id}?"):
        return Exit.USAGE
    link, _ = publish_case(work, reading, case, holder=holder, wait_s=told.timeout_s)
    assert isinstance(link, Applied)  # noqa: S101 — no ratification asks for a move
    return conclude(work, reading, Asked((case,), (), (standing,), (link,), holder), fields, told)


def _approved(work: Workspace, reading: Reading, move: Move) -> tuple[Case, Standing]:
    """Return the proposal of the inbox that asks for just this move and waits for nobody.

    Raises:
        NotApproved: there is none; the text names those that ask for it, and what they lack.
    """
    cases = [case for case in reading.inbox if case.proposal.kind is move.kind and case.proposal.ops == (move.op,)]
    standings = [(case, standing_of(case, reading.reader, now_ms=work.now_ms())) for case in cases]
    ready = [(case, standing) for case, standing in standings if standing.status is Status.READY]
    if ready:
        return ready[-1]
    lacking = "; ".join(
        f"{case.id} is {s.status}{': ' if s.why or s.missing else ''}{s.why or '; '.join(s.missing)}"
        for case, s in standings
    )
    raise NotApproved(
        f"{move.title}: want an approved proposal that asks for just this, got {lacking or 'none that asks for it'}",
        hint="leave --publish out to propose it; `flaghoist pending` shows what waits",
    )


def _timing_of(case: Case) -> Timing:
    p = case.proposal
    return Timing(p.activate_at, p.lead_ms, p.acked_percent)


def _requester(work: Workspace, reading: Reading) -> Person | None:
    """Return who would ask, by the key that would sign; None when that is not known yet."""
    try:
        chosen = work.choose(Role.REQUESTER)
    except (Misconfigured, WrongRole):
        return None  # propose_ops says it, unless nothing is to be signed
    key = None if chosen.key_id is None else reading.root.key(chosen.key_id)
    return None if key is None else key.person


# --- in words, and as fields ---


def _needs_words(needs: Needs, *, scheduled: bool) -> list[str]:
    if needs.approvals:
        return [f"  still needs {'; and '.join(needs.approvals)}"]
    if scheduled:
        return [f"  needs nobody's approval; it can be published from {LEAD_MS_MAX // 60_000} min before its moment on"]
    return ["  needs nobody's approval: it is published at once"]


def move_fields(move: Move, timing: Timing) -> dict[str, object]:
    """Return what a move is, for --json."""
    return {
        "release": move.key,
        "moved": moved(move.before.plan, move.plan),
        "before": gate_fields(move.before.plan),
        "after": gate_fields(move.plan),
        "moment": _timing_fields(timing),
    }


def _timing_fields(timing: Timing) -> Mapping[str, object]:
    return {"at": timing.activate_at, "lead_ms": timing.lead_ms, "acked_percent": timing.acked_percent}


def _shift(work: Workspace, move: Move, before: Snapshot, after: Snapshot, told: Asking) -> Shift | None:
    """Return who would be answered otherwise: of the contexts given, or, in a dry run without any, of made-up users."""
    cases: Sequence[shift.Case] | None = told.contexts
    if cases is None:
        if not work.dry_run:
            return None
        flags = len(hoist.flags_through(before, move.key))
        cases = shift.sample(move.plan.bucket_by, flags=flags)
    return shift.shift_of(before, after, move.key, cases, now_s=work.now_ms() // 1000)


def shift_words(found: Shift, *, sampled: bool) -> list[str]:
    """Return who would be answered otherwise, as lines for people.

    Args:
        sampled: the contexts are made-up users: they show a share, and no names.
    """
    what = "made-up users" if sampled else f"context{'s' * (found.contexts != 1)}"
    lines = [f"of {found.contexts} {what}, {len(found.changed)} are answered otherwise ({found.share:.1f} %):"]
    if not found.changed:
        lines[0] = f"of {found.contexts} {what}, none is answered otherwise"
    lines += [f"  {flag}: {before} → {after} for {count}" for (flag, before, after), count in found.counts.items()]
    if sampled:
        return lines
    rows = [(case, each) for case, differences in found.changed for each in differences]
    lines += [f"  {case.label}: {each.flag} {each.before} → {each.after}" for case, each in rows[:SHIFT_ROWS_MAX]]
    if len(rows) > SHIFT_ROWS_MAX:
        lines.append(f"  and {len(rows) - SHIFT_ROWS_MAX} more; --json has them all")
    return lines


def shift_fields(found: Shift) -> Mapping[str, object]:
    """Return the same for --json."""
    return {
        "contexts": found.contexts,
        "changed": len(found.changed),
        "share_percent": round(found.share, 3),
        "flags": list(found.flags),
        "counts": [
            {"flag": flag, "before": before, "after": after, "contexts": count}
            for (flag, before, after), count in found.counts.items()
        ],
        "contexts_changed": [
            {
                "context": case.label,
                "flags": [{"flag": d.flag, "before": _given(d.before), "after": _given(d.after)} for d in differences],
            }
            for case, differences in found.changed
        ],
    }


def _given(given: shift.Given) -> Mapping[str, object]:
    return {"value": given.value, "variant": given.variant, "error": given.error or None}
