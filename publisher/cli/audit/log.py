"""`flaghoist audit log`: every entry, and who asked, who approved, which rule allowed it."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

import click

from flaghoist.records import Op
from flaghoist.values import Target
from publisher.audit.account import Account, EntryKind
from publisher.cli.audit.examined import conclude, examine
from publisher.cli.audit.fields import entry_fields, root_signers
from publisher.cli.audit.instant import Instant, InstantType, told
from publisher.cli.desk import Exit
from publisher.cli.workspace import Workspace, operation

Test = Callable[[Account], bool]


@click.command("log")
@click.option("--flag", "flags", multiple=True, metavar="KEY|GLOB",
              help="Entries that change it: KEY, SOURCE#KEY, 'pay.*'. May be given several times.")  # fmt: skip
@click.option(
    "--release",
    metavar="ID",
    help="Entries of a release: its plan, gate, steps and drills, and flags that refer to it.",
)
@click.option("--person", metavar="PERSON|GLOB", help="Entries that somebody asked for, approved, or signed (a root).")
@click.option("--since", type=InstantType(), metavar="TIME", help="Published then or later: 2026-11-22, 7d.")
@click.option("--until", type=InstantType(), metavar="TIME", help="Published then or before; a day counts whole.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in EntryKind]),
    multiple=True,
    help="May be given several times.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@click.option("--reverse", is_flag=True, help="Oldest first.")
@operation(ledger=True)
def log_entries(
    work: Workspace,
    flags: tuple[str, ...],
    release: str | None,
    person: str | None,
    since: Instant | None,
    until: Instant | None,
    kinds: tuple[str, ...],
    limit: int | None,
    reverse: bool,
) -> Exit:
    """List entries, newest first: who asked, who approved, which rule allowed it.

    An entry must pass every filter. Of a rejected entry only people are named whose own signatures hold.

    \b
    Examples:
      flaghoist audit log --since 7d --kind emergency --kind ratification
      flaghoist audit log --flag 'pay.*' --person grace@example.org
      flaghoist audit log --release checkout-v2 --reverse
    """
    examined = examine(work)
    now_ms = work.now_ms()
    tests: list[Test] = []
    if flags:
        tests.append(lambda account: any(_names(op, flag) for op in account.concerned for flag in flags))
    if release is not None:
        tests.append(lambda account: release in account.releases)
    if person is not None:
        tests.append(lambda account: any(fnmatchcase(name, person) for name in account.people()))
    if since is not None:
        tests.append(lambda account: account.entry.published_at >= since.starts_ms(now_ms))
    if until is not None:
        tests.append(lambda account: account.entry.published_at <= until.ends_ms(now_ms))
    if kinds:
        tests.append(lambda account: account.kind in kinds)
    found = list(_chosen(examined.accounts if reverse else reversed(examined.accounts), tests, limit))
    work.desk.result([entry_fields(account) for account in found])
    work.desk.table(
        ("seq", "published", "kind", "requester", "approvers", "policy", "title"),
        [
            (
                str(account.seq),
                told(account.entry.published_at),
                account.kind,
                account.requester or "",
                ", ".join([*account.approvers, *root_signers(account)]),
                _allowed(account),
                _title(account),
            )
            for account in found
        ],
    )
    if not found and not work.desk.as_json:
        work.desk.say(f"no such entry among {len(examined.accounts)}")
    return conclude(work, examined.examination)


def _chosen(accounts: Iterable[Account], tests: list[Test], limit: int | None) -> Iterator[Account]:
    left = limit
    for account in accounts:
        if left == 0:
            return
        if all(test(account) for test in tests):
            yield account
            left = None if left is None else left - 1


def _names(op: Op, pattern: str) -> bool:
    if op.target is not Target.FLAG:
        return False
    return fnmatchcase(f"{op.source}#{op.key}" if "#" in pattern else op.key, pattern)


def _allowed(account: Account) -> str:
    """Return the rule that allowed it; of a step, the entry whose plan it follows."""
    if account.allowed_by is not None:
        return f"plan of seq {account.allowed_by.seq}"
    return account.policy or ""


def _title(account: Account) -> str:
    """Return its title, and what became of the releases that it changed."""
    moves = [] if account.step is not None else account.moves  # a step's title says it
    return f"{account.title} ({'; '.join(moves)})" if moves else account.title
