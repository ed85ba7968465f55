"""The gateway's HTTP server: uvicorn, one loop, with our connections.  Runs in the gateway process.

Guarantees that deadlines of all connections are looked after, and that a stop lets requests which are
running end: nothing is accepted any more, connections close behind their answers, the application's
lifespan ends last.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from perdure.limits import Limits
from perdure_gateway.admission import LOOPBACK, Admission
from perdure_gateway.connections import Connection, GuardedConfig, Rules
from perdure_gateway.socket_connection import SocketConnection

__all__ = ["HttpServer", "connections_bound"]

_BACKLOG = 1_024


class HttpServer(uvicorn.Server):
    """Serves an ASGI application at sockets that are listening already; `should_exit` stops it."""

    def __init__(
        self,
        app: Any,
        limits: Limits,
        *,
        trusted_proxies: Sequence[str] = (),
        exempt: Sequence[str] = LOOPBACK,
        on_started: Callable[[], None],
    ) -> None:
        """Raises `InvalidArgument` for a proxy that is no address and no network."""
        admission = Admission(
            connections_max=connections_bound(limits),
            per_address_max=limits.http_connections_per_ip_max,
            exempt=(*exempt, *trusted_proxies),
        )
        if trusted_proxies:
            app = ProxyHeadersMiddleware(app, trusted_hosts=list(trusted_proxies))
        config = GuardedConfig(
            app,
            http=Connection,
            ws=SocketConnection,
            ws_max_size=limits.socket_frame_bytes_max,
            ws_per_message_deflate=False,
            ws_ping_interval=limits.socket_ping_s,
            ws_ping_timeout=limits.socket_ping_timeout_s,
            interface="asgi3",
            lifespan="auto",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(limits.drain_timeout_s),
        )
        self.rules = config.rules = Rules(limits, admission)
        super().__init__(config)
        self._limits = limits
        self._on_started = on_started
        self._timer: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The application's lifespan begins, then connections are accepted."""
        self._look()
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See the module."""
        await super().shutdown(sockets)
        if self._timer is not None:
            self._timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone: the process around it takes them."""
        yield

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, before = loop.time(), self.rules.now
        self.rules.now = now
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.look(now, now - before)
        self._timer = loop.call_later(self._limits.http_look_s, self._look)


def connections_bound(limits: Limits) -> int:
    """Connections that this process can take: as the limit says, or as its descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.http_connections_max
    return max(1, min(limits.http_connections_max, soft - limits.http_spare_descriptors))
