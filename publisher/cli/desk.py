"""Where a command talks to its operator: the result on stdout, the talk on stderr, and how it ends."""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeAlias

import click

from flaghoist.errors import FlaghoistError, LogConflict, Misconfigured, OutcomeUnknown, Refused, StaleBase, Unavailable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Where nothing can be drawn, progress is told this often: a build's log stays short.
PROGRESS_LINE_S: Final = 5.0

# Shows how far something is: how many are done, of how many, and what that is in words.
Progress: TypeAlias = Callable[[int, int, str], None]
# Draws a table again: what stands above it, and its rows.
Redraw: TypeAlias = Callable[[str, Sequence[Sequence[str]]], None]


class Exit(IntEnum):
    """How a command ended; the table for users is in docs/cli.md."""

    OK = 0
    BUG = 1
    USAGE = 2  # the command line or the configuration is wrong
    REFUSED = 10
    CONFLICT = 11  # somebody else was first
    UNAVAILABLE = 12  # not sent
    OUTCOME_UNKNOWN = 13  # sent and not confirmed
    NOT_REACHED = 14  # fewer sidecars than wanted say that they have it
    DIVERGED = 20  # sidecars do not have the same at the same seq
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Interrupted(Exception):
    """Ctrl-C in the middle of sending; the text says what may have happened (click drops a KeyboardInterrupt's own)."""


# Told by code, so that --version need not import the sequencer to know its errors.
_CONFLICT_CODES: Final = frozenset({StaleBase.code, LogConflict.code, "lost_race", "signed_twice", "fenced"})
_NOT_REACHED_CODE: Final = "not_reached"
_DIVERGED_CODE: Final = "diverged"


def exit_of(error: FlaghoistError) -> Exit:
    """Return how a command ends on this error."""
    match error:
        case OutcomeUnknown():
            return Exit.OUTCOME_UNKNOWN
        case Unavailable() if error.code == _NOT_REACHED_CODE:
            return Exit.NOT_REACHED
        case Unavailable():
            return Exit.UNAVAILABLE
        case Misconfigured():
            return Exit.USAGE
        case Refused() if error.code == _DIVERGED_CODE:
            return Exit.DIVERGED
        case Refused() if error.code in _CONFLICT_CODES:
            return Exit.CONFLICT
        case _:
            return Exit.REFUSED


def printable(text: str) -> str:
    """Return text in which control and direction characters are spelled out.

    Titles, reasons and definitions are other people's: an escape sequence or a right-to-left override in one could show
    an approver something else than what is signed.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") else f"\\u{ord(c):04x}" for c in text
    )


def inline(text: str) -> str:
    """Return other people's text as one line, so that it cannot pass for lines of ours."""
    return " ".join(text.split())


class Desk:
    """One command's streams. With `as_json` stdout gets exactly one JSON document and no other text."""

    def __init__(
        self, *, as_json: bool, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
    ):
        self.as_json = as_json
        self.environ = environ
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr
        self.assume_yes = False

    # --- the result ---

    def result(self, document: object, text: str | None = None) -> None:
        """Give the command's result: the document with --json, else the text (nothing when None)."""
        if self.as_json:
            self._write_json(document)
        elif text is not None:
            self.print(text)

    def result_with(self, failure: FlaghoistError, document: Mapping[str, object], text: str | None = None) -> None:
        """Give a result that is not all that was wanted, and say what lacks; --json has it under "error"."""
        if self.as_json:
            told = {"code": failure.code, "message": str(failure), "hint": failure.hint or None}
            self._write_json({**document, "error": told})
            return
        self.result(document, text)
        self.fail(failure.code, str(failure), failure.hint)

    def print(self, text: str) -> None:
        """Print to stdout what a person reads; silent with --json."""
        if not self.as_json:
            print(printable(text), file=self._out)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: drawn on a terminal, plain columns elsewhere; silent with --json."""
        if self.as_json:
            return
        cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
        if self._out.isatty():
            self._console(self._out).print(_drawn(columns, cells))
            return
        everything = [[column.upper() for column in columns], *cells]
        widths = [max(len(row[at]) for row in everything) for at in range(len(columns))]
        for row in everything:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print(line.rstrip(), file=self._out)

    @property
    def redraws(self) -> bool:
        """Whether stdout is a terminal on which a table can be drawn again and again."""
        return not self.as_json and self._out.isatty() and self.environ.get("TERM") != "dumb"

    @contextmanager
    def redrawn(self, columns: Sequence[str]) -> Iterator[Redraw]:
        """Draw one table again and again, in its place; only where it `redraws`."""
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        with Live(console=self._console(self._out), auto_refresh=False, vertical_overflow="crop") as live:

            def draw(head: str, rows: Sequence[Sequence[str]]) -> None:
                cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
                live.update(Group(Text(printable(head)), _drawn(columns, cells)), refresh=True)

            yield draw

    def line(self, document: object, text: str) -> None:
        """Give one of many results, on a line of its own: the document with --json, else the text."""
        print(json.dumps(document) if self.as_json else printable(text), file=self._out, flush=True)

    # --- the talk ---

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show on stderr how far something is: a bar on a terminal, else a line now and then."""
        if not self._err.isatty() or self.environ.get("TERM") == "dumb":
            yield _told_by_lines(self.say)
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console(self._err), transient=True) as bars:
            bar = bars.add_task("", total=None)

            def show(done: int, total: int, words: str) -> None:
                from rich.markup import escape

                bars.update(bar, completed=done, total=total or None, description=escape(printable(words)))

            yield show

    def say(self, text: str) -> None:
        """Tell the operator something on stderr."""
        print(printable(text), file=self._err)

    def warn(self, text: str) -> None:
        print(f"{self._styled('warning:', 'yellow')} {printable(text)}", file=self._err)

    def next_step(self, text: str) -> None:
        """Say what to do next; the last line of a command that worked. Silent with --json."""
        if not self.as_json:
            print(f"{self._styled('next:', 'cyan')} {printable(text)}", file=self._err)

    def show_diff(self, diff: str) -> None:
        """Show a plan's diff on stderr."""
        colours = {"+": "green", "-": "red", "@": "cyan"}
        for line in diff.splitlines():
            text = printable(line)
            print(self._styled(text, colours[line[0]]) if line[:1] in colours else text, file=self._err)

    def confirm(self, question: str) -> bool:
        """Ask for a yes; --yes answers it.

        Raises:
            click.UsageError: there is no terminal to ask, and no --yes.
        """
        if self.assume_yes:
            return True
        if not (sys.stdin.isatty() and self._err.isatty()):
            raise click.UsageError(
                f"{question.rstrip('?')}: no terminal to ask on; give --yes to go on without being asked"
            )
        print(f"{printable(question)} [y/N] ", end="", file=self._err, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
        self.say("nothing was done")
        return False

    # --- the end ---

    def fail(self, code: str, message: str, hint: str | None) -> None:
        """Report how a command failed: `error[code]: message` and a hint, or the one JSON document."""
        if self.as_json:
            self._write_json({"error": {"code": code, "message": message, "hint": hint or None}})
            return
        print(f"{self._styled(f'error[{code}]:', 'red')} {printable(message)}", file=self._err)
        if hint:
            print(f"{self._styled('hint:', 'cyan')} {printable(hint)}", file=self._err)

    def _write_json(self, document: object) -> None:
        # ASCII only: escapes keep a terminal safe and every parser happy.
        print(json.dumps(document, indent=2), file=self._out)

    def _styled(self, text: str, colour: str) -> str:
        if not self._err.isatty() or self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb":
            return text
        return click.style(text, fg=colour)

    def _console(self, stream: TextIO) -> "Console":
        from rich.console import Console

        return Console(file=stream, no_color=bool(self.environ.get("NO_COLOR")))


def _told_by_lines(say: Callable[[str], None]) -> Progress:
    told, told_at_s = "", 0.0

    def show(done: int, total: int, words: str) -> None:
        nonlocal told, told_at_s
        if words != told and (not told or monotonic() - told_at_s >= PROGRESS_LINE_S):
            told, told_at_s = words, monotonic()
            say(words)

    return show


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def json_value(document: bytes | None) -> Any:
    """Return a definition's JSON for a result; None for None."""
    return None if document is None else json.loads(document)
