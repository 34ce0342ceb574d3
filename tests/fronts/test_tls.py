"""TLS and mTLS on both kinds of server, with real certificates and stock clients: who gets in, and from when on."""

import asyncio
import http.client
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import uvloop
from flagd.evaluation.v2 import evaluation_pb2 as v2
from flagd.evaluation.v2 import evaluation_pb2_grpc as v2_grpc

from sidecar import http_front
from sidecar.board import Board
from sidecar.faces.evaluation_v2 import EvaluationV2
from sidecar.faces.events import EventStreams
from sidecar.faces.ofrep import Ofrep
from sidecar.front import OPTIONS, FrontKind, kind_of, serve
from sidecar.http_app import HttpApp
from sidecar.http_front import serve_http
from sidecar.listeners import Face, TcpListener
from sidecar.tls import ServerTls, TlsFiles
from tests.certificates import Authority, Issued
from tests.fronts.rig import DEADLINE_S, Clock, switch, view_of

LISTENER = TcpListener("127.0.0.1", 0, tls=True)
GRPC_OPTIONS = OPTIONS
BODY = b'{"context":{}}'
LOOPS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]


class NotLetIn(Exception):
    """The server, or the client's own check of it, ended the call."""


@dataclass(frozen=True)
class Client:
    """What a client trusts and shows."""

    trusts: bytes
    shows: Issued | None = None
    least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3

    def context(self, directory: Path) -> ssl.SSLContext:
        """Return it for Python's own clients."""
        context = ssl.create_default_context(cadata=self.trusts.decode())
        if self.most < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL 3 would not even try otherwise
        context.minimum_version, context.maximum_version = self.least, self.most
        if self.shows is not None:
            context.load_cert_chain(*self.shows.write(directory, "client"))
        return context


async def over_grpc(port: int, client: Client, _: Path) -> bool:
    shows = client.shows
    credentials = grpc.ssl_channel_credentials(client.trusts, *((shows.key, shows.cert) if shows else ()))
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        stub = v2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.ResolveBoolean(v2.ResolveBooleanRequest(flag_key="switch"), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise NotLetIn from error
        return bool(answer.value)


async def over_http(port: int, client: Client, directory: Path) -> bool:
    def ask() -> bool:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, context=client.context(directory), timeout=DEADLINE_S
        )
        try:
            connection.request("POST", "/ofrep/v1/evaluate/flags/switch", BODY)
            return b'"value":true' in connection.getresponse().read()
        except (ssl.SSLError, ConnectionError) as error:
            raise NotLetIn from error
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


Ask = Callable[[int, Client, Path], Awaitable[bool]]
WAYS = [pytest.param("rpc", over_grpc, id="grpc"), pytest.param("ofrep", over_http, id="http")]


class Served:
    """Both servers on one board, with one ServerTls."""

    def __init__(self, directory: Path, cert: Issued, client_ca: bytes | None) -> None:
        self.directory = directory
        self.ports: dict[str, int] = {}
        path = None
        if client_ca is not None:
            path = directory / "client-ca.crt"
            path.write_bytes(client_ca)
        self.client_ca = path
        self.tls = ServerTls(TlsFiles(*cert.write(directory, "server"), path), time.time)

    async def renew(self, cert: Issued, client_ca: bytes | None = None) -> None:
        cert.write(self.directory, "server")
        if client_ca is not None:
            assert self.client_ca is not None
            self.client_ca.write_bytes(client_ca)
        self.tls.load()
        await self.tls.use()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Served"]:
        board = Board(Clock())
        board.put(view_of({"switch": switch()}))
        board.mark_fresh(board.clock())
        services = [EvaluationV2(board, EventStreams(board))]
        app = HttpApp("ofrep", {b"ofrep": Ofrep(board)})
        async with (
            serve(services, [LISTENER], board=board, tls=self.tls, drain_s=2.0, options=GRPC_OPTIONS) as front,
            serve_http(app, [LISTENER], face=Face.OFREP, tls=self.tls, drain_s=2.0) as second,
        ):
            for name, address in (("rpc", front.addresses[0]), ("ofrep", second.addresses[0])):
                self.ports[name] = int(address.rpartition(":")[2])
            yield self


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("ca")


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("stranger")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "of-client").mkdir()
    return tmp_path


def test_tls_is_grpcios_whatever_is_chosen() -> None:
    for kind in FrontKind:
        assert kind_of(LISTENER, kind) is FrontKind.GRPCIO


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize(("face", "ask"), WAYS)
def test_client_that_trusts_the_ca_is_answered_and_no_other(
    run: Callable[..., None], face: str, ask: Ask, ca: Authority, stranger: Authority, place: Path
) -> None:
    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served:
            assert await ask(served.ports[face], Client(ca.cert), place / "of-client") is True
            with pytest.raises(NotLetIn):
                await ask(served.ports[face], Client(stranger.cert), place / "of-client")
            # A certificate that nobody asked for does no harm.
            assert await ask(served.ports[face], Client(ca.cert, stranger.issue("x")), place / "of-client") is True

    run(scenario())


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize(("face", "ask"), WAYS)
def test_with_a_client_ca_only_its_living_certificates_get_in(
    run: Callable[..., None], face: str, ask: Ask, ca: Authority, stranger: Authority, place: Path
) -> None:
    async def scenario() -> None:
        clients = Authority("clients")
        async with Served(place, ca.issue("server"), clients.cert).running() as served:
            port, of_client = served.ports[face], place / "of-client"
            assert await ask(port, Client(ca.cert, clients.issue("checkout")), of_client) is True
            for shows in (None, stranger.issue("checkout"), ca.issue("checkout"), clients.expired("checkout")):
                with pytest.raises(NotLetIn):
                    await ask(port, Client(ca.cert, shows), of_client)
            assert await ask(port, Client(ca.cert, clients.issue("checkout")), of_client) is True

    run(scenario())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("face", ["rpc", "ofrep"])
@pytest.mark.parametrize(
    ("version", "spoken"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
    ids=lambda value: getattr(value, "name", None),
)
def test_tls_before_1_2_is_refused(
    face: str, version: ssl.TLSVersion, spoken: bool, ca: Authority, place: Path
) -> None:
    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served:
            context = Client(ca.cert, least=version, most=version).context(place)
            context.set_alpn_protocols(["h2" if face == "rpc" else "http/1.1"])
            opening = asyncio.open_connection("127.0.0.1", served.ports[face], ssl=context)
            if spoken:
                _, writer = await opening
                assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
                writer.close()
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await opening

    asyncio.run(scenario())


@pytest.mark.parametrize("face", ["rpc", "ofrep"])
def test_plaintext_client_gets_nothing(face: str, ca: Authority, place: Path) -> None:
    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served, asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.ports[face])
            writer.write(b"POST /ofrep/v1/evaluate/flags/switch HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            try:
                heard = await reader.read()
            except ConnectionError:
                heard = b""
            assert b"HTTP" not in heard
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize(("face", "ask"), WAYS)
def test_new_handshakes_see_the_renewed_certificate(
    run: Callable[..., None], face: str, ask: Ask, ca: Authority, stranger: Authority, place: Path
) -> None:
    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served:
            port, of_client = served.ports[face], place / "of-client"
            assert await ask(port, Client(ca.cert), of_client) is True
            for signer, other in ((stranger, ca), (ca, stranger), (stranger, ca)):
                await served.renew(signer.issue("renewed"))
                assert await ask(port, Client(signer.cert), of_client) is True
                with pytest.raises(NotLetIn):
                    await ask(port, Client(other.cert), of_client)

    run(scenario())


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize(("face", "ask"), WAYS)
def test_client_ca_that_was_taken_away_counts_no_more(
    run: Callable[..., None], face: str, ask: Ask, ca: Authority, place: Path
) -> None:
    async def scenario() -> None:
        old, new = Authority("old"), Authority("new")
        before, after = old.issue("checkout"), new.issue("checkout")
        async with Served(place, ca.issue("server"), old.cert).running() as served:
            port, of_client = served.ports[face], place / "of-client"
            assert await ask(port, Client(ca.cert, before), of_client) is True
            await served.renew(ca.issue("server"), old.cert + new.cert)
            assert await ask(port, Client(ca.cert, before), of_client) is True
            assert await ask(port, Client(ca.cert, after), of_client) is True
            await served.renew(ca.issue("server"), new.cert)
            assert await ask(port, Client(ca.cert, after), of_client) is True
            with pytest.raises(NotLetIn):
                await ask(port, Client(ca.cert, before), of_client)

    run(scenario())


@pytest.mark.parametrize("run", LOOPS)
def test_open_connections_outlive_a_renewal(
    run: Callable[..., None], ca: Authority, stranger: Authority, place: Path
) -> None:
    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served:
            credentials = grpc.ssl_channel_credentials(ca.cert)
            context = Client(ca.cert).context(place)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.ports["ofrep"], ssl=context)
            async with grpc.aio.secure_channel(f"127.0.0.1:{served.ports['rpc']}", credentials) as channel:
                stub = v2_grpc.ServiceStub(channel)  # type: ignore[no-untyped-call]
                request = v2.ResolveBooleanRequest(flag_key="switch")
                for cert in (None, stranger.issue("renewed")):
                    if cert is not None:
                        await served.renew(cert)
                    assert (await stub.ResolveBoolean(request, timeout=DEADLINE_S)).value is True
                    writer.write(
                        b"POST /ofrep/v1/evaluate/flags/switch HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                    )
                    async with asyncio.timeout(DEADLINE_S):
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                        assert b'"value":true' in await reader.readexactly(length)
            writer.close()

    run(scenario())


@pytest.mark.parametrize("run", LOOPS)
def test_no_connection_is_refused_while_certificates_are_renewed(
    run: Callable[..., None], ca: Authority, place: Path
) -> None:
    renewals = 20

    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served:
            renewed = asyncio.Event()
            asked = 0

            async def keep_asking(ask: Ask, face: str) -> None:
                nonlocal asked
                while not renewed.is_set():
                    assert await ask(served.ports[face], Client(ca.cert), place / "of-client") is True
                    asked += 1

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keep_asking(over_http, "ofrep"))
                tasks.create_task(keep_asking(over_grpc, "rpc"))
                for number in range(renewals):
                    asked_before = asked
                    await served.renew(ca.issue(f"server-{number}"))
                    async with asyncio.timeout(DEADLINE_S):
                        while asked < asked_before + 2:
                            await asyncio.sleep(0.001)
                renewed.set()

    run(scenario())


@pytest.mark.parametrize("face", ["rpc", "ofrep"])
def test_resumed_session_does_not_outlive_its_ca(face: str, ca: Authority, place: Path) -> None:
    old, new = Authority("old"), Authority("new")
    # With TLS 1.2 the session is there as soon as the handshake is done.
    context = Client(ca.cert, old.issue("checkout"), most=ssl.TLSVersion.TLSv1_2).context(place)
    context.set_alpn_protocols(["h2" if face == "rpc" else "http/1.1"])

    def connect(port: int, session: ssl.SSLSession | None = None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", port), DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
        ):
            return secured.session, secured.session_reused

    async def scenario() -> None:
        async with Served(place, ca.issue("server"), old.cert).running() as served:
            port = served.ports[face]
            session, _ = await asyncio.to_thread(connect, port)
            if face == "ofrep":  # else the refusal below would prove nothing
                assert (await asyncio.to_thread(connect, port, session))[1]
            await served.renew(ca.issue("server"), new.cert)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(connect, port, session)

    asyncio.run(scenario())


@pytest.mark.parametrize("face", ["rpc", "ofrep"])
def test_client_that_never_begins_its_handshake_is_cut_off(
    face: str, ca: Authority, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_front, "HANDSHAKE_S", 0.2)
    short = {**dict(OPTIONS), "grpc.server_handshake_timeout_ms": 200}
    assert len(short) == len(OPTIONS)
    monkeypatch.setattr(sys.modules[__name__], "GRPC_OPTIONS", tuple(short.items()))

    async def scenario() -> None:
        async with Served(place, ca.issue("server"), None).running() as served, asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.ports[face])
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())
