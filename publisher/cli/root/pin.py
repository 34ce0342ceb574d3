"""`flaghoist root pin`: the root that this machine trusts."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from flaghoist.codec import encode_envelope
from flaghoist.environment import Environment
from flaghoist.errors import Refused
from flaghoist.log.base import Stream
from flaghoist.log.location import open_log
from flaghoist.root import FIRST_VERSION, Root
from flaghoist.root_chain import RootUnknown, beginning
from publisher import root_plan
from publisher.cli.desk import Exit
from publisher.cli.reading import read_ledger, records_with_roots
from publisher.cli.root.plan import chain_of
from publisher.cli.workspace import Workspace, canonical_url, operation
from publisher.home import read_root

_SHA256: Final = "sha256:"


class PinnedOtherwise(Refused):
    """This machine trusts another root for that environment, and nothing links the two."""

    code = "already_begun"
    hint = "find out which one is meant before you trust it; a pin moves only along one chain of roots"


@dataclass(frozen=True, slots=True)
class _Trusted:
    """A root that somebody wants to trust; `linked` are the digests of the chain that it belongs to, once read."""

    root: Root
    linked: frozenset[bytes]


@click.command("pin")
@click.argument("trusted", metavar="FILE|sha256:HEX")
@click.option("--ledger", "url", required=True, metavar="URL", help="The ledger that this root's chain belongs to.")
@operation(change=True)
def pin_root(work: Workspace, trusted: str, url: str) -> Exit:
    """Trust a root of any version on this machine, from now on, for the ledger at URL.

    Get FILE, or its digest, from whoever runs the environment, by a way that you trust: it decides whose changes count.
    By digest, the root itself is found in the ledger. A pin may move to a later version of the same chain.
    """
    ledger = canonical_url(url)
    known = work.home.environments().known
    found = _trusted(trusted, ledger)
    shown = found.root
    path = work.home.root_file(shown.log_id)
    if (pinned := known.get(shown.log_id)) is not None and (old := read_root(pinned.root)).sha256 != shown.sha256:
        linked = found.linked or _linked(shown, ledger)
        if old.sha256 not in linked or old.version > shown.version:
            raise PinnedOtherwise(
                f"{shown.log_id} is pinned here to version {old.version}, {pinned.root}; "
                f"want a later version of its chain, got version {shown.version} ({shown.sha256.hex()})"
            )
    elif shown.version > FIRST_VERSION and not found.linked:
        _linked(shown, ledger)
    work.desk.say(f"{shown.log_id} at {ledger}, root version {shown.version}, digest {shown.sha256.hex()}")
    fields = {"log_id": shown.log_id, "ledger": ledger, "version": shown.version, "root_sha256": shown.sha256.hex()}
    if work.dry_run:
        work.desk.result({"dry_run": True, **fields})
        return Exit.OK
    if not work.desk.confirm("Is this the digest that you were told?"):
        return Exit.USAGE
    work.home.write_root(encode_envelope(shown.envelope), shown.log_id)
    work.home.pin(Environment(shown.log_id, ledger, path))
    work.desk.result({**fields, "root": str(path)})
    for concern in root_plan.concerns(shown, now_ms=work.now_ms()):
        work.desk.warn(concern)
    work.desk.next_step("`flaghoist doctor`")
    return Exit.OK


def _trusted(text: str, ledger: str) -> _Trusted:
    """Return the root in a file, or the one of that digest in the ledger."""
    if not text.startswith(_SHA256):
        return _Trusted(read_root(Path(text)), frozenset())
    try:
        sha256 = bytes.fromhex(text.removeprefix(_SHA256))
    except ValueError as error:
        raise click.UsageError(f"{text!r}: want sha256: and 64 hex digits") from error
    if len(sha256) != 32:
        raise click.UsageError(f"{text!r}: want sha256: and 64 hex digits, got {len(sha256) * 2}")

    async def found() -> _Trusted:
        async with open_log(ledger)(Stream.LEDGER) as log:
            begun = beginning(sha256, await records_with_roots(log))
        reading = await read_ledger(open_log(ledger), begun.root, ledger)
        chain = chain_of(reading)
        shown = next((root for root in chain if root.sha256 == sha256), None)
        if shown is None:
            raise RootUnknown(f"root {sha256.hex()}: want one that was in force, got one that was only written down")
        return _Trusted(shown, frozenset(root.sha256 for root in chain))

    return asyncio.run(found())


def _linked(trusted: Root, ledger: str) -> frozenset[bytes]:
    """Return the digests of all roots of the chain that a ledger has, which a trusted one must be part of."""
    return frozenset(root.sha256 for root in chain_of(asyncio.run(read_ledger(open_log(ledger), trusted, ledger))))
