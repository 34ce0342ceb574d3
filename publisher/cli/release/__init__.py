"""`flaghoist release`: flags of many services that are made, ramped, activated, reverted and cleaned up as one unit."""

import importlib
from collections.abc import Mapping
from typing import Final

import click
from click.shell_completion import CompletionItem

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


class LazyGroup(click.Group):
    """The commands on releases; COMMANDS says which."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            alike = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {alike[0]!r}?" if alike else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(n, help=line) for n, (_, line) in COMMANDS.items() if n.startswith(incomplete)]


@click.group(cls=LazyGroup)
def release() -> None:
    """Make, look at and move releases: flags of many services as one unit.

    \b
    A release has one gate, and its flags go through it: one change of the gate changes all of them.
      flaghoist release create release.yaml
      flaghoist release plan checkout-v2
      flaghoist release show checkout-v2
    """
