"""Files that operators own: written whole or not at all, read with a limit, private where they must be."""

import os
from pathlib import Path
from typing import Final

from flaghoist.errors import Misconfigured, TooLarge

PRIVATE_FILE_MODE: Final = 0o600
PRIVATE_DIRECTORY_MODE: Final = 0o700


def make_private_directory(directory: Path) -> None:
    """Make a directory and its parents, mode 0700; one that exists stays as it is.

    Raises:
        Misconfigured: it cannot be made, or something else has its name.
    """
    try:
        directory.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(directory, error) from error


def replace_file(path: Path, data: bytes, *, mode: int = PRIVATE_FILE_MODE) -> None:
    """Write a file as a whole and durably: after a crash it is the old one or the new one.

    Raises:
        Misconfigured: it cannot be written; nothing is left behind.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = _made(new, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise unwritable(path, error) from error


def sync_directory(directory: Path) -> None:
    """Make durable what its files are called by now.

    Raises:
        Misconfigured: the disk failed, or it is no directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(directory, error) from error


def _made(new: Path, mode: int) -> int:
    """Return a descriptor of a new file; nobody else's file and no link is ever written to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(new, flags, mode)
    except FileExistsError:
        # Left by a process of the same id that was killed while it wrote: in a container the id is always the same.
        new.unlink()
        return os.open(new, flags, mode)


def read_limited(path: Path, *, limit_bytes: int, what: str) -> bytes:
    """Return a file's content; a longer one is refused before it is read.

    Raises:
        TooLarge: more than `limit_bytes`.
        Misconfigured: it cannot be read; `what` names it in the text.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise TooLarge(f"{what} {path}", limit=limit_bytes, got=size)
            # A pipe or a device has no size: what it yields is bounded here.
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise unreadable(path, error, what=what) from error
    if len(data) > limit_bytes:
        raise TooLarge(f"{what} {path}", limit=limit_bytes, got=len(data))
    return data


def unreadable(path: Path, error: OSError, *, what: str) -> Misconfigured:
    """Return the error for a file that cannot be read."""
    return Misconfigured(f"{what} {path}: cannot be read: {error.strerror}", hint="check its path and its mode")


def unwritable(path: Path, error: OSError) -> Misconfigured:
    """Return the error for a place that cannot be written."""
    return Misconfigured(
        f"{path}: cannot be written: {error.strerror}",
        hint="free or unlock that place, or set FLAGHOIST_HOME to a writable directory",
    )
