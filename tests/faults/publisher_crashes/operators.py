"""The operators of one ledger: a process that keeps work in the inbox, and remembers what must and must not get in."""

import asyncio
import json
import os
import random
from contextlib import AsyncExitStack
from dataclasses import replace

from flaghoist.codec import encode_envelope
from flaghoist.definition import encode_flag
from flaghoist.ledger import Ledger
from flaghoist.log.base import Log, Stream
from flaghoist.log.location import open_log
from flaghoist.records import Envelope, Op
from flaghoist.signing import digest
from flaghoist.values import Action, Decision, FlagKey, Seq, Source, Target
from publisher.reader import LedgerReader
from tests.faults.publisher_crashes.life import Life
from tests.faults.publisher_crashes.people import EMERGENCY_PEOPLE, SharedClock, forge_of
from tests.faults.publisher_crashes.steps import CHANGE, EMERGENCY, RATIFICATION, ROOT
from tests.faults.publisher_crashes.verdict import Promise, judge
from tests.forge import ADA, GRACE, LINUS, Key, boolean_flag

# Work that waits before each life: more than what is appended before the process is killed.
DEPTH = 4
# Of a hundred pieces of work; the rest are new flags.
EDITS, EMERGENCIES, ROOTS, UNWANTED = 15, 9, 7, 12


class Operators:
    """Ada, Grace and Linus at work."""

    def __init__(self, life: Life, seed: int, inbox: Log, reader: LedgerReader) -> None:
        self.rng = random.Random(f"operators {seed}")
        self.forge = forge_of(life.log_id)
        self.clock = SharedClock(life.zero_ns)
        self.inbox, self.reader = inbox, reader
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
        while len(waiting := self._waiting()) < DEPTH:
            await self._work()
        kinds = [self.promise.approved[sha256] for sha256 in waiting]
        kinds += [RATIFICATION] * len(self.promise.ratified - self.reader.ratified.keys())
        kinds += [ROOT] * (self._root is not None)
        return {"waiting": kinds}

    async def left(self) -> dict[str, object]:
        """Say how much is still to be published, without adding any."""
        await self.reader.catch_up()
        self.forge.now_ms = self.clock.now_ms()
        await self._ratify()
        ratifying = self.promise.ratified - self.reader.ratified.keys()
        root = self.promise.roots - self.reader.ledger.root.version
        return {"left": len(self._waiting()) + len(ratifying) + root}

    def _waiting(self) -> list[bytes]:
        if self._root is not None and self.reader.ledger.root.version >= self.promise.roots:
            self._root = None
        return [sha256 for sha256 in self.promise.approved if sha256 not in self.reader.published]

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
        else:
            await self._change(f"flag-{len(self._touched)}")

    def _id(self) -> str:
        self._made += 1
        return f"{self._made:026d}"

    def _op(self, flag: str, *, version: int | None = None) -> Op:
        """PUT of a flag that has a safe variant, at its present version unless told."""
        definition = encode_flag(boolean_flag("on" if self._made % 2 else "off"), {"safe_variant": "off"})
        op = Op(Target.FLAG, Source(""), FlagKey(flag), Seq(0), Action.PUT, definition)
        now = self.reader.ledger.snapshot.version_of(op.state_id)
        return replace(op, expected_version=now if version is None else Seq(version))

    async def _change(self, flag: str) -> None:
        proposal = self.forge.proposal(self._op(flag), proposal_id=self._id())
        approval = self.forge.approval(proposal, by=self.rng.choice((GRACE, LINUS)))
        records = [proposal, approval]
        self.rng.shuffle(records)
        for record in records:
            await self._send(record)
        self._touched[flag] = digest(proposal)
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
        log = await stack.enter_async_context(logs(Stream.LEDGER))
        operators = Operators(life, seed, inbox, LedgerReader(log, Ledger(forge_of(life.log_id).first_root)))
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
