"""One reading of a ledger from its first record on: the verifier's word on each, and an account of every entry.

The verifier is flaghoist.ledger, as in every sidecar; nothing is judged here a second time.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flaghoist.authorization import role_asking, verified_approval, verified_proposal
from flaghoist.barrier import InForce
from flaghoist.codec import APPROVAL, ENTRY, decode_envelope
from flaghoist.definition import killed_document
from flaghoist.errors import Refused, WrongRoot
from flaghoist.ledger import Ledger
from flaghoist.outcomes import Applied, Dropped, Forked, Gap, Held, Link, Prepared, Rejected, Stepped, Void
from flaghoist.records import Envelope, Op, Ratification, RootKey, RootUpdate
from flaghoist.release_plan import CLOSED, encode_release, parse_release
from flaghoist.root import Root
from flaghoist.signing import digest, verified_keys
from flaghoist.snapshot import Snapshot
from flaghoist.values import Action, FlagKey, ProposalKind, Role, Seq, StateId, Target
from publisher.audit.account import Account, EntryKind, OpChange, Statement, approvals_in, carried

# A flood of junk must not fill the memory: only so many are kept as examples, all are counted.
EXAMPLES_MAX: Final = 20

_KINDS: Final = {
    ProposalKind.CHANGE: EntryKind.CHANGE,
    ProposalKind.ROLLBACK: EntryKind.ROLLBACK,
    ProposalKind.DRILL: EntryKind.DRILL,
    ProposalKind.EMERGENCY: EntryKind.EMERGENCY,
}


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
        # By digest of the proposal that they prepare.
        self._preparations: dict[bytes, Account] = {}
        # The approved entry that last changed a release; its steps follow the plan of that one.
        self._plans: dict[FlagKey, Account] = {}
        self._in_force = InForce(ledger.snapshot)

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
        in_force_at_ms = self._in_force_at(link)
        if isinstance(link, Applied | Stepped):
            link = link.without_state()
        judges = (judge,) if self.ledger.root is judge else (judge, self.ledger.root)
        account = Account(
            position, link, envelope, EntryKind.EPOCH, judge, _signers(envelope, judges, (Role.PUBLISHER,)),
            quarantined=self.ledger.quarantined_by is not None,
        )  # fmt: skip
        match link:
            case Rejected():
                return self._rejected(account, link)
            case Applied() | Prepared():
                return self._proposed(account, link, judges, in_force_at_ms)
            case Stepped(op=op):
                return replace(
                    account,
                    kind=EntryKind.STEP,
                    changes=tuple(self._changed([op])),
                    in_force_at_ms=in_force_at_ms,
                    allowed_by=self._plans[op.key],
                )
            case _:
                pass
        body = entry.body
        if isinstance(body, Ratification):
            return replace(
                account,
                kind=EntryKind.RATIFICATION,
                proposal_sha256=body.proposal_sha256,
                approvals=_statements(body.approvals, judges),
                ratified=self._emergencies.get(body.proposal_sha256),
            )
        if isinstance(body, RootUpdate):
            root = self.ledger.root
            signers = tuple(verified_keys(root.envelope, _keys(judges, (Role.ROOT,))))
            return replace(account, kind=EntryKind.ROOT, new_root=root, root_signers=signers)
        return account

    def _in_force_at(self, link: Link) -> int:
        """Return since when what a link changed is served by who read it when it was published (Unix ms)."""
        now_ms = link.entry.published_at
        if isinstance(link, Rejected):
            return now_ms  # its time is nobody's word
        self._in_force = self._in_force.take(link, self.ledger.snapshot, now_ms=now_ms)
        emergency = isinstance(link, Applied) and link.authorized.proposal.kind is ProposalKind.EMERGENCY
        waits = self._in_force.coming and not emergency
        return self._in_force.coming[-1].at_ms if waits else now_ms

    def _proposed(
        self, account: Account, link: Applied | Prepared, judges: Sequence[Root], in_force_at_ms: int
    ) -> Account:
        """The account of an entry that carries what somebody proposed, published or only prepared."""
        authorized, release = link.authorized, carried(link.entry)
        assert release is not None  # noqa: S101 — the verifier made them of one
        proposal, sha256 = authorized.proposal, authorized.sha256
        account = replace(
            account,
            kind=EntryKind.PREPARATION if isinstance(link, Prepared) else _KINDS[proposal.kind],
            proposal=proposal,
            proposal_sha256=sha256,
            requester_key=_by(proposal.requester, _signers(release.proposal, judges, (role_asking(proposal.kind),))),
            approvals=_statements(release.approvals, judges),
        )
        if isinstance(link, Prepared):
            self._preparations[sha256] = account
            return account
        account = replace(
            account,
            changes=tuple(self._changed(proposal.ops)),
            in_force_at_ms=in_force_at_ms,
            prepared_by=self._preparations.pop(sha256, None),
        )
        if account.kind is EntryKind.EMERGENCY:
            self._emergencies[sha256] = account
        self._plans |= {op.key: account for op in proposal.ops if op.target is Target.RELEASE}
        return account

    def _rejected(self, account: Account, link: Rejected) -> Account:
        """The account of an entry that changed nothing: of what it carries, only what its own signature proves."""
        judge, body, release = account.root, link.entry.body, carried(link.entry)
        proposal, requester_key, sha256 = None, None, None
        if release is not None:
            sha256 = digest(release.proposal)
            try:
                proposal = verified_proposal(judge, release.proposal)
            except Refused:
                pass
            else:
                keys = verified_keys(release.proposal, _keys((judge,), (Role.REQUESTER, Role.EMERGENCY)))
                requester_key = _by(proposal.requester, keys)
        elif isinstance(body, Ratification):
            sha256 = body.proposal_sha256
        statements = []
        for one in approvals_in(link.entry):
            try:
                approval = verified_approval(judge, one)
            except Refused:
                continue
            if approval.proposal_sha256 != sha256:
                continue  # they said it of something else
            keys = verified_keys(one, _keys((judge,), (Role.APPROVER,)))
            if (key := _by(approval.approver, keys)) is not None:
                statements.append(Statement(approval, key, one))
        return replace(
            account,
            kind=EntryKind.REJECTED,
            proposal=proposal,
            proposal_sha256=sha256,
            requester_key=requester_key,
            approvals=tuple(statements),
            refusal=link.refusal,
        )

    def _changed(self, ops: Sequence[Op]) -> Iterable[OpChange]:
        for op in ops:
            before = self._definitions.get(op.state_id)
            after = op.definition
            if op.action is Action.KILL:
                assert before is not None  # noqa: S101 — the fold refuses to kill what is not there
                after = killed_document(before) if op.target is Target.FLAG else _closed(before)
            if after is None:
                self._definitions.pop(op.state_id, None)
            else:
                self._definitions[op.state_id] = after
            yield OpChange(op, before, after)


def _closed(document: bytes) -> bytes:
    """Return the definition that says what a kill makes of the release in this one."""
    return encode_release(replace(parse_release(document), gate=CLOSED))


def _fork(position: int, fork: Forked) -> Break:
    theirs = decode_envelope(fork.theirs)
    if fork.what == "equivocation":
        return Break(
            position, fork.seq, "the publisher's key signed two entries for one place", fork.ours.hex(),
            digest(theirs).hex(),
        )  # fmt: skip
    return Break(
        position, fork.seq, "an entry of another history", f"prev_hash {fork.ours.hex()}",
        f"prev_hash {ENTRY.decode(theirs.payload).prev_hash.hex()}",
    )  # fmt: skip


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
