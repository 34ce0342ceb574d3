"""`flaghoist completion`: the script that makes a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from publisher.cli.desk import Exit


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> Exit:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(flaghoist completion bash)
      flaghoist completion zsh > "${fpath[1]}/_flaghoist"
      flaghoist completion fish > ~/.config/fish/completions/flaghoist.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 — click has all three
    top = context.find_root().command
    click.echo(kind(top, {}, "flaghoist", "_FLAGHOIST_COMPLETE").source())
    return Exit.OK
