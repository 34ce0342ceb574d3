"""What a command works on: the ledger, the root that it must start with, the key that signs; from options, environment
variables and settings, in this order."""

import dataclasses
import functools
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from flaghoist.environment import Environment
from flaghoist.errors import Malformed, Misconfigured, WrongRole
from flaghoist.log import location
from flaghoist.log.base import OpenLog
from flaghoist.root import Root
from flaghoist.values import Algorithm, KeyId, LogId, Person, Role
from publisher.cli.desk import Desk, Exit
from publisher.files import read_limited
from publisher.home import Home, read_root
from publisher.keys import PASSPHRASE_BYTES_MAX
from publisher.settings import Settings
from publisher.signers.agent import SOCKET_VARIABLE
from publisher.signers.keyring import KeyAtHand, Keyring, UnlockedKey

Command = Callable[..., Exit | None]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Workspace:
    """One command's surroundings; what it does not need is never read."""

    desk: Desk
    home: Home
    ledger_option: str | None = None
    root_option: Path | None = None
    key_option: str | None = None
    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    dry_run: bool = False
    in_force: Root | None = None  # the ledger's root, once it was read; the pinned one may be an earlier version
    _passphrase: bytes | None = field(default=None, repr=False)

    @functools.cached_property
    def settings(self) -> Settings:
        return self.home.settings()

    @functools.cached_property
    def environment(self) -> Environment:
        """The ledger's URL and the file of its pinned root.

        Raises:
            Misconfigured: no ledger named, or no root pinned for it.
        """
        known = self.home.environments()
        wanted = self.ledger_option or self.desk.environ.get("FLAGHOIST_LEDGER") or self.settings.ledger
        if wanted is not None and "://" not in wanted:
            if named := next((e for name, e in known.known.items() if name == wanted), None):
                return named if self.root_option is None else dataclasses.replace(named, root=self.root_option)
            names = ", ".join(known.known) or "none"
            raise Misconfigured(
                f"ledger {wanted!r}: want a URL, or the name of a pinned environment ({names})",
                hint=f"the URLs are {location.SQLITE_FORM}, and {location.KAFKA_FORM}",
            )
        url = None if wanted is None else canonical_url(wanted)
        found = known.of_ledger(url)
        if self.root_option is not None:
            url = url or (found.ledger if found else None)
            if url is not None:
                return Environment(read_root(self.root_option).log_id, url, self.root_option)
        if found is None and url is None:
            raise Misconfigured(
                "no ledger: this machine knows none, and none is named",
                hint="make one with `flaghoist init`, or name one with --ledger URL and --root FILE",
            )
        if found is None:
            raise Misconfigured(
                f"ledger {url}: no root is pinned for it on this machine",
                hint="get the root file from whoever ran `flaghoist init`, then `flaghoist root pin FILE --ledger URL`",
            )
        return found

    @functools.cached_property
    def root(self) -> Root:
        """The pinned root, of any version: where trust begins.

        Raises:
            Misconfigured: its file cannot be read or used.
        """
        return read_root(self.environment.root)

    @property
    def open_log(self) -> OpenLog:
        return location.open_log(self.environment.ledger)

    @staticmethod
    def now_ms() -> int:
        return time.time_ns() // 1_000_000

    @staticmethod
    def holder() -> str:
        """Return how this machine names itself when it takes the publisher's place."""
        return socket.gethostname()[:100] or "unnamed"

    # --- keys ---

    @functools.cached_property
    def keyring(self) -> Keyring:
        """The keys at hand: files, the SSH agent's, those of devices and services."""
        return Keyring(self.home.keys, self.desk.environ, self.secret)

    def choose(self, role: Role, root: Root | None = None) -> KeyAtHand:
        """Return the key that signs in a role: the one named, else the only one here that the root gives that role.

        A key named by FLAGHOIST_KEY or the settings is a preference: where it lacks the role, another one here that has
        it is taken, so that one person may both propose as themselves and run the publisher.

        Args:
            root: who may do what; by default the one in force, or the pinned one while no ledger was read.

        Raises:
            Misconfigured: none here, or several to choose from.
            WrongRole: the one named by --key lacks the role.
            Refused, Unavailable: whoever holds the named key does not say what its public half is.
        """
        root = root or self.in_force or self.root
        if self.key_option is not None:
            chosen = self.keyring.named(self.key_option, root.record.keys)
            if chosen.key_id is not None:
                _check_role(root, chosen.key_id, role, self.key_option)
            return chosen
        preferred = self.desk.environ.get("FLAGHOIST_KEY") or self.settings.key
        if preferred is not None:
            chosen = self.keyring.named(preferred, root.record.keys)
            if chosen.key_id is None or chosen.key_id in root.grant(role).key_ids:
                return chosen
        fitting = [key for key in self.keyring.of_files() if key.key_id in root.grant(role).key_ids]
        fitting += self.keyring.of_agent(root.keys_of(role))
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            named = ", ".join(key.name for key in fitting)
            raise Misconfigured(
                f"several keys here have role {role}: {named}", hint=f"name one: --key {fitting[0].name}"
            )
        people = ", ".join(sorted(root.people_of(role))) or "nobody"
        raise Misconfigured(
            f"no key here has role {role} in {root.log_id}; it belongs to {people}{self._agent_said(root, role)}",
            hint="name a key with --key NAME|FILE|ssh:COMMENT|hsm:…",
        )

    def unlock(self, chosen: KeyAtHand, role: Role, root: Root | None = None) -> tuple[UnlockedKey, Person]:
        """Return the unlocked key and the person to whom the root gives it.

        Raises:
            Refused, Misconfigured, Unavailable: it cannot be unlocked.
            WrongRole: the root does not give it that role.
        """
        held = chosen.open()
        return held, _check_role(root or self.in_force or self.root, held.key_id, role, chosen.name)

    def _agent_said(self, root: Root, role: Role) -> str:
        """Return what there is to say of the SSH agent when no key was found: nothing, where no SSH key would do."""
        if all(key.algorithm is not Algorithm.SSHSIG_ED25519 for key in root.keys_of(role)):
            return ""
        if trouble := self.keyring.agent_trouble:
            return f"; {trouble}"
        if not self.desk.environ.get(SOCKET_VARIABLE):
            return f"; some of them by an SSH key, and {SOCKET_VARIABLE} names no agent"
        return "; the SSH agent holds none of their keys, or is locked"

    # --- passphrases ---

    def passphrase(self, name: str) -> bytes:
        """Return the passphrase of a key file; raises as `secret`."""
        return self.secret(f"Passphrase of key {name}")

    def secret(self, what: str) -> bytes:
        """Return a passphrase or PIN: from --passphrase-fd, from a file, or asked on the terminal.

        Args:
            what: what to ask for, as a person reads it.

        Raises:
            Misconfigured: it cannot be read.
            click.UsageError: there is neither, and no terminal.
        """
        if self._passphrase is not None:
            return self._passphrase
        if self.passphrase_fd is not None:
            self._passphrase = _passphrase_of_fd(self.passphrase_fd)
            return self._passphrase
        named = self.desk.environ.get("FLAGHOIST_PASSPHRASE_FILE") or self.settings.passphrase_file
        path = self.passphrase_file or (Path(named).expanduser() if named else None)
        if path is not None:
            data = read_limited(path, limit_bytes=PASSPHRASE_BYTES_MAX, what="passphrase file")
            self._passphrase = _passphrase_of(data, str(path))
            return self._passphrase
        return self._asked(f"{what}: ")

    @property
    def has_passphrase(self) -> bool:
        """Whether `secret` returns one without asking anybody."""
        named = self.desk.environ.get("FLAGHOIST_PASSPHRASE_FILE") or self.settings.passphrase_file
        return self._passphrase is not None or bool(self.passphrase_file or named) or self.passphrase_fd is not None

    def new_passphrase(self, name: str) -> bytes:
        """Return the passphrase for a new key; on a terminal it is asked twice.

        Raises:
            click.UsageError: two different ones, or nowhere to ask.
        """
        if self.passphrase_fd is None and self.passphrase_file is None and sys.stdin.isatty():
            named = self.desk.environ.get("FLAGHOIST_PASSPHRASE_FILE") or self.settings.passphrase_file
            if not named:
                first = self._asked(f"New passphrase for key {name}: ")
                if self._asked("Once more: ") != first:
                    raise click.UsageError("the two passphrases differ; nothing was written")
                return first
        return self.passphrase(name)

    def _asked(self, prompt: str) -> bytes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"{prompt.rstrip(': ')}: no terminal to ask on; give --passphrase-file FILE or --passphrase-fd N"
            )
        from getpass import getpass

        try:
            return getpass(prompt).encode()
        except EOFError as error:
            raise click.UsageError("no passphrase was given") from error


def _check_role(root: Root, key_id: KeyId, role: Role, name: str) -> Person:
    key = root.key(key_id)
    if key is None or key_id not in root.grant(role).key_ids:
        people = ", ".join(sorted(root.people_of(role))) or "nobody"
        raise WrongRole(
            f"key {name!r} ({key_id}) has no role {role} in {root.log_id}; these people have: {people}",
            hint="name another key with --key",
        )
    return key.person


def canonical_url(url: str) -> str:
    """Return a ledger's URL with absolute paths, so that it means the same from every directory.

    Raises:
        Misconfigured: not a ledger's URL.
    """
    place = location.parse(url)
    values = {f.name: getattr(place, f.name) for f in dataclasses.fields(place)}
    absolute: dict[str, Any] = {n: v.expanduser().absolute() for n, v in values.items() if isinstance(v, Path)}
    return str(dataclasses.replace(place, **absolute))


def _passphrase_of_fd(descriptor: int) -> bytes:
    data = b""
    try:
        while b"\n" not in data and len(data) <= PASSPHRASE_BYTES_MAX:
            part = os.read(descriptor, PASSPHRASE_BYTES_MAX + 1)
            if not part:
                break
            data += part
    except OSError as error:
        raise Misconfigured(f"--passphrase-fd {descriptor}: cannot be read: {error.strerror}") from error
    return _passphrase_of(data, f"--passphrase-fd {descriptor}")


def _passphrase_of(data: bytes, where: str) -> bytes:
    line, _, rest = data.partition(b"\n")
    if not line.strip() or rest.strip() or len(line) > PASSPHRASE_BYTES_MAX:
        raise Misconfigured(f"{where}: want one line with the passphrase")
    return line.rstrip(b"\r")


# --- options, each declared once ---

_JSON: Final = click.option("--json", is_flag=True, expose_value=False, help="Print one JSON document.")
_LEDGER: Final = (
    click.option("--ledger", metavar="URL|NAME", help="The ledger, or a pinned environment. [env: FLAGHOIST_LEDGER]"),
    click.option("--root", "root_file", type=click.Path(path_type=Path), metavar="FILE", help="Instead of the pin."),
)
_KEY: Final = (
    click.option(
        "--key",
        "key_name",
        metavar="NAME|FILE|URI",
        help="The key that signs; ssh:COMMENT, hsm:… (docs/signers.md). [env: FLAGHOIST_KEY]",
    ),
)
_PASSPHRASE: Final = (
    click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Its passphrase or PIN, one line. [env: FLAGHOIST_PASSPHRASE_FILE]",
    ),
    click.option("--passphrase-fd", type=click.IntRange(0), metavar="N", help="The same, from a descriptor."),
)
_CHANGE: Final = (
    click.option("--dry-run", is_flag=True, help="Do every check, show the plan, and stop there."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
)


def operation(
    *, ledger: bool = False, key: bool = False, passphrase: bool = False, change: bool = False
) -> Callable[[Command], Command]:
    """Give a command its shared options; it gets a Workspace as its first argument.

    Args:
        ledger: it reads one (--ledger, --root).
        key: it signs with one (--key, and `passphrase`).
        passphrase: it opens or makes keys.
        change: it changes something (--dry-run, --yes).
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> Exit | None:
            context = click.get_current_context()
            desk = context.find_object(Desk)
            assert desk is not None  # noqa: S101 — main gives it
            desk.assume_yes = bool(values.pop("yes", False))
            work = Workspace(
                desk,
                Home.of(desk.environ),
                ledger_option=values.pop("ledger", None),
                root_option=values.pop("root_file", None),
                key_option=values.pop("key_name", None),
                passphrase_file=values.pop("passphrase_file", None),
                passphrase_fd=values.pop("passphrase_fd", None),
                dry_run=bool(values.pop("dry_run", False)),
            )
            return command(work, **values)

        chosen = [_JSON]
        chosen += _LEDGER if ledger else ()
        chosen += _KEY if key else ()
        chosen += _PASSPHRASE if key or passphrase else ()
        chosen += _CHANGE if change else ()
        decorated: Command = run
        for option in reversed(chosen):
            decorated = option(decorated)
        return decorated

    return decorate


def log_id(text: str) -> LogId:
    """Return the name of an environment from the command line.

    Raises:
        click.UsageError: odd characters.
    """
    try:
        return LogId(text)
    except Malformed as error:
        raise click.UsageError(str(error)) from error
