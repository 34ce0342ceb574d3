"""What whoever can write to the topics writes there: junk, forgeries, and good records cut, bent and sent again.

Seeded, and without I/O: the same seed gives the same kinds in the same order, made of whatever good records there are.
Each kind has a name, so that a failure says what it was. tests/security/hostile_topic.py sends them.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flaghoist.codec import APPROVAL, ENTRY, HEARTBEAT, PROPOSAL, ROOT, decode_envelope, encode_envelope
from flaghoist.errors import Refused
from flaghoist.freshness import BEAT_LIFE_MS
from flaghoist.ledger import Ledger, next_entry
from flaghoist.log.base import KEY_BYTES_MAX, RECORD_BYTES_MAX, Stream
from flaghoist.records import (
    Approval,
    Body,
    Entry,
    Envelope,
    EpochClaim,
    Heartbeat,
    Op,
    Proposal,
    Ratification,
    Release,
    RoleGrant,
    RootKey,
    RootUpdate,
    Signature,
)
from flaghoist.signing import Signer, digest, key_id, pae, seal
from flaghoist.values import (
    Action,
    Decision,
    FlagKey,
    LogId,
    Person,
    ProposalKind,
    Role,
    Seq,
    Source,
    Target,
)
from publisher.heart import BEAT_KEY
from publisher.keys import HeldKey

# One record in so many is large, up to what brokers take; else ten thousand would be gigabytes.
LARGE_EVERY: Final = 200
WRITTEN: Final = (Stream.LEDGER, Stream.INBOX, Stream.META)
# A kind that is to be sent in a compressed batch: a few hundred bytes that a broker or a reader must unpack to this.
COMPRESSED: Final = "zeros, compressed"
BOMB_BYTES: Final = 900 * 1024
HEARD_MAX: Final = 2000
_BAIT: Final = b'{"state":"ENABLED","variants":{"stolen":-1},"defaultVariant":"stolen"}'


@dataclass(frozen=True, slots=True)
class Write:
    """One record as it is handed to a broker; key, headers and timestamp claim what they like."""

    stream: Stream
    kind: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int | None = None


class Hostile:
    """Makes hostile records about one environment, whose topics it reads as anybody can.

    Args:
        ledger: the environment, as the topic tells it.
        stolen: keys of people, and of publishers that were replaced; none that may sign an entry now.
        flags: keys of the flags that forgeries try to change.
        now_ms: wall clock, Unix ms.
    """

    def __init__(
        self,
        seed: int,
        ledger: Ledger,
        *,
        stolen: Sequence[Signer],
        flags: Sequence[str],
        now_ms: Callable[[], int],
    ) -> None:
        self._rng = random.Random(seed)
        # Of its own: what is made of good records takes as many random numbers as there are good records.
        self._order = random.Random(seed)
        self._ledger = ledger
        self._stolen = list(stolen)
        self._flags = list(flags)
        self._now_ms = now_ms
        self._strangers = [HeldKey(self._rng.randbytes(32)) for _ in range(4)]
        self.heard: dict[Stream, list[bytes]] = {stream: [] for stream in Stream}
        self._kinds: dict[Stream, list[tuple[str, Callable[[], bytes | None]]]] = {
            Stream.LEDGER: [
                *self._any_kinds(Stream.LEDGER),
                ("entry by a stranger", lambda: self._entry(self._stranger())),
                ("entry by a member", lambda: self._entry(self._member())),
                ("entry under the publisher's name", self._entry_under_another_name),
                ("entry in the past", lambda: self._entry(self._member(), past=True)),
                ("entry far ahead", lambda: self._entry(self._stranger(), ahead=True)),
                ("epoch claim", lambda: self._sealed_entry(EpochClaim("the real one"), self._member())),
                ("root by one of its people", self._root_entry),
                ("ratification by nobody", self._ratification),
                ("proposal as an entry", lambda: encode_envelope(self._proposal(self._member()))),
                ("entry of another environment", self._foreign_entry),
                ("entry with sixteen signatures", lambda: self._crowded(16)),
                ("entry with seventeen signatures", lambda: self._crowded(17)),
            ],
            Stream.INBOX: [
                *self._any_kinds(Stream.INBOX),
                ("proposal by a stranger", lambda: encode_envelope(self._proposal(self._stranger()))),
                ("proposal by a member", lambda: encode_envelope(self._proposal(self._member()))),
                ("approval by a stranger", self._approval),
                ("root by one of its people", lambda: encode_envelope(self._next_root(self._member()))),
                ("root by a stranger", lambda: encode_envelope(self._next_root(self._stranger()))),
                ("emergency without its key", lambda: encode_envelope(self._emergency(self._member()))),
                ("entry in the inbox", lambda: self._entry(self._member())),
            ],
            Stream.META: [
                *self._any_kinds(Stream.META),
                ("heartbeat by a stranger", lambda: self._beat(self._stranger())),
                ("heartbeat by a member", lambda: self._beat(self._member())),
                ("heartbeat far ahead", lambda: self._beat(self._stranger(), ahead=10**6)),
                ("entry among heartbeats", lambda: self._entry(self._member())),
            ],
        }  # fmt: skip

    def hear(self, stream: Stream, value: bytes) -> None:
        """Keep a record that was seen in a topic, to be cut, bent and sent again."""
        heard = self.heard[stream]
        if len(heard) < HEARD_MAX and value:
            heard.append(value)

    def kinds(self, stream: Stream) -> list[str]:
        """Return the names of what is written to a stream."""
        return [name for name, _ in self._kinds[stream]]

    def writes(self, count: int) -> Iterator[Write]:
        """Yield so many records, over all streams; most go to the ledger."""
        streams = [WRITTEN[0]] * 6 + [WRITTEN[1]] * 2 + [WRITTEN[2]] * 2
        made = Counter[Stream]()
        for _ in range(count):
            stream = self._order.choice(streams)
            # Each kind of a stream in turn first: none is left out by chance.
            kinds, number = self._kinds[stream], made[stream]
            made[stream] += 1
            name, make = kinds[number] if number < len(kinds) else self._order.choice(kinds)
            yield self._dressed(stream, name, make())

    # --- what a broker is told beside the value ---

    def _dressed(self, stream: Stream, kind: str, value: bytes | None) -> Write:
        rng = self._rng
        key: bytes | None = None
        if stream.keyed:
            # A compacted topic takes no record without a key; that of the heartbeats is everybody's.
            key = BEAT_KEY if rng.random() < 0.7 else rng.randbytes(rng.randint(1, KEY_BYTES_MAX))
        elif value is None or rng.random() < 0.2:  # a record without a value has a key
            key = rng.randbytes(rng.randint(0, KEY_BYTES_MAX))
        headers = []
        if rng.random() < 0.2:
            headers = [("flaghoist-seq", str(rng.randint(0, 2**62)).encode()), ("verified", b"true")]
        timestamp_ms = rng.choice([0, 1, 2**53, self._now_ms() + 10**9]) if rng.random() < 0.2 else None
        return Write(stream, kind, value, key, headers, timestamp_ms)

    # --- without any key ---

    def _any_kinds(self, stream: Stream) -> list[tuple[str, Callable[[], bytes | None]]]:
        return [
            ("junk", self._junk),
            ("nothing", lambda: None),
            ("empty", lambda: b""),
            (COMPRESSED, self._zeros),
            ("many signatures", lambda: _bomb_of_signatures(self._rng)),
            ("claimed lengths", lambda: _bomb_of_lengths(self._rng)),
            ("entry of many approvals", lambda: _bomb_of_approvals(self._rng)),
            ("cut", lambda: self._cut(stream)),
            ("longer", lambda: self._good(stream) + self._rng.randbytes(self._rng.randint(1, 64))),
            ("a bit flipped", lambda: self._flipped(stream)),
            ("two halves", lambda: self._spliced(stream)),
            ("sent again", lambda: self._good(stream)),
            ("of another stream", lambda: self._good(self._rng.choice([s for s in WRITTEN if s is not stream]))),
        ]

    def _junk(self) -> bytes:
        rng = self._rng
        if rng.randrange(LARGE_EVERY) == 0:
            return rng.randbytes(rng.randint(64 * 1024, RECORD_BYTES_MAX - KEY_BYTES_MAX - 1024))
        return rng.randbytes(int(2 ** rng.uniform(0, 12)))

    def _zeros(self) -> bytes:
        return bytes(BOMB_BYTES if self._rng.randrange(LARGE_EVERY // 10) == 0 else self._rng.randint(1, 4096))

    def _good(self, stream: Stream) -> bytes:
        return self._rng.choice(self.heard[stream]) if self.heard[stream] else self._junk()

    def _cut(self, stream: Stream) -> bytes:
        good = self._good(stream)
        return good[: self._rng.randrange(1, len(good))]

    def _flipped(self, stream: Stream) -> bytes:
        good = bytearray(self._good(stream))
        good[self._rng.randrange(len(good))] ^= 1 << self._rng.randrange(8)
        return bytes(good)

    def _spliced(self, stream: Stream) -> bytes:
        first, second = self._good(stream), self._good(stream)
        return first[: self._rng.randrange(len(first))] + second[self._rng.randrange(len(second)) :]

    # --- with keys that are nobody's, or that may not do this ---

    def _stranger(self) -> Signer:
        return self._rng.choice(self._strangers)

    def _member(self) -> Signer:
        return self._rng.choice(self._stolen or self._strangers)

    def _person_of(self, signer: Signer) -> Person:
        key = self._ledger.root.key(key_id(signer.algorithm, signer.public))
        return key.person if key is not None else self._rng.choice(sorted(self._ledger.root.people_of(Role.REQUESTER)))

    def _op(self, action: Action = Action.PUT) -> Op:
        flag = FlagKey(self._rng.choice(self._flags))
        op = Op(Target.FLAG, Source(""), flag, Seq(0), action, _BAIT if action is Action.PUT else None)
        return replace(op, expected_version=self._ledger.snapshot.version_of(op.state_id))

    def _proposal(self, signer: Signer, *, kind: ProposalKind = ProposalKind.CHANGE) -> Envelope:
        now_ms = self._now_ms()
        action = Action.KILL if kind is ProposalKind.EMERGENCY else Action.PUT
        return seal(
            PROPOSAL,
            Proposal(
                log_id=self._ledger.root.log_id,
                proposal_id=self._rng.randbytes(13).hex().upper(),
                requester=self._person_of(signer),
                created_at=now_ms,
                expires_at=now_ms + 600_000,
                kind=kind,
                title="harmless \x1b[2K\u202e",
                reason="nobody will look",
                ticket=None,
                ops=(self._op(action),),
                activate_at=None,
                min_pin=Seq(0),
            ),
            [signer],
        )

    def _emergency(self, signer: Signer) -> Envelope:
        return self._proposal(signer, kind=ProposalKind.EMERGENCY)

    def _approval_of(self, sha256: bytes, signer: Signer) -> Envelope:
        now_ms = self._now_ms()
        statement = Approval(
            self._ledger.root.log_id, sha256, self._person_of(signer), Decision.APPROVE, now_ms, now_ms + 600_000, None
        )
        return seal(APPROVAL, statement, [signer])

    def _approval(self) -> bytes:
        """An approval, by a stranger's key, of what really waits or of what never was."""
        waiting = [e for e in map(_envelope_or_none, self.heard[Stream.INBOX]) if e and e.payload_type in _PROPOSALS]
        sha256 = digest(self._rng.choice(waiting)) if waiting else self._rng.randbytes(32)
        return encode_envelope(self._approval_of(sha256, self._stranger()))

    def _body(self) -> Release:
        member = self._member()
        proposal = self._proposal(member)
        return Release(proposal, (self._approval_of(digest(proposal), self._stranger()),), "approvals>=1")

    def _sealed_entry(self, body: Body, signer: Signer) -> bytes:
        return encode_envelope(seal(ENTRY, self._next(body), [signer]))

    def _next(self, body: Body) -> Entry:
        return next_entry(self._ledger, body, now_ms=self._now_ms())

    def _entry(self, signer: Signer, *, past: bool = False, ahead: bool = False) -> bytes:
        entry = self._next(self._body())
        if past:
            seq = Seq(self._rng.randint(1, self._ledger.head.seq.number))
            entry = replace(entry, seq=seq, prev_hash=self._ledger.hash_at(Seq(seq.number - 1)))
        if ahead:
            entry = replace(entry, seq=Seq(entry.seq.number + self._rng.randint(1, 10**9)))
        return encode_envelope(seal(ENTRY, entry, [signer]))

    def _entry_under_another_name(self) -> bytes:
        """Names the publisher's key, and is signed with another one."""
        publisher = self._rng.choice(sorted(self._ledger.root.grant(Role.PUBLISHER).key_ids))
        payload = ENTRY.encode(self._next(self._body()))
        signature = self._stranger().sign(pae(ENTRY.payload_type, payload))
        return encode_envelope(
            Envelope(ENTRY.payload_type, ENTRY.schema_sha256, payload, (Signature(publisher, signature),))
        )

    def _crowded(self, count: int) -> bytes:
        """So many signatures, each of them wrong, under names that must be looked at."""
        names = sorted(self._ledger.root.record.keys, key=lambda key: key.key_id)
        signatures = tuple(
            Signature(self._rng.choice(names).key_id, self._rng.randbytes(self._rng.choice([0, 63, 64, 65])))
            for _ in range(count)
        )
        envelope = Envelope(ENTRY.payload_type, ENTRY.schema_sha256, ENTRY.encode(self._next(self._body())), signatures)
        return encode_envelope(envelope)

    def _foreign_entry(self) -> bytes:
        entry = replace(self._next(self._body()), log_id=LogId("staging"))
        return encode_envelope(seal(ENTRY, entry, [self._member()]))

    def _next_root(self, signer: Signer) -> Envelope:
        """The next root as one person would like it: with every role for a key of theirs."""
        root, mine = self._ledger.root, self._stranger()
        listed = RootKey(
            key_id(mine.algorithm, mine.public), mine.algorithm, mine.public, Person("mallory@example.org")
        )
        every = RoleGrant(frozenset({listed.key_id}), 1)
        record = replace(
            root.record,
            version=root.version + 1,
            prev_root_sha256=root.sha256,
            anchor_seq=self._ledger.head.seq,
            anchor_hash=self._ledger.head.entry_hash,
            keys=(listed,),
            roles=dict.fromkeys((Role.ROOT, Role.REQUESTER, Role.PUBLISHER, Role.HEARTBEAT), every),
        )
        return seal(ROOT, record, [signer, mine] if signer is not mine else [mine])

    def _root_entry(self) -> bytes:
        """Signed by a publisher key of that root, as the entry that replaces a lost one is."""
        root = self._next_root(self._member())
        mine = next(s for s in self._strangers if key_id(s.algorithm, s.public) == root.signatures[-1].key_id)
        entry = replace(self._next(RootUpdate(root)), epoch=self._ledger.head.epoch + 1)
        return encode_envelope(seal(ENTRY, entry, [mine]))

    def _ratification(self) -> bytes:
        return self._sealed_entry(Ratification(self._rng.randbytes(32), ()), self._member())

    def _beat(self, signer: Signer, *, ahead: int = 0) -> bytes:
        now_ms, head = self._now_ms(), self._ledger.head
        beat = Heartbeat(
            log_id=self._ledger.root.log_id,
            beat_no=2**52,
            issued_at=now_ms,
            expires_at=now_ms + BEAT_LIFE_MS,
            seq=Seq(head.seq.number + ahead),
            head_hash=self._rng.randbytes(32),
            epoch=head.epoch,
            root_version=self._ledger.root.version,
            holder="the real one",
            state_root=None,
            checkpoint_seq=Seq(0),
        )
        return encode_envelope(seal(HEARTBEAT, beat, [signer]))


_PROPOSALS: Final = frozenset({PROPOSAL.payload_type})


def _envelope_or_none(data: bytes) -> Envelope | None:
    try:
        return decode_envelope(data)
    except Refused:
        return None


# --- Avro that costs more to read than to write ---


def _long(number: int) -> bytes:
    """Return a number as Avro writes it: zigzag, seven bits a byte."""
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 0x7F:
        out += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return out + bytes([rest])


def _bytes(data: bytes) -> bytes:
    return _long(len(data)) + data


def _head(payload: bytes) -> bytes:
    return _bytes(ENTRY.payload_type.encode()) + _bytes(ENTRY.schema_sha256) + _bytes(payload)


def _bomb_of_signatures(rng: random.Random) -> bytes:
    """As many signatures as an envelope's bytes have room for, two bytes each; in one block, or in many."""
    count = rng.choice([17, 1000, 80_000])
    blocks = rng.choice([_long(count) + bytes(2 * count), (_long(1) + bytes(2)) * count])
    return _head(b"") + blocks + bytes(1)


def _bomb_of_lengths(rng: random.Random) -> bytes:
    """Lengths and counts that no buffer holds, negative ones among them."""
    claims = [_long(n) for n in (2**62, -(2**62), -1, 2**31, 2**63 - 1)] + [b"\xff" * 11]
    return rng.choice([b"", _head(b""), _bytes(ENTRY.payload_type.encode())]) + rng.choice(claims) + rng.choice(claims)


def _bomb_of_approvals(rng: random.Random) -> bytes:
    """An entry, signed by nobody, with approvals of four bytes each."""
    count = rng.choice([17, 1000, 60_000])
    frame = _bytes(b"production") + _long(3) + _bytes(bytes(32)) + _long(1) + _long(1) + _long(0) + _long(0)
    return _head(frame + bytes(4) + _long(count) + bytes(4 * count) + bytes(2)) + bytes(1)
