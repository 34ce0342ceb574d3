"""The settings file: all of its faults in one message."""

import pytest

from flaghoist.errors import Misconfigured
from publisher.settings import Settings


def test_settings_are_read() -> None:
    settings = Settings.parse('ledger = "staging"\nkey = "ada"\neditor = "vim"', where="config.toml")
    assert settings == Settings(ledger="staging", key="ada", editor="vim")


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.parse('legder = "x"\nkey = 7\neditor = ""', where="config.toml")
    assert all(name in str(caught.value) for name in ("config.toml", "legder", "key", "editor"))


def test_what_is_not_toml_is_refused_with_its_line() -> None:
    with pytest.raises(Misconfigured, match="line 1"):
        Settings.parse("ledger: staging", where="config.toml")
