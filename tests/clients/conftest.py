"""Clients for tests."""

import pytest

from tests.clients.build import LANGUAGES
from tests.clients.built_commands import Command, commands


@pytest.fixture(scope="session")
def command(request: pytest.FixtureRequest) -> Command:
    """Return what gives the command of a language's client."""
    return commands(request, LANGUAGES)
