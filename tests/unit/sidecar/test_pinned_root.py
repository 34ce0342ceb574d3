"""The root to trust, of any version, as a file or a digest: where reading begins for it, and what is no such root."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from flaghoist.codec import encode_envelope
from flaghoist.errors import Malformed, Misconfigured, Unavailable
from flaghoist.log.base import Batch, LogRecord, Stream
from flaghoist.log.entries_file import SUFFIX
from flaghoist.log.reconnect import follow_reliably
from flaghoist.root import Root
from flaghoist.root_chain import Beginning, RootUnknown
from sidecar import pinned_root
from sidecar.keep import Kept
from sidecar.pinned_root import PinnedRoot, parse_root
from tests.conformance.memory_log import MemoryLogs
from tests.forge import ADA, Forge, Key


@pytest.fixture
def forge() -> Forge:
    """A ledger whose third root is in force."""
    made = Forge()
    made.genesis()
    made.put("new-checkout")
    made.rotate(Key(ADA))
    made.put("second")
    made.rotate(Key(ADA))
    made.put("third")
    return made


def roots_of(forge: Forge) -> list[Root]:
    second = forge.root.record.prev_root_sha256
    return [forge.first_root, next(r for r in chain(forge) if r.sha256 == second), forge.root]


def chain(forge: Forge) -> list[Root]:
    again = Forge()
    roots = [again.root]
    for record in forge.records:
        again.ledger.receive(record)
        roots.append(again.root)
    return roots


def file_of(directory: Path, root: Root) -> Path:
    path = directory / f"{root.version}.root"
    path.write_bytes(encode_envelope(root.envelope))
    return path


def keep(directory: Path, records: list[bytes], name: str = "test") -> None:
    kept = Kept.open(directory / f"{name}{SUFFIX}")
    kept.append([LogRecord(n, value) for n, value in enumerate(records)])
    kept.close()


def search(pin: PinnedRoot, logs: MemoryLogs, on_lost: Callable[[Unavailable], None] = lambda _: None) -> Beginning:
    async def no_wait(_: float) -> None:
        await asyncio.sleep(0.001)

    def follow(start: int, lost: Callable[[Unavailable], None]) -> AsyncGenerator[Batch, None]:
        return follow_reliably(logs, Stream.LEDGER, start, on_lost=lost, sleep=no_wait)

    async def scenario() -> Beginning:
        async with asyncio.timeout(10):
            return await pin.in_ledger(follow, on_lost)

    return asyncio.run(scenario())


def log_of(*records: bytes) -> MemoryLogs:
    logs = MemoryLogs(probe_s=0.05)
    for record in records:
        logs.put(Stream.LEDGER, record)
    return logs


def test_root_is_a_file_or_a_digest() -> None:
    assert parse_root("/etc/production.root") == Path("/etc/production.root")
    assert parse_root("sha256:" + "ab" * 32) == bytes.fromhex("ab" * 32)
    for text in ("", "sha256:", "sha256:ab", "sha256:" + "zz" * 32):
        with pytest.raises(ValueError, match="want"):
            parse_root(text)


def test_file_of_the_first_root_needs_nothing_else(forge: Forge, tmp_path: Path) -> None:
    begins = PinnedRoot.load(file_of(tmp_path, forge.first_root)).at_hand(tmp_path / "nothing")
    assert begins is not None
    assert (begins.root.sha256, begins.pinned) == (forge.first_root.sha256, {})


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("form", ["file", "digest"])
@pytest.mark.parametrize("place", ["kept", "ledger"])
def test_any_version_leads_to_the_first_root_and_pins_those_after_it(
    forge: Forge, tmp_path: Path, version: int, form: str, place: str
) -> None:
    roots = roots_of(forge)
    pinned = roots[version - 1]
    pin = PinnedRoot.load(pinned.sha256 if form == "digest" else file_of(tmp_path, pinned))
    if place == "kept":
        keep(tmp_path, Forge("staging").records, "another")
        keep(tmp_path, forge.records)
        begins = pin.at_hand(tmp_path)
    else:
        begins = search(pin, log_of(b"junk", *forge.records))
    assert begins is not None
    assert begins.root.sha256 == roots[0].sha256
    assert begins.pinned == {root.version: root.sha256 for root in roots[1:version]}


def test_state_kept_before_the_pinned_root_cannot_say_where_to_begin(forge: Forge, tmp_path: Path) -> None:
    keep(tmp_path, forge.records[:4])
    assert PinnedRoot.load(forge.root.sha256).at_hand(tmp_path) is None


def test_kept_state_that_is_damaged_is_passed_over(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / f"a{SUFFIX}").write_bytes(b"junk")
    (tmp_path / f"b{SUFFIX}").mkdir()
    keep(tmp_path, [b"junk", *forge.records[1:]], "c")
    assert PinnedRoot.load(forge.root.sha256).at_hand(tmp_path) is None
    assert PinnedRoot.load(forge.root.sha256).at_hand(tmp_path / "missing") is None


def test_ledger_that_does_not_state_the_root_is_a_clear_error(forge: Forge) -> None:
    with pytest.raises(RootUnknown, match="want it in the ledger, got 3 other roots"):
        search(PinnedRoot(bytes(32), None), log_of(*forge.records))
    with pytest.raises(RootUnknown):
        search(PinnedRoot(forge.root.sha256, None), log_of(*forge.records[1:]))  # what led to it was cut off


def test_ledger_that_is_away_is_waited_for(forge: Forge) -> None:
    logs = log_of(*forge.records)
    logs.lose()
    lost: list[str] = []

    def note(error: Unavailable) -> None:
        lost.append(error.code)
        if len(lost) == 3:
            logs.return_()

    assert search(PinnedRoot(forge.root.sha256, None), logs, note).root.sha256 == forge.first_root.sha256
    assert lost == ["unavailable"] * 3


def test_flood_of_what_looks_like_roots_is_bounded(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned_root, "CANDIDATE_BYTES_MAX", 100_000)
    flood = [bytes(1000) + forge.records[0]] * 100
    with pytest.raises(RootUnknown, match="more than 100000 bytes of roots"):
        search(PinnedRoot(forge.root.sha256, None), log_of(*flood, *forge.records))


def test_file_that_is_no_root_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read"):
        PinnedRoot.load(tmp_path / "missing.root")
    (tmp_path / "junk.root").write_bytes(b"junk")
    with pytest.raises(Misconfigured, match=r"junk\.root") as raised:
        PinnedRoot.load(tmp_path / "junk.root")
    assert isinstance(raised.value.__cause__, Malformed)
