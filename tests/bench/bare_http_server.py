"""An HTTP server that knows one answer: `python -m tests.bench.bare_http_server BODY SEQ`, BODY in hex.

uvicorn with httptools and uvloop as its docs start it, with the fields of our answer. It is a program of its own, so
that it has an interpreter and an event loop for itself, as a sidecar has.
"""

import asyncio
import gc
import json
import logging
import socket
import sys
from typing import Any

import uvicorn
import uvloop

from sidecar.http_app import JSON, Receive, Scope, Send
from sidecar.listeners import BACKLOG


async def main(body: bytes, seq: bytes) -> None:
    """Serve until SIGTERM."""
    head: dict[str, Any] = {
        "type": "http.response.start",
        "status": 200,
        "headers": [JSON, (b"flaghoist-seq", seq), (b"content-length", str(len(body)).encode())],
    }
    whole = {"type": "http.response.body", "body": body}

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(head)
        await send(whole)

    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        log_level=logging.CRITICAL,
    )
    bound = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    gc.collect()
    gc.freeze()  # as the sidecar does once it serves
    serving = asyncio.ensure_future(uvicorn.Server(config).serve(sockets=[bound]))
    print(json.dumps({"address": f"127.0.0.1:{bound.getsockname()[1]}"}), flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main(bytes.fromhex(sys.argv[1]), sys.argv[2].encode()))
