"""`flaghoist release ramp`: open a release's gate for a share of users or up to a stage, or let it be walked."""

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
@click.argument("goal", metavar="[PERCENT|STAGE]", required=False)
@click.option("--walk", is_flag=True, help="From there on the publisher's service takes the stages by itself.")
@operation(ledger=True, key=True, change=True)
@asking(timed=True)
def ramp(work: Workspace, wording: Wording, told: Asking, name: str, goal: str | None, walk: bool) -> Exit:
    """Open the gate of the release ID for a share of all users, or as far as a stage of its plan.

    It is one change of one gate: all its flags, in all services, go on for the same users. A larger share only adds
    users. The plan is shown before anything is signed; with --dry-run also who would be answered otherwise. What nobody
    else must approve is published at once; else it goes to the inbox.

    \b
    Examples:
      flaghoist release ramp checkout-v2 10%
      flaghoist release ramp checkout-v2 internal --walk
      flaghoist release ramp checkout-v2 50% --in 2s --wait 95%
      flaghoist release ramp checkout-v2 100% --at 2026-11-22T18:00+01:00 --when-acked 95%
      flaghoist release ramp checkout-v2 10% --dry-run --contexts yesterday.jsonl
    """
    if goal is None and not walk:
        raise click.UsageError("want PERCENT or STAGE, or --walk")
    reading = read(work, inbox=told.publish)
    state = find_release(reading.snapshot.releases, name)
    move = hoist.ramp(state, goal, walk=walk)
    # To switch on the walk changes no answer: there is no moment to wait for.
    lead_ms = state.plan.lead_ms if goal is not None else 0
    return carry_out(work, reading, move, wording, told, lead_ms=lead_ms)
