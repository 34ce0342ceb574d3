"""pygrpc-native's asyncio server, whose streams never hold a thread. Import it only where its wheel is installed."""

import asyncio
from typing import Any, Final

from pygrpc_native import STREAM_CLOSED, STREAM_FULL
from pygrpc_native.aio import Server

ROOM_POLL_FIRST_S: Final = 0.01
ROOM_POLL_LAST_S: Final = 1.0  # a client that does not read for long is asked once a second


class NativeServer(Server):
    """The native server, safe with clients that stop reading.

    Of a stream whose client is behind, pygrpc-native 0.5 waits in a thread of the loop's default executor: a handful of
    such clients takes every thread, and stop(), which needs one, never ends. Here the stream's own task waits.
    """

    async def _send(self, call: Any, context: Any, response: Any) -> bool:
        front = self._front
        data = self._encode(call, context, response)
        if front is None or data is None:
            return False
        context._initial_sent = True
        wait_s = ROOM_POLL_FIRST_S
        while (sent := front.stream_try_send(call.call_id, data)) == STREAM_FULL:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, ROOM_POLL_LAST_S)
        return bool(sent != STREAM_CLOSED)
