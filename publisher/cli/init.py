"""`flaghoist init`: a new environment: its keys, its first root, its ledger, and the pin on this machine."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from flaghoist.codec import ROOT, encode_envelope
from flaghoist.environment import Environment
from flaghoist.errors import Misconfigured, Refused
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from flaghoist.records import Envelope, RoleGrant, RootKey, RootRecord, RootUpdate
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.signing import countersign
from flaghoist.targeting import Fractional
from flaghoist.values import KeyId, LogId, Person, Role, Seq
from publisher import root_plan
from publisher.cli import workspace
from publisher.cli.desk import Exit, Interrupted
from publisher.cli.key import person_of
from publisher.cli.root.plan import envelope_in, plan_fields, say_missing, show_plan
from publisher.cli.root.propose import EXPIRES_DAYS_DEFAULT, EXPIRES_DAYS_MAX, policy_text
from publisher.cli.times import days_ms, moment
from publisher.cli.workspace import Workspace, canonical_url, operation
from publisher.files import make_private_directory, replace_file
from publisher.journal import Journal
from publisher.keys import Card, HeldKey, check_passphrase, read_card, unlock
from publisher.reader import LedgerReader
from publisher.root_signatures import RootEdited, SignedRoot, check_unedited, signed_root
from publisher.sequencer import Sequencer
from publisher.signers.keyring import KeyAtHand, UnlockedKey, is_elsewhere

PUBLISHER_KEY: Final = "publisher"
HEARTBEAT_KEY: Final = "heartbeat"
SOLO_LOG_ID: Final = "solo"
# Two of three: no stolen key makes a root alone, and no lost one stops the next.
ROOT_THRESHOLD_DEFAULT: Final = 2
ROOT_PEOPLE_WANTED: Final = 3


class AlreadyBegun(Refused):
    """There is a ledger or a pin already, and it is not the one that was asked for."""

    code = "already_begun"
    hint = "choose another --log-id and --ledger; a ledger is never begun twice"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for; `members` and the others are empty with `solo`."""

    members: tuple[Path, ...]
    approvals: int
    root_threshold: int | None
    publisher: str | None
    heartbeat: Path | None
    no_heartbeats: bool
    emergency: tuple[Path, ...]
    sign_with: tuple[str, ...]
    signed: tuple[Path, ...]
    policy: Path | None
    person: str | None
    solo: bool

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            click.UsageError: so it is.
        """
        teams = (self.members, self.publisher, self.heartbeat, self.emergency, self.sign_with, self.signed, self.policy)
        if self.solo and (any(teams) or self.root_threshold is not None or not self.person):
            raise click.UsageError(
                "--solo goes with --person PERSON, and without --member, --publisher, --heartbeat, --emergency, "
                "--policy, --root-threshold, --sign-with and --signed"
            )
        if not self.solo and (self.person or not self.members):
            raise click.UsageError(
                "want --log-id ID and --member FILE.pub (once for each person), or --solo --person PERSON"
            )
        if self.heartbeat is not None and self.no_heartbeats:
            raise click.UsageError("want one of --heartbeat and --no-heartbeats")


_FILE: Final = click.Path(path_type=Path)


@click.command()
@click.option(
    "--log-id", "name", metavar="ID", help="Name of the environment, in every signed record: production, say."
)
@click.option("--ledger", "url", metavar="URL", help="sqlite:////path/ledger.db or kafka://host:9092/topic.")
@click.option("--member", "members", multiple=True, type=_FILE, metavar="FILE.pub",
              help="Card of somebody who may propose, approve and sign roots; once for each.")  # fmt: skip
@click.option("--approvals", type=click.IntRange(0), default=1, show_default=True,
              help="How many other people must approve a change.")  # fmt: skip
@click.option("--root-threshold", type=click.IntRange(1), metavar="N",
              help="How many members must sign a root.  [default: 2, of three or more]")  # fmt: skip
@click.option("--publisher", metavar="FILE.pub|URI",
              help="The publisher's key: its card, or a URI (hsm:…); default: `publisher` is made here.")  # fmt: skip
@click.option("--heartbeat", type=_FILE, metavar="FILE.pub",
              help="Card of the heartbeats' key; default: `heartbeat` is made here.")  # fmt: skip
@click.option("--no-heartbeats", is_flag=True, help="No heartbeats: how fresh a sidecar is, is the log's word.")
@click.option("--emergency", multiple=True, type=_FILE, metavar="FILE.pub",
              help="Card of a second key of somebody who may kill flags alone; once for each.")  # fmt: skip
@click.option("--policy", type=_FILE, metavar="FILE", help="Who may propose and approve what (docs/policy.md).")
@click.option("--sign-with", multiple=True, metavar="NAME|URI",
              help="Members' keys that sign the root; default: all that are here or in the SSH agent.")  # fmt: skip
@click.option("--signed", multiple=True, type=_FILE, metavar="FILE",
              help="The root, signed by others with `flaghoist root sign`; once for each copy.")  # fmt: skip
@click.option("--expires-days", type=click.IntRange(1, EXPIRES_DAYS_MAX), default=EXPIRES_DAYS_DEFAULT,
              show_default=True, help="Life of the root.")  # fmt: skip
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
    root_threshold: int | None,
    publisher: str | None,
    heartbeat: Path | None,
    no_heartbeats: bool,
    emergency: tuple[Path, ...],
    policy: Path | None,
    sign_with: tuple[str, ...],
    signed: tuple[Path, ...],
    expires_days: int,
    fractional: str,
    solo: bool,
    person: str | None,
) -> Exit:
    """Make a ledger, its root, and pin both on this machine.

    Run it on the machine that will publish. The root is signed with the members' keys that are here; where others must
    sign it too, it is written to a file for them, and the same command, run again with their copies, goes on. After a
    crash, run it again: it finishes.

    \b
    Examples:
      flaghoist init --log-id production --ledger kafka://broker:9092/flags \\
          --member ada.pub --member grace.pub --member linus.pub --emergency ada-emergency.pub
      flaghoist init …the same… --signed production.root
      flaghoist init --log-id staging --ledger sqlite:////srv/flags/staging.db \\
          --member ada.pub --member grace.pub --root-threshold 1
      flaghoist init --solo --person ada@example.org
    """
    asked = Asked(
        members, 0 if solo else approvals, root_threshold, publisher, heartbeat, no_heartbeats or solo, emergency,
        sign_with, signed, policy, person, solo,
    )  # fmt: skip
    asked.check()
    if not solo and not name:
        raise click.UsageError("want --log-id ID: the environment's name, which stands in every signed record")
    log_id = workspace.log_id(name or SOLO_LOG_ID)
    ledger = _ledger_url(work, url, solo=solo, name=log_id)
    parts = _Parts(work)
    rules = "" if policy is None else policy_text(policy)  # its faults are told before any key is made
    keys = _Keys.of(asked, parts)
    record = RootRecord(
        log_id=log_id,
        version=FIRST_VERSION,
        prev_root_sha256=bytes(32),
        anchor_seq=Seq(0),
        anchor_hash=bytes(32),
        expires_at=work.now_ms() + days_ms(expires_days),
        keys=keys.listed(),
        roles=keys.roles(asked),
        fractional=fractional,
        policy=rules,
        revoked=(),
    )
    case = _case(work, record, asked, parts, keys)
    root_plan.check_usable(case.root)
    if policy is not None:
        root_plan.check_policy(case.root, now_ms=work.now_ms())
    work.desk.say(f"environment {log_id}, ledger {ledger}")
    _show(work, case, asked)
    root_path = work.home.root_file(log_id)
    known = work.home.environments().known.get(log_id)
    if known is not None and (known.ledger != ledger or known.root != root_path):
        raise AlreadyBegun(f"{log_id} is pinned here to {known.ledger}, {known.root}; asked for {ledger}")
    if work.dry_run:
        fields = plan_fields(case, now_ms=work.now_ms())
        work.desk.result({"dry_run": True, "log_id": log_id, "ledger": ledger, "plan": fields}, "")
        return Exit.OK
    if not work.desk.confirm(f"Make {log_id} at {ledger}?"):
        return Exit.USAGE
    case = _signed_here(work, case, parts, keys)
    if case.missing:
        return _ask_others(work, case, ledger)
    return _begin(work, case.root, ledger, parts.unlock(keys.publisher), asked)


def _begin(work: Workspace, root: Root, ledger: str, signer: UnlockedKey, asked: Asked) -> Exit:
    root = Root.verified(root.envelope)
    work.home.write_root(encode_envelope(root.envelope), root.log_id)
    try:
        seq = asyncio.run(_append(work, root, ledger, signer))
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted; run the same command again: it finishes what was begun") from stop
    path = work.home.root_file(root.log_id)
    work.home.pin(Environment(root.log_id, ledger, path))
    _draft_file(work, root.log_id).unlink(missing_ok=True)
    digest = root.sha256.hex()
    work.desk.result(
        {"log_id": root.log_id, "ledger": ledger, "root": str(path), "root_sha256": digest, "head": seq, "begun": True},
        f"{root.log_id}: ledger {ledger}\nroot {path}\nroot digest {digest}",
    )
    if asked.solo:
        work.desk.warn(
            f"nothing in {root.log_id} needs an approval: whoever holds this key changes any flag. Not for teams."
        )
    else:
        work.desk.say(
            f"renew the root before {moment(root.record.expires_at)}: `flaghoist root propose`, which others then sign"
        )
    work.desk.next_step(f"`flaghoist import FILE`, or start `flaghoist-sidecar --ledger {ledger} --root {path}`")
    return Exit.OK


def _ask_others(work: Workspace, case: SignedRoot, ledger: str) -> Exit:
    """Write the root down for those who must sign it too, and say how to go on."""
    draft = _draft_file(work, case.root.log_id)
    work.desk.result(
        {
            "log_id": case.root.log_id,
            "ledger": ledger,
            "root": str(draft),
            "root_sha256": case.id,
            "begun": False,
            "signed_by": list(case.people),
            "could_sign": list(case.waits_for),
        },
        f"root to be signed {draft}\nroot digest {case.id}",
    )
    say_missing(work.desk, case, draft)
    work.desk.next_step(f"when their copies are back: the same command again, with --signed {draft.name} for each copy")
    return Exit.OK


def _case(work: Workspace, record: RootRecord, asked: Asked, parts: "_Parts", keys: "_Keys") -> SignedRoot:
    """Return the root to be signed: that of an earlier, unfinished run if there is one, with what others have signed.

    Raises:
        AlreadyBegun: an earlier run was told something else.
        RootEdited: a copy is of other bytes.
    """
    for path in (work.home.root_file(record.log_id), _draft_file(work, record.log_id)):
        if path.exists():
            case = signed_root(None, envelope_in(path))
            _check_same(case.root, record, path)
            break
    else:
        case = signed_root(None, Envelope(ROOT.payload_type, ROOT.schema_sha256, ROOT.encode(record), ()))
    for path in asked.signed:
        copy = envelope_in(path)
        theirs = signed_root(None, copy)
        if theirs.root.sha256 != case.root.sha256:
            raise RootEdited(
                f"{path}: want a copy of the root with digest {case.id}, got {theirs.id}: it was edited, or it is "
                "of another run"
            )
        check_unedited(theirs, copy)
        case = case.with_signatures(copy)
    return case


def _signed_here(work: Workspace, case: SignedRoot, parts: "_Parts", keys: "_Keys") -> SignedRoot:
    """Return the root signed by the members' keys that are here, and keep it: a rerun signs these bytes again."""
    draft = _draft_file(work, case.root.log_id)
    if work.home.root_file(case.root.log_id).exists():
        return case
    make_private_directory(draft.parent)
    # Before anything is signed, so that a rerun asks for no second signature of anybody.
    replace_file(draft, encode_envelope(case.root.envelope))
    have = {signature.key_id for signature in case.root.envelope.signatures}
    for card in keys.signers:
        if card.key_id not in have:
            case = case.with_signatures(countersign(replace(case.root.envelope, signatures=()), [parts.unlock(card)]))
    replace_file(draft, encode_envelope(case.root.envelope))
    return case


def _draft_file(work: Workspace, log_id: LogId) -> Path:
    return work.home.root_file(log_id).with_suffix(".unfinished.root")


def _show(work: Workspace, case: SignedRoot, asked: Asked) -> None:
    if not asked.solo:
        show_plan(work.desk, case, now_ms=work.now_ms())
        return
    work.desk.say(f"  {asked.person} alone, without approvals; the root expires {moment(case.root.record.expires_at)}")


@dataclass(frozen=True, slots=True)
class _Keys:
    """The cards of a new environment; `signers` are the members whose keys sign the root here."""

    members: list[Card]
    signers: list[Card]
    publisher: Card
    heartbeats: list[Card]
    emergency: list[Card]

    @classmethod
    def of(cls, asked: Asked, parts: "_Parts") -> "_Keys":
        """Return them, made here where none was given.

        Raises:
            click.UsageError, Misconfigured, Refused: too few people, or a key that must be here and is not.
        """
        if asked.solo:
            assert asked.person is not None  # noqa: S101 — Asked.check
            own = [parts.own_card(_solo_key_name(asked.person), person_of(asked.person))]
            return cls(own, own, own[0], [], [])
        members = [read_card(path) for path in asked.members]
        emergency = [read_card(path) for path in asked.emergency]
        _check_people(members, asked)  # before any key is made
        signers = parts.signing_cards(members, asked.sign_with)
        publisher = parts.publisher_card(asked.publisher)
        parts.want_here(publisher)
        heartbeats = [] if asked.no_heartbeats else [parts.heartbeat_card(asked.heartbeat, publisher.person)]
        return cls(members, signers, publisher, heartbeats, emergency)

    def listed(self) -> tuple[RootKey, ...]:
        every = [*self.members, self.publisher, *self.heartbeats, *self.emergency]
        unique = {card.key_id: card for card in every}
        for card in every:
            if unique[card.key_id].person != card.person:
                raise click.UsageError(
                    f"key {card.key_id} is given as {card.person}'s and as {unique[card.key_id].person}'s"
                )
        return tuple(RootKey(key_id, card.algorithm, card.public, card.person) for key_id, card in unique.items())

    def roles(self, asked: Asked) -> dict[Role, RoleGrant]:
        members = _ids(self.members)
        return {
            Role.ROOT: RoleGrant(members, _root_threshold(self.members, asked)),
            Role.REQUESTER: RoleGrant(members, 1),
            Role.APPROVER: RoleGrant(members, asked.approvals),
            Role.PUBLISHER: RoleGrant(_ids([self.publisher]), 1),
            Role.HEARTBEAT: RoleGrant(_ids(self.heartbeats), int(bool(self.heartbeats))),
            Role.CHECKPOINTER: RoleGrant(frozenset(), 0),
            Role.EMERGENCY: RoleGrant(_ids(self.emergency), int(bool(self.emergency))),
        }


def _ids(cards: Sequence[Card]) -> frozenset[KeyId]:
    return frozenset(card.key_id for card in cards)


def _root_threshold(members: Sequence[Card], asked: Asked) -> int:
    if asked.solo:
        return 1
    return asked.root_threshold if asked.root_threshold is not None else ROOT_THRESHOLD_DEFAULT


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

    def heartbeat_card(self, file: Path | None, publisher: Person) -> Card:
        """Return the heartbeats' card; it belongs to the publisher, and is made here when none is given."""
        return self.own_card(HEARTBEAT_KEY, publisher) if file is None else read_card(file)

    def own_card(self, name: str, person: Person) -> Card:
        """Return the card of a key of this machine; it is made when there is none of that name."""
        if name in self._keys.names():
            card = self._keys.card(self._keys.path(name))
            if card is None or card.person != person:
                held_by = card.person if card else "nobody"
                raise Misconfigured(
                    f"key {name!r} is here already and belongs to {held_by}, not to {person}",
                    hint="give the card of another key, or run this with another FLAGHOIST_HOME",
                )
            self._work.desk.say(f"using the key {name!r} that is here")
            return card
        if self._work.dry_run:
            self._work.desk.say(f"would make the key {name!r} for {person}")
            # Stands for the key that would be made; nothing is signed in a dry run.
            return Card(person, HeldKey.algorithm, HeldKey(name.encode().ljust(32, b"\0")).public)
        passphrase = self._work.new_passphrase(name)
        check_passphrase(passphrase)
        card = self._keys.create(name, person, passphrase)
        self._at_hand[card.key_id] = self._work.keyring.named(name)
        self._held[card.key_id] = unlock(self._keys.path(name), lambda: passphrase)
        self._work.desk.say(f"made the key {name!r} for {person}: {self._keys.path(name)}")
        return card

    def signing_cards(self, cards: Sequence[Card], sign_with: Sequence[str]) -> list[Card]:
        """Return the members' cards whose keys sign the root here; maybe none."""
        self._at_hand |= {key.key_id: key for key in self._work.keyring.of_agent(cards)}
        if not sign_with:
            return [card for card in cards if card.key_id in self._at_hand]
        named = {key.key_id: key for key in map(self._work.keyring.named, sign_with)}
        if strangers := set(named) - {card.key_id for card in cards}:
            names = ", ".join(sorted(named[key_id].name for key_id in strangers))
            raise click.UsageError(f"--sign-with {names}: want members' keys of this machine")
        self._at_hand |= named
        return [card for card in cards if card.key_id in named]

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


async def _append(work: Workspace, root: Root, ledger: str, signer: UnlockedKey) -> int:
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


def _ledger_url(work: Workspace, url: str | None, *, solo: bool, name: str) -> str:
    given = url or work.desk.environ.get("FLAGHOIST_LEDGER")
    if given is None and solo:
        directory = work.home.state / "ledgers"
        if not work.dry_run:
            make_private_directory(directory)
        given = f"sqlite:///{directory}/{name}.db"
    if given is None:
        raise click.UsageError("want --ledger URL: where the new ledger shall be")
    return canonical_url(given)


def _solo_key_name(person: str) -> str:
    return person.partition("@")[0].replace("+", "-") or "me"


def _check_people(cards: Sequence[Card], asked: Asked) -> None:
    people = sorted({card.person for card in cards})
    named = ", ".join(people)
    if asked.approvals and len(people) <= asked.approvals:
        raise click.UsageError(
            f"--approvals {asked.approvals}: each change takes its requester and {asked.approvals} others, "
            f"and there are {len(people)} people: {named}"
        )
    if asked.root_threshold is None and len(people) < ROOT_PEOPLE_WANTED:
        raise click.UsageError(
            f"a root is signed by {ROOT_THRESHOLD_DEFAULT} of at least {ROOT_PEOPLE_WANTED} members, so that no stolen "
            f"key makes one alone and no lost key stops the next; got {len(people)}: {named}. Add members, or give "
            "--root-threshold 1 knowingly: one key is then enough to replace everybody"
        )
    if asked.root_threshold is not None and asked.root_threshold > len(people):
        raise click.UsageError(f"--root-threshold {asked.root_threshold}: there are {len(people)} people: {named}")


def _check_same(found: Root, wanted: RootRecord, path: Path) -> None:
    """Refuse a root file of an earlier run that says something else; only its expiry may differ."""
    if replace(found.record, expires_at=wanted.expires_at) != wanted:
        raise AlreadyBegun(
            f"{path}: a root of {found.log_id} is here already, with other people, keys or settings",
            hint="choose another --log-id; or move that file away, if its ledger never began",
        )
