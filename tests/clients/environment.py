"""One environment for clients: a forged, signed SQLite ledger, and sidecars as processes that follow it."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flaghoist.codec import encode_envelope
from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream
from flaghoist.log.location import create_log, open_log
from flaghoist.release_plan import CLOSED, ReleasePlan
from flaghoist.root import Root
from flaghoist.values import FlagKey, Source
from tests.forge import DAY_MS, Forge, gated_flag, root_record, sealed_root
from tests.sidecar_process import SidecarProcess, running_sidecar


class Environment:
    """A ledger and its root in a directory of their own; changes are approved, signed and appended at once."""

    def __init__(self, directory: Path, *, fractional: str = "v2") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.url = f"sqlite:///{directory / 'ledger.db'}"
        self.root = directory / "root"
        self.state = directory / "state"
        self._forge = Forge(now_ms=time.time_ns() // 1_000_000)
        record = replace(root_record(), expires_at=self._forge.now_ms + DAY_MS, fractional=fractional)
        self._forge.root = Root.verified(sealed_root(record))
        self._forge.ledger = Ledger(self._forge.root)
        self.root.write_bytes(encode_envelope(self._forge.root.envelope))
        asyncio.run(create_log(self.url))
        self._append(self._forge.genesis())

    def put(self, flags: Mapping[str, Mapping[str, object]], *, evaluators: Mapping[str, Any] | None = None) -> None:
        """Append one release that sets these flags, and shared evaluators by name."""
        ops = [self._forge.evaluator_op(name, rule) for name, rule in (evaluators or {}).items()]
        ops += [self._forge.op(key, flag) for key, flag in flags.items()]
        self._append(self._forge.append(self._forge.release(*ops)))

    def release(self, plans: Mapping[str, ReleasePlan]) -> None:
        """Append one entry that makes these releases, closed, with a boolean flag each, `in-NAME`; and one that opens
        all their gates as the plans say."""
        flags = {name: FlagKey(f"in-{name}") for name in plans}
        named = {name: replace(plan, flags=((Source(""), flags[name]),)) for name, plan in plans.items()}
        made = [self._forge.release_op(name, replace(plan, gate=CLOSED)) for name, plan in named.items()]
        gated = [self._forge.op(flags[name], gated_flag(name)) for name in named]
        self._append(self._forge.append(self._forge.release(*made, *gated)))
        opened = [self._forge.release_op(name, plan) for name, plan in named.items()]
        self._append(self._forge.append(self._forge.release(*opened)))

    @contextmanager
    def sidecar(self, *options: str, rpc_port: int = 0, sync_port: int = 0) -> Iterator[SidecarProcess]:
        """Run a sidecar while the block runs; it has applied what the ledger holds. Port 0 takes a free one."""
        options = ("--sync-listen", f"127.0.0.1:{sync_port}", *options)
        with running_sidecar(self.url, self.root, self.state, *options, listen=f"127.0.0.1:{rpc_port}") as sidecar:
            sidecar.until("ledger.reached")
            yield sidecar

    def _append(self, record: bytes) -> None:
        async def append() -> None:
            async with open_log(self.url)(Stream.LEDGER) as log:
                await log.append(record)

        asyncio.run(append())
