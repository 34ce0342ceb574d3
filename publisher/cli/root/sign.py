"""`flaghoist root sign`: a person's word for exactly the bytes of the next root."""

from dataclasses import replace
from pathlib import Path

import click

from flaghoist.codec import encode_envelope
from flaghoist.errors import Expired, Misconfigured, WrongRole
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.signing import countersign
from flaghoist.values import Person, Role
from publisher.cli.desk import Exit
from publisher.cli.reading import read, send
from publisher.cli.root.plan import check_anchor, envelope_in, plan_fields, say_missing, show_plan, waiting_in
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.files import replace_file
from publisher.root_signatures import SignedRoot, check_unedited, find, signed_root
from publisher.signers.keyring import KeyAtHand


@click.command("sign")
@click.argument("name", required=False, metavar="[FILE|VERSION|DIGEST]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it here, not into the inbox (a first root: into FILE).",
)
@operation(ledger=True, key=True, change=True)
def sign_root(work: Workspace, name: str | None, out: Path | None) -> Exit:
    """Sign a root that waits, after showing all that it changes.

    NAME is a file, or the version or digest of a root in the inbox; without it, the only one there. Your signature goes
    to the inbox, or to --out FILE. A first root has no inbox yet: FILE itself gets the signature.

    \b
    Examples:
      flaghoist root sign
      flaghoist root sign 3f9a1c2b
      flaghoist root sign production.root
    """
    case, file = _named(work, name)
    if file is not None and case.before is None:
        out = out or file
    show_plan(work.desk, case, now_ms=work.now_ms())
    chosen = root_key(work, case, needed=True)
    assert chosen is not None  # noqa: S101 — it was needed
    if chosen.key_id in {signature.key_id for signature in case.root.envelope.signatures}:
        work.desk.say(f"the key {chosen.name!r} has signed it already")
    if work.dry_run:
        work.desk.result({"dry_run": True, **plan_fields(case, now_ms=work.now_ms())}, f"would sign {case.id}")
        return Exit.OK
    return sign_and_send(work, case, chosen, out, question=f"Sign version {case.root.version} of {case.root.log_id}?")


def _named(work: Workspace, name: str | None) -> tuple[SignedRoot, Path | None]:
    """Return the root that a name means, and its file if it is one."""
    if name is not None and (file := Path(name)).is_file():
        envelope = envelope_in(file)
        if Root.unsigned(envelope).version == FIRST_VERSION:
            case = signed_root(None, envelope)
        else:
            reading = read(work, through_quarantine=True)
            case = signed_root(reading.root, envelope)
            check_anchor(reading, case.root)
        check_unedited(case, envelope)
        return case, file
    reading = read(work, inbox=True, through_quarantine=True)
    case = find(waiting_in(reading), name)
    check_anchor(reading, case.root)
    return case, None


def root_key(work: Workspace, case: SignedRoot, *, needed: bool) -> KeyAtHand | None:
    """Return the key here with role ROOT in the old or the new root; None, when there is none and none is needed."""
    judges = case.judges
    for number, judge in enumerate(judges, 1):
        try:
            return work.choose(Role.ROOT, judge)
        except (WrongRole, Misconfigured) as error:
            held_by_old = judges[0].people_of(Role.ROOT)
            if number < len(judges) and not _several(work, judge):
                continue
            if needed or work.key_option is not None or _several(work, judge):
                raise
            work.desk.say(f"it stays unsigned: {error}; {', '.join(sorted(held_by_old))} may sign it")
    return None


def _several(work: Workspace, judge: Root) -> bool:
    """Whether more than one key here has the role, so that one must be named."""
    here = {key.key_id for key in (*work.keyring.of_files(), *work.keyring.of_agent(judge.keys_of(Role.ROOT)))}
    return work.key_option is None and len(here & judge.grant(Role.ROOT).key_ids) > 1


def sign_and_send(
    work: Workspace,
    case: SignedRoot,
    chosen: KeyAtHand | None,
    out: Path | None,
    *,
    question: str,
) -> Exit:
    """Ask, sign these bytes, send them to the inbox or to a file, and say who is still missing."""
    if case.root.version > FIRST_VERSION and work.now_ms() > case.root.record.expires_at:
        raise Expired(
            f"root version {case.root.version} expired {moment(case.root.record.expires_at)}",
            hint="propose it again: `flaghoist root propose`",
        )
    if not work.desk.confirm(question):
        return Exit.USAGE
    signer: Person | None = None
    if chosen is not None:
        judge = case.judges[0] if chosen.key_id in case.judges[0].grant(Role.ROOT).key_ids else case.judges[-1]
        held, signer = work.unlock(chosen, Role.ROOT, judge)
        case = case.with_signatures(countersign(replace(case.root.envelope, signatures=()), [held]))
    record = encode_envelope(case.root.envelope)
    if out is not None:
        replace_file(out, record, mode=0o644)
    else:
        send(work, [record])
    fields = {**plan_fields(case, now_ms=work.now_ms()), "file": None if out is None else str(out), "signer": signer}
    work.desk.result(fields, case.id if out is None else str(out))
    say_missing(work.desk, case, out)
    return Exit.OK
