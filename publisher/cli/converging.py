"""How a command waits until the fleet has what it has published, and shows it meanwhile."""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import click

from flaghoist.errors import Misconfigured, Unavailable
from flaghoist.log.base import Stream
from flaghoist.log.reconnect import follow_reliably
from flaghoist.outcomes import Applied, Link, Prepared, Stepped
from flaghoist.values import ProposalKind, Seq
from publisher.cli.desk import Exit, Interrupted, Progress
from publisher.cli.reading import Reading
from publisher.cli.workspace import Workspace
from publisher.fleet import Fleet, NotReached, Parting, Reached

TIMEOUT_S_DEFAULT: Final = 60
TIMEOUT_S_MAX: Final = 3600
# More names than anybody reads; --json has them all.
NAMES_SHOWN_MAX: Final = 10
# How often what is shown is renewed while nothing is heard: the seconds to a moment go by.
_REDRAW_S: Final = 0.25
# Between two looks: thousands of acknowledgements come one by one, and a look counts them all.
_LOOK_S: Final = 0.02


class Percent(click.ParamType[int]):
    """An option's value such as 95% or 95: 0 .. 100."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value).strip().removesuffix("%")
        if not (text.isascii() and text.isdigit() and int(text) <= 100):
            self.fail(f"want a share of the fleet such as 95%, got {value!r}", param, ctx)
        return int(text)


# The options of a command that publishes; its parameters are wait_percent and timeout_s.
WAIT: Final = click.option(
    "--wait", "wait_percent", type=Percent(), metavar="PERCENT",
    help="Wait until that share of the live sidecars answers from it; else exit 14.",
)  # fmt: skip
TIMEOUT: Final = click.option(
    "--timeout", "timeout_s", type=click.IntRange(1, TIMEOUT_S_MAX), default=TIMEOUT_S_DEFAULT, show_default=True,
    metavar="SECONDS", help="How long to wait for the publisher's service, where there is one, and for the fleet.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Awaited:
    """What the fleet is waited for to have.

    Attributes:
        moment_ms: before which nobody answers from it (Unix ms); 0: at once.
        verified_only: to have verified it is enough: it changes nothing by itself, or nothing holds it up.
    """

    seq: Seq
    moment_ms: int = 0
    verified_only: bool = False

    @classmethod
    def of(cls, link: Applied | Stepped | Prepared, links: Sequence[Link]) -> "Awaited":
        """Return it for an entry of a chain.

        Args:
            links: the chain: an entry takes effect no earlier than those before it.
        """
        entry = link.entry
        emergency = isinstance(link, Applied) and link.authorized.proposal.kind is ProposalKind.EMERGENCY
        if isinstance(link, Prepared) or emergency:
            # An emergency is answered from at once, also while what came before it waits for its moment.
            return cls(entry.seq, verified_only=True)
        before = links[: entry.seq.number]
        moment_ms = max((each.in_force_at_ms for each in before if isinstance(each, Applied | Stepped)), default=0)
        return cls(entry.seq, moment_ms)


@dataclass(frozen=True, slots=True)
class Converged:
    """How far the fleet was when the waiting ended.

    Attributes:
        percent: what share was wanted.
        took_s: since the waiting began.
        trouble: why acknowledgements could not be read at the end; "" when they could.
        differing: instances that do not have the same state there.
    """

    awaited: Awaited
    percent: int
    reached: Reached
    took_s: float
    trouble: str = ""
    differing: tuple[str, ...] = ()

    @property
    def enough(self) -> bool:
        return self.reached.enough(self.percent)

    @property
    def exit(self) -> Exit:
        return Exit.OK if self.enough else Exit.NOT_REACHED

    @property
    def fields(self) -> dict[str, Any]:
        """What --json says of it."""
        return {
            "seq": self.awaited.seq.number,
            "what": "verified" if self.awaited.verified_only else "in_force",
            "wanted_percent": self.percent,
            "live": self.reached.live,
            "reached": self.reached.done,
            "enough": self.enough,
            "seconds": round(self.took_s, 3),
            "missing": list(self.reached.waiting_for),
            "differing": list(self.differing),
        }

    @property
    def words(self) -> str:
        """One line for people."""
        has = "have verified" if self.awaited.verified_only else "answer from"
        reached = self.reached
        if not reached.live:
            text = f"no sidecar was live that could have seq {self.awaited.seq}"
        else:
            share = math.floor(reached.percent)  # rounded up it might look like enough
            text = f"{reached.done} of {reached.live} live sidecars ({share} %) {has} seq {self.awaited.seq}"
        text += f" after {self.took_s:.1f} s"
        return text if self.enough else f"{text}, want {self.percent} %{self._missing()}"

    def refusal(self, what: str, hint: str) -> NotReached:
        """Return the error of a command for which this is not enough.

        Args:
            what: became of it, such as "01K… is published as seq 7".
        """
        return NotReached(f"{what}; {self.words}", hint=hint)

    def _missing(self) -> str:
        why = f"; acknowledgements cannot be read: {self.trouble}" if self.trouble else ""
        if not self.reached.waiting_for:
            return why
        return f"; missing: {shown_names(self.reached.waiting_for)}{why}"


def shown_names(names: Sequence[str]) -> str:
    """Return names for one line; of very many the first few and how many more."""
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def wait_for(
    work: Workspace,
    reading: Reading,
    link: Applied | Stepped | Prepared,
    *,
    percent: int,
    timeout_s: float,
    on_ack: Callable[[Fleet, str, float], None] | None = None,
) -> Converged:
    """Wait until a share of the fleet answers from an entry that is in the ledger; it is shown meanwhile.

    Counted are the instances that are live when the waiting begins: call it right after the entry was appended. With a
    moment, they have until `timeout_s` after it.

    Args:
        link: of the chain in `reading`.
        percent: 0 .. 100; of no live instance only 0 is reached.
        on_ack: told of each acknowledgement as it comes: the fleet, the instance's name, a monotonic time in seconds.

    Returns:
        How far it came; the caller ends by its `exit`, and tells of `refusal`.

    Raises:
        Interrupted: Ctrl-C; the entry stays.
    """
    awaited = Awaited.of(link, reading.reader.links)
    try:
        return asyncio.run(converge(work, reading, awaited, percent=percent, timeout_s=timeout_s, on_ack=on_ack))
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"interrupted; seq {awaited.seq} is in the ledger, the fleet was not waited for: see `flaghoist fleet`"
        ) from stop


async def converge(
    work: Workspace,
    reading: Reading,
    awaited: Awaited,
    *,
    percent: int,
    timeout_s: float,
    on_ack: Callable[[Fleet, str, float], None] | None = None,
) -> Converged:
    """Do what `wait_for` does, in a running loop, for anything that can be awaited."""
    with work.desk.progress() as show:
        return await _Convergence(work, reading, awaited, percent, show, on_ack).run(timeout_s)


class _Convergence:
    """One wait: a task follows the acknowledgements, and what it has heard is looked at as it comes."""

    def __init__(
        self,
        work: Workspace,
        reading: Reading,
        awaited: Awaited,
        percent: int,
        show: Progress,
        on_ack: Callable[[Fleet, str, float], None] | None,
    ) -> None:
        self._work = work
        self._awaited = awaited
        self._percent = percent
        self._show = show
        self._on_ack = on_ack
        self._fleet = Fleet(reading.root.log_id)
        self._fleet.ledger = reading.reader.ledger
        self._fleet.note_own()
        self._among: frozenset[str] | None = None  # known once the stream was read to its end
        self._heard = asyncio.Event()
        self._trouble = ""

    async def run(self, timeout_s: float) -> Converged:
        clock_s = asyncio.get_running_loop().time
        began_s = clock_s()
        ahead_s = max(self._awaited.moment_ms - self._work.now_ms(), 0) / 1000
        deadline_s = began_s + ahead_s + timeout_s
        following = asyncio.create_task(self._follow(), name="acknowledgements")
        try:
            while True:
                reached = self._reached()
                self._show(reached.done, reached.live, self._words(reached))
                over = clock_s() >= deadline_s or following.done()
                # Nobody can come to be counted any more once nobody was live.
                hopeless = self._among is not None and not reached.live
                if over or hopeless or (self._among is not None and reached.enough(self._percent)):
                    break
                self._heard.clear()
                try:
                    async with asyncio.timeout(min(_REDRAW_S, max(deadline_s - clock_s(), 0))):
                        await self._heard.wait()
                    await asyncio.sleep(_LOOK_S)
                except TimeoutError:
                    pass
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        enough = reached.enough(self._percent)
        trouble = "" if enough else self._trouble
        if self._among is None and not enough and not trouble:
            trouble = "the log did not answer in time"
        took_s = clock_s() - began_s
        return Converged(self._awaited, self._percent, reached, took_s, trouble, self._differing())

    async def _follow(self) -> None:
        try:
            batches = follow_reliably(self._work.open_log, Stream.ACKS, 0, on_lost=self._lost)
            async with aclosing(batches):
                async for batch in batches:
                    now_ms = self._work.now_ms()
                    for record in batch.records:
                        self._take(record.value, now_ms)
                    if batch.at_end and self._among is None:
                        self._among = self._fleet.live(now_ms)
                    self._trouble = ""
                    self._heard.set()
        except (Unavailable, Misconfigured) as error:
            self._trouble = str(error)
            self._heard.set()

    def _take(self, record: bytes, now_ms: int) -> None:
        member = self._fleet.take(record, now_ms=now_ms, kept=self._among is None)
        if member is not None and self._on_ack is not None:
            self._on_ack(self._fleet, member.name, asyncio.get_running_loop().time())

    def _lost(self, lost: Unavailable) -> None:
        self._trouble = str(lost)

    def _reached(self) -> Reached:
        now_ms, seq, among = self._work.now_ms(), self._awaited.seq, self._among
        if self._awaited.verified_only:
            return self._fleet.reached(seq, now_ms=now_ms, among=among)
        return self._fleet.in_force(seq, now_ms=now_ms, among=among)

    def _words(self, reached: Reached) -> str:
        if self._among is None:
            return "reading what sidecars have acknowledged"
        seq, left_ms = self._awaited.seq, self._awaited.moment_ms - self._work.now_ms()
        if left_ms > 0:
            verified = self._fleet.reached(seq, now_ms=self._work.now_ms(), among=self._among)
            return (
                f"{verified.done} of {verified.live} sidecars have verified seq {seq}; "
                f"it takes effect in {left_ms / 1000:.1f} s"
            )
        has = "have verified" if self._awaited.verified_only else "answer from"
        return f"{reached.done} of {reached.live} sidecars {has} seq {seq}"

    def _differing(self) -> tuple[str, ...]:
        """Who has another state at the same place; entries that came meanwhile were not read here."""
        found = self._fleet.divergence(self._work.now_ms())
        return tuple(sorted({name for each in found if each.what is not Parting.AHEAD for name in each.instances}))
