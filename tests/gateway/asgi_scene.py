"""Requests to the gateway's application without a server, and a cluster that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from perdure.stub import Target, make_target
from perdure.web import WebReply
from perdure_gateway.gateway import Gateway

Headers = list[tuple[bytes, bytes]]


class Cluster:
    """Stands for a connected client: `answer` and `call` say what objects do; what was asked is kept."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Any] = lambda request: WebReply(200, [], b"ok"),
        call: Callable[..., Any] = lambda *args, **kwargs: None,
    ) -> None:
        self.answer = answer
        self.call = call
        self.requests: list[dict[str, Any]] = []
        self.targets: list[Target] = []
        self.named: list[Any] = []

    async def send_request(
        self, target: Target, request: dict[str, Any], source: Any = None, named: Any = None
    ) -> WebReply:
        self.targets.append(target)
        self.named.append(named)
        if source is not None:
            request["rest"] = b"".join([part async for part in source])
        self.requests.append(request)
        return self.answer(request)

    def target(self, cls: Any, key: Any, timeout: float | None) -> Target:
        return make_target(cls, key, timeout, {})

    async def start(
        self, target: Target, method: str, args: Any, kwargs: Any, spec: Any, request: Any = None
    ) -> Any:
        self.targets.append(target)
        self.named.append(request)
        return self.call(method, *args, **(kwargs or {}))

    def start_stream(
        self, target: Target, method: str, args: Any, kwargs: Any, spec: Any
    ) -> AsyncIterator[Any]:
        return self.call(method, *args, **(kwargs or {}))

    async def close(self) -> None:
        """Nothing is open."""


class Response:
    """What an application has sent."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status: int = messages[0]["status"] if messages else 0
        self.raw: Headers = list(messages[0]["headers"]) if messages else []
        self.headers = dict(self.raw)
        self.chunks = [message["body"] for message in messages[1:]]
        self.body = b"".join(self.chunks)


async def ask(
    app: Any,
    method: str,
    path: str,
    *,
    headers: Headers | None = None,
    body: list[bytes] | bytes = b"",
    **scope: Any,
) -> Response:
    """One request of a client that stays until it is answered."""
    parts = [body] if isinstance(body, bytes) else list(body)
    raw_path, _, query = path.partition("?")
    given = headers or []
    if any(parts) and not any(name == b"content-length" for name, _ in given):
        given = [*given, (b"transfer-encoding", b"chunked")]
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    from urllib.parse import unquote

    await app(
        {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": given,
            "client": ("192.0.2.7", 50_000),
            **scope,
        },
        receive,
        send,
    )
    return Response(messages)


def request(
    cluster: Cluster, method: str, path: str, *, gateway: Gateway | None = None, **options: Any
) -> Response:
    """The same to a gateway whose cluster is played, in a loop of its own."""
    served = gateway or Gateway()

    async def scenario() -> Response:
        connect(served, cluster)
        return await ask(served, method, path, **options)

    return asyncio.run(scenario())


def connect(gateway: Gateway, cluster: Cluster) -> None:
    """Lets the gateway think that it is connected, in the running loop."""
    gateway._loop, gateway._client = asyncio.get_running_loop(), cluster  # type: ignore[assignment]
    gateway._connecting = asyncio.Lock()
