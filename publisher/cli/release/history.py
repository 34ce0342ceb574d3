"""`flaghoist release history` and `flaghoist release diff`: what happened to a release, and what differs between two
points of the ledger."""

import re

import click

from flaghoist.release_plan import ReleasePlan, parse_release
from flaghoist.values import Seq, StateId, Target
from publisher.cli.desk import Exit, inline, json_value
from publisher.cli.reading import Reading, read
from publisher.cli.release.options import id_in
from publisher.cli.times import moment
from publisher.cli.workspace import Workspace, operation
from publisher.plan import definition_diff
from publisher.releases.chronicle import Event, chronicle
from publisher.releases.wiring import find_release, release_state_id
from publisher.releases.wording import moved

_SPAN = re.compile(r"([0-9]{1,18})?(\.\.)?([0-9]{1,18})?\Z")


@click.command()
@click.argument("name", metavar="ID")
@operation(ledger=True)
def history(work: Workspace, name: str) -> Exit:
    """Show every entry that concerns the release ID, oldest first: when, what, who asked, who approved, by which rule.

    A step names the entry that allowed it, and that one the steps that it led to. It works for deleted releases too.
    """
    reading = read(work)
    key = id_in(name)
    events = chronicle(reading.reader.links, key)
    if not events:
        find_release(reading.snapshot.releases, name)  # says that there is none
    led_to = {event.seq: [e.seq.number for e in events if e.allowed_by == event.seq] for event in events}
    work.desk.result([{**event.fields(), "steps": led_to[event.seq]} for event in events])
    for event in events:
        for line in _lines(event, led_to[event.seq]):
            work.desk.print(line)
    return Exit.OK


def _lines(event: Event, steps: list[int]) -> list[str]:
    said = [f"seq {event.seq}  {moment(event.published_at)}  {event.what}"]
    said.append(f"    {event.people()}{f' (rule {event.rule})' if event.rule else ''}")
    if event.in_force_at_ms is not None and event.in_force_at_ms != event.published_at:
        said.append(f"    in force from {moment(event.in_force_at_ms)}")
    if event.authorized is not None and event.authorized.proposal.reason:
        said.append(f"    reason: {inline(event.authorized.proposal.reason)}")
    if steps:
        said.append(f"    steps that it led to: seq {', '.join(map(str, steps))}")
    return said


@click.command()
@click.argument("name", metavar="ID")
@click.argument("span", metavar="SEQ[..SEQ]")
@operation(ledger=True)
def diff(work: Workspace, name: str, span: str) -> Exit:
    """Show what differs between two points of the ledger: the release ID, and the flags that it had at either.

    SEQ.. ends at the newest entry, ..SEQ begins before the first, and SEQ alone is what this one entry changed.

    \b
    Examples:
      flaghoist release diff checkout-v2 12..20
      flaghoist release diff checkout-v2 12..
    """
    reading = read(work)
    key = id_in(name)
    state_id = release_state_id(key)
    if state_id not in reading.documents.changes:
        find_release(reading.snapshot.releases, name)  # says that there is none
    old, new = _span(span, reading)
    before, after = (reading.documents.at(state_id, seq) for seq in (old, new))
    plans = [plan for plan in (_plan(before), _plan(after)) if plan is not None]
    flags = sorted({StateId(Target.FLAG, *flag) for plan in plans for flag in plan.flags})
    told, documents = [], []
    for each in (state_id, *flags):
        one, other = reading.documents.at(each, old), reading.documents.at(each, new)
        text = definition_diff(one, other, old=f"{each} (seq {old})", new=f"{each} (seq {new})")
        if not text:
            continue
        told.append(text)
        documents.append({"target": each.target, "source": each.source, "key": each.key,
                          "before": json_value(one), "after": json_value(other)})  # fmt: skip
    words = moved(_plan(before), _plan(after))
    work.desk.result(
        {"id": key, "from": old.number, "to": new.number, "what": words, "changes": documents},
        "\n".join(told) or None,
    )
    if not work.desk.as_json:
        work.desk.say(f"release {key}, seq {old} to {new}: {words}; {_count(flags, documents)}")
    return Exit.OK


def _count(flags: list[StateId], documents: list[dict[str, object]]) -> str:
    changed = sum(document["target"] == Target.FLAG for document in documents)
    return f"{changed} of {len(flags)} flags differ"


def _plan(document: bytes | None) -> ReleasePlan | None:
    return None if document is None else parse_release(document)


def _span(text: str, reading: Reading) -> tuple[Seq, Seq]:
    head = reading.snapshot.seq
    match = _SPAN.match(text)
    if match is None or not (match[1] or match[3]) or (match[2] is None and match[3]):
        raise click.UsageError(f"want SEQ..SEQ, SEQ.., ..SEQ or SEQ, got {text!r}")
    first = int(match[1] or 0)
    last = int(match[3]) if match[3] else head.number if match[2] else first
    if match[2] is None:
        first -= 1
    if max(first, last) > head.number or first < 0:
        raise click.UsageError(f"want seqs up to {head}, the newest, got {text!r}")
    return Seq(first), Seq(last)
