"""Readers for tests."""

import pytest

from tests.clients.built_commands import Command, commands
from tests.readers.build import READERS


@pytest.fixture(scope="session")
def command(request: pytest.FixtureRequest) -> Command:
    """Return what gives the command of a language's reader."""
    return commands(request, READERS)
