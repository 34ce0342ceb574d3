"""`flaghoist init` and `flaghoist root`: a new environment, and who may do what in it."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from flaghoist.codec import ROOT, encode_envelope
from flaghoist.environment import Environment
from flaghoist.errors import Misconfigured, Refused
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from flaghoist.records import RoleGrant, RootKey, RootRecord, RootUpdate
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.signing import seal
from flaghoist.targeting import Fractional
from flaghoist.values import KeyId, Person, Role, Seq
from publisher.cli import workspace
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.key import person_of
from publisher.cli.times import days_ms, moment
from publisher.cli.workspace import Workspace, canonical_url, operation
from publisher.home import read_root
from publisher.journal import Journal
from publisher.keys import Card, HeldKey, check_passphrase, read_card, unlock
from publisher.reader import LedgerReader
from publisher.sequencer import Sequencer
from publisher.signers.keyring import KeyAtHand, UnlockedKey, is_elsewhere

PUBLISHER_KEY: Final = "publisher"
SOLO_LOG_ID: Final = "solo"


class AlreadyBegun(Refused):
    """There is a ledger or a pin already, and it is not the one that was asked for."""

    code = "already_begun"
    hint = "choose another --log-id and --ledger; a ledger is never begun twice"


@click.command()
@click.option(
    "--log-id", "name", metavar="ID", help="Name of the environment, in every signed record: production, say."
)
@click.option("--ledger", "url", metavar="URL", help="sqlite:////path/ledger.db or kafka://host:9092/topic.")
@click.option("--member", "members", multiple=True, type=click.Path(path_type=Path), metavar="FILE.pub",
              help="Card of somebody who may propose and approve; once for each.")  # fmt: skip
@click.option("--approvals", type=click.IntRange(0), default=1, show_default=True,
              help="How many other people must approve a change.")  # fmt: skip
@click.option("--publisher", "publisher_name", metavar="FILE.pub|URI",
              help="The publisher's key: its card, or a URI (hsm:…); default: `publisher` is made here.")  # fmt: skip
@click.option("--sign-with", multiple=True, metavar="NAME|URI",
              help="Members' keys that sign the root; default: all that are here or in the SSH agent.")  # fmt: skip
@click.option("--expires-days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Life of the root.")
@click.option("--fractional", type=click.Choice([f.value for f in Fractional]), default=Fractional.V2.value,
              show_default=True, help="How `fractional` buckets; never changes in a ledger's life.")  # fmt: skip
@click.option("--solo", is_flag=True, help="One person, no approvals: for a laptop.")
@click.option("--person", metavar="PERSON", help="With --solo: who you are.")
@operation(passphrase=True, change=True)
def init(
    work: Workspace,
    name: str | None,
    url: str | None,
    members: tuple[Path, ...],
    approvals: int,
    publisher_name: str | None,
    sign_with: tuple[str, ...],
    expires_days: int,
    fractional: str,
    solo: bool,
    person: str | None,
) -> Exit:
    """Make a ledger, its root, and pin both on this machine.

    Run it on the machine that will publish. Run again after a crash, it finishes.

    \b
    Examples:
      flaghoist init --log-id staging --ledger sqlite:////srv/flags/staging.db \\
          --member ada.pub --member grace.pub
      flaghoist init --log-id production --ledger kafka://broker:9092/flags \\
          --member ada.pub --member grace.pub --member alan.pub --approvals 2
      flaghoist init --solo --person ada@example.org
    """
    if solo:
        if members or publisher_name or sign_with or not person:
            raise click.UsageError(
                "--solo goes with --person PERSON, and without --member, --publisher and --sign-with"
            )
        approvals = 0
    elif person or not members or not name:
        raise click.UsageError(
            "want --log-id ID and --member FILE.pub (once for each person), or --solo --person PERSON"
        )
    log_id = workspace.log_id(name or SOLO_LOG_ID)
    ledger = _ledger_url(work, url, solo=solo, name=log_id)
    parts = _Parts(work)
    if solo:
        assert person is not None  # noqa: S101 — checked above
        cards = [parts.own_card(_solo_key_name(person), person_of(person))]
        publisher, signers = cards[0], cards
    else:
        cards = [read_card(path) for path in members]
        signers = parts.signing_cards(cards, sign_with)
        publisher = parts.publisher_card(publisher_name)
        parts.want_here(publisher)
    expires_at = work.now_ms() + days_ms(expires_days)
    record = RootRecord(
        log_id=log_id,
        version=FIRST_VERSION,
        prev_root_sha256=bytes(32),
        anchor_seq=Seq(0),
        anchor_hash=bytes(32),
        expires_at=expires_at,
        keys=_root_keys([*cards, publisher]),
        roles=_roles(cards, signers, publisher, approvals),
        fractional=fractional,
        policy="",
        revoked=(),
    )
    _check_people(cards, approvals)
    _show_plan(work, record, ledger)
    root_path = work.home.root_file(log_id)
    known = work.home.environments().known.get(log_id)
    if known is not None and (known.ledger != ledger or known.root != root_path):
        raise AlreadyBegun(f"{log_id} is pinned here to {known.ledger}, {known.root}; asked for {ledger}")
    if root_path.exists():
        _check_same(read_root(root_path), record, root_path)
    if work.dry_run:
        work.desk.result({"dry_run": True, "log_id": log_id, "ledger": ledger}, "")
        return Exit.OK
    if not work.desk.confirm(f"Make {log_id} at {ledger}?"):
        return Exit.USAGE
    root = parts.root(record, signers, root_path)
    held = parts.unlock(publisher)
    try:
        seq = asyncio.run(_begin(work, root, ledger, held))
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted; run the same command again: it finishes what was begun") from stop
    work.home.pin(Environment(log_id, ledger, root_path))
    work.desk.result(
        {"log_id": log_id, "ledger": ledger, "root": str(root_path), "root_sha256": root.sha256.hex(), "head": seq},
        f"{log_id}: ledger {ledger}\nroot {root_path}\nroot digest {root.sha256.hex()}",
    )
    if solo:
        work.desk.warn(
            f"nothing in {log_id} needs an approval: whoever holds this key changes any flag. Not for teams."
        )
    work.desk.next_step(f"`flaghoist import FILE`, or start `flaghoist-sidecar --ledger {ledger} --root {root_path}`")
    return Exit.OK


class _Parts:
    """The keys that a new environment takes, made or unlocked here."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._keys = work.home.keys
        self._at_hand: dict[KeyId | None, KeyAtHand] = {key.key_id: key for key in work.keyring.of_files()}
        self._held: dict[KeyId, UnlockedKey] = {}

    def publisher_card(self, name: str | None) -> Card:
        """Return the publisher's card: in that file, or of the key at that URI; of one made here when none is named."""
        if name is None:
            return self.own_card(PUBLISHER_KEY, Person(PUBLISHER_KEY))
        if not is_elsewhere(name):
            return read_card(Path(name))
        key = self._work.keyring.named(name)
        assert key.algorithm is not None  # noqa: S101 — only a key in a file may lack its card
        assert key.public is not None  # noqa: S101
        self._at_hand[key.key_id] = key
        return Card(Person(PUBLISHER_KEY), key.algorithm, key.public)

    def own_card(self, name: str, person: Person) -> Card:
        """Return the card of a key of this machine; it is made when there is none of that name."""
        if name in self._keys.names():
            card = self._keys.card(self._keys.path(name))
            if card is None or card.person != person:
                held_by = card.person if card else "nobody"
                raise Misconfigured(f"key {name!r} is here already and belongs to {held_by}, not to {person}")
            self._work.desk.say(f"using the key {name!r} that is here")
            return card
        if self._work.dry_run:
            self._work.desk.say(f"would make the key {name!r} for {person}")
            # Stands for the key that would be made; nothing is signed in a dry run.
            return Card(person, HeldKey.algorithm, HeldKey(bytes(32)).public)
        passphrase = self._work.new_passphrase(name)
        check_passphrase(passphrase)
        card = self._keys.create(name, person, passphrase)
        self._at_hand[card.key_id] = self._work.keyring.named(name)
        self._held[card.key_id] = unlock(self._keys.path(name), lambda: passphrase)
        self._work.desk.say(f"made the key {name!r} for {person}: {self._keys.path(name)}")
        return card

    def signing_cards(self, cards: Sequence[Card], sign_with: Sequence[str]) -> list[Card]:
        """Return the members' cards whose keys sign the root."""
        self._at_hand |= {key.key_id: key for key in self._work.keyring.of_agent(cards)}
        if sign_with:
            named = {key.key_id: key for key in map(self._work.keyring.named, sign_with)}
            if strangers := set(named) - {card.key_id for card in cards}:
                names = ", ".join(sorted(named[key_id].name for key_id in strangers))
                raise click.UsageError(f"--sign-with {names}: want members' keys of this machine")
            self._at_hand |= named
            return [card for card in cards if card.key_id in named]
        here = [card for card in cards if card.key_id in self._at_hand]
        if not here:
            raise Misconfigured(
                "no member's private key is here, and the root must be signed by at least one member",
                hint="run this where a member's key is, or make one with `flaghoist key new`",
            )
        return here

    def want_here(self, card: Card) -> None:
        """Refuse a publisher's card whose private half is elsewhere: it must sign the first entry now."""
        self._at_hand |= {key.key_id: key for key in self._work.keyring.of_agent([card])}
        if card.key_id not in self._at_hand and not self._work.dry_run:
            raise Misconfigured(
                f"the publisher's key {card.key_id} ({card.person}) is not here, and it must sign the first entry",
                hint="run `flaghoist init` on the machine that publishes; name a key in an HSM or KMS by its URI",
            )

    def unlock(self, card: Card) -> UnlockedKey:
        if card.key_id not in self._held:
            self._held[card.key_id] = self._at_hand[card.key_id].open()
        return self._held[card.key_id]

    def root(self, record: RootRecord, signers: Sequence[Card], path: Path) -> Root:
        """Return the signed root; that of an earlier, unfinished run if there is one, so that a rerun finishes it."""
        if path.exists():
            return read_root(path)
        root = Root.verified(seal(ROOT, record, [self.unlock(card) for card in signers]))
        self._work.home.write_root(encode_envelope(root.envelope), record.log_id)
        return root


async def _begin(work: Workspace, root: Root, ledger: str, signer: UnlockedKey) -> int:
    """Make the log and append its first entry, unless an earlier run has; return the head's seq.

    Raises:
        AlreadyBegun: the log holds something else.
    """
    await create_log(ledger)
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal.open(work.home.journals, root.log_id))
        log = await stack.enter_async_context(open_log(ledger)(Stream.LEDGER))
        reader = LedgerReader(log, Ledger(root))
        sequencer = Sequencer(reader, journal, signer, holder=work.holder(), clock_ms=work.now_ms)
        await sequencer.catch_up()
        if reader.ledger.head.seq == Seq(0):
            if held := sum(reader.tally.values()):
                raise AlreadyBegun(
                    f"ledger {ledger}: want an empty log, got {held} records that this root did not begin"
                )
            await sequencer.append(RootUpdate(root.envelope))
        return reader.ledger.head.seq.number


@click.group()
def root() -> None:
    """Show and pin roots: who may do what."""


@root.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ledger", "url", required=True, metavar="URL", help="The ledger that must start with this root.")
@operation(change=True)
def pin(work: Workspace, file: Path, url: str) -> Exit:
    """Trust the root in FILE on this machine, from now on, for the ledger at URL.

    Get FILE from whoever ran `flaghoist init`, by a way that you trust: it decides whose changes count.
    """
    shown = read_root(file)
    ledger = canonical_url(url)
    known = work.home.environments().known.get(shown.log_id)
    path = work.home.root_file(shown.log_id)
    if known is not None and read_root(known.root).sha256 != shown.sha256:
        raise AlreadyBegun(f"{shown.log_id} is pinned here to another root, {known.root}")
    work.desk.say(f"{shown.log_id} at {ledger}, root digest {shown.sha256.hex()}")
    if work.dry_run:
        work.desk.result({"dry_run": True, "log_id": shown.log_id, "ledger": ledger})
        return Exit.OK
    if not work.desk.confirm("Is this the digest that you were told?"):
        return Exit.USAGE
    work.home.write_root(encode_envelope(shown.envelope), shown.log_id)
    work.home.pin(Environment(shown.log_id, ledger, path))
    work.desk.result({"log_id": shown.log_id, "ledger": ledger, "root": str(path), "root_sha256": shown.sha256.hex()})
    work.desk.next_step("`flaghoist doctor`")
    return Exit.OK


@root.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@operation(ledger=True)
def show(work: Workspace, file: Path | None) -> Exit:
    """Show a root: the pinned one, or the one in FILE."""
    shown = read_root(file) if file is not None else work.root
    record = shown.record
    granted = [(role, grant) for role, grant in sorted(record.roles.items()) if grant.key_ids]
    people = {role: sorted(shown.people_of(role)) for role, _ in granted}
    work.desk.result(
        {
            "log_id": record.log_id,
            "version": record.version,
            "sha256": shown.sha256.hex(),
            "expires_at": record.expires_at,
            "fractional": record.fractional,
            "keys": [{"key_id": k.key_id, "algorithm": k.algorithm, "person": k.person} for k in record.keys],
            "roles": {role: {"people": people[role], "threshold": grant.threshold} for role, grant in granted},
        },
        f"{record.log_id} root version {record.version}, digest {shown.sha256.hex()}\n"
        f"expires {moment(record.expires_at)}, fractional {record.fractional}",
    )
    rows = [(role, str(grant.threshold), ", ".join(people[role])) for role, grant in granted]
    work.desk.table(("role", "people needed", "people"), rows)
    return Exit.OK


def _ledger_url(work: Workspace, url: str | None, *, solo: bool, name: str) -> str:
    given = url or work.desk.environ.get("FLAGHOIST_LEDGER")
    if given is None and solo:
        directory = work.home.state / "ledgers"
        if not work.dry_run:
            from publisher.files import make_private_directory

            make_private_directory(directory)
        given = f"sqlite:///{directory}/{name}.db"
    if given is None:
        raise click.UsageError("want --ledger URL: where the new ledger shall be")
    return canonical_url(given)


def _solo_key_name(person: str) -> str:
    return person.partition("@")[0].replace("+", "-") or "me"


def _root_keys(cards: Sequence[Card]) -> tuple[RootKey, ...]:
    unique = {card.key_id: card for card in cards}
    return tuple(RootKey(key_id, card.algorithm, card.public, card.person) for key_id, card in unique.items())


def _roles(cards: Sequence[Card], signers: Sequence[Card], publisher: Card, approvals: int) -> dict[Role, RoleGrant]:
    everyone = frozenset(card.key_id for card in cards)
    return {
        Role.ROOT: RoleGrant(frozenset(card.key_id for card in signers), len({card.person for card in signers})),
        Role.REQUESTER: RoleGrant(everyone, 1),
        Role.APPROVER: RoleGrant(everyone, approvals),
        Role.PUBLISHER: RoleGrant(frozenset({publisher.key_id}), 1),
        Role.HEARTBEAT: RoleGrant(frozenset(), 0),
        Role.CHECKPOINTER: RoleGrant(frozenset(), 0),
        Role.EMERGENCY: RoleGrant(frozenset(), 0),
    }


def _check_people(cards: Sequence[Card], approvals: int) -> None:
    people = sorted({card.person for card in cards})
    if approvals and len(people) <= approvals:
        raise click.UsageError(
            f"--approvals {approvals}: each change takes its requester and {approvals} others, "
            f"and there are {len(people)} people: {', '.join(people)}"
        )


def _show_plan(work: Workspace, record: RootRecord, ledger: str) -> None:
    people = sorted({key.person for key in record.keys if key.key_id in record.roles[Role.REQUESTER].key_ids})
    say = work.desk.say
    say(f"environment {record.log_id}, ledger {ledger}")
    say(f"  may propose and approve: {', '.join(people)}")
    say(f"  approvals of others that a change needs: {record.roles[Role.APPROVER].threshold}")
    say(f"  people who sign the root: {record.roles[Role.ROOT].threshold}; it expires {moment(record.expires_at)}")
    say(f"  fractional {record.fractional}")


def _check_same(found: Root, wanted: RootRecord, path: Path) -> None:
    """Refuse a root file of an earlier run that says something else; only its expiry may differ."""
    if replace(found.record, expires_at=wanted.expires_at) != wanted:
        raise AlreadyBegun(
            f"{path}: a root of {found.log_id} is here already, with other people, keys or settings",
            hint="choose another --log-id; or move that file away, if its ledger never began",
        )
