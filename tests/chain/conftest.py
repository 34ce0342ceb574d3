"""The running chain, for tests: skipped at a desk without its toolchains."""

import os
from collections.abc import Iterator

import pytest

from tests.chain.services import SERVICES, Chain, running_chain
from tests.clients.build import built


def _required() -> bool:
    return any(os.environ.get(name, "") not in ("", "0", "false") for name in ("CI", "REQUIRE_CLIENTS"))


@pytest.fixture(scope="session")
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One chain for the session.

    A missing toolchain skips the test, and fails it under CI or REQUIRE_CLIENTS=1; a build that fails always does.
    """
    missing = [reason for service in SERVICES.values() if (reason := service.missing())]
    if missing and _required():
        pytest.fail(f"{missing[0]}, and clients are required here", pytrace=False)
    if missing:
        pytest.skip(missing[0])
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def say(line: str) -> None:
        if capture is not None:
            with capture.global_and_fixture_disabled():
                print(f"\n{line}", end="", flush=True)

    commands = {language: built(service, say) for language, service in SERVICES.items()}
    with running_chain(tmp_path_factory.mktemp("chain"), commands) as chain:
        yield chain
