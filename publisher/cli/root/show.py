"""`flaghoist root show`: who may do what, and what to worry about."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from flaghoist.records import Revocation
from flaghoist.root import Root
from flaghoist.values import Person, Role
from publisher import root_plan
from publisher.cli.desk import Desk, Exit, inline
from publisher.cli.reading import read
from publisher.cli.root.plan import chain_of, envelope_in, expiry, revocation_fields
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.root_signatures import Missing, SignedRoot, UnknownRoot, check_unedited, signed_root


@click.command("show")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--at", "version", type=click.IntRange(1), metavar="VERSION", help="An earlier version.")
@click.option("--history", is_flag=True, help="Also every version so far, and who signed it.")
@operation(ledger=True)
def show_root(work: Workspace, file: Path | None, version: int | None, history: bool) -> Exit:
    """Show the root in force, an earlier version, or the one in FILE.

    Warnings say what to worry about: it expires soon, one person is enough, one key does too much.
    """
    if file is not None:
        if version is not None or history:
            raise click.UsageError("--at and --history are about the ledger: want them without FILE")
        shown, chain, standing = _root_in(file), list[Root](), "of the file"
    else:
        reading = read(work, through_quarantine=True)
        chain = chain_of(reading)
        shown = _version(chain, version)
        standing = "in force" if shown is chain[-1] else "earlier"
    missing = _missing_signatures(shown, chain)
    concerns = root_plan.concerns(shown, now_ms=work.now_ms()) if standing != "earlier" else []
    document = _fields(shown) | {"standing": standing, "warnings": concerns, "missing": [str(m) for m in missing]}
    if history:
        document["history"] = [_version_fields(one, before) for before, one in _pairs(chain)]
    _print_root(work, shown, standing, document)
    if history:
        _print_history(work.desk, chain)
    for concern in concerns:
        work.desk.warn(concern)
    for one in missing:
        work.desk.warn(str(one))
    return Exit.OK


def _version(chain: Sequence[Root], version: int | None) -> Root:
    if version is None:
        return chain[-1]
    if version > len(chain):
        raise UnknownRoot(
            f"version {version}: want 1 .. {len(chain)}, the version in force",
            hint="one that still waits for signatures is shown by `flaghoist root sign --dry-run`",
        )
    return chain[version - 1]


def _missing_signatures(shown: Root, chain: Sequence[Root]) -> Sequence[Missing]:
    """What a root of a file lacks by itself; one of the ledger lacks nothing."""
    return () if chain else [m for m in SignedRoot(None, shown).missing if m.judge == shown.version]


def _pairs(chain: Sequence[Root]) -> list[tuple[Root | None, Root]]:
    return list(zip([None, *chain[:-1]], chain, strict=True))


def _print_root(work: Workspace, shown: Root, standing: str, document: Mapping[str, object]) -> None:
    record, desk = shown.record, work.desk
    policy = "none" if not record.policy else f"{len(shown.policy.rules)} rules, sha256 {_policy_sha256(shown)}"
    desk.result(
        document,
        f"{record.log_id} root version {record.version} ({standing}), digest {shown.sha256.hex()}\n"
        f"expires {expiry(shown, work.now_ms())}, fractional {record.fractional}, policy {policy}",
    )
    granted = [(role, shown.grant(role)) for role in Role if shown.grant(role).key_ids]
    rows = [(role, str(grant.threshold), ", ".join(sorted(shown.people_of(role)))) for role, grant in granted]
    desk.table(("role", "people needed", "people"), rows)
    desk.print("")
    keys = sorted(record.keys, key=lambda key: (key.person, key.key_id))
    desk.table(
        ("person", "key id", "algorithm", "roles"),
        [(k.person, k.key_id, k.algorithm, ", ".join(root_plan.roles_of(shown, k.key_id))) for k in keys],
    )
    if record.revoked:
        desk.print("")
        desk.table(
            ("revoked key", "distrusted from seq", "reason"),
            [(r.key_id, _distrusted(r), inline(r.reason)) for r in record.revoked],
        )


def _print_history(desk: Desk, chain: Sequence[Root]) -> None:
    desk.print("")
    rows = [
        (str(one.version), one.sha256.hex()[:16], moment(one.record.expires_at), ", ".join(_signers(before, one)))
        for before, one in _pairs(chain)
    ]
    desk.table(("version", "digest", "expires", "signed by"), rows)


def _distrusted(revocation: Revocation) -> str:
    return "-" if revocation.distrust_from_seq is None else str(revocation.distrust_from_seq)


def _policy_sha256(shown: Root) -> str:
    return hashlib.sha256(shown.record.policy.encode()).hexdigest()


def _signers(before: Root | None, one: Root) -> tuple[Person, ...]:
    return SignedRoot(before, one).people


def _version_fields(one: Root, before: Root | None) -> dict[str, object]:
    return {
        "version": one.version,
        "sha256": one.sha256.hex(),
        "expires_at": one.record.expires_at,
        "signed_by": list(_signers(before, one)),
    }


def _fields(shown: Root) -> dict[str, object]:
    record = shown.record
    return {
        "log_id": record.log_id,
        "version": record.version,
        "sha256": shown.sha256.hex(),
        "expires_at": record.expires_at,
        "fractional": record.fractional,
        "anchor_seq": record.anchor_seq.number,
        "keys": [
            {"key_id": k.key_id, "algorithm": k.algorithm, "person": k.person,
             "roles": list(root_plan.roles_of(shown, k.key_id))}
            for k in record.keys
        ],
        "roles": {
            role: {"people": sorted(shown.people_of(role)), "threshold": shown.grant(role).threshold}
            for role in Role
            if shown.grant(role).key_ids
        },
        "policy": None
        if not record.policy
        else {"sha256": _policy_sha256(shown), "rules": [rule.name for rule in shown.policy.rules]},
        "revoked": [revocation_fields(r) for r in record.revoked],
    }  # fmt: skip


def _root_in(file: Path) -> Root:
    """Return the root in a file, whoever has signed it; raises RootEdited where a signature does not fit its bytes."""
    envelope = envelope_in(file)
    shown = Root.unsigned(envelope)
    check_unedited(signed_root(None, envelope), envelope)
    return shown
