"""A hostile broker plays against several sidecars; the verifier is the real one, and a model watches every step.

Deterministic: a seed is a run. `seed // RUNS_A_STORY` chooses the honest history (story.py), the seed itself what the
adversary does with it. A run raises model.ViolationError when an invariant does not hold.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from flaghoist.codec import HEARTBEAT, encode_envelope
from flaghoist.freshness import Heartbeats, Proof
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Dropped, Forked, Gap, Link, Repeated
from flaghoist.records import Heartbeat
from flaghoist.signing import seal
from flaghoist.values import LogId, Seq
from tests.adversary import memory, model
from tests.adversary import story as stories
from tests.adversary.model import BEAT_LIFE_MS, TOLERANCE_MS, UNNOTICED_MS, Shadow, State, ViolationError, served_by
from tests.adversary.story import LOG, Artefact, Story, feed

RUNS_A_STORY: Final = 100
SIDECARS_MIN, SIDECARS_MAX = 2, 3
EVENTS_MIN, EVENTS_MAX = 20, 44
# Forged entries are dated to such a step, so that runs of one story share their signatures.
FORGED_EVERY_MS: Final = 20_000
# A sidecar's clock may be this wrong, all the while; beyond the tolerance it must not claim to be fresh.
CLOCKS_MS: Final = (0, 0, 0, 4_000, -4_000, -3_600_000, 3_600_000)

Say = Callable[[str], None]


@dataclass
class Sidecar:
    """A reader of the ledger as a pod runs it: verifier, heartbeats, disk, and what it serves."""

    name: str
    story: Story
    clock_ms: int
    tally: Counter[str]
    pinned: bool = False
    ledger: Ledger = field(init=False)
    beats: Heartbeats = field(init=False)
    shadow: Shadow = field(init=False)
    disk: list[bytes] = field(init=False, default_factory=list)
    cursor: int = 0
    served: Any = None
    served_min_pin: int = 0

    def __post_init__(self) -> None:
        self.start([])

    def start(self, kept: list[bytes]) -> None:
        """Start, or start again with what is on the disk."""
        self.ledger = Ledger(self.story.first_root, self.story.pinned if self.pinned else {})
        self.beats = Heartbeats(self.ledger)
        self.shadow = Shadow(self.story.registry, LOG, self.story.first_facts)
        self.disk, self.served, self.served_min_pin = [], None, 0
        for data in kept:
            self.receive(data, 0)

    def receive(self, data: bytes, now_ms: int) -> Any:
        """Take one record, and have the model look at what it did."""
        head, snapshot, root = self.ledger.head, self.ledger.snapshot, self.ledger.root
        quarantined, stopped = self.ledger.quarantined_by, self.ledger.stopped_by
        outcome = self.ledger.receive(data)
        self.tally[type(outcome).__name__] += 1
        if isinstance(outcome, Link):
            self.disk.append(data)
            moment_ms = feed(self.shadow, outcome)
            if getattr(outcome, "in_force_at_ms", 0) != moment_ms:
                raise ViolationError(1, f"{self.name}: want it in force at {moment_ms}, got {outcome}"[:300])
            self._check_state()
            proof = self.beats.note_progress(now_ms=now_ms + self.clock_ms)
            if proof is not None:
                self.ledger.quarantine(proof)
            if quarantined is not None and self.ledger.quarantined_by is None:
                self.tally["quarantine cured"] += 1
        elif (self.ledger.head, self.ledger.snapshot, self.ledger.root) != (head, snapshot, root):
            raise ViolationError(1, f"{self.name}: a record that is no link changed the state: {outcome}")
        elif isinstance(outcome, Dropped | Repeated | Gap) and (
            self.ledger.quarantined_by is not quarantined or self.ledger.stopped_by is not stopped
        ):
            raise ViolationError(5, f"{self.name}: a record that proves nothing stopped it: {outcome}")
        self.serve()
        return outcome

    def hear(self, data: bytes, now_ms: int) -> Any:
        """Take one heartbeat."""
        outcome = self.beats.receive(data, now_ms=now_ms + self.clock_ms)
        self.tally[f"heartbeat {type(outcome).__name__}"] += 1
        if isinstance(outcome, Forked):
            self.ledger.quarantine(outcome)
        return outcome

    @property
    def serves_on(self) -> bool:
        """Whether what it verifies is served."""
        ledger = self.ledger
        return ledger.quarantined_by is None and ledger.stopped_by is None and ledger.at_pinned_root

    def serve(self) -> None:
        if not self.serves_on:
            return
        min_pin = self.ledger.min_pin.number
        if min_pin < self.served_min_pin:
            raise ViolationError(6, f"{self.name}: min_pin fell from {self.served_min_pin} to {min_pin}")
        self.served, self.served_min_pin = self.ledger.snapshot, min_pin

    def fresh(self, now_ms: int) -> bool:
        return self.serves_on and self.beats.standing(now_ms=now_ms + self.clock_ms).proof is Proof.FRESH

    def _check_state(self) -> None:
        ledger, shadow = self.ledger, self.shadow
        if ledger.head.seq.number != len(shadow.hashes) or ledger.snapshot.seq != ledger.head.seq:
            raise ViolationError(1, f"{self.name}: head {ledger.head.seq} of {len(shadow.hashes)} links")
        if ledger.min_pin.number != shadow.min_pin:
            raise ViolationError(6, f"{self.name}: min_pin is {ledger.min_pin}, want {shadow.min_pin}")
        if set(ledger.unratified) != set(shadow.waiting):
            raise ViolationError(
                1, f"{self.name}: {len(ledger.unratified)} emergencies wait, want {len(shadow.waiting)}"
            )
        if ledger.root.sha256 != shadow.root.sha256:
            raise ViolationError(1, f"{self.name}: another root is in force")
        if served_by(ledger.snapshot) != shadow.state:
            raise ViolationError(1, f"{self.name}: {_differences(served_by(ledger.snapshot), shadow.state)}")

    def check_replay(self) -> None:
        """What it kept leads to the very state that it is in."""
        again = Ledger(self.story.first_root, self.story.pinned if self.pinned else {})
        for data in self.disk:
            again.receive(data)
        ours = self.ledger
        if (again.head, again.min_pin, again.root.sha256, set(again.unratified)) != (
            ours.head,
            ours.min_pin,
            ours.root.sha256,
            set(ours.unratified),
        ) or served_by(again.snapshot) != served_by(ours.snapshot):
            raise ViolationError(7, f"{self.name}: its {len(self.disk)} kept links lead elsewhere")


def _differences(got: State, want: State) -> str:
    return "; ".join(
        f"{place}: want {want.get(place)}, got {got.get(place)}"
        for place in sorted(got.keys() | want.keys())
        if got.get(place) != want.get(place)
    )


class Run:
    """One run of one story."""

    def __init__(self, seed: int, story: Story, say: Say | None = None) -> None:
        self.rng = random.Random(seed)
        self.story = story
        self.say = say
        self.events = 0
        self.now_ms = story.begins_ms
        self.tally: Counter[str] = Counter()
        self.sidecars = [
            Sidecar(
                f"sidecar {n}",
                story,
                self.rng.choice(CLOCKS_MS),
                self.tally,
                pinned=bool(story.pinned) and self.rng.random() < 0.2,
            )
            for n in range(1, self.rng.randint(SIDECARS_MIN, SIDECARS_MAX) + 1)
        ]
        self.forged_beats = 0

    def play(self) -> int:
        """Play to the end; return how many events there were."""
        moves = self._moves()
        # Of a story, most is honest: the records come in order, now and then.
        weights = [weight for weight, _ in moves]
        acts = [act for _, act in moves]
        for act in self.rng.choices(acts, weights, k=self.rng.randint(EVENTS_MIN, EVENTS_MAX)):
            self.now_ms += self.rng.choice((0, 0, 500, 1_000, 3_000, 6_000, 12_000))
            act(self.rng.choice(self.sidecars))
            self._check_freshness()
            self.events += 1
        self._meet(self.rng.choice(self.sidecars))
        self._end()
        return self.events

    def _moves(self) -> list[tuple[int, Callable[[Sidecar], None]]]:
        moves: list[tuple[int, Callable[[Sidecar], None]]] = [
            (14, self._next_records),
            (8, self._honest_beat),
            (3, self._any_record),
            (3, self._old_beat),
            (4, self._junk),
            (3, self._junk_beat),
            (1, self._restart),
            (1, self._meet),
        ]
        if self.story.stolen_publisher is not None:
            moves.append((14, self._forge))
        if self.story.stolen_beats is not None:
            moves.append((6, self._forge_beat))
        return moves

    def _told(self, sidecar: Sidecar, what: str, outcome: object = None) -> None:
        if self.say is not None:
            standing = sidecar.beats.standing(now_ms=self.now_ms + sidecar.clock_ms).proof
            state = (
                "QUARANTINED"
                if sidecar.ledger.quarantined_by
                else "UNSUPPORTED"
                if sidecar.ledger.stopped_by
                else standing
            )
            shown = "" if outcome is None else f" -> {told_of(outcome)}"
            at_s = (self.now_ms - self.story.begins_ms) / 1000
            self.say(f"{at_s:6.1f} s  {sidecar.name} (seq {sidecar.ledger.head.seq}, {state}): {what}{shown}")

    # --- what a broker does ---

    def _published(self) -> int:
        """How many records of the honest log there are by now."""
        log = self.story.log
        at = len(log)
        while at and log[at - 1].at_ms > self.now_ms:
            at -= 1
        return at

    def _next_records(self, sidecar: Sidecar) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 4, 20))):
            if sidecar.cursor >= self._published():
                return
            record = self.story.log[sidecar.cursor]
            sidecar.cursor += 1
            if self.rng.random() < 0.06:
                self._told(sidecar, f"lost: {record.what}")
                continue
            self._told(sidecar, record.what, sidecar.receive(record.data, self.now_ms))

    def _any_record(self, sidecar: Sidecar) -> None:
        known = self._published()
        if known:
            record = self.story.log[self.rng.randrange(known)]
            self._told(sidecar, f"out of order: {record.what}", sidecar.receive(record.data, self.now_ms))

    def _newest_beat(self) -> int:
        beats, at = self.story.beats, len(self.story.beats) - 1
        while at >= 0 and beats[at][0] > self.now_ms:
            at -= 1
        return at

    def _honest_beat(self, sidecar: Sidecar) -> None:
        at = self._newest_beat()
        if at >= 0:
            self._told(sidecar, "newest heartbeat", sidecar.hear(self.story.beats[at][1], self.now_ms))

    def _old_beat(self, sidecar: Sidecar) -> None:
        at = self._newest_beat()
        if at >= 0:
            data = self.story.beats[self.rng.randint(max(0, at - 8), at)][1]
            self._told(sidecar, "old heartbeat", sidecar.hear(data, self.now_ms))

    def _junk(self, sidecar: Sidecar) -> None:
        what, data = self.rng.choice(self.story.junk)
        self._told(sidecar, f"junk: {what}", sidecar.receive(data, self.now_ms))

    def _junk_beat(self, sidecar: Sidecar) -> None:
        what, data = self.rng.choice(self.story.beat_junk)
        self._told(sidecar, f"junk heartbeat: {what}", sidecar.hear(data, self.now_ms))

    def _restart(self, sidecar: Sidecar) -> None:
        sidecar.check_replay()
        self.tally["restarted"] += 1
        kept = sidecar.disk[
            : self.rng.choice((len(sidecar.disk), len(sidecar.disk), self.rng.randint(0, len(sidecar.disk))))
        ]
        sidecar.start(list(kept))
        sidecar.cursor = self.rng.randint(0, sidecar.cursor)
        self._told(sidecar, f"restarted with {len(kept)} kept links, reads on from record {sidecar.cursor}")

    # --- what a thief does ---

    def _forge(self, sidecar: Sidecar) -> None:
        """Bring one sidecar an entry after its own head, signed with the stolen publisher key."""
        key = self.story.stolen_publisher
        assert key is not None
        artefact: Artefact = self.rng.choice(self.story.artefacts)
        head = sidecar.ledger.head
        at_ms = self.now_ms - self.now_ms % FORGED_EVERY_MS
        data = _chained(self.story, head, sidecar.ledger.root.version, artefact, at_ms)
        self._told(sidecar, f"forged: {artefact.what}", sidecar.receive(data, self.now_ms))

    def _forge_beat(self, sidecar: Sidecar) -> None:
        """A heartbeat by the stolen key; of this sidecar's head, or of what is not."""
        key = self.story.stolen_beats
        assert key is not None
        self.forged_beats += 1
        head = sidecar.ledger.head
        when = self.now_ms + self.rng.choice((0, 0, 0, 3_600_000))
        life = self.rng.choice((BEAT_LIFE_MS, BEAT_LIFE_MS, 60_000, 86_400_000, 0))
        lies = self.rng.random() < 0.2
        beat = Heartbeat(
            LogId(LOG), when, when, when + life, head.seq, bytes(32) if lies else head.entry_hash,
            self.rng.choice((head.epoch, head.epoch, 10**9)), sidecar.ledger.root.version, "thief", None, Seq(0),
        )  # fmt: skip
        data = encode_envelope(seal(HEARTBEAT, beat, [key]))
        self._told(
            sidecar,
            f"forged heartbeat, life {life} ms{', another hash' if lies else ''}",
            sidecar.hear(data, self.now_ms),
        )

    # --- what must hold ---

    def _check_freshness(self) -> None:
        """3: fresh is who has all that was published longer ago than a heartbeat may count."""
        for sidecar in self.sidecars:
            if not sidecar.fresh(self.now_ms):
                continue
            self.tally["fresh after an event"] += 1
            if self._beats_may_be_forged(sidecar):
                continue
            due = [h for at, h in self.story.chain if at < self.now_ms - UNNOTICED_MS]
            ours = sidecar.shadow.hashes
            if due and (len(ours) < len(due) or ours[len(due) - 1] != due[-1]):
                raise ViolationError(3, f"{sidecar.name} claims to be fresh at seq {len(ours)}; seq {len(due)} was due")

    def _beats_may_be_forged(self, sidecar: Sidecar) -> bool:
        key = self.story.stolen_beats
        return key is not None and key.listed.key_id in sidecar.shadow.root.beats

    def _meet(self, one: Sidecar) -> None:
        """2: two sidecars compare all that they hold; who holds another history is noticed."""
        other = self.rng.choice([s for s in self.sidecars if s is not one])
        ours, theirs = list(one.disk), list(other.disk)
        self._told(one, f"meets {other.name}")
        for data in theirs:
            one.receive(data, self.now_ms)
        for data in ours:
            other.receive(data, self.now_ms)
        self._check_agreement(one, other)

    def _check_agreement(self, one: Sidecar, other: Sidecar) -> None:
        if not (one.serves_on and other.serves_on):
            return
        if one.ledger.root.version != other.ledger.root.version:
            # Whoever has the new root ignores the old keys; whoever was kept from it can no longer be told by their
            # records, but by the silence: no heartbeat of the new root's counts for it.
            behind = min(one, other, key=lambda sidecar: sidecar.ledger.root.version)
            if (
                behind.fresh(self.now_ms + UNNOTICED_MS)
                and not self._beats_may_be_forged(behind)
                and self._parted(one, other) is not None
            ):
                raise ViolationError(
                    2, f"{behind.name} was kept from a root, has other entries, and claims to be fresh"
                )
            return
        ours, theirs = one.shadow.hashes, other.shadow.hashes
        parted = self._parted(one, other)
        # Of two publishers that race, one lost; which one, only what follows says: the next entry, or a heartbeat.
        if parted is None or (parted == len(ours) - 1 == len(theirs) - 1 and not self._same_epoch(one, other)):
            return
        raise ViolationError(2, f"{one.name} and {other.name} part at seq {parted + 1} and have not noticed")

    @staticmethod
    def _parted(one: Sidecar, other: Sidecar) -> int | None:
        """The first place (from 0) where two chains have different entries; None: one is the beginning of the other."""
        pairs = zip(one.shadow.hashes, other.shadow.hashes, strict=False)
        return next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), None)

    @staticmethod
    def _same_epoch(one: Sidecar, other: Sidecar) -> bool:
        """Whether two different heads are of one epoch, and no claims: then one key has signed both places."""
        kinds = {type(s.ledger.judge(s.disk[-1])).__name__ for s in (one, other)}
        return one.ledger.head.epoch == other.ledger.head.epoch and kinds == {"Applied"}

    def _end(self) -> None:
        """4, 5, 7: the attack ends; every record of the log and the newest heartbeat reach everybody, in order."""
        story = self.story
        self.now_ms = max(self.now_ms, story.ends_ms)
        beat_at, newest = story.beats[-1]
        for sidecar in self.sidecars:
            for record in story.log:
                sidecar.receive(record.data, self.now_ms)
            sidecar.hear(newest, beat_at)
            if sidecar.shadow.hashes != story.shadow.hashes or not sidecar.serves_on:
                self._told(sidecar, "is not where the honest are")
                if sidecar.serves_on and sidecar.ledger.root.sha256 == story.shadow.root.sha256:
                    raise ViolationError(2, f"{sidecar.name} is on another history, was told, and serves on")
                if story.stolen_publisher is None and story.stolen_beats is None and not story.raced:
                    raise ViolationError(5, f"{sidecar.name} does not reach the honest head: {told_of(sidecar)}")
                self.tally["started anew at the end"] += 1
                # It took another side, a thief's or that of a publisher which lost its place, and has noticed: the
                # operator has it start anew.
                sidecar.start([record.data for record in story.log])
                sidecar.hear(newest, beat_at)
            if sidecar.shadow.hashes != story.shadow.hashes or not sidecar.serves_on:
                raise ViolationError(5, f"{sidecar.name} does not reach the honest head: {told_of(sidecar)}")
            sidecar.check_replay()
            if served_by(sidecar.served) != story.shadow.state:
                raise ViolationError(
                    4, f"{sidecar.name}: {_differences(served_by(sidecar.served), story.shadow.state)}"
                )
            sound = abs(sidecar.clock_ms) <= TOLERANCE_MS
            if sound and not sidecar.fresh(beat_at):
                raise ViolationError(5, f"{sidecar.name} hears the newest heartbeat of its own head, and is not fresh")


def told_of(thing: object) -> str:
    """An outcome, or where a sidecar stands, in a line."""
    if isinstance(thing, Sidecar):
        ledger = thing.ledger
        why = ledger.quarantined_by or ledger.stopped_by or "serving"
        return f"seq {ledger.head.seq}, root {ledger.root.version}, {told_of(why) if why != 'serving' else why}"
    name = type(thing).__name__
    refusal = getattr(thing, "refusal", None)
    what = getattr(thing, "what", None) or getattr(thing, "why", None)
    return f"{name}: {refusal}" if refusal else f"{name}: {what}" if what else name


_FORGED: dict[tuple[object, ...], bytes] = {}


def _chained(story: Story, head: Any, root_version: int, artefact: Artefact, now_ms: int) -> bytes:
    key = (id(artefact), head.entry_hash, root_version, now_ms)
    data = _FORGED.get(key)
    if data is None:
        assert story.stolen_publisher is not None
        data = stories.chained(head, root_version, artefact, story.stolen_publisher, now_ms)
        _FORGED[key] = data
    return data


def clear_forged() -> None:
    """Forget the forged entries of a story that is over."""
    _FORGED.clear()


class Player:
    """Plays seeds; keeps the story that they share, and counts what happened."""

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()
        self._story: Story | None = None

    def story_of(self, seed: int) -> Story:
        number = seed // RUNS_A_STORY
        if self._story is None or self._story.number != number:
            clear_forged()
            memory.forget()
            model.forget()
            self._story = stories.make(number)
        return self._story

    def play(self, seed: int, say: Say | None = None) -> None:
        """Play one run.

        Raises:
            model.ViolationError: an invariant does not hold.
        """
        run = Run(seed, self.story_of(seed), say)
        run.play()
        self.tally += run.tally
        self.tally["runs"] += 1
        self.tally["events"] += run.events
