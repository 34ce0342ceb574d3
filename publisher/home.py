"""The directory of one operator on one machine: settings, keys, pinned roots, journals."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flaghoist.codec import ENVELOPE_BYTES_MAX
from flaghoist.environment import FILE_NAME as ENVIRONMENTS_FILE_NAME
from flaghoist.environment import Environment, Environments, config_home, state_home
from flaghoist.errors import Malformed, Misconfigured
from flaghoist.root import Root
from flaghoist.values import LogId
from publisher import settings
from publisher.files import make_private_directory, read_limited, replace_file
from publisher.keys import KeyDirectory
from publisher.settings import Settings

ENVIRONMENTS_BYTES_MAX = 1024 * 1024  # thousands of environments


@dataclass(frozen=True, slots=True)
class Home:
    """Where things lie: `config` is private and worth a backup, `state` is the publisher's journals."""

    config: Path
    state: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Home":
        """Return the home that these environment variables name."""
        return cls(config_home(environ), state_home(environ))

    @property
    def keys(self) -> KeyDirectory:
        return KeyDirectory(self.config / "keys")

    @property
    def journals(self) -> Path:
        return self.state / "journals"

    @property
    def environments_file(self) -> Path:
        return self.config / ENVIRONMENTS_FILE_NAME

    def root_file(self, log_id: LogId) -> Path:
        return self.config / "roots" / f"{log_id}.root"

    def settings(self) -> Settings:
        """Return the operator's settings; the defaults when there is no file.

        Raises:
            Misconfigured: the file cannot be read or says what is no setting.
        """
        path = self.config / settings.FILE_NAME
        if not path.exists():
            return Settings()
        return Settings.parse(_text(path, settings.SETTINGS_BYTES_MAX, "settings"), where=str(path))

    def environments(self) -> Environments:
        """Return the environments that this machine knows.

        Raises:
            Misconfigured, Malformed: the file cannot be read or used.
        """
        path = self.environments_file
        if not path.exists():
            return Environments({})
        return Environments.parse(_text(path, ENVIRONMENTS_BYTES_MAX, "environments"), where=str(path))

    def write_root(self, root: bytes, log_id: LogId) -> Path:
        """Keep a root file, and return its path; it counts once `pin` names it.

        Raises:
            Misconfigured: it cannot be written.
        """
        path = self.root_file(log_id)
        make_private_directory(path.parent)
        replace_file(path, root)
        return path

    def pin(self, environment: Environment) -> None:
        """Remember an environment: from then on its ledger must start with exactly that root.

        Raises:
            Misconfigured: it cannot be written.
        """
        make_private_directory(self.config)
        replace_file(self.environments_file, self.environments().pinned(environment).render().encode())


def read_root(path: Path) -> Root:
    """Return the root in a file.

    Raises:
        Misconfigured: it cannot be read, or is no root that can be used.
    """
    data = read_limited(path, limit_bytes=ENVELOPE_BYTES_MAX, what="root")
    try:
        return Root.from_bytes(data)
    except Malformed as error:
        raise Misconfigured(f"root {path}: {error}", hint="ask for the root file of this environment again") from error


def _text(path: Path, limit_bytes: int, what: str) -> str:
    try:
        return read_limited(path, limit_bytes=limit_bytes, what=what).decode()
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{what} {path}: want UTF-8, got {error}") from error
