"""`flaghoist release list` and `flaghoist release show`: the releases in force, and how each stands."""

from collections.abc import Sequence
from datetime import date

import click

from flaghoist.release_plan import Walk, percent
from flaghoist.release_state import ReleaseState, dependents
from flaghoist.rollback import conflicts
from publisher.cli.desk import Exit, inline
from publisher.cli.reading import Reading, read
from publisher.cli.release.fields import flag_outlook_fields, state_fields
from publisher.cli.release.options import today
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.releases.chronicle import Event, chronicle
from publisher.releases.file import file_fields
from publisher.releases.outlook import flag_outlook, outlook_lines
from publisher.releases.wiring import find_release
from publisher.releases.wording import drilled, flags_text, span_text, stage_text, standing


@click.command("list")
@operation(ledger=True)
def list_releases(work: Workspace) -> Exit:
    """List the releases in force: how each stands, its flags and services, and whether its cleanup is overdue."""
    reading = read(work)
    now_ms, day = work.now_ms(), today(work)
    releases = [state for _, state in sorted(reading.snapshot.releases.items())]
    work.desk.result(
        [
            {
                **state_fields(state),
                "standing": standing(state, now_ms=now_ms),
                "overdue": overdue(state, day),
                "next_at": next_at_ms(state),
                "conflicts": len(conflicts(reading.snapshot, state)),
            }
            for state in releases
        ]
    )
    rows = [
        (
            str(state.key),
            inline(state.plan.title),
            str(state.plan.owner),
            standing(state, now_ms=now_ms),
            str(len(state.plan.flags)),
            ", ".join(state.plan.services),
            (state.plan.expires_at or "") + (" (overdue)" if overdue(state, day) else ""),
        )
        for state in releases
    ]
    if rows:
        work.desk.table(("id", "title", "owner", "state", "flags", "services", "expires"), rows)
    else:
        work.desk.say("no release")
        work.desk.next_step("`flaghoist release create FILE`")
    return Exit.OK


@click.command()
@click.argument("name", metavar="ID")
@click.option("--file", "as_file", is_flag=True, help="Print it as a release file, to edit and to give to `edit`.")
@operation(ledger=True)
def show(work: Workspace, name: str, as_file: bool) -> Exit:
    """Show the release ID: its plan and gate, who approved what, its flags, what a revert meets, and what is next.

    \b
    Examples:
      flaghoist release show checkout-v2
      flaghoist release show checkout-v2 --file > release.yaml
    """
    reading = read(work)
    state = find_release(reading.snapshot.releases, name)
    if as_file:
        fields = file_fields(state.key, state.plan)
        work.desk.result(fields, _yaml(fields))
        return Exit.OK
    now_ms, day = work.now_ms(), today(work)
    events = chronicle(reading.reader.links, state.key)
    flags = [flag_outlook(reading.snapshot, state.key, *flag) for flag in state.plan.flags]
    found = conflicts(reading.snapshot, state)
    above = [str(key) for key in dependents(state.key, reading.snapshot.releases)]
    drill = reading.snapshot.drills.get(state.key)
    work.desk.result(
        {
            **state_fields(state),
            "standing": standing(state, now_ms=now_ms),
            "overdue": overdue(state, day),
            "next_at": next_at_ms(state),
            "flags": [flag_outlook_fields(flag) for flag in flags],
            "conflicts": [
                {"source": c.source, "key": c.key, "changed_at_seq": c.changed_at.number, "what": c.what} for c in found
            ],
            "requires": list(state.plan.requires),
            "required_by": above,
            "drill": None
            if drill is None
            else {"seq": drill.version.number, "hoisted": drill.hoisted, "result": drill.result},
            "opened": _event_fields(_opening(state, events)),
            "last": _event_fields(events[-1] if events else None),
        }
    )
    if work.desk.as_json:
        return Exit.OK
    for line in outlook_lines(reading.snapshot, state.key, state.plan):
        work.desk.print(line)
    for line in _more(reading, state, events, now_ms=now_ms, overdue_since=overdue(state, day)):
        work.desk.print(line)
    for conflict in found:
        work.desk.print(f"  conflict  {conflict}: a revert needs --keep for it")
    if lost := [flag.name for flag in flags if not flag.wired]:
        work.desk.warn(f"not wired, so the gate cannot open further: {', '.join(lost)}")
        work.desk.next_step(f"`flaghoist release edit {state.key} --reason …` wires them again, while it is closed")
    return Exit.OK


def overdue(state: ReleaseState, day: date) -> bool:
    """Say whether the flags of a release should be gone by now."""
    return state.plan.expires_at is not None and date.fromisoformat(state.plan.expires_at) < day


def next_at_ms(state: ReleaseState) -> int | None:
    """Return when the next stage may be taken (Unix ms); None when none is walked to."""
    walks = state.plan.gate.walk is Walk.ON and state.plan.next_stage is not None
    return state.soaked_at_ms if walks else None


def _opening(state: ReleaseState, events: Sequence[Event]) -> Event | None:
    return next((event for event in events if event.seq == state.opened_at), None)


def _more(
    reading: Reading, state: ReleaseState, events: Sequence[Event], *, now_ms: int, overdue_since: bool
) -> list[str]:
    said = [f"  state     {standing(state, now_ms=now_ms)}, since {moment(state.since_ms)}"]
    if state.opened_at is not None and (opening := _opening(state, events)):
        said.append(f"  opened    seq {state.opened_at}, {opening.people()}")
    if events:
        last = events[-1]
        said.append(f"  last      seq {last.seq}, {moment(last.published_at)}: {last.what} ({last.people()})")
    following = state.plan.next_stage
    if following is not None:
        stage = state.plan.stages[following]
        name = stage_text(state.plan.at_stage(following))
        if state.plan.gate.walk is Walk.ON:
            left_s = (state.soaked_at_ms - now_ms) // 1000
            when = f"in {span_text(left_s)}, {moment(state.soaked_at_ms)}" if left_s > 0 else "now due"
            said.append(f"  next      {name}, by the publisher's service, {when}")
        else:
            said.append(f"  next      {name}: `flaghoist release ramp {state.key} {percent(stage.share):g}%`, say")
    if overdue_since:
        said.append(f"  OVERDUE   its flags should be gone since {state.plan.expires_at}")
    if above := [str(key) for key in dependents(state.key, reading.snapshot.releases)]:
        said.append(f"  required  by {', '.join(above)}")
    if kept := state.plan.gate.kept:
        said.append(f"  kept      {flags_text(kept)}: the last revert left these as they were")
    drill = reading.snapshot.drills.get(state.key)
    if drill is not None:
        left = "; its shadow gate still stands open" if drill.hoisted else ""
        said.append(f"  drill     seq {drill.version}: {drilled(drill.result)}{left}")
    return said


def _event_fields(event: Event | None) -> dict[str, object] | None:
    return None if event is None else event.fields()


def _yaml(fields: dict[str, object]) -> str:
    from io import StringIO

    from ruamel.yaml import YAML

    text = StringIO()
    # The id first, as people write it: the safe dumper would sort the fields.
    YAML(pure=True).dump(fields, text)
    return text.getvalue().rstrip("\n")
