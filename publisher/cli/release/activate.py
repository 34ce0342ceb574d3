"""`flaghoist release activate`: open a release's gate for everybody."""

import click

from publisher.cli.desk import Exit
from publisher.cli.proposing import Wording
from publisher.cli.reading import read
from publisher.cli.release.moving import Asking, asking, carry_out
from publisher.cli.workspace import Workspace, operation
from publisher.releases import hoist
from publisher.releases.wiring import find_release


@click.command()
@click.argument("name", metavar="ID")
@operation(ledger=True, key=True, change=True)
@asking(timed=True)
def activate(work: Workspace, wording: Wording, told: Asking, name: str) -> Exit:
    """Open the gate of the release ID for everybody: all its flags, in all services, by one change.

    \b
    Examples:
      flaghoist release activate checkout-v2 --in 2s
      flaghoist release activate checkout-v2 --when-acked 95% --in 2s --wait 100%
    """
    reading = read(work, inbox=told.publish)
    state = find_release(reading.snapshot.releases, name)
    return carry_out(work, reading, hoist.activate(state), wording, told, lead_ms=state.plan.lead_ms)
