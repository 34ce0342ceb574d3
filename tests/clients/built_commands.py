"""Commands of programs in other languages, for tests: each built when the first test of its language asks."""

import os
from collections.abc import Callable, Mapping

import pytest

from tests.clients.build import BuildFailed, Language, built

Command = Callable[[str], tuple[str, ...]]


def commands(request: pytest.FixtureRequest, programs: Mapping[str, Language]) -> Command:
    """Return what gives the command of a language's program.

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
        if missing := programs[language].missing():
            if _required():
                pytest.fail(f"{missing}, and clients are required here", pytrace=False)
            pytest.skip(missing)
        # Building again for each test of a language that does not build would take as long each time.
        if language not in failures:
            try:
                return built(programs[language], say)
            except BuildFailed as error:
                failures[language] = str(error)
        pytest.fail(failures[language], pytrace=False)

    return of


def _required() -> bool:
    return any(os.environ.get(name, "") not in ("", "0", "false") for name in ("CI", "REQUIRE_CLIENTS"))
