"""`ctx.connect_websocket(...)`: an object as the client of somebody's WebSocket.  Worker's event loop.

Guarantees that what leaves is an output like any other: a message, the opening and an orderly close wait
until everything that the turn wrote before them is durable.  A socket belongs to the turn that opened it:
only that turn can use it, and it is closed with the turn at the latest, whatever becomes of both.  Messages,
waiting messages and the times of opening, sending and closing are bounded; the turn limit bounds the rest.

Measured: one message and its echo on this machine take what `websockets` takes, plus a commit where the turn
has written something.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perdure.errors import InvalidArgument, MessageTooLarge
from perdure_worker.turns import CURRENT

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from perdure_worker.execution import Execution
    from perdure_worker.resident import Resident

__all__ = ["WebSocketClient"]

_LOOK_S = 0.5
"""How often a socket looks whether its turn still runs: only one that a task holds outlives it."""
_QUEUE_MESSAGES = 4
"""Messages that have come and nobody has received; then the peer has to wait."""
_LEFT, _FAILED = 1000, 1011


class WebSocketClient:
    """What ``async with ctx.connect_websocket(url) as ws:`` enters, and gives."""

    __slots__ = (
        "_connection",
        "_headers",
        "_host",
        "_in_turn",
        "_resident",
        "_subprotocols",
        "_timer",
        "_turn",
        "_url",
    )

    def __init__(
        self,
        host: Execution,
        resident: Resident,
        url: str,
        headers: Mapping[str, str] | None,
        subprotocols: Sequence[str],
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
            raise InvalidArgument(f"a WebSocket's URL begins with ws:// or wss://, not {url!r:.200}")
        self._host = host
        self._resident = resident
        self._url = url
        self._headers = dict(headers or {})
        self._subprotocols = list(subprotocols)
        self._connection: ClientConnection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn: Any = None
        self._in_turn: Callable[[], bool] = bool

    # --- its life

    async def __aenter__(self) -> Self:
        if self._turn is not None:
            raise RuntimeError("this WebSocket was opened before; call ctx.connect_websocket() again")
        self._check_here()
        self._turn = CURRENT.get()
        self._in_turn = partial(copy_context().run, self._host.in_turn, self._resident)
        await self._durable()
        # Late, so that workers whose objects open none do without it (2 MB, 10 ms).
        from websockets.asyncio.client import connect

        limits = self._host.limits
        opening = connect(
            self._url,
            additional_headers=self._headers,
            subprotocols=self._subprotocols or None,  # type: ignore[arg-type]
            compression=None,
            max_size=limits.websocket_client_message_bytes_max,
            max_queue=_QUEUE_MESSAGES,
            open_timeout=limits.websocket_client_timeout_s,
            close_timeout=limits.websocket_client_timeout_s,
        )
        self._connection = await opening
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            with contextlib.suppress(TimeoutError):  # a peer that does not answer: the socket is cut
                if connection is None:
                    return
                if kind is None and self._in_turn():
                    await self.close()
                elif kind is not None and issubclass(kind, Exception):
                    await self._close(connection, _FAILED, "")
        finally:
            self._abort()

    async def _close(self, connection: ClientConnection, code: int, reason: str) -> None:
        # The library's own timeout does not bound the wait of a peer that does not read.
        async with asyncio.timeout(self._host.limits.websocket_client_timeout_s):
            await connection.close(code, reason)

    def _abort(self) -> None:
        """Nothing of it is left, whatever its peer does."""
        connection, self._connection = self._connection, None
        if self._timer is not None:
            self._timer.cancel()
        if connection is not None:
            connection.transport.abort()

    def _look(self) -> None:
        if self._in_turn():
            # In no turn's context: the timer itself would belong to it.
            self._timer = self._host.loop.call_later(_LOOK_S, self._look, context=Context())
        else:
            self._abort()

    # --- messages

    @property
    def subprotocol(self) -> str | None:
        """What the server has chosen of the subprotocols that were offered."""
        return self._open().subprotocol

    async def send(self, message: str | bytes) -> None:
        """See `perdure.object.WebSocketConnection`."""
        if not isinstance(message, str | bytes):
            raise InvalidArgument(f"a message is str or bytes, not {type(message).__name__}")
        size, limits = len(message.encode() if isinstance(message, str) else message), self._host.limits
        if size > limits.websocket_client_message_bytes_max:
            raise MessageTooLarge(
                f"the message has {size} bytes; the limit is {limits.websocket_client_message_bytes_max}",
                size=size,
                limit=limits.websocket_client_message_bytes_max,
            )
        self._open()
        await self._durable()
        async with asyncio.timeout(limits.websocket_client_timeout_s):
            await self._open().send(message)

    async def recv(self, timeout: float | None = None) -> str | bytes:
        """See `perdure.object.WebSocketConnection`."""
        connection = self._open()
        async with asyncio.timeout(timeout):
            return await connection.recv()

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        from websockets.exceptions import ConnectionClosedOK

        try:
            while True:
                yield await self.recv()
        except ConnectionClosedOK:
            return

    async def close(self, code: int = _LEFT, reason: str = "") -> None:
        """See `perdure.object.WebSocketConnection`."""
        self._open()
        await self._durable()
        await self._close(self._open(), code, reason)

    def _open(self) -> ClientConnection:
        self._check_here()
        if self._connection is None:
            raise RuntimeError("this WebSocket is not open: use it inside of its `async with` block")
        return self._connection

    def _check_here(self) -> None:
        if threading.get_ident() != self._host.thread:
            raise RuntimeError("a @blocking method cannot use WebSockets: it runs in a thread of its own")
        turn = CURRENT.get()
        if not self._host.in_turn(self._resident) or (self._turn is not None and turn is not self._turn):
            raise RuntimeError(
                f"{self._resident.label}: a WebSocket that an object opens belongs to the turn that opened "
                "it, and this code does not run inside of it"
            )

    async def _durable(self) -> None:
        await self._host.sync(self._resident)
