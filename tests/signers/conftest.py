"""Fixtures: a real ssh-agent, a real token. Without the tools they skip at a desk, and fail under CI."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.signers.holders import HSM_TOOLS, SSH_TOOLS, KmsEndpoint, SshAgent, Token


def want(tools: Sequence[str], packages: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    reason = f"{', '.join(missing)} missing: apt-get install {packages}"
    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def ssh_agent() -> Iterator[SshAgent]:
    want(SSH_TOOLS, "openssh-client")
    with SshAgent() as agent:
        yield agent


@pytest.fixture
def token(tmp_path: Path) -> Token:
    want(HSM_TOOLS, "softhsm2 opensc")
    return Token(tmp_path / "token")


@pytest.fixture
def kms() -> Iterator[KmsEndpoint]:
    with KmsEndpoint() as endpoint:
        yield endpoint
