"""The sidecar as a process: where it listens, to whom it answers, and what it refuses to start with."""

import http.client
import json
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from flagd.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from flagd.sync.v1 import sync_pb2, sync_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Issued, replace
from tests.e2e.world import World
from tests.sidecar_process import SidecarProcess, running_sidecar

WITHIN_S = 30.0
RENEWED_WITHIN_S = 2.0  # docs/sidecar.md promises it
FACES = ["rpc", "management", "sync", "ofrep"]
OPTION = {face: "--listen" if face == "rpc" else f"--{face}-listen" for face in FACES}
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Caller:
    """A client of one sidecar: how it reaches it, and what it trusts, shows and says."""

    def __init__(
        self,
        sidecar: SidecarProcess,
        *,
        trusts: bytes | None = None,
        shows: Issued | None = None,
        token: str | None = None,
    ) -> None:
        self.sidecar = sidecar
        self.trusts = trusts
        self.shows = shows
        self.token = token

    def ask(self, face: str) -> bool:
        """Ask a face what it is for; return whether the flag new-checkout could be told."""
        return getattr(self, f"_{face}")()

    def _channel(self, face: str) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        address = self.sidecar.address_of(face)
        if self.trusts is None:
            return grpc.insecure_channel(address, options)
        shows = (self.shows.key, self.shows.cert) if self.shows else ()
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(self.trusts, *shows), options)

    @property
    def _fields(self) -> list[tuple[str, str]]:
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]

    def health(self, face: str) -> int:
        with self._channel(face) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=WITHIN_S).status

    def _rpc(self) -> bool:
        with self._channel("rpc") as channel:
            stub = evaluation_pb2_grpc.ServiceStub(channel)
            request = evaluation_pb2.ResolveBooleanRequest(flag_key="new-checkout")
            return stub.ResolveBoolean(request, metadata=self._fields, timeout=WITHIN_S).variant in ("on", "off")

    def _sync(self) -> bool:
        with self._channel("sync") as channel:
            stub = sync_pb2_grpc.FlagSyncServiceStub(channel)
            answer = stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest(), metadata=self._fields, timeout=WITHIN_S)
            return "new-checkout" in json.loads(answer.flag_configuration)["flags"]

    def _ofrep(self) -> bool:
        status, body = self.http("ofrep", "POST", "/ofrep/v1/evaluate/flags/new-checkout", b"{}")
        return status == 200 and json.loads(body)["variant"] in ("on", "off")

    def _management(self) -> bool:
        status, body = self.http("management", "GET", "/metrics")
        return status == 200 and b"flaghoist_flags 1.0" in body

    def http(self, face: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        address = self.sidecar.address_of(face)
        connection = http.client.HTTPConnection("127.0.0.1", timeout=WITHIN_S)
        if address.startswith("unix:"):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(WITHIN_S)
            connection.sock.connect(address.removeprefix("unix:"))
        elif self.trusts is not None:
            port = int(address.rpartition(":")[2])
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=self._context(), timeout=WITHIN_S)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", int(address.rpartition(":")[2]), timeout=WITHIN_S)
        try:
            connection.request(method, path, body, dict(self._fields))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _context(self) -> ssl.SSLContext:
        assert self.trusts is not None
        context = ssl.create_default_context(cadata=self.trusts.decode())
        if self.shows is not None:
            place = self.sidecar_place / "of-client"
            place.mkdir(exist_ok=True)
            context.load_cert_chain(*self.shows.write(place, "client"))
        return context

    @property
    def sidecar_place(self) -> Path:
        return Path(str(self.sidecar.process.args[self.sidecar.process.args.index("--state-dir") + 1])).parent

    def refused(self, face: str) -> str:
        """Return how a face refuses: a gRPC status, an HTTP status, or `connection`."""
        try:
            answered = self.ask(face)
        except grpc.RpcError as error:
            return "connection" if error.code() is grpc.StatusCode.UNAVAILABLE else error.code().name
        except (ssl.SSLError, ConnectionError):
            return "connection"
        assert not answered, f"{face} answers"
        return "HTTP"


def until_ready(sidecar: SidecarProcess) -> None:
    sidecar.until("ledger.reached")


def ended(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a sidecar that must not start, and return how it ended."""
    with running_sidecar(world.url, world.root, world.directory / "state", *options) as sidecar:
        sidecar.process.wait(WITHIN_S)
    text = "".join(str(event.get("text", "")) for event in sidecar.events)
    return subprocess.CompletedProcess([], sidecar.process.returncode, text, text)


def eventually(holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "the condition did not come true"
        threading.Event().wait(0.01)


def test_every_face_opens_and_says_where(world: World) -> None:
    with world.sidecar() as sidecar:
        until_ready(sidecar)
        for face in FACES:
            assert Caller(sidecar).ask(face)
            opened = sidecar.until("front.opened", face=face)
            assert opened["tls"] is False
            assert opened["server"] == {"rpc": "native", "sync": "grpcio"}.get(face, "uvicorn")
        assert Caller(sidecar).health("sync") == health_pb2.HealthCheckResponse.SERVING
        assert len({sidecar.port_of(face) for face in FACES}) == len(FACES)


def test_face_that_is_off_does_not_listen(world: World) -> None:
    with world.sidecar(*(part for face in FACES[1:] for part in (OPTION[face], "off"))) as sidecar:
        until_ready(sidecar)
        assert Caller(sidecar).ask("rpc")
        assert [event["face"] for event in sidecar.events if event["event"] == "front.opened"] == ["rpc"]


def test_every_face_answers_on_a_unix_socket_of_the_group_and_leaves_no_file(world: World) -> None:
    paths = {face: world.directory / f"{face}.sock" for face in FACES}
    with world.sidecar(*(part for face in FACES for part in (OPTION[face], f"unix:{paths[face]}"))) as sidecar:
        until_ready(sidecar)
        for face in FACES:
            assert sidecar.address_of(face) == f"unix:{paths[face]}"
            assert Caller(sidecar).ask(face)
            assert stat.S_IMODE(paths[face].stat().st_mode) == 0o660
    assert sidecar.process.returncode == 0
    assert not any(path.exists() for path in paths.values())


def test_one_face_listens_at_several_addresses(world: World) -> None:
    path = world.directory / "rpc.sock"
    with world.sidecar("--listen", f"127.0.0.1:0,unix:{path},[::1]:0") as sidecar:
        until_ready(sidecar)
        addresses = [str(event["address"]) for event in sidecar.events if event.get("face") == "rpc"]
        assert [address.partition(":")[0] for address in addresses] == ["127.0.0.1", "unix", "["]
        for address in addresses:
            with grpc.insecure_channel(address) as channel:
                stub = evaluation_pb2_grpc.ServiceStub(channel)
                request = evaluation_pb2.ResolveBooleanRequest(flag_key="new-checkout")
                assert stub.ResolveBoolean(request, timeout=WITHIN_S).variant in ("on", "off")


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_taken_address_ends_the_start_and_names_face_and_option(world: World, face: str, way: str) -> None:
    family = socket.AF_INET if way == "tcp" else socket.AF_UNIX
    with socket.socket(family) as other:
        other.bind(("127.0.0.1", 0) if way == "tcp" else str(world.directory / "other.sock"))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}" if way == "tcp" else f"unix:{other.getsockname()}"
        end = ended(world, OPTION[face], address)
    assert end.returncode == 2
    assert f"error[misconfigured]: {face}: cannot listen on {address}: another process does" in end.stdout
    assert f"with {OPTION[face]}" in end.stdout


@pytest.mark.parametrize("face", FACES)
def test_address_that_others_can_reach_needs_tls_or_its_own_word(world: World, face: str) -> None:
    end = ended(world, OPTION[face], "0.0.0.0:0")
    assert end.returncode == 2
    assert "others can reach 0.0.0.0:0, and it has no TLS" in end.stdout
    assert "--allow-plaintext-network" in end.stdout
    with world.sidecar(OPTION[face], "0.0.0.0:0", "--allow-plaintext-network") as sidecar:
        until_ready(sidecar)
        assert sidecar.address_of(face).startswith("0.0.0.0:")
        # By loopback: nothing outside this machine is asked.
        sidecar.until("front.opened", face=face)
        assert Caller(sidecar).ask(face)


def test_taken_port_leaves_no_half_started_sidecar(world: World) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        path = world.directory / "rpc.sock"
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert ended(world, "--listen", f"unix:{path}", "--ofrep-listen", taken).returncode == 2
    assert not path.exists()


class Secured:
    """Files for TLS, and the options that name them."""

    def __init__(self, world: World, *, mutual: bool = False) -> None:
        self.ca, self.clients = Authority("ca"), Authority("clients")
        self.place = world.directory / "tls"
        self.place.mkdir()
        self.cert, self.key = self.ca.issue("sidecar").write(self.place, "server")
        self.options = ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]
        if mutual:
            client_ca = self.place / "clients.crt"
            client_ca.write_bytes(self.clients.cert)
            self.options += ["--tls-client-ca", str(client_ca)]


def test_certificate_puts_tls_on_every_face_also_beyond_loopback(world: World) -> None:
    secured = Secured(world)
    everywhere = [part for face in FACES for part in (OPTION[face], "0.0.0.0:0")]
    with world.sidecar(*secured.options, *everywhere) as sidecar:
        until_ready(sidecar)
        for face in FACES:
            opened = sidecar.until("front.opened", face=face)
            assert (opened["tls"], opened["server"]) == (True, "grpcio" if face in ("rpc", "sync") else "uvicorn")
        local = Local(sidecar)
        for face in FACES:
            assert Caller(local, trusts=secured.ca.cert).ask(face)
            assert Caller(local).refused(face) == "connection"
            assert Caller(local, trusts=secured.clients.cert).refused(face) == "connection"


class Local:
    """A sidecar that listens everywhere, as this machine reaches it; its certificate names 127.0.0.1."""

    def __init__(self, sidecar: SidecarProcess) -> None:
        self.process = sidecar.process
        self._sidecar = sidecar

    def address_of(self, face: str) -> str:
        return self._sidecar.address_of(face).replace("0.0.0.0", "127.0.0.1")


def test_client_ca_asks_every_client_of_every_face_for_a_certificate(world: World) -> None:
    secured = Secured(world, mutual=True)
    with world.sidecar(*secured.options) as sidecar:
        until_ready(sidecar)
        for face in FACES:
            assert Caller(sidecar, trusts=secured.ca.cert, shows=secured.clients.issue("checkout")).ask(face)
            for shows in (None, secured.ca.issue("checkout"), secured.clients.expired("checkout")):
                assert Caller(sidecar, trusts=secured.ca.cert, shows=shows).refused(face) == "connection"


def test_address_marked_plaintext_stays_so(world: World) -> None:
    secured = Secured(world)
    with world.sidecar(*secured.options, "--management-listen", "plaintext:127.0.0.1:0") as sidecar:
        until_ready(sidecar)
        assert Caller(sidecar).ask("management")
        assert Caller(sidecar, trusts=secured.ca.cert).ask("rpc")


def test_renewed_certificate_counts_within_the_promised_time(world: World) -> None:
    secured = Secured(world)
    with world.sidecar(*secured.options) as sidecar:
        until_ready(sidecar)
        renewed = Authority("renewed")
        renewed.issue("sidecar").write(secured.place, "server")
        began = time.monotonic()
        sidecar.until("tls.renewed")
        assert time.monotonic() - began < RENEWED_WITHIN_S
        for face in FACES:
            assert Caller(sidecar, trusts=renewed.cert).ask(face)
            assert Caller(sidecar, trusts=secured.ca.cert).refused(face) == "connection"
        replace(secured.key, b"no key")
        sidecar.until("tls.renewal_refused")
        assert Caller(sidecar, trusts=renewed.cert).ask("rpc")


@pytest.mark.parametrize("fault", ["expired", "open key", "wrong key", "missing"])
def test_unusable_tls_ends_the_start(world: World, fault: str) -> None:
    secured = Secured(world)
    match fault:
        case "expired":
            secured.ca.expired("sidecar").write(secured.place, "server")
        case "open key":
            secured.key.chmod(0o644)
        case "wrong key":
            replace(secured.key, secured.ca.issue("other").key)
        case "missing":
            secured.cert.unlink()
    end = ended(world, *secured.options)
    assert end.returncode == 2
    says = {
        "expired": "holds from",
        "open key": f"run: chmod 600 {secured.key}",
        "wrong key": "key values mismatch",
        "missing": f"--tls-cert {secured.cert}: cannot be read: No such file",
    }
    assert says[fault] in end.stdout
    assert "PRIVATE" not in end.stdout


def test_token_is_asked_for_on_every_face_but_health_and_can_be_exchanged(world: World) -> None:
    file = world.directory / "tokens"
    replace(file, TOKEN.encode())
    with world.sidecar("--token-file", str(file), "--log-level", "debug") as sidecar:
        until_ready(sidecar)
        for face in FACES:
            assert Caller(sidecar, token=TOKEN).ask(face)
            for token in (None, TOKEN[:-1], "incorrect-horse-battery-staple"):
                assert Caller(sidecar, token=token).refused(face) in ("UNAUTHENTICATED", "HTTP")
        assert Caller(sidecar).health("rpc") == health_pb2.HealthCheckResponse.SERVING
        for path in ("/healthz", "/readyz"):
            assert Caller(sidecar).http("management", "GET", path)[0] == 200
        replace(file, b"exchanged-horse-battery-staple")
        began = time.monotonic()
        sidecar.until("tokens.renewed")
        assert time.monotonic() - began < RENEWED_WITHIN_S
        for face in FACES:
            assert Caller(sidecar, token="exchanged-horse-battery-staple").ask(face)
            assert Caller(sidecar, token=TOKEN).refused(face) in ("UNAUTHENTICATED", "HTTP")
    assert "horse" not in json.dumps(sidecar.events)


def test_failed_handshakes_write_no_lines_and_leave_others_alone(world: World) -> None:
    attempts = 200
    secured = Secured(world)
    with world.sidecar(*secured.options) as sidecar:
        until_ready(sidecar)
        said = len(sidecar.events)
        for face in FACES:
            for _ in range(attempts):
                with socket.create_connection(("127.0.0.1", sidecar.port_of(face)), WITHIN_S) as junk:
                    junk.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert Caller(sidecar, trusts=secured.ca.cert).ask(face)
            assert Caller(sidecar, trusts=secured.clients.cert).refused(face) == "connection"
    more = [event for event in sidecar.events[said:] if event["event"] not in ("sidecar.draining", "sidecar.stopped")]
    assert not more


def test_drain_is_seen_by_probes_while_an_open_call_finishes(world: World) -> None:
    """All faces refuse at once, in the time of one; management, which says so, goes last."""
    drain_s = 3.0
    with world.sidecar("--drain-s", str(drain_s)) as sidecar:
        until_ready(sidecar)
        ofrep, management = sidecar.port_of("ofrep"), sidecar.port_of("management")
        # A request whose body does not come keeps its face from being done.
        with socket.create_connection(("127.0.0.1", ofrep), WITHIN_S) as open_call:
            open_call.sendall(b"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            eventually(lambda: b'flaghoist_http_connections{listener="ofrep"} 1' in metrics(sidecar))
            began = time.monotonic()
            sidecar.process.terminate()
            sidecar.until("sidecar.draining")
            eventually(lambda: b'"ready": false' in Caller(sidecar).http("management", "GET", "/readyz")[1])
            for face in ("rpc", "sync", "ofrep"):
                eventually(lambda face=face: refuses(sidecar.port_of(face)))
            assert not refuses(management)
            open_call.sendall(b"{}")
            assert open_call.recv(100).startswith(b"HTTP/1.1 200")
        sidecar.process.wait(WITHIN_S)
        assert time.monotonic() - began < drain_s
    assert sidecar.process.returncode == 0


def metrics(sidecar: SidecarProcess) -> bytes:
    return Caller(sidecar).http("management", "GET", "/metrics")[1]


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), WITHIN_S).close()
    except ConnectionError:
        return True
    return False
