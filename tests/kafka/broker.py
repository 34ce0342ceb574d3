"""A real Apache Kafka for tests and for play: one KRaft node on loopback, from Maven Central, pinned by pom.xml.

`python tests/kafka/broker.py` starts one, prints its URL and stops it on Ctrl-C.
"""

import asyncio
import base64
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parents[1] / ".cache" / "kafka"

# Starting takes about 6 s on two cores; a loaded machine may take several times that.
READY_S: Final = 90.0
# A node that is asked to stop hands over first; one that does not is killed.
STOP_S: Final = 15.0
LEFTOVER_S: Final = 24 * 3600.0

JVM_OPTIONS: Final = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true")

PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=2
"""


class NoKafka(Exception):
    """This machine cannot run a broker; the text says what is missing."""


def missing_tools() -> str | None:
    """Return what a broker needs and this machine lacks, or None."""
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not found (want Java 17 and Maven)" if missing else None


def pinned_version() -> str:
    """Return the version of Kafka that pom.xml pins."""
    version = ElementTree.parse(HERE / "pom.xml").findtext(".//{*}properties/{*}kafka.version")
    if not version:
        raise NoKafka(f"{HERE / 'pom.xml'}: no property kafka.version")
    return version


def jars() -> Path:
    """Return the directory of the broker's jars; they are downloaded once, by whoever comes first.

    Raises:
        NoKafka: Java or Maven is missing, or Maven could not fetch them.
    """
    if missing := missing_tools():
        raise NoKafka(missing)
    home = CACHE / pinned_version()
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "download.lock"):
        if (home / "libs").is_dir():
            return home / "libs"
        partial = home / "libs.partial"
        shutil.rmtree(partial, ignore_errors=True)
        command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, "-DincludeScope=runtime", f"-DoutputDirectory={partial}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoKafka(f"Maven could not fetch Kafka: {(done.stdout + done.stderr).strip()[-600:]}")
        partial.rename(home / "libs")
    return home / "libs"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, against other test sessions of this checkout."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_leftovers(runs: Path) -> None:
    """Remove the data of brokers whose session was killed; no session lasts LEFTOVER_S."""
    for home in runs.iterdir():
        if home.stat().st_mtime < time.time() - LEFTOVER_S:
            shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Broker:
    """One Kafka node. As a context manager it is stopped, and its data removed, on leaving.

    `settings` are settings of server.properties, with _ for each dot: they replace those in PROPERTIES.
    """

    def __init__(self, **settings: str) -> None:
        self.libs = jars()
        self._settings = "".join(f"{name.replace('_', '.')}={value}\n" for name, value in settings.items())
        self.run = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.home = CACHE / "runs" / self.run
        self.log = self.home / "broker.log"
        self.port, self._controller_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker was never started"
        return self._process.pid

    def url(self, topic: str) -> str:
        """Return the ledger URL of `topic` at this broker."""
        return f"kafka://{self.address}/{topic}"

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True)
        remove_leftovers(self.home.parent)
        try:
            self._format()
            self.start()
        except BaseException:
            self.stop()
            self.keep_logs()
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None:
            self.keep_logs()
        self.remove()

    def start(self) -> None:
        """Start the node on its ports and data, and wait until a client's request is answered."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests; they stop the broker
            )
        # Outlives even a killed test session: when our end of its input closes without a line, it kills the broker.
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"read line || kill -9 {self._process.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_ready()

    def stop(self) -> None:
        """Ask the node to stop, and kill it when it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once, as a crash does. `start` brings it back with the same ports and data."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the node and start it again, with the same ports and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop answering without closing a connection, as a lost network does."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def keep_logs(self) -> Path:
        """Copy the node's log to where it stays, and return that place."""
        kept = CACHE / "logs" / self.run
        kept.mkdir(parents=True, exist_ok=True)
        for file in self.home.glob("*.log"):
            shutil.copy(file, kept)
        return kept

    def remove(self) -> None:
        """Remove the node's data."""
        shutil.rmtree(self.home, ignore_errors=True)

    def _format(self) -> None:
        properties = self.home / "server.properties"
        properties.write_text(
            PROPERTIES.format(port=self.port, controller=self._controller_port, data=self.home / "data")
            + self._settings  # the last line of a name counts
        )
        with (self.home / "format.log").open("wb") as log:
            subprocess.run(
                [*self._java("kafka.tools.StorageTool", "format", "-t", cluster_id(), "-c")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                timeout=READY_S,
            )

    def _java(self, main: str, *arguments: str) -> list[str]:
        java = shutil.which("java")
        assert java is not None
        return [java, *JVM_OPTIONS, "-cp", f"{self.libs}/*", main, *arguments, str(self.home / "server.properties")]

    def _end(self, first: signal.Signals) -> None:
        process, watchdog = self._process, self._watchdog
        if process is not None and process.poll() is None:
            process.send_signal(first)
            if first is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a paused node would not hear it
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if watchdog is not None:
            release(watchdog.stdin)
            watchdog.wait()
            self._watchdog = None

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while not answers(self.address):
            if self._process.poll() is not None:
                raise NoKafka(f"the broker ended with {self._process.returncode}; its log: {self.keep_logs()}")
            if time.monotonic() > deadline:
                raise NoKafka(f"the broker did not answer within {READY_S:g} s; its log: {self.keep_logs()}")
            time.sleep(0.1)  # between two looks at a condition, with a deadline


def release(pipe: IO[bytes] | None) -> None:
    """Tell a watchdog that its broker is gone already."""
    assert pipe is not None
    try:
        pipe.write(b"\n")
        pipe.close()
    except BrokenPipeError:
        pass


def cluster_id() -> str:
    """Return a new cluster id as Kafka writes them, never with a "-" first: the tool takes that for an option."""
    return base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()


def answers(address: str) -> bool:
    """Say whether a client that asks `address` for its brokers is told of one: only then can topics be made."""
    outcome: list[bool] = []
    # In a thread of its own, so that it can be asked with and without an event loop running.
    thread = threading.Thread(target=lambda: outcome.append(asyncio.run(_answers(address))))
    thread.start()
    thread.join()
    return bool(outcome and outcome[0])


async def _answers(address: str) -> bool:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    host, port = address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=5000)
    try:
        async with asyncio.timeout(5):
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await admin.close()


def main() -> int:
    """Run a broker until Ctrl-C; the exit code."""
    try:
        broker = Broker()
    except NoKafka as reason:
        print(f"cannot run a broker: {reason}", file=sys.stderr)
        return 1
    print(f"starting Apache Kafka {pinned_version()} ...", file=sys.stderr)
    with broker:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(broker.url("flags"), flush=True)
        print(f"pid {broker.pid}, log {broker.log}; Ctrl-C stops it and removes its data", file=sys.stderr)
        while not stop.wait(1.0):
            if broker._process is None or broker._process.poll() is not None:
                print(f"the broker ended by itself; its log: {broker.keep_logs()}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
