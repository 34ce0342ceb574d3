"""One ledger whose publishers are killed again and again, by the process that forks them and waits for their end."""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flaghoist.errors import FlaghoistError
from publisher.journal import Journal
from tests.faults.publisher_crashes import life as lives
from tests.faults.publisher_crashes import operators
from tests.faults.publisher_crashes.life import COMMAND, INIT, SERVICE, Life
from tests.faults.publisher_crashes.people import forge_of
from tests.faults.publisher_crashes.steps import CLAIM, EPOCH, GENESIS, ROOT, STEPS, WRITING, Target

MACHINES = ("one", "two")

# A life that has not come to its target by then is killed where it is: it did not come past it.
LIFE_S = 6.0
# What is left at the end takes well under a second; a machine that has other things to do may take many times that.
DRAIN_S = 60.0
DRAIN_LOOK_S = 0.1
ANSWER_S = 60.0

# Of a hundred lives: on the other machine; of a command instead of a service; with another one paused meanwhile.
OTHER_MACHINE, COMMANDS, PAUSED = 12, 10, 8
# Of a hundred kills, how many strike in the middle of what follows a step, and not while the process stands at it.
IN_THE_MIDDLE = 40
# An append takes a few milliseconds: the kill strikes within, or just after.
MIDDLE_S_MAX = 0.005
# A service that has beaten so often since it last did anything else has nothing more to do.
IDLE_BEATS = 3
# Every so many lives one begins with a fresh interpreter.
FRESH_EVERY = 25

# Steps that are about no entry begin so.
NO_ENTRY = ("lease", "ledger", "beat", "directory")
# Where a publisher stands still while another one takes its place.
PAUSED_AT = ("entry.built", "record.begin", "record.done", "sign.begin", "sign.done", "append.begin", "ledger.done")


@dataclass
class Kills:
    """What was hit, over the lives of one ledger or of several.

    Attributes:
        at: by step, while the process stood at it.
        middle: by the last step that the process told of, in the middle of what followed.
        kinds: by what the entry was about, of all kills while there was one.
        elsewhere: of processes that never came to their target.
        paused: publishers that stood still while another one took over.
        fresh: processes that began with an interpreter of their own.
        by_themselves: processes that came to their end: of a command, or of `init`.
    """

    at: Counter[str] = field(default_factory=Counter)
    middle: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    paused: int = 0
    fresh: int = 0
    by_themselves: int = 0

    @property
    def total(self) -> int:
        return sum(self.at.values()) + sum(self.middle.values()) + self.elsewhere


class Process:
    """A child, its pipes, and what it has told."""

    def __init__(self, run: Any, *, fresh: Life | None = None) -> None:
        report_read, report_write = os.pipe()
        hold_read, hold_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(report_read)
            os.close(hold_write)
            code = 70
            try:
                for other in Process.open_here:
                    os.close(other)
                if fresh is not None:
                    os.set_inheritable(report_write, True)
                    os.set_inheritable(hold_read, True)
                    arguments = ["-m", "tests.faults.publisher_crashes.life", fresh.rendered()]
                    os.execv(sys.executable, [sys.executable, *arguments, str(report_write), str(hold_read)])
                code = run(report_write, hold_read)
            except BaseException:  # noqa: BLE001 — whatever it was, this child must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(report_write)
        os.close(hold_read)
        self._report, self._hold = report_read, hold_write
        Process.open_here |= {report_read, hold_write}
        self._pending = b""
        self.ended = False

    # Descriptors of this process that no child must keep open: their end tells that this process is gone.
    open_here: ClassVar[set[int]] = set()

    def line(self, deadline: float) -> dict[str, Any] | None:
        """Return what it tells next; None when it has ended, or when the time is up (monotonic seconds)."""
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if self.ended or left <= 0 or not select.select([self._report], [], [], left)[0]:
                return None
            chunk = os.read(self._report, 65536)
            self._pending += chunk
            self.ended = not chunk
        line, self._pending = self._pending.split(b"\n", 1)
        told: dict[str, Any] = json.loads(line)
        return told

    def tell(self, message: object) -> None:
        os.write(self._hold, json.dumps(message).encode() + b"\n")

    def kill(self) -> int:
        """Kill it, and return how it ended, as os.waitpid says."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return status

    def rest(self) -> list[dict[str, Any]]:
        """Return what a process that is dead had told, and close its pipes."""
        found = []
        while line := self.line(time.monotonic() + ANSWER_S):
            found.append(line)
        for descriptor in (self._report, self._hold):
            os.close(descriptor)
            Process.open_here.discard(descriptor)
        return found


class Campaign:
    """The lives and deaths of the publishers of one ledger."""

    def __init__(self, url: str, seed: int, directory: Path, wanted: int, broken: str) -> None:
        self.rng = random.Random(f"kills {seed}")
        self.seed, self.wanted, self.directory = seed, wanted, directory
        self.kills = Kills()
        self.problems: list[str] = []
        self.missed: list[str] = []
        self._last = ""
        self.machine = MACHINES[0]
        self._lives = 0
        # Whose the epoch is, as far as it was told; "" while an entry that opens the next one may be on its way.
        self._epoch_of = MACHINES[0]
        self._begun = False
        # Which mark of each machine is sure to survive a power cut, and how far the writing of the next has come.
        self._durable: dict[str, str] = {}
        self._writing: dict[str, tuple[str, int]] = {}
        log_id = f"kills-{seed}"
        self._first = Life(url, log_id, str(directory), MACHINES[0], INIT, time.monotonic_ns(), broken=broken)
        self._told = directory / "told"
        self._told.touch()
        self._targets: list[str] = []
        self.operators = Process(lambda report, hold: self._operate(report, hold))

    def _operate(self, report: int, hold: int) -> int:
        import asyncio

        asyncio.run(operators.serve(self._first, self.seed, hold, report))
        return 0

    def run(self) -> dict[str, Any]:
        """Kill as often as wanted, let the last one finish, and return what was found."""
        began, parent = time.monotonic(), os.getppid()
        while self.kills.total < self.wanted and not self.problems:
            if os.getppid() != parent:
                raise SystemExit("nobody waits for this any more")
            if not self._begun:
                self._begin()
                continue
            waiting = self._ask("feed").get("waiting", [])
            if self.rng.randrange(100) < PAUSED:
                self._overtake(waiting)
            else:
                self._live(self._next_life(waiting))
        killed = time.monotonic()
        verdict: dict[str, Any] = {}
        if not self.problems:
            self._drain()
            verdict = self._ask("judge", str(self._told))
            self.problems += verdict.pop("problems", [])
        self.operators.kill()
        self.operators.rest()
        return {
            "seed": self.seed,
            "problems": self.problems,
            "kills": {name: getattr(self.kills, name) for name in self.kills.__dataclass_fields__},
            "missed": self.missed,
            "lives": self._lives,
            "killing_s": round(killed - began, 2),
            "all_s": round(time.monotonic() - began, 2),
            **verdict,
        }

    # --- lives ---

    def _begin(self) -> None:
        """Lives of `flaghoist init`, until one gets to its end; the first few are killed."""
        target = Target("") if self._lives >= 3 else replace(self._target(), kind=GENESIS, occurrence=1)
        self._begun = self._live(replace(self._first, target=target)) == 0

    def _next_life(self, waiting: list[str]) -> Life:
        target = self._target()
        draw = self.rng.randrange(100)
        opening = target.step.startswith(EPOCH)
        switch = draw < OTHER_MACHINE or (opening and ROOT not in waiting)
        if switch and not (opening and self._epoch_of == self._other()):
            self.machine = self._other()
        what = COMMAND if draw >= 100 - COMMANDS and not target.step.startswith("beat") else SERVICE
        kinds = [*dict.fromkeys(waiting)] + ([CLAIM] if self._epoch_of == self._other() else [])
        if not target.step.startswith(NO_ENTRY) and self.rng.random() < 0.5:
            wanted = self.rng.choice(kinds)
            target = replace(target, kind=wanted, occurrence=1)
        return replace(
            self._first,
            machine=self.machine,
            what=what,
            take_over=switch and self.rng.random() < 0.7,
            target=target if not opening else replace(target, kind="", occurrence=1),
        )

    def _other(self) -> str:
        return next(machine for machine in MACHINES if machine != self.machine)

    def _target(self) -> Target:
        if not self._targets:
            self._targets = list(STEPS)
            self.rng.shuffle(self._targets)
        hold = self.rng.randrange(100) >= IN_THE_MIDDLE
        step = self._targets.pop()
        return Target(step, "", 1 if step == "lease.taken" else self.rng.choice((1, 1, 1, 2)), hold)

    def _live(self, life: Life) -> int | None:
        """Let one process live until its target, and kill it; return its exit code if it ended by itself."""
        process = self._start(life)
        hit = self._watch(process, life)
        return self._end(process, life, hit)

    def _overtake(self, waiting: list[str]) -> None:
        """Pause a publisher at a step, let one on the other machine take over and die, and let the first go on."""
        step = self.rng.choice(PAUSED_AT)
        slow = replace(self._first, machine=self.machine, what=SERVICE, target=Target(step))
        process = self._start(slow)
        hit = self._watch(process, slow)
        if not hit:
            self._end(process, slow, hit)
            return
        self.kills.paused += 1
        self.machine = self._other()
        target = replace(self._target(), occurrence=1)
        self._live(replace(self._first, machine=self.machine, what=SERVICE, take_over=True, target=target))
        target = replace(self._target(), occurrence=1)
        if target.step == "lease.taken":  # long past
            target = replace(target, step="ledger.done")
        process.tell(asdict(target))
        slow = replace(slow, target=target)
        self._end(process, slow, self._watch(process, slow))

    def _start(self, life: Life) -> Process:
        self._lives += 1
        fresh = life if self._lives % FRESH_EVERY == 0 else None
        self.kills.fresh += fresh is not None
        return Process(partial(lives.run, life), fresh=fresh)

    def _watch(self, process: Process, life: Life) -> bool:
        """Follow what a process tells until it comes to its target, ends, or has had its time; say whether it came."""
        deadline, beats = time.monotonic() + LIFE_S, 0
        while beats < IDLE_BEATS and (line := process.line(deadline)):
            self._hear(life, line)
            if line.get("hit"):
                return True
            step = line.get("step", "")
            if not step.startswith(NO_ENTRY):
                beats = 0
            beats += step == "beat.done"
        return False

    def _end(self, process: Process, life: Life, hit: bool) -> int | None:
        if hit and not life.target.hold:
            struck = time.perf_counter() + MIDDLE_S_MAX * self.rng.random() ** 2
            while time.perf_counter() < struck:
                pass
        status = process.wait() if process.ended else process.kill()
        for line in process.rest():
            self._hear(life, line)
        self._check_journal(life)
        if os.WIFEXITED(status):
            self.kills.by_themselves += 1
            code = os.WEXITSTATUS(status)
            if code or life.what == SERVICE:
                self.problems.append(f"{life.what} on {life.machine} ended by itself with {code}")
            return code
        if not hit:
            self.kills.elsewhere += 1
            self.missed.append(f"{life.what} wanted {life.target}, came to {self._last}")
        else:
            kind, _, step = self._last.rpartition(" ")
            (self.kills.at if life.target.hold else self.kills.middle)[step] += 1
            if not step.startswith(NO_ENTRY):
                self.kills.kinds[kind] += 1
        return None

    def _drain(self) -> None:
        """Let one publisher live until all is published that waits."""
        life = replace(self._first, machine=self.machine, what=SERVICE)
        process = self._start(life)
        deadline = time.monotonic() + DRAIN_S
        while (left := self._ask("left").get("left", 1)) and time.monotonic() < deadline and not process.ended:
            while line := process.line(min(deadline, time.monotonic() + DRAIN_LOOK_S)):
                self._hear(life, line)
        process.wait() if process.ended else process.kill()
        for line in process.rest():
            self._hear(life, line)
        if left:
            self.problems.append(f"{left} pieces of work were not published in {DRAIN_S:g} s")

    # --- what they tell ---

    def _ask(self, *question: str) -> dict[str, Any]:
        self.operators.tell(question)
        answer = self.operators.line(time.monotonic() + ANSWER_S)
        if answer is None:
            self.problems.append(f"the operators did not answer {question}")
            return {}
        if problem := answer.get("problem"):
            self.problems.append(f"operators: {problem}")
        return answer

    def _hear(self, life: Life, line: dict[str, Any]) -> None:
        if problem := line.get("problem"):
            self.problems.append(problem)
            return
        step, machine = line["step"], life.machine
        self._last = f"{line['kind']} {step}"
        if step == "append.begin" and line["kind"] in (CLAIM, ROOT):
            self._epoch_of = ""
        elif step == "epoch.done":
            self._epoch_of = machine
        if step == "entry.taken":
            with self._told.open("a") as told:
                told.write(json.dumps({"seq": line["seq"], "entry_hash": line["entry_hash"]}) + "\n")
        if step.startswith("record."):
            self._follow_record(machine, line["entry_hash"], WRITING.index(step.removeprefix("record.")))
        elif step == "directory.synced":
            entry_hash, stage = self._writing.get(machine, ("", 0))
            # Killed after its last word, it may have renamed the file; if not, the mark is not in the journal.
            if stage >= WRITING.index("synced"):
                self._durable[machine] = entry_hash
        elif step == "sign.begin" and self._durable.get(machine) != line["entry_hash"]:
            self.problems.append(
                f"{machine} signs {line['entry_hash']} before the journal is synced: {self._writing.get(machine)}"
            )

    def _follow_record(self, machine: str, entry_hash: str, stage: int) -> None:
        known, before = self._writing.get(machine, ("", -1))
        if stage == 0:
            self._writing[machine] = (entry_hash, 0)
        elif (known, before) == (entry_hash, stage - 1):
            self._writing[machine] = (entry_hash, stage)
        else:
            self.problems.append(f"{machine} journals {entry_hash}: {WRITING[stage]} after {WRITING[before]}")
        if stage == WRITING.index("done"):
            self._durable[machine] = entry_hash

    def _check_journal(self, life: Life) -> None:
        """The journal can be read, and knows the last entry that its machine has signed, or a later one."""
        try:
            journal = Journal(life.journals / f"{life.log_id}.journal")
        except FlaghoistError as error:
            self.problems.append(f"{life.machine}: {error}")
            return
        signed = life.signatures.read_text().splitlines() if life.signatures.exists() else []
        if not signed:
            return
        note, last = json.loads(signed[-1]), journal.last
        if last is None or (last.epoch, last.seq) < (note["epoch"], note["seq"]):
            self.problems.append(f"{life.machine} signed {note}, its journal knows of {last}")
        elif (last.epoch, last.seq) == (note["epoch"], note["seq"]) and last.entry_hash.hex() != note["hash"]:
            self.problems.append(f"{life.machine} signed {note}, its journal has {last.entry_hash.hex()} there")


def run(url: str, seed: int, directory: Path, wanted: int, broken: str = "") -> dict[str, Any]:
    """Make a ledger at `url`, kill its publishers `wanted` times, and return what was found.

    Args:
        broken: what these publishers do wrong, one of breakage.BREAKAGES; "" for nothing.
    """
    import asyncio

    from flaghoist.log.location import create_log

    directory.mkdir(parents=True)
    maker = Process(lambda *_: asyncio.run(create_log(url)) or 0)
    if maker.wait():
        return {"seed": seed, "problems": [f"no ledger could be made at {url}"]}
    maker.rest()
    forge_of(f"kills-{seed}")
    return Campaign(url, seed, directory, wanted, broken).run()
