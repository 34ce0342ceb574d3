"""One environment's honest history, and all that its thieves could forge beside it: made once per story, used by many
runs. Keys and signatures are real; every signature is told to the model's registry when it is made.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from nacl.signing import SigningKey

from flaghoist.codec import APPROVAL, ENTRY, HEARTBEAT, PROPOSAL, ROOT, encode_envelope
from flaghoist.definition import encode_evaluator, encode_flag
from flaghoist.ledger import Head, Ledger, next_entry
from flaghoist.outcomes import Link
from flaghoist.records import (
    Approval,
    Body,
    Entry,
    Envelope,
    EpochClaim,
    Heartbeat,
    Op,
    Preparation,
    Proposal,
    Ratification,
    Release,
    Revocation,
    RoleGrant,
    RootKey,
    RootRecord,
    RootUpdate,
    Step,
)
from flaghoist.release_plan import SHARE_MAX, Walk, encode_drill, encode_release
from flaghoist.release_plan import Stage as PlanStage
from flaghoist.root import Root
from flaghoist.signing import countersign, digest, seal
from flaghoist.values import (
    Action,
    Decision,
    FlagKey,
    LogId,
    Person,
    ProposalKind,
    Role,
    Seq,
    Source,
    Target,
)
from tests import forge
from tests.adversary import model
from tests.forge import ADA, BEAT_LIFE_MS, DAY_MS, GRACE, LINUS, NOW_MS, PUBLISHER, boolean_flag, release_plan


class Key(forge.Key):
    """A forged key whose pair is computed once."""

    @property
    def secret(self) -> SigningKey:
        return _secret(self)

    @property
    def listed(self) -> RootKey:
        return _listed(self)


@cache
def _secret(key: Key) -> SigningKey:
    return forge.Key(key.person, key.label).secret


@cache
def _listed(key: Key) -> RootKey:
    return forge.Key(key.person, key.label).listed


DAVE, ERIN, MALLORY = (Person(f"{name}@example.org") for name in ("dave", "erin", "mallory"))
LOG: Final = "production"
YEAR_MS: Final = 365 * DAY_MS
MINUTE_MS: Final = 60_000

# Which keys the adversary has: none, one, or the publisher's and another one's.
THEFTS: Final[Sequence[tuple[str, ...]]] = (
    (),
    (),
    ("publisher",),
    ("publisher",),
    ("heartbeat",),
    ("ada",),
    ("emergency",),
    ("publisher", "ada"),
    ("publisher", "linus"),
    ("publisher", "dave"),
    ("publisher", "erin"),
    ("publisher", "emergency"),
    ("publisher", "heartbeat"),
)

# What a publisher has signed that lost its place to another's claim.
LATE_ENTRY: Final = "late entry of an ended epoch"
LOST_CLAIM: Final = "claim that lost the race"
LOST: Final = (LATE_ENTRY, LOST_CLAIM)

POLICY: Final = """\
version: 1
groups:
  payments: [linus@example.org, dave@example.org]
rules:
  - name: payments
    when: {team: payments}
    approvals: {count: 1, from: payments}
  - name: any
"""
TEAMS: Final = {"payments": frozenset({str(LINUS), str(DAVE)})}

SAFE: Final = {"safe_variant": "off"}
STRICT: Final = {"safe_variant": "off", "team": "payments"}
GATE: Final = {"if": [{"==": [{"var": "country"}, "is"]}, "on", "off"]}
OPEN: Final = {"if": [True, "on", "off"]}

ALL: Final = SHARE_MAX
HOUR_S: Final = 3_600


def behind(release: str) -> dict[str, Any]:
    """The rule of a flag that goes on for those whom a release lets through."""
    return {"if": [{"$ref": f"release.{release}"}, "on"]}


P1, P2, P3 = Key(PUBLISHER), Key(PUBLISHER, "second"), Key(PUBLISHER, "third")
B1, B2 = Key(PUBLISHER, "heartbeat"), Key(PUBLISHER, "heartbeat 2")
STRANGER: Final = Key(MALLORY)
PEOPLE: Final = {person: Key(person) for person in (ADA, GRACE, LINUS, DAVE, ERIN)}
LINUS_AGAIN: Final = Key(LINUS, "second")
KILLERS: Final = {person: Key(person, "emergency") for person in (GRACE, LINUS)}


def held(key: Key) -> model.Held:
    return model.Held(f"{key.person} {key.label}", str(key.person))


@dataclass(frozen=True)
class Record:
    """One record of the honest log. `link`: it is one of the chain; else what it is."""

    at_ms: int
    data: bytes
    what: str
    link: bool = True


@dataclass(frozen=True)
class Artefact:
    """A body that an adversary with a publisher key may try to have taken, and how to date and frame its entry."""

    what: str
    body: Body
    published_at: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Story:
    """What is fixed for all runs of one story."""

    number: int
    theft: tuple[str, ...]
    registry: model.Registry
    first_root: Root
    first_facts: model.Root
    log: list[Record]
    beats: list[tuple[int, bytes]]
    artefacts: list[Artefact]
    junk: list[tuple[str, bytes]]
    beat_junk: list[tuple[str, bytes]]
    stolen_publisher: Key | None
    stolen_beats: Key | None
    chain: list[tuple[int, bytes]]
    pinned: dict[int, bytes]
    shadow: model.Shadow

    @property
    def raced(self) -> bool:
        """Whether honest publishers have signed more than one entry for one place."""
        return any(record.what in LOST for record in self.log)

    @property
    def begins_ms(self) -> int:
        return self.log[0].at_ms

    @property
    def ends_ms(self) -> int:
        return self.log[-1].at_ms


class Author:
    """Writes one story: honest people, publishers that take turns, and what thieves slip in between."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(f"story {number}")
        self.number = number
        self.theft = THEFTS[number % len(THEFTS)]
        self.registry = model.Registry()
        self.now_ms = NOW_MS
        self.threshold = self.rng.choice((1, 2))
        self.policy = self.rng.choice(("", POLICY))
        self.publishers = [P1, P2]
        self.beat_key = B1
        self.made = 0
        record = self._root_record()
        signers = [PEOPLE[p] for p in (ADA, GRACE, LINUS)]
        self.first_root = Root.verified(seal(ROOT, record, signers[:2]))
        self.first_facts = self._facts(record, self.first_root.sha256)
        self.ledger = Ledger(self.first_root)
        self.shadow = model.Shadow(self.registry, LOG, self.first_facts)
        self.active = P1
        self.log: list[Record] = []
        self.chain: list[tuple[int, bytes]] = []
        self.beats: list[tuple[int, bytes]] = []
        self.artefacts: list[Artefact] = []
        self.junk: list[tuple[str, bytes]] = []
        self.beat_junk: list[tuple[str, bytes]] = []

    # --- roots ---

    def _root_record(self, **changes: Any) -> RootRecord:
        people = [PEOPLE[p] for p in PEOPLE]
        keys = [*people, LINUS_AGAIN, *KILLERS.values(), *self.publishers, self.beat_key]
        ids = {key: key.listed.key_id for key in keys}

        def grant(holders: Sequence[Key], threshold: int = 1) -> RoleGrant:
            return RoleGrant(frozenset(ids[key] for key in holders), threshold)

        ada, grace, linus, dave, erin = people
        record = RootRecord(
            log_id=LogId(LOG),
            version=1,
            prev_root_sha256=bytes(32),
            anchor_seq=Seq(0),
            anchor_hash=bytes(32),
            expires_at=NOW_MS + YEAR_MS,
            keys=tuple(key.listed for key in keys),
            roles={
                Role.ROOT: grant([ada, grace, linus], 2),
                Role.REQUESTER: grant([ada, grace, linus, erin]),
                Role.APPROVER: grant([ada, grace, linus, dave, LINUS_AGAIN], self.threshold),
                Role.PUBLISHER: grant(self.publishers),
                Role.HEARTBEAT: grant([self.beat_key]),
                Role.EMERGENCY: grant(list(KILLERS.values())),
            },
            fractional="v2",
            policy=self.policy,
            revoked=(),
        )
        return replace(record, **changes)

    def _facts(self, record: RootRecord, sha256: bytes) -> model.Root:
        named = {key.listed.key_id: held(key) for key in (*PEOPLE.values(), LINUS_AGAIN, *KILLERS.values())}

        def holders(role: Role) -> frozenset[model.Held]:
            return frozenset(named[key_id] for key_id in record.roles[role].key_ids)

        return model.Root(
            record.version,
            sha256,
            holders(Role.REQUESTER),
            holders(Role.APPROVER),
            holders(Role.EMERGENCY),
            frozenset(record.roles[Role.HEARTBEAT].key_ids),
            record.roles[Role.APPROVER].threshold,
            record.expires_at,
            TEAMS if record.policy else None,
        )

    def successor_record(self, **changes: Any) -> RootRecord:
        root, head = self.ledger.root, self.ledger.head
        told = {
            "version": root.version + 1,
            "prev_root_sha256": root.sha256,
            "anchor_seq": head.seq,
            "anchor_hash": head.entry_hash,
            "revoked": root.record.revoked,
        }
        return self._root_record(**{**told, **changes})

    def successor(self, *signers: Key, counts: bool = True, **changes: Any) -> Envelope:
        """A next root. `counts`: it is one that its people may make."""
        record = self.successor_record(**changes)
        envelope = seal(ROOT, record, signers or [PEOPLE[ADA], PEOPLE[LINUS]])
        if counts:
            sha256 = model.digest(envelope.payload_type, envelope.payload)
            self.registry.roots[sha256] = (self.ledger.root.sha256, self._facts(record, sha256))
        return envelope

    # --- what people sign ---

    def put(
        self, key: str, default: str = "off", governance: dict[str, str] | None = None, *, source: str = "", **flag: Any
    ) -> Op:
        document = encode_flag(boolean_flag(default, **flag), governance or SAFE)
        return self.op(Target.FLAG, key, Action.PUT, document, source=source)

    def gate(self, key: str, rule: Any) -> Op:
        return self.op(Target.EVALUATOR, key, Action.PUT, encode_evaluator(rule))

    def op(
        self,
        target: Target,
        key: str,
        action: Action,
        document: bytes | None = None,
        *,
        source: str = "",
        version: int | None = None,
    ) -> Op:
        op = Op(target, Source(source), FlagKey(key), Seq(0), action, document)
        known = self.ledger.snapshot.version_of(op.state_id) if version is None else Seq(version)
        return replace(op, expected_version=known)

    def hoist(self, key: str, *, version: int | None = None, **changes: Any) -> Op:
        """PUT of a release: as it is, or new, with its plan and its gate changed as told."""
        known = self.ledger.snapshot.releases.get(FlagKey(key))
        plan = known.plan if known is not None else release_plan(f"{key}.flag", salt=key)
        gate = {name: changes.pop(name) for name in ("share", "audience", "walk", "kept") if name in changes}
        plan = replace(plan, gate=replace(plan.gate, **gate), **changes)
        return self.op(Target.RELEASE, key, Action.PUT, encode_release(plan), version=version)

    def drill_op(self, key: str, **more: Any) -> Op:
        return self.op(Target.DRILL, key, Action.PUT, encode_drill(hoisted=True, **more))

    def step(self, key: str, *, stage: int | None = None, back: int = 0) -> Step:
        """What takes a release to its next stage, or another; expecting the version that it had `back` before."""
        release = self.ledger.snapshot.releases[FlagKey(key)]
        following = release.plan.next_stage if stage is None else stage
        return Step(FlagKey(key), Seq(release.version.number - back), following or 0)

    def fresh_key(self) -> str:
        self.made += 1
        return f"new-{self.made}"

    def propose(self, *ops: Op, by: Key | None = None, readable: bool = True, **changes: Any) -> Envelope:
        key = by or PEOPLE[ADA]
        self.made += 1
        proposal = replace(
            Proposal(
                log_id=LogId(LOG),
                proposal_id=f"P{self.number}-{self.made}",
                requester=key.person,
                created_at=self.now_ms,
                expires_at=self.now_ms + 7 * DAY_MS,
                kind=ProposalKind.CHANGE,
                title="a change",
                reason="",
                ticket=None,
                ops=ops,
                activate_at=None,
                min_pin=Seq(0),
            ),
            **changes,
        )
        envelope = seal(PROPOSAL, proposal, [key])
        self.registry.proposals[model.digest(envelope.payload_type, envelope.payload)] = model.Proposal(
            str(proposal.log_id),
            held(key),
            str(proposal.requester),
            proposal.kind.value,
            proposal.created_at,
            proposal.expires_at,
            proposal.min_pin.number,
            tuple(_told(op, readable) for op in proposal.ops),
            proposal.activate_at,
            proposal.lead_ms,
            proposal.acked_percent,
        )
        return envelope

    def approve(self, proposal: Envelope, by: Key, **changes: Any) -> Envelope:
        approval = replace(
            Approval(
                log_id=LogId(LOG),
                proposal_sha256=digest(proposal),
                approver=by.person,
                decision=Decision.APPROVE,
                approved_at=self.now_ms,
                expires_at=self.now_ms + DAY_MS,
                comment=None,
            ),
            **changes,
        )
        envelope = seal(APPROVAL, approval, [by])
        self.registry.approvals[model.digest(envelope.payload_type, envelope.payload)] = model.Approval(
            str(approval.log_id),
            held(by),
            str(approval.approver),
            approval.proposal_sha256,
            approval.decision is Decision.APPROVE,
            approval.expires_at,
        )
        return envelope

    def approved(self, proposal: Envelope, *, strict: bool = False, requester: Person = ADA) -> tuple[Envelope, ...]:
        """As many approvals as it takes; of a strict team's people when there is a policy."""
        order = [LINUS, GRACE, DAVE] if strict else [GRACE, LINUS, DAVE]
        return tuple(self.approve(proposal, PEOPLE[p]) for p in [p for p in order if p != requester][: self.threshold])

    def release(
        self, *ops: Op, strict: bool = False, rules: str = "any", by: Key | None = None, **more: Any
    ) -> Release:
        proposal = self.propose(*ops, by=by, **more)
        requester = by.person if by else ADA
        return Release(proposal, self.approved(proposal, strict=strict, requester=requester), self.named(rules))

    def named(self, rules: str) -> str:
        return rules if self.policy else f"approvals>={self.threshold}"

    def kill(self, *ops: Op, by: Person = GRACE, key: Key | None = None, **changes: Any) -> Envelope:
        told = {"kind": ProposalKind.EMERGENCY, "expires_at": self.now_ms + 10 * MINUTE_MS, **changes}
        return self.propose(*ops, by=key or KILLERS[by], **told)

    def kill_op(self, key: str, **more: Any) -> Op:
        return self.op(Target.FLAG, key, Action.KILL, **more)

    # --- what publishers append ---

    def entry(self, body: Body, **changes: Any) -> Entry:
        return replace(next_entry(self.ledger, body, now_ms=self.now_ms), **changes)

    def append(self, what: str, body: Body, *, by: Key | None = None, wanted: str = "Applied", **changes: Any) -> bytes:
        """Append a link that must become what the design says."""
        data = encode_envelope(seal(ENTRY, self.entry(body, **changes), [by or self.active]))
        outcome = self.ledger.receive(data)
        if type(outcome).__name__ != wanted:
            raise model.ViolationError(5, f"story {self.number}: {what}: want {wanted}, got {outcome}")
        assert isinstance(outcome, Link)
        self.log.append(Record(self.now_ms, data, what))
        self.chain.append((self.now_ms, outcome.entry_hash))
        feed(self.shadow, outcome)
        self._beat()
        return data

    def beside(self, what: str, data: bytes) -> None:
        """Write something to the log that is no link of the chain."""
        self.log.append(Record(self.now_ms, data, what, link=False))

    def heartbeat(self, *, by: Key | None = None, **changes: Any) -> bytes:
        head = self.ledger.head
        beat = Heartbeat(
            log_id=LogId(LOG),
            beat_no=len(self.beats) + 1,
            issued_at=self.now_ms,
            expires_at=self.now_ms + BEAT_LIFE_MS,
            seq=head.seq,
            head_hash=head.entry_hash,
            epoch=head.epoch,
            root_version=self.ledger.root.version,
            holder="publisher-1",
            state_root=None,
            checkpoint_seq=Seq(0),
        )
        return encode_envelope(seal(HEARTBEAT, replace(beat, **changes), [by or self.beat_key]))

    def _beat(self) -> None:
        self.beats.append((self.now_ms, self.heartbeat()))

    def wait(self, *, most_s: int = 9) -> None:
        """Let time pass; the publisher at work beats every five seconds."""
        until = self.now_ms + 1000 * self.rng.randint(1, most_s)
        while self.now_ms + 5000 < until:
            self.now_ms += 5000
            self._beat()
        self.now_ms = until

    # --- the story ---

    def write(self) -> Story:
        self.append("genesis", RootUpdate(self.first_root.envelope), wanted="Advanced")
        self.append(
            "first flags",
            self.release(
                self.put("pay", "off", STRICT),
                self.put("lamp", "on", targeting=GATE),
                self.op(Target.FLAG, "bare", Action.PUT, encode_flag(boolean_flag("on"), {"owner": "ada@example.org"})),
                self.gate("gate", GATE),
                self.put("gated", "off", STRICT, targeting={"$ref": "gate"}),
                strict=True,
                rules="payments+any",
            ),
        )
        self._first_releases()
        self._prepare()
        scenes = [self._change, self._change, self._emergency, self._take_over, self._rotate, self._pending]
        scenes += [self._walk, self._walk, self._ramp, self._roll_back, self._drill, self._prepared]
        if "publisher" in self.theft:
            scenes += [self._stolen_link, self._stolen_link, self._stolen_record]
        for _ in range(self.rng.randint(4, 8)):
            self.wait()
            self.rng.choice(scenes)()
        self._prepare_late()
        self.wait()
        if {"publisher", "heartbeat"} & set(self.theft):
            self._cure()
            self.wait()
        self.append("last change", self.release(self.put(self.fresh_key())))
        self.wait(most_s=2)
        return Story(
            number=self.number,
            theft=self.theft,
            registry=self.registry,
            first_root=self.first_root,
            first_facts=self.first_facts,
            log=self.log,
            beats=self.beats,
            artefacts=self.artefacts,
            junk=self.junk,
            beat_junk=self.beat_junk,
            stolen_publisher=P1 if "publisher" in self.theft else None,
            stolen_beats=B1 if "heartbeat" in self.theft else None,
            chain=self.chain,
            pinned={self.ledger.root.version: self.ledger.root.sha256} if self.ledger.root.version > 1 else {},
            shadow=self.shadow,
        )

    def _change(self) -> None:
        key = self.rng.choice(("checkout", "search", "banner"))
        default = self.rng.choice(("on", "off"))
        if self.rng.random() < 0.2 and self.ledger.snapshot.flag(Source(""), FlagKey(key)) is not None:
            self.append(f"delete {key}", self.release(self.op(Target.FLAG, key, Action.DELETE)))
            return
        ops = [self.put(key, default)]
        if self.rng.random() < 0.3:
            ops.append(self.put(self.fresh_key(), default))
        min_pin = Seq(self.rng.choice((0, 0, self.ledger.head.seq.number)))
        self.append(
            f"change {key}", self.release(*ops, by=self.rng.choice((PEOPLE[ADA], PEOPLE[ERIN])), min_pin=min_pin)
        )

    def _first_releases(self) -> None:
        """`spring` is what honest people turn; the others stay as they are, for thieves to try their hands at."""
        names = ("spring", "autumn", "winter", "ready", "base", "top")
        stages = (
            PlanStage("one", False, 1_000, 2),
            PlanStage("half", False, 50_000, 2),
            PlanStage("all", False, ALL, 0),
        )
        slow = tuple(replace(stage, soak_s=HOUR_S) for stage in stages)
        plans = {
            "spring": {"stages": stages, "walk": Walk.ON},
            "autumn": {"stages": stages},
            "winter": {"stages": slow},
            "ready": {"stages": tuple(replace(stage, soak_s=0) for stage in stages)},
            "base": {},
            "top": {"requires": (FlagKey("base"),)},
        }
        flags = [
            self.put(f"{name}.flag", "off", STRICT if name == "autumn" else SAFE, targeting=behind(name))
            for name in names
        ]
        releases = [self.hoist(name, **plans[name]) for name in names]
        self.append("first releases", self.release(*flags, *releases, strict=True, rules="payments+any"))
        gates: dict[str, dict[str, Any]] = {
            "autumn": {"share": 1_000, "walk": Walk.PAUSED},
            "winter": {"share": 1_000, "walk": Walk.ON},
            "ready": {"share": 1_000, "walk": Walk.ON},
            "base": {"share": ALL},
            "top": {"share": 1_000},
        }
        opened = [self.hoist(name, **gate) for name, gate in gates.items()]
        self.append("open some", self.release(*opened, strict=True, rules="payments+any"))

    def _walk(self) -> None:
        """The publisher takes a release to its next stage when its time has come; or people let it."""
        release = self.ledger.snapshot.releases[FlagKey("spring")]
        if release.plan.next_stage is None:
            self.append("close spring", self.release(self.hoist("spring", share=0, walk=Walk.OFF)))
        elif release.plan.gate.walk is not Walk.ON:
            self.append("walk spring", self.release(self.hoist("spring", walk=Walk.ON)))
        else:
            self.now_ms = max(self.now_ms, release.soaked_at_ms)
            self.append("step spring", self.step("spring"), wanted="Stepped")

    def _ramp(self) -> None:
        share = self.rng.choice((2_000, 30_000, ALL))
        told = self.rng.choice(({}, {"lead_ms": 2_000}, {"activate_at": self.now_ms + 3_000}))
        self.append("ramp spring", self.release(self.hoist("spring", share=share, walk=Walk.OFF), **told))

    def _roll_back(self) -> None:
        closing = self.hoist("spring", share=0, audience=False, walk=Walk.OFF)
        if self.rng.random() < 0.5:
            kill = self.kill(self.op(Target.RELEASE, "spring", Action.KILL))
            self.append("kill spring", Release(kill, (), "emergency"))
        else:
            self.append("roll spring back", self.release(closing, kind=ProposalKind.ROLLBACK))

    def _drill(self) -> None:
        proposal = self.propose(self.drill_op("spring", result={"spread_ms": self.made}), kind=ProposalKind.DRILL)
        self.append("drill spring", Release(proposal, (), "drill"))

    def _prepared(self) -> None:
        release = self.release(self.put(self.fresh_key()), lead_ms=2_000, acked_percent=95)
        self.append("prepare", Preparation(release), wanted="Prepared")
        if self.rng.random() < 0.7:
            self.wait()
            self.append("publish what was prepared", release)

    def _emergency(self) -> None:
        key = self.fresh_key()
        self.append(f"put {key}", self.release(self.put(key, "on")))
        self.wait()
        proposal = self.kill(self.kill_op(key))
        self.append(f"kill {key}", Release(proposal, (), "emergency"))
        if self.rng.random() < 0.6:
            self.wait()
            approvals = tuple(self.approve(proposal, PEOPLE[p]) for p in (LINUS, ADA)[: self.threshold])
            self.append(f"ratify the kill of {key}", Ratification(digest(proposal), approvals), wanted="Ratified")

    def _take_over(self) -> None:
        """The other publisher takes over; of the one before, an entry may come too late, and a last heartbeat."""
        late = encode_envelope(seal(ENTRY, self.entry(self.release(self.put(self.fresh_key()))), [self.active]))
        last_beat = self.heartbeat(
            issued_at=self.now_ms + model.LAST_BEAT_MS, expires_at=self.now_ms + model.LAST_BEAT_MS + BEAT_LIFE_MS
        )
        other = next(key for key in self.publishers if key != self.active) if len(self.publishers) > 1 else self.active
        loser = encode_envelope(seal(ENTRY, self.entry(EpochClaim("loser")), [self.active]))
        self.append("claim", EpochClaim("winner"), by=other, wanted="Advanced")
        self.active = other
        if self.rng.random() < 0.5:
            self.beside(LATE_ENTRY, late)
        if self.rng.random() < 0.3:
            self.beside(LOST_CLAIM, loser)
        self.beats.append((self.now_ms + model.LAST_BEAT_MS, last_beat))
        self.beats.sort(key=lambda beat: beat[0])
        if self.active == P2 and "publisher" in self.theft and self.rng.random() < 0.5:
            self.junk.append(("late entry", late))

    def _rotate(self) -> None:
        """The same keys for another year."""
        root = self.successor(expires_at=NOW_MS + YEAR_MS + self.made + 1)
        self.append("root", RootUpdate(root), wanted="RootChanged")

    def _cure(self) -> None:
        """New keys for whoever publishes and beats; those before are revoked."""
        gone = tuple(
            Revocation(key.listed.key_id, self.ledger.head.seq, "stolen") for key in (*self.publishers, self.beat_key)
        )
        # What its signers saw, as a stranger writes it down before the publisher does.
        self.publishers, self.beat_key = [P3], B2
        root = self.successor(revoked=(*self.ledger.root.record.revoked, *gone))
        self.beside("next root by a stranger", self._framed(RootUpdate(root), STRANGER))
        self.append("root with new publisher keys", RootUpdate(root), by=P3, wanted="RootChanged")
        self.active = P3

    def _pending(self) -> None:
        """Approved, and not published yet: a thief of the publisher key may do that."""
        self.artefacts.append(Artefact("approved and pending", self.release(self.put(self.fresh_key()))))

    def _stolen_link(self) -> None:
        """The thief appends to the honest log, at its head, something that must change nothing."""
        choices = [a for a in self.artefacts if a.what not in ("approved and pending", "approved under another root")]
        artefact = self.rng.choice(choices)
        if isinstance(artefact.body, EpochClaim) and artefact.published_at is not None:
            self.append(
                "stolen: claim dated far ahead",
                artefact.body,
                by=P1,
                wanted="Advanced",
                published_at=artefact.published_at,
            )
            self.active = P1
            return
        if "epoch" in artefact.changes:
            return
        changes = dict(artefact.changes)
        if artefact.published_at is not None:
            changes["published_at"] = artefact.published_at
        # Of the same release, a first copy may be due: what is judged is the state it meets.
        outcome = self.ledger.judge(encode_envelope(seal(ENTRY, self.entry(artefact.body, **changes), [P1])))
        if type(outcome).__name__ in ("Rejected", "Advanced"):
            self.append(f"stolen: {artefact.what}", artefact.body, by=P1, wanted=type(outcome).__name__, **changes)

    def _stolen_record(self) -> None:
        """The thief writes beside the chain what every reader must notice, or ignore."""
        choice = self.rng.choice(("equivocation", "newer", "gap", "fork"))
        claim = EpochClaim(f"thief {self.made}")
        head = self.ledger.head
        if choice == "newer":
            newer = Envelope("application/vnd.flaghoist.entry.v2+avro", ENTRY.schema_sha256, b"?", ())
            self.beside("stolen: newer type", encode_envelope(countersign(newer, [P1])))
        elif choice == "gap":
            far = self.entry(claim, seq=Seq(head.seq.number + 1000))
            self.beside("stolen: far seq", encode_envelope(seal(ENTRY, far, [P1])))
        elif choice == "fork":
            fork = self.entry(claim, prev_hash=hashlib.sha256(b"elsewhere").digest())
            self.beside("stolen: fork", encode_envelope(seal(ENTRY, fork, [P1])))
        else:
            release = self.release(self.put(self.fresh_key()))
            before = self.ledger.hash_at(Seq(head.seq.number - 1))
            twin = self.entry(release, seq=head.seq, prev_hash=before)
            self.beside("stolen: equivocation", encode_envelope(seal(ENTRY, twin, [P1])))

    # --- what thieves have in store ---

    def _framed(self, body: Body, by: Key, **changes: Any) -> bytes:
        return encode_envelope(seal(ENTRY, self.entry(body, **changes), [by]))

    def _prepare(self) -> None:
        self._prepare_junk()
        if "publisher" in self.theft:
            self._prepare_alone()
            for name in ("ada", "linus", "dave", "erin", "emergency"):
                if name in self.theft:
                    getattr(self, f"_prepare_with_{name}")()

    def _add(self, what: str, body: Body, published_at: int | None = None, **changes: Any) -> None:
        self.artefacts.append(Artefact(what, body, published_at, changes))

    def _prepare_junk(self) -> None:
        """What anybody can write."""
        put = self.put(self.fresh_key())
        honest = self.release(put)
        real = self._framed(honest, P1)
        mine = self.propose(self.put(self.fresh_key()), by=STRANGER)
        by_stranger = Release(mine, (self.approve(mine, STRANGER),), self.named("any"))
        flipped = bytearray(real)
        flipped[self.rng.randrange(len(real))] ^= 1 << self.rng.randrange(8)
        posing = seal(ENTRY, self.entry(by_stranger), [STRANGER])
        posing = replace(posing, signatures=(replace(posing.signatures[0], key_id=P1.listed.key_id),))
        beat = self.heartbeat()
        head = self.ledger.head
        self.junk += [
            ("nothing", b""),
            ("noise", self.rng.randbytes(60)),
            ("truncated entry", real[: self.rng.randrange(1, len(real))]),
            ("entry and more", real + b"\0"),
            ("flipped bit", bytes(flipped)),
            ("entry by a stranger", self._framed(by_stranger, STRANGER)),
            ("entry in the publisher's name", encode_envelope(posing)),
            ("entry by an approver", self._framed(honest, PEOPLE[GRACE])),
            ("entry by the heartbeat's key", self._framed(honest, B1))
            if "heartbeat" in self.theft
            else ("noise", b"\1"),
            ("proposal", encode_envelope(honest.proposal)),
            ("approval", encode_envelope(honest.approvals[0])),
            ("root", encode_envelope(self.first_root.envelope)),
            ("heartbeat", beat),
            ("root by strangers", self._framed(RootUpdate(self._strangers_root()), STRANGER)),
            (
                "first root by a stranger",
                self._framed(RootUpdate(self.first_root.envelope), STRANGER, seq=Seq(1), prev_hash=bytes(32), epoch=1),
            ),
        ]
        # The staging environment has the same publisher key here: only its name keeps the two apart.
        staging = self.entry(honest, log_id=LogId("staging"))
        self.junk.append(("entry of staging", encode_envelope(seal(ENTRY, staging, [P1]))))
        self.junk.append(
            ("foreign type", encode_envelope(countersign(Envelope("text/plain", bytes(32), b"hi", ()), [P1])))
        )
        wrong_schema = replace(seal(ENTRY, self.entry(honest), ()), schema_sha256=bytes(32))
        self.junk.append(
            ("other schema", encode_envelope(countersign(wrong_schema, [P1])))
        ) if "publisher" in self.theft else None
        flipped_beat = bytearray(beat)
        flipped_beat[self.rng.randrange(len(beat))] ^= 1 << self.rng.randrange(8)
        long = self.now_ms + YEAR_MS
        self.beat_junk += [
            ("noise", b"\0" * 90),
            ("entry", real),
            ("flipped bit", bytes(flipped_beat)),
            ("heartbeat by a stranger", self.heartbeat(by=STRANGER, expires_at=long)),
            ("heartbeat of staging", self.heartbeat(log_id=LogId("staging"), head_hash=bytes(32))),
        ]
        for name, key in (("publisher", P1), ("ada", PEOPLE[ADA]), ("emergency", KILLERS[GRACE])):
            if name in self.theft:
                for seq, hash_ in ((head.seq, head.entry_hash), (Seq(1), b"\1" * 32)):
                    # Issued later than all honest ones, so that it would stand when it counted.
                    late = self.now_ms + 40_000
                    data = self.heartbeat(
                        by=key, seq=seq, head_hash=hash_, issued_at=late, expires_at=late + BEAT_LIFE_MS
                    )
                    self.beat_junk.append((f"heartbeat by {name}", data))

    def _strangers_root(self) -> Envelope:
        ids = frozenset({STRANGER.listed.key_id})
        record = self.successor_record(
            keys=(STRANGER.listed,),
            roles={role: RoleGrant(ids, 1) for role in (Role.ROOT, Role.REQUESTER, Role.PUBLISHER)},
            policy="",
        )
        return seal(ROOT, record, [STRANGER])

    def _prepare_alone(self) -> None:
        """What whoever stole a publisher key could publish."""
        new = self.fresh_key
        mine = self.propose(self.put(new()), by=STRANGER)
        any_rule = self.named("any")
        honest = self.propose(self.put(new()))
        other = self.release(self.put(new()))
        one = self.approve(honest, PEOPLE[GRACE])
        two = self.approve(honest, PEOPLE[LINUS])
        full = (one, two)[: self.threshold]
        rest = tuple(self.approve(honest, PEOPLE[p]) for p in (LINUS, DAVE))[: self.threshold - 1]
        self._add(
            "proposal of a stranger", Release(mine, tuple(self.approve(mine, STRANGER) for _ in range(1)), any_rule)
        )
        self._add(
            "strangers throughout",
            Release(
                mine, (self.approve(mine, PEOPLE[GRACE]), self.approve(mine, PEOPLE[LINUS]))[: self.threshold], any_rule
            ),
        )
        self._add("no approvals", Release(honest, (), any_rule))
        if self.threshold > 1:
            self._add("one approval of two", Release(honest, (one,), any_rule))
            self._add("one approval twice", Release(honest, (one, one), any_rule))
            both = self.propose(self.put(new()))
            self._add(
                "two keys of one person",
                Release(both, (self.approve(both, PEOPLE[LINUS]), self.approve(both, LINUS_AGAIN)), any_rule),
            )
        self._add("approval of another proposal", Release(honest, (other.approvals[0], *rest), any_rule))
        refused = self.propose(self.put(new()))
        no = self.approve(refused, PEOPLE[GRACE], decision=Decision.REJECT)
        yes = tuple(self.approve(refused, PEOPLE[p]) for p in (LINUS, DAVE))[: self.threshold - 1]
        self._add("rejection as an approval", Release(refused, (no, *yes), any_rule))
        stranger = self.propose(self.put(new()))
        self._add(
            "approvals by strangers",
            Release(
                stranger, tuple(self.approve(stranger, Key(p, "x")) for p in (GRACE, LINUS))[: self.threshold], any_rule
            ),
        )
        edited = self.release(self.put(new(), "off"))
        payload = edited.proposal.payload.replace(b'"off"}', b'"on" }')
        self._add("edited proposal", replace(edited, proposal=replace(edited.proposal, payload=payload)))
        staging = self.propose(self.put(new()), log_id=LogId("staging"))
        self._add("proposal of staging", Release(staging, self.approved(staging), any_rule))
        old = self.propose(self.put(new()), expires_at=self.now_ms - 1)
        self._add("expired proposal", Release(old, self.approved(old), any_rule))
        self._add("expired proposal, back-dated", Release(old, self.approved(old), any_rule), NOW_MS - 2)
        stale = self.propose(self.put(new()))
        expired = tuple(self.approve(stale, PEOPLE[p], expires_at=NOW_MS - 1) for p in (GRACE, LINUS))[: self.threshold]
        self._add("expired approvals", Release(stale, expired, any_rule))
        self._add("expired approvals, back-dated", Release(stale, expired, any_rule), NOW_MS - 2)
        named = self.release(self.put(new()))
        self._add("another reason", replace(named, policy="trust-me"))
        self._add("one approval twice beside enough", Release(honest, (*full, full[0]), any_rule))
        elsewhere = Envelope("text/plain", honest.schema_sha256, PROPOSAL.encode(PROPOSAL.decode(honest.payload)), ())
        posing = countersign(elsewhere, [PEOPLE[ADA]])
        self._add("proposal signed as another type", Release(posing, self.approved(posing), any_rule))
        self._add("proposal as an approval", Release(honest, (honest, *rest), any_rule))
        self._add("approval as a proposal", Release(one, (two,), any_rule))
        self._add("entry of a root that is none", self.release(self.put(new())), None, root_version=7)
        self._add(
            "entry under an expired root",
            self.release(self.put(new()), expires_at=NOW_MS + 3 * YEAR_MS),
            NOW_MS + YEAR_MS + DAY_MS,
        )
        long = self.propose(self.put(new()), expires_at=NOW_MS + 3 * YEAR_MS)
        lasting = tuple(self.approve(long, PEOPLE[p], expires_at=NOW_MS + 3 * YEAR_MS) for p in (GRACE, LINUS))[
            : self.threshold
        ]
        self._add("approved for years, under an expired root", Release(long, lasting, any_rule), NOW_MS + 2 * YEAR_MS)
        self._add("later epoch", self.release(self.put(new())), None, epoch=999)
        self._add(
            "changed meanwhile",
            self.release(self.op(Target.FLAG, "lamp", Action.PUT, encode_flag(boolean_flag("off"), SAFE), version=1)),
        )
        self._add(
            "made again",
            self.release(self.op(Target.FLAG, "bare", Action.PUT, encode_flag(boolean_flag("off"), SAFE), version=0)),
        )
        key = new()
        self._add("two ops on one flag", self.release(self.put(key), self.put(key, "on")))
        self._add("deleted but not there", self.release(self.op(Target.FLAG, new(), Action.DELETE)))
        bad = self.op(
            Target.FLAG, new(), Action.PUT, b'{"flag":{"state":"ENABLED","variants":{},"defaultVariant":"on"}}'
        )
        self._add("definition that cannot be served", self.release(bad, readable=False))
        lost = self.op(Target.FLAG, new(), Action.PUT, encode_flag(boolean_flag(targeting={"$ref": "nowhere"})))
        self._add("rule that refers to nothing", self.release(lost, readable=False))
        self._add("pins to the future forbidden", self.release(self.put(new()), min_pin=Seq(999)))
        self._add("kill without an emergency", self.release(self.kill_op("lamp")))
        self._add("claim dated far ahead", EpochClaim("thief"), NOW_MS + 300 * DAY_MS)
        self._add("claim of a far epoch", EpochClaim("thief"), None, epoch=999)
        self._add("claim", EpochClaim("thief"))
        self._add("ratification of nothing", Ratification(digest(honest), full))
        self._add("root by strangers", RootUpdate(self._strangers_root()))
        self._add("first root again", RootUpdate(self.first_root.envelope))
        for name, changes in (
            ("of one person", {}),
            ("of one person and who signs no roots", {}),
            ("on another history", {"anchor_hash": b"\1" * 32}),
            ("anchored ahead", {"anchor_seq": Seq(999)}),
            ("of version 3", {"version": 3}),
            ("after another root", {"prev_root_sha256": b"\1" * 32}),
            ("of staging", {"log_id": LogId("staging")}),
            ("that is expired", {"expires_at": NOW_MS - 1}),
            ("with another bucketing", {"fractional": "v3"}),
        ):
            signers = [PEOPLE[ADA], PEOPLE[LINUS]] if changes else [PEOPLE[ADA]]
            signers += [PEOPLE[ERIN], P1] if name.endswith("no roots") else []
            self._add(f"root {name}", RootUpdate(self.successor(*signers, counts=False, **changes)))
        same = self._root_record()
        everybody = {**same.roles, Role.ROOT: replace(same.roles[Role.ROOT], threshold=3)}
        self._add("root that asks for more than signed it", RootUpdate(self.successor(counts=False, roles=everybody)))
        new_people = {**same.roles, Role.ROOT: RoleGrant(frozenset({PEOPLE[DAVE].listed.key_id}), 1)}
        self._add(
            "root by its own people only", RootUpdate(self.successor(PEOPLE[DAVE], counts=False, roles=new_people))
        )
        self._prepare_against_releases()
        if self.policy:
            self._prepare_against_policy()

    def _prepare_against_releases(self) -> None:
        """Steps that no plan says, and what people approved by mistake, or long ago, of releases and moments."""
        self._add("due step", self.step("ready"))
        self._add("early step", self.step("winter"))
        self._add("step beyond the next", self.step("ready", stage=2))
        self._add("step back", self.step("ready", stage=0))
        self._add("step of a stage that is none", self.step("ready", stage=9))
        self._add("step of a paused release", self.step("autumn"), self.now_ms + MINUTE_MS)
        self._add("step of another version", self.step("ready", back=1))
        self._add("step of no release", Step(FlagKey("nowhere"), Seq(0), 0))
        self._add("step under no root", self.step("ready"), None, root_version=7)
        new, ahead = self.fresh_key, {"lead_ms": 2_000, "acked_percent": 95}
        unprepared = self.release(self.put(new()), **ahead)
        self._add("release without its preparation", unprepared)
        self._add("its preparation", Preparation(self.release(self.put(new()), **ahead)))
        self._add("preparation of what asks for none", Preparation(self.release(self.put(new()))))
        alone = self.propose(self.put(new()), **ahead)
        self._add("preparation without approvals", Preparation(Release(alone, (), self.named("any"))))
        far = self.now_ms + YEAR_MS // 2
        self._add("moment that is over", self.release(self.put(new()), activate_at=self.now_ms - 1))
        self._add("moment far ahead", self.release(self.put(new()), activate_at=far, expires_at=far))
        self._add("lead of an hour", self.release(self.put(new()), lead_ms=60 * MINUTE_MS))
        self._add("two moments", self.release(self.put(new()), lead_ms=1, activate_at=self.now_ms + 4 * MINUTE_MS))
        self._add("nobody is to acknowledge", self.release(self.put(new()), acked_percent=0))
        edited = self.release(self.put(new()), activate_at=self.now_ms + MINUTE_MS)
        moved = PROPOSAL.encode(
            replace(PROPOSAL.decode(edited.proposal.payload), activate_at=self.now_ms + 4 * MINUTE_MS)
        )
        self._add("moment moved", replace(edited, proposal=replace(edited.proposal, payload=moved)))
        self._prepare_drills_and_rollbacks()
        self._prepare_gates()

    def _prepare_drills_and_rollbacks(self) -> None:
        new = self.fresh_key

        def drill(what: str, *ops: Op, by: Key | None = None, approvals: bool = False, **changes: Any) -> None:
            proposal = self.propose(*ops, by=by, kind=ProposalKind.DRILL, **changes)
            rule = self.named("any") if approvals else "drill"
            self._add(what, Release(proposal, self.approved(proposal) if approvals else (), rule))

        lasting = self.propose(self.drill_op("winter"), kind=ProposalKind.DRILL, expires_at=NOW_MS + YEAR_MS)
        drill_for_years = Release(lasting, (), "drill")
        drill("true drill", self.drill_op("winter"))
        drill("drill that changes a flag", self.put(new(), "on"))
        drill("drill that does both", self.drill_op("winter"), self.put(new(), "on"))
        drill("drill that opens a gate", self.hoist("spring", share=ALL, walk=Walk.OFF))
        drill("drill of a source", replace(self.drill_op("winter"), source=Source("shop")))
        drill("drill that forbids pins", self.drill_op("winter"), min_pin=Seq(1))
        drill("drill with a moment", self.drill_op("winter"), lead_ms=2_000)
        drill("drill by who may not ask", self.drill_op("winter"), by=PEOPLE[DAVE])
        drill("drill by a stranger", self.drill_op("winter"), by=STRANGER)
        drill("drill with approvals", self.drill_op("winter"), approvals=True)
        self._add("drill for years", drill_for_years, NOW_MS + YEAR_MS // 2)
        self._add("change with a drill in it", self.release(self.put(new()), self.drill_op("winter")))

        def roll_back(what: str, *ops: Op, **more: Any) -> None:
            self._add(what, self.release(*ops, kind=ProposalKind.ROLLBACK, **more))

        roll_back("rollback that opens", self.hoist("ready", share=ALL))
        roll_back("rollback that lets a walk go on", self.hoist("ready", share=0))
        roll_back("rollback that edits the plan", self.hoist("ready", share=0, walk=Walk.OFF, title="another"))
        roll_back("rollback that changes a flag", self.put(new(), "on"))
        roll_back("rollback that deletes", self.op(Target.RELEASE, "winter", Action.DELETE))
        roll_back("rollback of no release", self.hoist("nowhere"))
        roll_back("rollback under a dependent", self.hoist("base", share=0))

    def _prepare_gates(self) -> None:
        new = self.fresh_key
        gate = encode_evaluator(OPEN)
        self._add(
            "gate without its release", self.release(self.op(Target.EVALUATOR, "release.winter", Action.PUT, gate))
        )
        hidden = self.op(Target.EVALUATOR, "release.winter", Action.PUT, gate, source="shop")
        self._add("gate of a source", self.release(hidden))
        name = new()
        both = self.op(Target.EVALUATOR, f"release.{name}", Action.PUT, gate)
        self._add("gate beside its release", self.release(both, self.hoist(name)))
        self._add("release of a source", self.release(replace(self.hoist(new()), source=Source("shop"))))
        self._add("open before what it requires", self.release(self.hoist("base", share=50_000)))
        need = (FlagKey("winter"),)
        self._add("requires what is not active", self.release(self.hoist("top", requires=need)))
        self._add("requires what is not there", self.release(self.hoist("winter", requires=(FlagKey("nowhere"),))))
        self._add("requires itself", self.release(self.hoist("base", requires=(FlagKey("top"),))))
        gone = [self.op(Target.RELEASE, "base", Action.DELETE), self.put("base.flag")]
        self._add("deletes what is required", self.release(*gone))
        self._add("deletes what flags refer to", self.release(self.op(Target.RELEASE, "winter", Action.DELETE)))
        lost = (*self.ledger.snapshot.releases[FlagKey("ready")].plan.flags, (Source(""), FlagKey("nowhere")))
        self._add("open without a flag", self.release(self.hoist("ready", flags=lost)))
        plain = (*self.ledger.snapshot.releases[FlagKey("ready")].plan.flags, (Source(""), FlagKey("lamp")))
        self._add("open with a flag beside it", self.release(self.hoist("ready", flags=plain)))
        name = new()
        wired = self.put(f"{name}.flag", targeting=behind(name))
        self._add("opens with its flags", self.release(wired, self.hoist(name, share=ALL)))
        self._add("gate moved meanwhile", self.release(self.hoist("spring", share=ALL, version=1)))
        self._add("release killed without an emergency", self.release(self.op(Target.RELEASE, "winter", Action.KILL)))

    def _prepare_against_policy(self) -> None:
        """What the root alone would allow."""

        def by_others(*ops: Op, rules: str) -> Release:
            proposal = self.propose(*ops)
            approvals = tuple(self.approve(proposal, PEOPLE[GRACE]) for _ in range(1))
            if self.threshold > 1:
                proposal = self.propose(*ops, by=PEOPLE[LINUS])
                approvals = tuple(self.approve(proposal, PEOPLE[p]) for p in (GRACE, ADA))
            return Release(proposal, approvals, rules)

        self._add("strict flag", by_others(self.put("pay", "on", STRICT), rules="payments"))
        self._add("strict flag made lenient", by_others(self.put("pay", "on"), rules="payments+any"))
        self._add("strict flag made lenient, by the lenient rule", by_others(self.put("pay", "on"), rules="any"))
        self._add("strict flag deleted", by_others(self.op(Target.FLAG, "pay", Action.DELETE), rules="payments"))
        self._add("strict flag hidden", by_others(self.put("pay", "on", source="shop"), rules="any"))
        self._add("strict flag through its rule", by_others(self.gate("gate", OPEN), rules="any"))
        self._add("lenient flag made strict", by_others(self.put("lamp", "on", STRICT), rules="any"))
        self._add("strict flag through its release", by_others(self.hoist("autumn", share=ALL), rules="any"))
        self._add("strict flag walked", by_others(self.hoist("autumn", walk=Walk.ON), rules="any"))
        self._add("release of a strict team", by_others(self.hoist("winter", team="payments"), rules="any"))
        self._add("strict rule named, lenient people", by_others(self.gate("gate", OPEN), rules="payments+any"))

    def _thief_alone(self, name: str, key: Key) -> None:
        new = self.fresh_key
        any_rule = self.named("any")
        own = self.propose(self.put(new()), by=key)
        self._add(
            f"{name} approves their own",
            Release(own, tuple(self.approve(own, k) for k in (key, PEOPLE[GRACE]))[: self.threshold], any_rule),
        )
        theirs = self.propose(self.put(new()), by=key, requester=GRACE)
        self._add(
            f"{name} asks in another's name",
            Release(theirs, self.approved(theirs, requester=GRACE)[: self.threshold], any_rule),
        )
        asked = self.propose(self.put(new()), by=PEOPLE[GRACE])
        rest = (self.approve(asked, PEOPLE[LINUS if key.person != LINUS else ADA]),)[: self.threshold - 1]
        self._add(
            f"{name} approves in another's name",
            Release(asked, (self.approve(asked, key, approver=DAVE), *rest), any_rule),
        )
        self._add(
            f"{name} approves as staging",
            Release(asked, (self.approve(asked, key, log_id=LogId("staging")), *rest), any_rule),
        )

    def _prepare_with_ada(self) -> None:
        self._thief_alone("ada", PEOPLE[ADA])
        self._add("root of one thief", RootUpdate(self.successor(PEOPLE[ADA], counts=False)))
        kill = self.kill(self.op(Target.RELEASE, "winter", Action.KILL), key=PEOPLE[ADA])
        self._add("kill of a release by an ordinary key", Release(kill, (), "emergency"))
        self._add("kill by an ordinary key", Release(self.kill(self.kill_op("lamp"), key=PEOPLE[ADA]), (), "emergency"))

    def _prepare_with_linus(self) -> None:
        """Both of his keys: to the root he is one person."""
        self._thief_alone("linus", PEOPLE[LINUS])
        proposal = self.propose(self.put(self.fresh_key()))
        twice = (self.approve(proposal, PEOPLE[LINUS]), self.approve(proposal, LINUS_AGAIN))
        if self.threshold > 1:
            self._add("linus approves with two keys", Release(proposal, twice, self.named("any")))

    def _prepare_with_dave(self) -> None:
        """He may approve and not ask."""
        asked = self.propose(self.put(self.fresh_key()), by=PEOPLE[DAVE])
        self._add("asked by who may not ask", Release(asked, self.approved(asked, requester=DAVE), self.named("any")))

    def _prepare_with_erin(self) -> None:
        """She may ask and not approve."""
        self._thief_alone("erin", PEOPLE[ERIN])
        asked = self.propose(self.put(self.fresh_key()))
        rest = (self.approve(asked, PEOPLE[LINUS]),)[: self.threshold - 1]
        self._add(
            "approved by who may not approve",
            Release(asked, (self.approve(asked, PEOPLE[ERIN]), *rest), self.named("any")),
        )

    def _prepare_with_emergency(self) -> None:
        """GRACE's emergency key."""
        lamp = self.kill_op("lamp")
        by = KILLERS[GRACE]

        def bad(
            what: str, envelope: Envelope, approvals: Sequence[Envelope] = (), rule: str = "emergency", **more: Any
        ) -> None:
            self._add(what, Release(envelope, tuple(approvals), rule), **more)

        bad(
            "emergency that turns a flag on",
            self.kill(self.op(Target.FLAG, "lamp", Action.PUT, encode_flag(boolean_flag("on"), SAFE))),
        )
        bad("emergency that opens a gate", self.kill(self.hoist("winter", share=ALL)))
        bad("emergency with a moment", self.kill(lamp, lead_ms=60_000))
        bad("emergency that drills", self.kill(self.drill_op("winter")))
        bad("emergency on a drill", self.kill(self.op(Target.DRILL, "winter", Action.KILL)))
        bad("emergency on no release", self.kill(self.op(Target.RELEASE, self.fresh_key(), Action.KILL)))
        self._add(
            "true kill of a release",
            Release(self.kill(self.op(Target.RELEASE, "autumn", Action.KILL)), (), "emergency"),
        )
        bad("emergency that deletes", self.kill(self.op(Target.FLAG, "lamp", Action.DELETE)))
        bad("emergency that kills and makes", self.kill(lamp, self.put(self.fresh_key())))
        bad("emergency without a safe variant", self.kill(self.kill_op("bare")))
        bad("emergency on what is not there", self.kill(self.kill_op(self.fresh_key())))
        bad("emergency on a gate", self.kill(self.op(Target.EVALUATOR, "gate", Action.KILL)))
        bad("emergency that lives a day", self.kill(lamp, expires_at=self.now_ms + DAY_MS))
        ahead = self.now_ms + YEAR_MS // 2
        bad("emergency signed ahead", self.kill(lamp, created_at=ahead, expires_at=ahead + MINUTE_MS))
        bad("expired emergency", self.kill(lamp, created_at=self.now_ms - MINUTE_MS, expires_at=self.now_ms - 1))
        bad("emergency in another's name", self.kill(lamp, requester=LINUS))
        bad("emergency of staging", self.kill(lamp, log_id=LogId("staging")))
        approved = self.kill(lamp)
        bad("emergency with approvals", approved, [self.approve(approved, PEOPLE[LINUS])])
        bad("emergency by another name", self.kill(lamp), (), self.named("any"))
        bad("kill of an older version", self.kill(self.kill_op("lamp", version=1)))
        change = self.propose(self.put(self.fresh_key()), by=by)
        bad("change by an emergency key", change, self.approved(change, requester=GRACE), self.named("any"))
        self._add("true kill", Release(self.kill(lamp), (), "emergency"))
        own = self.kill(self.kill_op("gated"))
        self._add("true kill of a strict flag", Release(own, (), "emergency"))
        self._add("ratified by nobody", Ratification(digest(own), ()))
        self._add(
            "ratified by who made it",
            Ratification(
                digest(own), (self.approve(own, PEOPLE[GRACE]), self.approve(own, PEOPLE[LINUS]))[: self.threshold]
            ),
        )
        lenient = (self.approve(own, PEOPLE[ADA]), self.approve(own, PEOPLE[ERIN]))[: self.threshold]
        self._add("ratified by lenient people", Ratification(digest(own), lenient))

    def _prepare_late(self) -> None:
        """What is meant for the root and the time that are in force near the story's end."""
        if "publisher" in self.theft:
            self._add("no approvals, late", Release(self.propose(self.put(self.fresh_key())), (), self.named("any")))
            self._add("another reason, late", replace(self.release(self.put(self.fresh_key())), policy="trust-me"))
            self._add("root of one person, late", RootUpdate(self.successor(PEOPLE[ADA], counts=False)))


def feed(shadow: model.Shadow, link: Any) -> int:
    """Tell the model what a verifier has made of a record; return the moment that it is to have (0: at once)."""
    match type(link).__name__:
        case "Applied":
            return shadow.change(link.entry, link.entry_hash)
        case "Stepped":
            return shadow.step(link.entry, link.entry_hash)
        case "Prepared":
            shadow.prepare(link.entry, link.entry_hash)
        case "RootChanged":
            shadow.change_root(link.entry, link.entry_hash)
        case "Ratified":
            shadow.ratify(link.entry, link.entry_hash)
        case _:
            shadow.extend(link.entry_hash)
    return 0


def _told(op: Op, readable: bool) -> model.Op:
    document = json.loads(op.definition) if op.definition is not None else None
    return model.Op(
        op.target.value, str(op.source), str(op.key), op.expected_version.number, op.action.value, document, readable
    )


def make(number: int) -> Story:
    return Author(number).write()


def chained(head: Head, root_version: int, artefact: Artefact, by: Key, now_ms: int) -> bytes:
    """The artefact as the entry that follows a head, on whichever chain."""
    opens = isinstance(artefact.body, EpochClaim | RootUpdate) and head.seq.number > 0
    entry = Entry(
        log_id=LogId(LOG),
        seq=head.seq.next(),
        prev_hash=head.entry_hash,
        epoch=head.epoch + opens,
        root_version=root_version,
        published_at=max(now_ms, head.published_at) if artefact.published_at is None else artefact.published_at,
        body=artefact.body,
    )
    return encode_envelope(seal(ENTRY, replace(entry, **artefact.changes), [by]))
