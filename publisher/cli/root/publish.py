"""`flaghoist root publish`: a root that enough people have signed becomes the one in force."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from flaghoist.codec import encode_envelope
from flaghoist.errors import Misconfigured, WrongRole
from flaghoist.outcomes import RootChanged
from flaghoist.records import RootUpdate
from flaghoist.signing import digest
from flaghoist.taint import Taint, tainted
from flaghoist.values import Role, Target
from publisher import root_plan
from publisher.cli import appending
from publisher.cli.desk import Desk, Exit, Interrupted, inline
from publisher.cli.reading import Reading, read, send
from publisher.cli.root.plan import chain_of, check_anchor, envelope_in, plan_fields, show_plan, waiting_in
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.journal import Journal
from publisher.root_signatures import RootEdited, SignedRoot, check_unedited, find, signed_root
from publisher.signers.keyring import KeyAtHand


@click.command("publish")
@click.argument("names", nargs=-1, metavar="[FILE|VERSION|DIGEST]...")
@click.option("--timeout", "wait_s", type=click.IntRange(1, 3600), default=appending.WAIT_S_DEFAULT, show_default=True,
              metavar="SECONDS", help="How long to wait for the publisher's service, where there is one.")  # fmt: skip
@operation(ledger=True, key=True, change=True)
def publish_root(work: Workspace, names: tuple[str, ...], wait_s: int) -> Exit:
    """Append a root that enough people have signed to the ledger; from the next entry on it counts.

    Files with signatures over the same bytes are put together. Where a publisher's service is at work, it appends the
    root; else the publisher's key of this machine does, be it of the old or of the new root. Safe to run again.
    """
    reading = read(work, inbox=True, through_quarantine=True)
    if (done := _published_already(reading, names)) is not None:
        return _tell(work, reading, done, already=True)
    case = _to_publish(reading, names)
    check_anchor(reading, case.root)
    root_plan.check_usable(case.root)
    show_plan(work.desk, case, now_ms=work.now_ms())
    reading.root.successor(case.root.envelope)  # raises what every reader would say
    case.root.check_unexpired(work.now_ms())
    if work.dry_run:
        fields = plan_fields(case, now_ms=work.now_ms())
        work.desk.result({"dry_run": True, **fields}, f"would publish {case.id} as version {case.root.version}")
        return Exit.OK
    holder = appending.service_at_work(work, reading)
    try:
        chosen = _newly_listed_key(work, case) if holder else _publisher_key(work, case)
    except (WrongRole, Misconfigured):
        if not _nobody_beats(work, reading):
            raise
        holder, chosen = "if one is at work, which cannot be heard now", None
    if not work.desk.confirm(f"Publish version {case.root.version} of the root of {case.root.log_id}?"):
        return Exit.USAGE
    if chosen is None:
        send(work, [encode_envelope(case.root.envelope)])
        work.desk.say(f"handed over to the publisher at work: {holder}")
        link = appending.wait_for(
            work, reading, lambda: _link_of(reading, case.root.sha256), wait_s=wait_s,
            what=f"root version {case.root.version}", look="flaghoist root show --history",
        )  # fmt: skip
    else:
        link = _append(work, reading, case, chosen)
    return _tell(work, reading, link, already=False)


def _to_publish(reading: Reading, names: Sequence[str]) -> SignedRoot:
    """Return the root to publish, with every signature that the files and the inbox have over its bytes."""
    cases = {case.root.sha256: case for case in waiting_in(reading)}
    files = [Path(name) for name in names if Path(name).is_file()]
    others = [name for name in names if not Path(name).is_file()]
    wanted: set[bytes] = {find(cases.values(), name).root.sha256 for name in others}
    for file in files:
        envelope = envelope_in(file)
        case = signed_root(reading.root, envelope)
        check_unedited(case, envelope)
        known = cases.get(case.root.sha256)
        cases[case.root.sha256] = case if known is None else known.with_signatures(envelope)
        wanted.add(case.root.sha256)
    if len(wanted) > 1:
        named = ", ".join(sorted(sha256.hex()[:16] for sha256 in wanted))
        raise RootEdited(f"want signatures over one root, got {len(wanted)} different ones: {named}")
    return cases[next(iter(wanted))] if wanted else find(cases.values(), None)


def _published_already(reading: Reading, names: Sequence[str]) -> RootChanged | None:
    """Return the link that states one of these roots, if it is in the ledger: a rerun, or the service was first."""
    for name in names:
        wanted = digest(envelope_in(Path(name))).hex() if Path(name).is_file() else name.lower()
        for link in reading.reader.links:
            if isinstance(link, RootChanged) and len(wanted) >= 8 and link.root.sha256.hex().startswith(wanted):
                return link
    return None


def _link_of(reading: Reading, sha256: bytes) -> RootChanged | None:
    return next(
        (link for link in reading.reader.links if isinstance(link, RootChanged) and link.root.sha256 == sha256), None
    )


def _publisher_key(work: Workspace, case: SignedRoot) -> KeyAtHand:
    """Return the publisher's key here, of the old or of the new root; raises as Workspace.choose."""
    try:
        return work.choose(Role.PUBLISHER, case.before)
    except (WrongRole, Misconfigured):
        pass
    try:
        return work.choose(Role.PUBLISHER, case.root)
    except Misconfigured as error:
        raise Misconfigured(
            f"{error}; and no publisher's service is heard",
            hint="run this where the publisher's key is; or start `flaghoist publisher` there, which does it by itself",
        ) from error


def _nobody_beats(work: Workspace, reading: Reading) -> bool:
    """Whether a service that is at work sends no heartbeats all the same: in quarantine, and under an expired root."""
    return reading.reader.ledger.quarantined_by is not None or work.now_ms() > reading.root.record.expires_at


def _newly_listed_key(work: Workspace, case: SignedRoot) -> KeyAtHand | None:
    """Return the publisher's key here that only the new root lists, unless the service at work is on this machine.

    Whoever brings it replaces a publisher that is lost, or whose keys are stolen: its heartbeats may be a thief's, and
    in a quarantine nobody says farewell.
    """
    if Journal.service_at(work.home.journals, case.root.log_id):
        return None
    try:
        chosen = work.choose(Role.PUBLISHER, case.root)
    except (WrongRole, Misconfigured):
        return None
    listed = case.judges[0].grant(Role.PUBLISHER).key_ids
    return None if chosen.key_id is None or chosen.key_id in listed else chosen


def _append(work: Workspace, reading: Reading, case: SignedRoot, chosen: KeyAtHand) -> RootChanged:
    judge = case.judges[0] if chosen.key_id in case.judges[0].grant(Role.PUBLISHER).key_ids else case.root
    held, _ = work.unlock(chosen, Role.PUBLISHER, judge)

    async def append() -> RootChanged:
        async with appending.sequencer_here(work, reading, held) as sequencer:
            link = await sequencer.append(RootUpdate(case.root.envelope))
        assert isinstance(link, RootChanged)  # noqa: S101 — append returns what the body makes
        return link

    try:
        return asyncio.run(append())
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted; it may be in the ledger: run the same command again, it finishes") from stop


def _tell(work: Workspace, reading: Reading, link: RootChanged, *, already: bool) -> Exit:
    root = link.root
    taints = tainted(reading.reader.links)
    work.desk.result(
        {
            "log_id": root.log_id,
            "version": root.version,
            "sha256": root.sha256.hex(),
            "seq": link.entry.seq.number,
            "entry_hash": link.entry_hash.hex(),
            "already": already,
            "tainted": [_taint_fields(taint) for taint in taints],
        },
        f"seq {link.entry.seq}  {link.entry_hash.hex()}",
    )
    if already:
        work.desk.say(f"version {root.version} is in the ledger already, {moment(link.entry.published_at)}")
    else:
        work.desk.say(f"root version {root.version} of {root.log_id} is in force; pinned roots stay valid")
    _show_taints(work.desk, reading, taints)
    work.desk.next_step("`flaghoist root show`")
    return Exit.OK


def _show_taints(desk: Desk, reading: Reading, taints: Sequence[Taint]) -> None:
    """Say which entries rest on distrusted keys, and what to do about each definition that they left."""
    if desk.as_json or not taints:
        return
    desk.warn(f"{len(taints)} entries were made with keys that are now distrusted; they stay in force until changed:")
    for taint in taints:
        person = next((k.person for r in chain_of(reading) for k in r.record.keys if k.key_id == taint.key_id), "?")
        left = "nothing of it is in force" if not taint.in_force else f"in force: {', '.join(map(str, taint.in_force))}"
        desk.say(f"  seq {taint.seq} by key {taint.key_id[:8]}… of {person} ({inline(taint.reason)}): {left}")
        for state_id in taint.in_force:
            if state_id.target is Target.FLAG:
                desk.say(
                    f"    look at it with `flaghoist history {state_id}`; if it is wrong, `flaghoist propose edit "
                    f"{state_id}`, or `flaghoist kill {state_id}` at once"
                )
            else:
                desk.say(
                    f"    look at it with `flaghoist audit show {taint.seq}`, and import its file again if it is wrong"
                )


def _taint_fields(taint: Taint) -> dict[str, object]:
    return {
        "seq": taint.seq.number,
        "key_id": taint.key_id,
        "reason": taint.reason,
        "in_force": [{"target": s.target, "source": s.source, "key": s.key} for s in taint.in_force],
    }
