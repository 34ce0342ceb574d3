"""Keys that an SSH agent holds: the agent's protocol, as far as listing and signing go.

A frame is a uint32 length, a byte that says what it is, and its fields. A connection is made for each request, so a
restarted agent is no trouble and nothing is left open while a person thinks.

Source: draft-miller-ssh-agent (SSH Agent Protocol), sections 3 and 4; PROTOCOL.agent of OpenSSH.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flaghoist import sshsig
from flaghoist.errors import Malformed, Misconfigured, Refused, Unavailable
from flaghoist.signing import key_id
from flaghoist.values import Algorithm, KeyId
from publisher.files import read_limited

SOCKET_VARIABLE: Final = "SSH_AUTH_SOCK"
SCHEME: Final = "ssh:"
# Source: OpenSSH, AGENT_MAX_LEN; some 2,000 keys of RSA-4096 fit.
FRAME_BYTES_MAX: Final = 256 * 1024
LIST_S: Final = 5.0  # an agent lists from memory
SIGN_S: Final = 120.0  # `ssh-add -c` and password managers ask a person first
PUBLIC_FILE_BYTES_MAX: Final = 16 * 1024  # a line of 80 characters; a certificate given by mistake has 2 KiB

_FAILURE: Final = 5
_LIST_REQUEST, _LIST_ANSWER = 11, 12
_SIGN_REQUEST, _SIGN_ANSWER = 13, 14
_NO_FLAGS: Final = bytes(4)


class NoAgent(Misconfigured):
    """An SSH key is asked for, and this session has no agent."""

    code = "no_ssh_agent"
    hint = "start one with `eval $(ssh-agent)`, then `ssh-add`; or name another key with --key"


class AgentUnavailable(Unavailable):
    """The agent does not answer, or not as an agent does."""

    code = "ssh_agent_unavailable"
    hint = "see whether `ssh-add -l` works; nothing was signed"


class AgentRefused(Refused):
    """The agent said no. It never says why."""

    code = "ssh_agent_refused"
    hint = "confirm it when the agent asks (ssh-add -c), unlock the agent (ssh-add -X), or add the key again (ssh-add)"


class KeyNotLoaded(Misconfigured):
    """The agent does not hold that key, or more than one that fits."""

    code = "ssh_key_not_loaded"
    hint = "load it with `ssh-add FILE`; `ssh-add -l` shows what is loaded; a locked agent shows nothing (ssh-add -X)"


@dataclass(frozen=True, slots=True)
class Identity:
    """A key of the agent, of any type; its comment is whatever its owner wrote."""

    blob: bytes
    comment: str

    @property
    def type(self) -> str:
        return sshsig.blob_type(self.blob)

    @property
    def usable(self) -> bool:
        return self.type == sshsig.KEY_TYPE.decode()

    @property
    def fingerprint(self) -> str:
        return sshsig.blob_fingerprint(self.blob)

    def __str__(self) -> str:
        return f"{self.fingerprint} {self.comment} ({self.type})"


class Agent:
    """An SSH agent at a socket."""

    def __init__(self, path: str) -> None:
        self._path = path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Agent":
        """Return the agent of this session.

        Raises:
            NoAgent: SSH_AUTH_SOCK names none.
        """
        path = environ.get(SOCKET_VARIABLE)
        if not path:
            raise NoAgent(f"{SOCKET_VARIABLE} is not set: want the socket of an SSH agent")
        return cls(path)

    def identities(self) -> Sequence[Identity]:
        """Return the keys that the agent holds, in its order; none when it is locked.

        Raises:
            AgentUnavailable: it does not answer as an agent does.
        """
        answer = self._ask(_LIST_REQUEST, b"", wait_s=LIST_S)
        if answer[0] != _LIST_ANSWER:
            raise self._unavailable(f"want a list of keys (message {_LIST_ANSWER}), got message {answer[0]}")
        try:
            return list(_identities(answer[1:]))
        except Malformed as error:
            raise self._unavailable(f"its list of keys cannot be read: {error}") from error

    def sign(self, public: bytes, data: bytes) -> bytes:
        """Return the raw signature over `data`; what it is worth is for the caller to verify.

        Raises:
            KeyNotLoaded: it does not hold that key.
            AgentRefused: the agent, or the person whom it asks, said no.
            AgentUnavailable: it does not answer as an agent does, or not within SIGN_S.
        """
        request = sshsig.string(sshsig.public_blob(public)) + sshsig.string(data) + _NO_FLAGS
        answer = self._ask(_SIGN_REQUEST, request, wait_s=SIGN_S)
        if answer[0] == _FAILURE:
            held = self.identities()
            if sshsig.public_blob(public) not in [identity.blob for identity in held]:
                raise _not_held(sshsig.fingerprint(public), held)
            raise AgentRefused(f"the SSH agent refused to sign with {sshsig.fingerprint(public)}")
        if answer[0] != _SIGN_ANSWER:
            raise self._unavailable(f"want a signature (message {_SIGN_ANSWER}), got message {answer[0]}")
        try:
            inner, _ = sshsig.read_string(answer, 1)
            kind, at = sshsig.read_string(inner, 0)
            signature, _ = sshsig.read_string(inner, at)
        except Malformed as error:
            raise self._unavailable(f"its signature cannot be read: {error}") from error
        if kind != sshsig.KEY_TYPE:
            raise self._unavailable(f"want a signature of type ssh-ed25519, got {kind[:40]!r}")
        return signature

    def _ask(self, kind: int, fields: bytes, *, wait_s: float) -> bytes:
        """Send one request and return its answer: the kind, then the fields."""
        frame = bytes([kind]) + fields
        deadline = time.monotonic() + wait_s
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(wait_s)
                connection.connect(self._path)
                connection.sendall(len(frame).to_bytes(4, "big") + frame)
                length = int.from_bytes(self._read(connection, 4, deadline), "big")
                if not 1 <= length <= FRAME_BYTES_MAX:
                    raise self._unavailable(f"want an answer of 1 .. {FRAME_BYTES_MAX} bytes, got {length}")
                return self._read(connection, length, deadline)
        except TimeoutError as error:
            raise self._unavailable(f"no answer within {wait_s:g} s") from error
        except OSError as error:
            raise self._unavailable(error.strerror or str(error)) from error

    def _read(self, connection: socket.socket, length: int, deadline: float) -> bytes:
        data = b""
        while len(data) < length:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
            part = connection.recv(length - len(data))
            if not part:
                raise self._unavailable(f"it hung up after {len(data)} of {length} bytes")
            data += part
        return data

    def _unavailable(self, why: str) -> AgentUnavailable:
        return AgentUnavailable(f"SSH agent at {self._path}: {why}")


def _identities(answer: bytes) -> Iterator[Identity]:
    count, at = int.from_bytes(answer[:4], "big"), 4
    for _ in range(count):  # bounded: each takes 8 bytes of a bounded frame, or reading ends the loop
        blob, at = sshsig.read_string(answer, at)
        comment, at = sshsig.read_string(answer, at)
        sshsig.blob_type(blob)
        yield Identity(blob, comment.decode("utf-8", "replace"))


class AgentKey:
    """A key that an agent holds: a Signer."""

    __slots__ = ("_agent", "public")

    algorithm: Final = Algorithm.SSHSIG_ED25519

    def __init__(self, agent: Agent, public: bytes) -> None:
        self._agent, self.public = agent, public

    @property
    def key_id(self) -> KeyId:
        return key_id(self.algorithm, self.public)

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`, as `ssh-keygen -Y sign -n flaghoist` would make it.

        Raises:
            KeyNotLoaded, AgentRefused, AgentUnavailable: as Agent.sign.
        """
        return self._agent.sign(self.public, sshsig.signed_bytes(message))

    def __repr__(self) -> str:
        return f"<AgentKey {sshsig.fingerprint(self.public)}>"


def public_key(name: str, environ: Mapping[str, str]) -> bytes:
    """Return the raw public key that a name stands for; the agent is asked only where the name alone does not say it.

    Args:
        name: `ssh-ed25519 AAAA…`, a path to a .pub file (it has a slash, or ends with .pub), `SHA256:…`, or a comment;
            each with or without `ssh:` before it.

    Raises:
        NoAgent, AgentUnavailable: the agent is needed, and cannot be asked.
        KeyNotLoaded: it has no such key, or several.
        Malformed, Misconfigured: a key of another type; a file that is no public key.
    """
    name = name.removeprefix(SCHEME).strip()
    if name.split(" ", 1)[0].startswith(("ssh-", "sk-ssh-", "sk-ecdsa-", "ecdsa-")) and " " in name:
        return sshsig.public_of_line(name)
    if name.startswith("MD5:"):
        raise Misconfigured(f"SSH key {name!r}: want a SHA256 fingerprint", hint="`ssh-add -l` shows them")
    if not name.startswith("SHA256:") and ("/" in name or name.endswith(".pub")):
        path = Path(name).expanduser()
        if path.suffix == ".pub" or path.exists():
            beside = path.with_name(f"{path.name}.pub")
            return _public_of_file(beside if beside.exists() else path)
    return sshsig.public_of_blob(_named(name, Agent.of(environ).identities()).blob)


def _public_of_file(path: Path) -> bytes:
    text = read_limited(path, limit_bytes=PUBLIC_FILE_BYTES_MAX, what="SSH public key").decode("utf-8", "replace")
    if "PRIVATE KEY-----" in text:
        raise Misconfigured(
            f"{path}: want the public half, got a private key", hint=f"`ssh-add {path}`, then name {path}.pub"
        )
    try:
        return sshsig.public_of_line(text.strip())
    except Malformed as error:
        raise Malformed(f"{path}: {error}", hint=error.hint) from error


def _named(name: str, held: Sequence[Identity]) -> Identity:
    by_fingerprint = name.startswith("SHA256:")
    fitting = [i for i in held if name == (i.fingerprint if by_fingerprint else i.comment)]
    # A certificate stands beside its key under the same comment: the key is meant.
    usable = [identity for identity in fitting if identity.usable] or fitting
    if len(usable) == 1:
        return usable[0]
    if usable:
        raise KeyNotLoaded(
            f"SSH key {name!r}: want one key of that comment, got {'; '.join(map(str, usable))}",
            hint="name it by its fingerprint: ssh:SHA256:…",
        )
    raise _not_held(name, held)


def _not_held(name: str, held: Sequence[Identity]) -> KeyNotLoaded:
    holds = "; ".join(map(str, held)) or "nothing (it may be locked)"
    return KeyNotLoaded(f"SSH key {name!r}: the agent does not hold it; it holds {holds}")
