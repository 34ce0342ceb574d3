"""A reading that can be told to begin anew: with new clients, and a fresh look at DNS."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Restarting:
    """Runs one reading, and runs it again whenever it is told to."""

    def __init__(self) -> None:
        self._reading: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """End the reading under way, if there is one, and have the next one begin."""
        if self._reading is not None:
            self._reading.cancel()

    async def run(self, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Read until the reading ends by itself, or fails, or this is cancelled."""
        while True:
            reading = self._reading = asyncio.create_task(read(), name="read")
            try:
                await asyncio.wait((reading,))
            finally:
                if not reading.done():  # this was cancelled: nothing is left behind
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                self._reading = None
            if not reading.cancelled():
                reading.result()
                return
