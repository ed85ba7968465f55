"""`Gateway`: durable objects as an ASGI application.  Runs in the gateway process, or in a user's own server.

    /<namespace>/<name>/...         reaches `fetch` of that object; the name percent-decoded
    /<namespace>/~<64 hex>/...      the same for the object of that id

Guarantees that nothing is reachable but handlers that a class defines for the web; that every request ends
with an answer, also when the cluster is away; and that an error's inside stays inside.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perdure import web
from perdure.client import Client, connect
from perdure.errors import InvalidArgument, PerdureError, RemoteError, UnknownNamespace
from perdure.ids import ObjectId, id_from_string
from perdure.limits import Limits
from perdure.object import namespace_of
from perdure.stub import make_target
from perdure_gateway.bodies import ClientGone, read_body
from perdure_gateway.failures import NOT_FOUND, Failure, failure_of
from perdure_gateway.origins import check_origin
from perdure_gateway.paths import Place, place_of, raw_path_of
from perdure_gateway.websocket import WebSockets, refuse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

__all__ = ["BrokenOff", "Gateway"]

log = logging.getLogger("perdure.gateway")

_FORBIDDEN = re.compile(rb"[\r\n\0]")
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""Headers of one connection, which is the server's business (RFC 9110 §7.6.1)."""
_NO_BODY = frozenset({204, 304})
_REQUEST_ID_CHARS_MAX = 255
_INTERNAL = b"x-perdure-"


class Gateway:
    """An ASGI application that serves the objects of one cluster; mount it where you like.

    It connects with its lifespan, in ``async with gateway:``, or with the first request, whichever comes
    first: servers run the lifespan of the outermost application only.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        classes: Iterable[type] | None = None,
        namespaces: Iterable[str] | None = None,
        allow_origins: Iterable[str] = (),
        timeout: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Nothing is connected yet.

        `url` is the cluster's, by default as for `perdure.connect`.  `classes` and `namespaces` say what is
        served; without both, every class that has a `fetch`.  Methods marked `@public` are served for
        `classes` only, since their signatures are needed.  Pages of `allow_origins` (besides the gateway's
        own) may call these methods and open sockets.  `timeout` is each request's deadline in seconds, 30
        by default.  Raises `TypeError` or `InvalidArgument` for what is no class, namespace or timeout.
        """
        self.limits = limits or Limits()
        self.allow_origins = frozenset(map(check_origin, allow_origins))
        self.timeout = timeout
        self._url = url
        given = list(classes or ())
        self.classes: dict[str, type] = {namespace_of(cls): cls for cls in given}
        named = [namespace_of(name) for name in namespaces or ()]
        self.namespaces = frozenset([*self.classes, *named]) if given or named else None
        self._client: Client | None = None
        self._websockets: WebSockets | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None

    # --- life

    async def __aenter__(self) -> Self:
        await self.client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection to the cluster; a later request makes a new one."""
        client, self._client = self._client, None
        sockets, self._websockets = self._websockets, None
        if sockets is not None:
            await sockets.stop(self.limits.drain_timeout_s)
            sockets.close()
        if client is not None:
            await client.close()

    async def client(self) -> Client:
        """The client of the cluster, connected.  Raises `ShardUnavailable` while there is no cluster."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # another server, or a test's next loop: sockets belong to one
            self._loop, self._client, self._connecting = loop, None, asyncio.Lock()
        if self._client is None:
            assert self._connecting is not None
            async with self._connecting:
                if self._client is None:
                    self._client = await connect(self._url).__aenter__()
        return self._client

    # --- ASGI

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, socket or lifespan, as ASGI has it."""
        kind = scope["type"]
        if kind == "http":
            await self._serve_http(scope, receive, send)
        elif kind == "lifespan":
            await self._serve_lifespan(receive, send)
        elif kind == "websocket":
            await self._serve_websocket(scope, receive, send)

    async def _serve_lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.client()
                except PerdureError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve_http(self, scope: Any, receive: Any, send: Any) -> None:
        answer = _Answer(scope["method"], send)
        place = place_of(raw_path_of(scope), scope.get("root_path", ""))
        try:
            if place is None or not self.serves(place.namespace):
                await answer.fail(NOT_FOUND)
            else:
                await self._forward(place, scope, receive, answer)
        except ClientGone:
            pass
        except Exception as error:
            failure = failure_of(error)
            error_id = _log_internal(failure, error, place) if failure.internal else ""
            await answer.fail(failure, error_id)

    async def _forward(self, place: Place, scope: Any, receive: Any, answer: _Answer) -> None:
        headers = scope["headers"]
        if _FORBIDDEN.search(b" ".join([value for _, value in headers])) is not None:
            raise InvalidArgument("a header's value holds a CR, LF or NUL")
        body = await read_body(
            receive,
            headers,
            http1=scope.get("http_version", "1.1")[:1] == "1",
            inline_bytes=self.limits.http_body_inline_bytes,
            bytes_max=self.limits.http_body_bytes_max,
        )
        client = scope.get("client")
        request: dict[str, Any] = {
            "method": scope["method"],
            "path": place.path,
            "raw_path": place.raw_path,
            "query": scope["query_string"],
            "headers": [list(pair) for pair in headers if not pair[0].startswith(_INTERNAL)],
            "scheme": scope.get("scheme", "http"),
            "client": None if client is None else [client[0], client[1]],
            "root_path": place.root_path,
            "body": body.first,
            "more": False,
            "length": body.length,
            "socket": None,
        }
        reply = await web.fetch(
            self._client or await self.client(),
            place.namespace,
            self.key_of(place),
            request,
            timeout=self.timeout,
            request_id=_request_id(scope),
            body_source=body.rest,
        )
        await answer.give(reply, receive)

    async def _serve_websocket(self, scope: Any, receive: Any, send: Any) -> None:
        place = place_of(raw_path_of(scope), scope.get("root_path", ""))
        try:
            if place is None or not self.serves(place.namespace):
                raise UnknownNamespace("nothing is served there")
            target = make_target(place.namespace, self.key_of(place), self.timeout, {})
            sockets = await self._open_sockets()
        except Exception as error:
            await refuse(scope, receive, send, error)
        else:
            await sockets.serve(target, scope, receive, send, place)

    async def _open_sockets(self) -> WebSockets:
        client = await self.client()
        if self._websockets is None or self._websockets.client is not client:
            self._websockets = WebSockets(client, origins=self.allow_origins, limits=self.limits)
        return self._websockets

    # --- for front applications

    async def websocket(self, ns: type | str, key: str | ObjectId, websocket: WebSocket) -> None:
        """Hands a WebSocket on to an object, from an endpoint that has not accepted it; returns at its end.

        The object's `fetch` sees the upgrade with the request's own path, and takes it by returning
        ``self.ctx.accept_websocket(request)``; any other response, or an error, is the client's answer.
        Raises `InvalidArgument` for what is no namespace or name.
        """
        target = make_target(namespace_of(ns), key, self.timeout, {})
        try:
            sockets = await self._open_sockets()
        except PerdureError as error:
            await refuse(websocket.scope, websocket.receive, websocket.send, error)
        else:
            await sockets.serve(target, websocket.scope, websocket.receive, websocket.send)

    async def fetch(self, ns: type | str, key: str | ObjectId, request: Request) -> Response:
        """Hands a request on to an object, and gives its response, to be returned from an endpoint.

        The object sees the request's own path.  Raises the errors of calls.
        """
        chosen, source = web.make_request(request)
        reply = await web.fetch(
            await self.client(),
            ns,
            key,
            {**chosen, "headers": [p for p in chosen["headers"] if not p[0].startswith(_INTERNAL)]},
            timeout=self.timeout,
            request_id=_request_id(request.scope),
            body_source=source,
        )
        return reply.to_response()

    # --- what is served

    def serves(self, namespace: str) -> bool:
        """Whether this gateway was told to serve the namespace."""
        return self.namespaces is None or namespace in self.namespaces

    @staticmethod
    def key_of(place: Place) -> str | ObjectId:
        """The object that a path names; raises `InvalidArgument` for an id of another namespace."""
        return id_from_string(place.namespace, place.unique) if place.unique else place.name


def _request_id(scope: Any) -> bytes | None:
    """The idempotency key of a request, for this method and path; None without one."""
    key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
    if key is None:
        return None
    if not 0 < len(key) <= _REQUEST_ID_CHARS_MAX:
        raise InvalidArgument(f"an Idempotency-Key has 1 to {_REQUEST_ID_CHARS_MAX} characters")
    # The object is a part of every request's identity already; a key is used for one method and path.
    path = scope["path"].encode("utf-8", "surrogatepass")
    return b"http:%b %b %b" % (scope["method"].encode(), _digest(path), key)


def _digest(path: bytes) -> bytes:
    from hashlib import blake2b

    return blake2b(path, digest_size=16).hexdigest().encode()


def _log_internal(failure: Failure, error: Exception, place: Place | None) -> str:
    """Logs what the client is not told, under the id that it gets."""
    error_id = secrets.token_hex(8)
    facts: dict[str, Any] = {"error_id": error_id}
    if place is not None:
        facts["object"] = f"{place.namespace}/{place.name or place.unique}"
    if failure.traceback is not None:
        facts["remote_traceback"] = failure.traceback
    known = isinstance(error, RemoteError) or hasattr(error, "object_id")
    log.error("a request failed: %s", error, extra=facts, exc_info=None if known else error)
    return error_id


class _Answer:
    """The answer to one request: given once, whatever happens."""

    __slots__ = ("_method", "_send", "started")

    def __init__(self, method: str, send: Any) -> None:
        self._method = method
        self._send = send
        self.started = False

    async def give(self, reply: web.WebReply, receive: Any) -> None:
        """What the object has answered."""
        if reply.streamed:
            await self._stream(reply, receive)
            return
        body = b"" if reply.status in _NO_BODY else reply.body
        headers = _response_headers(reply.headers.raw)
        if self._method != "HEAD" and reply.status not in _NO_BODY:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(body)))
        await self._begin(reply.status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _stream(self, reply: web.WebReply, receive: Any) -> None:
        # Who only sends never learns that the client has left, and its object would stream for nobody.
        leaving = asyncio.create_task(_departure(receive))
        leaving.add_done_callback(lambda _: sending.cancel())
        sending = asyncio.create_task(self._send_chunks(reply))
        try:
            await asyncio.wait((sending,))
            if not sending.cancelled():
                sending.result()
        finally:
            leaving.cancel()
            sending.cancel()
            await reply.aclose()

    async def _send_chunks(self, reply: web.WebReply) -> None:
        await self._begin(reply.status, _response_headers(reply.headers.raw))
        async for chunk in reply.chunks:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, failure: Failure, error_id: str = "") -> None:
        """The answer to a request that failed; a response that has begun is broken off."""
        if self.started:
            raise BrokenOff(failure.message)
        body = failure.body(error_id)
        await self._begin(failure.status, failure.all_headers(len(body)))
        await self._send({"type": "http.response.body", "body": body})


class BrokenOff(Exception):
    """A response cannot be ended as it began."""


async def _departure(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _response_headers(raw: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    if _FORBIDDEN.search(b" ".join([part for pair in raw for part in pair])) is not None:
        raise ValueError("a response's header holds a CR, LF or NUL")
    return [pair for pair in raw if pair[0] not in _HOP_BY_HOP and not pair[0].lower().startswith(_INTERNAL)]
