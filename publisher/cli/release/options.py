"""The options that say what a release should be; with a file, they win over what it says."""

import functools
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import click

from flaghoist.codec import REASON_CHARS_MAX
from flaghoist.document import JsonValue, date_in, person_in, text_in
from flaghoist.errors import BadDefinition, Malformed
from flaghoist.release_plan import TITLE_CHARS_MAX
from flaghoist.values import FlagKey
from publisher import flagfile
from publisher.cli.desk import Exit
from publisher.cli.proposing import EXPIRES_DEFAULT, Wording
from publisher.cli.times import Span
from publisher.cli.workspace import Command, Workspace
from publisher.files import read_limited
from publisher.flagfile import BadFile, Syntax
from publisher.releases.file import (
    FILE_BYTES_MAX,
    NO_WISH,
    FlagWish,
    ReleaseWish,
    audience_in,
    flag_name,
    lead_in,
    parse_release_file,
    pattern_in,
    release_id,
    stages_in,
)

_ENDINGS = (".yaml", ".yml", ".json")


def described(command: Command) -> Command:
    """Give a command the options of a release, as one ReleaseWish, and what its proposal says, as one Wording."""

    @functools.wraps(command)
    def run(work: Workspace, reason: str, expires_in: int, out: Path | None, **values: Any) -> Exit | None:
        if len(reason) > REASON_CHARS_MAX:
            raise click.UsageError(f"--reason: want at most {REASON_CHARS_MAX} characters, got {len(reason)}")
        wish = _wish({name: values.pop(name) for name in _READERS})
        return command(work, Wording(None, reason, wish.ticket or None, expires_in, out), wish=wish, **values)

    decorated: Command = run
    for option in reversed((
        click.option("--flag", "flags", multiple=True, metavar="KEY[=V]", help="A flag, SOURCE#KEY too, and the "
                     "variant that it is turned on to; once for each."),
        click.option("--pattern", metavar="TEXT", help="Make one flag a service, named so: '{service}.{release}'."),
        click.option("--service", "services", multiple=True, metavar="NAME", help="A service that it concerns; once "
                     "for each. Default: those that its flags name."),
        click.option("--title", metavar="TEXT", help="One line: what is released."),
        click.option("--owner", metavar="PERSON", help="Who answers for it."),
        click.option("--team", metavar="TEAM", help="Whose it is."),
        click.option("--stage", "stages", multiple=True, metavar="[NAME=]WHO[:SOAK]", help="A stage; once for each, "
                     "in order: 1%:1h, half=50%:2d, internal=audience:1h, audience+1%."),
        click.option("--audience", metavar="JSON|@FILE", help="The rule that says who is let in first."),
        click.option("--requires", multiple=True, metavar="ID", help="A release that must be active for everybody."),
        click.option("--bucket-by", metavar="ATTRIBUTE", help="What of the context decides who is among a share; "
                     "default: targetingKey."),
        click.option("--salt", metavar="TEXT", help="What the buckets depend on besides; default: the id. Releases "
                     "of one salt choose the same users."),
        click.option("--lead", metavar="SPAN", help="How long after its entry a stage takes effect, everywhere at "
                     "one moment: 2s."),
        click.option("--ticket", metavar="TEXT", help="Where it, and its cleanup, are tracked."),
        click.option("--expires", metavar="DATE", help="When its flags should be gone: 2027-03-31."),
        click.option("--reason", default="", metavar="TEXT", help="Why; everybody can read it in the ledger."),
        click.option("--expires-in", type=Span(), default=EXPIRES_DEFAULT, show_default=True, metavar="SPAN",
                     help="How long the proposal may wait: 12h, 7d."),
        click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
                     help="Write the signed proposal here, not into the inbox."),
    )):  # fmt: skip
        decorated = option(decorated)
    return decorated


def is_file(name: str) -> bool:
    """Say whether an argument names a release file, rather than a release."""
    return name == "-" or name.endswith(_ENDINGS) or Path(name).is_file()


def read_release_file(name: str) -> ReleaseWish:
    """Return what a release file wishes for; `-` is stdin, as YAML, of which JSON is a part.

    Raises:
        Misconfigured: it cannot be read.
        BadFile: with every fault.
    """
    path = Path("/dev/stdin") if name == "-" else Path(name)
    data = read_limited(path, limit_bytes=FILE_BYTES_MAX, what="release file")
    where = "stdin" if name == "-" else name
    return parse_release_file(data, where=where, syntax=flagfile.syntax_of(name, data))


def today(work: Workspace) -> date:
    """Return the day by this machine's clock, UTC."""
    return datetime.fromtimestamp(work.now_ms() / 1000, UTC).date()


def id_in(text: str) -> FlagKey:
    """Return a release's id from the command line.

    Raises:
        click.UsageError: odd characters.
    """
    try:
        return release_id(text, "ID")
    except BadDefinition as refusal:
        raise click.UsageError(str(refusal)) from refusal


def _wish(given: dict[str, Any]) -> ReleaseWish:
    """Return what options wish for; an empty text takes a field away."""
    try:
        said = {
            name: read(value)
            for option, (name, read) in _READERS.items()
            if (value := given[option]) is not None and value != ()
        }
    except BadFile as fault:
        raise click.UsageError("; ".join(fault.problems)) from fault
    except (BadDefinition, Malformed) as refusal:
        raise click.UsageError(f"{refusal}{f' ({refusal.hint})' if refusal.hint else ''}") from refusal
    return ReleaseWish(**said) if said else NO_WISH


def _text(option: str) -> Callable[[str], str]:
    return lambda text: text_in(text, option, TITLE_CHARS_MAX)


def _flag(text: str) -> FlagWish:
    name, _, on = text.partition("=")
    return FlagWish(flag_name(name, "--flag"), on=on or None, where=f"--flag {text}")


def _audience(text: str) -> JsonValue:
    if not text:
        return {}  # no rule: it takes the audience away
    if text.startswith("@"):
        data = read_limited(Path(text[1:]), limit_bytes=FILE_BYTES_MAX, what="audience")
        value = flagfile.parse_document(data, where=text[1:], syntax=flagfile.syntax_of(text[1:], data))
    else:
        value = flagfile.parse_document(text.encode(), where="--audience", syntax=Syntax.JSON)
    return audience_in(value, "--audience")


# Option: the field of a wish, and what reads it.
_READERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    **{name: (name, _text(f"--{name.replace('_', '-')}")) for name in ("team", "title", "bucket_by", "salt", "ticket")},
    "owner": ("owner", lambda text: person_in(text, "--owner")),
    "expires": ("expires_at", lambda text: date_in(text, "--expires") if text else ""),
    "services": ("services", lambda names: tuple(name for name in names if name)),
    "requires": ("requires", lambda names: tuple(release_id(name, "--requires") for name in names if name)),
    "flags": ("flags", lambda texts: tuple(_flag(text) for text in texts)),
    "stages": ("stages", lambda texts: stages_in([text for text in texts if text], "--stage")),
    "pattern": ("pattern", lambda text: pattern_in(text, "--pattern")),
    "lead": ("lead_ms", lambda text: lead_in(0 if text in ("", "0") else text, "--lead")),
    "audience": ("audience", _audience),
}
