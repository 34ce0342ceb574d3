"""What the log in a SQLite file does beyond tests/conformance/test_log.py: processes, speed, and broken files."""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import statistics
import sys
import time
from contextlib import ExitStack, aclosing, closing
from pathlib import Path

import pytest

from flaghoist.errors import LogMissing, LogTruncated, Misconfigured, Unavailable
from flaghoist.log import file_changes, sqlite
from flaghoist.log.base import ACKS_RETENTION_S, Stream, read_to_end
from flaghoist.log.location import create_log, inspect_log, open_log, parse
from tests.conformance.processes import heard, python, timed_appender

RIVAL = """
async def main():
    async with open_log(url)(Stream.LEDGER) as log:
        say("ready")
        sys.stdin.readline()
        won = []
        while (end := await log.end()) < 200:
            try:
                won.append(await log.append(arguments[0].encode(), expected_end=end))
            except LogConflict:
                pass
        say(won)
"""

IDLER = """
async def main():
    async with open_log(url)(Stream.LEDGER) as log:
        batches = log.follow(0)
        assert (await anext(batches)).at_end
        waiting = asyncio.ensure_future(anext(batches))
        before, start = time.process_time(), time.monotonic()
        await asyncio.wait({waiting}, timeout=4.0)
        say((time.process_time() - before) / (time.monotonic() - start))
        waiting.cancel()
"""

# As a user who owns nothing: root may write anywhere, whatever the modes say.
UNPRIVILEGED = """
import os
from flaghoist.log import sqlite  # while this user may still read the interpreter's own files

async def main():
    os.setgid(65534), os.setuid(65534)
    outcomes = []
    async def attempt(what):
        try:
            return await what
        except FlaghoistError as error:
            return [type(error).__name__, str(error), error.hint]
    async def read():
        async with open_log(url)(Stream.LEDGER) as log:
            return [record.value.decode() async for record in read_to_end(log)]
    async def write():
        async with open_log(url)(Stream.LEDGER) as log:
            return await log.append(b"x")
    say([await attempt(read()), await attempt(write()), await attempt(create_log(url))])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    asyncio.run(create_log(f"sqlite:///{tmp_path}/ledger.db"))
    return tmp_path / "ledger.db"


def use(file: Path, scenario, *, stream: Stream = Stream.LEDGER, **settings):
    async def opened():
        async with open_log(f"sqlite:///{file}", **settings)(stream) as log:
            return await scenario(log)

    return asyncio.run(asyncio.wait_for(opened(), 30))


def test_two_processes_never_win_the_same_position(file):
    with ExitStack() as stack:
        rivals = [stack.enter_context(python(RIVAL, f"sqlite:///{file}", name)) for name in ("ada", "grace")]
        for rival in rivals:
            assert heard(rival) == "ready"
        for rival in rivals:
            rival.stdin.write("go\n")
        won = [heard(rival) for rival in rivals]
    assert sorted(won[0] + won[1]) == list(range(200))

    async def who(log):
        return [record.value async for record in read_to_end(log)]

    found = use(file, who)
    assert [found[position] for position in won[0]] == [b"ada"] * len(won[0])
    assert [found[position] for position in won[1]] == [b"grace"] * len(won[1])


@pytest.mark.parametrize("told", [True, False], ids=["told-by-the-kernel", "looking"])
def test_reader_sees_an_append_of_another_process_within_10_ms(file, told, monkeypatch):
    if not told:
        monkeypatch.setattr(file_changes, "_inotify", lambda path: None)

    async def scenario(log):
        loop, delays, rng = asyncio.get_running_loop(), [], random.Random(1)
        with timed_appender(f"sqlite:///{file}") as append:
            async with aclosing(log.follow(0)) as batches:
                assert (await anext(batches)).at_end
                for number in range(50):
                    await asyncio.sleep(rng.uniform(0, 0.02))  # at any moment between two looks of the reader
                    appended = loop.run_in_executor(None, append, str(number))
                    await anext(batches)
                    seen_ns = time.monotonic_ns()
                    _, _, acknowledged_ns = await appended
                    delays.append((seen_ns - acknowledged_ns) / 1e6)
        return delays

    delays = use(file, scenario, probe_s=30)
    print(f"append acknowledged to seen: median {statistics.median(delays):.2f} ms, max {max(delays):.2f} ms")
    assert statistics.median(delays) < 10


def test_idle_reader_takes_less_than_a_hundredth_of_a_core(file):
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere the kernel tells nothing, and looking often takes about 1 %")
    with python(IDLER, f"sqlite:///{file}") as process:
        share = heard(process)
    print(f"idle reader: {share:.2%} of a core")
    assert share < 0.01


def test_event_loop_goes_on_while_another_process_holds_the_lock(file, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_S", 0.5)

    async def scenario(log):
        with closing(sqlite3.connect(file, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            writing, gaps, last = asyncio.create_task(log.append(b"x")), [], time.monotonic()
            while not writing.done():
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            with pytest.raises(Unavailable, match="locked") as refused:
                await writing
            assert "fuser" in refused.value.hint
            assert await log.end() == 0  # readers are not held up
        assert max(gaps) < 0.25
        assert await log.append(b"x") == 0

    use(file, scenario)


def test_record_is_synced_before_it_is_acknowledged(file):
    with closing(sqlite._connect(file)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_closed_log_is_one_whole_file(file, tmp_path):
    async def scenario(log):
        async with aclosing(log.follow(0)) as batches:
            await anext(batches)
            await log.append(b"kept")

    use(file, scenario)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def test_file_says_what_it_is(file):
    header = file.read_bytes()[:100]
    assert header[68:72] == b"FLHO"
    assert int.from_bytes(header[60:64], "big") == sqlite.SCHEMA_VERSION


def write(file: Path, content: bytes | str) -> None:
    """Make `file` of bytes, or an SQLite database of a script."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a Flaghoist ledger"),
        (b"flags:\n  a: b\n" * 100, "not a Flaghoist ledger"),
        ("CREATE TABLE people (name TEXT)", "not a Flaghoist ledger"),
        (f"PRAGMA application_id={sqlite.APPLICATION_ID}; PRAGMA user_version=99", "expected ledger format 1, got 99"),
    ],
    ids=["empty", "text", "other-database", "newer-format"],
)
def test_file_that_is_not_a_ledger_is_refused_and_left_alone(tmp_path, content, text):
    file = tmp_path / "other.db"
    write(file, content)
    before = file.read_bytes()
    with pytest.raises(Misconfigured, match=text):
        use(file, lambda log: log.end())
    with pytest.raises(Misconfigured, match=text):
        asyncio.run(inspect_log(f"sqlite:///{file}"))
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"flags:\n  a: b\n" * 100, "CREATE TABLE people (name TEXT)"], ids=["text", "database"]
)
def test_file_of_something_else_is_not_made_a_ledger(tmp_path, content):
    file = tmp_path / "other.db"
    write(file, content)
    before = file.read_bytes()
    with pytest.raises(Misconfigured, match="not a Flaghoist ledger"):
        asyncio.run(create_log(f"sqlite:///{file}"))
    assert file.read_bytes() == before


def test_directory_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(Misconfigured, match="directory"):
        use(tmp_path, lambda log: log.end())
    with pytest.raises(Misconfigured, match="directory"):
        asyncio.run(create_log(f"sqlite:///{tmp_path}"))


def test_missing_directory_is_named_and_not_made(tmp_path):
    with pytest.raises(Misconfigured, match="does not exist") as refused:
        asyncio.run(create_log(f"sqlite:///{tmp_path}/no/ledger.db"))
    assert f"mkdir -p {tmp_path}/no" in refused.value.hint
    assert not (tmp_path / "no").exists()


def test_relative_path_that_was_meant_to_be_absolute_gets_a_hint(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogMissing) as missing:
        use(Path(str(file).lstrip("/")), lambda log: log.end())
    assert f"sqlite:///{file}" in missing.value.hint


def test_damaged_file_is_told(file):
    use(file, lambda log: log.append(b"x" * 20_000))
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(Misconfigured, match="damaged"):
        use(file, lambda log: log.append(b"y"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_user_without_write_access_gets_a_clear_answer(file):
    # Where nobody may pass through the directories above, as in pytest's, another place is needed.
    with ExitStack() as stack:
        place = Path(f"/tmp/flaghoist-{os.getpid()}-{time.monotonic_ns()}")
        place.mkdir(mode=0o755)
        stack.callback(shutil.rmtree, place)
        use(file, lambda log: log.append(b"kept"))
        shutil.copy(file, place / "ledger.db")
        (place / "ledger.db").chmod(0o644)
        with python(UNPRIVILEGED, f"sqlite:///{place}/ledger.db") as process:
            outcomes = heard(process)
    for kind, text, hint in (outcome for outcome in outcomes if outcome != ["kept"]):
        assert kind in ("Misconfigured", "Unavailable"), outcomes
        assert str(place) in text
        assert hint
    assert outcomes[1][0] == "Misconfigured"
    print(json.dumps(outcomes, indent=1))


def test_file_removed_under_a_follower_is_noticed(file):
    async def scenario(log):
        async with aclosing(log.follow(0)) as batches:
            await anext(batches)
            for path in file.parent.glob("ledger.db*"):
                path.unlink()
            with pytest.raises(LogTruncated, match="gone"):
                await anext(batches)

    use(file, scenario, probe_s=0.1)


def test_file_made_anew_under_a_follower_is_noticed(file):
    async def scenario(log):
        async with aclosing(log.follow(0)) as batches:
            await anext(batches)
            file.rename(file.with_suffix(".old"))
            await create_log(f"sqlite:///{file}")
            with pytest.raises(LogTruncated, match="another file"):
                await anext(batches)

    use(file, scenario, probe_s=0.1)


def test_records_taken_from_the_end_under_a_follower_are_noticed(file):
    async def scenario(log):
        for _ in range(3):
            await log.append(b"x")
        async with aclosing(log.follow(0)) as batches:
            assert (await anext(batches)).next_position == 3
            with closing(sqlite3.connect(file)) as connection, connection:
                connection.execute("DELETE FROM ledger_record WHERE position = 2")
            with pytest.raises(LogTruncated, match="ends at 2"):
                await anext(batches)

    use(file, scenario)


def test_records_taken_from_the_start_are_noticed_by_who_resumes_there(file):
    async def scenario(log):
        for _ in range(5):
            await log.append(b"x")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("DELETE FROM ledger_record WHERE position < 3")
        async with aclosing(log.follow(2)) as batches:
            with pytest.raises(LogTruncated, match="starts at 3"):
                await anext(batches)
        assert [record.position async for record in read_to_end(log)] == [3, 4]

    use(file, scenario)


def test_inspect_names_a_setting_that_was_changed(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    (finding,) = asyncio.run(inspect_log(f"sqlite:///{file}"))
    assert (finding.setting, finding.expected, finding.got) == ("journal_mode", "wal", "delete")


@pytest.fixture
def old_file(file: Path) -> Path:
    """A ledger as it was made before there were streams that keep the newest record of each key."""
    use(file, lambda log: log.append(b"kept"))
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("DROP TABLE meta_record; DROP TABLE acks_record")
    return file


def test_stream_that_an_old_file_lacks_is_missing_with_what_to_do(old_file):
    for stream in (Stream.META, Stream.ACKS):
        with pytest.raises(LogMissing, match=f"before there was a stream {stream.value}") as missing:
            use(old_file, lambda log: log.end(), stream=stream)
        assert "`flaghoist init` again" in missing.value.hint
    found = {finding.setting: finding for finding in asyncio.run(inspect_log(f"sqlite:///{old_file}"))}
    assert set(found) == {"stream meta", "stream acks"}
    assert {finding.got for finding in found.values()} == {"missing"}
    assert all("`flaghoist init` again" in finding.hint for finding in found.values())


def test_old_file_gets_the_streams_that_it_lacks_and_keeps_its_records(old_file):
    async def scenario(log):
        await create_log(f"sqlite:///{old_file}")  # under a reader that has it open
        return [record.value async for record in read_to_end(log)]

    assert use(old_file, scenario) == [b"kept"]
    assert asyncio.run(inspect_log(f"sqlite:///{old_file}")) == []
    assert use(old_file, lambda log: log.append(b"x", key=b"a"), stream=Stream.META) == 0
    assert int.from_bytes(old_file.read_bytes()[60:64], "big") == 1  # readers of before still take it


def test_file_without_its_first_tables_is_damaged_and_not_made_whole_with_empty_ones(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("DROP TABLE ledger_record")
    asyncio.run(create_log(f"sqlite:///{file}"))
    with pytest.raises(Misconfigured, match="damaged: expected a table ledger_record"):
        use(file, lambda log: log.end())


def test_flood_under_one_key_leaves_a_small_file_and_the_newest_record(file):
    count, value = 5000, b"x" * 400  # as large as a signed heartbeat

    async def scenario(log):
        async with aclosing(log.follow(0)) as batches:
            await anext(batches)
            last = asyncio.create_task(_until(batches, b"%d" % (count - 1)))
            for number in range(count):
                await log.append(b"%d/" % number + value, key=b"heartbeat")
            seen = await last
        sizes = {path.name: path.stat().st_size for path in file.parent.iterdir()}
        kept = [record async for record in read_to_end(log)]
        assert [(record.position, record.value) for record in kept] == [(count - 1, b"%d/" % (count - 1) + value)]
        assert await log.end() == count
        return seen, sizes

    seen, sizes = use(file, scenario, stream=Stream.META, probe_s=60)
    print(f"records seen while they came: {seen} of {count}; files: {sizes}")
    assert sizes["ledger.db"] < 128 * 1024
    # SQLite moves 1,000 pages of 4 KiB from there into the file at a time, as soon as no reader stands in their way.
    assert sizes["ledger.db-wal"] < 8 * 1024 * 1024
    assert file.stat().st_size < 128 * 1024


async def _until(batches, last: bytes) -> int:
    """Read up to the record that starts with `last`; how many there were."""
    count = 0
    async for batch in batches:
        count += len(batch.records)
        if batch.records and batch.records[-1].value.partition(b"/")[0] == last:
            return count
    raise AssertionError("the follower ended")


def test_acks_of_instances_that_are_gone_are_dropped_and_those_that_live_stay(file):
    for number in range(40):
        use_key = b"pod-%d" % number
        use(file, lambda log, key=use_key: log.append(key, key=key), stream=Stream.ACKS)
    with closing(sqlite3.connect(file)) as connection, connection:
        # The first thirty were silent for longer than an ack is kept.
        connection.execute(
            "UPDATE acks_record SET written_at = written_at - ? WHERE position < 30", ((ACKS_RETENTION_S + 60) * 1000,)
        )

    async def scenario(log):
        kept = []
        for _ in range(5):
            await log.append(b"pod-39", key=b"pod-39")
            kept.append([record.value async for record in read_to_end(log)])
        return kept

    kept = use(file, scenario, stream=Stream.ACKS)
    assert [len(values) for values in kept] == [32, 24, 16, 10, 10]
    assert kept[-1] == [b"pod-%d" % number for number in range(30, 40)]


def test_pointers_are_kept_however_old_they_are(file):
    use(file, lambda log: log.append(b"pointer", key=b"pointer"), stream=Stream.META)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE meta_record SET written_at = 0")
    use(file, lambda log: log.append(b"beat", key=b"heartbeat"), stream=Stream.META)

    async def all_of(log):
        return [record.value async for record in read_to_end(log)]

    assert use(file, all_of, stream=Stream.META) == [b"pointer", b"beat"]


def test_odd_characters_in_a_path_survive_the_url(tmp_path):
    directory = tmp_path / "mein Plan 100%?#&ü"
    directory.mkdir()
    location = sqlite.SqliteLocation(directory / "ledger.db")
    assert parse(str(location)) == location
    asyncio.run(create_log(str(location)))
    assert (directory / "ledger.db").is_file()
