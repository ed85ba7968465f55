"""WebSockets as ASGI: the upgrade, the loop of one connection, and writing to it.  The gateway's event loop.

Guarantees: a client is accepted only after its object has taken the socket durably, else it gets the
object's own answer or an HTTP error, and no half-open socket is left; what the client sends is read as fast
as the object handles it; each end of a connection reaches the object once (sockets.py).  While nothing
happens a connection is the one coroutine that the ASGI server runs, waiting in `receive`: frames are written
without a task of their own unless the client does not take them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, MutableMapping
from typing import Any, Protocol

from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.limits import Limits
from perdure.stub import Target
from perdure_gateway.admission import Admission
from perdure_gateway.client_socket import ClientSocket, Close, Frame
from perdure_gateway.frames_link import FramesLink
from perdure_gateway.origins import check_origin, may_upgrade

__all__ = ["ABORT", "Reply", "WebSockets"]

log = logging.getLogger("perdure.gateway")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT = "perdure.abort"
"""ASGI extension of our own server: a function that ends the connection at once, whatever is unsent."""
_DENIAL = "websocket.http.response"
_SWITCHING = 101
_NO_STATUS, _ABNORMAL = 1005, 1006
_FAILURES = frozenset({1002, 1003, 1006, 1007, 1009, 1010, 1011, 1012})
"""Codes by which one side says that something went wrong: no orderly end."""
_FRAMES_AT_ONCE = 64
"""Frames that one client gets before others have their turn."""
_OF_THE_HANDSHAKE = (b"sec-websocket-", b"content-", b"connection", b"upgrade", b"transfer-encoding", b"date")


class Reply(Protocol):
    """What an object's `fetch` has answered (`perdure.web.WebReply`)."""

    status: int
    extra: Mapping[str, Any] | None

    @property
    def headers(self) -> Any:
        """With `raw`: pairs of bytes."""

    async def read(self) -> bytes:
        """The body."""


class WebSockets:
    """The WebSockets of one gateway."""

    def __init__(
        self,
        link: FramesLink,
        fetch: Callable[[Target, dict[str, Any]], Awaitable[Reply]],
        *,
        origins: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """`fetch` sends a request to an object; `origins` are those allowed besides the gateway's own.

        Raises `InvalidArgument` for what is no origin.
        """
        self._link = link
        self._fetch = fetch
        self._origins = frozenset(map(check_origin, origins))
        self._admission = Admission(limits if limits is not None else Limits())

    async def serve(self, target: Target, scope: Message, receive: Receive, send: Send) -> None:
        """The whole life of one connection, for an ASGI application; `target` is the object it is for.

        The object's path is what follows `root_path` in the scope.
        """
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        address = str((scope.get("client") or ("",))[0])
        if not may_upgrade(scope["headers"], self._origins):
            await _deny(scope, send, 403, b"this origin may not open a WebSocket here")
            return
        status = self._admission.admit(address)
        if status is not None:
            await _deny(scope, send, status, b"too many connections", [(b"retry-after", b"5")])
            return
        try:
            connection = await self._upgrade(target, scope, send)
            if connection is not None:
                await connection.converse(receive)
        finally:
            self._admission.leave(address)

    async def _upgrade(self, target: Target, scope: Message, send: Send) -> _Connection | None:
        """Asks the object; the connection if it took the socket, else None, and the client has its answer."""
        connection = _Connection(self._link, send, scope.get("extensions") or {})
        socket = connection.socket = self._link.open(target, connection)
        perhaps = True
        try:
            reply = await self._fetch(target, _request(scope, socket.key))
            perhaps = False
            if reply.status == _SWITCHING:
                await self._accept(connection, scope, send, reply)
                return connection
            body = await reply.read()
        except Exception as error:  # users' own exceptions among them
            perhaps = isinstance(error, OutcomeUnknown)
            log.info("an upgrade for %s failed: %s", target.namespace, error)
            await _deny(scope, send, *_refusal(error))
            return None
        finally:
            if not connection.accepted:
                self._link.refused(socket, perhaps_accepted=perhaps)
        await _deny(scope, send, reply.status, body, list(reply.headers.raw))
        return None

    async def _accept(self, connection: _Connection, scope: Message, send: Send, reply: Reply) -> None:
        extra = reply.extra or {}
        protocol = extra.get("protocol")
        headers = [
            (name, value) for name, value in reply.headers.raw if not name.startswith(_OF_THE_HANDSHAKE)
        ]
        message: Message = {"type": "websocket.accept", "headers": headers}
        if protocol in scope.get("subprotocols", ()):
            message["subprotocol"] = protocol
        connection.accepted = True  # by the object: from now on it hears of the end
        try:
            await send(message)
        except BaseException:
            self._link.accepted(connection.socket, None)
            self._link.disconnected(connection.socket, _ABNORMAL, "", False)
            raise
        auto = extra.get("auto")
        self._link.accepted(connection.socket, (auto[0], auto[1]) if auto else None)


class _Connection:
    """One client's connection; see `client_socket.Connection`."""

    __slots__ = (
        "_abort",
        "_cut",
        "_link",
        "_readable",
        "_send",
        "_task",
        "_writer",
        "_writing",
        "accepted",
        "socket",
    )

    socket: ClientSocket

    def __init__(self, link: FramesLink, send: Send, extensions: Mapping[str, Any]) -> None:
        self.accepted = False
        self._link = link
        self._send = send
        self._abort: Callable[[], None] | None = extensions.get(ABORT)
        self._task = asyncio.current_task()
        self._readable: asyncio.Future[None] | None = None
        self._writing = False
        """It is among those who write in the next ticks, or a send has not returned."""
        self._writer: asyncio.Task[None] | None = None
        self._cut = False

    # --- from the client

    async def converse(self, receive: Receive) -> None:
        """Hands on what the client sends, until the connection has ended."""
        link, socket = self._link, self.socket
        code, reason, was_clean = _ABNORMAL, "", False
        try:
            while True:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    code, reason, was_clean = _end(message)
                    break
                text = message.get("text")
                if not link.receive(socket, message["bytes"] if text is None else text):
                    del message, text  # an object may take its time, and then nothing comes for hours
                    self._readable = asyncio.get_running_loop().create_future()
                    await self._readable
                    self._readable = None
        except asyncio.CancelledError:
            if not self._cut:
                raise
            if self._task is not None:
                self._task.uncancel()
        finally:
            link.disconnected(socket, code, reason, was_clean)
            if self._writer is not None:
                self._writer.cancel()

    def may_read(self) -> None:
        """See `client_socket.Connection`."""
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def cut(self) -> None:
        """See `client_socket.Connection`."""
        self._cut = True
        if self._abort is not None:
            self._abort()
        elif self._task is not None:
            self._task.cancel()  # a server closes the connection of an application that has returned

    # --- to the client

    def may_write(self) -> None:
        """See `client_socket.Connection`."""
        if not self._writing:
            self._writing = True
            self._link.write_soon(self)

    def write(self) -> None:
        """Sends what is queued, as long as the server takes it at once; for the rest it makes a task."""
        take, send = self.socket.take, self._send
        for _ in range(_FRAMES_AT_ONCE):
            item = take()
            if item is None:
                self._writing = False
                return
            steps = send(_message(item)).__await__()
            try:
                waits_for = next(steps)
            except StopIteration:
                continue
            except Exception as error:
                self._lost(error)
                return
            self._writer = asyncio.get_running_loop().create_task(self._write_on(_Begun(waits_for, steps)))
            return
        self._link.write_soon(self)

    async def _write_on(self, begun: _Begun) -> None:
        try:
            await begun
        except Exception as error:
            self._lost(error)
            return
        finally:
            self._writer = None
        self.write()

    def _lost(self, error: BaseException) -> None:
        # `receive` tells of the end; nothing more is written, and what is queued goes with the socket.
        log.debug("a client is gone: %s", error)


class _Begun:
    """The rest of an awaitable whose first step was made outside of a task."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, waits_for: Any, steps: Generator[Any, Any, None]) -> None:
        self._waits_for = waits_for
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for, steps = self._waits_for, self._steps
        while True:
            error: BaseException | None = None
            value = None
            try:
                value = yield waits_for
            except BaseException as raised:
                error = raised
            try:
                waits_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration:
                return


def _message(item: Frame | Close) -> Message:
    if isinstance(item, Close):
        return {"type": "websocket.close", "code": item.code, "reason": item.reason}
    return {"type": "websocket.send", "text" if isinstance(item.data, str) else "bytes": item.data}


def _end(message: Message) -> tuple[int, str, bool]:
    """Code, reason and whether the end was orderly.

    Without a close from the client the code is 1006, as in browsers; some servers say 1005 then, but give no
    reason beside it.
    """
    code = message.get("code") or _NO_STATUS
    reason = message.get("reason")
    if code == _ABNORMAL or (code == _NO_STATUS and reason is None):
        return _ABNORMAL, "", False
    return code, reason or "", code not in _FAILURES


def _request(scope: Message, key: bytes) -> dict[str, Any]:
    """The upgrade as a request for `web.fetch`."""
    path, root_path = scope["path"], scope.get("root_path", "")
    below = path.removeprefix(root_path) if path.startswith(root_path + "/") else path
    client = scope.get("client")
    scheme = {"ws": "http", "wss": "https"}.get(scope.get("scheme", "ws"), "http")
    return {
        "method": "GET",
        "path": below or "/",
        "raw_path": scope.get("raw_path") or path.encode(),
        "query": scope.get("query_string", b""),
        "headers": [[name, value] for name, value in scope["headers"]],
        "scheme": scheme,
        "client": [client[0], client[1]] if client else None,
        "root_path": root_path,
        "body": b"",
        "more": False,
        "length": 0,
        "socket": key,
    }


def _refusal(error: Exception) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and headers for an upgrade that failed; what happened inside is not told to strangers."""
    if isinstance(error, UnknownNamespace | UnknownMethod):
        return 404, b"there is nothing here", []
    if isinstance(error, Overloaded | ShardUnavailable):
        seconds = max(1, round(error.retry_after)) if isinstance(error, Overloaded) else 1
        return 503, b"not available now", [(b"retry-after", str(seconds).encode())]
    if isinstance(error, DeadlineExceeded | OutcomeUnknown):
        return 504, b"no answer in time", []
    if isinstance(error, MessageTooLarge):
        return 413, b"this request is too large", []
    if isinstance(error, InvalidArgument):
        return 400, b"this request cannot be understood", []
    if isinstance(error, NotExecuted):
        return 503, b"not available now", []
    return 500, b"internal error", []


async def _deny(
    scope: Message, send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """An HTTP answer to an upgrade; servers without the extension can only refuse (403)."""
    if _DENIAL not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    given = list(headers or ())
    if not any(name == b"content-type" for name, _ in given):
        given.append((b"content-type", b"text/plain; charset=utf-8"))
    await send({"type": _DENIAL + ".start", "status": status, "headers": given})
    await send({"type": _DENIAL + ".body", "body": body})
