"""A service of a chain, in Python: asks its sidecar over gRPC, then the next service over HTTP.

../README.md has the protocol.
"""

import argparse
import http.client
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import grpc
from flagd.evaluation.v2 import evaluation_pb2, evaluation_pb2_grpc
from google.protobuf.json_format import MessageToDict

PIN_KEY: Final = "flaghoist.seq"
SEQ_HEADER: Final = "flaghoist-seq"
OUR_PREFIX: Final = "flaghoist"
# For failures only: a chain of three answers within some milliseconds.
CALL_TIMEOUT_S: Final = 10.0


class Service:
    """What one service of the chain does with a request."""

    def __init__(self, sidecar: str) -> None:
        self._sidecar = evaluation_pb2_grpc.ServiceStub(grpc.insecure_channel(sidecar))  # type: ignore[no-untyped-call]

    def ask(self, query: str, incoming: str) -> list[dict[str, Any]]:
        """Return what this service and those after it saw.

        Args:
            incoming: the request's baggage; empty: none.
        """
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        path, pins, user = asked.get("path", ""), asked["pins"], asked.get("user", "")
        a = self._evaluate("a", user, incoming)
        baggage = incoming
        if pins == "on" and f"{PIN_KEY}=" not in incoming:
            # The edge: what its first answer was made from holds from here on, beside what others put there.
            baggage = ",".join(filter(None, (incoming, f"{PIN_KEY}={a['headers'][SEQ_HEADER]}")))
        b = self._evaluate("b", user, baggage)
        seen = {"service": "python", "baggage": incoming, "a": a, "b": b}
        if not path:
            return [seen]
        port, _, rest = path.partition(",")
        return [seen, *_next(int(port), urlencode({"path": rest, "pins": pins, "user": user}), baggage)]

    def _evaluate(self, key: str, user: str, baggage: str) -> dict[str, Any]:
        request = evaluation_pb2.ResolveBooleanRequest(flag_key=key)
        if user:
            request.context.update({"targetingKey": user})
        response, call = self._sidecar.ResolveBoolean.with_call(
            request,
            metadata=(("baggage", baggage),) if baggage else (),
            timeout=CALL_TIMEOUT_S,
        )
        headers = {name: value for name, value in call.trailing_metadata() if name.startswith(OUR_PREFIX)}
        return {"value": response.value, "metadata": MessageToDict(response.metadata), "headers": headers}


def _next(port: int, query: str, baggage: str) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_TIMEOUT_S)
    try:
        connection.request("GET", f"/ask?{query}", headers={"baggage": baggage} if baggage else {})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"the next service answered {response.status}: {body.decode(errors='replace')}")
    sights: list[dict[str, Any]] = json.loads(body)
    return sights


class Handler(BaseHTTPRequestHandler):
    """GET /ask, by the one service of this process."""

    service: Service
    protocol_version = "HTTP/1.1"
    # Head and body leave in one write: in two, the second waits for the client's delayed acknowledgement.
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/ask":
            self.send_error(404)
            return
        try:
            status = 200
            body = json.dumps(self.service.ask(url.query, ",".join(self.headers.get_all("baggage", ())))).encode()
        except Exception as error:  # noqa: BLE001 - whoever asked shows it
            status, body = 502, f"python: {error!r}".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's name for it
        """Say nothing: some hundred requests a second."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sidecar", required=True, help="host:port of the sidecar's evaluation face")
    Handler.service = Service(parser.parse_args().sidecar)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
