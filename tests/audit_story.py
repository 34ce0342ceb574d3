"""A forged ledger in which everything happens once that an audit tells of; the same bytes at every run."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flaghoist.codec import encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from flaghoist.records import EpochClaim, Op, Release, Revocation
from flaghoist.root import Root
from flaghoist.values import Action, FlagKey, Seq, Source, Target
from publisher.audit.account import Account
from publisher.audit.examination import Examination
from tests.forge import ADA, GRACE, LINUS, Forge, Key, allowing_rule, boolean_flag
from tests.scenarios.operators import Operator

HOUR_MS = 3_600_000
GATE = {"if": [{"in": [{"var": "targetingKey"}, ["u1", "u2"]]}, True, False]}
RULE = {"if": [{"$ref": "release.checkout-v2"}, "on", "off"]}
COLOURS = {"state": "ENABLED", "variants": {"red": "#f00", "blue": "#00f"}, "defaultVariant": "red"}

# The seqs of the story, by what happens there.
GENESIS, IMPORT, GATED, RAMPED, EDITED, DELETED, READDED, KILLED, RATIFIED, SAME_PERSON, STRANGER, CLAIMED, ROTATED, \
    AFTER = range(1, 15)  # fmt: skip


def governed(forge: Forge, key: str, flag: dict[str, object], governance: dict[str, object]) -> Op:
    """PUT of a flag with its governance."""
    op = Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT, encode_flag(flag, governance))
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def change(
    forge: Forge, *ops: Op, title: str, by: Any = ADA, approved_by: Sequence[Any] = (GRACE,), **more: Any
) -> None:
    """Append an approved change, an hour after what was before."""
    forge.now_ms += HOUR_MS
    proposal = forge.proposal(*ops, by=by, title=title, **more)
    approvals = tuple(forge.approval(proposal, by=person, comment=f"read it: {title}") for person in approved_by)
    forge.append(Release(proposal, approvals, allowing_rule(forge.root)))


def told() -> Forge:
    """Return the ledger: two sources, a release, an emergency, two rejected entries, an epoch, another root."""
    forge = Forge(log_id="staging", root_options={"emergency": (GRACE, LINUS)})
    forge.genesis()
    change(
        forge,
        governed(forge, "checkout", boolean_flag("off", description="the new checkout"),
                 {"owner": ADA, "safe_variant": "off"}),
        forge.op("colour", COLOURS, source="shop.json"),
        title="import shop.json", ticket="SHOP-1",
    )  # fmt: skip
    change(
        forge,
        forge.evaluator_op("release.checkout-v2", GATE),
        governed(forge, "checkout", boolean_flag("off", targeting=RULE, description="the new checkout"),
                 {"owner": ADA, "safe_variant": "off"}),
        title="checkout behind its gate", by=LINUS,
    )  # fmt: skip
    ramp = {"if": [{"in": [{"var": "targetingKey"}, ["u1", "u2", "u3"]]}, True, False]}
    change(
        forge, forge.evaluator_op("release.checkout-v2", ramp), title="ramp checkout to u3", approved_by=(GRACE, LINUS)
    )
    more = {**COLOURS, "variants": {"green": "#0f0", "red": "#f00", "blue": "#00e"}}
    change(forge, forge.op("colour", more, source="shop.json"), title="a green colour", by=GRACE, approved_by=(LINUS,))
    change(forge, forge.op("colour", None, source="shop.json"), title="no colours")
    change(forge, forge.op("colour", COLOURS, source="shop.json"), title="colours again", by=LINUS, approved_by=(ADA,))
    forge.now_ms += HOUR_MS
    killed = forge.kill("checkout", by=GRACE, title="checkout loses orders")
    forge.now_ms += HOUR_MS
    forge.ratify(killed)
    change(forge, forge.op("checkout", boolean_flag("on")), title="on by myself", approved_by=(ADA,))
    unsigned = forge.proposal(forge.op("checkout", boolean_flag("on")), by=ADA, signed_by=Key(ADA, "of nobody"))
    forge.append(Release(unsigned, (), allowing_rule(forge.root)))
    forge.append(EpochClaim("publisher-2"))
    forge.now_ms += HOUR_MS
    root = forge.root.record
    gone = Key(LINUS).listed.key_id
    forge.rotate(
        Key(ADA), keys=tuple(key for key in root.keys if key.key_id != gone),
        roles={role: replace(grant, key_ids=grant.key_ids - {gone}) for role, grant in root.roles.items()},
        revoked=(Revocation(gone, Seq(READDED), "laptop stolen"),),
    )  # fmt: skip
    change(forge, forge.op("late", boolean_flag("on")), title="after the rotation")
    return forge


def examined(forge: Forge) -> tuple[Examination, list[Account]]:
    """Return what an examination makes of a forged ledger."""
    examination = Examination(Ledger(forge.first_root))
    taken = [examination.take(position, data) for position, data in enumerate(forge.records)]
    return examination, [account for account in taken if account is not None]


def auditor(directory: Path, root: Root, records: Sequence[bytes]) -> Operator:
    """Return somebody who has pinned the root of a ledger with these records, in a file of its own."""
    operator = Operator(directory / "auditor")
    url = f"sqlite:///{directory}/ledger.db"
    asyncio.run(_written(url, records))
    file = directory / "pinned.root"
    file.write_bytes(encode_envelope(root.envelope))
    operator.ok("root", "pin", file, "--ledger", url, "--yes")
    return operator


def write_more(directory: Path, records: Sequence[bytes]) -> None:
    """Append records to the ledger of an auditor."""
    asyncio.run(_written(f"sqlite:///{directory}/ledger.db", records, create=False))


async def _written(url: str, records: Sequence[bytes], *, create: bool = True) -> None:
    if create:
        await create_log(url)
    async with open_log(url)(Stream.LEDGER) as log:
        for record in records:
            await log.append(record)
