"""`flaghoist release revert`: close a release's gate, so that its flags answer exactly as before it opened."""

import click

from publisher.cli.desk import Exit
from publisher.cli.kill import check_words, kill_now
from publisher.cli.proposing import Wording
from publisher.cli.reading import read
from publisher.cli.release.moving import Asking, asking, carry_out
from publisher.cli.workspace import Workspace, operation
from publisher.releases import hoist
from publisher.releases.wiring import find_release, release_state_id


@click.command()
@click.argument("name", metavar="ID")
@click.option("--keep", "kept", multiple=True, metavar="FLAG",
              help="A flag that was changed since the gate opened, and stays as it is now; once for each.")  # fmt: skip
@click.option("--emergency", is_flag=True, help="At once, by your emergency key: no approvals; others ratify it later.")
@operation(ledger=True, key=True, change=True)
@asking(timed=True)
def revert(work: Workspace, wording: Wording, told: Asking, name: str, kept: tuple[str, ...], emergency: bool) -> Exit:
    """Close the gate of the release ID: all its flags, in all services, answer as they did before it opened.

    What other releases and other flags became meanwhile stays. A flag of the release that somebody has changed since
    would not be restored: it is named, and the revert is refused unless --keep says to leave it as it is. So is one
    under an open release that requires this one. With --emergency nothing of that is asked.

    \b
    Examples:
      flaghoist release revert checkout-v2 --reason "error rate of payments" --wait 100%
      flaghoist release revert checkout-v2 --keep newCart
      flaghoist release revert checkout-v2 --emergency --reason "orders fail" --ticket INC-42
    """
    reading = read(work, inbox=told.publish)
    state = find_release(reading.snapshot.releases, name)
    if not emergency:
        return carry_out(work, reading, hoist.revert(reading.snapshot, state, kept), wording, told)
    if told.timing is not None or kept or told.publish or told.contexts is not None or wording.out is not None:
        raise click.UsageError(
            "--emergency: want it without --at, --in, --when-acked, --keep, --publish, --contexts and --out: it takes "
            "effect at once, whatever was changed"
        )
    check_words(wording.reason, wording.ticket)
    wanted = [release_state_id(state.key)]
    return kill_now(work, reading, wanted, wording.reason, wording.ticket, told.timeout_s, told.wait_percent)
