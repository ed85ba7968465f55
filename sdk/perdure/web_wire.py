"""HTTP on the wire: requests and responses as the values that calls carry.  Pure; clients and workers.

Guarantees that what passes `request_map`, `check_request` and `check_headers` can be written as HTTP/1.1
as it stands: no name or value of a header holds a CR, LF or NUL, so none can begin another header or another
message.  A request is a map, a response is a list, see `docs/PROTOCOL.md`.  Starlette is not imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

from perdure.errors import InvalidArgument, MessageTooLarge
from perdure.limits import Limits

__all__ = [
    "CLOSED",
    "FETCH",
    "FRAME",
    "LINE_END",
    "OWN_HEADERS",
    "RawHeaders",
    "check_headers",
    "check_request",
    "essence",
    "read_url",
    "request_map",
]

RawHeaders = list[tuple[bytes, bytes]]
"""Names are lower case; several headers may have one name."""

FETCH: Final = "web.fetch"
"""The name of the call that carries a request; no method of a class can have a name with a dot."""
FRAME: Final = "web.frame"
"""The same of the call that carries one message of a client's WebSocket."""
CLOSED: Final = "web.closed"
"""The same of the call that tells an object of a WebSocket's end."""
OWN_HEADERS: Final = b"x-perdure-"
"""Begin of the names of headers that are the gateway's own: they reach no object and no client."""
LINE_END: Final = re.compile(rb"[\r\n\0]")
"""What would end a header before its end."""

_LIMITS = Limits()
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}", re.ASCII)
_SOCKET_KEY_BYTES = 24
_KINDS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "path": (str,),
    "raw_path": (bytes,),
    "query": (bytes,),
    "headers": (list,),
    "scheme": (str,),
    "client": (list, type(None)),
    "root_path": (str,),
    "body": (bytes,),
    "more": (bool,),
    "length": (int, type(None)),
    "socket": (bytes, type(None)),
    "upload": (int,),
}


def check_headers(pairs: Iterable[Any]) -> RawHeaders:
    """The headers with names in lower case; raises `InvalidArgument` for what HTTP cannot carry."""
    headers: RawHeaders = []
    size = 0
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2 or {type(pair[0]), type(pair[1])} != {bytes}:
            raise InvalidArgument("headers are pairs of bytes: name, value")
        name, value = pair
        if _TOKEN.fullmatch(name) is None:
            raise InvalidArgument(f"this is no name of a header: {name!r:.80}")
        if LINE_END.search(value) is not None:
            raise InvalidArgument(
                f"the value of header {name.decode('ascii')!r:.80} holds a CR, LF or NUL, which would end it"
            )
        size += len(name) + len(value)
        headers.append((name.lower(), value))
    if len(headers) > _LIMITS.http_headers_max:
        raise InvalidArgument(
            f"a message has at most {_LIMITS.http_headers_max} headers (http_headers_max), this one "
            f"{len(headers)}"
        )
    if size > _LIMITS.http_headers_bytes_max:
        raise MessageTooLarge(
            f"the headers have {size} bytes; the limit is {_LIMITS.http_headers_bytes_max}",
            size=size,
            limit=_LIMITS.http_headers_bytes_max,
        )
    return headers


def request_map(
    method: str,
    path: str,
    *,
    raw_path: bytes | None = None,
    query: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    scheme: str = "http",
    client: tuple[str, int] | None = None,
    root_path: str = "",
    body: bytes = b"",
    length: int | None = None,
    socket: bytes | None = None,
) -> dict[str, Any]:
    """A request as `web.fetch` takes it; raises `InvalidArgument` for what is no request.

    `path` is decoded and begins with "/", below the object; `root_path` is what stood before it.  `body` is
    the whole body, or its first part if `fetch` gets a source for the rest; `length` that of the whole body,
    where it is known.  `socket` is the key of the socket that asks for an upgrade.
    """
    request = {
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape") if raw_path is None else raw_path,
        "query": query,
        "headers": [list(pair) for pair in headers],
        "scheme": scheme,
        "client": None if client is None else [client[0], client[1]],
        "root_path": root_path,
        "body": body,
        "more": False,
        "length": length,
        "socket": socket,
        "upload": 0,
    }
    request["headers"] = [list(pair) for pair in check_request(request)["headers"]]
    return request


def check_request(value: Any) -> dict[str, Any]:
    """The request with checked headers; raises `InvalidArgument` for what is none.

    What a newer peer adds is ignored.
    """
    if type(value) is not dict:
        raise InvalidArgument("a request is a map")
    for name, kinds in _KINDS.items():
        if name not in value and name != "upload":
            raise InvalidArgument(f"a request has {name!r}, this one has not")
        if type(value.get(name, 0)) not in kinds:
            raise InvalidArgument(f"{name!r} of a request is no {type(value[name]).__name__}")
    if _METHOD.fullmatch(value["method"]) is None:
        raise InvalidArgument(f"this is no method of HTTP: {value['method']!r:.80}")
    if not value["path"].startswith("/"):
        raise InvalidArgument(f"the path of a request begins with '/', not {value['path']!r:.80}")
    client = value["client"]
    if client is not None and [type(part) for part in client] != [str, int]:
        raise InvalidArgument("the client of a request is a list of address and port")
    socket = value["socket"]
    if socket is not None and len(socket) != _SOCKET_KEY_BYTES:
        raise InvalidArgument(f"the key of a socket has {_SOCKET_KEY_BYTES} bytes")
    return {**value, "headers": check_headers(value["headers"])}


def essence(args: Any) -> list[Any]:
    """What makes two requests under one idempotency key the same one.

    The way they came is no part of it (the client's port, headers of proxies and traces), and of a body that
    is pulled only its length: where its first part ends depends on the network.
    """
    request = args[0] if type(args) is list and args else None
    if type(request) is not dict:
        return [args]
    names = ("method", "root_path", "path", "query", "length")
    return [*(request.get(name) for name in names), None if request.get("more") else request.get("body")]


def read_url(url: str) -> tuple[str, str, bytes, bytes, bytes | None]:
    """Scheme, decoded path, raw path, query and host of a URL, or of a path that begins with "/".

    Raises `InvalidArgument`.
    """
    try:
        parts = urlsplit(url)
        raw_path, query = parts.path.encode("ascii"), parts.query.encode("ascii")
        host = parts.netloc.rpartition("@")[2].encode("ascii")
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"this is no URL: {url!r:.200}: {error}") from None
    if parts.scheme not in ("http", "https", "") or bool(parts.scheme) != bool(host):
        raise InvalidArgument(
            f"a URL begins with 'http://' or 'https://' and a host, or is a path from '/' on: {url!r:.200}"
        )
    raw_path = raw_path or b"/"
    path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
    return parts.scheme or "http", path, raw_path, query, host or None
