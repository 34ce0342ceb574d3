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
from flaghoist.policy import DRILL_RULE, EMERGENCY_RULE
from flaghoist.records import EpochClaim, Op, Preparation, Release, Revocation, Step
from flaghoist.release_plan import SHARE_MAX, Stage, Walk, encode_drill
from flaghoist.root import Root
from flaghoist.values import Action, FlagKey, ProposalKind, Seq, Source, Target
from publisher.audit.account import Account
from publisher.audit.examination import Examination
from tests.forge import (
    ADA,
    EMERGENCY_LABEL,
    GRACE,
    LINUS,
    Forge,
    Key,
    allowing_rule,
    boolean_flag,
    gated_flag,
    release_plan,
)
from tests.scenarios.operators import Operator

HOUR_MS = 3_600_000
GATE = {"if": [{"in": [{"var": "targetingKey"}, ["u1", "u2"]]}, True, False]}
RULE = {"if": [{"$ref": "release.checkout-v2"}, "on", "off"]}
COLOURS = {"state": "ENABLED", "variants": {"red": "#f00", "blue": "#00f"}, "defaultVariant": "red"}

LEAD_MS = 2000
# The seqs of the story, by what happens there.
GENESIS, IMPORT, GATED, RAMPED, EDITED, DELETED, READDED, KILLED, RATIFIED, SAME_PERSON, STRANGER, CLAIMED, ROTATED, \
    AFTER = range(1, 15)  # fmt: skip
# Of the release `spring`, with flags of two services.
CREATED, WALKED, STEPPED, TOO_EARLY, STEPPED_ON, UNPREPARED, PREPARED, HOISTED, CONFLICTED, NOT_REVERTED, REVERTED, \
    DRILLED, LOWERED, MEASURED, AWAITED, CLOSED_AT_ONCE, STOOD_BEHIND = range(15, 32)  # fmt: skip
LAST = STOOD_BEHIND
STAGES = (Stage("inside", True, 0, 3600), Stage("10%", True, 10_000, 3600), Stage("everybody", False, SHARE_MAX, 0))


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
    """Return the ledger: two sources, an emergency, rejected entries, an epoch, another root; then what releases do."""
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
    released(forge)
    return forge


def released(forge: Forge) -> None:
    """Append a release's life: created inert, walked, hoisted at one moment, reverted, rehearsed, killed, ratified."""
    plan = release_plan(
        "cart.spring", "mail.spring", title="spring in the shop", services=("cart", "mail"), stages=STAGES,
        audience={"ends_with": [{"var": "email"}, "@example.org"]}, lead_ms=LEAD_MS, ticket="SHOP-7",
    )  # fmt: skip
    inert = [forge.op(key, gated_flag("spring")) for key in ("cart.spring", "mail.spring")]
    change(forge, forge.release_op("spring", plan), *inert, title="spring, still closed", ticket="SHOP-7")
    change(forge, forge.hoist("spring", walk=Walk.ON), title="walk spring")
    forge.now_ms += HOUR_MS
    step(forge, 0)
    forge.now_ms += HOUR_MS // 2
    step(forge, 1)
    forge.now_ms += HOUR_MS
    step(forge, 1)
    forge.now_ms += HOUR_MS
    op = forge.hoist("spring", share=50_000, walk=Walk.PAUSED)
    proposal = forge.proposal(op, title="half of all users, together", lead_ms=LEAD_MS, acked_percent=95)
    body = Release(proposal, (forge.approval(proposal),), allowing_rule(forge.root))
    for entry in (body, Preparation(body), body):
        forge.append(entry)
        forge.now_ms += 5000
    note = gated_flag("spring", metadata={"note": "edited"})
    change(forge, forge.op("mail.spring", note), title="a note for the mail")
    change(forge, forge.hoist("spring", share=0, audience=False), title="take spring back", kind=ProposalKind.ROLLBACK)
    kept = ((Source(""), FlagKey("mail.spring")),)
    back = forge.hoist("spring", share=0, audience=False, kept=kept)
    change(forge, back, title="take spring back, keep the note", kind=ProposalKind.ROLLBACK)
    drill(forge, "rehearse: open", hoisted=True)
    drill(forge, "rehearse: close", hoisted=False)
    drill(forge, "rehearse: measured", hoisted=False, result={"instances": 3, "reached": 3, "last_ms": 41})
    change(forge, forge.hoist("spring", share=SHARE_MAX, kept=()), title="spring for everybody", lead_ms=LEAD_MS)
    close = Op(Target.RELEASE, Source(""), FlagKey("spring"), Seq(AWAITED), Action.KILL, None)
    told_of = {"kind": ProposalKind.EMERGENCY, "expires_at": forge.now_ms + 600_000, "title": "carts are lost"}
    forge.now_ms += LEAD_MS // 2
    emergency = forge.proposal(close, by=GRACE, signed_by=Key(GRACE, EMERGENCY_LABEL), **told_of)
    killed = forge.append(Release(emergency, (), EMERGENCY_RULE))
    forge.now_ms += HOUR_MS
    forge.ratify(killed)


def step(forge: Forge, stage: int, *, of: str = "spring") -> None:
    """Append the step of a release to a stage."""
    forge.append(Step(FlagKey(of), forge.ledger.snapshot.releases[FlagKey(of)].version, stage))


def drill(forge: Forge, title: str, **said: Any) -> None:
    """Append one entry of a rehearsal of `spring`."""
    forge.now_ms += HOUR_MS
    op = Op(Target.DRILL, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_drill(**said))
    op = replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))
    forge.append(Release(forge.proposal(op, title=title, kind=ProposalKind.DRILL), (), DRILL_RULE))


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
