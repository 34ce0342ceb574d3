"""A ledger in which everything happens that a reader of the topic must tell apart, by people with keys of each kind."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flaghoist import sshsig
from flaghoist.definition import encode_flag
from flaghoist.policy import DRILL_RULE, EMERGENCY_RULE
from flaghoist.records import (
    Body,
    Envelope,
    EpochClaim,
    Op,
    Preparation,
    Ratification,
    Release,
    Revocation,
    RoleGrant,
    RootKey,
    RootRecord,
    Step,
)
from flaghoist.release_plan import LEAD_MS_MAX, SHARE_MAX, Stage, Walk, encode_drill
from flaghoist.root import Root
from flaghoist.signing import Signer, countersign, digest, key_id
from flaghoist.values import Action, Algorithm, FlagKey, KeyId, Person, ProposalKind, Role, Seq, Source, Target
from tests.forge import (
    ADA,
    DAY_MS,
    GRACE,
    LINUS,
    PUBLISHER,
    Forge,
    Key,
    allowing_rule,
    boolean_flag,
    gated_flag,
    release_plan,
    root_record,
    sealed_root,
)

HOUR_MS = 3_600_000
TOVE, MARY = Person("tove@example.org"), Person("mary@example.org")
NEW_PUBLISHER = Key(PUBLISHER, "second")
POLICY = """\
version: 1
rules:
  - name: two-leads
    when: {key: "pay*"}
    approvals: {count: 2}
  - name: anybody
"""


class SshKey(Key):
    """An OpenSSH key: it signs OpenSSH's wrapping of a message."""

    def sign(self, message: bytes) -> bytes:
        return super().sign(sshsig.signed_bytes(message))


class P256Key(Key):
    """A P-256 key, as an HSM holds it."""

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        seed = hashlib.sha256(f"flaghoist test key {self.person} {self.label}".encode()).digest()
        return ec.derive_private_key(int.from_bytes(seed, "big") >> 1, ec.SECP256R1())

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    @property
    def listed(self) -> RootKey:
        return RootKey(key_id(self.algorithm, self.public), self.algorithm, self.public, self.person)

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message, ec.ECDSA(hashes.SHA256()))


SSH = SshKey(TOVE, "ssh", Algorithm.SSHSIG_ED25519)
P256 = P256Key(MARY, "p256", Algorithm.ECDSA_P256)
KEYS: dict[Person, Signer] = {TOVE: SSH, MARY: P256}


def key_of(person: Person) -> Signer:
    return KEYS.get(person, Key(person))


def first_root() -> RootRecord:
    """Two of three people sign roots; of those who propose and approve one has an SSH key, one a P-256 key."""
    record = root_record("staging", emergency=(GRACE, LINUS), root_threshold=2)
    more = frozenset({SSH.listed.key_id, P256.listed.key_id})
    grown = (Role.REQUESTER, Role.APPROVER, Role.ROOT)
    return replace(
        record,
        keys=(*record.keys, SSH.listed, P256.listed),
        roles={
            role: replace(grant, key_ids=grant.key_ids | more) if role in grown else grant
            for role, grant in record.roles.items()
        },
    )


def begun() -> Forge:
    """A ledger with its first entry: the root, signed with an SSH key and a P-256 key."""
    forge = Forge(log_id="staging")
    forge.root = Root.verified(sealed_root(first_root(), SSH, P256))
    forge.genesis()
    return forge


def resigned(envelope: Envelope, signer: Signer) -> Envelope:
    """The same bytes, signed by another key alone."""
    return countersign(replace(envelope, signatures=()), [signer])


def asked(forge: Forge, *ops: Op, by: Person, title: str, **more: object) -> Envelope:
    proposal = forge.proposal(*ops, by=by, signed_by=Key(by), title=title, **more)
    return resigned(proposal, key_of(by))


def approved(forge: Forge, proposal: Envelope, *people: Person, **more: object) -> tuple[Envelope, ...]:
    return tuple(resigned(forge.approval(proposal, by=person, **more), key_of(person)) for person in people)


def change(
    forge: Forge,
    *ops: Op,
    title: str,
    by: Person = ADA,
    approved_by: Sequence[Person] = (GRACE,),
    rule: str | None = None,
    signed_by: Key | None = None,
    **more: object,
) -> bytes:
    """Append a change, an hour after what was before."""
    forge.now_ms += HOUR_MS
    proposal = asked(forge, *ops, by=by, title=title, **more)
    body = Release(proposal, approved(forge, proposal, *approved_by), rule or allowing_rule(forge.root))
    return forge.append(body, signed_by=signed_by)


def safe_flag(forge: Forge, key: str, default: str = "off") -> Op:
    op = Op(Target.FLAG, Source(""), FlagKey(key), Seq(0), Action.PUT,
            encode_flag(boolean_flag(default), {"safe_variant": "off"}))  # fmt: skip
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def told() -> Forge:
    """The whole story; `records` are what its honest publishers wrote."""
    forge = begun()
    change(
        forge, safe_flag(forge, "checkout"), forge.op("colour", boolean_flag(), source="shop/colours.json"),
        forge.evaluator_op("release.checkout-v2", {"in": [{"var": "targetingKey"}, ["u1"]]}),
        title='Für alle: "checkout"\t\\ 🚀\x7f', reason="first line\nsecond <line> & more\u2028",
        ticket="SHOP-1",
    )  # fmt: skip
    change(forge, safe_flag(forge, "checkout", "on"), title="with an SSH key", by=TOVE, approved_by=(MARY,))
    change(forge, forge.op("colour", None, source="shop/colours.json"), title="with a P-256 key", by=MARY,
           approved_by=(TOVE, LINUS))  # fmt: skip
    forge.append(EpochClaim("publisher-2 \u00e9"))
    rejected_ones(forge)
    forge.now_ms += HOUR_MS
    killed = forge.kill("checkout", by=GRACE, title="checkout loses orders")
    forge.now_ms += HOUR_MS
    forge.ratify(killed, by=(ADA, LINUS))
    forge.ratify(killed, by=(ADA,))
    rotated(forge)
    second = {"signed_by": NEW_PUBLISHER}
    released(forge)
    rejected_releases(forge)
    change(forge, forge.op("pay.card", boolean_flag()), title="under a policy", approved_by=(GRACE, MARY),
           rule="two-leads", **second)  # fmt: skip
    change(forge, forge.op("banner", boolean_flag("on")), title="anybody may", by=GRACE, approved_by=(TOVE,),
           rule="anybody", **second)  # fmt: skip
    return forge


def proposed(
    forge: Forge, *ops: Op, title: str, by: Person = ADA, approved_by: Sequence[Person] = (GRACE,), **more: object
) -> Release:
    """What an entry carries of a proposal under the second root, whose policy lets anybody change a release."""
    proposal = asked(forge, *ops, by=by, title=title, **more)
    return Release(proposal, approved(forge, proposal, *approved_by), "anybody")


def taken(forge: Forge, body: Body, **changes: object) -> bytes:
    """Append an entry of the second publisher, an hour after what was before."""
    forge.now_ms += HOUR_MS
    return forge.append(body, signed_by=NEW_PUBLISHER, **changes)


def spring(forge: Forge) -> Seq:
    """The seq of the entry that last changed the release `spring`."""
    return forge.ledger.snapshot.releases[FlagKey("spring")].version


def drill_op(forge: Forge, **said: Any) -> Op:
    op = Op(Target.DRILL, Source(""), FlagKey("spring"), Seq(0), Action.PUT, encode_drill(**said))
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def drilled(forge: Forge, **said: Any) -> Release:
    proposal = asked(forge, drill_op(forge, **said), by=TOVE, title="a rehearsal", kind=ProposalKind.DRILL)
    return Release(proposal, (), DRILL_RULE)


def kill_op(forge: Forge, target: Target, key: str) -> Op:
    op = Op(target, Source(""), FlagKey(key), Seq(0), Action.KILL, None)
    return replace(op, expected_version=forge.ledger.snapshot.version_of(op.state_id))


def released(forge: Forge) -> None:
    """Append a release's life: created, walked, prepared and set to a moment, reverted, rehearsed, killed, ratified."""
    stages = (Stage("1%", False, 1000, 60), Stage("half", False, 50_000, 60), Stage("all", False, SHARE_MAX, 0))
    flags = [forge.op(key, gated_flag("spring")) for key in ("cart.spring", "mail.spring")]
    plan = forge.release_op("spring", release_plan("cart.spring", "mail.spring", stages=stages, lead_ms=2000))
    taken(forge, proposed(forge, plan, *flags, title="spring, still closed"))
    taken(forge, proposed(forge, forge.hoist("spring", walk=Walk.ON), title="walk it", by=MARY))
    taken(forge, Step(FlagKey("spring"), spring(forge), 0))
    taken(forge, Step(FlagKey("spring"), spring(forge), 1), published_at=forge.now_ms + 300 * DAY_MS)
    hoist = forge.hoist("spring", share=60_000, walk=Walk.PAUSED)
    body = proposed(forge, hoist, title="together", by=TOVE, approved_by=(MARY,), lead_ms=2000, acked_percent=95)
    taken(forge, Preparation(body))
    taken(forge, EpochClaim("publisher-4"))
    taken(forge, body)
    at = forge.now_ms + HOUR_MS + LEAD_MS_MAX
    hoist = forge.hoist("spring", share=70_000)
    taken(forge, proposed(forge, hoist, title="at five past", activate_at=at))
    back = forge.hoist("spring", share=0)
    taken(forge, proposed(forge, back, title="back", by=GRACE, approved_by=(SSH.person,), kind=ProposalKind.ROLLBACK))
    taken(forge, drilled(forge, hoisted=True))
    taken(forge, drilled(forge, hoisted=False, result={"instances": 3}))
    taken(forge, proposed(forge, forge.hoist("spring", share=SHARE_MAX), title="for all"))
    told_of = {"kind": ProposalKind.EMERGENCY, "expires_at": forge.now_ms + HOUR_MS + 600_000}
    told_of["created_at"] = forge.now_ms + HOUR_MS
    close = forge.proposal(
        kill_op(forge, Target.RELEASE, "spring"), by=GRACE, signed_by=Key(GRACE, "emergency"), **told_of
    )
    taken(forge, Release(close, (), EMERGENCY_RULE))
    taken(forge, Ratification(digest(close), approved(forge, close, ADA, TOVE)))


def rejected_releases(forge: Forge) -> None:
    """Entries about releases that change nothing, each for a reason that a reader without definitions can see.

    Their codes, in this order, are REFUSED_RELEASES.
    """
    gate, drill = forge.hoist("spring", share=1000), drill_op(forge, hoisted=True)
    flag = forge.op("checkout", boolean_flag())

    def body(*ops: Op, **more: object) -> Release:
        return proposed(forge, *(ops or (gate,)), title="no", **more)

    def rehearsal(*ops: Op, **more: object) -> Release:
        return Release(asked(forge, *ops, by=ADA, title="no", kind=ProposalKind.DRILL, **more), (), DRILL_RULE)

    def emergency(*ops: Op, **more: object) -> Release:
        at_ms = forge.now_ms + HOUR_MS
        told_of = {"kind": ProposalKind.EMERGENCY, "created_at": at_ms, "expires_at": at_ms + 600_000}
        signer = {"by": GRACE, "signed_by": Key(GRACE, "emergency")}
        return Release(forge.proposal(*ops, **signer, **(told_of | more)), (), EMERGENCY_RULE)

    # Drills: of another kind, among others there, of something else too, and only; approved, under another rule, by
    # nobody who may ask, with a moment, with a least seq for pins.
    taken(forge, body(drill))
    taken(forge, body(gate, drill))
    taken(forge, rehearsal(drill, flag))
    taken(forge, rehearsal(flag))
    approved_drill = rehearsal(drill)
    taken(forge, replace(approved_drill, approvals=approved(forge, approved_drill.proposal, GRACE)))
    taken(forge, replace(rehearsal(drill), policy="anybody"))
    taken(forge, replace(rehearsal(drill), proposal=resigned(rehearsal(drill).proposal, Key(ADA, "of nobody"))))
    taken(forge, rehearsal(drill, lead_ms=2000))
    taken(forge, rehearsal(drill, min_pin=Seq(1)))
    # Moments: two of them, none, too far ahead, over, of an emergency.
    taken(forge, body(activate_at=forge.now_ms + HOUR_MS, lead_ms=1))
    taken(forge, body(lead_ms=0))
    taken(forge, body(lead_ms=LEAD_MS_MAX + 1))
    taken(forge, body(acked_percent=0))
    taken(forge, body(acked_percent=101))
    taken(forge, body(activate_at=forge.now_ms + HOUR_MS + LEAD_MS_MAX + 1))
    taken(forge, body(activate_at=forge.now_ms + HOUR_MS - 1))
    taken(forge, emergency(kill_op(forge, Target.FLAG, "checkout"), lead_ms=1))
    # Kills: of what cannot be killed, by somebody without an emergency's key.
    taken(forge, emergency(kill_op(forge, Target.EVALUATOR, "release.spring")))
    taken(forge, body(kill_op(forge, Target.RELEASE, "spring")))
    # Preparations: missing, of what asks for none, approved by nobody, of another proposal, used up, expired.
    taken(forge, body(acked_percent=50))
    taken(forge, Preparation(body()))
    taken(forge, Preparation(body(acked_percent=50, approved_by=())))
    taken(forge, Preparation(body(acked_percent=50, activate_at=forge.now_ms + HOUR_MS + LEAD_MS_MAX + 1)))
    taken(forge, Preparation(body(acked_percent=51)))
    taken(forge, body(acked_percent=52))
    short = body(acked_percent=53, expires_at=forge.now_ms + HOUR_MS)
    taken(forge, Preparation(short))
    taken(forge, short)
    # Rollbacks that do something else than set releases.
    taken(forge, body(flag, kind=ProposalKind.ROLLBACK))
    taken(forge, body(replace(gate, action=Action.DELETE, definition=None), kind=ProposalKind.ROLLBACK))
    # Steps under another root, and before the newest change.
    taken(forge, Step(FlagKey("spring"), spring(forge), 0), root_version=3)
    taken(forge, Step(FlagKey("spring"), spring(forge), 0), published_at=forge.ledger.head.published_at - 1)


REFUSED_RELEASES = [
    "bad_definition", "bad_definition", "bad_definition", "bad_definition",
    "not_approved", "not_approved", "bad_signature",
    "bad_definition", "bad_definition",
    "bad_definition", "bad_definition", "bad_definition", "bad_definition", "bad_definition", "not_yet", "expired",
    "bad_definition",
    "bad_definition", "bad_definition",
    "not_approved", "bad_definition", "not_approved", "not_yet", None, "not_approved", None, "expired",
    "bad_definition", "bad_definition",
    "wrong_root", "expired",
]  # fmt: skip


def rejected_ones(forge: Forge) -> None:
    """Links of the chain that change nothing, each for another reason that a reader can see."""
    op = forge.op("checkout", boolean_flag("on"))
    change(forge, op, title="on by myself", approved_by=(ADA,))
    change(forge, op, title="by nobody", approved_by=())
    change(forge, op, title="for another reason", rule="because")
    stranger = asked(forge, op, by=ADA, title="signed by a stranger")
    forge.append(
        Release(resigned(stranger, Key(ADA, "of nobody")), approved(forge, stranger, GRACE), allowing_rule(forge.root))
    )
    edited, shown = asked(forge, op, by=ADA, title="what runs"), asked(forge, op, by=ADA, title="what was approved")
    forge.append(Release(edited, approved(forge, shown, GRACE), allowing_rule(forge.root)))
    late = asked(forge, op, by=ADA, title="approved long ago")
    forge.append(Release(late, approved(forge, late, GRACE, expires_at=forge.now_ms - 1), allowing_rule(forge.root)))
    past = asked(forge, op, by=ADA, title="dated back")
    body = Release(past, approved(forge, past, GRACE), allowing_rule(forge.root))
    forge.append(body, published_at=forge.now_ms - 2 * DAY_MS)
    forge.append(body, root_version=2)
    spliced = asked(forge, op, by=ADA, title="signed by one, asked by another")
    forge.append(Release(resigned(spliced, Key(LINUS)), approved(forge, spliced, GRACE), allowing_rule(forge.root)))
    other = asked(forge, op, by=ADA, title="of another environment", log_id="production")
    forge.append(Release(other, approved(forge, other, GRACE), allowing_rule(forge.root)))


def rotated(forge: Forge) -> None:
    """Append the next root: a key revoked, another publisher key (which signs it), a policy; then a claim under it."""
    forge.now_ms += HOUR_MS
    root = forge.root.record
    gone = {Key(LINUS).listed.key_id, Key(PUBLISHER).listed.key_id}
    roles: dict[Role, RoleGrant] = {
        role: replace(grant, key_ids=frozenset(grant.key_ids - gone)) for role, grant in root.roles.items()
    }
    roles[Role.PUBLISHER] = RoleGrant(frozenset({NEW_PUBLISHER.listed.key_id}), 1)
    forge.rotate(
        Key(ADA), SSH, P256, signed_by=NEW_PUBLISHER,
        keys=(*(key for key in root.keys if key.key_id not in gone), NEW_PUBLISHER.listed),
        roles=roles, policy=POLICY,
        revoked=tuple(Revocation(KeyId(one), Seq(3), "laptop stolen") for one in sorted(gone)),
    )  # fmt: skip
    forge.append(EpochClaim("publisher-3"), signed_by=NEW_PUBLISHER)
