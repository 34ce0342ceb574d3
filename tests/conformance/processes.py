"""Other processes that use a log, for tests of what one process does when another writes."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flaghoist.log.base import Stream

ROOT = Path(__file__).resolve().parents[2]

_APPENDER = """
    async def main():
        loop = asyncio.get_running_loop()
        stream, key = arguments
        async with open_log(url)(Stream(stream)) as log:
            say("ready")
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                before = time.monotonic_ns()
                position = await log.append(line.rstrip().encode(), key=key and key.encode())
                say([position, before, time.monotonic_ns()])
"""


@contextmanager
def python(body: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run `async def main()` of `body` in another Python, with flaghoist's log at hand; `say` prints a line of JSON.

    `url` is the first of the arguments, `arguments` are the others. The process is ended on leaving.
    """
    prelude = f"""
        import asyncio, json, sys, time
        sys.path[:0] = {[str(ROOT / "proto"), str(ROOT)]!r}
        from flaghoist.errors import *
        from flaghoist.log.base import *
        from flaghoist.log.location import create_log, open_log
        url, *arguments = json.loads(sys.argv[1])
        def say(thing): print(json.dumps(thing), flush=True)
    """
    program = "\n".join(map(textwrap.dedent, (prelude, body, "asyncio.run(main())")))
    process = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str]) -> object:
    """Return the next thing that the process said."""
    output: IO[str] | None = process.stdout
    assert output is not None
    line = output.readline()
    assert line, "the other process ended; what it said is above"
    return json.loads(line)


@contextmanager
def timed_appender(
    url: str, stream: Stream = Stream.LEDGER, key: str | None = None
) -> Iterator[Callable[[str], tuple[int, int, int]]]:
    """Give what appends a text from another process: position, and monotonic ns before and after."""
    with python(_APPENDER, url, stream, key) as process:
        assert heard(process) == "ready"

        def append(text: str) -> tuple[int, int, int]:
            assert process.stdin is not None
            process.stdin.write(text + "\n")
            position, before_ns, after_ns = heard(process)  # type: ignore[misc]
            return position, before_ns, after_ns

        yield append


@contextmanager
def appender(url: str, stream: Stream = Stream.LEDGER, key: str | None = None) -> Iterator[Callable[[str], int]]:
    """Give what appends a text from another process and returns its position."""
    with timed_appender(url, stream, key) as append:
        yield lambda text: append(text)[0]
