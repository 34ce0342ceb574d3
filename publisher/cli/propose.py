"""`flaghoist import` and `flaghoist propose`: work out a change, show it, sign it, hand it to the approvers."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import click

from flaghoist.codec import TITLE_CHARS_MAX
from flaghoist.document import DEFINITION_BYTES_MAX
from flaghoist.errors import Malformed, Misconfigured, Refused
from flaghoist.values import FlagKey, Source, StateId
from publisher import flagfile
from publisher.cli.desk import Exit
from publisher.cli.governance import Governed, governed
from publisher.cli.proposing import Wording, submit, worded
from publisher.cli.reading import Reading, read
from publisher.cli.workspace import Workspace, operation
from publisher.files import read_limited
from publisher.flagfile import FILE_BYTES_MAX, Json, Syntax
from publisher.plan import (
    Step,
    changed_flag,
    check,
    delete,
    flag_document,
    plan_import,
    pretty_lines,
    put,
    with_governance,
)

# About five seconds of parsing on one core; YAML 1.2 has only a pure Python parser here.
YAML_SLOW_BYTES: Final = 1_000_000


@click.command("import")
@click.argument("file")
@click.option("--source", "source_name", metavar="NAME", help="File the flags under this name; default: FILE's own.")
@click.option("--prune", is_flag=True, help="Also delete what this source has in the ledger and FILE has not.")
@governed
@operation(ledger=True, key=True, change=True)
@worded
def import_file(
    work: Workspace, wording: Wording, file: str, source_name: str | None, prune: bool, governance: Governed
) -> Exit:
    """Propose what a flagd FILE says: JSON, or YAML 1.2; `-` is JSON on stdin.

    Everything in the file is checked first, and only what differs from the ledger is proposed. Flags keep the owner,
    team, safe variant and so on that they have in the ledger; the options for these count for every flag of the file.

    \b
    Examples:
      flaghoist import flags.json
      flaghoist import flags.yaml --source checkout --dry-run
      flaghoist import flags.yaml --team checkout --owner ada@example.org
      render-flags | flaghoist import - --source generated --yes
    """
    data = _file_or_stdin(file, FILE_BYTES_MAX, "flag file")
    source = _source(file, source_name)
    syntax = Syntax.JSON if file == "-" else flagfile.syntax_of(file, data)
    where = "stdin" if file == "-" else file
    if syntax is Syntax.YAML and len(data) > YAML_SLOW_BYTES:
        work.desk.say(f"reading {len(data) / 1e6:.1f} MB of YAML takes a while; JSON would be quicker")
    parsed = flagfile.parse_flag_file(data, source, where=where, syntax=syntax)
    reading = read(work)
    plan = plan_import(parsed, reading.documents, reading.snapshot, where=where, prune=prune, governance=governance)
    verbs = [step.verb for step in plan.steps]
    counts = {"add": verbs.count("add"), "change": verbs.count("change"), "delete": verbs.count("delete")}
    counts["unchanged"] = plan.unchanged
    told = [f"{count} {'' if name == 'unchanged' else 'to '}{name}" for name, count in counts.items()]
    work.desk.say(f"{where} as source {str(source)!r}: {', '.join(told)}")
    if plan.absent and not prune:
        work.desk.say(f"{len(plan.absent)} of this source are in the ledger and not in the file; --prune deletes them")
    if not plan.steps:
        work.desk.result({"proposals": [], **counts}, None)
        work.desk.say("nothing to propose: the ledger has it all")
        return Exit.OK
    if len(plan.batches) > 1:
        work.desk.say(
            f"{len(plan.steps)} changes are more than one proposal may hold: {len(plan.batches)} proposals, "
            "to be published in this order"
        )
    return submit(work, reading, plan.batches, wording, f"import {Path(where).name}", counts)


@click.group()
def propose() -> None:
    """Propose a change of one flag: show it, sign it, put it into the inbox.

    stdout gets the proposal's id. KEY may be SOURCE#KEY when several sources have the key.
    """


@propose.command("set")
@click.argument("key")
@click.option("--variant", metavar="V", help="The new default variant.")
@click.option("--state", type=click.Choice(["enabled", "disabled"]), help="Whether it is served.")
@click.option("--targeting", metavar="FILE|-", help="The new rule as JSON; {} removes it.")
@click.option("--definition", metavar="FILE|-", help="The whole flag, as in a flagd file; makes a new flag too.")
@governed
@operation(ledger=True, key=True, change=True)
@worded
def set_flag(
    work: Workspace,
    wording: Wording,
    key: str,
    variant: str | None,
    state: str | None,
    targeting: str | None,
    definition: str | None,
    governance: Governed,
) -> Exit:
    """Propose new values for the flag KEY. An empty text takes an owner, team and so on away.

    \b
    Examples:
      flaghoist propose set newCheckout --variant on --reason "campaign starts"
      flaghoist propose set newCheckout --targeting rule.json
      flaghoist propose set newCheckout --owner ada@example.org --safe-variant off
      flaghoist propose set newFlag --definition newFlag.json --ticket SHOP-7
    """
    parts = {"variant": variant, "state": state, "targeting": targeting}
    given = [name for name, value in parts.items() if value is not None]
    if (definition is not None and given) or not (definition or given or governance):
        raise click.UsageError(
            "want --definition, or one of --variant, --state and --targeting, or what governs it (--owner, …) at least"
        )
    reading = read(work)
    if definition is not None:
        state_id = reading.flag_named(key)
        document = flag_document(_json_file(definition), reading.documents.current(state_id))
        told = []
    else:
        state_id = reading.find_flag(key)
        current = reading.documents.current(state_id)
        assert current is not None  # noqa: S101 — find_flag returns flags in force
        rule = None if targeting is None else _json_file(targeting)
        document = changed_flag(
            current,
            variant=variant,
            state=state.upper() if state else None,
            targeting=rule,
            retarget=targeting is not None,
        )
        told = [f"{name} {value}" if name != "targeting" else name for name, value in parts.items() if value]
    document = with_governance(document, governance)
    told += [f"{name} {_told(value)}" for name, value in governance.items()]
    title = f"set {state_id}{': ' if told else ''}{', '.join(told)}"[:TITLE_CHARS_MAX]
    return _submit_one(work, reading, state_id, put(reading.documents, state_id, document), wording, title)


def _told(value: object) -> str:
    return "none" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


@propose.command()
@click.argument("key")
@operation(ledger=True, key=True, change=True)
@worded
def edit(work: Workspace, wording: Wording, key: str) -> Exit:
    """Edit the flag KEY in $EDITOR and propose the result.

    A refused edit is opened again with the error on top; leaving the file unchanged gives up.
    """
    reading = read(work)
    state_id = reading.find_flag(key)
    document = _edited(work, reading, state_id)
    if document is None:
        work.desk.say("unchanged: nothing to propose")
        work.desk.result({"proposals": [], "unchanged": 1}, None)
        return Exit.OK
    return _submit_one(work, reading, state_id, put(reading.documents, state_id, document), wording, f"edit {state_id}")


@propose.command("delete")
@click.argument("key")
@operation(ledger=True, key=True, change=True)
@worded
def delete_flag(work: Workspace, wording: Wording, key: str) -> Exit:
    """Propose to delete the flag KEY: clients then get their own default."""
    reading = read(work)
    state_id = reading.find_flag(key)
    step = delete(reading.documents, state_id)
    return _submit_one(work, reading, state_id, step, wording, f"delete {state_id}")


def _submit_one(
    work: Workspace, reading: Reading, state_id: StateId, step: Step | None, wording: Wording, title: str
) -> Exit:
    if step is None:
        work.desk.say(f"nothing to propose: {state_id} is so already (seq {reading.documents.version(state_id)})")
        work.desk.result({"proposals": [], "unchanged": 1}, None)
        return Exit.OK
    return submit(work, reading, [[step]], wording, title, {step.verb: 1})


def _file_or_stdin(name: str, limit_bytes: int, what: str) -> bytes:
    return read_limited(Path("/dev/stdin") if name == "-" else Path(name), limit_bytes=limit_bytes, what=what)


def _source(file: str, given: str | None) -> Source:
    name = given if given is not None else "" if file == "-" else Path(file).name
    try:
        return Source(name)
    except Malformed as error:
        raise click.UsageError(f"{error}; name it with --source") from error


def _json_file(name: str) -> Json:
    data = _file_or_stdin(name, DEFINITION_BYTES_MAX, "file")
    where = "stdin" if name == "-" else name
    return flagfile.parse_document(
        data, where=where, syntax=Syntax.JSON if name == "-" else flagfile.syntax_of(name, data)
    )


# --- the editor ---


def _edited(work: Workspace, reading: Reading, state_id: StateId) -> bytes | None:
    """Return the definition that comes back from the editor; None when it was left as it was."""
    current = reading.documents.current(state_id)
    original = "\n".join([*pretty_lines(current), ""])
    text, fault = original, ""
    with tempfile.TemporaryDirectory(prefix="flaghoist-") as directory:
        path = Path(directory) / f"{FlagKey(state_id.key).replace(':', '-')}.json"
        while True:
            path.write_text(_with_fault(text, fault), encoding="utf-8")
            _run_editor(work, path)
            came = _without_comments(read_limited(path, limit_bytes=DEFINITION_BYTES_MAX, what="edited flag"))
            if came.strip() == original.strip() or (fault and came.strip() == text.strip()):
                if fault:
                    raise Refused(f"edit of {state_id} given up: {fault}", hint="nothing was proposed")
                return None
            try:
                return _checked(came, reading, state_id)
            except Refused as refusal:
                text, fault = came, str(refusal)


def _checked(text: str, reading: Reading, state_id: StateId) -> bytes:
    value = flagfile.parse_document(text.encode(), where=str(state_id), syntax=Syntax.JSON)
    document = flag_document(value, reading.documents.current(state_id))
    if step := put(reading.documents, state_id, document):
        check(reading.snapshot, [[step]])
    return document


def _with_fault(text: str, fault: str) -> str:
    if not fault:
        return text
    return "".join(f"// {line}\n" for line in (*fault.splitlines(), "Save it unchanged to give up.")) + text


def _without_comments(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").splitlines()
    while lines and lines[0].startswith("//"):
        lines.pop(0)
    return "\n".join(lines) + "\n"


def _run_editor(work: Workspace, path: Path) -> None:
    environ = work.desk.environ
    editor = environ.get("VISUAL") or environ.get("EDITOR") or work.settings.editor or "vi"
    try:
        ended = subprocess.run([*shlex.split(editor), str(path)], check=False)  # noqa: S603 — the operator's own choice
    except (OSError, ValueError) as error:
        raise Misconfigured(f"editor {editor!r}: cannot be run: {error}", hint="set EDITOR") from error
    if ended.returncode != 0:
        raise Misconfigured(f"editor {editor!r}: ended with {ended.returncode}", hint="nothing was proposed")
