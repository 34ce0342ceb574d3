"""How a command asks for a change: it is checked and shown, signed, and put where it waits for other people's approval,
or published when it waits for nobody."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from flaghoist.authorization import EMERGENCY_LIFE_MS_MAX, check_kind, moment_of, role_asking
from flaghoist.codec import PROPOSAL, REASON_CHARS_MAX, TITLE_CHARS_MAX, encode_envelope
from flaghoist.errors import Misconfigured, NotYet, WrongRole
from flaghoist.outcomes import Applied
from flaghoist.records import Proposal
from flaghoist.rollback import check_rollback
from flaghoist.signing import digest, seal
from flaghoist.values import Person, ProposalKind, Role, Seq
from publisher.cli import appending
from publisher.cli.desk import Exit, json_value
from publisher.cli.reading import Reading, send
from publisher.cli.times import Span, moment
from publisher.cli.workspace import Command, Workspace
from publisher.files import replace_file
from publisher.inbox import Case, new_proposal_id
from publisher.plan import Step, check
from publisher.releases.wiring import cautions
from publisher.releases.wording import lead_text
from publisher.standing import Standing, Status, standing_of

EXPIRES_DEFAULT: Final = "7d"
# Longer diffs are for a pager: `--dry-run` prints them all to stdout.
DIFF_LINES_SHOWN_MAX: Final = 400
NOTHING_MORE: Final[Mapping[str, object]] = {}


@dataclass(frozen=True, slots=True)
class Wording:
    """What a proposal says about itself, from the options that all proposing commands share."""

    title: str | None
    reason: str
    ticket: str | None
    expires_in: int  # milliseconds
    out: Path | None


@dataclass(frozen=True, slots=True)
class Timing:
    """When a proposal takes effect, as its record has it; by default at once."""

    activate_at: int | None = None
    lead_ms: int | None = None
    acked_percent: int | None = None


AT_ONCE: Final = Timing()


@dataclass(frozen=True, slots=True)
class Asked:
    """Proposals that were signed, in the order of publishing.

    Attributes:
        files: where they were written to, instead of the inbox.
        standings: where each stood when it was signed.
        links: the entries of those that were published at once, in the same order; empty when they wait.
        holder: the publisher's service at work, if one is.
    """

    cases: tuple[Case, ...]
    files: tuple[Path, ...]
    standings: tuple[Standing, ...]
    links: tuple[Applied, ...] = ()
    holder: str | None = None


def worded(command: Command) -> Command:
    """Give a command --title, --reason, --ticket, --expires-in and --out, as one Wording."""

    @functools.wraps(command)
    def run(
        work: Workspace,
        title: str | None,
        reason: str,
        ticket: str | None,
        expires_in: int,
        out: Path | None,
        **values: object,
    ) -> Exit | None:
        for name, text, limit in (("title", title, TITLE_CHARS_MAX), ("reason", reason, REASON_CHARS_MAX),
                                  ("ticket", ticket, TITLE_CHARS_MAX)):  # fmt: skip
            if text is not None and len(text) > limit:
                raise click.UsageError(f"--{name}: want at most {limit} characters, got {len(text)}")
        if title is not None and not title.strip():
            raise click.UsageError("--title: want one line, got nothing")
        return command(work, Wording(title, reason, ticket, expires_in, out), **values)

    decorated: Command = run
    for option in reversed((
        click.option("--title", metavar="TEXT", help="One line: what changes."),
        click.option("--reason", default="", metavar="TEXT", help="Why."),
        click.option("--ticket", metavar="TEXT", help="Where it is tracked."),
        click.option("--expires-in", type=Span(), default=EXPIRES_DEFAULT, show_default=True, metavar="SPAN",
                     help="How long it may wait: 12h, 7d."),
        click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
                     help="Write the signed proposal here, not into the inbox."),
    )):  # fmt: skip
        decorated = option(decorated)
    return decorated


def submit(
    work: Workspace,
    reading: Reading,
    batches: Sequence[Sequence[Step]],
    wording: Wording,
    title: str,
    fields: Mapping[str, object] = NOTHING_MORE,
    *,
    words: Sequence[str] = (),
) -> Exit:
    """Ask for a change that waits for approval, and tell what became of it: propose_ops, then tell_asked."""
    asked = propose_ops(work, reading, batches, wording, title, fields, words=words)
    return asked if isinstance(asked, Exit) else tell_asked(work, reading, asked, fields)


def propose_ops(
    work: Workspace,
    reading: Reading,
    batches: Sequence[Sequence[Step]],
    wording: Wording,
    title: str,
    fields: Mapping[str, object] = NOTHING_MORE,
    *,
    words: Sequence[str] = (),
    with_diff: bool = True,
    kind: ProposalKind = ProposalKind.CHANGE,
    timing: Timing = AT_ONCE,
    publish: bool = False,
    wait_s: int = appending.WAIT_S_DEFAULT,
) -> Asked | Exit:
    """Check a change as readers would, show it, ask, sign it, and put it where it waits, or publish it.

    Args:
        batches: the steps of each proposal.
        title: of the proposals, unless --title says otherwise.
        fields: what the one JSON document of a dry run says besides.
        words: the plan in words, shown before the diff.
        with_diff: also show how the definitions differ.
        publish: publish at once what waits for nobody's approval. It stays in the inbox where no service is at work and
            the publisher's key is not here.
        wait_s: how long to wait for the publisher's service.

    Returns:
        An Exit when nothing was signed: after a dry run, whose result was given, and when the operator said no.

    Raises:
        Refused: a reader would reject it, or a moment cannot be.
        Misconfigured, WrongRole: no key here that may ask for it.
        Unavailable, OutcomeUnknown, Interrupted: as `send`, and the publishing.
    """
    check_batches(reading, batches, kind=kind)
    # All that the protocol refuses of a kind and a moment is refused before anybody is asked for a passphrase.
    for draft in _drafts(work, batches, wording, title, kind, timing):
        _check_timing(draft, work.now_ms())
    outs = _out_files(wording.out, len(batches))
    role = role_asking(kind)
    chosen = None if work.dry_run else work.choose(role)
    diff = "\n".join(step.diff() for batch in batches for step in batch) if with_diff else ""
    if work.dry_run:
        plan = [_step_fields(step) for batch in batches for step in batch]
        document = {"dry_run": True, "plan": plan, **({"words": list(words)} if words else {}), **fields}
        work.desk.result(document, "\n".join([*words, diff] if diff else words))
        return Exit.OK
    assert chosen is not None  # noqa: S101 — not a dry run
    _show(work, words, diff)
    for caution in cautions(reading.snapshot, [step.op for batch in batches for step in batch]):
        work.desk.warn(caution)
    place = "the inbox" if wording.out is None else " ".join(str(out) for out in outs)
    if not work.desk.confirm(f"Sign and put into {place}?"):
        return Exit.USAGE
    held, requester = work.unlock(chosen, role)
    cases, records = [], []
    for draft in _drafts(work, batches, wording, title, kind, timing):
        proposal = replace(draft, requester=requester)
        envelope = seal(PROPOSAL, proposal, [held])
        cases.append(Case(proposal, envelope, digest(envelope), ()))
        records.append(encode_envelope(envelope))
    if wording.out is None:
        send(work, records)
    else:
        for out, record in zip(outs, records, strict=True):
            replace_file(out, record, mode=0o644)
    standings = tuple(standing_of(case, reading.reader, now_ms=work.now_ms()) for case in cases)
    holder = None if work.desk.as_json and not publish else appending.service_at_work(work, reading)
    asked = Asked(tuple(cases), tuple(outs), standings, (), holder)
    if not publish or wording.out is not None or any(standing.missing for standing in standings):
        return asked
    return replace(asked, links=_publish(work, reading, asked, records, wait_s))


def check_batches(
    reading: Reading, batches: Sequence[Sequence[Step]], *, kind: ProposalKind = ProposalKind.CHANGE
) -> None:
    """Refuse steps that a reader of the ledger would reject.

    Raises:
        Refused: as the fold says; RevertConflict of a ROLLBACK that would not restore what was before.
    """
    if kind is ProposalKind.ROLLBACK:
        for batch in batches:
            check_rollback(reading.snapshot, [step.op for step in batch])
    check(reading.snapshot, batches)


def tell_asked(work: Workspace, reading: Reading, asked: Asked, fields: Mapping[str, object] = NOTHING_MORE) -> Exit:
    """Give the result of asking: the ids of what waits, or the entries of what was published; and say what is next.

    Args:
        fields: what the one JSON document says besides.
    """
    documents: list[dict[str, object]] = []
    for case in asked.cases:
        p = case.proposal
        documents.append(
            {
                "id": case.id,
                "sha256": case.sha256.hex(),
                "title": p.title,
                "ops": len(p.ops),
                "expires_at": p.expires_at,
            }
        )
    for document, link in zip(documents, asked.links, strict=False):
        entry = link.entry
        document |= {"seq": entry.seq.number, "entry_hash": link.entry_hash.hex(), "published_at": entry.published_at}
    lines = [f"seq {link.entry.seq}  {link.entry_hash.hex()}" for link in asked.links]
    files = [str(file) for file in asked.files]
    work.desk.result(
        {"proposals": documents, "files": files, **fields}, "\n".join(lines or [case.id for case in asked.cases])
    )
    if asked.links:
        for case, link in zip(asked.cases, asked.links, strict=True):
            work.desk.say(f"published {case.id}: {case.proposal.title} ({moment(link.entry.published_at)})")
        return Exit.OK
    for case in asked.cases:
        work.desk.say(f"proposed: {case.proposal.title}; it may wait until {moment(case.proposal.expires_at)}")
    _tell_next(work, reading, asked, files or [case.id for case in asked.cases])
    return Exit.OK


def timing_words(timing: Timing) -> list[str]:
    """Return when a change takes effect, as lines for people."""
    lines = []
    if timing.acked_percent is not None:
        lines.append(
            f"  first shown to the fleet; published once {timing.acked_percent} % of it has acknowledged that, "
            "else nothing changes"
        )
    if timing.activate_at is not None:
        lines.append(f"  takes effect at {moment(timing.activate_at)}, in every pod at that moment")
    elif timing.lead_ms is not None:
        lines.append(f"  takes effect {lead_text(timing.lead_ms)} after it is published, in every pod at one moment")
    else:
        lines.append("  takes effect at once, in each pod as soon as it has read it")
    return lines


def _tell_next(work: Workspace, reading: Reading, asked: Asked, named: Sequence[str]) -> None:
    """Say what the proposals still take, and what then happens to them."""
    standings, holder = asked.standings, asked.holder
    if not reading.root.policy.built_in:
        for missing in dict.fromkeys(missing for standing in standings for missing in standing.missing):
            work.desk.say(f"  {missing}")
    if refused := next((standing for standing in standings if standing.status is Status.REFUSED), None):
        work.desk.warn(f"it cannot be published as things are: {refused.why}")
    scheduled = next((standing for standing in standings if standing.status is Status.SCHEDULED), None)
    others = " (and the others)" * (len(named) > 1)
    if any(standing.missing for standing in standings) or any(standing.needed for standing in standings):
        then = f"; the publisher at work ({holder}) then appends it" if holder else ""
        work.desk.next_step(f"ask somebody else to run `flaghoist approve {named[0]}`{others}{then}")
    elif holder:
        then = f"; it is {scheduled.why}" if scheduled else ""
        work.desk.next_step(f"nothing: the publisher at work ({holder}) appends it{then}")
    elif scheduled:
        work.desk.next_step(
            f"`flaghoist publish {named[0]}` then: it is {scheduled.why}; a running `flaghoist publisher` does it"
        )
    else:
        work.desk.next_step(f"`flaghoist publish {named[0]}`" + ", then the others in this order" * (len(named) > 1))


def _drafts(
    work: Workspace,
    batches: Sequence[Sequence[Step]],
    wording: Wording,
    title: str,
    kind: ProposalKind,
    timing: Timing,
) -> list[Proposal]:
    """Return the proposals as they would be signed now, but for who asks."""
    now_ms = work.now_ms()
    emergency = kind is ProposalKind.EMERGENCY
    expires_in = min(wording.expires_in, EMERGENCY_LIFE_MS_MAX) if emergency else wording.expires_in
    drafts = []
    for number, batch in enumerate(batches, 1):
        part = f" ({number} of {len(batches)})" if len(batches) > 1 else ""
        draft = Proposal(
            log_id=work.root.log_id,
            # One millisecond apart, so that their ids sort in the order of publishing.
            proposal_id=new_proposal_id(now_ms + number - 1, os.urandom(10)),
            requester=_NOBODY_YET,
            created_at=now_ms,
            expires_at=now_ms + expires_in,
            kind=kind,
            title=(wording.title or title)[: TITLE_CHARS_MAX - len(part)] + part,
            reason=wording.reason,
            ticket=wording.ticket,
            ops=tuple(step.op for step in batch),
            activate_at=timing.activate_at,
            min_pin=Seq(0),
            lead_ms=timing.lead_ms,
            acked_percent=timing.acked_percent,
        )
        drafts.append(draft)
    return drafts


# Whose a key is, the root says once it is open.
_NOBODY_YET: Final = Person("nobody")


def _check_timing(draft: Proposal, now_ms: int) -> None:
    """Refuse a kind or moment that no reader would take; one that is far ahead waits to be published.

    Raises:
        BadDefinition: a kind or a moment that cannot be.
        Expired: its moment is over.
        Misconfigured: its moment is after its expiry.
    """
    check_kind(draft)
    try:
        moment_of(draft, at_ms=now_ms)
    except NotYet:
        assert draft.activate_at is not None  # noqa: S101 — else it could not be too early
        if draft.activate_at > draft.expires_at:
            raise Misconfigured(
                f"it takes effect at {moment(draft.activate_at)}, and expires before, at {moment(draft.expires_at)}",
                hint="give a longer --expires-in",
            ) from None


def _show(work: Workspace, words: Sequence[str], diff: str) -> None:
    if work.desk.as_json:
        return
    for line in words:
        work.desk.say(line)
    lines = diff.splitlines()
    work.desk.show_diff("\n".join(lines[:DIFF_LINES_SHOWN_MAX]))
    if len(lines) > DIFF_LINES_SHOWN_MAX:
        work.desk.say(f"… {len(lines) - DIFF_LINES_SHOWN_MAX} more lines; --dry-run prints them all")


def _publish(
    work: Workspace, reading: Reading, asked: Asked, records: Sequence[bytes], wait_s: int
) -> tuple[Applied, ...]:
    """Publish what waits for nobody, in order; nothing where neither a service is at work nor its key is here."""
    from publisher.cli.publish import publish_case

    if asked.holder is None and not _publisher_is_here(work, reading):
        return ()
    # As it would be read again: the inbox has these proposals now.
    again = Reading(reading.reader, [*reading.inbox_records, *records])
    links = []
    for case in asked.cases:
        link, _ = publish_case(work, again, case, holder=asked.holder, wait_s=wait_s)
        assert isinstance(link, Applied)  # noqa: S101 — nothing that was just signed is a ratification
        links.append(link)
    return tuple(links)


def _publisher_is_here(work: Workspace, reading: Reading) -> bool:
    try:
        replace(work, key_option=None).choose(Role.PUBLISHER, reading.root)
    except (Misconfigured, WrongRole):
        return False
    return True


def _step_fields(step: Step) -> dict[str, object]:
    op = step.op
    return {
        "verb": step.verb,
        "target": op.target,
        "source": op.source,
        "key": op.key,
        "expected_version": op.expected_version.number,
        "before": json_value(step.before),
        "after": json_value(op.definition),
    }


def _out_files(out: Path | None, count: int) -> list[Path]:
    if out is None:
        return []
    files = [out] if count == 1 else [out.with_name(f"{out.stem}-{n}{out.suffix}") for n in range(1, count + 1)]
    for file in files:
        if file.exists():
            raise Misconfigured(f"--out {file}: is there already", hint="name a new file")
    return files
