"""A publisher's service as users run it: the real command in a process of its own, stopped by its own id."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.scenarios.operators import REPOSITORY, Operator
from tests.sidecar_process import SidecarProcess

PROGRAM = "import sys\nfrom publisher.cli import main\nsys.exit(main())"


class PublisherProcess(SidecarProcess):
    """A running publisher: the events that it has logged, as a sidecar's are read."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def count(self, event: str, **facts: object) -> int:
        """How many events of that kind it has logged so far."""
        wanted = {"event": event, **facts}
        return sum(wanted.items() <= each.items() for each in self.events)


@contextmanager
def running_publisher(operator: Operator, *options: str | Path, driver: str = "") -> Iterator[PublisherProcess]:
    """Run `flaghoist publisher` at an operator's desk while the block runs.

    Args:
        driver: Python that runs before it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", f"{driver}\n{PROGRAM}", "publisher", *map(str, options)],
        env={**operator.environ, "PYTHONPATH": f"{REPOSITORY / 'proto'}{os.pathsep}{REPOSITORY}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    publisher = PublisherProcess(process)
    try:
        yield publisher
    finally:
        publisher.stop()
