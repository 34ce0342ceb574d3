"""`flaghoist release delete`: a release goes, and its flags get their rules back, or go with it."""

import click

from publisher.cli.desk import Exit
from publisher.cli.proposing import Wording, submit, worded
from publisher.cli.reading import read
from publisher.cli.release.fields import flag_change
from publisher.cli.workspace import Workspace, operation
from publisher.releases.outlook import draft_words
from publisher.releases.wiring import deletion, find_release


@click.command()
@click.argument("name", metavar="ID")
@click.option("--with-flags", is_flag=True, help="Delete its flags too, once no service asks for them.")
@operation(ledger=True, key=True, change=True)
@worded
def delete(work: Workspace, wording: Wording, name: str, with_flags: bool) -> Exit:
    """Propose to delete the release ID; its flags get their rules back as they were before it.

    Its gate must be closed, so that nobody's answers change. With --with-flags it may also be open for everybody: that
    is the cleanup, after the services have the new way built in and ask for the flags no more.

    \b
    Examples:
      flaghoist release delete checkout-v2
      flaghoist release delete checkout-v2 --with-flags --ticket SHOP-7
    """
    reading = read(work)
    draft = deletion(find_release(reading.snapshot.releases, name), reading.documents, with_flags=with_flags)
    fields = {"release": draft.key, "flags": [flag_change(change) for change in draft.flags]}
    title = f"delete release {draft.key}{' and its flags' if with_flags else ''}"
    return submit(work, reading, [draft.steps], wording, title, fields, words=draft_words(draft))
