"""WebSockets of objects: what `ctx.accept_websocket` and `ctx.websockets` give.

A socket belongs to an object and is held by a gateway.  It stays open while its object leaves memory and
while its worker restarts; the next message wakes the object, with the socket's tags and attachment there.
Runs in workers; `WebSocketResponse` is also what a `fetch` returns.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from starlette.responses import Response as _Response
else:
    _Response = object  # Starlette is imported by those who answer HTTP, and not for every worker

__all__ = ["UPGRADE_SCOPE_KEY", "Upgradable", "WebSocket", "WebSocketResponse"]

UPGRADE_SCOPE_KEY = "perdure.socket"
"""Where the scope of a request that asks for a WebSocket has the key of the socket that it would be."""

# Inside the class `tags` is an attribute.
_Tags = tuple[str, ...]


@runtime_checkable
class WebSocket(Protocol):
    """One open WebSocket of an object, from `ctx.websockets()` or given to a handler.

    What a turn sends leaves when the turn is committed, in the order in which turns are committed; nothing
    of it leaves when the turn raises.  It is delivered once, also when the worker dies before it has sent
    it.  To a client that is gone, sending does nothing.  Two of these are equal when they are of one socket.

    A client that does not read is closed by its gateway (1013) when too much waits for it; objects never
    wait for clients.
    """

    @property
    def id(self) -> str:
        """48 hex digits; no other socket has, or will have, the same."""

    @property
    def tags(self) -> _Tags:
        """The tags that it was accepted with."""

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the object has chosen; None for none."""

    @property
    def accepted_at(self) -> datetime:
        """When the object has accepted it (UTC)."""

    @property
    def attachment(self) -> Any:
        """What the object has attached to the socket; None at first.

        It is stored with the turn that sets it: plain values, as in storage, of up to
        `socket_attachment_bytes_max` bytes encoded.  Reading it gives a copy: to change something inside
        of it, set the whole.  Raises `InvalidArgument` for what cannot be stored.
        """

    @attachment.setter
    def attachment(self, value: Any) -> None: ...

    def send(self, message: str | bytes) -> None:
        """Sends a text or binary message with the running turn.  A plain call, nothing to await.

        Raises `InvalidArgument` for anything else and for more than `socket_frame_bytes_max`, `StorageError`
        outside of a turn of the object, `RuntimeError` when the object has closed the socket.
        """

    def send_json(self, value: Any) -> None:
        """Sends `value` as JSON, in a text message.  Raises as `send`, and what `json.dumps` raises."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the socket with the running turn, behind what was sent before.

        The object has the socket no more, and no `websocket_close` is called for it.  A second call does
        nothing.  `code` is 1000 to 1003, 1007 to 1014 or 3000 to 4999, `reason` has at most 123 bytes in
        UTF-8; `InvalidArgument` for others.
        """


class Upgradable(Protocol):
    """A request that may ask for a WebSocket: Starlette's `Request` that a `fetch` was given."""

    @property
    def scope(self) -> Any: ...


class WebSocketResponse(_Response):
    """The response that takes a WebSocket; made by `ctx.accept_websocket`, to be returned by `fetch`."""

    __slots__ = ("protocol", "socket", "websocket")

    status_code = 101

    def __init__(self, socket: bytes, websocket: WebSocket, protocol: str | None) -> None:
        self.socket = socket
        """The socket's key."""
        self.websocket = websocket
        """The socket, to greet it: what is sent to it leaves when the turn is committed."""
        self.protocol = protocol

    def __repr__(self) -> str:
        return f"<WebSocketResponse {self.websocket.id}>"
