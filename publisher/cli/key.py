"""`flaghoist key`: make and show keys."""

from pathlib import Path

import click

from flaghoist.errors import Malformed
from flaghoist.values import Person
from publisher.cli.desk import Exit
from publisher.cli.workspace import Workspace, operation
from publisher.keys import Card, check_passphrase, read_card


@click.group()
def key() -> None:
    """Make and show keys.

    \b
    A key has two files in the configuration directory:
      keys/ada.pem   the private half, encrypted with your passphrase
      keys/ada.pub   the card: hand it to whoever runs `flaghoist init`
    """


def person_of(text: str) -> Person:
    """Return a person from the command line.

    Raises:
        click.UsageError: odd characters.
    """
    try:
        return Person(text)
    except Malformed as error:
        raise click.UsageError(str(error)) from error


@key.command()
@click.argument("name")
@click.option("--person", required=True, metavar="PERSON", help="Who holds it: an e-mail address, say.")
@operation(passphrase=True, change=True)
def new(work: Workspace, name: str, person: str) -> Exit:
    """Make a key for a person.

    \b
    Examples:
      flaghoist key new ada --person ada@example.org
      flaghoist key new ci --person ci@example.org --passphrase-file /run/secrets/ci
    """
    holder = person_of(person)
    keys = work.home.keys
    path = keys.path(name)
    if work.dry_run:
        work.desk.result({"dry_run": True, "name": name, "person": holder, "file": str(path)}, f"would make {path}")
        return Exit.OK
    passphrase = work.new_passphrase(name)
    check_passphrase(passphrase)
    card = keys.create(name, holder, passphrase)
    show_card(work, name, card, path)
    work.desk.next_step(f"give {path.with_suffix('.pub')} to whoever runs `flaghoist init`; keep the passphrase")
    return Exit.OK


@key.command()
@click.argument("name", required=False)
@operation()
def show(work: Workspace, name: str | None) -> Exit:
    """Show a key's card; without NAME, of the only key here.

    NAME is a key's name, or a path to a key or a card.
    """
    keys = work.home.keys
    names = keys.names()
    if name is None:
        if len(names) != 1:
            raise click.UsageError(f"which key? here are: {', '.join(names) or 'none'}")
        name = names[0]
    path = Path(name) if name.endswith(".pub") and "/" in name else keys.find(name)
    card = read_card(path.with_suffix(".pub"))
    show_card(work, path.stem, card, path)
    return Exit.OK


@key.command("list")
@operation()
def list_keys(work: Workspace) -> Exit:
    """List the keys of this machine."""
    cards = list(work.home.keys.cards())
    work.desk.result([{"name": name, **card.fields()} for name, card in cards])
    work.desk.table(("name", "person", "algorithm", "key id"), [(n, c.person, c.algorithm, c.key_id) for n, c in cards])
    if not cards:
        work.desk.next_step("make one with `flaghoist key new NAME --person YOU`")
    return Exit.OK


def show_card(work: Workspace, name: str, card: Card, path: Path) -> None:
    """Give a key's card as the result."""
    fields = card.fields()
    text = "\n".join(f"{label:10}{value}" for label, value in {"name": name, **fields, "file": str(path)}.items())
    work.desk.result({"name": name, **fields, "file": str(path)}, text)
