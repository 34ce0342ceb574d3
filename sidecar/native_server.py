"""pygrpc-native's asyncio server, whose streams never hold a thread. Import it only where its wheel is installed."""

import asyncio
import shutil
from typing import Any, Final

from pygrpc_native import STREAM_CLOSED, STREAM_FULL
from pygrpc_native.aio import Server

ROOM_POLL_FIRST_S: Final = 0.01
ROOM_POLL_LAST_S: Final = 1.0  # a client that does not read for long is asked once a second

# An answer is handed to another thread, which writes it within a millisecond on an idle machine and says nothing of it.
FLUSH_S: Final = 0.1


class NativeServer(Server):
    """The native server, safe with clients that stop reading and with answers on their way when it stops.

    Of a stream whose client is behind, pygrpc-native 0.5 waits in a thread of the loop's default executor: a handful of
    such clients takes every thread, and stop(), which needs one, never ends. Here the stream's own task waits. Its
    stop() closes connections over the last answers, and once cancelled is never done; this one waits, and is.
    """

    _stopped: "asyncio.Task[None] | None" = None

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

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, give open ones `grace` seconds (None: no time), cancel the rest, and close.

        A later call without grace cuts that of an earlier one short, which may have been cancelled.
        """
        if self._stopped is None:
            self._stopping = True
            self._stopped = asyncio.create_task(self._stop(grace), name="native-stop")
        elif not grace:
            self._cancel_calls()
        await asyncio.shield(self._stopped)

    async def _stop(self, grace: float | None) -> None:
        fallback = None if self._fallback is None else asyncio.create_task(self._fallback.stop(grace))
        if grace:
            if tasks := self._tasks():
                await asyncio.wait(tasks, timeout=grace)
            await asyncio.sleep(FLUSH_S)
        self._cancel_calls()
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        if fallback is not None:
            await fallback
        if self._front is not None:
            await asyncio.to_thread(self._front.close)
        if self._fallback_dir is not None:
            shutil.rmtree(self._fallback_dir, ignore_errors=True)
        self._terminated.set()

    def _tasks(self) -> list["asyncio.Task[None]"]:
        return [call.task for call in self._calls.values() if call.task is not None]

    def _cancel_calls(self) -> None:
        for task in self._tasks():
            task.cancel()
