"""One replica's HTTP server: uvicorn on a port that several replicas share, with a limit on how long a request's headers may take."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_S = 75
"""Without a whole request, after which a connection is closed: longer than clients and proxies keep theirs (15 to 60 s)."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which waits for ever for headers that come a byte at a time, and for the rest of a body that was refused."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disarm()

    def on_headers_complete(self) -> None:
        self._disarm()  # the application times the rest
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._arm()

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(IDLE_S, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address that other processes of this account may bind too; the kernel spreads connections over those
    that listen.

    Raises: OSError.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def server(application: Any, *, timeout_s: float) -> uvicorn.Server:
    """A server that is not yet started; `await server.serve(sockets=[bind(…)])` until `should_exit` has been set and it has drained.

    Args:
        timeout_s: that answers may take after `should_exit`.
    """
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=_Protocol,
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
    """uvloop's where it is installed, which takes less time per request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
