"""`flaghoist audit`: the whole ledger, for people and for machines; and the proof that it is whole."""

import click

from publisher.cli.audit.blame import blame_flag
from publisher.cli.audit.diff import diff_states
from publisher.cli.audit.evaluate import evaluate_at
from publisher.cli.audit.export import export_events
from publisher.cli.audit.log import log_entries
from publisher.cli.audit.show import show_entry
from publisher.cli.audit.verify import verify_ledger


@click.group()
def audit() -> None:
    """Show, search and verify the whole ledger.

    Every command reads the ledger from its first entry and verifies each record as sidecars do. Where the chain
    breaks, it tells what was verified up to there, and ends with 10.
    """


for command in (
    log_entries,
    show_entry,
    verify_ledger,
    diff_states,
    blame_flag,
    evaluate_at,
    export_events,
):
    audit.add_command(command)
