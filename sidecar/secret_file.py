"""Files that only the sidecar may read: a private key, tokens."""

import os
import stat
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured

SECRET_BYTES_MAX: Final = 1024 * 1024  # no key or token list comes near it; a wrong path may name anything


def read_secret(path: Path, option: str) -> bytes:
    """Return the bytes of a file that nobody else may read.

    Args:
        option: the option that names the file, for errors.

    Raises:
        Misconfigured: it cannot be read, is too large, or is open to others; the hint is the chmod to run.
    """
    try:
        with path.open("rb") as file:
            # Of the open file: a path can be exchanged between two looks at it.
            status = os.fstat(file.fileno())
            refuse_readable(path, option, status.st_mode, status.st_uid, os.geteuid())
            return _bounded(file.read(SECRET_BYTES_MAX + 1), path, option)
    except OSError as error:
        raise _unreadable(path, option, error) from error


def read_public(path: Path, option: str) -> bytes:
    """Return the bytes of a file that everyone may read, such as certificates.

    Raises:
        Misconfigured: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            return _bounded(file.read(SECRET_BYTES_MAX + 1), path, option)
    except OSError as error:
        raise _unreadable(path, option, error) from error


def refuse_readable(path: Path, option: str, mode: int, owner: int, user: int) -> None:
    """Refuse a file that others than `user` may read or write.

    root's file may be readable by its group: that is how Kubernetes mounts a secret for a user other than root, who
    could not read it otherwise. The same rule as libpq's for sslkey (PostgreSQL 18, section 32.19.2).

    Args:
        mode: as os.stat() gives it.
        owner, user: user ids of the file and of this process.

    Raises:
        Misconfigured: others may.
    """
    mode = stat.S_IMODE(mode)
    lent = owner == 0 and user != 0
    if not mode & (0o037 if lent else 0o077):
        return
    wanted = 0o640 if lent else 0o600
    raise Misconfigured(
        f"{option} {path}: others may read or write this file: want mode {wanted:04o} or stricter, got {mode:04o}",
        hint=f"run: chmod {wanted:o} {path}",
    )


def _bounded(data: bytes, path: Path, option: str) -> bytes:
    if len(data) > SECRET_BYTES_MAX:
        raise Misconfigured(
            f"{option} {path}: want at most {SECRET_BYTES_MAX} bytes, got more", hint="is this the right file?"
        )
    return data


def _unreadable(path: Path, option: str, error: OSError) -> Misconfigured:
    return Misconfigured(
        f"{option} {path}: cannot be read: {error.strerror}",
        hint="check the path, and that the sidecar's user may read the file",
    )
