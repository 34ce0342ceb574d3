"""`flaghoist export`: the flags in force as a file that flagd serves."""

import json
from pathlib import Path

import click

from flaghoist.flagd_document import export_caveats, export_document
from flaghoist.selector import Selector
from publisher.cli.desk import Exit
from publisher.cli.reading import read
from publisher.cli.workspace import Workspace, operation
from publisher.files import replace_file


@click.command()
@click.option("--format", "file_format", type=click.Choice(["flagd"]), default="flagd", show_default=True,
              help="flagd: a flag definition file, JSON.")  # fmt: skip
@click.option("--source", metavar="NAME", help="Only the flags of this source; default: those in force.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
@operation(ledger=True)
def export(work: Workspace, file_format: str, source: str | None, out: Path | None) -> Exit:
    """Write the flags in force as a flagd file, which flagd serves with equal answers.

    References to shared evaluators are written out. Where flagd would answer otherwise, a warning names the flag.

    \b
    Examples:
      flaghoist export > flags.json
      flaghoist export --source checkout --out checkout.flagd.json
    """
    reading = read(work)
    view = reading.snapshot.view.select(Selector(source=source))
    document = export_document(view)
    caveats = export_caveats(view, reading.snapshot.fractional)
    for caveat in caveats:
        work.desk.warn(f"{caveat.key}: {caveat.reason}")
    told = [{"key": caveat.key, "reason": caveat.reason} for caveat in caveats]
    fields = {"format": file_format, "seq": view.seq.number, "flags": len(view.flags), "caveats": told}
    if out is None:
        work.desk.result({**fields, "document": json.loads(document)}, document.decode().rstrip("\n"))
        return Exit.OK
    replace_file(out, document, mode=0o644)
    work.desk.result({**fields, "file": str(out)}, str(out))
    work.desk.say(f"{len(view.flags)} flags as of seq {view.seq}")
    return Exit.OK
