"""`flaghoist release pause` and `resume`: hold up the walk of a release through its stages, and let it go on."""

from collections.abc import Callable

import click

from flaghoist.release_state import ReleaseState
from publisher.cli.desk import Exit
from publisher.cli.proposing import Wording
from publisher.cli.reading import read
from publisher.cli.release.moving import Asking, asking, carry_out
from publisher.cli.workspace import Workspace, operation
from publisher.releases import hoist
from publisher.releases.hoist import Move
from publisher.releases.wiring import find_release


@click.command()
@click.argument("name", metavar="ID")
@operation(ledger=True, key=True, change=True)
@asking(timed=False)
def pause(work: Workspace, wording: Wording, told: Asking, name: str) -> Exit:
    """Hold up the walk of the release ID where it is; nobody's answers change.

    \b
    Examples:
      flaghoist release pause checkout-v2 --reason "error rate of payments"
    """
    return _move(work, wording, told, name, hoist.pause)


@click.command()
@click.argument("name", metavar="ID")
@operation(ledger=True, key=True, change=True)
@asking(timed=False)
def resume(work: Workspace, wording: Wording, told: Asking, name: str) -> Exit:
    """Let the paused walk of the release ID go on. The soak of the stage that it is in starts anew.

    \b
    Examples:
      flaghoist release resume checkout-v2
    """
    return _move(work, wording, told, name, hoist.resume)


def _move(work: Workspace, wording: Wording, told: Asking, name: str, act: Callable[[ReleaseState], Move]) -> Exit:
    reading = read(work, inbox=told.publish)
    return carry_out(work, reading, act(find_release(reading.snapshot.releases, name)), wording, told)
