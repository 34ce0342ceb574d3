"""The operators of one ledger: a process that keeps work in the inbox, and remembers what must and must not get in."""

import asyncio
import json
import os
import random
from contextlib import AsyncExitStack
from dataclasses import replace

from flaghoist.acknowledgement import encode_acknowledgement
from flaghoist.codec import encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Log, Stream
from flaghoist.log.location import open_log
from flaghoist.records import Acknowledgement, Envelope, Op
from flaghoist.release_plan import Gate, Stage, Walk
from flaghoist.signing import digest
from flaghoist.state_root import state_root
from flaghoist.values import Action, Decision, FlagKey, Seq, Source, Target
from publisher.reader import LedgerReader
from tests.faults.publisher_crashes.life import Life
from tests.faults.publisher_crashes.people import EMERGENCY_PEOPLE, SharedClock, forge_of
from tests.faults.publisher_crashes.steps import CHANGE, EMERGENCY, PREPARATION, RATIFICATION, ROOT, STEP
from tests.faults.publisher_crashes.verdict import Promise, judge
from tests.forge import ADA, GRACE, LINUS, Key, boolean_flag, gated_flag, release_plan

# Work that waits before each life: more than what is appended before the process is killed.
DEPTH = 4
# Of a hundred pieces of work; the rest are new flags.
EDITS, EMERGENCIES, ROOTS, WALKS, ACKED, UNWANTED = 15, 9, 7, 10, 15, 12
# No soaks: how fast a publisher takes them is not what is looked at here.
STAGES = tuple(Stage(f"stage-{share}", False, share * 1000, 0) for share in (1, 50, 100))
SIDECAR = "pod-1"


class Operators:
    """Ada, Grace and Linus at work."""

    def __init__(self, life: Life, seed: int, inbox: Log, acks: Log, reader: LedgerReader) -> None:
        self.rng = random.Random(f"operators {seed}")
        self.forge = forge_of(life.log_id)
        self.clock = SharedClock(life.zero_ns)
        self.inbox, self.acks, self.reader = inbox, acks, reader
        self.promise = Promise()
        self._made = 0
        self._touched: dict[str, bytes] = {}
        self._root: bytes | None = None

    async def feed(self) -> dict[str, object]:
        """Top the inbox up, and say what waits in it by kind."""
        await self.reader.catch_up()
        self.forge.now_ms = self.clock.now_ms()
        self.forge.ledger = self.reader.ledger
        await self._ratify()
        await self._acknowledge()
        while len(waiting := self._waiting()) < DEPTH:
            await self._work()
        kinds = [PREPARATION if self._to_prepare(sha256) else self.promise.approved[sha256] for sha256 in waiting]
        kinds += [STEP] * self._steps_left()
        kinds += [RATIFICATION] * len(self.promise.ratified - self.reader.ratified.keys())
        kinds += [ROOT] * (self._root is not None)
        return {"waiting": kinds}

    async def left(self) -> dict[str, object]:
        """Say how much is still to be published, without adding any."""
        await self.reader.catch_up()
        self.forge.now_ms = self.clock.now_ms()
        await self._ratify()
        await self._acknowledge()
        ratifying = self.promise.ratified - self.reader.ratified.keys()
        root = self.promise.roots - self.reader.ledger.root.version
        return {"left": len(self._waiting()) + len(ratifying) + root + self._steps_left()}

    def _waiting(self) -> list[bytes]:
        if self._root is not None and self.reader.ledger.root.version >= self.promise.roots:
            self._root = None
        return [sha256 for sha256 in self.promise.approved if sha256 not in self.reader.published]

    def _to_prepare(self, sha256: bytes) -> bool:
        return sha256 in self.promise.acked and not self.reader.ledger.is_prepared(sha256)

    def _steps_left(self) -> int:
        """How many stages are still to be taken of releases that are in the ledger."""
        plans = [state.plan for state in self.reader.ledger.snapshot.releases.values()]
        return sum(len(plan.stages) - (0 if plan.stage is None else plan.stage + 1) for plan in plans)

    async def _acknowledge(self) -> None:
        """Say, as a sidecar does, what is verified; only while somebody waits for that."""
        if not [sha256 for sha256 in self._waiting() if self.reader.ledger.is_prepared(sha256)]:
            return
        head, now_ms = self.reader.ledger.head, self.clock.now_ms()
        ack = Acknowledgement(
            log_id=self.forge.root.log_id,
            instance=SIDECAR,
            service="shop",
            version="1",
            started_at=now_ms,
            written_at=now_ms,
            state="FRESH",
            seq=head.seq,
            entry_hash=head.entry_hash,
            state_root=state_root(self.reader.ledger.snapshot),
            applied_at=now_ms,
            in_force=head.seq,
            activated_at=now_ms,
            late_ms=None,
            clock_offset_ms=0,
        )
        await self.acks.append(encode_acknowledgement(ack), key=SIDECAR.encode())

    async def _ratify(self) -> None:
        for sha256, emergency in self.reader.ledger.unratified.items():
            if sha256 not in self.promise.ratified:
                body = self.reader.published[sha256].entry.body
                others = [person for person in (ADA, GRACE) if person != emergency.authorized.proposal.requester]
                await self._send(self.forge.approval(body.proposal, by=self.rng.choice(others)))  # type: ignore[union-attr]
                self.promise.ratified.add(sha256)

    async def _work(self) -> None:
        """Put one piece of work into the inbox."""
        draw = self.rng.randrange(100)
        if self.rng.randrange(100) < UNWANTED:
            await self._unwanted()
        free = [flag for flag, sha256 in self._touched.items() if sha256 in self.reader.published]
        if draw < EDITS and free:
            await self._change(self.rng.choice(free))
        elif draw < EDITS + EMERGENCIES and free:
            await self._kill(self.rng.choice(free))
        elif draw < EDITS + EMERGENCIES + ROOTS and self._root is None:
            await self._rotate()
        elif draw < (least := EDITS + EMERGENCIES + ROOTS) + WALKS:
            await self._walk(f"release-{len(self.promise.walked)}")
        else:
            acked = 100 if draw < least + WALKS + ACKED else None
            await self._change(f"flag-{len(self._touched)}", acked_percent=acked)

    def _id(self) -> str:
        self._made += 1
        return f"{self._made:026d}"

    def _op(self, flag: str, *, version: int | None = None) -> Op:
        """PUT of a flag that has a safe variant, at its present version unless told."""
        definition = encode_flag(boolean_flag("on" if self._made % 2 else "off"), {"safe_variant": "off"})
        op = Op(Target.FLAG, Source(""), FlagKey(flag), Seq(0), Action.PUT, definition)
        now = self.reader.ledger.snapshot.version_of(op.state_id)
        return replace(op, expected_version=now if version is None else Seq(version))

    async def _change(self, flag: str, *, acked_percent: int | None = None) -> None:
        proposal = self.forge.proposal(self._op(flag), proposal_id=self._id(), acked_percent=acked_percent)
        await self._approve(proposal)
        self._touched[flag] = digest(proposal)
        if acked_percent is not None:
            self.promise.acked.add(digest(proposal))

    async def _walk(self, name: str) -> None:
        """A release of one flag that is walked from its first entry on."""
        plan = release_plan(f"{name}.flag", stages=STAGES, gate=Gate(walk=Walk.ON))
        ops = (self.forge.release_op(name, plan), self.forge.op(f"{name}.flag", gated_flag(name)))
        await self._approve(self.forge.proposal(*ops, proposal_id=self._id()))
        self.promise.walked[FlagKey(name)] = len(STAGES)

    async def _approve(self, proposal: Envelope) -> None:
        approval = self.forge.approval(proposal, by=self.rng.choice((GRACE, LINUS)))
        records = [proposal, approval]
        self.rng.shuffle(records)
        for record in records:
            await self._send(record)
        self.promise.approved[digest(proposal)] = CHANGE

    async def _kill(self, flag: str) -> None:
        by = self.rng.choice(EMERGENCY_PEOPLE)
        proposal = self.forge.kill_proposal(flag, by=by, proposal_id=self._id())
        await self._send(proposal)
        self._touched[flag] = digest(proposal)
        self.promise.approved[digest(proposal)] = EMERGENCY

    async def _rotate(self) -> None:
        root = self.forge.next_root(Key(ADA), Key(GRACE))
        await self._send(root)
        self._root = digest(root)
        self.promise.roots += 1

    async def _unwanted(self) -> None:
        """Something that must never get in."""
        forge, what = self.forge, self.rng.randrange(5)
        proposal = forge.proposal(self._op(f"unwanted-{self._made}"), proposal_id=self._id())
        match what:
            case 0:  # nobody has approved it
                records = [proposal]
            case 1:  # its requester has
                records = [proposal, forge.approval(proposal, by=ADA)]
            case 2:  # somebody has rejected it
                records = [
                    forge.approval(proposal, by=LINUS, decision=Decision.REJECT),
                    forge.approval(proposal, by=GRACE),
                    proposal,
                ]
            case 3:  # another proposal was approved
                other = forge.proposal(self._op(f"unwanted-{self._made}"), proposal_id=self._id())
                records = [proposal, forge.approval(other)]
            case _:  # its base never was
                proposal = forge.proposal(self._op(f"unwanted-{self._made}", version=1), proposal_id=self._id())
                records = [proposal, forge.approval(proposal)]
        self.promise.unwanted.add(digest(proposal))
        for record in records:
            await self._send(record)

    async def _send(self, record: Envelope) -> None:
        await self.inbox.append(encode_envelope(record))


async def serve(life: Life, seed: int, questions: int, answers: int) -> None:
    """Answer one question a line until there are no more: feed, left, or judge with a file of what publishers said."""
    logs = open_log(life.url)
    pending = b""
    async with AsyncExitStack() as stack:
        inbox = await stack.enter_async_context(logs(Stream.INBOX))
        acks = await stack.enter_async_context(logs(Stream.ACKS))
        log = await stack.enter_async_context(logs(Stream.LEDGER))
        operators = Operators(life, seed, inbox, acks, LedgerReader(log, Ledger(forge_of(life.log_id).first_root)))
        while chunk := await asyncio.to_thread(os.read, questions, 4096):
            pending += chunk
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                match json.loads(line):
                    case ["feed"]:
                        answer = await operators.feed()
                    case ["left"]:
                        answer = await operators.left()
                    case ["judge", told]:
                        answer = await judge(life, operators.promise, told)
                    case unknown:
                        answer = {"problem": f"no such question: {unknown}"}
                os.write(answers, json.dumps(answer).encode() + b"\n")
