"""`flaghoist root propose`: the next root, on the one in force."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from flaghoist.codec import REASON_CHARS_MAX, ROOT
from flaghoist.errors import Misconfigured
from flaghoist.policy import Policy
from flaghoist.policy.document import POLICY_BYTES_MAX
from flaghoist.records import Envelope, Revocation, RootKey
from flaghoist.values import KeyId, Role, Seq
from publisher import root_plan
from publisher.cli.desk import Exit
from publisher.cli.key import person_of
from publisher.cli.reading import read
from publisher.cli.root.plan import chain_of, plan_fields, show_plan
from publisher.cli.root.sign import root_key, sign_and_send
from publisher.cli.times import days_ms
from publisher.cli.workspace import Workspace, operation
from publisher.files import read_limited
from publisher.keys import Card, read_card
from publisher.root_plan import Edit
from publisher.root_signatures import signed_root

EXPIRES_DAYS_DEFAULT: Final = 365
EXPIRES_DAYS_MAX: Final = 3650
# A shorter start of a key's id could mean any key.
_KEY_PREFIX_MIN: Final = 4


class _RoleAnd(click.ParamType[tuple[Role, str]]):
    """An option's value ROLE=VALUE."""

    name = "role"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Role, str]:
        """Return the role, and what stands behind it."""
        name, equals, rest = str(value).partition("=")
        try:
            return Role(name.upper()), rest if equals and rest else self.fail(f"{name}: want ROLE=…", param, ctx)
        except ValueError:
            return self.fail(f"{name!r}: want one of {', '.join(Role)}", param, ctx)


FILE: Final = click.Path(path_type=Path)


@click.command("propose")
@click.option("--add-member", "added", multiple=True, type=FILE, metavar="FILE.pub",
              help="Somebody who may propose and approve; for roots add --grant ROOT=FILE.pub.")  # fmt: skip
@click.option("--remove-person", "removed", multiple=True, metavar="PERSON", help="Somebody who loses all keys.")
@click.option("--replace-key", "replaced", multiple=True, nargs=2, type=str, metavar="KEY_ID NEW.pub",
              help="A person's new key, with all roles of the old one.")  # fmt: skip
@click.option("--revoke", "revoked", multiple=True, metavar="KEY_ID", help="A key that is no longer trusted, for ever.")
@click.option("--reason", default="", metavar="TEXT", help="With --revoke: why; everybody can read it in the ledger.")
@click.option("--distrust-from", type=click.IntRange(1), metavar="SEQ",
              help="With --revoke: list what it signed from there on, to be looked at again.")  # fmt: skip
@click.option("--grant", "granted", multiple=True, type=_RoleAnd(), metavar="ROLE=FILE.pub|KEY_ID",
              help="A role for a key.")  # fmt: skip
@click.option("--revoke-role", "withdrawn", multiple=True, type=_RoleAnd(), metavar="ROLE=KEY_ID",
              help="A role that a key loses.")  # fmt: skip
@click.option("--threshold", "thresholds", multiple=True, type=_RoleAnd(), metavar="ROLE=N",
              help="How many people a role takes (ROOT, APPROVER).")  # fmt: skip
@click.option(
    "--policy", "policy_file", type=FILE, metavar="FILE", help="The policy in FILE instead of the present one."
)
@click.option("--no-policy", is_flag=True, help="No policy: the thresholds alone.")
@click.option("--expires-days", type=click.IntRange(1, EXPIRES_DAYS_MAX), default=EXPIRES_DAYS_DEFAULT,
              show_default=True, help="Life of the new root.")  # fmt: skip
@click.option("--out", type=FILE, metavar="FILE", help="Write it here, not into the inbox; then it may be unsigned.")
@operation(ledger=True, key=True, change=True)
def propose_root(
    work: Workspace,
    added: tuple[Path, ...],
    removed: tuple[str, ...],
    replaced: tuple[tuple[str, str], ...],
    revoked: tuple[str, ...],
    reason: str,
    distrust_from: int | None,
    granted: tuple[tuple[Role, str], ...],
    withdrawn: tuple[tuple[Role, str], ...],
    thresholds: tuple[tuple[Role, str], ...],
    policy_file: Path | None,
    no_policy: bool,
    expires_days: int,
    out: Path | None,
) -> Exit:
    """Propose the next root, on the one in force, and sign it with your ROOT key.

    Without options it is the same root with a new life. Others then run `flaghoist root sign`.

    \b
    Examples:
      flaghoist root propose                                             # renew it for a year
      flaghoist root propose --add-member linus.pub --grant ROOT=linus.pub
      flaghoist root propose --replace-key 3f9a… publisher-2.pub
      flaghoist root propose --revoke 3f9a… --reason "laptop stolen" --distrust-from 812
      flaghoist root propose --policy policy.yaml
      flaghoist root propose --threshold APPROVER=2
    """
    if (reason or distrust_from is not None) and not revoked:
        raise click.UsageError("--reason and --distrust-from go with --revoke KEY_ID")
    if revoked and not reason.strip():
        raise click.UsageError("--revoke: want --reason TEXT: whoever reads the ledger must know why")
    if len(reason) > REASON_CHARS_MAX:
        raise click.UsageError(f"--reason: want at most {REASON_CHARS_MAX} characters, got {len(reason)}")
    if policy_file is not None and no_policy:
        raise click.UsageError("want one of --policy and --no-policy")
    if out is not None and out.exists():
        raise Misconfigured(f"--out {out}: is there already", hint="name a new file")
    reading = read(work, through_quarantine=True)
    past = root_plan.chain_keys(chain_of(reading))
    before, head = reading.root, reading.reader.ledger.head
    if distrust_from is not None and distrust_from > head.seq.number:
        raise click.UsageError(f"--distrust-from {distrust_from}: want at most {head.seq}, the ledger's newest seq")
    edit = Edit(
        expires_at=work.now_ms() + days_ms(expires_days),
        added=tuple(_listed(read_card(path)) for path in added),
        removed=tuple(person_of(person) for person in removed),
        replaced=tuple((_key_id(old, past), _listed(read_card(Path(new)))) for old, new in replaced),
        revoked=tuple(
            Revocation(_key_id(one, past), None if distrust_from is None else Seq(distrust_from), reason)
            for one in revoked
        ),
        granted=tuple((role, _card_or_listed(text, past)) for role, text in granted),
        withdrawn=tuple((role, _key_id(text, past)) for role, text in withdrawn),
        thresholds={role: _number(role, text) for role, text in thresholds},
        policy=policy_text(policy_file) if policy_file else "" if no_policy else None,
    )
    record = root_plan.edited(before, edit, anchor=(head.seq, head.entry_hash), past=past)
    case = signed_root(before, Envelope(ROOT.payload_type, ROOT.schema_sha256, ROOT.encode(record), ()))
    root_plan.check_usable(case.root)
    if policy_file is not None:
        root_plan.check_policy(case.root, now_ms=work.now_ms())
    show_plan(work.desk, case, now_ms=work.now_ms())
    chosen = root_key(work, case, needed=out is None)
    if work.dry_run:
        work.desk.result({"dry_run": True, **plan_fields(case, now_ms=work.now_ms())}, f"would propose {case.id}")
        return Exit.OK
    return sign_and_send(work, case, chosen, out, question=f"Sign and propose version {case.root.version}?")


def _listed(card: Card) -> RootKey:
    return RootKey(card.key_id, card.algorithm, card.public, card.person)


def _card_or_listed(text: str, past: Mapping[KeyId, RootKey]) -> RootKey:
    if "/" in text or text.endswith(".pub"):
        return _listed(read_card(Path(text)))
    return past[_key_id(text, past)]


def _key_id(text: str, known: Mapping[KeyId, RootKey]) -> KeyId:
    """Return the listed key that a name means: its id, or a start of it that no other has.

    Raises:
        click.UsageError: none, or several.
    """
    wanted = text.rstrip("…").lower()
    fitting = [key_id for key_id in known if key_id.startswith(wanted)] if len(wanted) >= _KEY_PREFIX_MIN else []
    if len(fitting) != 1:
        named = ", ".join(f"{key_id} ({known[key_id].person})" for key_id in (fitting or known))
        raise click.UsageError(f"key {text!r}: want one that the root lists, got {len(fitting)}; there are {named}")
    return fitting[0]


def _number(role: Role, text: str) -> int:
    if not text.isdecimal() or len(text) > 3:
        raise click.UsageError(f"--threshold {role}={text}: want a number of people")
    return int(text)


def policy_text(file: Path) -> str:
    """Return the policy in a file, parsed once for its faults.

    Raises:
        BadPolicy: with every fault, by file and line.
        Misconfigured: it cannot be read.
    """
    data = read_limited(file, limit_bytes=POLICY_BYTES_MAX, what="policy")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Misconfigured(f"policy {file}: want UTF-8, got {error}", hint="save it as UTF-8") from error
    # Here, so that faults name the file; an empty one is a mistake, not the wish for none.
    return Policy.parse(text or "\n", where=str(file)).text
