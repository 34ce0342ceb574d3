"""A root on its way, as everybody sees it who proposes, signs or publishes it."""

from pathlib import Path
from typing import Any

from flaghoist.codec import ENVELOPE_BYTES_MAX, decode_envelope
from flaghoist.errors import Malformed, Misconfigured, WrongRoot
from flaghoist.outcomes import RootChanged
from flaghoist.records import Envelope, Revocation, RootUpdate
from flaghoist.root import Root
from flaghoist.values import Role
from publisher import root_plan
from publisher.cli.desk import Desk
from publisher.cli.reading import Reading
from publisher.cli.times import days_ms, moment
from publisher.files import read_limited
from publisher.root_signatures import SignedRoot, signed_root


def show_plan(desk: Desk, case: SignedRoot, *, now_ms: int) -> None:
    """Show on stderr what a root changes, what a stolen key could do then, and what to worry about."""
    if desk.as_json:
        return
    root, before = case.root, case.before
    since = (
        "the first root"
        if before is None
        else f"follows version {before.version}, seen at seq {root.record.anchor_seq}"
    )
    desk.say(f"root version {root.version} of {root.log_id}: {since}")
    desk.say(f"  digest  {case.id}")
    desk.say(f"  expires {expiry(root, now_ms)}")
    change = root_plan.difference(before, root)
    lines = root_plan.in_words(change)
    desk.show_diff("\n".join([*lines, *change.policy.splitlines()]))
    if not lines and not change.policy:
        desk.say("  nothing changes but how long it lasts")
    desk.say("roles:")
    for role in Role:
        if root.grant(role).key_ids:
            desk.say(f"  {role:12}{root.grant(role).threshold} of {', '.join(sorted(root.people_of(role)))}")
    desk.say("who steals one key could:")
    alike: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for power in root_plan.powers(root):
        alike.setdefault((power.alone, power.could), []).append(f"{power.key.person} ({power.key.key_id[:8]}…)")
    for (alone, could), whose in alike.items():
        desk.say(f"  {', '.join(whose)}: {'ALONE: ' if alone else ''}{'; '.join(could)}")
    for concern in _worries(case, now_ms):
        desk.warn(concern)


def _worries(case: SignedRoot, now_ms: int) -> list[str]:
    found = root_plan.concerns(case.root, now_ms=now_ms)
    if case.before is not None and (lost := root_plan.lost_with(case.before, case.root)):
        found.append(lost)
    return found


def plan_fields(case: SignedRoot, *, now_ms: int) -> dict[str, Any]:
    """Return the plan as a document."""
    change = root_plan.difference(case.before, case.root)
    return {
        "log_id": case.root.log_id,
        "version": case.root.version,
        "sha256": case.id,
        "expires_at": case.root.record.expires_at,
        "changes": {
            "keys": [
                {"key_id": k.key.key_id, "person": k.key.person, "gained": list(k.gained), "lost": list(k.lost)}
                for k in change.keys
            ],
            "thresholds": [{"role": role, "before": old, "after": new} for role, old, new in change.thresholds],
            "revoked": [revocation_fields(r) for r in change.revoked],
            "policy_diff": change.policy or None,
        },
        "stolen_key": [
            {"key_id": p.key.key_id, "person": p.key.person, "roles": list(p.roles), "could": list(p.could),
             "alone": p.alone}
            for p in root_plan.powers(case.root)
        ],
        "warnings": _worries(case, now_ms),
        "signed_by": list(case.people),
        "missing": [
            {"version": m.judge, "people_missing": m.count, "people_wanted": m.wanted, "signed_by": list(m.signed),
             "could_sign": list(m.could)}
            for m in case.missing
        ],
    }  # fmt: skip


def waiting_in(reading: Reading) -> list[SignedRoot]:
    """Return the roots of the inbox that wait, which somebody in force has signed: others write what they like."""
    found = [signed_root(reading.root, case.envelope) for case in reading.inbox.roots]
    return [one for one in found if reading.root.people_signing(Role.ROOT, one.root.envelope)]


def chain_of(reading: Reading) -> list[Root]:
    """Return every version that was in force, the first one first."""
    first = reading.reader.links[0].entry.body
    assert isinstance(first, RootUpdate)  # noqa: S101 — check_begun
    return [Root.verified(first.root), *(link.root for link in reading.reader.links if isinstance(link, RootChanged))]


def say_missing(desk: Desk, case: SignedRoot, file: Path | None) -> None:
    """Say who has signed, who is missing, and what to do next."""
    desk.say(f"version {case.root.version} is signed by {', '.join(case.people) or 'nobody'}")
    for missing in case.missing:
        desk.say(f"  {missing}")
    name = case.id[:16] if file is None else str(file)
    if case.missing:
        desk.next_step(f"ask {' or '.join(case.waits_for) or 'nobody'} to run `flaghoist root sign {name}`")
    elif case.before is None:
        desk.next_step(f"give {name} to whoever runs `flaghoist init`, which takes it with --signed {name}")
    else:
        desk.next_step(f"`flaghoist root publish {name}`, unless the publisher's service takes it by itself")


def expiry(shown: Root, now_ms: int) -> str:
    """Return until when a root counts, as people read it."""
    left_ms = shown.record.expires_at - now_ms
    days = round(abs(left_ms) / days_ms(1))
    return f"{moment(shown.record.expires_at)} ({f'in {days} days' if left_ms >= 0 else f'{days} days ago'})"


def revocation_fields(revocation: Revocation) -> dict[str, object]:
    """Return a revocation as a document."""
    seq = revocation.distrust_from_seq
    return {
        "key_id": revocation.key_id,
        "reason": revocation.reason,
        "distrust_from_seq": None if seq is None else seq.number,
    }


def check_anchor(reading: Reading, root: Root) -> None:
    """Refuse a root whose proposer saw another history than this ledger's.

    Raises:
        WrongRoot: so they did.
    """
    record, ledger = root.record, reading.reader.ledger
    if record.anchor_seq > ledger.head.seq or ledger.hash_at(record.anchor_seq) != record.anchor_hash:
        raise WrongRoot(
            expected=f"a root made on this ledger, which is at seq {ledger.head.seq}",
            got=f"one made on another history, with entry {record.anchor_hash.hex()} at seq {record.anchor_seq}",
        )


def envelope_in(file: Path) -> Envelope:
    """Return the envelope in a file, unverified.

    Raises:
        Misconfigured: it cannot be read, or is none.
    """
    try:
        return decode_envelope(read_limited(file, limit_bytes=ENVELOPE_BYTES_MAX, what="root"))
    except Malformed as error:
        raise Misconfigured(f"root {file}: {error}", hint="ask for the file again") from error
