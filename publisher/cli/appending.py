"""How a command gets an entry into the ledger: by the publisher's service at work, or by this machine's own key."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from flaghoist.errors import FlaghoistError, LogMissing, OutcomeUnknown, Refused, Unavailable
from flaghoist.freshness import Heartbeats, Proof
from flaghoist.log.base import Stream, read_to_end
from flaghoist.root import Root
from flaghoist.signing import Signer
from flaghoist.values import Role
from publisher.cli.desk import Interrupted
from publisher.cli.reading import Reading
from publisher.cli.workspace import Workspace
from publisher.heart import BEAT_KEY, Heart, is_of_a_service, once
from publisher.journal import Journal
from publisher.sequencer import Sequencer

# A service appends within a second; a standby takes over within half a minute.
WAIT_S_DEFAULT: Final = 30

T = TypeVar("T")


def service_at_work(work: Workspace, reading: Reading) -> str | None:
    """Return the name of the publisher's service that is at work, here or elsewhere; None when there is none.

    Elsewhere it is known by its heartbeats; those of a command that publishes once tell of no service.

    Raises:
        Unavailable: the log.
    """
    if pid := Journal.service_at(work.home.journals, reading.root.log_id):
        return f"process {pid} on this machine"
    beats = Heartbeats(reading.reader.ledger)
    if not beats.expected:
        return None

    async def heard() -> None:
        async with work.open_log(Stream.META) as log:
            async for record in read_to_end(log):
                beats.receive(record.value, now_ms=work.now_ms())

    try:
        asyncio.run(heard())
    except LogMissing:
        return None  # made before there were heartbeats
    if beats.newest is None or beats.standing(now_ms=work.now_ms()).proof not in (Proof.FRESH, Proof.LAGGING):
        return None
    return beats.newest.holder if is_of_a_service(beats.newest) else None


@asynccontextmanager
async def sequencer_here(work: Workspace, reading: Reading, signer: Signer) -> AsyncIterator[Sequencer]:
    """Hold this machine's lease, and yield a sequencer that goes on where the reading stopped; beat once on leaving.

    Raises:
        Unavailable: another process holds the lease; or the log.
    """
    heart = heart_here(work, reading.root)
    with Journal.open(work.home.journals, reading.root.log_id) as journal:
        async with work.open_log(Stream.LEDGER) as log:
            # What was verified a moment ago need not be verified again.
            reading.reader.log = log
            sequencer = Sequencer(reading.reader, journal, signer, holder=work.holder(), clock_ms=work.now_ms)
            yield sequencer
            if heart is not None:
                await beat_once(work, reading, sequencer, heart)


def heart_here(work: Workspace, root: Root) -> Heart | None:
    """Return what beats once, if a heartbeat key is here and nobody need be asked for its passphrase.

    Where no service runs, sidecars then know for the life of one heartbeat that they have the newest entry.
    """
    fitting = [k for k in work.keyring.of_files() if k.key_id in root.grant(Role.HEARTBEAT).key_ids]
    if len(fitting) != 1 or not work.has_passphrase:
        return None
    try:
        return Heart(fitting[0].open(), holder=once(work.holder()))
    except FlaghoistError:
        return None  # its passphrase is another one: the change matters more


async def beat_once(work: Workspace, reading: Reading, sequencer: Sequencer, heart: Heart) -> None:
    """Say what the head is now; the change is in the ledger, whether or not this can be said."""
    try:
        read_from_ms = work.now_ms()
        await sequencer.catch_up()
        if sequencer.holds_epoch and heart.may_beat(reading.reader.ledger, now_ms=work.now_ms()):
            async with work.open_log(Stream.META) as meta:
                await meta.append(heart.beat(reading.reader.ledger, issued_at=read_from_ms), key=BEAT_KEY)
    except (Unavailable, Refused) as error:
        work.desk.warn(f"no heartbeat was issued: {error}")


def wait_for(
    work: Workspace, reading: Reading, find: Callable[[], T | None], *, wait_s: float, what: str, look: str
) -> T:
    """Read the ledger on until it has what is awaited, and return it.

    Args:
        find: looks into what was read so far.
        wait_s: seconds.
        what: is awaited, for people.
        look: the command that shows whether it came later.

    Raises:
        OutcomeUnknown: it was not there in time; it may still come.
        BrokenChain, NotUnderstood, Unavailable: as LedgerReader.
    """

    async def follow() -> T | None:
        async with work.open_log(Stream.LEDGER) as log:
            reading.reader.log = log
            try:
                async with asyncio.timeout(wait_s), aclosing(log.follow(reading.reader.position)) as batches:
                    async for _ in batches:
                        await reading.reader.catch_up()
                        if (found := find()) is not None:
                            return found
            except TimeoutError:
                pass
        return None

    try:
        found = asyncio.run(follow())
    except KeyboardInterrupt as stop:
        raise Interrupted(f"interrupted; {what} was sent, and may still be appended: look with `{look}`") from stop
    if found is None:
        raise OutcomeUnknown(
            f"{what}: sent, and not in the ledger after {wait_s:g} s",
            hint=f"is a publisher running? Look with `{look}`; sent once is enough, and to send it again does no harm",
        )
    return found
