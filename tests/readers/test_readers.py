"""The readers of the topic in Go and Java print what our own verifier says, byte for byte, or they say no."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from flaghoist.codec import ENTRY, ROOT, decode_envelope, encode_envelope
from flaghoist.errors import Malformed
from flaghoist.ledger import Ledger
from flaghoist.log.location import create_log
from flaghoist.records import Envelope, EpochClaim, Preparation, Release, Revocation, RoleGrant, RootUpdate, Step
from flaghoist.release_plan import SHARE_MAX, Gate, Stage, Walk
from flaghoist.root import Root
from flaghoist.root_chain import beginning
from flaghoist.signing import countersign, key_id, pae
from flaghoist.values import Algorithm, FlagKey, LogId, ProposalKind, Role, Seq
from publisher.audit.account import Account, EntryKind
from publisher.audit.examination import Examination
from tests.forge import (
    ADA,
    DAY_MS,
    GRACE,
    LINUS,
    PUBLISHER,
    Forge,
    Key,
    allowing_rule,
    boolean_flag,
    gated_flag,
    release_plan,
    sealed_root,
)
from tests.readers import story
from tests.scenarios.operators import Operator

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = ("go", "java")
# A JVM on a busy machine takes seconds; without brokers the readers give up after 30 s.
ENDS_WITHIN_S = 90.0

pytestmark = pytest.mark.kafka
in_each_language = pytest.mark.parametrize("language", LANGUAGES)
OUTCOMES = {"dropped": "dropped", "repeated": "repeated", "void": "void", "gap": "gap", "forked": "forked"}


@dataclass(frozen=True)
class Told:
    """What a reader said."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def counts(self) -> dict[str, object]:
        (line,) = [line for line in self.err.splitlines() if line.startswith("{")]
        found: dict[str, object] = json.loads(line)
        return found


class Topic:
    """A ledger at the broker, holding the records that it is given, and readers of it."""

    def __init__(self, url: str, command: Callable[[str], tuple[str, ...]], directory: Path) -> None:
        self.url, self._command, self._directory = url, command, directory
        self.brokers, self.name = url.removeprefix("kafka://").split("/")
        asyncio.run(create_log(url))

    def write(self, records: Sequence[bytes | None]) -> None:
        """Write records with a producer that is not ours: it writes what anybody can."""

        async def write() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.brokers, enable_idempotence=True) as producer:
                sent = [await producer.send(self.name, record, key=b"any", partition=0) for record in records]
                await asyncio.gather(*sent)

        asyncio.run(write())

    async def write_in_a_transaction(self, records: Sequence[bytes]) -> AIOKafkaProducer:
        """Write records in a transaction that is not ended; return its producer, which the caller stops."""
        producer = AIOKafkaProducer(bootstrap_servers=self.brokers, transactional_id=f"{self.name}-{len(records)}")
        await producer.start()
        await producer.begin_transaction()
        for record in records:
            await producer.send_and_wait(self.name, record, partition=0)
        return producer

    def arguments(self, language: str, root: Root | str, *options: str) -> list[str]:
        if isinstance(root, Root):
            file = self._directory / f"{root.sha256.hex()}.root"
            file.write_bytes(encode_envelope(root.envelope))
            root = str(file)
        named = ("--brokers", self.brokers, "--topic", self.name, "--root", root)
        return [*self._command(language), *named, *options]

    def read(self, language: str, root: Root | str, *options: str) -> Told:
        """Run a reader to its end."""
        done = subprocess.run(
            self.arguments(language, root, *options),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )
        return Told(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture
def topic(kafka_url, command, tmp_path) -> Topic:
    return Topic(kafka_url(), command, tmp_path)


# --- what our own verifier says ---


def examined(trusted: Root, records: Sequence[bytes | None]) -> tuple[Examination, list[Account]]:
    begun = beginning(trusted.sha256, [data or b"" for data in records])
    examination = Examination(Ledger(begun.root, begun.pinned))
    taken = [examination.take(position, data or b"") for position, data in enumerate(records)]
    return examination, [account for account in taken if account is not None]


def expected_line(account: Account) -> dict[str, object]:
    """What a reader prints of an entry that it can judge as our verifier does; the fields in their order."""
    entry, proposal, root = account.entry, account.proposal, account.new_root
    if account.kind is EntryKind.ROOT and root is None:
        root = account.root  # the first one
    signers = {key.person for key in account.root_signers}
    return {
        "seq": entry.seq.number,
        "entry_hash": account.entry_hash.hex(),
        "prev_hash": entry.prev_hash.hex(),
        "epoch": entry.epoch,
        "root_version": entry.root_version,
        "published_at": entry.published_at,
        "kind": account.kind,
        "proposal_id": proposal.proposal_id if proposal else None,
        "proposal_sha256": account.proposal_sha256.hex() if account.proposal_sha256 else None,
        "requester": account.requester,
        "approvers": account.approvers,
        "policy": account.policy,
        "title": proposal.title if proposal else None,
        "reason": proposal.reason if proposal else None,
        "ticket": proposal.ticket if proposal else None,
        "ops": [{"target": op.target, "source": op.source, "key": op.key, "action": op.action} for op in account.ops],
        # What a step sets follows from the plan in force, which the readers do not hold.
        "moment": account.moment_ms if account.kind is not EntryKind.STEP else None,
        "release": entry.body.release if isinstance(entry.body, Step) else None,
        "stage": entry.body.stage if isinstance(entry.body, Step) else None,
        "new_root_version": root.version if root else None,
        "new_root_sha256": root.sha256.hex() if root else None,
        "root_signers": sorted(signers),
        "ratifies": account.ratified.seq.number if account.ratified else None,
        "holder": entry.body.holder if isinstance(entry.body, EpochClaim) and account.refusal is None else None,
        "refused": account.refusal.code if account.refusal else None,
        "checked": checked(account),
    }


def checked(account: Account) -> list[str]:
    approved = ["requester", "approvers", *([] if account.root.record.policy else ["policy"])]
    more = {
        EntryKind.CHANGE: approved,
        EntryKind.ROLLBACK: approved,
        EntryKind.PREPARATION: approved,
        EntryKind.STEP: [],
        EntryKind.DRILL: ["requester", "policy"],
        EntryKind.EMERGENCY: ["requester", "policy"],
        EntryKind.RATIFICATION: ["approvers"],
        EntryKind.ROOT: ["root"],
        EntryKind.EPOCH: [],
        EntryKind.REJECTED: ["requester"] if account.proposal is not None else [],
    }
    return ["chain", "publisher", *more[account.kind]]


def expected_output(accounts: Sequence[Account]) -> bytes:
    lines = [json.dumps(expected_line(account), separators=(",", ":")) for account in accounts]
    return "".join(f"{line}\n" for line in lines).encode()


def expected_counts(examination: Examination) -> dict[str, object]:
    tally, head = examination.tally, examination.ledger.head
    return {
        "records": examination.records,
        "entries": head.seq.number,
        **{name: tally[outcome] for name, outcome in OUTCOMES.items()},
        "head": head.seq.number,
        "head_hash": head.entry_hash.hex(),
    }


def assert_agrees(told: Told, trusted: Root, records: Sequence[bytes | None]) -> None:
    examination, accounts = examined(trusted, records)
    assert told.out.splitlines() == expected_output(accounts).splitlines(), told.err
    assert told.counts == expected_counts(examination)
    assert told.code == (0 if examination.broken is None else 10), told.err


# --- the whole story ---


def disturbed(forge: Forge) -> list[bytes | None]:
    """The records of a ledger, and beside them what people without a publisher's key, or without its place, write."""
    records: list[bytes | None] = list(forge.records)
    entries = [ENTRY.decode(decode_envelope(data).payload) for data in forge.records]
    claim = next(at for at, entry in enumerate(entries) if isinstance(entry.body, EpochClaim))
    late = replace(entries[claim], body=EpochClaim("too late"))
    forged = replace(entries[4], seq=forge.ledger.head.seq.next())
    strangers, release = Key(PUBLISHER, "of nobody"), entries[-1].body
    records.insert(claim + 1, forge.signed(late, by=Key(PUBLISHER)))
    records.insert(claim + 1, records[2])
    records.insert(3, b"junk")
    records.insert(2, os.urandom(600 * 1024))
    records.insert(2, b"")
    records.insert(2, None)
    records += [
        forge.signed(forged, by=strangers),
        forge.signed(forged, by=Key(ADA)),
        forge.signed(forge.entry(EpochClaim("of no epoch"), epoch=forge.ledger.head.epoch), by=story.NEW_PUBLISHER),
        forge.signed(forge.entry(release, epoch=forge.ledger.head.epoch + 1), by=story.NEW_PUBLISHER),
        forge.beat(),
        encode_envelope(forge.proposal(forge.op("checkout", boolean_flag()))),
        records[0],
        forge.records[-1],
        forge.records[-1] + b"\0",
        forge.records[-1][:-1],
    ]
    return records


@pytest.fixture(scope="module")
def told_story() -> Forge:
    return story.told()


@pytest.fixture(scope="module")
def disturbed_story(told_story) -> list[bytes | None]:
    return disturbed(told_story)


@in_each_language
def test_reader_prints_each_entry_as_our_verifier_judges_it(language, topic, told_story, disturbed_story):
    topic.write(disturbed_story)
    told = topic.read(language, told_story.first_root)
    assert_agrees(told, told_story.first_root, disturbed_story)
    assert {line["kind"] for line in told.lines} == {kind.value for kind in EntryKind}
    assert {line["refused"] for line in told.lines} == {
        None, "same_person", "not_approved", "bad_signature", "expired", "wrong_root", "wrong_role", "wrong_log",
        "bad_definition", "not_yet",
    }  # fmt: skip
    first = next(line["seq"] for line in told.lines if line["kind"] == "ratification" and line["seq"] > 30) + 1
    hostile = told.lines[first - 1 : first - 1 + len(story.REFUSED_RELEASES)]
    assert [line["refused"] for line in hostile] == story.REFUSED_RELEASES
    assert all(told.counts[name] for name in ("dropped", "repeated", "void"))


def test_both_readers_print_the_same_bytes(topic, told_story, disturbed_story):
    topic.write(disturbed_story)
    go, java = (topic.read(language, told_story.first_root) for language in LANGUAGES)
    assert go.out == java.out
    assert go.counts == java.counts
    assert (go.code, java.code) == (0, 0)


@in_each_language
def test_reader_agrees_with_audit_export_of_the_same_topic(language, topic, told_story, disturbed_story, tmp_path):
    topic.write(disturbed_story)
    auditor = Operator(tmp_path / "auditor")
    file = tmp_path / "pinned.root"
    file.write_bytes(encode_envelope(told_story.first_root.envelope))
    auditor.ok("root", "pin", file, "--ledger", topic.url, "--yes")
    events = [json.loads(line) for line in auditor.ok("audit", "export").out.splitlines()]
    told = topic.read(language, str(file))
    for line in told.lines:
        mine = [event for event in events if event["seq"] == line["seq"]]
        for name in ("entry_hash", "prev_hash", "epoch", "root_version", "published_at", "kind", "proposal_id",
                     "proposal_sha256", "policy", "title", "reason", "ticket", "holder"):  # fmt: skip
            assert line[name] == mine[0][name], name
        if line["kind"] == "step":
            assert (line["release"], line["stage"]) == (mine[0]["release"], mine[0]["step"]["stage"])
            assert (line["ops"], line["moment"]) == ([], None)
            continue
        assert line["moment"] == mine[0]["moment"]
        assert line["requester"] == (mine[0]["initiator"] or {}).get("person")
        assert line["approvers"] == [approval["person"] for approval in mine[0]["approvals"]]
        assert line["refused"] == (mine[0]["refusal"] or {}).get("code")
        assert line["ratifies"] == (mine[0]["ratified"] or {}).get("seq")
        names = ("target", "source", "key", "action")
        done = [{name: event[name] for name in names} for event in mine if event["target"]]
        assert line["ops"] == (mine[0]["asked"] or done)
    assert len(told.lines) == len({event["seq"] for event in events})
    logged = {entry["seq"]: entry for entry in auditor.ok("audit", "log", "--json").document}
    assert {line["seq"]: line["root_signers"] for line in told.lines if line["seq"] != 1} == {
        seq: entry["root_signers"] for seq, entry in logged.items() if seq != 1
    }


# --- where trust begins ---


@in_each_language
def test_reader_starts_from_the_digest_of_a_later_root(language, topic, told_story, disturbed_story):
    topic.write(disturbed_story)
    newest = told_story.ledger.root
    assert newest.version == 2
    assert_agrees(topic.read(language, f"sha256:{newest.sha256.hex()}"), newest, disturbed_story)
    assert topic.read(language, newest).code == 0


@in_each_language
def test_reader_refuses_a_topic_that_ends_before_the_root_that_it_trusts(language, topic, told_story):
    # The root is stated by somebody who is no publisher: that leads back to the first one, and never into force.
    before = [data for data in told_story.records if ENTRY.decode(decode_envelope(data).payload).epoch < 3]
    stated = told_story.entry(RootUpdate(told_story.ledger.root.envelope))
    records = [*before, told_story.signed(stated, by=Key(ADA))]
    topic.write(records)
    told = topic.read(language, told_story.ledger.root)
    assert_agrees(told, told_story.ledger.root, records)
    assert told.code == 10
    assert "root version 2 is trusted, version 1 is in force" in told.err


@in_each_language
def test_reader_refuses_the_topic_of_another_environment(language, topic, told_story):
    topic.write(Forge(log_id="other").genesis() and told_story.records)
    told = topic.read(language, Forge(log_id="other").first_root)
    assert (told.code, told.out) == (10, b"")
    assert "does not state it" in told.err


@in_each_language
def test_reader_refuses_an_empty_topic(language, topic, told_story):
    told = topic.read(language, told_story.first_root)
    assert (told.code, told.out) == (10, b"")


@in_each_language
def test_other_root_of_the_version_that_is_trusted_does_not_come_into_force(language, topic):
    forge = story.begun()
    story.change(forge, forge.op("checkout", boolean_flag()), title="before")
    trusted = forge.root.successor(forge.next_root(Key(ADA), Key(GRACE), expires_at=forge.now_ms + 30 * DAY_MS))
    forge.rotate(Key(ADA), Key(GRACE))
    stated = forge.signed(forge.entry(RootUpdate(trusted.envelope)), by=Key(LINUS))
    records = [stated, *forge.records]
    topic.write(records)
    told = topic.read(language, trusted)
    assert_agrees(told, trusted, records)
    assert told.lines[-1]["refused"] == "wrong_root"
    assert told.code == 10


# --- histories that are not whole ---


@in_each_language
def test_entry_that_is_missing_ends_with_10(language, topic, told_story):
    records = told_story.records[:4] + told_story.records[5:]
    topic.write(records)
    told = topic.read(language, told_story.first_root)
    assert_agrees(told, told_story.first_root, records)
    assert told.code == 10
    assert "expected seq 5, got 6" in told.err


def forked() -> tuple[Forge, bytes]:
    """A ledger, and another entry for its last place, signed by the same publisher."""
    forge = story.begun()
    story.change(forge, forge.op("checkout", boolean_flag()), title="honest")
    head = forge.ledger.head
    branch = Forge(log_id="staging")
    branch.root = forge.first_root
    branch.ledger.receive(forge.records[0])
    branch.now_ms = forge.now_ms
    forged = story.change(branch, branch.op("checkout", boolean_flag("on")), title="stolen")
    assert head == forge.ledger.head
    return forge, forged


@in_each_language
def test_two_histories_of_one_publisher_end_with_10_and_are_told(language, topic):
    forge, forged = forked()
    story.change(forge, forge.op("later", boolean_flag()), title="honest, and after it")
    records = [*forge.records[:2], forged, *forge.records[2:]]
    topic.write(records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, records)
    assert told.code == 10
    assert "record at position 2: another history" in told.err
    assert told.counts["forked"] == 1


@in_each_language
def test_fork_is_over_when_a_root_takes_the_keys_role_away(language, topic):
    forge, forged = forked()
    forge.ledger.receive(forged)
    story.rotated(forge)
    story.change(forge, forge.op("later", boolean_flag()), title="after the cure", rule="anybody",
                 signed_by=story.NEW_PUBLISHER)  # fmt: skip
    records = [*forge.records[:2], forged, *forge.records[2:]]
    topic.write(records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, records)
    assert told.code == 0
    assert told.counts["forked"] == 1


@in_each_language
def test_record_of_a_newer_release_ends_the_reading(language, topic):
    forge = story.begun()
    newer = Envelope("application/vnd.flaghoist.entry.v2+avro", bytes(32), b"future", ())
    topic.write([*forge.records, encode_envelope(countersign(newer, [Key(PUBLISHER)]))])
    told = topic.read(language, forge.first_root)
    assert told.code == 10
    assert "written by a newer release" in told.err
    assert len(told.lines) == 1


# --- tampering, many times ---


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with one thing wrong."""
    at = chance.randrange(len(data))
    match chance.randrange(4):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
        case _:
            return data[:at] + data[at + chance.randrange(1, 9) :]


@in_each_language
@pytest.mark.parametrize("seed", range(3))
def test_tampered_copies_of_records_are_dropped_as_our_verifier_drops_them(language, seed, topic, told_story):
    chance = random.Random(seed)
    records = []
    for data in told_story.records:
        records += [data, *(mutated(chance.choice(told_story.records), chance) for _ in range(20))]
    topic.write(records)
    told = topic.read(language, told_story.first_root)
    assert_agrees(told, told_story.first_root, records)
    assert told.code == 0
    assert told.counts["entries"] == len(told_story.records)


@in_each_language
@pytest.mark.parametrize("seed", range(5))
def test_tampered_payloads_that_the_publisher_signs_are_judged_alike(language, seed, topic, told_story):
    """With its key somebody can write what no release would: readers must not differ about any of it."""
    chance = random.Random(seed)
    records = list(told_story.records)
    for data in told_story.records:
        envelope = decode_envelope(data)
        for _ in range(15):
            tampered = replace(envelope, payload=mutated(envelope.payload, chance), signatures=())
            key = chance.choice([Key(PUBLISHER), story.NEW_PUBLISHER])
            records.append(encode_envelope(countersign(tampered, [key])))
    honest, tail = told_story.records, records[len(told_story.records) :]
    chance.shuffle(tail)
    half, middle = len(tail) // 2, len(honest) // 2
    records = [*honest[:middle], *tail[:half], *honest[middle:], *tail[half:]]
    topic.write(records)
    assert_agrees(topic.read(language, told_story.first_root), told_story.first_root, records)


ORDER = 2**252 + 27742317777372353535851937790883648493


def s_too_large(approval: Envelope, signature: bytes) -> bytes:
    """S plus the group's order: a second signature, made without the key."""
    return signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")


def r_of_small_order(approval: Envelope, signature: bytes) -> bytes:
    """R is the neutral element and S = k·a: verifies by the formula of RFC 8032; libsodium refuses it."""
    return small_order_signature(approval, bytes([1]) + bytes(31))


def small_order_signature(approval: Envelope, r: bytes) -> bytes:
    key = Key(GRACE)
    secret = bytearray(hashlib.sha512(bytes(key.secret)).digest()[:32])
    secret[0] &= 248
    secret[31] = secret[31] & 63 | 64
    message = pae(approval.payload_type, approval.payload)
    k = int.from_bytes(hashlib.sha512(r + key.public + message).digest(), "little")
    return r + (k * int.from_bytes(secret, "little") % ORDER).to_bytes(32, "little")


def r_not_canonical(approval: Envelope, signature: bytes) -> bytes:
    """The same with p + 1 for R's y, which is 1."""
    return small_order_signature(approval, bytes([0xEE, *[0xFF] * 30, 0x7F]))


def der_of_another_length(approval: Envelope, signature: bytes) -> bytes:
    """A zero too many before r, which has none of its own."""
    while signature[3] != 32:
        signature = story.P256.sign(pae(approval.payload_type, approval.payload))
    return bytes([0x30, signature[1] + 1, 2, signature[3] + 1, 0]) + signature[4:]


def der_with_trailing_bytes(approval: Envelope, signature: bytes) -> bytes:
    return signature + b"\0"


def of_another_key(approval: Envelope, signature: bytes) -> bytes:
    """A genuine P-256 signature, under another key's name."""
    return story.P256Key(story.MARY, "another", Algorithm.ECDSA_P256).sign(pae(approval.payload_type, approval.payload))


def of_bare_pae(approval: Envelope, signature: bytes) -> bytes:
    """The SSH key's own signature, of the message without OpenSSH's wrapping: what no agent would make."""
    return Key(story.TOVE, "ssh").sign(pae(approval.payload_type, approval.payload))


def of_another_message(approval: Envelope, signature: bytes) -> bytes:
    return Key(GRACE).sign(b"another message")


def nothing(approval: Envelope, signature: bytes) -> bytes:
    return b""


ODD = [
    (GRACE, s_too_large), (GRACE, r_of_small_order), (GRACE, r_not_canonical),
    (GRACE, of_another_message), (GRACE, nothing),
    (story.MARY, der_of_another_length), (story.MARY, der_with_trailing_bytes), (story.MARY, of_another_key),
    (story.MARY, nothing), (story.TOVE, of_bare_pae), (story.TOVE, nothing),
]  # fmt: skip


@in_each_language
def test_signature_that_a_lenient_library_would_take_is_refused(language, topic):
    forge = story.begun()
    for person, odd in ODD:
        forge.now_ms += story.HOUR_MS
        proposal = story.asked(forge, forge.op("checkout", boolean_flag()), by=ADA, title=odd.__name__)
        (approval,) = story.approved(forge, proposal, person)
        (signature,) = approval.signatures
        signed = replace(signature, signature=odd(approval, signature.signature))
        forge.append(Release(proposal, (replace(approval, signatures=(signed,)),), "approvals>=1"))
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, forge.records)
    assert [line["refused"] for line in told.lines] == [None, *["bad_signature"] * len(ODD)]


WEAK = {
    "neutral element": bytes([1]) + bytes(31),
    "order 2": bytes([0xEC, *[0xFF] * 30, 0x7F]),
    "order 8": bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    "not canonical": bytes([0xEE, *[0xFF] * 30, 0x7F]),
    "not on the curve": bytes([2]) + bytes(31),
    "of mixed order": bytes.fromhex("da99e28ba529cdde35a25fba9059e78ecaee239f99755b9b1aa4f65df00803e2"),
}


@in_each_language
@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.SSHSIG_ED25519])
@pytest.mark.parametrize("weak", list(WEAK))
def test_root_with_a_key_that_nobody_can_hold_honestly_is_refused(language, algorithm, weak, command, tmp_path):
    public = WEAK[weak]
    record = story.first_root()
    listed = replace(record.keys[-1], algorithm=algorithm, public=public, key_id=key_id(algorithm, public))
    file = tmp_path / "weak.root"
    file.write_bytes(encode_envelope(sealed_root(replace(record, keys=(*record.keys, listed)), Key(ADA), Key(GRACE))))
    with pytest.raises(Malformed, match="prime-order group"):
        Root.from_bytes(file.read_bytes())
    done = subprocess.run(
        [*command(language), "--brokers", "127.0.0.1:1", "--topic", "flags", "--root", str(file)],
        cwd=REPOSITORY, capture_output=True, timeout=ENDS_WITHIN_S, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not a point of the prime-order group" in done.stderr


def bad_roots(forge: Forge) -> Iterator[tuple[str, Envelope]]:
    """Roots that must not come into force, each with the code of why."""
    record = forge.root.record
    roots = record.roles[Role.ROOT]
    signers = (Key(ADA), Key(GRACE))

    def with_threshold(count: int) -> dict[str, object]:
        return {"roles": {**record.roles, Role.ROOT: replace(roots, threshold=count)}}

    yield "not_approved", forge.next_root(Key(ADA))
    yield "not_approved", forge.next_root(Key(ADA), **with_threshold(1))
    yield "not_approved", forge.next_root(*signers, **with_threshold(3))
    yield "not_approved", forge.next_root(Key(ADA), Key(story.PUBLISHER), Key(GRACE, "emergency"))
    yield "wrong_root", forge.next_root(*signers, anchor_hash=bytes([1]) * 32)
    yield "wrong_root", forge.next_root(*signers, anchor_seq=Seq(1000))
    yield "wrong_log", forge.next_root(*signers, log_id=LogId("production"))
    yield "malformed", forge.next_root(*signers, version=record.version + 2)
    yield "malformed", forge.next_root(*signers, version=record.version)
    yield "malformed", forge.next_root(*signers, prev_root_sha256=bytes([1]) * 32)
    yield "malformed", forge.next_root(*signers, anchor_seq=Seq(0))
    yield "malformed", forge.next_root(*signers, fractional="v3")
    yield "malformed", forge.next_root(*signers, keys=(*record.keys, record.keys[0]))
    twice = replace(record.keys[0], algorithm=Algorithm.SSHSIG_ED25519)
    twice = replace(twice, key_id=key_id(twice.algorithm, twice.public))
    yield "malformed", forge.next_root(*signers, keys=(*record.keys, twice))
    yield "malformed", forge.next_root(*signers, keys=(replace(record.keys[0], key_id=twice.key_id), *record.keys[1:]))
    yield "malformed", forge.next_root(*signers, keys=record.keys[1:])
    yield "malformed", forge.next_root(*signers, revoked=(Revocation(record.keys[0].key_id, None, "gone"),))
    yield "malformed", forge.next_root(*signers, revoked=(Revocation(twice.key_id, None, "gone"),))
    yield "malformed", forge.next_root(*signers, **with_threshold(6))
    yield "malformed", forge.next_root(*signers, **with_threshold(0))
    yield "expired", forge.next_root(*signers, expires_at=forge.now_ms - 1)


@in_each_language
def test_root_that_must_not_come_into_force_is_rejected(language, topic):
    forge = story.begun()
    story.change(forge, forge.op("checkout", boolean_flag()), title="before")
    wanted = []
    for code, root in bad_roots(forge):
        wanted.append(code)
        forge.append(RootUpdate(root))
        # The same by somebody whom that root would make a publisher: nobody's word.
        forge.records.append(forge.signed(forge.entry(RootUpdate(root)), by=story.NEW_PUBLISHER))
    keys = (*forge.root.record.keys, story.NEW_PUBLISHER.listed)
    publishers = RoleGrant(frozenset({story.NEW_PUBLISHER.listed.key_id}), 1)
    seized = forge.next_root(Key(GRACE), keys=keys, roles={**forge.root.record.roles, Role.PUBLISHER: publishers})
    forge.records.append(forge.signed(forge.entry(RootUpdate(seized)), by=story.NEW_PUBLISHER))
    record = ROOT.decode(seized.payload)
    for changes in ({"anchor_hash": bytes([1]) * 32}, {"expires_at": forge.now_ms - 1}):
        signed = sealed_root(replace(record, **changes), Key(ADA), Key(GRACE))
        forge.records.append(forge.signed(forge.entry(RootUpdate(signed)), by=story.NEW_PUBLISHER))
    story.change(forge, forge.op("checkout", boolean_flag("on")), title="after")
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, forge.records)
    assert [line["refused"] for line in told.lines] == [None, None, *wanted, None]
    assert told.code == 0


@in_each_language
def test_root_that_forgets_a_revoked_key_is_rejected(language, topic):
    forge = story.begun()
    story.rotated(forge)
    forge.rotate(Key(ADA), story.SSH, signed_by=story.NEW_PUBLISHER, revoked=forge.root.record.revoked[1:])
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, forge.records)
    assert told.lines[-1]["refused"] == "malformed"


# --- what is left to our verifier ---


@in_each_language
def test_stale_base_and_a_policys_rule_are_printed_as_what_the_entry_claims(language, topic, told_story):
    forge = story.told()
    second = {"signed_by": story.NEW_PUBLISHER, "rule": "anybody"}
    story.change(forge, forge.op("banner", boolean_flag(), version=1), title="on an old base", **second)
    story.change(forge, forge.op("pay.card", boolean_flag("on")), title="one approval of two", **second)
    _, accounts = examined(forge.first_root, forge.records)
    assert [account.kind for account in accounts[-2:]] == [EntryKind.REJECTED, EntryKind.REJECTED]
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert told.code == 0
    for line in told.lines[-2:]:
        assert line["kind"] == "change"
        assert line["policy"] == "anybody"
        assert line["checked"] == ["chain", "publisher", "requester", "approvers"]


def left_releases(forge: Forge) -> list[str]:
    """Append entries about releases that only who holds definitions can refuse; return the codes of our verifier."""
    key, plan = FlagKey("spring"), forge.plan("spring", share=0, walk=Walk.ON)
    release = story.spring(forge)
    story.taken(forge, Step(key, release, 0))
    story.taken(forge, Step(FlagKey("nothing"), release, 0))
    story.taken(forge, story.proposed(forge, forge.release_op("spring", plan), title="walk it again"))
    walked = story.spring(forge)
    story.taken(forge, Step(key, release, 0))
    story.taken(forge, Step(key, walked, 2))
    story.taken(forge, Step(key, walked, -1))
    story.taken(forge, Step(key, walked, 0))
    early = Step(key, story.spring(forge), 1)
    forge.append(early, signed_by=story.NEW_PUBLISHER)
    opened = forge.hoist("spring", share=2000)
    story.taken(forge, story.proposed(forge, opened, title="opens a gate", kind=ProposalKind.ROLLBACK))
    note = gated_flag("spring", metadata={"note": "edited"})
    story.taken(forge, story.proposed(forge, forge.op("cart.spring", note), title="a note"))
    back = forge.hoist("spring", share=0, walk=Walk.OFF)
    story.taken(forge, story.proposed(forge, back, title="would lose the note", kind=ProposalKind.ROLLBACK))
    loose = story.proposed(
        forge, forge.release_op("loose", release_plan("banner", gate=Gate(share=1000))), title="loose"
    )
    story.taken(forge, loose)
    return [
        "bad_definition", "bad_definition", "", "stale_base", "bad_definition", "bad_definition", "", "not_yet",
        "bad_definition", "", "revert_conflict", "bad_definition",
    ]  # fmt: skip


@in_each_language
def test_what_plans_and_definitions_say_of_steps_and_rollbacks_is_printed_as_what_the_entry_claims(language, topic):
    forge = story.told()
    codes = left_releases(forge)
    examination, accounts = examined(forge.first_root, forge.records)
    assert [account.refusal.code if account.refusal else "" for account in accounts[-len(codes) :]] == codes
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert told.code == 0
    assert told.counts == expected_counts(examination)
    for line, account in zip(told.lines[-len(codes) :], accounts[-len(codes) :], strict=True):
        assert line["refused"] is None
        if isinstance(account.entry.body, Step):
            assert (line["kind"], line["checked"]) == ("step", ["chain", "publisher"])
            assert (line["release"], line["stage"]) == (account.entry.body.release, account.entry.body.stage)
            assert (line["requester"], line["approvers"], line["policy"]) == (None, [], None)
        else:
            assert line["kind"] in ("change", "rollback")
            assert line["checked"] == ["chain", "publisher", "requester", "approvers"]


@in_each_language
def test_time_of_a_step_a_preparation_or_a_drill_holds_up_no_later_entry(language, topic):
    """A publisher alone may date a step; had its time counted, approvals of that day would have expired since."""
    forge = story.begun()
    stages = (Stage("1%", False, 1000, 0), Stage("all", False, SHARE_MAX, 0))
    plan = release_plan("cart", stages=stages, gate=Gate(walk=Walk.ON))
    story.change(forge, forge.release_op("sale", plan), forge.op("cart", gated_flag("sale")), title="a walked sale")
    version = forge.ledger.snapshot.releases[FlagKey("sale")].version
    forge.append(Step(FlagKey("sale"), version, 0), published_at=forge.now_ms + 30 * DAY_MS)
    proposal = story.asked(forge, forge.op("cart", gated_flag("sale")), by=ADA, title="shown", acked_percent=50)
    approvals = story.approved(forge, proposal, GRACE)
    body = Release(proposal, approvals, allowing_rule(forge.root))
    forge.append(Preparation(body), published_at=forge.now_ms + DAY_MS // 2)
    drill = story.asked(forge, story.drill_op(forge, hoisted=True), by=ADA, title="rehearse", kind=ProposalKind.DRILL,
                        expires_at=forge.now_ms + 40 * DAY_MS)  # fmt: skip
    forge.append(Release(drill, (), "drill"), published_at=forge.now_ms + 40 * DAY_MS)
    story.change(forge, forge.op("other", boolean_flag()), title="on the same day")
    forge.append(body)
    topic.write(forge.records)
    told = topic.read(language, forge.first_root)
    assert_agrees(told, forge.first_root, forge.records)
    assert [line["kind"] for line in told.lines[1:]] == ["change", "step", "preparation", "drill", "change", "change"]


@in_each_language
def test_transactions_of_others_hold_no_reader_up(language, topic, told_story):
    """One is aborted, one is left open; what they hold is read as what it is, and the entries after them count."""
    honest = told_story.records

    async def write() -> None:
        aborted = await topic.write_in_a_transaction([b"junk"])
        await aborted.abort_transaction()
        await aborted.stop()
        open_one = await topic.write_in_a_transaction([b"more", b"junk"])
        try:
            await asyncio.to_thread(topic.write, honest[2:])
            told.append(await asyncio.to_thread(topic.read, language, told_story.first_root))
        finally:
            await open_one.abort_transaction()
            await open_one.stop()

    told: list[Told] = []
    topic.write(honest[:2])
    asyncio.run(write())
    assert_agrees(told[0], told_story.first_root, [*honest[:2], b"junk", b"more", b"junk", *honest[2:]])
    assert told[0].code == 0


# --- following, and the world around ---


@contextmanager
def following(arguments: Sequence[str]) -> Iterator[tuple["subprocess.Popen[bytes]", list[bytes]]]:
    """Run a reader that follows; its lines are collected as they come."""
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines: list[bytes] = []

    reader = threading.Thread(target=lambda: [lines.append(line) for line in iter(process.stdout.readline, b"")])
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)  # between two looks at a condition, with a deadline


@in_each_language
def test_reader_that_follows_prints_what_comes_and_stops_at_a_fork(language, topic):
    forge, forged = forked()
    topic.write(forge.records)
    with following(topic.arguments(language, forge.first_root, "--follow")) as (process, lines):
        until(lambda: len(lines) == 2)
        story.change(forge, forge.op("later", boolean_flag()), title="comes later")
        topic.write(forge.records[2:])
        until(lambda: len(lines) == 3)
        assert json.loads(lines[2])["title"] == "comes later"
        assert process.poll() is None
        topic.write([forged])
        assert process.wait(ENDS_WITHIN_S) == 10


@in_each_language
def test_topic_that_is_not_there_is_unavailable(language, topic, told_story):
    topic.name = "no-such-topic"
    told = topic.read(language, told_story.first_root)
    assert (told.code, told.out) == (12, b"")


@in_each_language
@pytest.mark.parametrize(
    "options", [(), ("--brokers", "127.0.0.1:1"), ("--nonsense", "1")], ids=["none", "some", "unknown"]
)
def test_wrong_usage_ends_with_2(language, options, command):
    done = subprocess.run([*command(language), *options], capture_output=True, timeout=ENDS_WITHIN_S, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
