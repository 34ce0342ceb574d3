"""The keys at hand, wherever their private halves are: in files, with the SSH agent, in a device, with a service."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from flaghoist import sshsig
from flaghoist.errors import Misconfigured
from flaghoist.records import RootKey
from flaghoist.signing import Signer, key_id
from flaghoist.values import Algorithm, KeyId
from publisher.keys import Card, KeyDirectory, unlock
from publisher.signers import agent, securesystems
from publisher.signers.agent import Agent, AgentKey, AgentUnavailable


class Holder(StrEnum):
    """Who holds a private key."""

    FILE = "file"
    SSH_AGENT = "ssh-agent"
    ELSEWHERE = "elsewhere"


class UnlockedKey(Signer, Protocol):
    """A Signer that knows the id of its key."""

    @property
    def key_id(self) -> KeyId: ...


@dataclass(frozen=True, slots=True)
class KeyAtHand:
    """A key that may sign once it is opened; `algorithm` and `public` are None where only its private half is here."""

    name: str
    holder: Holder
    open: Callable[[], UnlockedKey] = field(repr=False)
    algorithm: Algorithm | None = None
    public: bytes | None = None

    @property
    def key_id(self) -> KeyId | None:
        if self.algorithm is None or self.public is None:
            return None
        return key_id(self.algorithm, self.public)


# What a secret is for -> the secret.
AskSecret = Callable[[str], bytes]


class Keyring:
    """Finds keys by how operators name them.

    NAME or PATH/TO/KEY.pem      a file
    ssh:SHA256:… or ssh:COMMENT  the SSH agent's
    hsm:… awskms:… …             securesystems.KeyUri
    """

    def __init__(self, files: KeyDirectory, environ: Mapping[str, str], ask: AskSecret) -> None:
        """`ask` is called with what the secret is for ("Passphrase of key ada"), only when it is needed."""
        self._files, self._environ, self._ask = files, environ, ask
        self.agent_trouble: AgentUnavailable | None = None

    def named(self, name: str, known: Iterable[RootKey] = ()) -> KeyAtHand:
        """Return the key of that name.

        Args:
            known: keys that a fingerprint may stand for, so that the agent is not asked before it must sign.

        Raises:
            Misconfigured, Malformed: there is none, or none that can sign here.
            Unavailable: whoever holds it does not answer.
            WrongPin: as securesystems.found.
        """
        if name.startswith(agent.SCHEME):
            by_fingerprint = {f"{agent.SCHEME}{sshsig.fingerprint(key.public)}": key for key in _ssh_keys(known)}
            listed = by_fingerprint.get(name)
            return self._of_agent(listed.public if listed else agent.public_key(name, self._environ), name)
        if securesystems.is_uri(name):
            held = securesystems.found(name, lambda: self._ask(f"PIN of {name}"), self._environ)
            return KeyAtHand(name, Holder.ELSEWHERE, lambda: held, held.algorithm, held.public)
        if ":" in name and "/" not in name.partition(":")[0]:
            schemes = ", ".join([agent.SCHEME, *(f"{scheme}:" for scheme in securesystems.EXTRAS)])
            raise Misconfigured(
                f"key {name.partition(':')[0]}:…: want a key's name, a path (it has a slash), or one of {schemes}",
                hint="`flaghoist key list` shows the keys of this machine",
            )
        path = self._files.find(name)
        card = self._files.card(path)

        def opened() -> UnlockedKey:
            return unlock(path, lambda: self._ask(f"Passphrase of key {path.stem}"))

        if card is None:
            return KeyAtHand(path.stem, Holder.FILE, opened)
        return KeyAtHand(path.stem, Holder.FILE, opened, card.algorithm, card.public)

    def of_files(self) -> list[KeyAtHand]:
        """Return the keys that have both halves in files here."""
        return [self.named(name) for name, _ in self._files.cards()]

    def of_agent(self, wanted: Iterable[RootKey | Card]) -> list[KeyAtHand]:
        """Return those of the wanted keys that the SSH agent holds; it is asked only if one of them is an SSH key.

        An agent that cannot be asked holds none: `agent_trouble` then says why.
        """
        keys = _ssh_keys(wanted)
        if not keys or not self._environ.get(agent.SOCKET_VARIABLE):
            return []
        try:
            held = {identity.blob for identity in Agent.of(self._environ).identities()}
        except AgentUnavailable as error:
            self.agent_trouble = error
            return []
        here = [key.public for key in keys if sshsig.public_blob(key.public) in held]
        return [self._of_agent(public, f"{agent.SCHEME}{sshsig.fingerprint(public)}") for public in here]

    def _of_agent(self, public: bytes, name: str) -> KeyAtHand:
        # The agent is looked for when it must sign: a card can be made without one.
        def opened() -> UnlockedKey:
            return AgentKey(Agent.of(self._environ), public)

        return KeyAtHand(name, Holder.SSH_AGENT, opened, AgentKey.algorithm, public)


def is_elsewhere(name: str) -> bool:
    """Say whether a key's name is that of an agent's, a device's or a service's, and not of a file."""
    return name.startswith(agent.SCHEME) or securesystems.is_uri(name)


def _ssh_keys(keys: Iterable[RootKey | Card]) -> list[RootKey | Card]:
    return [key for key in keys if key.algorithm is Algorithm.SSHSIG_ED25519]
