"""HTTP to objects: `await stub.fetch(...)`, and what a gateway calls.  Runs in clients and in objects.

Guarantees that a request is a call like any other: it runs once, its reply comes when what it wrote is
durable, and it ends with the errors that calls end with.  Bodies of both directions are bounded: what does
not fit into one message is read as fast as the other side takes it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from perdure.errors import InvalidArgument, MessageTooLarge, OutcomeUnknown, RemoteError
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.named import NamedRequests
from perdure.object import namespace_of
from perdure.stub import make_target
from perdure.uploads import Uploads
from perdure.web_wire import FETCH, RawHeaders, check_headers, check_request, read_url, request_map

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from perdure.client import Client
    from perdure.streams import Stream

__all__ = [
    "FETCH",
    "Body",
    "Headers",
    "WebReply",
    "body_of",
    "check_headers",
    "check_request",
    "fetch",
    "make_request",
    "request_map",
    "send_request",
]

Body = bytes | str | AsyncIterable[bytes] | None
_LIMITS = Limits()
_HEADROOM_BYTES = 1024 * 1024
"""Of a message, for what stands in it beside a body."""


class Headers(Mapping[str, str]):
    """The headers of a reply by their names, in any case; of several with one name the first."""

    def __init__(self, raw: RawHeaders) -> None:
        self.raw = raw

    def __getitem__(self, name: str) -> str:
        for value in self.getlist(name):
            return value
        raise KeyError(name)

    def getlist(self, name: str) -> list[str]:
        """The values of all headers of that name, in their order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.raw if key == wanted]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key.decode("latin-1") for key, _ in self.raw))

    def __len__(self) -> int:
        return len({key for key, _ in self.raw})

    def __repr__(self) -> str:
        return f"Headers({self.raw!r})"


class WebReply:
    """What an object's `fetch` has answered.

    The body of most responses is in `body`.  That of a streamed one (`streamed` is true) comes through
    `chunks`, or as a whole with ``await reply.read()``; leaving it unread ends its producer, and so does
    `aclose`, or the end of an ``async with`` block.
    """

    def __init__(
        self,
        status: int,
        headers: RawHeaders,
        body: bytes,
        extra: Mapping[str, Any] | None = None,
        stream: Stream[Any] | None = None,
        sending: Sending | None = None,
    ) -> None:
        self.status = status
        self.headers = Headers(headers)
        self.extra = extra
        """What the gateway has to know of an accepted socket."""
        self._body: bytes | None = None if stream is not None else body
        self._first = body
        self._stream = stream
        self._sending = sending
        self._begun = False

    @property
    def streamed(self) -> bool:
        """Whether the body comes in chunks, at its producer's pace."""
        return self._stream is not None

    @property
    def body(self) -> bytes:
        """The whole body; raises `RuntimeError` for a streamed one that was not read as a whole."""
        if self._body is None:
            raise RuntimeError(
                "this reply is streamed: use `async for chunk in reply.chunks` or reply.read()"
            )
        return self._body

    @property
    def text(self) -> str:
        """The body as text, in the charset that its content type names, else UTF-8."""
        _, _, charset = self.headers.get("content-type", "").partition("charset=")
        return self.body.decode(charset.split(";")[0].strip(' "') or "utf-8")

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    async def read(self) -> bytes:
        """The whole body, also of a streamed reply; raises `MessageTooLarge` beyond `http_body_bytes_max`."""
        if self._body is None:
            parts, size, limit = [], 0, _LIMITS.http_body_bytes_max
            async for chunk in self.chunks:
                size += len(chunk)
                if size > limit:
                    await self.aclose()
                    raise MessageTooLarge(f"the body has more than {limit} bytes", size=size, limit=limit)
                parts.append(chunk)
            self._body = b"".join(parts)
        return self._body

    @property
    def chunks(self) -> AsyncIterator[bytes]:
        """The body piece by piece; once.  Errors of the producer come after what came before them."""
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        stream = self._stream
        if stream is None:
            if self._first:
                yield self._first
            return
        if self._begun:
            raise RuntimeError("the chunks of this reply were read before")
        self._begun = True
        try:
            if self._first:
                yield self._first
            async for chunk in stream:
                yield chunk
        except RemoteError as error:
            raise self._blame(error) from None
        finally:
            await self.aclose()

    def _blame(self, error: RemoteError) -> BaseException:
        return error if self._sending is None else self._sending.blame(error)

    async def aclose(self) -> None:
        """Ends what still comes; the producer is told at once, and not waited for."""
        if self._stream is not None:
            await self._stream.aclose()
        if self._sending is not None:
            self._sending.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def to_response(self) -> Response:
        """The same as a Starlette response, to be returned from another `fetch` or an HTTP endpoint."""
        from starlette.responses import Response, StreamingResponse

        response = StreamingResponse(self.chunks) if self.streamed else Response(self.body)
        response.status_code = self.status
        response.raw_headers = list(self.headers.raw)
        return response

    def __repr__(self) -> str:
        return f"<WebReply {self.status}{' streamed' if self.streamed else ''}>"


class Sending:
    """The body of one request on its way: whole in the request, or the rest of it as an upload."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._upload: Any = None

    async def put(self, request: Mapping[str, Any], source: Any, *, pulls: bool) -> dict[str, Any]:
        """The request as it travels; `pulls` says whether the worker can ask for more.

        Raises `MessageTooLarge`.
        """
        body: bytes = request["body"]
        if source is None and len(body) <= _LIMITS.http_body_inline_bytes:
            return dict(request)
        if not pulls:
            return {**request, "body": await _whole(body, source)}
        if source is None:
            inline = body[: _LIMITS.http_body_inline_bytes]
            self._upload = self._uploads.add(body, len(inline))
            request = {**request, "body": inline, "length": len(body)}
        else:
            self._upload = self._uploads.add(aiter(source), len(body))
        return {**request, "more": True, "upload": self._upload.number}

    def blame(self, error: RemoteError) -> BaseException:
        """What the caller gets for an error of the object: its own source's, if that is the cause."""
        if self._upload is None or error.type_name.rpartition(".")[2] != "ClientDisconnect":
            return error
        if self._upload.error is not None:
            return self._upload.error  # type: ignore[no-any-return]
        if self._upload.gone:
            return OutcomeUnknown(
                "the worker was lost while it read this request's body, which cannot be given a second time; "
                "what the object did until then may have taken effect"
            )
        return error

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._upload is not None:
            self._upload.close()


async def _whole(body: bytes, source: AsyncIterable[bytes] | None) -> bytes:
    """A body that has to travel in one message."""
    parts, size, limit = [body], len(body), _LIMITS.message_bytes_max - _HEADROOM_BYTES
    iterator = aiter(source) if source is not None else None
    while size <= limit and iterator is not None:
        try:
            parts.append(bytes(await anext(iterator)))
        except StopAsyncIteration:
            break
        size += len(parts[-1])
    if size > limit:
        raise MessageTooLarge(
            f"through the router a body has at most {limit} bytes; on the cluster's machine a direct client "
            "can send more",
            size=size,
            limit=limit,
        )
    return b"".join(parts)


async def send_request(
    start: Callable[[dict[str, Any]], Stream[Any]],
    uploads: Uploads,
    request: Mapping[str, Any],
    source: AsyncIterable[bytes] | None,
    *,
    pulls: bool,
) -> WebReply:
    """Sends a request with `start`, for clients and objects.

    `source` gives what follows on the request's own body, or is None; `pulls` says whether the worker can ask
    for more of it.
    """
    sending = Sending(uploads)
    call: Stream[Any] | None = None
    streams = False
    try:
        call = start(await sending.put(request, source, pulls=pulls))
        outcome = await call.result()
        streams = outcome is call
        if not streams:
            return _reply(outcome)
        head = await anext(call)
        return _reply(head, call, sending)
    except RemoteError as error:
        raise sending.blame(error) from None
    except BaseException:  # whoever waited has left: the object's `request.is_disconnected()` says so
        if call is not None:
            await call.aclose()
        raise
    finally:
        if not streams:
            sending.close()


def _reply(value: Any, stream: Stream[Any] | None = None, sending: Sending | None = None) -> WebReply:
    status, headers, body, extra = value
    return WebReply(status, [(name, text) for name, text in headers], body, extra, stream, sending)


async def fetch(
    client: Client,
    namespace: type | str,
    key: str | ObjectId,
    request: Mapping[str, Any],
    *,
    timeout: float | None = None,
    request_id: str | bytes | None = None,
    body_source: AsyncIterable[bytes] | None = None,
) -> WebReply:
    """Sends a request (`request_map`) to an object; what `stub.fetch` does, for a gateway.

    `body_source` gives what follows on the request's own `body`, if something does; it is read when the
    object wants it.  `request_id` is an idempotency key: a repeated request with it gets the recorded reply.
    Raises the errors of calls, `InvalidArgument` for what is no request, and what the source raises.
    """
    target = make_target(namespace_of(namespace), key, timeout, {})
    named = None if request_id is None else NamedRequests(request_id, client).next_request()
    return await client.send_request(target, check_request(dict(request)), body_source, named)


def make_request(
    request: str | Request,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    body: Body = None,
) -> tuple[dict[str, Any], AsyncIterable[bytes] | None]:
    """The arguments of `stub.fetch` as a request, and the source of its body if it has one.

    Raises `InvalidArgument`.
    """
    if isinstance(request, str):
        scheme, path, raw_path, query, host = read_url(request)
        raw = [] if host is None else [(b"host", host)]
        made: dict[str, Any] = {"path": path, "raw_path": raw_path, "query": query, "scheme": scheme}
        chosen = method or "GET"
        source: Any = None
    else:
        scope = getattr(request, "scope", None)
        if type(scope) is not dict and not isinstance(scope, Mapping):
            raise InvalidArgument(f"fetch takes a URL or a Starlette Request, not {type(request).__name__}")
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root) if scope["path"].startswith(root + "/") else scope["path"]
        made = {"path": path or "/", "query": scope.get("query_string", b""), "root_path": root}
        made["scheme"], made["client"] = scope.get("scheme", "http"), scope.get("client")
        raw = list(scope["headers"])
        chosen = method or scope["method"]
        made["length"] = _length(raw) if body is None else None
        source = request.stream() if body is None else None
    raw = _with_headers(raw, headers)
    if isinstance(body, str):
        body = body.encode()
    if isinstance(body, bytes):
        raw = [pair for pair in raw if pair[0] not in (b"content-length", b"transfer-encoding")]
        raw.append((b"content-length", str(len(body)).encode()))
        made["body"], made["length"] = body, len(body)
    elif body is not None:
        if not isinstance(body, AsyncIterable):
            raise InvalidArgument(f"a body is bytes, str or an async iterator, not {type(body).__name__}")
        source = body
    return request_map(chosen.upper(), headers=raw, **made), source


def _length(raw: RawHeaders) -> int | None:
    for name, value in raw:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


def _with_headers(raw: list[tuple[bytes, bytes]], headers: Any) -> list[tuple[bytes, bytes]]:
    """Headers that are given take the place of those of the same names."""
    if headers is None:
        return raw
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    try:
        given = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in pairs]
    except (AttributeError, UnicodeEncodeError, ValueError, TypeError) as error:
        raise InvalidArgument(f"headers are pairs of str, as Latin-1 has them: {error}") from None
    names = {name for name, _ in given}
    return [*(pair for pair in raw if pair[0] not in names), *given]


def body_of(request: Request) -> bytes:
    """The body of a request, for a `fetch` that is no ``async def``: it was read before the handler began."""
    with contextlib.suppress(AttributeError):
        return request._body
    raise RuntimeError("the body is here already only in a plain or @blocking `fetch`: await request.body()")
