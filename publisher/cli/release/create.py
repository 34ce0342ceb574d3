"""`flaghoist release create`: a release and the wiring of its flags, as one proposal that changes nobody's answers."""

import click

from publisher.cli.desk import Exit
from publisher.cli.proposing import Wording, submit
from publisher.cli.reading import read
from publisher.cli.release.fields import flag_change
from publisher.cli.release.options import described, id_in, is_file, read_release_file, today
from publisher.cli.workspace import Workspace, operation
from publisher.releases.file import NO_WISH, ReleaseWish
from publisher.releases.outlook import draft_words, outlook_lines
from publisher.releases.wiring import check_audience, creation


@click.command()
@click.argument("names", nargs=-1, metavar="[FILE] [ID]")
@operation(ledger=True, key=True, change=True)
@described
def create(work: Workspace, wording: Wording, names: tuple[str, ...], wish: ReleaseWish) -> Exit:
    """Propose a release: its plan, a closed gate, and the wiring of its flags, in one proposal.

    From a FILE (release.yaml; `-` is stdin), or from options; options win over the file. Flags that exist keep their
    rule for everybody whom the gate does not let in; flags that do not exist are made with --pattern, or by the file.

    \b
    Examples:
      flaghoist release create release.yaml
      flaghoist release create release.yaml --dry-run
      flaghoist release create checkout-v2 --flag newCheckout --flag newCart=v2 \\
          --owner ada@example.org --stage 1%:1h --stage 10%:1d --stage 100%
      flaghoist release create checkout-v2 --pattern '{service}.{release}' \\
          --service cart --service mail --owner ada@example.org --ticket SHOP-7
    """
    files = [name for name in names if is_file(name)]
    ids = [name for name in names if name not in files]
    if len(files) > 1 or len(ids) > 1 or not names:
        raise click.UsageError("want FILE, or ID with options, or both")
    where = files[0] if files else f"release {ids[0]}"
    whole = wish.over(read_release_file(files[0]) if files else NO_WISH)
    if ids:
        whole = ReleaseWish(key=id_in(ids[0])).over(whole)
    if whole.key is None:
        raise click.UsageError(f"{where}: want the release's id: as `release: ID` in the file, or as ID")
    reading = read(work)
    draft = creation(whole, reading.documents, reading.find_flag, where=where, today=today(work))
    assert draft.after is not None  # noqa: S101 — it is made
    # After what the steps make: flags that are made with it are there then.
    after = reading.snapshot.fold(reading.snapshot.seq.next(), [step.op for step in draft.steps])
    check_audience(after, draft.key, draft.after)
    words = [*outlook_lines(after, draft.key, draft.after), *draft_words(draft)[1:]]
    fields = {"release": draft.key, "flags": [flag_change(change) for change in draft.flags]}
    title = f"create release {draft.key}: {draft.after.title}"
    return submit(work, reading, [draft.steps], wording, title, fields, words=words)
