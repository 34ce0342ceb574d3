"""The operators' command `flaghoist`: this module starts it, and loads a command's code only when it is run."""

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import click
from click.shell_completion import CompletionItem

from flaghoist import __version__
from flaghoist.errors import FlaghoistError
from publisher.cli.desk import Desk, Exit, Interrupted, exit_of

# Name, module:attribute, one line of help: what `flaghoist --help` shows without importing any of them.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "init": ("publisher.cli.init:init", "Make a ledger and its root, and pin it on this machine."),
    "key": ("publisher.cli.key:key", "Make and show keys."),
    "root": ("publisher.cli.root:root", "Show, pin, propose, sign and publish roots: who may do what."),
    "policy": ("publisher.cli.policy:policy", "Check, test and show policies: what a change needs."),
    "import": ("publisher.cli.propose:import_file", "Propose what a flagd file (JSON or YAML) says."),
    "propose": ("publisher.cli.propose:propose", "Propose a change of one flag."),
    "pending": ("publisher.cli.decide:pending", "List the proposals that wait."),
    "approve": ("publisher.cli.decide:approve", "Approve, or reject, somebody else's proposal."),
    "publish": ("publisher.cli.publish:publish", "Put an approved proposal into the ledger."),
    "publisher": ("publisher.cli.publisher:publisher", "Run the service that appends what people have signed."),
    "kill": ("publisher.cli.kill:kill", "Turn flags to their safe variants, at once, by an emergency key."),
    "fleet": ("publisher.cli.fleet:fleet", "Show how far each sidecar is, and who disagrees."),
    "flag": ("publisher.cli.flag:flag", "List, show and evaluate flags."),
    "release": ("publisher.cli.release:release", "Make, ramp, revert and look at releases: flags as one unit."),
    "export": ("publisher.cli.export:export", "Write the flags as a file that flagd serves."),
    "history": ("publisher.cli.flag:history", "Show every change of one flag."),
    "audit": ("publisher.cli.audit:audit", "Show and verify the whole ledger."),
    "restore": ("publisher.cli.restore:restore", "Put a lost or cut ledger back from what sidecars have kept."),
    "doctor": ("publisher.cli.doctor:doctor", "Check this machine and its ledger, and say what to do."),
    "demo": ("publisher.demo:demo", "Show the whole story on a ledger of its own."),
    "completion": ("publisher.cli.completion:completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A group that loads a command's code only when that is run; `table` says what is below, as COMMANDS does."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            from difflib import get_close_matches

            alike = get_close_matches(args[0], self.table, n=1)
            hint = f"; did you mean {alike[0]!r}?" if alike else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it, which would exit with 1: a bug's code here
            return _reader_left()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(n, help=line) for n, (_, line) in self.table.items() if n.startswith(incomplete)]


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="flaghoist", message="%(prog)s %(version)s")
def cli() -> None:
    """Feature flags as signed, ordered, audited events.

    \b
    One person proposes, another approves, the publisher appends to the ledger,
    and every sidecar verifies and serves it:
      flaghoist propose set newCheckout --variant on
      flaghoist approve 01J9Z3
      flaghoist publish 01J9Z3
    """


def main(args: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code (Exit); every error ends here, once."""
    arguments = list(sys.argv[1:] if args is None else args)
    desk = Desk(as_json="--json" in arguments, environ=os.environ if environ is None else environ)
    try:
        returned: Any = cli.main(arguments, prog_name="flaghoist", standalone_mode=False, obj=desk)
        sys.stdout.flush()
        return int(returned or Exit.OK)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return Exit.USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "flaghoist"
        desk.fail("usage", error.format_message(), f"see `{path} --help`")
        return Exit.USAGE
    except click.ClickException as error:
        desk.fail("usage", error.format_message(), None)
        return Exit.USAGE
    except FlaghoistError as error:
        desk.fail(error.code, str(error), error.hint)
        return exit_of(error)
    except Interrupted as stop:
        desk.fail("interrupted", str(stop), None)
        return Exit.INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        # Where something is sent, Interrupted says more.
        desk.fail("interrupted", "interrupted; nothing was sent", None)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:  # noqa: BLE001 — the last resort: a bug must not look like an answer
        return _report_bug(desk, error)


def _reader_left() -> Exit:
    """The reader of our output (head, a pager) has left: no error of ours; and the exit must not flush into it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return Exit.OK


def _report_bug(desk: Desk, error: Exception) -> Exit:
    if desk.environ.get("FLAGHOIST_DEBUG") == "1":
        traceback.print_exception(error)
    desk.fail(
        "bug",
        f"this is a bug in Flaghoist {__version__}: {type(error).__name__}: {error}",
        "run it again with FLAGHOIST_DEBUG=1 and report what it prints; look through it for anything private first",
    )
    return Exit.BUG
