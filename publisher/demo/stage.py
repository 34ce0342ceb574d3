"""Where the demo plays: a directory of its own, the real commands, a sidecar process and clients that watch it."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from flagd.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc

from publisher.cli.desk import Desk, inline

# Far more than any step takes; a demo that hangs is worse than one that says where.
STEP_S: Final = 30.0
SERVICES: Final = ("web", "checkout", "payment")


class StepFailed(Exception):
    """Something that the story claims did not hold."""


@dataclass
class Stage:
    """One performance: commands run with a home of their own, so that nothing of the user's is read or written."""

    directory: Path
    desk: Desk
    ledger: str = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = f"sqlite:///{self.directory / 'ledger.db'}"
        passphrase = self.directory / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(24))
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FLAGHOIST_", "_FLAGHOIST"))},
            "FLAGHOIST_HOME": str(self.directory / "home"),
            "FLAGHOIST_PASSPHRASE_FILE": str(passphrase),
        }

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def step(self, text: str) -> None:
        """Say what happens next."""
        self.desk.print(f"\n{text}")

    def fact(self, text: str) -> None:
        """Say what has just been seen to hold."""
        self.desk.print(f"  ✓ {text}")

    def claim(self, holds: bool, text: str) -> None:
        """Say a fact, or end the demo because it is none.

        Raises:
            StepFailed: it does not hold.
        """
        if not holds:
            raise StepFailed(text)
        self.fact(text)

    async def run(self, *arguments: str, refused: str | None = None) -> Any:
        """Run one `flaghoist` command as its user would, and return the JSON document that it prints.

        Args:
            refused: the code of the error that it must end with; None: it must succeed.

        Raises:
            StepFailed: it ended otherwise.
        """
        shown = [a if a.isascii() and " " not in a else f"'{a}'" for a in arguments if a != "--yes"]
        self.desk.print("  $ flaghoist " + " ".join(shown).replace(str(self.directory), "…"))
        command = [sys.executable, "-P", "-c", _MAIN, *arguments, "--json"]
        ended = await asyncio.to_thread(
            subprocess.run, command, env=self._environ, capture_output=True, text=True, timeout=STEP_S, check=False
        )
        try:
            document = json.loads(ended.stdout)
        except json.JSONDecodeError:
            raise StepFailed(f"flaghoist {arguments[0]} printed no JSON: {ended.stdout}{ended.stderr}") from None
        error = document.get("error") if isinstance(document, Mapping) else None
        code = error["code"] if error else None
        if code != refused or (ended.returncode == 0) != (refused is None):
            raise StepFailed(f"flaghoist {' '.join(arguments)}: exit {ended.returncode}, {error or ended.stderr}")
        if error:
            self.fact(f"refused ({code}): {inline(error['message'])}")
        return document

    @asynccontextmanager
    async def sidecar(self) -> AsyncIterator["Sidecar"]:
        """Run a sidecar process until the block ends, and then drain it.

        Raises:
            StepFailed: it does not come up, or does not drain.
        """
        command = [sys.executable, "-P", "-c", _SIDECAR_MAIN, *_SIDECAR_LISTENS]
        process = await asyncio.create_subprocess_exec(*command, env=self._environ, stderr=asyncio.subprocess.PIPE)
        sidecar = Sidecar(process)
        reading = asyncio.create_task(sidecar.read_events())
        try:
            sidecar.address = str((await sidecar.until_event("front.opened"))["address"])
            yield sidecar
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await reading
        self.claim(process.returncode == 0, "the sidecar drained and ended when it was told to")


# -P: a directory named `sidecar` where the user happens to stand is not ours.
_MAIN: Final = "import sys; from publisher.cli import main; sys.exit(main())"
_SIDECAR_MAIN: Final = "from sidecar.cli import main; main()"
# Any free port, and no other: a real sidecar, or flagd, may run on this machine.
_SIDECAR_LISTENS: Final = ["--listen=127.0.0.1:0", "--management-listen=off", "--sync-listen=off", "--ofrep-listen=off"]


def stub_of(channel: grpc.aio.Channel) -> Any:
    """Return flagd's own v1 stub, as any service would use it."""
    return evaluation_pb2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code


@dataclass
class Sidecar:
    """A sidecar process, where it listens, and the events that it has logged."""

    process: asyncio.subprocess.Process
    address: str = ""
    events: list[Mapping[str, Any]] = field(default_factory=list)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False

    async def read_events(self) -> None:
        """Read its JSON lines to their end, so that it never waits for a reader."""
        assert self.process.stderr is not None  # noqa: S101 — it was asked for
        async for line in self.process.stderr:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.events.append({"event": "text", "text": line.decode(errors="replace")})
            self._heard.set()
        self._ended = True
        self._heard.set()

    async def until_event(self, name: str, count: int = 1) -> Mapping[str, Any]:
        """Wait until it has logged this event so many times, and return the last of these.

        Raises:
            StepFailed: it ends before, or does not do so in time.
        """
        try:
            async with asyncio.timeout(STEP_S):
                while len(found := [event for event in self.events if event["event"] == name]) < count:
                    if self._ended:
                        raise StepFailed(f"the sidecar ended without {name}: {self.events[-1:]}")
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            raise StepFailed(f"the sidecar logged {name} {len(found)} times, want {count}") from None
        return found[-1]


@dataclass
class Client:
    """A service that asks for one flag, with a stock gRPC channel, and listens to the sidecar's events."""

    service: str
    flag: str
    stub: Any
    value: bool | None = None
    seq: int = 0
    seen_at_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Ask once the stream is ready, and again whenever it says that the flag changed."""
        async for event in self.stub.EventStream(evaluation_pb2.EventStreamRequest(), wait_for_ready=True):
            changed = event.type == "configuration_change" and self.flag in event.data["flags"]
            if event.type == "provider_ready" or changed:
                await self.ask()

    async def ask(self) -> None:
        answer = await self.stub.ResolveBoolean(evaluation_pb2.ResolveBooleanRequest(flag_key=self.flag))
        self.seen_at_s = time.time()
        self.value, self.seq = answer.value, int(answer.metadata["flaghoist.seq"])
        self.changed.set()

    async def value_for(self, user: str) -> bool:
        """Ask on behalf of one user."""
        request = evaluation_pb2.ResolveBooleanRequest(flag_key=self.flag)
        request.context.update({"targetingKey": user})
        return bool((await self.stub.ResolveBoolean(request)).value)

    async def until_seq(self, seq: int) -> None:
        """Wait until the flag is answered from this version, or a newer one.

        Raises:
            StepFailed: it is not in time.
        """
        try:
            async with asyncio.timeout(STEP_S):
                while self.seq < seq:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise StepFailed(f"{self.service} still answers from seq {self.seq}, want {seq}") from None

    async def until(self, value: bool) -> None:
        """Wait until the flag has this value here.

        Raises:
            StepFailed: it does not get it in time.
        """
        try:
            async with asyncio.timeout(STEP_S):
                while self.value is not value:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise StepFailed(f"{self.service} still sees {self.flag} = {self.value}, want {value}") from None


@asynccontextmanager
async def clients(address: str, flags: Mapping[str, str]) -> AsyncIterator[Sequence[Client]]:
    """Run one client for each service, each on a connection of its own.

    Args:
        flags: what each service asks for, by its name.
    """
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        watching = []
        watchers = []
        for service, flag in flags.items():
            # An option of its own keeps the channels from sharing one connection.
            channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            await stack.enter_async_context(channel)
            client = Client(service, flag, stub_of(channel))
            watching.append(client)
            watchers.append(tasks.create_task(client.watch()))
        try:
            yield watching
        finally:
            for watcher in watchers:
                watcher.cancel()
