"""The running chain, for tests: skipped at a desk without its toolchains."""

from collections.abc import Iterator

import pytest

from tests.chain.services import SERVICES, Chain, running_chain
from tests.clients.built_commands import commands


@pytest.fixture(scope="session")
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One chain for the session."""
    command = commands(request, SERVICES)
    built = {language: command(language) for language in SERVICES}
    with running_chain(tmp_path_factory.mktemp("chain"), built) as chain:
        yield chain
