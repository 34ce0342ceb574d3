"""Real holders of keys for tests: an ssh-agent, a SoftHSM token; and an endpoint that answers as AWS KMS does."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SSH_TOOLS = ("ssh-agent", "ssh-add", "ssh-keygen")
HSM_TOOLS = ("softhsm2-util", "pkcs11-tool")
TOOL_S = 30.0
# Options of `init`: two people are enough, and no service need run.
SMALL = ("--root-threshold", "1", "--no-heartbeats")


def ran(
    *args: str | Path, environ: Mapping[str, str] = os.environ, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool without a terminal, to its end."""
    return subprocess.run(
        [str(arg) for arg in args],
        env=dict(environ),
        input=stdin,
        capture_output=True,
        timeout=TOOL_S,
        start_new_session=True,  # no terminal to ask on
        check=False,
    )


def must(*args: str | Path, environ: Mapping[str, str] = os.environ, stdin: bytes = b"") -> bytes:
    """Run a tool that must work; return what it prints."""
    done = ran(*args, environ=environ, stdin=stdin)
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


class SshAgent:
    """OpenSSH's agent, of its own, in a directory of its own.

    A key added with `confirm` is used only when `answer` says so: the agent asks the program in SSH_ASKPASS.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fh-ssh-"))  # a socket's path has at most 107 bytes
        self.socket = self.directory / "agent"
        self._answer = self.directory / "answer"
        self._answer.write_text("#!/bin/sh\nexit 0\n")
        self._answer.chmod(0o700)
        environ = {**os.environ, "SSH_ASKPASS": str(self._answer), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        self.environ = {**environ, "SSH_AUTH_SOCK": str(self.socket)}
        self._process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(self.socket)], env=environ, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        assert b"SSH_AUTH_SOCK" in self._process.stdout.readline()  # printed once it listens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def stop(self) -> None:
        """End the agent; its socket's file stays, as after a crash."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(TOOL_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def make(self, name: str, *, kind: str = "ed25519", comment: str = "") -> Path:
        """Make a key in a file, without a passphrase; the agent does not have it yet."""
        path = self.directory / name
        must("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment or name, "-f", path)
        return path

    def add(self, key: Path, *, confirm: bool = False) -> Path:
        must("ssh-add", *(["-c"] if confirm else []), key, environ=self.environ)
        return key

    def hold(self, name: str, **more: str) -> Path:
        """Make a key and give it to the agent."""
        return self.add(self.make(name, **more))

    def answer(self, *, yes: bool) -> None:
        """Say what the person says whom the agent asks."""
        self._answer.write_text(f"#!/bin/sh\nexit {0 if yes else 1}\n")

    def lock(self) -> None:
        self._answer.write_text("#!/bin/sh\necho a lock\n")
        must("ssh-add", "-x", environ=self.environ)


@dataclass
class Token:
    """A SoftHSM token in a directory of its own, with P-256 keys made by OpenSC's pkcs11-tool."""

    directory: Path
    label: str = "flags"
    pin: str = "correct horse battery"
    environ: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        (self.directory / "tokens").mkdir(parents=True)
        settings = self.directory / "softhsm2.conf"
        settings.write_text(
            f"directories.tokendir = {self.directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.environ = {"SOFTHSM2_CONF": str(settings), "PYKCS11LIB": str(softhsm_module())}
        self.initialise(self.label)

    def initialise(self, label: str) -> None:
        pins = ("--pin", self.pin, "--so-pin", "unlock it again")
        must("softhsm2-util", "--init-token", "--free", "--label", label, *pins, environ=self._all)

    def make(self, hsm_id: int, *, curve: str = "prime256v1") -> str:
        """Make a key pair; return its URI."""
        must(*self._tool, "--keypairgen", "--key-type", f"EC:{curve}", "--id", f"{hsm_id:02x}", environ=self._all)
        return f"hsm:{hsm_id}?label={self.label}"

    def forget_private(self, hsm_id: int) -> None:
        must(*self._tool, "--delete-object", "--type", "privkey", "--id", f"{hsm_id:02x}", environ=self._all)

    @property
    def _tool(self) -> list[str]:
        return [
            "pkcs11-tool",
            "--module",
            str(softhsm_module()),
            "--token-label",
            self.label,
            "--login",
            "--pin",
            self.pin,
        ]

    @property
    def _all(self) -> Mapping[str, str]:
        return {**os.environ, **self.environ}


def softhsm_module() -> Path:
    """Return the path of SoftHSM's PKCS#11 module."""
    known = [Path("/usr/lib/softhsm/libsofthsm2.so"), *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so")]
    return next(path for path in known if path.exists())


class KmsEndpoint:
    """Answers GetPublicKey and Sign on loopback, in AWS KMS's JSON protocol, with a real P-256 key.

    Source: AWS Key Management Service API Reference, GetPublicKey and Sign.
    """

    def __init__(self, *, spec: ec.EllipticCurve | None = None) -> None:
        self.private = ec.generate_private_key(spec or ec.SECP256R1())
        self.refuses: str | None = None  # an error type of AWS, for Sign
        self.calls: list[tuple[str, Mapping[str, object]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                action = self.headers["X-Amz-Target"].removeprefix("TrentService.")
                endpoint.calls.append((action, body))
                status, answer = endpoint.answer(action, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.environ = {
            "AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{self._server.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a secret of nobody",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TOOL_S)

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def answer(self, action: str, body: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        """Return the status and the JSON that AWS would give."""
        size = self.private.curve.key_size
        algorithm = f"ECDSA_SHA_{size}"
        if action == "GetPublicKey":
            public = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            encoded = base64.b64encode(public).decode()
            return 200, {"KeyId": body["KeyId"], "PublicKey": encoded, "SigningAlgorithms": [algorithm]}
        if self.refuses is not None:
            return 400, {"__type": self.refuses, "message": "you may not"}
        assert (action, body["MessageType"], body["SigningAlgorithm"]) == ("Sign", "DIGEST", algorithm)
        digest = base64.b64decode(str(body["Message"]))
        signature = self.private.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        return 200, {"KeyId": body["KeyId"], "Signature": base64.b64encode(signature).decode()}


def raw_signature(armour: str) -> bytes:
    """Return the 64 bytes at the end of what `ssh-keygen -Y sign` prints."""
    body = re.sub(r"-----[A-Z ]+-----|\s", "", armour)
    return base64.b64decode(body)[-64:]
