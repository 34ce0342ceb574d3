"""The steps of a publisher's life at which it is killed, and how its process tells of them."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flaghoist.codec import PROPOSAL
from flaghoist.records import Entry, EpochClaim, Preparation, Ratification, Release, RootUpdate, Step
from flaghoist.values import ProposalKind, Seq

GENESIS, CLAIM, CHANGE, EMERGENCY, RATIFICATION, ROOT, PREPARATION, STEP = KINDS = (
    "genesis",
    "claim",
    "change",
    "emergency",
    "ratification",
    "root",
    "preparation",
    "step",
)

# Each time the journal is replaced: before, its new file empty, written, synced, renamed, the directory synced.
WRITING: Final = ("begin", "made", "written", "synced", "renamed", "done")
# What the journal writes: an entry about to be signed; that an entry's fate is known; that an epoch is held.
RECORD, SETTLE, EPOCH = JOURNAL = ("record", "settle", "epoch")

STEPS: Final = (
    "lease.taken",
    "ledger.begin",
    "ledger.done",
    "entry.built",
    *(f"{what}.{stage}" for what in JOURNAL for stage in WRITING),
    "sign.begin",
    "sign.done",
    "append.begin",
    "append.done",
    "readback.begin",
    "readback.done",
    "entry.taken",
    "beat.sign",
    "beat.begin",
    "beat.done",
)


def kind_of(entry: Entry) -> str:
    """Return what an entry is about, one of KINDS."""
    match entry.body:
        case RootUpdate():
            return GENESIS if entry.seq == Seq(1) else ROOT
        case EpochClaim():
            return CLAIM
        case Ratification():
            return RATIFICATION
        case Preparation():
            return PREPARATION
        case Step():
            return STEP
        case Release(proposal=proposal):
            emergency = PROPOSAL.decode(proposal.payload).kind is ProposalKind.EMERGENCY
            return EMERGENCY if emergency else CHANGE


@dataclass(frozen=True)
class Target:
    """Where a process is to be killed: at the `occurrence`-th time (from 1) of a step.

    Attributes:
        kind: of the entry that it is about; "" for any.
        hold: the process stops at the step and waits; else it goes on, and dies in the middle of what follows.
    """

    step: str
    kind: str = ""
    occurrence: int = 1
    hold: bool = True


NOWHERE: Final = Target("")


class Reporter:
    """The publisher's side: writes one line for each step, and holds still at the target.

    Args:
        report: descriptor that the lines go to.
        hold: descriptor that says how to go on after the target; its end means that nobody is left to say so.
    """

    def __init__(self, report: int, hold: int, target: Target) -> None:
        self._report, self._hold = report, hold
        self._target, self._left = target, target.occurrence
        self.kind = ""

    def at(self, step: str, **facts: object) -> None:
        """Tell of a step; at the target, wait there to be killed or told where to go on to."""
        target = self._target
        if step == target.step and target.kind in ("", self.kind):
            self._left -= 1
        hit = self._left == 0 and step == target.step and target.kind in ("", self.kind)
        self._write({"step": step, "kind": self.kind, "hit": hit, **facts})
        if hit:
            self._left = -1
            if target.hold:
                self._wait()

    def problem(self, text: str) -> None:
        """Tell of something that must never be."""
        self._write({"problem": text})

    def _write(self, line: dict[str, object]) -> None:
        # Shorter than PIPE_BUF, so that a line is there as a whole or not at all.
        os.write(self._report, json.dumps(line).encode()[:4000] + b"\n")

    def _wait(self) -> None:
        line = os.read(self._hold, 4096)
        if not line:
            os._exit(70)  # whoever would have killed it is gone
        self._target = Target(**json.loads(line))
        self._left = self._target.occurrence


def missing(steps: Iterable[str]) -> list[str]:
    """Return the steps that are not among these."""
    hit = set(steps)
    return [step for step in STEPS if step not in hit]
