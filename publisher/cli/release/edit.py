"""`flaghoist release edit`: another plan for a release, and its flags wired or given back, as one proposal."""

from dataclasses import replace

import click

from publisher.cli.desk import Exit
from publisher.cli.proposing import Wording, submit
from publisher.cli.reading import read
from publisher.cli.release.fields import flag_change
from publisher.cli.release.options import described, id_in, read_release_file, today
from publisher.cli.workspace import Workspace, operation
from publisher.releases.file import ReleaseWish
from publisher.releases.outlook import draft_words
from publisher.releases.wiring import check_audience, edition, find_release, wish_of, with_flags


@click.command()
@click.argument("name", metavar="ID")
@click.argument("file", required=False)
@click.option("--remove-flag", "removed", multiple=True, metavar="KEY", help="A flag to take out; once for each.")
@operation(ledger=True, key=True, change=True)
@described
def edit(
    work: Workspace, wording: Wording, name: str, file: str | None, removed: tuple[str, ...], wish: ReleaseWish
) -> Exit:
    """Propose another plan for the release ID: what a FILE says, as a whole, or what the options say.

    With options, --flag adds a flag, and all that is not named stays; an empty text takes a field away. Flags are added
    and taken out while the gate is closed only. A flag that lost its wiring, to a kill say, is wired again. The gate
    itself is moved with ramp, activate and revert.

    \b
    Examples:
      flaghoist release edit checkout-v2 release.yaml
      flaghoist release edit checkout-v2 --flag newWallet --remove-flag newCart
      flaghoist release edit checkout-v2 --stage 5%:1h --stage 100% --expires 2027-06-30
    """
    reading = read(work)
    state = find_release(reading.snapshot.releases, name)
    if file is not None:
        said = read_release_file(file)
        if said.key is not None and said.key != state.key:
            raise click.UsageError(f"{file}: want release {state.key}, got {said.key}: a release keeps its id")
        if removed:
            raise click.UsageError("--remove-flag: want it without FILE, which names the flags that are to stay")
        whole = ReleaseWish(key=id_in(name)).over(wish.over(said))
    else:
        gone = [reading.flag_named(key) for key in removed]
        kept = with_flags(wish_of(state.key, state.plan), wish.flags or (), gone)
        absent = [str(s) for s in gone if (s.source, s.key) not in state.plan.flags]
        if absent:
            raise click.UsageError(f"--remove-flag: want flags of release {state.key}, got {', '.join(absent)}")
        whole = replace(wish, flags=None).over(kept)
    where = file or f"release {state.key}"
    grow = file is None and wish.services is None
    draft = edition(
        whole, state, reading.documents, reading.find_flag, where=where, today=today(work), grow_services=grow
    )
    if not draft.steps:
        work.desk.result({"proposals": [], "release": state.key, "flags": []}, None)
        work.desk.say(f"nothing to propose: release {state.key} is so already (seq {state.version})")
        return Exit.OK
    assert draft.after is not None  # noqa: S101 — an edit leaves one
    check_audience(reading.snapshot, draft.key, draft.after)
    words = draft_words(draft)
    fields = {"release": draft.key, "flags": [flag_change(change) for change in draft.flags]}
    title = words[0].replace(f"release {state.key}: ", f"edit release {state.key}: ", 1)
    return submit(work, reading, [draft.steps], wording, title, fields, words=words)
