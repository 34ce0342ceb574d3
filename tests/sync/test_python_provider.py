"""The stock Python provider, in process, in a process of its own: it takes our sets, hears changes, comes back."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flaghoist.flagd_document import RULE_LEVELS_MAX
from flaghoist.snapshot import Snapshot
from flaghoist.values import Seq
from sidecar.board import Board
from sidecar.faces.sync import Sync
from sidecar.front import FrontKind, TcpListener
from tests.clients.driver import Answer, Client, running_client
from tests.fronts.rig import KINDS, Clock, put, rig, switch
from tests.kafka.broker import free_ports
from tests.sync.sets import snapshot_of

CLIENT = [sys.executable, str(Path(__file__).parents[1] / "clients" / "python" / "client.py")]

DEEP: dict[str, Any] = {"==": [1, 1]}
for _ in range(RULE_LEVELS_MAX // 2):
    DEEP = {"and": [DEEP]}


def first() -> Snapshot:
    """Flags of each type, a reference inside a reference, and what must not cost the others."""
    inner = {"ends_with": [{"var": "email"}, "@example.org"]}
    flags = {
        "bool": switch("off", targeting={"if": [{"$ref": "outer"}, "on", None]}, description="never sent"),
        "text": {"state": "ENABLED", "variants": {"a": "é", "b": "b"}, "defaultVariant": "a", "metadata": {"n": 1}},
        "number": {"state": "ENABLED", "variants": {"a": 2.5}, "defaultVariant": "a"},
        "object": {"state": "ENABLED", "variants": {"a": {"x": [1, None]}}, "defaultVariant": "a"},
        "no-default": switch(None),
        "region": switch("off", targeting={"if": [{"==": [{"var": "region"}, "eu"]}, "on"]}),
        "deep": switch("off", targeting={"if": [DEEP, "on"]}),
        "disabled": switch() | {"state": "DISABLED"},
    }
    return snapshot_of(flags, {"inner": inner, "outer": {"or": [{"$ref": "inner"}]}})


@asynccontextmanager
async def serving(kind: FrontKind, port: int, snapshot: Snapshot) -> AsyncIterator[Board]:
    board = Board(Clock())
    board.put(snapshot.view)
    face = Sync(board, static_context={"region": "eu"})
    async with rig(kind, board=board, more_services=[face], listener=TcpListener("127.0.0.1", port)):
        yield board


async def ask(client: Client, kind: str, key: str, default: Any, **context: Any) -> Answer:
    return await asyncio.to_thread(client.evaluate, kind, key, default, context)


@pytest.mark.parametrize("kind", KINDS)
def test_python_provider_gets_flags_sees_a_change_and_survives_a_restart(kind: FrontKind, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    snapshot = first()

    async def scenario(client: Client) -> None:
        nonlocal snapshot
        async with serving(kind, port, snapshot) as board:
            assert await asyncio.to_thread(client.ready)
            on = await ask(client, "boolean", "bool", False, email="ada@example.org")
            assert (on.value, on.variant, on.reason) == (True, "on", "TARGETING_MATCH")
            assert (await ask(client, "boolean", "bool", True, email="ada@example.com")).value is False
            text = await ask(client, "string", "text", "")
            assert (text.value, text.reason, text.metadata) == ("é", "STATIC", {"n": 1})
            assert (await ask(client, "float", "number", 0.0)).value == 2.5
            assert (await ask(client, "object", "object", {})).value == {"x": [1, None]}
            assert (await ask(client, "boolean", "no-default", True)).reason == "DEFAULT"
            assert (await ask(client, "boolean", "disabled", True)).reason == "DISABLED"
            assert (await ask(client, "boolean", "region", False)).value is True  # from the static context
            deep = await ask(client, "boolean", "deep", True)
            assert (deep.value, deep.error_code) == (True, "PARSE_ERROR")

            await asyncio.to_thread(client.forget)
            snapshot = snapshot.fold(Seq(2), [put("no-default", switch("on"), version=1)])
            board.put(snapshot.view)
            assert await asyncio.to_thread(client.change_of, "no-default")
            assert (await ask(client, "boolean", "no-default", False)).value is True

        assert await asyncio.to_thread(client.lost)
        assert (await ask(client, "boolean", "no-default", False)).value is True  # it goes on with what it has
        await asyncio.to_thread(client.forget)
        snapshot = snapshot.fold(Seq(3), [put("no-default", switch("off"), version=2)])
        async with serving(kind, port, snapshot):
            assert await asyncio.to_thread(client.change_of, "no-default")
            assert (await ask(client, "boolean", "no-default", True)).value is False
            assert await asyncio.to_thread(client.ready)

    with running_client(CLIENT, port, tmp_path, mode="in-process") as client:
        asyncio.run(scenario(client))
