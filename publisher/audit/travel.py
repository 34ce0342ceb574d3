"""Time travel: what a flag answered at a seq, from the state of that seq and by the sidecars' own code."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flaghoist.document import JsonValue
from flaghoist.evaluation import Answer, EvaluationFailed, evaluate
from flaghoist.selector import Selector
from flaghoist.snapshot import Snapshot
from flaghoist.values import Seq, Source
from publisher.audit.account import Account


@dataclass(frozen=True, slots=True)
class Given:
    """What the flag answered once an entry was in force.

    Attributes:
        account: the entry.
        state: the seq that a sidecar told with the answer; that of an earlier entry while others wait for their moment.
        from_ms: since when it was served, Unix milliseconds; None: it was asked what the entry made of the state.
        at_ms: the time that the rule saw (`$flagd.timestamp`), Unix milliseconds.
        version: the seq of the entry that last changed the flag; 0 when there is none.
    """

    account: Account
    state: Seq
    from_ms: int | None
    at_ms: int
    answer: Answer | EvaluationFailed
    version: Seq
    source: Source | None

    @property
    def seq(self) -> Seq:
        return self.account.seq

    @property
    def error_code(self) -> str | None:
        return str(self.answer.error_code) if isinstance(self.answer, EvaluationFailed) else None

    def differs(self, other: "Given") -> bool:
        """Say whether a caller would have noticed the difference: in value, variant, reason or error."""
        return _seen(self.answer) != _seen(other.answer)


@dataclass
class Traveller:
    """Follows one question through a ledger; `watch` sees each entry with the state that it made, or that was served.

    Attributes:
        first, last: the seqs between which the answers count.
        at_ms: the time that rules see; None: each entry's own, or since when it was served.
        given: the answer in force at `first`, and every later one that differed from that before it.
        latest: the answer at the last entry within the span.
    """

    key: str
    source: str | None
    context: Mapping[str, JsonValue]
    first: Seq
    last: Seq
    at_ms: int | None = None
    given: list[Given] = field(default_factory=list)
    latest: Given | None = None

    def watch(self, account: Account, snapshot: Snapshot, *, from_ms: int | None = None) -> None:
        """Answer the question at this entry. A rejected entry changes nothing, and its time is nobody's word.

        Args:
            from_ms: since when the state is served (Unix ms), where that is what was asked for.
        """
        if account.refusal is not None or account.seq > self.last:
            return
        if account.seq <= self.first:
            self.given.clear()
        its_own_ms = account.entry.published_at if from_ms is None else from_ms
        at_ms = self.at_ms if self.at_ms is not None else its_own_ms
        view = snapshot.view if self.source is None else snapshot.view.select(Selector(source=self.source))
        flag = view.flags.get(self.key)
        answer: Answer | EvaluationFailed
        try:
            answer = evaluate(view, self.key, self.context, now_s=at_ms // 1000)
        except EvaluationFailed as failure:
            answer = failure
        version, source = (flag.version, flag.source) if flag is not None else (Seq(0), None)
        self.latest = Given(account, snapshot.seq, from_ms, at_ms, answer, version, source)
        if not self.given or self.latest.differs(self.given[-1]):
            self.given.append(self.latest)


def _seen(answer: Answer | EvaluationFailed) -> tuple[str, ...]:
    if isinstance(answer, EvaluationFailed):
        return ("failed", answer.error_code)
    # repr: to Python 1, 1.0 and True are equal, to a caller they are not.
    return ("answered", repr(answer.value), repr(answer.variant), answer.reason)
