"""`flaghoist key`: make and show keys, and cards for keys that are held elsewhere."""

from pathlib import Path

import click

from flaghoist.errors import FlaghoistError, Malformed, Misconfigured
from flaghoist.records import RootKey
from flaghoist.values import Algorithm, KeyId, Person
from publisher.cli.desk import Exit
from publisher.cli.workspace import Workspace, operation
from publisher.files import replace_file
from publisher.home import read_root
from publisher.keys import Card, check_passphrase, read_card
from publisher.signers.agent import SCHEME as SSH_SCHEME
from publisher.signers.keyring import Holder, KeyAtHand


@click.group()
def key() -> None:
    """Make and show keys.

    \b
    A key of your own has two files in the configuration directory:
      keys/ada.pem   the private half, encrypted with your passphrase
      keys/ada.pub   the card: hand it to whoever runs `flaghoist init`
    An SSH key, or one in an HSM or KMS, needs the card only.

    \b
    Examples:
      flaghoist key new ada --person ada@example.org
      flaghoist key card --ssh ~/.ssh/id_ed25519.pub --person ada@example.org --out ada.pub
      flaghoist key card --key "hsm:1?label=flags" --person ada@example.org --out ada.pub
      flaghoist key list

    \b
    Which for whom: docs/signers.md
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


@key.command("card")
@click.option(
    "--ssh", metavar="KEY", help="An Ed25519 SSH key: FILE.pub, SHA256:…, its comment, or `ssh-ed25519 AAAA…`."
)
@click.option("--person", required=True, metavar="PERSON", help="Who holds it: an e-mail address, say.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.pub", help="Default: print the card.")
@operation(key=True, change=True)
def make_card(work: Workspace, ssh: str | None, person: str, out: Path | None) -> Exit:
    """Make the card of a key that the SSH agent, an HSM or a KMS holds.

    The card is for whoever runs `flaghoist init` or `flaghoist root propose`. Commands then sign with --key,
    FLAGHOIST_KEY or the setting `key`; an SSH key that the root lists is also found by itself.

    \b
    Examples:
      flaghoist key card --ssh ~/.ssh/id_ed25519.pub --person ada@example.org --out ada.pub
      flaghoist key card --ssh ada@laptop --person ada@example.org --out ada.pub
      flaghoist key card --key "hsm:1?label=flags" --person publisher --out publisher.pub
      flaghoist key card --key awskms:alias/flaghoist --person publisher --out publisher.pub
    """
    holder = person_of(person)
    if (ssh is None) == (work.key_option is None):
        raise click.UsageError("want one of --ssh KEY and --key URI")
    if out is not None and out.exists():
        raise Misconfigured(f"--out {out}: is there already", hint="name a new file")
    named = work.keyring.named(work.key_option or f"{SSH_SCHEME}{(ssh or '').removeprefix(SSH_SCHEME)}")
    if named.holder is Holder.FILE or named.algorithm is None or named.public is None:
        raise click.UsageError(
            f"--key {work.key_option}: a key in a file has its card beside it; see `flaghoist key show {named.name}`"
        )
    made = Card(holder, named.algorithm, named.public)
    text = made.render().decode().rstrip()
    if out is None:
        work.desk.result(made.fields(), text)
        return Exit.OK
    if work.dry_run:
        work.desk.result({"dry_run": True, **made.fields(), "file": str(out)}, f"would write {out}:\n{text}")
        return Exit.OK
    replace_file(out, made.render(), mode=0o644)
    show_card(work, named.name, made, out)
    work.desk.next_step(f"give {out} to whoever runs `flaghoist init` or `flaghoist root propose`")
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
    """List the keys of this machine, and those of the SSH agent that a root pinned here lists."""
    people: dict[tuple[KeyId, Person], tuple[str, Holder, Card]] = {
        (card.key_id, card.person): (name, Holder.FILE, card) for name, card in work.home.keys.cards()
    }
    listed = _keys_of_pinned_roots(work)
    at_hand: dict[KeyId | None, KeyAtHand] = {found.key_id: found for found in work.keyring.of_agent(listed)}
    for root_key in listed:
        if found := at_hand.get(root_key.key_id):
            card = Card(root_key.person, root_key.algorithm, root_key.public)
            people[(card.key_id, card.person)] = (found.name, found.holder, card)
    rows = list(people.values())
    work.desk.result([{"name": name, "holder": holder, **card.fields()} for name, holder, card in rows])
    work.desk.table(
        ("name", "held by", "person", "algorithm", "key id"),
        [(name, holder, card.person, card.algorithm, card.key_id) for name, holder, card in rows],
    )
    if trouble := work.keyring.agent_trouble:
        work.desk.warn(f"{trouble}: keys that it holds are not listed")
    if not rows:
        work.desk.next_step(
            "make one with `flaghoist key new NAME --person YOU`; to take your SSH key: docs/signers.md"
        )
    return Exit.OK


def _keys_of_pinned_roots(work: Workspace) -> list[RootKey]:
    """Return the SSH keys of all pinned roots; a root that cannot be read is told of, and lists none."""
    found: list[RootKey] = []
    for environment in work.home.environments().known.values():
        try:
            found += read_root(environment.root).record.keys
        except FlaghoistError as error:
            work.desk.warn(str(error))
    return [root_key for root_key in found if root_key.algorithm is Algorithm.SSHSIG_ED25519]


def show_card(work: Workspace, name: str, card: Card, path: Path) -> None:
    """Give a key's card as the result."""
    fields = card.fields()
    text = "\n".join(f"{label:10}{value}" for label, value in {"name": name, **fields, "file": str(path)}.items())
    work.desk.result({"name": name, **fields, "file": str(path)}, text)
