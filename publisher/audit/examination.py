"""One reading of a ledger from its first record on: the verifier's word on each, and an account of every entry.

The verifier is flaghoist.ledger, as in every sidecar; nothing is judged here a second time.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flaghoist.authorization import verified_approval, verified_proposal
from flaghoist.codec import APPROVAL, decode_envelope
from flaghoist.definition import killed_document
from flaghoist.errors import Refused, WrongRoot
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Dropped, Forked, Gap, Held, Link, Rejected, Void
from flaghoist.records import Envelope, Proposal, Ratification, Release, RootKey, RootUpdate
from flaghoist.root import Root
from flaghoist.signing import digest, verified_keys
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, ProposalKind, Role, Seq, StateId
from publisher.audit.account import Account, EntryKind, OpChange, Statement

# A flood of junk must not fill the memory: only so many are kept as examples, all are counted.
EXAMPLES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Break:
    """Where the chain cannot be followed: at this position of the log, at this seq, this was wanted and that came."""

    position: int
    seq: Seq
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"record at position {self.position}: expected {self.expected}, got {self.got}: {self.what}"


class Examination:
    """One ledger as far as it was read.

    Attributes:
        ledger: the verifier and its state.
        tally: how many records had each outcome, by its name.
        dropped: the first EXAMPLES_MAX records that count for nothing, by log position.
        void: the first EXAMPLES_MAX entries of publishers that had lost their place, by log position.
        forks: the first EXAMPLES_MAX proofs that a publisher's key signed another history.
        records: how many were read.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Begin with a ledger that has taken nothing yet."""
        self.ledger = ledger
        # Kept by no account: of 20,000 entries over 300 flags they would take 450 MB.
        self.tally: Counter[str] = Counter()
        self.dropped: dict[int, Dropped] = {}
        self.void: dict[int, Void] = {}
        self.forks: list[Break] = []
        self.records = 0
        self._end = 0
        self._held: Break | None = None
        self._gaps: list[tuple[int, Seq]] = []
        self._definitions: dict[StateId, bytes] = {}
        self._emergencies: dict[bytes, Account] = {}

    def take(self, position: int, value: bytes) -> Account | None:
        """Verify the next record of the log; return the account of the entry that it adds to the chain, if it does."""
        self.records += 1
        self._end = position
        if self.ledger.stopped_by is not None:
            self.tally["unread"] += 1  # the verifier takes nothing more
            return None
        judge = self.ledger.root
        outcome = self.ledger.receive(value)
        self.tally[type(outcome).__name__.lower()] += 1
        match outcome:
            case Dropped():
                if len(self.dropped) < EXAMPLES_MAX:
                    self.dropped[position] = outcome
            case Void():
                if len(self.void) < EXAMPLES_MAX:
                    self.void[position] = outcome
            case Gap():
                if len(self._gaps) < EXAMPLES_MAX or outcome.got > self._gaps[-1][1]:
                    self._gaps.append((position, outcome.got))  # what is missing may stand further back in the log
            case Forked():
                if len(self.forks) < EXAMPLES_MAX:
                    self.forks.append(_fork(position, outcome))
            case Held():
                self._held = Break(
                    position,
                    self.ledger.head.seq.next(),
                    "written by a newer release",
                    "a record that this release understands",
                    " ".join(str(outcome.refusal).split()),
                )
            case _ if isinstance(outcome, Link):
                return self._account(position, value, outcome, judge)
            case _:
                pass
        return None

    @property
    def snapshot(self) -> Snapshot:
        """The state at the head."""
        return self.ledger.snapshot

    @property
    def broken(self) -> Break | None:
        """The first place where the chain cannot be followed; None when it is whole up to its head."""
        head = self.ledger.head.seq
        found = [Break(at, head.next(), "entries are missing", f"seq {head.next()}", f"{got}")
                 for at, got in self._gaps if got > head][:1]  # fmt: skip
        if self.forks and self.ledger.quarantined_by is not None:
            found.append(self.forks[0])
        if self._held is not None:
            found.append(self._held)
        if not self.ledger.at_pinned_root:
            wanted = max(self.ledger.pinned)
            found.append(
                Break(
                    self._end,
                    head,
                    "the log ends too early: it withholds entries, or was cut",
                    f"root version {wanted} ({self.ledger.pinned[wanted].hex()}) in force",
                    f"version {self.ledger.root.version} at the end, seq {head}",
                )
            )
        return min(found, key=lambda one: one.position, default=None)

    def wrong_root(self) -> WrongRoot | None:
        """Return why no entry was taken although there are records: the ledger is another one.

        None where its publisher has signed some of them: then its beginning is missing.
        """
        if self.ledger.head.seq > Seq(0) or not self.records or self._gaps:
            return None
        dropped = next(iter(self.dropped.values()), None)
        if dropped is not None and isinstance(dropped.refusal, WrongRoot):
            return dropped.refusal
        root = self.ledger.root
        why = f": {dropped.refusal}" if dropped is not None else ""
        return WrongRoot(expected=f"{root.sha256.hex()} ({root.log_id})", got=f"{self.records} records without it{why}")

    # --- accounts ---

    def _account(self, position: int, value: bytes, link: Link, judge: Root) -> Account:
        entry, envelope = link.entry, decode_envelope(value)
        if isinstance(link, Applied):
            link = link.without_state()
        quarantined = self.ledger.quarantined_by is not None
        judges = (judge,) if self.ledger.root is judge else (judge, self.ledger.root)
        publishers = _signers(envelope, judges, (Role.PUBLISHER,))
        if isinstance(link, Rejected):
            return self._rejected(position, envelope, link, judge, publishers, quarantined)
        body = entry.body
        if isinstance(link, Applied) and isinstance(body, Release):
            authorized = link.authorized
            kind = EntryKind.EMERGENCY if _is_emergency(authorized.proposal) else EntryKind.CHANGE
            roles = (Role.EMERGENCY if kind is EntryKind.EMERGENCY else Role.REQUESTER,)
            account = Account(
                position, link, envelope, kind, judge, publishers, quarantined=quarantined,
                proposal=authorized.proposal,
                proposal_sha256=authorized.sha256,
                requester_key=_by(authorized.proposal.requester, _signers(body.proposal, judges, roles)),
                approvals=_statements(body.approvals, judges),
                changes=tuple(self._applied(authorized.proposal)),
            )  # fmt: skip
            if kind is EntryKind.EMERGENCY:
                self._emergencies[authorized.sha256] = account
            return account
        if isinstance(body, Ratification):
            return Account(
                position, link, envelope, EntryKind.RATIFICATION, judge, publishers, quarantined=quarantined,
                proposal_sha256=body.proposal_sha256,
                approvals=_statements(body.approvals, judges),
                ratified=self._emergencies.get(body.proposal_sha256),
            )  # fmt: skip
        if isinstance(body, RootUpdate):
            root = self.ledger.root
            return Account(
                position, link, envelope, EntryKind.ROOT, judge, publishers, quarantined=quarantined,
                new_root=root,
                root_signers=tuple(verified_keys(root.envelope, _keys(judges, (Role.ROOT,)))),
            )  # fmt: skip
        return Account(position, link, envelope, EntryKind.EPOCH, judge, publishers, quarantined=quarantined)

    def _rejected(
        self,
        position: int,
        envelope: Envelope,
        link: Rejected,
        judge: Root,
        publishers: tuple[RootKey, ...],
        quarantined: bool,
    ) -> Account:
        """The account of an entry that changed nothing: of what it carries, only what its own signature proves."""
        body = link.entry.body
        proposal, requester_key, sha256 = None, None, None
        if isinstance(body, Release):
            sha256 = digest(body.proposal)
            try:
                proposal = verified_proposal(judge, body.proposal)
            except Refused:
                pass
            else:
                keys = verified_keys(body.proposal, _keys((judge,), (Role.REQUESTER, Role.EMERGENCY)))
                requester_key = _by(proposal.requester, keys)
        elif isinstance(body, Ratification):
            sha256 = body.proposal_sha256
        statements = []
        for one in body.approvals if isinstance(body, Release | Ratification) else ():
            try:
                approval = verified_approval(judge, one)
            except Refused:
                continue
            if approval.proposal_sha256 != sha256:
                continue  # they said it of something else
            keys = verified_keys(one, _keys((judge,), (Role.APPROVER,)))
            if (key := _by(approval.approver, keys)) is not None:
                statements.append(Statement(approval, key, one))
        return Account(
            position, link, envelope, EntryKind.REJECTED, judge, publishers, quarantined=quarantined,
            proposal=proposal,
            proposal_sha256=sha256,
            requester_key=requester_key,
            approvals=tuple(statements),
            refusal=link.refusal,
        )  # fmt: skip

    def _applied(self, proposal: Proposal) -> Iterable[OpChange]:
        for op in proposal.ops:
            before = self._definitions.get(op.state_id)
            after = op.definition
            if op.action is Action.KILL:
                assert before is not None  # noqa: S101 — the fold refuses to kill what is not there
                after = killed_document(before)
            if after is None:
                self._definitions.pop(op.state_id, None)
            else:
                self._definitions[op.state_id] = after
            yield OpChange(op, before, after)


def _fork(position: int, fork: Forked) -> Break:
    theirs = decode_envelope(fork.theirs)
    if fork.what == "equivocation":
        return Break(
            position, fork.seq, "the publisher's key signed two entries for one place", fork.ours.hex(),
            digest(theirs).hex(),
        )  # fmt: skip
    from flaghoist.codec import ENTRY

    return Break(
        position, fork.seq, "an entry of another history", f"prev_hash {fork.ours.hex()}",
        f"prev_hash {ENTRY.decode(theirs.payload).prev_hash.hex()}",
    )  # fmt: skip


def _is_emergency(proposal: Proposal) -> bool:
    return proposal.kind is ProposalKind.EMERGENCY


def _keys(roots: Sequence[Root], roles: Sequence[Role]) -> list[RootKey]:
    found = {key.key_id: key for root in roots for role in roles for key in root.keys_of(role)}
    return list(found.values())


def _signers(envelope: Envelope, roots: Sequence[Root], roles: Sequence[Role]) -> tuple[RootKey, ...]:
    """Return the keys that signed an envelope which the verifier has accepted as signed in one of these roles."""
    if len(envelope.signatures) == 1:  # the one that it accepted: no need to verify it again
        wanted = envelope.signatures[0].key_id
        return tuple(key for root in reversed(roots) if (key := root.key(wanted)) is not None)[:1]
    return tuple(verified_keys(envelope, _keys(roots, roles)))


def _by(person: str, keys: Iterable[RootKey]) -> RootKey | None:
    return next((key for key in keys if key.person == person), None)


def _statements(envelopes: Iterable[Envelope], roots: Sequence[Root]) -> tuple[Statement, ...]:
    statements = []
    for envelope in envelopes:
        approval = APPROVAL.decode(envelope.payload)
        key = _by(approval.approver, _signers(envelope, roots, (Role.APPROVER,)))
        assert key is not None  # noqa: S101 — the verifier counts nothing else
        statements.append(Statement(approval, key, envelope))
    return tuple(statements)
