"""The Kafka broker of a run: started when a benchmark first asks for it, or one that is running already."""

import uuid
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.kafka.broker import Broker, NoKafka, missing_tools


class Brokers:
    """Names ledgers at one broker; a broker that it started is stopped on leaving."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def missing(self) -> str | None:
        """What this machine lacks to run a broker; None when there is one, or can be."""
        return None if self._address is not None else missing_tools()

    def url(self) -> str:
        """Return the URL of a ledger that is not there yet.

        Raises:
            NoKafka: no broker can be started.
        """
        if self._address is None:
            if reason := missing_tools():
                raise NoKafka(reason)
            self._address = self._stack.enter_context(Broker()).address
        return f"kafka://{self._address}/bench-{uuid.uuid4().hex[:12]}"
