"""Every drill of docs/recovery.md, as it stands there, after what it is about has really been done."""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from flaghoist.codec import ENTRY, HEARTBEAT, encode_envelope
from flaghoist.freshness import BEAT_LIFE_MS
from flaghoist.ledger import next_entry, replay
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import KafkaLocation, create_log, open_log, parse
from flaghoist.records import Heartbeat, Ratification
from flaghoist.root import Root
from flaghoist.signing import Signer, seal
from flaghoist.values import Seq
from publisher.heart import BEAT_KEY
from tests.scenarios.operators import Operator
from tests.security.drill import DOCUMENT, NOTICED_S, Drill, Stage, titles_of
from tests.security.looking import metrics, until
from tests.security.production import Production

FLAG = {
    "flag": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"},
    "governance": {"safe_variant": "off", "owner": "linus@example.org"},
}
LIMIT = {
    "flag": {"state": "ENABLED", "variants": {"low": 10, "high": 1000, "none": 0}, "defaultVariant": "low"},
    "governance": {"safe_variant": "none", "owner": "linus@example.org"},
}
EXPIRES_WITHIN_S = 120.0


@pytest.fixture
def production(tmp_path: Path) -> Production:
    production = Production.begun(tmp_path, f"sqlite:///{tmp_path}/ledger.db")
    begin_flag(production, tmp_path)
    return production


@pytest.fixture
def stage(production: Production, tmp_path: Path) -> Iterator[Stage]:
    """A publisher's service and two pods; `newCheckout` is off, in seq 2."""
    with Stage(production, tmp_path) as stage:
        stage.start_publisher()
        for pod in ("pod-a", "pod-b"):
            stage.start_pod(pod)
        yield stage


def begin_flag(production: Production, directory: Path, key: str = "newCheckout", flag: object = FLAG) -> None:
    file = directory / f"{key}.json"
    file.write_text(json.dumps(flag))
    production.change(key, file)


async def records_of(url: str, stream: Stream) -> list[bytes]:
    async with open_log(url)(stream) as log:
        return [record.value async for record in read_to_end(log)]


async def write(url: str, stream: Stream, *records: bytes, key: bytes | None = None) -> None:
    async with open_log(url)(stream) as log:
        for record in records:
            await log.append(record, key=key)


def entry_after(production: Production, records: Sequence[bytes], signer: Signer) -> bytes:
    """Return another entry than the honest one that will follow these, by somebody with the publisher's key."""
    ledger = replay(Root.from_bytes(production.root.read_bytes()), records)
    entry = next_entry(ledger, Ratification(bytes(32), ()), now_ms=time.time_ns() // 1_000_000)
    return encode_envelope(seal(ENTRY, entry, [signer]))


def show_other_history(stage: Stage, pod: str, url: str, records: Sequence[bytes]) -> None:
    """Have a pod see these records, as whoever stands between it and the ledger can."""
    stage.stop_pod(pod)
    asyncio.run(create_log(url))
    asyncio.run(write(url, Stream.LEDGER, *records))
    stage.start_pod(pod, url)
    until(lambda: metrics(stage.pods[pod])["flaghoist_seq"] == len(records), f"{pod} is deceived")


def all_at(stage: Stage, seq: int) -> bool:
    return all(metrics(pod)["flaghoist_seq"] == seq for pod in stage.pods.values())


def drill(stage: Stage, number: int) -> Drill:
    """Return the drill of that number."""
    (title,) = (t for t in titles_of(DOCUMENT.read_text()) if t.startswith(f"{number}. "))
    return Drill(stage, title)


def test_every_drill_of_the_document_is_run() -> None:
    text = Path(__file__).read_text()
    for title in titles_of(DOCUMENT.read_text()):
        number = title.split(".")[0]
        assert f"drill(stage, {number})" in text, title


def published_by(stage: Stage, asker: str, approver: str, *change: str) -> int:
    """Have a change proposed and approved, and wait until the service has published it; return its seq."""
    desks = stage.desks
    proposal = desks[asker].ok("propose", "set", *change, "--yes").out.strip()
    desks[approver].ok("approve", proposal, "--yes")
    seq: int = desks[asker].ok("publish", proposal, "--yes", "--json").document["seq"]
    return seq


def test_a_stolen_persons_key_is_replaced_and_what_it_did_is_found_and_taken_back(stage: Stage) -> None:
    seq = published_by(stage, "linus", "ada", "newCheckout", "--variant", "on")  # the thief, and Ada is deceived
    stage.variables |= {"STOLEN": stage.production.key_id("linus", "linus"), "SEQ": str(seq)}
    drill(stage, 1).rest()


def test_a_stolen_publisher_key_quarantines_and_a_root_without_it_cures_but_for_who_saw_the_other_story(
    stage: Stage, tmp_path: Path
) -> None:
    production = stage.production
    thief, beats = production.stolen("host", "publisher"), production.key_id("host", "heartbeat")
    stage.variables |= {"STOLEN": production.key_id("host", "publisher"), "HEARTBEAT": beats}
    told = asyncio.run(records_of(production.url, Stream.LEDGER))
    false = entry_after(production, told, thief)
    show_other_history(stage, "pod-b", f"sqlite:///{tmp_path}/other.db", [*told, false])
    published_by(stage, "ada", "grace", "newCheckout", "--variant", "on")
    until(lambda: all_at(stage, 3), "both pods are at seq 3")
    stage.stop_pod("pod-b")
    stage.start_pod("pod-b")  # and now it sees the true one
    asyncio.run(write(production.url, Stream.LEDGER, false))
    assert stage.publisher is not None
    stage.publisher.until("ledger.quarantined")
    drill(stage, 2).rest()
    assert published_by(stage, "grace", "linus", "newCheckout", "--variant", "off") == 5
    assert stage.publisher.process.poll() is None


@pytest.mark.kafka
def test_a_lost_publisher_machine_is_replaced_by_one_with_new_keys(
    kafka_url: Callable[[], str], tmp_path: Path
) -> None:
    production = Production.begun(tmp_path, kafka_url())
    begin_flag(production, tmp_path)
    with Stage(production, tmp_path) as stage:
        service = stage.start_publisher()
        stage.start_pod("pod-a")
        until(lambda: metrics(stage.pods["pod-a"])["flaghoist_fresh"] == 1, "pods are fresh")
        stage.variables |= {
            "LOST": production.key_id("host", "publisher"),
            "HEARTBEAT": production.key_id("host", "heartbeat"),
            "FIRST": Root.from_bytes(production.root.read_bytes()).sha256.hex(),
        }
        service.kill()
        production.host.home.rename(tmp_path / "burnt")
        stage.desks["publisher"] = Operator(tmp_path / "another machine")
        drilled = drill(stage, 3)
        drilled.block()
        proposal = production.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip()
        production.grace.ok("approve", proposal, "--yes")
        drilled.rest()
        until(lambda: metrics(stage.pods["pod-a"])["flaghoist_seq"] >= 4, "what waited is published")


def test_a_stolen_heartbeat_key_quarantines_and_a_root_without_it_cures(stage: Stage) -> None:
    production = stage.production
    thief = production.stolen("host", "heartbeat")
    stage.variables["STOLEN"] = production.key_id("host", "heartbeat")
    ledger = replay(
        Root.from_bytes(production.root.read_bytes()), asyncio.run(records_of(production.url, Stream.LEDGER))
    )
    now_ms = time.time_ns() // 1_000_000
    beat = Heartbeat(
        ledger.root.log_id, now_ms, now_ms, now_ms + BEAT_LIFE_MS, ledger.head.seq, bytes(32), ledger.head.epoch,
        ledger.root.version, "thief", None, Seq(0),
    )  # fmt: skip
    record = encode_envelope(seal(HEARTBEAT, beat, [thief]))
    asyncio.run(write(production.url, Stream.META, record, key=BEAT_KEY))
    drill(stage, 4).rest()
    assert published_by(stage, "ada", "grace", "newCheckout", "--variant", "on") == 4


def test_a_stolen_emergency_key_is_replaced_and_its_kill_undone(stage: Stage) -> None:
    production = stage.production
    published_by(stage, "ada", "linus", "newCheckout", "--variant", "on")
    killed = production.grace.ok(
        "kill", "newCheckout", "--key", "grace-emergency", "--reason", "mischief", "--json", "--yes"
    ).document["emergencies"][0]
    stage.variables |= {
        "STOLEN": production.key_id("grace", "grace-emergency"), "SEQ": str(killed["seq"]), "KILL": killed["id"],
    }  # fmt: skip
    drill(stage, 5).rest()


def test_one_stolen_key_of_three_makes_no_root_and_the_other_two_replace_it(stage: Stage) -> None:
    production = stage.production
    stage.variables["STOLEN"] = production.key_id("linus", "linus")
    mallory = production.linus.make_key("mallory", "mallory@example.org")
    production.linus.ok(
        "root", "propose", "--key", "linus", "--add-member", mallory, "--grant", f"ROOT={mallory}", "--yes"
    )
    drill(stage, 6).rest()


def test_an_expired_root_is_renewed_by_the_people_whom_it_names(tmp_path: Path) -> None:
    lives_s = 40
    driver = f"import time; now = time.time_ns; time.time_ns = lambda: now() - {86_400 - lives_s} * 10**9"
    production = Production.begun(tmp_path, f"sqlite:///{tmp_path}/ledger.db", "--expires-days", "1", driver=driver)
    begin_flag(production, tmp_path)
    with Stage(production, tmp_path) as stage:
        service = stage.start_publisher()
        stage.start_pod("pod-a")
        service.until("root.expires")
        proposal = production.ada.ok("propose", "set", "newCheckout", "--variant", "on", "--yes").out.strip()
        until(lambda: service.count("root.expired") > 0, "the root expires", EXPIRES_WITHIN_S)
        production.grace.ok("approve", proposal, "--yes")
        stage.variables["ID"] = proposal
        drill(stage, 7).rest()


def test_a_lost_journal_costs_an_epoch_and_nothing_else(stage: Stage) -> None:
    published_by(stage, "ada", "grace", "newCheckout", "--variant", "on")
    stage.stop_publisher()
    shutil.rmtree(stage.production.host.home / "state" / "journals")
    drill(stage, 8).rest()
    assert stage.publisher is not None
    stage.publisher.until("epoch.claimed")


@pytest.mark.kafka
def test_a_lost_topic_and_one_without_its_beginning_are_put_back_from_what_pods_keep(
    kafka_url: Callable[[], str], tmp_path: Path
) -> None:
    production = Production.begun(tmp_path, kafka_url())
    begin_flag(production, tmp_path)
    with Stage(production, tmp_path) as stage:
        stage.start_publisher()
        for pod in ("pod-a", "pod-b"):
            stage.start_pod(pod)
        published_by(stage, "ada", "grace", "newCheckout", "--variant", "on")
        until(lambda: all_at(stage, 3), "both pods are at seq 3")
        location = parse(production.url)
        assert isinstance(location, KafkaLocation)
        asyncio.run(administer(location, lambda admin: admin.delete_topics([location.topic])))
        until(lambda: metrics(stage.pods["pod-a"])["flaghoist_fresh"] == 0, "pods are stale", NOTICED_S)
        assert metrics(stage.pods["pod-a"])["flaghoist_ready"] == 1
        drilled = drill(stage, 9)
        drilled.block()
        drilled.block()
        assert published_by(stage, "ada", "grace", "newCheckout", "--variant", "off") == 4
        until(lambda: metrics(stage.pods["pod-a"])["flaghoist_seq"] == 4, "pods go on")
        cut = {TopicPartition(location.topic, 0): RecordsToDelete(before_offset=2)}
        asyncio.run(administer(location, lambda admin: admin.delete_records(cut)))
        drilled.rest()
        stage.start_pod("pod-c")
        until(lambda: metrics(stage.pods["pod-c"])["flaghoist_seq"] >= 4, "a pod that has kept nothing starts")


async def administer(location: KafkaLocation, act: Callable[[AIOKafkaAdminClient], Awaitable[object]]) -> None:
    """Do to a topic what somebody with rights on the cluster can."""
    admin = AIOKafkaAdminClient(bootstrap_servers=location.bootstrap)
    await admin.start()
    try:
        await act(admin)
    finally:
        await admin.close()


def test_a_wrong_change_is_killed_and_reverted(stage: Stage) -> None:
    begin_flag(stage.production, stage.directory, "orderLimit", LIMIT)
    stage.variables["SEQ"] = str(published_by(stage, "ada", "linus", "orderLimit", "--variant", "high"))
    drilled = drill(stage, 10)
    drilled.block()
    stage.variables["KILL"] = drilled.block()[0].out.split()[2]
    drilled.rest()
