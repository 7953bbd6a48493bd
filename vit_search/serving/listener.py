"""The HTTP server of one replica: uvicorn on a shared port, with limits on everything before a request's body.

The application limits bodies. This module limits headers, chunk framing and connections. These limits work before the token is read,
so they hold for everybody who can reach the port.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vit_search.serving.limits import HeldBytes

IDLE_S = 75
"""Seconds without a request until a connection is closed. Clients and proxies close theirs earlier (after 15 to 60 s)."""
HEADERS_S = 10
"""Seconds from the first byte of a request to the end of its headers."""
HEADER_BYTES = 32 * 2**10
"""Maximum bytes of the request line and headers. Chunk sizes, chunk extensions and trailers may have this many more than the body."""
HEADERS = 100
"""Maximum number of headers of a request, with trailers."""
URL_BYTES = 4 * 2**10
CONNECTIONS = 4096
"""Maximum connections of one replica at a time. Further ones are closed."""
SLICE = 16 * 2**10
"""Bytes parsed at once. So a request that is too long is detected before much of it is in memory."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. Without them it stores headers of any length, and waits forever for slow ones."""

    def __init__(self, *arguments: Any, held: HeldBytes, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all_held = held
        self._held = 0
        """Header bytes of this connection that are counted in `_all_held`."""
        self._in_headers = True
        self._received = self._body = 0
        """Bytes of this request so far, and how many of them are body."""
        self._problem: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(IDLE_S)
        if len(self.connections) > CONNECTIONS:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disarm()
        self._release()

    def data_received(self, data: bytes) -> None:
        """Parse the data in small pieces, and end the connection at the first exceeded limit."""
        for start in range(0, len(data), SLICE):
            if self.transport.is_closing():
                return
            part = data[start : start + SLICE]
            if self._in_headers:
                if not self._received:
                    self._arm(HEADERS_S)
                self._held += len(part)
                if not self._all_held.add(len(part)):
                    self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once; come again.")
                    return
            self._received += len(part)
            super().data_received(part)
            if self._received - 2 * self._body > HEADER_BYTES and not self.transport.is_closing():
                self._refuse(*_too_long(f"at most {HEADER_BYTES:,} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > URL_BYTES:
            self._stop(HTTPStatus.REQUEST_URI_TOO_LONG, f"a URL of more than {URL_BYTES:,} bytes.")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == HEADERS:
            self._stop(*_too_long(f"at most {HEADERS}"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()  # from here the application measures the time
        self._in_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._received = self._body = 0
        self._in_headers = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._release()
        self._arm(IDLE_S)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser, or a method above that the parser calls, has refused."""
        self._refuse(*(self._problem or (HTTPStatus.BAD_REQUEST, "no HTTP/1.1 request.")))

    def _stop(self, status: int, reason: str) -> None:
        """Refuse a request from inside the parser."""
        self._problem = status, reason
        raise ValueError(reason)

    def _refuse(self, status: int, reason: str) -> None:
        body = json.dumps({"error": reason}).encode()
        head = f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}x-content-type-options: nosniff\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _release(self) -> None:
        self._all_held.remove(self._held)
        self._held = 0

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _too_long(most: str) -> tuple[int, str]:
    return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers, chunk extensions or trailers that are too many or too long; send {most}."


def bind(host: str, port: int) -> socket.socket:
    """A socket on a port that other processes of this account can bind, too. The kernel spreads connections over those that listen.

    Raises: OSError.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def server(application: Any, *, timeout_s: float, held: HeldBytes) -> uvicorn.Server:
    """A server that is not started yet.

    Run `await server.serve(sockets=[bind(…)])`. It ends after you set `should_exit` and all requests are answered.

    Args:
        timeout_s: how long answers may take after `should_exit`.
        held: counts the headers of requests that are arriving or not answered yet.
    """
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=functools.partial(_Protocol, held=held),  # type: ignore[arg-type]
            ws="none",
            proxy_headers=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=max(1, round(timeout_s)),
        )
    )


def event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's if it is installed, because it needs less time per request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
