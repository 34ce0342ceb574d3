"""`flaghoist audit diff`: what differs between the flags at two seqs."""

import re

import click

from flaghoist.values import Seq
from publisher.audit.difference import Delta, difference
from publisher.audit.wording import canonical, diff
from publisher.cli.audit.examined import Examined, conclude, examine
from publisher.cli.audit.fields import line
from publisher.cli.desk import Exit, inline
from publisher.cli.workspace import Workspace, operation

_SPAN = re.compile(r"([0-9]{0,18})(\.\.)?([0-9]{0,18})\Z")


@click.command("diff")
@click.argument("span", metavar="SEQ..SEQ")
@click.option("--words", "only_words", is_flag=True, help="Without the diffs of JSON.")
@operation(ledger=True)
def diff_states(work: Workspace, span: str, only_words: bool) -> Exit:
    """Show which flags, evaluators and releases differ between the states at two seqs.

    SEQ.. ends at the newest entry, ..SEQ begins before the first, and SEQ alone is what this one entry changed. What
    was changed and changed back does not differ. With the newer seq first it is told backwards.

    \b
    Examples:
      flaghoist audit diff 12..20
      flaghoist audit diff 12.. --words
      flaghoist audit diff 15 --json
    """
    examined = examine(work)
    old, new = _span(span, examined)
    deltas = difference(examined.accounts, old, new)
    told = [text for delta in deltas for text in _lines(examined, delta, old, new, only_words=only_words)]
    work.desk.result(
        {"from": old.number, "to": new.number, "changes": [_fields(delta) for delta in deltas]},
        "\n".join(told) or None,
    )
    if not work.desk.as_json:
        counts = [f"{sum(d.verb == verb for d in deltas)} {verb}" for verb in ("added", "changed", "removed")]
        work.desk.say(f"seq {old} to {new}: {', '.join(counts)}")
    return conclude(work, examined.examination)


def _span(text: str, examined: Examined) -> tuple[Seq, Seq]:
    match = _SPAN.match(text)
    if match is None or not (match[1] or match[3]) or (match[2] is None and match[3]):
        raise click.UsageError(f"want SEQ..SEQ, SEQ.., ..SEQ or SEQ, got {text!r}")
    if match[2] is None:
        seq = examined.account_at(Seq(int(match[1]))).seq
        return Seq(seq.number - 1), seq
    old = Seq(int(match[1])) if match[1] else Seq(0)
    new = Seq(int(match[3])) if match[3] else examined.head
    for seq in (old, new):
        if seq != Seq(0):
            examined.account_at(seq)
    return old, new


def _fields(delta: Delta) -> dict[str, object]:
    return {
        "target": delta.state_id.target,
        "source": delta.state_id.source,
        "key": delta.state_id.key,
        "change": delta.verb,
        "words": delta.words(),
        "before": canonical(delta.before),
        "after": canonical(delta.after),
        "seqs": [seq.number for seq in delta.seqs],
    }


def _lines(examined: Examined, delta: Delta, old: Seq, new: Seq, *, only_words: bool) -> list[str]:
    name = str(delta.state_id)
    said = [f"{delta.verb} {name}"]
    said += [f"    {inline(word)}" for word in delta.words()]
    said += [f"    by {line(examined.account_at(seq))}" for seq in delta.seqs]
    if not only_words:
        shown = diff(delta.before, delta.after, old=f"{name} (seq {old})", new=f"{name} (seq {new})")
        said += [f"    {text}" for text in shown.split("\n")]
    return said
