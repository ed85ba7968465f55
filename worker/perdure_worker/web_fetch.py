"""One `fetch`: a Starlette request from a call's argument, and a call's result from a Starlette response.

Guarantees that a fetch is a turn like any other: what it wrote is durable before a byte of the response
leaves, and what it raises leaves no trace.  An `HTTPException` is a response and undoes the turn, too.  A
streamed response is a stream of the same turn (streams.py): it waits for a slow client, and its generator is
closed when the client leaves.  Only this module knows Starlette; it is imported by workers that need it.
Runs in the worker's event loop, a @blocking handler in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from perdure.converter import describe
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.web_wire import check_headers
from perdure.websocket import UPGRADE_SCOPE_KEY
from perdure_worker.sockets import Upgrade
from perdure_worker.web_bodies import BodyTooLarge, Incoming

if TYPE_CHECKING:
    from perdure_worker.execution import Execution
    from perdure_worker.resident import Resident
    from perdure_worker.turns import Turn
    from perdure_worker.web_methods import FetchMethod

__all__ = ["serve"]

_CHUNK_BYTES = Limits().http_body_inline_bytes
_BODY_BYTES_MAX = Limits().message_bytes_max - 1024 * 1024
_NO_BODY = frozenset({204, 304})


class _ObjectRequest(Request):
    """A request to an object.  Whether its client is there is asked without taking a part of the body."""

    def __init__(self, scope: dict[str, Any], incoming: Incoming) -> None:
        super().__init__(scope, incoming.receive)
        self._incoming = incoming

    async def is_disconnected(self) -> bool:
        return self._incoming.left


async def serve(
    method: FetchMethod, host: Execution, resident: Resident, turn: Turn, instance: Any, wire: dict[str, Any]
) -> Any:
    """The turn of a fetch: what `WebReply` is made from, or a `StreamEnd`."""
    incoming = host.streams.bodies.begin(turn, wire)
    request = _ObjectRequest(_scope(wire), incoming)
    try:
        try:
            with Upgrade(host, resident, wire["socket"]) as upgrade:
                response = await _run(method, host, instance, request)
                accepted = upgrade.end(response)
            if accepted is not None:
                return accepted
        except (HTTPException, BodyTooLarge) as error:
            host.discard(resident)
            response = _error_response(error)
        _check(method, response)
        if type(response).__call__ is Response.__call__:
            return [response.status_code, _headers(method, response.raw_headers), bytes(response.body), None]
        return await host.streams.drive(resident, turn, _items(method, response, request, incoming))
    finally:
        host.streams.bodies.end(incoming)
        await request.close()  # of a form with files


async def _run(method: FetchMethod, host: Execution, instance: Any, request: Request) -> Any:
    if method.is_async:
        return await method.function(instance, request)
    await request.body()  # it cannot wait for it
    if method.blocking:
        return await host._threads.run(method.function, instance, request)
    result = method.function(instance, request)
    return await result if inspect.iscoroutine(result) else result


def _scope(wire: dict[str, Any]) -> dict[str, Any]:
    client, path, root_path = wire["client"], wire["path"], wire["root_path"]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": wire["method"],
        "scheme": wire["scheme"],
        "path": root_path + path,
        "raw_path": wire["raw_path"],
        "root_path": root_path,
        "query_string": wire["query"],
        "headers": wire["headers"],
        "client": None if client is None else tuple(client),
        "server": None,
        "path_params": {"path": path},
    }
    if wire["socket"] is not None:
        scope[UPGRADE_SCOPE_KEY] = wire["socket"]
    return scope


# --- responses


def _check(method: FetchMethod, response: Any) -> None:
    if not isinstance(response, Response):
        raise TypeError(
            f"{method.title} returns a Starlette Response, not {describe(response)}: wrap it, as in "
            "JSONResponse(value) or PlainTextResponse(text)"
        )
    if response.background is not None:
        raise TypeError(
            f"{method.title}: a background task of a response would run when the turn is over and nothing "
            "can be stored; use self.ctx.send(...) or an alarm, or do it before you return"
        )
    if not 200 <= response.status_code <= 599:
        raise ValueError(f"{method.title}: {response.status_code} is no status of a response")
    body = getattr(response, "body", b"")
    if len(body) > _BODY_BYTES_MAX:
        raise ValueError(
            f"{method.title}: a response of {len(body)} bytes does not fit into one message; use a "
            "StreamingResponse or a FileResponse"
        )


def _error_response(error: HTTPException | BodyTooLarge) -> Response:
    if isinstance(error, BodyTooLarge):
        return PlainTextResponse(str(error), 413)
    if error.status_code in _NO_BODY:
        return Response(status_code=error.status_code, headers=error.headers)
    return PlainTextResponse(error.detail, error.status_code, headers=error.headers)


def _headers(method: FetchMethod, raw: Any) -> list[list[bytes]]:
    try:
        return [list(pair) for pair in check_headers(raw)]
    except InvalidArgument as error:
        raise ValueError(f"{method.title}: {error}") from None


async def _items(
    method: FetchMethod, response: Response, request: Request, incoming: Incoming
) -> AsyncGenerator[Any, None]:
    """The items of a streamed response: its head, then its chunks."""
    if isinstance(response, StreamingResponse) and type(response).__call__ is StreamingResponse.__call__:
        chunks = _iterate(response)
    else:
        chunks = _run_response(response, request)
    try:
        async for chunk in chunks:
            if type(chunk) is tuple:
                status, raw = chunk
                yield [status, _headers(method, raw), b"", None]
                if incoming.left:
                    return
                continue
            for start in range(0, len(chunk), _CHUNK_BYTES):
                yield bytes(chunk[start : start + _CHUNK_BYTES])
    finally:
        await chunks.aclose()


async def _iterate(response: StreamingResponse) -> AsyncGenerator[Any, None]:
    # Not by the response's own __call__: the generator must be closed within the turn.
    body = response.body_iterator
    try:
        yield response.status_code, response.raw_headers
        async for chunk in body:
            yield chunk if isinstance(chunk, bytes | memoryview) else chunk.encode(response.charset)
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()


async def _run_response(response: Response, request: Request) -> AsyncGenerator[Any, None]:
    """A response that is an application of its own (a file with ranges, server-sent events)."""
    messages: asyncio.Queue[Any] = asyncio.Queue()

    async def send(message: Any) -> None:
        taken = asyncio.get_running_loop().create_future()
        messages.put_nowait((message, taken))
        await taken

    async def run() -> None:
        try:
            await response(request.scope, request.receive, send)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (next_one := await messages.get()) is not None:
            message, taken = next_one
            if message["type"] == "http.response.start":
                yield message["status"], message["headers"]
            elif message["type"] == "http.response.body":
                yield message.get("body", b"")
            if not taken.done():
                taken.set_result(None)
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
