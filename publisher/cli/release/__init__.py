"""`flaghoist release`: flags of many services that are made, ramped, activated, reverted and cleaned up as one unit."""

from collections.abc import Mapping
from typing import Final

import click

from publisher.cli import LazyGroup

# Name, module:attribute, one line of help: what `flaghoist release --help` shows without importing any of them.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "create": ("publisher.cli.release.create:create", "Propose a release, with the wiring of its flags."),
    "edit": ("publisher.cli.release.edit:edit", "Propose another plan: flags, stages, owner, and so on."),
    "list": ("publisher.cli.release.show:list_releases", "List the releases and how they stand."),
    "show": ("publisher.cli.release.show:show", "Show one release: plan, gate, flags, people, what is next."),
    "plan": ("publisher.cli.release.plan:plan", "Say in words what each stage changes, and what it takes."),
    "diff": ("publisher.cli.release.history:diff", "Compare a release and its flags at two points of the ledger."),
    "history": ("publisher.cli.release.history:history", "Show everything that ever happened to a release."),
    "ramp": ("publisher.cli.release.ramp:ramp", "Open the gate for a share of users, or up to a stage; walk it."),
    "activate": ("publisher.cli.release.activate:activate", "Open the gate for everybody."),
    "revert": ("publisher.cli.release.revert:revert", "Close the gate: all flags answer as before it opened."),
    "pause": ("publisher.cli.release.walk:pause", "Hold up the walk through the stages."),
    "resume": ("publisher.cli.release.walk:resume", "Let a paused walk go on."),
    "drill": ("publisher.cli.release.drill:drill", "Rehearse a revert: measure how soon the fleet has it."),
    "delete": ("publisher.cli.release.delete:delete", "Propose to take a closed release and its wiring away."),
}


class ReleaseGroup(LazyGroup):
    """The commands on releases."""

    table = COMMANDS


@click.group(cls=ReleaseGroup)
def release() -> None:
    """Make, look at and move releases: flags of many services as one unit.

    \b
    A release has one gate, and its flags go through it: one change of the gate changes all of them.
      flaghoist release create release.yaml
      flaghoist release plan checkout-v2
      flaghoist release show checkout-v2
    """
