"""Makes the digest of a state in slices, between which calls are answered and entries verified."""

import asyncio
import time
from typing import Final

from flaghoist.snapshot import Snapshot
from flaghoist.state_root import making, state_root

# What a call may wait for it. Not in a thread: that one would hold the interpreter for 5 ms at a time, which is longer.
SLICE_S: Final = 0.001


class StateDigests:
    """Makes one digest at a time, for all who want one: whoever asks for the same state shares the work."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()

    async def of(self, snapshot: Snapshot) -> bytes:
        """Return the state_root of a snapshot: at once when it was made before, else after some loops of the loop."""
        if snapshot.state_root is None:
            async with self._one_at_a_time:
                pause_at_s = time.monotonic() + SLICE_S
                for _ in making(snapshot):
                    if time.monotonic() >= pause_at_s:
                        await asyncio.sleep(0)
                        pause_at_s = time.monotonic() + SLICE_S
        return state_root(snapshot)
