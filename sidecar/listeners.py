"""Where the sidecar is reached: its faces, the addresses they listen on, and why one cannot be taken.

The grammar of an address is the same for every face; docs/decisions/0008-listeners.md says why it is this one.
"""

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from flaghoist.errors import Misconfigured

SOCKET_MODE: Final = 0o660  # the pod's group; services of other users share it by fsGroup
SOCKET_PATH_BYTES_MAX: Final = 103  # sockaddr_un on macOS, less its closing zero; Linux has 107
BACKLOG: Final = 1024  # connections that the kernel keeps for us while we are busy
HANDSHAKE_S: Final = 10.0  # a client on this machine needs milliseconds; one that says nothing holds a file handle

OFF: Final = "off"
UNIX: Final = "unix:"
PLAINTEXT: Final = "plaintext:"


class Face(StrEnum):
    """What a client asks for; each face has listeners of its own."""

    RPC = "rpc"
    SYNC = "sync"
    OFREP = "ofrep"
    MANAGEMENT = "management"

    @property
    def option(self) -> str:
        """The option that names its listeners."""
        return "--listen" if self is Face.RPC else f"--{self}-listen"


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A TCP address; port 0 takes a free one. `tls`: its clients must speak TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return address_text(self.host, self.port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine (this pod) can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A Unix socket; `mode` is the file's, so its directory and group say who may connect."""

    path: Path
    mode: int = SOCKET_MODE

    def __str__(self) -> str:
        return f"{UNIX}{self.path}"

    @property
    def tls(self) -> bool:
        """Whether its clients must speak TLS: never, since nothing on it leaves this machine."""
        return False


Listener = TcpListener | UnixListener


def address_text(host: str, port: int) -> str:
    """Return host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_listeners(text: str) -> tuple[Listener, ...]:
    """Return the listeners that an option's text names: `off`, or a comma-separated list of addresses.

    An address is IP:PORT, plaintext:IP:PORT, or unix:/path. IP:PORT comes back with `tls` set: whoever has no
    certificate clears it.

    Raises:
        ValueError: none of these; the text says what is wanted.
    """
    if text.strip() == OFF:
        return ()
    return tuple(_parse_listener(part.strip()) for part in text.split(","))


def _parse_listener(text: str) -> Listener:
    if text.startswith(UNIX):
        path = Path(text.removeprefix(UNIX))
        if not path.is_absolute():
            raise ValueError(f"want unix: and an absolute path, got {text!r}")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"want a socket's path of at most {SOCKET_PATH_BYTES_MAX} bytes, got {text!r}")
        return UnixListener(path)
    host, _, port = text.removeprefix(PLAINTEXT).rpartition(":")
    try:
        address, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError as error:
        raise ValueError(
            f"want IP:PORT (port 0: any free one), plaintext:IP:PORT, unix:/path, or off, got {text!r}"
        ) from error
    if not 0 <= number <= 65535:
        raise ValueError(f"want a port of 0 .. 65535, got {number}")
    return TcpListener(str(address), number, tls=not text.startswith(PLAINTEXT))


def bind(listener: Listener, face: Face) -> socket.socket:
    """Return a listening socket. A Unix socket's file is there, with its mode; who closes the socket removes it.

    Raises:
        Misconfigured: the address cannot be taken; says which, of which face, and which option chooses another.
    """
    if isinstance(listener, UnixListener):
        clear(listener, face)
    try:
        family, address = _resolve(listener)
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise cannot_listen(listener, face, error) from error
    try:
        # On a Unix socket this says nothing.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        if isinstance(listener, UnixListener):
            listener.path.chmod(listener.mode)
        # Now, not when the server starts: only a listening socket keeps a second sidecar off the port.
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise cannot_listen(listener, face, error) from error
    return bound


def try_bind(listener: Listener, face: Face) -> None:
    """Find out that `listener` can be taken, and leave it: for servers that bind themselves and tell no reason.

    Raises:
        Misconfigured: as bind().
    """
    if isinstance(listener, UnixListener):
        clear(listener, face)
        return
    try:
        family, address = _resolve(listener)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise cannot_listen(listener, face, error) from error


def clear(listener: UnixListener, face: Face) -> None:
    """Remove the socket that a killed sidecar left behind; one that still answers belongs to a live one.

    Raises:
        Misconfigured: it is a live one's, or no socket.
    """
    try:
        if not stat.S_ISSOCK(listener.path.stat().st_mode):
            raise Misconfigured(
                f"{face}: cannot listen on {listener}: the file exists and is not a socket",
                hint=f"choose another path with {face.option}, or remove that file",
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(listener.path))
        except ConnectionRefusedError:
            listener.path.unlink()
            return
        except OSError as error:
            raise cannot_listen(listener, face, error) from error
    raise cannot_listen(listener, face, OSError(errno.EADDRINUSE, "in use"))


def cannot_listen(listener: Listener, face: Face, error: Exception) -> Misconfigured:
    """Return the error for an address that the system does not give us."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        off = "" if face is Face.RPC else f", or turn it off with `{face.option} {OFF}`"
        return Misconfigured(
            f"{face}: cannot listen on {listener}: another process does",
            hint=f"stop the other process (another sidecar or flagd?), choose another address with {face.option}{off}",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    wanted = "a path that this user may write" if isinstance(listener, UnixListener) else "one that this machine has"
    return Misconfigured(
        f"{face}: cannot listen on {listener}: {reason}", hint=f"choose another address, {wanted}, with {face.option}"
    )


def _resolve(listener: Listener) -> tuple[int, tuple[Any, ...] | str]:
    if isinstance(listener, UnixListener):
        return socket.AF_UNIX, str(listener.path)
    family, *_, address = socket.getaddrinfo(
        listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, address
