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
import secrets
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, MutableMapping
from typing import Any

from perdure.client import Client
from perdure.errors import NotExecuted, RemoteError
from perdure.limits import Limits
from perdure.stub import Target
from perdure.web_wire import OWN_HEADERS, check_headers
from perdure_gateway.admission import Admission
from perdure_gateway.client_socket import ClientSocket, Close, Frame
from perdure_gateway.failures import Failure, failure_of
from perdure_gateway.frames_link import FramesLink
from perdure_gateway.origins import check_origin, may_upgrade
from perdure_gateway.paths import Place, raw_path_of

__all__ = ["ABORT", "STOPPING", "WRITE", "WebSockets", "refuse"]

log = logging.getLogger("perdure.gateway")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT = "perdure.abort"
"""ASGI extension of our own server: a function that ends the connection at once, whatever is unsent."""
WRITE = "perdure.write"
"""ASGI extension of our own server: a function that writes an encoded frame; False if it cannot do so now.

A broadcast is encoded once with it: about 6 us of CPU a socket instead of 8, most of it the system call."""
STOPPING = "perdure.stopping"
"""In a disconnect of our own server: it stops, and waits for its applications."""
_DENIAL = "websocket.http.response"
_SWITCHING = 101
_NO_STATUS, _ABNORMAL = 1005, 1006
_FAILURES = frozenset({1002, 1003, 1006, 1007, 1009, 1010, 1011, 1012})
"""Codes by which one side says that something went wrong: no orderly end."""
_FRAMES_AT_ONCE = 64
"""Frames that one client gets before others have their turn."""
_OURS = (OWN_HEADERS, b"connection", b"keep-alive", b"transfer-encoding", b"upgrade")
"""Headers that are the gateway's or its server's own business, in both directions."""
_OF_THE_HANDSHAKE = (b"sec-websocket-", b"content-", b"date")
_FOREIGN = Failure(403, "ForeignOrigin", "this origin may not open a WebSocket here")
_FULL = Failure(503, "Overloaded", "there are too many connections", retry_after=5.0)


class WebSockets:
    """The WebSockets of one gateway."""

    def __init__(
        self,
        client: Client,
        *,
        origins: Collection[str] = (),
        is_internal: Callable[[bytes], bool] = lambda name: name.startswith(OWN_HEADERS),
        limits: Limits | None = None,
    ) -> None:
        """For a connected client, in its event loop; `origins` are allowed besides the gateway's own.

        `is_internal` says which headers are not for objects.
        Raises `InvalidArgument` for what is no origin.
        """
        limits = limits if limits is not None else Limits()
        self.client = client
        self.link = FramesLink(client, limits)
        self._is_internal = is_internal
        self._origins = frozenset(map(check_origin, origins))
        self._admission = Admission(
            connections_max=limits.sockets_per_gateway_max, per_address_max=limits.sockets_per_address_max
        )

    async def stop(self, timeout_s: float) -> None:
        """See `FramesLink.stop`."""
        await self.link.stop(timeout_s)

    def close(self) -> None:
        """See `FramesLink.close`."""
        self.link.close()

    async def serve(
        self, target: Target, scope: Message, receive: Receive, send: Send, place: Place | None = None
    ) -> None:
        """The whole life of one connection, for an ASGI application; `target` is the object it is for.

        The object sees the path of `place`, by default what follows `root_path` in the scope.
        """
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        address = client[0] if (client := scope.get("client")) else None
        if not may_upgrade(scope["headers"], self._origins):
            await _refuse(scope, send, _FOREIGN)
            return
        if not self._admission.enter(address):
            await _refuse(scope, send, _FULL)
            return
        try:
            connection = await self._upgrade(target, scope, send, place)
            if connection is not None:
                await connection.converse(receive)
        finally:
            self._admission.leave(address)

    async def _upgrade(
        self, target: Target, scope: Message, send: Send, place: Place | None
    ) -> _Connection | None:
        """Asks the object; the connection if it took the socket, else None, and the client has its answer."""
        connection = _Connection(self.link, send, scope.get("extensions") or {})
        socket = connection.socket = self.link.open(target, connection)
        perhaps, took = True, False
        try:
            request = _request(scope, socket.key, place)
            request["headers"] = [list(pair) for pair in scope["headers"] if not self._is_internal(pair[0])]
            reply = await self.client.send_request(target, request, None)
            took = reply.status == _SWITCHING
            headers = [pair for pair in check_headers(reply.headers.raw) if not pair[0].startswith(_OURS)]
            if took:
                await self._accept(connection, scope, send, headers, reply.extra or {})
                return connection
            perhaps = False
            body = await reply.read()
        except Exception as error:  # users' own exceptions among them
            if connection.accepted:
                raise  # the client is gone
            perhaps = took or not isinstance(error, NotExecuted | RemoteError)
            await _refuse(scope, send, failure_of(error), error)
            return None
        finally:
            if not connection.accepted:
                self.link.refused(socket, perhaps_accepted=perhaps)
        await _deny(scope, send, reply.status, headers, body)
        return None

    async def _accept(
        self,
        connection: _Connection,
        scope: Message,
        send: Send,
        headers: list[tuple[bytes, bytes]],
        extra: Mapping[str, Any],
    ) -> None:
        protocol = extra.get("protocol")
        kept = [pair for pair in headers if not pair[0].startswith(_OF_THE_HANDSHAKE)]
        message: Message = {"type": "websocket.accept", "headers": kept}
        if protocol in scope.get("subprotocols", ()):
            message["subprotocol"] = protocol
        connection.accepted = True  # by the object: from now on it hears of the end
        try:
            await send(message)
        except BaseException:
            self.link.accepted(connection.socket, None)
            self.link.disconnected(connection.socket, _ABNORMAL, "", False)
            raise
        auto = extra.get("auto")
        self.link.accepted(connection.socket, (auto[0], auto[1]) if auto else None)


class _Connection:
    """One client's connection; see `client_socket.Connection`."""

    __slots__ = (
        "_abort",
        "_cut",
        "_link",
        "_readable",
        "_send",
        "_task",
        "_write_frame",
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
        self._write_frame: Callable[[bytes], bool] = extensions.get(WRITE, _cannot_write)
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
                    if STOPPING in message:
                        link.disconnected(socket, code, reason, False)
                        await link.at_rest()
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
        take, send, write_frame = self.socket.take, self._send, self._write_frame
        for _ in range(_FRAMES_AT_ONCE):
            item = take()
            if item is None:
                self._writing = False
                return
            if type(item) is Frame and write_frame is not _cannot_write and write_frame(item.wire()):
                continue
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


def _cannot_write(data: bytes) -> bool:
    return False


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
    code = int(message.get("code") or _NO_STATUS)  # of an enum's members a call cannot be made
    reason = message.get("reason")
    if code == _ABNORMAL or (code == _NO_STATUS and reason is None):
        return _ABNORMAL, "", False
    return code, str(reason or ""), code not in _FAILURES


def _request(scope: Message, key: bytes, place: Place | None) -> dict[str, Any]:
    """The upgrade as a request for `web.fetch`."""
    if place is None:
        path, root_path, raw_path = scope["path"], scope.get("root_path", ""), raw_path_of(scope)
        path = (path.removeprefix(root_path) if path.startswith(root_path + "/") else path) or "/"
    else:
        path, root_path, raw_path = place.path, place.root_path, place.raw_path
    client = scope.get("client")
    return {
        "method": "GET",
        "path": path,
        "raw_path": raw_path,
        "query": scope.get("query_string", b""),
        "headers": [],
        "scheme": "https" if scope.get("scheme") == "wss" else "http",
        "client": [client[0], client[1]] if client else None,
        "root_path": root_path,
        "body": b"",
        "more": False,
        "length": 0,
        "socket": key,
    }


async def _deny(
    scope: Message, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """An HTTP answer to an upgrade; servers without the extension can only refuse (403)."""
    if _DENIAL not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    await send({"type": _DENIAL + ".start", "status": status, "headers": headers})
    await send({"type": _DENIAL + ".body", "body": body})


async def refuse(scope: Message, receive: Receive, send: Send, failure: Failure) -> None:
    """The answer to an upgrade that leads to no object."""
    if (await receive())["type"] == "websocket.connect":
        await _refuse(scope, send, failure)


async def _refuse(scope: Message, send: Send, failure: Failure, error: Exception | None = None) -> None:
    error_id = ""
    if failure.internal:
        error_id = secrets.token_hex(8)
        known = isinstance(error, RemoteError) or hasattr(error, "object_id")  # the worker has its traceback
        exc_info = None if known else error
        log.error("an upgrade failed: %s", error, extra={"error_id": error_id}, exc_info=exc_info)
    body = failure.body(error_id)
    await _deny(scope, send, failure.status, failure.all_headers(len(body)), body)
