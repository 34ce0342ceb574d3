"""What the sidecars say of themselves, folded: who is there, how far each is, and who disagrees with whom.

Pure; the shell reads the stream of acknowledgements and hands over bytes and the time. Nobody signs them, and whoever
may write to the stream can make some up: they inform people, and nothing that must be safe depends on them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from flaghoist.acknowledgement import ACK_INTERVAL_S, LEFT, read_acknowledgement
from flaghoist.errors import Refused, Unavailable
from flaghoist.ledger import Ledger
from flaghoist.log.base import KEY_BYTES_MAX
from flaghoist.records import Acknowledgement
from flaghoist.state_root import state_root
from flaghoist.values import LogId, Seq

# A jitter of the interval, a broker's delivery, and how far apart two clocks under NTP are.
_SLACK_MS: Final = 10_000
# Three acknowledgements in a row may be lost before an instance counts as silent.
LIVE_MS: Final = 3 * round(ACK_INTERVAL_S * 1000) + _SLACK_MS
# Ten times what one broker should serve (design §8), and some 20 MB here; past it the longest silent are forgotten.
INSTANCES_MAX: Final = 20_000
# What an idle broker takes to deliver a heartbeat, many times over; beyond it one of the two clocks is wrong.
SKEW_MS_MAX: Final = 250
# A timer of a loaded machine; a later switch is no matter of clocks, something held the sidecar up.
LATE_MS_MAX: Final = 250
# States of this machine's own ledger that are kept to compare with: who is further behind is not compared.
_OWN_ROOTS_MAX: Final = 256

# In these it may know newer entries, and does not serve them (docs/protocol.md has the states).
STANDING_STILL: Final = frozenset({"QUARANTINED", "UNSUPPORTED", "LOADING"})
# In these nobody has told it lately that there is nothing newer.
_UNPROVEN: Final = frozenset({"STALE", "ROOT_EXPIRED"})


class NotReached(Unavailable):
    """Too few sidecars said in time that they have it."""

    code = "not_reached"
    hint = "see who is missing with `flaghoist fleet`"


class Diverged(Refused):
    """Sidecars do not have the same at the same seq, or not what the operator's own ledger has."""

    code = "diverged"


class Trouble(StrEnum):
    """What may be wrong with one instance."""

    SILENT = "silent"  # not heard for three acknowledgements' time, and it has not said that it ends
    BEHIND = "behind"  # it has not verified the newest entry
    STILL = "still"  # it does not serve what it verifies: quarantined, unsupported, nothing loaded
    STALE = "stale"  # it has no proof that what it serves is the newest
    SKEWED = "skewed"  # its clock and the publisher's differ
    LATE = "late"  # it answered from its newest state well after the moment that was set


@dataclass(frozen=True, slots=True)
class Member:
    """One instance by its newest acknowledgement.

    Attributes:
        seen_ms: when it was heard, Unix ms by this machine's clock.
    """

    ack: Acknowledgement
    seen_ms: int

    @property
    def name(self) -> str:
        return self.ack.instance

    def live(self, now_ms: int) -> bool:
        """Whether it was heard lately, and has not said that it ends."""
        return self.ack.state != LEFT and now_ms - self.seen_ms <= LIVE_MS

    @property
    def stands_still(self) -> bool:
        """Whether it does not serve what it verifies."""
        return self.ack.state in STANDING_STILL

    @property
    def skewed(self) -> bool:
        """Whether its clock and the publisher's differ by more than delivery explains."""
        offset_ms = self.ack.clock_offset_ms
        return offset_ms is not None and abs(offset_ms) > SKEW_MS_MAX

    @property
    def late(self) -> bool:
        """Whether it answered from its newest state well after the moment that was set."""
        return self.ack.late_ms is not None and self.ack.late_ms > LATE_MS_MAX

    def behind(self, head: Seq) -> int:
        """Return how many entries up to `head` it has not verified; 0 when it knows more."""
        return max(head.number - self.ack.seq.number, 0)

    def troubles(self, head: Seq | None, now_ms: int) -> tuple[Trouble, ...]:
        """Return what may be wrong with it; of one that is silent or has left nothing else is known.

        Args:
            head: the newest entry; None when that is not known here.
        """
        if self.ack.state == LEFT:
            return ()
        if not self.live(now_ms):
            return (Trouble.SILENT,)
        found = (
            (Trouble.BEHIND, head is not None and self.behind(head) > 0),
            (Trouble.STILL, self.stands_still),
            (Trouble.STALE, self.ack.state in _UNPROVEN),
            (Trouble.SKEWED, self.skewed),
            (Trouble.LATE, self.late),
        )
        return tuple(trouble for trouble, holds in found if holds)


@dataclass(frozen=True, slots=True)
class Reached:
    """How much of a fleet has something.

    Attributes:
        done: how many have it.
        live: of how many.
        waiting_for: names of the others, sorted.
    """

    done: int
    live: int
    waiting_for: tuple[str, ...]

    @property
    def percent(self) -> float:
        """0 .. 100; 0 of nobody."""
        return 100 * self.done / self.live if self.live else 0.0

    def enough(self, percent: int) -> bool:
        """Whether at least that share has it; of nobody, no share above 0 does."""
        return percent == 0 or (self.live > 0 and self.done * 100 >= percent * self.live)


class Parting(StrEnum):
    """In what two readers of one ledger differ."""

    HISTORY = "entry_hash"  # another entry at the same place
    STATE = "state_root"  # the same entries, and another state
    AHEAD = "seq"  # it knows entries that this machine's ledger does not have


@dataclass(frozen=True, slots=True)
class Divergence:
    """Instances at one seq that do not have the same there.

    Attributes:
        ours: what this machine's verified ledger has there; None when it does not know.
        said: what live instances say, each with the names that say it, sorted; the one most said first.
    """

    seq: Seq
    what: Parting
    ours: bytes | None
    said: tuple[tuple[bytes, tuple[str, ...]], ...]

    @property
    def instances(self) -> tuple[str, ...]:
        """Who differs: from this machine's ledger; where it does not know, everybody, since nobody's word is better."""
        return tuple(sorted(name for said, names in self.said if said != self.ours for name in names))


class Fleet:
    """The newest acknowledgement of each instance, as the stream has them.

    Attributes:
        ledger: this machine's own, verified: what instances say is compared with it as far as it was read. None: they
            are compared with each other.
        dropped: records that are no acknowledgement of this environment.
        forgotten: instances over INSTANCES_MAX, the longest silent ones.

    Args:
        log_id: the environment.
        ledger: as the attribute.
    """

    def __init__(self, log_id: LogId, ledger: Ledger | None = None) -> None:
        self.dropped = 0
        self.forgotten = 0
        self._log_id = log_id
        self.ledger = ledger
        self._own_roots: dict[int, bytes] = {}
        # In the order in which they were heard, so that the longest silent comes first.
        self._members: dict[str, Member] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody known, silent ones too, by service and name."""
        return tuple(sorted(self._members.values(), key=lambda m: (m.ack.service, m.name)))

    def member(self, name: str) -> Member | None:
        return self._members.get(name)

    def take(self, data: bytes, *, now_ms: int, kept: bool = False) -> Member | None:
        """Take one record; what is no acknowledgement of this environment is counted, and None is returned.

        Args:
            data: untrusted.
            now_ms: this machine's clock.
            kept: it lay in the stream already when the reading began, so that only the writer's clock says since when.
        """
        try:
            ack = read_acknowledgement(data, self._log_id)
        except Refused:
            self.dropped += 1
            return None
        if not 1 <= len(ack.instance.encode()) <= KEY_BYTES_MAX:
            self.dropped += 1
            return None
        self._members.pop(ack.instance, None)
        member = Member(ack, _written_ms(ack, now_ms) if kept else now_ms)
        self._members[ack.instance] = member
        while len(self._members) > INSTANCES_MAX:
            del self._members[next(iter(self._members))]
            self.forgotten += 1
        return member

    def note_own(self) -> None:
        """Remember the state that this machine's ledger has now, to compare with whoever says it is there."""
        if self.ledger is None:
            return
        self._own_roots[self.ledger.head.seq.number] = state_root(self.ledger.snapshot)
        while len(self._own_roots) > _OWN_ROOTS_MAX:
            del self._own_roots[next(iter(self._own_roots))]

    # --- who has what ---

    def live(self, now_ms: int) -> frozenset[str]:
        """Return the names of the instances that were heard lately."""
        return frozenset(m.name for m in self._members.values() if m.live(now_ms))

    def reached(self, seq: Seq, *, now_ms: int, among: Collection[str] | None = None) -> Reached:
        """Return how many have verified an entry, and will serve it when its moment comes.

        Who stands still, or follows another history, has not.

        Args:
            among: names to count, live or silent by now (who has left in order no longer counts); by default whoever
                is live.
        """
        return self._counted(
            {m.name for m in self._members.values() if m.ack.seq >= seq and not m.stands_still and not self._apart(m)},
            now_ms,
            among,
        )

    def in_force(self, seq: Seq, *, now_ms: int, among: Collection[str] | None = None) -> Reached:
        """Return how many answer from an entry, or from a later one; arguments as for `reached`."""
        return self._counted(
            {m.name for m in self._members.values() if m.ack.in_force >= seq and not self._apart(m)}, now_ms, among
        )

    def _counted(self, done: set[str], now_ms: int, among: Collection[str] | None) -> Reached:
        if among is None:
            asked = self.live(now_ms)
        else:
            asked = frozenset(n for n in among if n not in self._members or self._members[n].ack.state != LEFT)
        return Reached(len(asked & done), len(asked), tuple(sorted(asked - done)))

    # --- who disagrees ---

    def divergence(self, now_ms: int) -> list[Divergence]:
        """Return where live instances do not have the same at the same seq, or not what this machine has; by seq."""
        at: dict[Seq, list[Member]] = defaultdict(list)
        for member in self._members.values():
            if member.live(now_ms) and member.ack.seq > Seq(0):
                at[member.ack.seq].append(member)
        return [found for seq in sorted(at) for found in self._differing(seq, at[seq])]

    def _differing(self, seq: Seq, members: list[Member]) -> Iterable[Divergence]:
        if self.ledger is not None and seq > self.ledger.head.seq:
            yield _divergence(seq, Parting.AHEAD, None, [(m.ack.entry_hash, m.name) for m in members])
            return
        ours = None if self.ledger is None else self.ledger.hash_at(seq)
        histories = _divergence(seq, Parting.HISTORY, ours, [(m.ack.entry_hash, m.name) for m in members])
        if _differ(histories):
            yield histories
        # Who has another history has another state too: one finding about each instance is enough.
        history = ours or histories.said[0][0]
        same = [m for m in members if m.ack.entry_hash == history]
        states = _divergence(
            seq, Parting.STATE, self._own_roots.get(seq.number), [(m.ack.state_root, m.name) for m in same]
        )
        if _differ(states):
            yield states

    def _apart(self, member: Member) -> bool:
        """Whether it follows another history than this machine, as far as this machine has read."""
        seq = member.ack.seq
        if self.ledger is None or seq > self.ledger.head.seq:
            return False
        return member.ack.entry_hash != self.ledger.hash_at(seq)


def _written_ms(ack: Acknowledgement, now_ms: int) -> int:
    """Return when a kept acknowledgement was written, by this machine's clock as nearly as can be known."""
    offset_ms = ack.clock_offset_ms or 0
    return min(ack.written_at + offset_ms, now_ms)


def _divergence(seq: Seq, what: Parting, ours: bytes | None, said: list[tuple[bytes, str]]) -> Divergence:
    names: dict[bytes, list[str]] = defaultdict(list)
    for value, name in said:
        names[value].append(name)
    ranked = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    return Divergence(seq, what, ours, tuple((value, tuple(sorted(group))) for value, group in ranked))


def _differ(found: Divergence) -> bool:
    values = {value for value, _ in found.said} | ({found.ours} if found.ours is not None else set())
    return len(found.said) > 0 and len(values) > 1
