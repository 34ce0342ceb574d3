"""`flaghoist release plan`: what a release will do and take, in words, before anything is signed."""

import click

from flaghoist.errors import Misconfigured, WrongRole
from flaghoist.release_plan import plan_fields
from flaghoist.values import Person, Role
from publisher.cli.desk import Exit
from publisher.cli.reading import Reading, read
from publisher.cli.release.fields import flag_change, flag_outlook_fields, needs_fields
from publisher.cli.release.options import is_file, read_release_file, today
from publisher.cli.workspace import Workspace, operation
from publisher.releases.outlook import (
    ahead,
    draft_words,
    flag_outlook,
    needs_lines,
    outlook_lines,
    revert_lines,
)
from publisher.releases.wiring import ReleaseDraft, check_audience, creation, edition, find_release


@click.command()
@click.argument("name", metavar="ID|FILE")
@operation(ledger=True, key=True)
def plan(work: Workspace, name: str) -> Exit:
    """Say what a release does: its flags, services and stages, what each change takes, and what a revert restores.

    Of a FILE it says what making the release, or editing it, would do. Nothing is signed; --key says who would ask.

    \b
    Examples:
      flaghoist release plan release.yaml
      flaghoist release plan checkout-v2
    """
    reading = read(work)
    draft = _draft(work, reading, name) if is_file(name) else None
    snapshot = reading.snapshot
    if draft is None:
        state = find_release(snapshot.releases, name)
        key, shown = state.key, state.plan
    else:
        assert draft.after is not None  # noqa: S101 — a file makes or edits
        key, shown = draft.key, draft.after
        if draft.steps:
            snapshot = snapshot.fold(snapshot.seq.next(), [step.op for step in draft.steps])
        check_audience(snapshot, key, shown)
    needs = ahead(reading.reader.ledger, key, shown, draft, requester=_requester(work, reading))
    changes = draft_words(draft)[1:] if draft is not None and draft.steps else []
    reverts = revert_lines(snapshot, key, shown)
    work.desk.result(
        {
            "id": key,
            "exists": key in reading.snapshot.releases,
            "plan": plan_fields(shown),
            "flags": [flag_outlook_fields(flag_outlook(snapshot, key, *flag)) for flag in shown.flags],
            "changes": [] if draft is None else [flag_change(change) for change in draft.flags],
            "needs": [needs_fields(each) for each in needs],
            "revert": reverts,
        },
        "\n".join(
            [
                *outlook_lines(snapshot, key, shown),
                *(["what the file changes:", *changes] if changes else []),
                "what it takes:",
                *needs_lines(needs),
                *reverts,
            ]
        ),
    )
    if draft is not None and draft.steps and not work.desk.as_json:
        verb = "edit" if draft.before is not None else "create"
        work.desk.next_step(f"`flaghoist release {verb} {f'{key} ' if verb == 'edit' else ''}{name}`")
    return Exit.OK


def _draft(work: Workspace, reading: Reading, name: str) -> ReleaseDraft:
    wish = read_release_file(name)
    if wish.key is None:
        raise click.UsageError(f"{name}: want the release's id, as `release: ID`")
    state = reading.snapshot.releases.get(wish.key)
    if state is None:
        return creation(wish, reading.documents, reading.find_flag, where=name, today=today(work))
    return edition(wish, state, reading.documents, reading.find_flag, where=name, today=today(work))


def _requester(work: Workspace, reading: Reading) -> Person | None:
    """Return who would ask: whose key is here; None when that is not plain."""
    try:
        chosen = work.choose(Role.REQUESTER)
    except (Misconfigured, WrongRole):
        return None
    key = None if chosen.key_id is None else reading.root.key(chosen.key_id)
    return None if key is None else key.person
