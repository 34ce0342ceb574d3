"""`flaghoist audit evaluate`: what a flag answered then."""

import json

import click

from flaghoist.errors import UnknownFlag
from flaghoist.evaluation import Answer, EvaluationFailed, normalised
from flaghoist.snapshot import Snapshot
from flaghoist.values import FlagKey, Seq, Source, Target
from publisher.audit.account import Account
from publisher.audit.serving import Serving, Servings
from publisher.audit.travel import Given, Traveller
from publisher.cli.audit.examined import Examined, Watch, conclude, examine
from publisher.cli.audit.fields import entry_fields, line, people, seq_or_none
from publisher.cli.audit.instant import Instant, InstantType, PlaceType, told
from publisher.cli.desk import Exit, inline
from publisher.cli.flag import merged_context
from publisher.cli.workspace import Workspace, operation

_LAST = Seq(2**63 - 1)


@click.command("evaluate")
@click.argument("key", metavar="FLAG")
@click.option("--context", "contexts", multiple=True, metavar="JSON|@FILE|K=V",
              help="The caller's context; may be given several times, later ones win.")  # fmt: skip
@click.option("--at", "place", type=PlaceType(), metavar="SEQ|TIME", help="When; default: now.")
@click.option("--until", "end", type=PlaceType(), metavar="SEQ|TIME",
              help="Each change of the answer from --at (or the beginning) up to then.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Each change of the answer, from the first entry on.")
@click.option("--now", type=InstantType(), metavar="TIME", help="The time that rules see; default: that of the answer.")
@operation(ledger=True)
def evaluate_at(
    work: Workspace,
    key: str,
    contexts: tuple[str, ...],
    place: Seq | Instant | None,
    end: Seq | Instant | None,
    everything: bool,
    now: Instant | None,
) -> Exit:
    """Evaluate a flag as sidecars did at a seq or a time, or show each entry at which its answer changed.

    At a SEQ it tells what the ledger's state of that seq answers, as a call does that is pinned to it. At a TIME it
    tells what was served then, where clocks are exact: not what waited for its moment. FLAG is KEY, or SOURCE#KEY as
    callers with a selector see it. A rule that looks at the time sees that of the answer: of a seq, when its entry was
    published.

    \b
    Examples:
      flaghoist audit evaluate newCheckout --context targetingKey=u7 --at 12
      flaghoist audit evaluate newCheckout --context @user.json --at 2026-11-21T09:30Z
      flaghoist audit evaluate newCheckout --context targetingKey=u7 --all
    """
    if everything and (place is not None or end is not None):
        raise click.UsageError("--all: want it without --at and --until")
    context = normalised(merged_context(contexts))
    source, marked, name = key.rpartition("#")
    now_ms = work.now_ms()
    ranged = everything or end is not None
    rules_see = now.starts_ms(now_ms) if now is not None else None
    if rules_see is None and not ranged and not isinstance(place, Seq):
        rules_see = place.ends_ms(now_ms) if place is not None else now_ms
    bounds = _Bounds(place, end, now_ms, ranged=ranged)
    traveller = Traveller(str(FlagKey(name)), str(Source(source)) if marked else None, context, *bounds.seqs, rules_see)
    examined = examine(work, watch=bounds.watching(traveller))
    bounds.close(traveller)
    for seq in (place, end):
        if isinstance(seq, Seq):
            examined.account_at(seq)
    if isinstance(place, Instant) and traveller.latest is None:
        examined.in_force_at(place.ends_ms(now_ms))  # says when the ledger begins
    _check_known(examined, FlagKey(name), Source(source) if marked else None)
    if ranged:
        _tell_changes(work, key, traveller, served=bounds.served)
    else:
        assert traveller.latest is not None  # noqa: S101 — the first entry is never rejected
        _tell_one(work, key, traveller.latest)
    return conclude(work, examined.examination)


class _Bounds:
    """Between which seqs or times answers count, and what is asked for: what was served, or the state of a seq."""

    def __init__(self, place: Seq | Instant | None, end: Seq | Instant | None, now_ms: int, *, ranged: bool) -> None:
        last = end if ranged else place
        self.served = isinstance(place, Instant) or isinstance(end, Instant) or (place is None and not ranged)
        self._servings = Servings()
        self._first_ms = place.starts_ms(now_ms) if ranged and isinstance(place, Instant) else None
        # Without a time every entry counts, also of a publisher whose clock is ahead of this machine's.
        self._last_ms = last.ends_ms(now_ms) if isinstance(last, Instant) else None
        self._now_ms = now_ms
        first_seq = place if ranged and isinstance(place, Seq) else Seq(0)
        self.seqs = (first_seq, last if isinstance(last, Seq) else _LAST)

    def watching(self, traveller: Traveller) -> Watch:
        """Return what shows the traveller the entries within the bounds, and the one in force when they begin."""

        def watch(account: Account, snapshot: Snapshot) -> None:
            if not self.served:
                traveller.watch(account, snapshot)
            elif account.refusal is None and (self._last_ms is None or account.entry.published_at <= self._last_ms):
                for serving in self._servings.take(account, snapshot):
                    self._show(traveller, serving)

        return watch

    def close(self, traveller: Traveller) -> None:
        """Show the traveller what waited at the end of the ledger, and took effect within the bounds."""
        if self.served:
            for serving in self._servings.until(self._now_ms if self._last_ms is None else self._last_ms):
                self._show(traveller, serving)

    def _show(self, traveller: Traveller, serving: Serving) -> None:
        if self._first_ms is not None and serving.from_ms <= self._first_ms:
            traveller.given.clear()  # only the answer in force when the span begins
        traveller.watch(serving.account, serving.snapshot, from_ms=serving.from_ms)


def _check_known(examined: Examined, key: FlagKey, source: Source | None) -> None:
    """Refuse a flag that the ledger never had: a slip must not pass for an answer."""
    known = {
        change.op.key
        for account in examined.accounts
        for change in account.changes
        if change.op.target is Target.FLAG and source in (None, change.op.source)
    }
    if key not in known:
        from difflib import get_close_matches

        alike = get_close_matches(key, sorted(known), n=3)
        named = f"; did you mean {', '.join(alike)}?" if alike else ""
        raise UnknownFlag(f"no flag {key} in this ledger, at no time{named}")


def _tell_one(work: Workspace, key: str, given: Given) -> None:
    answer = given.answer
    text = json.dumps(answer.value, ensure_ascii=False) if isinstance(answer, Answer) else ""
    work.desk.result(_fields(key, given) | {"entry": entry_fields(given.account)}, text or None)
    if work.desk.as_json:
        return
    work.desk.say(_answer_told(answer))
    work.desk.say(_basis_told(given))
    if given.version.number:
        work.desk.say(f"the flag was as seq {given.version} had left it")
    if given.account.quarantined:
        work.desk.warn("another history was known by then: sidecars that knew it answered from before it")


def _basis_told(given: Given) -> str:
    """Say whether it was served, since when and by which entry; or which entry's state answers so."""
    account = given.account
    if given.from_ms is not None:
        return f"served from {told(given.from_ms)} on, where clocks are exact: {line(account)}"
    waited = account.in_force_at_ms is not None and account.in_force_at_ms > account.entry.published_at
    served = f"; served from {told(account.in_force_at_ms or 0)} on" if waited else ""
    return f"the state of {line(account)}{served}"


def _tell_changes(work: Workspace, key: str, traveller: Traveller, *, served: bool) -> None:
    work.desk.result(
        {"key": key, "basis": _basis(served), "answers": [_fields(key, given) for given in traveller.given]}
    )
    rows = []
    for given in traveller.given:
        answer = given.answer
        value = json.dumps(answer.value, ensure_ascii=False) if isinstance(answer, Answer) else ""
        variant = (answer.variant or "") if isinstance(answer, Answer) else ""
        reason = answer.reason if isinstance(answer, Answer) else answer.error_code
        who = people(given.account)
        when = told(given.account.entry.published_at if given.from_ms is None else given.from_ms)
        rows.append((str(given.seq), when, value, variant, str(reason), who, inline(given.account.title)))
    when = "served from" if served else "published"
    work.desk.table(("seq", when, "value", "variant", "reason", "who", "title"), rows)


def _basis(served: bool) -> str:
    return "served" if served else "seq"


def _answer_told(answer: Answer | EvaluationFailed) -> str:
    if isinstance(answer, EvaluationFailed):
        return f"error {answer.error_code}: {answer}; callers got their own default"
    return f"variant {answer.variant or 'none'}, reason {answer.reason}"


def _fields(key: str, given: Given) -> dict[str, object]:
    answer = given.answer
    found = answer if isinstance(answer, Answer) else None
    return {
        "key": key,
        "basis": _basis(given.from_ms is not None),
        "value": found.value if found is not None else None,
        "variant": found.variant if found is not None else None,
        "reason": found.reason if found is not None else "ERROR",
        "error_code": given.error_code,
        "metadata": dict(answer.metadata or {}),
        "seq": given.seq.number,
        "state_seq": given.state.number,
        "published_at": given.account.entry.published_at,
        "in_force_at": given.account.in_force_at_ms if given.from_ms is None else given.from_ms,
        "now": given.at_ms,
        "version": seq_or_none(given.version),
        "source": given.source,
        "changed_by": {
            "kind": given.account.kind,
            "requester": given.account.requester,
            "approvers": given.account.approvers,
            "title": given.account.title,
        },
    }
