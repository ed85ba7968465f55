"""`Gateway`: durable objects as an ASGI application.  Runs in the gateway process, or in a user's own server.

    /<namespace>/<name>/...         reaches `fetch` of that object; the name percent-decoded
    /<namespace>/~<64 hex>/...      the same for the object of that id
    /<namespace>/<name>/<method>    calls a method that is marked `@public`, see `public_calls`
    /docs, /openapi.json            describe these methods

Guarantees that nothing is reachable but handlers that a class defines for the web; that every request ends
with an answer, also when the cluster is away; and that an error's inside stays inside.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perdure import web
from perdure.client import Client, connect
from perdure.errors import InvalidArgument, PerdureError, RemoteError
from perdure.ids import ObjectId, id_from_string
from perdure.limits import Limits
from perdure.object import namespace_of
from perdure.stub import make_target
from perdure.web_wire import OWN_HEADERS
from perdure_gateway.answers import Answer
from perdure_gateway.bodies import ClientGone, read_body
from perdure_gateway.failures import NO_TOKEN, NOT_FOUND, Failure, failure_of
from perdure_gateway.origins import check_origin
from perdure_gateway.paths import Place, place_of, raw_path_of
from perdure_gateway.public_calls import PublicCalls
from perdure_gateway.tokens import TokenFile, bearer_token
from perdure_gateway.websocket import WebSockets, refuse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

__all__ = ["Gateway"]

log = logging.getLogger("perdure.gateway")

_REQUEST_ID_CHARS_MAX = 255


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
        tokens: Path | str | None = None,
        timeout: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Nothing is connected yet.

        `url` is the cluster's, by default as for `perdure.connect`.  `classes` and `namespaces` say what is
        served; without both, every class that has a `fetch`.  Methods marked `@public` are served for
        `classes` only, since their signatures are needed.  Pages of `allow_origins` (besides the gateway's
        own) may call these methods and open sockets.  `tokens` is a file of bearer tokens, one of which every
        request then needs, see `perdure_gateway.tokens`.  `timeout` is each request's deadline in seconds, 30
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
        self.tokens = TokenFile(Path(tokens), time.monotonic) if tokens else None
        self.public = PublicCalls(
            self.classes, allow_origins=self.allow_origins, limits=self.limits, tokens=bool(tokens)
        )
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
            # Servers end connections before this; what their objects were not told by now, silence tells.
            await sockets.stop(self.limits.goodbye_timeout_s)
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
        answer = Answer(scope["method"], send)
        raw_path, root_path = raw_path_of(scope), scope.get("root_path", "")
        place = place_of(raw_path, root_path)
        try:
            if place is None:
                await self._serve_page(raw_path.decode("latin-1"), root_path, scope, answer)
            elif (failure := self.admits(scope, place.namespace)) is not None:
                await self._turn_away(failure, scope, answer)
            elif (method := self.public.find(place.namespace, place.path)) is not None:
                client = self._client or await self.client()
                target = client.target(place.namespace, self.key_of(place), self.timeout)
                request_id = _request_id(scope)
                await self.public.serve(method, target, client, request_id, scope, receive, answer)
            else:
                await self._forward(place, scope, receive, answer)
        except ClientGone:
            pass
        except Exception as error:
            failure = failure_of(error)
            error_id = _log_internal(failure, error, place) if failure.internal else ""
            await answer.fail(failure, error_id)

    async def _turn_away(self, failure: Failure, scope: Any, answer: Answer) -> None:
        """Browsers ask without the page's token whether a page may send one; it learns nothing by that."""
        page = scope["method"] == "OPTIONS" and any(name == b"origin" for name, _ in scope["headers"])
        if failure is NO_TOKEN and page and self.public.admits_page(scope["headers"], answer):
            await self.public.serve_options(answer)
        else:
            await answer.fail(failure)

    async def _serve_page(self, path: str, root_path: str, scope: Any, answer: Answer) -> None:
        opened: frozenset[str] | None = frozenset("*")
        if self.tokens is not None:
            opened = self.tokens.namespaces(bearer_token(scope["headers"]))
            if opened is None and path == "/openapi.json":
                await answer.fail(NO_TOKEN)
                return
        is_page = scope["method"] in ("GET", "HEAD")
        if not (is_page and await self.public.serve_page(path, root_path, opened, answer)):
            await answer.fail(NOT_FOUND)

    async def _forward(self, place: Place, scope: Any, receive: Any, answer: Answer) -> None:
        headers = scope["headers"]
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
            # An upgrade that comes here is none: servers hand those of WebSockets over as such.
            "headers": [
                list(pair) for pair in headers if pair[0] != b"upgrade" and not self._is_internal(pair[0])
            ],
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
            failure = NOT_FOUND if place is None else self.admits(scope, place.namespace)
            if failure is not None or place is None:
                await refuse(scope, receive, send, failure or NOT_FOUND)
                return
            target = make_target(place.namespace, self.key_of(place), self.timeout, {})
            sockets = await self._open_sockets()
        except PerdureError as error:
            await refuse(scope, receive, send, failure_of(error))
            return
        await sockets.serve(target, scope, receive, send, place)

    async def _open_sockets(self) -> WebSockets:
        client = await self.client()
        if self._websockets is None or self._websockets.client is not client:
            self._websockets = WebSockets(
                client, origins=self.allow_origins, is_internal=self._is_internal, limits=self.limits
            )
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
            await refuse(websocket.scope, websocket.receive, websocket.send, failure_of(error))
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
            {**chosen, "headers": [p for p in chosen["headers"] if not self._is_internal(p[0])]},
            timeout=self.timeout,
            request_id=_request_id(request.scope),
            body_source=source,
        )
        return reply.to_response()

    # --- what is served

    def admits(self, scope: Any, namespace: str) -> Failure | None:
        """Why this request is not let in; None when it is.

        What a token does not open looks like what is not there.
        """
        if self.tokens is not None:
            token = bearer_token(scope["headers"])
            if self.tokens.namespaces(token) is None:
                return NO_TOKEN
            if not self.tokens.opens(token, namespace):
                return NOT_FOUND
        return None if self.serves(namespace) else NOT_FOUND

    def _is_internal(self, name: bytes) -> bool:
        """Whether a header is not for the object: of our own, or the token of this gateway."""
        return name.startswith(OWN_HEADERS) or (self.tokens is not None and name == b"authorization")

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
