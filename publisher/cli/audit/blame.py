"""`flaghoist audit blame`: who last changed each line of the definition of a flag, a shared rule or a release."""

from typing import Final

import click

from flaghoist.errors import UnknownFlag
from flaghoist.release_plan import GATE_PREFIX
from flaghoist.snapshot import SHARED
from flaghoist.values import FlagKey, Source, StateId, Target
from publisher.audit.account import Account
from publisher.audit.blame import BlamedLine, Past, blame, history
from publisher.cli.audit.examined import Examined, conclude, examine
from publisher.cli.audit.fields import line
from publisher.cli.audit.instant import told
from publisher.cli.desk import Exit
from publisher.cli.workspace import Workspace, operation

# A column of people is for the eye; --json has all of them.
PEOPLE_CHARS_MAX: Final = 48


@click.command("blame")
@click.argument("key", metavar="FLAG")
@click.option("--evaluator", is_flag=True, help="Blame the shared rule of that name, not a flag.")
@click.option("--release", is_flag=True, help="Blame the release of that name, not a flag.")
@click.option("--deleted", is_flag=True, help="Also a deleted one: its last definition.")
@operation(ledger=True)
def blame_flag(work: Workspace, key: str, evaluator: bool, release: bool, deleted: bool) -> Exit:
    """Show for each line of a definition which entry set it last: its seq, when, who asked and who approved.

    FLAG is KEY or SOURCE#KEY. Lines are told apart by the path of their field, so that one that moved keeps its blame.
    What a publisher's step set is blamed on the step, with the people whose plan it followed.

    \b
    Examples:
      flaghoist audit blame newCheckout
      flaghoist audit blame shop.json#oldCheckout --deleted
      flaghoist audit blame eu-users --evaluator
      flaghoist audit blame checkout-v2 --release
    """
    if evaluator and release:
        raise click.UsageError("want --evaluator or --release, got both")
    target = Target.EVALUATOR if evaluator else Target.RELEASE if release else Target.FLAG
    examined = examine(work)
    state_id = _named(examined, key, target, deleted=deleted)
    pasts = history(examined.accounts, state_id)
    lines = blame(pasts)
    last = pasts[-1]
    gone = last.change.after is None
    work.desk.result(
        {
            "target": state_id.target,
            "source": state_id.source,
            "key": state_id.key,
            "deleted_by": last.account.seq.number if gone else None,
            "lines": [_fields(one) for one in lines],
        },
        "\n".join(_table(lines)),
    )
    if gone and not work.desk.as_json:
        work.desk.say(f"{state_id} was deleted: {line(last.account)}")
    return conclude(work, examined.examination)


def _named(examined: Examined, text: str, target: Target, *, deleted: bool) -> StateId:
    """Return which definition KEY or SOURCE#KEY means: the one that is served, or the only one that there is or was."""
    source, marked, name = text.rpartition("#")
    key = FlagKey(name)
    known = dict.fromkeys(change.op.state_id for account in examined.accounts for change in account.changes)
    there = {state_id for state_id in known if _in_force(examined, state_id)}
    if marked:
        fitting = [state_id for state_id in (StateId(target, Source(source), key),) if state_id in known]
    else:
        fitting = [state_id for state_id in known if state_id.target is target and state_id.key == key]
    found = [state_id for state_id in fitting if state_id in there]
    if len(found) > 1 and target is Target.FLAG:
        served = examined.examination.snapshot.view.flags.get(key)
        found = [state_id for state_id in found if served is not None and state_id.source == served.source]
    if not found and fitting and not deleted:
        raise UnknownFlag(f"{fitting[-1]} is deleted", hint="give --deleted to see its last definition")
    if not found:
        found = fitting
    if not found:
        raise UnknownFlag(
            f"no {target.lower()} {text}, at no time{_alike(name, target, known)}", hint=_hint(name, known)
        )
    if len(found) > 1:
        raise UnknownFlag(f"{text}: want one, got {', '.join(map(str, found))}", hint="name one as SOURCE#KEY")
    return found[0]


def _in_force(examined: Examined, state_id: StateId) -> bool:
    return examined.examination.snapshot.has(state_id)


def _hint(name: str, known: dict[StateId, None]) -> str:
    """Return how to blame what has the name that was given: a gate is made of its release."""
    release = name.removeprefix(GATE_PREFIX)
    if release != name and StateId(Target.RELEASE, SHARED, FlagKey(release)) in known:
        return f"its gate is made of the release: `flaghoist audit blame {release} --release`"
    return UnknownFlag.hint


def _alike(name: str, target: Target, known: dict[StateId, None]) -> str:
    from difflib import get_close_matches

    alike = get_close_matches(name, [str(state_id.key) for state_id in known if state_id.target is target], n=3)
    return f"; did you mean {', '.join(alike)}?" if alike else ""


def _fields(one: BlamedLine) -> dict[str, object]:
    account = one.past.account
    return {
        "line": one.number,
        "text": one.text,
        "path": list(one.path),
        "seq": account.seq.number,
        "published_at": account.entry.published_at,
        "kind": account.kind,
        "requester": account.requester,
        "approvers": account.approvers,
        "title": account.title,
        "allowed_by": account.allowed_by.seq.number if account.allowed_by is not None else None,
    }


def _table(lines: list[BlamedLine]) -> list[str]:
    seqs = [str(one.past.account.seq) for one in lines]
    dates = [told(one.past.account.entry.published_at)[:10] for one in lines]
    names = [_people(one.past) for one in lines]
    numbers = [str(one.number) for one in lines]
    columns = [[cell.ljust(max(map(len, column))) for cell in column] for column in (dates, names)]
    columns.insert(0, [cell.rjust(max(map(len, seqs))) for cell in seqs])
    columns.append([cell.rjust(max(map(len, numbers))) for cell in numbers])
    return [
        f"{seq}  {day}  {who}  {number}) {one.text}" for seq, day, who, number, one in zip(*columns, lines, strict=True)
    ]


def _people(past: Past) -> str:
    account: Account = past.account
    plan = account.allowed_by or account
    approvers = f" ({', '.join(plan.approvers)})" if plan.approvers else ""
    text = f"{plan.requester}{approvers}"
    return text if len(text) <= PEOPLE_CHARS_MAX else f"{text[: PEOPLE_CHARS_MAX - 1]}…"
