"""`flaghoist flag` and `flaghoist history`: the flags as the ledger has them, and how they came to be so."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from flaghoist.definition import parse_flag
from flaghoist.errors import Refused
from flaghoist.evaluation import evaluate, normalised
from publisher import flagfile
from publisher.cli.desk import Exit, inline, json_value
from publisher.cli.interactions import list_interactions
from publisher.cli.reading import Reading, read
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.documents import Change
from publisher.files import read_limited
from publisher.flagfile import Json, Syntax
from publisher.plan import Step, pretty_lines
from publisher.releases.wiring import releases_of
from publisher.releases.wording import standing

# What sidecars accept as one request's context (flagd's own limit of a message).
CONTEXT_BYTES_MAX = 1024 * 1024


@click.group()
def flag() -> None:
    """List, show and evaluate flags. KEY may be SOURCE#KEY when several sources have the key."""


@flag.command("list")
@operation(ledger=True)
def list_flags(work: Workspace) -> Exit:
    """List the flags in force."""
    reading = read(work)
    served = reading.snapshot.view.flags
    rows: list[tuple[str, ...]] = []
    documents: list[dict[str, object]] = []
    for state_id in reading.documents.flags():
        definition = parse_flag(reading.documents.current(state_id) or b"")
        version = reading.documents.version(state_id)
        shadowed = (winner := served.get(state_id.key)) is None or winner.source != state_id.source
        owner = definition.governance.owner
        documents.append(
            {
                "key": state_id.key,
                "source": state_id.source,
                "state": definition.state,
                "default_variant": definition.default_variant,
                "version": version.number,
                "owner": owner,
                "served": not shadowed,
                "releases": (releases := releases_of(reading.snapshot, state_id.source, state_id.key)),
            }
        )
        note = " (shadowed)" if shadowed else ""
        row = (state_id.key, definition.state + note, definition.default_variant or "", state_id.source, str(version))
        rows.append((*row, owner or "", ", ".join(releases)))
    work.desk.result(documents)
    columns = ("key", "state", "default", "source", "version", "owner", "release")
    # Where there is no release, a column for them would only ask what they are.
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    work.desk.table(columns[:shown], [row[:shown] for row in rows])
    if not rows:
        work.desk.next_step("`flaghoist import FILE`, or `flaghoist propose set KEY --definition FILE`")
    return Exit.OK


@flag.command()
@click.argument("key")
@operation(ledger=True)
def show(work: Workspace, key: str) -> Exit:
    """Show a flag's definition, and who changed it last."""
    reading = read(work)
    state_id = reading.find_flag(key)
    change = reading.documents.changes[state_id][-1]
    document = change.after
    releases = [
        reading.snapshot.releases[name] for name in releases_of(reading.snapshot, state_id.source, state_id.key)
    ]
    work.desk.result(
        {
            "key": state_id.key,
            "source": state_id.source,
            "definition": json_value(document),
            "last": _change(change),
            "releases": [release.key for release in releases],
        },
        "\n".join(pretty_lines(document)),
    )
    if not work.desk.as_json:
        work.desk.say(f"{state_id} since seq {_told(change)}")
        for release in releases:
            work.desk.say(f"in release {release.key} ({standing(release, now_ms=work.now_ms())})")
    return Exit.OK


flag.add_command(list_interactions)


@flag.command("eval")
@click.argument("key")
@click.option("--context", "contexts", multiple=True, metavar="JSON|@FILE|K=V",
              help="The caller's context; may be given several times, later ones win.")  # fmt: skip
@operation(ledger=True)
def evaluate_flag(work: Workspace, key: str, contexts: tuple[str, ...]) -> Exit:
    """Evaluate a flag as a sidecar would that has read the ledger to its end.

    \b
    Examples:
      flaghoist flag eval newCheckout
      flaghoist flag eval newCheckout --context targetingKey=u7 --context '{"plan": {"tier": 2}}'
      flaghoist flag eval newCheckout --context @context.json
    """
    context = normalised(merged_context(contexts))
    reading = read(work)
    _refuse_unknown(reading, key)
    answer = evaluate(reading.snapshot.view, key, context, now_s=work.now_ms() // 1000)
    work.desk.result(
        {
            "key": answer.key,
            "value": answer.value,
            "variant": answer.variant,
            "reason": answer.reason,
            "metadata": dict(answer.metadata),
            "seq": reading.snapshot.seq.number,
        },
        json.dumps(answer.value, ensure_ascii=False),
    )
    if not work.desk.as_json:
        work.desk.say(f"variant {answer.variant or 'none'}, reason {answer.reason}, seq {reading.snapshot.seq}")
    return Exit.OK


@click.command()
@click.argument("key")
@operation(ledger=True)
def history(work: Workspace, key: str) -> Exit:
    """Show every change of a flag, oldest first: when, who asked, who approved, what."""
    reading = read(work)
    state_id = reading.flag_named(key)
    past = reading.documents.past_flags(state_id.key)
    if state_id not in past and "#" not in key and len(past) == 1:
        state_id = past[0]  # deleted since: a bare KEY still means it
    changes = reading.documents.changes.get(state_id, [])
    if not changes:
        reading.find_flag(key)  # says that there is none
    work.desk.result([{**_change(c), "before": json_value(c.before), "after": json_value(c.after)} for c in changes])
    if work.desk.as_json:
        return Exit.OK
    for change in changes:
        work.desk.print(f"seq {_told(change)}")
        diff = Step(change.op, change.before).diff()
        work.desk.print("".join(f"    {line}\n" for line in diff.splitlines()[2:]))
    for release in releases_of(reading.snapshot, state_id.source, state_id.key):
        work.desk.say(f"the gate of release {release} changes its answers too: `flaghoist release history {release}`")
    return Exit.OK


def _change(change: Change) -> dict[str, object]:
    authorized, entry = change.authorized, change.link.entry
    return {
        "seq": entry.seq.number,
        "published_at": entry.published_at,
        "requester": None if authorized is None else authorized.proposal.requester,
        "approvers": [] if authorized is None else list(authorized.approvers),
        "title": change.title,
        "proposal": None if authorized is None else authorized.proposal.proposal_id,
        "action": change.op.action,
    }


def _told(change: Change) -> str:
    authorized, entry = change.authorized, change.link.entry
    asked = "by the publisher"
    if authorized is not None:
        approved = f", approved by {', '.join(authorized.approvers)}" if authorized.approvers else ""
        asked = f"requested by {authorized.proposal.requester}{approved}"
    return f"{entry.seq}, {moment(entry.published_at)}, {asked}: {inline(change.title)}"


def _refuse_unknown(reading: Reading, key: str) -> None:
    if key not in reading.snapshot.view.flags:
        reading.find_flag(key)  # raises UnknownFlag with keys that look alike
        raise click.UsageError(f"{key}: want the key of a served flag, without its source")


def merged_context(texts: Iterable[str]) -> dict[str, Json]:
    """Return the context that several --context options make: JSON, @FILE or K=V each, later ones win.

    Raises:
        click.UsageError, Refused: one of them is none of these.
    """
    merged: dict[str, Json] = {}
    for text in texts:
        merged |= _context(text)
    return merged


def _context(text: str) -> Mapping[str, Json]:
    if text.startswith("@"):
        data = read_limited(Path(text[1:]), limit_bytes=CONTEXT_BYTES_MAX, what="context")
        value = flagfile.parse_document(data, where=text[1:], syntax=flagfile.syntax_of(text[1:], data))
    elif text.lstrip().startswith("{"):
        value = flagfile.parse_document(text.encode(), where="--context", syntax=Syntax.JSON)
    else:
        name, separator, raw = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--context: want JSON, @FILE or K=V, got {text!r}")
        value = {name: _scalar(raw)}
    if not isinstance(value, dict):
        raise click.UsageError(f"--context: want a JSON object, got {type(value).__name__}")
    return value


def _scalar(raw: str) -> Json:
    """A value such as 7, true or null is that; anything else is text."""
    try:
        return flagfile.parse_document(raw.encode(), where="--context", syntax=Syntax.JSON)
    except Refused:
        return raw
