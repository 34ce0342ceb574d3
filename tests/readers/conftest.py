"""Readers for tests: built when the first test of a language asks, skipped at a desk without its toolchain."""

import os
from collections.abc import Callable

import pytest

from tests.clients.build import BuildFailed, built
from tests.readers.build import READERS

Command = Callable[[str], tuple[str, ...]]


def _required() -> bool:
    return any(os.environ.get(name, "") not in ("", "0", "false") for name in ("CI", "REQUIRE_CLIENTS"))


@pytest.fixture(scope="session")
def command(request: pytest.FixtureRequest) -> Command:
    """Return the command that runs a language's reader.

    A missing toolchain skips the test, and fails it under CI or REQUIRE_CLIENTS=1; a build that fails always does.
    """
    failures: dict[str, str] = {}
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def say(line: str) -> None:
        if capture is None:
            print(line, flush=True)
            return
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    def of(language: str) -> tuple[str, ...]:
        if missing := READERS[language].missing():
            if _required():
                pytest.fail(f"{missing}, and clients are required here", pytrace=False)
            pytest.skip(missing)
        if language not in failures:
            try:
                return built(READERS[language], say)
            except BuildFailed as error:
                failures[language] = str(error)
        pytest.fail(failures[language], pytrace=False)

    return of
